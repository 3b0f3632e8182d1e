"""Which problems GRPO practises next: those that the policy solves sometimes.

A recipe chooses it with `by_pass_rate`. A problem that is always or never solved gives a group of equal rewards and
teaches nothing. `Curriculum` keeps each problem's pass rate, read from a part of the reward, and draws mostly those
within `BAND`. Open questions have no rate and are drawn as often as the others. A resumed run replays the log. Source:
DAPO (arXiv 2503.14476), but no sample is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from itertools import count, repeat

import numpy as np

from reasonkit.data.rows import check_rows
from reasonkit.rewards.rules import RewardFn
from reasonkit.session.run_log import RunLog

BAND = (0.2, 0.8)  # pass rates worth practising. A problem never seen counts as within.
OUTSIDE_WEIGHT = 0.1  # the weight of a problem outside the band, against 1, because the policy changes
KEEP = 0.5  # the share of earlier measurements in a problem's rate
LAG = 2  # step t is drawn from the rates up to step t - LAG, all known while step t - 1 is still being scored
EVENT = "pass_rates"

Parts = Sequence[tuple[RewardFn, float]]


def by_pass_rate(name: str) -> Callable[[RunLog, Parts], tuple[Curriculum, Parts]]:
    """What a recipe sets `curriculum` to. `name` is the `__name__` of the reward function whose pass rates count."""

    def make(log: RunLog, parts: Parts) -> tuple[Curriculum, Parts]:
        curriculum = Curriculum(log)
        return curriculum, [(curriculum.watch(part) if part.__name__ == name else part, weight)
                            for part, weight in parts]

    make.__name__ = name
    return make


class Curriculum:
    """The pass rates in `log` and the order of problems that follows from them, the seed and the step.

    Wrap one part of the reward in `watch` and hand the object to `grpo`.
    """

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._noted: list[dict[str, float | None]] = []  # per step: id -> pass rate, in batch order
        self._drawn: dict[int, list[str]] = {}
        self._earlier = 0

    def resume(self, done: int, earlier: int = 0) -> None:
        """Go on after `done` steps. Later rows of the log are ignored: their weights were lost, and they come again.

        `earlier` steps were made by the stages before, and Tunix skips a batch for each of them. A step whose row was
        lost (a full disk) counts as not measured, with a message.
        """
        rows = {row["step"]: row["rates"] for row in self._log.read(EVENT)}  # the last row of a repeated step
        if missing := [step for step in range(1, done + 1) if step not in rows]:
            print(f"the log has no {EVENT!r} row of {len(missing)} of the {done} steps that are in the weights, step "
                  f"{missing[0]} for one: their problems keep the pass rates that they had. To have them, put the log "
                  "back and run this again")
        self._noted = [rows.get(step, {}) for step in range(1, done + 1)]
        self._drawn, self._earlier = {}, earlier

    def order(self, ids: Sequence[str], batch_size: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of distinct row numbers. Logged steps come out as they were drawn.

        Raises ValueError for fewer rows than a batch, a logged id that is not among `ids`, and rates not yet measured.
        """
        check_rows(len(ids), batch_size)
        number = {str(name): n for n, name in enumerate(ids)}
        yield from repeat(np.arange(batch_size), self._earlier)
        rates: dict[str, float | None] = {}
        for step in count():
            if step >= LAG:
                if step - LAG >= len(self._noted):
                    raise ValueError(f"step {step + 1} is drawn before the pass rates of step {step - LAG + 1} are "
                                     "known: wrap one part of the reward in `watch`, and score each batch in one call")
                _update(rates, self._noted[step - LAG])
            if step < len(self._noted):
                chosen = list(self._noted[step]) or [str(name) for name in ids[:batch_size]]  # the row was lost
                if lost := [name for name in chosen if name not in number]:
                    raise ValueError(f"step {step + 1} drew the problem {lost[0]!r}, which is not among the {len(ids)} "
                                     "rows now: resume with the same data, or start the stage anew")
                yield np.array([number[name] for name in chosen])
                continue
            drawn_B = _draw(number, rates, batch_size, np.random.default_rng([seed, step]))
            self._drawn[step] = [str(ids[n]) for n in drawn_B]
            yield drawn_B

    def watch(self, fn: Callable[..., list[float | None]]) -> Callable[..., list[float | None]]:
        """`fn`, a reward in [0, 1] such as `exact_answer`, with its values recorded as the batch's pass rates.

        Column: `id`. Only the calls for the drawn batch count, not a trial before training or an evaluation. A problem
        whose values are all None keeps its rate. The reward raises ValueError for a value outside of [0, 1].

        >>> from reasonkit.session.run_log import NullLog
        >>> def right(prompts, completions, **columns): return [float(reply == "4") for reply in completions]
        >>> curriculum = Curriculum(NullLog())
        >>> next(curriculum.order(["two and two"], batch_size=1, seed=0))
        array([0])
        >>> curriculum.watch(right)(["2+2?"] * 2, ["4", "5"], id=["two and two"] * 2)
        [1.0, 0.0]
        >>> curriculum._noted
        [{'two and two': 0.5}]
        """

        @wraps(fn)
        def reward(prompts: Sequence[str], completions: Sequence[str], id: Sequence[str], mode: str = "train",
                   **columns) -> list[float | None]:
            values = fn(prompts=prompts, completions=completions, id=id, mode=mode, **columns)
            if odd := [value for value in values if value is not None and np.isfinite(value) and not 0 <= value <= 1]:
                raise ValueError(f"{fn.__name__} gave {odd[0]}, and a pass rate is from 0 to 1: watch another part")
            if mode == "train":
                self._note([str(name) for name in id], values)
            return values

        reward.rowwise = False  # a batch is recorded whole
        return reward

    def _note(self, ids: Sequence[str], values: Sequence[float | None]) -> None:
        groups: dict[str, list[float]] = {name: [] for name in ids}
        step = len(self._noted)
        if list(groups) != self._drawn.get(step):
            return
        for name, value in zip(ids, values, strict=True):
            if value is not None and np.isfinite(value):
                groups[name].append(float(value))
        rates = {name: float(np.mean(group)) if group else None for name, group in groups.items()}
        self._log.write(EVENT, step=step + 1, rates=rates)
        del self._drawn[step]
        self._noted.append(rates)


def _update(rates: dict[str, float | None], measured: dict[str, float | None]) -> None:
    """A running mean that halves the weight of older measurements, because the policy that earned them is gone. A
    problem that was practised and that nothing measures has the rate None."""
    for name, rate in measured.items():
        before = rates.get(name)
        rates[name] = rate if before is None else before if rate is None else KEEP * before + (1 - KEEP) * rate


def _draw(names: Iterable[str], rates: dict[str, float | None], size: int, rng: np.random.Generator) -> np.ndarray:
    low, high = BAND
    weights = {name: 1.0 if low <= rate <= high else OUTSIDE_WEIGHT for name, rate in rates.items() if rate is not None}
    # with the weight 1 of an unseen one, open questions would take the place of all that the policy learns to solve
    open_weight = float(np.mean([*weights.values()] or [1.0]))
    weights_N = np.array([weights.get(name, open_weight if name in rates else 1.0) for name in names])
    return rng.choice(len(weights_N), size, replace=False, p=weights_N / weights_N.sum())
