"""Gemma by name: `load` finds a model's files, places it on a mesh and returns it with its tokenizer.

It reads one format: a folder with tokenizer.model and a Flax checkpoint, as Kaggle ships it, and with `model.json`, the
sizes of a model that MODELS does not name. `python -m tools.hf` converts Hugging Face's files. kagglehub is called
directly, because Tunix's `AutoModel` may ask for a login.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import sentencepiece
from flax import nnx
from jax.sharding import Mesh
from tunix.models.gemma.model import AttentionType

from reasonkit.models.gemma import LIBRARY, download_again, flax_checkpoint, from_flax, quantize_layers
from reasonkit.session.files import parse_json, read_file
from reasonkit.session.secrets import describe_error, kaggle_login
from reasonkit.session.setup import suggest

ASSETS = Path(__file__).parents[1] / "assets"
INPUTS = "REASONKIT_INPUTS", "/kaggle/input"  # the variable that names their folder, and where it is on Kaggle
SIZES = "model.json"  # of a folder: the family, and the fields of Tunix's ModelConfig that are numbers
END_OF_TURN = {"gemma2": 107, "gemma3": 106}


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a named model comes from: an asset's folder, or a pinned Kaggle handle with Tunix's config."""

    family: str
    asset: str | None = None
    handle: str | None = None
    config: str | None = None


# Variations as on Kaggle's model pages and in google-deepmind/gemma's list of checkpoints; version 1 was seen in use
# for gemma2-2b(-it), gemma3-1b-it and gemma3-4b-it, and is assumed for the others.
MODELS = {
    "tiny-policy": ModelSource("gemma3", asset="policy"),
    "tiny-judge": ModelSource("gemma3", asset="judge"),
    "gemma2-2b": ModelSource("gemma2", None, "google/gemma-2/flax/gemma2-2b/1", "gemma2_2b"),
    "gemma2-2b-it": ModelSource("gemma2", None, "google/gemma-2/flax/gemma2-2b-it/1", "gemma2_2b_it"),
    "gemma2-9b-it": ModelSource("gemma2", None, "google/gemma-2/flax/gemma2-9b-it/1", "gemma2_9b_it"),
    "gemma3-270m": ModelSource("gemma3", None, "google/gemma-3/flax/gemma-3-270m/1", "gemma3_270m"),
    "gemma3-270m-it": ModelSource("gemma3", None, "google/gemma-3/flax/gemma-3-270m-it/1", "gemma3_270m_it"),
    "gemma3-1b": ModelSource("gemma3", None, "google/gemma-3/flax/gemma3-1b/1", "gemma3_1b_pt"),
    "gemma3-1b-it": ModelSource("gemma3", None, "google/gemma-3/flax/gemma3-1b-it/1", "gemma3_1b_it"),
    "gemma3-4b-it": ModelSource("gemma3", None, "google/gemma-3/flax/gemma3-4b-it/1", "gemma3_4b_it"),
    "gemma3-12b-it": ModelSource("gemma3", None, "google/gemma-3/flax/gemma3-12b-it/1", "gemma3_12b_it"),
}
PACKAGED = "gemma3-270m"  # `tools.gemma_from_gguf` makes its folder


def cache_folder(name: str) -> Path:
    """The folder in the cache ($XDG_CACHE_HOME, default ~/.cache) where `tools.gemma_from_gguf` leaves a model."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reasonkit" / name


class Tokenizer:
    """A SentencePiece model as Tunix wants it: no BOS added, because Tunix's sampler adds it. Decoding never raises.

    `end_of_turn` is the id of <end_of_turn>. `stop_ids` is (end of sequence, end of turn). Raises FileNotFoundError,
    and ValueError for an unknown family, no SentencePiece model, or one without the family's tokens.
    """

    def __init__(self, path: str | Path, family: str):
        if family not in END_OF_TURN:
            raise ValueError(f"family {family!r} is unknown: choose from {', '.join(END_OF_TURN)}")
        self.path, self.family = Path(path), family
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} does not exist or is no file: a model's folder needs its "
                                    f"{self.path.name}, {download_again(self.path.parent)}")
        try:
            self._pieces = pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is no SentencePiece model ({str(error)[:120]}): "
                             f"{download_again(self.path)}") from error
        self.vocab_size, self.piece = pieces.GetPieceSize(), pieces.IdToPiece
        self.bos_id, self.eos_id, self.pad_id = pieces.bos_id, pieces.eos_id, pieces.pad_id
        for name, number in (("padding", self.pad_id()), ("end of sequence", self.eos_id()), ("start", self.bos_id())):
            if number < 0:
                raise ValueError(f"{path} has no token for the {name}: it is no Gemma's, {download_again(self.path)}")
        ids, self.end_of_turn = self.encode("<end_of_turn>"), END_OF_TURN[family]
        if ids != [self.end_of_turn]:
            raise ValueError(f"{path} reads <end_of_turn> as {ids}, but {family} has it at {self.end_of_turn}: the "
                             "tokenizer belongs to another model, take the one beside the weights")
        self.stop_ids = (self.eos_id(), self.end_of_turn)

    def encode(self, text: str, **_: Any) -> list[int]:
        """Ids of `text` without BOS. Turn markers become control tokens: see tags.neutralise."""
        return self._pieces.EncodeAsIds(text)

    def decode(self, ids: Any, **_: Any) -> str:
        """Text of the ids, skipping those past the vocabulary: embeddings may have more rows."""
        return self._pieces.DecodeIds([int(i) for i in ids if 0 <= int(i) < self.vocab_size])


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model on its mesh with its tokenizer and configuration. `folder` is where its files were found."""

    model: nnx.Module
    tokenizer: Tokenizer
    config: Any
    name: str
    folder: Path


