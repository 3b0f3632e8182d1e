"""Exports a trained model for others to use: `share`, for notebook 4 and as a command on a finished run.

    python -m tools.share            # artifacts/export/peft: the adapter, for PEFT
    python -m tools.share --merged   # also export/hf: the whole model, for transformers, vLLM, llama.cpp and Ollama

Each folder has a model card with code that asks the model. GGUF needs llama.cpp's converter (`tools.llama_cpp`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonkit.models.load import LoadedModel
from reasonkit.show.data_card import CARD
from tools.card import write_card
from tools.export import base_name, export_peft
from tools.hf.export import export_hf, write_chat
from tools.llama_cpp import ABSENT, find_converter, to_gguf
from tools.trained import load_trained


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
        print(f"for llama.cpp and Ollama: {to_gguf(hf, converter)}" if converter else ABSENT)
        print(f"whole model: {write_card(hf, *about).parent}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.share", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("artifacts"), help="a run's folder of artifacts")
    parser.add_argument("--merged", action="store_true", help="the whole model too")
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="a clone of llama.cpp, for GGUF")
    options = parser.parse_args(arguments)
    try:
        trained = load_trained(options.folder)
        share(trained.policy, trained.manifests, trained.run.folder / "export", options.merged, options.llama_cpp)
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
