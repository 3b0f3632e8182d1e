"""Screenshots of what a reader sees, into docs/images: `make screenshots`, after a run that is in artifacts/.

README, two executed notebooks, the submission with its library folded, and report and live view in light and dark.
Needs Chromium on the PATH. The notebooks are laid out here, as plainly as a page of GitHub, and not by Jupyter.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from checkout import ROOT
from markdown_it import MarkdownIt
from PIL import Image

from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.show.dashboard import Dashboard

OUT, ARTIFACTS = ROOT / "docs" / "images", ROOT / "artifacts"
WIDTH, MOST, COLOURS = 960, 2400, 256  # pixels, and colours of an image: with 64 the curves' hues merge
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
PAGE = """<!doctype html><meta charset="utf-8"><base href="{base}"><style>
body {{ margin: 0 auto; padding: 24px 32px; font: 15px/1.5 system-ui, sans-serif; {theme} }}
table {{ border-collapse: collapse }} td, th {{ border: 1px solid #8886; padding: 4px 10px; text-align: left }}
.report td, .report th {{ border-width: 1px 0 0 }}
pre, code {{ font: 12px/1.4 monospace; white-space: pre-wrap }} .cell {{ background: #8881; padding: 8px }}
img {{ max-width: 100% }} blockquote {{ border-left: 3px solid #8886; margin: 0; padding-left: 12px }}
</style>{body}<script>onload = () => document.title = document.documentElement.scrollHeight</script>"""
THEMES = {"light": "background: #fff; color: #1f2328", "dark": "background: #0d1117; color: #e6edf3"}


def chromium(page: Path, *options: str) -> str:
    """What Chromium prints about a page."""
    name = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
    if name is None:
        raise SystemExit("no Chromium on the PATH: install one (apt-get install chromium), and run this again")
    done = subprocess.run([name, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                           "--virtual-time-budget=5000", *options, page.as_uri()],
                          capture_output=True, text=True, check=True, timeout=300)
    return done.stdout


def shoot(name: str, body: str, theme: str = "light", most: int = MOST) -> None:
    """Write an image of a page to docs/images, cut at `most` pixels. Prints how high the whole page is."""
    with tempfile.TemporaryDirectory() as folder:
        page, image = Path(folder) / "page.html", OUT / f"{name}.png"
        if not body.startswith("<!doctype"):
            body = PAGE.format(base=f"{ROOT.as_uri()}/", theme=THEMES[theme], body=body)
        page.write_text(body, encoding="utf-8")
        scheme = f"--blink-settings=preferredColorScheme={1 if theme == 'light' else 0}"
        dump = chromium(page, f"--window-size={WIDTH},600", "--dump-dom")
        found = re.search(r"<title>(\d+)</title>", dump)
        height = int(found[1]) if found else most
        chromium(page, f"--window-size={WIDTH},{min(height, most)}", f"--screenshot={image}", scheme)
    Image.open(image).convert("RGB").quantize(COLOURS).save(image, optimize=True)
    whole = f"{height} pixels high" if found else "of a page without a script, so not measured"
    print(f"{name}: {whole}, {min(height, most)} are shown, {image.stat().st_size // 1000} kB")


def notebook(path: Path, begin: str = "", fold: bool = False) -> str:
    """The cells of a notebook from that heading on, with their outputs. With `fold`, a cell that Kaggle hides is one
    line."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first = next(number for number, cell in enumerate(cells) if "".join(cell["source"]).startswith(begin))
    return "".join(part for cell in cells[first:] for part in _cell(cell, fold))


def _cell(cell: dict, fold: bool) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield MARKDOWN.render(source)
        return
    hidden = fold and cell["metadata"].get("_kg_hide-input")
    yield f'<pre class="cell">{html.escape(source.partition(chr(10))[0] + " …" if hidden else source)}</pre>'
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f'<img src="data:image/png;base64,{"".join(data["image/png"])}">'
        elif "text/html" in data:
            yield "".join(data["text/html"])
        else:
            yield f'<pre>{html.escape("".join(output.get("text", data.get("text/plain", ""))))}</pre>'


def live_view(log: Path) -> str:
    """The live view of GRPO as it stands at its last step."""
    board = Dashboard(RunLog(log), TimeBudget(grows=True), "GRPO with judge", RunLog(log).last("grpo_step")["step"])
    board._draw()
    return "<br>".join(part.value for part in board.widget.children if isinstance(getattr(part, "value", None), str))


def main() -> None:
    OUT.mkdir(exist_ok=True)
    rendered = ROOT / "notebooks" / "rendered"
    for theme in THEMES:
        shoot(f"report_{theme}", (ARTIFACTS / "report.html").read_text(encoding="utf-8"), theme, 570)
        shoot(f"live_view_{theme}", live_view(ARTIFACTS / "grpo" / "log.jsonl"), theme, 1200)
    for name, begin in (("03_grpo_with_judge", "## Training"), ("04_evaluation", "## All stages")):
        shoot(f"notebook_{name[:2]}", notebook(rendered / f"{name}.ipynb", begin))
    shoot("submission", notebook(ROOT / "notebooks" / "submission.ipynb", fold=True), most=1600)
    shoot("readme", MARKDOWN.render((ROOT / "README.md").read_text(encoding="utf-8")), most=3200)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
