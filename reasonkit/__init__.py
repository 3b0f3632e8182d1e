"""reasonkit: train a Gemma to show its work, and measure it on held-out questions."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`ask` brings JAX, which takes seconds to import, so it is found when it is first used."""
    if name != "ask":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from reasonkit.inference import ask

    return ask
