"""The judges' way into a checkpoint, in a fresh process: what they will load is what was trained.

`verify_submission` runs `python -m reasonkit.models.submission_check`, which does what the competition's template does.
It compares the adapter, the replies where the notebook runs on a CPU too, and the merged model of an export. The
process stays on the CPU, because another process holds the accelerator.
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
import numpy as np
import orbax.checkpoint as ocp
import qwix
from flax import nnx
from jax.sharding import Mesh
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.models.checkpoints import steps_in, strays
from reasonkit.models.gemma import flax_checkpoint, from_flax
from reasonkit.models.load import LoadedModel, Tokenizer, load
from reasonkit.models.lora import LORA_MODULES, fingerprint, merge_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS

INF_TEMPERATURE, INF_TOP_K, INF_TOP_P, SEED = 0, 1, None, 42
SPARE_CACHE = 256  # the template's cache is prompt + generation + 256
# In nats of a logit. A merged model may choose another token by rounding: in bfloat16, Gemma-3-270M's choice changed
# where the two logits were at most one step of 1/8 apart. Further apart than this is another model.
NEAR_TIE = 0.5


class SubmissionError(RuntimeError):
    """The judges' loader failed on the checkpoint, or its replies are not the notebook's."""


def load_as_judges(model: str, dtype: str, rank: int, alpha: float, ckpt_dir: str,
                   samples: Sequence[tuple[str, str]], max_prompt_length: int, max_new_tokens: int, sample: bool,
                   exported: bool) -> dict:
    """The highest step and its adapter's fingerprint. With `sample`, also the greedy replies to the samples' questions.

    As in the template, orbax restores the step onto qwix's own adapter in the base's dtype. Tunix's sampler takes one
    prompt at a time, with the template's cache size and decoding. With `exported`, also how the merged model in
    `ckpt_dir` differs (see `_compare`).
    """
    mesh, actor = make_mesh(jax.devices()[:1], 1, 1), Path(ckpt_dir) / "actor"
    base = load(model, mesh, dtype)
    provider = qwix.LoraProvider(module_path=LORA_MODULES, rank=rank, alpha=alpha)
    lora_policy = qwix.apply_lora_to_model(base.model, provider, rngs=nnx.Rngs(0), **base.model.get_model_input())
    lora_policy.lora_alpha = float(alpha)  # for `merge_lora`
    step = max(int(path.name) for path in actor.iterdir() if path.name.isdigit())
    state = nnx.state(lora_policy, nnx.LoRAParam)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    nnx.update(lora_policy, ocp.StandardCheckpointer().restore(actor / str(step) / "model_params", target=abstract))
    config, tokenizer = base.config, base.tokenizer
    sampler = Sampler(lora_policy, tokenizer, CacheConfig(
        cache_size=max_prompt_length + max_new_tokens + SPARE_CACHE, num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads, head_dim=config.head_dim))
    with mesh:
        replies = [sampler([TAGS.template.format(question=question)], max_generation_steps=max_new_tokens,
                           max_prompt_length=max_prompt_length, temperature=INF_TEMPERATURE, top_k=INF_TOP_K,
                           top_p=INF_TOP_P, seed=SEED, eos_tokens=list(tokenizer.stop_ids)).text[0]
                   for question, _ in (samples if sample else ())]
    found = {"step": step, "adapter": fingerprint(lora_policy), "replies": replies}
    if exported:
        found |= _compare(replace(base, model=lora_policy), Path(ckpt_dir), mesh, dtype, samples)
    return found


def _compare(policy: LoadedModel, folder: Path, mesh: Mesh, dtype: str, samples: Sequence[tuple[str, str]]) -> dict:
    """How the merged model of an export differs from the policy.

    arrays: those that are not base and adapter merged, up to the file's rounding. tokens: the number in the samples'
    replies. parts: where the two models continue the start of a reply differently, and the policy's logits of the two
    tokens are more than NEAR_TIE apart.
    """
    family, tokenizer = policy.tokenizer.family, Tokenizer(folder / "tokenizer.model", policy.tokenizer.family)
    there = from_flax(flax_checkpoint(folder), family, policy.config, mesh, dtype, replicated=True)
    ours = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(policy.model))}
    arrays = [] if tokenizer.path.read_bytes() == policy.tokenizer.path.read_bytes() else [tokenizer.path.name]
    for path, leaf in nnx.to_flat_state(nnx.state(there)):
        want, got = (np.asarray(value, np.float32)
                     for value in (merge_lora(ours, path, policy.model), leaf.get_value()))
        if not np.allclose(got, want, rtol=2**-7, atol=2**-9 * np.abs(want).max()):
            arrays.append("/".join(map(str, path)))

    @nnx.jit
    def logits(model: nnx.Module, tokens_BT: jax.Array) -> jax.Array:
        mask_BT = tokens_BT != tokenizer.pad_id()
        return model(tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT))[0]

    rows = [([tokenizer.bos_id(), *tokenizer.encode(TAGS.prompt(question))], tokenizer.encode(reply))
            for question, reply in samples]
    longest = max((len(prompt) + len(reply) for prompt, reply in rows), default=0)
    parts = []
    for (question, _), (prompt, reply) in zip(samples, rows, strict=True):
        tokens_BT = np.full((1, longest), tokenizer.pad_id(), np.int32)
        tokens_BT[0, : len(prompt) + len(reply)] = prompt + reply
        said_TV, merged_TV = (np.asarray(logits(model, tokens_BT)[0, len(prompt) - 1: len(prompt) + len(reply)],
                                         np.float32) for model in (policy.model, there))
        for at, (one, other) in enumerate(zip(said_TV.argmax(-1), merged_TV.argmax(-1), strict=True)):
            if said_TV[at, one] - said_TV[at, other] > NEAR_TIE:
                parts.append([question, *map(tokenizer.decode, (reply[:at], [one], [other]))])
                break
    return {"arrays": arrays, "tokens": sum(len(reply) + 1 for _, reply in rows), "parts": parts}


def verify_submission(ckpt_dir: Path, adapter: str, samples: Sequence[tuple[str, str]], *, model: str, dtype: str,
                      rank: int, alpha: float, max_prompt_length: int, max_new_tokens: int) -> str:
    """Load `ckpt_dir` as the judges do, in a fresh process. `adapter` is the evaluated adapter's `lora.fingerprint`,
    `samples` are (question, reply) pairs of the evaluation.

    Of an export for the unrestricted mode, which holds the merged model too, the arrays must be base and adapter
    merged, and both models must continue alike at each token of the samples' replies.

    Returns in words what is equal. Raises SubmissionError with the end of the process's error output when the loader
    fails, or with what differs.
    """
    ckpt_dir = Path(ckpt_dir).resolve()
    if not steps_in(ckpt_dir):
        raise SubmissionError(f"{ckpt_dir}/actor has no step: train, or save the adapter there with save_lora")
    if taken := [path.name for path in strays(ckpt_dir) if path.name.isdigit()]:
        raise SubmissionError(f"{ckpt_dir}/actor holds {taken}, which is no step, and the judges' loader would take it "
                              "for one: delete or rename it")
    pieces = (ckpt_dir / "tokenizer.model").is_file()
    if (exported := bool(flax_checkpoint(ckpt_dir))) != pieces:
        lost = "merged model" if pieces else "tokenizer.model"
        raise SubmissionError(f"{ckpt_dir} is an export without its {lost}: export the policy again")
    sample = jax.default_backend() == "cpu"
    job = dict(model=model, dtype=dtype, rank=rank, alpha=alpha, ckpt_dir=str(ckpt_dir), samples=list(samples),
               max_prompt_length=max_prompt_length, max_new_tokens=max_new_tokens, sample=sample, exported=exported)
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-m", "reasonkit.models.submission_check"], input=json.dumps(job), text=True,
                          check=False, capture_output=True,
                          env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"})
    if done.returncode:
        raise SubmissionError(f"the judges' loader failed on {ckpt_dir}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["adapter"] != adapter:
        raise SubmissionError(f"step {found['step']} in {ckpt_dir} is not the adapter that was evaluated: a later save "
                              "outranks it, or the last one is missing; save the evaluated adapter under a higher step")
    for (question, reply), judged in zip(samples, found["replies"], strict=sample):
        if reply != judged:
            raise SubmissionError(f"to {question!r} the notebook's model says {reply!r}, and loaded as the judges do "
                                  f"it says {judged!r}: the prompt, the limits or the stop tokens differ")
    equal = f"step {found['step']}: the same adapter, the same {len(found['replies'])} greedy replies"
    if not exported:
        return equal
    if found["arrays"]:
        raise SubmissionError(f"{', '.join(found['arrays'][:3])} of {len(found['arrays'])} parts of the export in "
                              f"{ckpt_dir} are not the base with the adapter merged: export the policy again")
    for question, reply, ours, theirs in found["parts"]:
        raise SubmissionError(
            f"to {question!r}, after {reply!r}, the policy goes on with {ours!r} and the merged model with {theirs!r}: "
            "the adapter was lost in the rounding, export with a finer dtype")
    return f"{equal}; merged, the same arrays, and alike at {found['tokens']} tokens of replies"


def main() -> None:
    """Reads the arguments of `load_as_judges` as JSON on standard input, and prints its result."""
    print(json.dumps(load_as_judges(**json.load(sys.stdin))))


if __name__ == "__main__":
    main()
