"""Packed shards: the manifest, the index of each split, and access to images and labels by row."""
