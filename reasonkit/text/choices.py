"""Reads the letter of a choice, and yes or no. An option's text or a reason may follow.

Entry points: `read_choice` and `same_choice`, and `read_yes_no`. What follows must not offer a second letter, deny the
answer or doubt it, because a policy that earns credit for two answers learns to hedge. Surprise: the option's text
"Both A and B" offers no second letter, and the reason "there are no leftovers" denies nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reasonkit.text.hedges import HEDGES, LINKS, NEUTRAL, is_doubt, only_links, strip_signs
from reasonkit.text.numbers import Number, read_number
from reasonkit.text.words import Text, read_text, same_text

_LABEL = re.compile(
    r"(?:(?:the\s+)?(?:(?:correct|right|best|final|my)\s+)?(?:answer\s+)?(?:option|choice|ans(?:wer|\.)?|letter)"
    r"(?:\s+is\b|\s*[:=]|\s+-)?|it(?:'s|\s+is)|i(?:'d|\s+would)?\s+(?:choose|pick|select|go\s+with))"
    r"\s*(?=[(\[{]?\s?[A-Za-z]\b)", re.IGNORECASE)
_SAID = re.compile(
    r"([(\[]?[A-Za-z][)\]]?)\s+is\s+(?:the\s+)?(?:correct|right|best)(?:\s+(?:answer|option|choice|one))?\W*",
    re.IGNORECASE)
_CHOICE = re.compile(
    r"(?s)(?:[(\[{<]\s?(?P<inner>[A-Za-z])\s?[)\]}>]|(?P<bare>[A-Za-z]))"
    r"(?:[\s).:,;!]*|(?:[).:]+\s*|(?:[).:]|\s)?\s*(?:—|--?\s|[|=]\s)\s*|(?<=[)\]}>])(?:\s+|(?=[A-Z][a-z])))(?P<text>\S.*)"
    r"|(?P<weak>[).:]?\s*[,;\n]\s*|\s+)(?P<rest>\S.*))")
_AFTER = re.compile(r"(?s)(.+?)\s\(([A-Za-z])\)")
_LETTER = r"\(?[A-Z]\)?"
# Letters joined within the text of one option: "Both (A) and (B)", "Hepatitis A, B or C".
_JOINED = re.compile(
    rf"(?<![\w(]){_LETTER}(?:(?:\s?,\s?(?:and|or)\s|\s?[,&/]\s?|\s(?:and|or|nor|&)\s){_LETTER}(?!\w))+")
_ANOTHER = re.compile(
    r"\A\W*[A-Za-z]\W*\Z"                                                # B. C.
    r"|(?<![\w(])\(?[A-Za-z]\)(?!\w)"                                    # B) Paris, C) Rome
    r"|(?:[,;\n]|\s(?:and|or|[/|]))\s*[A-HJ-Z](?:\.|\s-)\s"               # B. Paris, C. Rome
    r"|(?:[,;(.]|\b(?:but|and|though))\s*[A-HJ-Z]\s(?:is|seems|looks|(?:could|may|might|would)\sbe)\salso\b"
    r"|(?:\A|\s)[A-HJ-Z]:\s"                                             # B: Paris C: Rome
    r"|(?i:\b(?:wait|then|no|oops|sorry|hmm|instead))\W+[A-HJ-Z]\W*\Z"
    r"|(?i:\b(?:or|and|maybe|perhaps|possibly|probably|actually|rather|either|also|alternatively))\W+[A-HJ-Z]\b")
# What begins a second answer or a doubt about the first, but rarely an option's own text.
_OPENS_ANOTHER = re.compile(
    r"(?:(?:(?:and|but)[^\w\s])?or|or[^\w\s]and"                        # and/or
    r"|vs|versus|xor|alternatively|otherwise|else|oops|actually|hmm?|um|uh|err?|unless|nope|nah|oder|ou|или|aka"
    r"|maybe|perhaps|possibly|probably|dunno|idk|approx"
    r"|and|but|also|i meant?|i also|my (?:bad|other|second)|make (?:that|it)|on second thoughts?|failing that|no wait"
    r"|as well as|if not|changed? to|another option|as an alternative|then again|the answer is"
    r"|(?:although |though )?(?:it )?(?:could|may|might|should|would) (?:also )?be)(?!\S)")
# A part that is one of these phrases is not an option's text either.
_IS_DOUBT = re.compile(
    r"(?:not (?:so )?sure|who knows|(?:just )?a guess|in your dreams|as if|forget it|please check"
    r"|low confidence|something like that|not really|(?:sort|kind) of|roughly|approximately|apparently"
    r"|seemingly|hopefully|allegedly|tentatively|[a-h] is also (?:right|correct|possible))")
# Words that an option's text rarely has: "I think", "scratch that", "never mind".
_SPEAKER = frozenset("i my mine that this mind".split())
_SIGN_BEFORE_WORD = re.compile(r"\s*(?:[/&|→⇒≠∨]|->|=>|!=)+\s*[^\W\d]")
_CONTRAST = frozenset("not than opposed unlike nor".split())  # A, not B
_LETTERS = frozenset("ABCDEFGH")  # a later letter, such as I, is a word
_PARTS_OF_TEXT = re.compile(r"[,;:!\n()\[\]{}—…]+|\.{2,}|(?<!\b[A-H])\.(?=\s|\Z)|\s-+\s")  # "E. coli" is one part


@dataclass(frozen=True, slots=True)
class Choice:
    """`letter` is in upper case, `text` is the option's text after it, and `whole` is the whole answer as text. `sure`
    tells that the letter is meant as a choice and is the only one."""

    letter: str | None
    text: Number | Text | None
    whole: Number | Text | None
    sure: bool

    def __str__(self) -> str:
        return self.letter if self.letter and self.sure else str(self.whole)


def read_choice(text: str) -> Choice | None:
    """Read "B", "(B)", "B.", "B) its text" or only an option's text. None for other text."""
    whole = _option(text)
    label = _LABEL.match(text)
    text = text[label.end():] if label else text
    said = _SAID.fullmatch(text)
    match = _CHOICE.fullmatch(said[1] if said else text)
    if match is None:
        after = _AFTER.fullmatch(text)
        letter, rest = (after[2].upper(), _option(after[1])) if after else (None, None)
        return Choice(letter, rest, whole, False) if whole else None
    letter, rest = (match["inner"] or match["bare"]).upper(), match["text"] or match["rest"] or ""
    offered = _JOINED.sub("them", rest) if match["text"] else rest
    sure = not (_ANOTHER.search(offered) or _opens_another(offered, match["text"] is not None))
    if match["rest"]:
        sure = sure and bool(match["weak"].strip() or "\n" in match["weak"]) and not _doubtful(rest)
    return Choice(letter, _option(rest), whole, sure)


