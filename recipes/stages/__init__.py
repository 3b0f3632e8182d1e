"""Stages beside SFT and GRPO."""
