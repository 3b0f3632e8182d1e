"""Which rows a stage can use, and when two questions are the same question.

`row_fault` says why a row would stop a stage hours later, and `filters.screen` leaves such rows out in notebook 1.
`question_key` is the same for two spellings of one question. Rows are never mended here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from reasonkit.judge.rubric import rubric_from_json
from reasonkit.session.files import preview
from reasonkit.text.answers import check
from reasonkit.text.tags import INVISIBLE, TAGS, is_blank, neutralise, printable

COLUMNS = ("id", "family", "kind", "question", "reasoning", "answer", "rubric")
OPEN = "open"  # the kind of a question without a gold answer: a judge scores it by its rubric
POSED = ("plan",)  # kinds whose gold answer is the problem to solve, not an answer to imitate
MAX_LEFT_OUT = 0.5  # share of a split
# Typography that stands for ASCII, and characters without width, which stand for nothing.
_FOLDED = str.maketrans(
    dict.fromkeys(INVISIBLE, "") | {"\u2044": "/"} | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | dict.fromkeys("`\u00b4\u02b9\u02bc\u2018\u2019\u201a\u201b\u2032", "'")
    | dict.fromkeys("\u00ab\u00bb\u201c\u201d\u201e\u201f\u2033", '"'))
_MEANINGFUL = ("<super>", "<sub>", "<fraction>")  # compatibility forms that change what is asked


def question_key(question: str) -> str:
    """A form that ignores case, width of white space, typography and final marks. A factorial sign is kept.

    >>> question_key("What\u2019s 5 \u2212 3 ?") == question_key("what's  5 - 3"), question_key("What is 3!")
    (True, 'what is 3!')
    """
    text = question.translate(_FOLDED)
    if not text.isascii():
        text = "".join(sign if unicodedata.decomposition(sign).startswith(_MEANINGFUL) else
                       unicodedata.normalize("NFKC", sign) for sign in unicodedata.normalize("NFC", text))
    text = " ".join(text.casefold().split())
    bare = text.rstrip(" .?!:;,\u3002")
    factorial = re.search(r"(?:[0-9)\]}]|\b\w)\Z", bare)
    return bare + "!" * (text.count("!", len(bare)) if factorial else 0)


def gold_fault(gold: str, kind: str) -> str | None:
    """Why the checker of its kind refuses a gold answer. None if accepted. Raises ImportError as `answers.check`."""
    if kind == OPEN:
        return None  # a reference or blank
    try:
        verdict = check(None if kind in POSED else gold, gold, kind)
    except ValueError as error:
        return str(error)
    if kind in POSED or verdict.correct:
        return None
    return f"gold answer {gold!r} is not right by its own checker, which reads {verdict.extracted!r} as {kind}"


def row_fault(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why no stage can use a row with these `COLUMNS`, as (cause, why). None if a stage can."""
    for name in COLUMNS:
        text = row[name]
        if not isinstance(text, str):
            return "no text", f"{name} is {preview(text)}, and must be a text, in quotes"
        if printable(text) != text:
            return "no text", f"{name} is {preview(text)}, with half of a surrogate pair: write the whole character"
        if name not in ("kind", "rubric") and (other := neutralise(text)) != text:
            at = next(n for n, (one, two) in enumerate(zip(text, other, strict=False)) if one != two)
            return "control token", (f"{name} has the control token {preview(text[at:], 24)}, which ends or opens a "
                                     "turn for a model: write it in other words")
    if is_blank(row["id"]):
        return "no id", f"id is {preview(row['id'])}: give the row a name of its own"
    if is_blank(row["question"]):
        return "no question", "the question is blank"
    if fault := gold_fault(row["answer"], row["kind"]):
        return "gold answer refused", fault
    try:
        rubric_from_json(row["rubric"])
    except ValueError as error:
        return "rubric refused", str(error)
    try:
        TAGS.render(reasoning="none" if is_blank(row["reasoning"]) else row["reasoning"],
                    answer="none" if row["kind"] == OPEN and is_blank(row["answer"]) else row["answer"])
    except ValueError as error:
        return "tag inside", str(error)
    return None


def prompt_length(question: str, tokenizer) -> int:
    """Tokens of the prompt, with <bos>."""
    return 1 + len(tokenizer.encode(TAGS.prompt(question)))


def prompt_fault(question: str, tokenizer, max_prompt_length: int) -> tuple[str, str] | None:
    """The (cause, why) of a prompt with more tokens than the limit. None for one that fits."""
    if (tokens := prompt_length(question, tokenizer)) <= max_prompt_length:
        return None
    return "prompt too long", (f"the prompt has {tokens - 1} tokens, and with <bos> max_prompt_length "
                               f"{max_prompt_length} is too short: shorten the question, or raise the limit, by "
                               "[lengths] in the data recipe or in the profile")


def is_worked(row: Mapping[str, str]) -> bool:
    """Whether SFT can imitate the row: it needs reasoning, and an answer that is not itself the problem (`POSED`)."""
    return not (is_blank(row["reasoning"]) or is_blank(row["answer"]) or row["kind"] in POSED)


def completion_length(row: Mapping[str, str], tokenizer) -> int:
    """Tokens of the completion that SFT imitates, with its stop token. 0 for a row that it leaves out."""
    if not is_worked(row):
        return 0
    return len(tokenizer.encode(TAGS.render(reasoning=row["reasoning"], answer=row["answer"]))) + 1