def read_gold_choice(text: str) -> Choice | None:
    """Read a gold answer. None if its letter is not clear."""
    choice = read_choice(text)
    plain = choice and choice.letter and (choice.sure or _CHOICE.fullmatch(text) and _CHOICE.fullmatch(text)["text"])
    return choice if plain else None


def same_choice(found: Choice, expected: Choice) -> bool:
    """Compare the letters. If the answer has no sure letter, compare it with the text of the gold answer's option."""
    if found.letter == expected.letter and (found.sure or _same_option(found.text, expected.text)):
        return True
    return not found.sure and _same_option(found.whole, expected.text)


def _option(text: str) -> Number | Text | None:
    return read_number(text, prose=True) or read_text(text)


def _same_option(found: Number | Text | None, expected: Number | Text | None) -> bool:
    if isinstance(found, Text) and isinstance(expected, Text):
        return same_text(found, expected)
    return found is not None and found == expected


def _opens_another(text: str, option: bool) -> bool:
    """Whether the text after a letter offers another answer ("or", "on second thought B"), or has a part that is only a
    doubt ("I think"). The text of an option may itself be a doubt: "not possible"."""
    if _SIGN_BEFORE_WORD.match(text):
        return True
    parts = [words for words in map(strip_signs, map(str.split, _PARTS_OF_TEXT.split(text))) if words]
    for number, words in enumerate(parts):
        lower = [word.casefold() for word in words]
        phrase = " ".join(lower)
        if _IS_DOUBT.fullmatch(phrase) or not number and _OPENS_ANOTHER.match(phrase):
            return True
        if number and (lower == ["not"] or len(words) == 1 and words[0] in _LETTERS):
            return True
        text_itself = option and not number and not (parts[1:] and len(words) == 1) and _SPEAKER.isdisjoint(lower)
        if is_doubt(lower) and not text_itself:
            return True
        letters = [at for at, word in enumerate(words) if at and word in _LETTERS]
        if letters and _CONTRAST.isdisjoint(lower[:letters[-1]]) and only_links(lower[:letters[-1]]) and (
                not set(lower[letters[-1] + 1:]) - NEUTRAL - LINKS - HEDGES):
            return True
    return False


