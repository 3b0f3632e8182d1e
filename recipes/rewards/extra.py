"""Rewards for your own recipes: nearness to a number, length, repetition (as in Pinocchio), script.

Except for `numeric_closeness` they are penalties on the text, as in `text`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

from reasonkit.rewards.rules import RewardFn
from reasonkit.text.answers import answer_of, grade, kind_of
from reasonkit.text.numbers import value_pairs
from reasonkit.text.tags import TAGS, printable

NGRAM = 4
FREE = 0.5  # of the 4-grams
_PIECE = re.compile(r"\w{1,16}|[^\w\s]")


def numeric_closeness(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], kind: Sequence[str],
                      **columns) -> list[float | None]:
    """1 - |x - gold| / |gold| for an answer x, at least 0.0, and 1.0 wherever `rules.exact_answer` is.

    0.0 if the unit is not the gold answer's, or if no number can be read. None for a kind other than "number", so a mix
    with few numbers needs a higher `max_no_signal`. Columns, and None with a cause, as in `exact_answer`. Source: the
    ratio steps of the answer reward in Tunix's GRPO demo, made continuous.

    >>> numeric_closeness(["2+2?"] * 2, ["<answer>4</answer>", "<answer>5</answer>"], ["4", "4"], ["number"] * 2)
    [1.0, 0.75]
    """
    return [_closeness(completion, gold) if str(k) == "number" else None
            for completion, gold, k in zip(completions, answer, kind, strict=True)]


numeric_closeness.failures = Counter()


def _closeness(completion: str, gold: str | None) -> float | None:
    (verdict,) = grade([completion], [gold], ["number"])
    if verdict is None:
        numeric_closeness.failures["unusable_gold"] += 1
        return None
    if verdict.correct or verdict.extracted is None:
        return float(verdict.correct)
    number, read = answer_of(TAGS.parse(completion), gold, "number"), kind_of("number").read
    return max((float(max(0, 1 - abs(x - expected) / abs(expected)))
                for x, expected in value_pairs(read(number), read(gold)) if expected), default=0.0)


def length_band(tokenizer, low: int, high: int, soft: int) -> RewardFn:
    """0.0 for a completion of `low` to `high` tokens, falling to -1.0 over `soft` tokens on either side.

    Raises ValueError unless 0 <= low <= high and soft > 0. Source: DAPO's soft edge (arXiv 2503.14476), on both sides.

    >>> class Words:
    ...     def encode(self, text): return text.split()
    >>> length_band(Words(), low=3, high=5, soft=4)(["p"] * 2, ["one two three", "one"])
    [0.0, -0.5]
    """
    if not 0 <= low <= high or soft < 1:
        raise ValueError(f"low={low}, high={high}, soft={soft}: give 0 <= low <= high and soft > 0, in tokens")

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        lengths = [len(tokenizer.encode(printable(completion))) for completion in completions]
        return [0.0 - min(1.0, max(0, low - length, length - high) / soft) for length in lengths]

    reward.__name__ = "length_band"
    return reward


def overlong(tokenizer, max_tokens: int, buffer: int) -> RewardFn:
    """0.0 up to `max_tokens - buffer` tokens, then falling to -1.0 at `max_tokens` and beyond.

    A `length_band` without a lower edge. Source: the soft overlong punishment of DAPO (arXiv 2503.14476), whose L_max
    and L_cache these are. Raises ValueError unless 0 < buffer <= max_tokens.

    >>> class Words:
    ...     def encode(self, text): return text.split()
    >>> overlong(Words(), max_tokens=4, buffer=2)(["p"] * 2, ["one two", "one two three"])
    [0.0, -0.5]
    """
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"max_tokens={max_tokens}, buffer={buffer}: give 0 < buffer <= max_tokens, in tokens")
    reward = length_band(tokenizer, 0, max_tokens - buffer, buffer)
    reward.__name__ = "overlong"
    return reward


def repetition(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
    """A penalty for 4-grams of words that repeat an earlier one: 0.0 up to a share of `FREE`, then down to -1.0.

    Sums in LaTeX and tables repeat up to half of theirs, and a loop nearly all. A sign counts as a word, and a run of
    more than 16 letters as several, because a loop may have no spaces. Source: the repetition penalty of Demystifying
    Long CoT (arXiv 2502.03373), as a share of the completion instead of a penalty per token.

    >>> repetition(["p"] * 2, ["one two three four", "yes or no " * 10])
    [0.0, -0.78]
    """
    return [_repetition(completion) for completion in completions]


def _repetition(completion: str) -> float:
    pieces = _PIECE.findall(completion.casefold())
    total = len(pieces) - NGRAM + 1
    grams = set(zip(*(pieces[start:] for start in range(NGRAM)), strict=False))
    share = 1.0 - len(grams) / total if total > 0 else 0.0
    return 0.0 - round(max(0.0, share - FREE) / (1.0 - FREE), 2)


def script(name: str) -> RewardFn:
    """Minus the share of letters outside the script `name` ("LATIN", "CYRILLIC", "CJK", as Unicode names them).

    It reads reasoning and answer, or the whole completion if there are none, and is 0.0 without a letter. German passes
    for English, and a Greek letter in a formula counts against Latin. Raises ValueError for a name that no letter's
    Unicode name begins with. Source: the language consistency of DeepSeek-R1 (arXiv 2501.12948), by letters, not words.

    >>> script("LATIN")(["p"] * 2, ["<reasoning>so it is</reasoning>", "<reasoning>это on</reasoning>"])
    [0.0, -0.6]
    """

    @cache
    def foreign(letter: str) -> bool:
        return unicodedata.name(letter, "").split(" ")[0] != name

    if not name or all(foreign(letter) for letter in map(chr, range(0x20000)) if letter.isalpha()):
        raise ValueError(f"script {name!r}: give the first word of its letters' Unicode names, such as 'LATIN'")

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        shares = []
        for completion in completions:
            parsed = TAGS.parse(completion)
            text = (parsed.reasoning or "") + (parsed.answer or "") or completion
            letters = [foreign(letter) for letter in text if letter.isalpha()]
            shares.append(0.0 - sum(letters) / max(1, len(letters)))
        return shares

    reward.__name__ = "script"
    return reward
