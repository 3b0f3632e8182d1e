"""How far a rollout in 8-bit integers is from the policy: `python benchmarks/int8_rollout.py [--adapter FOLDER]`.

The policy samples completions of the demo's training problems at temperature 1, in floats and with 8-bit matrices, an
8-bit cache, or both. Then the policy scores the same tokens as GRPO's loss does. The table has the differences of the
log-probabilities, the divergence of the rollout from the policy (k3), and the tokens whose weight is cut off.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

import checkout  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reasonkit.data.problems import load_recipe, make_problems
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.load import load
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS
from reasonkit.train.policy_loss import TRUNCATION, completion_logprobs
from reasonkit.train.rollout import Rollout, in_int8, sampling

KINDS = {"floats": None, "int8 weights": (True, False), "int8 cache": (False, True), "both": (True, True)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-policy")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--adapter", type=Path, help="that a stage left, such as artifacts/grpo/adapter")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32.0)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--prompt-length", type=int, default=80)
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    mesh = make_mesh(jax.devices(), len(jax.devices()), 1)
    loaded = load(options.model, mesh, jnp.dtype(options.dtype))
    policy, pad = add_lora(loaded.model, mesh, options.rank, options.alpha), loaded.tokenizer.pad_id()
    if options.adapter:
        restore_lora(policy, options.adapter)
    problems = make_problems(load_recipe("tiny_mix"), "train", 0)
    batches = [[TAGS.prompt(problem.question) for problem in islice(problems, options.rows)]
               for _ in range(options.calls)]
    settings = sampling(loaded.tokenizer, max_prompt_length=options.prompt_length, max_new_tokens=options.new,
                        temperature=1.0, logprobs=True)
    print(f"{options.model}, {options.dtype}, adapter {options.adapter or 'new'}, {options.calls} x {options.rows} "
          f"completions\n\n| rollout | tokens | mean of the difference | 99 % below | largest | KL | weight cut at "
          f"{TRUNCATION:g} |\n|---|---|---|---|---|---|---|")
    for name, kind in KINDS.items():
        rollout = Rollout(policy, loaded.tokenizer, mesh, settings, sampled=kind and in_int8(policy, *kind))
        found = []
        for prompts in batches:
            with mesh:
                output = rollout.generate(prompts, settings)
                lengths_B = np.array([len(row) for row in output.tokens])
                drawn_BL = np.stack([np.pad(row, (0, options.new - len(row)), constant_values=pad)
                                     for row in output.tokens])
                logps_BL = completion_logprobs(*nnx.split(policy), jnp.array(output.left_padded_prompt_tokens),
                                               jnp.array(drawn_BL), pad_id=pad, eos_id=loaded.tokenizer.eos_id())
            real_BL = np.arange(options.new) < lengths_B[:, None]
            found.append((np.asarray(logps_BL) - rollout.logprobs[-1])[real_BL])
        log_ratio_N = np.concatenate(found)
        off_N = np.abs(log_ratio_N)
        kl, cut = (np.expm1(log_ratio_N) - log_ratio_N).mean(), (log_ratio_N > np.log(TRUNCATION)).mean()
        print(f"| {name} | {len(log_ratio_N):,} | {off_N.mean():.5f} | {np.quantile(off_N, 0.99):.4f} | "
              f"{off_N.max():.3f} | {kl:.2e} | {cut:.3%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
