#!/usr/bin/env bash
# kagglehub returns a cached model as an empty folder after its files were deleted, and does not download it again.
#
# Guess:     `kagglehub.model_download` checks that the files exist, so deleting them triggers a new download.
# Versions:  kagglehub 1.0.2.
# Behaviour: it only checks for a marker next to the version's folder, `<version>.complete`. Emptying the folder to free
#            disk space or to repair a broken download changes nothing until the marker is deleted too, or
#            force_download=True is passed. No network call is made, so no error appears.
# Output:    the folder that was returned holds []
# Fails when the behaviour changes.
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
version.with_name("1.complete").touch()  # as after a complete download
found = os.listdir(kagglehub.model_download(handle))
print("the folder that was returned holds", found)
assert found == []
PYTHON
