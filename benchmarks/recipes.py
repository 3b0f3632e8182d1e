"""Every recipe at equal wall clock, as tables: `python benchmarks/recipes.py --minutes 8 --seeds 0 1 2`.

Each recipe runs its own notebooks, data to evaluation, in a session of `--minutes`. The clock ends the stages, whose
steps are more than fit. All recipes of a seed answer the same test problems. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from checkout import ROOT
from demo import notebooks

from reasonkit.config import STAGES
from reasonkit.eval.evaluate import EvalResult, compare_paired
from reasonkit.session.setup import find_recipe

RECIPES = ("tunix_demo", "worked_sft", "g_rar", "idea_e", "pinocchio", "on_policy_distillation", "deep_corgi",
           "reasonkit")
# More steps than the clock allows, and no answers to validation problems between them: they cost short steps most.
STEPS = {"sft_steps": 2000, "grpo_steps": 2000, "distill_steps": 2000, "probe_every": 2000}


def result(artifacts: Path, name: str) -> EvalResult:
    """An evaluation of notebook 4: "base model", or "after" a stage's title."""
    return EvalResult.from_json(artifacts / "evaluation" / f"{name.lower().replace(' ', '_')}.json")


def submitted(artifacts: Path, recipe: str) -> EvalResult:
    """The evaluation of the adapter that the recipe would submit."""
    return result(artifacts, f"after {STAGES[find_recipe(recipe).training_stages[-1]].title}")


def paired(artifacts: Path, recipe: str, others: Path, other: str, seed: int) -> str:
    """One recipe against another, on the same problems."""
    pair = submitted(others, other), submitted(artifacts, recipe)
    return (f"| {seed} | `{recipe}` against `{other}` | {compare_paired(*pair, 'content')} | "
            f"{compare_paired(*pair, 'steps')} |")


def by_family(folders: Mapping[str, Sequence[Path]]) -> list[str]:
    """Content accuracy on each family of problems, the test problems of all seeds together. The intervals do not cover
    the choice of the training seeds."""
    columns = {"base model": [result(folder, "base model") for folder in next(iter(folders.values()))],
               **{f"`{recipe}`": [submitted(folder, recipe) for folder in each] for recipe, each in folders.items()}}
    parts = {name: EvalResult([sample for one in each for sample in one.samples]).by_family()
             for name, each in columns.items()}
    return [f"| family | n | {' | '.join(parts)} |", "|---|---|" + "---|" * len(parts),
            *(f"| {family} | {found.n} | {' | '.join(str(part[family].content_accuracy) for part in parts.values())} |"
              for family, found in parts["base model"].items())]


def row(artifacts: Path, recipe: str, seed: int) -> str:
    """The adapter that the recipe would submit. A stage whose adapter was not kept is in brackets."""
    stages = [json.loads((artifacts / stage / "manifest.json").read_text())
              for stage in find_recipe(recipe).training_stages]
    steps = ", ".join(f"{stage['metrics']['steps']} {STAGES[stage['stage']].title}" if not stage["extra"].get("worse")
                      else f"({STAGES[stage['stage']].title})" for stage in stages)
    found = submitted(artifacts, recipe)
    against = compare_paired(result(artifacts, "base model"), found, "content")
    length = mean(len(sample["completion"].split()) for sample in found.samples)
    minutes = sum(stage["minutes"] for stage in stages)
    return (f"| {seed} | `{recipe}` | {steps} | {minutes:.1f} | {found.content_accuracy} | {found.format_rate} | "
            f"{found.step_accuracy} | {length:.0f} | {against} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--data", default="", help="a mix in data_recipes/, in place of the recipe's own")
    parser.add_argument("--against", nargs="*", default=[], help="recipes to compare all others with, paired")
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "recipes")
    options = parser.parse_args()
    if missing := {*options.against} - {*options.recipes}:
        parser.error(f"--against {' '.join(missing)}: not among --recipes")
    lines = ["| seed | recipe | steps | minutes of training | content accuracy | format rate | step accuracy | words | "
             "content accuracy against the base model |", "|---|---|---|---|---|---|---|---|---|"]
    pairs = ["| seed | comparison, paired | content accuracy | step accuracy |", "|---|---|---|---|"]
    runs = {seed: {recipe: options.out.resolve() / f"{recipe}-{seed}/artifacts" for recipe in options.recipes}
            for seed in options.seeds}
    for seed, folders in runs.items():
        for recipe, folder in folders.items():
            if not (folder / "report.html").exists():
                notebooks(folder, options.profile, recipe, seed, SETTINGS={"minutes": options.minutes, **STEPS},
                          **({"DATA": options.data} if options.data else {}))
            lines.append(row(folder, recipe, seed))
        pairs += [paired(folders[recipe], recipe, folders[other], other, seed)
                  for other in options.against for recipe in options.recipes if recipe != other]
    families = by_family({recipe: [folders[recipe] for folders in runs.values()] for recipe in options.recipes})
    print("\n".join([*lines, *(["", *pairs] if options.against else []), "", *families]))


if __name__ == "__main__":
    main()
