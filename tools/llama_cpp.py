"""GGUF for llama.cpp and Ollama: `to_gguf` runs llama.cpp's own converter on a merged model, `find_converter` finds it.

The converter needs PyTorch and transformers (the extra `parity`) in this environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from reasonkit.session.files import replace_file, write_atomic
from reasonkit.text.tags import STOP_MARKERS, TAGS
from tools.hf.config import read_json
from tools.hf.export import NEW_TOKENS

CONVERTER = "convert_hf_to_gguf.py"
ABSENT = (f"no GGUF: llama.cpp's {CONVERTER} is not on the PATH. Clone github.com/ggml-org/llama.cpp and name its "
          "folder")
_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # by config.json's torch_dtype
_CONTEXT = 2 * NEW_TOKENS


def find_converter(clone: str | Path | None = None) -> Path | None:
    """The converter in a clone of llama.cpp, else on the PATH. None if it is not there.

    Raises FileNotFoundError if a given `clone` does not have it.
    """
    if clone:
        if not (found := Path(clone) / CONVERTER).is_file():
            raise FileNotFoundError(f"{clone} holds no {CONVERTER}: give the folder of a clone of llama.cpp")
        return found
    found = shutil.which(CONVERTER)
    return Path(found) if found else None


def modelfile() -> str:
    """An Ollama Modelfile: our prompt, byte for byte, its stop token, and greedy decoding as in the evaluation."""
    head, tail = TAGS.prompt("{question}").split("{question}")
    prompt = f"{head}{{{{ if .System }}}}{{{{ .System }}}}\n\n{{{{ end }}}}{{{{ .Prompt }}}}{tail}"
    parameters = {"stop": STOP_MARKERS[0], "temperature": 0, "top_k": 1, "num_predict": NEW_TOKENS,
                  "num_ctx": _CONTEXT}
    lines = [f"PARAMETER {name} {value}\n" for name, value in parameters.items()]
    return f'FROM ./model.gguf\nTEMPLATE """{prompt}"""\n' + "".join(lines)


def to_gguf(folder: Path, converter: Path) -> Path:
    """Add model.gguf, in the precision of the weights, and Modelfile to a folder made by `tools.hf.export`.

    If the converter fails, there is no model.gguf. Raises RuntimeError with the end of its error output.
    """
    kind = _TYPES[read_json(folder / "config.json")["torch_dtype"]]
    with replace_file(folder / "model.gguf") as made:
        done = subprocess.run([sys.executable, str(converter), str(folder), "--outfile", str(made), "--outtype", kind],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{converter} failed on {folder}; it needs the extra `parity`:\n{done.stderr[-2000:]}")
        write_atomic(folder / "Modelfile", modelfile())
    return folder / "model.gguf"
