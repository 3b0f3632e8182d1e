"""Hugging Face's files of a Gemma, read and written. Read `names`, `config`, `weights`, `tokenizer`, `export`."""
