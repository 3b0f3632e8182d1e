"""Rewards and how they become one. Read `rules`, `mix`, `monitors`."""