def _doubtful(rest: str) -> bool:
    words = re.findall(r"\w+", rest.casefold())
    return (words[:1] in ([], ["or"], ["and"], ["but"], ["not"], ["no"]) or _DOUBTS.search(rest.casefold())
            or re.match(r"\W*[A-HJ-Z]\b(?!')", rest) is not None)


_YES_NO = re.compile(
    r"(?s)(yes|true|no|false)(?:(?:[.,;:!\n—(]|\s[—(-]|\s(?=(?:because|since|it|they|there|this|that|these|"
    r"indeed|definitely|absolutely|certainly|of course|way\W*\Z)(?!\w)))(.*))?")
_CLAUSE = re.compile(r"[.,;:!\n()—]+|\s-+\s|\s(?:but|or|then|because|since)\s")
_OPENERS = frozenset("or and but well wait actually hmm oh sorry rather then so also ok okay".split())
_DENIALS = {"yes": frozenset("no nope nah naw false incorrect never not wrong".split()),
            "no": frozenset("yes yep yeah yup true correct right affirmative".split())}
_STATED = frozenset("it he she they we that this these those there".split())  # they begin a reason: "it is possible"
_OF_ANSWERS = frozenset("guess estimate unsure retracted withdrawn".split())
_DOUBTS = re.compile(
    r"\b(?:maybe|perhaps|probably|possibly|presumably|supposedly|arguably|unsure|uncertain|unclear|more or less)\b"
    r"|\bi(?: would|'d)? (?:think|guess|suppose|believe|reckon|assume|say|feel|imagine|suspect|presume|expect|hope)\b"
    r"|\bi(?:'m| am) (?:leaning|inclined|tempted|hesitant)\b|\bto guess\b|\bguessing\b|\bwho knows\b"
    r"|\b(?:my best|educated|wild|just a|only a) guess\b|\A\W*best guess\b|\bas far as i\b"
    r"|\b(?:don't|do not|can't|cannot|hard to) (?:know|say|tell|quote me|be (?:sure|certain))\b"
    r"|\bto (?:the best of )?my knowledge\b|\bin all (?:likelihood|probability)\b|\bgrain of salt\b"
    r"|(?:(?:\bnot|n't)(?: [\w%]+){0,2}|\b(?:fairly|pretty|quite|almost|reasonably|somewhat)|[0-9]%)"
    r" (?:sure|certain|confident)\b"
    r"|\bi (?:could|may|might) be (?:wrong|mistaken)\b|\bassuming i\b"
    r"|\b(?:if|unless) i(?:(?:'m| am) (?:not )?(?:wrong|mistaken|right|correct|reading)"
    r"| (?:recall|remember|understand|understood|read))\b"
    r"|\bwith (?:some|slight|a (?:little|bit of)) (?:doubts?|uncertainty|hesitation)\b|\bsubject to change\b"
    r"|\b(?:low confidence|please check|as if|and (?:more|so on))\W*\Z|\bin your dreams\b|\bunder protest\b"
    r"|\bor (?:no|not|false|true|yes|so|more|less|fewer|other|another)\b\W*\Z|\bor thereabouts\b|\bgive or take\b"
    r"|\bsomething like that\b|\bseems like it\b|\bn/a\b|\b50[/-]50\b|\bfifty[- ]fifty\b|\bif correct\b"
    r"|\bon the other hand\b|\bfailing that\b|\bto be (?:confirmed|checked)\b|\bcrossed out\b")
