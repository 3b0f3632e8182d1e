#!/usr/bin/env bash
# One bare number in a JSONL column makes `datasets` parse every quoted string of that column.
#
# Guess:     an answer column of strings with one bare number either raises, as Arrow does for mixed types, or reads the
#            number as the string "7". The quoted answers stay as they were written.
# Versions:  datasets 5.2.0, pyarrow 26.0.1.
# Behaviour: `load_dataset("json")` gives the column the feature Json, which decodes each value again. So "007" becomes
#            the number 7, "1.10" becomes 1.1, "[1, 2]" a list, and "null" is missing. Words stay strings. Without the
#            bare number the column is a string column, and nothing changes. No warning is given. Gold answers of
#            question sets are such columns: one unquoted number changes the others.
# Output:    with a bare number: Json, [7, 1.1, [1, 2], None, 'Paris', 7]
#            all quoted: Value, ['007', '1.10', '[1, 2]', 'null', 'Paris', '7']
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
cd "$folder"
HOME="$folder" HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

import datasets

datasets.disable_progress_bars()
quoted = ["007", "1.10", "[1, 2]", "null", "Paris"]


def read(name, answers):
    Path(name).write_text("".join(json.dumps({"question": "?", "answer": answer}) + "\n" for answer in answers))
    rows = datasets.load_dataset("json", data_files=name, split="train")
    return type(rows.features["answer"]).__name__, list(rows["answer"])


mixed, strings = read("mixed.jsonl", [*quoted, 7]), read("strings.jsonl", [*quoted, "7"])
print(f"with a bare number: {mixed[0]}, {mixed[1]}\nall quoted: {strings[0]}, {strings[1]}")
assert mixed == ("Json", [7, 1.1, [1, 2], None, "Paris", 7]), mixed
assert strings == ("Value", [*quoted, "7"]), strings
PYTHON
