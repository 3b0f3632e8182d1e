"""One static page that says what a run achieved, how sure that is, and what it was made of.

Not a dashboard: it is written once, from finished results, and holds no script and no link; pictures are
inside. What comes from a model, a data set or a log is escaped. The replies shown are chosen by a rule that
the page states.
"""

from __future__ import annotations

import base64
import mimetypes
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonkit.eval.evaluate import Difference, EvalResult, Interval
from reasonkit.session.files import write_atomic
from reasonkit.session.manifest import cut_short, progress
from reasonkit.session.records import is_row
from reasonkit.show.dashboard import curves
from reasonkit.show.report_style import STYLE, escape

MEASURES = (("Accuracy", "accuracy"), ("By content", "content_accuracy"), ("Format", "format_rate"),
            ("Step accuracy", "step_accuracy"))
MAX_SAMPLES = 10  # problems shown side by side
MAX_CRITERIA = 12  # a rubric of each problem's own has many

NOTES = """<h2>Notes</h2>
<p class="note">Every problem was asked once, with the prompt of training. A reply is correct when the answer in its
answer tag, read leniently, is right; a reply without that tag gives no answer, and is not correct. By content, such a
reply counts as well, by what it says last: a model that was never shown the tags is measured by this figure. Whether
the form was kept is counted apart: each tag once, in order, closed, not empty, nothing around. Step accuracy is the
share of reasoning steps that equal the worked solution's step at the same place; missing and surplus steps count as
wrong. Intervals are those of a bounded mean that keep their word at its ends too: 0 of 25 is no certainty. No judge
takes part in these numbers.</p>"""


class Html(str):
    """Text that is markup already; whatever isn't gets escaped on its way into the page."""


def write_report(
    path: Path | str,
    results: Mapping[str, EvalResult],
    comparisons: Mapping[str, Difference],
    manifests: Sequence[Mapping[str, Any]],
    log_rows: Iterable[Mapping[str, Any]],
    figures: Sequence[Path],
    skipped: int = 0,
) -> Path:
    """Write the page to `path`, atomically, and return it.

    results: stage name -> result, in the order of training (stock, after SFT, after GRPO). comparisons: what
    is compared -> `evaluate.compare_paired`. manifests: as `manifest.read_manifest` gives them. log_rows: of the run
    logs and of the judge's record; what is no row is counted, with `skipped`, and passed over. figures: image files to
    include. Empty comparisons, manifests, rows and
    figures leave their section out; a stage that was cut short is told first. ValueError without results, or for
    a figure that is no image.
    """
    if not results:
        raise ValueError("no results to report: evaluate at least one stage first")
    given, warnings = list(log_rows), cut_short(manifests)
    log_rows = [row for row in given if is_row({"t": 0.0, **row} if isinstance(row, Mapping) else row)]
    skipped += len(given) - len(log_rows)
    sections = [_head(results, warnings), _headline(results, warnings), _compared(comparisons), _families(results),
                _training(log_rows, figures, skipped), _judge(log_rows), _samples(results), _failures(results),
                _facts(manifests), NOTES]
    page = ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>Evaluation report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            + "\n".join(filter(None, sections)) + "\n</body>\n</html>\n")
    write_atomic(Path(path), page)
    return Path(path)


# -- sections

def _head(results: Mapping[str, EvalResult], warnings: Sequence[str]) -> str:
    (first, before), (last, after) = list(results.items())[0], list(results.items())[-1]
    start = ""
    if len(results) > 1:
        start = f", {'against' if before.accuracy.mean >= after.accuracy.mean else 'up from'} "
        start += f"{_percent(before.accuracy.mean)} for {escape(first)}"
        if before.content_accuracy != before.accuracy:
            start += f", {_percent(before.content_accuracy.mean)} when it counts without the tag"
    told = "".join(f'<p class="lede"><strong>{escape(sentence)}</strong></p>\n' for sentence in warnings)
    return (f'<h1>Evaluation report</h1>\n{told}<p class="lede"><strong>{escape(last)}</strong> answers '
            f"{_percent(after.accuracy.mean)} of {after.n} test problems correctly{start}. "
            f"{_percent(after.format_rate.mean)} of its replies have exactly the asked form, and "
            f"{_percent(after.step_accuracy.mean)} of its reasoning steps are right.</p>")


