"""Rubrics: what a good reply to one question shows, as criteria with weights.

It is the criterion and the form in which a rubric travels in a batch. It is not a judge: who says how far a criterion
is met is in `judge`.

Source: the weights of Rubrics as Rewards (arXiv 2507.17746).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

# arXiv 2507.17746, explicit aggregation; a pitfall is worded as its avoidance ("Does not ...").
WEIGHTS = {"essential": 1.0, "important": 0.7, "optional": 0.3, "pitfall": 0.9}


@dataclass(frozen=True)
class Criterion:
    """One line of a rubric. `weight` is relative to the other criteria's; see `WEIGHTS` for the usual four.

    Raises ValueError for a title or description that is not text or is blank, and for a weight that is not a
    finite number above 0.
    """

    title: str
    description: str
    weight: float

    def __post_init__(self) -> None:
        for name in ("title", "description"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"criterion {self.title!r}: {name} is {value!r}; give it some text")
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not number or not 0 < self.weight <= sys.float_info.max:
            raise ValueError(f"criterion {self.title!r}: weight is {str(self.weight)[:80]!r}; give it a "
                             f"finite number above 0, such as one of {WEIGHTS}")


def rubric_to_json(rubric: Sequence[Criterion]) -> str:
    """The rubric as a JSON list of {title, description, weight}: the form in which it travels in a batch.

    Raises ValueError for an empty rubric.
    """
    if not rubric:
        raise ValueError("the rubric is empty; give it at least one criterion")
    return json.dumps([asdict(criterion) for criterion in rubric], ensure_ascii=False)


def rubric_from_json(text: str) -> tuple[Criterion, ...]:
    """The inverse of `rubric_to_json`.

    Raises ValueError, naming the entry and the field, for anything else than a non-empty list of objects with
    exactly the fields title, description and weight.
    """
    try:
        rows = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the rubric {str(text)[:80]!r} is not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"the rubric {text[:80]!r} is not a non-empty JSON list of criteria")
    names = {"title", "description", "weight"}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"rubric entry {number} is {str(row)[:80]}, not an object with {sorted(names)}")
        if row.keys() != names:
            raise ValueError(f"rubric entry {number}: missing {sorted(names - row.keys())}, "
                             f"unknown {sorted(row.keys() - names)}")
    return tuple(Criterion(**row) for row in rows)
