"""Commands: exports, uploads, preflight, one stage on several hosts. `uncertainty` is for notebook 4."""
