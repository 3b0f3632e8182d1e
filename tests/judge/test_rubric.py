"""Rubrics: what a criterion may be, the form in which it travels, and the domains that ship, read and broken."""

from __future__ import annotations

import math
import tomllib

import numpy as np
import pytest

from reasonkit.judge import rubric as rubrics
from reasonkit.judge.judge import weighted_score
from reasonkit.judge.rubric import (
    DOMAINS,
    WEIGHTS,
    Criterion,
    criteria,
    load_domain,
    rubric_from_json,
    rubric_to_json,
    with_reasoning,
)

STEPS = Criterion("Steps", "Every step follows.", WEIGHTS["essential"])
SHIPPED = ("chemistry", "code", "creative", "ethics", "general", "law", "maths", "medicine", "robotics",
           "science", "summarisation")


@pytest.mark.parametrize(("title", "description", "weight", "named"), [
    ("", "d", 1.0, "title"),
    (None, "d", 1.0, "title"),
    ("t", " \n", 1.0, "description"),
    ("t", 3, 1.0, "description"),
    ("t", "d", 0.0, "weight"),
    ("t", "d", -1, "weight"),
    ("t", "d", math.nan, "weight"),
    ("t", "d", math.inf, "weight"),
    ("t", "d", 10**400, "weight"),
    ("t", "d", "essential", "weight"),
    ("t", "d", True, "weight"),
    ("t", "d", None, "weight"),
])
def test_bad_criterion_is_named(title, description, weight, named):
    with pytest.raises(ValueError, match=named):
        Criterion(title, description, weight)


def test_rubric_json_round_trip():
    rubric = (STEPS, Criterion("Höflich", 'Says "bitte".\nTwice.', 3))
    assert rubric_from_json(rubric_to_json(rubric)) == rubric
    assert rubric_from_json(str(np.array([rubric_to_json(rubric)])[0])) == rubric


@pytest.mark.parametrize(("text", "named"), [
    ("", "the rubric '' is empty"),
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON: nested too deeply"),
    (None, "non-empty list"),
    ("[]", "non-empty list"),
    ('{"title": "t"}', "non-empty list"),
    ('["t"]', "entry 0"),
    ('[{"title": "t", "description": "d", "weight": 1}, {"title": "t", "weight": 1}]',
     "entry 1.*description"),
    ('[{"title": "t", "description": "d", "weight": 1, "extra": 1}]', "unknown.*extra"),
    ('[{"title": "t", "description": "d", "weight": "high"}]', "'t'.*weight is 'high'"),
    ('[{"title": "t", "description": "d", "weight": NaN}]', "not JSON: 'NaN' is no finite number"),
    ('[{"title": "t", "description": "d", "weight": 0}]', "weight is 0"),
])
def test_bad_rubric_json_is_named(text, named):
    with pytest.raises(ValueError, match=named):
        rubric_from_json(text)


def test_empty_rubric_has_no_json():
    with pytest.raises(ValueError, match="empty"):
        rubric_to_json(())


def test_levels_travel_and_what_has_none_is_written_as_before():
    rubric = (STEPS, Criterion("Clear", "Reads well.", 0.3, ("not at all", "half", "wholly")))
    assert rubric_from_json(rubric_to_json(rubric)) == rubric
    assert rubric_to_json(rubric[:1]) == '[{"title": "Steps", "description": "Every step follows.", "weight": 1.0}]'


@pytest.mark.parametrize("levels", [("only one",), ("bad", ""), ("bad", 3), "good", ["bad", "good"], None])
def test_levels_are_two_texts_or_more(levels):
    with pytest.raises(ValueError, match="criterion 't': levels are .*at least two texts, from the worst to the best"):
        Criterion("t", "d", 1.0, levels)


def test_every_kind_of_weight_goes_by_its_name():
    rows = [{"title": name, "description": "d", "weight": name} for name in WEIGHTS]
    assert {c.title: c.weight for c in criteria(rows, "here")} == WEIGHTS
    assert [c.title for c in criteria(rows, "here") if c.pitfall] == ["pitfall"]


