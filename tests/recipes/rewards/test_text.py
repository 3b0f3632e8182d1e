"""Rewards that read the text alone: what each sees, what it does not, and the bounds of all of them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonkit.rewards.work import STEPS
from reasonkit.text.tags import TAGS
from recipes.rewards.extra import length_band, overlong, repetition, script
from recipes.rewards.text import TfIdf, scaffold, tfidf_leak, tfidf_relevance, work_shown

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # as for a script
BENCHMARK = runpy.run_path(str(BENCHMARKS / "rewards.py"))
PARTS = BENCHMARK["parts"]()
QUESTION = "Leo has 6 shells, buys 5 and finds 2. How many shells now?"
MODEL = TfIdf([QUESTION, "Mia has 9 pens, loses 2. How many pens now?", "The lamp is off. Ann flips it. On or off?"])
FULL = ["Identify: six shells at first.", "Determine: two numbers to add.", "Explore: 6 + 5 = 11.", "Act: 11 + 2 = 13.",
        "Evaluate: 13 is more than 6."]


class Words:
    """A tokenizer with one token a word, and SentencePiece's dislike of lone surrogates."""

    def encode(self, text):
        text.encode()
        return text.split()


def one(reward, reply, **columns):
    (value,) = reward(["p"], [reply], **{name: [column] for name, column in columns.items()})
    return value


def think(reasoning, answer="13"):
    return f"<reasoning>{reasoning}</reasoning>\n<answer>{answer}</answer>"


# tfidf_relevance

@pytest.mark.parametrize(("reasoning", "low", "high"), [
    ("Leo: 6 + 5 = 11 shells, 11 + 2 = 13 shells", 0.0, 0.0),
    ("6+5=11; 11+2=13", 0.0, 0.0),
    (QUESTION, -1.0, -1.0),
    ("shells has Leo 6 now many How 2 finds and 5 buys, shells", -1.0, -0.9),  # order is not seen
    ("The weather is lovely and the birds are singing in every tall tree of that garden", -0.9, -0.4),
    ("", -1.0, -1.0),
    ("?!", -1.0, -1.0),
])
def test_relevance(reasoning, low, high):
    assert low <= one(tfidf_relevance(MODEL), think(reasoning), question=QUESTION) <= high


def test_relevance_falls_with_padding():
    reward, padding = tfidf_relevance(MODEL), "birds sing in every tall tree of that lovely green garden "
    scores = [one(reward, think("so 6 + 5 " + padding * times), question=QUESTION) for times in (0, 1, 2, 4)]
    assert scores[0] == 0.0 and scores == sorted(scores, reverse=True) and scores[1] > scores[2] > scores[3]


def test_relevance_to_a_question_without_words_is_no_signal():
    assert one(tfidf_relevance(MODEL), think("six"), question="?") is None


def test_relevance_needs_its_column_whole():
    with pytest.raises(TypeError, match="question"):
        tfidf_relevance(MODEL)(["p"], ["a"])
    with pytest.raises(ValueError, match="shorter"):
        tfidf_relevance(MODEL)(["p"] * 2, ["a"] * 2, question=["q"])


# tfidf_leak

@pytest.mark.parametrize(("reasoning", "answer", "expected"), [
    ("6 + 5 = 11, 11 + 2 = 13", "13", 0.0),
    ("13", "13", -1.0),
    ("So the final answer is 13.", "13", -1.0),
    ("8; 10; 13", "8, 10, 13", -1.0),
    ("5+3=8; 8+2=10; 10+3=13", "8, 10, 13", 0.0),
    ("Therefore, the answer.", "13", -1.0),  # announces, and says nothing
    ("", "13", -1.0),
    ("six and seven", "!", 0.0),             # an answer without words
    ("six and seven", "", 0.0),              # ... a missing one is bad form, not a leak
])
def test_leak(reasoning, answer, expected):
    assert one(tfidf_leak(MODEL), think(reasoning, answer)) == pytest.approx(expected)


# length_band, overlong

@pytest.mark.parametrize(("length", "expected"), [
    (0, -1.0), (1, -1.0), (2, -0.75), (4, -0.25), (5, 0.0), (8, 0.0), (9, -0.25), (11, -0.75), (12, -1.0), (99, -1.0)])
def test_length_band_has_soft_edges(length, expected):
    assert one(length_band(Words(), 5, 8, 4), "x " * length) == expected


@pytest.mark.parametrize(("length", "expected"), [(0, 0.0), (6, 0.0), (7, -0.25), (9, -0.75), (10, -1.0), (11, -1.0)])
def test_overlong_is_dapos(length, expected):
    """L_max = 10, L_cache = 4: ((L_max - L_cache) - L) / L_cache between the two, as equation 13 has it."""
    reward = overlong(Words(), max_tokens=10, buffer=4)
    assert reward.__name__ == "overlong" and one(reward, "x " * length) == expected


