"""The demo over seeds, each recipe with its controls, as one table: `python benchmarks/demo.py --seeds 0 1 2`.

Notebooks 01 and 02 run once per seed. From that adapter, 03 and 04 run once per recipe: `g_rar` (trained on the
rubric), `g_exact` (rubric logged at weight 0), and two controls with the same settings, `constant` (every completion
earns the same) and `shuffled` (rewards dealt out at random). Comparisons are paired.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from checkout import ROOT

from reasonkit.eval.evaluate import EvalResult, compare_paired

JUDGED, PLAIN, CONSTANT, SHUFFLED = RECIPES = ("g_rar", "g_exact", "constant", "shuffled")
STAGES = {"constant": "GRPO, `constant` (control)", "shuffled": "GRPO, `shuffled` (control)",
          "g_exact": "GRPO, `g_exact` (rubric at weight 0)", "g_rar": "GRPO, `g_rar` (rubric trained on)"}


def notebooks(folder: Path, profile: str, recipe: str, seed: int, *names: str, code: Path = ROOT, **more) -> None:
    """Run these notebooks of the checkout in `code`, or all of the recipe. `folder` gets their artifacts. `more` are
    other parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"PROFILE": profile, "RECIPE": recipe, "SEED": seed, **more}
    for path in [[str(code / f"notebooks/{name}.py")] for name in names] or [[]]:
        subprocess.run([sys.executable, str(code / "notebooks/build.py"), "run", *path, "--cwd", str(folder.parent),
                        *(f"--set={name}={value!r}" for name, value in values.items())], check=True,
                       env={**os.environ, "REASONKIT_ARTIFACTS": str(folder), "PYTHONPATH": str(code)})


def prepare(out: Path, profile: str, seed: int) -> None:
    """Data and SFT of a seed, once, copied into the folder of each recipe."""
    folders = [out / f"{recipe}-{seed}/artifacts" for recipe in RECIPES]
    if all((folder / "checkpoints").exists() for folder in folders):
        return
    notebooks(folders[0], profile, JUDGED, seed, "01_data_curation", "02_sft_warm_start")
    for folder in folders[1:]:
        for name in ("data", "sft", "copied"):  # the last one tells that all is there
            shutil.copytree(folders[0] / name.replace("copied", "checkpoints"), folder / name, dirs_exist_ok=True)
        (folder / "copied").rename(folder / "checkpoints")


def run(out: Path, profile: str, recipe: str, seed: int) -> None:
    """GRPO and evaluation of a recipe, unless its report is there."""
    folder = out / f"{recipe}-{seed}/artifacts"
    if not (folder / "report.html").exists():
        notebooks(folder, profile, recipe, seed, "03_grpo_with_judge", "04_evaluation")


def table(out: Path, seeds: list[int]) -> str:
    """A row per seed and stage, then the paired comparisons; rates and steps in per cent with 95 % intervals. What was
    not run is left out.
    """
    lines = ["| seed | stage | n | content accuracy | accuracy | format rate | step accuracy |",
             "|---|---|---|---|---|---|---|"]
    compared = ["| seed | comparison, paired | content accuracy | step accuracy |", "|---|---|---|---|"]
    for seed in seeds:
        of = {recipe: out / f"{recipe}-{seed}/artifacts/evaluation" for recipe in RECIPES}
        results = {"base model": of[JUDGED] / "base_model.json", "SFT": of[JUDGED] / "after_sft.json",
                   **{recipe: of[recipe] / "after_grpo.json" for recipe in reversed(RECIPES)}}
        results = {name: EvalResult.from_json(path) for name, path in results.items() if path.exists()}
        lines += [f"| {seed} | {STAGES.get(name, name)} | {r.n} | {r.content_accuracy} | {r.accuracy} | "
                  f"{r.format_rate} | {r.step_accuracy} |" for name, r in results.items()]
        for a, b in (("SFT", CONSTANT), ("SFT", SHUFFLED), (SHUFFLED, PLAIN), (SHUFFLED, JUDGED), ("SFT", JUDGED),
                     ("base model", JUDGED), (PLAIN, JUDGED)):
            if a in results and b in results:
                content, steps = (compare_paired(results[a], results[b], measure) for measure in ("content", "steps"))
                compared.append(f"| {seed} | `{b}` against {f'`{a}`' if a in RECIPES else a} | {content} | {steps} |")
    return "\n".join([*lines, "", *compared])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "benchmark")
    options = parser.parse_args()
    for seed in options.seeds:
        prepare(options.out.resolve(), options.profile, seed)
    for recipe in RECIPES:
        for seed in options.seeds:
            run(options.out.resolve(), options.profile, recipe, seed)
    print(table(options.out.resolve(), options.seeds))


if __name__ == "__main__":
    main()
