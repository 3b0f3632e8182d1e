"""Rewards that only read the text: TF-IDF relevance and leak, scaffold, and work shown.

Each is a penalty, from 0.0 down to -1.0. A policy can write whatever a simple reading of the text rewards, so it must
never earn anything that way. If a source pays a bonus for more of something, here a fixed amount is enough. A
completion without the text in question gets the full penalty. A row without it gives None, "no signal".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from reasonkit.rewards.rules import LogExtra, RewardFn, no_extra
from reasonkit.rewards.work import ANNOUNCING, STEPS, missing_work
from reasonkit.text.tags import TAGS
from reasonkit.text.words import words

RELEVANT = 0.1  # a cosine with the question that is enough: worked solutions lie between 0.1 and 0.75
COPIED = 0.8  # from this cosine with the question on, the reasoning is a copy
LEAKED = 0.9  # from this cosine with the answer on, the reasoning only repeats it
STEP_WORDS, OWN_PAIRS = 3, 2  # a step needs so many different words, and pairs not in the question

parse = lru_cache(maxsize=1024)(TAGS.parse)  # several rewards read the same completion


class TfIdf:
    """TF-IDF by scikit-learn's formulas: idf = ln((1 + n) / (1 + df)) + 1, and a text's vector is count x idf.

    n is the number of `texts`, and df how many of them have the word. Unlike in scikit-learn, a single digit is a
    word, and a word that no text has gets df = 0, because dropping it would make padding free. In scripts without
    spaces a whole clause is one word, and the cosine says little. Raises ValueError for texts without a single word.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        bags = [set(words(text)) for text in texts]
        frequencies = Counter(word for bag in bags for word in bag)
        if not frequencies:
            raise ValueError(f"{len(bags)} texts without a single word: fit on the training questions")
        self._unseen = math.log(1 + len(bags)) + 1
        self._idf = {word: self._unseen - math.log(1 + df) for word, df in frequencies.items()}

    def cosine(self, a: Iterable[str], b: Iterable[str]) -> float | None:
        """The cosine, in [0, 1], between two texts given as words, or None if one has no words.

        >>> TfIdf(["a cat", "a dog"]).cosine(["a", "cat"], ["cat", "a"])
        1.0
        """
        vector_a, vector_b = self._vector(a), self._vector(b)
        if not vector_a or not vector_b:
            return None
        dot = sum(value * vector_b.get(word, 0.0) for word, value in vector_a.items())
        return min(1.0, dot / (math.hypot(*vector_a.values()) * math.hypot(*vector_b.values())))

    def _vector(self, text: Iterable[str]) -> dict[str, float]:
        return {word: count * self._idf.get(word, self._unseen) for word, count in Counter(text).items()}


def tfidf_relevance(model: TfIdf) -> RewardFn:
    """0.0 for reasoning about the question, -1.0 for one that shares no word with it or only copies it.

    It depends on the cosine between the two, without headings. It rises up to `RELEVANT` and falls from `COPIED` on.
    Padding with other words lowers it. `model` is fitted on the training questions. Column: `question`. None for a
    question without words. Source: the TF-IDF reward of the IDEA-E entry, its first account.

    >>> reward = tfidf_relevance(TfIdf(["How many shells has Leo?", "Is the lamp on?"]))
    >>> texts = [f"<reasoning>{r}</reasoning>" for r in ("Leo has 6 shells, buys 5: 11", "Let me think about this")]
    >>> reward(["p"] * 2, texts, question=["How many shells has Leo?"] * 2)
    [0.0, -1.0]
    """

    def reward(prompts: Sequence[str], completions: Sequence[str], question: Sequence[str],
               **columns) -> list[float | None]:
        return [_relevance(model, completion, str(q)) for completion, q in zip(completions, question, strict=True)]

    reward.__name__ = "tfidf_relevance"
    return reward