@pytest.mark.parametrize("band", [(-1, 5, 1), (6, 5, 1), (1, 5, 0)])
def test_an_impossible_band_is_refused(band):
    with pytest.raises(ValueError, match=f"low={band[0]}, high={band[1]}, soft={band[2]}: give"):
        length_band(Words(), *band)


@pytest.mark.parametrize(("limit", "buffer"), [(10, 0), (10, 11), (0, 0)])
def test_an_impossible_buffer_is_refused(limit, buffer):
    with pytest.raises(ValueError, match=f"max_tokens={limit}, buffer={buffer}: give"):
        overlong(Words(), limit, buffer)


# repetition

@pytest.mark.parametrize(("reply", "low", "high"), [
    ("", 0.0, 0.0),
    ("one two three", 0.0, 0.0),
    ("one two three four one two three", 0.0, 0.0),
    ("one two three four one two three four", 0.0, 0.0),
    ("ONE two, three. one TWO, three.", 0.0, 0.0),
    ("ONE two, three. one TWO, three. " * 4, -0.8, -0.6),
    (r"\frac{1}{2} + \frac{1}{3} = \frac{3}{6} + \frac{2}{6} = \frac{5}{6}. So the sum is \frac{5}{6}.", 0.0, 0.0),
    ("step by step " * 100, -1.0, -0.98),
    ("!" * 400, -1.0, -0.98),
    ("ab" * 400, -0.98, -0.9),  # no spaces
    (" ".join(map(str, range(400))), 0.0, 0.0),
])
def test_repetition(reply, low, high):
    assert low - 1e-9 <= one(repetition, reply) <= high + 1e-9


# scaffold

@pytest.mark.parametrize(("reasoning", "missing"), [
    ("\n".join(FULL), 0),
    (" ".join(FULL), 0),
    ("First of all.\n" + "\n\n".join(f"**{n}. {step}**" for n, step in enumerate(FULL, 1)), 0),
    ("\n".join(f"## Step {n}: {step.replace(': ', chr(10))}" for n, step in enumerate(FULL, 1)), 0),
    ("\n".join(step.replace(":", " the matter:") for step in FULL).upper(), 0),
    ("\n".join(FULL[:4]), 1),
    ("\n".join(FULL[1:]), 1),
    ("\n".join([*FULL[:2], FULL[3], FULL[2], FULL[4]]), 1),    # the late one is out of order
    ("\n".join(reversed(FULL)), 4),
    ("\n".join(f"{step}:" for step in STEPS), 5),
    ("\n".join(f"{step}: yes, sure" for step in STEPS), 5),     # two words each
    ("\n".join(f"{step}: the very same words" for step in STEPS), 4),
    ("\n".join(f"{step}: identify determine explore act" for step in STEPS), 5),
    ("identify determine explore act evaluate", 5),
    ("They act: it is fun for all", 5),                         # not where a line or sentence begins
    ("6+5=11; 11+2=13", 5),
    ("\u0131dentify: a dotless letter here", 5),
    ("", 5),
    # headings over the question's words: as it has them, in parts, shuffled, in another case, with one word of its own
    ("\n".join(f"{step}: {QUESTION}" for step in STEPS), 5),
    ("\n".join(f"{step}: {part}" for step, part in zip(STEPS, (
        "Leo has 6 shells", "shells buys 5", "buys 5 and finds 2", "finds 2 how many", "shells now"), strict=True)), 5),
    ("\n".join(f"{step}: {part}" for step, part in zip(STEPS, (
        "shells 6 Leo", "now many how", "2 finds and", "buys 5 has", "6 5 2 shells"), strict=True)), 5),
    ("\n".join(f"{step}: LEO HAS 6 SHELLS {n}" for n, step in enumerate(STEPS)), 5),
    ("\n".join(f"{step}: Leo has 6 shells, indeed" for step in STEPS), 5),
    ("\n".join(f"{step}: Leo has shells, indeed there are" for step in STEPS), 4),
    ("\n".join([*FULL[:4], "Evaluate: six shells at first, 6 + 5 = 11."]), 1),   # what other steps have said
])
def test_scaffold_counts_the_steps_that_fail(reasoning, missing):
    assert one(scaffold, think(reasoning), question=QUESTION) == pytest.approx(-missing / 5)


def test_scaffold_reads_the_reasoning_and_tells_what_it_found():
    told = {}
    replies = [think("\n".join(FULL[:2])), "\n".join(FULL)]
    assert scaffold(["p"] * 2, replies, [QUESTION] * 2, log_extra=told.__setitem__) == pytest.approx([-0.6, -1.0])
    assert told == {"scaffold": [["identify", "determine"], []]}


