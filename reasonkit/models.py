"""Gemma by name: the model, its tokenizer, and a judge's ratings.

What it is: the table of names, where their files are found, and the tokenizer with its stop tokens.
What it is not: file formats (`gemma`), the adapter (`lora`), a trainer or a sampler.

Departs from Tunix's `AutoModel`: kagglehub is called directly, because Tunix may ask for a login, and raises
for Gemma 3 from Kaggle after the download.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
import sentencepiece
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.gemma import LIBRARY, flax_checkpoint, from_flax, from_hf, is_hf
from reasonkit.mesh import check_divides

ASSETS = Path(__file__).parent / "assets"
END_OF_TURN = {"gemma2": 107, "gemma3": 106}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a named model comes from: an asset's folder, or a pinned Kaggle handle with Tunix's config."""

    family: str
    asset: str | None = None
    handle: str | None = None
    config: str | None = None


# Variations as on Kaggle's model pages; version 1 was seen in use for all but gemma2-9b-it and gemma3-12b-it (assumed).
MODELS = {
    "tiny-policy": Source("gemma3", asset="policy"),
    "tiny-judge": Source("gemma3", asset="judge"),
    "gemma2-2b-it": Source("gemma2", None, "google/gemma-2/flax/gemma2-2b-it/1", "gemma2_2b_it"),
    "gemma2-9b-it": Source("gemma2", None, "google/gemma-2/flax/gemma2-9b-it/1", "gemma2_9b_it"),
    "gemma3-270m": Source("gemma3", None, "google/gemma-3/flax/gemma-3-270m/1", "gemma3_270m"),
    "gemma3-1b-it": Source("gemma3", None, "google/gemma-3/flax/gemma3-1b-it/1", "gemma3_1b_it"),
    "gemma3-4b-it": Source("gemma3", None, "google/gemma-3/flax/gemma3-4b-it/1", "gemma3_4b_it"),
    "gemma3-12b-it": Source("gemma3", None, "google/gemma-3/flax/gemma3-12b-it/1", "gemma3_12b_it"),
}
PACKAGED = "gemma3-270m"  # the one that `realmodel` makes a folder of


def converted(name: str) -> Path:
    """The folder in the cache ($XDG_CACHE_HOME, default ~/.cache) where `realmodel` leaves a model."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reasonkit" / name


class Tokenizer:
    """A SentencePiece model as Tunix wants it: no BOS added, decoding that never raises.

    Tunix's own `Tokenizer` sets options that sentencepiece 0.2.3 rejects; its sampler adds BOS itself.
    `end_of_turn` is the id of <end_of_turn>; `stop_ids` is (end of sequence, end of turn).

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown family, or <end_of_turn> is not the one token that the family has for it.
    """

    def __init__(self, path: str | Path, family: str):
        if family not in END_OF_TURN:
            raise ValueError(f"family {family!r} is unknown: choose from {', '.join(END_OF_TURN)}")
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist: a model's folder needs its tokenizer.model")
        self.path, self.family = Path(path), family
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.vocab_size = self._pieces.GetPieceSize()
        ids, self.end_of_turn = self.encode("<end_of_turn>"), END_OF_TURN[family]
        if ids != [self.end_of_turn]:
            raise ValueError(
                f"{path} reads <end_of_turn> as {ids}, but {family} has it at {self.end_of_turn}: "
                "the tokenizer belongs to another model, take the one beside the weights"
            )
        self.stop_ids = (self.eos_id(), self.end_of_turn)

    def encode(self, text: str, **_: Any) -> list[int]:
        """Ids of `text` without BOS. Turn markers become control tokens: see tags.neutralise."""
        return self._pieces.EncodeAsIds(text)

    def decode(self, ids: Any, **_: Any) -> str:
        """Text of the ids, skipping those past the vocabulary: embeddings may have more rows."""
        return self._pieces.DecodeIds([int(i) for i in ids if 0 <= int(i) < self.vocab_size])

    def bos_id(self) -> int:
        return self._pieces.bos_id()

    def eos_id(self) -> int:
        return self._pieces.eos_id()

    def pad_id(self) -> int:
        return self._pieces.pad_id()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model on its mesh with what belongs to it; `folder` is where its files were found."""

    model: nnx.Module
    tokenizer: Tokenizer
    config: Any
    name: str
    folder: Path


