"""Notebook generation and the headless runner, on small notebooks; and the limits that the real ones keep."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
import build  # noqa: E402
import kaggle_folder  # noqa: E402
import library_cells  # noqa: E402
import recipe_cells  # noqa: E402

from reasonkit.config import STAGES  # noqa: E402
from reasonkit.data.problems import load_recipe  # noqa: E402
from reasonkit.session.setup import find_recipe, recipe_names  # noqa: E402

NAMES = [stage.notebook for stage in STAGES.values()]

HEADER = "# ---\n# jupyter:\n#   jupytext:\n#     formats: ipynb,py:percent\n# ---\n\n"
NOTEBOOK = HEADER + '''# %% [markdown]
# # 2 · A heading
#
# ## A part

# %% tags=["parameters"]
PROFILE = "cpu"
SEED = 42  # the seed é
WIDE = (
    1,
)

# %%
# {{setup}}

# %% _kg_hide-input=true
# %pip --version
from reasonkit import tags

# %%
print("seed", SEED)

# %%
print("seed", SEED)

# %% tags=["clone"]
from tools import upload
print("only where the clone is at hand")
'''
SETUP = """# %% tags=["setup"]
PINS = '''
{{pins}}
''' + " {{libtpu}}"
"""
REQUIREMENTS = """# why
google-tunix==0.1.7
jax==0.10.2
# libtpu==0.0.42.1 ; sys_platform == "linux"
# Numbers and figures
numpy==2.4.6
"""
TEMPLATE = """# %% [markdown]
# # Submission

# %% tags=["parameters"]
RECIPE = "g_rar"

# %%
# {{setup}}

# %%
# {{library}}

# %%
# {{stages training}}

# %%
done = True
"""


@pytest.fixture
def root(tmp_path):
    """A small repository: the notebooks, a template and a library, of which a submission needs 13 files."""
    files = {f"notebooks/{name}.py": NOTEBOOK for name in NAMES}
    files["notebooks/submission_template.py"] = TEMPLATE
    files["notebooks/setup.py"], files["requirements.txt"] = SETUP, REQUIREMENTS
    files["notebooks/files.py"] = (ROOT / "notebooks/files.py").read_text()
    files["reasonkit/__init__.py"] = '"""Doc."""\n'
    files["reasonkit/tags.py"] = '"""Tags: \\n {braces} é."""\n\n\nTEXT = """\n%%bash\n  !ls $HOME {x}\n"""\n'
    files["reasonkit/tags.py"] += "def f():\n    run('python', '-m', 'reasonkit.worker')\n"
    files["reasonkit/worker.py"] = '"""Started."""\n'
    files["reasonkit/sums.py"] = '"""Imported by a family, as `reasonkit.stage` is not."""\n'
    files["reasonkit/stage.py"] = '"""Imports what others need, and nobody needs it."""\nfrom reasonkit import tags\n'
    files["reasonkit/assets/__init__.py"] = '"""Not in a submission."""\n'
    files["data_recipes/__init__.py"] = '"""Doc."""\n'
    files["data_recipes/mix.toml"] = 'licence = "MIT"\nfamilies = ["coins"]\ndomain = "maths"\n\n'
    files["data_recipes/other.toml"] = 'families = ["lamp"]\ndomain = "law"\n'
    files["data_recipes/families/lamp.py"] = '"""Of the other mix."""\nKIND = "smiles"\n'
    files["recipes/g_rar.py"], files["recipes/other.py"] = 'DATA = "mix"\n', 'DATA = "other"\n'
    files["tools/__init__.py"] = files["tools/upload.py"] = '"""Not in a submission."""\n'
    files["data_recipes/families/__init__.py"] = files["recipes/__init__.py"] = '"""Doc."""\n'
    files["data_recipes/families/coins.py"] = '"""No newline at the end."""\nimport reasonkit.sums\nKIND = "plan"'
    files["recipes/graders/__init__.py"] = '"""Grader\'s "doc"."""\n'
    files["recipes/graders/plan.py"] = '"""A kind that a family has."""\n'
    files["recipes/graders/smiles.py"] = '"""A kind that none has."""\n'
    files["data_recipes/rubrics/maths.toml"] = 'title = "Maths"\n'
    files["data_recipes/rubrics/law.toml"] = 'title = "Law"\n'
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def sources(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells]


