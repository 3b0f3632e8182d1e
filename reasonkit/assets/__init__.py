"""The tiny stand-ins: a policy and a judge, and their tokenizer. `tools/build_tiny_models.py` makes them."""
