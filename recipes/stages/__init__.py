"""Stages other than SFT and GRPO."""
