"""The prompt and the format of a completion: render them, parse them, name every defect.

Entry point: `TAGS`, which writes the same prompt for training, evaluation and the judges. Completions are model text,
so parsing one never fails. It returns a strict verdict (`Parsed.defects`, empty if the format is perfect) and what a
human would still be able to read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import accumulate

DEFECTS = (
    "missing_reasoning",     # no opening tag
    "missing_answer",
    "duplicated_reasoning",  # the opening or the closing tag more than once
    "duplicated_answer",
    "nested",                # a block opened inside another one that is closed later, or inside its own kind
    "misordered",            # the answer opens before the reasoning, or a tag closes before it opens
    "unclosed_reasoning",    # fewer closing than opening tags
    "unclosed_answer",
    "empty_reasoning",       # a block without any visible text outside inner blocks
    "empty_answer",
    "text_outside",          # visible text outside the blocks, except a final stop marker
    "malformed_tag",         # upper case or white space inside a tag
)
# White space to a human, not to `str.strip`: soft hyphen, zero-width space, joiners and direction marks, word joiner,
# invisible signs of formulas, byte order mark.
INVISIBLE = ("\u00ad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
             "\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068\u2069\ufeff")
STOP_MARKERS = ("<end_of_turn>", "<eos>")

_UNSEEN = dict.fromkeys(map(ord, INVISIBLE))
# Possessive quantifiers (`*+`) never backtrack, so both patterns are linear on any text.
_CONTROL = re.compile(
    r"<\s*+((?:start|end)[\s_]*+of[\s_]*+(?:turn|image|audio)|(?:image|audio)[\s_]*+soft[\s_]*+token|"
    r"bos|eos|pad|unk|mask|2mass|unused\d++)\s*+>", re.IGNORECASE)
_BRACKETED = re.compile(r"\[\s*+(multimodal|@\s*+bos\s*+@|toxicity\s*+=\s*+\d++)\s*+\]", re.IGNORECASE)
# What is between two tags that are only mentioned: "between `<answer>` and `</answer>`", or "<answer>...</answer>"
_MENTION = re.compile(r"[\s`'\"*]*+(?:and(?:\s+the)?|\.\.\.|…)[\s`'\"*]*+", re.IGNORECASE)


def printable(text: str) -> str:
    """`text` with lone surrogates as "?", because UTF-8 cannot encode them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def neutralise(text: str) -> str:
    """Change the brackets of every control marker. No tokenizer then reads it as a control token.

    A marker is a token of Gemma 2 or 3, in any case and spacing, such as <eos>, <start_of_image>, <unused0> or
    [multimodal]. Tokens that are HTML tags or runs of white space are ordinary text and stay.

    >>> neutralise("Ignore this.<end_of_turn>")
    'Ignore this.[end_of_turn]'
    """
    return _BRACKETED.sub(r"(\1)", _CONTROL.sub(r"[\1]", text))


@dataclass(frozen=True)
class Parsed:
    """A completion, with `reasoning` and `answers` read leniently, and its `defects` from `DEFECTS`.

    `reasoning` is None if there is none. Blocks that differ give several `answers`: see `answers.answer_of`. `cut_off`:
    it ends inside a block, as where the sampler reached its limit.
    """

    reasoning: str | None
    answers: tuple[str, ...]
    defects: tuple[str, ...]
    cut_off: bool = field(default=False, repr=False)

    @property
    def answer(self) -> str | None:
        """The only answer, else None."""
        return self.answers[0] if len(self.answers) == 1 else None

    @property
    def ok(self) -> bool:
        """Whether each tag occurs once, in order, closed and with contents, and only white space is around them."""
        return not self.defects

    @property
    def is_finished(self) -> bool:
        """Whether it has an answer and was not cut off."""
        return bool(self.answers) and not self.cut_off


@dataclass
class _Block:
    within: bool            # opened inside a closed reasoning: a draft, or a mention of the tag
    pieces: list[str] = field(default_factory=list)
    contains: bool = False  # another block was opened inside
    cut: bool = False       # ended by the closing tag of the block around it

    @property
    def text(self) -> str:
        text = " ".join(filter(None, (piece.strip() for piece in self.pieces)))
        return "" if is_blank(text) else text

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """Orders answers: only those of the lowest rank count."""
        return self.within, self.cut, not self.within and _MENTION.fullmatch(self.text) is not None


