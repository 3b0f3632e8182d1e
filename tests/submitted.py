"""A submission as the notebooks leave it, for the tests of the judges' loading path."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import traceback
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from tiny_gemma import bump
from tiny_run import CONFIG, ROWS, new_policy, short_tokenizer

from reasonkit.models import checkpoints, submission_check
from reasonkit.models.load import load
from reasonkit.models.lora import fingerprint
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
from tools import export_check
from tools.flax import init_random, save_flax

LIMITS = {"max_prompt_length": 32, "max_new_tokens": 12}
QUESTIONS = ROWS["question"][:3]


def submit(root, dtype) -> SimpleNamespace:
    """Two steps, of which the last was evaluated: its adapter, replies and settings."""
    mesh = make_mesh(jax.devices()[:4], 4, 1)
    tokenizer = short_tokenizer(root / "pieces")
    folder = save_flax(init_random(CONFIG, mesh), tokenizer.path, root / "base")
    policy = new_policy(load(folder, mesh, dtype).model, mesh, tokenizer)
    checkpoints.save_lora(policy.model, root / "checkpoints", 9)
    bump(policy.model, 0.05)
    checkpoints.save_lora(policy.model, root / "checkpoints", 10)  # a larger number, but not a larger name
    replies = generator(policy.model, tokenizer, mesh, batch_size=4, **LIMITS)(
        [TAGS.prompt(question) for question in QUESTIONS])
    assert len(set(replies)) > 1 and all(replies)
    return SimpleNamespace(
        model=policy.model, checkpoints=root / "checkpoints", adapter=fingerprint(policy.model),
        samples=list(zip(QUESTIONS, replies, strict=True)),
        settings={"model": str(folder), "dtype": jnp.dtype(dtype).name, "rank": 4, "alpha": 8.0, **LIMITS})


def run_in_this_process(monkeypatch) -> None:
    """Starting Python and JAX anew takes long, and is proven once."""
    mains = {"reasonkit.models.submission_check": submission_check.main, "tools.export_check": export_check.main}

    def run(command, *, input, **_):
        assert command[:2] == [sys.executable, "-m"]
        said, complained, failed = io.StringIO(), io.StringIO(), 0
        with monkeypatch.context() as patch, contextlib.redirect_stdout(said):
            patch.setattr(sys, "stdin", io.StringIO(input))
            try:
                mains[command[2]]()
            except Exception:
                traceback.print_exc(file=complained)
                failed = 1
        return subprocess.CompletedProcess(command, failed, said.getvalue(), complained.getvalue())

    monkeypatch.setattr(submission_check.subprocess, "run", run)
