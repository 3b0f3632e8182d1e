"""Screening: each row that would stop a later stage is found before, with its cause, and no other row is."""

from __future__ import annotations

import doctest
import itertools
import json
import re

import pytest
from datasets import Dataset
from tiny_run import ROWS, short_tokenizer

from reasonkit.config import PROFILES
from reasonkit.data import filters, screening
from reasonkit.data.filters import Ledger
from reasonkit.data.problems import SPLITS, load_recipe, make_splits
from reasonkit.data.rows import grpo_batches, sft_batches, sft_pairs
from reasonkit.data.screening import gold_fault, question_key
from reasonkit.eval.evaluate import evaluate
from reasonkit.models import load
from reasonkit.rewards.rules import exact_answer
from reasonkit.text.answers import KINDS, Verdict
from reasonkit.text.tags import TAGS
from recipes.judges.exam import anchors

PLAN = json.dumps({"start": ["a"], "goal": ["b"], "actions": {"go": {"needs": ["a"], "adds": ["b"]}}})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def rows(*changes):
    return Dataset.from_list([{**ROWS[n], **change} for n, change in enumerate(changes)])


def screen(splits, tokenizer, limit):
    """The usable rows, and those that were left out."""
    ledger = Ledger()
    return filters.screen(splits, tokenizer, limit, ledger), ledger.dropped


# Questions


@pytest.mark.parametrize(("one", "other"), [
    ("What's 5-3?", "What\u2019s 5\u22123?"), ("What's it", "What`s it"), ("Is it on?", "is it  on ?"), ("Go", "Go!"),
    ("How many?", "How many"), ("How many?", "How many."), ("How many?", "\ufeffHow ma\u200bny?"), ("a\u00a0b", "a\nb"),
    ("the \u201cbest\u201d", 'the "best"'), ("a \u2014 b", "a - b"), ("Add 1, 2, \u2026", "Add 1, 2, ..."),
    ("\uff13 plus \uff14\uff1f", "3 plus 4?"), ("caf\u00e9", "cafe\u0301"), ("Really?!", "Really"), ("5!.", "5!"),
])
def test_two_spellings_are_one_question(one, other):
    assert question_key(one) == question_key(other)


@pytest.mark.parametrize(("one", "other"), [
    ("Sort: 1 12", "Sort: 11 2"), ("What is 5!", "What is 5?"), ("What is n!?", "What is n?"), ("(2+1)!", "(2+1)"),
    ("3\u00b2", "32"), ("3\u00b2", "3"), ("5 - 3", "5 + 3"), ("-5", "5"), ("1.5", "15"), ("5!!", "5!"),
    ("1\u00bd", "112"),
])
def test_two_questions_are_two(one, other):
    assert question_key(one) != question_key(other)


# Gold answers


@pytest.mark.parametrize(("kind", "right", "wrong"), [
    ("number", "1,200", "about 3"), ("choice", "B) Paris", "Paris"), ("yes_no", "No", "perhaps"),
    ("expression", "x^2+1", "x^^"), ("list", "1, 2", " "), ("set", "{1, 2}", ""), ("text", "on", " "),
    ("quantity", "5 km", "5 snurg"), ("smiles", "CCO", "C(C"), ("date", "5 March 2024", "soon"),
    ("plan", PLAN, "go"),
])
def test_a_gold_answer_goes_through_its_own_checker(kind, right, wrong):
    assert gold_fault(right, kind) is None
    assert "gold answer" in gold_fault(wrong, kind)
    assert exact_answer([""], ["<answer>1</answer>"], answer=[wrong], kind=[kind]) == [None], "no signal later on"


def test_every_kind_is_tried():
    (table,) = (mark.args[1] for mark in test_a_gold_answer_goes_through_its_own_checker.pytestmark)
    assert {row[0] for row in table} == set(KINDS)


def test_a_gold_answer_that_is_not_equal_to_itself_is_refused(monkeypatch):
    """Read, and yet wrong: nothing that a policy says would be paid."""
    monkeypatch.setattr(screening, "check", lambda answer, gold, kind: Verdict(False, "5", "different"))
    assert gold_fault("5 maybe", "number") == (
        "gold answer '5 maybe' is not right by its own checker, which reads '5' as number")
    assert gold_fault(PLAN, "plan") is None


# Rows


