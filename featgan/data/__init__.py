"""From a data set to training batches: readers, packing, shards, feature caches, conditions and the loader."""
