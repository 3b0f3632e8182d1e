"""What a GRPO step costs when judge and rollout overlap: `python benchmarks/judge_overlap.py`.

On eight virtual CPU devices, half of them the judge's, steps without a judge, overlapped, sequential (Tunix's order)
and fully serial ones take turns. Virtual devices share the cores, so the judge of equal work sleeps for as long as a
step without a judge took. The best possible factor is 1 + 1 / calls: the judge idles while the first part is sampled,
and the last part is trained on after it is judged. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import checkout  # noqa: F401
import jax
import numpy as np
from tunix.rl.grpo.grpo_learner import GRPOLearner

from reasonkit.config import PROFILES
from reasonkit.data import problems
from reasonkit.judge.judge import RATINGS, JudgeVerdict, LocalJudge
from reasonkit.models import load as models
from reasonkit.models.logprobs import rating_logprobs
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import plan_mesh
from reasonkit.rewards.mix import RewardMix
from reasonkit.session.run_log import NullLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.train import grpo as stage
from reasonkit.train.grpo import Overlapped, grpo
from recipes.rewards.rubric import rubric

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

PROMPTS, GROUP = 16, 4
AT_MOST, AT_LEAST = 1.15, 1.8  # of the step without a judge: with one of equal work beside it, and after it


@dataclass(frozen=True)
class Arm:
    """One kind of step: who judges, and whether beside the policy or after it."""

    name: str
    judge: str = ""
    overlapped: bool = False
    waits: bool = False  # for the policy, before it begins


NONE = Arm("no judge")
OVERLAPPED, SEQUENTIAL = Arm("equal work, overlapped", "sleep", overlapped=True), Arm("equal work, sequential", "sleep")
SERIAL = Arm("equal work, fully serial", "sleep", waits=True)
TINY = Arm("tiny judge, sequential", "tiny")
ARMS = (NONE, OVERLAPPED, SEQUENTIAL, SERIAL, Arm("tiny judge, overlapped", "tiny", overlapped=True), TINY)
WARM_UP = (NONE, TINY)  # these compile all there is


class Clock:
    """Which arm has this step, and what each step has taken."""

    def __init__(self, order: list[Arm]):
        self._order = iter(order)
        self.arm, self.seconds = NONE, {arm: [] for arm in ARMS}  # in the order of the table
        self._began = None

    def begin(self) -> Arm:
        now = time.perf_counter()
        if self._began is not None:
            self.seconds[self.arm].append(now - self._began)
        self.arm, self._began = next(self._order), now
        return self.arm

    @property
    def share(self) -> float:
        """A completion's share of the last step without a judge, in seconds."""
        return self.seconds[NONE][-1] / (PROMPTS * GROUP)


class Judge:
    """The judge of the step's arm."""

    def __init__(self, clock: Clock, tiny: LocalJudge):
        self.failures: Counter[str] = Counter()
        self._clock, self._tiny = clock, tiny

    def score(self, items):
        if self._clock.arm.waits:
            jax.block_until_ready(jax.live_arrays())
        if self._clock.arm.judge == "tiny":
            return self._tiny.score(items)
        if self._clock.arm.judge == "sleep":
            time.sleep(self._clock.share * len(items))
        return [JudgeVerdict(len(item.reply) % 11 / 10, (0.5,)) for item in items]


def alternating(clock: Clock) -> type:
    """The learner under test, which gives way to Tunix's own methods in the steps of the other arms."""

    class Alternating(Overlapped):
        def _process_accumulated_batches(self, micro_batches, micro_batch_sizes, mode):
            if not micro_batches:
                return []
            self.arm = clock.begin()
            self.rl_cluster.rollout.on_output = self._judge if self.arm.overlapped else lambda output: None
            self._rollout_micro_batch_size = self._rollout_micro_prompts
            order = Overlapped if self.arm.overlapped else GRPOLearner
            return order._process_accumulated_batches(self, micro_batches, micro_batch_sizes, mode)

        def _compute_rewards(self, *args, **columns):
            order = Overlapped if self.arm.overlapped else GRPOLearner
            return order._compute_rewards(self, *args, **columns)

    return Alternating


def measure(rounds: int, calls: int) -> dict[Arm, list[float]]:
    """Seconds of the measured steps of each arm."""
    profile, plan = PROFILES["cpu"], plan_mesh(jax.devices(), judge=True)
    policy, tiny = models.load(profile.policy, plan.policy), models.load(profile.judge, plan.judge)
    policy = replace(policy, model=add_lora(policy.model, plan.policy, profile.lora_rank, profile.lora_alpha, 0))
    judge = LocalJudge(rating_logprobs(tiny, plan.judge, RATINGS, max_length=profile.judge_max_length,
                                              batch_size=profile.judge_batch), profile.judge)
    order = [*WARM_UP, *ARMS * rounds]
    settings = replace(profile.grpo, steps=len(order) + 1, prompts_per_step=PROMPTS, num_generations=GROUP,
                       micro_prompts=PROMPTS // calls, rollout_micro_prompts=PROMPTS // calls, save_every=10**6)
    rows = problems.make_splits(problems.load_recipe("tiny_mix"), {"train": 200}, 0)["train"]
    clock = Clock([*order, NONE])  # the last step only ends the one before
    reward = RewardMix([(rubric(Judge(clock, judge)), 1.0)], NullLog())
    stage.Overlapped = alternating(clock)
    with tempfile.TemporaryDirectory() as folder:
        grpo(policy, plan.policy, rows, reward, settings, TimeBudget(1, 0), NullLog(), Path(folder), 0, 0)
    return {arm: seconds[-rounds:] for arm, seconds in clock.seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each kind")
    parser.add_argument("--calls", type=int, choices=[1, 2, 4, 8, 16], default=8, help="of the rollout, a step")
    options = parser.parse_args()
    seconds = measure(options.rounds, options.calls)
    medians = {arm: float(np.median(times)) for arm, times in seconds.items()}
    print(f"{PROMPTS * GROUP} completions per step, sampled, judged and trained on in {options.calls} parts; "
          f"{options.rounds} steps per row\n")
    print("| step | median seconds | shortest to longest | relative to no judge |\n|---|---|---|---|")
    for arm, times in seconds.items():
        print(f"| {arm.name} | {medians[arm]:.2f} | {min(times):.2f} to {max(times):.2f} | "
              f"{medians[arm] / medians[NONE]:.2f} |")
    overlapped, serial = (medians[arm] / medians[NONE] for arm in (OVERLAPPED, SERIAL))
    print(f"\noverlapped: {overlapped:.2f}, target at most {AT_MOST}, at best {1 + 1 / options.calls:.2f}; "
          f"fully serial: {serial:.2f}, target at least {AT_LEAST}")
    return int(overlapped > AT_MOST or serial < AT_LEAST)


if __name__ == "__main__":
    sys.exit(main())
