"""`CachedJudge` keeps verdicts on disk, so a judge is asked about each item only once and every verdict is on record.

The file is a separate run log that outlives the run. A row has the event "verdict" and {"judge", "item", "question",
"reply", "titles", "score", "per_criterion"}. A failure has "cause" instead of the last two, and is asked again next
time. `judge` is the judge's identity, and the texts are stored only as hashes. Every line is checked before it is used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from reasonkit.judge.judge import Judge, JudgeFailure, JudgeItem, JudgeVerdict, Result, weighted_score
from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.session.files import RecordError, parse_json
from reasonkit.session.records import VerdictRow
from reasonkit.session.run_log import RunLog


class CachedJudge:
    """`judge`, asked once per question, completion and rubric, with its verdicts in the file at `path`.

    Verdicts from the file are used only if they have the judge's `identity`. This must change with everything that a
    verdict depends on besides the item, such as model and prompt. `skipped` counts the file's lines that are not
    verdicts, or not possible ones for their rubric. Their items are asked again. Other attributes are the judge's.

    Raises ValueError for a judge without an identity and for a `path` that is a folder or a pipe.
    """

    def __init__(self, judge: Judge, path: Path) -> None:
        if not getattr(judge, "identity", None):
            raise ValueError(f"{type(judge).__name__} has no identity; give it one that changes with model and prompt")
        self.judge, self.skipped, self._record = judge, 0, RunLog(path)
        self._known: dict[tuple[str, str], JudgeVerdict] = {}  # by identity and item
        self._loaded = self._load()  # not yet checked against their rubrics

    def __getattr__(self, name: str) -> Any:  # such as `identity` and `failures`
        if name == "judge":  # a copy that is being made has none yet
            raise AttributeError(name)
        return getattr(self.judge, name)

    def score(self, items: Sequence[JudgeItem]) -> list[Result]:
        """One result per item. The judge sees each unknown item only once. Raises whatever the judge raises."""
        identity = self.identity
        keys = [(identity, _hash(item.question, item.reply, rubric_to_json(item.rubric) if item.rubric else ""))
                for item in items]
        asked = {key: item for key, item in zip(keys, items, strict=True) if not self._is_known(key, item)}
        answers = self.judge.score(list(asked.values())) if asked else []
        if len(answers) != len(asked):
            raise ValueError(f"the judge gave {len(answers)} results for {len(asked)} items, not one each")
        found = dict(zip(asked, answers, strict=True))
        for key, item in asked.items():
            failed = isinstance(found[key], JudgeFailure)
            fields = {"cause": found[key].cause} if failed else {
                name: value for name, value in vars(found[key]).items() if value is not None}
            self._record.write("verdict", judge=identity, item=key[1], question=_hash(item.question)[:16],
                               reply=_hash(item.reply)[:16], titles=[c.title for c in item.rubric], **fields)
            if not failed:
                self._known[key] = found[key]
        return [found.get(key) or self._known[key] for key in keys]

    def _is_known(self, key: tuple[str, str], item: JudgeItem) -> bool:
        verdict = self._loaded.pop(key, None)
        if verdict and item.rubric and _fits(verdict, item.rubric):
            self._known[key] = verdict
        elif verdict:
            self.skipped += 1
            print(f"{self._record.path}: the verdict on item {key[1][:12]} does not fit its rubric; it is asked again")
        return key in self._known

    def _load(self) -> dict[tuple[str, str], JudgeVerdict]:
        found = {}
        for line in self._record.path.read_bytes().splitlines() if self._record.path.exists() else ():
            try:
                row = parse_json(line)
                if isinstance(row, dict) and "cause" in row and "score" not in row:
                    continue  # a failure
                row = VerdictRow.model_validate(row)
                found[row.judge, row.item] = JudgeVerdict(row.score, tuple(row.per_criterion), row.cause)
            except (RecordError, ValidationError):  # a killed run leaves a torn line
                self.skipped += 1
        if self.skipped:
            print(f"{self._record.path}: skipped {self.skipped} lines that are not verdicts; their items are "
                  "asked again")
        return found


def _hash(*texts: str) -> str:
    # the lengths keep ("a", "bc") and ("ab", "c") apart, and a lone surrogate has no UTF-8
    sized = "".join(f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256(sized.encode("utf-8", "surrogatepass")).hexdigest()


def _fits(verdict: JudgeVerdict, rubric: Sequence[Criterion]) -> bool:
    """Whether the criteria give this score, weighted or as a plain mean. There may be one rating for all of them."""
    met_C = np.array(verdict.per_criterion)
    if len(met_C) not in (1, len(rubric)):
        return False
    means = (met_C.mean(), weighted_score(met_C, rubric[:len(met_C)]).score)
    return any(math.isclose(verdict.score, mean, abs_tol=1e-6) for mean in means)
