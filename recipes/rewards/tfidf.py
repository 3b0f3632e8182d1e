"""TF-IDF vectors of texts and the cosine between two of them, with scikit-learn's default formulas.

Two differences from scikit-learn: a single digit is a word, because a question's numbers often are, and a word of no
fitted text counts as one in none of them, because dropping it would make padding free. In scripts that are written
without spaces a whole clause is one word, and the cosine says little.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from reasonkit.text.words import words


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
