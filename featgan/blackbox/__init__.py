"""The model under study: load one from anywhere, fit one, and cache what it says of every image."""
