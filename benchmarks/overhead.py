"""What the kit adds to a step of bare Tunix: `python benchmarks/overhead.py`.

SFT and GRPO of the tiny policy on one CPU device. Both sides have the same rows, optimiser, loss, sampling and reward.
The kit's side has what the notebooks add: clock, watchdog, run log, reward mix and dashboard. No completion meets a
stop token, so all steps are equally long. The sides take turns in blocks, whose first steps compile and do not count.
Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean, median

import checkout  # noqa: F401
import jax
from datasets import Dataset
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

from reasonkit.config import PROFILES
from reasonkit.data.curation import curate
from reasonkit.data.own_file import load_data
from reasonkit.data.rows import grpo_batches, sft_batches
from reasonkit.models.checkpoints import checkpoint_options
from reasonkit.models.load import load
from reasonkit.models.lora import add_lora, reference
from reasonkit.models.mesh import make_mesh, split_rows
from reasonkit.rewards.mix import RewardMix
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.show.dashboard import Dashboard
from reasonkit.train import tunix_compat
from reasonkit.train.grpo import grpo
from reasonkit.train.rollout import sampling
from reasonkit.train.sft import model_input, sft

jax.config.update("jax_platforms", "cpu")

PROFILE, SKIP = PROFILES["cpu"], 4
MOST, MOST_VIEW = 0.02, 0.01  # of a step: all that the kit adds, and the live view's part of it
UNUSED = 6  # <unused1>, which no text has


class Bench:
    """A policy, its rows, and the times at which its steps ended."""

    def __init__(self, steps: int):
        self.mesh = make_mesh(jax.devices()[:1], 1, 1)
        base = load(PROFILE.policy, self.mesh, PROFILE.dtype)
        self.base = replace(base, tokenizer=Unstoppable(base.tokenizer))
        self.rows: Dataset = curate(load_data("tiny_mix"), {"train": 2000}, 0)[0]["train"]
        self.sft = replace(PROFILE.sft, steps=steps, stock_loss=True, save_every=steps + 1)
        self.grpo = replace(PROFILE.grpo, steps=steps, stock_loss=True, save_every=steps + 1)
        self.ended: list[float] = []
        self.drawing: list[float] = []  # seconds that the live view took in each step

    def policy(self):
        return replace(self.base, model=add_lora(self.base.model, self.mesh, PROFILE.lora_rank, PROFILE.lora_alpha))

    def tick(self, batches: Iterator) -> Iterator:
        """The batches, each noting when it was asked for: when the step before it was dispatched."""
        for batch in batches:
            self.ended.append(time.perf_counter())
            yield batch

    def reward(self, prompts, completions, **columns) -> list[float]:
        self.ended.append(time.perf_counter())
        return [float(len(completion) % 3) for completion in completions]

    def live_view(self, log: RunLog, budget: TimeBudget, stage: str, steps: int) -> Callable[[], None]:
        """Updates the live view, and notes how long that took."""
        board = Dashboard(log, budget, stage, steps)

        def on_step() -> None:
            began = time.perf_counter()
            board.update()
            self.drawing.append(time.perf_counter() - began)

        return on_step

    def tunix_sft(self, folder: Path) -> None:
        policy, settings = self.policy(), self.sft
        trainer = PeftTrainer(
            policy.model, tunix_compat.adamw(settings),
            TrainingConfig(**tunix_compat.trainer_options(settings, folder, settings.steps)),
        ).with_gen_model_input_fn(model_input)
        batches = sft_batches(self.rows, policy.tokenizer, settings.batch_size, settings.max_length, 0, settings.pack)
        with self.mesh:
            trainer.train(self.tick({name: split_rows(array, self.mesh) for name, array in batch.items()}
                                    for batch in islice(batches, settings.steps)))

    def kit_sft(self, folder: Path) -> None:
        log, budget = RunLog(folder / "sft.jsonl"), TimeBudget(9.0, shares={"sft": 1.0})
        draw = self.live_view(log, budget, "SFT", self.sft.steps)

        def on_step() -> None:
            draw()
            self.ended.append(time.perf_counter())

        sft(self.policy(), self.mesh, self.rows, self.sft, budget, log, folder / "checkpoints", 0, on_step)

    def tunix_grpo(self, folder: Path) -> None:
        policy, settings = self.policy(), self.grpo
        cluster = tunix_compat.grpo_cluster(
            policy.model, reference(policy.model), policy.tokenizer, self.mesh, "vanilla",
            replace(sampling(policy.tokenizer, max_prompt_length=settings.max_prompt_length,
                             max_new_tokens=settings.max_new_tokens, temperature=settings.temperature),
                    seed=None),  # Tunix donates an array given as seed, so the second call would fail
            dict(actor_optimizer=tunix_compat.adamw(settings), eval_every_n_steps=settings.steps + 1,
                 max_steps=settings.steps + 1, mini_batch_size=settings.prompts_per_step,
                 train_micro_batch_size=settings.prompts_per_step, rollout_micro_batch_size=settings.prompts_per_step,
                 compute_logps_micro_batch_size=settings.prompts_per_step, checkpoint_root_directory=str(folder),
                 checkpointing_options=checkpoint_options(settings.save_every, settings.keep)))
        config = GRPOConfig(num_generations=settings.num_generations, num_iterations=1, beta=settings.beta,
                            kl_loss_mode=settings.kl_loss_mode, epsilon=settings.epsilon)
        batches = grpo_batches(self.rows, policy.tokenizer, settings.prompts_per_step, settings.max_prompt_length, 0)
        GRPOLearner(cluster, config, [self.reward]).train(islice(batches, settings.steps))

    def kit_grpo(self, folder: Path) -> None:
        log, budget = RunLog(folder / "grpo.jsonl"), TimeBudget(9.0, shares={"grpo": 1.0})
        grpo(self.policy(), self.mesh, self.rows, RewardMix([(self.reward, 1.0)], log), self.grpo, budget, log,
             folder / "checkpoints", 0, 0, self.live_view(log, budget, "GRPO", self.grpo.steps))

    def seconds(self, train: Callable[[Path], None]) -> list[float]:
        """Of each step of one block, after those that compile."""
        self.ended, self.drawing = [], []
        with tempfile.TemporaryDirectory() as folder:
            train(Path(folder))
        return [after - before for before, after in zip(self.ended[SKIP:], self.ended[SKIP + 1:], strict=False)]


class Unstoppable:
    """A tokenizer whose completions never end."""

    stop_ids = (UNUSED,)

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24, help="of a block")
    parser.add_argument("--blocks", type=int, default=4, help="per side")
    parser.add_argument("--stages", nargs="+", choices=("SFT", "GRPO"), default=("SFT", "GRPO"))
    options = parser.parse_args()
    bench, missed = Bench(options.steps), False
    every = {"SFT": (bench.tunix_sft, bench.kit_sft), "GRPO": (bench.tunix_grpo, bench.kit_grpo)}
    print("| stage | bare Tunix, ms per step | the kit | more by the means | by the medians | of it the live view |"
          "\n|---|---|---|---|---|---|")
    for stage in options.stages:
        sides, pairs, views = every[stage], [], []
        for _ in range(options.blocks):
            pairs.append([bench.seconds(side) for side in sides])
            views.append(sum(bench.drawing[SKIP:]) / sum(pairs[-1][1]))
        whole, usual = ([[statistic(side) for side in pair] for pair in pairs] for statistic in (mean, median))
        more = [median(kit / bare - 1 for bare, kit in both) for both in (whole, usual)]
        bare, kit = (1000 * median(pair[side] for pair in whole) for side in (0, 1))
        print(f"| {stage} | {bare:.1f} | {kit:.1f} | {more[0]:+.1%} | {more[1]:+.1%} | {median(views):.2%} |",
              flush=True)
        missed |= more[0] > MOST or median(views) > MOST_VIEW
    print(f"\ntargets: at most {MOST:+.0%} by the means, which hold what happens in a few steps only, and at most "
          f"{MOST_VIEW:.0%} for the live view")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