def load(name: str | Path, mesh: Mesh, dtype: Any = None, *, replicated: bool = True) -> Loaded:
    """Loads a model by short name or from a folder, and places it on the mesh.

    A name of MODELS is looked for among the attached inputs ($REASONKIT_INPUTS, default /kaggle/input), then
    in the package's assets or what `realmodel` made, then through kagglehub's cache or download; nothing asks
    for a login. A folder holds tokenizer.model, and Hugging Face files (config.json, *.safetensors) or a Kaggle
    Flax checkpoint.

    Args:
        name: a key of MODELS or a folder.
        mesh: axes ("fsdp", "tp"), see `mesh.make_mesh`.
        dtype: of the weights; None keeps a Hugging Face file's and means bfloat16 for a Flax checkpoint.
        replicated: each fsdp row holds all weights; False shards them over fsdp too.

    Raises:
        ValueError: unknown name or model_type, a tokenizer of another family, tp that does not divide.
        FileNotFoundError: the files are not there; says what to attach or download.
    """
    folder = _find(str(name))
    if is_hf(folder):
        family, model = from_hf(folder, mesh, dtype, replicated=replicated)
    elif checkpoint := flax_checkpoint(folder):
        source = _flax_source(str(name), checkpoint)
        family, config = source.family, getattr(LIBRARY[source.family].ModelConfig, source.config)()
        model = from_flax(checkpoint, family, config, mesh, dtype, replicated=replicated)
    else:
        raise FileNotFoundError(
            f"{folder} holds neither config.json with *.safetensors nor a Flax checkpoint, only "
            f"{sorted(path.name for path in folder.iterdir())}: download the model again"
        )
    return Loaded(model, Tokenizer(folder / "tokenizer.model", family), model.config, str(name), folder)


def _find(name: str) -> Path:
    source = MODELS.get(name)
    if source is None:
        if Path(name).is_dir():
            return Path(name).resolve()
        raise ValueError(
            f"model {name!r} is neither a folder nor a known name: choose from {', '.join(MODELS)}"
        )
    inputs = Path(os.environ.get("REASONKIT_INPUTS", "/kaggle/input"))
    patterns = [name, f"datasets/*/{name}", f"models/*/{name}/*/*/*", f"{name}/*/*/*"]
    if source.handle:  # where models are mounted now and where they were; the pinned version first
        variation = source.handle.rsplit("/", 1)[0]
        handles = [f"models/{handle}" for handle in (source.handle, f"{variation}/*")]
        patterns = [*handles, *(handle.split("/", 2)[2] for handle in handles), *patterns]
    for folder in (folder for pattern in patterns for folder in sorted(inputs.glob(pattern))):
        if (folder / "tokenizer.model").is_file():
            return folder
    if source.handle:
        made = converted(name)
        return made if made.is_dir() else _download(name, source.handle)
    folder = ASSETS / source.asset
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: {folder} is not there; reinstall reasonkit or rebuild its assets")
    return folder


def _download(name: str, handle: str) -> Path:
    import kagglehub  # only where it is needed: it reads its settings and credentials on import

    before = os.environ.get("DISABLE_KAGGLE_CACHE")
    # On Kaggle, kagglehub would ask the session to attach the input and wait for it without a timeout.
    os.environ["DISABLE_KAGGLE_CACHE"] = "1"
    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:  # kagglehub's own, and those of its HTTP client
        raise FileNotFoundError(
            f"{name}: {handle} is neither attached nor downloadable ({type(error).__name__}: {error}). "
            f"On Kaggle choose Add Input, Models, {handle}, and accept its licence; elsewhere accept it on "
            "kaggle.com and set KAGGLE_API_TOKEN, or give a folder"
            + (", or make it: pip install 'reasonkit[realmodel]', then python -m reasonkit.realmodel"
               if name == PACKAGED else "")
        ) from error
    finally:
        os.environ.pop("DISABLE_KAGGLE_CACHE")
        if before is not None:
            os.environ["DISABLE_KAGGLE_CACHE"] = before


def _flax_source(name: str, checkpoint: Path) -> Source:
    """A Flax checkpoint carries no configuration: the short name or the checkpoint's folder name decides."""
    for key, source in MODELS.items():
        if source.handle and (name == key or checkpoint.name == source.handle.split("/")[3]):
            return source
    known = ", ".join(key for key, source in MODELS.items() if source.handle)
    raise ValueError(
        f"{checkpoint} is a Flax checkpoint of an unknown model: load it by one of the names {known}"
    )


