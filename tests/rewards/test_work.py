"""Work and no work: what a program can see, that it sees it, and that it takes no honest reasoning for none."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonkit.data.problems import load_recipe, make_problem
from reasonkit.judge.rubric import DOMAINS
from reasonkit.rewards.work import missing_work
from reasonkit.text.tags import TAGS

ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "golden" / "work.jsonl").read_text().splitlines()]
ANCHORS = tomllib.loads((Path(__file__).parents[2] / "benchmarks" / "anchors.toml").read_text())
FAMILIES = load_recipe("tiny_mix").families
GYM = ("gym_gcd", "gym_gsm", "gym_sum")


def why(question, reasoning, answer):
    return missing_work(question, TAGS.parse(TAGS.render(reasoning=reasoning, answer=answer)))


@pytest.mark.parametrize("family", [*FAMILIES, *GYM])
def test_the_worked_steps_of_a_family_are_work_with_a_slip_too(family):
    rng = random.Random(family)
    for number in range(120):
        item, count, at = make_problem(family, number, 3), iter(range(99)), rng.randrange(2)
        assert why(item.question, item.reasoning, item.answer) == "", item
        if family in FAMILIES:
            error = rng.choice((-2, -1, 1, 2))
            slipped = make_problem(family, number, 3, lambda value: value + error * (next(count) == at))  # noqa: B023
            assert why(item.question, slipped.reasoning, slipped.answer) == "", slipped


@pytest.mark.parametrize("domain", sorted(path.stem for path in DOMAINS.glob("*.toml")))
def test_the_good_reply_of_a_domain_is_work(domain):
    anchor = ANCHORS[domain]
    assert missing_work(anchor["question"], TAGS.parse(anchor["good"])) == ""
    assert all(TAGS.parse(anchor[text]).ok for text in ("good", "bad"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['why'] or 'work'}: {row['reasoning'][:40]}")
def test_why_a_reasoning_is_no_work(row):
    assert why(row["question"], row["reasoning"], row["answer"]) == row["why"]


@pytest.mark.parametrize("family", ["above", "coins", "largest", "sequence"])
def test_changed_digits_and_other_problems_are_seen_almost_always(family):
    """Now and then a changed or foreign step fits the question by chance: its numbers are small."""
    seen, n = {"digits": 0, "other": 0, "results": 0, "first step": 0}, 150
    for number in range(n):
        item, other = make_problem(family, number, 5), make_problem(family, number + 10**6, 5)
        texts = {"digits": item.reasoning.translate(str.maketrans("0123456789", "3456789012")),
                 "other": other.reasoning,
                 "results": "So " + ", ".join(step.replace("=", " ").split()[-1] for step in item.steps),
                 "first step": "; ".join(item.steps[:1] * 4)}
        for name, text in texts.items():
            seen[name] += why(item.question, text, item.answer) != ""
    assert seen["digits"] >= 0.96 * n and seen["other"] >= 0.93 * n and seen["results"] == seen["first step"] == n


@given(st.text(), st.one_of(st.text(), st.lists(st.sampled_from(
    ["1", "2", "+", "-", "=", "/", "0", " ", "x", "mod", "$", "(", ")", "^", "%", ",", ".", "1e5", "9" * 20,
     "\u2212", "is"])).map("".join)), st.text())
@settings(max_examples=300)
def test_no_text_raises(question, reasoning, answer):
    reply = TAGS.parse(f"<reasoning>{reasoning}</reasoning><answer>{answer}</answer>")
    assert missing_work(question, reply) == missing_work(question, reply)
