"""Synthetic faces with known factors: sampling, drawing, and writing a complete data set."""
