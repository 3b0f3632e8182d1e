"""Kinds of answer that only some data sets have: `expression`, `quantity`, `smiles`, `plan`, `list`, `set`. `answers`
imports them by name. For formulas read `notation`, `structure`, `expression`, `symbolic`, `operations`, `algebra`."""
