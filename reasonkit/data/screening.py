"""What a row must be to be used: its columns, its gold answer, its prompt's length; and when two questions are one.

Entry points: `screen`, which leaves out in notebook 1 what would stop a stage hours later, and says why; `row_fault`,
for a row that slips through; `sft_pairs`, the rows that can be imitated; `check_columns`, for files; `question_key`.
Nothing here mends a row.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from reasonkit.judge.rubric import rubric_from_json
from reasonkit.session.files import preview
from reasonkit.text.answers import check
from reasonkit.text.tags import INVISIBLE, TAGS, is_blank, neutralise, printable

COLUMNS = ("id", "family", "kind", "question", "reasoning", "answer", "rubric")
POSED = ("plan",)  # kinds whose gold answer is a problem, to which it is no answer
MOST = 0.5  # of a split, the share that may be left out
# Typography that stands for ASCII, and what has no width, which stands for nothing.
_FOLDED = str.maketrans(
    dict.fromkeys(INVISIBLE, "") | {"\u2044": "/"} | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | dict.fromkeys("`\u00b4\u02b9\u02bc\u2018\u2019\u201a\u201b\u2032", "'")
    | dict.fromkeys("\u00ab\u00bb\u201c\u201d\u201e\u201f\u2033", '"'))
_CHANGES = ("<super>", "<sub>", "<fraction>")  # compatibility forms that are not only typography


class LeftOut(NamedTuple):
    """A row that can't be used: `cause` is a short fixed name to count by, `why` is for reading."""

    split: str
    id: str
    question: str
    cause: str
    why: str


def question_key(question: str) -> str:
    """Equal for two spellings of a question: case, width of white space, typography and final marks don't matter.

    >>> question_key("What\u2019s 5 \u2212 3 ?") == question_key("what's  5 - 3"), question_key("What is 3!")
    (True, 'what is 3!')
    """
    text = question.translate(_FOLDED)
    if not text.isascii():
        text = "".join(sign if unicodedata.decomposition(sign).startswith(_CHANGES) else
                       unicodedata.normalize("NFKC", sign) for sign in unicodedata.normalize("NFC", text))
    text = " ".join(text.casefold().split())
    bare = text.rstrip(" .?!:;,\u3002")
    factorial = re.search(r"(?:[0-9)\]}]|\b\w)\Z", bare)
    return bare + "!" * (text.count("!", len(bare)) if factorial else 0)


