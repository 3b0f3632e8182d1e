"""Cleaning: planted faults are found by name, and what only looks like one stays."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonkit.data.filters import (
    GRAM,
    Ledger,
    find_contaminated,
    gold_row_fault,
    near_duplicates,
    repair,
    screen,
    shingles,
    text_fault,
)
from reasonkit.judge.rubric import Criterion, rubric_to_json

RUBRIC = rubric_to_json([Criterion("Steps", "Every step follows.", 1.0)])
WORDS = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=3)]


def row(**changes):
    return {"id": "s-1", "family": "f", "kind": "number", "question": "2+2?", "reasoning": "2+2=4", "answer": "4",
            "rubric": RUBRIC, "source": "s", **changes}


def test_text_is_repaired():
    mended = repair(row(question="cafe\u0301\r\n\u200bis\u00a0it?<br/>No", reasoning="<think>a</think>\n\n\n\nb"))
    assert mended["question"] == "caf\u00e9\nis it?\nNo" and mended["reasoning"] == "a\n\nb"
    assert repair(mended) == mended


@pytest.mark.parametrize(("changes", "cause"), [
    ({"reasoning": "As an AI language model, I have no opinion."}, "refusal"),
    ({"answer": "I'm sorry, but I cannot do that."}, "refusal"),
    ({"question": "2+2? Answer: 4"}, "answer in the question"),
    ({"question": "The answer is 4. What is 2+2?"}, "answer in the question"),
    ({"question": "\u4e8c\u52a0\u4e8c\u7b49\u4e8e\u51e0\uff1f", "reasoning": ""}, "another language"),
    ({"reasoning": "The answer is 4. 2+2=4"}, "answer before the reasoning"),
    ({"reasoning": "So, the final answer: **4** because 2+2=4"}, "answer before the reasoning"),
    ({"reasoning": "The correct option is (B): it is a town", "answer": "(B) Paris", "kind": "choice"},
     "answer before the reasoning"),
    *(({"reasoning": text, "answer": "(C) Vitamin B12", "kind": "choice"}, cause) for text, cause in (
        ("Ans. (c) Vitamin B12 Ref: a book", "answer before the reasoning"),
        ("Ans: C", "answer before the reasoning"),
        ("Ans. is 'c' i.e., Vitamin B12", "answer before the reasoning"),
        ("Ans. C i.e. B12", "answer before the reasoning"),
        ("Answer C-type cells do that", None), ("Ansa cervicalis is a loop", None))),
    ({"reasoning": "The answer is 4 - 0, so 4"}, None), ({"reasoning": "The answer is 42 or so; 2+2=4"}, None),
    ({"reasoning": "The answer is a number. 2+2=4"}, None), ({"reasoning": "2+2=4, so the answer is 4"}, None),
    ({}, None), ({"question": "Is \u03b1 the angle?"}, None), ({"question": "Answer: yes or no"}, None),
    ({"reasoning": "AI models help."}, None),
])
def test_text_that_teaches_the_wrong_thing_is_named(changes, cause):
    found = text_fault(row(**changes))
    assert (found and found[0]) == cause


@pytest.mark.parametrize(("changes", "cause"), [
    ({"answer": "four, or five"}, "gold answer refused"), ({"kind": "riddle"}, "gold answer refused"),
    ({"reasoning": "</answer>"}, "tag inside"), ({"question": " "}, "no question"),
    ({"rubric": "[]"}, "rubric refused"),
    ({"kind": "open", "answer": ""}, None), ({"reasoning": ""}, None), ({}, None),
])
def test_the_gold_completion_must_earn_full_marks(changes, cause):
    found = gold_row_fault(row(**changes))
    assert (found and found[0]) == cause


def test_the_ledger_adds_up_and_shows_an_example():
    ledger = Ledger()
    left = ledger.keep("odd", [row(id=str(n)) for n in range(5)],
                       lambda number, row: ("odd number", row["id"]) if number % 2 else None)
    assert [r["id"] for r in left] == ["0", "2", "4"] and ledger.steps == [("odd", 5, 3)]
    assert "2 odd: odd number, as 1: '1'" in str(ledger)


def test_screening_is_a_step_of_the_ledger():
    ledger, tokenizer = Ledger(), SimpleNamespace(encode=str.split)
    rows = [row(id=f"s-{n}", question="2+2?" + " long" * 300 * (n == 3)) for n in range(4)]
    screen({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}, tokenizer, 300, ledger)
    assert ledger.steps == [("screening of train", 4, 3), ("screening of test", 1, 1)]
    assert "1 screening of train: prompt too long, as s-3: 'row 4: the prompt has 3" in str(ledger)


def test_a_worked_solution_that_a_completion_cannot_hold_loses_its_reasoning():
    """SFT would teach a length at which the answer, which comes last, is cut off."""
    ledger, tokenizer = Ledger(), SimpleNamespace(encode=str.split)
    rows = [row(id=f"s-{n}", reasoning="2+2 is " * (1 + 40 * n) + "= 4") for n in range(3)]
    rows.append(row(id="s-3", reasoning=""))
    kept = screen({"train": Dataset.from_list(rows)}, tokenizer, 300, ledger, 100)["train"]
    assert [bool(text) for text in kept["reasoning"]] == [True, True, False, False]
    assert kept["answer"] == [one["answer"] for one in rows]
    assert ledger.notes == ["train: 1 worked solutions have more than 100 tokens and lost their reasoning"]
    assert ledger.steps == [("screening of train", 4, 4)]


def text(rng, length=40):
    return " ".join(rng.choices(WORDS, k=length))


def test_planted_near_duplicates_are_found_and_others_are_not():
    rng = random.Random(0)
    texts = [text(rng) for _ in range(300)]
    planted = [one.replace(one.split()[20], "changed", 1) for one in texts[:100]]
    assert near_duplicates(texts + planted, ["4"] * 400) == {300 + n: n for n in range(100)}


def test_another_number_or_answer_makes_another_question():
    one = text(random.Random(1))
    assert near_duplicates([one + " 5", one + " 6"], ["a", "a"]) == {}
    assert near_duplicates([one + " hotter", one + " colder"], ["a", "b"]) == {}
    assert near_duplicates([one + " hotter", one + " colder"], ["a", "a"]) == {1: 0}
    assert near_duplicates([], []) == {}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30).map(" ".join), min_size=1, max_size=12))
def test_every_pair_that_is_found_is_similar_and_every_equal_text_is_found(texts):
    found = near_duplicates(texts, [""] * len(texts))
    grams = [{tuple(words[n:n + GRAM]) for n in range(max(1, len(words) - GRAM + 1))}
             for words in map(str.split, texts)]
    for later, earlier in found.items():
        a, b = grams[later], grams[earlier]
        assert earlier < later and len(a & b) / len(a | b) >= 0.8
    for a, b in itertools.combinations(range(len(texts)), 2):
        assert texts[a] != texts[b] or b in found


def test_shingles_are_those_of_each_text_alone():
    runs, owner = shingles(["a b c", "a b c d", "x"], 3)
    assert np.bincount(owner).tolist() == [1, 2, 1]
    assert runs[0] in runs[owner == 1]
    assert shingles(["A, b! C"], 3)[0].tolist() == runs[:1].tolist()


def test_contamination_needs_thirteen_words_in_a_row():
    rng = random.Random(2)
    asked = [text(rng) for _ in range(20)]
    words = asked[7].split()
    train = [text(rng), text(rng, 5) + " " + " ".join(words[10:23]) + " " + text(rng, 5),
             text(rng, 9) + " " + " ".join(words[10:22]) + " " + text(rng, 9)]
    assert find_contaminated(train, asked) == {1: 7}
    assert find_contaminated(train, []) == {} and find_contaminated([], asked) == {}
    assert find_contaminated(["what is it"], ["What is it?"]) == {0: 0}, "a short question counts whole"
