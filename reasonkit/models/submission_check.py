"""Loads a checkpoint as the judges will, in a fresh process, and checks that it is what was trained.

`verify_submission` runs `python -m reasonkit.models.submission_check`, which does what the competition's template does.
It compares the adapter, and the replies where the notebook runs on a CPU too. The process stays on the CPU, because
another process holds the accelerator.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import qwix
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler

from reasonkit.models.checkpoints import steps_in, strays
from reasonkit.models.load import LoadedModel, load
from reasonkit.models.lora import LORA_MODULES, fingerprint
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS

INF_TEMPERATURE, INF_TOP_K, INF_TOP_P, SEED = 0, 1, None, 42
SPARE_CACHE = 256  # the template's cache is prompt + generation + 256


class SubmissionError(RuntimeError):
    """The judges' loader failed on the checkpoint, or its replies are not the notebook's."""


def load_as_judges(model: str, dtype: str, rank: int, alpha: float, ckpt_dir: str) -> tuple[LoadedModel, int]:
    """The model on one device with the adapter of the highest step, and that step. As in the template, orbax restores
    the step onto qwix's own adapter in the base's dtype."""
    actor = Path(ckpt_dir) / "actor"
    base = load(model, make_mesh(jax.devices()[:1], 1, 1), dtype)
    provider = qwix.LoraProvider(module_path=LORA_MODULES, rank=rank, alpha=alpha)
    lora_policy = qwix.apply_lora_to_model(base.model, provider, rngs=nnx.Rngs(0), **base.model.get_model_input())
    lora_policy.lora_alpha = float(alpha)  # as `add_lora` does
    step = max(int(path.name) for path in actor.iterdir() if path.name.isdigit())
    state = nnx.state(lora_policy, nnx.LoRAParam)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    nnx.update(lora_policy, ocp.StandardCheckpointer().restore(actor / str(step) / "model_params", target=abstract))
    return replace(base, model=lora_policy), step


def replies_as_judges(policy: LoadedModel, questions: Sequence[str], max_prompt_length: int,
                      max_new_tokens: int) -> list[str]:
    """The greedy replies, by Tunix's sampler with one prompt at a time, and the template's cache size and decoding."""
    config, tokenizer = policy.config, policy.tokenizer
    sampler = Sampler(policy.model, tokenizer, CacheConfig(
        cache_size=max_prompt_length + max_new_tokens + SPARE_CACHE, num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads, head_dim=config.head_dim))
    with make_mesh(jax.devices()[:1], 1, 1):
        return [sampler([TAGS.template.format(question=question)], max_generation_steps=max_new_tokens,
                        max_prompt_length=max_prompt_length, temperature=INF_TEMPERATURE, top_k=INF_TOP_K,
                        top_p=INF_TOP_P, seed=SEED, eos_tokens=list(tokenizer.stop_ids)).text[0]
                for question in questions]


def run_as_judges(module: str, **job) -> dict:
    """What a module's `main` prints about a `job`, in a fresh process on the CPU. Raises SubmissionError with the end
    of its error output when it fails."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-m", module], input=json.dumps(job), text=True, check=False,
                          capture_output=True, env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"})
    if done.returncode:
        raise SubmissionError(f"the judges' loader failed on {job['ckpt_dir']}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def verify_submission(ckpt_dir: Path, adapter: str, samples: Sequence[tuple[str, str]], *, model: str, dtype: str,
                      rank: int, alpha: float, max_prompt_length: int, max_new_tokens: int) -> str:
    """Load `ckpt_dir` as the judges do, in a fresh process. `adapter` is the evaluated adapter's `lora.fingerprint`,
    `samples` are (question, reply) pairs of the evaluation.

    Returns in words what is equal. Raises SubmissionError as `run_as_judges` does, or with what differs.
    """
    ckpt_dir = Path(ckpt_dir).resolve()
    if not steps_in(ckpt_dir):
        raise SubmissionError(f"{ckpt_dir}/actor has no step: train, or save the adapter there with save_lora")
    if taken := [path.name for path in strays(ckpt_dir) if path.name.isdigit()]:
        raise SubmissionError(f"{ckpt_dir}/actor holds {taken}, which is no step, and the judges' loader would take it "
                              "for one: delete or rename it")
    sample = jax.default_backend() == "cpu"
    found = run_as_judges(
        "reasonkit.models.submission_check", model=model, dtype=dtype, rank=rank, alpha=alpha, ckpt_dir=str(ckpt_dir),
        questions=[question for question, _ in samples] if sample else [], max_prompt_length=max_prompt_length,
        max_new_tokens=max_new_tokens)
    if found["adapter"] != adapter:
        raise SubmissionError(f"step {found['step']} in {ckpt_dir} is not the adapter that was evaluated: a later save "
                              "outranks it, or the last one is missing; save the evaluated adapter under a higher step")
    for (question, reply), judged in zip(samples, found["replies"], strict=sample):
        if reply != judged:
            raise SubmissionError(f"to {question!r} the notebook's model says {reply!r}, and loaded as the judges do "
                                  f"it says {judged!r}: the prompt, the limits or the stop tokens differ")
    return f"step {found['step']}: the same adapter, the same {len(found['replies'])} greedy replies"


def main() -> None:
    """Reads a job as JSON on standard input. Prints the highest step, its adapter's fingerprint and the replies."""
    job = json.load(sys.stdin)
    sampling = [job.pop(name) for name in ("questions", "max_prompt_length", "max_new_tokens")]
    policy, step = load_as_judges(**job)
    print(json.dumps({"step": step, "adapter": fingerprint(policy.model),
                      "replies": replies_as_judges(policy, *sampling)}))


if __name__ == "__main__":
    main()
