"""Does the reasoning show any work, as far as a program can tell? `missing_work` says why not.

It catches empty reasoning, a copy of the answer or the question, one repeated step, and sums that are false or belong
to another problem. Whether the work is good is for a judge to say. What it can't read, such as algebra, counts as
prose. Prose passes if it is not copied. Source: our own rules, recorded in golden/work.jsonl.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from reasonkit.rewards.sums import CONSTANTS, TOKEN, Sum, agrees, read_sums
from reasonkit.text.hedges import NUMBER_WORDS
from reasonkit.text.tags import Parsed
from reasonkit.text.words import words

STEPS = ("identify", "determine", "explore", "act", "evaluate")  # IDEA-E's headings, which say nothing by themselves
# Words that announce an answer and add nothing to it.
ANNOUNCING = frozenset(
    "a am an answer are as be because believe certainly clearly definitely final finally guess hence i is it just "
    "know maybe me must obviously ok okay option perhaps probably result say simply so solution step steps sure "
    "surely that the therefore think this thus us was we well yes".split())
AGAIN = "one step again and again"
OWN = 3  # a step has at least this many pairs of neighbouring words that are not in the question
_SAID = {word: float(number) for word, number in NUMBER_WORDS.items()} | {
    "hundred": 100.0, "dozen": 12.0, "half": 0.5, "twice": 2.0, "double": 2.0, "pair": 2.0, "couple": 2.0,
    "triple": 3.0, "quarter": 0.25}
_ENDS = re.compile(r"[;\n]|[.!?](?=\s)")  # where steps end
_GLUED = re.compile(r"(?<=[0-9])([a-z])\b")
_ALONE = re.compile(r"(?<![\w.])([a-z])(?=\s{0,9}[-+*/=^])|(?<=[-+*/=(])\s{0,9}([a-z])\b")
_BRACKETED = re.compile(r"(?:[)}^!\u221a]|\\[a-z]{1,20}\{)[^=\n]{0,100}=\s{0,9}\S")
_LISTED = re.compile(r"^\s*[0-9]{1,2}[.)]\s", re.MULTILINE)  # the number of an entry of a list
# Letters of scripts that are written without spaces: each is a word.
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def missing_work(question: str, reply: Parsed) -> str:
    """Why the completion shows no work, in a few fixed words, or "" if it may show some.

    Work is either sums or words. Most sums, or the first one and half of them, must be true and start from numbers in
    the question or in earlier sums. One slip is forgiven, unless it is the only sum and nothing builds on it. A sum
    counts once, and not at all if it leads nowhere. True sums from other numbers count if words come with them, because
    these may say where the numbers are from. Words need at least `OWN` pairs of neighbouring words that are not in the
    question. For a short answer, or if question and answer have numbers, they need one word from the question or the
    answer. If the question has two numbers and a short answer one, they need two numbers, one not in the question.

    Takes time linear in the lengths. Never raises for a str.

    >>> from reasonkit.text.tags import TAGS
    >>> question = "Leo has 6 shells, buys 5. How many now?"
    >>> for text in ("6 + 5 = 11", "6 + 5 = 12", ".", "So 12", "0 + 0 = 0", "9 + 4 = 13", "Leo has 6 shells, buys 5"):
    ...     print(missing_work(question, TAGS.parse(f"<reasoning>{text}</reasoning><answer>12</answer>")) or "work")
    work
    work
    no step
    no step
    no step
    false or foreign sums
    no step
    """
    text, answer = reply.reasoning or "", " ".join(reply.answers)
    sums, said = read_sums(text)
    asked, found = Counter(_numbers(question)), {*_numbers(answer)}
    # a letter next to a number, as in 3m, and next to an operator is a variable, not a unit
    algebra = not {*_GLUED.findall(text)}.isdisjoint(a or b for a, b in _ALONE.findall(text))
    if answer and not asked and not found or algebra:
        sums, said = [], text  # they may be of anything
    fault = _fault_of_words(question, answer, said, asked, found)
    if any(left and told is not None and not left.is_idle(asked) for left, told in sums):
        why, wrong = _unsound(sums, asked, found, Counter(map(abs, _numbers(f"{text} {answer}"))))
        own = {word for word in words(said) if word.isalpha() and len(word) > 2} - {*words(question)}
        explained = len(own) > OWN and fault in ("", "no number of its own")  # words may say where numbers come from
        return why if wrong or not explained else ""
    if fault == "no step" and _BRACKETED.search(text) and not (asked and asked.keys().isdisjoint(_numbers(text))):
        return ""  # a calculation that is not read here
    return fault


def _fault_of_words(question: str, answer: str, said: str, asked: Counter[float], found: set[float]) -> str:
    if len(_pairs(said, words(answer)) - _pairs(question, ())) < OWN:
        return "no step"
    steps = [step for step in map(tuple, map(words, _ENDS.split(said))) if step]
    if len(steps) > 2 * len({*steps}):
        return AGAIN
    told = _numbers(said)
    # reasoning about a longer answer without a number, such as a story or a list, may use none of its words
    short = len(_words(answer)) <= OWN or asked and any(map(str.isdigit, _LISTED.sub("", answer)))
    if short and _stems(f"{question} {answer}").isdisjoint(_stems(said)) and asked.keys().isdisjoint(told):
        return "nothing of the question"
    counted = len(words(answer)) <= OWN and len(asked) > 1 and found - asked.keys()
    if counted and (len(told) < 2 or asked.keys() >= {*told}):
        return "no number of its own"
    return ""


def _unsound(sums: list[tuple[Sum | None, float | None]], asked: Counter[float], found: set[float],
             times: Counter[float]) -> tuple[str, bool]:
    """What is wrong with too many of the sums, or "", and whether any is false or repeated, not only foreign. `found`
    are the answer's numbers, and `times` how often each number is in the text and the answer."""
    known, strange, seen = {*asked}, set(), set()
    used = began = ends = False
    good = slips = foreign = repeated = 0
    for left, told in sums:
        start = known
        if told is None:
            if left.is_from(known, strange):
                known |= {left.value, -left.value}
            continue
        if left and not left.is_idle(asked):
            if (left, told) in seen:
                repeated += 1
            elif CONSTANTS.issuperset(left.numbers) and not known.issuperset(left.numbers):
                pass  # it counts neither way
            elif asked and not left.is_from(known, strange) and not ({*left.operators} == {"*"} and told in asked):
                foreign, start = foreign + 1, strange
            elif agrees(left, told):
                good, ends = good + 1, told in found
                began = began or not foreign
            else:
                slips, used = slips + 1, used or times[abs(told)] > 1
            seen.add((left, told))
            start.add(left.value)
        start |= {told, -told}
    forgiven = min(slips, 1) if good or used else 0
    # a good beginning breaks a tie, and so does ending with the answer
    if good + forgiven + (began or ends) > repeated + foreign + slips - forgiven:
        return "", False
    if not good + slips + foreign + repeated and [told for _, told in sums if told is not None][-1] in found:
        return "", False  # they have only constants, but lead to the answer
    return AGAIN if repeated > foreign + slips else "false or foreign sums", slips + repeated > 0


def _stems(text: str) -> set[str]:  # because another ending does not make another word
    return {word[:4] for word in words(_UNSPACED.sub(r" \g<0> ", text))}


def _numbers(text: str) -> list[float]:
    """The numbers in a text: those in digits, then those in words."""
    found = [float(match["number"].replace(",", "")) for match in TOKEN.finditer(text) if match["number"]]
    return found + [_SAID[word] for word in words(text) if word in _SAID]


def _pairs(text: str, answer: Iterable[str]) -> set[tuple[str, str]]:
    """The pairs of neighbouring words, except for those with only numbers or only words of the answer."""
    said, empty = _words(text), {*answer}
    return {pair for pair in zip(said, said[1:], strict=False)
            if not empty.issuperset(pair) and not all(map(str.isdecimal, pair))}


def _words(text: str) -> list[str]:
    return [word for word in words(_UNSPACED.sub(r" \g<0> ", text)) if word not in ANNOUNCING and word not in STEPS]
