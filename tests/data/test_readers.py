"""Readers: rows in the shapes of real sets, each with what is read from it or why it is left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from kagglehub.cache import Cache
from kagglehub.handle import parse_dataset_handle

from reasonkit.data.loading import open_rows
from reasonkit.data.readers import READERS, Refused, read_row
from reasonkit.data.screening import COLUMNS, row_fault
from reasonkit.data.sources import File, Hub, Kaggle, SourceError
from reasonkit.judge.rubric import Criterion, rubric_to_json

GOLDEN = [json.loads(line) for line in
          (Path(__file__).parents[1] / "golden" / "readers.jsonl").read_text(encoding="utf-8").splitlines()]


def source(**more):
    return File.model_validate({"name": "s", "from": "file", "path": "x.jsonl", "domain": "science", "licence": "MIT",
                                "address": "https://example.org", **more})


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['reader']}-{GOLDEN.index(case)}")
def test_golden_rows(case):
    chosen = source(reader=case["reader"], columns=case["columns"],
                    kind="yes_no" if case.get("kind") == "yes_no" else "")
    if "refused" in case:
        with pytest.raises(Refused, match=f"^{re.escape(case['refused'])}$"):
            read_row(chosen, 1, case["raw"])
        return
    row = read_row(chosen, 1, case["raw"])
    if "rubric" in case:
        assert json.loads(row["rubric"]) == case["rubric"]
    want = {name: case[name] for name in row if name in case and name != "rubric"}
    assert {name: row[name] for name in want} == want
    assert set(COLUMNS) <= set(row) and all(isinstance(text, str) for text in row.values())
    assert row_fault({**row, "rubric": '[{"title": "t", "description": "d", "weight": 1}]'}) is None


def read_or_cause(chosen, raw):
    try:
        return read_row(chosen, 1, raw)
    except Refused as error:
        return str(error)


def test_golden_rows_are_the_same_through_the_clients_of_the_hub_and_of_kaggle(tmp_path, monkeypatch):
    """Each row as a file of its own, JSONL and Parquet, because clients infer types from the whole file."""
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kagglehub.clients.get_user_agent", lambda: "tests")  # it reads the whole call stack each time
    wrong = []
    for number, case in enumerate(GOLDEN, 1):
        keys = {"name": "s", "domain": "science", "licence": "MIT", "address": "https://example.org",
                "reader": case["reader"], "columns": case["columns"]}
        handle = f"me/rows/versions/{number}"
        folder = tmp_path / "cache/datasets" / handle
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text(json.dumps(case["raw"]) + "\n", encoding="utf-8")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([case["raw"]]), folder / "rows.parquet")
        for name in ("rows.jsonl", "rows.parquet"):
            Cache().mark_as_complete(parse_dataset_handle(handle), name)
            sources = (Hub.model_validate({**keys, "from": "hub", "id": str(folder), "files": name, "split": "train",
                                           "revision": "main"}),
                       Kaggle.model_validate({**keys, "from": "kaggle", "handle": handle, "file": name}))
            wrong += [(number, one.kind_of, name) for one in sources
                      if [read_or_cause(one, raw) for raw in open_rows(one)[0]] != [read_or_cause(one, case["raw"])]]
    assert not wrong


def test_every_reader_has_rows_it_reads_and_rows_it_refuses():
    assert {case["reader"] for case in GOLDEN if "refused" in case} == set(READERS)
    assert {case["reader"] for case in GOLDEN if "refused" not in case} == set(READERS)


def test_options_are_shuffled_by_the_row_alone():
    chosen = source(shuffle=True, columns={"question": "{q}", "options": ["{a}", "{b}", "{c}"], "answer": "{a}"})
    raw = {"q": "Which?", "a": "right", "b": "wrong", "c": "odd"}
    rows = [read_row(chosen, number, raw) for number in range(40)]
    assert rows == [read_row(chosen, number, raw) for number in range(40)]
    assert {row["answer"] for row in rows} == {"(A) right", "(B) right", "(C) right"}


def test_a_renamed_column_stops_the_run_and_is_named():
    with pytest.raises(SourceError, match=r"source 's', row 7 has no column 'question', only Question, answer: mend"):
        read_row(source(columns={"question": "{question}"}), 7, {"Question": "?", "answer": "4"})


def test_rows_may_bring_their_kind_domain_task_and_our_rubric():
    columns = {name: f"{{{name}}}" for name in ("question", "answer", "kind", "domain", "task", "rubric")}
    rubric = rubric_to_json([Criterion("Steps", "Every step follows.", 0.9, ("none", "all"))])
    raw = {"question": "List 3 primes.", "answer": "2, 3, 5", "kind": "list", "domain": "maths", "task": "primes",
           "rubric": rubric}
    row = read_row(source(columns=columns), 1, raw)
    assert (row["kind"], row["domain"], row["family"], row["task"], row["rubric"]) == (
        "list", "maths", "maths", "primes", rubric)
    empty = read_row(source(columns=columns, kind="set", task="drill"), 1,
                     {**raw, "kind": None, "domain": "", "task": ""})
    assert (empty["kind"], empty["domain"], empty["task"]) == ("set", "science", "drill")
    for wrong, cause in (({"kind": "riddle"}, "unknown kind"), ({"rubric": rubric[:-1]}, "a rubric that is no JSON")):
        with pytest.raises(Refused, match=cause):
            read_row(source(columns=columns), 1, {**raw, **wrong})
