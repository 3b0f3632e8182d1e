#!/usr/bin/env bash
# The threshold of rensa's RMinHashLSH does not change what `query` returns.
#
# Guess:     as in datasketch, a higher threshold returns fewer and nearer texts, because it chooses the bands. At 0.95
#            nearly everything of similarity 0.7 is left out, and at 0.1 texts of similarity 0.3 are found.
# Versions:  rensa 0.5.0, Python 3.11.
# Behaviour: only `num_bands` decides. With 16 bands of 8 rows each, three thresholds return the same candidates: all of
#            similarity 0.9, most of 0.7, one of 0.5 and none of 0.3. Only `is_similar` reads the threshold. So
#            deduplication by `query` alone drops texts far below a high threshold, and misses those above a low one.
# Output:    threshold 0.1: {0.5: 1, 0.7: 23, 0.9: 25} of 25 each
#            threshold 0.5: {0.5: 1, 0.7: 23, 0.9: 25} of 25 each
#            threshold 0.95: {0.5: 1, 0.7: 23, 0.9: 25} of 25 each
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rensa==0.5.0
"$folder/venv/bin/python" - <<'PYTHON'
from collections import Counter

from rensa import RMinHash, RMinHashLSH

WORDS, COPIES = 100, 25


def signature(words):
    found = RMinHash(num_perm=128, seed=1)
    found.update(words)
    return found


def near(similarity, copy):
    """A text whose words have this Jaccard similarity to the base's: shared / (2 * WORDS - shared)."""
    shared = round(2 * WORDS * similarity / (1 + similarity))
    return [f"word {n}" for n in range(shared)] + [f"other {similarity} {copy} {n}" for n in range(WORDS - shared)]


def found(threshold):
    index, similarities = RMinHashLSH(threshold=threshold, num_perm=128, num_bands=16), []
    for similarity in (0.3, 0.5, 0.7, 0.9):
        for copy in range(COPIES):
            index.insert(len(similarities), signature(near(similarity, copy)))
            similarities.append(similarity)
    return dict(sorted(Counter(similarities[key] for key in index.query(signature(near(1.0, 0)))).items()))


for threshold in (0.1, 0.5, 0.95):
    print(f"threshold {threshold}: {found(threshold)} of {COPIES} each")
    assert found(threshold) == found(0.5)
low, high = (RMinHashLSH(threshold=threshold, num_perm=128, num_bands=16) for threshold in (0.5, 0.95))
pair = signature(near(1.0, 0)), signature(near(0.7, 0))
assert low.is_similar(*pair) and not high.is_similar(*pair)
PYTHON