FAULTS = [
    ({"question": "plus " * 60}, "prompt too long", r"the prompt has \d+ tokens, and with <bos> max_prompt_length 48"),
    ({"answer": "three, or so"}, "gold answer refused", "gold answer 'three, or so' cannot be read as number"),
    ({"kind": "riddle"}, "gold answer refused", "unknown answer kind 'riddle'"),
    ({"answer": ""}, "gold answer refused", "gold answer ''"),
    ({"question": " \u200b"}, "no question", "the question is blank"),
    ({"reasoning": "see <answer>"}, "tag inside", "reasoning contains the tag '<answer>'"),
    ({"reasoning": "</reasoning>"}, "tag inside", "reasoning contains the tag '</reasoning>'"),
    ({"rubric": "[]"}, "rubric refused", "the rubric is not a non-empty list of criteria"),
    ({"rubric": ""}, "rubric refused", "the rubric '' is empty"),
    ({"rubric": "{"}, "rubric refused", "the rubric '{' is not JSON"),
    ({"rubric": "[" * 100_000}, "rubric refused", r"the rubric '\[+…? is not JSON: nested too deeply"),
    ({"rubric": '[{"title": "a"}]'}, "rubric refused", "the rubric, entry 0: missing .'description', 'weight'"),
    ({"rubric": '[{"title": "a", "description": "b", "weight": NaN}]'}, "rubric refused", ".*'NaN' is no finite"),
    ({"rubric": '[{"title": "a", "description": "b", "weight": -1}]'}, "rubric refused", ".*weight is -1; give it a"),
    ({"id": " "}, "no id", "id is ' ': give the row a name of its own"),
    ({"id": "0-0"}, "id comes twice", "id '0-0' is that of an earlier row: give each its own"),
    *(({"kind": kind}, "gold answer refused", f"unknown answer kind '{kind}': use one of number, choice")
      for kind in ("", "Number", "number ", "none", "null")),
    *(({"kind": kind, "answer": gold}, "gold answer refused", "(?:gold answer|a plan)") for kind, gold in (
        ("number", "abc"), ("number", "1 or 2"), ("number", "nan"), ("choice", "Paris"), ("yes_no", "maybe"),
        ("list", " "), ("set", ""), ("text", "\u200b"), ("date", "32 May 2024"), ("plan", "{"), ("plan", "[" * 300),
        ("number", "1" * 40000))),
    *(({column: None}, "no text", f"{column} is None, and must be a text, in quotes") for column in screening.COLUMNS),
    *(({column: f"{ROWS[1][column]} {token}"}, "control token",
       f"{column} has the control token '{re.escape(token[:3])}")
      for column in ("id", "family", "question", "reasoning", "answer") for token in (
          "<end_of_turn>", "<start_of_turn>", "<bos>", "<eos>", "<pad>", "<unused7>", "<END_OF_TURN>", "[multimodal]")),
]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("change", "cause", "why"), FAULTS)
def test_a_row_that_stops_a_stage_is_left_out(tokenizer, split, change, cause, why):
    kept, (left,) = screen({split: rows({}, change, {})}, tokenizer, 48)
    assert kept[split]["id"] == [ROWS[0]["id"], ROWS[2]["id"]]
    assert (left.step, left.id, left.cause) == (f"screening of {split}", str(change.get("id", ROWS[1]["id"])), cause)
    assert re.match(f"row 2: {why}", left.example)


def test_ids_that_are_no_texts_are_named(tokenizer):
    with pytest.raises(ValueError, match=r"2 of 2 rows of 'train' .* id is \[1\], and must be a text, in quotes"):
        screen({"train": rows({"id": [1]}, {"id": [2]})}, tokenizer, 48)


def test_a_row_without_reasoning_serves_all_but_sft(tokenizer):
    some = {name: rows({}, {"reasoning": "\ufeff "}, {}) for name in SPLITS}
    kept, left_out = screen(some, tokenizer, 48)
    assert not left_out and [len(kept[name]) for name in SPLITS] == [3, 3, 3]
    assert len(sft_pairs(kept["train"], tokenizer, 200)) == 2
    assert evaluate(lambda texts: [""] * len(texts), kept["test"], batch_size=3).n == 3


