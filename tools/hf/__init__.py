"""Reads and writes a Gemma as Hugging Face's files. Read `names`, `config`, `weights`, `tokenizer`, `export`."""
