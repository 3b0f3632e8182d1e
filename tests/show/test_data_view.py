"""What notebook 1 shows: its figures are the data's, and no text of a data set becomes markup."""

from __future__ import annotations

import re

import pytest
from datasets import Dataset

from reasonkit.data import problems
from reasonkit.data.filters import Dropped, Ledger
from reasonkit.data.loading import Reached
from reasonkit.data.screening import prompt_length
from reasonkit.data.sources import File, OwnFile
from reasonkit.models import load
from reasonkit.show.data_view import (
    FIT,
    Length,
    count_table,
    example_table,
    length_figure,
    length_table,
    limit_for,
    measure_lengths,
    row_table,
    source_table,
    step_table,
)

EVIL = "</td><script>alert(1)</script> $x_1$ \u202e"
ROW = {"id": "a", "family": "f", "kind": "number", "question": "2+2?", "reasoning": "2+2=4", "answer": "4",
       "rubric": "", "domain": "maths"}


def cells(html):
    """The text of each row's cells, without markup."""
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row, re.S)]
            for row in re.findall(r"<tr.*?>(.*?)</tr>", html, re.S)[1:]]


def rows(*changes):
    return Dataset.from_list([{**ROW, "id": str(n), **change} for n, change in enumerate(changes)])


@pytest.fixture
def ledger():
    dropped = [Dropped("read", "no answer", f"s-{n}", f"row {n}") for n in range(3)]
    dropped.append(Dropped("near duplicates", "nearly the same question", "s-9", "s-1: what is it?"))
    return Ledger([("read", 10, 7), ("near duplicates", 7, 6)], dropped, ["off: x"])


def test_steps_and_examples_are_those_of_the_ledger(ledger):
    assert cells(step_table(ledger)) == [["read", "10", "7", "no answer 3"],
                                         ["near duplicates", "7", "6", "nearly the same question 1"]]
    assert "off: x" in step_table(ledger)
    assert cells(example_table(ledger, ["read"])) == [["read", "no answer (3)", "s-0", "row 0"],
                                                      ["", "", "s-1", "row 1"]]
    assert cells(example_table(ledger, ["near duplicates"]))[0][2:] == ["s-9", "s-1: what is it?"]
    assert "No row was left out." in example_table(ledger, ["gold"])


def test_domains_are_counted_by_split():
    splits = {"train": rows({}, {"reasoning": " "}, {"domain": "law", "reasoning": ""}),
              "test": rows({"domain": "law"})}
    assert cells(count_table(splits, "domain")) == [
        ["law", "1", "1", "0", "33.3%"], ["maths", "2", "0", "1", "66.7%"], ["all", "3", "1", "1", ""]]
    assert cells(count_table(splits, "kind")) == [["number", "3", "1", "1", "100.0%"], ["all", "3", "1", "1", ""]]
    made = problems.make_splits(problems.load_recipe("tiny_mix"), {"train": 10, "test": 5}, 0)
    assert cells(count_table(made, "domain"))[-1][:3] == ["all", "10", "5"], "families stand for domains"


def test_lengths_are_those_of_the_tokenizer_and_a_limit_costs_what_is_longer():
    tokenizer = load.tokenizer("tiny-policy")
    found = measure_lengths({"train": rows({}, {"reasoning": ""}, {"question": "2+2? " * 20})}, tokenizer)
    assert [row.prompt for row in found] == [prompt_length(text, tokenizer) for text in ("2+2?", "2+2?", "2+2? " * 20)]
    assert [bool(row.completion) for row in found] == [True, False, True]
    lengths = [Length("law", 100, 0)] * 3 + [Length("law", 300, 50)] + [Length("maths", 40, 200)] * 4
    assert cells(length_table(lengths, 256, 100, 330)) == [
        ["law", "4", "1 (25.0%)", "300", "1", "0", "50", "1 (100.0%)"],
        ["maths", "4", "0", "40", "4", "4 (100.0%)", "200", "0"],
        ["all", "8", "1 (12.5%)", "300", "5", "4 (80.0%)", "200", "1 (20.0%)"]]
    assert cells(length_table([Length("law", 9, 0)], 256, 100, 330))[0][4:] == ["0", "0", "–", "0"]
    for axes, medians, limit in zip(length_figure(lengths, 256, 100).axes, ([40, 100], [200, 50]), (256, 100),
                                    strict=True):
        assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] == medians
        assert list(axes.lines[-1].get_xdata()) == [limit, limit]


@pytest.mark.parametrize(("lengths", "limit"), [
    (range(1, 101), 95), ([7], 7), ([1] * 19 + [9], 1), ([1] * 18 + [9], 9), ([], 0)])
def test_the_limit_that_fits_is_the_least(lengths, limit):
    assert limit_for(list(lengths)) == limit
    assert not lengths or sum(n <= limit for n in lengths) >= FIT * len(lengths)


def test_rows_are_shown_with_coloured_tags_the_worked_ones_first():
    table = row_table(rows({"reasoning": ""}, {"domain": "law", "kind": "open", "answer": "", "reasoning": ""}, {}))
    assert cells(table)[0][0] == "maths, number" and "&lt;reasoning&gt;" in cells(table)[0][2]
    assert cells(table)[1][2] == "(open: a judge scores it)" and len(cells(table)) == 3
    assert table.count('<b style="color:') == 4


def test_sources_show_their_licence_and_what_to_do(tmp_path):
    given = {"name": "mine", "from": "file", "path": "x.csv", "domain": "maths", "columns": {"question": "{q}"}}
    own = {**given, "licence": "MIT", "address": 'https://x/"><script>', "rows": 5, "cap": 9}
    sources = [File.model_validate(own), OwnFile.model_validate(given | {"name": "other", "use": "test"}),
               OwnFile.model_validate(given | {"name": "third"})]
    table = source_table(sources, {"mine": Reached("x.csv", ""), "other": Reached("", "attach it")})
    assert cells(table) == [["mine", "maths", "MIT", "all splits, by hash", "file", "5", "9", "reached: x.csv"],
                            ["other", "maths", "your own", "test", "file", "–", "–", "attach it"],
                            ["third", "maths", "your own", "all splits, by hash", "file", "–", "–",
                             "off: for its licence, write `other_licences = true`"]]
    assert "1 of 3 sources are reached" in table and "<script>" not in table


def test_no_text_becomes_markup():
    bad = dict.fromkeys(("question", "reasoning", "answer", "kind", "domain"), EVIL)
    ledger = Ledger([(EVIL, 2, 1)], [Dropped(EVIL, EVIL, EVIL, EVIL)], [EVIL])
    shown = [step_table(ledger), example_table(ledger, [EVIL]), count_table({"train": rows(bad)}, "domain"),
             row_table(rows(bad)), length_table([Length(EVIL, 1, 1)], 1, 1, 1)]
    assert all("<script>" not in html and "\u202e" not in html and "[U+202E]" in html for html in shown)
    assert length_figure([Length(EVIL, 1, 1)], 1, 1)._repr_png_().startswith(b"\x89PNG")
