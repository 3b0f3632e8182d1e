"""Planted faults: one bad row, file or key among good ones is found by name, and the good ones stay."""

from __future__ import annotations

import csv
import json
import re

import pyarrow as pa
import pyarrow.parquet
import pytest

from reasonkit.data import curation, problems
from reasonkit.data.problems import load_recipe
from reasonkit.data.sources import SourceError
from reasonkit.judge.rubric import rubric_from_json

RECIPE = '''title = "Mine"
licence = "per source"
domain = "science"
[split]
train = 60
validation = 20
test = 20
[[sources]]
name = "s"
from = "file"
path = "{path}"
domain = "maths"
licence = "MIT"
address = "https://example.org"
{keys}
[sources.columns]
question = "{{q}}"
answer = "{{a}}"
reasoning = "{{r}}"
{columns}
'''
GOOD = [{"q": f"What is {n} plus {n}?", "a": str(2 * n), "r": f"{n}+{n}={2 * n}", "o": ["1", "2"], "k": "-"}
        for n in range(60)]
LONG = "The quick brown fox jumps over the lazy dog near the old stone bridge at noon on {}. How many legs?"
CHINESE = "\u4e8c\u52a0\u4e8c\u7b49\u4e8e\u56db" * 20
BIG = "x" * 10**7


@pytest.fixture
def curated(tmp_path, monkeypatch):
    """Curates the good rows and some planted ones from a file of this kind."""
    monkeypatch.setattr(problems, "RECIPES", tmp_path)

    def curate(planted, suffix=".jsonl", keys="", columns="", change=lambda text: text):
        path, rows = tmp_path / f"data{suffix}", [*GOOD, *planted]
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif suffix == ".parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
        else:
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([list(GOOD[0]), *(list(row.values()) for row in rows)])
        text = change(RECIPE.format(path=path, keys=keys, columns=columns))
        (tmp_path / "mine.toml").write_text(text)
        return curation.curate(load_recipe("mine"), {"train": 200, "validation": 50, "test": 50}, 0)
    return curate


def row(**changes):
    return {**GOOD[0], "q": "How many hands have two people?", "a": "4", "r": "2*2=4", **changes}


@pytest.mark.parametrize(("fault", "planted", "step", "cause", "how"), [
    ("exact duplicate", row(q="what is 7  plus 7", a="14"), "exact duplicates", "same question", {}),
    ("near duplicate", [row(q=LONG.format("Monday")), row(q=LONG.format("Monday") + " Tell.")], "near duplicates",
     "nearly the same question", {}),
    ("wrong gold, no number", row(a="four hands or so"), "gold", "gold answer refused", {"keys": 'kind = "number"'}),
    ("wrong gold, no option", row(a="Paris", o=["Rome", "Oslo"]), "read", "answer is no option", {"options": True}),
    ("two answers", row(a="4 or 5"), "gold", "gold answer refused", {"keys": 'kind = "number"'}),
    ("two answers, of options", row(a="2", o={"text": ["2", "5"], "label": ["1", "2"]}), "read",
     "answer is two options", {"options": True}),
    ("broken tags", row(r="<reasoning>2*2=4</reasoning><answer>4"), "read", "broken tags", {"tagged": True}),
    ("a tag inside", row(r="2*2=4</reasoning>"), "gold", "tag inside", {}),
    ("10 MB in a Parquet file", row(r=BIG), "read", "row too long", {"suffix": ".parquet"}),
    ("a column that changes its type", row(a={"value": 4}), "read", "no text in a text column", {}),
    ("another language", row(q=CHINESE), "text", "another language", {}),
    ("two languages", row(r="2*2=4, " + CHINESE), "text", "another language", {}),
    ("a refusal", row(r="As an AI language model, I cannot count hands."), "text", "refusal", {}),
    ("the answer told", row(q="How many hands have two people? Answer: 4"), "text", "answer in the question", {}),
    ("no answer", row(a=""), "read", "no answer", {"keys": 'kind = "number"'}),
    ("a rubric of no shape", row(k=[{"points": 3}]), "read", "rubric of another shape", {"rubric": True}),
])
def test_a_planted_row_is_left_out_by_name_and_no_other(curated, fault, planted, step, cause, how):
    good = GOOD
    how = dict(how)
    if how.pop("options", False):
        good = [{**one, "q": f"{one['q']} Choose.", "o": ["no", one["a"]]} for one in GOOD]
        how["columns"] = 'options = "{o}"'
    if how.pop("tagged", False):
        good = [{**one, "r": f"<reasoning>{one['r']}</reasoning><answer>{one['a']}</answer>"} for one in GOOD]
        how |= {"keys": 'reader = "tagged"', "change": lambda text: text.replace("reasoning =", "reply =").replace(
            'answer = "{a}"\n', "")}
    if how.pop("rubric", False):
        good = [{**one, "k": [{"criterion": "Counts", "points": 2}]} for one in GOOD]
        how["columns"] = 'rubric = "{k}"'
    planted = planted if isinstance(planted, list) else [planted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "GOOD", good)
        splits, ledger = curated(planted, **how)
    assert [(one.step, one.cause, one.id) for one in ledger.dropped] == [(step, cause, f"s-{60 + len(planted)}")]
    assert sum(map(len, splits.values())) == 60 + len(planted) - 1