def _relevance(model: TfIdf, completion: str, question: str) -> float | None:
    asked, said = words(question), [word for word in words(parse(completion).reasoning or "") if word not in STEPS]
    if not asked:
        return None
    cosine = model.cosine(asked, said) or 0.0
    return 0.0 - max(0.0, 1.0 - cosine / RELEVANT, (cosine - COPIED) / (1.0 - COPIED))


def tfidf_leak(model: TfIdf) -> RewardFn:
    """0.0 for reasoning that says more than the final answer, -1.0 if it is empty or only repeats the answer.

    It falls from a cosine of `LEAKED` on, without the words that only announce an answer. Only near-copies cost: every
    honest last step shares words with a short answer. Source: the TF-IDF reward of IDEA-E, its second account.

    >>> reward = tfidf_leak(TfIdf(["How many shells has Leo?"]))
    >>> reward(["p"] * 2, [TAGS.render(reasoning=r, answer="11") for r in ("6 + 5 = 11", "So the answer is 11.")])
    [0.0, -1.0]
    """

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        return [_leak(model, completion) for completion in completions]

    reward.__name__ = "tfidf_leak"
    return reward


def _leak(model: TfIdf, completion: str) -> float:
    parsed = parse(completion)
    said, answer = ([word for word in words(text or "") if word not in ANNOUNCING]
                    for text in (parsed.reasoning, parsed.answer))
    if not said:
        return -1.0
    # without words in the answer there is nothing to leak
    return 0.0 - max(0.0, ((model.cosine(said, answer) or 0.0) - LEAKED) / (1.0 - LEAKED))


# A step's name where a line or sentence begins, then a colon on the same line or nothing else on it. The search is
# linear, because every quantifier is bounded.
_HEADING = re.compile(
    rf"(?:^|(?<=[.;!?]\s))[^\w\n]{{0,8}}(?:(?:step\s?)?[0-9]{{1,2}}[^\w\n]{{1,4}})?({'|'.join(STEPS)})\b"
    r"(?:[^\n:]{0,40}:|[^\w\n]{0,8}$)", re.MULTILINE)


def scaffold(prompts: Sequence[str], completions: Sequence[str], question: Sequence[str],
             log_extra: LogExtra = no_extra, **columns) -> list[float | None]:
    """0.0 for reasoning in the five steps Identify, Determine, Explore, Act, Evaluate, and -0.2 for each that fails.

    A step begins with its name as a heading ("Identify: ...", or on a separate line). It counts if it is in order and
    has at least three different words, one of them new, and two pairs of neighbouring words not in the question.
    Column: `question`. Source: the scaffold of the IDEA-E entry.

    >>> steps = "Identify: a lamp at rest. Determine: who changes it. Explore: go through them. Act: one flip, on."
    >>> completions = [f"<reasoning>{r}</reasoning>" for r in (steps + " Evaluate: only once, so on.", steps)]
    >>> scaffold(["p"] * 2, completions, question=["The lamp is off. Ann flips it. Is it on?"] * 2)
    [0.0, -0.2]
    """
    found = [_steps(parse(completion).reasoning or "", str(q))
             for completion, q in zip(completions, question, strict=True)]
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
    """0.0 for reasoning that shows work, -1.0 for one that does not, by `work.missing_work`.

    Column: `question`. It is for recipes without a judge, because `recipes.rewards.rubric` has the same condition.

    >>> texts = [TAGS.render(reasoning=r, answer="11") for r in ("6 + 5 = 11", "So the answer is 11.", "0 + 0 = 0")]
    >>> work_shown(["p"] * 3, texts, question=["Leo has 6 shells and buys 5. How many now?"] * 3)
    [0.0, -1.0, -1.0]
    """
    missing = [missing_work(str(q), parse(completion)) for completion, q in zip(completions, question, strict=True)]
    log_extra("work_shown", [why or "work" for why in missing])
    return [-1.0 if why else 0.0 for why in missing]
