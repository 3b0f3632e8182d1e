"""The notebooks as their users run them: from top to bottom, headless, in a folder of their own."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import nbformat
import pytest
from loopback import KEY, OPENAI, PROXIES, server

from reasonkit import config
from reasonkit.data import problems
from reasonkit.data.rows import read_rows
from reasonkit.session.interrupts import LOCK
from reasonkit.session.setup import find_recipe
from reasonkit.text.tags import TAGS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
from build import notebook_text  # noqa: E402
from kaggle_folder import write_folder  # noqa: E402

STAGES = ("data", "sft", "grpo", "evaluation")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_by_all")]


# What the chips still hold once a stage has deleted its models.
ALIVE = """
import gc
gc.collect()
print("bytes alive:", sum(array.nbytes for array in jax.live_arrays()))
"""


def execute(notebook: str | Path, folder: Path, path: Path, recipe: str = "g_rar", parameters: tuple[str, ...] = (),
            **environment: str) -> subprocess.CompletedProcess:
    """Run a notebook with the two-step profile, with `path` on the module path."""
    values = [part for value in ("PROFILE=smoke", f"RECIPE={recipe}", *parameters) for part in ("--set", value)]
    return subprocess.run(
        [sys.executable, str(ROOT / "notebooks/build.py"), "run", str(ROOT / "notebooks" / notebook),
         "--cwd", str(folder), *values],
        env={**os.environ, "PYTHONPATH": str(path), **environment}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(compiled_by_all, tmp_path_factory):
    """A folder in which all notebooks ran one after the other, each in a kernel of its own."""
    folder = tmp_path_factory.mktemp("run")
    for notebook in sorted(path.name for path in (ROOT / "notebooks").glob("0*.py")):
        done = execute(notebook, folder, ROOT)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return folder


def test_the_four_hand_over_through_manifests(finished):
    manifests = [json.loads((finished / "artifacts" / stage / "manifest.json").read_text()) for stage in STAGES]
    assert len({manifest["prompt_sha256"] for manifest in manifests}) == 1
    assert manifests[1]["lora"] == manifests[2]["lora"] is not None
    assert manifests[1]["extra"]["checkpoint_step"] < manifests[2]["extra"]["checkpoint_step"]


def test_a_recipe_without_a_teacher_has_nothing_done_for_it(finished):
    notebook = nbformat.read(finished / "artifacts/notebooks/01b_teacher_data.ipynb", as_version=4)
    told = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "these data need no teacher, so the cells below do nothing" in told
    assert not (finished / "artifacts/teacher").exists()


def test_a_tiny_teacher_writes_traces_that_notebook_1_reads(tmp_path):
    """Offline, with the questions of one's own file. The second time everything is there, and nothing is asked."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests/offline'}"
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        made = problems.make_splits(problems.load_recipe("tiny_mix"), {"train": 90}, 5)["train"]
        columns = ("question", "answer", "rubric")
        csv.writer(file).writerows([columns, *([row[name] for name in columns] for row in made)])
    shared = ("DATA=mine.csv", "SETTINGS={'sft_steps': 4}")
    parameters = (*shared, "STYLE=steps", "COUNT=48", "REJECT=1", "KEEP=2", "JUDGE=local")
    asked = []
    for _ in range(2):
        done = execute("01b_teacher_data.py", tmp_path, path, "gemmatron", parameters)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        asked.append((tmp_path / "artifacts/teacher/asked.jsonl").read_bytes())
    assert asked[0] == asked[1]
    left = tmp_path / "artifacts/teacher"
    kept, pairs = ([json.loads(line) for line in (left / f"{name}.jsonl").read_text().splitlines()]
                   for name in ("traces", "pairs"))
    assert len(kept) > 30 and len(pairs) > 20 and {row["endpoint"] for row in kept} == {"local"}
    notebook = nbformat.read(tmp_path / "artifacts/notebooks/01b_teacher_data.ipynb", as_version=4)
    shown = [output.data["text/html"] for cell in notebook.cells for output in cell.get("outputs", [])
             if "text/html" in output.get("data", {})]
    assert any('">&lt;reasoning&gt;</b>' in html for html in shown), "the tags are coloured, and text is escaped"
    done = execute("01_data_curation.py", tmp_path, path, "gemmatron", shared)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    rows = read_rows(tmp_path / "artifacts/data/train.parquet")
    worked = {row["question"]: row["reasoning"] for row in rows if row["reasoning"]}
    assert len(worked) > 20 and worked.items() <= {(row["question"], row["reasoning"]) for row in kept}
    assert set(rows["source"]) == {"notebook 1b", "mine"}, "what the teacher could not solve is there for GRPO"


