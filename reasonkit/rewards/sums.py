"""The sums in a text: `read_sums`, and what makes one believable (`Sum`)."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

TERMS = 12  # a sum of more numbers is not read
CONSTANTS = frozenset((1.0, 24.0, 60.0, 90.0, 100.0, 180.0, 360.0, 365.0, 366.0, 1000.0, 3600.0))  # in any problem

_OPERATORS = {"+": "+", "plus": "+", "-": "-", "\u2212": "-", "\u2013": "-", "minus": "-", "*": "*", "\u00d7": "*",
              "\u00b7": "*", "x": "*", "times": "*", "\\times": "*", "\\cdot": "*", "/": "/", "\u00f7": "/",
              "\\div": "/", "mod": "mod"}
_EQUALS = frozenset(("=", "equals", "makes", "gives", "is"))
_JOINING = _EQUALS | _OPERATORS.keys()
TOKEN = re.compile(
    r"(?P<number>[0-9]{1,15}+(?:,[0-9]{3}){0,5}+(?:\.[0-9]{1,15}+)?+(?![0-9]))|\\[a-z]++|[^\W\d_]\w*+|[^\w\s]|\w++",
    re.IGNORECASE)
_TIMES = re.compile(r"(?<=[0-9])x(?=[0-9])")
_SIZED = re.compile(r"\\(?:left|right)(?![A-Za-z])\s{0,9}")
# 3(4) and (3)(4)
_PRODUCT = re.compile(r"(?<![\w(.])\(?([0-9]{1,15}(?:\.[0-9]{1,15})?)\)?\(([0-9]{1,15}(?:\.[0-9]{1,15})?)\)")
_IDLE = {"+": (0.0,), "-": (0.0,), "*": (0.0, 1.0), "/": (0.0, 1.0), "mod": (0.0, 1.0)}
_MINUS = ("-", "\u2212", "\u2013")
_PAIRS = ("()", "[]")
_MONEY = ("$", "\u20ac", "\u00a3")
_AFTER, _BEFORE = frozenset("([{^!|"), frozenset(")]}^|")  # a number next to one of these is part of algebra


@dataclass(frozen=True)
class Sum:
    """One side of an equation: numbers, and the operators between them."""

    numbers: tuple[float, ...]
    operators: tuple[str, ...]

    @property
    def value(self) -> float:
        """By the usual precedence. NaN for a division by zero."""
        total, sign, product = 0.0, 1.0, self.numbers[0]
        for operator, number in zip(self.operators, self.numbers[1:], strict=True):
            if operator in "+-":
                total, sign, product = total + sign * product, 1.0 if operator == "+" else -1.0, number
            elif operator == "*":
                product *= number
            else:
                product = math.nan if not number else product / number if operator == "/" else product % number
        return total + sign * product

    def is_idle(self, asked: Counter[float]) -> bool:
        """Whether it leads nowhere: it adds 0, multiplies by 0 or 1, subtracts a number from itself or divides it by
        itself, with numbers that are not in the question."""
        for before, operator, number in zip(self.numbers, self.operators, self.numbers[1:], strict=False):
            idle = _IDLE[operator]
            by_idle = number in idle and not asked[number] or operator != "-" and before in idle and not asked[before]
            by_itself = before == number and operator in "-/" and asked[number] < 2
            if not (by_idle or by_itself):
                return False
        return True

    def is_from(self, known: set[float], told: set[float]) -> bool:
        """Whether a number is `known` and a factor of each term fits. The results of sums from other numbers (`told`)
        fit too, because they may come from a misread number. The other factors may be new: a half, a rate, a price."""
        start = [number in known or number != int(number) for number in self.numbers]
        terms = [False]  # whether some factor of each fits
        for operator, number, is_known in zip(("*", *self.operators), self.numbers, start, strict=True):
            fits = is_known or number in told or number in CONSTANTS
            if operator in "*/":
                terms[-1] |= fits
            else:
                terms.append(fits)
        return any(start) and all(terms)


def agrees(left: Sum, told: float) -> bool:
    """Whether `told` is the sum, exactly, or rounded if it is a division or has decimals."""
    value = left.value
    if math.isclose(value, told, rel_tol=1e-9, abs_tol=1e-9):
        return True
    rounded = "/" in left.operators or any(number != int(number) for number in left.numbers)
    return rounded and abs(value - told) < max(0.006 * abs(value), 0.006 if told != int(told) else 1.0)


def read_sums(text: str) -> tuple[list[tuple[Sum | None, float | None]], str]:
    """The sums of a text in order, each with its stated result, and the text without them.

    A sum that can't be read is None, and so is the result of one in brackets. "6 + 5 = 11 + 7 = 18" is two sums.
    """
    text = _PRODUCT.sub(r"(\1*\2)", _SIZED.sub("", text))
    text = _TIMES.sub("*", text.replace("**", " "))  # bold
    found: list[tuple[Sum | None, float | None]] = []
    rest, end, place = [], 0, 0
    tokens = [(match["number"], match[0].casefold(), *match.span()) for match in TOKEN.finditer(text)]
    tokens += [(None, "", len(text), len(text))] * 2
    while place < len(tokens) - 2:
        sides, plain, after = _chain(tokens, place)
        if plain and len(sides) == 2 and sides[1].operators and not sides[0].operators:
            sides.reverse()  # 11 = 6 + 5
        elif sides and place and tokens[place - 1][1] in _EQUALS:
            found.append((None, sides[0].numbers[0]))
        elif plain and place and sides and sides[0].operators and tokens[place - 1][1] + tokens[after][1] in _PAIRS:
            found.append((sides[0], None))
        for left, right in zip(sides, sides[1:], strict=False):
            if left.operators and sorted(left.numbers) == sorted(right.numbers):
                continue  # the same again
            told = right.numbers[0] if agrees(left, right.numbers[0]) else right.value
            if math.isfinite(told):
                found.append((left if plain and left.operators else None, told))
        if plain and any(side.operators for side in sides) and len(sides) > 1:
            rest.append(text[end:tokens[place][2]])
            end = tokens[after - 1][3]
        place = after
    return found, " ".join([*rest, text[end:]])


def _chain(tokens: list, place: int) -> tuple[list[Sum], bool, int]:
    """The sides of the chain of equations that begins at `place`, whether it is whole, and the place after it. Next to
    a bracket, a power or an operator without its number it is algebra, and not whole."""
    start = place
    before, close = (tokens[place - 1][1], tokens[place - 1][3] == tokens[place][2]) if place else ("", False)
    plain = not (before in _BEFORE and close) and (before in _MINUS or before not in _OPERATORS)
    sides, numbers, operators = [], [], []
    while True:
        negative = not operators and tokens[place][1] in _MINUS and tokens[place][3] == tokens[place + 1][2]
        place += bool(tokens[place + 1][0] and (negative or tokens[place][1] in _MONEY))
        if tokens[place][0] is None:
            break
        numbers.append(float(tokens[place][0].replace(",", "")) * (-1.0 if negative else 1.0))
        place += 1
        place += tokens[place][1] == "%"
        place = _behind_unit(tokens, place)
        word = tokens[place][1]
        if word in _OPERATORS and (tokens[place + 1][0] or tokens[place + 1][1] in _MONEY):
            operators.append(_OPERATORS[word])
            place += 1
            continue
        plain &= word not in _AFTER and word not in _OPERATORS and len(numbers) <= TERMS
        sides.append(Sum(tuple(numbers), tuple(operators)))
        numbers, operators = [], []
        if word not in _EQUALS:
            break
        place += 1
    return sides, plain and not numbers, max(place, start + 1)


def _behind_unit(tokens: list, place: int) -> int:
    """The place after a unit such as shells or km/h if an operator or equals sign is there, else `place`."""
    end = place
    while tokens[end][1][:1].isalpha() and tokens[end][1] not in _JOINING:
        end += 1
        if tokens[end][1] != "/" or not tokens[end + 1][1][:1].isalpha():
            break
        end += 1
    return end if tokens[end][1] in _JOINING else place
