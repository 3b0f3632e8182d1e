"""Model folders as a hostile or a broken download leaves them: refused before a weight is read, and by name."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_gemma import save_flax, small_config, train_tokenizer

import reasonkit.models.gemma
import reasonkit.models.load
from reasonkit.models.gemma import init_random
from reasonkit.models.hf import INDEX, save_hf
from reasonkit.models.hf_files import JSON_BYTES, check_finite, file_size
from reasonkit.models.load import load
from reasonkit.models.mesh import make_mesh
from reasonkit.models.tokenizer import MOST_BYTES

FILE, NORM, UP, EMBED = ("model.safetensors", "model.norm.weight", "model.layers.1.mlp.up_proj.weight",
                         "model.embed_tokens.weight")
SECONDS = 5.0


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:1], 1, 1)


@pytest.fixture(scope="module")
def made(mesh, tmp_path_factory):
    """A small model, whole: as one file, in several with an index, and as a Flax checkpoint."""
    root = tmp_path_factory.mktemp("made")
    pieces, model = train_tokenizer(root / "pieces"), init_random(small_config(), mesh)
    save_hf(model, pieces, root / "one")
    save_hf(model, pieces, root / "many", shard_bytes=20_000)
    (root / "flax").mkdir()
    save_flax(model, "gemma3", True, root / "flax/gemma3-1b-it")
    shutil.copy(pieces, root / "flax/tokenizer.model")
    return root


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made / "one", tmp_path / "model")


@pytest.fixture
def many(made, tmp_path):
    return shutil.copytree(made / "many", tmp_path / "model")


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
    for name in ("one", "many", "flax"):
        load(made / name, mesh)


# The header of a file


def header_of(raw):
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:8 + length]), raw[8 + length:]


def write(file, header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def with_entry(name, **changes):
    def change(header, data):
        header[name] = header.get(name, {}) | changes
        return header, data

    return change


def moved(name, start, stop):
    def change(header, data):
        first, last = header[name]["data_offsets"]
        return with_entry(name, data_offsets=[first + start, last + stop])(header, data)

    return change


def without(key):
    return lambda header, data: (header | {UP: {k: v for k, v in header[UP].items() if k != key}}, data)


BIG = 2**62
ENTRIES = {
    "overlaps by a byte": (moved(UP, -1, -1), "up_proj.weight starts at byte ", " and what is before it ends at "),
    "leaves a gap": (moved(UP, 1, 1), "up_proj.weight starts at byte "),
    "is shorter than its shape": (moved(UP, 0, -2), f"{UP} is BF16 of shape (48, 32), 3072 bytes, and has 3070"),
    "is longer than its shape": (moved(UP, 0, 2), f"{UP} is BF16 of shape (48, 32), 3072 bytes, and has 3074"),
    "lies where another does": (lambda h, d: with_entry(UP, data_offsets=h["model.layers.0.mlp.up_proj.weight"][
        "data_offsets"])(h, d), " starts at byte "),
    "lies past the end": (moved(UP, BIG, BIG), " starts at byte ", " and what is before it ends at "),
    "ends before it starts": (lambda h, d: with_entry(UP, data_offsets=h[UP]["data_offsets"][::-1])(h, d), UP),
    "starts below 0": (with_entry(UP, data_offsets=[-8, 3064]), f"{UP} is ", "none below 0"),
    "has offsets that are text": (with_entry(UP, data_offsets=["0", "3072"]), f"{UP} is ", "data_offsets"),
    "has offsets with a point": (with_entry(UP, data_offsets=[0.0, 3072.0]), f"{UP} is "),
    "has offsets that are yes and no": (with_entry(UP, data_offsets=[False, True]), f"{UP} is "),
    "has one offset": (with_entry(UP, data_offsets=[0]), f"{UP} is "),
    "has three offsets": (with_entry(UP, data_offsets=[0, 1, 2]), f"{UP} is "),
    "has null offsets": (with_entry(UP, data_offsets=None), f"{UP} is "),
    "has offsets as an object": (with_entry(UP, data_offsets={"start": 0}), f"{UP} is "),
    "has huge offsets": (with_entry(UP, data_offsets=[0, 10**400]), f"{UP} is "),
    "has a shape below 0": (with_entry(UP, shape=[-48, -32]), f"{UP} is ", "-48"),
    "has a shape with a point": (with_entry(UP, shape=[48.0, 32]), f"{UP} is "),
    "has a null shape": (with_entry(UP, shape=None), f"{UP} is "),
    "has null in its shape": (with_entry(UP, shape=[None, 32]), f"{UP} is "),
    "has a number as its shape": (with_entry(UP, shape=1536), f"{UP} is "),
    "has a text as its shape": (with_entry(UP, shape="48x32"), f"{UP} is "),
    "has a huge shape": (with_entry(UP, shape=[BIG, BIG]), f"{UP} is BF16 of shape (4611686018427387904, "),
    "has a shape that no integer holds": (with_entry(UP, shape=[10**400]), f"{UP} is "),
    "has a shape of a thousand axes": (with_entry(UP, shape=[1] * 1000), f"{UP} is ", "at most 8"),
    "has a nested shape": (with_entry(UP, shape=[[48, 32]]), f"{UP} is "),
    "has the shape turned": (with_entry(UP, shape=[32, 48]), f"{UP} is (32, 48), and config.json says (48, 32)"),
    "has the shape flat": (with_entry(UP, shape=[1536]), f"{UP} is (1536,), and config.json says (48, 32)"),
    "has no shape": (without("shape"), f"{UP} is "),
    "has no dtype": (without("dtype"), f"{UP} is "),
    "has no offsets": (without("data_offsets"), f"{UP} is "),
    "has an unknown dtype": (with_entry(UP, dtype="F99"), f"{UP} is F99, not BF16, F16, F32: take the model"),
    "has 8-bit floats": (with_entry(UP, dtype="F8_E4M3"), f"{UP} is F8_E4M3, not BF16"),
    "has whole numbers": (with_entry(UP, dtype="I16"), f"{UP} is I16, not BF16"),
    "has complex numbers": (with_entry(UP, dtype="C64"), f"{UP} is C64, not BF16"),
    "has a dtype in small letters": (with_entry(UP, dtype="bf16"), f"{UP} is bf16, not BF16"),
    "has another width": (with_entry(UP, dtype="F32"), f"{UP} is F32 of shape (48, 32), 6144 bytes, and has 3072"),
    "has a null dtype": (with_entry(UP, dtype=None), f"{UP} is "),
    "has a list as its dtype": (with_entry(UP, dtype=["BF16"]), f"{UP} is "),
    "is null": (lambda h, d: (h | {UP: None}, d), f"{UP} is None, and must have"),
    "is a list": (lambda h, d: (h | {UP: [48, 32]}, d), f"{UP} is [48, 32], and must have"),
    "is a text": (lambda h, d: (h | {UP: "x" * 9999}, d), f"{UP} is xxx"),
    "is missing": (lambda h, d: ({k: v for k, v in h.items() if k != UP}, d), " starts at byte "),
    "is missing with its bytes": (lambda h, d: last_dropped(h, d), "lacks 1 tensors of a gemma3 of 2 layers, such as"),
    "has a surplus beside it": (lambda h, d: (h | {"model.layers.2.x": {"dtype": "BF16", "shape": [0],
                                "data_offsets": [0, 0]}}, d), "has besides 1 tensors", "model.layers.2.x"),
    "has a namesake of an older layout": (lambda h, d: (h | {"language_model." + NORM: {"dtype": "BF16", "shape": [0],
                                          "data_offsets": [0, 0]}}, d), f"{NORM} is in ", " too: delete the file that"),
    "has bytes after it": (lambda h, d: (h, d + b"\0\0"), " bytes: it is damaged, download the model again"),
    "has too few bytes": (lambda h, d: (h, d[:-2]), " bytes: the download stopped half-way, download the model again"),
    "has no bytes at all": (lambda h, d: (h, b""), " bytes: the download stopped half-way"),
}


def last_dropped(header, data):
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    last = max(entries, key=lambda name: entries[name]["data_offsets"])
    return {name: entries[name] for name in entries if name != last}, data[:entries[last]["data_offsets"][0]]


@pytest.mark.parametrize("what", ENTRIES)
def test_a_tensor_that_is_not_where_or_what_it_must_be(what, folder, refused):
    change, *words = ENTRIES[what]
    write(folder / FILE, *change(*header_of((folder / FILE).read_bytes())))
    refused(folder, FILE if "lacks" not in words[0] and "besides" not in words[0] else str(folder), *words)


HEADERS = {
    "nothing": (b"", "is no safetensors file, or only its start"),
    "seven bytes": (b"\0" * 7, "is no safetensors file, or only its start"),
    "a header of no bytes": (b"\0" * 64, "is no safetensors file"),
    "a header longer than the file": ((2**40).to_bytes(8, "little") + b"{}", "(10 bytes) is no safetensors file"),
    "the longest header": (b"\xff" * 8 + b"{}", "is no safetensors file, or only its start"),
    "a header that is no JSON": ((8).to_bytes(8, "little") + b"no json!", "has no safetensors header"),
    "half a header": ((8).to_bytes(8, "little") + b'{"a": {"', "has no safetensors header"),
    "a header of lists": ((2).to_bytes(8, "little") + b"[]", "holds no JSON object"),
    "a null header": ((4).to_bytes(8, "little") + b"null", "holds no JSON object"),
    "a header of other letters": ((2).to_bytes(8, "little") + b"\xff\xfe", "has no safetensors header"),
    "a header of zeros": ((9).to_bytes(8, "little") + b"\0" * 9, "has no safetensors header"),
    "a header nested without end": ((200_000).to_bytes(8, "little") + b"[" * 200_000, "has no safetensors header"),
    "an object nested without end": ((500_000).to_bytes(8, "little") + b'{"a":' * 100_000, "has no safetensors header"),
    "an empty header": ((2).to_bytes(8, "little") + b"{}", "lacks 28 tensors of a gemma3 of 2 layers"),
    "a header of metadata alone": ((19).to_bytes(8, "little") + b'{"__metadata__": 3}', "lacks 28 tensors"),
    "a pointer of git's": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is no safetensors"),
    "a page of an error": (b"<!DOCTYPE html><html><body>404</body></html>", "is no safetensors file"),
    "an archive": (b"PK\x03\x04" + b"\0" * 60, "is no safetensors file"),
    "a checkpoint of torch": (b"\x80\x02}q\x00." + b"\0" * 60, "is no safetensors file"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_file_that_is_no_safetensors(what, folder, refused):
    raw, *words = HEADERS[what]
    (folder / FILE).write_bytes(raw)
    refused(folder, *words)


def test_a_header_is_not_read_without_end(folder, refused):
    with (folder / FILE).open("wb") as file:  # sparse
        file.write((JSON_BYTES + 1).to_bytes(8, "little"))
        file.truncate(3 * JSON_BYTES)
    refused(folder, FILE, f"has a header of {JSON_BYTES + 1} bytes, and {JSON_BYTES} are enough")


# The index

OTHER = "model-00002-of-00004.safetensors"


def pointing(to):
    return lambda index, folder: index["weight_map"].update({UP: to})


INDICES = {
    "above": (pointing(f"../{OTHER}"), f"{UP} is in '../{OTHER}'", "of this folder"),
    "far above": (pointing("../../../etc/passwd"), UP, "of this folder"),
    "at the root": (pointing("/etc/passwd"), "'/etc/passwd'", "of this folder"),
    "at the root, by name": (pointing(f"/tmp/{OTHER}"), f"'/tmp/{OTHER}'", "of this folder"),
    "below": (pointing(f"sub/{OTHER}"), f"'sub/{OTHER}'"),
    "in itself": (pointing(f"./{OTHER}"), f"'./{OTHER}'"),
    "round about": (pointing(f"sub/../{OTHER}"), "of this folder"),
    "at home": (pointing(f"~/{OTHER}"), "of this folder"),
    "with a back-slash": (pointing(f"..\\{OTHER}"), "of this folder"),
    "on the net": (pointing(f"https://elsewhere.example/{OTHER}"), "of this folder"),
    "at the settings": (pointing("config.json"), "'config.json'", "of this folder"),
    "at the folder": (pointing("."), "of this folder"),
    "at the one above": (pointing(".."), "of this folder"),
    "at nothing": (pointing(""), f"{UP} is in ''"),
    "at a name with a zero": (pointing(f"{OTHER}\0.safetensors"), "of this folder"),
    "at a name with a line end": (pointing(f"a\n{OTHER}"), "of this folder"),
    "at a name without end": (pointing("a" * 5000 + ".safetensors"), "of this folder"),
    "at null": (pointing(None), f"{UP} is in 'None'"),
    "at a number": (pointing(7), "of this folder"),
    "at a list": (pointing([OTHER]), "of this folder"),
    "at an object": (pointing({"file": OTHER}), "of this folder"),
    "at a file that is not there": (pointing("model-00009-of-00004.safetensors"), "lacks model-00009-of-00004.safe"),
    "at no file but one": (lambda index, folder: index.update(weight_map={UP: OTHER}), "lacks "),
    "at no file": (lambda index, folder: index.update(weight_map={}), "lacks 28 tensors"),
    "with null": (lambda index, folder: index.update(weight_map=None), "has no weight_map"),
    "with a list": (lambda index, folder: index.update(weight_map=[OTHER]), "has no weight_map"),
    "with a text": (lambda index, folder: index.update(weight_map=OTHER), "has no weight_map"),
    "without a map": (lambda index, folder: index.pop("weight_map"), "has no weight_map"),
}


@pytest.mark.parametrize("where", INDICES)
def test_an_index_that_points(where, many, refused):
    change, *words = INDICES[where]
    index = json.loads((many / INDEX).read_text())
    change(index, many)
    (many / INDEX).write_text(json.dumps(index))
    refused(many, *words)


@pytest.mark.parametrize(("text", "word"), [
    (b"", "is no JSON, or only its start"), (b'{"weight_map": {"a"', "is no JSON"), (b"[]", "holds no JSON object"),
    (b"null", "holds no JSON object"), (b"\xff", "is no JSON"), (b"[" * 100_000, "is no JSON"),
    (b'{"weight_map": ' + b"9" * 5000 + b"}", "is no JSON"), (b"NaN", "holds no JSON object")])
def test_an_index_that_is_none(text, word, many, refused):
    (many / INDEX).write_bytes(text)
    refused(many, INDEX, word)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("name", [NORM, UP, EMBED])
def test_the_same_tensor_in_two_files(name, indexed, many, refused):
    files = sorted(many.glob("*.safetensors"))
    weights = {file: load_file(file) for file in files}
    home = next(file for file in files if name in weights[file])
    guest = next(file for file in files if file != home)
    save_file(weights[guest] | {name: weights[home][name]}, guest)
    if not indexed:
        (many / INDEX).unlink()
    refused(many, name, home.name, guest.name, "too: delete the file that does not belong")


def test_a_second_copy_of_the_whole_model_is_refused(folder, refused):
    shutil.copy(folder / FILE, folder / "copy of model.safetensors")
    refused(folder, "is in ", "copy of model.safetensors", FILE, "too: delete the file")


# What stands where a file must


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
@pytest.mark.parametrize("name", ["config.json", FILE, "tokenizer.model"])
def test_what_stands_in_a_files_place(name, what, folder, refused):
    (folder / name).unlink()
    STANDING[what](folder / name)
    refused(folder, f"{folder / name} ", "and must be a file" if "link to" not in what or "folder" in what else
            "does not exist (a link to nothing)")


@pytest.mark.parametrize("what", STANDING)
@pytest.mark.parametrize("name", [INDEX, OTHER])
def test_what_stands_in_the_place_of_a_file_of_several(name, what, many, refused):
    (many / name).unlink()
    STANDING[what](many / name)
    refused(many, f"{many / name} ")


@pytest.mark.parametrize("name", [FILE, "config.json", "tokenizer.model"])
def test_a_link_to_a_file_is_a_file(name, folder, mesh, tmp_path):
    """Hugging Face's cache has nothing else."""
    os.replace(folder / name, tmp_path / "blob")
    (folder / name).symlink_to(tmp_path / "blob")
    load(folder, mesh)


