"""The report of a run as one static page, and its tables for a notebook.

Entry points: `write_report`, `results_table`, `comparison_table`, `family_table`, `failure_table`, `side_by_side`. The
page has no script and no link. Jinja2 escapes every value.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from reasonkit.eval.evaluate import Difference, EvalResult, Interval, compare_paired
from reasonkit.session.files import write_atomic
from reasonkit.session.manifest import caveats, progress
from reasonkit.show.figures import colour_tags, curves, visible

MEASURES = {"Accuracy": "accuracy", "Content accuracy": "content_accuracy", "Format rate": "format_rate",
            "Step accuracy": "step_accuracy"}
MAX_SAMPLES = 10  # problems shown side by side
MAX_CRITERIA = 12  # a problem's own rubric may have many

# In a notebook the page's own ground and ink show through, so a table reads in a light and a dark theme.
STYLE = """
.report { --soft: color-mix(in srgb, currentColor 70%, transparent);
  --rule: color-mix(in srgb, currentColor 22%, transparent); --blue: #4a7fb5; --warm: #c07a28;
  padding: .5rem 1rem; overflow-wrap: anywhere; font: 1rem/1.6 Charter, Georgia, serif; }
body.report { margin: 0 auto; padding: 3rem 1.25rem; max-width: 54rem; color-scheme: light dark;
  background: light-dark(#fdfcf9, #16181c); color: light-dark(#23262b, #d8dade); }
.report {
  h2 { font-size: 1.2rem; margin: 3rem 0 .4rem; }
  b, strong, small, caption, bdi { unicode-bidi: isolate; }
  .note, small, caption, th { color: var(--soft); font-size: .875rem; font-weight: normal; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  caption { caption-side: bottom; text-align: left; padding-top: .6rem; }
  td, th { overflow-wrap: break-word; max-width: 16rem; }
  td, th { padding: .5rem 1.2rem .5rem 0; vertical-align: top; border-top: 1px solid var(--rule);
    text-align: left !important; /* JupyterLab's own rules are more specific */ }
  td small { white-space: nowrap; }
  tr.last td { color: var(--blue); font-weight: 600; }
  tr.last small { color: var(--blue); }
  svg { display: block; width: 100%; min-width: 3rem; height: .75rem; }
  line { stroke: var(--rule); vector-effect: non-scaling-stroke; }
  .range { stroke: #4a7fb580; stroke-width: 4; }
  .mean { stroke: var(--blue); stroke-width: 2; }
  img { width: 100%; }
  .completions { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem; }
  .completion { border: 1px solid var(--rule); border-top: 3px solid var(--warm); padding: .5rem .8rem; }
  .completion.right { border-top-color: var(--blue); }
  .completion.by_content { border-top: 3px dashed var(--blue); }
  pre { background: none !important; white-space: pre-wrap; max-height: 18rem; overflow-y: auto; font-size: .8125rem; }
}
"""

NOTES = Markup("""<p class="note">Every problem was asked once, with the prompt of training. A completion is correct
when the answer in its answer tag, read leniently, is right; a completion without that tag gives no answer, and is not
correct. For content accuracy it counts by what it says last, because the base model was never shown the tags. The
format rate is the share of completions with each tag once, in order, closed, not empty, and nothing around them. Step
accuracy is the share of reasoning steps that equal the worked solution's step at the same place; missing and surplus
steps count as wrong. Intervals are for the mean of bounded values: 0 of 25 does not exclude a rate above 0. No
judge is involved.
</p>""")

TEMPLATES = {
    # a scale from 0 to 100, with a tick at its origin, the interval as a bar and the mean as a mark
    "scale": '{{ text }} <small>{{ note }}</small><svg viewBox="-1 0 102 12" preserveAspectRatio="none">'
             '<line x1="0" x2="100" y1="6" y2="6"/><line x1="{{ origin }}" x2="{{ origin }}" y1="3" y2="9"/>'
             '<line class="range" x1="{{ "%.2f" % low }}" x2="{{ "%.2f" % high }}" y1="6" y2="6"/>'
             '<line class="mean" x1="{{ "%.2f" % mean }}" x2="{{ "%.2f" % mean }}" y1="1" y2="11"/></svg>',
    "table": """<div class="scroll"><table><caption>{{ caption }}</caption>
<thead><tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr{% if mark_last and loop.last %} class="last"{% endif %}>
{%- for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>""",
    "samples": """<p class="note">Chosen by rule: the first problem of each family, then the first of each with a wrong
completion in the last column, {{ last }}; at most {{ most }}.</p>
{% for problem in problems %}
<p class="note"><bdi>{{ problem.family }}</bdi> · right answer: <bdi>{{ problem.gold }}</bdi></p>
<p>{{ problem.question }}</p><div class="completions">{% for name, stage in stages.items() %}
{% set sample = stage[problem.id] %}<div class="completion{{ " right" if sample.correct else " by_content" if
sample.content }}"><b>{{ name }}</b> <small>{{ "right" if sample.correct else
"right by content" ~ ", none in the tag" * (sample.answer is none) if sample.content else
"no answer" if sample.answer is none else "wrong" }} · format {{ "kept" if sample.format_ok else "broken" }} · steps
{{ "–" if sample.steps is none else "%.0f %%" % (100 * sample.steps) }}</small>
<pre>{{ sample.completion | colour_tags }}</pre></div>{% endfor %}</div>{% endfor %}""",
    "training": """{% if skipped %}<p class="note">{{ skipped }} lines of the logs are no rows, and are left out.</p>
{% endif %}{% if image %}<img alt="Training as logged (faint) and its running mean (bold)." src="data:image/png;base64,
{{- image }}">{% endif %}""",
    "page": """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation report</title><style>{{ style }}</style></head>
<body class="report"><h1>Evaluation report</h1>
{% for sentence in warnings %}<p><strong>{{ sentence }}</strong></p>{% endfor %}
<p>{{ summary }}</p>
{% for title, content in sections.items() if content %}<h2>{{ title }}</h2>{{ content }}{% endfor %}
</body></html>
""",
}