def test_a_pitfall_is_marked_and_not_known_by_its_weight():
    rubric = (Criterion("Has a plot", "d", 0.9), Criterion("Pads", "d", 0.2, pitfall=True))
    assert rubric_from_json(rubric_to_json(rubric)) == rubric
    assert rubric_to_json(rubric).count("pitfall") == 1
    with pytest.raises(ValueError, match="entry 0: criterion 't': pitfall is 1; give it true or false"):
        rubric_from_json('[{"title": "t", "description": "d", "weight": 0.9, "pitfall": 1}]')


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.7, 0.3), (3, 20), (1e308, 1.7e308), (5e-324,)])
def test_half_of_what_the_reasoning_is_worth_shows_in_a_score(weights):
    """With a rubric of its own an open question used to pay as much for one line of reasoning as for a plan."""
    rubric = with_reasoning([Criterion(f"Own {n}", "Names the dish.", weight) for n, weight in enumerate(weights)])
    assert rubric[0].title == "Reasoning leads to the answer" and rubric_from_json(rubric_to_json(rubric)) == rubric
    line, half, plan = (weighted_score(np.array([met, *[0.8] * len(weights)]), rubric).score for met in (0, 0.5, 1))
    if 1e-300 < sum(weights) < math.inf:
        assert round(line, 1) < round(half, 1) < round(plan, 1) and plan - line == pytest.approx(0.25)


@pytest.mark.parametrize(("criterion", "added"), [
    (Criterion("Reasoning", "Is sound.", 1.0), 0), (Criterion("Sound", "Every step follows.", 1.0), 0),
    (Criterion("Sound", "d", 1.0, ("no reasoning", "some")), 0), (Criterion("Next step", "Is to rest.", 1.0), 1),
    (Criterion("Short", "Does not repeat its reasoning.", 0.9, pitfall=True), 1),
    (Criterion("Mental status", "Says that the patient's reasoning is impaired.", 1.0), 1)])
def test_a_rubric_that_names_the_reasoning_stays_as_it_is(criterion, added):
    rubric = with_reasoning((criterion,))
    assert rubric[added:] == (criterion,) and len(rubric) == 1 + added
    assert with_reasoning(rubric) == rubric  # as of a trace, which is read a second time


# Domains


def test_the_domains_are_there():
    assert tuple(sorted(path.stem for path in DOMAINS.glob("*.toml"))) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_domain_can_be_used(name):
    domain = load_domain(name)
    assert 5 <= len(domain.rubric) <= 9
    assert len({c.title for c in domain.rubric}) == len(domain.rubric)
    assert all(len(c.levels) >= 2 and len(set(c.levels)) == len(c.levels) for c in domain.rubric)
    weights = {c.weight for c in domain.rubric if c.title != "Reasoning picks the points"}  # a quarter of the score
    assert {WEIGHTS["essential"], WEIGHTS["pitfall"]} <= weights <= set(WEIGHTS.values())
    assert with_reasoning(domain.rubric) == domain.rubric, "it names the reasoning"
    # a pitfall is worded as its avoidance, else a high rating would reward it
    assert all(c.title.startswith("No ") or c.description.startswith("Does not ") for c in domain.rubric
               if c.weight == WEIGHTS["pitfall"])
    assert rubric_from_json(rubric_to_json(domain.rubric)) == domain.rubric


def test_all_files_are_packaged():
    package = tomllib.loads((DOMAINS.parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "rubrics/*.toml" in package["data_recipes"]


ENTRY = '[[rubric]]\ntitle = "t"\ndescription = "d"\nweight = "pitfall"\n'


@pytest.mark.parametrize(("text", "message"), [
    ("", r"mine.toml is no domain \(rubric is missing\): mend the file"),
    ("rubric = 3\n", r"mine.toml: .* is not a non-empty list of criteria: 3"),
    (ENTRY + '[other]\nx = 1\n', r"mine.toml is no domain \(other is no key that is known here\)"),
    (ENTRY + ENTRY.replace("pitfall", "grave"),
     r"mine.toml: \[\[rubric\]\], entry 1: criterion 't': weight is 'grave'; give it .* such as one of .*essential"),
    (ENTRY + 'level = ["a", "b"]\n', r"entry 0: missing \[\], unknown \['level'\]"),
    (ENTRY + 'levels = ["a"]\n', "entry 0: criterion 't': levels are .*give at least two texts"),
    (ENTRY + 'levels = "worst"\n', "entry 0: criterion 't': levels are 'worst'"),
    ("[[rubric", r"mine.toml is no domain \(not TOML: "),
])
def test_a_file_that_cannot_be_used_is_named(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(rubrics, "DOMAINS", tmp_path)
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_domain("mine")


@pytest.mark.parametrize("name", ["alchemy", "../tiny_mix", ""])
def test_an_unknown_domain_is_named(name):
    with pytest.raises(ValueError, match=rf"unknown domain '{name}': choose one of chemistry, code, .*summarisation"):
        load_domain(name)
