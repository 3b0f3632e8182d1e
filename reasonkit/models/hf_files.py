"""What lies in a model's folder, looked at before anything of it is loaded.

`stored_in` says where in which file each tensor is; `file_size`, `read_json` and `check_finite` serve every layout.
Departs from safetensors' own reader, which maps the whole file, refuses without the tensor's name, and waits at a pipe.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
JSON_BYTES = 10_000_000  # the index of Gemma's largest has a hundredth
_FILE = re.compile(r"[\w.-]{1,200}\.safetensors")  # of the folder itself
_AXES = 8  # at most: a matrix has two, a convolution of the vision tower four
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
# Names of Gemma3ForCausalLM, of Gemma3ForConditionalGeneration before transformers 4.52, and of it since.
_PREFIX = re.compile(r"(language_model\.model|model\.language_model|model)\.(?=embed_tokens|layers|norm)")
_UNUSED = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.|(.*\.)?rotary_emb\.")


def again(path: Path) -> str:
    """How to have a model's file or folder downloaded once more: kagglehub does not while its marker is beside it."""
    for folder in (path, *path.parents):
        if (marker := folder.parent / f"{folder.name}.complete").is_file():
            return f"delete {folder} and {marker}, then run this again to download the model once more"
    return "download the model again"


def file_size(file: Path, most: int | None = None) -> int:
    """The bytes of a model's file. A pipe in its place would be waited for, and a device read, without end.

    Raises FileNotFoundError where there is nothing, or a link to nothing; ValueError for what is no file, or has more
    than `most` bytes.
    """
    try:
        found = file.stat()
    except OSError as error:
        raise FileNotFoundError(f"{file} does not exist{' (a link to nothing)' * file.is_symlink()}: a model's folder "
                                f"needs its {file.name}, {again(file.parent)}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{file} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'a device')}, and must be a file: "
                         f"{again(file)}")
    if most is not None and found.st_size > most:
        raise ValueError(f"{file} has {found.st_size} bytes, and such a file has at most {most}: {again(file)}")
    return found.st_size


