"""The card from manifests as the notebooks write them, and the upload through the real kagglehub, less its wire."""

from __future__ import annotations

import base64
import json
import os
import sys
import traceback
import types

import kagglehub.models
import pytest
import requests

from reasonkit.eval.evaluate import Interval
from reasonkit.session.manifest import prompt_hash, read_manifest, write_manifest
from reasonkit.text.tags import TAGS
from tools.publish import NOTICE, PublishError, handle_from_secrets, publish, write_card

DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
HANDLE = "someone/gemma2-2b-reasons/flax/2b-it"


@pytest.fixture
def manifests(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n")
    common = dict(prompt_sha256=prompt_hash(TAGS.template), minutes=12.5)
    lora = {"rank": 64, "alpha": 64.0}
    score = {"accuracy": Interval(0.5, 0.4, 0.6), "content": Interval(0.75, 0.7, 0.8),
             "form": Interval(0.9, 0.8, 0.95), "steps": Interval(0.25, 0.2, 0.3)}
    write_manifest(tmp_path / "data", "data", inputs={"train": tmp_path / "train.jsonl"}, metrics={"train": 3000},
                   lora=None, extra={"title": "Tiny mix", "licence": "Apache-2.0"}, **common)
    write_manifest(tmp_path / "sft", "sft", inputs={}, metrics={"steps": 120}, lora=lora,
                   extra={"stopped": "data", "settings": {"learning_rate": 2e-05, "steps": 120}}, **common)
    write_manifest(tmp_path / "evaluation", "evaluation", inputs={}, lora=lora, extra={"problems": 600}, **common,
                   metrics={"stock": score | {"accuracy": Interval(0.125, 0.1, 0.15)}, "after SFT": score})
    return [read_manifest(tmp_path / stage, stage=stage) for stage in ("data", "sft", "evaluation")]


@pytest.fixture
def export(tmp_path, manifests):
    folder = tmp_path / "export"
    write_card(folder, manifests, "google/gemma-2-2b-it")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """kagglehub without credentials and without its wire: what would have been sent."""
    for name in list(os.environ):
        if name.startswith("KAGGLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    sent = {}
    monkeypatch.setattr(kagglehub.models, "create_model_if_missing", lambda *names: sent.update(model=names))
    monkeypatch.setattr(kagglehub.models, "upload_files_and_directories",
                        lambda folder, **_: sent.update(files=sorted(os.listdir(folder))) or "tokens")
    monkeypatch.setattr(kagglehub.models, "create_model_instance_or_version",
                        lambda handle, tokens, licence, notes, sigstore: sent.update(
                            handle=str(handle), licence=licence, notes=notes,
                            token=os.environ.get("KAGGLE_API_TOKEN")))
    return sent


# The card


def test_the_card_says_what_the_manifests_say(export):
    card = (export / "README.md").read_text()
    assert card.startswith('---\nlicense: gemma\nbase_model: "google/gemma-2-2b-it"\n')
    for words in ("one LoRA adapter (rank 64, alpha 64.0)", f"````\n{TAGS.template}\n````",
                  "| stock | 12.5 % \\[10.0, 15.0\\] | 75.0 % \\[70.0, 80.0\\] | "
                  "90.0 % \\[80.0, 95.0\\] | 25.0 % \\[20.0, 30.0\\] |",
                  "| after SFT | 50.0 % \\[40.0, 60.0\\] |", "600 test problems", "Tiny mix, Apache-2.0. 3000 train",
                  "| stage | minutes | steps | ended by | settings |",
                  "| sft | 12.5 | 120 of 120 | its last step | learning\\_rate 2e-05 |",
                  "| data | 12.5 | – | – | – |", "jax ", NOTICE.strip()):
        assert words in card
    assert (export / "NOTICE").read_text() == NOTICE


def test_the_data_card_goes_along(tmp_path, manifests):
    (tmp_path / "README.md").write_text("# Data\n")
    write_card(tmp_path / "out", manifests, "base", tmp_path / "README.md")
    assert (tmp_path / "out" / "DATA.md").read_text() == "# Data\n"


def test_a_run_that_the_clock_cut_short_says_so_before_any_figure(tmp_path, manifests, export):
    assert "cut short" not in (export / "README.md").read_text()
    manifests[1]["metrics"]["steps"], manifests[1]["extra"]["stopped"] = 83, "time"
    card = write_card(tmp_path / "short", manifests, "base").read_text()
    said = "**Stage sft was cut short: 83 of 120 steps, ended by the clock. What follows is of that shorter run.**"
    assert card.split("---\n")[2].splitlines()[2] == said, "right below the title"
    assert "| sft | 12.5 | 83 of 120 | the clock | learning\\_rate 2e-05 |" in card


def test_no_name_turns_the_card_round(tmp_path, manifests):
    manifests[0]["extra"]["title"] = "\u202eevil\u2066"
    card = write_card(tmp_path, manifests, "base").read_text()
    assert "\\[U+202E\\]evil\\[U+2066\\]" in card and not set(card) & set(DIRECTIONS)


def test_names_from_files_are_no_markup(tmp_path, manifests):
    manifests[0]["extra"]["title"] = "a | b\n# <script>[x](y)"
    card = write_card(tmp_path, manifests, "x: y\n---\n# z").read_text()
    assert "a \\| b \\# \\<script\\>\\[x\\](y), Apache-2.0." in card and "<script>" not in card
    assert card.splitlines()[2] == 'base_model: "x: y\\n---\\n# z"' and "\n# z" not in card


@pytest.mark.parametrize("without", ["data", "evaluation", "licence", "problems"])
def test_a_card_without_its_facts_is_not_written(tmp_path, manifests, without):
    for manifest in manifests:
        manifest["extra"].pop(without, None)
    kept = [manifest for manifest in manifests if manifest["stage"] != without]
    missing = {"licence": "extra.licence is missing", "problems": "extra.problems is missing"}.get(
        without, f"the card needs '{without}' of the manifests ")
    with pytest.raises(ValueError, match=f"{missing}.*[:,] run the notebooks from 01 again"):
        write_card(tmp_path / "out", kept, "base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("stage", "key", "value", "told"), [
    ("data", "extra.title", " ", "extra.title is ' ', and must be a text"),
    ("data", "extra.licence", None, "extra.licence is None"), ("data", "metrics.train", "30", "metrics.train is '30'"),
    ("data", "metrics", [], "metrics is .., and"), ("data", "inputs.train", {}, "inputs.train.path is missing"),
    ("data", "inputs.train.sha256", "", "inputs.train.sha256 is ''"), ("data", "prompt_sha256", "x", "prompt_sha256 "),
    ("sft", "minutes", "2", "minutes is '2'"), ("sft", "minutes", float("nan"), "minutes is nan"),
    ("sft", "extra", None, "extra is None"), ("sft", "versions.jax", 3, "versions.jax is 3"),
    ("evaluation", "extra.problems", 0.5, "extra.problems is 0.5"),
    ("evaluation", "metrics.stock", None, "metrics.stock is None"),
    ("evaluation", "metrics.stock.form", None, "metrics.stock.form is None"),
    ("evaluation", "metrics.stock.form", [1.0], "metrics.stock.form is .1.0."),
    ("evaluation", "metrics.stock.form", [0.5, "0.4", 0.6], r"metrics.stock.form.1. is '0.4'"),
    ("evaluation", "metrics.stock.steps", [0.5, float("inf"), 0.6], r"metrics.stock.steps.1. is inf"),
])
def test_a_card_of_a_manifest_that_is_none_is_not_written(tmp_path, manifests, stage, key, value, told):
    place = next(manifest for manifest in manifests if manifest["stage"] == stage)
    *way, last = key.split(".")
    for name in way:
        place = place[name]
    place[last] = value
    with pytest.raises(ValueError, match=f"no card: the manifest of '{stage}' is none .{told}.*, run the notebook"):
        write_card(tmp_path / "out", manifests, "base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["sft", "evaluation"])
@pytest.mark.parametrize("name", ["train", "test", "another name"])
def test_a_card_states_no_hash_of_another_file(tmp_path, manifests, stage, name):
    """The stages knew another file by that path than notebook 1 wrote."""
    other = next(manifest for manifest in manifests if manifest["stage"] == stage)
    other["inputs"] = {name: dict(manifests[0]["inputs"]["train"])}
    write_card(tmp_path / "same", manifests, "base")
    other["inputs"][name]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match=f"train.jsonl has changed between the stages: '{stage}' knew another than "
                                         "those before it, and a card would state the hash of another file: run the"):
        write_card(tmp_path / "out", manifests, "base")
    assert not (tmp_path / "out").exists()


# The upload


def test_what_is_sent(export, kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "k")
    said = publish(export, HANDLE, "step 12", "Gemma")
    assert kaggle == {"model": ("someone", "gemma2-2b-reasons"), "handle": HANDLE, "licence": "Gemma",
                      "notes": "step 12", "token": "k",
                      "files": ["NOTICE", "README.md", "adapter_model.safetensors"]}
    assert 'unrestricted_kaggle_model = "someone/gemma2-2b-reasons"' in said and "make it public" in said


def test_a_platforms_secret_serves_and_does_not_stay(export, kaggle, monkeypatch):
    module = types.ModuleType("kaggle_secrets")
    secrets = {"KAGGLE_API_TOKEN": "k", "KAGGLE_MODEL_HANDLE": HANDLE}
    module.UserSecretsClient = lambda: types.SimpleNamespace(get_secret=secrets.__getitem__)
    monkeypatch.setitem(sys.modules, "kaggle_secrets", module)
    publish(export, handle_from_secrets())
    assert kaggle["token"] == "k" and kaggle["handle"] == HANDLE and "KAGGLE_API_TOKEN" not in os.environ


def test_without_a_secret_nothing_is_published(kaggle):
    assert handle_from_secrets() is None


def test_without_credentials_it_says_what_to_set(export, kaggle):
    with pytest.raises(PublishError, match="no Kaggle credentials: make a token .* KAGGLE_API_TOKEN"):
        publish(export, HANDLE)
    assert kaggle == {}


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        (HANDLE + "/1", "names a version: leave it out"),
        (HANDLE + "/0", "names a version: leave it out"),
        (HANDLE + "/x", "Invalid version number: x"),
        ("someone/gemma2-2b-reasons", "Invalid model handle: .*it is owner/model/framework/variation"),
        ("someone/gemma2-2b-reasons/caffe/2b", "'caffe' is not a valid ModelFramework"),
        ("someone/My Model/flax/2b", "'My Model' must be small letters, digits and, inside, hyphens, underscores and"),
        ("someone/model/flax/.2b", "'.2b' must be small letters"),
        ("some\none/model/flax/2b", "must be small letters"),
        ("someone//flax/2b", "'' must be small letters"),
    ],
)
def test_a_handle_that_is_none_is_named(export, kaggle, monkeypatch, handle, message):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "k")
    with pytest.raises(PublishError, match=message):
        publish(export, handle)
    assert kaggle == {}


