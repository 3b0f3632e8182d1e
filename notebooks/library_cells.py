"""The part of the library that a submission carries, as cells that write it: `library` and `library_cells`."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from parameters import read_source

from reasonkit.session.setup import suggest

FILE_MARK = "#### "  # in a cell of the library, the line that begins a file
# Kaggle, JupyterLab and Colab fold the source of such a cell. Colab shows its line `# @title` instead.
HIDDEN = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}, "cellView": "form"}
MODULE = re.compile(r"(?:reasonkit|recipes|data_recipes|tools)(?:\.\w+)+")
# A recipe names its data in a string, and the data their families, rubrics and kinds of answers: nothing imports them.
BY_NAME = ("data_recipes/rubrics/{}.toml", "data_recipes/families/{}.py", "recipes/graders/{}.py")
MIX = "data_recipes/{}.toml"  # only a recipe names one. In a mix, the same word is a domain or a reader
# Nothing imports these: the rubric for a file of one's own, and the mix that errors about the hub name as the way out.
BY_PATH = {"reasonkit/data/own_file.py": "data_recipes/rubrics/general.toml",
           "reasonkit/data/curation.py": "data_recipes/packaged.toml"}


@functools.cache
def modules(source: str) -> frozenset[str]:
    """The dotted names that Python code imports or holds in a string, because `python -m` may start one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(str(base), aliases):
                names |= {base, *(f"{base}.{alias.name}" for alias in aliases)}
            case ast.Constant(str(text)):
                names.add(text)
    return frozenset(filter(MODULE.fullmatch, names))


def needs(path: Path, text: str, root: Path) -> set[Path]:
    """The files that a file of the library needs: those it imports, and those that a recipe or its data name."""
    found = set()
    if path.suffix == ".py":
        found = {root / f"{name.replace('.', '/')}.py" for name in modules(text)}
        found |= {folder / "__init__.py" for folder in path.parents if root in folder.parents}
    reader = root / "reasonkit/data/readers.py"  # it names the kinds that a gold answer may be found to have
    of_recipe = path.parent == root / "recipes"
    if path == reader or of_recipe or root / "data_recipes" in path.parents:
        places = (*BY_NAME, MIX) if of_recipe else BY_NAME
        found |= {root / place.format(word) for word in re.findall(r'"(\w+)"', text) for place in places}
    found |= {root / other for module, other in BY_PATH.items() if path == root / module}
    found = {path for path in found if path.is_file()}
    top = text.split("[[sources]]")[0]  # the domain of a source may have no rubric of its own
    return found | {root / f"data_recipes/rubrics/{name}.toml" for name in re.findall(r'^domain = "(\w+)"', top, re.M)}


def library(cells: list[NotebookNode], root: Path) -> list[Path]:
    """The files that `cells`, their recipe and their data need, sorted by path. ValueError if one is missing."""
    shell = TransformerManager()
    code = "\n".join(shell.transform_cell(cell.source) for cell in cells if cell.cell_type == "code")
    wanted = {root / "reasonkit/__init__.py"}
    for place, name in (("recipes/{}.py", "RECIPE"), ("data_recipes/{}.toml", "DATA")):
        wanted |= {root / place.format(value) for value in re.findall(rf'^{name} = "(\w+)(?:\.toml)?"', code, re.M)}
    wanted |= needs(root / "notebook.py", code, root)
    own = re.search(r'^DATA = "[^"]*\.(?!toml")\w+"', code, re.M)  # a file of one's own may need any rubric
    wanted |= {*(root / "data_recipes/rubrics").glob("*.toml")} if own else set()
    found: set[Path] = set()
    while wanted:
        path = wanted.pop()
        if not path.is_file():
            raise ValueError(f"{path} does not exist, and the notebook, its recipe or its data need it: restore it, or "
                             + suggest(path.stem, sorted(other.stem for other in path.parent.glob(f"*{path.suffix}"))))
        found.add(path)
        wanted |= needs(path, path.read_text(encoding="utf-8"), root) - found
    return sorted(found)


def library_cells(paths: list[Path], root: Path) -> list[NotebookNode]:
    """The cell that defines `%%files`, and one per folder that writes its files with it."""
    cells = read_source(root / "notebooks" / "files.py").cells
    for folder in sorted({path.parent.relative_to(root).as_posix() for path in paths}):
        texts = {path.name: path.read_text(encoding="utf-8").rstrip() for path in paths if path.parent == root / folder}
        names = ", ".join(name.partition(".")[0] for name in texts if name != "__init__.py")
        for name, text in texts.items():
            if re.search(f"^{FILE_MARK}", text, re.M):
                raise ValueError(f"{folder}/{name} has a line that begins with {FILE_MARK!r}, as a new file does in a "
                                 "cell of the submission: write it otherwise")
        cells.append(new_code_cell(f"%%files {folder}\n# @title {folder}: {names}\n" + "\n\n".join(
            f"{FILE_MARK}{name}\n{text}" for name, text in texts.items())))
    for cell in cells:
        cell.metadata = NotebookNode(HIDDEN)
    return cells
