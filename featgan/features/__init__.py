"""The feature space of a classifier, and directions in it; pure tensor functions."""
