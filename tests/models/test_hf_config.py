"""config.json as it is met: each key that may be absent or null is read as transformers reads it, or is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reasonkit.models.hf_config import again, read_config

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "configs.json").read_text(encoding="utf-8"))


def label(row: dict) -> str:
    changes = [f"{key}={json.dumps(value)[:30]}" for key, value in row.get("set", {}).items()]
    return " ".join([row["base"], *changes, *(f"no {key}" for key in row.get("drop", []))])


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=label)
def test_a_config_is_read_right_or_named(tmp_path, row):
    settings = GOLDEN["bases"][row["base"]] | row.get("set", {})
    settings = {key: value for key, value in settings.items() if key not in row.get("drop", ())}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings))
    if "error" in row:
        with pytest.raises(ValueError) as caught:
            read_config(file, True)
        assert str(file) in str(caught.value) and row["error"] in str(caught.value)
    else:
        _, config = read_config(file, True)
        assert {name: getattr(config, name) for name in row["reads"]} == row["reads"]


@pytest.mark.parametrize(("text", "message"), [
    (b"", "is no JSON, or only its start"), (b'{"model_type": "gemma2", "hid', "is no JSON, or only its start"),
    (b"\xff\xfe", "is no JSON, or only its start"), (b"[]", "holds no JSON object"), (b"null", "holds no JSON object"),
    (b"{}", "model_type None is not one of gemma2, gemma3_text, gemma3"),
    (b'{"model_type": "gemma3n"}', "model_type 'gemma3n' is not one of"),
])
def test_a_file_that_is_no_config_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json:? {message}"):
        read_config(tmp_path / "config.json", True)


def test_how_to_download_again_names_kagglehubs_marker(tmp_path):
    folder = tmp_path / "models" / "someone" / "some.model_2" / "flax" / "it" / "1"
    (folder / "checkpoint").mkdir(parents=True)
    assert again(folder / "checkpoint") == "download the model again"
    folder.with_name("1.complete").touch()
    for path in (folder, folder / "checkpoint", folder / "config.json"):
        assert again(path) == (f"delete {folder} and {folder.with_name('1.complete')}, then run this again to download "
                               "the model once more")