_DOUBTFUL_CLAUSE = re.compile(
    r"(?:(?:most|very|quite|more|not|only|just|at least|rather) )?(?:(?:un)?likely|apparently|seemingly|hopefully"
    r"|potentially|conceivably|plausibly|tentatively|reportedly|allegedly|ostensibly|roughly|approximately|virtually"
    r"|technically|theoretically|practically|nearly|almost|sometimes|usually|often|occasionally|rarely|generally"
    r"|typically|normally|largely|mainly|partly|partially|mostly|somewhat|debatable|doubtful)"
    r"(?: so| not| correct| true)?"
    r"|(?:it )?seems(?: so| not| likely| to be)?|(?:it )?(?:all )?depend(?:s|ing).*"
    r"|(?:it )?(?:might|could|may)(?: be)?(?: so)?|(?:should|would) be|(?:kind|sort) of|from memory"
    r"|with (?:caution|reservations)"
    r"|(?:only )?(?:in|under|for) (?:a way|a sense|part|theory|principle|(?:some|most|many|certain|a few) \w+)"
    r"|to (?:some|a certain|a large|a great) (?:extent|degree)|or (?:no|not).*"
    r"|(?:there's|there is) an? (?:\w+ )?(?:chance|possibility|doubt)"
    r"|not (?:really|exactly|quite|necessarily|always|entirely|completely|fully)"
    r"|(?:it|this|that|which|the answer)(?: is not|'s not| isn't) (?P<denied>true|correct|right|so|the case)"
    r"|(?:is|isn't|are|aren't|was|wasn't|do|don't|does|doesn't) (?:it|that|this|they)"
    r"|not (?P<denial>true|so|at all|correct|right|yes|a chance|the answer)"
    r"|(?:no|yes) (?:it|that|this|they|he|she|i|we|you|wait|actually|idea|way|chance|not|the|a|sir|is|sorry)\b.*"
    r"|(?:it|this|that|which|the answer|answer)(?:'s| is) (?P<said>no|false|yes|true|wrong|right|correct|incorrect)"
    r"|(?:it|this|that|they|there|he|she|we|i) (?P<verb>is|are|was|were|does|do|did|has|have|can|could|will|would)"
    r"(?P<negated>n't| not)?")


def read_yes_no(text: str) -> str | None:
    """Read yes, no, true or false as "yes" or "no". What follows may explain it, but must not deny or doubt it."""
    match = _YES_NO.fullmatch(text.casefold())
    if match is None:
        return None
    value = "yes" if match[1] in ("yes", "true") else "no"
    rest = match[2] or ""
    clauses = (strip_signs(clause.split()) for clause in _CLAUSE.split(rest))
    return None if _DOUBTS.search(rest) or any(_takes_back(words, value) for words in clauses) else value


def _takes_back(words: list[str], value: str) -> bool:
    """Whether a clause withdraws or doubts the value. It may be or end with its opposite, or say "not really"."""
    said = words
    while words and words[0] in _OPENERS and words[:2] not in (["or", "no"], ["or", "not"]):
        words = words[1:]
    if not words:
        return not HEDGES.isdisjoint(said)
    denials = _DENIALS[value]
    doubts = [word for word in words if word not in _DENIALS["no" if value == "yes" else "yes"]]  # "that is right"
    if words[0] in _STATED and _OF_ANSWERS.isdisjoint(words):
        doubts = []
    if _CONTRAST.isdisjoint(words[:-1]) and (is_doubt(doubts) or words[-1] in denials and only_links(words[:-1])):
        return True
    opposite = denials.issuperset(words) and (words[0] != "not" or len(words) == 1)  # "not false" is yes
    if opposite or words[-1] in (("no", "nope") if value == "yes" else ("yes", "yep", "yeah")):
        return True
    match = _DOUBTFUL_CLAUSE.fullmatch(" ".join(words))
    if match is None:
        return False
    if match["said"]:
        return match["said"] in denials
    if match["denied"] or match["denial"]:
        return value == "yes"
    if match["verb"]:
        return bool(match["negated"]) == (value == "yes")
    return words[0] != value
