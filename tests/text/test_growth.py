"""How the time of reading an answer grows with its length: no faster than it, for any kind and any character."""

from __future__ import annotations

import gc
import json
import time

import pytest

from reasonkit.text.answers import KINDS, MAX_CHARACTERS, check, grade
from reasonkit.text.tags import TAGS

PLAN = json.dumps({"start": ["a"], "goal": ["b"], "actions": {"go": {"needs": ["a"], "deletes": ["a"], "adds": ["b"]}}})
GOLD = {"number": "5", "choice": "B) Paris", "yes_no": "yes", "expression": "x + 1", "list": "1, 2", "set": "1, 2",
        "text": "on", "quantity": "5 km", "smiles": "CCO", "plan": PLAN, "date": "2024-03-05"}
UNITS = [" ", "\n", "\u2003", "\u200b", "(", ")", "[]", "{", "}", ",", ", ", ";", "\\", "\\ ", "7", "1,", "0.",
         "²", "^", "_{",
         "word ", "or ", "A ", "*a", "~a", "`", "$", "'", "\u0336", "\\frac{1}{a b ", "\\text{", "[s]", "<b>", "-",
         "= ", "½"]
SECONDS = 2e-5  # for a character of the longest answer: a hundred times what most take
FREE = 0.004  # seconds that are too few to be told from the machine's noise


def seconds(kind: str, text: str) -> float:
    """The least of three: what else runs on the machine only adds."""
    found = []
    for _ in range(3):
        start = time.process_time()
        check(text, GOLD[kind], kind)
        found.append(time.process_time() - start)
        if found[-1] < FREE:
            break
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", UNITS)
def test_time_grows_with_the_length(kind, unit):
    check(None, GOLD[kind], kind)  # what starts once is not timed
    for first, last in (("", "x"), ("5", ""), ("x", "H_2O")):
        short, long = (f"{first}{unit * (size // len(unit) - 9)}{last}"
                       for size in (MAX_CHARACTERS // 4, MAX_CHARACTERS))
        taken = seconds(kind, long)
        if taken > FREE:
            assert taken < 9 * seconds(kind, short)  # 16 times where it grew as the square
            assert taken < SECONDS * len(long)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_long_replies_is_graded_in_seconds(kind):
    """Of what no library decides; those times are limited together, see `grade`."""
    replies = [TAGS.render(reasoning="x", answer=f"x{unit * (9000 // len(unit))}x") for unit in UNITS]
    start = time.process_time()
    assert not any(verdict.correct for verdict in grade(replies, [GOLD[kind]] * len(replies), [kind] * len(replies)))
    assert time.process_time() - start < 5


@pytest.mark.slow
@pytest.mark.parametrize("digits", [200, 1000, 4300, 4301, 9000])
@pytest.mark.parametrize("form", ["{}", "{}/3", "\\frac{{{}}}{{3}}", "\\frac{{x}}{{{}}}", "{}x/3", "x^{{{}}}",
         "0.({})", "{}_5", "1e{}",
                                  "{}!", "{} km", "{}%", "[{}]", "{}-01-01", "H{}O", "\\sqrt[{}]{{2}}"])
def test_no_numeral_is_too_long_to_be_wrong(form, digits):
    """A reply that could not be judged would earn what its group does."""
    answer = form.format("9" * digits)
    replies = [f"<answer>{answer}</answer>"] * len(KINDS)
    for verdict in grade(replies, [GOLD[kind] for kind in KINDS], [*KINDS]):
        assert verdict is not None and not verdict.correct and not verdict.why.startswith("not read (")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", [*UNITS, "H", "A1", "_1", "1.", "1 ", "(1", "1)", "5 km ", "x^",
                                  "10^", "+", "•", "₂", "iv "])
def test_a_short_answer_takes_no_time(kind, unit):
    """A pattern within a pattern doubles its time with every character, where a limit of length comes too late."""
    check(None, GOLD[kind], kind)
    gc.disable()  # a collection of all that the whole suite has left takes a second
    start = time.process_time()
    for first, last in (("", "x"), ("A ", "^"), ("(", "!"), ("1 ", "}"), ("5", " y z")):
        check(f"{first}{(unit * 22)[:22]}{last}", GOLD[kind], kind)
    took = time.process_time() - start
    gc.enable()
    assert took < 0.25