class Html(Markup):
    """Escaped HTML that a notebook shows with the report's style."""

    def _repr_html_(self) -> str:
        return f'<div class="report"><style>{STYLE}</style>{self}</div>'


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.DictLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
    finalize=lambda value: value if isinstance(value, Markup) else visible(value))
_ENVIRONMENT.filters["colour_tags"] = colour_tags


def write_report(path: Path, results: Mapping[str, EvalResult], comparisons: Mapping[str, Difference],
                 manifests: Sequence[Mapping[str, Any]], log_rows: Iterable[Mapping[str, Any]],
                 skipped: int = 0) -> Path:
    """Write the page to `path`, atomically, and return the path.

    results: stage name -> result, in the order of training. comparisons: what is compared -> `evaluate.compare_paired`.
    manifests: from `manifest.read_manifest`. log_rows: rows of the run logs and of the judge's record, as `RunLog.read`
    gives them. skipped: how many lines were none. An empty input leaves out its section. The page begins with the
    stages that were cut short. Raises ValueError without results.
    """
    if not results:
        raise ValueError("no results to report: evaluate at least one stage first")
    rows, warnings = list(log_rows), caveats(manifests)
    figure = curves(rows)
    image = base64.b64encode(figure._repr_png_()).decode() if figure.axes else ""
    sections = {
        "Results": results_table(results, warnings),
        "Paired differences": comparisons and comparison_table(comparisons),
        "Right answers by family of problems": family_table(results),
        "Training": _render("training", skipped=skipped, image=image),
        "The judge": _judge_table(rows),
        "Completions side by side": side_by_side(results),
        "What goes wrong": any(result.failures for result in results.values()) and failure_table(results),
        "The run": manifests and _run_table(manifests),
        "Notes": NOTES,
    }
    write_atomic(path, _render("page", style=Markup(STYLE), warnings=warnings, summary=_summary(results),
                               sections=sections))
    return path


