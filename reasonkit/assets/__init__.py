"""The tiny stand-ins: a stock policy and a judge, with the tokenizer they share. `build` makes them again."""
