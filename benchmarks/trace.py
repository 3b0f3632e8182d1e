"""Where the time of a GRPO step goes: `python benchmarks/trace.py` traces steps of the demo with JAX's profiler.

While no thread of XLA runs anything, the devices wait for the host. Each such gap is put down to the innermost function
of `reasonkit`, `recipes` or `tunix` that Python was in. The Python tracer slows the host, so gaps are upper bounds.
Notebooks 01 and 02 make the adapter, unless `--artifacts` has them.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from checkout import ROOT
from demo import notebooks

FRAME = re.compile(r"\$(\w+\.py):\d+ ")  # as the tracer names them
WARM = 3  # steps before the trace, in which programs compile


def merge(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of intervals, in order."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def read(folder: Path) -> tuple[float, float, Counter[str]]:
    """Of the trace in `folder`: its milliseconds, those in which XLA runs something, and the gaps by function."""
    import tunix
    from jax.profiler import ProfileData

    (path,) = folder.rglob("*.xplane.pb")
    homes = [ROOT / "reasonkit", ROOT / "recipes", *map(Path, tunix.__path__)]
    ours = {path.name for home in homes for path in home.rglob("*.py")} - {"__init__.py"}
    busy, frames = [], []
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            spans = [(event.start_ns / 1e6, (event.start_ns + event.duration_ns) / 1e6, event.name)
                     for event in line.events if event.duration_ns]
            if line.name.startswith(("tf_XLA", "XLA Ops")):
                busy += [span[:2] for span in spans]
            elif "python" in line.name.lower():
                frames += [span for span in spans if (at := FRAME.match(span[2])) and at[1] in ours]
    busy = merge(busy)
    total, gaps = busy[-1][1] - busy[0][0], Counter[str]()
    for (_, begin), (end, _) in zip(busy, busy[1:], strict=False):
        if end - begin < 0.05:
            continue
        middle = (begin + end) / 2
        inside = [frame for frame in frames if frame[0] <= middle <= frame[1]]
        gaps[max(inside)[2] if inside else "elsewhere"] += end - begin  # the one that began last
    return total, sum(end - begin for begin, end in busy), gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts/trace/artifacts")
    parser.add_argument("--steps", type=int, default=2, help="that are traced")
    options = parser.parse_args()
    artifacts = options.artifacts.resolve()
    if not (artifacts / "sft/adapter").exists():
        notebooks(artifacts, "cpu", "g_exact", 0, "01_data_curation", "02_sft_warm_start")
    import jax

    from reasonkit.data.rows import read_rows
    from reasonkit.models import placement
    from reasonkit.rewards.mix import RewardMix
    from reasonkit.rewards.rules import exact_answer, gate, tag_format
    from reasonkit.run import read_run
    from reasonkit.session.run_log import RunLog
    from reasonkit.session.time_budget import TimeBudget
    from reasonkit.train.grpo import grpo

    run = read_run(artifacts)
    settings = replace(run.profile.grpo, steps=WARM + options.steps + 1)
    made = placement.plan(run.profile, jax.devices(), judge=False, grpo=True)
    policy, start = placement.load_policy(run.profile, made, 0, artifacts / "sft/adapter")
    with TemporaryDirectory() as folder:
        log, traced, begun = RunLog(Path(folder) / "log.jsonl"), Path(folder) / "trace", []

        def on_step() -> None:
            begun.append(time.perf_counter())
            if len(begun) == WARM:
                levels = jax.profiler.ProfileOptions()
                levels.python_tracer_level = 1
                jax.profiler.start_trace(str(traced), profiler_options=levels)
            elif len(begun) == WARM + options.steps:
                jax.profiler.stop_trace()

        grpo(policy, made.policy, read_rows(artifacts / "data/train.parquet"),
             RewardMix([(tag_format, 1.0), (gate(exact_answer, tag_format), 1.0)], log), settings, TimeBudget(24, 0),
             log, Path(folder) / "checkpoints", 0, start, on_step)
        total, busy, gaps = read(traced)
    print(f"{options.steps} steps of {settings.prompts_per_step} x {settings.num_generations} completions on "
          f"{len(jax.devices())} devices: {total / 1e3:.2f} s, of which XLA runs {busy / total:.1%}\n\n"
          "| gap | ms per step | share |\n|---|---|---|")
    for name, size in gaps.most_common(12):
        print(f"| `{name.removeprefix('$')}` | {size / options.steps:.1f} | {size / total:.2%} |")


if __name__ == "__main__":
    main()