def test_a_contaminated_row_is_left_out_by_name(curated):
    """Two questions that share 13 words: whichever is trained on goes, if the other one is asked in a test."""
    planted = [row(q=LONG.format(day) + f" {n}", a=str(n)) for n, day in enumerate(("Monday", "Sunday", "Friday") * 7)]
    splits, ledger = curated(planted)
    assert {(one.step, one.cause) for one in ledger.dropped} == {("decontamination", "13 words of a test question")}
    assert any("fox" in text for text in splits["test"]["question"])
    assert not any("fox" in text for text in splits["train"]["question"])


@pytest.mark.parametrize(("fault", "planted", "how", "message"), [
    ("10 MB in a line", [row(r=BIG)], {}, r"line 61 of data.jsonl has 10000\d+ characters, and at most 1000000"),
    ("10 MB in a cell", [row(r=BIG)], {"suffix": ".csv"},
     r"data.csv can't be read after line 61 \(field larger .*1000000\)\): mend the next line, or take it out"),
    ("a cell too few", [{"q": "What?"}], {"suffix": ".csv"}, "line 62 of data.csv has another number of cells"),
    ("a missing column", [{"q": "What?", "r": "r"}], {}, "source 's', row 61 has no column 'a', only q, r: mend"),
    ("a renamed column", [], {"change": lambda text: text.replace("{q}", "{question}")},
     "source 's', row 1 has no column 'question', only q, a, r, o, k: mend `columns` in the recipe"),
    ("a licence left out", [], {"change": lambda text: text.replace('licence = "MIT"\n', "")},
     r"mine.toml is no data recipe \(sources\[0\].file.licence is missing\)"),
    ("a licence blank", [], {"change": lambda text: text.replace('"MIT"', '" "')},
     r"sources\[0\].file.licence is ' ', and must be a text, not blank"),
    ("a licence unknown", [], {"change": lambda text: text.replace('"MIT"', '"who knows"')},
     r"has no row for train.*off: s, licence 'who knows'"),
])
def test_a_planted_fault_stops_the_run_by_name(curated, fault, planted, how, message):
    with pytest.raises(ValueError) as error:
        curated(planted, **how)
    assert re.search(message, str(error.value).replace("\n", " "))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".json"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_named(tmp_path, monkeypatch, suffix, content):
    monkeypatch.setattr(problems, "RECIPES", tmp_path)
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    (tmp_path / "mine.toml").write_text(RECIPE.format(path=path, keys="", columns=""))
    with pytest.raises(SourceError, match=f"data{suffix} is empty: give it at least one row"):
        curation.curate(load_recipe("mine"), {"train": 9}, 0)


def test_options_that_are_numbered_from_one_are_read_by_their_labels(curated, monkeypatch):
    """The label 1 is the first option, where a number from 0 would be the second."""
    numbered = [{**one, "q": f"{one['q']} Choose.", "a": "1", "k": "-",
                 "o": {"text": [one["a"], "no", "perhaps", "never"], "label": ["1", "2", "3", "4"]}} for one in GOOD]
    monkeypatch.setitem(globals(), "GOOD", numbered)
    splits, ledger = curated([], columns='options = "{o}"')
    rows = [one for split in splits.values() for one in split]
    assert len(rows) == 60 and not ledger.dropped
    for one in rows:
        half = int(re.search(r"is (\d+) plus", one["question"])[1])
        assert one["answer"] == f"(A) {2 * half}" and f"\n(A) {2 * half}\n(B) no" in one["question"]


def test_negative_points_make_a_pitfall(curated, monkeypatch):
    monkeypatch.setitem(globals(), "GOOD", [{**one, "k": [
        {"criterion": "Counts", "points": 8}, {"criterion": "Guesses", "points": -4}]} for one in GOOD])
    splits, _ = curated([], columns='rubric = "{k}"')
    _, good, bad = rubric_from_json(splits["train"][0]["rubric"])
    assert (good.weight, good.pitfall) == (1.0, False)
    assert (bad.weight, bad.pitfall, bad.description) == (0.5, True, "Avoids this fault: Guesses")
