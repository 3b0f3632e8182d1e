"""Whether two formulas are equal, decided by sympy: numbers exactly, formulas in unknowns at several points.

Entry point: `same`, of two pairs (name, tokens between spaces) in the one form of `expressions`. It runs in a process
of its own with limits (`isolated`): sympy never ends on some input. Surprise: `(a - b).evalf(chop=True)` takes 1/2004!
for 1/2006!; here a difference must vanish relative to its terms, at a precision that grows with the numbers in it.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product, starmap

import sympy
from sympy import E, Float, I, Integer, Matrix, Rational, Symbol, oo, pi

from reasonkit.structure import (
    BRACKETS,
    CLOSING,
    END_MATRIX,
    MATRIX,
    NEW_ROW,
    RELATIONS,
    SET_SIGNS,
    candidates,
    is_group,
    is_related,
    is_variable,
    split,
)

DIGITS = 10  # of a decimal that stands for a formula
PRECISION = 300  # digits to which a difference must vanish, and four more for each digit of the numbers in it
POINTS = tuple(starmap(Rational, (
    (7, 5), (-11, 7), (23, 9), (3, 13), (-5, 17), (19, 11), (-31, 10), (29, 23), (2, 7), (37, 31), (-41, 37))))
WHOLE = tuple(map(Integer, (3, 2, 5, 4, 7, 6, 9, 11, 8, 13)))  # for what has meaning between whole numbers only

_NAMED = {r"\pi": pi, r"\infty": oo, "e": E, "i": I}
_FUNCTIONS = {"\\" + name: getattr(sympy, name) for name in
              "sin cos tan cot sec csc sinh cosh tanh coth exp gcd lcm".split()} | {
    r"\arcsin": sympy.asin, r"\arccos": sympy.acos, r"\arctan": sympy.atan, r"\ln": sympy.log, r"\max": sympy.Max,
    r"\min": sympy.Min, r"\log": lambda value: sympy.log(value, 10), r"\lg": lambda value: sympy.log(value, 10)}
_INVERSE = {r"\sin": sympy.asin, r"\cos": sympy.acos, r"\tan": sympy.atan}
_SUMS = {r"\sum": sympy.Sum, r"\prod": sympy.Product}
_SPECIAL = frozenset({r"\frac", r"\sqrt", r"\binom", r"\int", r"\lim", r"\lfloor", r"\lceil", "(", "[", "{"})
_ACCENTS = frozenset("\\" + name for name in "vec hat bar overline tilde mathbf mathbb mathcal overrightarrow".split())
_CALLED = frozenset("fghFGH")


class NotRead(ValueError):
    """Tokens that this reader knows no meaning of."""


def same(found: tuple[str, str], expected: tuple[str, str]) -> bool:
    """Whether the answer's values are the gold answer's, or its equation one with the same solutions."""
    (name, tokens), (gold_name, gold) = (map(str.split, side) for side in (found, expected))
    tokens, name = _letters_as_in(tokens, [*gold, *gold_name]), _letters_as_in(name, gold_name)
    return any(_same_as_read(name, one, gold_name, other) for one, other in product(_readings(tokens), _readings(gold)))


def _same_as_read(name: list[str], tokens: list[str], gold_name: list[str], gold: list[str]) -> bool:
    related, gold_related = is_related(tokens), is_related(gold)
    if not (related or gold_related) and _same_values(tokens, gold):
        return True
    if related == gold_related and (related or name == gold_name):
        return related and _same_values(tokens, gold)
    titled = (related or is_variable(name)) and (gold_related or is_variable(gold_name))
    return titled and _same_values(tokens if related else [*name, "=", *tokens],
                                   gold if gold_related else [*gold_name, "=", *gold])


def _readings(tokens: list[str]) -> list[list[str]]:
    """The tokens with 1/2x as 1/(2x), and as it is often meant, x/2."""
    meant, at = [], 0
    while at < len(tokens):
        first, sign, second, after = (*tokens[at: at + 4], "", "", "", "")[:4]
        if first.isdecimal() and sign == "/" and second.isdecimal() and (after[:1].isalpha() or after[:1] in ("(", "\\")):
            meant += ["(", first, "/", second, ")"]
            at += 3
        else:
            meant.append(first)
            at += 1
    return [tokens, meant] if len(meant) > len(tokens) else [tokens]


def _letters_as_in(tokens: list[str], gold: list[str]) -> list[str]:
    """`X + 1` with the letters of `x + 1`; a gold answer that has both cases keeps them apart."""
    return [token.swapcase() if len(token) == 1 and token not in gold and token.swapcase() in gold else token
            for token in tokens]


def _same_values(found: list[str], expected: list[str]) -> bool:
    """Whether each candidate has an equal one on the other side, in any order."""
    if not (SET_SIGNS.isdisjoint(found) and SET_SIGNS.isdisjoint(expected)):
        sides = (side if is_group(side) or not SET_SIGNS.isdisjoint(side) else [r"\{", *side, r"\}"]
                 for side in (found, expected))
        return _same_ranges(*map(_ranges, sides))
    left, right = candidates(found), candidates(expected)
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
    if found[0] in BRACKETS and is_group(found) and len(split(found[1:-1], ",")) > 1:
        if (found[0], found[-1]) != (expected[0], expected[-1]) or not is_group(expected):
            return False
        if found[0] == r"\{":
            return _same_values(found, expected)
        left, right = split(found[1:-1], ","), split(expected[1:-1], ",")
        return len(left) == len(right) and all(map(_same_value, left, right))
    if expected[0] in BRACKETS and is_group(expected) and len(split(expected[1:-1], ",")) > 1:
        return False
    left, right = read(tuple(found)), read(tuple(expected))
    return equal(left, right) or _is_rounded(found, right) or _is_rounded(expected, left)


def _same_relation(found: list[str], expected: list[str]) -> bool:
    """Whether both sides' differences are proportional: by a nonzero constant, or a positive one for < and ≤."""
    (left, sign), (right, gold_sign) = _difference(found), _difference(expected)
    if sign != gold_sign:
        return False
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    for start in range(4):
        at = {symbol: POINTS[(start + 3 * place) % len(POINTS)] for place, symbol in enumerate(symbols)}
        here, there = left.subs(at), right.subs(at)
        if _is_nonzero(here) and _is_nonzero(there):
            return (sign == "=" or bool(here * there > 0)) and equal(left * there, right * here)
    return False


