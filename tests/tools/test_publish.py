"""Uploads: to Kaggle through the real kagglehub, less its wire, and to a Hugging Face hub on this machine."""

from __future__ import annotations

import base64
import json
import os
import sys
import traceback
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import kagglehub.models
import pytest
import requests
from huggingface_hub import constants

from reasonkit.session.secrets import secret
from tools.publish import PublishError, publish_hub, publish_kaggle

FILES = ["NOTICE", "README.md", "adapter_config.json", "adapter_model.safetensors"]
HANDLE = "someone/gemma2-2b-reasons/flax/2b-it"


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


def test_what_is_sent(export, kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "k")
    said = publish_kaggle(export, HANDLE)
    assert kaggle == {"model": ("someone", "gemma2-2b-reasons"), "handle": HANDLE, "licence": None,
                      "notes": "", "token": "k", "files": FILES}
    assert 'unrestricted_kaggle_model = "someone/gemma2-2b-reasons"' in said and "make it public" in said


def test_a_platforms_secret_serves_and_does_not_stay(export, kaggle, monkeypatch):
    module = types.ModuleType("kaggle_secrets")
    secrets = {"KAGGLE_API_TOKEN": "k", "KAGGLE_MODEL_HANDLE": HANDLE}
    module.UserSecretsClient = lambda: types.SimpleNamespace(get_secret=secrets.__getitem__)
    monkeypatch.setitem(sys.modules, "kaggle_secrets", module)
    publish_kaggle(export, secret("KAGGLE_MODEL_HANDLE"))
    assert kaggle["token"] == "k" and kaggle["handle"] == HANDLE and "KAGGLE_API_TOKEN" not in os.environ


def test_without_credentials_it_says_what_to_set(export, kaggle):
    with pytest.raises(PublishError, match="no Kaggle credentials: make a token .* KAGGLE_API_TOKEN"):
        publish_kaggle(export, HANDLE)
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
        publish_kaggle(export, handle)
    assert kaggle == {}


def test_dots_and_underscores_are_names_too(export, kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "k")
    publish_kaggle(export, "some.one_2/gemma-2.1/flax/1.1_2b-it")
    assert kaggle["handle"] == "some.one_2/gemma-2.1/flax/1.1_2b-it"


@pytest.mark.parametrize("content", [b"{", b"7", b'{"username": "someone"}', b"\xff", None])
def test_a_broken_kaggle_json_is_one_clear_error(export, kaggle, tmp_path, content):
    file = tmp_path / "kaggle.json"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(PublishError, match="kaggle.json.* (cannot be read as credentials|are empty, or hold)"):
        publish_kaggle(export, HANDLE)
    assert kaggle == {}


@pytest.mark.parametrize(("lost", "message"), [("README.md", "lacks README.md"), ("NOTICE", "lacks NOTICE"),
                                               ("adapter_model.safetensors", "lacks weights")])
def test_a_folder_that_is_no_export_is_not_uploaded(export, kaggle, monkeypatch, lost, message):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "k")
    (export / lost).unlink()
    with pytest.raises(PublishError, match=f"{message}: export the model there"):
        publish_kaggle(export, HANDLE)
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
        publish_kaggle(export, HANDLE)
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
        publish_kaggle(export, HANDLE)
    said = "".join(traceback.format_exception(caught.value))
    assert kaggle == {} and "0a1b" not in said and "2c3d" not in said and caught.value.__context__ is None


# The Hugging Face hub


class Hub(BaseHTTPRequestHandler):
    """Takes a model as the hub does: the repository, which files are large (none), then the commit with the rest."""

    refuses = ""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        self.server.heard.append((self.path, self.headers["Authorization"], body))
        if self.refuses:
            return self.answer(403, {"error": self.refuses})
        if self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for file in json.loads(body)["files"]]
            return self.answer(200, {"files": files})
        self.answer(200, {"url": f"{self.server.address}/you/model", "commitUrl": f"{self.server.address}/c/0af1",
                          "commitOid": "0af1", "id": "you/model", "name": "you/model", "private": True})

    def do_GET(self):
        self.answer(200, {"id": "you/model", "modelId": "you/model", "sha": "0af1", "siblings": [], "private": True})

    def answer(self, status: int, content: dict) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine; gives what was posted: (path, authorization, body)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.heard, server.address = [], f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server.heard
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_hub_gets_every_file_in_a_private_repository(export, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    said = publish_hub(export, "you/model")
    (made, key, body), *_, (committed, last_key, commit) = hub
    assert made == "/api/repos/create" and json.loads(body)["visibility"] == "private"
    assert key == last_key == "Bearer hf_0123456789" and committed.startswith("/api/models/you/model/commit/main")
    head, *files = (json.loads(line) for line in commit.splitlines())
    assert head["value"]["summary"] == "Upload"
    assert sorted(file["value"]["path"] for file in files) == FILES
    sent = {file["value"]["path"]: base64.b64decode(file["value"]["content"]) for file in files}
    assert sent["README.md"] == (export / "README.md").read_bytes()
    assert "/you/model. A new repository is private" in said


@pytest.mark.parametrize(("token", "told"), [("", "no token for the Hugging Face hub: make one"),
                                             ("hf_0 1", "HF_TOKEN is empty, or holds a space")])
def test_the_hub_is_not_asked_without_a_token_that_can_be_sent(export, hub, monkeypatch, token, told):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match=told):
        publish_hub(export, "you/model")
    assert hub == []


def test_the_hub_gets_no_folder_that_is_no_export(export, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    (export / "NOTICE").unlink()
    with pytest.raises(PublishError, match="lacks NOTICE"):
        publish_hub(export, "you/model")
    assert hub == []


@pytest.mark.parametrize(("name", "refusal"), [("you/model", TOKEN), ("you/a model", ""), ("you/model", "no access")])
def test_a_refusal_of_the_hub_is_told_without_the_token(export, hub, monkeypatch, name, refusal):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(Hub, "refuses", refusal)
    with pytest.raises(PublishError, match=f"the upload to {name} failed .H.*: run it again") as caught:
        publish_hub(export, name)
    said = "".join(traceback.format_exception(caught.value))
    assert TOKEN[5:] not in said and caught.value.__context__ is None and caught.value.__cause__ is None
