"""Problems that a program makes: data recipes, problem families, splits.

A question belongs to one split by the hash of its text, whatever the seed, so splits are disjoint by construction.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from datasets import Dataset, disable_progress_bars

from reasonkit.data.screening import OPEN, question_key
from reasonkit.data.sources import ROUTED, DataRecipe, Family, Split
from reasonkit.judge.rubric import DOMAINS, Criterion, criteria, load_domain, rubric_to_json
from reasonkit.session import files
from reasonkit.session.setup import suggest
from reasonkit.text.answers import KINDS
from reasonkit.text.tags import is_blank, neutralise

disable_progress_bars()  # one for each split and file, for a second of work
RECIPES = Path(__file__).resolve().parents[2] / "data_recipes"
SPLITS = ("train", "validation", "test")
MADE = 1000  # rows of a source of families without a cap
REFERENCE = 1000  # characters, about 230 tokens: there is room for them in a judge's prompt with all eight criteria
PLACE = re.compile(r"\{(reasoning|reference)\}")
PATIENCE = 20_000  # rounds over the families without a new question, after which they count as used up


@dataclass(frozen=True)
class Problem:
    """One question with its worked solution. `steps` are canonical, one operation each."""

    id: str
    family: str
    question: str
    steps: tuple[str, ...]
    answer: str
    kind: str

    @property
    def reasoning(self) -> str:
        return "; ".join(self.steps)


def load_recipe(name: str) -> DataRecipe:
    """Read `data_recipes/<name>.toml`. Its rubric is its own [[rubric]], or the rubric of the `domain` it names.

    Raises ValueError, naming file and key, for an unknown name, a file that is no `DataRecipe`, and an unusable rubric.
    """
    known = sorted(path.stem for path in RECIPES.glob("*.toml"))
    if name not in known:
        raise ValueError(f"unknown data recipe {name!r} in {RECIPES}: {suggest(name, known)}")
    file = RECIPES / f"{name}.toml"
    recipe = files.read(file, DataRecipe, "mend the file; a key below a [table] belongs to it", files.parse_toml)
    if fault := next(_faults(recipe), None):
        raise ValueError(f"{file}: data recipe {name!r}{fault}")
    try:
        rubric = load_domain(recipe.domain).rubric if recipe.domain else criteria(recipe.rubric, "[[rubric]]")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return recipe.model_copy(update={"name": name, "rubric": rubric})


def _faults(raw: DataRecipe) -> Iterator[str]:
    """What is wrong in a file whose keys are right one by one, to go on from its name."""
    if (not raw.families) == (not raw.sources):
        found = "there" if raw.families else "missing"
        yield f": families is {found}, and so are [[sources]]: give it one of the two"
    if (raw.domain is None) == (raw.rubric is None):
        yield ": give it either a domain or [[rubric]] entries of its own"
    if sum(raw.split.model_dump().values()) != 100:
        yield f": [split] must give {', '.join(SPLITS)} in per cent, sum 100; it gives {raw.split}"
    known = sorted(path.stem for path in (RECIPES / "families").glob("[a-z]*.py"))
    for family in chain(raw.families, *(some.families for some in raw.sources if isinstance(some, Family))):
        if family not in known:
            yield f" names the unknown family {family!r}: choose from {', '.join(known)}"
    for number, source in enumerate(raw.sources):
        where = f": [[sources]], entry {number} ({source.name!r})"
        if source.name in [other.name for other in raw.sources[:number]]:
            yield f"{where}: the name comes twice, and ids are made of it: give it another"
        if source.kind not in ("", OPEN, *KINDS):
            yield f"{where}: kind is {source.kind!r}: use one of {OPEN}, {', '.join(KINDS)}, or leave it out"
        if "question" not in source.columns and not isinstance(source, Family):
            yield f"{where}: columns has no question: write question = \"{{column}}\""
        if source.rubric and not (DOMAINS / f"{source.rubric}.toml").is_file():
            yield f"{where}: unknown domain {source.rubric!r}: its rubric would be in {DOMAINS}"
    domains = sorted({source.domain for source in raw.sources})
    if ROUTED not in domains and (unknown := raw.balance.domains.keys() - domains):
        yield f": [balance] domains names {min(unknown)!r}, and the sources have {', '.join(domains)}"
    if raw.balance.domains and raw.balance.tasks:
        yield ": [balance] has weights of domains and of tasks, and rows are shared out by one of them: take one away"


def make_problem(family: str, index: int, seed: int, slip: Callable[[int], int] = lambda value: value) -> Problem:
    """The `index`-th problem of a family, a function of (family, index, seed).

    `slip` changes the result of each step, for a worked solution with a mistake. Raises ValueError, naming family and
    part, where the family makes something other than text.
    """
    module = importlib.import_module(f"data_recipes.families.{family}")
    made = module.make(random.Random(f"{seed}:{family}:{index}"), slip)
    if not isinstance(made, tuple) or len(made) != 3:
        raise ValueError(f"family {family!r}, problem {index}: make returned {made!r:.80}, and must return question, "
                         "steps and answer")
    question, steps, answer = made
    for name, value in {"question": question, "answer": answer, "KIND": module.KIND}.items():
        if not isinstance(value, str):
            raise ValueError(f"family {family!r}, problem {index}: {name} is {value!r:.80}, and must be a str")
    if not isinstance(steps, list | tuple) or not all(isinstance(step, str) for step in steps):
        raise ValueError(f"family {family!r}, problem {index}: steps is {steps!r:.80}, and must be a list of str")
    return Problem(f"{family}-{seed}-{index}", family, question, tuple(steps), answer, module.KIND)


def split_of(question: str, split: Split) -> str:
    """The split of a question: its SHA-256 modulo 100, looked up in the recipe's percentages."""
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 100
    for name, share in split:
        if bucket < share:
            return name
        bucket -= share
    raise ValueError(f"the split {split} does not cover 100 %")


