"""Declarative data recipes (one TOML a mix) and the procedural problem families they draw from."""
