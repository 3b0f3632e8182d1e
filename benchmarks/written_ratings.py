"""The rating from 1 to 5 in a judge's generated text, and a `LocalJudge`'s function out of one that generates.

A number that may belong to the scale, a step or another rating is not a rating: no signal costs the judge one verdict,
and a wrong one would be trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from reasonkit.judge.judge import RATINGS

_END = (r"(?:(?:the|an?|very)\s+)*+(?:best|worst|highest|lowest|max(?:imum)?|min(?:imum)?|perfect|excellent|good|poor|"
        r"bad|terrible|(?:not|fully)\s+(?:at\s+all\s+)?met)\b")
_SIGN = r"\s*(?:\bto\b|\bthrough\b|[-–—~…]|\.\.+)\s*"
# What is said of the scale: its ends together, or one by its meaning.
_SCALE = re.compile(
    rf"\b1{_SIGN}5\b(?![.,]?[0-9])|\b5{_SIGN}1\b(?![.,]?[0-9])|\bbetween\s+1\s+and\s+5\b|"
    r"\b1\W+2\W+3\W+4\W+(?:or\s+)?5\b|\b5[\s-]points?\s+scale\b|"
    rf"\b([15])\s*[(:,=]?\s*{_END}\W*(?:(?:\bto\b|\band\b|\bthrough\b)\W*)?(?!\1)[15]\s*[(:,=]?\s*{_END}|"
    rf"\b[1-5]\s*(?:=|\b(?:is|being|means|stands\s+for)\b)\s*{_END}", re.IGNORECASE)
_OTHER_SCALE = re.compile(
    rf"[0-9]{_SIGN}[0-9]|\bof\s+the\s+[0-9]|\b(?:out\s+of|scale\s+(?:of|to)|max[a-z]*\.?)[\s(]*(?!5\b)[0-9]|"
    r"\b(?!5\b)[0-9]+[\s-]points?\b", re.IGNORECASE)
_LIST = re.compile(r"^\s*[0-9]+[.)]\s+(?=\S)", re.MULTILINE)
_LABEL = (r"\b(?:rat(?:e[sd]?|ings?)|scor(?:e[sd]?|ing)|graded?|verdict|marks?)\b"
          r"(?:(?!-[0-9])(?:\W|_)|\b(?:is|of|as|an?|at|to|with|it|this|the|reply|response|answer|would|be|i)\b)*+")
_NUMBER = re.compile(
    rf"(?P<label>{_LABEL})?(?<![^\W_])(?<!\.)(?P<value>-?[0-9]++(?:[.,][0-9]++)?+(?:\s*+%)?+)(?![^\W_])"
    r"(?:\s*+(?:/|(?:out\s+)?of)\s*+(?P<highest>[0-9]++(?:[.,][0-9]++)?+|[a-z]++))?+", re.IGNORECASE)


def read_rating(text: str) -> int | None:
    """The rating, from 1 to 5; None where there is none, or none that is sure. Never raises on a str.

    Of several numbers count those that are called a rating; without one the number that the text begins with; else all,
    which must agree. "4/5" is 4, and a rating out of anything but 5, one between two, or another scale is none.

    >>> [read_rating(text) for text in ("4", "From 1 to 5, I rate this 4.", "4 out of 5", "8/10", "3.5", "good")]
    [4, 4, 4, None, None, None]
    """
    text = _SCALE.sub(" ", text)
    if _OTHER_SCALE.search(text):
        return None
    if len(_LIST.findall(text)) > 1:
        text = _LIST.sub(" ", text)
    numbers = list(_NUMBER.finditer(text))
    first = [number for number in numbers[:1] if not re.search(r"[^\W_]", text[:number.start()])]
    told = {(number["value"], number["highest"]) for number in
            [number for number in numbers if number["label"]] or first or numbers}
    ratings = {int(value) if re.fullmatch("[1-5]", value) and (highest or "5") in ("5", "five") else None
               for value, highest in told}
    return ratings.pop() if len(ratings) == 1 else None


def written_ratings(generate: Callable[[list[str]], list[str]]) -> Callable[[list[str]], np.ndarray]:
    """Prompts to log-probabilities (prompts, 5): all on the rating that `read_rating` finds in the generated text, and
    NaN for a text without one."""
    def rate(prompts: list[str]) -> np.ndarray:
        found = map(read_rating, generate(prompts))
        return np.array([[np.nan if rating is None else 0.0 if str(rating) == one else -1e9 for one in RATINGS]
                         for rating in found])

    return rate
