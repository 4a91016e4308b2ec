"""Use a trained generator: load it, edit images with it, and reopen the data that it was trained on."""
