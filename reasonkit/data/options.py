"""Multiple choice in the shapes of real sets: `pose_choice` writes the options below the question, lettered anew.

Options may be a list, a mapping of labels, or one text that numbers them, and the answer a letter, a label, an
integer from 0, or the option's text. A row that can't be read is `Refused`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from reasonkit.data.screening import gold_fault, question_key

LETTERS = "ABCDEFGHIJ"
# The ways in which a text numbers its options. {} is the letter.
_STYLES = (r"(?m:^)\s*{}\s?[.):]", r"\({}\)", r"(?:^|(?<=[\s,])){}\s\)", r"(?<=\s){}\.\s")
SHAPE = "options that can't be told apart: write (A) ... (B) ..., or a list"


class Refused(ValueError):
    """A row that is left out. `str` is a short fixed cause for counting."""


def as_text(value: Any) -> str:
    """Text, or a number as text. Raises Refused for what is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return value[0]  # of several right answers the first
    raise Refused("no text in a text column")


def pose_choice(fields: dict, rng: random.Random | None) -> None:
    """Write the options below the question as (A), (B), and the answer as "(B) its text"."""
    given, answer = fields["options"], fields["answer"]
    labels: list[str] = list(LETTERS)
    if isinstance(given, str):
        texts = split_options(given)[1]
    elif isinstance(given, Mapping) and set(given) >= {"text", "label"}:  # ARC: labels A to D, or 1 to 4
        texts, labels = list(given["text"]), [str(label) for label in given["label"]]
    elif isinstance(given, Mapping):
        texts, labels = list(given.values()), [str(label) for label in given]
    else:
        lettered = all(isinstance(text, str) and re.match(rf"\(?{letter}\s?[).]", text)
                       for text, letter in zip(given, LETTERS, strict=False))
        texts = [re.sub(r"^\(?[A-J]\s?[).]\s?", "", as_text(text)) if lettered else text for text in given]
    texts = [" ".join(as_text(text).split()) for text in texts]
    if not 2 <= len(texts) <= len(LETTERS) or len(labels) < len(texts):
        raise Refused(SHAPE)
    different = {text.casefold() for text in texts}
    if {"", "not specified"} & different or len(different) < len(texts):
        raise Refused("options repeat or are blank")
    right = find_option(answer, texts, labels)
    order = list(range(len(texts)))
    if rng:
        rng.shuffle(order)
    letter, text = LETTERS[order.index(right)], texts[right]
    fields["question"] = "\n".join([as_text(fields["question"]).strip(),
                                    *(f"({LETTERS[place]}) {texts[n]}" for place, n in enumerate(order))])
    gold = f"({letter}) {text}"
    fields["answer"] = letter if gold_fault(gold, "choice") else gold


def split_options(text: str) -> tuple[str, list[str]]:
    """The question and the options of a text that numbers them A, B, C. Raises Refused if it does not."""
    for style in _STYLES:
        marks: list[re.Match[str]] = []
        for letter in LETTERS:
            pattern = re.compile(style.format(f"(?:{letter}|{letter.lower()})"))
            mark = pattern.search(text, marks[-1].end() if marks else 0)
            if not mark:
                break
            marks.append(mark)
        if len(marks) >= 2:
            ends = [mark.start() for mark in marks[1:]] + [len(text)]
            texts = [text[mark.end():end].strip(" ,\n\t") for mark, end in zip(marks, ends, strict=True)]
            return text[:marks[0].start()].strip(), [re.sub(r",?\s+or$|\s*\bAnswer:$", "", one) for one in texts]
    raise Refused(SHAPE)


def find_option(answer: Any, texts: list[str], labels: list[str]) -> int:
    """The index of the right option. `answer` is that index, the option's label, its text, or label and text."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(texts):
            return answer
        raise Refused("answer is no option")
    said = " ".join(as_text(answer).partition(". Explanation:")[0].split())  # MedReason's answers go on with one
    alike = [n for n, text in enumerate(texts) if text.casefold() == said.casefold()]
    if len(alike) == 1 and not (said in labels and labels.index(said) != alike[0]):
        return alike[0]
    if alike:  # options 1 to 4 with labels 1 to 4
        raise Refused("answer is two options")
    match = re.fullmatch(r"\(?([A-Ja-j]|[0-9])(?:\)|\s?[.):]|\b)\s*(.*)", said)
    label = match and match[1].upper() if match else None
    if match and label in labels[:len(texts)]:
        place = labels.index(label)
        if not match[2] or question_key(match[2]) == question_key(texts[place]):
            return place
    raise Refused("answer is no option")
