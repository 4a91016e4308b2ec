"""Train a classifier with a 64-dimensional hidden layer on the labels of a shard set (`featgan blackbox fit`)."""
