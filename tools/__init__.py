"""Commands: exports, uploads, preflight, one stage on several hosts."""
