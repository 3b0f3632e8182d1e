"""The kind "plan": any steps that reach the goal of a STRIPS problem are right.

This is STRIPS (Fikes and Nilsson 1971) without types or negation. A state is a set of facts. An action needs some
facts, deletes some and adds some. A step is an action's name with its arguments. The gold answer is the problem.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reasonkit.text.answers import Kind
from reasonkit.text.cleaning import unfence

_PARTS = ("needs", "deletes", "adds")
_CALL = re.compile(r"(?<![\w-])([\w-]++)\s*+\(([^()]*+)\)")  # move(a, b), whose commas do not separate steps
_SEPARATOR = re.compile(r"[\n;,→\[\]()]|->|\b(?:and\s+)?then\b")
_BULLET = re.compile(r"^\s*+(?:[-*•]\s++)?+(?:(?:step\s++)?+[0-9]++\s*+[.):]\s*+)?+", re.MULTILINE)

Words = tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """Facts are tuples of lower-case words. Actions are (name with ?variables, needs, deletes, adds)."""

    start: frozenset[Words]
    goal: frozenset[Words]
    actions: tuple[tuple[Words, frozenset[Words], frozenset[Words], frozenset[Words]], ...]

    def is_solved_by(self, steps: Sequence[str]) -> bool:
        """Whether the steps work in this order and reach the goal."""
        state = self.start
        for step in steps:
            for name, *facts in self.actions:
                binding = _bind(name, tuple(step.split()))
                if binding is None:
                    continue
                needs, deletes, adds = (_fill(part, binding) for part in facts)
                if needs <= state:
                    state = state - deletes | adds
                    break
            else:
                return False
        return self.goal <= state


def read_problem(text: str) -> Problem:
    """Read the JSON of a gold answer. Raises ValueError that names what it lacks. An example:

    {"start": ["robot in hall", "door shut"], "goal": ["robot in kitchen"],
     "actions": {"open door": {"needs": ["robot in hall"], "deletes": ["door shut"], "adds": ["door open"]},
                 "go ?a ?b": {"needs": ["robot in ?a", "door open"], "deletes": ["robot in ?a"],
                              "adds": ["robot in ?b"]}}}
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ValueError(f"a plan's gold answer is JSON with start, goal and actions; got {text[:80]!r}") from error
    if not isinstance(raw, Mapping) or set(raw) != {"start", "goal", "actions"} or not raw["goal"]:
        raise ValueError(f"a plan's gold answer has exactly start, goal (not empty) and actions; got {text[:80]!r}")
    if not isinstance(raw["actions"], Mapping) or not raw["actions"]:
        raise ValueError("a plan's actions are an object: name -> {needs, deletes, adds}; got none")
    actions = []
    for name, action in raw["actions"].items():
        if not isinstance(action, Mapping) or set(action) - set(_PARTS):
            raise ValueError(f"action {name!r} may have {', '.join(_PARTS)}, each a list of facts; got {action!r}")
        words = tuple(name.casefold().split())
        parts = [_facts(action.get(part, []), f"{part} of {name!r}") for part in _PARTS]
        loose = {word for part in parts for fact in part for word in fact if word[0] == "?"} - set(words)
        if loose or not words:
            raise ValueError(f"action {name!r} has {sorted(loose)} in its facts, which its name lacks: name them all")
        actions.append((words, *parts))
    return Problem(_facts(raw["start"], "start"), _facts(raw["goal"], "goal"), tuple(actions))


def read_steps(text: str) -> tuple[str, ...] | None:
    """The steps of a plan, or None for blank text. They may be on lines, between commas, semicolons, arrows or "then",
    numbered, in a JSON list, or written as `move(a, b)` or `(move a b)`."""
    plain = _BULLET.sub("", text.casefold().replace("`", ""))
    spaced = _CALL.sub(lambda call: f"{call[1]} {call[2].replace(',', ' ')};", plain)
    parts = (_BULLET.sub("", part).strip(" .\"'") for part in _SEPARATOR.split(spaced))
    steps = tuple(" ".join(part.split()) for part in parts if part)
    return steps if steps or re.fullmatch(r"\s*\[\s*\]\s*", text) else None


def _facts(raw: object, where: str) -> frozenset[Words]:
    if not isinstance(raw, list) or not all(isinstance(fact, str) and fact.split() for fact in raw):
        raise ValueError(f"{where} is a list of facts, each of words; got {raw!r}")
    return frozenset(tuple(fact.casefold().split()) for fact in raw)


def _bind(name: Words, words: Words) -> dict[str, str] | None:
    """The values of the ?variables of an action's name in a step. None if the step is another action."""
    if len(name) != len(words):
        return None
    binding: dict[str, str] = {}
    for expected, word in zip(name, words, strict=True):
        if word != (binding.setdefault(expected, word) if expected[0] == "?" else expected):
            return None
    return binding


def _fill(facts: frozenset[Words], binding: Mapping[str, str]) -> frozenset[Words]:
    return frozenset(tuple(binding.get(word, word) for word in fact) for fact in facts)


KIND = Kind(lambda text: read_steps(unfence(text)), lambda steps, problem: problem.is_solved_by(steps), read_problem)
