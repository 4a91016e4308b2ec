"""Images in: layouts, drawn faces, shards, feature caches, batches."""
