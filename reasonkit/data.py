"""Problems: read a recipe, generate, split, prove the splits disjoint, batch.

Not a loader of its own: rows live in `datasets.Dataset`. A question belongs to exactly one split by the hash of its
text, so train, validation and test are disjoint by construction, for every seed; `assert_disjoint` checks it all the
same. Batches are plain functions of (rows, seed), so a resumed run sees the same order.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from reasonkit.rubrics import Criterion, criteria, load_domain, rubric_from_json, rubric_to_json
from reasonkit.tags import TAGS, neutralise

RECIPES = Path(__file__).resolve().parents[1] / "data_recipes"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Problem:
    """One question with its worked solution; `steps` are canonical, one operation each.

    `rubric` is its own rubric as JSON, where the data has one: "" leaves it to the recipe.
    """

    id: str
    family: str
    question: str
    steps: tuple[str, ...]
    answer: str
    kind: str
    rubric: str = ""

    @property
    def reasoning(self) -> str:
        return "; ".join(self.steps)


@dataclass(frozen=True)
class DataRecipe:
    """A mix of problem families and the rubric their replies are judged by (`data_recipes/<name>.toml`)."""

    name: str
    title: str
    licence: str
    families: tuple[str, ...]
    split: Mapping[str, int]
    terse: float
    rubric: tuple[Criterion, ...]


def load_recipe(name: str) -> DataRecipe:
    """Read `data_recipes/<name>.toml`. Its rubric is its own [[rubric]], or that of the `domain` it names.

    Raises ValueError for an unknown name, family or domain, a split that is not 100 %, and a rubric that can't be used.
    """
    known = sorted(path.stem for path in RECIPES.glob("*.toml"))
    if name not in known:
        raise ValueError(f"unknown data recipe {name!r}: choose one of {', '.join(known)} (files in {RECIPES})")
    raw = tomllib.loads((RECIPES / f"{name}.toml").read_text())
    families = sorted(path.stem for path in (RECIPES / "families").glob("[a-z]*.py"))
    for family in raw["families"]:
        if family not in families:
            raise ValueError(f"data recipe {name!r} names the unknown family {family!r}: "
                             f"choose from {', '.join(families)}")
    if tuple(raw["split"]) != SPLITS or sum(raw["split"].values()) != 100:
        raise ValueError(f"data recipe {name!r}: [split] must give {', '.join(SPLITS)} in per cent, sum 100; "
                         f"it gives {raw['split']}")
    terse = raw.get("traces", {}).get("terse", 0.0)
    if not 0 <= terse <= 1:
        raise ValueError(f"data recipe {name!r}: [traces] terse is {terse}, and a share lies between 0 and 1")
    if ("domain" in raw) == ("rubric" in raw):
        raise ValueError(f"data recipe {name!r} in {RECIPES}: give it either a domain or [[rubric]] entries of its own")
    rubric = (load_domain(raw["domain"]).rubric if "domain" in raw else
              criteria(raw["rubric"], f"{RECIPES / name}.toml: [[rubric]]"))
    return DataRecipe(name, raw["title"], raw["licence"], tuple(raw["families"]), raw["split"], terse, rubric)


def exact(value: int) -> int:
    """The slip that makes no mistake."""
    return value


def problem(family: str, index: int, seed: int, slip: Callable[[int], int] = exact) -> Problem:
    """The `index`-th problem of a family: a function of (family, index, seed), whatever was asked before."""
    module = importlib.import_module(f"data_recipes.families.{family}")
    question, steps, answer, *rubric = module.make(random.Random(f"{seed}:{family}:{index}"), slip)
    return Problem(f"{family}-{seed}-{index}", family, question, tuple(steps), answer, module.KIND, *rubric)


def split_of(question: str, split: Mapping[str, int]) -> str:
    """The split a question belongs to: its SHA-256, modulo 100, against the recipe's percentages."""
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 100
    for name, share in split.items():
        if bucket < share:
            return name
        bucket -= share
    raise ValueError(f"the split {dict(split)} does not cover 100 %")


