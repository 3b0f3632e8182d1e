"""Rubrics: criteria with weights, their JSON in a row of data, and the rubrics of whole domains.

Source: Rubrics as Rewards (arXiv 2507.17746). Here a criterion is met to a degree. So it may also have `levels`, which
tell the judge what the ends of its scale stand for.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reasonkit.session.files import RecordError, parse_json, parse_toml, preview, read
from reasonkit.session.records import Domain

# arXiv 2507.17746, explicit aggregation. A pitfall is worded as its avoidance ("Does not ...").
WEIGHTS = {"essential": 1.0, "important": 0.7, "optional": 0.3, "pitfall": 0.9}
ABOUT_REASONING = 1 / 4  # of the score, as in the general rubric. Half of the scale then shows in a rounded score
# Of the completion: not "the patient's reasoning".
_REASONING = re.compile(r"(?i)(?<!['’]s )\breason(?:ing|ed)\b|\b(?:each|every) step\b")
DOMAINS = Path(__file__).resolve().parents[2] / "data_recipes" / "rubrics"


@dataclass(frozen=True)
class Criterion:
    """One line of a rubric.

    A `pitfall` rewards avoiding something. A completion that says nothing avoids it too, so `judge.weighted_score`
    limits what it counts. Raises ValueError, naming the field, for a value that can't be used.
    """

    title: str
    description: str
    weight: float  # relative to the other criteria's, a finite number above 0
    levels: tuple[str, ...] = ()  # what the judge's scale stands for, worst first: none, or at least two
    pitfall: bool = False

    def __post_init__(self) -> None:
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        texts = isinstance(self.levels, tuple) and all(map(_is_text, self.levels))
        for field, value, usable, remedy in (
            ("title is", self.title, _is_text(self.title), "give it some text"),
            ("description is", self.description, _is_text(self.description), "give it some text"),
            ("weight is", self.weight, number and 0 < self.weight <= sys.float_info.max,
             f"give it a finite number above 0, such as one of {WEIGHTS}"),
            ("levels are", self.levels, texts and len(self.levels) != 1,
             "give at least two texts, from the worst to the best, or leave them out"),
            ("pitfall is", self.pitfall, isinstance(self.pitfall, bool), "give it true or false"),
        ):
            if not usable:
                raise ValueError(f"criterion {preview(self.title)}: {field} {preview(value)}; {remedy}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def criteria(rows: object, where: str) -> tuple[Criterion, ...]:
    """The criteria in `rows`, read from the JSON or TOML named `where`. A weight may be given by name, and the name
    "pitfall" makes the criterion a pitfall. Raises ValueError, naming `where`, entry and field, for anything else than
    a non-empty list of criteria."""
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{where} is not a non-empty list of criteria: {preview(rows)}; give it one or more")
    made, needed = [], {"title", "description", "weight"}
    give = "give it title, description, weight and, if wanted, levels and pitfall"
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{where}, entry {number} is {preview(row)}, not an object: {give}")
        missing, unknown = sorted(needed - row.keys()), sorted(row.keys() - needed - {"levels", "pitfall"})
        if missing or unknown:
            raise ValueError(f"{where}, entry {number}: missing {missing}, unknown {preview(unknown)}: {give}")
        weight, levels = row["weight"], row.get("levels", [])
        try:
            made.append(Criterion(row["title"], row["description"],
                                  WEIGHTS.get(weight, weight) if isinstance(weight, str) else weight,
                                  tuple(levels) if isinstance(levels, list) else levels,
                                  row.get("pitfall", weight == "pitfall")))
        except ValueError as error:
            raise ValueError(f"{where}, entry {number}: {error}") from error
    return tuple(made)


def with_reasoning(rubric: Sequence[Criterion]) -> tuple[Criterion, ...]:
    """A row's own rubric with a criterion about the reasoning in front, worth `ABOUT_REASONING` of the score.

    Without one, a line of reasoning would earn as much as a plan. A rubric stays as it is if a criterion of its own,
    other than a pitfall, names the reasoning or each step.
    """
    said = [text for one in rubric if not one.pitfall for text in (one.title, one.description, *one.levels)]
    if any(map(_REASONING.search, said)):
        return tuple(rubric)
    others = min(sum(one.weight for one in rubric), sys.float_info.max)
    first = Criterion(
        "Reasoning leads to the answer",
        "The reasoning works out what the answer says: its grounds or, for a text, the choices behind it.",
        max(others * ABOUT_REASONING / (1 - ABOUT_REASONING), sys.float_info.min),
        ("it only announces or repeats the answer", "it prepares a part of the answer",
         "it prepares all that matters in the answer"))
    return first, *rubric


def rubric_to_json(rubric: Sequence[Criterion]) -> str:
    """The rubric as JSON, as a row of data stores it. Raises ValueError for an empty rubric."""
    if not rubric:
        raise ValueError("the rubric is empty; give it at least one criterion")
    return json.dumps([{name: value for name, value in vars(criterion).items() if value not in ((), False)}
                       for criterion in rubric], ensure_ascii=False)


def rubric_from_json(text: str) -> tuple[Criterion, ...]:
    """The inverse of `rubric_to_json`. Raises ValueError for anything but JSON, and as `criteria` does."""
    try:
        rows = parse_json(text) if isinstance(text, str) else text
    except RecordError as error:
        raise ValueError(f"the rubric {preview(text)} is {error}") from None
    return criteria(rows, "the rubric")


def load_domain(name: str) -> Domain:
    """Read `data_recipes/rubrics/<name>.toml`.

    Raises ValueError for an unknown name, and for a file that can't be used, naming the file and the entry.
    """
    known = sorted(path.stem for path in DOMAINS.glob("*.toml"))
    if name not in known:
        raise ValueError(f"unknown domain {name!r}: choose one of {', '.join(known)} (files in {DOMAINS})")
    file = DOMAINS / f"{name}.toml"
    domain = read(file, Domain, "mend the file", parse_toml)
    words = tuple(word.strip() for word in domain.words.split(",") if word.strip())
    return domain.model_copy(update={"rubric": criteria(domain.rubric, f"{file}: [[rubric]]"), "words": words})
