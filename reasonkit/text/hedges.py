"""The words and signs with which an answer offers a second answer, doubts itself or is withdrawn.

Entry points: `is_withdrawn`, for any kind of answer, and the word sets, for readers that allow words after the answer.
The sets hold closed classes of English (conjunctions, pronouns, auxiliaries, numerals) and words about answers. Names
of things are not in them, so "5 apples" and "Vitamin D" are not hedges.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEGATIONS = _words("no not nope nah nay never none isn't aren't wasn't")
# Words that link two answers, or an answer and a condition, in any position: conjunctions, and adverbs used as such.
# Signs written as words. "Or", "but" and "no" in other languages that answers come in.
_JOINS = _NEGATIONS | _words(
    "or and nor xor vs versus aka alias but yet though although however unless except if whether when while than "
    "else otherwise alternatively instead rather either neither both then also plus minus equals equiv "
    "oder ou или aber mais pero però sondern sino doch nein non нет но")
# Words that link them unless a noun comes first: "20 is wrong", but "5 apples are left". Auxiliaries and pronouns open
# a statement about the answer. Verbs of saying and changing, words that order answers ("my second choice"),
# prepositions and adverbs lead to another answer.
LINKS = _JOINS | _words(
    "is are was were be been am it's that's do does did has have had can could may might must shall should will would "
    "i i'm i'd i'll i've me my we you your he she it its this that these those they who which what whichever "
    "say said thought mean meant make made fix let changed considered another second earlier now "
    "equal still again besides between through until to upto so well yes yep yeah")
# Words that doubt, deny or withdraw. Adverbs in -ly ("possibly", "roughly") need no list: see `_is_adverb`.
HEDGES = _words(
    # How sure or how close. An answer is exact and needs none of them.
    "maybe perhaps unsure uncertain unclear probable likely unlikely possible possibility approx about around circa ca "
    "almost ish unknown undetermined doubtful questionable debatable provisional tentative ballpark minimum maximum "
    "least most sometimes similar something whatever etc confidence "
    # Verbs of opinion, of seeming and of guessing.
    "might could seems seem depends depending think believe suppose reckon assume suspect imagine hope feel know idea "
    "guess guessing guessed knows dunno idk estimate estimated estimation unverified unconfirmed unproven verify "
    # Judgements of an answer about itself, withdrawals, replacements, and interjections that announce them.
    "wrong incorrect false untrue invalid fake bad mistake mistaken typo lie lying joke joking kidding withdraw "
    "withdrawn retract retracted reject rejected deleted denied crossed struck void scratch scrap strike ignore "
    "disregard forget nevermind mind correct correction corrected right edit edited update updated revise revised "
    "revision rephrase backup fallback alternative alternate placeholder tbd todo tba sorry oops whoops wait hmm hm "
    "err er um uh erm please lol jk psych "
    # "Perhaps" and "about" in other languages.
    "vielleicht peut-être quizás talvez forse возможно ungefähr environ aproximadamente примерно")
# Articles, prepositions, adjectives and words for an answer. They may come between the words above, and by themselves
# they link nothing.
NEUTRAL = _words("a an the of in on at for with from by as per each every other very just only even too up "
                 "first last final new old good best next 1st 2nd 3rd plan option choice answer letter")
NUMBER_WORDS = dict(zip(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety".split(),
    (*range(20), *range(20, 100, 10)), strict=True))
NUMERALS = NUMBER_WORDS.keys() | _words("nought naught nil")
# Words above that may describe what is counted: "3 wrong answers". Any word in -ed may, too.
_ADJECTIVES = _words("right wrong incorrect correct false invalid fake similar unknown possible probable likely "
                     "unlikely bad alternative alternate mistaken most least")
# Words above that may be what is counted: "1 typo".
_COUNTED = _words("mistake idea typo lie joke alternative strike edit update correction revision possibility")
_AFFIRMATIONS = _words("right correct true")  # "this is the right answer"
_DOUBTING_ADVERBS = ("bly", "edly", "ingly")  # "probably", "supposedly", "seemingly", but not "lonely people"
_PLURALS = ("s", "people", "men", "children", "geese", "mice", "feet", "teeth", "fish", "sheep")
# Words in -ly that are nouns, adjectives of time, or adverbs that express no doubt.
_NO_ADVERBS = _words(
    "family assembly supply butterfly dragonfly jelly italy belly reply monopoly anomaly bully "
    "daily weekly monthly yearly hourly quarterly annually evenly exactly precisely")

_SIGNS = re.compile(r"\A[\W_]+|[\W_]+\Z")
_ASKED = re.compile(r"[?¿؟？‽⁇⁈⁉❓❔]")
_STRUCK = re.compile(
    r"(?<!~)~~(?=[^\s~])[^~]*~~(?!~)|(?<![\w~}{\\])~(?=[^\s~])[^~\n]*[^\s~]~(?![\w~\\{])"
    r"|<\s*(?:s|del|strike)\b[^<>]*>|line-through|\[/(?:s|del|strike)\]"
    r"|\\(?:[bxh]?cancel(?:to)?|x?sout|st|strikeout|xout)(?![A-Za-z])|\\enclose\s*\{[^{}]*strike"
    r"|[\u0335-\u0338\u20d2\u20d3\u20d8-\u20da\u20e5\u20e6\u20ea\u20eb]", re.IGNORECASE)


def is_withdrawn(answer: str, gold: str) -> bool:
    """Whether the answer, unlike the gold, asks a question or strikes out text in Markdown, HTML, LaTeX or Unicode."""
    if _ASKED.search(answer) and not _ASKED.search(gold):
        return True
    answer = answer if answer.isascii() else unicodedata.normalize("NFC", answer)  # ≠ is = with a stroke
    return _STRUCK.search(answer) is not None and not _STRUCK.search(gold)


def strip_signs(words: Iterable[str]) -> list[str]:
    """The words without the signs around them. A word of only signs is dropped."""
    return [word for word in (_SIGNS.sub("", word) for word in words) if word]


def has_hedge(words: Sequence[str], singular: bool = False) -> bool:
    """Whether one of the words after a number links, doubts or counts, and so cannot belong to a unit.

    A word before a plural may describe it ("3 wrong answers"), and a statement may follow it ("5 apples are left").
    With `singular`, after the number 1, the same is true of a singular.
    """
    counted = _COUNTED if singular else frozenset()
    words = [word.casefold().replace("’", "'") for word in words]
    plural = max((at for at, word in enumerate(words) if word in counted or not _links(word) and (
        word.endswith(_PLURALS) or singular and at == len(words) - 1)), default=0)
    for at, word in enumerate(words):
        if word in counted:
            continue
        if word in _JOINS or word in NUMERALS or _is_adverb(word) and (
                at >= plural or word.endswith(_DOUBTING_ADVERBS)):
            return True
        if word in HEDGES and not (at < plural and (word in _ADJECTIVES or word.endswith("ed"))):
            return True
        if word in LINKS and at >= plural and (not at or _links(words[0])):
            return True
    return False


def only_links(words: Sequence[str]) -> bool:
    """Whether lower-case words only lead to what comes next, and at least one of them links."""
    return all(word in NEUTRAL or _links(word) for word in words) and any(map(_links, words))


def is_doubt(words: Sequence[str]) -> bool:
    """Whether lower-case words express only a doubt or a denial."""
    if _NEGATIONS.isdisjoint(words):
        words = [word for word in words if word not in _AFFIRMATIONS]
    return only_links(words) and any(word in HEDGES for word in words)


def _links(word: str) -> bool:
    return word in LINKS or word in HEDGES or _is_adverb(word)


def _is_adverb(word: str) -> bool:
    return word.endswith("ly") and len(word) > 4 and word not in _NO_ADVERBS
