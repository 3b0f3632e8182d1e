"""Problems: read a recipe, generate, split, prove the splits disjoint, batch.

Not a loader of its own: rows live in `datasets.Dataset`. A question belongs to exactly one split by the hash of its
text, so train, validation and test are disjoint by construction, for every seed; `assert_disjoint` checks it all the
same. Batches are plain functions of (rows, seed), so a resumed run sees the same order.
"""

from __future__ import annotations

import hashlib
import importlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset, disable_progress_bars

from reasonkit.data.screening import COLUMNS, check_columns, fits, question_key, sft_pairs
from reasonkit.judge.rubric import Criterion, criteria, load_domain, rubric_from_json, rubric_to_json
from reasonkit.session import files
from reasonkit.session.records import RecipeFile
from reasonkit.text.tags import TAGS, neutralise

disable_progress_bars()  # of each split and file, for a second of work
RECIPES = Path(__file__).resolve().parents[2] / "data_recipes"
SPLITS = ("train", "validation", "test")
PATIENCE = 20_000  # rounds over the families without a new question, after which they count as used up


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
    split: Mapping[str, float]
    terse: float
    rubric: tuple[Criterion, ...]


def load_recipe(name: str) -> DataRecipe:
    """Read `data_recipes/<name>.toml`. Its rubric is its own [[rubric]], or that of the `domain` it names.

    Raises ValueError, naming file and key, for an unknown name, family or domain, a file that is no TOML or not a
    `RecipeFile`, a split that is not 100 %, and a rubric that can't be used.
    """
    known = sorted(path.stem for path in RECIPES.glob("*.toml"))
    if name not in known:
        raise ValueError(f"unknown data recipe {name!r}: choose one of {', '.join(known)} (files in {RECIPES})")
    file = RECIPES / f"{name}.toml"
    raw = files.read(file, RecipeFile, "mend the file; a key below a [table] belongs to it", files.parse_toml)
    families = sorted(path.stem for path in (RECIPES / "families").glob("[a-z]*.py"))
    for family in raw.families:
        if family not in families:
            raise ValueError(f"data recipe {name!r} names the unknown family {family!r}: "
                             f"choose from {', '.join(families)}")
    split = {part: getattr(raw.split, part) for part in SPLITS}
    if sum(split.values()) != 100:
        raise ValueError(f"data recipe {name!r}: [split] must give {', '.join(SPLITS)} in per cent, sum 100; "
                         f"it gives {split}")
    if (raw.domain is None) == (raw.rubric is None):
        raise ValueError(f"data recipe {name!r} in {RECIPES}: give it either a domain or [[rubric]] entries of its own")
    try:
        rubric = load_domain(raw.domain).rubric if raw.domain else criteria(raw.rubric, "[[rubric]]")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return DataRecipe(name, raw.title, raw.licence, tuple(raw.families), split, raw.traces.terse, rubric)


def exact(value: int) -> int:
    """The slip that makes no mistake."""
    return value


def make_problem(family: str, index: int, seed: int, slip: Callable[[int], int] = exact) -> Problem:
    """The `index`-th problem of a family: a function of (family, index, seed), whatever was asked before.

    Raises ValueError, naming family and part, for one that is no text.
    """
    module = importlib.import_module(f"data_recipes.families.{family}")
    question, steps, answer, *rubric = module.make(random.Random(f"{seed}:{family}:{index}"), slip)
    parts = {"question": (question,), "answer": (answer,), "KIND": (module.KIND,), "rubric": rubric, "steps": steps}
    for name, texts in parts.items():
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            value, kind = (texts, "a list of str") if name == "steps" else (texts[0], "a str")
            raise ValueError(f"family {family!r}, problem {index}: {name} is {value!r:.80}, and must be {kind}")
    return Problem(f"{family}-{seed}-{index}", family, question, tuple(steps), answer, module.KIND, *rubric)


def split_of(question: str, split: Mapping[str, float]) -> str:
    """The split a question belongs to: its SHA-256, modulo 100, against the recipe's percentages."""
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 100
    for name, share in split.items():
        if bucket < share:
            return name
        bucket -= share
    raise ValueError(f"the split {dict(split)} does not cover 100 %")


def make_problems(recipe: DataRecipe, split: str, seed: int) -> Iterator[Problem]:
    """A stream of distinct problems of one split, the families in turn, until `PATIENCE` of each bring no new one."""
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


