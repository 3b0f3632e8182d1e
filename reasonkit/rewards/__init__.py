"""Rewards, and how several become one. Read `rules`, `mix`, `monitors`."""
