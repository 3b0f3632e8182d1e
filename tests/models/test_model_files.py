"""Model folders as a hostile or a broken download leaves them: refused before a weight is read, and by name."""

from __future__ import annotations

import os
import shutil
import socket
import time

import jax
import numpy as np
import pytest
from tiny_gemma import save_kaggle_flax, small_config, train_tokenizer

import reasonkit.models.gemma
import reasonkit.models.load
from reasonkit.models.load import load
from reasonkit.models.mesh import make_mesh
from tools.flax import init_random, save_flax

SECONDS = 5.0


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:1], 1, 1)


@pytest.fixture(scope="module")
def made(mesh, tmp_path_factory):
    """A small model, whole: as we write it with model.json, and as Kaggle has it."""
    root = tmp_path_factory.mktemp("made")
    pieces, model = train_tokenizer(root / "pieces"), init_random(small_config(), mesh)
    save_flax(model, pieces, root / "own")
    (root / "flax").mkdir()
    save_kaggle_flax(model, "gemma3", True, root / "flax/gemma3-1b-it")
    shutil.copy(pieces, root / "flax/tokenizer.model")
    return root


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made / "own", tmp_path / "folder")


@pytest.fixture
def flax(made, tmp_path, monkeypatch):
    monkeypatch.setattr(reasonkit.models.load.LIBRARY["gemma3"].ModelConfig, "gemma3_1b_it", small_config)
    return shutil.copytree(made / "flax", tmp_path / "gemma3-1b-it")


@pytest.fixture
def refused(mesh, monkeypatch):
    """Loads a folder, which must be refused at once with these words, and with no weight read."""
    def refused(folder, *words, reads=False):
        with monkeypatch.context() as patch, pytest.raises((ValueError, FileNotFoundError)) as caught:
            if not reads:
                patch.setattr(jax, "device_put", lambda *_: pytest.fail("weights were placed"))
            began = time.monotonic()
            load(folder, mesh)
        assert time.monotonic() - began < SECONDS
        message = str(caught.value)
        assert str(folder) in message and len(message) < 1500, message
        for word in words:
            assert word in message, message

    return refused


def test_what_is_whole_is_read(made, mesh, monkeypatch):
    monkeypatch.setattr(reasonkit.models.load.LIBRARY["gemma3"].ModelConfig, "gemma3_1b_it", small_config)
    for name in ("own", "flax"):
        load(made / name, mesh)


# The tokenizer

