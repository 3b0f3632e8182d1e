"""SFT and GRPO steps per hour in the demo, now and at an earlier commit: `python benchmarks/steps_per_hour.py`.

Notebooks 01 to 03 run in the profile `cpu`, both sides in turn, each in an empty folder. The earlier side is a clone of
this repository, which needs its history. A stage's time is the median of its steps, without the first one, which
compiles. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from statistics import median

from checkout import ROOT
from demo import notebooks

EARLIER = "21db12f"  # 2026-11-27, before the rollout and the losses were made faster


def run(code: Path, folder: Path) -> dict[str, list[float]]:
    """The seconds of each step, by stage, of the notebooks of the project in `code`."""
    notebooks(folder, "cpu", "g_rar", 0, "01_data_curation", "02_sft_warm_start", "03_grpo_with_judge", code=code)
    steps = {}
    for stage in ("sft", "grpo"):
        rows = map(json.loads, (folder / f"{stage}/log.jsonl").read_text().splitlines())
        steps[stage] = [row["seconds"] for row in rows if row["event"] == f"{stage}_step"][1:]
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default=EARLIER)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        clone, seconds = Path(place) / "earlier", {"now": {"sft": [], "grpo": []}, "then": {"sft": [], "grpo": []}}
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "-C", str(clone), "checkout", "-q", options.commit], check=True)
        for number in range(options.rounds):
            for side, code in (("then", clone), ("now", ROOT)):
                for stage, steps in run(code, Path(place) / f"{side}-{number}/artifacts").items():
                    seconds[side][stage].append(median(steps))
    print(f"| stage | steps per hour at {options.commit} | now | ratio by round |\n|---|---|---|---|")
    for stage, then in seconds["then"].items():
        now = seconds["now"][stage]
        ratios = ", ".join(f"{old / new:.2f}" for old, new in zip(then, now, strict=True))
        print(f"| {stage.upper()} | {3600 / median(then):,.0f} | {3600 / median(now):,.0f} | {ratios} |")


if __name__ == "__main__":
    main()
