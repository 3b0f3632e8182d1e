"""What notebook 1 shows of the data: sources, cleaning step by step, domains, token lengths against the limits, rows.

Entry points: `source_table`, `step_table`, `example_table`, `count_table`, `measure_lengths` with `length_table` and
`length_figure`, `mark_table`, `row_table`. Texts come from data sets, so all of them are escaped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from markupsafe import Markup
from matplotlib.ticker import ScalarFormatter

from reasonkit.data.filters import Ledger
from reasonkit.data.golds import Mark
from reasonkit.data.loading import Reached
from reasonkit.data.screening import completion_length, prompt_length
from reasonkit.data.sources import Source
from reasonkit.show.figures import COLOURS, Curves, block, label, plain_names, style_axes, visible
from reasonkit.show.report import Html, table
from reasonkit.text.tags import TAGS, is_blank

SHOWN = 300  # characters of an example
USES = {"any": "all splits, by hash", "train": "training", "test": "test"}
EXAMPLES = 2  # for each cause that left rows out
ROWS = 5  # rows that are shown whole
FIT = 0.95  # share of the rows that a limit should fit


def source_table(sources: Sequence[Source], reached: Mapping[str, Reached]) -> Html:
    """Every source with its licence, where it was `reached` (a file that is attached or was downloaded, the hub), or
    what to do."""
    rows = []
    for source in sources:
        found = reached.get(source.name, Reached("", "off: for its licence, write `other_licences = true`"))
        licence = Markup('<a href="{}">{}</a>').format(source.address, visible(source.licence))
        rows.append([source.name, source.domain, licence if source.address else source.licence, USES[source.use],
                     source.kind_of, source.rows or "–", source.cap or "–",
                     found.problem or f"reached: {found.where}"])
    count = sum(not found.problem for found in reached.values())
    return table(["source", "domain", "licence", "for", "from", "rows stated", "rows at most", ""], rows,
                 f"{count} of {len(rows)} sources are reached. A licence links to where it is stated.")


def step_table(ledger: Ledger) -> Html:
    """The rows before and after each step, and its most frequent causes."""
    rows = []
    for step, before, after in ledger.steps:
        causes = Counter(row.cause for row in ledger.dropped if row.step == step).most_common(4)
        rows.append([step, f"{before:,}", f"{after:,}", ", ".join(f"{cause} {count:,}" for cause, count in causes)])
    return table(["step", "rows before", "rows after", "left out because of"], rows, " ".join(ledger.notes))


def example_table(ledger: Ledger, steps: Sequence[str]) -> Html:
    """The first rows that these steps left out for each cause, with the text that decided it."""
    shown: dict[tuple[str, str], list] = defaultdict(list)
    for row in ledger.dropped:
        if row.step in steps:
            shown[row.step, row.cause].append(row)
    rows = [[step if number == 0 else "", f"{cause} ({len(found):,})" if number == 0 else "", row.id,
             row.example[:SHOWN]]
            for (step, cause), found in shown.items() for number, row in enumerate(found[:EXAMPLES])]
    return table(["step", "cause (rows)", "row", "example"], rows, "" if rows else "No row was left out.")


def values_of(rows: Dataset, column: str) -> list[str]:
    """A column. Rows of a mix without sources have no domain and no source, so their family stands for both."""
    return rows[column if column in rows.column_names else "family"]


def count_table(splits: Mapping[str, Dataset], column: str) -> Html:
    """The rows of each domain or task in each split, and how many training rows have worked steps."""
    counts = {name: Counter(values_of(rows, column)) for name, rows in splits.items()}
    train = splits["train"]
    worked = Counter(value for value, text in zip(values_of(train, column), train["reasoning"], strict=True)
                     if not is_blank(text))
    total = sum(counts.values(), Counter())
    ordered = sorted(total, key=lambda name: (-total[name], name))
    rows = [[name, *(f"{found[name]:,}" for found in counts.values()), f"{worked[name]:,}",
             f"{counts['train'][name] / max(1, len(train)):.1%}"] for name in ordered]
    rows.append(["all", *(f"{found.total():,}" for found in counts.values()), f"{worked.total():,}", ""])
    return table([column, *counts, "train, worked", "share of train"], rows, "SFT imitates worked rows. Rows without "
                 "worked steps are for GRPO and evaluation.", mark_last=True)


class Length(NamedTuple):
    """The tokens of a row's prompt and of the completion that SFT imitates, 0 if there is none."""

    domain: str
    prompt: int
    completion: int


