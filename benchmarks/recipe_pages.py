"""The page beside each recipe, from a finished run of it: `python benchmarks/recipe_pages.py FOLDER [FOLDER ...]`.

A folder is the `artifacts` of `make demo RECIPE=name`. The page has the recipe's own text, the command, figures, one
question before and after each stage, and curves. Run it in the clone that ran the demo, at the same commit: the page
names that. What it says from "## On Kaggle" on is written by hand and stays.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
from pathlib import Path

from checkout import ROOT

from reasonkit.config import STAGES
from reasonkit.eval.evaluate import EvalResult
from reasonkit.session.run_log import RunLog
from reasonkit.session.setup import find_recipe
from reasonkit.show.figures import curves

KEPT = "## On Kaggle\n"
PAGE = """# {name}: {stages}

{text}

## Run it

```bash
make demo RECIPE={name}  # trains the tiny model; its figures are below
make submission RECIPE={name}  # writes one notebook for Kaggle
```

[`recipes/{name}.py`]({name}.py) is the file to copy and change.

## What to expect

`make demo RECIPE={name}`, {date}, code {commit}. All stages answered the same {n} test questions,
greedily. Several seeds, controls and comparisons are in [RESULTS](../benchmarks/RESULTS.md).

| | steps | content accuracy | format rate | step accuracy |
|---|---|---|---|---|
{rows}

## One question

The first test question to which every stage wrote something different, or the first of all if there is none.

{fence}text
{example}
{fence}

## Curves of {last}

![Curves of {last}](../docs/images/recipes/{name}.png)

{kept}"""


def page(folder: Path, name: str, commit: str, kept: str) -> str:
    """The page of the recipe `name` from a finished run. `kept` is its part that is written by hand."""
    recipe, results, rows = find_recipe(name), {}, []
    made = {STAGES[stage].title: json.loads((folder / stage / "manifest.json").read_text())
            for stage in recipe.training_stages}
    for title in ("base model", *made):
        file = title.replace(" ", "_") if title not in made else f"after_{title.lower()}"
        found = results[title] = EvalResult.from_json(folder / "evaluation" / f"{file}.json")
        made_steps = made[title]["metrics"]["steps"] if title in made else "–"
        shown = found.step_accuracy if found.has_steps else "–"
        rows.append(f"| {title} | {made_steps} | {found.content_accuracy} | {found.format_rate} | {shown} |")
    asked = [*zip(*(result.samples for result in results.values()), strict=True)]
    shown = next((row for row in asked if len({sample["completion"] for sample in row}) == len(row)), asked[0])
    example = "\n".join([shown[0]["question"], *(f"\n{title}: {sample['completion']}"
                                                 for title, sample in zip(results, shown, strict=True))])
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", example)), default=0))  # longer than any in the text
    return PAGE.format(
        name=name, stages=" → ".join(STAGES[stage].title for stage in recipe.shares), commit=commit, fence=fence,
        text=importlib.import_module(f"recipes.{name}").__doc__.strip(), n=len(asked), rows="\n".join(rows),
        date=made[title]["written"][:10], example=example, last=title, kept=kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT)
    options = parser.parse_args()
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    for folder in options.folders:
        name = json.loads((folder / "run.json").read_text())["recipe"]
        path, image = options.out / f"recipes/{name}.md", options.out / f"docs/images/recipes/{name}.png"
        kept = KEPT + (path.read_text(encoding="utf-8").partition(KEPT)[2] if path.exists() else "")
        path.write_text(page(folder, name, commit, kept), encoding="utf-8")
        image.parent.mkdir(parents=True, exist_ok=True)
        curves(RunLog(folder / find_recipe(name).training_stages[-1] / "log.jsonl").read()).savefig(
            image, dpi=60, facecolor="white")
        print(path)


if __name__ == "__main__":
    main()