def results_table(results: Mapping[str, EvalResult], warnings: Sequence[str] = ()) -> Html:
    """Every measure of every stage with its 95 % interval. `warnings` are repeated in the caption."""
    measures = measures_of(results)
    rows = [[name, result.n, *(interval_cell(getattr(result, measure)) for measure in measures.values())]
            for name, result in results.items()]
    left_out = [f"{result.left_out} problems could not be scored, and {name} was not asked them."
                for name, result in results.items() if result.left_out]
    steps = [f"Step accuracy is of the {n} problems with a solution in steps." for n in sorted(
        {result.steps_n for result in results.values() if "Step accuracy" in measures and result.steps_n < result.n})]
    caption = [*warnings, "Means with 95 % intervals. Each scale runs from 0 to 100 %.", *steps, *left_out]
    return table(["", "n", *measures], rows, " ".join(caption), mark_last=True)


def measures_of(results: Mapping[str, EvalResult]) -> dict[str, str]:
    """The measures of the results, by title. Step accuracy only if most problems have a solution in steps."""
    steps = all(result.has_steps for result in results.values())
    return {title: name for title, name in MEASURES.items() if steps or name != "step_accuracy"}


def changes(before: EvalResult, after: EvalResult) -> dict[str, Difference]:
    """The paired differences of format, accuracy and, if it is measured, step accuracy."""
    fields = {"format": "format_ok", "accuracy": "correct"} | ({"step accuracy": "steps"} if after.has_steps else {})
    return {name: compare_paired(before, after, field) for name, field in fields.items()}


def comparison_table(comparisons: Mapping[str, Difference]) -> Html:
    """Every paired difference in points, with its interval and p-value."""
    reach = max(0.01, *(abs(end) for change in comparisons.values() for end in (change.low, change.high)))
    rows = []
    for name, change in comparisons.items():
        side = "above zero" if change.low > 0 else "below zero" if change.high < 0 else "zero lies inside"
        ends = f"{100 * change.low:+.1f} to {100 * change.high:+.1f}"
        low, mean, high = (50 + 50 * value / reach for value in (change.low, change.mean, change.high))
        p_value = "<\N{NO-BREAK SPACE}0.001" if change.p_value < 0.001 else f"{change.p_value:.3f}"
        rows.append([name, _render("scale", text=f"{100 * change.mean:+.1f}", note=f"{ends}, {side}", origin=50,
                                   low=low, mean=mean, high=high), p_value, change.n])
    return table(["", "points, 95 % interval", "p", "n"], rows, "The same problems on both sides. p is below 0.05 "
                  "exactly when the interval excludes zero. The tick in the middle of a scale is no difference.")


def family_table(results: Mapping[str, EvalResult]) -> Html:
    """The content accuracy of every stage on each family of problems."""
    parts = {name: result.by_family() for name, result in results.items()}
    rows = []
    for family in sorted({family for part in parts.values() for family in part}):
        found = [part.get(family) for part in parts.values()]
        rows.append([family, max(result.n for result in found if result),
                     *(interval_cell(result.content_accuracy) if result else "–" for result in found)])
    return table(["", "n", *results], rows, "Right answers by content, means with 95 % intervals.")


def failure_table(results: Mapping[str, EvalResult]) -> Html:
    """How many completions of every stage show each kind of failure."""
    counts = {name: result.failures for name, result in results.items()}
    total = sum(map(Counter, counts.values()), Counter())
    rows = [[kind.replace("_", " "), *(part.get(kind, 0) for part in counts.values())]
            for kind, _ in total.most_common()]
    return table(["", *results], rows, "Completions with each failure. One completion may have several. No answer "
                 "means none in the tag. By content such a completion may be right.")


def side_by_side(results: Mapping[str, EvalResult], most: int = MAX_SAMPLES) -> Html:
    """The completions of all stages to at most `most` problems, chosen by the rule that the text states."""
    stages = {name: {sample["id"]: sample for sample in result.samples} for name, result in results.items()}
    *_, last = results
    common = [sample for sample in results[last].samples if all(sample["id"] in stage for stage in stages.values())]
    chosen = {}
    for samples in (common, [sample for sample in common if not sample["correct"]]):
        firsts = {sample["family"]: sample for sample in reversed(samples)}
        chosen |= {sample["id"]: sample for sample in reversed(firsts.values())}
    problems = list(chosen.values())[:most]
    return _render("samples", last=last, most=most, problems=problems, stages=stages) if problems else Html()


