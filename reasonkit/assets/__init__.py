"""The tiny stand-ins: a stock policy and a judge, and their tokenizer; `tools/build_tiny_models.py` makes them."""