def test_an_open_row_is_for_training_alone(tokenizer):
    """It needs no gold answer there, and SFT learns from it where it has both reasoning and a reference."""
    some = {name: rows({}, {"kind": "open", "answer": ""}, {"kind": "open"}, {}) for name in SPLITS}
    kept, left_out = screen(some, tokenizer, 48)
    assert [(row.step, row.cause) for row in left_out] == [("screening of validation", "no gold answer")] * 2 + [
        ("screening of test", "no gold answer")] * 2
    assert len(kept["train"]) == 4 and len(sft_pairs(kept["train"], tokenizer, 200)) == 3
    batch = next(grpo_batches(kept["train"], tokenizer, 4, 48, 0))
    values = exact_answer(batch["prompts"], ["<answer>1</answer>"] * 4, answer=batch["answer"], kind=batch["kind"])
    assert [value is None for value in values] == [kind == "open" for kind in batch["kind"]]



def test_what_is_kept_stops_no_stage(tokenizer):
    bad = [*{cause: change for change, cause, _ in FAULTS}.values()]
    some = {name: rows(*bad, *[{}] * 12) for name in SPLITS}
    kept, left_out = screen(some, tokenizer, 48)
    assert len(left_out) == 3 * len(bad)
    for batch in itertools.islice(sft_batches(kept["train"], tokenizer, 4, 100, 0), 4):
        assert batch["tokens_BL"].shape == (4, 100)
    for batch in itertools.islice(grpo_batches(kept["train"], tokenizer, 9, 48, 0), 2):
        assert exact_answer(batch["prompts"], [""] * 9, answer=batch["answer"], kind=batch["kind"]) == [0.0] * 9
    for name in ("validation", "test"):
        assert evaluate(lambda texts: [""] * len(texts), kept[name], batch_size=3).n == 12
        assert all(len(tokenizer.encode(TAGS.prompt(question))) < 48 for question in kept[name]["question"])


def test_a_prompt_that_just_fits_is_kept(tokenizer):
    tokens = 1 + len(tokenizer.encode(TAGS.prompt(ROWS[0]["question"])))
    assert not screen({"train": rows({})}, tokenizer, tokens)[1]
    with pytest.raises(ValueError, match=rf"1 of 1 rows of 'train' can't be used, .* has {tokens - 1} tokens"):
        screen({"train": rows({})}, tokenizer, tokens - 1)


def test_a_split_of_which_most_is_refused_is_an_error(tokenizer):
    bad = {"answer": "?"}
    assert len(screen({"test": rows({}, bad)}, tokenizer, 48)[1]) == 1
    with pytest.raises(ValueError, match=r"2 of 3 rows of 'test' can't be used, more than 50%. The first, '0-1': "
                                         r"row 2: gold answer '\?' cannot be read"):
        screen({"train": rows({}), "test": rows({}, bad, bad)}, tokenizer, 48)


def test_the_shipped_mix_loses_no_row():
    for name in ("smoke", "cpu"):
        profile = PROFILES[name]
        splits = make_splits(load_recipe("tiny_mix"), {"train": 400, "validation": 50, "test": 50}, 0)
        kept, left_out = screen(splits, load.tokenizer(profile.policy), profile.grpo.max_prompt_length)
        assert not left_out and kept["train"].to_list() == splits["train"].to_list()


def test_doctests():
    result = doctest.testmod(screening)
    assert result.attempted and not result.failed


def test_a_column_that_is_not_there_is_named(tokenizer):
    for name in screening.COLUMNS:
        with pytest.raises(ValueError, match=f"the rows of 'train' have no '{name}': a row needs id, family, kind"):
            screen({"train": rows({}, {}).remove_columns(name)}, tokenizer, 48)


@pytest.mark.parametrize("change", [{"answer": "abc"}, {"kind": "riddle"}, {"rubric": "[]"}, {"reasoning": "<eos>"},
                                    {"question": "<bos>"}, {"reasoning": "<answer>"}])
def test_a_row_that_slips_through_teaches_nothing_and_ends_nothing(tokenizer, change):
    some = rows({}, change, {})
    assert len(sft_pairs(some, tokenizer, 200)) == 2
    examined = 2 if "rubric" in change or "<answer>" in change.values() else 3
    flaws = 3 * examined - (change == {"reasoning": "<eos>"})  # which has no number to falsify
    assert len(anchors(some)) == flaws
