"""The parameters cell of a notebook: what it assigns, and how values are replaced in it. `read_source` reads one."""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Mapping
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode


def read_source(path: Path) -> NotebookNode:
    """The notebook of a py:percent file or of an `.ipynb`. ValueError if it is missing."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: notebooks are written as py:percent files beside build.py")
    if path.suffix == ".ipynb":
        return nbformat.read(path, as_version=4)
    return jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")


def parameters(notebook: NotebookNode) -> tuple[NotebookNode, dict[str, ast.Assign]]:
    """The cell tagged `parameters`, and the assignment of each name in it."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} cells are tagged 'parameters'; a notebook has exactly one")
    return cells[0], {node.targets[0].id: node for node in ast.parse(cells[0].source).body
                      if isinstance(node, ast.Assign)}


def set_parameters(notebook: NotebookNode, values: Mapping[str, object]) -> None:
    """Replaces values in the cell tagged `parameters`. ValueError for a name that it does not assign."""
    cell, found = parameters(notebook)
    if unknown := [name for name in values if name not in found]:
        raise ValueError(f"no parameter {unknown[0]!r} in this notebook; it has {', '.join(found)}")
    lines = cell.source.encode().splitlines(keepends=True)  # the tree counts columns in bytes
    for name in sorted(values, key=lambda name: -found[name].lineno):
        old, new = found[name].value, json.dumps(values[name]) if isinstance(values[name], str) else repr(values[name])
        start, end = old.lineno - 1, old.end_lineno - 1
        lines[start:end + 1] = [lines[start][:old.col_offset] + new.encode() + lines[end][old.end_col_offset:]]
    cell.source = b"".join(lines).decode()


def set_of_each(paths: list[Path], values: dict[str, object]) -> dict[Path, dict[str, object]]:
    """The values that each notebook has a parameter for. ValueError for a name that none of them has."""
    names = {path: parameters(read_source(path))[1] for path in paths}
    known = set().union(*names.values())
    if unknown := values.keys() - known:
        raise ValueError(f"no parameter {', '.join(sorted(unknown))} in the notebooks: they have "
                         f"{', '.join(sorted(known))}")
    return {path: {name: value for name, value in values.items() if name in names[path]} for path in paths}


def parameter(text: str) -> tuple[str, object]:
    """`NAME=VALUE`. The value is a Python literal if it reads as one, else a string."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value
