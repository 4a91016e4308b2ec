"""The classifier under study: load it from any source, fit one, and cache its features and predictions."""
