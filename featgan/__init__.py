"""featgan shows what a trained image classifier looks at, by editing images until its features change."""

__version__ = "0.1.0"
