"""Verdicts on disk: what a judge has said once is not asked again, and every verdict is on record.

It is a judge around a judge, and its file is both the cache and the record for the report: a run log (`runlog`) of its
own, appended and never rewritten, because it outlives the run and a resumed one finds it.

A row has event "verdict" and {"judge", "item", "question", "reply", "titles", "score", "per_criterion"}, and "cause" in
place of the last two for a failure, beside them for a verdict the reply prevented. `judge` is the judge's identity;
`question` and `reply` are the first 16 hex digits of the texts' SHA-256, to be joined with; `item` is that of all that
was judged. Neither text is in it. A failure is on record and never answered from it: the judge may be well again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path

from reasonkit.judge import Judge, JudgeFailure, JudgeItem, JudgeVerdict
from reasonkit.rubrics import rubric_to_json
from reasonkit.runlog import RunLog

LIMIT = 100_000  # verdicts in memory, about 50 MB; those used longest ago go first


def _hash(*texts: str) -> str:
    # the lengths keep ("a", "bc") and ("ab", "c") apart; a lone surrogate has no UTF-8
    sized = "".join(f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256(sized.encode("utf-8", "surrogatepass")).hexdigest()


class Cached:
    """`judge`, asked once for each question, reply and rubric, with its verdicts in the file at `path`.

    `identity` names all that a verdict depends on besides the item, such as model, mode and prompt: verdicts of another
    identity in the same file are not used. Left out, it is the judge's own `identity`, read at every call.
    `failures` are the judge's. Memory holds at most `limit` verdicts.

    Raises ValueError for a judge without an identity when none is given, and when `path` is a folder.
    """

    def __init__(self, judge: Judge, path: Path, identity: str | None = None, limit: int = LIMIT) -> None:
        if not (identity or getattr(judge, "identity", None)):
            raise ValueError(f"{type(judge).__name__} has no identity; give one that changes with model and prompt")
        self.judge, self._identity, self.limit = judge, identity, limit
        self._record = RunLog(path)
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
        for key in keys:
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
            self._known.popitem(last=False)

    def _load(self) -> None:
        if not self._record.path.exists():
            return
        with open(self._record.path, "rb") as file:  # line by line: the record may be larger than `limit`
            for line in file:
                try:
                    row = json.loads(line)
                    met = tuple(map(float, row["per_criterion"]))
                    verdict = JudgeVerdict(float(row["score"]), met, row.get("cause"))
                    self._keep((row["judge"], row["item"]), verdict)
                except (ValueError, KeyError, TypeError):
                    continue  # a failure, or a line that a killed run left half-written
