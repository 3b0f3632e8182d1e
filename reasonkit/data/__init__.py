"""Questions: recipes of data, splits, screening, batches. Read `problems`, `screening`, `curriculum`."""
