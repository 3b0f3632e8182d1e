"""The structure of a formula's tokens: candidates, brackets, relations, intervals, sets and matrices.

Entry point: `canonical` for a normal form. It writes ± as two values, `x > 3` as (3, ∞), `x < 2 or x = 3` as a union,
and [[1, 2], [3, 4]] as a matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, product

from recipes.graders.notation import AND, OR

BRACKETS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
CLOSING = frozenset(BRACKETS.values())
RELATIONS = frozenset({"=", "<", ">", r"\le", r"\ge", r"\in", r"\ne", r"\approx", ":"})
INEQUALITIES = frozenset({"<", ">", r"\le", r"\ge", r"\ne"})
MATRIX, END_MATRIX, NEW_ROW = r"\begin{pmatrix}", r"\end{pmatrix}", r"\\"
_DEPTH = (dict.fromkeys([*BRACKETS, MATRIX, r"\begin{vmatrix}"], 1)
          | dict.fromkeys([*CLOSING, END_MATRIX, r"\end{vmatrix}"], -1))
_STRUCTURAL = RELATIONS | {",", OR, AND, r"\pm", r"\mp", "[", r"\{", "ℝ", MATRIX}  # without these it is canonical
REALS = ["(", "-", r"\infty", ",", r"\infty", ")"]
SET_SIGNS = frozenset({r"\cup", r"\setminus", r"\emptyset"})
MAX_SIGNS = 4  # a formula with more ± stays as it is

_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
# For tokens joined by spaces. A name may be a letter, f(x), f^{-1}(x), a_{n}, dy/dx, (x, y), AB, P(A) or sin θ.
_LETTER = r"(?:[A-Za-z]|\\(?!frac|sqrt|infty|pi\b|emptyset|cup|begin|end)[a-z]+)(?: _ \{(?: \\?\w+)+ \})?"
_ARGUMENTS = rf"\( {_LETTER}(?: , {_LETTER})* \)"
_NAME = re.compile(
    rf"{_LETTER}(?: ')*(?: \^ \{{ - 1 \}})?(?: {_ARGUMENTS})?|{_ARGUMENTS}|\\frac \{{ d [a-z] \}} \{{ d [a-z] \}}|"
    r"d [a-z] / d [a-z]|(?:\\angle |\\triangle )?[A-Z](?: [A-Z]){1,3}|\\angle [A-Z]|\| [a-z] \||"
    rf"\\(?:vec|hat|bar|overline|mathbf|overrightarrow) (?:\{{ [A-Za-z](?: [A-Za-z])? \}}|[A-Za-z])|"
    rf"\\(?:sin|cos|tan|cot|sec|csc|det) {_LETTER}")
_BRACKETED_MATRIX = re.compile(r"[(\[] (\\begin\{pmatrix\}(?:(?!\\begin\{pmatrix\}|\\end).)*+\\end\{pmatrix\}) [)\]]")
_VARIABLE = re.compile(r"(?:[A-Za-z]|\\(?!pi\b|infty)[a-z]+)(?: _ \{ \w+ \})?")
_COMMANDS_OF_NUMBERS = frozenset({r"\frac", r"\sqrt", r"\pi", r"\infty", r"\cdot", r"\log", r"\ln", r"\binom"})


def _depths(tokens: Iterable[str]) -> Iterator[int]:
    """The number of brackets that are open at each token, with its own."""
    return accumulate(_DEPTH.get(token, 0) for token in tokens)


def split(tokens: Sequence[str], *separators: str) -> list[list[str]]:
    """The parts between separators outside brackets."""
    parts = [[]]
    for token, depth in zip(tokens, _depths(tokens), strict=True):
        if depth == 0 and token in separators:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def is_group(tokens: Sequence[str]) -> bool:
    """Whether the first token opens a bracket that the last one closes."""
    return len(tokens) > 1 and all(depth > 0 for depth in _depths(tokens[:-1]))


def candidates(tokens: list[str]) -> list[list[str]]:
    """The values that are offered, with or without set braces."""
    inner = tokens[1:-1] if tokens[0] == r"\{" and is_group(tokens) else tokens
    return split(inner, ",") if inner else []


def is_related(tokens: list[str]) -> bool:
    """Whether there is an equation or another relation outside brackets."""
    return not RELATIONS.isdisjoint(tokens) and len(split(tokens, *RELATIONS)) > 1


def is_name(tokens: list[str]) -> bool:
    """Whether the tokens can stand before "=" as the name of a value."""
    return len(tokens) < 20 and _NAME.fullmatch(" ".join(tokens)) is not None


def is_variable(tokens: Iterable[str]) -> bool:
    """Whether the tokens are a single unknown. An inequality may be solved for it."""
    return _VARIABLE.fullmatch(" ".join(tokens)) is not None


def canonical(tokens: list[str]) -> tuple[list[str], list[str]]:
    """The name that all values share, or [], and the tokens of the values."""
    if _STRUCTURAL.isdisjoint(tokens):
        return [], _drop_plus(tokens)
    tokens = _unwrap_sets(tokens)
    joints = {token for token in _tokens_outside(tokens) if token in (",", OR, AND)}
    parts = split(tokens, ",", OR, AND)
    names, values = zip(*map(_solve, parts), strict=True)
    name = max(names, key=bool)  # the first that is not empty
    if any(found != name if found else "=" in part for found, part in zip(names, parts, strict=True)):
        name, values = [], parts
    values = list(map(_unify_matrices, values))
    ranges = name and (INEQUALITIES | SET_SIGNS).intersection(tokens)
    if ranges and len(values) > 1 and "," not in joints:
        values = _combine_ranges(parts, names, values, joints)
    if not ranges and len(values) == 1 and values[0][:1] == [r"\{"] and is_group(values[0]):
        return name, [r"\{", *_list_values(split(values[0][1:-1], ",")), r"\}"]
    return name, _list_values(values)


def _tokens_outside(tokens: list[str]) -> list[str]:
    return [token for token, depth in zip(tokens, _depths(tokens), strict=True) if depth == 0]


def _list_values(values: Iterable[list[str]]) -> list[str]:
    """The values joined by commas, with each ± written out and no + before a first term."""
    return _join((_drop_plus(one) for value in values for one in _both_signs(value)), ",")


def _both_signs(value: list[str]) -> list[list[str]]:
    """One value per reading of ±. If there is a ∓ too, all upper or all lower signs, else every combination."""
    count = value.count(r"\pm") + value.count(r"\mp")
    if not count or count > MAX_SIGNS:
        return [value]
    together = r"\mp" in value and r"\pm" in value
    lower, every = {"+": "-", "-": "+"}, []
    for signs in ("+" * count, "-" * count) if together else product("+-", repeat=count):
        sign = iter(signs)
        every.append([next(sign) if token == r"\pm" else lower[next(sign)] if token == r"\mp" else token
                      for token in value])
    return every


def _drop_plus(value: list[str]) -> list[str]:
    if "+" not in value:
        return value
    before = ("(", *value)
    return [token for token, left in zip(value, before, strict=False)
            if token != "+" or left not in BRACKETS and left not in RELATIONS and left != ","]


def _solve(part: list[str]) -> tuple[list[str], list[str]]:
    """The name and value of `x = 3`, `3 = x`, `x ∈ A` or a solved inequality, whose value is an interval or union."""
    sides, signs = split(part, *RELATIONS), [token for token in _tokens_outside(part) if token in RELATIONS]
    if len(sides) == 2 and all(sides):
        (left, right), sign = sides, signs[0]
        if not is_name(left) and is_name(right) and sign in (*_TURNED, "=", r"\ne") and not _is_constant(right):
            left, right, sign = right, left, _TURNED.get(sign, sign)
        if sign in ("=", r"\in") and is_name(left) and (len(left) > 1 or left[0] not in right):
            return left, right
        if sign in INEQUALITIES and is_variable(left) and _is_constant(right):
            return left, _ray(sign, right)
    if len(sides) == 3 and all(sides) and "," not in part and not sides[1][0][0].isdecimal():
        (low, name, high), (first, second) = sides, signs
        if {">", r"\ge"}.issuperset(signs):
            low, high, first, second = high, low, _TURNED[second], _TURNED[first]
        if {"<", r"\le"}.issuperset((first, second)):
            return name, ["(" if first == "<" else "[", *low, ",", *high, ")" if second == "<" else "]"]
    return [], part


def _ray(sign: str, bound: list[str]) -> list[str]:
    below = ["(", "-", r"\infty", ",", *bound, "]" if sign == r"\le" else ")"]
    above = ["[" if sign == r"\ge" else "(", *bound, ",", r"\infty", ")"]
    return [*below, r"\cup", *above] if sign == r"\ne" else below if sign in ("<", r"\le") else above


def _is_constant(tokens: list[str]) -> bool:
    return not any(token.isalpha() and token != "e" or token[0] == "\\" and token[1:].isalpha()
                   and token not in _COMMANDS_OF_NUMBERS for token in tokens)


def _combine_ranges(parts: list[list[str]], names: Sequence[list[str]], values: list[list[str]],
                    joints: set[str]) -> list[list[str]]:
    """`x < 2 or x = 3` as a union. `x > 1 and x < 4` as one interval."""
    ranges = [[r"\{", *value, r"\}"] if name and not INEQUALITIES.union([r"\in"]).intersection(part) else value
              for part, name, value in zip(parts, names, values, strict=True)]
    if joints == {OR}:
        return [_join(ranges, r"\cup")]
    if joints == {AND} and len(ranges) == 2:
        low, high = sorted(ranges, key=lambda value: value[1:3] == ["-", r"\infty"])
        if low[-2:-1] == [r"\infty"] and high[1:3] == ["-", r"\infty"] and r"\cup" not in low + high:
            return [[*low[:-2], *high[4:]]]
    return values


def _unwrap_sets(tokens: list[str]) -> list[str]:
    """Write `{1, 2}` with set braces, `{x | x > 3}` as its condition, and ℝ as an interval."""
    tokens = list(chain.from_iterable(REALS if token == "ℝ" else [token] for token in tokens))
    if tokens == [r"\{", r"\}"]:
        return [r"\emptyset"]
    if tokens[:1] == ["{"] and is_group(tokens) and len(split(tokens[1:-1], ",")) > 1:
        return [r"\{", *tokens[1:-1], r"\}"]
    if tokens[:1] == [r"\{"] and is_group(tokens):
        sides = split(tokens[1:-1], "|", ":")
        if len(sides) == 2 and is_name(split(sides[0], r"\in")[0]) and sides[1]:
            return sides[1]
    return tokens


def _unify_matrices(tokens: list[str]) -> list[str]:
    """Write rows in brackets as a matrix. Drop brackets around a matrix, and a line break at its end."""
    if tokens[:2] == ["[", "["] and is_group(tokens):
        rows = split(tokens[1:-1], ",")
        if all(row[:1] == ["["] and is_group(row) for row in rows):
            entries = (split(row[1:-1], ",") for row in rows)
            return [MATRIX, *_join((_join(row, "&") for row in entries), NEW_ROW), END_MATRIX]
    if MATRIX in tokens:
        text = " ".join(tokens).replace(f"{NEW_ROW} {END_MATRIX}", END_MATRIX)
        return _BRACKETED_MATRIX.sub(r"\1", text).split()
    return tokens


def _join(parts: Iterable[list[str]], separator: str) -> list[str]:
    return list(chain.from_iterable([separator, *part] for part in parts))[1:]
