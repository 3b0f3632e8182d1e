"""Hugging Face's files of a Gemma, read and written. Read `config`, `weights`, `tokenizer`."""
