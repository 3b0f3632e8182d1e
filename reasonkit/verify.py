"""The judges' way into a checkpoint, in a fresh process: what they will load is what was trained.

`python -m reasonkit.verify` does, step by step, what the competition's template does: the highest step in
`<ckpt_dir>/actor`, `model_params` restored by orbax onto the adapter's state, Tunix's sampler with their cache size and
their decoding (temperature 0, top_k 1, no top_p, seed 42). `verify_submission` runs it and compares: the adapter
always, bit for bit; the replies where the notebook runs on the CPU too. The process stays off the accelerator, which
one process holds at a time, and another chip rounds otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

INF_TEMPERATURE, INF_TOP_K, INF_TOP_P, SEED = 0, 1, None, 42
SPARE_CACHE = 256  # the template's cache is prompt + generation + 256


class SubmissionError(RuntimeError):
    """The judges' loader failed on the checkpoint, or its replies are not the notebook's."""


def load_as_judges(model: str, dtype: str, rank: int, alpha: float, ckpt_dir: Path, questions: Sequence[str],
                   max_prompt_length: int, max_new_tokens: int) -> dict:
    """The adapter's fingerprint and the greedy replies to the questions, one prompt at a time, as the template does.

    Its adapter is qwix's own, of the base's dtype: orbax rounds what was saved to it.
    """
    import jax
    import orbax.checkpoint as ocp
    import qwix
    from flax import nnx
    from tunix.generate.sampler import CacheConfig, Sampler

    from reasonkit.lora import LORA_MODULES, fingerprint
    from reasonkit.mesh import make_mesh
    from reasonkit.models import load
    from reasonkit.tags import TAGS

    mesh = make_mesh(jax.devices()[:1], 1, 1)
    base = load(model, mesh, dtype)
    provider = qwix.LoraProvider(module_path=LORA_MODULES, rank=rank, alpha=alpha)
    lora_policy = qwix.apply_lora_to_model(base.model, provider, rngs=nnx.Rngs(0), **base.model.get_model_input())
    step = max(int(path.name) for path in (ckpt_dir / "actor").iterdir() if path.name.isdigit())
    state = nnx.state(lora_policy, nnx.LoRAParam)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    restored = ocp.StandardCheckpointer().restore(ckpt_dir / "actor" / str(step) / "model_params", target=abstract)
    nnx.update(lora_policy, restored)
    config, tokenizer = base.config, base.tokenizer
    sampler = Sampler(lora_policy, tokenizer, CacheConfig(
        cache_size=max_prompt_length + max_new_tokens + SPARE_CACHE, num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads, head_dim=config.head_dim))
    with mesh:
        replies = [sampler([TAGS.template.format(question=question)], max_generation_steps=max_new_tokens,
                           max_prompt_length=max_prompt_length, temperature=INF_TEMPERATURE, top_k=INF_TOP_K,
                           top_p=INF_TOP_P, seed=SEED, eos_tokens=list(tokenizer.stop_ids)).text[0]
                   for question in questions]
    return {"step": step, "adapter": fingerprint(lora_policy), "replies": replies}


def verify_submission(ckpt_dir: Path, adapter: str, samples: Sequence[tuple[str, str]], *, model: str, dtype: str,
                      rank: int, alpha: float, max_prompt_length: int, max_new_tokens: int) -> str:
    """Load `ckpt_dir` as the judges do, in a fresh process. `adapter` is the evaluated adapter's `lora.fingerprint`,
    `samples` are (question, reply) pairs of the evaluation.

    Returns what was found equal, in words. Raises SubmissionError with the process's last words when the loader fails,
    or with what differs.
    """
    import jax

    if not any(path.name.isdigit() for path in (Path(ckpt_dir) / "actor").glob("*")):
        raise SubmissionError(f"{ckpt_dir}/actor has no step: train, or save the adapter there with lora.save_lora")
    asked = list(samples) if jax.default_backend() == "cpu" else []
    job = dict(model=model, dtype=dtype, rank=rank, alpha=alpha, ckpt_dir=str(Path(ckpt_dir).resolve()),
               questions=[question for question, _ in asked], max_prompt_length=max_prompt_length,
               max_new_tokens=max_new_tokens)
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-m", "reasonkit.verify"], input=json.dumps(job), text=True, check=False,
                          capture_output=True, env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"})
    if done.returncode:
        raise SubmissionError(f"the judges' loader failed on {ckpt_dir}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["adapter"] != adapter:
        raise SubmissionError(f"step {found['step']} in {ckpt_dir} is not the adapter that was evaluated: a later save "
                              "outranks it, or the last one is missing; save the evaluated adapter under a higher step")
    for (question, reply), judged in zip(asked, found["replies"], strict=True):
        if reply != judged:
            raise SubmissionError(f"to {question!r} the notebook's model says {reply!r}, and loaded as the judges do "
                                  f"it says {judged!r}: the prompt, the limits or the stop tokens differ")
    return f"step {found['step']}: the same adapter, the same {len(asked)} greedy replies"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0],
                            epilog="Reads the arguments of load_as_judges as JSON on standard input.").parse_args()
    job = json.load(sys.stdin)
    print(json.dumps(load_as_judges(**{**job, "ckpt_dir": Path(job["ckpt_dir"])})))


if __name__ == "__main__":
    main()
