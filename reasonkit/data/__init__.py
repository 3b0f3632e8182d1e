"""Questions: which rows are usable, where they come from, how they are cleaned, mixed and batched."""
