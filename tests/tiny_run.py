"""What the tests of the training stages share: short prompts, a few problems, a policy, a clock that tests move."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from datasets import Dataset
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from tiny_gemma import small_config, train_tokenizer

from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.models.load import LoadedModel, Tokenizer
from reasonkit.models.lora import add_lora
from reasonkit.session.time_budget import TimeBudget

# The template's words as single tokens, else the small tokenizer spells it in 300.
WORDS = ("Show your work between ", "<reasoning>", "</reasoning>", " and ", ", then give the final answer between ",
         "<answer>", "</answer>", " plus ")
RUBRIC = rubric_to_json((Criterion("Steps", "Every step is shown", 1.0),))
CONFIG = small_config(sliding_window_size=512)
ROWS = Dataset.from_list([
    {"id": f"{a}-{b}", "family": "sum", "kind": "number", "question": f"{a} plus {b}", "reasoning": f"{a}+{b}={a + b}",
     "answer": str(a + b), "rubric": RUBRIC} for a in range(6) for b in range(5)])


def short_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(train_tokenizer(folder, symbols=tuple(word.replace(" ", "\u2581") for word in WORDS)), "gemma3")


def new_policy(base: nnx.Module, mesh: Mesh, tokenizer: Tokenizer, seed: int = 0) -> LoadedModel:
    """The base with a fresh adapter, as a notebook has it before it trains."""
    return LoadedModel(add_lora(base, mesh, 4, 8.0, seed), tokenizer, base.config, "small", tokenizer.path.parent)


class Clock:
    """Stands still until it is told that the time is up."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class StopAfter:
    """A budget, and the `on_step` that uses it up after some steps."""

    def __init__(self, steps: int):
        self._left, self._clock = steps, Clock()
        self.budget = TimeBudget(1, 0, clock=self._clock)

    def on_step(self) -> None:
        self._left -= 1
        if not self._left:
            self._clock.now += 3600


def kept_in(folder: Path) -> dict[str, str | float]:
    """JAX's settings that keep every compiled program in a folder; in capitals, the environment's names for them."""
    return {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1}


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Keeps compiled programs in a folder: each run makes its own samplers, which would compile them again."""
    settings = kept_in(folder)
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
