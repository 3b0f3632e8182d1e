#!/usr/bin/env bash
# Installed beside protobuf 5.29, which the images of Kaggle and Colab have, Tunix can't be imported.
#
# Guess:     pip ends well only if the packages fit each other, so after `pip install google-tunix` in a notebook whose
#            image has protobuf 5.29.5, `import tunix` works, or pip has replaced protobuf.
# Versions:  google-tunix 0.1.7, perfetto 0.59.1 and 0.16.0, protobuf 5.29.5, googleapis-common-protos 1.75.0 (a newer one
#            makes pip replace protobuf), sentencepiece 0.2.3 and 0.2.2, jax 0.10.2, flax 0.12.8, qwix 0.1.8, Python 3.12.
# Behaviour: google-tunix asks for perfetto in any version, and perfetto for protobuf in any version. So pip takes the
#            newest perfetto and leaves protobuf, and `pip check` finds nothing wrong. But perfetto's generated file was
#            made with protobuf 6.31.1 and refuses an older one when it is imported, which `import tunix.generate.sampler`
#            does. With perfetto 0.16.0 it works. sentencepiece 0.2.3 does the same with its sentencepiece_model_pb2,
#            which was made with protobuf 7.36.1. 0.2.2 has no such check.
# Output:    pip check: No broken requirements found.
#            perfetto 0.59.1: VersionError, gencode 6.31.1 runtime 5.29.5
#            sentencepiece 0.2.3: VersionError, gencode 7.36.1 runtime 5.29.5
#            perfetto 0.16.0: imported
#            sentencepiece 0.2.2: imported
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install protobuf==5.29.5 googleapis-common-protos==1.75.0
"${pip[@]}" install google-tunix==0.1.7 jax==0.10.2 flax==0.12.8 qwix==0.1.8 perfetto==0.59.1 sentencepiece==0.2.3
cd "$folder"
export HOME="$folder" JAX_PLATFORMS=cpu

imported() {
  venv/bin/python - "$1" <<'PYTHON'
import importlib
import re
import sys
import warnings

warnings.simplefilter("ignore")
try:
    importlib.import_module(sys.argv[1])
    print("imported")
except Exception as error:
    print(f"{type(error).__name__}, {re.search('gencode .* runtime [0-9.]+[0-9]', str(error))[0]}")
PYTHON
}

check=$(venv/bin/pip --disable-pip-version-check check)
new_perfetto=$(imported tunix.generate.sampler)
new_pieces=$(imported sentencepiece.sentencepiece_model_pb2)
"${pip[@]}" install perfetto==0.16.0 sentencepiece==0.2.2
old_perfetto=$(imported tunix.generate.sampler)
old_pieces=$(imported sentencepiece.sentencepiece_model_pb2)
echo "pip check: $check"
echo "perfetto 0.59.1: $new_perfetto"
echo "sentencepiece 0.2.3: $new_pieces"
echo "perfetto 0.16.0: $old_perfetto"
echo "sentencepiece 0.2.2: $old_pieces"
[[ $check == "No broken requirements found." ]]
[[ $new_perfetto == "VersionError, gencode 6.31.1 runtime 5.29.5" ]]
[[ $new_pieces == "VersionError, gencode 7.36.1 runtime 5.29.5" ]]
[[ $old_perfetto == imported && $old_pieces == imported ]]
