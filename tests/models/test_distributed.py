"""Two processes of four CPU devices each, against one of eight; and what they decide and write as one."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tunix.sft import sharding_utils

from reasonkit import run as run_module
from reasonkit.config import PROFILES
from reasonkit.data.rows import read_rows
from reasonkit.models import distributed, lora
from reasonkit.models import load as models
from reasonkit.models.checkpoints import latest_step, restore_lora
from reasonkit.models.mesh import make_mesh, split_rows
from reasonkit.run import open_run
from reasonkit.session.manifest import FAILED, ManifestError
from reasonkit.session.setup import find_recipe
from reasonkit.session.time_budget import TimeBudget
from reasonkit.train import grpo
from reasonkit.train.loop import StageResult
from tools import train_stage

TESTS = Path(__file__).parents[1]
STEPS = 5
SFT = ("sft", "--profile", "smoke")
# the stage as it is run, of more steps
LONGER = "import test_distributed as t; t.longer(t.pytest.MonkeyPatch()); t.train_stage.main()"


def longer(patch):
    """More steps than the profile has; every batch once; and all but the first process would hurry."""
    smoke, shard = PROFILES["smoke"], sharding_utils.shard_input

    def once(*args):
        placed = shard(*args)
        assert placed["tokens_BL"].shape[0] == smoke.sft.batch_size
        return placed

    patch.setitem(PROFILES, "smoke", replace(smoke, sft=replace(smoke.sft, steps=STEPS)))
    patch.setattr(sharding_utils, "shard_input", once)
    patch.setattr(TimeBudget, "steps_left", property(lambda budget: math.inf if distributed.is_main_process() else 1.0))


def pair(*command, **environment):
    """Two processes of a command, in which PORT and PROCESS stand for a free port and 0 or 1."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return [subprocess.Popen([sys.executable, *(word.replace("PORT", port).replace("PROCESS", process)
                                                for word in map(str, command))],
                             env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for process in "01"]


def ended(processes):
    """What they printed. Neither outlives the test."""
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [output.splitlines()[-1] for output, _ in outputs]


@pytest.fixture
def run_in(monkeypatch):
    monkeypatch.setattr(run_module, "lock_run", lambda folder: None)  # this process looks on: others train

    def run(folder, recipe="g_rar"):
        monkeypatch.setenv("REASONKIT_ARTIFACTS", str(folder))
        return open_run("smoke", recipe, 0)

    return run


def same_adapters(stage, *runs):
    """The step at which all runs hand over the same adapter, up to the order in which gradients are added up."""
    chips = make_mesh(jax.devices()[:1], 1, 1)
    base = models.load("tiny-policy", chips, "float32").model
    adapters = []
    for run in runs:
        model = lora.add_lora(base, chips, run.profile.lora_rank, run.profile.lora_alpha, seed=9)
        step = restore_lora(model, run.checkpoints)
        assert step == run.manifest(stage)["extra"]["checkpoint_step"]
        handed = lora.fingerprint(model)
        assert restore_lora(model, run.stage(stage) / "adapter") == step and lora.fingerprint(model) == handed
        adapters.append([np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.LoRAParam))])
    for a, b in zip(*adapters, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # a tenth of the learning rate: Adam's first steps are near signs
    return step


@pytest.mark.slow
def test_two_processes_train_as_one(run_in, compiled_by_all, tmp_path, monkeypatch):
    """Up to the order in which eight devices' gradients are added up."""
    longer(monkeypatch)
    train_stage.curate(run_in(tmp_path / "two"))
    shutil.copytree(tmp_path / "two", tmp_path / "one", ignore=shutil.ignore_patterns("ledger.json"))
    both = pair("-c", LONGER, *SFT, "--hosts", "localhost:PORT", "--processes", 2, "--process", "PROCESS",
                REASONKIT_ARTIFACTS=str(tmp_path / "two"))
    one = run_in(tmp_path / "one")
    train_stage.main(SFT)
    first, second = ended(both)
    assert first.startswith(f"sft: {STEPS} of {STEPS} steps in") and "steps in" not in second
    two = run_in(tmp_path / "two")
    alone, together = ([(row["step"], row["loss"]) for row in run.log("sft").read("sft_step")] for run in (one, two))
    assert [step for step, _ in together] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(together, alone, rtol=1e-5)

    assert same_adapters("sft", one, two) == STEPS + 1
    record = json.loads((tmp_path / "two/ledger.json").read_text())
    assert record["stages"]["sft"]["steps"] == STEPS and record["stages"]["sft"]["stopped"] == "data"


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "stage"), [("pinocchio", "simpo"), ("on_policy_distillation", "distill")])
def test_two_processes_sample_and_train_as_one(recipe, stage, run_in, compiled_by_all, tmp_path):
    """Only SFT did: Tunix's sampler asked for the tokens of all rows, and JAX refuses those of another process."""
    command = (stage, "--profile", "smoke", "--recipe", recipe)
    train_stage.curate(run_in(tmp_path / "one", recipe))
    train_stage.main(("sft", *command[1:]))
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("ledger.json"))
    both = pair("-m", "tools.train_stage", *command, "--hosts", "localhost:PORT", "--processes", 2,
                "--process", "PROCESS", REASONKIT_ARTIFACTS=str(tmp_path / "two"))
    train_stage.main(command)
    first, second = ended(both)
    assert first.startswith(f"{stage}, before and after: accuracy") and "before and after" not in second
    one, two = (run_in(tmp_path / name, recipe) for name in ("one", "two"))
    alone, together = ([(row["step"], row["loss"]) for row in run.log(stage).read(f"{stage}_step")]
                       for run in (one, two))
    assert [step for step, _ in together] == [1, 2]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    steps = one.manifest("sft")["extra"]["checkpoint_step"] + 3
    assert same_adapters(stage, one, two) == steps
    made = [{path.name: path.read_text() for path in run.stage(stage).glob("pairs*.jsonl")} for run in (one, two)]
    assert made[0] == made[1] and bool(made[0]) == (stage == "simpo")


