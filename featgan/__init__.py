"""Explain an image classifier: edit images until its features or predictions change."""

__version__ = "0.2.0"
