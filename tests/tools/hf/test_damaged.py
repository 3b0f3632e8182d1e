"""Hugging Face folders as a hostile or a broken download leaves them: refused, and by name."""

from __future__ import annotations

import json
import shutil

import jax
import pytest
from safetensors.numpy import load_file, save_file
from tiny_gemma import small_config, train_tokenizer

from reasonkit.models.mesh import make_mesh
from tools.flax import init_random
from tools.hf.weights import INDEX, read_arrays, save_hf

FILE, NORM, UP, EMBED = ("model.safetensors", "model.norm.weight", "model.layers.1.mlp.up_proj.weight",
                         "model.embed_tokens.weight")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small model, whole: as one file, and in several with an index."""
    root, mesh = tmp_path_factory.mktemp("made"), make_mesh(jax.devices()[:1], 1, 1)
    pieces, model = train_tokenizer(root / "pieces"), init_random(small_config(), mesh)
    save_hf(model, pieces, root / "one")
    save_hf(model, pieces, root / "many", shard_bytes=20_000)
    return root


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made / "one", tmp_path / "model")


@pytest.fixture
def many(made, tmp_path):
    return shutil.copytree(made / "many", tmp_path / "model")


DAMAGED = "is no safetensors file, or only a part of one ("


def refused(folder, *words):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_arrays(folder)
    message = str(caught.value)
    assert str(folder) in message and len(message) < 1500, message
    for word in words:
        assert word in message, message


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
    "overlaps by a byte": moved(UP, -1, -1),
    "leaves a gap": moved(UP, 1, 1),
    "is shorter than its shape": moved(UP, 0, -2),
    "is longer than its shape": moved(UP, 0, 2),
    "lies where another does": lambda h, d: with_entry(UP, data_offsets=h["model.layers.0.mlp.up_proj.weight"][
        "data_offsets"])(h, d),
    "lies past the end": moved(UP, BIG, BIG),
    "ends before it starts": lambda h, d: with_entry(UP, data_offsets=h[UP]["data_offsets"][::-1])(h, d),
    "starts below 0": with_entry(UP, data_offsets=[-8, 3064]),
    "has offsets that are text": with_entry(UP, data_offsets=["0", "3072"]),
    "has offsets with a point": with_entry(UP, data_offsets=[0.0, 3072.0]),
    "has offsets that are yes and no": with_entry(UP, data_offsets=[False, True]),
    "has one offset": with_entry(UP, data_offsets=[0]),
    "has three offsets": with_entry(UP, data_offsets=[0, 1, 2]),
    "has null offsets": with_entry(UP, data_offsets=None),
    "has offsets as an object": with_entry(UP, data_offsets={"start": 0}),
    "has huge offsets": with_entry(UP, data_offsets=[0, 10**400]),
    "has a shape below 0": with_entry(UP, shape=[-48, -32]),
    "has a shape with a point": with_entry(UP, shape=[48.0, 32]),
    "has a null shape": with_entry(UP, shape=None),
    "has null in its shape": with_entry(UP, shape=[None, 32]),
    "has a number as its shape": with_entry(UP, shape=1536),
    "has a text as its shape": with_entry(UP, shape="48x32"),
    "has a huge shape": with_entry(UP, shape=[BIG, BIG]),
    "has a shape that no integer holds": with_entry(UP, shape=[10**400]),
    "has a nested shape": with_entry(UP, shape=[[48, 32]]),
    "has no shape": without("shape"),
    "has no dtype": without("dtype"),
    "has no offsets": without("data_offsets"),
    "has an unknown dtype": with_entry(UP, dtype="F99"),
    "has 8-bit floats of other bytes": with_entry(UP, dtype="F8_E4M3"),
    "has complex numbers of other bytes": with_entry(UP, dtype="C64"),
    "has a dtype in small letters": with_entry(UP, dtype="bf16"),
    "has another width": with_entry(UP, dtype="F32"),
    "has a null dtype": with_entry(UP, dtype=None),
    "has a list as its dtype": with_entry(UP, dtype=["BF16"]),
    "is null": lambda h, d: (h | {UP: None}, d),
    "is a list": lambda h, d: (h | {UP: [48, 32]}, d),
    "is a text": lambda h, d: (h | {UP: "x" * 9999}, d),
    "is missing": lambda h, d: ({k: v for k, v in h.items() if k != UP}, d),
    "has bytes after it": lambda h, d: (h, d + b"\0\0"),
    "has too few bytes": lambda h, d: (h, d[:-2]),
    "has no bytes at all": lambda h, d: (h, b""),
}
OTHERS = {
    "has the shape turned": (with_entry(UP, shape=[32, 48]), f"{UP} is (32, 48), and config.json says (48, 32)"),
    "has the shape flat": (with_entry(UP, shape=[1536]), f"{UP} is (1536,), and config.json says (48, 32)"),
    "has a shape of a thousand axes": (with_entry(UP, shape=[1] * 10 + [1536]), f"{UP} is (1, "),
    "has whole numbers": (with_entry(UP, dtype="I16"), f"{UP} is I16, not BF16, F16, F32: take the model that is not"),
    "is missing with its bytes": (lambda h, d: last_dropped(h, d), "lacks 1 tensors of a gemma3 of 2 layers, such as"),
    "has a surplus beside it": (lambda h, d: (h | {"model.layers.2.x": {"dtype": "BF16", "shape": [0],
                                "data_offsets": [0, 0]}}, d), "has besides 1 tensors", "model.layers.2.x"),
    "has a namesake of an older layout": (lambda h, d: (h | {"language_model." + NORM: {"dtype": "BF16", "shape": [0],
                                          "data_offsets": [0, 0]}}, d), f"{NORM} is in ", " too: delete the file that"),
}


def last_dropped(header, data):
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    last = max(entries, key=lambda name: entries[name]["data_offsets"])
    return {name: entries[name] for name in entries if name != last}, data[:entries[last]["data_offsets"][0]]


@pytest.mark.parametrize("what", ENTRIES)
def test_a_damaged_header_is_refused(what, folder):
    write(folder / FILE, *ENTRIES[what](*header_of((folder / FILE).read_bytes())))
    refused(folder, FILE, DAMAGED)


@pytest.mark.parametrize("what", OTHERS)
def test_a_tensor_that_is_not_what_it_must_be(what, folder):
    change, *words = OTHERS[what]
    write(folder / FILE, *change(*header_of((folder / FILE).read_bytes())))
    refused(folder, *words)


HEADERS = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "a header of no bytes": b"\0" * 64,
    "a header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "the longest header": b"\xff" * 8 + b"{}",
    "a header that is no JSON": (8).to_bytes(8, "little") + b"no json!",
    "half a header": (8).to_bytes(8, "little") + b'{"a": {"',
    "a header of lists": (2).to_bytes(8, "little") + b"[]",
    "a null header": (4).to_bytes(8, "little") + b"null",
    "a header of other letters": (2).to_bytes(8, "little") + b"\xff\xfe",
    "a header of zeros": (9).to_bytes(8, "little") + b"\0" * 9,
    "a header nested without end": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "an object nested without end": (500_000).to_bytes(8, "little") + b'{"a":' * 100_000,
    "a header of metadata alone": (19).to_bytes(8, "little") + b'{"__metadata__": 3}',
    "a pointer of git's": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "a page of an error": b"<!DOCTYPE html><html><body>404</body></html>",
    "an archive": b"PK\x03\x04" + b"\0" * 60,
    "a checkpoint of torch": b"\x80\x02}q\x00." + b"\0" * 60,
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_file_that_is_no_safetensors(what, folder):
    (folder / FILE).write_bytes(HEADERS[what])
    refused(folder, FILE, DAMAGED)


def test_an_empty_header_lacks_all_tensors(folder):
    (folder / FILE).write_bytes((2).to_bytes(8, "little") + b"{}")
    refused(folder, "lacks 28 tensors of a gemma3 of 2 layers")


# The index

OTHER = "model-00002-of-00004.safetensors"


def pointing(to):
    return lambda index, folder: index["weight_map"].update({UP: to})


INDICES = {
    "above": (pointing(f"../{OTHER}"), f"lacks ../{OTHER} of "),
    "far above": (pointing("../../../etc/passwd"), "lacks ../../../etc/passwd of "),
    "at the root": (pointing("/etc/passwd"), "lacks /etc/passwd of "),
    "at the root, by name": (pointing(f"/tmp/{OTHER}"), f"lacks /tmp/{OTHER} of "),
    "below": (pointing(f"sub/{OTHER}"), f"lacks sub/{OTHER} of "),
    "in itself": (pointing(f"./{OTHER}"), f"lacks ./{OTHER} of "),
    "round about": (pointing(f"sub/../{OTHER}"), "lacks "),
    "at home": (pointing(f"~/{OTHER}"), "lacks "),
    "with a back-slash": (pointing(f"..\\{OTHER}"), "lacks "),
    "on the net": (pointing(f"https://elsewhere.example/{OTHER}"), "lacks "),
    "at the settings": (pointing("config.json"), "lacks config.json of "),
    "at the folder": (pointing("."), "lacks "),
    "at the one above": (pointing(".."), "lacks "),
    "at nothing": (pointing(""), "lacks "),
    "at a name with a zero": (pointing(f"{OTHER}\0.safetensors"), "lacks "),
    "at a name with a line end": (pointing(f"a\n{OTHER}"), "lacks "),
    "at a name without end": (pointing("a" * 5000 + ".safetensors"), "lacks "),
    "at null": (pointing(None), "lacks None of "),
    "at a number": (pointing(7), "lacks "),
    "at a list": (pointing([OTHER]), "lacks "),
    "at an object": (pointing({"file": OTHER}), "lacks "),
    "at a file that is not there": (pointing("model-00009-of-00004.safetensors"), "lacks model-00009-of-00004.safe"),
    "at no file but one": (lambda index, folder: index.update(weight_map={UP: OTHER}), "lacks "),
    "at no file": (lambda index, folder: index.update(weight_map={}), "lacks 28 tensors"),
    "with null": (lambda index, folder: index.update(weight_map=None), "has no weight_map"),
    "with a list": (lambda index, folder: index.update(weight_map=[OTHER]), "has no weight_map"),
    "with a text": (lambda index, folder: index.update(weight_map=OTHER), "has no weight_map"),
    "without a map": (lambda index, folder: index.pop("weight_map"), "has no weight_map"),
}


@pytest.mark.parametrize("where", INDICES)
def test_an_index_that_points(where, many):
    change, *words = INDICES[where]
    index = json.loads((many / INDEX).read_text())
    change(index, many)
    (many / INDEX).write_text(json.dumps(index))
    refused(many, *words)


@pytest.mark.parametrize(("text", "word"), [
    (b"", "is empty"), (b'{"weight_map": {"a"', "is not JSON"), (b"[]", "holds no JSON object"),
    (b"null", "holds no JSON object"), (b"\xff", "is no UTF-8"), (b"[" * 100_000, "is not JSON"),
    (b'{"weight_map": ' + b"9" * 5000 + b"}", "is not JSON"), (b"NaN", "is not JSON")])
def test_an_index_that_is_none(text, word, many):
    (many / INDEX).write_bytes(text)
    refused(many, INDEX, word)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("name", [NORM, UP, EMBED])
def test_the_same_tensor_in_two_files(name, indexed, many):
    files = sorted(many.glob("*.safetensors"))
    weights = {file: load_file(file) for file in files}
    home = next(file for file in files if name in weights[file])
    guest = next(file for file in files if file != home)
    save_file(weights[guest] | {name: weights[home][name]}, guest)
    if not indexed:
        (many / INDEX).unlink()
    refused(many, name, home.name, guest.name, "too: delete the file that does not belong")


def test_a_second_copy_of_the_whole_model_is_refused(folder):
    shutil.copy(folder / FILE, folder / "copy of model.safetensors")
    refused(folder, "is in ", "copy of model.safetensors", FILE, "too: delete the file")
