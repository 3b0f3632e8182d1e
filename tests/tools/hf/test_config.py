"""config.json as it is met: each key that may be absent or null is read as transformers reads it, or is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.hf.config import read_config

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "configs.json").read_text(encoding="utf-8"))


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
            read_config(file)
        assert str(file) in str(caught.value) and row["error"] in str(caught.value)
    else:
        _, config = read_config(file)
        assert {name: getattr(config, name) for name in row["reads"]} == row["reads"]


@pytest.mark.parametrize(("text", "message"), [
    (b"", "is empty"), (b'{"model_type": "gemma2", "hid', "is not JSON: "),
    (b"\xff\xfe", "is no UTF-8"), (b"[]", "holds no JSON object"), (b"null", "holds no JSON object"),
    (b"{}", "model_type None is not one of gemma2, gemma3_text, gemma3"),
    (b'{"model_type": "gemma3n"}', "model_type 'gemma3n' is not one of"),
])
def test_a_file_that_is_no_config_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json:? {message}"):
        read_config(tmp_path / "config.json")
