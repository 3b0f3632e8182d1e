"""Reads and writes a Gemma as Hugging Face's files. Read `weights`, `config`, `tokenizer`."""
