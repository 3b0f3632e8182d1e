"""Which problems GRPO practises next: those that the policy solves sometimes.

A problem that is always solved, or never, has a group of equal rewards and teaches nothing. A `Curriculum` keeps the
pass rate of each problem over the run and draws mostly those in `BAND`. Pass rates are read off a part of the reward,
so that no extra sampling is needed. It is not a filter: the others keep a small chance, because the policy changes.

Tunix resumes by iterating the data again from its start, so what was drawn must come out again. Each step appends one
row to a log, the problems it drew and their rates; a resumed run replays these rows and goes on from the rates they
give. The draw of step t is a function of the seed, t, and the rates of steps up to t - `LAG`: those are certain to be
known when a batch is drawn while the one before is still being scored.

Sources: DAPO (arXiv 2503.14476) for dropping groups without a spread; the band is that of the project's notes on
curricula. Departure: problems are favoured before they are sampled, and no sample is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from itertools import count, repeat

import numpy as np

from reasonkit.data.problems import check_rows
from reasonkit.session.run_log import RunLog

BAND = (0.2, 0.8)  # pass rates worth practising; a problem never seen counts as one of them
ELSE = 0.1  # the chance of any other problem, against 1
KEEP = 0.5  # how much of a problem's rate is what was measured before
LAG = 2
EVENT = "pass_rates"


class Curriculum:
    """Pass rates kept in `log`, the stage's own or one beside it, and the order of problems that follows from them.

    Wrap one part of the reward in `watch`, hand the object to `grpo`, and the rest is done.
    """

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._noted: list[dict[str, float | None]] = []  # one a step: id -> pass rate, in the order of the batch
        self._drawn: dict[int, list[str]] = {}
        self._earlier = 0

    def resume(self, done: int, earlier: int = 0) -> None:
        """Go on after `done` steps: what the log holds of later ones was lost with the weights, and comes again.

        `earlier` steps were made by the stages before: Tunix skips a batch for each of them too, and sees none.
        A step whose row is lost, on a full disk, say, measured nothing, and it is said.
        """
        rows = {row["step"]: row["rates"] for row in self._log.read(EVENT)}  # a repeated step: as it was last
        if missing := [step for step in range(1, done + 1) if step not in rows]:
            print(f"the log has no {EVENT!r} row of {len(missing)} of the {done} steps that are in the weights, step "
                  f"{missing[0]} for one: their problems keep the pass rates that they had. To have them, put the log "
                  "back and run this again")
        self._noted = [rows.get(step, {}) for step in range(1, done + 1)]
        self._drawn, self._earlier = {}, earlier

    def order(self, ids: Sequence[str], batch_size: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of row numbers, none twice in a batch; steps that are noted come out as they were.

        Raises ValueError for ids that come twice, fewer rows than a batch, a noted id that is not among `ids`, and a
        step whose rates are needed and were not noted.
        """
        check_rows(len(ids), batch_size)
        number = {str(name): n for n, name in enumerate(ids)}
        if len(number) < len(ids):
            raise ValueError(f"{len(ids) - len(number)} of {len(ids)} ids come twice: pass rates are kept by id")
        yield from repeat(np.arange(batch_size), self._earlier)
        rates: dict[str, float] = {}
        for step in count():
            if step >= LAG:
                if step - LAG >= len(self._noted):
                    raise ValueError(f"step {step + 1} is drawn before the pass rates of step {step - LAG + 1} are "
                                     "known: wrap one part of the reward in `watch`, and score each batch in one call")
                _update(rates, self._noted[step - LAG])
            if step < len(self._noted):
                chosen = list(self._noted[step]) or [str(name) for name in ids[:batch_size]]  # lost, and seen by nobody
                if lost := [name for name in chosen if name not in number]:
                    raise ValueError(f"step {step + 1} drew the problem {lost[0]!r}, which is not among the {len(ids)} "
                                     "rows now: resume with the same data, or start the stage anew")
                yield np.array([number[name] for name in chosen])
                continue
            drawn_B = _draw(number, rates, batch_size, np.random.default_rng([seed, step]))
            self._drawn[step] = [str(ids[n]) for n in drawn_B]
            yield drawn_B

    def watch(self, fn: Callable[..., list[float | None]]) -> Callable[..., list[float | None]]:
        """`fn`, a reward in [0, 1] such as `exact_answer`, whose values are noted as the pass rates of the batch.

        Column: `id`. Noted are the calls for the batch that was drawn; a trial before training or an evaluation is
        not. A problem whose values are all None keeps the rate it had. Raises ValueError for a value outside of [0, 1].

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

        reward.rowwise = False  # a batch is noted whole
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


def _update(rates: dict[str, float], measured: dict[str, float | None]) -> None:
    """A running mean that halves the weight of what is older: the policy that earned it is gone."""
    for name, rate in measured.items():
        if rate is not None:
            rates[name] = KEEP * rates[name] + (1 - KEEP) * rate if name in rates else rate


def _draw(names: Iterable[str], rates: dict[str, float], size: int, rng: np.random.Generator) -> np.ndarray:
    low, high = BAND
    weights_N = np.array([1.0 if low <= rates.get(name, low) <= high else ELSE for name in names])
    return rng.choice(len(weights_N), size, replace=False, p=weights_N / weights_N.sum())
