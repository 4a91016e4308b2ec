"""The feature cache: a classifier's features and outputs for every image of a shard set."""
