"""A run's content accuracy by domain, or by task, and what guessing would earn.

    python benchmarks/by_domain.py [artifacts [task]]

A guess takes one of the options, or yes or no. Of other questions it gets none right.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from checkout import ROOT

from reasonkit.data.rows import read_rows
from reasonkit.eval.evaluate import EvalResult

OPTION = re.compile(r"^\([A-J]\) ", re.MULTILINE)


def guess(row: dict) -> float:
    """The chance that a guess is right."""
    return {"choice": 1 / max(1, len(OPTION.findall(row["question"]))), "yes_no": 0.5}.get(row["kind"], 0.0)


def main(artifacts: Path, column: str) -> None:
    rows = {row["id"]: row for row in read_rows(artifacts / "data" / "test.parquet")}
    paths = sorted((artifacts / "evaluation").glob("*.json"), key=lambda path: path.stat().st_mtime)
    results = {path.stem.replace("_", " "): EvalResult.from_json(path) for path in paths
               if path.stem.startswith(("base_model", "after_"))}
    print(f"| {column} | n | by a guess | {' | '.join(results)} |\n|{'---|' * (3 + len(results))}")
    for value in [*sorted({row[column] for row in rows.values()}), "all"]:
        inside = [row for row in rows.values() if value in (row[column], "all")]
        parts = [EvalResult([sample for sample in result.samples if value in (rows[sample["id"]][column], "all")])
                 for result in results.values()]
        print(f"| {value} | {len(inside)} | {sum(map(guess, inside)) / len(inside):.1%} | "
              f"{' | '.join(str(part.content_accuracy) for part in parts)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="?", type=Path, default=ROOT / "artifacts")
    parser.add_argument("column", nargs="?", choices=("domain", "task"), default="domain")
    main(**vars(parser.parse_args()))
