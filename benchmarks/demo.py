"""The demo over seeds, with and without the judge's vote, as one table: `python benchmarks/demo.py --seeds 0 1 2`.

For each seed, notebooks 01 and 02 run once; 03 and 04 then run twice from the same adapter, with recipe g_rar (the
rubric counts) and g_exact (the rubric is scored and logged, weight 0). The comparisons are paired.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from reasonkit.evaluate import EvalResult, paired  # noqa: E402
from reasonkit.recipes import RECIPES  # noqa: E402

WITH, WITHOUT = "g_rar", "g_exact"


def notebooks(names: list[str], folder: Path, profile: str, recipe: str, seed: int) -> None:
    for name in names:
        subprocess.run([sys.executable, str(ROOT / "notebooks/build.py"), "run", str(ROOT / f"notebooks/{name}.py"),
                        "--cwd", str(folder.parent), "--set", f"PROFILE={profile}", "--set", f"RECIPE={recipe}",
                        "--set", f"SEED={seed}"], check=True,
                       env={**os.environ, "REASONKIT_ARTIFACTS": str(folder), "PYTHONPATH": str(ROOT)})


def run_seed(out: Path, profile: str, seed: int) -> None:
    """Both recipes of one seed from one SFT; a folder that has its report already is kept."""
    judged, plain = out / f"{WITH}-{seed}/artifacts", out / f"{WITHOUT}-{seed}/artifacts"
    for folder in (judged, plain):
        folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    notebooks(["01_data_curation", "02_sft_warm_start"], judged, profile, WITH, seed)
    for name in ("data", "sft", "checkpoints"):
        if not (plain / name).exists():
            shutil.copytree(judged / name, plain / name)
    notebooks(["03_grpo_with_judge", "04_evaluation"], judged, profile, WITH, seed)
    (judged / "minutes").write_text(f"{(time.time() - began) / 60:.1f}")
    notebooks(["03_grpo_with_judge", "04_evaluation"], plain, profile, WITHOUT, seed)


def table(out: Path, seeds: list[int]) -> str:
    """A row a seed and stage, then the paired comparisons; rates and steps in per cent with 95 % intervals."""
    lines = ["| seed | stage | n | accuracy | form | steps |", "|---|---|---|---|---|---|"]
    compared = ["| seed | comparison | accuracy | steps |", "|---|---|---|---|"]
    for seed in seeds:
        folders = {recipe: out / f"{recipe}-{seed}/artifacts/evaluation" for recipe in (WITH, WITHOUT)}
        stages = {"stock": folders[WITH] / "stock.json", "after SFT": folders[WITH] / "after_sft.json",
                  **{f"after GRPO, rubric weight {RECIPES[recipe].rewards['rubric']:g}":
                     folders[recipe] / "after_grpo.json" for recipe in (WITHOUT, WITH)}}
        results = {name: EvalResult.from_json(path) for name, path in stages.items()}
        lines += [f"| {seed} | {name} | {r.n} | {r.accuracy} | {r.format_rate} | {r.step_accuracy} |"
                  for name, r in results.items()]
        _, sft, plain, judged = results.values()
        for name, a, b in (("GRPO with the rubric against SFT", sft, judged),
                           ("GRPO without it against SFT", sft, plain),
                           ("with the rubric against without", plain, judged)):
            compared.append(f"| {seed} | {name} | {paired(a, b)} | {paired(a, b, 'steps')} |")
    return "\n".join([*lines, "", *compared])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "benchmark")
    options = parser.parse_args()
    for seed in options.seeds:
        run_seed(options.out.resolve(), options.profile, seed)
    print(table(options.out.resolve(), options.seeds))


if __name__ == "__main__":
    main()
