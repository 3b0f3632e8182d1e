"""A folder for the Kaggle CLI: the library as a data set, and the submission's notebook, which uses it.

    python notebooks/kaggle_folder.py --owner YOU [--set RECIPE=idea_e]    # build/kaggle

The command prints what uploads the folder. Entry point: `write_folder`.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
from build import ROOT, TEMPLATE, notebook_text
from parameters import parameter, parameters

from reasonkit.choices import choose
from reasonkit.config import models_of
from reasonkit.data.problems import load_recipe
from reasonkit.models.load import MODELS
from reasonkit.session.setup import check_choices, check_name, find_recipe

PACKAGES = ("reasonkit", "recipes", "data_recipes", "tools")
NOTEBOOK, LIBRARY = "show-your-work", "reasonkit-library"  # the slugs, which Kaggle makes of the titles


def write_folder(owner: str, out: Path, values: dict[str, object]) -> None:
    """Write `out`/library and `out`/notebook. values: parameters of the notebook that differ from the template's.

    Raises ValueError for a name that is no owner's, an unknown parameter, recipe or TEACHER, and a profile without
    models on Kaggle.
    """
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", owner):
        raise ValueError(f"owner {owner!r}: give your Kaggle user name, as in kaggle.com/NAME")
    text = notebook_text(ROOT / "notebooks" / f"{TEMPLATE}.py", values=values, attached=True)
    notebook = nbformat.reads(text, as_version=4)
    chosen = {name: ast.literal_eval(node.value) for name, node in parameters(notebook)[1].items()}
    name, recipe = chosen["PROFILE"], find_recipe(chosen["RECIPE"])
    if chosen["DATA"] and Path(chosen["DATA"]).suffix in ("", ".toml"):
        load_recipe(chosen["DATA"].removesuffix(".toml"))  # raises ValueError for an unknown name
    settings = check_choices(name, chosen["RECIPE"], chosen["SEED"], chosen["SETTINGS"])
    check_name("TEACHER", chosen["TEACHER"], ["", "api", *MODELS])
    profile = choose(name, recipe, settings, {})
    names = dict.fromkeys(models_of(profile, recipe, recipe.stages, chosen["TEACHER"]).values())
    handles = [MODELS[name].handle if name in MODELS else None for name in names]
    if None in handles:
        raise ValueError(f"PROFILE={chosen['PROFILE']!r} has no models on Kaggle: leave it at kaggle")
    code = out / "notebook" / f"{NOTEBOOK}.ipynb"
    if out.is_dir() and any(out.iterdir()) and not code.is_file():
        raise ValueError(f"{out} is not empty and was not made by this command: give a new folder")
    shutil.rmtree(out, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, out / "library/packages" / package,
                        ignore=shutil.ignore_patterns("__pycache__", "assets"))
    shutil.copyfile(ROOT / "LICENSE", out / "library/LICENSE")
    data = {"title": LIBRARY.replace("-", " "), "id": f"{owner}/{LIBRARY}", "licenses": [{"name": "apache-2.0"}]}
    (out / "library/dataset-metadata.json").write_text(json.dumps(data, indent=2) + "\n")
    code.parent.mkdir()
    code.write_text(text, encoding="utf-8")
    kernel = {
        "id": f"{owner}/{NOTEBOOK}", "title": NOTEBOOK.replace("-", " "), "code_file": code.name, "language": "python",
        "kernel_type": "notebook", "is_private": True, "enable_gpu": False, "enable_tpu": True,
        "machine_shape": "TpuV5E8", "enable_internet": True, "model_sources": handles,
        "dataset_sources": [f"{owner}/{LIBRARY}"], "competition_sources": [], "kernel_sources": []}
    (code.parent / "kernel-metadata.json").write_text(json.dumps(kernel, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--owner", required=True, help="your Kaggle user name")
    parser.add_argument("--out", type=Path, default=ROOT / "build/kaggle", help="made anew (default: build/kaggle)")
    parser.add_argument("--set", action="append", type=parameter, default=[], metavar="NAME=VALUE")
    args = parser.parse_args(argv)
    try:
        write_folder(args.owner, args.out, dict(args.set))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"pip install kaggle\n"
          f"kaggle datasets create --dir-mode zip -p {args.out}/library   # later: kaggle datasets version -m new ...\n"
          f"kaggle kernels push -p {args.out}/notebook   # uploads the notebook and runs it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
