"""Gemma by name: the model and its tokenizer.

The table of names, and where their files are found.

Departs from Tunix's `AutoModel`: kagglehub is called directly, because Tunix may ask for a login, and raises
for Gemma 3 from Kaggle after the download.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jax.sharding import Mesh
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.models.gemma import flax_checkpoint, from_flax
from reasonkit.models.hf import from_hf, is_hf
from reasonkit.models.hf_config import LIBRARY, read_config
from reasonkit.models.hf_files import again
from reasonkit.models.tokenizer import Tokenizer
from reasonkit.session.secrets import kaggle_login, told

ASSETS = Path(__file__).parents[1] / "assets"


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
PACKAGED = "gemma3-270m"  # the one that `gemma_from_gguf` makes a folder of


def converted(name: str) -> Path:
    """The folder in the cache ($XDG_CACHE_HOME, default ~/.cache) where `gemma_from_gguf` leaves a model."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reasonkit" / name


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model on its mesh with what belongs to it; `folder` is where its files were found."""

    model: nnx.Module
    tokenizer: Tokenizer
    config: Any
    name: str
    folder: Path


def load(name: str | Path, mesh: Mesh, dtype: Any = None, *, replicated: bool = True,
         remat: bool = False) -> LoadedModel:
    """Loads a model by short name or from a folder, and places it on the mesh.

    A name of MODELS is looked for among the attached inputs ($REASONKIT_INPUTS, default /kaggle/input), then
    in the package's assets or what `gemma_from_gguf` made, then through kagglehub's cache or download; nothing asks
    for a login. A folder holds tokenizer.model, and Hugging Face files (config.json, *.safetensors) or a Kaggle
    Flax checkpoint.

    Args:
        name: a key of MODELS or a folder.
        mesh: axes ("fsdp", "tp"), see `mesh.make_mesh`.
        dtype: of the weights; None keeps a Hugging Face file's and means bfloat16 for a Flax checkpoint.
        replicated: each fsdp row holds all weights; False shards them over fsdp too.
        remat: keep each layer's input alone for the gradients and compute the rest again: a third more work, and the
            memory of one layer instead of all.

    Raises:
        ValueError: unknown name or model_type, a tokenizer of another family, tp that does not divide, broken files or
            Kaggle credentials.
        FileNotFoundError: the files are not there; says what to attach or download.
    """
    folder = _find(str(name))
    if is_hf(folder):
        family, config = read_config(folder / "config.json", replicated)
    elif checkpoint := flax_checkpoint(folder):
        source = _flax_source(str(name), checkpoint)
        family, config = source.family, getattr(LIBRARY[source.family].ModelConfig, source.config)()
    else:
        raise FileNotFoundError(
            f"{folder} holds neither config.json with *.safetensors nor a Flax checkpoint, only "
            f"{sorted(path.name for path in folder.iterdir())}: {again(folder)}"
        )
    pieces = Tokenizer(folder / "tokenizer.model", family)
    if pieces.vocab_size > config.num_embed:
        raise ValueError(f"{pieces.path} has {pieces.vocab_size} pieces, and the model's embedding {config.num_embed} "
                         f"rows: they do not belong together, {again(folder)}")
    if is_hf(folder):
        _, model = from_hf(folder, mesh, dtype, replicated=replicated)
    else:
        model = from_flax(checkpoint, family, config, mesh, dtype, replicated=replicated)
    if remat:  # one object for the model and all of its layers
        model.config.remat_config = LIBRARY[family].RematConfig.DECODER
    return LoadedModel(model, pieces, model.config, str(name), folder)


def tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of the model that `load` finds by this name, without its weights. Raises as `load`."""
    folder = _find(str(name))
    family = (MODELS[name].family if name in MODELS else read_config(folder / "config.json", True)[0] if is_hf(folder)
              else _flax_source(str(name), flax_checkpoint(folder) or folder).family)
    return Tokenizer(folder / "tokenizer.model", family)