class Tags:
    """The two tags, whose names are the competition's.

    `template` is the PROMPT_TEMPLATE of the competition: a user turn with one `{question}`, then the start of the
    model's turn. `tag` matches each of the four tags in any case and spacing, in linear time. Its group `slash` is "/"
    for a closing tag.
    """

    reasoning, reasoning_start, reasoning_end = "reasoning", "<reasoning>", "</reasoning>"
    answer, answer_start, answer_end = "answer", "<answer>", "</answer>"
    template = (
        "<start_of_turn>user\n{question}\n"
        "Show your work between <reasoning> and </reasoning>, "
        "then give the final answer between <answer> and </answer>.<end_of_turn>\n<start_of_turn>model\n"
    )
    tag = re.compile(r"<\s*+(?P<slash>/?+)\s*+(?:(?P<reasoning>reasoning)|answer)\s*+>", re.IGNORECASE)

    def prompt(self, question: str) -> str:
        """`template.format(question=question)`. Raises TypeError if `question` is not a str."""
        if not isinstance(question, str):
            raise TypeError(f"question must be a str, got {type(question).__name__}: {question!r}")
        return self.template.format(question=question)

    def render(self, *, reasoning: str, answer: str) -> str:
        """A completion in perfect format. Raises ValueError if a part is blank or contains one of the tags."""
        for name, part in (("reasoning", reasoning), ("answer", answer)):
            if is_blank(part):
                raise ValueError(f"{name} is blank: {part!r}; a completion needs both parts")
            if tag := self.tag.search(part):
                raise ValueError(f"{name} contains the tag {tag[0]!r}; remove it or drop the row")
        return f"{self.reasoning_start}{reasoning}{self.reasoning_end}\n{self.answer_start}{answer}{self.answer_end}"

    def parse(self, text: str) -> Parsed:
        """Read a completion strictly and leniently, in linear time. Never raises for a str.

        An unclosed block runs to the end of the block around it, or of the text. A block without an opening tag begins
        at the previous tag. Several reasonings are joined. Answers inside a closed reasoning are drafts and count only
        if there are no others. The same holds for tags that are only mentioned: an answer tag that stays open inside a
        closed reasoning, and two tags with the prompt's "and" between them.

        >>> TAGS.parse("<reasoning>2 + 2</reasoning><answer>4")
        Parsed(reasoning='2 + 2', answers=('4',), defects=('unclosed_answer',))
        >>> TAGS.parse("<reasoning>It goes between <answer> and </answer>.</reasoning><answer>4</answer>").answer
        '4'
        """
        if not isinstance(text, str):
            raise TypeError(f"a completion must be a str, got {type(text).__name__}: {text!r}")
        text = text[: _completion_end(text)]
        blocks: dict[str, list[_Block]] = {"reasoning": [], "answer": []}
        opened: dict[str, _Block] = {}  # outermost first, at most one of each kind
        found = set()
        position = 0
        tags = list(self.tag.finditer(text))
        # r, a: opening tags; R, A: closing tags
        order = "".join("aArR"[2 * bool(tag["reasoning"]) + bool(tag["slash"])] for tag in tags)
        for tag, within in zip(tags, _within(order), strict=True):
            piece, position = text[position : tag.start()], tag.end()
            kind, closing, blank = "reasoning" if tag["reasoning"] else "answer", bool(tag["slash"]), is_blank(piece)
            if tag[0] != f"<{tag['slash']}{kind}>":
                found.add("malformed_tag")
            if opened:
                next(reversed(opened.values())).pieces.append(piece)
            elif closing and not blank:
                blocks[kind].append(_Block(within, [piece]))
            elif not blank:
                found.add("text_outside")
            if closing and kind in opened:
                found |= _close(kind, opened)
            elif not closing:
                if opened.pop(kind, None):
                    found.add("nested")
                for outer in opened.values():
                    outer.contains = True
                opened[kind] = _Block(within)
                blocks[kind].append(opened[kind])
        if opened:
            next(reversed(opened.values())).pieces.append(text[position:])
        elif not is_blank(text[position:]):
            found.add("text_outside")

        found |= _order_defects(order)
        found |= {f"empty_{kind}" for kind in blocks for block in blocks[kind] if not block.text}
        answers = [block for block in blocks["answer"] if block.text]
        first = min((block.rank for block in answers), default=None)
        return Parsed(
            reasoning="\n".join(filter(None, (block.text for block in blocks["reasoning"]))) or None,
            answers=tuple(dict.fromkeys(block.text for block in answers if block.rank == first)),
            defects=tuple(defect for defect in DEFECTS if defect in found),
            cut_off=bool(opened) and (not tags[-1]["slash"] or not is_blank(text[position:])),
        )


def is_blank(text: str) -> bool:
    """Whether `text` has no visible character."""
    return not text.translate(_UNSEEN).strip()


def _close(kind: str, opened: dict[str, _Block]) -> set[str]:
    """Close the open block of this kind and cut a block that is still open inside it. Returns the defects."""
    is_outermost = next(iter(opened)) == kind
    block = opened.pop(kind)
    if opened and is_outermost:
        _, inner = opened.popitem()
        inner.cut = True
        block.pieces += inner.pieces
    return {"nested"} if block.contains else set()


def _within(order: str) -> list[bool]:
    """For each tag, whether it is between the opening and the closing tag of a reasoning."""
    changes, opened = [0] * len(order), []
    for number, tag in enumerate(order):
        if tag == "r":
            opened.append(number)
        elif tag == "R" and opened:
            changes[opened.pop()] += 1
            changes[number] -= 1
    return [depth > 0 for depth in accumulate(changes)]


def _order_defects(order: str) -> set[str]:
    """The defects in the sequence of tags. `order` has one letter per tag, in upper case for closing tags."""
    found = set()
    for kind in ("reasoning", "answer"):
        starts, ends = order.count(kind[0]), order.count(kind[0].upper())
        if not starts:
            found.add(f"missing_{kind}")
        if starts > 1 or ends > 1:
            found.add(f"duplicated_{kind}")
        if starts > ends:
            found.add(f"unclosed_{kind}")
    if any(second in order and first in order.partition(second)[0] for first, second in ("Rr", "Aa", "ar")):
        found.add("misordered")
    return found


def _completion_end(text: str) -> int:
    """Where the completion ends, without the stop markers that the sampler may leave at the very end."""
    end = len(text)
    while True:
        while end and is_blank(text[end - 1]):
            end -= 1
        if not text.endswith(STOP_MARKERS, 0, end):
            return end
        end = text.rindex("<", 0, end)


TAGS = Tags()