def curate(recipe: DataRecipe, sizes: Mapping[str, int], seed: int) -> dict[str, Dataset]:
    """`sizes` rows for each split. Questions are neutralised: none can end a chat turn.

    Raises ValueError for an unknown split or one without rows, for families that have too few questions, and as
    `assert_disjoint` does.
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
        splits[split] = Dataset.from_list([
            dict(id=p.id, family=p.family, kind=p.kind, question=neutralise(p.question),
                 reasoning=shorten_trace(p) if split == "train" and is_terse(recipe, p) else p.reasoning,
                 answer=p.answer, rubric=rubric_to_json(rubric_of(recipe, p))) for p in chosen])
    assert_disjoint(splits)
    return splits


def assert_disjoint(splits: Mapping[str, Dataset]) -> None:
    """Raises ValueError, with an example, when two splits share a question in any spelling: see `question_key`."""
    owner: dict[str, str] = {}
    for name, rows in splits.items():
        for question in rows["question"]:
            key = question_key(question)
            if owner.setdefault(key, name) != name:
                raise ValueError(f"the question {question!r} is in both {owner[key]!r} and {name!r}: "
                                 "drop it from one, else the evaluation measures memory")


def is_terse(recipe: DataRecipe, item: Problem) -> bool:
    """Whether the training trace of this problem shows no step: a function of its id."""
    return random.Random(item.id).random() < recipe.terse


def shorten_trace(item: Problem) -> str:
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


def save_splits(splits: Mapping[str, Dataset], folder: Path) -> dict[str, Path]:
    """Write one JSONL file a split, atomically; returns their paths. Raises ValueError as `read`, before it writes."""
    paths = {name: folder / f"{name}.jsonl" for name in splits}
    for name, rows in splits.items():
        check_columns(rows.to_list(), str(paths[name]))
    for name, rows in splits.items():
        with files.replacing(paths[name], rows.data.nbytes) as partial:
            rows.to_json(str(partial))
    return paths


def read_rows(path: Path) -> Dataset:
    """Read one split back. Raises ValueError, naming line or row, when the file is missing, empty or damaged, and as
    `check_columns`."""
    again = "run notebook 01 (data curation)"
    try:
        lines = files.read_file(path).splitlines()
    except files.RecordError as error:
        raise ValueError(f"no rows in {path}, which is {error}: {again} first") from None
    if not lines:
        raise ValueError(f"no rows in {path}: {again} first")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if not isinstance(row := files.parse_json(line), dict):
                raise files.RecordError(f"no row: {files.preview(row)}")
        except files.RecordError as error:
            raise ValueError(f"line {number} of {path} is damaged ({error}): delete the file, and {again} again"
                             ) from None
        rows.append(row)
    check_columns(rows, str(path))
    try:
        return Dataset.from_list(rows)
    except (ValueError, TypeError, ArithmeticError) as error:  # of pyarrow, for columns of one's own
        others = sorted({name for name in rows[0] if name not in COLUMNS})
        raise ValueError(f"the rows of {path} make no table ({error}): give each of {', '.join(others)} one type in "
                         "all rows, with whole numbers below 2**63") from None


def check_rows(size: int, batch_size: int) -> None:
    """Raises ValueError when `size` rows do not fill one batch."""
    if size < batch_size:
        raise ValueError(f"{size} rows are fewer than one batch of {batch_size}: add rows or lower the batch size")


def shuffle_rows(rows: Sequence, batch_size: int, seed: int) -> Iterator[np.ndarray]:
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

    The stop token is part of the target: a policy that never learns to stop runs into the token limit.
    Raises ValueError when the rows of `sft_pairs` do not fill one batch.
    """
    encoded = sft_pairs(rows, tokenizer, max_length)
    if len(encoded) < batch_size:
        raise ValueError(f"{len(encoded)} rows are fewer than one batch of {batch_size}: add rows or lower the batch "
                         f"size. Of {len(rows)}, the others have no reasoning or more than {max_length} tokens")
    for numbers in shuffle_rows(encoded, batch_size, seed):
        tokens_BL = np.full((batch_size, max_length), tokenizer.pad_id(), np.int32)
        loss_mask_BL = np.zeros((batch_size, max_length), np.float32)
        for row, (prompt, reply) in enumerate(encoded[number] for number in numbers):
            tokens_BL[row, :len(prompt) + len(reply)] = prompt + reply
            loss_mask_BL[row, len(prompt):len(prompt) + len(reply)] = 1.0
        yield {"tokens_BL": tokens_BL, "loss_mask_BL": loss_mask_BL}


GRPO_COLUMNS = ("id", "question", "answer", "kind", "rubric")


def grpo_batches(rows: Dataset, tokenizer, batch_size: int, max_prompt_length: int, seed: int,
                 order: Callable[[Sequence[str], int, int], Iterator[np.ndarray]] = shuffle_rows,
                 ) -> Iterator[dict[str, np.ndarray]]:
    """Endless GRPO batches of `batch_size` prompts: 1-D numpy arrays of str, the only columns Tunix handles safely.

    Prompts of more than `max_prompt_length` tokens are left out: Tunix would pad the batch to the next power of two and
    compile anew. `order` gives the row numbers, from the ids of the rows that are left, `batch_size` and `seed`.
    """
    prompts = [TAGS.prompt(question) for question in rows["question"]]
    kept = [n for n, question in enumerate(rows["question"]) if fits(question, tokenizer, max_prompt_length)]
    columns = {name: np.array(rows[name]) for name in GRPO_COLUMNS}
    columns["prompts"] = np.array(prompts)
    for numbers in order(columns["id"][kept], batch_size, seed):
        chosen: Sequence[int] = [kept[number] for number in numbers]
        yield {name: values[chosen] for name, values in columns.items()}
