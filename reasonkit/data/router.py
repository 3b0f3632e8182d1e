"""The domain of a question that has none: `route`, by the words that the rubrics list. Its task: `find_task`.

The lists are written by hand. A TF-IDF classifier knows the questions of the sources that it is fitted on, and sends
those of others to wrong domains five times as often: it learns how a source words them (`benchmarks/router.py`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from reasonkit.judge.rubric import DOMAINS, load_domain

GENERAL = "general"  # the domain of a question that belongs to no other
NEEDED = 2  # different words of a domain, and more than of any other
ASKED = "question answering"
TASKS = {"choice": "exam", "number": "word problem", "expression": "calculation", "plan": "planning"}  # by the kind
_WORD = re.compile(r"[^\W\d_]+")


@lru_cache
def _domains() -> dict[str, tuple[set[str], tuple[str, ...], str]]:
    """Of each domain its words and pairs of words, its word endings, and its task."""
    listed = {path.stem: load_domain(path.stem) for path in sorted(DOMAINS.glob("*.toml"))}
    return {name: ({word for word in found.words if word[0] != "-"},
                   tuple(word[1:] for word in found.words if word[0] == "-"), found.task)
            for name, found in listed.items()}


def route(question: str) -> str:
    """The domain with the most different words in the question, or "" if they are too few or two domains tie.

    >>> route("Which drug is the treatment of choice for acute gastritis?"), route("Who was it?")
    ('medicine', '')
    """
    said = _WORD.findall(question.casefold())
    found = {*said, *map(" ".join, pairwise(said))}
    counts = {name: len(words & found) + sum(word.endswith(endings) for word in {*said} - words)
              for name, (words, endings, _) in _domains().items()}
    best = max(counts, key=counts.get)
    return best if counts[best] >= NEEDED and [*counts.values()].count(counts[best]) == 1 else ""


def find_task(kind: str, domain: str) -> str:
    """What a question asks for, where nothing says it: by the kind of its answer, or else the task of its domain.

    >>> find_task("choice", "law"), find_task("open", "creative"), find_task("open", "law")
    ('exam', 'writing', 'question answering')
    """
    return TASKS.get(kind) or _domains().get(domain, (None, None, ""))[2] or ASKED
