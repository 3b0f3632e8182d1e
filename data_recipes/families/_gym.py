"""Problems of reasoning-gym (the extra `data`): its questions and answers, never its scorers, some of which run what
they score. They are made when they are asked for: the terms of GSM-Symbolic's text are not settled, and none is kept.
"""


def item(name, rng):
    """One problem of the data set `name`: question, answer and metadata. ImportError says what to install."""
    try:
        from reasoning_gym import create_dataset
    except ImportError as error:
        raise ImportError(f"problems of reasoning-gym need {error.name}: pip install 'reasoning-gym<0.2'") from error
    return create_dataset(name, size=1, seed=rng.getrandbits(31))[0]