def load(name: str | Path, mesh: Mesh, dtype: Any = None, *, replicated: bool = True,
         remat: bool = False) -> LoadedModel:
    """Loads a model by short name or from a folder, and places it on the mesh.

    A name of MODELS is looked for in the attached inputs ($REASONKIT_INPUTS, default /kaggle/input), the package's
    assets or the folder of `tools.gemma_from_gguf`, and kagglehub's cache, then downloaded. Nothing asks for a login.

    Args:
        name: a key of MODELS or a folder.
        mesh: axes ("fsdp", "tp"), see `mesh.make_mesh`.
        dtype: of the weights. None means bfloat16.
        replicated: each fsdp row holds all weights. False shards them over fsdp too.
        remat: keep only each layer's input for the gradients and compute the rest again. With an adapter
            that is half as much work again, and it takes the memory of one layer instead of all.

    Raises:
        ValueError: unknown name, a folder of Hugging Face's files, a tokenizer of another family, tp that does not
            divide, broken files or Kaggle credentials.
        FileNotFoundError: the files are not there. Says what to attach or download.
    """
    folder = locate(str(name)) or _download(str(name))
    checkpoint, family, config = _contents(str(name), folder)
    pieces = Tokenizer(folder / "tokenizer.model", family)
    if pieces.vocab_size > config.num_embed:
        raise ValueError(f"{pieces.path} has {pieces.vocab_size} pieces, and the model's embedding {config.num_embed} "
                         f"rows: they do not belong together, {download_again(folder)}")
    model = from_flax(checkpoint, family, config, mesh, dtype, replicated=replicated)
    if remat:  # one object for the model and all of its layers
        model.config.remat_config = LIBRARY[family].RematConfig.DECODER
    return LoadedModel(model, pieces, model.config, str(name), folder)


def tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of the model that `load` finds by this name, without its weights. Raises as `load`."""
    folder = locate(str(name)) or _download(str(name))
    family = MODELS[name].family if name in MODELS else _contents(str(name), folder)[1]
    return Tokenizer(folder / "tokenizer.model", family)


def _contents(name: str, folder: Path) -> tuple[Path, str, Any]:
    """Checkpoint, family and Tunix's configuration: by the folder's SIZES, else by the short name, or by that on Kaggle
    in the checkpoint's name or in the folder's path."""
    checkpoint, file = flax_checkpoint(folder), folder / SIZES
    if not checkpoint and (folder / "config.json").exists() and any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds Hugging Face's files: convert them once, in a clone of the repository, with "
                         f"`python -m tools.hf {folder} OUT`, and load OUT")
    if not checkpoint:
        raise FileNotFoundError(f"{folder} holds no Flax checkpoint, only "
                                f"{sorted(path.name for path in folder.iterdir())}: {download_again(folder)}")
    if file.is_file():
        try:
            settings = parse_json(read_file(file))
            family = settings.pop("family")
            if family == "gemma2":
                kinds = AttentionType.LOCAL_SLIDING, AttentionType.GLOBAL
                settings["attention_types"] = tuple(kinds[layer % 2] for layer in range(settings["num_layers"]))
            known = {field.name for field in dataclasses.fields(LIBRARY[family].ModelConfig)}
            return checkpoint, family, LIBRARY[family].ModelConfig(
                **{field: value for field, value in settings.items() if field in known})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is no model's configuration ({error}): {download_again(folder)}") from error
    hosted = {key: source for key, source in MODELS.items() if source.handle}
    for key, source in hosted.items():
        _, *parts, _ = source.handle.split("/")  # owner, model, framework, variation and version
        mounted = f"/{'/'.join(parts)}/" in f"{folder.as_posix()}/"
        if name == key or checkpoint.name == parts[-1] or mounted:
            return checkpoint, source.family, getattr(LIBRARY[source.family].ModelConfig, source.config)()
    raise ValueError(f"{checkpoint} is a Flax checkpoint of an unknown model: load it by one of the names "
                     f"{', '.join(hosted)}, or put its {SIZES} beside it")


def locate(name: str) -> Path | None:
    """A model's folder, or None where it has to be downloaded: not attached, shipped or made. Raises as `load`."""
    source = MODELS.get(name)
    if source is None:
        if Path(name).is_dir():
            return Path(name).resolve()
        raise ValueError(f"model {name!r} is neither a folder nor a known name: {suggest(name, MODELS)}")
    patterns = [name, f"datasets/*/{name}", f"models/*/{name}/*/*/*", f"{name}/*/*/*"]
    if source.handle:  # where models are mounted now and where they were; the pinned version first
        handles = source.handle, f"{source.handle.rpartition('/')[0]}/*"
        patterns = [*(f"models/{handle}" for handle in handles), *(handle.split("/", 1)[1] for handle in handles),
                    *patterns]
    own, inputs = cache_folder(name) if source.handle else ASSETS / source.asset, Path(os.environ.get(*INPUTS))
    folders = [*(folder for pattern in patterns for folder in sorted(inputs.glob(pattern))), own]
    hub = Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache/kagglehub", "models", str(source.handle))
    folders += [hub] * hub.with_name(f"{hub.name}.complete").is_file()  # kagglehub's mark of a whole download
    for folder in folders:
        if (folder / "tokenizer.model").is_file():
            return folder
    if source.handle:
        return None
    raise FileNotFoundError(
        f"{name}: {own} is not there. The tiny models come with a clone of the repository or an installed package, "
        "not with a submission: choose a profile with a real model (kaggle, colab, gpu), or restore the clone's folder")


