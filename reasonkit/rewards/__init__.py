"""Rewards and how they become one. Read `rules`, `compose`, `monitors`."""