@pytest.mark.slow
def test_two_processes_with_too_few_pairs_hand_over_what_they_began_with(run_in, compiled_by_all, tmp_path):
    """One process did, and several stopped with an error, each time."""
    command = ("--profile", "smoke", "--recipe", "pinocchio")
    train_stage.curate(run_in(tmp_path, "pinocchio"))
    train_stage.main(("sft", *command))
    run = run_in(tmp_path, "pinocchio")
    run.stage("teacher").mkdir()
    (run.stage("teacher") / "pairs.jsonl").touch()
    ended(pair("-m", "tools.train_stage", "simpo", *command, "--hosts", "localhost:PORT", "--processes", 2,
               "--process", "PROCESS", REASONKIT_ARTIFACTS=str(tmp_path)))
    left = run.manifest("simpo")
    assert left["extra"]["stopped"].startswith(f"{FAILED}TooFewRows: of 0 pairs, 0 have")
    began = run.manifest("sft")["extra"]["checkpoint_step"]
    assert (left["metrics"]["steps"], left["extra"]["checkpoint_step"]) == (0, began)
    assert latest_step(run.stage("simpo") / "adapter") == began == latest_step(run.checkpoints)


@pytest.mark.slow
def test_two_processes_decide_and_write_as_one(tmp_path):
    first, second = map(json.loads, ended(pair(TESTS / "host_run.py", "PORT", "PROCESS", tmp_path)))
    for name in ("first", "ledger"):
        assert (first.pop(name), second.pop(name)) == (True, False)
    for name, folder in (("apart", tmp_path / "1"), ("other seed", tmp_path / "shared")):
        assert first.pop(name) is None
        assert second.pop(name).startswith("process 1 is not in one run with process 0: give both the same arguments, "
                                           f"and set REASONKIT_ARTIFACTS, here {folder}, to")
    assert first == second
    assert first["GRPO"].startswith("GRPO runs in one process, and this is one of 2: run it on one host. SFT,")
    assert first == first | {"agreed": 0.5, "written": ["written by 0"], "clock of the first": [3, "time"],
                             "clock of the other": [5, "data"], "signal": [2, "SIGTERM"], "came again": [15],
                             "log": [0]}


def test_one_process_asks_nobody():
    assert distributed.is_main_process() and not distributed.is_multiprocess()
    assert distributed.broadcast_from_main(0.1) == 0.1
    assert distributed.agree_on_end("why") == "why" and distributed.agree_on_end(None) is None
    distributed.barrier("nowhere")
    distributed.check_one_process("GRPO")


def test_grpo_needs_one_process_and_says_so(monkeypatch):
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
    with pytest.raises(RuntimeError, match="GRPO runs in one process"):
        grpo.grpo(None, None, None, None, PROFILES["smoke"].grpo, None, None, None, 0, 0)


@pytest.mark.parametrize(("processes", "order"), [
    ("0" * 8, range(8)), ("0" * 5, range(5)), ("0", [0]), ("00001111", [0, 1, 4, 5, 2, 3, 6, 7]),
    ("0011", [0, 2, 1, 3]), ("0101", [0, 1, 2, 3]), ("", []),
])
def test_each_process_has_devices_in_both_halves(processes, order):
    devices = [SimpleNamespace(id=number, process_index=int(process)) for number, process in enumerate(processes)]
    assert [device.id for device in distributed.halve_hosts(devices)] == [*order]