def test_dots_and_underscores_are_names_too(export, kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "k")
    publish(export, "some.one_2/gemma-2.1/flax/1.1_2b-it")
    assert kaggle["handle"] == "some.one_2/gemma-2.1/flax/1.1_2b-it"


@pytest.mark.parametrize("content", [b"{", b"7", b'{"username": "someone"}', b"\xff", None])
def test_a_broken_kaggle_json_is_one_clear_error(export, kaggle, tmp_path, content):
    file = tmp_path / "kaggle.json"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(PublishError, match="kaggle.json.* (cannot be read as credentials|are empty, or hold)"):
        publish(export, HANDLE)
    assert kaggle == {}


@pytest.mark.parametrize(("lost", "message"), [("README.md", "lacks README.md"), ("NOTICE", "lacks NOTICE"),
                                               ("adapter_model.safetensors", "lacks weights")])
def test_a_folder_that_is_no_export_is_not_uploaded(export, kaggle, monkeypatch, lost, message):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "k")
    (export / lost).unlink()
    with pytest.raises(PublishError, match=f"{message}: export the model there"):
        publish(export, HANDLE)
    assert kaggle == {}


TOKEN = "KGAT_0a1b2c3d4e5f60718293a4b5c6d7e8f9"
TOLD = {
    "raw": TOKEN, "header": f"Invalid header value b'Bearer {TOKEN}\\n'",
    "repr": repr({"Authorization": f"Bearer {TOKEN}"}),
    "JSON": json.dumps({"token": TOKEN}), "URL": f"HTTPSConnectionPool: /upload?token={TOKEN}&n=1", "cut": TOKEN[:20],
    "bytes": repr(TOKEN.encode()), "base64": base64.b64encode(f"someone:{TOKEN}".encode()).decode(),
    "capitals": TOKEN.upper(), "hexadecimal": TOKEN.encode().hex(), "lines": f"{TOKEN[:16]}\n{TOKEN[16:]}",
    "twice": TOKEN * 2,
    "a signed address": "PUT https://u:0a1b2c3d4e5f@storage.example/o/1?X-Signature=0a1b2c3d4e5f failed",
    "another's header": "Authorization: Bearer 0a1b2c3d4e5f.of.another",
}


