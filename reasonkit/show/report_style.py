"""How pages look and what is let into them: the report's style sheet, and `escape` for all that comes from outside."""

from __future__ import annotations

import html
import re

from reasonkit.text.tags import printable

# Marks, embeddings, overrides and isolates: they turn the text around them round.
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: object) -> str:
    """`text` with signs that change the direction of writing written out, as [U+202E]."""
    return _DIRECTIONS.sub(lambda sign: f"[U+{ord(sign[0]):04X}]", printable(str(text)))


def escape(text: object) -> str:
    """`text` as HTML that shows it and does nothing else."""
    return html.escape(visible(text))


STYLE = """
:root { --ink: #23262b; --soft: #666b74;
  --rule: #dcd9d2; --paper: #fdfcf9; --blue: #1f3b57; --warm: #b56a1d; }
* { box-sizing: border-box; }
b, strong, span, small, caption, bdi { unicode-bidi: isolate; }
body { margin: 0 auto; padding: 3.5rem 1.25rem 5rem; max-width: 54rem; counter-reset: table figure;
  background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 1.0625rem/1.6 Charter, "Bitstream Charter", "Iowan Old Style", Georgia, "DejaVu Serif", serif; }
h1 { font-size: 1.9rem; line-height: 1.2; font-weight: 600; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; font-weight: 600; margin: 3.2rem 0 .4rem; }
p { margin: .5rem 0 1rem; max-width: 42rem; }
.lede { font-size: 1.2rem; line-height: 1.5; }
.note, .soft, caption, figcaption, th { color: var(--soft); font-size: .875rem; line-height: 1.5; }
caption::before { counter-increment: table; content: "Table " counter(table) ". "; color: var(--ink); }
figcaption::before { counter-increment: figure; content: "Figure " counter(figure) ". "; color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); }
caption { caption-side: bottom; text-align: left; padding-top: .6rem; }
th { font-weight: normal; text-align: left; padding: .45rem 1.2rem .45rem 0; vertical-align: bottom; }
thead th { border-bottom: 1px solid var(--ink); }
td, th { overflow-wrap: break-word; max-width: 16rem; }
td { padding: .5rem 1.2rem .5rem 0; vertical-align: top; border-top: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:first-child td { border-top: 0; }
td small { color: var(--soft); font-size: .8125rem; font-weight: normal; margin-left: .3em;
  white-space: nowrap; }
td svg { display: block; width: 100%; min-width: 3rem; height: .75rem; }
tr.last td { color: var(--blue); font-weight: 600; }
.hash { font: .8125rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
figure { margin: 1.5rem 0; }
figure img { width: 100%; min-width: 34rem; height: auto; display: block; mix-blend-mode: multiply; }
figcaption { margin-top: .6rem; }
.problem { margin: 2rem 0 2.4rem; }
.problem p { margin: 0; max-width: none; }
.replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem;
  margin-top: .6rem; }
.reply { background: #fff; border: 1px solid var(--rule); border-top: 3px solid var(--warm);
  padding: .5rem .8rem .7rem; font-size: .8125rem; line-height: 1.5; }
.reply.right { border-top-color: var(--blue); }
.reply b { font-weight: 600; font-size: 1rem; display: block; }
.reply span { color: var(--soft); }
pre { font: .8125rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; white-space: pre-wrap;
  margin: .4rem 0 0; max-height: 18rem; overflow-y: auto; }
@media (max-width: 40rem) {
  body { padding-top: 2rem; font-size: 1rem; }
  h1 { font-size: 1.5rem; }
  td, th { padding-right: .5rem; }
  td { font-size: .9375rem; line-height: 1.4; }
  td small { display: block; margin: 0; font-size: .75rem; }
}
@media print {
  body { max-width: none; }
  pre { max-height: none; }
  .problem, tr, figure { break-inside: avoid; }
}
"""