def check_files(folder: Path) -> None:
    """Raises as `file_size` for what is neither folder nor file, at any depth: whoever reads a pipe waits for ever."""
    for path in folder.rglob("*"):
        if not path.is_dir():
            file_size(path)


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`. Raises ValueError for anything else, also for one that is nested without end."""
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError) as error:  # of the text's encoding, too
        raise ValueError(f"is no JSON, or only its start ({error})") from error
    if not isinstance(found, dict):
        raise ValueError("holds no JSON object")
    return found


def read_json(file: Path) -> dict[str, Any]:
    """The object in one of a model's JSON files. Raises as `file_size`, and ValueError when there is none."""
    file_size(file, JSON_BYTES)
    try:
        return json_object(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} {error}: {again(file)}") from error


def check_finite(value: np.ndarray, name: str, mend: str) -> None:
    """Raises ValueError when an array of floats holds an infinity or NaN.

    By bits, twenty times faster than `np.isfinite` on bfloat16: read as whole numbers, floats of one sign are in order
    (IEEE 754), and infinity, then NaN, are above all others.
    """
    size, infinity = value.dtype.itemsize, np.array([np.inf, -np.inf], value.dtype)
    for kind, bits in zip(("i", "u"), (infinity.view(f"i{size}")[0], infinity.view(f"u{size}")[1]), strict=True):
        if value.view(f"{kind}{size}").max(initial=0) >= bits:
            raise ValueError(f"{name} holds infinities or NaN: {mend}")


class Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    dtype: Any
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """Into memory of its own: pages of a mapped file would count as the process's until the file is let go."""
        width = np.dtype(self.dtype).itemsize
        raw = np.fromfile(self.file, np.uint8, math.prod(self.shape) * width, offset=self.start)
        return raw.view(self.dtype).reshape(self.shape)


def _header(file: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Of each tensor of a file: dtype, shape and the byte where it starts. Nothing but the header is read.

    Raises ValueError for a file that is cut short, no safetensors file, or whose tensors overlap, leave gaps or have
    other bytes than their shapes say; as `file_size`, too. https://huggingface.co/docs/safetensors has the format.
    """
    size = file_size(file)
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 8 < length + 8 <= size:
            raise ValueError(f"{file} ({size} bytes) is no safetensors file, or only its start: {again(file)}")
        if length > JSON_BYTES:
            raise ValueError(f"{file} has a header of {length} bytes, and {JSON_BYTES} are enough: {again(file)}")
        try:
            header = json_object(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file} has no safetensors header (it {error}): {again(file)}") from error
    found, end = {}, 8 + length
    header.pop("__metadata__", None)
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, stop]} if len(shape) <= _AXES and all(
                    type(number) is int and 0 <= number < 2**63 for number in (*shape, start, stop)):
                found[name] = dtype, tuple(shape), 8 + length + start, stop - start
            case _:
                raise ValueError(f"{file}: {name} is {str(entry)[:200]}, and must have a dtype, a shape of at most "
                                 f"{_AXES} whole numbers and two data_offsets, none below 0: {again(file)}")
    for name, (dtype, shape, start, held) in sorted(found.items(), key=lambda item: item[1][2:]):
        if start != end:
            raise ValueError(f"{file}: {name} starts at byte {start}, and what is before it ends at {end}: "
                             f"{again(file)}")
        if dtype in DTYPES and held != (needed := math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize):
            raise ValueError(f"{file}: {name} is {dtype} of shape {shape}, {needed} bytes, and has {held}: "
                             f"{again(file)}")
        end += held
    if size != end:
        why = "the download stopped half-way" if size < end else "it is damaged"
        raise ValueError(f"{file} has {size} of {end} bytes: {why}, {again(file)}")
    return {name: entry[:3] for name, entry in found.items()}


def _files(folder: Path) -> list[Path]:
    """The weight files: those of the index, or all. Raises ValueError for an index that is none or leads elsewhere."""
    if not os.path.lexists(folder / INDEX):
        return sorted(folder.glob("*.safetensors"))
    if not isinstance(where := read_json(folder / INDEX).get("weight_map"), dict):
        raise ValueError(f"{folder / INDEX} has no weight_map: {again(folder)}")
    for tensor, name in where.items():
        if not isinstance(name, str) or not _FILE.fullmatch(name):
            raise ValueError(f"{folder / INDEX}: {tensor} is in {str(name)[:200]!r}, and must be in a *.safetensors of "
                             f"this folder: {again(folder)}")
    named = sorted(set(where.values()))
    if missing := [name for name in named if not os.path.lexists(folder / name)]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing[:9])} of {len(named)} weight files: the download "
                                f"stopped half-way, {again(folder)}")
    return [folder / name for name in named]


def stored_in(folder: Path) -> dict[str, Stored]:
    """The tensors of all files by the name that a model for text alone gives them.

    Raises FileNotFoundError for a file that the index names and is not there; ValueError for a tensor that is there
    twice or of quantised numbers; as `_header`, too.
    """
    out: dict[str, Stored] = {}
    for file in _files(folder):
        for name, (dtype, shape, start) in _header(file).items():
            if _UNUSED.match(name):
                continue
            if dtype not in DTYPES:
                raise ValueError(f"{file}: {name} is {dtype}, not {', '.join(DTYPES)}: take the model that is not "
                                 "quantised")
            ours = HEAD if name.endswith(HEAD) else _PREFIX.sub("model.", name, count=1)
            if ours in out:
                raise ValueError(f"{file}: {name} is in {out[ours].file} too: delete the file that does not belong, or "
                                 f"{again(folder)}")
            out[ours] = Stored(file, DTYPES[dtype], shape, start)
    return out
