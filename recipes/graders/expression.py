"""The kind "expression": a formula in LaTeX or ASCII, read into a LaTeX normal form.

Most equal formulas become equal strings. The others go to `algebra`, in a separate process, if `may_equal` finds it
worth the time. A text with a word that is not a function, a sentence, an open bracket or a hedge is not a formula.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from reasonkit.text.answers import Kind
from reasonkit.text.cleaning import clean, unwrap
from reasonkit.text.numbers import Number, read_number, read_plain, same_number
from recipes.graders.notation import AND, OR, is_physical, rewrite, split_unit
from recipes.graders.structure import BRACKETS, CLOSING, RELATIONS, SET_SIGNS, canonical, is_name, is_variable
from recipes.graders.worker import decide, start

MAX_NESTING = 50
MAX_TOKENS = 200  # a longer answer is not worth the algebra

_TOKEN = re.compile(
    r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]+|\\.|[A-Za-z]+|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|\*\*|[<>!]=|\S", re.DOTALL)
_DROPPED = {r"\left", r"\right", r"\displaystyle", r"\big", r"\Big", r"\bigl", r"\bigr", r"\limits", r"\,", r"\;",
            r"\:", r"\!", "\\ ", "\\\n", r"\quad", r"\qquad", "~"}
_FUNCTIONS = {word: "\\" + word for word in (
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan ln log exp sqrt min max gcd lcm det "
    "alpha beta gamma delta epsilon theta kappa lambda mu nu rho sigma tau phi chi psi omega pi "
    "Gamma Delta Theta Lambda Sigma Phi Psi Omega pm le ge infty binom"
).split()} | {"asin": r"\arcsin", "acos": r"\arccos", "atan": r"\arctan", "inf": r"\infty", "infinity": r"\infty",
              "oo": r"\infty"}
_SIGNS = {
    "**": "^", "*": r"\cdot", "·": r"\cdot", "×": r"\cdot", r"\times": r"\cdot", r"\ast": r"\cdot", "÷": "/",
    r"\div": "/", "√": r"\sqrt", "π": r"\pi", "θ": r"\theta", "α": r"\alpha", "β": r"\beta", "λ": r"\lambda",
    "∞": r"\infty", "±": r"\pm", "∓": r"\mp", "∪": r"\cup", r"\bigcup": r"\cup", "∩": r"\cap", "∈": r"\in",
    "≤": r"\le", r"\leq": r"\le", "<=": r"\le", "≥": r"\ge", r"\geq": r"\ge", ">=": r"\ge", r"\leqslant": r"\le",
    r"\geqslant": r"\ge", "≠": r"\ne", r"\neq": r"\ne", "!=": r"\ne", r"\lt": "<", r"\gt": ">", ";": ",",
    r"\varepsilon": r"\epsilon", r"\varphi": r"\phi", r"\vartheta": r"\theta",
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\lbrace": r"\{",
    r"\rbrace": r"\}", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|", r"\colon": ":",
    r"\varnothing": r"\emptyset", "∅": r"\emptyset", r"\backslash": r"\setminus", "∖": r"\setminus",
    r"\lbrack": "[", r"\rbrack": "]", r"\prime": "'", r"\rightarrow": r"\to", "⌊": r"\lfloor", "⌋": r"\rfloor",
    "⌈": r"\lceil", "⌉": r"\rceil",
}
_WORDS = frozenset("or and not no is but if to so of in it its we the maybe yes nor for".split())
_TEXT_COMMANDS = {"\\" + name for name in (
    "text textbf textit textrm textnormal mathrm mathbf mathit mbox operatorname boxed").split()}
_HEXADECIMAL = frozenset("ABCDEF")
_INDEXED = frozenset({r"\sum", r"\prod", r"\int", r"\lim"})
_HALF_OPEN = ({"(", "]"}, {"[", ")"})
_ARGUMENTS = {"^": 1, "_": 1, r"\sqrt": 1, r"\frac": 2, r"\binom": 2}
_UNFINISHED = RELATIONS | {"+", "-", "/", "^", "_", r"\cdot", r"\pm", ",", OR, AND}
_ANGLES = frozenset(rf"\{name}" for name in "sin cos tan cot sec csc".split())
# Relations that `algebra` can't decide.
_OTHER_RELATIONS = frozenset("≡ ≅ ∼ ≃ ≈ ∝ ≐ ⇔ ⇒ → ↔ ¬ ∨ ∧ ⊕ ≪ ≫ ∣ ∥ ⟂".split()) | {"\\" + name for name in (
    "equiv cong sim simeq approx propto doteq iff implies Rightarrow Leftrightarrow leftrightarrow longrightarrow neg "
    "lnot not lor land vee wedge oplus ll gg models vdash parallel perp mapsto to asymp").split()}


@dataclass(frozen=True, slots=True)
class Expression:
    """`tokens` of LaTeX in normal form, empty for a number with a unit. `number` is set if it is one. `name` has the
    tokens before "=", and `unit` is in normal form. Both may be empty."""

    tokens: tuple[str, ...]
    number: Number | None
    name: tuple[str, ...] = ()
    unit: str = ""

    def __str__(self) -> str:
        # No space, except between a command and a letter.
        text = re.sub(r"(\\[^\W\d_]+ (?=[^\W\d_]))| ", r"\1", " ".join(self.tokens))
        return text or str(self.number)

    @property
    def measure(self) -> str:
        """The unit or the percent sign. Empty if there is none."""
        return self.unit or (self.number.unit or self.number.mark if self.number else "")

    @property
    def spelling(self) -> tuple[str, str]:
        """The name and the tokens, each joined by spaces, for `algebra`."""
        return " ".join(self.name), " ".join(self.tokens)


def read_expression(text: str) -> Expression | None:
    """Read raw text that is a formula. A name before it (`y =`, `x ∈`) is kept apart. None for other text.

    >>> str(read_expression("f(x) = sqrt(x**10)/2"))
    '\\\\sqrt{x^{10}}/2'
    """
    bare = rewrite(unwrap(text))
    if bare[:1] == "~":  # "about", not a space
        return None
    number, unit = _number(bare), ""
    if number is None:
        bare, unit = split_unit(bare)
    tokens = [token for token in _spell(bare) if number or token != r"\$"]
    unread = not tokens or None in tokens or r"\$" in tokens or tokens[-1] in _UNFINISHED
    if unread or (tokens := _group_arguments(tokens)) is None:
        return number and Expression((), number)
    if "," in tokens and (plain := read_plain(clean(bare))):
        tokens = [str(plain)]
    if "°" in tokens and _ANGLES.isdisjoint(tokens):
        tokens, unit = [token for token in tokens if token != "°"], "°"
        number = _number(bare.replace("°", ""))
    if number and number.unit and not (is_physical(number) and len(number.unit) > 1):
        number = None  # 5a is a product
    name, tokens = canonical(tokens)
    return Expression(tuple(tokens), number, tuple(name), unit) if tokens else None


def contradict(found: Expression, expected: Expression) -> bool:
    """Whether they have different units, or give bounds for different unknowns."""
    bounds = SET_SIGNS | {r"\infty"}
    if found.name and expected.name and not bounds.isdisjoint(found.tokens) and is_variable(expected.name):
        return found.name != expected.name
    return bool(found.measure and expected.measure) and found.measure != expected.measure


def may_equal(found: Expression, expected: Expression) -> bool:
    """Whether `algebra` should decide. Not for a long answer, not for an equation if a value is expected, and not for a
    relation that `algebra` can't decide if the gold answer does not have it."""
    unsolved = "=" in found.tokens and expected.name and not any(map(str.isalpha, expected.tokens))
    related = not _OTHER_RELATIONS.isdisjoint(set(found.tokens) - set(expected.tokens))
    return bool(found.tokens and expected.tokens) and len(found.tokens) <= MAX_TOKENS and not (unsolved or related)


