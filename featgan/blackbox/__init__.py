"""The classifier to explain: load it from any source, train one, and cache its features and predictions."""
