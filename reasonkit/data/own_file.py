"""`load_data`: the data recipe that DATA names, a mix in data_recipes/ or a file of your own."""

from __future__ import annotations

import re
from itertools import islice, takewhile
from pathlib import Path

from reasonkit.data.loading import open_rows
from reasonkit.data.options import LETTERS
from reasonkit.data.problems import load_recipe
from reasonkit.data.router import GENERAL
from reasonkit.data.sources import OWN, ROUTED, DataRecipe, OwnFile, SourceError, Split, TeacherFile
from reasonkit.judge.rubric import DOMAINS, load_domain

# What the columns of a file of one's own may be called, in lower case. The first one that is there is taken.
OWN_COLUMNS = {
    "question": ("question", "prompt", "problem", "instruction", "input", "query"),
    "answer": ("answer", "target", "gold", "label", "output", "response"),
    "reasoning": ("reasoning", "rationale", "explanation", "solution", "steps"),
    "options": ("options", "choices"),
    **{name: (name,) for name in ("kind", "domain", "task", "rubric")},  # as in the files that the kit writes
}
READ = 100  # rows by which a file is recognised
_AFTER_WORK = re.compile(r"####[^#\n]+\Z")  # the answer of a GSM8K row, below its work
TAUGHT = TeacherFile.model_construct(**{"from": "teacher"}, name="notebook 1b", domain=ROUTED, licence=OWN, address="")


def load_data(data: str, traces: Path | None = None, taught: bool = False) -> DataRecipe:
    """A data recipe: `data_recipes/<data>.toml`, or one made for a file of your own (.csv, .jsonl, .json, .parquet).

    `traces` is the file that a source `from = "teacher"` reads unless it names another. With `taught` a file of your
    own, or a mix that lacks such a source, has it before its other sources.
    Raises as `load_recipe` and `own_recipe` do.
    """
    own = Path(data).suffix not in ("", ".toml")
    recipe = own_recipe(Path(data)) if own else load_recipe(data.removesuffix(".toml"))
    asked = any(isinstance(source, TeacherFile) for source in recipe.sources)
    mine = [TAUGHT] if taught and recipe.sources and not asked else []
    return recipe.model_copy(update={"sources": [
        source.model_copy(update={"path": str(traces)})
        if traces and isinstance(source, TeacherFile) and "path" not in source.model_fields_set else source
        for source in (*mine, *recipe.sources)]})


def without_traces(recipe: DataRecipe, traces: Path) -> DataRecipe:
    """The recipe without the sources that would read the file `traces`, if a teacher left none. Its title says so."""
    left = [source for source in recipe.sources if not isinstance(source, TeacherFile) or source.path != str(traces)]
    told = f"{recipe.title}, WITHOUT a teacher's solutions: notebook 1b kept none"
    return recipe if left == recipe.sources else recipe.model_copy(update={"sources": left, "title": told})


def own_recipe(path: Path) -> DataRecipe:
    """A data recipe for a file of your own, by its first `READ` rows. Columns are recognised by their names
    (`OWN_COLUMNS`). An `instruction` and its `input` are one question, as in Alpaca. An answer that ends in "#### 72"
    below its work, as in GSM8K, is taken apart. The domain of each question is found by its words, unless a rubric has
    the file's name. 80 % of the questions are for training, 10 % each for validation and test.

    Raises SourceError for a file that can't be read, has no row, or has no column for the question.
    """
    domain = path.stem if (DOMAINS / f"{path.stem}.toml").is_file() else ROUTED
    given = {"name": path.stem, "from": "file", "path": str(path), "domain": domain}
    rows = [*islice(open_rows(OwnFile.model_validate(given))[0], READ)]
    if not rows:
        raise SourceError(f"{path} has no row: give it at least one")
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name.strip().lower(): name for name in names}
    taken = {ours: name for ours, known in OWN_COLUMNS.items()
             if (name := next((name for name in known if name in found), None))}
    columns = {ours: f"{{{found[name]}}}" for ours, name in taken.items()}
    if taken.get("question") == "instruction" and "input" in found:
        columns["question"] += f"\n\n{{{found['input']}}}"  # a row with an empty one ends before it
    answers = [str(row.get(found[taken["answer"]], "")).rstrip() for row in rows] if "answer" in taken else []
    worked = "reasoning" not in taken and any(map(_AFTER_WORK.search, answers))
    letters = [*takewhile(lambda letter: found.get(letter.lower()) == letter, LETTERS)]
    if "options" not in columns and len(letters) > 1:
        columns["options"] = " ".join(f"({letter}) {{{letter}}}" for letter in letters)
    if "question" not in columns:
        raise SourceError(f"{path} has the columns {', '.join(names)}, and none is a question: rename one to 'question'"
                          ", and the right answer's to 'answer', with a comma between the cells of a CSV")
    source = OwnFile.model_validate({**given, "columns": columns, "reader": "gsm8k" if worked else "plain"})
    mapping = ", ".join(f"{ours} from {' '.join(column.split())}" for ours, column in columns.items())
    mapping += ", and its work before #### as reasoning" if worked else ""
    if unused := [name for name in names if not any(f"{{{name}}}" in column for column in columns.values())]:
        mapping += f"; not used: {', '.join(unused)}"
    return DataRecipe.model_construct(
        name=path.stem, title=f"{path.name} ({mapping})", licence=OWN, sources=[source],
        split=Split(train=80, validation=10, test=10), rubric=load_domain(GENERAL).rubric)
