"""Kinds of answer that only some data has: `expression`, `quantity`, `smiles`, `plan`, `list`, `set`. `answers` imports
them by name. Formulas in reading order: `notation`, `structure`, `operations`, `expression`, `symbolic`, `algebra`."""