@pytest.mark.parametrize("where", ["token", "pair", "file", "secret"])
@pytest.mark.parametrize("told", TOLD)
def test_a_failed_upload_is_told_without_the_token(export, kaggle, monkeypatch, tmp_path, told, where):
    def fail(*_, **__):
        try:
            raise OSError(TOLD[told])
        except OSError as error:
            raise requests.ConnectionError(f"refused: {TOLD[told]}") from error

    if where == "file":
        (tmp_path / "kaggle.json").write_text(json.dumps({"username": "someone", "key": TOKEN}))
    elif where == "pair":
        monkeypatch.setenv("KAGGLE_USERNAME", "someone")
        monkeypatch.setenv("KAGGLE_KEY", TOKEN)
    elif where == "secret":
        module = types.ModuleType("kaggle_secrets")
        module.UserSecretsClient = lambda: types.SimpleNamespace(get_secret={"KAGGLE_API_TOKEN": TOKEN}.__getitem__)
        monkeypatch.setitem(sys.modules, "kaggle_secrets", module)
    else:
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    monkeypatch.setattr(kagglehub.models, "upload_files_and_directories", fail)
    with pytest.raises(PublishError, match="the upload to .* failed .ConnectionError: refused: .*; nothing") as caught:
        publish(export, HANDLE)
    said = "".join(traceback.format_exception(caught.value)).lower()
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    assert not [piece for form in (TOKEN, TOKEN.encode().hex(), "MGExYjJjM2Q0ZTVm") for n in range(len(form) - 7)
                if (piece := form[n:n + 8].lower()) in said]


@pytest.mark.parametrize("token", [
    "KGAT_0a1b2c\n3d4e5f60", "KGAT_0a1b 2c3d4e5f60", "KGAT_0a1b\x7f2c3d4e", "KGAT_0a1b\u00e42c3d4e",
    "KGAT_0a1b\u200b2c3d4e", "\x1b[31mKGAT_0a1b2c3d4e"], ids=ascii)
def test_a_token_that_no_header_carries_is_not_sent(export, kaggle, monkeypatch, token):
    monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    with pytest.raises(PublishError, match="hold a space, a line break or a letter that no key has: make a") as caught:
        publish(export, HANDLE)
    said = "".join(traceback.format_exception(caught.value))
    assert kaggle == {} and "0a1b" not in said and "2c3d" not in said and caught.value.__context__ is None
