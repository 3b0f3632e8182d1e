"""The data card of a run: what its splits are made of, as the README.md of a data set on the Hugging Face hub.

Entry points: `write_data_card`, and `markdown_line` and `markdown_table`, which the model's card also uses. Names,
licences and notes may come from files, so their markup is escaped. The card quotes no row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from datasets import Dataset
from huggingface_hub import DatasetCardData

from reasonkit.data.filters import Ledger
from reasonkit.data.screening import OPEN
from reasonkit.data.sources import OPEN_LICENCES, DataRecipe, Family, File, Hub, Kaggle, Source, Wheel
from reasonkit.session.files import write_atomic
from reasonkit.session.manifest import file_sha256
from reasonkit.show.data_view import values_of
from reasonkit.show.figures import visible
from reasonkit.text.tags import TAGS, is_blank

CARD = "README.md"
_URL = ":/?#[]@!$&'()*+,;=%~"  # not quoted in an address


def write_data_card(recipe: DataRecipe, splits: Mapping[str, Dataset], paths: Mapping[str, Path], ledger: Ledger,
                    seed: int) -> Path:
    """Write README.md beside the files of the splits and return its path. `datasets.load_dataset` reads the folder."""
    folder = next(iter(paths.values())).parent
    data = DatasetCardData(
        pretty_name=visible(recipe.title), license=_hub_licences(recipe, splits), tags=["reasoning"],
        configs=[{"config_name": "default", "data_files": [{"split": name, "path": path.name}
                                                           for name, path in paths.items()]}])
    files = [[name, len(rows), sum(not is_blank(text) for text in rows["reasoning"]),
              sum(kind == OPEN for kind in rows["kind"]), file_sha256(paths[name])] for name, rows in splits.items()]
    causes = Counter((row.step, row.cause) for row in ledger.dropped).most_common()
    cleaning = [["step", "rows before", "rows after"], *ledger.steps]
    left_out = [["step", "left out because of", "rows"], *([*key, count] for key, count in causes)]
    domains = {name: Counter(values_of(rows, "domain")) for name, rows in splits.items()}
    counts = [["domain", *splits], *([domain, *(found[domain] for found in domains.values())]
                                     for domain in sorted(set().union(*domains.values())))]
    text = "\n\n".join([
        f"---\n{data.to_yaml()}\n---\n# {markdown_line(recipe.title)}",
        f"Data recipe {markdown_line(recipe.name)}, seed {seed}. Licence: {markdown_line(recipe.licence)}. The same "
        "recipe, sizes and seed give the same files.",
        "## Splits", markdown_table([["split", "rows", "with worked steps", "open", "SHA-256 of the file"], *files]),
        "An open row has no answer that a program can check, so it is for training. A question is in one split, which "
        "its hash decides.",
        "## Sources", markdown_table([["source", "from", "domain", "licence", *splits], *_sources(recipe, splits)]),
        "## Domains", markdown_table(counts),
        "## Cleaning", markdown_table(cleaning), *[markdown_table(left_out)] * bool(causes),
        *["\n".join(f"- {markdown_line(note)}" for note in ledger.notes)] * bool(ledger.notes),
        "## Columns", "`question`, `reasoning`, `answer`, its `kind`, and the `rubric` of a judge as JSON. A model is "
        "asked with this prompt:", f"````\n{TAGS.template}\n````", ""])
    write_atomic(folder / CARD, text)
    return folder / CARD


def _hub_licences(recipe: DataRecipe, splits: Mapping[str, Dataset]) -> list[str]:
    """The hub's names of the licences of all rows. "other" if the hub has no name for one."""
    found = {recipe.licence} if not recipe.sources else {
        licence for rows in splits.values() for licence in values_of(rows, "licence")}
    return sorted({name.lower().replace("odc-by-1.0", "odc-by") if name in OPEN_LICENCES else "other"
                   for name in found})


def _sources(recipe: DataRecipe, splits: Mapping[str, Dataset]) -> list[list[object]]:
    counts = {name: Counter(values_of(rows, "source")) for name, rows in splits.items()}
    listed = [[source.name, _place(source), source.domain, _licence(source)] for source in recipe.sources] or [
        [family, "made by a program", family, recipe.licence] for family in recipe.families]
    return [[*line, *(found[line[0]] for found in counts.values())] for line in listed]


def _place(source: Source) -> str:
    """Where a source comes from. A file's folder is left out, because it is private."""
    match source:
        case Hub():
            return f"hub {source.id} {source.config} {source.split} @ {source.revision}"
        case Kaggle():
            return f"Kaggle {source.handle} {source.file}"
        case Wheel():
            return f"PyPI {source.package}=={source.version}, {source.member}"
        case Family():
            return f"made by a program: {', '.join(source.families)}"
        case File():
            return f"file {Path(source.path).name}"


class Link(str):
    """Finished Markdown, which is not escaped."""


def _licence(source: Source) -> str:
    if not source.address:
        return source.licence
    return Link(f"[{markdown_line(source.licence)}](<{quote(visible(source.address), safe=_URL)}>)")


def markdown_line(text: object) -> str:
    """`text` as one line with its markup escaped."""
    return re.sub(r"([\\`*_{}<>\[\]|#])", r"\\\1", " ".join(visible(text).split()))


def markdown_table(rows: Sequence[Sequence[object]]) -> str:
    """A table whose first row is the head."""
    head, *body = [f"| {' | '.join(cell if isinstance(cell, Link) else markdown_line(cell) for cell in row)} |"
                   for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])
