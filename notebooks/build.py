"""Notebooks from their sources: `build` and `run`.

The `.py` files (py:percent) are the truth. Every `.ipynb` is generated, with the same bytes each time. A cell in
double braces stands for other cells: the setup, the library's files, another notebook or all of a recipe's stages, or
what the recipe's page says. A cell tagged `clone` is in the clone, and one tagged with a recipe's name in that recipe's
submission. A cell may have both tags.

    python notebooks/build.py build                # write all notebooks
    python notebooks/build.py run --set SEED=1     # execute those of the recipe in order, or one that is named
    python notebooks/build.py submission --set RECIPE=pinocchio    # build/submission_pinocchio.ipynb
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import textwrap
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from library_cells import HIDDEN, library, library_cells
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from parameters import parameter, parameters, read_source, set_of_each, set_parameters
from recipe_cells import kaggle_models, recipe_cells
from runner import Runner

from reasonkit.config import STAGES
from reasonkit.session.setup import find_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build"
RECIPE = "g_rar"  # that of a notebook in which nobody has set another
TEMPLATE, SUBMISSION = "submission_template", "submission"
STAGE_OF = {stage.notebook: name for name, stage in STAGES.items()} | {TEMPLATE: SUBMISSION}  # as `precheck` takes it
OWN_CHOICES = {"data": "DATA, 'data'", "teacher": "DATA, 'teacher', TEACHER, JUDGE",  # for `precheck`
               SUBMISSION: "DATA, 'submission', TEACHER"}
COMMON = ("PROFILE", "RECIPE", "SEED", "DATA", "SETTINGS", "TEACHER")  # parameters that a submission has once
KEPT_METADATA = {"tags", *HIDDEN}
TRAINING = "# Numbers and figures"  # requirements.txt up to here is what a session must have in these versions
MARKER = re.compile(r"# \{\{(\w+)(?: (\w+))?\}\}")
PICTURE = re.compile(r"\.\./(docs/images/(\w+\.png))")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def is_in(cell: NotebookNode, recipe: str, clone: bool) -> bool:
    """Whether a cell's tags let it into a notebook of the clone, or else into the submission of `recipe`."""
    tags = {*cell.metadata.get("tags", ())}
    named = tags & {*recipe_names()}
    return recipe in named or (clone if "clone" in tags else not named)


def setup_cells(root: Path, stage: str, api_judge: bool = True) -> list[NotebookNode]:
    """The cells that find the library, install what is missing at pinned versions, and check if a stage can begin.
    `api_judge`: whether one of the other cells makes a judge behind an API."""
    requirements = (root / "requirements.txt").read_text(encoding="utf-8").split(TRAINING)[0]
    pins, libtpu = re.findall(r"^[\w-]+==\S+", requirements, re.M), re.search(r"libtpu==\S+", requirements)
    if not pins or not libtpu:
        raise ValueError(f"requirements.txt pins {pins} and no libtpu above {TRAINING!r}: restore them")
    cells = read_source(root / "notebooks" / "setup.py").cells
    for cell in cells:
        cell.source = cell.source.replace("{{pins}}", textwrap.fill(" ".join(pins), 110, break_on_hyphens=False))
        cell.source = cell.source.replace("{{libtpu}}", libtpu[0])
        choices = OWN_CHOICES.get(stage, f"stage={stage!r}").replace("'", '"') + ", api_judge=False" * (not api_judge)
        cell.source = cell.source.replace("{{choices}}", choices)
    return cells


def expand(cell: NotebookNode, root: Path, recipe: str) -> list[NotebookNode]:
    """The cells that a source's cell stands for: itself, unless it is a marker. The places of the setup and the library
    stay markers, because what they say depends on the other cells."""
    if cell.cell_type == "markdown":
        if "{{models}}" in cell.source:
            cell.source = cell.source.replace("{{models}}", kaggle_models(recipe))
        return [cell]
    marker = MARKER.fullmatch(cell.source.strip())
    match marker and marker.groups():
        case None | ("library" | "setup", None):
            return [cell]
        case "recipe", None:
            return recipe_cells(recipe, root)
        case "stages", "data" | "training" as part:
            stages = find_recipe(recipe).stages
            split = stages.index("data") + 1  # a teacher comes before it, and the evaluation last
            names = stages[:split] if part == "data" else stages[split:-1]
            return [new for name in names for new in notebook_cells(STAGES[name].notebook, root)]
        case "notebook", str(name):
            return notebook_cells(name, root)
    raise ValueError(f"unknown marker {cell.source!r}: use '# {{{{setup}}}}', '# {{{{library}}}}', '# {{{{recipe}}}}', "
                     "'# {{stages data}}', '# {{stages training}}' or '# {{notebook NAME}}'")


def notebook_cells(name: str, root: Path) -> list[NotebookNode]:
    """The cells of a notebook as parts of a chapter. Of its parameters there are those that it has alone."""
    notebook = read_source(root / "notebooks" / f"{name}.py")
    given, found = parameters(notebook)
    lines = given.source.splitlines()
    given.source = "\n".join(line for key, node in found.items() if key not in COMMON
                             for line in lines[node.lineno - 1:node.end_lineno])
    given.metadata.tags = []
    cells = [cell for cell in notebook.cells if cell.source.strip() != "# {{setup}}"]
    for cell in cells:
        if cell.cell_type == "markdown":  # the chapter's number is another
            cell.source = re.sub(r"^(#+ )(?:\d+[a-z]? · )?", r"#\1", cell.source, flags=re.MULTILINE)
    return [cell for cell in cells if cell.source]


