"""Text in, batches out: reading, tokenising, sharding, and a loader for each kind of task."""
