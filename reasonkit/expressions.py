"""A formula in LaTeX or plain ASCII, read into one LaTeX form, so that most equal formulas are equal strings.

What it is: a reader of tokens. `sqrt(2)/2`, `x**10`, `π r²` and `\\dfrac12` become LaTeX with every group in braces; a
word that is no function, a sentence, open brackets or a hedge make the text no formula. What it is not: algebra. If two
different forms are equal is left to math-verify, in a process of its own (`isolated`), and `may_equal` first keeps from
it what it is too kind to: another number of candidates, an equation for a value, m for M.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from reasonkit.cleaning import clean, unwrap
from reasonkit.numerals import Number, is_physical, read_number, read_plain

MAX_NESTING = 50
MAX_TOKENS = 200  # of an answer that is worth the algebra

_TOKEN = re.compile(
    r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]+|\\.|[A-Za-z]+|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|\*\*|[<>!]=|\S", re.DOTALL)
_NO_COMMA = re.compile(r"\{,\}|,\\!\s*+(?=[0-9])")
_SPACED_FRACTION = re.compile(r"\\[dt]?frac\s*+([0-9])\s++([0-9])")
_DROPPED = {r"\left", r"\right", r"\displaystyle", r"\big", r"\Big", r"\bigl", r"\bigr", r"\,", r"\;", r"\:", r"\!",
            "\\ ", "\\\n", r"\quad"}
_FUNCTIONS = {word: "\\" + word for word in (
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan ln log exp sqrt min max gcd lcm det "
    "alpha beta gamma delta epsilon theta kappa lambda mu nu rho sigma tau phi chi psi omega pi "
    "Gamma Delta Theta Lambda Sigma Phi Psi Omega pm le ge infty binom"
).split()} | {"asin": r"\arcsin", "acos": r"\arccos", "atan": r"\arctan", "inf": r"\infty", "infinity": r"\infty",
              "oo": r"\infty"}
_SIGNS = {
    "**": "^", "*": r"\cdot", "·": r"\cdot", "×": r"\cdot", r"\times": r"\cdot", r"\ast": r"\cdot", "÷": "/",
    r"\div": "/", "√": r"\sqrt", "π": r"\pi", "θ": r"\theta", "α": r"\alpha", "β": r"\beta", "λ": r"\lambda",
    "∞": r"\infty", "±": r"\pm", "∪": r"\cup", "∈": r"\in", "≤": r"\le", r"\leq": r"\le", "<=": r"\le", "≥": r"\ge",
    r"\geq": r"\ge", ">=": r"\ge", "≠": r"\ne", r"\neq": r"\ne", "!=": r"\ne", r"\lt": "<", r"\gt": ">", ";": ",",
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\lbrace": r"\{",
    r"\rbrace": r"\}", r"\lvert": "|", r"\rvert": "|",
}
_WORDS = frozenset("or and not no is but if by to so of in at as be it its we the maybe yes nor for".split())
_TEXT_COMMANDS = {"\\" + name for name in (
    "text textbf textit textrm textnormal mathrm mathbf mathit mbox operatorname boxed").split()}
# Several values may stand in words; how many there are is compared, so that this is no way to hedge.
_AND = re.compile(r",?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*,?")
_UPRIGHT = re.compile(r"\\(?:text|mathrm|mathbf|operatorname)\s*\{\s*([A-Za-z]|lcm|gcd)\s*\}")
_BRACKETS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
_CLOSING = frozenset(_BRACKETS.values())
_WITH_ARGUMENTS = frozenset({"^", "_", r"\sqrt", r"\frac", r"\binom"})
_INDEXED = frozenset({r"\sum", r"\prod", r"\int", r"\lim"})
_RELATIONS = frozenset({"=", "<", ">", r"\le", r"\ge", r"\in", r"\ne", r"\approx", ":"})
_UNFINISHED = _RELATIONS | {"+", "-", "/", "^", "_", r"\cdot", r"\pm", ","}
_NAME = r"(?:[A-Za-z]|\\[a-z]+)(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z]\))?|\([a-z](?:,\s*[a-z])+\)"
_NAMED = re.compile(rf"(?:\A|(?<=,))\s*({_NAME})\s*(?:=|\\in\b|∈)(?!\s*\Z)")


@dataclass(frozen=True, slots=True)
class Expression:
    """`tokens` of LaTeX in the one form, none if it is only a number with a unit, and that number if it is one."""

    tokens: tuple[str, ...]
    number: Number | None

    @property
    def latex(self) -> str:
        return str(self.number) if not self.tokens else "".join(
            # a command would run into a letter
            f" {token}" if token[:1].isalpha() and before[1:].isalpha() and before[0] == "\\" else token
            for before, token in zip(("", *self.tokens), self.tokens, strict=False))

    __str__ = latex.fget


def read_expression(text: str) -> Expression | None:
    """The formula that raw text is, without a name before it (`y =`, `x ∈`); None where it is none.

    >>> str(read_expression("f(x) = sqrt(x**10)/2"))
    '\\\\sqrt{x^{10}}/2'
    """
    bare = _AND.sub(",", unwrap(text).rstrip(".,; \n"))
    names = _NAMED.findall(bare)
    if len(names) == max(1, bare.count("=")) and len(set(names)) == 1:  # x = 1, x = 2 are values of one name
        bare = unwrap(_NAMED.sub("", bare))
    tokens, number = list(_spell(bare)), read_number(clean(bare))
    if not tokens or None in tokens or not _balanced(tokens) or tokens[-1] in _UNFINISHED:
        return number and Expression((), number)
    if "," in tokens and (grouped := read_plain(clean(bare))):
        tokens = [str(grouped)]
    if number and number.unit and not (is_physical(number) and len(number.unit) > 1):
        number = None  # 5a is a product
    return Expression(tuple(_delimit(list(_group(iter(tokens))))), number)


def may_equal(found: Expression, expected: Expression) -> bool:
    """Whether two formulas that are written differently are worth the algebra."""
    if not (found.tokens and expected.tokens) or len(found.tokens) > MAX_TOKENS or _shape(found) != _shape(expected):
        return False
    letters, others = _letters(expected), _letters(found)
    lower = {letter.casefold() for letter in letters}
    if len(lower) < len(letters):  # math-verify reads M as m; a formula that has both is another one
        return others == letters
    # Several new letters do not cancel in practice; e may stand for exp, and an index is any letter.
    new = {letter.casefold() for letter in others} - lower - {"e"}
    return len(new) < 2 or not _INDEXED.isdisjoint(found.tokens)


def _spell(text: str) -> Iterator[str | None]:
    """LaTeX tokens of `text`, spaces left out; None for a word, a sign or two numbers that no formula has."""
    after_number = False
    text = _UPRIGHT.sub(r" \1 ", _SPACED_FRACTION.sub(r"\\frac{\1}{\2}", _NO_COMMA.sub("", text)))
    for token in _TOKEN.findall(text):
        token = _SIGNS.get(token, token)
        if token in _DROPPED:
            continue
        two_numbers = after_number and token[-1].isdecimal()
        after_number = token[-1].isdecimal()
        if two_numbers or token in _TEXT_COMMANDS or token in ("?", "`", '"', "$", "#", "\\"):
            yield None
        elif not token.isalpha() or len(token) == 1:
            yield token
        elif token in _FUNCTIONS:
            yield _FUNCTIONS[token]
        elif token in _WORDS or len(token) > 3:
            yield None
        else:
            yield from token  # a product of letters


def _balanced(tokens: list[str]) -> bool:
    """Every brace closed, and every bracket, none too deep; a half-open interval may close ( with ] and [ with )."""
    stack, run = [], 0
    for token in tokens:
        run = run + 1 if token in _WITH_ARGUMENTS else 0
        if len(stack) + run > MAX_NESTING:
            return False
        if token in _BRACKETS:
            stack.append(token)
        elif token in _CLOSING:
            opened = stack.pop() if stack else ""
            if _BRACKETS.get(opened) != token and not (opened in "([" and opened and token in ")]"):
                return False
    return not stack


def _group(tokens: Iterator[str]) -> Iterator[str]:
    """The tokens with the arguments of ^, _, \\sqrt and \\frac in braces: `x^10` is x to the tenth."""
    for token in tokens:
        yield from _operand(token, tokens)


def _operand(token: str, rest: Iterator[str]) -> Iterator[str]:
    yield token
    if token in (r"\frac", r"\binom"):
        first = next(rest, "")
        if first.isdecimal() and len(first) == 2:  # \frac12
            yield from ("{", first[0], "}", "{", first[1], "}")
        else:
            yield from (*_braced(first, rest), *_braced(next(rest, ""), rest))
    elif token in ("^", "_", r"\sqrt"):
        first = next(rest, "")
        if token == r"\sqrt" and first == "[":  # the index of a root stays in its brackets
            yield from ("[", *_group(iter(_until_closed(rest))), "]")
            first = next(rest, "")
        yield from _braced(first, rest)


def _braced(first: str, rest: Iterator[str]) -> Iterator[str]:
    sign = [first] if first in ("+", "-") else []
    first = next(rest, "") if sign else first
    body = _group(iter(_until_closed(rest))) if first in ("{", "(") else _operand(first, rest)
    yield from ("{", *sign, *body, "}")


def _until_closed(tokens: Iterator[str]) -> list[str]:
    body, depth = [], 1
    for token in tokens:
        depth += (token in _BRACKETS) - (token in _CLOSING)
        if not depth:
            break
        body.append(token)
    return body


def _delimit(tokens: list[str]) -> list[str]:
    """`0 < x < 1` as an interval and `{1, 2}` as a set; other tokens as they are."""
    if tokens[0] == "{" and "," in tokens and _until_closed(iter(tokens[1:])) == tokens[1:-1]:
        return [r"\{", *tokens[1:-1], r"\}"]
    at = [place for place, token in enumerate(tokens) if token in _RELATIONS]
    if len(at) != 2 or at[1] - at[0] != 2 or "," in tokens or tokens[at[0] + 1][0].isdecimal():
        return tokens
    low, high, signs = tokens[: at[0]], tokens[at[1] + 1:], [tokens[place] for place in at]
    if {">", r"\ge"}.issuperset(signs):
        low, high, signs = high, low, [{">": "<"}.get(sign, r"\le") for sign in reversed(signs)]
    if not low or not {"<", r"\le"}.issuperset(signs):
        return tokens
    return ["(" if signs[0] == "<" else "[", *low, ",", *high, ")" if signs[1] == "<" else "]"]


def _shape(expression: Expression) -> tuple[int, int, str]:
    """How many candidates it offers (commas outside brackets, ±), how many relations, and an interval's brackets."""
    tokens = expression.tokens
    depth = candidates = relations = 0
    for token in tokens:  # set braces are no depth: \{1, 2\} is two candidates, as 1, 2 is
        depth += (token in ("(", "[", "{")) - (token in (")", "]", "}"))
        candidates += token == "," and not depth or token in (r"\pm", r"\mp")
        relations += token in _RELATIONS and not depth
    interval = "," in tokens and tokens[0] in ("(", "[") and tokens[-1] in (")", "]")
    return candidates, relations, tokens[0] + tokens[-1] if interval else ""


def _letters(expression: Expression) -> set[str]:
    return {token for token in expression.tokens if token.isalpha() and len(token) == 1}
