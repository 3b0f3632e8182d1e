"""What a command does: exports, uploads, preflight, one stage on several hosts."""