def _difference(tokens: list[str]) -> tuple[sympy.Expr, str]:
    """Left minus right, turned so that only =, ≠, > and ≥ are left; without denominators in an equation."""
    sides = split(tokens, *RELATIONS)
    sign = next(token for token in tokens if token in RELATIONS)
    if len(sides) != 2 or sign not in ("=", r"\ne", "<", ">", r"\le", r"\ge"):
        raise NotRead(" ".join(tokens))
    left, right = map(read, map(tuple, sides))
    if sign in ("<", r"\le"):
        left, right, sign = right, left, {"<": ">", r"\le": r"\ge"}[sign]
    return (sympy.fraction(sympy.together(left - right))[0], sign) if sign in ("=", r"\ne") else (left - right, sign)


def _matrix(tokens: list[str]) -> Matrix:
    """A matrix, with a factor before it and a transposition after it."""
    start, end = tokens.index(MATRIX), tokens.index(END_MATRIX)
    rows = [[read(tuple(entry)) for entry in split(row, "&")] for row in split(tokens[start + 1: end], NEW_ROW)]
    before, after = [token for token in tokens[:start] if token != r"\cdot"], tokens[end + 1:]
    factor = Integer(-1) if before == ["-"] else read(tuple(before)) if before else Integer(1)
    if after and after not in (["^", "{", "T", "}"], ["^", "{", r"\top", "}"]):
        raise NotRead(" ".join(tokens))
    return factor * (Matrix(rows).T if after else Matrix(rows))


