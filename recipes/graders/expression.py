"""The kind "expression": formulas, compared as written, then as algebra."""

from __future__ import annotations

from reasonkit.text.answers import Kind
from reasonkit.text.numbers import same_number
from recipes.graders.latex import Expression, contradict, may_equal, read_expression
from recipes.graders.operations import leaves_work
from recipes.graders.worker import decide, start

# Relations that no algebra here decides: an answer has them only as the gold answer does.
_OTHER_RELATIONS = frozenset("≡ ≅ ∼ ≃ ≈ ∝ ≐ ⇔ ⇒ → ↔ ¬ ∨ ∧ ⊕ ≪ ≫ ∣ ∥ ⟂".split()) | {"\\" + name for name in (
    "equiv cong sim simeq approx propto doteq iff implies Rightarrow Leftrightarrow leftrightarrow longrightarrow neg "
    "lnot not lor land vee wedge oplus ll gg models vdash parallel perp mapsto to asymp").split()}


def _same_expression(found: Expression, expected: Expression) -> bool | None:
    if contradict(found, expected):
        return False
    if found.latex == expected.latex:
        return True
    # A comma may be decimal, unless both are lists.
    if found.number and expected.number and not ("," in found.tokens and "," in expected.tokens):
        return same_number(found.number, expected.number)
    if not _OTHER_RELATIONS.isdisjoint(set(found.tokens) - set(expected.tokens)):
        return False
    if not may_equal(found, expected) or not found.number and leaves_work(found.tokens, expected.tokens):
        return False
    return decide("expression", found.spaced, expected.spaced)


def _read_gold_expression(text: str) -> Expression | None:
    start("expression")  # a missing package is told at once, not at the first answer that needs algebra
    return read_expression(text)


KIND = Kind(read_expression, _same_expression, _read_gold_expression)
