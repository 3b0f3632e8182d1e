"""The kind "plan": steps that reach the goal of a STRIPS problem, which is the gold answer."""

from __future__ import annotations

from reasonkit.text.answers import Kind
from reasonkit.text.cleaning import unfence
from recipes.graders.strips import Problem, read_problem, read_steps


def _is_plan(found: tuple[str, ...], problem: Problem) -> bool:
    return problem.reached_by(found) is None


KIND = Kind(lambda text: read_steps(unfence(text)), _is_plan, read_problem)