def _summary(results: Mapping[str, EvalResult]) -> str:
    stages = list(results.items())
    (first, before), (last, after) = stages[0], stages[-1]
    start = tag = ""
    if len(results) > 1:
        rise = after.content_accuracy.mean > before.content_accuracy.mean
        start = f", {'up from' if rise else 'against'} {_percent(before.content_accuracy.mean)} for {first}"
    if any(result.content_accuracy != result.accuracy for result in (before, after)):
        start += ", with or without the tags"
        tag = f" In the tag, {_percent(after.accuracy.mean)} are right."
    steps = (f" {_percent(after.step_accuracy.mean)} of its reasoning steps are those of the worked solutions."
             if after.has_steps else "")
    return (f"{last[:1].upper()}{last[1:]} answers {_percent(after.content_accuracy.mean)} of {after.n} test problems "
            f"correctly{start}.{tag} {_percent(after.format_rate.mean)} of its completions have exactly the requested "
            f"format.{steps}")


def _judge_table(rows: list[Mapping[str, Any]]) -> Html:
    verdicts, scores = [row for row in rows if row["event"] == "verdict"], defaultdict(list)
    for row in verdicts:
        if row.get("score") is not None:
            scores["the score"].append(row["score"])
            titles, values = row.get("titles", []), row.get("per_criterion", [])
            if len(titles) == len(values):  # else all criteria were rated as one
                for title, value in zip(titles, values, strict=True):
                    scores[title].append(value)
    shown = [[title, len(values), *(_percent(sum(part) / len(part)) for part in (values[:fifth], values[-fifth:]))]
             for title, values in list(scores.items())[:MAX_CRITERIA] for fifth in [-(-len(values) // 5)]]
    failed = Counter(row["cause"] for row in verdicts if row.get("cause") and "score" not in row)
    causes = ", ".join(f"{cause} {count}" for cause, count in failed.most_common()) or "none"
    return table(["", "verdicts", "first fifth", "last fifth"], shown, "How far each criterion was met, in the "
                  f"order of judging, the exam's replies too. A repeated completion was not judged again. No signal: "
                  f"{causes}.") if verdicts else Html()


def _run_table(manifests: Sequence[Mapping[str, Any]]) -> Html:
    rows = [[manifest["stage"], f"{manifest['minutes']:.1f}", *(told or "–" for told in progress(manifest)),
             ", ".join(f"{name} {value}" for name, value in (manifest.get("lora") or {}).items()) or "–"]
            for manifest in manifests]
    versions: dict[str, dict[str, None]] = defaultdict(dict)
    for manifest in manifests:
        for package, version in manifest.get("versions", {}).items():
            versions[package][version] = None
    used = ", ".join(f"{package} {'/'.join(found)}" for package, found in versions.items())
    prompts = len({manifest["prompt_sha256"] for manifest in manifests})
    return table(["stage", "minutes", "steps", "ended by", "adapter"], rows,
                  f"{sum(manifest['minutes'] for manifest in manifests):.1f} minutes in all. "
                  f"{'One prompt' if prompts == 1 else f'{prompts} different prompts'} across the stages. {used}.")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def interval_cell(interval: Interval) -> Html:
    """A mean in percent with its interval, above a scale from 0 to 100 %."""
    mean, low, high = (100 * value for value in interval)
    return _render("scale", text=_percent(interval.mean), note=f"{low:.1f}–{high:.1f}", origin=0, low=low, mean=mean,
                   high=high)


def table(head: Sequence[str], rows: Sequence[Sequence[object]], caption: str, mark_last: bool = False) -> Html:
    """A table of any values. Text is escaped. `Markup` is not."""
    return _render("table", head=head, rows=rows, caption=caption, mark_last=mark_last)


def _render(template: str, **values: object) -> Html:
    return Html(_ENVIRONMENT.get_template(template).render(values))
