"""Converts Hugging Face's files of a Gemma 2 or 3 to a Flax folder for reasonkit: `python -m tools.hf FOLDER OUT`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from reasonkit.models.load import Tokenizer
from tools.flax import write_flax
from tools.hf.config import read_json
from tools.hf.weights import read_arrays


def convert(folder: Path, out: Path) -> Path:
    """Write `out`, a new or empty folder. All arrays are in memory at once. Raises as `read_arrays` and `Tokenizer`."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: give a new folder")
    family, config, arrays = read_arrays(folder)
    tokenizer, settings = Tokenizer(folder / "tokenizer.model", family), read_json(folder / "config.json")
    positions = (settings | settings.get("text_config", {})).get("max_position_embeddings")
    return write_flax(family, config, arrays, tokenizer.path, out, "model",
                      model_type=settings["model_type"], max_position_embeddings=positions)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.hf", description=__doc__)
    parser.add_argument("folder", type=Path, help="with config.json, *.safetensors and tokenizer.model")
    parser.add_argument("out", type=Path, help="a new folder, for `load` or a profile's policy or judge")
    options = parser.parse_args(arguments)
    try:
        print(f"{convert(options.folder, options.out)} is ready to load")
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
