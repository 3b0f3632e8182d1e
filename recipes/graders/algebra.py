"""Decides with sympy whether two formulas are equal. Numbers are compared exactly, unknowns at several points.

Entry point: `same`, for two pairs (name, tokens joined by spaces). It runs in the worker, because sympy never ends on
some input. Surprise: `(a - b).evalf(chop=True)` takes 1/2004! for 1/2006!. Here a difference must vanish at a precision
that grows with the numbers in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product, starmap

import sympy
from sympy import Integer, Rational, oo

from recipes.graders import structure
from recipes.graders.operations import adds_functions, leaves_arithmetic
from recipes.graders.structure import END_MATRIX, MATRIX, NEW_ROW, RELATIONS, SET_SIGNS, is_group, is_related, split
from recipes.graders.symbolic import read

DIGITS = 10  # that a decimal needs to stand for a formula
LEAST, PRECISION = 30, 400  # digits for a first try, and for the last. Long numbers get more
POINTS = tuple(starmap(Rational, (
    (7, 5), (-11, 7), (23, 9), (3, 13), (-5, 17), (19, 11), (-31, 10), (29, 23), (2, 7), (37, 31), (-41, 37))))
WHOLE = tuple(map(Integer, (3, 2, 5, 4, 7, 6, 9, 11, 8, 13)))  # for sums, factorials and the like
ENDLESS = (oo, -oo, sympy.zoo, sympy.nan)
_OF_FRACTION = re.compile(r"(?<!\S)([0-9]+ / [0-9]+)(?= (?:[^\W\d_]|\(|\\(?!cdot(?:\s|\Z))))")


def load() -> Callable[[tuple[str, str], tuple[str, str]], bool]:
    """`same`, after a first call that makes sympy load what it needs."""
    same(("", "\\frac { x + 1 } { 2 }"), ("", "\\sqrt { x }"))
    return same


def same(found: tuple[str, str], expected: tuple[str, str]) -> bool:
    """Whether the values are equal, or the equations have the same solutions, and the answer leaves no work.

    Raises ValueError for what can't be read. `leaves_arithmetic` comes first, because it computes no power of a power.
    """
    (name, tokens), (gold_name, gold) = (map(str.split, side) for side in (found, expected))
    tokens, name = _letters_as_in(tokens, [*gold, *gold_name]), _letters_as_in(name, gold_name)
    return not adds_functions(tokens, gold) and any(
        not leaves_arithmetic(one, other) and _same_as_read(name, one, gold_name, other)
        for one, other in product(_readings(tokens), _readings(gold)))


def _same_as_read(name: list[str], tokens: list[str], gold_name: list[str], gold: list[str]) -> bool:
    related, gold_related = is_related(tokens), is_related(gold)
    if not (related or gold_related) and _same_values(tokens, gold):
        return True
    if related == gold_related and (related or name == gold_name):
        return related and _same_values(tokens, gold)
    titled = (related or structure.is_variable(name)) and (gold_related or structure.is_variable(gold_name))
    return titled and _same_values(tokens if related else [*name, "=", *tokens],
                                   gold if gold_related else [*gold_name, "=", *gold])


def _readings(tokens: list[str]) -> list[list[str]]:
    """The tokens as they are, with 1/2x as 1/(2x), and as people often mean them, with x/2."""
    meant = _OF_FRACTION.sub(r"( \1 )", " ".join(tokens)).split()
    return [tokens, meant] if meant != tokens else [tokens]


def _letters_as_in(tokens: list[str], gold: list[str]) -> list[str]:
    """Write `X + 1` as `x + 1` if the gold answer does. If it has both cases, they stay different."""
    return [token.swapcase() if len(token) == 1 and token not in gold and token.swapcase() in gold else token
            for token in tokens]


def _same_values(found: list[str], expected: list[str]) -> bool:
    """Whether each candidate has an equal one on the other side, in any order."""
    if SET_SIGNS.intersection([*found, *expected]):
        return _same_set(*(side if is_group(side) or SET_SIGNS.intersection(side) else [r"\{", *side, r"\}"]
                           for side in (found, expected)))
    left, right = structure.candidates(found), structure.candidates(expected)
    if len(left) != len(right):
        return False
    for value in left:
        match = next((number for number, other in enumerate(right) if _same_value(value, other)), None)
        if match is None:
            return False
        del right[match]
    return True


def _same_value(found: list[str], expected: list[str]) -> bool:
    if found == expected:
        return True
    if is_related(found) or is_related(expected):
        return _same_relation(found, expected)
    if MATRIX in found or MATRIX in expected:
        left, right = _matrix(found), _matrix(expected)
        return left.shape == right.shape and all(map(equal, left, right))
    left, right = (split(side[1:-1], ",") if is_group(side) else [side] for side in (found, expected))
    if len(left) > 1 or len(right) > 1:
        if (found[0], found[-1], len(left)) != (expected[0], expected[-1], len(right)):
            return False
        return _same_values(found, expected) if found[0] == r"\{" else all(map(_same_value, left, right))
    left, right = read(tuple(found)), read(tuple(expected))
    return equal(left, right) or _is_rounded(found, right) or _is_rounded(expected, left)


def _same_relation(found: list[str], expected: list[str]) -> bool:
    """Whether left minus right is proportional in both, by a nonzero factor, or a positive one for < and ≤."""
    (left, sign), (right, gold_sign) = _difference(found), _difference(expected)
    if sign != gold_sign:
        return False
    if left == right != 0:
        return True
    for here, there in _at_points(left, right, 4):
        if _is_nonzero(here) and _is_nonzero(there):
            return (sign in ("=", r"\ne") or bool(here * there > 0)) and equal(left * there, right * here)
    return False


def _difference(tokens: list[str]) -> tuple[sympy.Expr, str]:
    """Left minus right, and the sign, turned into =, ≠, > or ≥. For = and ≠ only the numerator of the difference."""
    sides = split(tokens, *RELATIONS)
    sign = next(token for token in tokens if token in RELATIONS)
    if len(sides) != 2 or sign not in ("=", r"\ne", "<", ">", r"\le", r"\ge"):
        raise ValueError(" ".join(tokens))
    left, right = map(read, map(tuple, sides))
    if sign in ("<", r"\le"):
        left, right, sign = right, left, {"<": ">", r"\le": r"\ge"}[sign]
    return (sympy.fraction(sympy.together(left - right))[0], sign) if sign in ("=", r"\ne") else (left - right, sign)


def _matrix(tokens: list[str]) -> sympy.Matrix:
    """A matrix, with an optional factor before it and an optional transposition after it."""
    start, end = tokens.index(MATRIX), tokens.index(END_MATRIX)
    rows = [[read(tuple(entry)) for entry in split(row, "&")] for row in split(tokens[start + 1: end], NEW_ROW)]
    before, after = [token for token in tokens[:start] if token != r"\cdot"], tokens[end + 1:]
    factor = Integer(-1) if before == ["-"] else read(tuple(before)) if before else Integer(1)
    if after and after not in (["^", "{", "T", "}"], ["^", "{", r"\top", "}"]):
        raise ValueError(" ".join(tokens))
    return factor * (sympy.Matrix(rows).T if after else sympy.Matrix(rows))


def _same_set(found: list[str], expected: list[str]) -> bool:
    """Whether two unions have the same intervals and points. Sympy may write equal values differently."""
    left, right = _ranges(found), _ranges(expected)
    return len(left) == len(right) and all(
        a[2:] == b[2:] and equal(a[0], b[0]) and equal(a[1], b[1]) for a, b in zip(left, right, strict=True))


def _ranges(tokens: list[str]) -> list[tuple]:
    """The intervals of a union as (low, high, low open, high open), in order. A point is an interval too."""
    kept, *without = split(tokens, r"\setminus")
    whole = sympy.Union(*map(_piece, split(kept, r"\cup"))) - sympy.Union(*map(_piece, without))
    found = []
    for part in whole.args if isinstance(whole, sympy.Union) else [whole]:
        if isinstance(part, sympy.Interval):
            found.append((part.start, part.end, part.left_open, part.right_open))
        elif isinstance(part, sympy.FiniteSet):
            found += [(point, point, False, False) for point in part]
        elif part is not sympy.S.EmptySet:
            raise ValueError(" ".join(tokens))
    return sorted(found, key=lambda piece: piece[0].evalf(30))


def _piece(part: list[str]) -> sympy.Set:
    if part == [r"\emptyset"]:
        return sympy.S.EmptySet
    inner = [read(tuple(value)) for value in split(part[1:-1], ",")]
    if part[0] == r"\{" and is_group(part):
        return sympy.FiniteSet(*inner)
    if part[0] in ("(", "[") and is_group(part) and len(inner) == 2 and inner[0] < inner[1]:
        return sympy.Interval(*inner, part[0] == "(", part[-1] == ")")
    raise ValueError(" ".join(part))


def _at_points(a: sympy.Expr, b: sympy.Expr, count: int) -> Iterator[tuple[sympy.Expr, sympy.Expr]]:
    """Two values at several points of their unknowns."""
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    whole = (a - b).has(sympy.Sum, sympy.Product, sympy.factorial, sympy.factorial2, sympy.binomial)
    points = WHOLE if whole else POINTS
    for start in range(count):
        at = {symbol: points[(start + 3 * place) % len(points)] for place, symbol in enumerate(symbols)}
        yield a.subs(at).doit(), b.subs(at).doit()


def equal(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether two values are equal at several points. Points where only one of them is real are skipped."""
    if a == b:
        return a is not sympy.nan
    if a.has(*ENDLESS) or b.has(*ENDLESS):
        return False
    difference = a - b
    if difference == 0 or not difference.free_symbols:
        return not _is_nonzero(difference)
    compared = 0
    for left, right in _at_points(a, b, 7):
        if left.has(*ENDLESS) or right.has(*ENDLESS) or _is_real(left) != _is_real(right):
            continue
        if _is_nonzero(left - right):
            return False
        compared += 1
        if compared == 5:
            break
    return compared >= 2


