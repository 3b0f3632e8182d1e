"""Commands (exports, uploads, preflight, one stage on several hosts), and what only notebooks 1 and 4 import:
`data_card` and `uncertainty`."""