def finish(cells: list[NotebookNode], root: Path) -> str:
    """The `.ipynb` text of these cells: no outputs, known metadata only, ids made from the contents. It holds the
    pictures of docs/images that its texts show, because it is read without the repository."""
    seen: Counter[str] = Counter()
    for cell in cells:
        key = cell.cell_type + "\n" + cell.source
        cell.id = hashlib.sha256(f"{seen[key]}\n{key}".encode()).hexdigest()[:12]
        seen[key] += 1
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k in KEPT_METADATA})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        for path, name in PICTURE.findall(cell.source) if cell.cell_type == "markdown" else ():
            cell.source = cell.source.replace(f"../{path}", f"attachment:{name}")
            cell.setdefault("attachments", {})[name] = {"image/png": b64encode((root / path).read_bytes()).decode()}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}, nbformat_minor=5)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def notebook_text(path: Path, root: Path = ROOT, values: Mapping[str, object] | None = None,
                  attached: bool = False) -> str:
    """The `.ipynb` text of a source with these parameters. `attached`: the library is a data set, and its place is that
    of `attached.py`."""
    notebook = read_source(path)
    if values:
        set_parameters(notebook, values)
    recipe, *_ = [*re.findall(r'^RECIPE = "(\w+)"', "\n".join(cell.source for cell in notebook.cells), re.M), RECIPE]
    clone = path.stem != TEMPLATE
    cells = [new for cell in notebook.cells for new in expand(cell, root, recipe)
             if is_in(new, recipe, clone) and not (attached and "library" in cell.metadata.get("tags", ()))]
    api_judge = clone or any("api_judge.from_secrets(" in cell.source for cell in cells)
    setup = setup_cells(root, STAGE_OF.get(path.stem, "data"), api_judge)
    cells = [new for cell in cells for new in (setup if cell.source.strip() == "# {{setup}}" else [cell])]
    for place in [number for number, cell in enumerate(cells) if cell.source.strip() == "# {{library}}"]:
        cells[place:place + 1] = (read_source(root / "notebooks" / "attached.py").cells if attached else
                                  library_cells(library(cells, root), root))
    return finish(cells, root)


def find_stale(root: Path = ROOT) -> dict[Path, str]:
    """The generated notebooks that are missing or differ from what their sources give, with their new text."""
    folder = root / "notebooks"
    sources = {path.stem: path for path in sorted(folder.glob("0*.py"))} | {SUBMISSION: folder / f"{TEMPLATE}.py"}
    texts = {folder / f"{name}.ipynb": notebook_text(path, root) for name, path in sources.items()}
    return {path: text for path, text in texts.items()
            if not path.is_file() or path.read_text(encoding="utf-8") != text}


def build(root: Path = ROOT) -> list[Path]:
    """Writes the notebooks that are stale and returns their paths."""
    stale = find_stale(root)
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return list(stale)


def run(path: Path, values: dict[str, object], cwd: Path) -> bool:
    """Executes one notebook in `cwd`, and writes the executed copy. True if every cell ran or had nothing to do."""
    notebook = nbformat.reads(notebook_text(path, values=values), as_version=4)
    started = time.monotonic()
    try:
        with TemporaryDirectory() as sockets:
            Runner(notebook, path.stem, cwd, sockets).execute()
        return True
    except CellExecutionError as error:
        skipped = error.ename == "StageNotInRecipe"
        print(error.evalue if skipped else ANSI.sub("", str(error)), flush=True)
        return skipped
    except DeadKernelError:
        print(f"{path.name}: the kernel died (is the machine out of memory?)", flush=True)
    finally:
        copy = cwd / os.environ.get("REASONKIT_ARTIFACTS", "artifacts") / "notebooks" / f"{path.stem}.ipynb"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(f"[{path.stem}] {time.monotonic() - started:.0f} s, executed copy: {copy}", flush=True)
    return False


def notebooks_of(recipe: str) -> list[Path]:
    """The sources of the recipe's notebooks, in order. Raises ValueError for an unknown recipe."""
    return [ROOT / "notebooks" / f"{STAGES[stage].notebook}.py" for stage in find_recipe(recipe).stages]


def write_submission(values: Mapping[str, object]) -> Path:
    """Write build/submission_<recipe>.ipynb, with the stages and the library of its recipe only. Returns the path."""
    text = notebook_text(ROOT / "notebooks" / f"{TEMPLATE}.py", values=values)
    path = OUT / f"submission_{values.get('RECIPE', RECIPE)}.ipynb"
    OUT.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="write the stale notebooks")
    made = commands.add_parser("submission", help="write the submission of a recipe into build/")
    made.add_argument("--set", action="append", type=parameter, default=[], metavar="NAME=VALUE")
    runs = commands.add_parser("run", help="execute the notebooks of the recipe, or one")
    runs.add_argument("path", nargs="?", type=Path, help="a .py or .ipynb; default: those of the recipe in order")
    runs.add_argument("--set", action="append", type=parameter, default=[], metavar="NAME=VALUE")
    runs.add_argument("--cwd", type=Path, default=ROOT, help="the kernel's folder (default: the repository)")
    args = parser.parse_args(argv)
    try:
        if args.command == "run":
            values = {args.path: dict(args.set)} if args.path else set_of_each(
                notebooks_of(dict(args.set).get("RECIPE", RECIPE)), dict(args.set))
            return 0 if all(run(path, some, args.cwd.resolve()) for path, some in values.items()) else 1
        if args.command == "submission":
            print(f"written: {write_submission(dict(args.set))}")
        else:
            names = [path.name for path in build()]
            print(f"written: {', '.join(names)}" if names else "all up to date")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