def measure_lengths(splits: Mapping[str, Dataset], tokenizer) -> list[Length]:
    """The lengths of every row, in tokens of the policy."""
    return [Length(row.get("domain", row["family"]), prompt_length(row["question"], tokenizer),
                   completion_length(row, tokenizer)) for rows in splits.values() for row in rows]


def limit_for(lengths: Sequence[int]) -> int:
    """The smallest limit that the share `FIT` of the lengths fits."""
    return int(np.quantile(lengths, FIT, method="inverted_cdf")) if lengths else 0


def length_table(lengths: Sequence[Length], prompt: int, completion: int, together: int) -> Html:
    """How many rows exceed the limits in tokens: of `prompt`, of `completion`, and of both `together` in SFT."""
    groups = {name: [row for row in lengths if row.domain == name] for name in sorted({row.domain for row in lengths})}
    rows = []
    for name, some in [*groups.items(), ("all", list(lengths))]:
        prompts, worked = [row.prompt for row in some], [row for row in some if row.completion]
        completions = [row.completion for row in worked]
        rows.append([name, f"{len(some):,}", _share(sum(n > prompt for n in prompts), len(some)), limit_for(prompts),
                     f"{len(worked):,}", _share(sum(n > completion for n in completions), len(worked)),
                     limit_for(completions) or "–",
                     _share(sum(row.prompt + row.completion > together for row in worked), len(worked))])
    return table(["domain", "rows", f"prompt above {prompt}", f"{FIT:.0%} fit", "worked rows",
                  f"completion above {completion}", f"{FIT:.0%} fit", f"both above {together}"], rows,
                 "Tokens, counted with the policy's tokenizer. A row with a longer prompt is left out everywhere. A "
                 f"worked row with more than {together} tokens in all is left out of SFT. A longer completion is cut "
                 "off when the model generates it.", mark_last=True)


def _share(count: int, of: int) -> str:
    return f"{count:,} ({count / of:.1%})" if count else "0"


@plain_names
def length_figure(lengths: Sequence[Length], prompt: int, completion: int) -> Curves:
    """The middle 90 % of each domain's token lengths as a line, their median as a dot, and the limits."""
    domains = sorted({row.domain for row in lengths}, reverse=True)
    figure = Curves(8.4, 0.9 + 0.27 * len(domains))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, name, limit in ((left, "prompt", prompt), (right, "completion", completion)):
        for place, domain in enumerate(domains):
            some = [getattr(row, name) for row in lengths if row.domain == domain and getattr(row, name)]
            if some:
                low, middle, high = np.percentile(some, (5, 50, 95))
                axes.plot([low, high], [place, place], color=COLOURS[2], linewidth=3, alpha=0.5)
                axes.plot([middle], [place], "o", color=COLOURS[2], markersize=5)
        axes.axvline(limit, color=COLOURS[1], linewidth=1.2)
        axes.set_yticks(range(len(domains)), list(map(label, domains)), fontsize=8)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        style_axes(axes, f"{name}, limit {limit}", "tokens")
    return figure


def mark_table(marks: Sequence[Mark]) -> Html:
    """What each part of the reward gives to the gold completions, with one that earns least."""
    rows = [[mark.part, f"{mark.weight:g}" if mark.weight else "only logged", f"{mark.scored:,}",
             f"{mark.full:,} ({mark.full / mark.scored:.1%})" if mark.scored else "–",
             f"{mark.lowest:g}" if mark.scored else "–", block(mark.example) if mark.full < mark.scored else ""]
            for mark in marks]
    return table(["part", "weight", "gold completions with a value", "of them with full marks", "lowest",
                  "the lowest one"], rows, "Full marks are the best value of all, and at least 0. A part that asks the "
                 "judge has no values yet." if marks else "This recipe has no GRPO, so it has no rewards.")


def row_table(rows: Dataset) -> Html:
    """A few rows as a model sees them, from as many domains as possible, worked rows first."""
    ordered = sorted(rows, key=lambda row: is_blank(row["reasoning"]))
    firsts: dict[str, dict] = {}
    for row in ordered:
        firsts.setdefault(row.get("domain", row["family"]), row)
    chosen = list({row["id"]: row for row in [*firsts.values(), *ordered]}.values())[:ROWS]
    cells = [[f"{row.get('domain', row['family'])}, {row['kind']}", block(row["question"]), block(_completion(row))]
             for row in chosen]
    return table(["domain, kind", "question", "completion"], cells, "Rows without worked steps show only their answer.")


def _completion(row: Mapping[str, str]) -> str:
    answer = row["answer"] if not is_blank(row["answer"]) else "(open: a judge scores it)"
    return answer if is_blank(row["reasoning"]) else TAGS.render(reasoning=row["reasoning"], answer=answer)