def library_files(cells: list[nbformat.NotebookNode]) -> list[str]:
    """The paths of the files that the cells of a submission write, in order."""
    return [f"{cell.source.split()[1]}/{name}" for cell in cells if cell.source.startswith("%%files")
            for name in re.findall("^#### (.+)", cell.source, re.M)]


def notebook(tmp_path: Path, *cells: str, name: str = "small") -> Path:
    path = tmp_path / f"{name}.py"
    path.write_text("\n\n".join(f"# %% {cell}" for cell in cells), encoding="utf-8")
    return path


# -- generation


def test_build_writes_what_check_then_finds_up_to_date(root):
    names = {f"{name}.ipynb" for name in (*NAMES, "submission")}
    assert {path.name for path in build.build(root)} == names
    assert build.find_stale(root) == {} and build.build(root) == []

    (root / "reasonkit" / "tags.py").write_text('"""Other."""\n')
    (root / "notebooks" / "04_evaluation.ipynb").unlink()
    stale = [path.name for path in build.find_stale(root)]
    assert stale == ["04_evaluation.ipynb", "submission.ipynb"]


def test_the_same_bytes_every_time(root):
    first, second = build.find_stale(root), build.find_stale(root)
    assert first == second
    for text in first.values():
        parsed = json.loads(text)
        ids = [cell["id"] for cell in parsed["cells"]]
        assert len(set(ids)) == len(ids), "equal cells still have ids of their own"
        assert parsed["metadata"]["kernelspec"]["name"] == "python3"
        assert all(not cell.get("outputs") for cell in parsed["cells"])


def test_a_new_cell_leaves_the_other_ids_alone(root):
    path = root / "notebooks" / "01_data_curation.py"
    before = build.finish(build.read_source(path).cells, ROOT)
    path.write_text(NOTEBOOK.replace("# %% [markdown]", "# %%\nprint('new')\n\n# %% [markdown]", 1))
    after = build.finish(build.read_source(path).cells, ROOT)
    ids = [{cell["id"] for cell in json.loads(text)["cells"]} for text in (before, after)]
    assert ids[0] < ids[1]


def test_the_setup_cell_has_the_pins_of_the_requirements(root):
    for name in ("01_data_curation", "submission"):
        cells = nbformat.reads(build.find_stale(root)[root / "notebooks" / f"{name}.ipynb"], as_version=4).cells
        setups = [cell.source for cell in cells if "PINS" in cell.source]
        assert setups == ["PINS = '''\ngoogle-tunix==0.1.7 jax==0.10.2\n''' + \" libtpu==0.0.42.1\""]
    (root / "requirements.txt").write_text("jax==0.10.2\n")
    with pytest.raises(ValueError, match="no libtpu"):
        build.find_stale(root)


def test_metadata_and_magics_survive(root):
    cells = json.loads(build.find_stale(root)[root / "notebooks" / "01_data_curation.ipynb"])["cells"]
    assert [cell["metadata"] for cell in cells[:4]] == [
        {},
        {"tags": ["parameters"]},
        {"tags": ["setup"]},
        {"_kg_hide-input": True},
    ]
    assert cells[3]["source"] == ["%pip --version\n", "from reasonkit import tags"]