def hf_name(name: str) -> str:
    """What Hugging Face calls a model of MODELS: google/gemma-3-1b-pt for gemma3-1b. Other names stay as they are."""
    source = MODELS.get(name)
    if source is None or source.handle is None:
        return name
    stock = "-pt" if source.config.endswith("_pt") else ""
    return f"google/{name.replace(source.family, source.family.replace('gemma', 'gemma-'))}{stock}"


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
        owner, model, _, variation, _ = source.handle.split("/")
        of_hf = f"{owner}/{model}/transformers/{hf_name(name).split('/')[1]}/*"
        versions = source.handle, f"{owner}/{model}/flax/{variation}/*", of_hf
        handles = [f"models/{handle}" for handle in versions]
        patterns = [*handles, *(handle.split("/", 2)[2] for handle in handles), *patterns]
    for folder in (folder for pattern in patterns for folder in sorted(inputs.glob(pattern))):
        if (folder / "tokenizer.model").is_file():
            return folder
    if source.handle:
        made = converted(name)
        return made if (made / "tokenizer.model").is_file() else _download(name, source.handle, _attached(inputs))
    folder = ASSETS / source.asset
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name}: {folder} is not there. The tiny models come with a clone of the repository or an installed "
            "package, not with a submission: choose a profile with a real model (kaggle, colab, gpu), or restore the "
            "clone's folder")
    return folder


def _attached(inputs: Path) -> str:
    """What is attached, in words: the uppermost folders that hold files."""
    def holding(folder: Path, depth: int) -> Iterator[Path]:
        below = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir():
                    yield folder
                    return
                below.append(Path(entry))
        for path in sorted(below) if depth else ():
            yield from holding(path, depth - 1)

    tops = sorted(path for path in inputs.glob("*") if path.is_dir())
    found = [str(folder.relative_to(inputs)) + " (no tokenizer.model)" * (not (folder / "tokenizer.model").is_file())
             for top in tops for folder in holding(top, 6)]
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return f"Attached under {inputs}: {', '.join(found[:12]) or 'nothing'}{more}."


def _download(name: str, handle: str, attached: str) -> Path:
    import kagglehub  # only where it is needed: it reads its settings on import

    with kaggle_login() as known:
        try:
            folder = Path(kagglehub.model_download(handle))
            if not any(path.is_file() for path in folder.rglob("*")):  # emptied, and its marker left
                folder = Path(kagglehub.model_download(handle, force_download=True))
            return folder
        except Exception as error:  # kagglehub's own, and those of its HTTP client
            made = (", or make it: pip install 'reasonkit[realmodel]', then python -m tools.gemma_from_gguf"
                    if name == PACKAGED else "")
            raise FileNotFoundError(
                f"{name}: {handle} is neither attached nor downloadable. {_remedy(error, handle, known)} Or attach "
                f"it: on Kaggle choose Add Input, Models, {handle}; or give a folder{made}. {attached} "
                f"({told(error, *known)})") from None


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
    if "DataCorruptionError" in names:
        return "The download was damaged: run this again."
    return "Its files could not be had."


def _flax_source(name: str, checkpoint: Path) -> ModelSource:
    """A Flax checkpoint carries no configuration: the short name or the checkpoint's folder name decides."""
    for key, source in MODELS.items():
        if source.handle and (name == key or checkpoint.name == source.handle.split("/")[3]):
            return source
    known = ", ".join(key for key, source in MODELS.items() if source.handle)
    raise ValueError(
        f"{checkpoint} is a Flax checkpoint of an unknown model: load it by one of the names {known}"
    )


def quantize_int8(loaded: LoadedModel, mesh: Mesh) -> LoadedModel:
    """The same model with the matrices of its layers as 8-bit integers (qwix), a scale for each output.

    They stay where they were on the mesh; activations and embedding stay as they are: what is saved is memory, not
    work. Gemma-3-12B takes 12.8 GB in place of 23.5, Gemma-2-9B 10.2 of 18.5, Gemma-3-4B 4.6 of 7.8 (bfloat16). It is
    for a judge, which is not trained. Until `loaded` is let go, both are in memory.
    """
    with mesh, jax.default_device(mesh.devices.flat[0]):  # or what is new would begin on the policy's first chip
        return dataclasses.replace(loaded, model=quantized(loaded.model, mesh.shape["fsdp"]))


def quantized(model: nnx.Module, rows: int) -> nnx.Module:
    """The model of `quantize_int8`; in shapes, too. qwix finds its matrices by a pass over anything, of so many
    rows."""
    tokens_BT = jnp.ones((rows, 8), jnp.int32)
    mask_BT = tokens_BT > 0
    inputs = tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT)
    rule = qwix.QuantizationRule(module_path="layers/.*", weight_qtype="int8")  # not the embedding
    return qwix.quantize_model(model, qwix.PtqProvider([rule]), *inputs)