def _is_real(value: sympy.Expr) -> bool:
    return bool(value.is_real) or sympy.im(value.evalf(15, chop=True)) == 0


def _is_nonzero(value: sympy.Expr) -> bool:
    """Whether a number is certainly not 0, because its real or imaginary part has a digit that did not cancel."""
    if value.is_Rational:
        return value != 0
    size = sum(number.p.bit_length() + number.q.bit_length() for number in value.atoms(Rational)) * 3 // 10
    for digits in (LEAST + size, PRECISION + 4 * size):
        number = value.evalf(digits, maxn=PRECISION + 4 * size)
        if number != 0:  # at too few digits log(1 + 1e-15) is an exact 0
            break
    parts = number.as_real_imag()
    if not all(part.is_Float or part.is_Integer for part in parts):
        raise ValueError(str(number))
    return any(part != 0 and getattr(part, "_prec", 2) > 1 for part in parts)


def _is_rounded(decimal: list[str], value: sympy.Expr) -> bool:
    """Whether a decimal of at least `DIGITS` digits is the formula's value, rounded or cut off at its last digit."""
    digits = decimal[-1]
    if len(decimal) > 2 or "." not in digits or len(digits.replace(".", "").lstrip("0")) < DIGITS:
        return False
    if not value.is_number or not value.is_real or value.is_Rational and 10 ** value.q.bit_length() % value.q == 0:
        return False  # the value is a decimal too
    missing = (abs(value) - abs(read(tuple(decimal)))) * 10 ** len(digits.partition(".")[2])
    return bool(value * read(tuple(decimal)) > 0 and missing >= -Rational(1, 2) and missing < 1)
