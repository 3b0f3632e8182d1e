"""Does the reasoning show any work, as far as a program can tell? `missing_work` says why not.

It catches empty reasoning, a copy of the answer or the question, one repeated step, and sums that are false or belong
to another problem. Whether the work is good is for a judge to say. What it can't read, such as algebra, counts as
prose. Prose passes if it is not copied. Source: our own rules, recorded in golden/work.jsonl.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from reasonkit.text.hedges import NUMBER_WORDS
from reasonkit.text.tags import Parsed
from reasonkit.text.words import words

STEPS = ("identify", "determine", "explore", "act", "evaluate")  # IDEA-E's headings, which say nothing by themselves
# Words that announce an answer and add nothing to it.
ANNOUNCING = frozenset(
    "a am an answer are as be because believe certainly clearly definitely final finally guess hence i is it just "
    "know maybe me must obviously ok okay option perhaps probably result say simply so solution step steps sure "
    "surely that the therefore think this thus us was we well yes".split())
AGAIN = "one step again and again"
OWN = 3  # a step has at least this many pairs of neighbouring words that are not in the question
TERMS = 12  # a sum of more numbers is not read
CONSTANTS = frozenset((1.0, 24.0, 60.0, 90.0, 100.0, 180.0, 360.0, 365.0, 366.0, 1000.0, 3600.0))  # in any problem

_SAID = {word: float(number) for word, number in NUMBER_WORDS.items()} | {
    "hundred": 100.0, "dozen": 12.0, "half": 0.5, "twice": 2.0, "double": 2.0, "pair": 2.0, "couple": 2.0,
    "triple": 3.0, "quarter": 0.25}
_OPERATORS = {"+": "+", "plus": "+", "-": "-", "\u2212": "-", "\u2013": "-", "minus": "-", "*": "*", "\u00d7": "*",
              "\u00b7": "*", "x": "*", "times": "*", "\\times": "*", "\\cdot": "*", "/": "/", "\u00f7": "/",
              "\\div": "/", "mod": "mod"}
_EQUALS = frozenset(("=", "equals", "makes", "gives", "is"))
_JOINING = _EQUALS | _OPERATORS.keys()
_TOKEN = re.compile(
    r"(?P<number>[0-9]{1,15}+(?:,[0-9]{3})*+(?:\.[0-9]{1,15}+)?+(?![0-9]))|\\[a-z]++|[^\W\d_]\w*+|[^\w\s]|\w++",
    re.IGNORECASE)
_ENDS = re.compile(r"[;\n]|[.!?](?=\s)")  # where steps end
_GLUED = re.compile(r"(?<=[0-9])([a-z])\b")
_ALONE = re.compile(r"(?<![\w.])([a-z])(?=\s{0,9}[-+*/=^])|(?<=[-+*/=(])\s{0,9}([a-z])\b")
_BRACKETED = re.compile(r"(?:[)}^!\u221a]|\\[a-z]{1,20}\{)[^=\n]{0,100}=\s{0,9}\S")
_TIMES = re.compile(r"(?<=[0-9])x(?=[0-9])")
_IDLE = {"+": (0.0,), "-": (0.0,), "*": (0.0, 1.0), "/": (0.0, 1.0), "mod": (0.0, 1.0)}
_MINUS = ("-", "\u2212", "\u2013")
_MONEY = ("$", "\u20ac", "\u00a3")
_AFTER, _BEFORE = frozenset("([{^!|"), frozenset(")]}^|")  # a number next to one of these is part of algebra
# Letters of scripts that are written without spaces: each is a word.
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True)
class _Sum:
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


def missing_work(question: str, reply: Parsed) -> str:
    """Why the completion shows no work, in a few fixed words, or "" if it may show some.

    Work is either sums or words. Most sums, or the first one and half of them, must be true and start from numbers in
    the question or in earlier sums. One slip is forgiven, unless it is the only sum and nothing builds on it. A sum
    counts once, and not at all if it leads nowhere. True sums from other numbers count if words come with them, because
    these may say where the numbers are from. Words need at least `OWN` pairs of neighbouring words that are not in the
    question. For an answer of at most `OWN` words they need one word from the question or the answer. If then the
    question has two numbers and the answer one, the words need two numbers, one of which is not in the question.

    Takes time linear in the lengths. Never raises for a str.

    >>> from reasonkit.text.tags import TAGS
    >>> question = "Leo has 6 shells, buys 5. How many now?"
    >>> for text in ("6 + 5 = 11", "6 + 5 = 12", ".", "So 12", "0 + 0 = 0", "9 + 4 = 13", "Leo has 6 shells, buys 5"):
    ...     print(missing_work(question, TAGS.parse(f"<reasoning>{text}</reasoning><answer>12</answer>")) or "work")
    work
    work
    no step
    no step
    no step
    false or foreign sums
    no step
    """
    text, answer = reply.reasoning or "", " ".join(reply.answers)
    sums, said = _read(text)
    asked, found = Counter(_numbers(question)), {*_numbers(answer)}
    if answer and not asked and not found or _is_algebra(text):
        sums, said = [], text  # they may be of anything
    fault = _fault_of_words(question, answer, said, asked, found)
    if any(left and not left.is_idle(asked) for left, _ in sums):
        why, wrong = _unsound(sums, asked, found, Counter(map(abs, _numbers(f"{text} {answer}"))))
        own = {word for word in words(said) if word.isalpha() and len(word) > 2} - {*words(question)}
        explained = len(own) > OWN and fault in ("", "no number of its own")  # words may say where numbers come from
        return why if wrong or not explained else ""
    if fault == "no step" and _BRACKETED.search(text) and not (asked and asked.keys().isdisjoint(_numbers(text))):
        return ""  # a calculation that is not read here
    return fault


def _fault_of_words(question: str, answer: str, said: str, asked: Counter[float], found: set[float]) -> str:
    if len(_pairs(said, words(answer)) - _pairs(question, ())) < OWN:
        return "no step"
    steps = [step for step in map(tuple, map(words, _ENDS.split(said))) if step]
    if len(steps) > 2 * len({*steps}):
        return AGAIN
    told = _numbers(said)
    short = len(_words(answer)) <= OWN  # reasoning about a longer one, such as a story, may use none of its words
    if short and _stems(f"{question} {answer}").isdisjoint(_stems(said)) and asked.keys().isdisjoint(told):
        return "nothing of the question"
    counted = short and len(asked) > 1 and found - asked.keys()
    if counted and (len(told) < 2 or asked.keys() >= {*told}):
        return "no number of its own"
    return ""


def _is_algebra(text: str) -> bool:
    """Whether a letter is both next to a number, as in 3m, and next to an operator: it is a variable, not a unit."""
    return not {*_GLUED.findall(text)}.isdisjoint(a or b for a, b in _ALONE.findall(text))


def _unsound(sums: list[tuple[_Sum | None, float]], asked: Counter[float], found: set[float],
             times: Counter[float]) -> tuple[str, bool]:
    """What is wrong with too many of the sums, or "", and whether any is false or repeated, not only foreign.

    found: the answer's numbers. times: how often each number is in the text and the answer.
    """
    known, strange, seen = {*asked}, set(), set()
    used = began = ends = False
    good = slips = foreign = repeated = 0
    for left, told in sums:
        start = known
        if left and not left.is_idle(asked):
            if (left, told) in seen:
                repeated += 1
            elif CONSTANTS.issuperset(left.numbers) and not known.issuperset(left.numbers):
                pass  # it counts neither way
            elif asked and not left.is_from(known, strange) and not ({*left.operators} == {"*"} and told in asked):
                foreign, start = foreign + 1, strange
            elif _agree(left, told):
                good, ends = good + 1, told in found
                began = began or not foreign
            else:
                slips, used = slips + 1, used or times[abs(told)] > 1
            seen.add((left, told))
            start.add(left.value)
        start |= {told, -told}
    forgiven = min(slips, 1) if good or used else 0
    # a good beginning breaks a tie, and so does ending with the answer
    if good + forgiven + (began or ends) > repeated + foreign + slips - forgiven:
        return "", False
    if not good + slips + foreign + repeated and sums[-1][1] in found:
        return "", False  # they have only constants, but lead to the answer
    return AGAIN if repeated > foreign + slips else "false or foreign sums", slips + repeated > 0


def _agree(left: _Sum, told: float) -> bool:
    """Whether `told` is the sum, exactly, or rounded if it is a division or has decimals."""
    value = left.value
    if math.isclose(value, told, rel_tol=1e-9, abs_tol=1e-9):
        return True
    rounded = "/" in left.operators or any(number != int(number) for number in left.numbers)
    return rounded and abs(value - told) < max(0.006 * abs(value), 0.006 if told != int(told) else 1.0)


def _read(text: str) -> tuple[list[tuple[_Sum | None, float]], str]:
    """The sums of a text in order, each with its stated result, and the text without them.

    A sum that can't be read is None. "6 + 5 = 11 + 7 = 18" is two sums.
    """
    text = _TIMES.sub("*", text.replace("**", " "))  # bold
    found: list[tuple[_Sum | None, float]] = []
    rest, end, place = [], 0, 0
    tokens = [(match["number"], match[0].casefold(), *match.span()) for match in _TOKEN.finditer(text)]
    tokens += [(None, "", len(text), len(text))] * 2
    while place < len(tokens) - 2:
        sides, plain, after = _chain(tokens, place)
        if plain and len(sides) == 2 and sides[1].operators and not sides[0].operators:
            sides.reverse()  # 11 = 6 + 5
        elif sides and place and tokens[place - 1][1] in _EQUALS:
            closed = place > 1 and tokens[place - 2][1] in _BEFORE
            # behind brackets, all of them follow from what is there
            found += [(None, number) for number in sides[0].numbers[:None if closed else 1]]
        for left, right in zip(sides, sides[1:], strict=False):
            if left.operators and sorted(left.numbers) == sorted(right.numbers):
                continue  # the same again
            told = right.numbers[0] if _agree(left, right.numbers[0]) else right.value
            if math.isfinite(told):
                found.append((left if plain and left.operators else None, told))
        if plain and any(side.operators for side in sides) and len(sides) > 1:
            rest.append(text[end:tokens[place][2]])
            end = tokens[after - 1][3]
        place = after
    return found, " ".join([*rest, text[end:]])


def _chain(tokens: list, place: int) -> tuple[list[_Sum], bool, int]:
    """The sides of the chain of equations that begins at `place`, whether it is whole, and the place after it.

    Next to a bracket, a power or an operator without its number it is not whole, because that is algebra.
    """
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
        sides.append(_Sum(tuple(numbers), tuple(operators)))
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


def _stems(text: str) -> set[str]:
    """The first letters of each word, because another ending does not make another word."""
    return {word[:4] for word in words(_UNSPACED.sub(r" \g<0> ", text))}


def _numbers(text: str) -> list[float]:
    """The numbers in a text: those in digits, then those in words."""
    found = [float(match["number"].replace(",", "")) for match in _TOKEN.finditer(text) if match["number"]]
    return found + [_SAID[word] for word in words(text) if word in _SAID]


def _pairs(text: str, answer: Iterable[str]) -> set[tuple[str, str]]:
    """The pairs of neighbouring words, except for those with only numbers or only words of the answer."""
    said, empty = _words(text), {*answer}
    return {pair for pair in zip(said, said[1:], strict=False)
            if not empty.issuperset(pair) and not all(map(str.isdecimal, pair))}


def _words(text: str) -> list[str]:
    """The words of a text in order, without those that announce an answer or name a step."""
    return [word for word in words(_UNSPACED.sub(r" \g<0> ", text)) if word not in ANNOUNCING and word not in STEPS]