# work_shown

def test_work_shown_is_a_penalty_and_tells_why():
    told = {}
    replies = [think("6 + 5 = 11; 11 + 2 = 13"), think("So 13"), "", think("0+0=0; " * 9), think("7+8=15; 15+9=24")]
    assert work_shown(["p"] * 5, replies, [QUESTION] * 5, log_extra=told.__setitem__) == [0.0, -1.0, -1.0, -1.0, -1.0]
    assert told == {"work_shown": ["work", "no step", "no step", "no step", "false or foreign sums"]}
    assert one(work_shown, replies[0], question=QUESTION) == 0.0


# script

@pytest.mark.parametrize(("name", "reply", "expected"), [
    ("LATIN", think("So it is, naïve, 11 + 2 = 13 ✓"), 0.0),
    ("LATIN", think("das ist deutsch"), 0.0),         # a script is not a language
    ("LATIN", think("2πr"), -0.5),
    ("LATIN", think("это"), -1.0),
    ("LATIN", think("\u0430bc"), -1 / 3),             # a Cyrillic a
    ("LATIN", think("\uff41\U0001d41ebc"), -0.5),     # full-width, mathematical
    ("LATIN", think("6+5"), 0.0),
    ("LATIN", "это no tags", -3 / 9),
    ("CYRILLIC", think("это"), 0.0),
    ("CJK", think("数学 is"), -0.5),
])
def test_script(name, reply, expected):
    assert one(script(name), reply) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["latin", "", "ENGLISH", "DIGIT"])
def test_an_unknown_script_is_named(name):
    with pytest.raises(ValueError, match=f"script '{name}': give the first word"):
        script(name)


# all of them

def test_every_part_has_its_name():
    names = [part.__name__ for part in PARTS]
    assert len(set(names)) == len(names)
    assert {"tfidf_relevance", "tfidf_leak", "length_band", "overlong", "repetition", "scaffold", "work_shown",
            "script"} < {*names}


@given(st.one_of(st.text(), st.lists(st.sampled_from(BENCHMARK["FRAGMENTS"])).map("".join)))
@settings(max_examples=200)
def test_reading_the_text_alone_pays_nothing(reply):
    for part in PARTS:
        if part.__module__ == "recipes.rewards.text":
            assert -1.0 <= BENCHMARK["ask"](part, [reply])[0] <= 0.0, part.__name__


def test_an_honest_reply_costs_nothing():
    values = {part.__name__: BENCHMARK["ask"](part, [BENCHMARK["HONEST"]])[0] for part in PARTS}
    paid = {"exact_answer", "exact_answer_if_tag_format", "numeric_closeness"}
    assert values == {name: pytest.approx(float(name in paid), abs=0.02) for name in values}


def test_a_lone_surrogate_has_a_length():
    assert one(length_band(Words(), 2, 2, 1), "a \ud800") == 0.0


# benchmarks/rewards.py, in short

def test_no_reply_raises():
    ranges = BENCHMARK["fuzz"](PARTS, 1500, seed=1)
    assert ranges["exact_answer"] == (0.0, 1.0) and ranges["tag_format"] == (-1.0, 0.0)
    assert all(low < high for name, (low, high) in ranges.items() if name != "overlong")


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=[part.__name__ for part in PARTS])
def test_twice_the_text_takes_at_most_about_twice_the_time(part):
    ratio, _, text = BENCHMARK["doubling"](lambda reply: BENCHMARK["ask"](part, [reply]), 20_000)
    assert ratio < 3.5, text  # noise; a quadratic search has 4 and takes seconds


def test_a_step_of_completions_is_scored_in_a_blink():
    assert BENCHMARK["throughput"](PARTS, 1000) < 2.0  # a tenth of it alone on a core


@pytest.mark.slow
def test_the_doubling_sees_a_quadratic_part(monkeypatch):
    monkeypatch.setitem(BENCHMARK["doubling"].__globals__, "HOSTILE", ("x",))

    def quadratic(reply):
        return sum(1 for start in range(0, len(reply), 20) for _ in reply[start:])

    assert BENCHMARK["doubling"](quadratic, 4000)[0] > 3.0, "long enough to stand above the noise of a fast core"


def test_parts_are_scored_alone_or_together_alike():
    replies = [think("\n".join(FULL)), TAGS.render(reasoning="6+5", answer="20"), "", "Leo " * 50]
    for part in PARTS:
        assert BENCHMARK["ask"](part, replies) == [BENCHMARK["ask"](part, [reply])[0] for reply in replies]