def _ranges(tokens: list[str]) -> list[tuple]:
    """The intervals of a union as (low, closed, high, closed), in order and without overlap; a point is one too."""
    kept, *without = split(tokens, r"\setminus")
    pieces = []
    for part in split(kept, r"\cup"):
        pieces += _pieces(part)
    pieces.sort(key=lambda piece: (_order(piece[0]), not piece[1]))
    merged = pieces[:1]
    for low, low_closed, high, high_closed in pieces[1:]:
        first, first_closed, last, last_closed = merged[-1]
        touching = equal(low, last)
        if touching and (low_closed or last_closed) or not touching and _order(low) < _order(last):
            further = not equal(high, last) and _order(high) > _order(last)
            closed = high_closed if further else last_closed or high_closed and equal(high, last)
            merged[-1] = first, first_closed, high if further else last, closed
        else:
            merged.append((low, low_closed, high, high_closed))
    for point in (point for part in without for point, *_ in _pieces(part)):
        merged = [piece for whole in merged for piece in _punctured(whole, point)]
    return merged


def _pieces(part: list[str]) -> list[tuple]:
    if part == [r"\emptyset"]:
        return []
    inner = split(part[1:-1], ",")
    if part[0] == r"\{" and is_group(part):
        return [(point, True, point, True) for point in (read(tuple(value)) for value in inner)]
    if part[0] in ("(", "[") and is_group(part) and len(inner) == 2:
        low, high = (read(tuple(value)) for value in inner)
        if _order(low) < _order(high):
            return [(low, part[0] == "[", high, part[-1] == "]")]
    raise NotRead(" ".join(part))


def _punctured(piece: tuple, point: sympy.Expr) -> list[tuple]:
    low, low_closed, high, high_closed = piece
    if equal(low, high):
        return [] if equal(low, point) else [piece]
    if equal(point, low) or equal(point, high):
        return [(low, low_closed and not equal(point, low), high, high_closed and not equal(point, high))]
    if _order(low) < _order(point) < _order(high):
        return [(low, low_closed, point, False), (point, False, high, high_closed)]
    return [piece]


def _same_ranges(found: list[tuple], expected: list[tuple]) -> bool:
    return len(found) == len(expected) and all(
        a[1] == b[1] and a[3] == b[3] and equal(a[0], b[0]) and equal(a[2], b[2])
        for a, b in zip(found, expected, strict=True))


def _order(value: sympy.Expr) -> sympy.Expr:
    number = value.evalf(30)
    if not number.is_extended_real or not (number.is_Number or number.is_infinite):
        raise NotRead(str(number))
    return number


