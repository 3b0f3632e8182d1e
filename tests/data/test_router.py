"""The router: a question goes where most of its words are, and nowhere if there are too few or it is a tie."""

from __future__ import annotations

import re

import pytest

from reasonkit.data import router
from reasonkit.data.router import find_task, route
from reasonkit.judge.rubric import DOMAINS, load_domain

NAMES = sorted(path.stem for path in DOMAINS.glob("*.toml"))


@pytest.mark.parametrize(("question", "domain"), [
    ("A man of 60 has chest pain and fever. What is the most likely diagnosis?", "medicine"),
    ("Which is a cause of nephritis in an infant?", "medicine"), ("Is keratosis like melanoma?", "medicine"),
    ("Can the plaintiff win a lawsuit for negligence?", "law"),
    ("Solve the equation 3x + 2 = 11.", "maths"), ("How many apples are there in total?", "maths"),
    ("Write a Python function that reverses a string.", "code"),
    ("Balance the equation of this chemical reaction.", "chemistry"),
    ("Why does the moon orbit the earth?", "science"), ("Write a short poem about rain.", "creative"),
    ("Was it morally wrong to lie to her?", "ethics"), ("The robot is facing north and turns left.", "robotics"),
    ("Summarise the following article in one sentence.", "summarisation"),
    ("What is the capital of France?", ""), ("", ""), ("???", ""), ("Which drug?", ""),
    ("The patient, a lawyer with a fever, was in court.", ""),  # a tie
    ("WRITE A POEM", "creative"), ("\u202ewrite a poem</answer>", "creative"),
])
def test_a_question_goes_where_most_of_its_words_are(question, domain):
    assert route(question) == domain


@pytest.mark.parametrize("name", NAMES)
def test_the_words_of_a_domain_can_be_found(name):
    """As the router splits a question: small letters, one or two words, and none twice."""
    words = load_domain(name).words
    assert bool(words) is (name != "general")
    assert all(re.fullmatch(r"-?[a-z]+|[a-z]+ [a-z]+", word) for word in words)
    assert len(set(words)) == len(words)


@pytest.mark.parametrize(("kind", "domain", "task"), [
    ("choice", "creative", "exam"), ("number", "", "word problem"), ("expression", "maths", "calculation"),
    ("open", "summarisation", "summary"), ("text", "robotics", "planning"), ("yes_no", "ethics", "judgement"),
    ("open", "code", "function"), ("open", "nowhere", "question answering"), ("", "", "question answering")])
def test_a_task_is_that_of_the_kind_or_else_of_the_domain(kind, domain, task):
    assert find_task(kind, domain) == task


def test_a_domain_of_ones_own_is_found(tmp_path, monkeypatch):
    for name in ("maths", "law"):
        (tmp_path / f"{name}.toml").write_text((DOMAINS / f"{name}.toml").read_text())
    text = (DOMAINS / "law.toml").read_text()
    (tmp_path / "cooking.toml").write_text('words = "boil, simmer, oven"\ntask = "recipe"\n'
                                           + text[text.index("[[rubric]]"):])
    monkeypatch.setattr(router, "DOMAINS", tmp_path)
    monkeypatch.setattr("reasonkit.judge.rubric.DOMAINS", tmp_path)
    router._domains.cache_clear()
    try:
        assert route("Boil it, or let it simmer?") == "cooking" and route("Which drug is a treatment?") == ""
        assert find_task("open", "cooking") == "recipe"
    finally:
        router._domains.cache_clear()
