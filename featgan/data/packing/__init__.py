"""Packing of a data set into shards: keys and splits, crops, tar files, an index and a manifest."""
