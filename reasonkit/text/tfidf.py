"""TF-IDF vectors of texts and the cosine between two of them, in one dictionary a text.

What it is not: a search index or a vectoriser for many texts at once. The formulas are scikit-learn's defaults, which
is the oracle of the tests. It departs from scikit-learn in two points: a word is any run of letters, digits and
underscores, a single one too, because a question's numbers are often one digit; and a word that no fitted text has is
kept, with the weight of a word in none of them, because dropping it would make padding free. In scripts written
without spaces a whole clause is one word: there the cosine says little.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of `text` in order, without case. Linear in its length.

    >>> words("Leo has 6 shells.")
    ['leo', 'has', '6', 'shells']
    """
    return _WORD.findall(text.casefold())


class TfIdf:
    """Weights of words by how few of `texts` have them: idf = ln((1 + n) / (1 + df)) + 1.

    n is the number of texts, df how many of them have the word; a text's vector is count x idf.
    Raises ValueError if the texts have no word at all.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        bags = [set(words(text)) for text in texts]
        frequencies = Counter(word for bag in bags for word in bag)
        if not frequencies:
            raise ValueError(f"{len(bags)} texts without a single word: fit on the training questions")
        self._unseen = math.log(1 + len(bags)) + 1
        self._idf = {word: self._unseen - math.log(1 + df) for word, df in frequencies.items()}

    def cosine(self, a: Iterable[str], b: Iterable[str]) -> float | None:
        """The cosine, in [0, 1], between two texts given as words; None if one of them has no words.

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