def problems(recipe: DataRecipe, split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of distinct problems of one split, the families in turn."""
    seen: set[str] = set()
    index = 0
    while True:
        for family in recipe.families:
            item = problem(family, index, seed)
            if item.question not in seen and split_of(item.question, recipe.split) == split:
                seen.add(item.question)
                yield item
        index += 1


def curate(recipe: DataRecipe, sizes: Mapping[str, int], seed: int,
           on_split: Callable[[str, Dataset], None] = lambda name, rows: None) -> dict[str, Dataset]:
    """`sizes` rows for each split, each told to `on_split`. Questions are neutralised: none can end a chat turn.

    Raises ValueError for an unknown split or one without rows, and as `assert_disjoint` does.
    """
    splits = {}
    for split, size in sizes.items():
        if split not in SPLITS or size < 1:
            raise ValueError(f"split {split!r} of size {size}: need one of {', '.join(SPLITS)} with at least one row")
        stream = problems(recipe, split, seed)
        chosen = [next(stream) for _ in range(size)]
        splits[split] = Dataset.from_list([
            dict(id=p.id, family=p.family, kind=p.kind, question=neutralise(p.question),
                 reasoning=terse(p) if split == "train" and is_terse(recipe, p) else p.reasoning,
                 answer=p.answer, rubric=rubric_to_json(rubric_of(recipe, p))) for p in chosen])
        on_split(split, splits[split])
    assert_disjoint(splits)
    return splits


def assert_disjoint(splits: Mapping[str, Dataset]) -> None:
    """Raises ValueError, with an example, when two splits share a question, compared without case and white space."""
    owner: dict[str, str] = {}
    for name, rows in splits.items():
        for question in rows["question"]:
            key = "".join(question.casefold().split())
            if owner.setdefault(key, name) != name:
                raise ValueError(f"the question {question!r} is in both {owner[key]!r} and {name!r}: "
                                 "drop it from one, else the evaluation measures memory")


def is_terse(recipe: DataRecipe, item: Problem) -> bool:
    """Whether the training trace of this problem shows no step: a function of its id."""
    return random.Random(item.id).random() < recipe.terse


def terse(item: Problem) -> str:
    """The reasoning of a trace that shows no step."""
    return f"So {item.answer}"


def rubric_of(recipe: DataRecipe, item: Problem) -> tuple[Criterion, ...]:
    """The problem's own criteria, else the recipe's: there `{reasoning}` in a description becomes its worked steps.

    Raises ValueError, naming the problem, for a rubric of its own that can't be read.
    """
    if item.rubric:
        try:
            return rubric_from_json(item.rubric)
        except ValueError as error:
            raise ValueError(f"problem {item.id}: {error}") from error
    return tuple(replace(criterion, description=criterion.description.replace("{reasoning}", item.reasoning))
                 for criterion in recipe.rubric)


def save(splits: Mapping[str, Dataset], folder: Path) -> dict[str, Path]:
    """Write one JSONL file a split, atomically; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, rows in splits.items():
        paths[name] = folder / f"{name}.jsonl"
        partial = paths[name].with_suffix(".partial")
        rows.to_json(str(partial))
        partial.replace(paths[name])
    return paths


def read(path: Path) -> Dataset:
    """Read one split back. Raises ValueError when the file is missing, empty or damaged."""
    if not path.exists() or path.stat().st_size == 0:
        raise ValueError(f"no rows in {path}: run notebook 01 (data curation) first")
    rows = []
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number} of {path} is damaged ({error}): delete the file, and run notebook 01 "
                                 "(data curation) again") from error
    return Dataset.from_list(rows)


def check_rows(size: int, batch_size: int) -> None:
    """Raises ValueError when `size` rows do not fill one batch."""
    if size < batch_size:
        raise ValueError(f"{size} rows are fewer than one batch of {batch_size}: add rows or lower the batch size")


def shuffled(rows: Sequence, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of row numbers: a new permutation each epoch, a function of (seed, epoch) alone.

    Raises ValueError as `check_rows`.
    """
    check_rows(len(rows), batch_size)
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            yield order[start:start + batch_size]
        epoch += 1


def sft_batches(rows: Dataset, tokenizer, batch_size: int, max_length: int,
                seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Endless SFT batches: `tokens_BL` int32, right-padded, and `loss_mask_BL`, 1 on the reply and its stop token.

    The stop token is part of the target: a policy that never learns to stop runs into the token limit. Rows longer than
    `max_length` are left out, never cut; ValueError when fewer than one batch is left.
    """
    encoded = []
    for row in rows:
        prompt = [tokenizer.bos_id(), *tokenizer.encode(TAGS.prompt(row["question"]))]
        text = TAGS.render(reasoning=row["reasoning"], answer=row["answer"])
        reply = [*tokenizer.encode(text), tokenizer.end_of_turn]
        if len(prompt) + len(reply) <= max_length:
            encoded.append((prompt, reply))
    for numbers in shuffled(encoded, batch_size, seed):
        tokens_BL = np.full((batch_size, max_length), tokenizer.pad_id(), np.int32)
        loss_mask_BL = np.zeros((batch_size, max_length), np.float32)
        for row, (prompt, reply) in enumerate(encoded[number] for number in numbers):
            tokens_BL[row, :len(prompt) + len(reply)] = prompt + reply
            loss_mask_BL[row, len(prompt):len(prompt) + len(reply)] = 1.0
        yield {"tokens_BL": tokens_BL, "loss_mask_BL": loss_mask_BL}


GRPO_COLUMNS = ("id", "question", "answer", "kind", "rubric")


def grpo_batches(rows: Dataset, tokenizer, batch_size: int, max_prompt_length: int, seed: int,
                 order: Callable[[Sequence[str], int, int], Iterator[np.ndarray]] = shuffled,
                 ) -> Iterator[dict[str, np.ndarray]]:
    """Endless GRPO batches of `batch_size` prompts: 1-D numpy arrays of str, the only columns Tunix handles safely.

    Prompts of more than `max_prompt_length` tokens are left out: Tunix would pad the batch to the next power of two and
    compile anew. `order` gives the row numbers, from the ids of the rows that are left, `batch_size` and `seed`.
    """
    prompts = [TAGS.prompt(question) for question in rows["question"]]
    kept = [n for n, prompt in enumerate(prompts) if len(tokenizer.encode(prompt)) < max_prompt_length]
    columns = {name: np.array(rows[name]) for name in GRPO_COLUMNS}
    columns["prompts"] = np.array(prompts)
    for numbers in order(columns["id"][kept], batch_size, seed):
        chosen: Sequence[int] = [kept[number] for number in numbers]
        yield {name: values[chosen] for name, values in columns.items()}
