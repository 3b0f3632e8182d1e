"""Questions. Read `screening`, `problems`, `rows`, `curriculum`: which rows are usable, who makes them, batches, order."""
