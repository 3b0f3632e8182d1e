"""Loads a checkpoint as the judges will, and checks that it is what was trained.

`load_in_place` does what the competition's template does to the notebook's own objects. `verify_submission` does it in
a fresh process (`python -m reasonkit.models.submission_check`). That one stays on the CPU, because the notebook holds
the accelerator, so it compares replies only where the notebook runs on a CPU, too.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import qwix
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler

from reasonkit.models.checkpoints import steps_in, strays
from reasonkit.models.load import LoadedModel, Tokenizer, load
from reasonkit.models.lora import LORA_MODULES, fingerprint
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS

SPARE_CACHE = 256  # the template's cache is prompt + generation + 256
PROMPT_ROOM = 1024  # tokens: the template's sampler raises for a prompt that its cache can't hold
PATIENCE = 480  # seconds for a process to load a model on the CPU: the clock's reserve is to pay for it
DIFFERENT = ("step {step} in {folder} is not the adapter that was evaluated: a later save outranks it, or the last one "
             "is missing; save the evaluated adapter under a higher step")


class SubmissionError(RuntimeError):
    """The judges' loader failed on the checkpoint, or its replies are not the notebook's."""


def load_as_judges(model: str, dtype: str, rank: int, alpha: float, ckpt_dir: str) -> tuple[LoadedModel, int]:
    """The model on one device with the adapter of the highest step, and that step. As in the template, orbax restores
    the step onto qwix's own adapter in the base's dtype."""
    base = load(model, make_mesh(jax.devices()[:1], 1, 1), dtype)
    provider = qwix.LoraProvider(module_path=LORA_MODULES, rank=rank, alpha=alpha)
    lora_policy = qwix.apply_lora_to_model(base.model, provider, rngs=nnx.Rngs(0), **base.model.get_model_input())
    lora_policy.lora_alpha = float(alpha)  # as `add_lora` does
    state = nnx.state(lora_policy, nnx.LoRAParam)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    return replace(base, model=lora_policy), _restore(lora_policy, Path(ckpt_dir), abstract)


def _restore(model: nnx.Module, folder: Path, abstract: nnx.State) -> int:
    """Restore the highest step as the template does, and return it."""
    actor = folder.resolve() / "actor"
    step = max(int(path.name) for path in actor.iterdir() if path.name.isdigit())
    nnx.update(model, ocp.StandardCheckpointer().restore(actor / str(step) / "model_params", target=abstract))
    return step


def ending_turns(tokenizer: Tokenizer) -> Tokenizer:
    """A copy whose end of sequence is <end_of_turn>. Our policies end with that. Given no stop tokens, Tunix's sampler
    stops at the end of sequence and nowhere else."""
    made = copy.copy(tokenizer)
    made.eos_id = lambda: tokenizer.end_of_turn
    return made


def replies_as_judges(policy: LoadedModel, questions: Sequence[str], max_prompt_length: int, max_new_tokens: int,
                      **stop: Sequence[int]) -> list[str]:
    """The replies, by Tunix's sampler, one at a time, with the template's cache and decoding, which is greedy."""
    size, config = max_prompt_length + max_new_tokens + SPARE_CACHE, policy.config
    sampler = Sampler(policy.model, policy.tokenizer,
                      CacheConfig(size, config.num_layers, config.num_kv_heads, config.head_dim))
    return [sampler([TAGS.template.format(question=question)], max_generation_steps=max_new_tokens,
                    max_prompt_length=max_prompt_length, temperature=None, top_k=1, top_p=None, seed=42, **stop).text[0]
            for question in questions]


def load_in_place(policy: LoadedModel, ckpt_dir: Path, samples: Sequence[tuple[str, str]], *, max_prompt_length: int,
                  max_new_tokens: int) -> str:
    """Restore the highest step onto the notebook's own policy, and answer, as the template does. It gives no sharding,
    so orbax puts each array on the devices that the file names, and it may give no stop tokens.

    Returns in words how many replies are those of `samples`, pairs of (question, reply). In bfloat16 some may differ,
    because the evaluation answers many at once. Raises SubmissionError for another adapter, or one on other devices.
    """
    before, kept = fingerprint(policy.model), jax.tree.map(jnp.copy, nnx.state(policy.model, nnx.LoRAParam))
    step = _restore(policy.model, ckpt_dir, jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), kept))
    if len({frozenset(leaf.sharding.device_set) for leaf in jax.tree.leaves(nnx.state(policy.model))}) > 1:
        nnx.update(policy.model, kept)
        raise SubmissionError(f"step {step} in {ckpt_dir} was saved from other devices than the model is on, and the "
                              "judges' loader puts it there: save it from this model, with save_lora")
    if fingerprint(policy.model) != before:
        raise SubmissionError(DIFFERENT.format(step=step, folder=ckpt_dir))
    ours = replace(policy, tokenizer=ending_turns(policy.tokenizer))
    judged = replies_as_judges(ours, [question for question, _ in samples], max_prompt_length, max_new_tokens)
    same = sum(reply == other for (_, reply), other in zip(samples, judged, strict=True))
    return f"step {step}: loaded onto this model, {same} of {len(judged)} greedy replies as in the evaluation"


def run_as_judges(module: str, **job) -> dict:
    """What a module's `main` prints about a `job`, in a fresh process on the CPU. Raises SubmissionError with the end
    of its error output when it fails, and after PATIENCE."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run([sys.executable, "-m", module], input=json.dumps(job), text=True, check=False,
                              capture_output=True, timeout=PATIENCE,
                              env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"})
    except subprocess.TimeoutExpired:
        raise SubmissionError(f"the judges' loader has not ended on {job['ckpt_dir']} after {PATIENCE} s") from None
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
        raise SubmissionError(DIFFERENT.format(step=found["step"], folder=ckpt_dir))
    for (question, reply), judged in zip(samples, found["replies"], strict=sample):
        if reply != judged:
            raise SubmissionError(f"to {question!r} the notebook's model says {reply!r}, and loaded as the judges do "
                                  f"it says {judged!r}: the prompt, the limits or the stop tokens differ")
    told = f"the same {len(samples)} greedy replies" if sample else "and no reply, because that process runs on a CPU"
    return f"step {found['step']}: the same adapter, {told}"


def main() -> None:
    """Reads a job as JSON on standard input. Prints the highest step, its adapter's fingerprint and the replies."""
    job = json.load(sys.stdin)
    sampling = [job.pop(name) for name in ("questions", "max_prompt_length", "max_new_tokens")]
    policy, step = load_as_judges(**job)
    with make_mesh(jax.devices()[:1], 1, 1):
        replies = replies_as_judges(policy, *sampling, eos_tokens=list(policy.tokenizer.stop_ids))
    print(json.dumps({"step": step, "adapter": fingerprint(policy.model), "replies": replies}))


if __name__ == "__main__":
    main()
