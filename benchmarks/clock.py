"""Random nine-hour sessions: does one ever pass its limit, and how much time is left? `python benchmarks/clock.py`.

It plays them against `time_budget.TimeBudget` on a simulated clock, where steps take a noisy time, some stall, and
kernels die. Exits with 1 if a session passes its limit, or if more than `LEFT` of the time is unused on average.
No kernel dies in the last hour: it would have its checkpoint, but no reserve pays for loading and evaluating again.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import checkout  # noqa: F401
import numpy as np

from reasonkit.session import time_budget as budgets

HOURS, RESERVE_MINUTES, SHARES = 9.0, 20.0, {"sft": 0.25, "grpo": 0.75}  # those of the kaggle profile and g_rar
PROBES = 8  # of the evaluation, as `run.open_run` counts them
PROBE_EVERY, SAVE_EVERY, STALL_CHANCE = 50, 50, 0.002
LEFT = 0.04


class Killed(Exception):
    """The kernel died."""


@dataclass(frozen=True)
class Session:
    """What one session is like, in seconds; `kills` are the times, from the first cell, when its kernel dies."""

    setup: float
    step: dict[str, float]
    compilation: dict[str, float]
    sft_steps: int
    noise: float
    growth: float
    probe: float
    save: float
    export: float
    kills: tuple[float, ...]


def draw(rng: np.random.Generator) -> Session:
    """Steps of 20 s (short completions) to two minutes (long ones and a judge), and up to three deaths."""
    deaths = rng.choice(4, p=(0.55, 0.25, 0.15, 0.05))
    return Session(
        setup=rng.uniform(60, 900), step={"sft": rng.uniform(4, 20), "grpo": rng.uniform(20, 120)},
        compilation={"sft": rng.uniform(30, 600), "grpo": rng.uniform(60, 1200)},
        sft_steps=int(rng.integers(100, 800)), noise=rng.uniform(0.02, 0.3), growth=rng.uniform(1.0, 1.6),
        probe=rng.uniform(20, 240), save=rng.uniform(5, 90), export=rng.uniform(30, 180),
        kills=tuple(sorted(rng.uniform(0, (HOURS - 1) * 3600, deaths))))


class Player:
    """Plays one session; `now` is its clock."""

    def __init__(self, session: Session, rng: np.random.Generator, ledger: Path) -> None:
        self.now, self._session, self._rng, self._kills = 0.0, session, rng, list(session.kills)
        self._ledger, self._saved = ledger, {"sft": 0, "grpo": 0}
        self.stalls = self.deaths = 0

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self._kills and self.now >= self._kills[0]:
            self._kills.pop(0)
            self.deaths += 1
            raise Killed

    def noisy(self, seconds: float) -> float:
        return seconds * float(np.exp(self._rng.normal(0, self._session.noise)))

    def open(self) -> budgets.TimeBudget:
        return budgets.TimeBudget(HOURS, RESERVE_MINUTES, self._ledger, SHARES, lambda: self.now,
                                  {"save": 1, "probe": PROBES})

    def train(self, budget: budgets.TimeBudget, stage: str, batches: Iterator[int]) -> None:
        session, done = self._session, self._saved[stage]
        growth, first = session.growth if stage == "grpo" else 1.0, done
        for done in budget.guard(batches, stage):
            usual = session.step[stage] * (1 + (growth - 1) * min(1.0, self.now / (HOURS * 3600)))
            stall = self._rng.random() < STALL_CHANCE
            self.stalls += stall
            self.pass_time(self.noisy(usual) + (self._rng.uniform(30, 300) if stall else 0.0)
                           + (session.compilation[stage] if done == first + 1 else 0.0))
            if done % SAVE_EVERY == 0:
                self._saved[stage] = done
            if stage == "grpo" and done % PROBE_EVERY == 0:
                with budget.measure("probe"):
                    self.pass_time(self.noisy(session.probe))
        with budget.measure("save"):
            self.pass_time(self.noisy(session.save))
        self._saved[stage] = done

    def play(self) -> float:
        """The seconds the session took, after its kernel was started again as often as it died."""
        over: set[str] = set()
        while True:
            try:
                budget = self.open()
                self.pass_time(self.noisy(self._session.setup))
                for stage, steps in (("sft", self._session.sft_steps), ("grpo", None)):
                    begun = self._saved[stage] + 1
                    if stage in over:
                        continue
                    if budget.minutes_left > 0:
                        batches = itertools.count(begun) if steps is None else iter(range(begun, steps + 1))
                        self.train(budget, stage, batches)
                    over.add(stage)
                for _ in range(PROBES):
                    self.pass_time(self.noisy(self._session.probe))
                self.pass_time(self._session.export)
                return self.now
            except Killed:
                continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    budgets.write_atomic, budgets.SAVE_SECONDS = Path.write_text, 900.0  # the disk is not what is measured
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.sessions):
            rng = np.random.default_rng([options.seed, number])
            player = Player(draw(rng), rng, Path(folder) / f"{number}.json")
            rows.append((player.play(), player.stalls, player.deaths))
    took, stalls, deaths = np.array(rows).T
    left = 1 - took / (HOURS * 3600)
    print("| sessions | n | past the limit | least left, minutes | mean unused | 95 % of them under | most unused |\n"
          "|---|---|---|---|---|---|---|")
    for name, chosen in (("all", took > 0), ("no kernel died", deaths == 0), ("a kernel died", deaths > 0),
                         ("a step stalled", stalls > 0)):
        some = left[chosen]
        print(f"| {name} | {len(some)} | {(some < 0).sum()} | {some.min() * HOURS * 60:.1f} | {some.mean():.2%} | "
              f"{np.quantile(some, 0.95):.2%} | {some.max():.2%} |")
    if (left < 0).any() or left.mean() >= LEFT:
        sys.exit(f"missed: none past the limit, and less than {LEFT:.0%} unused on average")


if __name__ == "__main__":
    main()
