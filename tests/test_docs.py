"""The pages run: their Python blocks work in order, their links lead somewhere, and the files they name are there."""

from __future__ import annotations

import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*.md")),
         ROOT / "benchmarks" / "RESULTS.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
NAMED = re.compile(r"`((?:reasonkit|recipes|tools|notebooks|data_recipes|benchmarks|docs|findings|tests)/[\w./]+)`")
WRITTEN = ("recipes/mine.py",)  # files that a page tells the reader to make


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))],
                         ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_are_there(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [name for name in NAMED.findall(text) if name not in WRITTEN and not (ROOT / name).exists()] == []


def test_the_addresses_of_a_fork_open_notebooks_that_are_there():
    for page in ("README.md", "docs/start.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        found = re.findall(r"\bhttps://(kaggle|colab)\S+?YOU/FORK/blob/main/([^\s`)]+)", text)
        assert found == [("kaggle", "notebooks/submission.ipynb"), ("colab", "notebooks/submission.ipynb")]
        assert all((ROOT / path).is_file() for _, path in found)


def test_the_cell_for_colab_puts_the_run_on_drive(monkeypatch):
    from reasonkit.run import artifacts  # JAX looks for Colab too

    (cell,) = re.findall(r"## On Colab\n.*?```py\n(.*?)```", (ROOT / "docs/start.md").read_text(encoding="utf-8"), re.S)
    mounted, colab = [], types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setenv("REASONKIT_ARTIFACTS", "artifacts")
    exec(compile(cell, "docs/start.md", "exec"), {})
    assert artifacts().is_relative_to(mounted[0]) and artifacts() == Path("/content/drive/MyDrive/reasonkit")


def test_the_source_on_the_page_of_the_teacher_is_one():
    from reasonkit.data.sources import DataRecipe

    text = (ROOT / "docs" / "teacher.md").read_text(encoding="utf-8").replace("\n   ", "\n")
    split = {"train": 80, "validation": 10, "test": 10}
    recipe = DataRecipe.model_validate({"title": "t", "licence": "per source", "split": split, "domain": "science",
                                        **tomllib.loads(TOML.findall(text)[0])})
    assert [source.kind_of for source in recipe.sources] == ["teacher"] and recipe.sources[0].weight == 2.0


def test_the_rubric_on_its_page_is_one(tmp_path, monkeypatch):
    from reasonkit.judge import rubric

    (block,) = TOML.findall((ROOT / "docs" / "your_rubric.md").read_text(encoding="utf-8"))
    (tmp_path / "mine.toml").write_text(block)
    monkeypatch.setattr(rubric, "DOMAINS", tmp_path)
    made = rubric.load_domain("mine")
    assert [criterion.pitfall for criterion in made.rubric] == [False, True]


@pytest.mark.parametrize("page", ["README.md", "notebooks/submission_template.py"])
def test_a_rate_that_is_shown_is_in_the_results(page):
    rate = re.compile(r"\d+\.\d % \[\d+\.\d, \d+\.\d\]")
    shown, kept = (set(rate.findall((ROOT / path).read_text(encoding="utf-8").replace("*", "")))
                   for path in (page, "benchmarks/RESULTS.md"))
    assert shown and shown <= kept
