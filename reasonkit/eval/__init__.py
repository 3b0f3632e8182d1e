"""Measures how good a model is, with intervals. Read `evaluate`, then `intervals`."""
