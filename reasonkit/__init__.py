"""reasonkit: turn a stock Gemma into a model that shows its work, and prove it on held-out questions."""

__version__ = "0.1.0"
