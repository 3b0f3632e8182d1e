"""The page beside each recipe: every recipe has one, and a finished run writes it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from reasonkit.eval.evaluate import EvalResult
from reasonkit.session.setup import find_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[1]
KEPT = "## On Kaggle\n"


@pytest.fixture(scope="module")
def writer():
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a script
    spec = importlib.util.spec_from_file_location("recipe_pages", ROOT / "benchmarks/recipe_pages.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_page_of_its_run(name):
    text = (ROOT / f"recipes/{name}.md").read_text(encoding="utf-8")
    titles = ["## Run it", "## What to expect", "## One question", "## Curves of", KEPT]
    assert [text.count(title) for title in titles] == [1] * len(titles)
    assert len(text.splitlines()) <= 60 and len(text.partition(KEPT)[2].split()) > 10
    said = importlib.import_module(f"recipes.{name}").__doc__.strip()
    assert said in text, f"run benchmarks/recipe_pages.py: the text of recipes/{name}.py has changed"
    assert all(f"make {goal} RECIPE={name}  # " in text for goal in ("demo", "submission"))


def sample(completion, right):
    return {"question": "Is it on?", "completion": completion, "answer": "on", "content": right, "correct": right,
            "format_ok": right, "steps": float(right), "failures": [], "id": "1", "family": "lamp", "kind": "text",
            "gold": "on"}


def test_a_page_is_written_from_a_run_and_keeps_what_is_written_by_hand(writer, tmp_path):
    stages = find_recipe("g_rar").training_stages
    for stage, steps in zip(stages, (7, 5), strict=True):
        (tmp_path / stage).mkdir()
        manifest = {"written": "2026-01-02T03:04:05Z", "metrics": {"steps": steps}}
        (tmp_path / stage / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "evaluation").mkdir()
    for name, completion in (("base_model", "off"), ("after_sft", "```` </answer>"), ("after_grpo", "yes, on")):
        EvalResult([sample(completion, name == "after_grpo"), sample("on", True)]).to_json(
            tmp_path / "evaluation" / f"{name}.json")
    text = writer.page(tmp_path, "g_rar", "abc1234", KEPT + "By hand.\n")
    assert "# g_rar: SFT → GRPO\n" in text and "code abc1234" in text and "2026-01-02" in text
    assert "| base model | – | 50.0 % [" in text and "| SFT | 7 | 50.0 % [" in text
    assert "| GRPO | 5 | 100.0 % [" in text
    assert "`````text\nIs it on?\n\nbase model: off\n\nSFT: ```` </answer>\n\nGRPO: yes, on\n`````\n" in text
    assert text.endswith("## On Kaggle\nBy hand.\n")
