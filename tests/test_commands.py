"""The shell commands of the pages would run: make has the target and the variables, and the tool takes the arguments.

Those that need neither a network nor minutes are run. UNRUN has the others, each with the reason.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from reasonkit.session.setup import check_choices

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# The log tells of earlier commits.
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {ROOT / "docs/log.md"})]
BLOCK = re.compile(r"^```(?:bash|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:make|python) [^`]+)`")
PYTHON = re.compile(r"python3? (?:-m (tools\.[\w.]+)|((?:benchmarks|notebooks)/\w+\.py))([^|;&>\n]*)")
PLACEHOLDERS = {"name": "g_rar", "NAME": "g_rar", "mine.csv": "mine.csv", "you": "you"}
RUN = {"python -c": "of the run's log"}  # the beginnings of what `test_what_takes_seconds_runs` runs
UNRUN = {
    "make preflight RECIPE=g_rar MODEL=gemma2-2b-it TOPOLOGY=v5e:2x4": "compiles for minutes, and downloads libtpu",
    "make faults": "takes an hour. tests/test_faults.py runs some of it",
    "make demo MODEL=gemma3-270m ACCEPT_GEMMA_TERMS=yes": "downloads weights, and trains for hours",
    "make demo DATA=mine.csv RECIPE=g_exact": "takes minutes. tests/test_stranger.py runs it at smoke sizes",
    "make parity": "downloads PyTorch",
    "make runs": "takes minutes",
    "make jupyterlab": "downloads JupyterLab, and needs Chromium",
    "make screenshots": "needs Chromium and a finished run",
    "pip install --no-deps --target libtpu libtpu==0.0.42.1": "downloads libtpu",
    ".venv/bin/python -m tools.share --kaggle you/gemma2-2b-reasons/flax/2b-it": "uploads, with a key. "
    "tests/tools/test_share.py runs it with a fake upload",
    "PYTHONPATH=libtpu python benchmarks/tpu_compiler.py cache_int8 sampling": "compiles for minutes, with libtpu",
    "python -m tools.train_stage sft --profile cpu --hosts localhost:7777 --processes 2 --process 0": "waits for the "
    "other process. tests/models/test_distributed.py runs two",
    "gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=0": "needs a TPU slice",
    "gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all": "needs a TPU slice",
}
NAMED = {"python -m tools.lm_eval": "needs the extra eval"}
# Variables that a program reads from its environment, and not the Makefile.
FROM_ENVIRONMENT = {"ACCEPT_GEMMA_TERMS": ROOT / "tools/gemma_from_gguf.py"}
# Parses the arguments as the program does, and goes no further.
PARSES = """
import argparse, runpy, sys
parse = argparse.ArgumentParser.parse_args
def parse_only(self, *arguments):
    parse(self, *arguments)
    print("accepted", flush=True)
    raise SystemExit