def _headline(results: Mapping[str, EvalResult], warnings: Sequence[str]) -> str:
    left_out = [f"{result.left_out} problems could not be scored, and {name} was not asked them."
                for name, result in results.items() if result.left_out]
    rows = [[name, result.n, *(_interval(getattr(result, attribute)) for _, attribute in MEASURES)]
            for name, result in results.items()]
    return "<h2>Results</h2>" + _table(
        ["", "n", *(title for title, _ in MEASURES)], rows,
        " ".join([*warnings, "Means with 95 % intervals. Each scale runs from 0 to 100 %.", *left_out]), mark_last=True)


def _compared(comparisons: Mapping[str, Difference]) -> str:
    if not comparisons:
        return ""
    reach = max(0.01, *(abs(end) for change in comparisons.values() for end in (change.low, change.high)))
    rows = []
    for name, change in comparisons.items():
        marks = [50 + 50 * value / reach for value in (change.low, change.mean, change.high)]
        side = "above zero" if change.low > 0 else "below zero" if change.high < 0 else "zero lies inside"
        ends = f"{100 * change.low:+.1f} to {100 * change.high:+.1f}"
        p_value = "<\N{NO-BREAK SPACE}0.001" if change.p_value < 0.001 else f"{change.p_value:.3f}"
        rows.append([name, Html(f"{100 * change.mean:+.1f}{_bar(*marks, origin=50)}"),
                     Html(f"{ends} <small>{side}</small>"), p_value, change.n])
    return "<h2>Paired differences</h2>" + _table(
        ["", "points", "95 % interval", "p", "n"], rows,
        "The same problems on both sides. Interval and p-value are of one test: p is below 0.05 exactly when zero lies "
        "outside. The tick in the middle of a scale is no difference.")


def _families(results: Mapping[str, EvalResult]) -> str:
    parts = {name: result.by_family() for name, result in results.items()}
    families = sorted({family for part in parts.values() for family in part})
    rows = [[family, max(part[family].n for part in parts.values() if family in part),
             *(_interval(part[family].accuracy) if family in part else "–" for part in parts.values())]
            for family in families]
    return "<h2>Accuracy by family of problems</h2>" + _table(
        ["", "n", *results], rows, "Means with 95 % intervals.")


def _training(log_rows: list[Mapping[str, Any]], figures: Sequence[Path], skipped: int) -> str:
    shown = [f'<p class="note">{skipped} lines of the logs are no rows, and are left out.</p>'] if skipped else []
    drawn = curves(log_rows)
    if drawn.axes:
        shown.append(_figure(drawn._repr_png_(), "image/png",
                             "Training as logged (faint) and its running mean (bold)."))
    for path in map(Path, figures):
        kind = mimetypes.guess_type(path.name)[0] or "unknown"
        if not kind.startswith("image/"):
            raise ValueError(f"figure {path} is of type {kind}: give an image file, such as a PNG")
        shown.append(_figure(path.read_bytes(), kind, path.stem.replace("_", " ")))
    return "<h2>Training</h2>" + "".join(shown) if shown else ""