PIECES = {
    "nothing": lambda raw: b"",
    "a text": lambda raw: b"tokenizer",
    "JSON": lambda raw: b'{"model": {"type": "BPE"}}',
    "zeros": lambda raw: bytes(4096),
    "half of one": lambda raw: raw[:len(raw) // 2],
    "all but a byte of one": lambda raw: raw[:-1],
    "a pointer of git's": lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "an archive": lambda raw: b"PK\x03\x04" + raw,
    "weights": lambda raw: (2).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("what", PIECES)
def test_a_tokenizer_that_is_no_sentencepiece_model(what, folder, refused):
    path = folder / "tokenizer.model"
    path.write_bytes(PIECES[what](path.read_bytes()))
    refused(folder, f"{path} is no SentencePiece model")


@pytest.mark.parametrize("lost", ["bos", "eos", "pad"])
def test_a_tokenizer_without_one_of_gemmas_tokens(lost, folder, refused):
    from sentencepiece import sentencepiece_model_pb2 as pb

    path = folder / "tokenizer.model"
    model = pb.ModelProto.FromString(path.read_bytes())
    model.pieces[getattr(model.trainer_spec, f"{lost}_id")].piece = "gone"
    setattr(model.trainer_spec, f"{lost}_id", -1)
    path.write_bytes(model.SerializeToString())
    refused(folder, f"{path} has no token for the {dict(bos='start', eos='end of sequence', pad='padding')[lost]}")


@pytest.mark.parametrize("rows", [1, 107, 300])
def test_an_embedding_smaller_than_its_tokenizer(rows, mesh, made, tmp_path, refused):
    config = small_config(num_embed=rows)
    folder = save_flax(init_random(config, mesh), made / "own/tokenizer.model", tmp_path / "folder")
    refused(folder, f"{folder}/tokenizer.model has ", f"and the model's embedding {rows} rows: they do not belong")


# A Flax checkpoint


def rewritten(folder, change):
    """The checkpoint with a change to its arrays."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        path = folder / "gemma3-1b-it"
        tree = checkpointer.restore(path.resolve())
        shutil.rmtree(path)
        change(tree)
        checkpointer.save(path.resolve(), tree)


LINEAR, GATING = "transformer/layer_1/mlp/linear", "transformer/layer_1/mlp/gating_einsum"
EMBEDDER = "transformer/embedder"
ARRAYS = {
    "a missing array": (lambda tree: tree.pop(LINEAR), f"lacks {LINEAR}/w of a gemma3 of 2 layers"),
    "a missing norm": (lambda tree: tree.pop("transformer/final_norm"), "lacks transformer/final_norm/scale"),
    "another leaf": (lambda tree: tree.update({LINEAR: {"v": tree[LINEAR]["w"]}}), f"lacks {LINEAR}/w"),
    "a turned array": (lambda tree: tree[LINEAR].update(w=tree[LINEAR]["w"].T),
                       f"{LINEAR}/w is float32 of shape (32, 48)"),
    "a flat array": (lambda tree: tree[LINEAR].update(w=tree[LINEAR]["w"].reshape(-1)), "of shape (1536,)"),
    "one row more": (lambda tree: tree[EMBEDDER].update(input_embedding=np.zeros((401, 32), np.float32)),
                     f"{EMBEDDER}/input_embedding is float32 of shape (401, 32)"),
    "three gates": (lambda tree: tree[GATING].update(w=np.zeros((3, 48, 32), np.float32)), "of shape (3, 48, 32)"),
    "whole numbers": (lambda tree: tree[LINEAR].update(w=np.zeros((48, 32), np.int8)), f"{LINEAR}/w is int8 of shape"),
    "yes and no": (lambda tree: tree[LINEAR].update(w=np.zeros((48, 32), bool)), f"{LINEAR}/w is bool of shape"),
    "a number": (lambda tree: tree[LINEAR].update(w=np.float32(3)), f"lacks {LINEAR}/w"),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_a_flax_checkpoint_with(what, flax, refused):
    change, *words = ARRAYS[what]
    rewritten(flax, change)
    refused(flax, *words)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize(("key", "leaf"), [(LINEAR, "w"), (GATING, "w"), ("transformer/final_norm", "scale")])
def test_a_flax_checkpoint_of_no_numbers(key, leaf, number, flax, refused):
    def change(tree):
        tree[key][leaf] = np.array(tree[key][leaf])
        tree[key][leaf].flat[0] = number

    rewritten(flax, change)
    refused(flax, f"gemma3-1b-it: {key}/{leaf} holds infinities or NaN", reads=True)


@pytest.mark.parametrize(("text", "word"), [
    (b"", "empty"), (b"{", "not JSON"), (b"null", "has no attribute"), (b"{}", "'family'"),
    (b'{"family": "gemma1"}', "'gemma1'"), (b'{"family": "gemma3", "num_layers": 2}', "missing 6 required")])
def test_a_model_json_that_is_none(text, word, folder, refused):
    (folder / "model.json").write_bytes(text)
    refused(folder, f"{folder / 'model.json'} is no model's configuration (", word)


def test_hugging_faces_files_name_the_command(folder, refused):
    shutil.rmtree(folder / "model")
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    refused(folder, "holds Hugging Face's files", f"`python -m tools.hf {folder} OUT`")


def socket_at(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


STANDING = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a socket": socket_at,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a device that takes all": lambda path: path.symlink_to("/dev/null"),
    "a link to nothing": lambda path: path.symlink_to("/nowhere/at/all"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to the folder": lambda path: path.symlink_to("."),
}


@pytest.mark.parametrize("what", STANDING)
def test_what_stands_in_the_tokenizers_place(what, folder, refused):
    path = folder / "tokenizer.model"
    path.unlink()
    STANDING[what](path)
    refused(folder, f"{path} does not exist or is no file")


@pytest.mark.parametrize("what", STANDING)
@pytest.mark.parametrize("name", ["_METADATA", "_CHECKPOINT_METADATA"])
def test_what_stands_in_a_flax_checkpoint(name, what, flax, refused):
    if what in ("a folder", "a link to the folder"):
        name = "_METADATA"  # of the other, orbax reads nothing then
    path = flax / "gemma3-1b-it" / name
    path.unlink()
    STANDING[what](path)
    refused(flax, "is no orbax checkpoint, or only a part of one")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'{"tree_metadata": 7}', b"\xff\xfe", b"[" * 100_000,
                                  b'{"tree_metadata": {}}', b'{"tree_metadata": {"x": null}}'])
def test_a_flax_checkpoint_whose_metadata_is_none(text, flax, refused):
    (flax / "gemma3-1b-it/_METADATA").write_bytes(text)
    refused(flax, str(flax))
