"""From clean rows to splits: `deal` by hash, weight and length, `decontaminate` the training rows.

A domain's share is the sum of its sources' weights, or what the recipe's [balance] says. What a source lacks, the
others of its domain give, and then other domains. Which rows are taken depends on the seed alone.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping

from reasonkit.data.filters import Ledger, Row, contaminated
from reasonkit.data.problems import SPLITS, DataRecipe, split_of
from reasonkit.data.screening import OPEN, question_key


def deal(recipe: DataRecipe, rows: list[Row], sizes: Mapping[str, int], seed: int,
         ledger: Ledger) -> dict[str, list[Row]]:
    """The rows of each split: by the hash of the group or question, without training rows that the other splits ask,
    of each domain and source its share, and not too many long ones in training."""
    uses = {source.name: source.use for source in recipe.sources}
    pools: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        use = uses[row["source"]]
        key = f"{row['source']}:{row['group']}" if row["group"] else question_key(row["question"])
        pools["train" if row["kind"] == OPEN else split_of(key, recipe.split) if use == "any" else use].append(row)
    rng = random.Random(seed)
    dealt = {}
    for name in reversed(SPLITS):
        pool = pools[name]
        if name == "train":
            pool = decontaminate(pool, [row for part in dealt.values() for row in part], ledger)
            pool = _limit_long(recipe, pool, sizes.get(name, 0), seed, ledger)
        dealt[name] = _share(recipe, pool, sizes.get(name, 0), seed)
        rng.shuffle(dealt[name])
        ledger.steps.append((f"dealt to {name}", len(pool), len(dealt[name])))
        if recipe.balance.domains and name in sizes:
            asked, found = (Counter(row["domain"] for row in some) for some in (pool, dealt[name]))
            ledger.notes.append(f"{name}, balanced by domain: " + ", ".join(
                f"{domain} {found[domain]} of {count}" for domain, count in sorted(asked.items())))
    return {name: dealt[name] for name in SPLITS if name in sizes}


def _share(recipe: DataRecipe, pool: list[Row], total: int, seed: int) -> list[Row]:
    """`total` rows: of each domain its share, and in it of each source its share by weight, at most its cap. The order
    in which a source's rows are taken depends on their ids, so it stays where a row is left out."""
    sources = {source.name: source for source in recipe.sources}
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in pool:
        by_source[row["source"]].append(row)
    parts: dict[str, dict[str, list[Row]]] = defaultdict(dict)  # by domain and source
    weights: dict[str, dict[str, float]] = defaultdict(dict)
    for name, some in by_source.items():
        some = sorted(some, key=lambda row: random.Random(f"{seed}:{row['id']}").random())[:sources[name].cap]
        for domain, count in Counter(row["domain"] for row in some).items():
            parts[domain][name] = [row for row in some if row["domain"] == domain]
            weights[domain][name] = sources[name].weight * count / len(some)
    shares = {domain: recipe.balance.domains.get(domain, sum(weights[domain].values())) for domain in parts}
    counts = share_out({domain: sum(map(len, parts[domain].values())) for domain in parts}, shares, total)
    return [row for domain, count in counts.items()
            for name, part in share_out({name: len(some) for name, some in parts[domain].items()}, weights[domain],
                                        count).items()
            for row in parts[domain][name][:part]]


def share_out(available: Mapping[str, int], weights: Mapping[str, float], total: int) -> dict[str, int]:
    """How many rows each gives: by weight, none more than it has. What one lacks, the others give.

    >>> share_out({"a": 10, "b": 100, "c": 100}, {"a": 1, "b": 1, "c": 2}, 100)
    {'a': 10, 'b': 30, 'c': 60}
    """
    counts = dict.fromkeys(available, 0)
    open_ones = sorted(available, key=lambda name: available[name] / weights[name])  # those that run out come first
    for place, name in enumerate(open_ones):
        left = total - sum(counts.values())
        weight = sum(weights[other] for other in open_ones[place:])
        counts[name] = min(available[name], round(left * weights[name] / weight))
    return counts


def _limit_long(recipe: DataRecipe, pool: list[Row], total: int, seed: int, ledger: Ledger) -> list[Row]:
    """The training rows without the long ones beyond the recipe's share of the worked rows. Others take their places,
    so the share is that of the rows that are dealt."""
    most, limit = recipe.balance.long, recipe.balance.words
    if most is None or most == 1:
        return pool
    words = {row["id"]: len(row["reasoning"].split()) for row in pool}
    long = [row["id"] for row in _share(recipe, pool, total, seed) if words[row["id"]] >= limit]
    kept = set(long)
    for _ in range(3):  # fewer long rows make room for short ones, which allow some more: the third number holds
        rest = [row for row in pool if words[row["id"]] < limit or row["id"] in kept]
        short = sum(0 < words[row["id"]] < limit for row in _share(recipe, rest, total, seed))
        kept = set(long[:int(most * short / (1 - most) + 1e-9)])
    return ledger.keep("balance by length", pool, lambda number, row: (
        (f"long, beyond {most:.0%}", f"{words[row['id']]} words: {row['question']}")
        if words[row["id"]] >= limit and row["id"] not in kept else None))


def decontaminate(train: list[Row], others: list[Row], ledger: Ledger) -> list[Row]:
    """The training rows that share no 13 words in a row with a question of another split. Rows that a program made
    are not compared, because their templates are shared."""
    asked = [_stem(row) for row in others if "made" not in row]
    hits = contaminated(["" if "made" in row else _stem(row) for row in train], asked)
    return ledger.keep("decontamination", train, lambda number, row: (
        ("13 words of a test question", f"{asked[hits[number]][:80]} | {_stem(row)[:80]}")
        if number in hits and "made" not in row else None))


def _stem(row: Row) -> str:
    """The question without its options, because many questions share "True, True", "True, False" and so on."""
    return row["question"].split("\n(A) ")[0]
