"""Finds operations that an answer leaves undone, because the question's own formula does not answer the question.

Entry points: `adds_functions` and `leaves_arithmetic`, for the tokens of two formulas. An answer may leave only
operations that the gold answer leaves too. Order, factoring, expanding and unreduced fractions are free. If the gold
answer leaves a function, a factorial or a series, so is all arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set

from sympy import Expr, Integer, Mul, Symbol, preorder_traversal

from recipes.graders.notation import AND, OR
from recipes.graders.structure import END_MATRIX, MATRIX, NEW_ROW, RELATIONS, is_group, is_related, split
from recipes.graders.symbolic import read_as_written

# Those that can replace each other share a name. `symbolic` reads no others.
_FUNCTIONS = {"\\" + name: operation for operation, names in {
    "sine": "sin cos tan cot sec csc arcsin arccos arctan", "hyperbolic": "sinh cosh tanh coth",
    "logarithm": "log ln lg", "divisor": "gcd lcm", "extreme": "max min", "factorial": "binom",
    "sum over an index": "sum", "product over an index": "prod", "integral": "int", "limit": "lim",
    "rounding": "lfloor lceil",
}.items() for name in names.split()} | {"!": "factorial"}
Meanings = Mapping[Symbol, Expr]
_DERIVATIVE = re.compile(r"\\frac \{ d\b[^{}]*\} \{ d (?![-+])|\bd / d (?![-+])")
_SEPARATORS = (*RELATIONS, ",", "&", OR, AND, NEW_ROW, r"\cup", r"\setminus", r"\to", r"\pm", r"\mp")


def adds_functions(found: list[str], expected: list[str]) -> bool:
    """Whether the answer leaves a function that the gold answer does not leave."""
    return not _functions(found) <= _functions(expected)


def leaves_arithmetic(found: list[str], expected: list[str]) -> bool:
    """Whether the answer leaves a sum, product, quotient, power or absolute value that the gold answer does not leave.
    Raises ValueError for what `symbolic` cannot read."""
    if _functions(expected):
        return False
    golds = list(_formulas(expected))
    allowed = set().union(*map(_operations, golds))
    if "unknown" in allowed:
        allowed |= {"sum of constants", "absolute value"}  # x(1 + √2)
    if is_related(expected) or is_related(found):
        allowed |= {"denominator"}  # xy = 3 as y = 3/x
    if "power of ten" in allowed:
        allowed |= {"power"}
    left = set().union(*(_operations(formula) for formula in _formulas(found) if formula not in golds))
    return not left - {"power of ten", "unknown"} <= allowed


def _functions(tokens: list[str]) -> set[str]:
    called = {_FUNCTIONS[token] for token in tokens if token in _FUNCTIONS}
    return called | {"derivative"} if _DERIVATIVE.search(" ".join(tokens)) else called


def _formulas(tokens: list[str]) -> Iterator[list[str]]:
    """The single formulas in candidates, relations, tuples, intervals, sets and matrices."""
    for part in split(tokens, *_SEPARATORS):
        if MATRIX in part:
            start = part.index(MATRIX)
            yield from _formulas([token for token in part[:start] if token != r"\cdot"])
            yield from _formulas(part[start + 1: part.index(END_MATRIX)])
        elif is_group(part) and (part[0] == r"\{" or len(split(part[1:-1], *_SEPARATORS)) > 1):
            yield from _formulas(part[1:-1])
        elif part and part not in (["-"], [r"\emptyset"]):
            yield part


def _operations(tokens: list[str]) -> set[str]:
    """The names of the operations that one formula leaves, and "unknown" if it has an unknown."""
    formula, meanings = read_as_written(tuple(tokens))
    left = {"absolute value"} if "|" in tokens else set()
    if tokens[:2] == ["-", "-"] or tokens[:3] == ["-", "(", "-"] and is_group(tokens[1:]):
        left.add("sum")  # -(-5)
    numerals = {symbol: value for symbol, value in meanings.items() if value.is_Rational}
    unknowns = {symbol for symbol, value in meanings.items() if value.free_symbols}
    if unknowns & formula.free_symbols:
        left.add("unknown")
    for node in preorder_traversal(formula):
        if node.is_Add:
            left |= _in_sum(node, meanings, numerals, unknowns)
        elif node.is_Mul:
            left |= _in_product(node, numerals)
        elif node.is_Pow:
            left |= _in_power(node, numerals, unknowns)
    return left


def _in_sum(node: Expr, meanings: Meanings, numerals: Meanings, unknowns: Set[Symbol]) -> set[str]:
    """"sum" for two like terms or a 0, "sum of constants" for two terms without unknowns."""
    names = {symbol: Symbol(str(value)) for symbol, value in meanings.items()}
    terms = [Mul.make_args(term) for term in node.args]
    rests = {Mul(*(factor for factor in factors if not (
        factor.is_Number or factor in numerals or 1 / factor in numerals))).xreplace(names) for factors in terms}
    found = set()
    if len(rests) < len(terms) or any(numerals.get(factor) == 0 for factors in terms for factor in factors):
        found.add("sum")
    if sum(unknowns.isdisjoint(term.free_symbols) for term in node.args) > 1:
        found.add("sum of constants")
    return found


def _in_product(node: Expr, numerals: Meanings) -> set[str]:
    """"product" for two numerals, or their powers or roots, on one side of the line. "quotient" for a whole result."""
    plain, raised, roots, below = ([], []), [0, 0], [0, 0], False
    for factor in node.args:
        base, exponent = factor.as_base_exp()
        negative = _is_negative(exponent)
        if base in numerals and abs(exponent) == 1:
            plain[negative].append(numerals[base])
            continue
        below |= negative
        if base in numerals and (-exponent if negative else exponent) in numerals:
            raised[negative] += numerals[base] != 10
        elif base in numerals:
            roots[negative] += 1
    found = set()
    if max(*roots, *(len(side) + powers for side, powers in zip(plain, raised, strict=True))) > 1:
        found.add("product")
    if plain[True] and not below:
        top, bottom = (plain[False] or [Integer(1)])[0], plain[True][0]
        if not bottom or top % bottom == 0 or not (top.is_Integer and bottom.is_Integer):
            found.add("quotient")
    return found


def _in_power(node: Expr, numerals: Meanings, unknowns: Set[Symbol]) -> set[str]:
    base, exponent = node.args
    if unknowns & node.free_symbols:
        return {"denominator"} if _is_negative(exponent) else set()
    if exponent == -1:
        return set()
    whole = exponent in numerals or -exponent in numerals
    return {"power of ten" if whole and numerals.get(base) == 10 else "power"}


def _is_negative(exponent: Expr) -> bool:
    return bool(exponent.as_coeff_Mul()[0] < 0)
