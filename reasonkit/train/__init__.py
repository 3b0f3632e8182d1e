"""Training on Tunix: what stands around its loop. Read `sft`, `grpo`, `policy_loss`, `loop`."""
