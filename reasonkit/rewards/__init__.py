"""Rewards, and how to combine them. Read `rules`, `mix`, `monitors`."""
