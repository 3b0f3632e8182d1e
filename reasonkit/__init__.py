"""reasonkit: turn a stock Gemma into a model that shows its work, and prove on held-out questions that it did."""

__version__ = "0.1.0"
