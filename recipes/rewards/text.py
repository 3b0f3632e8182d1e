"""Rewards that read the text alone: TF-IDF relevance and leak, length, repetition, scaffold, work, script.

Each is a reward as in `rewards`, and a penalty: 0.0 for nothing to complain about, down to -1.0. What can be read off
the surface of a text can be written for its own sake, so it must never earn what a right answer does not. What it is
not: a judgement of the thinking. These see words, their order and their number, and nothing else.

What the reply lacks costs it the most; what the row lacks is None, "no signal". Where a source gives a bonus for more
of something, it is cut off at enough here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Protocol

from reasonkit.rewards.rules import LogExtra, RewardFn, no_extra
from reasonkit.rewards.work import ANNOUNCING, STEPS, missing_work
from reasonkit.text.tags import TAGS, printable
from reasonkit.text.words import words
from recipes.rewards.tfidf import TfIdf

RELEVANT = 0.1  # cosine with the question that is enough: worked solutions lie between 0.1 and 0.75
COPIED = 0.8  # ... and from which on the reasoning is the question over again
LEAKED = 0.9  # cosine with the answer from which on the reasoning is the answer over again
NGRAM = 4
STEP_WORDS, OWN_PAIRS = 3, 2  # different words that a step needs, and neighbours that are none in the question

_parse = lru_cache(maxsize=1024)(TAGS.parse)  # a reply is read once, not once a reward


class Encoder(Protocol):
    """A tokenizer, as far as lengths need one."""

    def encode(self, text: str) -> Sequence[int]:
        """The ids of `text`."""
        ...


def tfidf_relevance(model: TfIdf) -> RewardFn:
    """0.0 for a reasoning about the question, -1.0 for one that shares no word with it or only copies it.

    By the cosine between the two, headings aside: rising up to `RELEVANT`, falling from `COPIED` on. Padding with other
    words lowers it. `model` is fitted on the training questions. Column: `question`; None where that has no words.
    Source: the TF-IDF reward of the IDEA-E entry, first account (words relevant to the question's context).

    >>> reward = tfidf_relevance(TfIdf(["How many shells has Leo?", "Is the lamp on?"]))
    >>> replies = [f"<reasoning>{r}</reasoning>" for r in ("Leo has 6 shells, buys 5: 11", "Let me think about this")]
    >>> reward(["p"] * 2, replies, question=["How many shells has Leo?"] * 2)
    [0.0, -1.0]
    """

    def reward(prompts: Sequence[str], completions: Sequence[str], question: Sequence[str],
               **columns) -> list[float | None]:
        return [_relevance(model, reply, str(q)) for reply, q in zip(completions, question, strict=True)]

    reward.__name__ = "tfidf_relevance"
    return reward


def _relevance(model: TfIdf, reply: str, question: str) -> float | None:
    asked, said = words(question), [word for word in words(_parse(reply).reasoning or "") if word not in STEPS]
    if not asked:
        return None
    cosine = model.cosine(asked, said) or 0.0
    return 0.0 - max(0.0, 1.0 - cosine / RELEVANT, (cosine - COPIED) / (1.0 - COPIED))


def tfidf_leak(model: TfIdf) -> RewardFn:
    """0.0 for a reasoning that is more than the final answer, -1.0 for one that is the answer again, or nothing.

    By the cosine between the two from `LEAKED` on, without the words that only announce an answer. Source: the TF-IDF
    reward of the IDEA-E entry, second account (the reasoning must not leak the answer). Departure: short answers share
    their words with every honest last step, so that only near-copies are punished.

    >>> reward = tfidf_leak(TfIdf(["How many shells has Leo?"]))
    >>> reward(["p"] * 2, [TAGS.render(reasoning=r, answer="11") for r in ("6 + 5 = 11", "So the answer is 11.")])
    [0.0, -1.0]
    """

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        return [_leak(model, reply) for reply in completions]

    reward.__name__ = "tfidf_leak"
    return reward


def _leak(model: TfIdf, reply: str) -> float:
    parsed = _parse(reply)
    said, answer = ([word for word in words(text or "") if word not in ANNOUNCING]
                    for text in (parsed.reasoning, parsed.answer))
    if not said:
        return -1.0
    # an answer of signs or announcing words alone can't be leaked in words
    return 0.0 - max(0.0, ((model.cosine(said, answer) or 0.0) - LEAKED) / (1.0 - LEAKED))


def length_band(tokenizer: Encoder, low: int, high: int, soft: int) -> RewardFn:
    """0.0 for a reply of `low` to `high` tokens, falling to -1.0 over `soft` tokens on either side.

    Raises ValueError unless 0 <= low <= high and soft > 0. Source: DAPO's soft edge (arXiv 2503.14476), on both sides.

    >>> class Words:
    ...     def encode(self, text): return text.split()
    >>> length_band(Words(), low=3, high=5, soft=4)(["p"] * 2, ["one two three", "one"])
    [0.0, -0.5]
    """
    if not 0 <= low <= high or soft < 1:
        raise ValueError(f"low={low}, high={high}, soft={soft}: give 0 <= low <= high and soft > 0, in tokens")

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        lengths = [_tokens(tokenizer, reply) for reply in completions]
        return [0.0 - min(1.0, max(0, low - length, length - high) / soft) for length in lengths]

    reward.__name__ = "length_band"
    return reward


def overlong(tokenizer: Encoder, max_tokens: int, buffer: int) -> RewardFn:
    """0.0 up to `max_tokens - buffer` tokens, then falling to -1.0 at `max_tokens` and beyond.

    A `length_band` without a lower edge, under the name and in the terms of its source: the soft overlong punishment
    of DAPO (arXiv 2503.14476, L_max and L_cache). Raises ValueError unless 0 < buffer <= max_tokens.

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


def _tokens(tokenizer: Encoder, text: str) -> int:
    return len(tokenizer.encode(printable(text)))


def repetition(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
    """0.0 where no four words in a row come twice, down to -1.0: minus the share of 4-grams that came before.

    Words and signs count alike, and a run of more than 16 letters as several words, so that a loop without spaces is
    one too. Source: the repetition penalty of Demystifying Long CoT (arXiv 2502.03373), as a share of the whole reply
    instead of a penalty a token.

    >>> repetition(["p"] * 2, ["one two three four", "yes or no yes or no yes"])
    [0.0, -0.25]
    """
    return [_repetition(reply) for reply in completions]


_PIECE = re.compile(r"\w{1,16}|[^\w\s]")


def _repetition(reply: str) -> float:
    pieces = _PIECE.findall(reply.casefold())
    total = len(pieces) - NGRAM + 1
    grams = set(zip(*(pieces[start:] for start in range(NGRAM)), strict=False))
    return 0.0 - (1.0 - len(grams) / total) if total > 0 else 0.0


# A step's name where a line or sentence begins, then a colon on the same line or nothing else on it. Every quantifier
# is bounded, which keeps the search linear.
_HEADING = re.compile(
    rf"(?:^|(?<=[.;!?]\s))[^\w\n]{{0,8}}(?:(?:step\s?)?[0-9]{{1,2}}[^\w\n]{{1,4}})?({'|'.join(STEPS)})\b"
    r"(?:[^\n:]{0,40}:|[^\w\n]{0,8}$)", re.MULTILINE)


def scaffold(prompts: Sequence[str], completions: Sequence[str], question: Sequence[str],
             log_extra: LogExtra = no_extra, **columns) -> list[float | None]:
    """0.0 for a reasoning in the five steps Identify, Determine, Explore, Act, Evaluate; -0.2 for each that fails.

    A step is its name as a heading ("Identify: ...", or on a line of its own). It counts if it comes after the steps
    before it and has at least three different words, one of them new to the question and the steps before it, and two
    pairs of neighbours that are none in the question. Column: `question`. Source: the IDEA-E entry's scaffold; the five
    names are those of the ethics framework it seems to follow.

    >>> steps = "Identify: a lamp at rest. Determine: who changes it. Explore: go through them. Act: one flip, on."
    >>> replies = [f"<reasoning>{r}</reasoning>" for r in (steps + " Evaluate: only once, so on.", steps)]
    >>> scaffold(["p"] * 2, replies, question=["The lamp is off. Ann flips it. Is it on?"] * 2)
    [0.0, -0.2]
    """
    found = [_steps(_parse(reply).reasoning or "", str(q)) for reply, q in zip(completions, question, strict=True)]
    log_extra("scaffold", found)
    return [0.0 - (len(STEPS) - len(steps)) / len(STEPS) for steps in found]


def _steps(reasoning: str, question: str) -> list[str]:
    """The steps that count, in order."""
    reasoning = reasoning.casefold()
    headings = list(_HEADING.finditer(reasoning))
    ends = [*(heading.start() for heading in headings[1:]), len(reasoning)]
    asked = words(question)
    pairs, steps, had = {*zip(asked, asked[1:], strict=False)}, [], {*asked, *STEPS}
    for heading, end in zip(headings, ends, strict=False):  # without a heading there is an end too many
        name = heading[1]
        content = [word for word in words(reasoning[heading.end():end]) if word not in STEPS]
        after = not steps or STEPS.index(name) > STEPS.index(steps[-1])
        own = {*zip(content, content[1:], strict=False)} - pairs
        if after and len({*content}) >= STEP_WORDS and {*content} - had and len(own) >= OWN_PAIRS:
            steps.append(name)
            had.update(content)
    return steps


def work_shown(prompts: Sequence[str], completions: Sequence[str], question: Sequence[str],
               log_extra: LogExtra = no_extra, **columns) -> list[float | None]:
    """0.0 for a reasoning that is work, as far as a program can tell; -1.0 for one that is none: `work.missing_work`.

    Column: `question`. For recipes without a judge: `rewards.rubric` has the same condition within.

    >>> replies = [TAGS.render(reasoning=r, answer="11") for r in ("6 + 5 = 11", "So the answer is 11.", "0 + 0 = 0")]
    >>> work_shown(["p"] * 3, replies, question=["Leo has 6 shells and buys 5. How many now?"] * 3)
    [0.0, -1.0, -1.0]
    """
    missing = [missing_work(str(q), _parse(reply)) for reply, q in zip(completions, question, strict=True)]
    log_extra("work_shown", [why or "work" for why in missing])
    return [-1.0 if why else 0.0 for why in missing]


def script(name: str) -> RewardFn:
    """Minus the share of letters that are not of the script `name` ("LATIN", "CYRILLIC", "CJK" as Unicode names them).

    A script is not a language: German passes for English, and a Greek letter in a formula counts against Latin. It
    catches a reply that drifts into another alphabet, and letters that only look right. Reasoning and answer are read,
    or the whole reply if there are none; without a letter it is 0.0. Raises ValueError for a name in lower case or
    that no letter's name begins with. Source: the language consistency reward of DeepSeek-R1 (arXiv 2501.12948),
    by letters instead of words.

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
        for reply in completions:
            parsed = _parse(reply)
            text = (parsed.reasoning or "") + (parsed.answer or "") or reply
            letters = [foreign(letter) for letter in text if letter.isalpha()]
            shares.append(0.0 - sum(letters) / max(1, len(letters)))
        return shares

    reward.__name__ = "script"
    return reward
