"""Fit a classifier with a 64-dimensional hidden layer to the labels of a shard set."""