@pytest.mark.parametrize(("name", "most"), [("config.json", JSON_BYTES), (INDEX, JSON_BYTES),
                                            ("tokenizer.model", MOST_BYTES)])
def test_a_file_without_end_is_not_read(name, most, many, refused):
    with (many / name).open("r+b") as file:
        file.truncate(10 * most)  # sparse
    refused(many, name, f"has {10 * most} bytes, and such a file has at most {most}")


def test_a_file_has_its_size(folder):
    assert file_size(folder / FILE) == (folder / FILE).stat().st_size == file_size(folder / FILE, 10**9)


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
    folder = save_hf(init_random(config, mesh), made / "one/tokenizer.model", tmp_path / "model")
    refused(folder, f"{folder}/tokenizer.model has ", f"and the model's embedding {rows} rows: they do not belong")


# Numbers that are none


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, -np.nan])
@pytest.mark.parametrize("name", [NORM, UP, EMBED, "model.layers.0.self_attn.k_proj.weight"])
def test_weights_that_are_no_numbers(name, number, folder, refused):
    weights = load_file(folder / FILE)
    weights[name].flat[-1] = number
    save_file(weights, folder / FILE)
    refused(folder, f"{FILE}: {name} holds infinities or NaN: download the model again", reads=True)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_finite_is_whatever_is_a_number(dtype):
    kind = ml_dtypes.finfo(dtype)
    value = np.array([0, -0.0, 1, -1, kind.max, kind.min, kind.tiny, -kind.tiny, kind.smallest_subnormal], dtype)
    for shape in ((9,), (3, 3)):
        check_finite(value.reshape(shape), "x", "y")
        check_finite(value.reshape(shape).T, "x", "y")
    check_finite(np.zeros((0, 3), dtype), "x", "y")
    for number in (np.nan, -np.nan, np.inf, -np.inf):
        for at in range(9):
            broken = value.copy()
            broken[at] = number
            with pytest.raises(ValueError, match="x holds infinities or NaN: y"):
                check_finite(broken, "x", "y")


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