def test_submission_holds_the_library_and_the_notebook(root):
    build.build(root)
    submission = nbformat.read(root / "notebooks" / "submission.ipynb", as_version=4)
    written = [c for c in submission.cells if c.source.startswith("%%files")]
    assert [c.source.split("\n")[0].split()[1] for c in written] == [
        "data_recipes", "data_recipes/families", "data_recipes/rubrics", "reasonkit", "recipes", "recipes/graders"]
    assert library_files(submission.cells) == [
        "data_recipes/__init__.py", "data_recipes/mix.toml",
        "data_recipes/families/__init__.py", "data_recipes/families/coins.py",
        "data_recipes/rubrics/maths.toml",
        "reasonkit/__init__.py", "reasonkit/sums.py", "reasonkit/tags.py", "reasonkit/worker.py",
        "recipes/__init__.py", "recipes/g_rar.py",
        "recipes/graders/__init__.py", "recipes/graders/plan.py",
    ]
    assert written[3].source.split("\n")[1] == "# @title reasonkit: sums, tags, worker"
    # folded on Kaggle, in JupyterLab and on Colab
    folded = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}, "cellView": "form"}
    assert all(cell.metadata == folded for cell in written)
    rest = [c.source for c in submission.cells if c not in written]
    assert rest[:2] == ["# Submission", 'RECIPE = "g_rar"']
    assert rest[2].startswith("PINS") and "def files(" in rest[3]
    own = "WIDE = (\n    1,\n)"  # a parameter that the submission has not
    part = ["## A heading\n\n### A part", own, "%pip --version\nfrom reasonkit import tags",
            *['print("seed", SEED)'] * 2]
    assert rest[4:] == [*part, *part, "done = True"], "its two stages"


