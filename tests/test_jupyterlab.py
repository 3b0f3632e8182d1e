"""What a reader sees and clicks in JupyterLab, in headless Chromium and in both themes: `make jupyterlab`.

Needs the extra `jupyterlab`, and Chromium: one on the PATH, or playwright's own (`playwright install chromium`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SUBMISSION = ROOT / "notebooks" / "submission.ipynb"
THEMES = ("JupyterLab Light", "JupyterLab Dark")
LEAST = 3.0  # contrast of text with its ground: WCAG's for large text and figures
CELLS = ("""
from pathlib import Path
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.show.dashboard import Dashboard
Path("run.jsonl").unlink(missing_ok=True)
log = RunLog("run.jsonl")
for step, total in enumerate((1.0, 10.0, -2.0, 0.5, 9.0, 3.0, -0.25, 2.0), 1):
    log.step = step
    log.write("reward", mode="train", mean=total, completions=8,
              parts={"rubric": {"mean": total, "weight": 1.0, "no_signal": 0.0}},
              sample={"prompt": "2 + 2?", "completion": f"<answer>{step}</answer>", "total": total,
                      "parts": {"rubric": total}})
    log.write("grpo_step", step=step, loss=0.1, kl=0.01, length=12.0, seconds=1.0)
Dashboard(log, TimeBudget(), "GRPO", 8).show()
""", """
from reasonkit.show.completions import sample_table
sample_table(log.read("reward"))
""", """
import jax
from reasonkit.models.load import load
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.show.completions import Ask
from reasonkit.train.rollout import generator
mesh = make_mesh(jax.devices()[:1], 1, 1)
policy = load("tiny-policy", mesh, "float32")
model = add_lora(policy.model, mesh, 4, 8.0)
answer = generator(model, policy.tokenizer, mesh, max_prompt_length=96, max_new_tokens=16, batch_size=1)
Ask(model, answer, {"base model": None}).show("What is 1 + 1?")
""")
RUN_ALL = """async () => {
  const app = window.jupyterapp, {context, sessionContext} = app.shell.currentWidget;
  await context.ready;
  await sessionContext.ready;
  await sessionContext.session.kernel.info;
  void app.commands.execute('notebook:run-all-cells');
}"""
# The contrast of each element's text with what lies behind it, as the browser paints them.
CONTRASTS = """elements => elements.map(element => {
  const paint = new OffscreenCanvas(1, 1).getContext('2d'), above = [];
  for (let e = element; e; e = e.parentElement) above.unshift(getComputedStyle(e));
  const light = () => {
    const part = x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map(x => part(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const fill = (colour, alpha) => {
    paint.globalAlpha = alpha; paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
  };
  above.forEach(style => fill(style.backgroundColor, 1));
  const ground = light(), own = above.at(-1);
  const svg = element instanceof SVGElement;
  fill(svg ? own.fill : own.color, above.reduce((alpha, style) => alpha * style.opacity, 1));
  const [low, high] = [ground, light()].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
})"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with the notebook and the submission. The address, and the folder of the reader's settings."""
    folder = tmp_path_factory.mktemp("lab")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # else it asks for one
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "run.ipynb")
    shutil.copy(SUBMISSION, folder)
    settings = folder / "settings"
    choose(settings, "notebook-extension/tracker", windowingMode="none")  # all cells are in the page
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
         "--ServerApp.token=", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
         f"--ServerApp.root_dir={folder}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JUPYTERLAB_SETTINGS_DIR": str(settings),
             "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/lab", settings
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def chromium():
    name = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=name and shutil.which(name), args=["--no-sandbox"])
        yield browser
        browser.close()


def choose(settings: Path, plugin: str, **values: object) -> None:
    """Set what a reader may set in JupyterLab's editor of settings."""
    path = settings / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture(params=THEMES)
def page(request, lab, chromium):
    """Opens a notebook in one of the themes."""
    address, settings = lab
    choose(settings, "apputils-extension/themes", theme=request.param)
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(120_000)

    def open_notebook(name: str) -> Page:
        page.goto(f"{address}/tree/{name}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_selector(f"body[data-jp-theme-name='{request.param}']", state="attached")
        return page

    yield open_notebook
    page.close()


def test_a_run_is_seen_sorted_and_asked(page):
    page = page("run.ipynb")
    page.evaluate(RUN_ALL)
    view, table, box = (page.locator(".jp-OutputArea").nth(number) for number in range(3))
    view.get_by_text("step 8 of 8").wait_for()
    assert view.locator("svg text").count() > 20 and view.get_by_text("<answer>").count() == 3

    head, totals = table.get_by_role("columnheader", name="total"), table.locator("tbody td:nth-child(3)")
    for largest_first in (True, False):
        head.click()
        shown = [float(text) for text in totals.all_inner_texts()]
        assert len(shown) == 8 and shown == sorted(shown, reverse=largest_first)

    box.locator("textarea").fill("What is 2 + 3?")
    box.get_by_role("button", name="Ask").click()
    box.get_by_text("Asked: What is 2 + 3?").wait_for()
    assert all(answer.strip() for answer in box.locator("td pre").all_inner_texts())

    for part in (view, table, box):
        text = part.locator("svg text, td, th, caption, pre, pre b, .widget-html-content div")
        contrasts = text.evaluate_all(CONTRASTS)
        assert min(contrasts) >= LEAST, contrasts


def test_the_library_of_the_submission_is_folded(page):
    cells = nbformat.read(SUBMISSION, as_version=4).cells
    page = page("submission.ipynb")
    page.wait_for_function(f"() => document.querySelectorAll('.jp-Notebook .jp-Cell').length == {len(cells)}")
    expect(page.locator(".jp-InputPlaceholder")).to_have_count(sum("jupyter" in cell.metadata for cell in cells))
    height = page.locator(".jp-WindowedPanel-outer").evaluate("panel => panel.scrollHeight")
    assert height < 27_000, "pixels: is the library folded?"
