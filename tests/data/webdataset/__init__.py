"""Tests of foreign WebDataset shards."""