def equal(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether two values are equal wherever both are real, or both are complex, at several points."""
    if a == b:
        return a is not sympy.nan
    if a.has(oo, -oo, sympy.zoo, sympy.nan) or b.has(oo, -oo, sympy.zoo, sympy.nan):
        return False
    difference = a - b
    symbols = sorted(difference.free_symbols, key=str)
    if difference == 0 or not symbols:
        return not _is_nonzero(difference)
    whole = difference.has(sympy.Sum, sympy.Product, sympy.factorial, sympy.factorial2, sympy.binomial)
    compared = 0
    for start in range(7):
        values = WHOLE if whole else POINTS
        at = {symbol: values[(start + 3 * place) % len(values)] for place, symbol in enumerate(symbols)}
        left, right = (side.subs(at).doit() for side in (a, b))
        if left.has(oo, -oo, sympy.zoo, sympy.nan) or right.has(oo, -oo, sympy.zoo, sympy.nan):
            continue
        if _is_real(left) != _is_real(right):
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
    """Whether a number is certainly not 0: one of its parts has a digit that no cancellation has taken."""
    if value.is_Rational:
        return value != 0
    size = sum(len(str(abs(number.p))) + len(str(number.q)) for number in value.atoms(Rational))
    number = value.evalf(5, maxn=PRECISION + 4 * size)
    parts = number.as_real_imag()
    if not all(part.is_Float or part.is_Integer for part in parts):
        raise NotRead(str(number))
    return any(part != 0 and getattr(part, "_prec", 2) > 1 for part in parts)


def _is_rounded(decimal: list[str], value: sympy.Expr) -> bool:
    """Whether a decimal of at least `DIGITS` digits is the formula's value, rounded or cut off at its last one."""
    digits = decimal[-1]
    if len(decimal) > 2 or "." not in digits or len(digits.replace(".", "").lstrip("0")) < DIGITS:
        return False
    if not value.is_number or value.is_Rational and set(sympy.factorint(value.q)) <= {2, 5}:
        return False  # a decimal too
    return bool(abs(value - read(tuple(decimal))) < Rational(1, 10 ** len(digits.partition(".")[2])))


@lru_cache(maxsize=512)  # the answers of a group share one gold answer
def read(tokens: tuple[str, ...]) -> sympy.Expr:
    """The value of one formula's tokens. Raises NotRead where they have no meaning here."""
    reader = _Reader(tokens)
    value = reader.sum()
    if reader.at < len(tokens):
        raise NotRead(" ".join(tokens))
    return value


class _Reader:
    """A recursive reader: sum, product, quotient, factors side by side, power, atom."""

    def __init__(self, tokens: tuple[str, ...]) -> None:
        self.tokens, self.at, self.bars, self.bound = tokens, 0, 0, set()

    @property
    def token(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1] if self.at <= len(self.tokens) else ""

    def take(self, token: str) -> None:
        if self.next() != token:
            raise NotRead(" ".join(self.tokens))

    def sum(self) -> sympy.Expr:
        total = self.product()
        while self.token in ("+", "-"):
            total = total + self.product() if self.next() == "+" else total - self.product()
        return total

    def product(self) -> sympy.Expr:
        if self.token in ("+", "-"):
            return self.product() if self.next() == "+" else -self.product()
        value = self.factors()
        while self.token in (r"\cdot", "/"):
            by = self.next()
            sign = 1
            while self.token in ("+", "-"):
                sign = -sign if self.next() == "-" else sign
            value = value * sign * self.factors() if by == r"\cdot" else value * sign / self.factors()
        return value

    def factors(self) -> sympy.Expr:
        """Factors side by side; a number before a fraction of numbers is a mixed number."""
        first = self.token
        value = self.power()
        if first.isdecimal() and self.token == r"\frac" and self.tokens[self.at - 1] == first:
            fraction = self.power()
            value = value + fraction if fraction.is_Rational and fraction > 0 else value * fraction
        while self.starts():
            value = value * self.power()
        return value

    def starts(self) -> bool:
        token = self.token
        return (token[:1].isalnum() or token in _NAMED or token in _FUNCTIONS or token in _SUMS or token in _SPECIAL
                or token == "|" and not self.bars or token in _ACCENTS or _is_letter(token))

    def power(self) -> sympy.Expr:
        value = self.atom()
        while True:
            if self.token == "^":
                self.next()
                value = value ** self.group()
            elif self.token == "!":
                self.next()
                double = self.token == "!"
                self.at += double
                value = sympy.factorial2(value) if double else sympy.factorial(value)
            elif self.token in ("°", r"\%", "%"):
                value = value * (pi / 180 if self.next() == "°" else Rational(1, 100))
            else:
                return value

    def group(self) -> sympy.Expr:
        opened = self.next()
        if opened not in ("(", "[", "{"):
            raise NotRead(" ".join(self.tokens))
        bars, self.bars = self.bars, 0
        value = self.sum()
        self.bars = bars
        self.take(BRACKETS[opened])
        return value

    def atom(self) -> sympy.Expr:
        token = self.token
        if token in ("(", "[", "{"):
            return self.group()
        self.next()
        if token[:1].isdecimal() or token[:1] == ".":
            if self.token == "_":  # in another base: not its value, which would be another answer
                return Symbol(token.lstrip("0") + self.raw())
            return Rational(token)
        if token == "|":
            self.bars += 1
            value = self.sum()
            self.bars -= 1
            self.take("|")
            return sympy.Abs(value)
        if token in (r"\lfloor", r"\lceil"):
            value = self.sum()
            self.take({r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}[token])
            return sympy.floor(value) if token == r"\lfloor" else sympy.ceiling(value)
        if token == r"\frac":
            return self.group() / self.group()
        if token == r"\binom":
            return sympy.binomial(self.group(), self.group())
        if token == r"\sqrt":
            return self.root()
        if token in _SUMS:
            return self.series(_SUMS[token])
        if token == r"\int":
            return self.integral()
        if token == r"\lim":
            return self.limit()
        if token in _FUNCTIONS and not (token == r"\exp" and not self.starts()):
            return self.function(token)
        if token in _ACCENTS:
            return Symbol(token + self.raw(), real=True)
        return self.symbol(token)

    def symbol(self, token: str) -> sympy.Expr:
        if not (token.isalpha() and len(token) == 1 or token in _NAMED or _is_letter(token)):
            raise NotRead(token)
        name = token + (self.raw() if self.token == "_" else "")
        while self.token == "'":
            name += self.next()
        if name in _CALLED and self.token == "(":
            return sympy.Function(name)(self.group())
        return Symbol(name, real=True) if name in self.bound else _NAMED.get(name) or Symbol(name, real=True)

    def raw(self) -> str:
        """The text of an index or of what is under an accent, not read."""
        start, depth = self.at, 0
        while self.at < len(self.tokens):
            depth += (self.token in BRACKETS) - (self.token in CLOSING)
            if self.next() != "_" and depth == 0:
                break
        return "".join(self.tokens[start: self.at])

    def root(self) -> sympy.Expr:
        index = self.group() if self.token == "[" else Integer(2)
        value = self.group()
        if index.is_Integer and index % 2 and value.is_number and value.is_negative:
            return -sympy.root(-value, index)
        return sympy.root(value, index)

    def function(self, token: str) -> sympy.Expr:
        called, power = _FUNCTIONS[token], None
        while self.token in ("^", "_"):
            if self.next() == "_":
                base = self.group()
                called = lambda value, base=base: sympy.log(value, base)  # noqa: E731
            else:
                power = self.group()
        if power == -1 and token in _INVERSE:
            called, power = _INVERSE[token], None
        value = called(*self.arguments())
        return value if power is None else value ** power

    def arguments(self) -> list[sympy.Expr]:
        """What a function is of: a bracket, or the factors up to the next function, and in an angle the divisor too."""
        if self.token in ("(", "[", "{"):
            opened, start, depth = self.next(), self.at, 1
            while self.at < len(self.tokens) and depth:
                depth += (self.token in BRACKETS) - (self.token in CLOSING)
                self.next()
            inner = split(self.tokens[start: self.at - 1], ",")
            return [read(tuple(part)) for part in inner] if opened else []
        start = self.at
        value = self.power()
        while self.starts() and self.token not in _FUNCTIONS:
            value = value * self.power()
        if self.token == "/" and r"\pi" in self.tokens[start: self.at]:
            self.next()
            value = value / self.power()
        return [value]

    def bounds(self) -> tuple[list[str], list[str]]:
        """The tokens of the lower and the upper bound."""
        found = {"_": "{ }", "^": "{ }"}
        while self.token in ("_", "^"):
            sign = self.next()
            start = self.at
            self.raw()
            found[sign] = self.tokens[start: self.at]
        return list(found["_"])[1:-1], list(found["^"])[1:-1]

    def series(self, made: type) -> sympy.Expr:
        low, high = self.bounds()
        index, first = split(low, "=")
        name = "".join(index)
        self.bound.add(name)
        body = self.product()
        self.bound.discard(name)
        return made(body, (Symbol(name, real=True), read(tuple(first)), read(tuple(high)))).doit()

    def integral(self) -> sympy.Expr:
        low, high = self.bounds()
        rest = self.tokens[self.at:]
        depth = 0
        for place, token in enumerate(rest[:-1]):
            depth += (token in BRACKETS) - (token in CLOSING)
            if token == "d" and depth == 0 and (rest[place + 1].isalpha() or _is_letter(rest[place + 1])):
                self.at += place + 2
                variable = Symbol(rest[place + 1], real=True)
                body = read(rest[:place]) if place else Integer(1)
                limits = (variable, read(tuple(low)), read(tuple(high))) if low else variable
                return sympy.integrate(body, limits)
        raise NotRead(" ".join(self.tokens))

    def limit(self) -> sympy.Expr:
        low, _ = self.bounds()
        variable, value = split(low, r"\to")
        return sympy.limit(self.product(), Symbol("".join(variable), real=True), read(tuple(value)))


def _is_letter(token: str) -> bool:
    """Whether a command is a letter: Greek, or one that the reader of tokens does not know."""
    return token[1:] in _GREEK and token[:1] == "\\"


_GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon "
    "phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell".split())