def test_a_process_with_an_odd_number_of_devices_is_named():
    devices = [SimpleNamespace(process_index=process) for process in (0, 0, 1)]
    with pytest.raises(ValueError, match=r"the processes have \[2, 1\] devices"):
        distributed.halve_hosts(devices)


def test_an_array_of_one_process_is_fetched_as_it_is():
    rows_BL = np.arange(24).reshape(8, 3)
    for array in (rows_BL, jnp.asarray(rows_BL), split_rows(rows_BL, make_mesh(jax.devices(), 4, 2))):
        np.testing.assert_array_equal(distributed.fetch(array), rows_BL)


def test_rows_are_split_over_the_chips():
    mesh, rows_BL = make_mesh(jax.devices(), 4, 2), np.arange(24).reshape(8, 3)
    placed = split_rows(rows_BL, mesh)
    np.testing.assert_array_equal(placed, rows_BL)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


@pytest.mark.parametrize(("words", "message"), [
    (("grpo",), "grpo runs in one process.*Run notebook 03_grpo_with_judge, which goes on from the same folder"),
    (("evaluation", "--hosts", "auto"), "Run notebook 04_evaluation"),
    (("simpo", "--hosts", "auto"), "recipe g_rar has no stage simpo: choose another with --recipe"),
    (("data", "--hosts", "auto"), "data is curated by one process"),
    (("sft", "--process", "1"), "--processes and --process go with --hosts"),
    (("sft", "--profile", "nope"), "invalid choice: 'nope'"),
])
def test_a_command_that_can_not_be_is_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        train_stage.main(words)
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize("processes", [None, 3])
def test_devices_that_can_not_be_shared_out_are_named(processes):
    with pytest.raises(ValueError, match=f"--processes {processes}: the profile's 8 virtual devices"):
        train_stage.join(PROFILES["smoke"], "localhost:1", processes, 0)


def test_the_rows_of_the_command_are_those_of_notebook_1(run_in, tmp_path, monkeypatch):
    """It read the traces of another folder, and skipped what notebook 1 does after screening."""
    def pays(prompts, completions, **columns):
        return [float("heaps" not in text) for text in completions]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipe = replace(find_recipe("gemmatron"), rewards=lambda judge, questions: [(pays, 1.0)])
    run = replace(run_in(tmp_path / "run"), recipe=recipe)
    run.stage("teacher").mkdir()
    told = {"teacher": "t", "endpoint": "local", "prompt_sha256": "0" * 64, "sampling": {}, "tries": 1,
            "date": "2026-01-01", "gold_told": False, "rubric": "", "kind": "number",
            "domain": "maths", "task": "word problem"}
    taught = [{**told, "question": f"Ann has {n} pens and finds {n + 3} more pens. How many pens has she?",
               "reasoning": f"{'Count both heaps: ' * (n % 2)}{n} + {n + 3} = {2 * n + 3}", "answer": str(2 * n + 3)}
              for n in range(100, 140)]
    (run.stage("teacher") / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in taught))
    train_stage.curate(run)
    rows = [row for row in read_rows(run.stage("data") / "train.parquet") if row["source"] == "taught"]
    assert rows and not any("heaps" in row["reasoning"] for row in rows), "the reward pays nothing for these"
    assert run.data_is_made(run.data_recipe("")) and "notes" in run.manifest("data")["extra"]
    few = replace(run, profile=replace(run.profile, sft=replace(run.profile.sft, batch_size=999)), folder=elsewhere)
    shutil.copytree(run.stage("teacher"), few.stage("teacher"))
    with pytest.raises(ValueError, match="rows of 'train' have a worked solution, and SFT needs 999"):
        train_stage.curate(few)


def test_a_finished_stage_is_left_alone(run_in, tmp_path, capsys, monkeypatch):
    run = run_in(tmp_path)
    train_stage.curate(run)
    monkeypatch.setattr(train_stage, "sft", lambda *args: StageResult(2, 3, 0.1, "data"))
    train_stage.main(SFT)
    before = (run.stage("sft") / "manifest.json").read_bytes()
    train_stage.main(SFT)
    said = capsys.readouterr().out
    assert re.search("sft: 2 of 2 steps in 0.1 minutes, ended by its last step\n"
                     "tiny-policy with a fresh adapter .*\nsft: finished on .* and read back", said)
    assert (run.stage("sft") / "manifest.json").read_bytes() == before
    longer(monkeypatch)
    with pytest.raises(ManifestError, match="settings.steps: 2 then, 5 now"):
        train_stage.main(SFT)