argparse.ArgumentParser.parse_args = parse_only
_, kind, name, *sys.argv[1:] = sys.argv
sys.path.insert(0, name.rpartition("/")[0])  # as for a script
(runpy.run_module if kind == "-m" else runpy.run_path)(name, run_name="__main__")
"""


def lines_of(text: str) -> list[str]:
    """The commands of a page's shell blocks, without comments."""
    lines = [re.sub(r"\s+#\s.*", "", line).strip() for block in BLOCK.findall(text)
             for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


COMMANDS = list(dict.fromkeys(line for page in PAGES for line in lines_of(text_of(page))))
MENTIONED = list(dict.fromkeys(" ".join(found.split()) for page in PAGES for found in INLINE.findall(text_of(page))))
CHECKED = list(dict.fromkeys([*COMMANDS, *(command for command in MENTIONED if command not in NAMED)]))


def faults(command: str) -> list[str]:
    """What is wrong with a command of a page: a target, a variable, a choice, a file or an argument."""
    done = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [done.stderr]
    told, found = command, []
    if command.startswith("make "):
        words = [re.sub(r"=(.*)", lambda value: f"={PLACEHOLDERS.get(value[1], value[1])}", word)
                 for word in shlex.split(command)[1:]]
        variables = dict(word.split("=", 1) for word in words if "=" in word)
        found += [f"no variable {name}" for name in variables
                  if f"$({name}" not in MAKEFILE and name not in FROM_ENVIRONMENT]
        done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            return [done.stderr]
        told = done.stdout.replace("\\\n", " ")
    for module, script, rest in PYTHON.findall(told):
        name = module or script
        file = ROOT / (f"{module.replace('.', '/')}.py" if module else script)
        file = file if file.is_file() else file.with_suffix("") / "__main__.py"
        if not file.is_file():
            found.append(f"{name} is not there")
            continue
        arguments = shlex.split(rest.replace('"', ""))
        values = dict(value.split("=", 1) for value in arguments if re.match("PROFILE=|RECIPE=", value))
        values |= {flag[2:].upper(): value for flag, value in zip(arguments, arguments[1:], strict=False)
                   if flag in ("--profile", "--recipe")}
        try:
            check_choices(values.get("PROFILE", "cpu"), values.get("RECIPE", "g_rar"), 0, {})
        except ValueError as error:
            found.append(str(error))
        if "ArgumentParser" in text_of(file):
            kind = ["-m", module] if module else ["file", str(file)]
            done = subprocess.run([sys.executable, "-c", PARSES, *kind, *arguments], cwd=ROOT, capture_output=True,
                                  text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
            found += [] if done.stdout.endswith("accepted\n") else [f"{name}: {done.stderr[-300:]}"]
        elif arguments:
            found.append(f"{name} takes no arguments")
    return found


@pytest.mark.parametrize("command", CHECKED)
def test_a_command_would_run(command):
    assert faults(command) == []


@pytest.mark.parametrize(("command", "fault"), [
    ("make dem", "No rule to make target"), ("make demo RECIPEE=g_rar", "no variable RECIPEE"),
    ("make demo RECIPE=g_rarr", "unknown recipe"), ("make preflight TOPOLOGY=v5e:2x4 MODEL='a", "unexpected EOF"),
    ("python -m tools.shares", "tools.shares is not there"), ("python -m tools.share --merge_all", "unrecognized"),
    ("python benchmarks/tpu_compile.py", "is not there"),
    ("python benchmarks/lines.py --big", "takes no arguments"),
    ('ssh --command="cd /mnt && python -m tools.train_stage sft --profile kagle"', "kagle")])
def test_a_wrong_command_is_seen(command, fault):
    assert fault in " ".join(faults(command))


def test_each_command_of_a_block_is_run_or_has_a_reason():
    rest = [command for command in COMMANDS if not command.startswith(tuple(RUN))]
    assert {command.partition(" --command")[0] for command in rest} == {*UNRUN}
    assert {*NAMED} <= {*MENTIONED}
    assert all(name in text_of(file) for name, file in FROM_ENVIRONMENT.items())


def test_the_pin_on_the_page_is_that_of_the_makefile():
    pins = {pin for page in PAGES for pin in re.findall(r"libtpu==[\d.]+", text_of(page))}
    assert pins == {*re.findall(r"libtpu==[\d.]+", MAKEFILE)}


def test_the_questions_on_the_page_are_those_of_the_compiler():
    script = "benchmarks/tpu_compiler.py"
    asked = {name for command in CHECKED if script in command for name in command.partition(script)[2].split()}
    assert asked and asked <= {*re.findall(r"^def (\w+)", text_of(ROOT / script), re.MULTILINE)}


def test_what_takes_seconds_runs(tmp_path):
    (command,) = [command for command in COMMANDS if command.startswith(tuple(RUN))]
    log = tmp_path / "artifacts/grpo/log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps({"event": event}) + "\n" for event in ("reward", "probe", "reward")))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PATH": path})
    assert done.stdout.split() == ["1", "probe", "2", "reward"], done.stderr
