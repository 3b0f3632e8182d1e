"""Rewards that only some recipes take."""
