"""Rewards beside format and exact answer: `rubric`, which most recipes take, and those of single recipes."""
