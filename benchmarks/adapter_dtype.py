"""What a float32 adapter is worth on a bfloat16 base: `python benchmarks/adapter_dtype.py`.

The tiny policy in bfloat16 is trained by SFT twice per learning rate, from the same adapter on the same batches: once
with a bfloat16 adapter, as qwix makes one, and once in float32, as `lora.add_lora` does. One rate is the profile's. At
the other, a step is as small against a weight's spacing in bfloat16 as in large models. Both then answer the
validation problems and are compared question by question.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import checkout  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reasonkit.config import PROFILES
from reasonkit.data import problems as data
from reasonkit.eval.evaluate import compare_paired, evaluate
from reasonkit.models import load as models
from reasonkit.models.lora import add_lora, round_to_compute_dtype
from reasonkit.models.mesh import make_mesh
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.train.rollout import generator
from reasonkit.train.sft import sft

jax.config.update("jax_platforms", "cpu")

PROFILE = PROFILES["cpu"]
DTYPES = jnp.bfloat16, jnp.float32  # of the adapter
SMALL = 0.1  # of the profile's learning rate


def ends(model: nnx.Module, end: str) -> np.ndarray:
    """All A's or all B's of the adapter, in one row."""
    leaves = jax.tree.leaves_with_path(nnx.state(model, nnx.LoRAParam))
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for path, leaf in leaves
                           if f"_lora_{end}" in jax.tree_util.keystr(path)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=PROFILE.sft.steps)
    parser.add_argument("--rates", type=float, nargs="+",
                        default=[SMALL * PROFILE.sft.learning_rate, PROFILE.sft.learning_rate])
    parser.add_argument("--problems", type=int, default=PROFILE.rows["validation"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mesh = make_mesh(jax.devices(), 1, 1)
    loaded = models.load(PROFILE.policy, mesh, "bfloat16")
    sizes = {"train": PROFILE.rows["train"], "validation": options.problems}
    rows = data.make_splits(data.load_recipe("tiny_mix"), sizes, options.seed)
    print(f"SFT of {options.steps} steps, then {options.problems} problems\n\n| learning rate | adapter | A changed | "
          "B, length | loss | accuracy | format rate | step accuracy | minutes |\n"
          "|---|---|---|---|---|---|---|---|---|",
          flush=True)
    compared = []
    for rate in options.rates:
        results = []
        for dtype in DTYPES:
            began = time.perf_counter()
            model = add_lora(loaded.model, mesh, PROFILE.lora_rank, PROFILE.lora_alpha, options.seed)
            nnx.update(model, round_to_compute_dtype(nnx.state(model, nnx.LoRAParam), dtype))
            before = ends(model, "a")
            with tempfile.TemporaryDirectory() as folder:
                log = RunLog(Path(folder) / "log.jsonl")
                sft(replace(loaded, model=model), mesh, rows["train"],
                    replace(PROFILE.sft, steps=options.steps, learning_rate=rate), TimeBudget(9, 0), log,
                    Path(folder), options.seed)
                loss = np.mean([row["loss"] for row in log.read("sft_step")[-10:]])
            generate = generator(model, loaded.tokenizer, mesh, max_prompt_length=PROFILE.grpo.max_prompt_length,
                                 max_new_tokens=PROFILE.grpo.max_new_tokens, batch_size=PROFILE.eval_batch)
            results.append(evaluate(generate, rows["validation"], PROFILE.eval_batch))
            found = results[-1]
            print(f"| {rate:g} | {jnp.dtype(dtype).name} | {np.mean(before != ends(model, 'a')):.1%} | "
                  f"{np.linalg.norm(ends(model, 'b')):.3f} | {loss:.3f} | {found.accuracy} | {found.format_rate} | "
                  f"{found.step_accuracy} | {(time.perf_counter() - began) / 60:.1f} |", flush=True)
        compared += [f"{rate:g}, {field}, float32 against bfloat16: {compare_paired(*results, field)}"
                     for field in ("correct", "steps")]
    print("", *compared, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