def test_the_cells_restore_the_files(root, tmp_path_factory, monkeypatch, capsys):
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    shell = InteractiveShell()
    cells = [cell for name in ("01_data_curation", "submission_template")
             for cell in build.read_source(root / f"notebooks/{name}.py").cells if "upload" not in cell.source]
    needed = build.library(cells, root)
    for cell in build.library_cells(needed, root):
        shell.run_cell(cell.source).raise_error()
    files = [path for path in empty.rglob("*") if path.is_file()]
    assert len(files) == 13
    for path in files:
        original = (root / path.relative_to(empty)).read_bytes()
        assert path.read_bytes() == original.rstrip(b"\n") + b"\n"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("notebooks/submission_template.py", "# %%\n# {{libary}}\n", "unknown marker '# {{libary}}'"),
        ("notebooks/submission_template.py", "# %%\n# {{notebook}}\n", "unknown marker"),
        ("notebooks/submission_template.py", "# %%\n# {{stages all}}\n", "unknown marker"),
        ("notebooks/submission_template.py", "# %%\n# {{notebook 09_none}}\n", "09_none.py does not exist"),
        ("reasonkit/tags.py", "TEXT = 1\n#### a heading\n", "reasonkit/tags.py has a line that begins with '#### '"),
    ],
)
def test_bad_sources_are_named(root, file, text, message):
    (root / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        build.find_stale(root)


@pytest.mark.parametrize("file", ["reasonkit/__init__.py", "recipes/g_rar.py", "data_recipes/rubrics/maths.toml"])
def test_a_library_file_that_is_not_there_is_named(root, file):
    (root / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} does not exist"):
        build.find_stale(root)


@pytest.mark.parametrize(("tags", "clone", "g_rar", "pinocchio"), [
    ([], True, True, True), (["library"], True, True, True), (["clone"], True, False, False),
    (["clone", "pinocchio"], True, False, True), (["pinocchio"], False, False, True)])
def test_tags_decide_where_a_cell_is(tags, clone, g_rar, pinocchio):
    cell = nbformat.v4.new_code_cell("1", metadata={"tags": tags})
    places = build.is_in(cell, "g_rar", True), build.is_in(cell, "g_rar", False), build.is_in(cell, "pinocchio", False)
    assert places == (clone, g_rar, pinocchio)


# -- parameters


def test_parameters_are_replaced_in_place(root):
    cells = build.read_source(root / "notebooks" / "01_data_curation.py")
    build.set_parameters(cells, {"SEED": 7, "WIDE": "kaggle"})
    assert cells.cells[1].source.splitlines() == ['PROFILE = "cpu"', "SEED = 7  # the seed é", 'WIDE = "kaggle"']


def test_bad_parameters_are_named(root):
    with pytest.raises(ValueError, match="no parameter 'SEEDS' in this notebook; it has PROFILE, SEED, WIDE"):
        build.set_parameters(build.read_source(root / "notebooks" / "01_data_curation.py"), {"SEEDS": 7})


def test_each_notebook_gets_the_values_it_has_a_parameter_for():
    paths = build.notebooks_of("g_rar")
    first, *others = build.set_of_each(paths, {"SEED": 7, "DATA": "packaged"}).values()
    assert first == {"SEED": 7, "DATA": "packaged"} and others == [{"SEED": 7}] * 3
    with pytest.raises(ValueError, match="no parameter SEEDS in the notebooks: they have DATA, .*SEED"):
        build.set_of_each(paths, {"SEEDS": 7})


def test_a_notebook_without_parameters_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 cells are tagged 'parameters'"):
        build.set_parameters(build.read_source(notebook(tmp_path, "\nx = 1")), {"x": 2})


def test_parameter_values_are_literals_or_text():
    assert build.parameter("SEED=3") == ("SEED", 3)
    assert build.parameter("RECIPE=g_rar") == ("RECIPE", "g_rar")
    assert build.parameter("NAME=a=b") == ("NAME", "a=b")
    with pytest.raises(build.argparse.ArgumentTypeError, match="'SEED' is not NAME=VALUE"):
        build.parameter("SEED")


# -- the runner


@pytest.mark.slow
def test_run_streams_reports_and_keeps_the_copy(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PASSED_ON", "through")
    monkeypatch.setenv("REASONKIT_ARTIFACTS", "artifacts-2")
    path = notebook(
        tmp_path,
        '[markdown]\n# ## The part',
        'tags=["parameters"]\nSEED = 1',
        '\nimport os, sys\nprint(SEED, os.environ["PASSED_ON"], end="")',
        "\nprint(os.getcwd())\nprint(sys.executable)",
    )
    cwd = tmp_path / "elsewhere"
    cwd.mkdir()
    assert build.main(["run", str(path), "--set", "SEED=5", "--cwd", str(cwd)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[small cell 2/4] ") and lines[0].endswith("s  The part")
    assert lines[1] == "5 through" and lines[2].startswith("[small cell 3/4] ")
    assert lines[3] == str(cwd) and Path(lines[4]).samefile(sys.executable)
    copy = cwd / "artifacts-2" / "notebooks" / "small.ipynb"
    assert lines[-1].endswith(f"executed copy: {copy}")
    assert nbformat.read(copy, as_version=4).cells[2].outputs[0].text == "5 through"


@pytest.mark.slow
def test_a_live_view_is_told_without_a_page(tmp_path, capsys, monkeypatch):
    """A training cell prints nothing for minutes: its live view's status line does instead."""
    path = notebook(tmp_path, """
from reasonkit.session.time_budget import TimeBudget
from reasonkit.show.dashboard import Dashboard
from reasonkit.session.run_log import RunLog
log = RunLog("run.jsonl")
for step, seconds in ((1, 9.0), (2, 0.1), (3, 0.1)):  # the first one compiles
    log.write("sft_step", step=step, loss=1.0, seconds=seconds)
Dashboard(log, TimeBudget(), "SFT", 7).show()""")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert build.main(["run", str(path), "--cwd", str(tmp_path)]) == 0
    assert "[small] step 3 of 7 · 0.1 s per step" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failing_cell_stops_the_run(tmp_path, capsys):
    path = notebook(tmp_path, "\nlimit = 0\n1 / limit", '\nprint("never")')
    assert build.main(["run", str(path), "--cwd", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "1 / limit" in out and "ZeroDivisionError" in out and "never" not in out and "\x1b" not in out
    copy = nbformat.read(tmp_path / "artifacts" / "notebooks" / "small.ipynb", as_version=4)
    assert copy.cells[0].outputs[0].ename == "ZeroDivisionError"


@pytest.mark.slow
def test_a_dead_kernel_is_told(tmp_path, capsys):
    path = notebook(tmp_path, "\nimport os\nos._exit(9)")
    assert build.main(["run", str(path), "--cwd", str(tmp_path)]) == 1
    assert "small.py: the kernel died" in capsys.readouterr().out


def test_a_path_that_is_not_there_is_named(tmp_path, capsys):
    assert build.main(["run", str(tmp_path / "none.py")]) == 2
    assert "none.py does not exist" in capsys.readouterr().err


# -- the real notebooks


def test_generated_notebooks_are_up_to_date():
    stale = [path.name for path in build.find_stale()]
    assert stale == [], "run `make notebooks` and commit the result"


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "notebooks").glob("0*.py")))
def test_notebooks_stay_readable(name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert len(cells) <= 35
    assert code[0].metadata.get("tags") == ["parameters"], "the first code cell holds the parameters"
    for cell in code:
        assert len(cell.source.splitlines()) <= 15, cell.source
        assert "input(" not in cell.source and "login(" not in cell.source, cell.source


@pytest.mark.parametrize("name", [stage.notebook for stage in STAGES.values() if stage.trains])
def test_an_evaluation_is_timed_before_a_stage_is_trained(name):
    """Else the clock keeps 20 minutes for the evaluation of a run without GRPO, where Kaggle needs 40."""
    source = (ROOT / f"notebooks/{name}.py").read_text()
    assert 0 < source.find('with run.budget.measure("probe"') < source.find("if run.begin(")


def test_the_pictures_of_the_submission_are_in_it():
    cells = nbformat.read(ROOT / "notebooks/submission.ipynb", as_version=4).cells
    shown = [(cell, name) for cell in cells if cell.cell_type == "markdown"
             for name in re.findall(r"!\[[^]]+\]\(attachment:(\w+\.png)\)", cell.source)]
    assert shown and not any("docs/images" in cell.source for cell in cells if cell.cell_type == "markdown")
    for cell, name in shown:
        assert b64decode(cell.attachments[name]["image/png"]) == (ROOT / "docs/images" / name).read_bytes()


@pytest.mark.parametrize("name", recipe_names())
def test_the_submission_of_a_recipe_has_its_stages_and_its_library_only(name, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "OUT", tmp_path)
    path, recipe = build.write_submission({"RECIPE": name}), find_recipe(name)
    cells = nbformat.read(path, as_version=4).cells
    sources = {path.stem: path.read_text() for path in (ROOT / "notebooks").glob("0*.py")}
    titles = {stage: re.search(r"^# # (?:\w+ · )?(.+)", sources[found.notebook], re.M)[1]
              for stage, found in STAGES.items() if found.notebook in sources}
    headings = re.findall("^## (.+)", "\n".join(c.source for c in cells if c.cell_type == "markdown"), re.M)
    assert [stage for title in headings for stage in titles if titles[stage] == title] == recipe.stages
    written = {*library_files(cells)}
    assert {f"recipes/{other}.py" for other in recipe_names()} & written == {f"recipes/{name}.py"}
    for stage, module in (("simpo", "simpo"), ("teacher", "teacher"), ("distill", "distill")):
        assert (f"recipes/stages/{module}.py" in written) == (stage in recipe.shares)
    code = [cell.source for cell in cells if cell.cell_type == "code" and not cell.source.startswith("%%")]
    assert sum(f'RECIPE = "{name}"' in cell for cell in code) == 1 == sum("SETTINGS = {" in cell for cell in code)
    assert sum(cell.count("\nTEACHER = ") for cell in code) == 1, "the check before all chapters knows it"
    assert [cell.count('DATA, "submission", TEACHER') for cell in code if "precheck(" in cell] == [1]
    packaged = load_recipe("packaged").sources
    domains = {f"data_recipes/rubrics/{source.rubric or source.domain}.toml" for source in packaged}
    assert {"data_recipes/packaged.toml", *(path for path in domains if (ROOT / path).is_file()), *(
        f"data_recipes/families/{family}.py" for family in packaged[-1].families)} <= written


@pytest.mark.parametrize("name", recipe_names())
def test_pinocchios_submission_alone_has_the_judge_behind_an_api(name):
    text = build.notebook_text(ROOT / "notebooks/submission_template.py", values={"RECIPE": name})
    cells = nbformat.reads(text, as_version=4).cells
    written = [path for path in library_files(cells) if path.startswith("recipes/judges/api_") or "score_sheet" in path]
    assert len(written) == (4 if name == "pinocchio" or "teacher" in find_recipe(name).shares else 0)
    told = [sum(words in cell.source for cell in cells if not cell.source.startswith("%%files"))
            for words in ("use a judge behind an API", "judge = api_judge.from_secrets(", "api_judge=False)")]
    assert told == ([1, 1, 0] if name == "pinocchio" else [0, 0, 1]), "and the check of the others knows"


@pytest.mark.parametrize("name", recipe_names())
def test_a_submission_describes_its_own_recipe(name, tmp_path, monkeypatch):
    """All used to say that they were `g_rar`, with its models, its minutes and its results."""
    monkeypatch.setattr(build, "OUT", tmp_path)
    texts = [cell.source for cell in nbformat.read(build.write_submission({"RECIPE": name}), as_version=4).cells
             if cell.cell_type == "markdown"]
    head = "\n".join(texts[:next(n for n, text in enumerate(texts) if text.startswith("# 1 ·"))])
    recipe, page = find_recipe(name), (ROOT / f"recipes/{name}.md").read_text()
    assert f"## The recipe `{name}`: " in head and recipe.summary in head
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) >= 3 and all(row in head for row in rows), "the results of its own demo run"
    assert ("Why this recipe, and what its controls say" in head) == (name == "g_rar") == ("live_view" in head)
    assert not re.search(r"\]\((?!attachment:)", head) and "RESULTS" not in head, "nothing leads out of it"
    assert "{{" not in head
    assert "Gemma 2 `gemma2-2b-it`" in head
    needs_12b = {"teacher", "reward_model"} & {*recipe.shares} or recipe.uses_judge
    assert ("`gemma3-12b-it`" in head) == bool(needs_12b) and ("`gemma2-9b-it`" in head) == ("distill" in recipe.shares)


def test_a_recipe_without_a_page_is_described_by_its_own_text(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/g_rar.py").write_text('"""Mine: shorter.\n\nFor a friend."""\n')
    (cell,) = recipe_cells.recipe_cells("g_rar", tmp_path)
    assert cell.source == "## The recipe `g_rar`: SFT → GRPO\n\nMine: shorter.\n\nFor a friend."


def test_a_submission_grades_every_kind_that_it_may_infer(tmp_path, monkeypatch):
    """DeepMath's golds are formulas, and one's own may be. The folder has the submission's files only."""
    shell = InteractiveShell()
    monkeypatch.chdir(tmp_path)
    for cell in nbformat.read(ROOT / "notebooks/submission.ipynb", as_version=4).cells:
        if cell.source.startswith("%%files") or "def files(" in cell.source:
            shell.run_cell(cell.source).raise_error()
    golds = ["1,200", "no", "(B)", "\\frac{1}{2}", "Vitamin K"]
    code = ("import reasonkit; from reasonkit.data.readers import answer_kind;"
            "from reasonkit.text.answers import check;"
            f"print(reasonkit.__file__, [check(gold, gold, answer_kind(gold)).correct for gold in {golds!r}])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.stdout == f"{tmp_path}/reasonkit/__init__.py {[True] * len(golds)}\n", done.stderr


def test_a_changed_file_of_the_library_asks_for_a_new_kernel_once_it_is_imported(tmp_path, monkeypatch):
    """A submission went on with the old code in silence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shell, magic = InteractiveShell(), (ROOT / "notebooks/files.py").read_text()

    def write(value):
        shell.run_cell(f"%%files kept_by_python\n#### __init__.py\n\n#### part.py\nvalue = {value}").raise_error()

    shell.run_cell(magic).raise_error()
    write(1)
    write(2)
    assert importlib.import_module("kept_by_python.part").value == 2
    write(2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^kept_by_python: part.py changed, and this kernel .* Restart it"):
            write(3)
    monkeypatch.delitem(sys.modules, "kept_by_python.part")  # as after a restart
    write(3)
    assert "value = 3" in (tmp_path / "kept_by_python/part.py").read_text()


@pytest.mark.parametrize(("recipe", "data", "count"), [
    ("g_rar", "packaged", 2000), ("gym", "packaged", 2000), ("legal", "mine.csv", 2), ("tunix_demo", "medical", 0)])
def test_a_submission_can_read_the_data_that_its_first_cell_names(tmp_path, monkeypatch, recipe, data, count):
    """A mix by name, and a file of one's own. All have the mix without the hub, whatever DATA was when they were made.
    The folder has the submission's files only, and `count` rows come from no network."""
    monkeypatch.setattr(build, "OUT", tmp_path / "build")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("question,answer\nIs a whale a fish?,no\n1 + 1?,2\n")
    made, shell = build.write_submission({"RECIPE": recipe, "DATA": data.replace("packaged", "")}), InteractiveShell()
    for cell in nbformat.read(made, as_version=4).cells:
        if cell.source.startswith("%%files") or "def files(" in cell.source:
            shell.run_cell(cell.source).raise_error()
    code = ("from reasonkit.data.curation import domain_rubric, read_sources;"
            "from reasonkit.data.own_file import load_data;"
            "from reasonkit.data.filters import Ledger;"
            f"found = load_data({data!r});"
            "[domain_rubric(found, source.rubric or source.domain) for source in found.sources];"
            "here = [source for source in found.sources if source.kind_of in ('file', 'family')];"
            "rows = read_sources(found.model_copy(update={'sources': here}), 0, Ledger());"
            "print(len(found.sources) > 0, len(rows))")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert not done.returncode, done.stderr[-2000:]
    assert done.stdout == f"True {count}\n"


def test_a_submission_for_a_file_of_ones_own_has_all_rubrics(tmp_path, monkeypatch):
    """Each question of the file gets the rubric of its domain, as in a clone."""
    monkeypatch.setattr(build, "OUT", tmp_path)
    cells = nbformat.read(build.write_submission({"RECIPE": "g_exact", "DATA": "mine.csv"}), as_version=4).cells
    (cell,) = [cell.source for cell in cells if cell.source.startswith("%%files data_recipes/rubrics")]
    names = [path.name for path in (ROOT / "data_recipes/rubrics").glob("*.toml")]
    assert len(names) > 5 and all(f"{library_cells.FILE_MARK}{name}\n" in cell for name in names)


def test_a_mistyped_mix_is_named_with_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "OUT", tmp_path)
    assert build.main(["submission", "--set", "DATA=gsm8"]) == 2
    assert "The nearest is 'gsm8k'" in capsys.readouterr().err
    assert kaggle_folder.main(["--owner", "me", "--out", str(tmp_path / "k"), "--set", "DATA=gsm8"]) == 2
    assert "The nearest is 'gsm8k'" in capsys.readouterr().err


def test_the_submission_of_an_unknown_recipe_is_refused(capsys):
    assert build.main(["submission", "--set", "RECIPE=g_rare"]) == 2
    assert "The nearest is 'g_rar'" in capsys.readouterr().err


# The folder for the Kaggle CLI


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    out = tmp_path_factory.mktemp("kaggle") / "made"
    kaggle_folder.write_folder("someone", out, {})
    return out


def metadata(out: Path, name: str) -> dict:
    return json.loads((out / f"{name}-metadata.json").read_text())


def test_the_folder_for_kaggle_names_what_to_attach(kaggle, tmp_path):
    kernel, data = metadata(kaggle / "notebook", "kernel"), metadata(kaggle / "library", "dataset")
    assert kernel["dataset_sources"] == [data["id"]] == ["someone/reasonkit-library"]
    assert kernel["model_sources"] == ["google/gemma-2/flax/gemma2-2b-it/1", "google/gemma-3/flax/gemma3-12b-it/1"]
    assert kernel["enable_tpu"] and kernel["enable_internet"] and kernel["is_private"] and not kernel["enable_gpu"]
    for about in (kernel, data):  # Kaggle makes the slug of the title
        assert about["id"] == f"someone/{about['title'].replace(' ', '-')}" and 6 <= len(about["title"]) <= 50
    assert (kaggle / "notebook" / kernel["code_file"]).is_file()


@pytest.mark.parametrize(("recipe", "values", "models"), [
    ("idea_e", {}, ["gemma-2/flax/gemma2-2b-it"]),  # without a judge
    ("worked_sft", {"SETTINGS": {"policy": "gemma3-1b-it"}}, ["gemma-3/flax/gemma3-1b-it"]),
    ("gemmatron", {}, ["gemma-2/flax/gemma2-2b-it", "gemma-3/flax/gemma3-12b-it"]),  # it writes the traces
    ("gemmatron", {"TEACHER": "gemma3-4b-it"}, ["gemma-2/flax/gemma2-2b-it", "gemma-3/flax/gemma3-4b-it"]),
    ("gemmatron", {"TEACHER": "api"}, ["gemma-2/flax/gemma2-2b-it"]),
    ("on_policy_distillation", {}, ["gemma-2/flax/gemma2-2b-it", "gemma-2/flax/gemma2-9b-it"]),
    ("on_policy_distillation", {"SETTINGS": {"policy": "gemma3-1b-it"}},
     ["gemma-3/flax/gemma3-1b-it", "gemma-3/flax/gemma3-12b-it"])])
def test_every_model_that_a_recipe_loads_is_attached(tmp_path, recipe, values, models):
    kaggle_folder.write_folder("someone", tmp_path, {"RECIPE": recipe, **values})
    kernel = metadata(tmp_path / "notebook", "kernel")
    assert kernel["model_sources"] == [f"google/{model}/1" for model in models]


def test_the_short_notebook_is_the_submission_without_its_library(kaggle):
    short = sources(kaggle / "notebook/show-your-work.ipynb")
    whole = sources(ROOT / "notebooks/submission.ipynb")
    assert not [cell for cell in short if cell.startswith("%%files")]
    other = [cell for cell in short if cell not in whole]
    assert len(other) == 2 and "## The library" in other[0] and "sys.path.insert" in other[1]
    library = "%%files", "## The library", "# @title"
    assert [cell for cell in short if cell in whole] == [cell for cell in whole if not cell.startswith(library)]


def test_the_data_set_holds_the_packages_and_no_models(kaggle):
    packages = kaggle / "library/packages"
    assert {path.name for path in packages.iterdir()} == {*kaggle_folder.PACKAGES}
    assert not list(packages.rglob("__pycache__")) and not list(packages.rglob("tokenizer.model"))
    for path in packages.rglob("*.py"):
        assert path.read_bytes() == (ROOT / path.relative_to(packages)).read_bytes()


def test_what_kaggle_could_not_run_is_refused_and_no_folder_but_its_own_is_removed(kaggle, tmp_path, capsys):
    wrong = [("", {}, "owner ''"), ("a/b", {}, "owner 'a/b'"), ("me", {"RECIPES": "x"}, "RECIPES"),
             ("me", {"PROFILE": "cpu"}, "no models on Kaggle"), ("me", {"RECIPE": "x"}, "recipe 'x'"),
             ("me", {"TEACHER": "x"}, "unknown TEACHER 'x'")]
    for owner, values, told in wrong:
        options = [text for name, value in values.items() for text in ("--set", f"{name}={value}")]
        assert kaggle_folder.main(["--owner", owner, "--out", str(tmp_path / "out"), *options]) == 2
        assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "mine").write_text("kept")
    assert kaggle_folder.main(["--owner", "me", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "mine").read_text() == "kept"
    assert kaggle_folder.main(["--owner", "me", "--out", str(kaggle)]) == 0  # made anew
    assert metadata(kaggle / "notebook", "kernel")["id"] == "me/show-your-work"
    assert f"kaggle kernels push -p {kaggle}/notebook" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*build.STAGE_OF])
def test_the_check_of_a_notebook_asks_for_its_own_parameters(name):
    """All of them that decide what is loaded. Another name would not be defined."""
    cells = nbformat.reads(build.notebook_text(build.ROOT / "notebooks" / f"{name}.py"), as_version=4).cells
    given = {node.id for cell in cells if "parameters" in cell.metadata.get("tags", ())
             for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
    (check,) = (node for cell in cells if cell.source.startswith("from reasonkit.precheck")
                for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call))
    asked = {node.id for node in ast.walk(check) if isinstance(node, ast.Name) and node.id.isupper()}
    assert asked == given & {"PROFILE", "RECIPE", "SEED", "SETTINGS", "DATA", "TEACHER", "JUDGE"}