def _judge(log_rows: list[Mapping[str, Any]]) -> str:
    verdicts, met = [row for row in log_rows if row["event"] == "verdict"], defaultdict(list)
    for row in (row for row in verdicts if row.get("score") is not None):
        met["the score"].append(row["score"])
        titles, values = row.get("titles", []), row.get("per_criterion", [])
        if len(titles) == len(values):  # else all criteria were rated as one
            for title, value in zip(titles, values, strict=True):
                met[title].append(value)
    rows = [[title, len(values), *(_percent(sum(part) / len(part)) for part in (values[:fifth], values[-fifth:]))]
            for title, values in list(met.items())[:MAX_CRITERIA] for fifth in [-(-len(values) // 5)]]
    failed = Counter(row["cause"] for row in verdicts if row.get("cause") and "score" not in row)
    told = ", ".join(f"{cause} {count}" for cause, count in failed.most_common()) or "none"
    return "<h2>The judge</h2>" + _table(
        ["", "verdicts", "first fifth", "last fifth"], rows, "How far each criterion was met, in training order; a "
        f"reply that came again was not asked again. No signal: {told}.") if verdicts else ""


def _samples(results: Mapping[str, EvalResult]) -> str:
    replies = {name: {sample["id"]: sample for sample in result.samples}
               for name, result in results.items()}
    last = list(results)[-1]
    firsts: dict[str, dict] = {}
    wrongs: dict[str, dict] = {}
    for sample in results[last].samples:
        if all(sample["id"] in stage for stage in replies.values()):
            firsts.setdefault(sample["family"], sample)
            if not sample["correct"]:
                wrongs.setdefault(sample["family"], sample)
    chosen = {sample["id"]: sample for sample in (*firsts.values(), *wrongs.values())}
    blocks = [f'<section class="problem"><p class="soft"><bdi>{escape(sample["family"])}</bdi> · right answer: '
              f'<bdi>{escape(sample["gold"])}</bdi></p><p>{escape(sample["question"])}</p><div class="replies">'
              + "".join(_reply(name, stage[number]) for name, stage in replies.items()) + "</div></section>"
              for number, sample in list(chosen.items())[:MAX_SAMPLES]]
    rule = (f"Chosen by rule: the first problem of each family, then the first of each with a wrong reply in "
            f"the last column, {escape(last)}; at most {MAX_SAMPLES}.")
    return f'<h2>Replies side by side</h2><p class="note">{rule}</p>' + "".join(blocks) if blocks else ""


def _reply(name: str, sample: Mapping[str, Any]) -> str:
    verdict = "right" if sample["correct"] else "wrong" if sample["answer"] is not None else "no answer"
    form = "form kept" if sample["format_ok"] else "form broken"
    steps = f"steps {100 * sample['steps']:.0f}\N{NO-BREAK SPACE}%"
    return (f'<div class="reply{" right" * sample["correct"]}"><b>{escape(name)}</b>'
            f'<span>{verdict} · {form} · {steps}</span><pre>{escape(sample["completion"])}</pre></div>')


def _failures(results: Mapping[str, EvalResult]) -> str:
    counts = {name: result.failures for name, result in results.items()}
    total = Counter(kind for part in counts.values() for kind, count in part.items() for _ in range(count))
    rows = [[kind.replace("_", " "), *(part.get(kind, 0) for part in counts.values())]
            for kind, _ in total.most_common()]
    return "<h2>What goes wrong</h2>" + _table(
        ["", *results], rows, "Replies that show each failure; one reply may show several.") if rows else ""


def _facts(manifests: Sequence[Mapping[str, Any]]) -> str:
    if not manifests:
        return ""
    rows = [[manifest["stage"], f"{manifest['minutes']:.1f}",
             *(told or "–" for told in progress(manifest)), _words(manifest.get("lora")), Html(
                 f'<span class="hash">{escape(manifest["prompt_sha256"][:16])}</span>')]
            for manifest in manifests]
    versions: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        for package, version in manifest.get("versions", {}).items():
            versions.setdefault(package, {})[version] = None
    prompts = len({manifest["prompt_sha256"] for manifest in manifests})
    caption = (f"{sum(manifest['minutes'] for manifest in manifests):.1f} minutes in all. "
               f"{'One prompt' if prompts == 1 else f'{prompts} different prompts'} across the stages. "
               f"{', '.join(f'{name} {chr(47).join(found)}' for name, found in versions.items())}.")
    return "<h2>The run</h2>" + _table(
        ["stage", "minutes", "steps", "ended by", "adapter", "prompt (SHA-256, first 16 digits)"], rows, caption)


# -- pieces

def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _words(fields: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items()) if fields else "–"


def _interval(interval: Interval) -> Html:
    mean, low, high = (100 * value for value in interval)
    return Html(f"{_percent(interval.mean)} <small>{low:.1f}–{high:.1f}</small>"
                f"{_bar(low, mean, high, origin=0)}")


def _bar(low: float, mean: float, high: float, origin: float) -> str:
    """A scale of 0 to 100 with a tick at its origin, the interval as a bar and the mean as a mark."""
    def line(x1: float, x2: float, y1: float, y2: float, colour: str, width: float) -> str:
        return (f'<line x1="{x1:.2f}" x2="{x2:.2f}" y1="{y1}" y2="{y2}" stroke="{colour}" '
                f'stroke-width="{width}" vector-effect="non-scaling-stroke"/>')
    return ('<svg viewBox="-1 0 102 12" preserveAspectRatio="none" aria-hidden="true">'
            + line(0, 100, 6, 6, "#d9d6cf", 1) + line(origin, origin, 3, 9, "#a8a59d", 1)
            + line(low, high, 6, 6, "#8fa8c0", 4) + line(mean, mean, 1, 11, "#1f3b57", 2) + "</svg>")


def _table(
    head: Sequence[str], rows: Sequence[Sequence[object]], caption: str, mark_last: bool = False
) -> str:
    def cell(value: object) -> str:
        return value if isinstance(value, Html) else escape(value)
    body = "".join(f'<tr{" class=last" * (mark_last and row is rows[-1])}>'
                   + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>\n" for row in rows)
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
            f"<thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>")


def _figure(image: bytes, kind: str, caption: str) -> str:
    source = f"data:{kind};base64,{base64.b64encode(image).decode()}"
    return (f'<figure><div class="scroll"><img alt="{escape(caption)}" src="{source}"></div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>")
