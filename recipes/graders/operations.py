"""Finds operations that an answer leaves undone, because the question's own formula does not answer the question.

Entry point: `leaves_work`, for the tokens of two formulas. An answer may leave only operations that the gold answer
leaves too. Order, factoring, expanding and unreduced fractions are free. If the gold answer leaves a function, a
factorial or a series, so is all arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from recipes.graders.notation import AND, OR
from recipes.graders.structure import BRACKETS, CLOSING, END_MATRIX, MATRIX, NEW_ROW, RELATIONS

# Operations by their token. Those that can replace each other share a name.
_FUNCTIONS = {"\\" + name: operation for operation, names in {
    "sine": "sin cos tan cot sec csc arcsin arccos arctan", "hyperbolic": "sinh cosh tanh coth",
    "logarithm": "log ln lg", "divisor": "gcd lcm", "extreme": "max min sup inf", "remainder": "bmod pmod mod",
    "determinant": "det", "sum over an index": "sum", "product over an index": "prod", "integral": "int iint oint",
    "limit": "lim", "factorial": "binom", "derivative": "partial nabla",
}.items() for name in names.split()} | {r"\begin{vmatrix}": "determinant"}
_AFTER = {"!": "factorial", "'": "derivative"}
_AROUND = {"|": "absolute value", r"\lfloor": "rounding", r"\lceil": "rounding"}
_ARITHMETIC = {"sum", "sum of constants", "product", "quotient", "power", "scientific", "absolute value", "denominator"}
_SEPARATORS = RELATIONS | {",", "&", OR, AND, NEW_ROW, MATRIX, END_MATRIX, r"\cup", r"\setminus", r"\to", r"\pm",
                           r"\mp", r"\end{vmatrix}"}
_OPENING = {*BRACKETS, r"\lfloor", r"\lceil", "|"}
_CLOSED = CLOSING | {r"\rfloor", r"\rceil", "|"}
_CONSTANTS = frozenset({"e", "i"})
_UNKNOWNS = frozenset("\\" + name for name in (
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega Gamma Delta "
    "Theta Lambda Sigma Phi Psi Omega ell vec hat bar overline").split())
MAX_DIGITS = 1000  # a longer quotient is not divided, because Python reads at most 4,300 digits


@dataclass(eq=False, slots=True)
class _Group:
    """A bracket: the sign that opens it, and its contents."""

    sign: str
    nodes: list[Node]


Node = str | _Group


def leaves_work(found: Iterable[str], expected: Iterable[str]) -> bool:
    """Whether the answer leaves an operation that the gold answer does not leave."""
    found, expected = _tree(found), _tree(expected)
    left, allowed = _operations(found), _operations(expected)
    if allowed - _ARITHMETIC:
        allowed |= _ARITHMETIC
    if _has_unknowns(expected):
        allowed |= {"sum of constants", "absolute value"}  # x(1 + √2)
    if not RELATIONS.isdisjoint(_tokens(expected)) or not RELATIONS.isdisjoint(_tokens(found)):
        allowed |= {"denominator"}  # xy = 3 as y = 3/x
    if "scientific" in allowed:
        allowed |= {"power"}
    return not left - {"scientific"} <= allowed


def _tree(tokens: Iterable[str]) -> list[Node]:
    """The tokens as a tree, with each bracket as one node."""
    opened = [_Group("", [])]
    for token in tokens:
        if token in _CLOSED:
            while opened[-1].sign == "|" != token:  # a bar that is still open inside the bracket
                opened.pop()
        if token in _CLOSED and len(opened) > 1 and (token != "|" or opened[-1].sign == "|"):
            opened.pop()
        elif token in _OPENING:
            group = _Group(token, [])
            opened[-1].nodes.append(group)
            opened.append(group)
        else:
            opened[-1].nodes.append(token)
    return opened[0].nodes


def _tokens(nodes: Iterable[Node]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        else:
            yield node.sign
            yield from _tokens(node.nodes)


def _has_unknowns(nodes: Iterable[Node]) -> bool:
    return any(token.isalpha() and token not in _CONSTANTS or token in _UNKNOWNS for token in _tokens(nodes))


def _parts(nodes: list[Node]) -> list[list[Node]]:
    """The parts between separators, such as commas and relations."""
    parts: list[list[Node]] = [[]]
    for node in nodes:
        if isinstance(node, str) and node in _SEPARATORS:
            parts.append([])
        else:
            parts[-1].append(node)
    return parts


def _terms(nodes: list[Node]) -> list[list[Node]]:
    """The terms of a sum, without signs. A bracketed sum among them gives its own terms."""
    terms: list[list[Node]] = [[]]
    for node in nodes:
        if node in ("+", "-"):
            terms += [[]] if terms[-1] and terms[-1][-1] not in (r"\cdot", "/") else []
        else:
            terms[-1].append(node)
    bare = (term[0].nodes if len(term) == 1 and _is_bracket(term[0]) else [] for term in terms)
    return [one for term, inner in zip(terms, bare, strict=True)
            for one in (_terms(inner) if len(terms) > 1 and inner and len(_parts(inner)) == 1 else [term])]


def _is_bracket(node: Node) -> bool:
    return isinstance(node, _Group) and node.sign in ("(", "[", "{")


def _operations(nodes: list[Node]) -> set[str]:
    """The names of the operations left in the nodes, at any depth."""
    left: set[str] = set()
    for part in _parts(nodes):
        terms = [_Term(nodes) for nodes in _terms(part)]
        keys = [tuple(sorted(term.key)) for term in terms]
        for term in terms:
            left |= term.operations()
        if len(set(keys)) < len(keys) or len(keys) > 1 and ("0",) in (tuple(term.above) for term in terms):
            left.add("sum")  # two like terms
        if sum(not _has_unknowns(term.nodes) for term in terms) > 1:
            left.add("sum of constants")
        second = part[1].nodes[:1] if len(terms) == 1 and len(part) == 2 and _is_bracket(part[1]) else part[1:2]
        if part[:1] == ["-"] == second:
            left.add("sum")  # -(-5)
    return left


class _Term:
    """A product. `above` and `below` are its numerals above and below the line, `key` its other factors, and `left` the
    operations left inside those. `raised` and `roots` count powers and roots of numerals, above and below the line,
    because two of them could be multiplied out too."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes, self.left, self.key = nodes, set(), []
        self.above, self.below, self.divisors, self.raised, self.roots = [], [], [], [0, 0], [0, 0]
        self._read(nodes, False)

    def operations(self) -> set[str]:
        left = set(self.left)
        numerals = (len(self.above) + self.raised[0], len(self.below) + self.raised[1], *self.roots)
        if max(numerals) > 1:
            left.add("product")
        if self.below and not self.divisors and _is_whole(self.above, self.below):
            left.add("quotient")
        if _has_unknowns(self.divisors):
            left.add("denominator")
        return left

    def _read(self, nodes: list[Node], below: bool, within: bool = False) -> None:
        """Read factors, `below` the line or above it. `within` a fraction, another quotient is left undone."""
        at, lower = 0, below
        while at < len(nodes):
            node, rest = nodes[at], nodes[at + 1:]
            if node in _FUNCTIONS or _is_derivative(nodes[at:]):
                self.left.add(_FUNCTIONS.get(node, "derivative"))
                self._keep(nodes[at:], lower)
                return
            at += 1
            if node == r"\cdot":
                lower = below
            elif node == "/":
                lower = not below
                self._nest(within)
            elif node == "_":
                at += 1
            elif node in _AFTER:
                numerals = self.below if lower else self.above
                self.left.add(_AFTER[node])
                self.key += [node, *numerals[-1:]]
                del numerals[-1:]
            elif node != r"\frac":
                size = _size(node, rest)
                power = rest[size + 1] if rest[size: size + 1] == ["^"] and len(rest) > size + 1 else None
                self._base([node, *rest[:size]], power, lower, within)
                at, lower = at + size + 2 * (power is not None), below
            elif len(rest) > 1 and all(isinstance(part, _Group) for part in rest[:2]):
                top, bottom = rest[0].nodes, rest[1].nodes
                is_mixed = at > 1 and _is_numeral(nodes[at - 2]) and all(map(_is_numeral, (*top, *bottom)))  # 3 1/2
                at += 2
                self._nest(within)
                if not is_mixed:
                    self._factor(top, lower, True)
                    self._factor(bottom, not lower, True)
                lower = below

    def _nest(self, within: bool) -> None:
        if within and not _has_unknowns(self.nodes):
            self.left.add("quotient")

    def _base(self, base: list[Node], power: Node | None, below: bool, within: bool) -> None:
        """One factor with its exponent."""
        first, constant = base[0], not _has_unknowns(base)
        if isinstance(power, _Group):
            exponent = power.nodes
            self.left |= _operations(exponent)
            negative = exponent[:1] == ["-"]
            lowered, whole = below != negative, all(map(_is_numeral, exponent[negative:]))
            if base == ["10"] and whole:
                self.left.add("scientific")
            elif constant and not _has_unknowns(exponent):
                self.left.add("power")
                (self.raised if whole else self.roots)[lowered] += _is_numeral(first)
            self._keep([*base, power], lowered)
        elif len(base) == 1 and _is_numeral(first):
            (self.below if below else self.above).append(first)
        elif first == r"\sqrt" and constant:
            self.left.add("power")
            self.roots[below] += isinstance(base[-1], _Group) and all(map(_is_numeral, base[-1].nodes))
            self._keep(base, below)
        elif _is_bracket(first):
            self._factor(first.nodes, below, within)
        elif first not in ("°", "%", r"\%"):
            self._keep(base, below)

    def _factor(self, nodes: list[Node], below: bool, within: bool) -> None:
        """Read a bracket or one side of a fraction. It has more factors, or is a sum and so one factor."""
        if len(_parts(nodes)) == 1 and len(_terms(nodes)) == 1:
            self._read([node for node in nodes if node not in ("+", "-")], below, within)
        else:
            self._keep([_Group("(", nodes)], below)

    def _keep(self, nodes: list[Node], below: bool) -> None:
        self.key.append("/" * below + " ".join(_tokens(nodes)))
        self.divisors += nodes if below else []
        for node in nodes:
            if isinstance(node, _Group):
                self.left |= _operations(node.nodes) | ({_AROUND[node.sign]} if node.sign in _AROUND else set())


