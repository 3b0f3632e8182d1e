"""Training on Tunix: the stages and what surrounds its loop. Read `sft`, `grpo`, `policy_loss`, `loop`."""