def make_problems(recipe: DataRecipe, split: str, seed: int) -> Iterator[Problem]:
    """Distinct problems of one split, from the families in turn, until `PATIENCE` rounds bring no new question."""
    seen: set[str] = set()
    index = last = 0
    while index - last < PATIENCE:
        for family in recipe.families:
            item = make_problem(family, index, seed)
            if item.question not in seen and split_of(item.question, recipe.split) == split:
                seen.add(item.question)
                last = index
                yield item
        index += 1


def make_splits(recipe: DataRecipe, sizes: Mapping[str, int], seed: int) -> dict[str, Dataset]:
    """`sizes` rows for each split, with control tokens in questions neutralised.

    Raises ValueError for an unknown split, for a size below 1, for families with too few questions, and as
    `assert_disjoint`.
    """
    splits = {}
    for split, size in sizes.items():
        if split not in SPLITS or size < 1:
            raise ValueError(f"split {split!r} of size {size}: need one of {', '.join(SPLITS)} with at least one row")
        chosen = list(islice(make_problems(recipe, split, seed), size))
        if len(chosen) < size:
            made = [item.family for item in chosen]
            found = ", ".join(f"{family} {made.count(family)}" for family in recipe.families)
            raise ValueError(f"data recipe {recipe.name!r} made {len(chosen)} distinct questions ({found}) of {size} "
                             f"asked for in {split!r}, and {PATIENCE} more rounds no new one: let a family make more, "
                             "add one to the recipe, or lower the profile's rows (reasonkit/config.py)")
        # terse traces show no step: which problems have them is a function of their ids
        terse = {p.id for p in chosen if split == "train" and random.Random(p.id).random() < recipe.traces.terse}
        splits[split] = Dataset.from_list([
            dict(id=p.id, family=p.family, kind=p.kind, question=neutralise(p.question),
                 reasoning=f"So {p.answer}" if p.id in terse else p.reasoning,
                 answer=p.answer, rubric=rubric_to_json(rubric_of(recipe, p))) for p in chosen])
    assert_disjoint(splits)
    return splits


def assert_disjoint(splits: Mapping[str, Dataset]) -> None:
    """Raises ValueError, with an example, when two splits share a question by `question_key`."""
    owner: dict[str, str] = {}
    for name, rows in splits.items():
        for question in rows["question"]:
            key = question_key(question)
            if owner.setdefault(key, name) != name:
                raise ValueError(f"the question {question!r} is in both {owner[key]!r} and {name!r}: "
                                 "drop it from one, else the evaluation measures memory")


def rubric_of(recipe: DataRecipe, item: Problem) -> tuple[Criterion, ...]:
    """The recipe's criteria for a problem."""
    return fill_rubric(recipe.rubric, item.reasoning, item.kind, item.answer)


def domain_rubric(recipe: DataRecipe, name: str) -> tuple[Criterion, ...]:
    """The rubric for rows of a domain without their own: the file named after the domain, or else the recipe's."""
    return load_domain(name).rubric if (DOMAINS / f"{name}.toml").is_file() else recipe.rubric


def fill_rubric(rubric: Sequence[Criterion], reasoning: str, kind: str, answer: str) -> tuple[Criterion, ...]:
    """The criteria with the worked steps in place of `{reasoning}`, and with `REFERENCE` characters of an open
    question's answer in place of `{reference}`. A small judge seldom knows whether a completion is right, and other
    answers are checked by a program."""
    filled = {"reasoning": reasoning, "reference": ""}
    if kind == OPEN and not is_blank(answer):
        filled["reference"] = (" Compare with this reference, which may be worded otherwise and leave things out: "
                               f"{answer[:REFERENCE]}")
    return tuple(replace(criterion, description=PLACE.sub(lambda place: filled[place[1]], criterion.description))
                 for criterion in rubric)


def family_rows(source: Family, seed: int) -> Iterator[dict[str, str]]:
    """The rows of a source of families in our schema, in turn from each."""
    for number in range(source.cap or MADE):
        item = make_problem(source.families[number % len(source.families)], number // len(source.families), seed)
        yield {"id": item.id, "family": item.family, "kind": item.kind, "question": item.question,
               "reasoning": item.reasoning, "answer": item.answer, "rubric": "", "group": "", "domain": source.domain,
               "task": source.task, "source": source.name, "licence": source.licence, "made": "yes"}