def _number(text: str) -> Number | None:
    """The number in the text, or the number after "name ="."""
    name, equals, value = text.partition("=")
    if equals and "=" not in value and (number := read_number(clean(value))):
        tokens = list(_spell(name))
        return number if tokens and None not in tokens and is_name(_group_arguments(tokens) or []) else None
    return None if "=" in value else read_number(clean(text))


def _spell(text: str) -> Iterator[str | None]:
    """The LaTeX tokens of `text`, without spaces. None stands for what no formula has: a word, a sign, two numbers."""
    after_number, before, indexed = False, "", bool(_INDEXED.intersection(re.findall(r"\\[a-z]+", text)))
    for token in _TOKEN.findall(text):
        token = _SIGNS.get(token, token)
        if token in _DROPPED:
            continue
        two_numbers = after_number and token[-1].isdecimal()
        after_number, before = token[-1].isdecimal() and before != "_" and not (indexed and before == "^"), token
        if two_numbers or token in _TEXT_COMMANDS or token in ("?", "`", '"', "$", "#", "\\"):
            yield None
        elif not token.isalpha() or len(token) == 1:
            yield token
        elif token in _FUNCTIONS:
            yield _FUNCTIONS[token]
        elif token in _WORDS or len(token) > 3 and not _HEXADECIMAL.issuperset(token):
            yield None
        else:
            yield from token  # a product of letters


