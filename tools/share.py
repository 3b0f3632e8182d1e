"""Exports a trained model for others: `share` and `share_flax`, for notebook 4 and as a command on a finished run.

    python -m tools.share            # artifacts/export/peft: the adapter, for PEFT
    python -m tools.share --merged   # also export/hf: the whole model, for transformers, vLLM, llama.cpp and Ollama
    python -m tools.share --flax     # only export/flax: the whole model as Kaggle has it. --kaggle HANDLE uploads it

Each folder has a model card with code that asks the model. GGUF comes from llama.cpp's own converter, which needs
PyTorch and transformers (the extra `parity`) in this environment.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonkit.models.load import LoadedModel
from reasonkit.models.lora import fingerprint
from reasonkit.run import Run
from reasonkit.session.files import replace_file, write_atomic
from reasonkit.text.tags import STOP_MARKERS, TAGS
from tools.card import write_card
from tools.data_card import CARD
from tools.export import NEW_TOKENS, base_name, export_flax, export_hf, export_peft, write_chat
from tools.export_check import verify_export
from tools.hf.config import read_json
from tools.publish import publish_kaggle
from tools.trained import load_trained

CONVERTER = "convert_hf_to_gguf.py"


def share(policy: LoadedModel, manifests: Sequence[Mapping[str, Any]], folder: Path, merged: bool = False,
          llama_cpp: Path | None = None) -> None:
    """Write `folder`/peft and, with `merged`, `folder`/hf, and print where they are. `folder` is in the run's folder.

    llama_cpp: a clone of llama.cpp, if its converter is not on the PATH. Raises as `export_peft`, `export_hf`,
    `to_gguf`, `find_converter` and `write_card` do.
    """
    about = manifests, base_name(policy), folder.parent / "data" / CARD
    peft, hf = folder / "peft", folder / "hf"
    converter = find_converter(llama_cpp)
    write_chat(policy.tokenizer, export_peft(policy, peft))
    print(f"adapter: {write_card(peft, *about).parent}")
    if merged:
        export_hf(policy, hf)
        for earlier in ("model.gguf", "Modelfile"):  # of another adapter
            (hf / earlier).unlink(missing_ok=True)
        print(f"for llama.cpp and Ollama: {to_gguf(hf, converter)}" if converter else
              f"no GGUF: llama.cpp's {CONVERTER} is not on the PATH. Clone github.com/ggml-org/llama.cpp and name "
              "its folder")
        print(f"whole model: {write_card(hf, *about).parent}")


def share_flax(run: Run, policy: LoadedModel, manifests: Sequence[Mapping[str, Any]],
               samples: Sequence[tuple[str, str]] = (), handle: str = "") -> Path:
    """Write export/flax in the run's folder, check it as the competition's judges load it, and upload it if there is a
    `handle`. `samples` are questions and completions, which it must repeat. Returns the folder.

    Raises as `export_flax`, `verify_export`, `write_card` and `publish_kaggle` do.
    """
    profile, last = run.profile, run.recipe.training_stages[-1]
    flax = export_flax(policy, run.folder / "export" / "flax", run.manifest(last)["extra"]["checkpoint_step"])
    print(verify_export(flax, fingerprint(policy.model), samples, model=str(policy.folder), dtype=profile.dtype,
                        rank=profile.lora_rank, alpha=profile.lora_alpha,
                        max_prompt_length=profile.grpo.max_prompt_length, max_new_tokens=profile.grpo.max_new_tokens))
    print(f"for Kaggle's models: {write_card(flax, manifests, base_name(policy), run.stage('data') / CARD).parent}")
    if handle:
        print(publish_kaggle(flax, handle))
    return flax


def find_converter(clone: str | Path | None = None) -> Path | None:
    """The converter in the clone, else on the PATH, or None. Raises FileNotFoundError if a given clone lacks it."""
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
                  "num_ctx": 2 * NEW_TOKENS}
    lines = "".join(f"PARAMETER {name} {value}\n" for name, value in parameters.items())
    return f'FROM ./model.gguf\nTEMPLATE """{prompt}"""\n{lines}'


def to_gguf(folder: Path, converter: Path) -> Path:
    """Add Modelfile and model.gguf, as precise as the weights, to an `export_hf`. Raises RuntimeError if that fails."""
    kind = read_json(folder / "config.json")["torch_dtype"].replace("float", "f")  # f32, bf16, f16
    with replace_file(folder / "model.gguf") as made:
        done = subprocess.run([sys.executable, str(converter), str(folder), "--outfile", str(made), "--outtype", kind],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{converter} failed on {folder}; it needs the extra `parity`:\n{done.stderr[-2000:]}")
        write_atomic(folder / "Modelfile", modelfile())
    return folder / "model.gguf"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.share", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("artifacts"), help="a run's folder of artifacts")
    parser.add_argument("--merged", action="store_true", help="the whole model too")
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="a clone of llama.cpp, for GGUF")
    parser.add_argument("--flax", action="store_true", help="only the whole model as Kaggle's Flax models are")
    parser.add_argument("--kaggle", metavar="HANDLE", default="", help="upload it, to you/MODEL/flax/VARIATION")
    options = parser.parse_args(arguments)
    try:
        run, policy, _, manifests = load_trained(options.folder)
        if options.flax or options.kaggle:
            share_flax(run, policy, manifests, handle=options.kaggle)
        else:
            share(policy, manifests, run.folder / "export", options.merged, options.llama_cpp)
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
