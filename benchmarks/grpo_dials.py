"""What GRPO's KL term and curriculum change: `python benchmarks/grpo_dials.py --seeds 0 1 2`.

Notebooks 01 and 02 of `g_exact` run once per seed. From that adapter each arm trains on format and exact answer, with
the demo's settings. `rollouts` are the completions until the accuracy on the validation problems, probed every four
steps, is first at `--target`. `KL` is that of the trained policy to the one it began with, in nats per completion. Each
arm is compared with the first one, question by question.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from checkout import ROOT
from demo import notebooks

from reasonkit.eval.evaluate import EvalResult, compare_paired

EVERY = 4
ARMS = {"beta 0.02, problems in turn": {}, "beta 0": {"beta": 0.0}, "beta 0.5": {"beta": 0.5},
        "beta 0.02, curriculum": {"curriculum": True}}


def train(artifacts: Path, folder: Path, seed: int, steps: int, curriculum: bool = False, **dials) -> dict:
    """One arm in `folder`, from the data and the SFT adapter in `artifacts`: what the table needs of it."""
    import jax

    from reasonkit.data.rows import read_rows
    from reasonkit.eval.evaluate import evaluate
    from reasonkit.models import checkpoints, placement
    from reasonkit.models.logprobs import next_logprobs, prefill, split_tokens
    from reasonkit.rewards import monitors
    from reasonkit.rewards.mix import RewardMix
    from reasonkit.rewards.rules import exact_answer, gate, tag_format
    from reasonkit.run import read_run
    from reasonkit.session.run_log import RunLog
    from reasonkit.session.time_budget import TimeBudget
    from reasonkit.text.tags import TAGS
    from reasonkit.train import rollout
    from reasonkit.train.grpo import grpo
    from recipes.stages.curriculum import Curriculum

    run = read_run(artifacts)
    profile, start = run.profile, artifacts / "sft/adapter"
    settings = replace(profile.grpo, steps=steps, **dials)
    data = {name: read_rows(artifacts / f"data/{name}.parquet") for name in ("train", "validation", "test")}
    made = placement.plan(profile, jax.devices(), judge=False, grpo=True)
    mesh = made.policy
    policy, step = placement.load_policy(profile, made, seed, start)
    limits = dict(max_prompt_length=settings.max_prompt_length, max_new_tokens=settings.max_new_tokens,
                  batch_size=profile.eval_batch)
    generate = rollout.generator(policy.model, policy.tokenizer, mesh, **limits)
    log = RunLog(folder / "log.jsonl")
    exact, chosen = gate(exact_answer, tag_format), None
    if curriculum:
        chosen = Curriculum(log)
        exact = chosen.watch(exact)
    probe = monitors.probe(generate, data["validation"], profile.eval_batch, log, EVERY)
    grpo(policy, mesh, data["train"], RewardMix([(tag_format, 1.0), (exact, 1.0)], log), settings, TimeBudget(24, 0),
         log, folder / "checkpoints", seed, step, probe, chosen)
    asked = [TAGS.prompt(question) for question in data["validation"]["question"]]
    sampled = rollout.generator(policy.model, policy.tokenizer, mesh, temperature=1.0, **limits)(asked, seed)

    def read(model, inputs, piece_BT):
        hidden_BTD, _ = model(*inputs, hidden=True)
        logps_BT, _ = next_logprobs(model, hidden_BTD[:, :-1], inputs[0][:, 1:])
        return logps_BT.sum(axis=-1, where=piece_BT[:, 1:] == 1)[:, None]

    ask = prefill(policy, mesh, read, 1, settings.max_prompt_length + settings.max_new_tokens, profile.eval_batch)
    tokenizer = policy.tokenizer
    rows = [(same, [*tail, tokenizer.end_of_turn]) for same, tail in
            (split_tokens(tokenizer, prompt, text) for prompt, text in zip(asked, sampled, strict=True))]
    evaluate(generate, data["test"], profile.eval_batch).to_json(folder / "test.json")
    now_N = ask(rows)[:, 0]
    checkpoints.restore_lora(policy.model, start)
    nats_N = now_N - ask(rows)[:, 0]
    probes = {row["step"]: row["mean"] for row in log.read("probe")}
    flat = [row["flat_groups"] for row in log.read("reward")]
    return {"probes": probes, "kl": float(np.nanmean(nats_N)), "flat": float(np.mean(flat)),
            "sd": float(np.nanstd(nats_N) / math.sqrt(len(nats_N))), "per_step": settings.prompts_per_step
            * settings.num_generations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--target", type=float, default=0.65)
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "grpo_dials")
    options = parser.parse_args()
    print("| seed | GRPO | content accuracy | against the first | mean of the probes | rollouts | flat groups | KL |\n"
          "|---|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        artifacts = options.out.resolve() / f"{seed}/artifacts"
        if not (artifacts / "sft/adapter").exists():
            notebooks(artifacts, "cpu", "g_exact", seed, "01_data_curation", "02_sft_warm_start")
        first = None
        for arm, dials in ARMS.items():
            kept = options.out.resolve() / f"{seed}/{arm.replace(' ', '_')}/result.json"
            if not kept.exists():
                found = train(artifacts, kept.parent, seed, options.steps, **dials)
                kept.write_text(json.dumps(found))
            found, result = json.loads(kept.read_text()), EvalResult.from_json(kept.parent / "test.json")
            there = min((int(step) for step, value in found["probes"].items() if value >= options.target), default=None)
            rollouts = "not reached" if there is None else f"{there * found['per_step']:,}"
            change = compare_paired(first, result, "content") if first else "–"
            first = first or result
            print(f"| {seed} | {arm} | {result.content_accuracy} | {change} | "
                  f"{100 * np.mean([*found['probes'].values()]):.1f} % | {rollouts} | {found['flat']:.0%} | "
                  f"{found['kl']:.2f} ± {1.96 * found['sd']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
