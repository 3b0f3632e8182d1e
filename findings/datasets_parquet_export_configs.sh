#!/usr/bin/env bash
# `datasets` knows no configs in the layout of the hub's Parquet export: a config's name raises, and no name mixes them.
#
# Guess:     the hub's branch refs/convert/parquet has a folder per config, <config>/<split>/0000.parquet. So
#            `load_dataset(id, "full", revision="refs/convert/parquet")` reads the folder "full", and without a name the
#            call raises and lists the configs, as it does for the data set's own branch.
# Versions:  datasets 5.2.0, pyarrow 26.0.1. The layout is built locally here.
# Behaviour: configs come only from the card, README.md, and that branch has none. There is one config, "default", with
#            the files of all folders. A name raises. Without one, the rows of all configs come as one split: a set with
#            folds gives each row several times. If their columns differ, it raises in the middle of the stream.
#            `data_dir` with the folder's name gives the config.
# Output:    name="all": ValueError: BuilderConfig 'all' not found. Available: ['default']
#            no name: 9 rows of 3 different ones
#            data_dir="all": 3 rows of 3 different ones
#            no name, other columns: 3 rows, then CastError
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
cd "$folder"
HOME="$folder" HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import load_dataset

ROWS = [{"question": f"{n}?", "answer": str(n)} for n in range(3)]


def export(name, **configs):
    """The layout of the branch refs/convert/parquet. Returns its folder."""
    for config, rows in configs.items():
        path = Path(name, config, "train", "0000.parquet")
        path.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return name


def read(*arguments, **more):
    return list(load_dataset(*arguments, split="train", streaming=True, **more))


def told(rows):
    return f"{len(rows)} rows of {len({row['question'] for row in rows})} different ones"


folds = export("folds", all=ROWS, fold_1=ROWS, fold_2=ROWS)
try:
    named = told(read(folds, "all"))
except ValueError as error:
    named = f"{type(error).__name__}: {error}"
mixed, chosen = told(read(folds)), told(read(folds, data_dir="all"))
other, ended = [], "the end"
try:
    for row in load_dataset(export("other", full=ROWS, norms=[{"norm": "?"}]), split="train", streaming=True):
        other.append(row)
except Exception as error:  # what it raises is printed
    ended = type(error).__name__
broken = f"{len(other)} rows, then {ended}"
print(f'name="all": {named}\nno name: {mixed}\ndata_dir="all": {chosen}\nno name, other columns: {broken}')
assert named == "ValueError: BuilderConfig 'all' not found. Available: ['default']", named
assert (mixed, chosen) == ("9 rows of 3 different ones", "3 rows of 3 different ones"), (mixed, chosen)
assert broken == "3 rows, then CastError", broken
PYTHON
