"""Text in, batches out: reading, tokenizing, sharding, and a loader for each kind of task."""