def test_the_policy_itself_may_be_the_teacher(finished, tmp_path):
    """After SFT, for on-policy pairs. After two steps it knows no tags yet. Then nothing is kept, and the counts say
    why."""
    shutil.copytree(finished / "artifacts", tmp_path / "artifacts")
    left = tmp_path / "artifacts/teacher"
    done = execute("01b_teacher_data.py", tmp_path, ROOT, parameters=("TEACHER=policy", "COUNT=16", "TRIES=1"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "tiny-policy with the adapter of step 3 gave 16 completions to 16 questions, and none can be" in done.stdout
    assert "16 completions: format: missing_reasoning, as " in done.stdout
    assert json.loads((left / "manifest.json").read_text())["metrics"] == {"traces": 0}
    done = execute("01b_teacher_data.py", tmp_path, ROOT, parameters=(
        "TEACHER=policy", "COUNT=16", "TRIES=2", "STYLE=steps"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    traces = [json.loads(line) for line in (left / "traces.jsonl").read_text().splitlines()]
    assert {row["teacher"] for row in traces} == {"tiny-policy with the adapter of step 3"}
    assert any(row["tries"] == 2 for row in traces) and not (left / "pairs.jsonl").exists(), "REJECT is 0"


def test_the_key_of_an_api_teacher_is_in_no_file(tmp_path):
    """The service repeats the key in an error and in every text."""
    worked = islice(problems.make_problems(problems.load_recipe("tiny_mix"), "train", 0), 20)
    gold = {item.question: TAGS.render(reasoning=f"{item.reasoning}; {KEY}", answer=item.answer) for item in worked}
    times = []

    def respond(body):
        times.append(body)
        if len(times) == 1:
            return 429, {"Retry-After": "0.01", "X-Echo": KEY}, {"error": {"message": f"slow down, {KEY}"}}
        question = body["messages"][0]["content"].split("\n")[0]
        return 200, {}, json.loads(json.dumps(OPENAI).replace('"?"', json.dumps(gold[question])))

    with server(respond) as (address, _):
        done = execute("01b_teacher_data.py", tmp_path, ROOT, parameters=(
            "TEACHER=api", "COUNT=20", "PRICE=(1.0, 1.0)"), OPENAI_API_KEY=KEY, OPENAI_MODEL="some-model",
            OPENAI_BASE_URL=f"{address}/v1", GEMINI_API_KEY="", GOOGLE_API_KEY="", **dict.fromkeys(PROXIES, ""))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "20 completions to 20 of 20 questions, 0.0020 dollars so far" in done.stdout, done.stdout
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"asked.jsonl", "traces.jsonl", "01b_teacher_data.ipynb"} <= {path.name for path in files}
    for text in (done.stdout, done.stderr, *(path.read_text(errors="replace") for path in files)):
        assert KEY not in text and "very-secret" not in text


def test_a_key_that_is_refused_leaves_no_traces_and_the_run_goes_on(tmp_path):
    with server(lambda body: (401, {}, {"error": {"message": "no such key"}})) as (address, _):
        done = execute("01b_teacher_data.py", tmp_path, ROOT, "gemmatron", ("TEACHER=api", "PRICE=(1.0, 1.0)"),
                       OPENAI_API_KEY=KEY, OPENAI_MODEL="some-model", OPENAI_BASE_URL=f"{address}/v1",
                       GEMINI_API_KEY="", GOOGLE_API_KEY="", **dict.fromkeys(PROXIES, ""))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "stopped early (auth" in done.stdout and "gave 0 completions to 0 questions" in done.stdout
    done = execute("01_data_curation.py", tmp_path, ROOT, "gemmatron")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "solutions by the model, WITHOUT a teacher's solutions: notebook 1b kept none" in done.stdout


def test_the_judges_find_the_last_stage(finished):
    steps = [int(path.name) for path in (finished / "artifacts/checkpoints/actor").iterdir() if path.name.isdigit()]
    grpo = json.loads((finished / "artifacts/grpo/manifest.json").read_text())
    assert max(steps) == grpo["extra"]["checkpoint_step"] + 1, "notebook 4 has saved it once more, from all devices"


def test_report_and_curves_are_left(finished):
    report = (finished / "artifacts/report.html").read_text()
    assert "after GRPO" in report and "<script" not in report
    for stage in ("sft", "grpo"):
        assert (finished / "artifacts" / stage / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_live_view_is_in_the_executed_copy(finished):
    notebook = nbformat.read(finished / "artifacts/notebooks/03_grpo_with_judge.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    views = [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert len(views) == 1, "Tunix draws no bar of its own"
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output.text for output in outputs if "absl" in output.get("text", "")]


def test_the_tables_of_the_report_are_in_the_executed_copy(finished):
    notebook = nbformat.read(finished / "artifacts/notebooks/04_evaluation.ipynb", as_version=4)
    shown = [output.data["text/html"] for cell in notebook.cells for output in cell.get("outputs", [])
             if "text/html" in output.get("data", {})]
    for text in ("Step accuracy", "GRPO against SFT", "coins", "right answer", "Completions with each failure"):
        assert any(text in html for html in shown), text


@pytest.mark.parametrize(("notebook", "texts"), [
    ("02_sft_warm_start", ("set by", "to do", "tokens have a loss", "before SFT", "right answer", "Adam")),
    ("03_grpo_with_judge", ("set by", "worked solution", "advantage", "exact_answer_if_tag_format × 1"))])
def test_each_notebook_shows_what_it_is_about(finished, notebook, texts):
    cells = nbformat.read(finished / f"artifacts/notebooks/{notebook}.ipynb", as_version=4).cells
    shown = [output.data["text/html"] for cell in cells for output in cell.get("outputs", [])
             if "text/html" in output.get("data", {})]
    for text in texts:
        assert any(text in html for html in shown), text


ASKS = """
import json, sys
import reasonkit
assert "jax" not in sys.modules, "import reasonkit takes no time"
said, errors = [reasonkit.ask(question) for question in json.loads(sys.argv[1])], []
from reasonkit import inference
for question, folder in (("long " * 100, "artifacts"), ("How many?", "untrained"), ("How many?", "nowhere")):
    try:
        reasonkit.ask(question, folder)
    except ValueError as error:
        errors.append(str(error))
print(json.dumps({"answers": [one.answers for one in said], "texts": [*map(repr, said)], "errors": errors,
                  "loads": inference._generator.cache_info().misses, "html": said[0]._repr_html_()}))
"""


def test_ask_answers_from_the_folder_alone_and_only_reads_it(finished):
    """In a new process, while another one has the run's lock."""
    samples = {name: json.loads((finished / f"artifacts/evaluation/{name.replace(' ', '_').lower()}.json").read_text())
               ["samples"][:2] for name in ("base model", "after GRPO")}
    questions = [sample["question"] for sample in samples["base model"]]
    (finished / "untrained").mkdir()
    shutil.copy(finished / "artifacts/run.json", finished / "untrained")

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for name in ("artifacts", "untrained")
                for path in (finished / name).rglob("*")}

    before = files()
    with open(finished / "artifacts" / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, "-c", ASKS, json.dumps(questions)], cwd=finished, text=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
    assert files() == before
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["answers"] == [{name: samples[name][n]["completion"] for name in samples} for n in range(2)]
    assert said["loads"] == 1
    assert all(text in said["html"] for text in ("<table>", "base model", "after GRPO"))
    assert said["texts"][0].startswith(f"Asked:\n{questions[0]}\n\nbase model:\n")
    for error, told in zip(said["errors"], ("tokens", "run notebook 02 (02_sft_warm_start) first", "is no run"),
                           strict=True):
        assert told in error


def test_the_log_has_every_step_once_and_the_reward_that_was_trained_on(finished):
    rows = [json.loads(line) for line in (finished / "artifacts/grpo/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "grpo_step"] == [1, 2]
    reward = next(row for row in rows if row["event"] == "reward")
    assert reward["parts"].keys() == {"tag_format", "exact_answer_if_tag_format", "rubric", "suspicious"}
    assert {row["event"] for row in rows} >= {"reward", "grpo_step", "texts", "probe", "group"}


def test_a_recipe_without_a_rubric_loads_no_judge_and_has_all_the_chips(tmp_path):
    for notebook in ("01_data_curation.py", "02_sft_warm_start.py", "03_grpo_with_judge.py"):
        done = execute(notebook, tmp_path, ROOT, recipe="idea_e")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "fsdp=8, tp=1: there is no local judge" in done.stdout
    grpo = tmp_path / "artifacts/grpo"
    rows = [json.loads(line) for line in (grpo / "log.jsonl").read_text().splitlines()]
    reward = next(row for row in rows if row["event"] == "reward")
    parts = find_recipe("idea_e").rewards(None, ["How many?"])
    assert reward["parts"].keys() == {*(part.__name__ for part, _ in parts), "suspicious"}
    assert [row["step"] for row in rows if row["event"] == "pass_rates"] == [1, 2, 3]
    assert json.loads((grpo / "manifest.json").read_text())["metrics"]["judge_failures"] == {}


def test_the_rows_are_read_back_and_not_made_again(finished):
    before = {path: path.stat().st_mtime_ns for path in (finished / "artifacts/data").iterdir()}
    done = execute("01_data_curation.py", finished, ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "artifacts/data").iterdir()}


def test_a_finished_stage_is_read_back_and_not_trained_again(finished):
    before = (finished / "artifacts/grpo/log.jsonl").read_bytes()
    done = execute("03_grpo_with_judge.py", finished, ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (finished / "artifacts/grpo/log.jsonl").read_bytes() == before


def test_a_reward_model_is_read_back_once_grpo_has_begun_with_it(tmp_path):
    """On another processor its head would have other bits, and GRPO would refuse to go on with another judge."""
    said, written = [], []
    for stage in ("data", "sft", "reward_model", "grpo", "reward_model", "grpo"):
        done = execute(f"{config.STAGES[stage].notebook}.py", tmp_path, ROOT, "deep_corgi")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        if stage == "reward_model":
            said.append([text in done.stdout for text in ("features of tiny-judge", "GRPO has begun with it")])
            written.append((tmp_path / "artifacts/reward_model/head.safetensors").stat().st_mtime_ns)
    assert said == [[True, False], [False, True]] and written[0] == written[1]


@pytest.mark.parametrize("mount", ["NOTEBOOK", "notebooks/someone/show-your-work"])
def test_yesterdays_output_attached_as_an_input_goes_on_today(finished, tmp_path, mount):
    """By the cell that the docs give, on both of Kaggle's mounts. Only the evaluation is left to do. Without that cell
    the check stops, and says what to do."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    (cell,) = re.findall(r"Continue tomorrow.*?```py\n(.*?)```", page, re.DOTALL)
    kept, today = tmp_path / "kaggle/input" / mount / "artifacts", tmp_path / "working"
    shutil.copytree(finished / "artifacts", kept, ignore=shutil.ignore_patterns("evaluation", "report.html"))
    ledger = json.loads((kept / "ledger.json").read_text())
    (kept / "ledger.json").write_text(json.dumps({**ledger, "boot_id": "of yesterday"}))
    today.mkdir()
    done = execute("04_evaluation.py", today, ROOT, REASONKIT_INPUTS=str(tmp_path / "kaggle/input"))
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert f"(mkdir -p {today / 'artifacts'} && cp -r {kept}/. {today / 'artifacts'}/)` in a cell above" in told
    if mount == "NOTEBOOK":
        return
    subprocess.run([sys.executable, "-c", cell.replace("/kaggle", str(tmp_path / "kaggle"))], cwd=today, check=True)
    done = execute("04_evaluation.py", today, ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert json.loads((today / "artifacts/ledger.json").read_text())["boot_id"] != "of yesterday", "the clock went on"
    assert "after GRPO" in (today / "artifacts/report.html").read_text()


def test_a_notebook_out_of_turn_says_which_comes_first(tmp_path):
    done = execute("03_grpo_with_judge.py", tmp_path, ROOT)
    assert done.returncode == 1
    assert "run notebook 01" in done.stdout + done.stderr


@pytest.mark.parametrize(("recipe", "stages"), [("g_rar", ("sft", "grpo")), ("pinocchio", ("sft", "simpo", "grpo")),
                                               ("on_policy_distillation", ("sft", "distill"))])
def test_the_submission_runs_alone_offline_with_attached_models(recipe, stages, tmp_path):
    inputs, folder, path = tmp_path / "input", tmp_path / "working", tmp_path / "submission.ipynb"
    folder.mkdir()
    notebook = nbformat.reads(notebook_text(ROOT / "notebooks/submission_template.py", values={"RECIPE": recipe}), 4)
    for cell in notebook.cells:
        if cell.source.startswith("del policy") or "\ndel policy" in cell.source:
            cell.source += ALIVE
    path.write_text(nbformat.writes(notebook))
    for name in ("policy", "judge"):  # as an attached Kaggle data set: /kaggle/input/<slug>
        shutil.copytree(ROOT / "reasonkit/assets" / name, inputs / f"tiny-{name}")
    done = execute(path, folder, ROOT / "tests/offline", recipe, REASONKIT_INPUTS=str(inputs))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "the same adapter, the same" in done.stdout
    alive = list(map(int, re.findall(r"bytes alive: (\d+)", done.stdout)))
    assert len(alive) >= len(stages) and max(alive) < 1e6, f"{alive}: a stage left its models on the chips"
    assert not (folder / "reasonkit/assets").exists()
    report = (folder / "artifacts/report.html").read_text()
    assert all(f"after {config.STAGES[stage].title}" in report for stage in stages)
    steps = [json.loads((folder / "artifacts" / stage / "manifest.json").read_text())["extra"]["checkpoint_step"]
             for stage in stages]
    assert steps == sorted({*steps}), "the steps grow from stage to stage"


def test_a_notebook_of_another_stage_says_so_and_changes_nothing(finished):
    notebook = nbformat.read(finished / "artifacts/notebooks/02b_simpo.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.ename for output in outputs] == ["StageNotInRecipe"], "its first output and its last"
    assert not (finished / "artifacts/simpo").exists()


def test_the_short_notebook_runs_with_the_library_attached(tmp_path):
    """`make kaggle RECIPE=gemmatron`, as Kaggle mounts it: the data set, unpacked, and the models."""
    inputs, folder = tmp_path / "input", tmp_path / "working"
    folder.mkdir()
    write_folder("someone", tmp_path / "kaggle", {"RECIPE": "gemmatron"})
    shutil.copytree(tmp_path / "kaggle/library", inputs / "datasets/someone/reasonkit-library")
    for name in ("policy", "judge"):
        shutil.copytree(ROOT / "reasonkit/assets" / name, inputs / f"tiny-{name}")
    done = execute(tmp_path / "kaggle/notebook/show-your-work.ipynb", folder, ROOT / "tests/offline", "gemmatron",
                   REASONKIT_INPUTS=str(inputs))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "the same adapter, the same" in done.stdout  # the judges' loader
    assert {path.name for path in folder.iterdir()} == {"artifacts"}
    assert (folder / "artifacts/teacher/traces.jsonl").exists()
    report = (folder / "artifacts/report.html").read_text()
    assert "after SFT" in report and "after GRPO" in report
    library = inputs / "datasets/someone/reasonkit-library/packages"
    done = subprocess.run([sys.executable, "-c", "import reasonkit; print(reasonkit.__file__, reasonkit.ask('How?'))"],
                          cwd=folder, capture_output=True, text=True, check=False, env={
                              **os.environ, "PYTHONPATH": str(library), "REASONKIT_INPUTS": str(inputs)})
    assert done.stdout.startswith(str(library)) and "after GRPO:\n" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("attached", [False, True])
def test_the_submission_has_the_judges_names_and_sections(attached):
    notebook = nbformat.reads(notebook_text(ROOT / "notebooks/submission_template.py", attached=attached), as_version=4)
    assert ("%%files" in "".join(cell.source for cell in notebook.cells)) is not attached
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    names: dict = {}
    for line in code.splitlines():
        if line.startswith(("REASONING_START", "SOLUTION_START", "INF_", "SEED", "unrestricted_kaggle_model")):
            left, _, right = line.partition(" = ")
            values = [value.strip() for value in right.split("#")[0].split(",")]
            names |= dict(zip((name.strip() for name in left.split(",")), values, strict=True))
    assert names == {
        "REASONING_START": '"<reasoning>"', "REASONING_END": '"</reasoning>"', "SOLUTION_START": '"<answer>"',
        "SOLUTION_END": '"</answer>"', "INF_TEMPERATURE": "None", "INF_TOP_K": "1", "INF_TOP_P": "None", "SEED": "42",
        "unrestricted_kaggle_model": "None"}
    for name in ("PROMPT_TEMPLATE = TAGS.template", "MAX_PROMPT_LENGTH =", "MAX_GENERATION_STEPS =", "CKPT_DIR =",
                 "lora_policy, tokenizer, model_config ="):
        assert name in code
    assert TAGS.template.count("{question}") == 1
    headings = [line for cell in notebook.cells if cell.cell_type == "markdown"
                for line in cell.source.splitlines() if line.startswith("# ")]
    wanted = ["strategy", "data set", "Fine-tuning", "Unrestricted", "Other things"]
    places = [next(n for n, heading in enumerate(headings) if word in heading) for word in wanted]
    assert places == sorted(places)
