"""reasonkit: train a Gemma to show its work, and measure it on held-out questions."""

__version__ = "0.1.0"
