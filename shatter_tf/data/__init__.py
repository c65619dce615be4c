"""Text in, batches out: reading, tokenising, sharding, and the two loaders."""
