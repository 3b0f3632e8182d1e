"""A stranger's path: 50 questions in a CSV, the notebooks, one command, and the programs of others ask the model.

Needs the extra `parity` (PyTorch, PEFT, llama.cpp's runtime) and llama.cpp's converter, which `make parity` installs.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from reasonkit.data.problems import make_problem
from reasonkit.data.rows import read_rows
from reasonkit.eval.evaluate import EvalResult
from reasonkit.models.load import load
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
from tools.export import export_hf
from tools.trained import load_trained

ROOT = Path(__file__).resolve().parents[1]
LLAMA_CPP = Path(sys.prefix) / "llama.cpp"  # see the Makefile
ASKED = "What is 12 + 7?"  # by the model card
NEW_TOKENS = 64
PROBLEMS = [make_problem("coins", number, seed=7) for number in range(50)]


def command(folder: Path, *arguments: str, **given) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, *arguments], cwd=folder, text=True, capture_output=True, check=False,
                          env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}, **given)
    assert not done.returncode, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def card_code(folder: Path) -> str:
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clean folder but for the questions."""
    folder = tmp_path_factory.mktemp("stranger")
    with open(folder / "mine.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "reasoning", "answer"])
        rows.writerows([problem.question, problem.reasoning, problem.answer] for problem in PROBLEMS)
    return folder


@pytest.fixture(scope="module")
def path(folder):
    """What each command of the path printed, and the minutes of all."""
    started, hf = time.monotonic(), folder / "artifacts/export/hf"
    said = {
        "trained and asked": command(folder, str(ROOT / "notebooks/build.py"), "run", "--cwd", str(folder), "--set",
                                     "PROFILE=smoke", "--set", "RECIPE=g_exact", "--set", "DATA=mine.csv", "--set",
                                     "SETTINGS={'sft_steps': 60}"),  # so that it answers in tags, and some rightly
        "exported": command(folder, "-m", "tools.share", "--merged", "--llama-cpp", str(LLAMA_CPP))}
    said["asked in transformers"] = command(hf, "-c", card_code(hf))
    return said, (time.monotonic() - started) / 60


@pytest.fixture(scope="module")
def ask(path, folder):
    """The trained policy, loaded again by reasonkit, its mesh, and it as a function from prompts to completions."""
    _, policy, mesh, _ = load_trained(folder / "artifacts")
    return policy, mesh, generator(policy.model, policy.tokenizer, mesh, max_prompt_length=128,
                                   max_new_tokens=NEW_TOKENS, batch_size=8)


def test_from_a_file_of_questions_to_a_reply_in_transformers(path, ask, folder, capsys):
    said, minutes = path
    with capsys.disabled():
        print(f"\nfrom a CSV to a reply in transformers: {len(said)} commands, {minutes:.1f} minutes")
    assert len(said) <= 8
    files = (folder / "artifacts/data").glob("*.parquet")
    asked = {question for file in files for question in read_rows(file)["question"]}
    assert asked == {problem.question for problem in PROBLEMS}
    notebook = nbformat.read(folder / "artifacts/notebooks/04_evaluation.ipynb", as_version=4)
    shown = [output.data["text/html"] for cell in notebook.cells if "ask.show" in cell.source
             for output in cell.outputs if "text/html" in output.get("data", {})]
    assert len(shown) == 1 and any(f"Asked: {problem.question}" in shown[0] for problem in PROBLEMS)
    assert said["asked in transformers"] == ask[2]([TAGS.prompt(ASKED)])[0] + "\n" != "\n"


def test_peft_says_the_same(ask, folder, tmp_path):
    """The adapter on the base model in Hugging Face's files."""
    policy, mesh, generate = ask
    base = load(policy.name, mesh, "float32")
    export_hf(dataclasses.replace(base, folder=policy.folder), tmp_path / "base")
    peft = folder / "artifacts/export/peft"
    code = card_code(peft)
    assert '"tiny-policy"' in code
    said = command(peft, "-c", code.replace('"tiny-policy"', repr(str(tmp_path / "base"))))
    assert said == generate([TAGS.prompt(ASKED)])[0] + "\n"


def test_llama_cpp_says_the_same(ask, folder):
    """By our prompt, and by the chat template that the converter has put into the file."""
    questions = [problem.question for problem in PROBLEMS[:12]]
    job = {"file": str(folder / "artifacts/export/hf/model.gguf"), "chats": questions, "new_tokens": NEW_TOKENS,
           "prompts": [TAGS.prompt(question) for question in questions]}
    said = json.loads(command(folder, str(ROOT / "tests/llama_run.py"), input=json.dumps(job)).splitlines()[-1])
    assert said["prompts"] == said["chats"] == ask[2](job["prompts"])


def test_lm_eval_says_the_same_as_notebook_4(path, folder):
    """On the run's test problems, in our prompt, to the four digits that its table has."""
    path = folder / "artifacts/evaluation/after_grpo.json"
    ours = EvalResult.from_json(path)
    table = command(folder, "-m", "tools.lm_eval").split("in their prompt")[0]
    found = {name: float(value) for name, value in re.findall(r"(\w+-\w+)\b.*?↑ +\| *([\d.]+)", table)}
    assert 0 < ours.accuracy.mean < 1
    assert found == {"flexible-extract": pytest.approx(ours.content_accuracy.mean, abs=1e-4),
                     "strict-match": pytest.approx(ours.accuracy.mean, abs=1e-4)}
