"""Reads the tokens of an `Expression` into a sympy value.

Entry points: `read`, and `read_as_written`, which computes nothing. Decimals become fractions. log without a base is to
base 10. 2x in "1/2x" is one factor. Only f, g and h are functions, and i is the imaginary unit. Surprise: 204_5 is a
symbol, because its value is another answer.
"""

from __future__ import annotations

from functools import lru_cache

import sympy
from sympy import E, I, Integer, Rational, Symbol, oo, pi

from recipes.graders.structure import BRACKETS, CLOSING, split

_NAMED = {r"\pi": pi, r"\infty": oo, "e": E, "i": I}
_FUNCTIONS = {"\\" + name: getattr(sympy, name) for name in
              "sin cos tan cot sec csc sinh cosh tanh coth exp gcd lcm".split()} | {
    r"\arcsin": sympy.asin, r"\arccos": sympy.acos, r"\arctan": sympy.atan, r"\ln": sympy.log, r"\max": sympy.Max,
    r"\min": sympy.Min, r"\log": lambda value: sympy.log(value, 10), r"\lg": lambda value: sympy.log(value, 10)}
_INVERSE = {r"\sin": sympy.asin, r"\cos": sympy.acos, r"\tan": sympy.atan}
_SUMS = {r"\sum": sympy.Sum, r"\prod": sympy.Product}
_ENCLOSED = {"|": ("|", sympy.Abs), r"\lfloor": (r"\rfloor", sympy.floor), r"\lceil": (r"\rceil", sympy.ceiling)}
_SPECIAL = frozenset({r"\frac", r"\sqrt", r"\binom", r"\int", r"\lim", r"\lfloor", r"\lceil", "(", "[", "{"})
_ACCENTS = frozenset("\\" + name for name in "vec hat bar overline tilde mathbf mathbb mathcal overrightarrow".split())
_CALLED = frozenset("fghFGH")
_LETTERS = frozenset("\\" + name for name in (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell").split())


@lru_cache(maxsize=512)  # the answers of a group share one gold answer
def read(tokens: tuple[str, ...]) -> sympy.Expr:
    """The value of one formula's tokens. Raises ValueError if they have no meaning here."""
    return _Reader(tokens).whole()


def read_as_written(tokens: tuple[str, ...]) -> tuple[sympy.Expr, dict[Symbol, sympy.Expr]]:
    """The formula with a symbol of its own for each numeral and letter, so that sympy computes nothing, and what the
    symbols mean. Raises ValueError as `read` does."""
    reader = _Reader(tokens, meanings := {})
    return reader.whole(), meanings


class _Reader:
    """A recursive descent parser: sum, product and quotient, juxtaposed factors, power, atom."""

    def __init__(self, tokens: tuple[str, ...], meanings: dict[Symbol, sympy.Expr] | None = None) -> None:
        self.tokens, self.at, self.bars, self.bound, self.meanings = tokens, 0, 0, set(), meanings

    @property
    def token(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1] if self.at <= len(self.tokens) else ""

    def take(self, *tokens: str) -> str:
        if self.token not in tokens:
            raise ValueError(" ".join(self.tokens))
        return self.next()

    def whole(self) -> sympy.Expr:
        value = self.sum()
        self.take("")
        return value

    def meant(self, value: sympy.Expr) -> sympy.Expr:
        """The value, or a symbol that stands for it in a formula as it is written."""
        if self.meanings is None:
            return value
        symbol = sympy.Dummy()
        self.meanings[symbol] = value
        return symbol

    def sum(self) -> sympy.Expr:
        total = self.product()
        while self.token in ("+", "-"):
            total = total + self.product() if self.next() == "+" else total - self.product()
        return total

    def product(self) -> sympy.Expr:
        value = self.signed_factors()
        while self.token in (r"\cdot", "/"):
            value = value * self.signed_factors() if self.next() == r"\cdot" else value / self.signed_factors()
        return value

    def signed_factors(self) -> sympy.Expr:
        if self.token in ("+", "-"):
            return self.signed_factors() if self.next() == "+" else -self.signed_factors()
        return self.factors()

    def factors(self) -> sympy.Expr:
        """Juxtaposed factors. A number before a fraction of numbers is a mixed number."""
        first = self.token
        value = self.power()
        if first.isdecimal() and self.token == r"\frac" and self.tokens[self.at - 1] == first:
            fraction = self.power()
            share = fraction.xreplace(self.meanings or {})
            if share.is_Rational and share > 0:
                value = value + fraction if self.meanings is None else fraction
            else:
                value = value * fraction
        while self.starts():
            value = value * self.power()
        return value

    def starts(self) -> bool:
        token = self.token
        return (token[:1].isalnum() or token in _NAMED or token in _FUNCTIONS or token in _SUMS or token in _SPECIAL
                or token == "|" and not self.bars or token in _ACCENTS or token in _LETTERS)

    def power(self) -> sympy.Expr:
        value = self.atom()
        while True:
            if self.token == "^":
                value = value ** self.exponent()
            elif self.token == "!":
                self.next()
                double = self.token == "!"
                self.at += double
                value = sympy.factorial2(value) if double else sympy.factorial(value)
            elif self.token in ("°", r"\%", "%"):
                value = value * (pi / 180 if self.next() == "°" else Rational(1, 100))
            else:
                return value

    def exponent(self) -> sympy.Expr:
        """2^3^2 is 2^9."""
        self.take("^")
        value = self.group()
        return value ** self.exponent() if self.token == "^" else value

    def group(self) -> sympy.Expr:
        (value,) = self.values()
        return value

    def values(self) -> list[sympy.Expr]:
        opened = self.take("(", "[", "{")
        bars, self.bars = self.bars, 0
        values = [self.sum()]
        while self.token == ",":
            self.next()
            values.append(self.sum())
        self.bars = bars
        self.take(BRACKETS[opened])
        return values

    def atom(self) -> sympy.Expr:
        token = self.token
        if token in ("(", "[", "{"):
            return self.group()
        self.next()
        if token[-1:].isdecimal():
            if self.token == "_":  # a numeral in another base
                return self.meant(Symbol(token.lstrip("0") + self.raw()))
            return self.meant(Rational(token))
        if token in _ENCLOSED:
            closing, called = _ENCLOSED[token]
            self.bars += token == "|"
            value = self.sum()
            self.bars -= token == "|"
            self.take(closing)
            return called(value)
        if token == r"\frac":
            return self.group() / self.group()
        if token == r"\binom":
            return sympy.binomial(self.group(), self.group())
        if token in _SUMS:
            return self.series(_SUMS[token])
        if read_rest := {r"\sqrt": self.root, r"\int": self.integral, r"\lim": self.limit}.get(token):
            return read_rest()
        if token in _FUNCTIONS and not (token == r"\exp" and not self.starts()):
            return self.function(token)
        if token in _ACCENTS:
            return self.meant(Symbol(token + self.raw(), real=True))
        return self.symbol(token)

    def symbol(self, token: str) -> sympy.Expr:
        if not (token.isalpha() and len(token) == 1 or token in _NAMED or token in _LETTERS):
            raise ValueError(token)
        name = token + (self.raw() if self.token == "_" else "")
        while self.token == "'":
            name += self.next()
        if name in _CALLED and self.token == "(":
            return sympy.Function(name)(self.group())
        named = None if name in self.bound else _NAMED.get(name)
        return self.meant(named or Symbol(name, real=True))

    def raw(self) -> str:
        """The text of an index, or under an accent."""
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
        base, power = [], Integer(1)
        while self.token == "^" or self.token == "_" and token in (r"\log", r"\ln"):
            if self.next() == "_":
                base = [self.group()]
            else:
                power = self.group()
        called = sympy.log if base else _FUNCTIONS[token]
        if power == -1 and token in _INVERSE:
            called, power = _INVERSE[token], Integer(1)
        return called(*self.arguments(), *base) ** power

    def arguments(self) -> list[sympy.Expr]:
        """A bracket, or the factors up to the next function, with the divisor of an angle."""
        if self.token in ("(", "[", "{"):
            return self.values()
        start = self.at
        value = self.power()
        while self.starts() and self.token not in _FUNCTIONS:
            value = value * self.power()
        if self.token == "/" and r"\pi" in self.tokens[start: self.at]:
            self.next()
            value = value / self.power()
        return [value]

    def bounds(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tokens of the lower and the upper bound."""
        found = {"_": (), "^": ()}
        while self.token in found:
            sign, start = self.next(), self.at
            self.raw()
            found[sign] = self.tokens[start + 1: self.at - 1]
        return found["_"], found["^"]

    def series(self, made: type) -> sympy.Expr:
        low, high = self.bounds()
        index, first = split(low, "=")
        name = "".join(index)
        self.bound.add(name)
        body = self.product()
        self.bound.discard(name)
        return made(body, (Symbol(name, real=True), read(tuple(first)), read(high))).doit()

    def integral(self) -> sympy.Expr:
        low, high = self.bounds()
        rest = self.tokens[self.at:]
        depth = 0
        for place, token in enumerate(rest[:-1]):
            depth += (token in BRACKETS) - (token in CLOSING)
            if token == "d" and depth == 0 and (rest[place + 1].isalpha() or rest[place + 1] in _LETTERS):
                self.at += place + 2
                variable = Symbol(rest[place + 1], real=True)
                body = read(rest[:place]) if place else Integer(1)
                return sympy.integrate(body, (variable, read(low), read(high)) if low else variable)
        raise ValueError(" ".join(self.tokens))

    def limit(self) -> sympy.Expr:
        low, _ = self.bounds()
        variable, value = split(low, r"\to")
        return sympy.limit(self.product(), Symbol("".join(variable), real=True), read(tuple(value)))