def _closes(token: str) -> bool:
    return token in CLOSING or token.startswith(r"\end")


def _group_arguments(tokens: Sequence[str]) -> list[str] | None:
    """The tokens with braces around the arguments of ^, _, \\sqrt and \\frac: x^10 as x^{10}. None if an argument or a
    bracket is missing, or if they are nested too deeply. A half-open interval may close ( with ] and [ with )."""
    levels: list[list[list[str]]] = [[]]  # from right to left: what is read in each open bracket, the next operand last
    for token in reversed(tokens):
        read, count = [token], _ARGUMENTS.get(token, 0)
        if _closes(token):
            levels.append([])
        elif token in BRACKETS or token.startswith(r"\begin"):
            inside = levels.pop()
            end = inside[0][0] if levels else ""
            if end != (BRACKETS.get(token) or token.replace("begin", "end")) and {token, end} not in _HALF_OPEN:
                return None
            read += chain.from_iterable(reversed(inside))
        operands = levels[-1]
        if token == r"\sqrt" and operands and operands[-1][0] == "[":  # the index of a root stays in its brackets
            read += operands.pop()
        if count == 2 and operands and len(operands[-1]) == 1 and re.fullmatch("[0-9]{2}", operands[-1][0]):  # \frac12
            operands += [[digit] for digit in reversed(operands.pop()[0])]
        for _ in range(count):
            sign = operands.pop() if operands and operands[-1] in (["+"], ["-"]) else []
            if not operands or _closes(operands[-1][0]):
                return None
            body = operands.pop()
            bare = body[0] == "{" or body[0] == "(" and not sign  # x^-(n+1) keeps its brackets
            read += ["{", *sign, *(body[1:-1] if bare else body), "}"]
        if max(len(levels), *accumulate((one in BRACKETS) - (one in CLOSING) for one in read)) > MAX_NESTING:
            return None
        operands.append(read)
    return list(chain.from_iterable(reversed(levels[0]))) if len(levels) == 1 else None


def _same_expression(found: Expression, expected: Expression) -> bool | None:
    if contradict(found, expected):
        return False
    if str(found) == str(expected):
        return True
    # A comma may be decimal, unless both are lists.
    if found.number and expected.number and not ("," in found.tokens and "," in expected.tokens):
        return same_number(found.number, expected.number)
    return may_equal(found, expected) and decide("expression", found.spelling, expected.spelling)


def _read_gold_expression(text: str) -> Expression | None:
    start("expression")  # a missing package raises now, not at the first answer that needs it
    return read_expression(text)


KIND = Kind(read_expression, _same_expression, _read_gold_expression)
