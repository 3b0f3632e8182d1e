"""The model of a finished run, to be used where its notebooks are not: `load_trained`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.load import LoadedModel, load
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.run import Run, open_run
from reasonkit.session.files import read
from reasonkit.session.records import RunFile

STAGES = ("data", "sft", "grpo", "evaluation")


@dataclass(frozen=True)
class Trained:
    """A finished run: its policy after GRPO on one device, and the manifests of its stages."""

    run: Run
    policy: LoadedModel
    mesh: Mesh
    manifests: list[dict[str, Any]]


def load_trained(folder: str | Path) -> Trained:
    """The run in a folder of artifacts. The base model is looked for as `load` does.

    Raises RecordError when there is no run, ManifestError when a stage is not finished or its files have changed, and
    as `open_run` and `load`.
    """
    folder = Path(folder).resolve()
    choices = read(folder / "run.json", RunFile, "name a run's folder of artifacts")
    run = open_run(**choices.model_dump(), folder=folder)
    manifests, profile = [run.manifest(stage) for stage in STAGES], run.profile
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    policy = load(profile.policy, mesh, profile.dtype)
    policy = replace(policy, model=add_lora(policy.model, mesh, profile.lora_rank, profile.lora_alpha, run.seed))
    restore_lora(policy.model, run.stage("grpo") / "adapter")
    return Trained(run, policy, mesh, manifests)
