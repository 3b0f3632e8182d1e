"""The data card: the hub's own clients read it, its figures are those of the run, and no name breaks its form."""

from __future__ import annotations

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard

from reasonkit.data import problems
from reasonkit.data.filters import Dropped, Ledger
from reasonkit.data.rows import save_splits
from reasonkit.data.sources import File, Hub
from reasonkit.session.manifest import file_sha256
from tools.data_card import write_data_card

EVIL = "a | b\n# <script>[x](y) \u202e"


def card(folder, recipe, splits, ledger=None):
    paths = save_splits(splits, folder)
    return write_data_card(recipe, splits, paths, ledger or Ledger(), 7), paths


@pytest.fixture(scope="module")
def families():
    recipe = problems.load_recipe("tiny_mix")
    return recipe, problems.make_splits(recipe, {"train": 10, "validation": 3, "test": 4}, 0)


@pytest.fixture
def sourced(families):
    """A recipe with two sources, and rows of both."""
    common = {"licence": "MIT", "address": "https://example.org/a_b", "domain": "maths", "columns": {"question": "{q}"}}
    recipe = families[0].model_copy(update={"families": [], "sources": [
        File.model_validate({"name": "mine", "from": "file", "path": "/home/somebody/mine.csv", **common}),
        Hub.model_validate({"name": "far", "from": "hub", "id": "some/set", "split": "train", "revision": "abc",
                            **common, "licence": "CC-BY-NC-4.0"})]})
    row = families[1]["train"][0]
    rows = [{**row, "domain": "maths", "task": "", "source": source, "licence": licence,
             "kind": kind, "reasoning": reasoning}
            for source, licence, kind, reasoning in (
                ("mine", "MIT", "number", "1+1=2"), ("far", "CC-BY-NC-4.0", "open", ""),
                ("far", "CC-BY-NC-4.0", "number", " "))]
    return recipe, {"train": Dataset.from_list(rows)}


def test_the_folder_is_a_data_set_for_the_hubs_clients(tmp_path, families):
    path, paths = card(tmp_path / "data", *families)
    (path.parent / "manifest.json").write_text("{}")
    loaded = load_dataset(str(path.parent), cache_dir=str(tmp_path / "cache"))
    assert {name: rows.to_list() for name, rows in loaded.items()} == {
        name: rows.to_list() for name, rows in families[1].items()}
    data = DatasetCard.load(path).data
    assert data.license == ["apache-2.0"] and data.pretty_name == families[0].title


def test_its_figures_are_those_of_the_run(tmp_path, sourced):
    ledger = Ledger([("read", 9, 5), ("dealt to train", 5, 3)], [Dropped("read", "no answer", "far-1", "?")] * 4,
                    ["off: other, licence 'x'"])
    path, paths = card(tmp_path, *sourced, ledger)
    text = path.read_text()
    assert DatasetCard.load(path).data.license == ["mit", "other"]
    for line in (f"| train | 3 | 1 | 1 | {file_sha256(paths['train'])} |", "| read | 9 | 5 |",
                 "| read | no answer | 4 |", "| mine | file mine.csv | maths | [MIT](<https://example.org/a_b>) | 1 |",
                 "seed 7", "| domain | train |", "| maths | 3 |",
                 "| far | hub some/set train @ abc | maths | [CC-BY-NC-4.0](<https://example.org/a_b>) | 2 |",
                 "- off: other, licence 'x'"):
        assert line in text
    assert "somebody" not in text, "a path is nobody's business"


def test_no_name_breaks_its_form(tmp_path, sourced):
    recipe, splits = sourced
    sources = [source.model_copy(update={"domain": EVIL, "licence": EVIL, "address": f"https://x/{EVIL}>"})
               for source in recipe.sources]
    recipe = recipe.model_copy(update={"title": EVIL, "name": EVIL, "licence": EVIL, "sources": sources})
    rows = splits["train"].map(lambda row: {"licence": EVIL})
    ledger = Ledger([(EVIL, 1, 1)], [Dropped(EVIL, EVIL, "", EVIL)], [EVIL])
    path, _ = card(tmp_path, recipe, {"train": rows}, ledger)
    text = path.read_text()
    assert DatasetCard.load(path).data.pretty_name == EVIL.replace("\u202e", "[U+202E]")
    body = text.split("\n---\n")[1]
    assert "<script>" not in body and "\u202e" not in text and "\n# <" not in body
    tables = [line for line in body.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {3, 4, 6}
    assert "](<https://x/a%20%7C%20b%0A#%20%3Cscript%3E[x](y)%20[U+202E]%3E>)" in text


def test_the_same_run_writes_the_same_card(tmp_path, families):
    recipe, splits = families
    one, two = (card(tmp_path / name, recipe, splits)[0].read_bytes() for name in "ab")
    assert one == two
