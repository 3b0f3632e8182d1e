"""The tiny stand-ins: a stock policy and a judge, with the tokenizer they share; `tools/build_tiny_models.py` makes them."""
