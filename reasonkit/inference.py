"""A run's model outside its notebooks: `ask` asks it a question, and `load_policy` loads it. The run is only read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh

from reasonkit.config import STAGES
from reasonkit.models.load import LoadedModel, load
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.run import read_run
from reasonkit.session.files import read
from reasonkit.session.manifest import ASKED, ManifestError, base_sha256
from reasonkit.session.records import Asked
from reasonkit.show.completions import Answers, Ask
from reasonkit.train.rollout import generator


def ask(question: str, folder: Path | str | None = None) -> Answers:
    """The greedy completions of a run's base model and of its model after the last finished stage, side by side.

    A notebook shows a table, and a terminal text. `folder` is the run's (default: $REASONKIT_ARTIFACTS, else
    ./artifacts). The first call loads and compiles the model on one device, and later ones reuse it.

    Raises RecordError if no run is there, ManifestError if no stage has been trained, or if its files or the base have
    changed since, ValueError if the question has too many tokens, and as `load`.
    """
    run = read_run(folder)
    stages, profile = run.recipe.training_stages, run.profile
    last = next(filter(run.is_finished, reversed(stages)), stages[0])
    run.manifest(last)
    base = read(run.stage(last) / ASKED, Asked, "put the old one back").model.get("base")
    model, generate = _generator(profile.policy, profile.dtype, profile.lora_rank, profile.lora_alpha,
                                 profile.grpo.max_prompt_length, profile.grpo.max_new_tokens, base)
    adapters = {"base model": None, f"after {STAGES[last].title}": run.stage(last) / "adapter"}
    return Ask(model, generate, adapters)(question)


@functools.lru_cache(maxsize=1)
def _generator(name: str, dtype: str, rank: int, alpha: float, max_prompt_length: int,
               max_new_tokens: int, base: str | None) -> tuple[nnx.Module, Callable[[list[str]], list[str]]]:
    policy, mesh = load_policy(name, dtype, rank, alpha)
    if base not in (None, base_sha256(policy.folder)):
        raise ManifestError(f"{policy.folder} has other weights than the run was trained on: put the old ones back")
    return policy.model, generator(policy.model, policy.tokenizer, mesh, max_prompt_length=max_prompt_length,
                                   max_new_tokens=max_new_tokens, batch_size=1)


def load_policy(name: str, dtype: str, rank: int, alpha: float) -> tuple[LoadedModel, Mesh]:
    """A base model with an adapter that changes nothing yet, and its mesh of one device. Raises as `load`."""
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    base = load(name, mesh, dtype)
    return replace(base, model=add_lora(base.model, mesh, rank, alpha)), mesh