def _size(first: Node, rest: list[Node]) -> int:
    """How many nodes after the first belong to it: the index and radicand of a root, or a subscript."""
    size = 0
    if first == r"\sqrt":
        size = 1 + bool(rest and isinstance(rest[0], _Group) and rest[0].sign == "[")
    return size + 2 * (rest[size: size + 1] == ["_"])


def _is_numeral(node: Node) -> bool:
    return isinstance(node, str) and node[-1:].isdecimal() and node[0] != "\\"


def _is_whole(above: list[str], below: list[str]) -> bool:
    """Whether a quotient of numerals should have been divided: the result is whole, or one numeral is a decimal."""
    top, bottom = (above or ["1"])[0], below[0]
    if len(top + bottom) > MAX_DIGITS:
        return False
    return "." in top + bottom or not int(bottom) or int(top) % int(bottom) == 0


def _is_derivative(nodes: list[Node]) -> bool:
    """Whether the nodes begin with d/dx, as a fraction or with a slash."""
    if nodes[0] == r"\frac" and len(nodes) > 2 and all(isinstance(node, _Group) for node in nodes[1:3]):
        top, bottom = nodes[1].nodes, nodes[2].nodes
    else:
        top, bottom = nodes[:1], nodes[2:4] if nodes[1:2] == ["/"] else []
    return top[:1] == ["d"] == bottom[:1] and len(bottom) > 1 and bottom[1] not in ("+", "-")