def list_inputs() -> str:
    """What is attached, in words: the uppermost folders that hold files, down to the seventh level."""
    inputs, found = Path(os.environ.get(*INPUTS)), []
    for folder, below, files in os.walk(inputs, followlinks=True):
        name, below[:] = Path(folder).relative_to(inputs), sorted(below)
        if name.parts and files:
            found.append(str(name) + " (no tokenizer.model)" * ("tokenizer.model" not in files))
        if name.parts and files or len(name.parts) == 7:
            below.clear()
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return f"Attached under {inputs}: {', '.join(found[:12]) or 'nothing'}{more}."


def _download(name: str) -> Path:
    import kagglehub  # only where it is needed: it reads its settings on import

    handle = MODELS[name].handle
    with kaggle_login() as known:
        try:
            folder = Path(kagglehub.model_download(handle))
            if not any(path.is_file() for path in folder.rglob("*")):  # emptied, and its marker left
                folder = Path(kagglehub.model_download(handle, force_download=True))
            return folder
        except Exception as error:  # kagglehub's own, and those of its HTTP client
            made = (", or make it: pip install -e '.[realmodel]', then python -m tools.gemma_from_gguf"
                    if name == PACKAGED else "")
            raise FileNotFoundError(
                f"{name}: {handle} is neither attached nor downloadable. {_remedy(error, handle, known)} Or attach "
                f"it: on Kaggle choose Add Input, Models, {handle}; or give a folder{made}. {list_inputs()} "
                f"({describe_error(error, *known)})") from None


def _remedy(error: Exception, handle: str, known: bool) -> str:
    """What to click or set, by what kagglehub or its HTTP client raised, and whether Kaggle knows who asks."""
    page = f"kaggle.com/models/{'/'.join(handle.split('/')[:2])}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    names = {kind.__name__ for kind in type(error).__mro__}
    if status in (401, 403) or "UnauthenticatedError" in names:
        if not known:
            return (f"No credentials: accept the licence on {page}, make a token in your Kaggle settings and set "
                    "KAGGLE_API_TOKEN, as a variable or one of the notebook's secrets.")
        return f"Kaggle knows you and refuses: accept the licence on {page} with the account of your token."
    if status == 404 or "NotFoundError" in names:
        return f"Kaggle has no such version: look on {page}."
    if names & {"ConnectionError", "Timeout"}:
        return "No network: in a Kaggle notebook turn Internet on in its settings."
    damaged = "DataCorruptionError" in names
    return "The download was damaged: run this again." if damaged else "Its files could not be had."


def quantize_int8(loaded: LoadedModel, mesh: Mesh) -> LoadedModel:
    """The model as "<name>-int8": its layers' matrices are 8-bit integers (qwix) with a scale per output.

    Activations and embedding stay as they are, so this saves memory and no work: Gemma-3-12B takes 12.8 GB instead of
    23.5, Gemma-2-9B 10.2 instead of 18.5, Gemma-3-4B 4.6 instead of 7.8 (bfloat16). It is for a judge, which is not
    trained. Both models are in memory until `loaded` is freed.
    """
    with mesh, jax.default_device(mesh.devices.flat[0]):  # or what is new would begin on the policy's first chip
        return dataclasses.replace(loaded, model=quantize_layers(loaded.model, mesh.shape["fsdp"]),
                                   name=f"{loaded.name}-int8")
