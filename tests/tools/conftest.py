"""The manifests of a run, as its notebooks write them, and an export with its card."""

from __future__ import annotations

import pytest

from reasonkit.eval.evaluate import Interval
from reasonkit.session.manifest import prompt_hash, read_manifest, write_manifest
from reasonkit.text.tags import TAGS
from tools.card import write_card


@pytest.fixture
def manifests(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n")
    common = dict(prompt_sha256=prompt_hash(TAGS.template), minutes=12.5)
    lora = {"rank": 64, "alpha": 64.0}
    score = {"accuracy": Interval(0.5, 0.4, 0.6), "content": Interval(0.75, 0.7, 0.8),
             "form": Interval(0.9, 0.8, 0.95), "steps": Interval(0.25, 0.2, 0.3)}
    write_manifest(tmp_path / "data", "data", inputs={"train": tmp_path / "train.jsonl"}, metrics={"train": 3000},
                   lora=None, **common,
                   extra={"title": "Tiny mix", "licence": "Apache-2.0", "asked": {"lengths": [300, 1100]}})
    write_manifest(tmp_path / "sft", "sft", inputs={}, metrics={"steps": 120}, lora=lora,
                   extra={"stopped": "data", "settings": {"learning_rate": 2e-05, "steps": 120}}, **common)
    write_manifest(tmp_path / "evaluation", "evaluation", inputs={}, lora=lora, extra={"problems": 600}, **common,
                   metrics={"stock": score | {"accuracy": Interval(0.125, 0.1, 0.15)}, "after SFT": score})
    return [read_manifest(tmp_path / stage, stage=stage) for stage in ("data", "sft", "evaluation")]


@pytest.fixture
def export(tmp_path, manifests):
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_bytes(b"weights")
    write_card(folder, manifests, "google/gemma-2-2b-it")
    return folder
