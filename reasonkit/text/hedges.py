"""The words and signs by which an answer offers a second one, doubts itself or is taken back.

Entry points: `is_withdrawn`, for struck-out text and questions in any kind of answer, and the sets of words, for the
readers that allow words beside the answer. They are closed classes of English (conjunctions, pronouns, auxiliaries,
numerals) and what is said of answers; a noun is in none, so "5 apples" and "Vitamin D" stay what they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence


def _words(*classes: str) -> frozenset[str]:
    return frozenset(" ".join(classes).split())


# What links an answer with a second one or with a doubt.
LINKS = _words(
    # Conjunctions, and adverbs and prepositions that serve as such: they open another answer or a condition.
    "or and nor xor vs versus aka alias but yet though although however still unless except if whether when while than "
    "else otherwise alternatively instead rather either neither both then again also besides plus minus between "
    "through until to upto so well",
    # Auxiliaries: they open a statement about the answer.
    "is are was were be been am isn't aren't wasn't it's that's do does did has have had can could may might must "
    "shall should will would",
    # Pronouns: so does the speaker, or what speaks of the answer.
    "i i'm i'd i'll me my mine we you your he she it its this that these those they who which what whichever",
    # Negations and affirmations: they take back one answer, or say another.
    "no not nope nah never none yes yep yeah",
    # Verbs of saying and changing, and the order of answers: "make that", "my second choice".
    "say said mean meant make made fix let change changed considered another second secondly previously formerly "
    "earlier now",
    # Signs in words: an equation has two sides.
    "equals equal equiv",
    # "Or", "but" and "no" of the languages that answers come in besides English.
    "oder ou или aber mais pero però sondern sino doch nein non нет но")
# What doubts, denies or withdraws. Adverbs in -ly ("possibly", "roughly") need no list: see `is_adverb`.
HEDGES = _words(
    # How sure or how near: no answer needs them, as its value is exact.
    "maybe perhaps unsure uncertain unclear probable likely unlikely possible possibility approx about around circa ca "
    "almost ish unknown undetermined doubtful questionable debatable provisional tentative ballpark minimum maximum "
    "least most sometimes similar something whatever etc confidence",
    # Verbs of opinion, of seeming and of guessing.
    "might could seems seem depends depending think believe suppose reckon assume suspect imagine hope feel know idea "
    "guess guessing guessed dunno idk estimate estimated estimation unverified unconfirmed unproven verify",
    # Judgements that an answer passes on itself.
    "wrong incorrect false untrue invalid fake bad mistake mistaken typo lie lying joke joking kidding",
    # Withdrawals and replacements.
    "withdraw withdrawn retract retracted reject rejected denied crossed scratch strike ignore disregard forget "
    "nevermind mind correct correction corrected right edit edited update updated revise revised revision rephrase "
    "backup fallback alternative alternate placeholder tbd todo tba",
    # Interjections, which announce them.
    "sorry oops whoops wait hmm hm err er um uh erm please lol jk",
    # "Perhaps" and "about" of other languages.
    "vielleicht peut-être quizás talvez forse возможно ungefähr environ aproximadamente примерно")
# Articles, prepositions, adjectives and names of an answer: they may stand between the words above, and mean nothing by
# themselves.
NEUTRAL = _words("a an the of in on at for with from by as per each every other very just only even too up "
                 "first last final new old good best next 1st 2nd 3rd plan option choice answer letter")
NUMERALS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety nought naught nil")
# Of the words above, those that may describe what is counted: "3 wrong answers".
_ADJECTIVES = _words("right wrong incorrect correct false invalid fake equal similar unknown possible probable likely "
                     "unlikely bad estimated alternative alternate rejected mistaken earlier considered")
# Words in -ly that are nouns, adjectives of time, or adverbs without doubt.
_NO_ADVERBS = _words(
    "family assembly supply fly butterfly dragonfly jelly july italy lily belly reply monopoly anomaly bully ally "
    "daily weekly monthly yearly hourly quarterly annually evenly exactly precisely only")

_SIGNS = re.compile(r"\A[\W_]+|[\W_]+\Z")
_ASKED = re.compile(r"[?¿؟？‽⁇⁈⁉❓❔]")
_STRUCK = re.compile(
    r"(?<!~)~~(?=[^\s~])[^~]*~~(?!~)|(?<![\w~}{\\])~(?=[^\s~])[^~\n]*[^\s~]~(?![\w~\\{])"
    r"|<\s*(?:s|del|strike)\b[^<>]*>|line-through|\[/(?:s|del|strike)\]"
    r"|\\(?:[bxh]?cancel(?:to)?|x?sout|st|strikeout|xout)(?![A-Za-z])\s*\{|\\enclose\s*\{[^{}]*strike"
    r"|[\u0335-\u0338\u20d2\u20d3\u20d8-\u20da\u20e5\u20e6\u20ea\u20eb]", re.IGNORECASE)


def is_withdrawn(answer: str, gold: str) -> bool:
    """Whether an answer asks back, or has text struck out in Markdown, HTML, LaTeX or Unicode, as the gold has not."""
    if _ASKED.search(answer) and not _ASKED.search(gold):
        return True
    answer = answer if answer.isascii() else unicodedata.normalize("NFC", answer)  # ≠ is = with a stroke
    return _STRUCK.search(answer) is not None and not _STRUCK.search(gold)


def bare(words: Iterable[str]) -> list[str]:
    """Words without the signs around them, and no signs alone."""
    return [word for word in (_SIGNS.sub("", word) for word in words) if word]


def changes(word: str, after: str = "") -> bool:
    """Whether a word beside a number is none of its unit's: it links, doubts or counts, or is such an adverb. An
    adjective before a plural is the noun's: "3 wrong answers"."""
    word = word.casefold().replace("’", "'")
    if word in _ADJECTIVES and after.casefold().endswith(("s", "people", "men", "children")):
        return False
    return word in LINKS or word in HEDGES or word in NUMERALS or is_adverb(word)


def is_adverb(word: str) -> bool:
    return word.endswith("ly") and len(word) > 4 and word not in _NO_ADVERBS


def only_links(words: Sequence[str]) -> bool:
    """Whether lower-case words only lead over to what comes next, and one of them more than in passing."""
    return all(word in NEUTRAL or _links(word) for word in words) and any(map(_links, words))


def is_doubt(words: Sequence[str]) -> bool:
    """Whether lower-case words say nothing but a doubt or a denial."""
    return only_links(words) and any(word in HEDGES for word in words)


def _links(word: str) -> bool:
    return word in LINKS or word in HEDGES or is_adverb(word)
