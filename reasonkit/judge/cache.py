"""Verdicts on disk: what a judge has said once is not asked again, and every verdict is on record.

It is a judge around a judge, and its file is both the cache and the record for the report: a run log (`run_log`) of its
own, appended and never rewritten, because it outlives the run and a resumed one finds it.

A row has event "verdict" and {"judge", "item", "question", "reply", "titles", "score", "per_criterion"}, and "cause" in
place of the last two for a failure, beside them for a verdict that the reply prevented. `judge` is the judge's
identity; `question` and `reply` are the first 16 hex digits of the texts' SHA-256, to be joined with; `item` is that
of all that was judged. Neither text is in it. A failure is on record and never answered from it: the judge may be
well again. No line of the file is believed unchecked.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from reasonkit.judge.judge import Judge, JudgeFailure, JudgeItem, JudgeVerdict, weighted_score
from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.session.run_log import RunLog

LIMIT = 100_000  # verdicts in memory, about 50 MB; those used longest ago go first
LINE = 2**20     # bytes of a line, and far more than a verdict needs


def _hash(*texts: str) -> str:
    # the lengths keep ("a", "bc") and ("ab", "c") apart; a lone surrogate has no UTF-8
    sized = "".join(f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256(sized.encode("utf-8", "surrogatepass")).hexdigest()


def _met(value: object) -> bool:
    """Whether it is a number in [0, 1]; NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _fits(verdict: JudgeVerdict, rubric: Sequence[Criterion]) -> bool:
    """Whether the score is what these criteria give, by their weights or as a plain mean. A judge that was asked for
    them all at once has one rating."""
    met_C = verdict.per_criterion
    if len(met_C) not in (1, len(rubric)):
        return False
    means = (sum(met_C) / len(met_C), weighted_score(np.array(met_C), rubric[:len(met_C)]).score)
    return any(math.isclose(verdict.score, mean, abs_tol=1e-6) for mean in means)


class CachedJudge:
    """`judge`, asked once for each question, reply and rubric, with its verdicts in the file at `path`.

    `identity` names all that a verdict depends on besides the item, such as model, mode and prompt: verdicts of another
    identity in the same file are not used. Left out, it is the judge's own `identity`, read at every call.
    `failures` are the judge's. Memory holds at most `limit` verdicts.

    skipped: how many lines of the file were no verdicts, by cause: "not_a_row", "too_long", "bad_key", "bad_score",
    and, when their item comes, "other_rubric": of another number of criteria, or a score that they don't give. They are
    told, and their items are asked anew.

    Raises ValueError for a judge without an identity when none is given, and when `path` is a folder or no plain file.
    """

    def __init__(self, judge: Judge, path: Path, identity: str | None = None, limit: int = LIMIT) -> None:
        if not (identity or getattr(judge, "identity", None)):
            raise ValueError(f"{type(judge).__name__} has no identity; give one that changes with model and prompt")
        self.judge, self._identity, self.limit = judge, identity, limit
        self._record = RunLog(path)
        if self._record.path.exists() and not self._record.path.is_file():
            raise ValueError(f"{path} is no plain file: move it away, or give another place for the verdicts")
        self.skipped: Counter[str] = Counter()
        self._unproven: set[tuple[str, str]] = set()  # of those known, the ones read from the file and not yet used
        self._known: OrderedDict[tuple[str, str], JudgeVerdict] = OrderedDict()
        self._load()

    @property
    def identity(self) -> str:
        return self._identity or self.judge.identity

    @property
    def failures(self) -> Counter[str]:
        return self.judge.failures

    def score(self, items: Sequence[JudgeItem]) -> list[JudgeVerdict | JudgeFailure]:
        """One result an item; the judge sees each that is not known yet once. Raises as the judge does."""
        identity = self.identity
        keys = [(identity, _hash(item.question, item.reply, rubric_to_json(item.rubric) if item.rubric else ""))
                for item in items]
        results: dict[tuple[str, str], JudgeVerdict | JudgeFailure] = {}
        for key, item in zip(keys, items, strict=True):
            if key in self._unproven:
                self._prove(key, item)
            if key in self._known:
                self._known.move_to_end(key)
                results[key] = self._known[key]
        asked = {key: item for key, item in zip(keys, items, strict=True) if key not in results}
        answers = self.judge.score(list(asked.values())) if asked else []
        if len(answers) != len(asked):
            raise ValueError(f"the judge gave {len(answers)} results for {len(asked)} items, not one each")
        for (key, item), answer in zip(asked.items(), answers, strict=True):
            results[key] = answer
            said = {"cause": answer.cause} if isinstance(answer, JudgeFailure) else {
                name: value for name, value in vars(answer).items() if value is not None}
            self._record.write("verdict", judge=key[0], item=key[1], question=_hash(item.question)[:16],
                               reply=_hash(item.reply)[:16], titles=[c.title for c in item.rubric], **said)
            if isinstance(answer, JudgeVerdict):
                self._keep(key, answer)
        return [results[key] for key in keys]

    def _keep(self, key: tuple[str, str], verdict: JudgeVerdict) -> None:
        self._known[key] = verdict
        self._known.move_to_end(key)
        if len(self._known) > self.limit:
            self._unproven.discard(self._known.popitem(last=False)[0])

    def _prove(self, key: tuple[str, str], item: JudgeItem) -> None:
        """Let go of what the file says of this item, unless it can be a verdict on it."""
        self._unproven.discard(key)
        if not item.rubric or not _fits(self._known[key], item.rubric):
            del self._known[key]
            self.skipped["other_rubric"] += 1
            if self.skipped["other_rubric"] == 1:
                print(f"{self._record.path}: the verdict on item {key[1][:12]} does not fit its rubric; it and "
                      "any other such are asked anew")

    def _load(self) -> None:
        for line in self._lines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # a line that a killed run left half-written, or none of ours
                row = None
            if not isinstance(row, dict):
                self.skipped["not_a_row"] += 1
                continue
            if "cause" in row and "score" not in row:
                continue  # a failure
            key, met_C = (row.get("judge"), row.get("item")), row.get("per_criterion")
            if not isinstance(key[0], str) or not re.fullmatch("[0-9a-f]{64}", str(key[1])):
                self.skipped["bad_key"] += 1
            elif not (_met(row.get("score")) and isinstance(met_C, list) and met_C and all(map(_met, met_C))):
                self.skipped["bad_score"] += 1
            else:
                self._unproven.add(key)
                cause = row.get("cause")
                self._keep(key, JudgeVerdict(float(row["score"]), tuple(map(float, met_C)),
                                             cause if isinstance(cause, str) else None))
        if self.skipped:
            causes = ", ".join(f"{cause} {count}" for cause, count in sorted(self.skipped.items()))
            print(f"{self._record.path}: skipped lines that are no verdicts ({causes}); their items are asked anew")

    def _lines(self) -> Iterator[bytes]:
        """The file's lines, one by one: the record may be larger than `limit`, and a line as large as the file."""
        if not self._record.path.exists():
            return
        with open(self._record.path, "rb") as file:
            while line := file.readline(LINE):
                if len(line) < LINE or line.endswith(b"\n"):
                    yield line
                    continue
                self.skipped["too_long"] += 1
                while (rest := file.readline(LINE)) and not rest.endswith(b"\n"):
                    pass