def int8(loaded: Loaded, mesh: Mesh) -> Loaded:
    """The same model with the matrices of its layers as 8-bit integers (qwix), a scale for each output.

    They stay where they were on the mesh; activations and embedding stay as they are: what is saved is memory, not
    work. Gemma-3-12B takes 12.8 GB in place of 23.5, Gemma-2-9B 10.2 of 18.5, Gemma-3-4B 4.6 of 7.8 (bfloat16). It is
    for a judge, which is not trained. Until `loaded` is let go, both are in memory.
    """
    tokens_BT = jnp.ones((mesh.shape["fsdp"], 8), jnp.int32)  # qwix finds the matrices by a forward pass over anything
    mask_BT = tokens_BT > 0
    inputs = tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT)
    rule = qwix.QuantizationRule(module_path=".*", weight_qtype="int8")
    with mesh:
        model = qwix.quantize_model(loaded.model, qwix.PtqProvider([rule]), *inputs)
    return dataclasses.replace(loaded, model=model)


def prefill(
    loaded: Loaded, mesh: Mesh, read: Callable[[nnx.Module, tuple, jax.Array], jax.Array], width: int, max_length: int,
    batch_size: int,
) -> Callable[[Sequence[Sequence[int]], Sequence[int]], np.ndarray]:
    """Forward passes over texts of any length: (ids with BOS, tail lengths) -> float32 (texts, width).

    `read(model, inputs, tail_BT)` gives `width` numbers a row, (B, width): `model(*inputs)` are the logits and no
    cache, and `tail_BT` is true on the last tokens of each text, as many as its tail is long. Rows are left-padded, so
    that a text ends in its last column, to a power of two or 1.5 times one, so that it compiles once a length. The
    weights are those of the moment of the call. A text of more than `max_length` tokens is not cut: its row is NaN, no
    signal. May be called from any thread.

    Raises ValueError when batch_size does not divide over fsdp.
    """
    check_divides(batch_size, mesh, "batch_size")
    graph, pad = nnx.graphdef(loaded.model), loaded.tokenizer.pad_id()
    steps = (n * 2**k for k in range(5, max_length.bit_length()) for n in (2, 3))
    lengths = [n for n in steps if n < max_length] + [max_length]
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))

    @jax.jit
    def forward(state: nnx.State, tokens_BT: jax.Array, tail_B: jax.Array) -> jax.Array:
        mask_BT, length = tokens_BT != pad, tokens_BT.shape[1]
        inputs = tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT)
        return read(nnx.merge(graph, state), inputs, jnp.arange(length) >= length - tail_B[:, None])

    def score(texts: Sequence[Sequence[int]], tails: Sequence[int]) -> np.ndarray:
        state, out = nnx.state(loaded.model), np.full((len(texts), width), np.nan, np.float32)
        order = sorted((i for i, ids in enumerate(texts) if len(ids) <= max_length), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            length = next(n for n in lengths if n >= len(texts[chunk[-1]]))
            tokens_BT, tail_B = np.full((batch_size, length), pad, np.int32), np.zeros(batch_size, np.int32)
            for row, i in enumerate(chunk):
                tokens_BT[row, length - len(texts[i]) :], tail_B[row] = texts[i], tails[i]
            with mesh:  # here, because a mesh is entered per thread and Tunix calls rewards from its own
                out[chunk] = np.asarray(forward(state, *jax.device_put((tokens_BT, tail_B), rows)))[: len(chunk)]
        return out

    return score


def rating_logprobs(
    loaded: Loaded, mesh: Mesh, ratings: Sequence[str], max_length: int, batch_size: int
) -> Callable[[list[str]], np.ndarray]:
    """A judge's reading: prompts -> float32 (prompts, ratings), log-probability of each as next token.

    One `prefill`, so that a prompt of more than `max_length` tokens (with BOS) is not cut: its row is NaN.

    Raises:
        ValueError: batch_size does not divide over fsdp, or a rating is not one token.
    """
    tokenizer = loaded.tokenizer
    for rating in ratings:
        if len(ids := tokenizer.encode(rating)) != 1:
            raise ValueError(
                f"rating {rating!r} is the tokens {ids} for {loaded.name}: ratings must be one token"
            )
    columns = np.array([tokenizer.encode(rating)[0] for rating in ratings])

    def read(model: nnx.Module, inputs: tuple, tail_BT: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(model(*inputs)[0][:, -1].astype(jnp.float32))[:, columns]

    ask = prefill(loaded, mesh, read, len(columns), max_length, batch_size)
    return lambda prompts: ask([[tokenizer.bos_id(), *tokenizer.encode(prompt)] for prompt in prompts],
                               [1] * len(prompts))
