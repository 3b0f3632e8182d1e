"""What a submission says of its recipe, from the page beside the recipe: it must not describe another one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from reasonkit.config import PROFILES, STAGES, models_of
from reasonkit.session.setup import find_recipe

_LINK = re.compile(r"\[([^]]+)\]\([^)]*\)")
_RESULTS = re.compile(r"\s*Several seeds, controls and comparisons are in .*?\.(?=\n)", re.DOTALL)
_LINK_ONLY = re.compile(rf"\s*\({_LINK.pattern}\)")  # in brackets: what it leads to is not in the submission


def kaggle_models(recipe: str) -> str:
    """The models to attach on Kaggle, as a list in words."""
    found = find_recipe(recipe)
    names = dict.fromkeys(models_of(PROFILES["kaggle"], found, found.stages).values())
    return " and ".join(f"Gemma {name.removeprefix('gemma')[0]} `{name}`" for name in names)


def recipe_cells(recipe: str, root: Path) -> list[NotebookNode]:
    """The recipe's text with what it takes on Kaggle, and its demo run. A recipe without a page has only its text."""
    heading = f"## The recipe `{recipe}`: {' → '.join(STAGES[stage].title for stage in find_recipe(recipe).shares)}"
    page = root / f"recipes/{recipe}.md"
    if not page.is_file():
        code = (root / f"recipes/{recipe}.py").read_text(encoding="utf-8")
        return [new_markdown_cell(f"{heading}\n\n{ast.get_docstring(ast.parse(code)) or ''}".strip())]
    text = _LINK.sub(r"\1", _LINK_ONLY.sub("", _RESULTS.sub("", page.read_text(encoding="utf-8"))))
    first, *rest = re.split(r"^## (.+)\n", text, flags=re.M)
    parts = dict(zip(rest[::2], map(str.strip, rest[1::2]), strict=True))
    summary = first.partition("\n")[2].strip()
    return [new_markdown_cell(f"{heading}\n\n{summary}\n\n### On Kaggle\n\n{parts['On Kaggle']}"),
            new_markdown_cell(f"## Results of a demo run, by a model of 1 M parameters\n\n{parts['What to expect']}\n\n"
                              f"### One question\n\n{parts['One question']}")]