def check_columns(rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises ValueError, naming row and column, unless all rows have the same columns, `COLUMNS` among them as text.

    Others may hold what they like, each of one type: `datasets` would drop, blank or convert what differs.
    """
    union = dict.fromkeys(name for row in rows for name in row)
    for number, row in enumerate(rows, 1):
        for name in union:
            if name not in row:
                raise ValueError(f"row {number} of {where} has no {name!r}, and others do: give all rows the same keys")
            kind = str if name in COLUMNS else type(rows[0][name])
            if not isinstance(row[name], kind):
                raise ValueError(f"row {number} of {where}: {name!r} is {preview(row[name])}, and must be of type "
                                 f"{kind.__name__}, " + ("in quotes" if kind is str else "as in the first row"))
            if kind is str and printable(row[name]) != row[name]:
                raise ValueError(f"row {number} of {where}: {name!r} is {preview(row[name])}, and half of a surrogate "
                                 "pair is no character: write the whole one, or take it out")
    if missing := [name for name in COLUMNS if name not in union]:
        raise ValueError(f"the rows of {where} have no {missing[0]!r}: a row needs {', '.join(COLUMNS)}")


def gold_fault(gold: str, kind: str) -> str | None:
    """Why its own checker refuses a gold answer; None where it is right. Raises ImportError as `answers.check`."""
    try:
        verdict = check(None if kind in POSED else gold, gold, kind)
    except ValueError as error:
        return str(error)
    if kind in POSED or verdict.correct:
        return None
    return f"gold answer {gold!r} is not right by its own checker, which reads {verdict.extracted!r} as {kind}"


def fits(question: str, tokenizer, max_prompt_length: int) -> bool:
    """Whether the prompt, with <bos>, has at most so many tokens."""
    return len(tokenizer.encode(TAGS.prompt(question))) < max_prompt_length


def screen(splits: Mapping[str, Dataset], tokenizer,
           max_prompt_length: int) -> tuple[dict[str, Dataset], list[LeftOut]]:
    """The splits without the rows that a later stage would stop at, and what was left out.

    A row needs an id of its own, a question that fits, a gold answer that is right by its own checker, a rubric that
    can be read, and worked reasoning, none of them with a tag or a control token inside. In "train" the reasoning may
    be missing: the row is then for GRPO alone. Raises ValueError, with a row and its fault, for a column that is not
    there and where more than `MOST` of a split would be left out.
    """
    kept, left_out = {}, []
    for name, rows in splits.items():
        if missing := [column for column in COLUMNS if column not in rows.column_names]:
            raise ValueError(f"the rows of {name!r} have no {missing[0]!r}: a row needs {', '.join(COLUMNS)}")
        faults, known = [], set()
        for number, row in enumerate(rows, 1):
            fault = row_fault(row) or _misfit(row, name == "train", tokenizer, max_prompt_length)
            if not fault and row["id"] in known:
                fault = "id comes twice", f"id {preview(row['id'])} is that of an earlier row: give each its own"
            known.add(row["id"])
            faults.append((fault[0], f"row {number}: {fault[1]}") if fault else None)
        kept[name] = rows.select([n for n, fault in enumerate(faults) if not fault])
        refused = [LeftOut(name, str(row["id"]), str(row["question"]), *fault)
                   for row, fault in zip(rows, faults, strict=True) if fault]
        if len(refused) > MOST * len(rows):
            first = refused[0]
            raise ValueError(f"{len(refused)} of {len(rows)} rows of {name!r} can't be used, more than {MOST:.0%}. The "
                             f"first, {first.id!r}, ends {first.question[-60:]!r}: {first.why}")
        left_out += refused
    return kept, left_out


def row_fault(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why no stage can use a row with these `COLUMNS`, as a short fixed name and in words; None where all can."""
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
        TAGS.render(reasoning="none" if is_blank(row["reasoning"]) else row["reasoning"], answer=row["answer"])
    except ValueError as error:
        return "tag inside", str(error)
    return None


def _misfit(row: Mapping[str, str], trains: bool, tokenizer, max_prompt_length: int) -> tuple[str, str] | None:
    """As `row_fault`, for what depends on the split and the policy."""
    if not fits(row["question"], tokenizer, max_prompt_length):
        tokens = len(tokenizer.encode(TAGS.prompt(row["question"])))
        return "prompt too long", (f"the prompt has {tokens} tokens, and with <bos> max_prompt_length "
                                   f"{max_prompt_length} is too short: shorten the question, or raise the limit in the "
                                   "profile")
    if not trains and is_blank(row["reasoning"].replace(";", "")):
        return "no reasoning", "the reasoning is blank, and an evaluation compares its steps: write them, one after ';'"
    return None


def sft_pairs(rows: Dataset, tokenizer, max_length: int) -> list[tuple[list[int], list[int]]]:
    """Prompt and reply, with its stop token, of each row that SFT can learn from, as token ids.

    Left out, never cut, are rows without reasoning, those whose gold answer is no answer (`POSED`), those with a
    `row_fault`, and those of more than `max_length` tokens.
    """
    pairs = []
    for row in rows:
        if row_fault(row) or is_blank(row["reasoning"]) or row["kind"] in POSED:
            continue
        prompt = [tokenizer.bos_id(), *tokenizer.encode(TAGS.prompt(row["question"]))]
        text = TAGS.render(reasoning=row["reasoning"], answer=row["answer"])
        reply = [*tokenizer.encode(text), tokenizer.end_of_turn]
        if len(prompt) + len(reply) <= max_length:
            pairs.append((prompt, reply))
    return pairs
