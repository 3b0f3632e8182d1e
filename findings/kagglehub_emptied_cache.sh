#!/usr/bin/env bash
# A cached model whose files were deleted is returned as an empty folder, and is not downloaded again.
#
# Guess:     `kagglehub.model_download` looks whether the files are there, so that deleting them fetches them anew.
# Versions:  kagglehub 1.0.2.
# Behaviour: it looks for a marker beside the version's folder, `<version>.complete`, alone. To free the disk or to mend a
#            broken download by emptying the folder changes nothing until the marker is deleted too, or
#            force_download=True is passed. No network is asked, so no error tells of it.
# Output:    the folder that was returned holds []
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kagglehub==1.0.2
HOME="$folder" KAGGLEHUB_CACHE="$folder/cache" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os
from pathlib import Path

import kagglehub

handle = "google/gemma-3/flax/gemma3-1b-it/1"
version = Path(os.environ["KAGGLEHUB_CACHE"], "models", handle)
version.mkdir(parents=True)
version.with_name("1.complete").touch()  # what a whole download leaves
found = os.listdir(kagglehub.model_download(handle))
print("the folder that was returned holds", found)
assert found == []
PYTHON
