"""Kinds of answer that only some data has: `expression`, `quantity`, `smiles`, `plan`, imported by name in `answers`.
The formulas' modules in reading order: `notation`, `structure`, `operations`, `expression`, `symbolic`, `algebra`."""
