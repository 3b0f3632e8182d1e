"""Faults put into a small run: what is kept, and that the rerun ends where an undisturbed run does, bit for bit.

`make faults` does all of it; otherwise two kills and three kinds of damage stand for the others.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import namedtuple
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from fault_run import GRPO, PLACES, SFT, TWICE, odd, run
from tiny_run import CONFIG, new_policy, short_tokenizer

import reasonkit.models.lora
import reasonkit.train.sft
from reasonkit.data.rows import sft_batches
from reasonkit.models import checkpoints
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.run import open_run
from reasonkit.session import interrupts
from reasonkit.session.files import DiskFullError
from reasonkit.session.interrupts import Watchdog, clean_exit
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import BudgetError, TimeBudget
from reasonkit.train import loop
from reasonkit.train.loop import DivergedError
from tools.flax import init_random

TESTS = Path(__file__).parent
ALL = os.environ.get("FAULTS") == "all"
KILLED_AT = list(PLACES) if ALL else ["sft save", "grpo judge"]


class Fault(Exception):
    """Ends a run where a test wants it."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def whole(compiled, tokenizer, tmp_path_factory):
    """The run that nothing disturbs."""
    return run(tmp_path_factory.mktemp("whole"), tokenizer)


def at(place, number, fault):
    """Does `fault` at the place when it is come to for that time."""
    seen = []

    def here(name):
        if name == place:
            seen.append(name)
            if len(seen) == number:
                fault()

    return here


def fail(error=Fault):
    raise error


def steps_in(checkpoints):
    return sorted(int(path.name) for path in (checkpoints / "actor").iterdir() if path.name.isdigit())


def loadable(folder, tokenizer):
    """The step that the judges would load; it is finite."""
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    policy = new_policy(init_random(CONFIG, mesh), mesh, tokenizer, seed=9)
    step = restore_lora(policy.model, folder / "checkpoints")
    assert loop.finite(loop.nnx.state(policy.model, loop.nnx.LoRAParam))
    return step


def check_same(rerun, whole):
    """Weights, problems, samples, rewards and results are those of the undisturbed run, and no step is there twice."""
    for name in ("data/train.parquet", "data/test.parquet", "evaluation.json"):
        ours, theirs = ((one.checkpoints.parent / name).read_bytes() for one in (rerun, whole))
        assert ours == theirs, name
    for name in ("sft", "grpo"):
        for a, b in zip(getattr(rerun, name), getattr(whole, name), strict=True):
            np.testing.assert_array_equal(a, b)
        ours, theirs = ([(row["step"], row["loss"]) for row in one.logs[name].read(f"{name}_step")]
                        for one in (rerun, whole))
        assert ours == theirs and [step for step, _ in ours] == [1, 2, 3]
    for event, fields in (("reward", ("mean", "sample")), ("pass_rates", ("step", "rates"))):
        ours, theirs = ([[row[field] for field in fields] for row in one.logs["grpo"].read(event)]
                        for one in (rerun, whole))
        assert ours == theirs and len(ours) == GRPO.steps
    assert steps_in(rerun.checkpoints)[-1] == steps_in(whole.checkpoints)[-1] == SFT.steps + 1 + GRPO.steps


def killed(folder, tokenizer, place):
    done = subprocess.run([sys.executable, TESTS / "fault_run.py", folder, tokenizer.path, place], check=False,
                          capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.mark.parametrize("place", KILLED_AT)
def test_a_killed_run_continues(place, whole, compiled, compiled_by_all, tokenizer, tmp_path):
    killed(tmp_path, tokenizer, place)
    least = {"curation": 0, "sft": 1, "grpo": SFT.steps + 1, "evaluation": SFT.steps + 1 + GRPO.steps}[place.split()[0]]
    if least:
        assert loadable(tmp_path, tokenizer) >= least
    assert (tmp_path / "sft").exists() == bool(least) and not (tmp_path / "evaluation.json").exists()
    check_same(run(tmp_path, tokenizer), whole)


def test_a_run_killed_twice_continues(whole, compiled, compiled_by_all, tokenizer, tmp_path):
    """Between the renames that replace an adapter: the next process puts the old one back."""
    for place in TWICE:
        killed(tmp_path, tokenizer, place)
    last = SFT.steps + 1
    assert sorted(os.listdir(tmp_path / "sft/adapter/actor")) == [f"{last}.replaced", f"{last}.saving"]
    assert reasonkit.models.checkpoints.steps_in(tmp_path / "sft/adapter") == [last]
    check_same(run(tmp_path, tokenizer), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_a_boundary_and_comes_again(number, whole, compiled, tokenizer, tmp_path):
    def stop(*_):
        raise Fault

    before = signal.signal(number, stop)
    try:
        with pytest.raises(Fault):
            run(tmp_path, tokenizer, at("grpo update", 1, lambda: os.kill(os.getpid(), number)))
        assert signal.getsignal(number) is stop, "the handler was not put back"
    finally:
        signal.signal(number, before)
    last = steps_in(tmp_path / "checkpoints")[-1]
    assert SFT.steps + 1 < last < SFT.steps + 1 + GRPO.steps
    assert (tmp_path / f"checkpoints/actor/{last}/optimizer_state").is_dir()
    assert [row["step"] for row in RunLog(tmp_path / "grpo/log.jsonl").read("grpo_step")][-1] == last - SFT.steps - 1
    check_same(run(tmp_path, tokenizer), whole)


def test_a_second_signal_does_not_wait():
    asked = []
    with pytest.raises(KeyboardInterrupt), clean_exit(asked.append):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one waited")
    assert asked == ["SIGINT", None] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_leave_the_signals_alone():
    ours, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with clean_exit(print):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [ours]


def test_a_loss_that_is_no_number_is_not_saved(whole, compiled, tokenizer, tmp_path, monkeypatch, capsys):
    def broken(*args):
        for number, batch in enumerate(sft_batches(*args), 1):
            yield batch if number < 3 else {**batch, "loss_mask_BL": batch["loss_mask_BL"] * np.nan}

    with monkeypatch.context() as patch:
        patch.setattr(reasonkit.train.sft, "sft_batches", broken)
        with pytest.raises(Fault):
            run(tmp_path, tokenizer, at("sft manifest", 1, fail))
    said = capsys.readouterr().err
    assert re.search("sft has failed, and the run goes on with its last good step. DivergedError: sft_step 3: the "
                     "loss is nan. Step 1 is the last good one in .* Lower learning_rate or clip, or look at the data",
                     said)
    assert steps_in(tmp_path / "checkpoints") == [1, 2] and loadable(tmp_path, tokenizer) == 2
    assert not (tmp_path / "checkpoints/actor/2/optimizer_state").exists(), "step 2 is step 1, handed over"
    assert RunLog(tmp_path / "sft/log.jsonl").last("sft_step")["loss"] == "nan"
    check_same(run(tmp_path, tokenizer), whole)


def test_an_exploding_loss_ends_the_stage(compiled, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOSS_LIMIT", 1.0)
    with pytest.raises(DivergedError, match=r"sft_step 1: the loss is \d.*No step before it was saved"):
        run(tmp_path, tokenizer)
    assert not steps_in(tmp_path / "checkpoints")


def test_weights_that_are_no_numbers_are_not_saved(compiled, tokenizer, tmp_path, monkeypatch, capsys):
    answers = iter([True, True, False])
    monkeypatch.setattr(loop, "finite", lambda state: next(answers))
    with pytest.raises(Fault):
        run(tmp_path, tokenizer, at("sft manifest", 1, fail))
    assert "sft_step 3: the adapter has weights that are no numbers. Step 2 is the" in capsys.readouterr().err
    assert steps_in(tmp_path / "checkpoints") == [1, 2, 3]
    assert not (tmp_path / "checkpoints/actor/3/optimizer_state").exists(), "step 3 is step 2, handed over"


def test_finite_is_all_of_them():
    good = {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.float32)}
    assert loop.finite(good)
    for bad in (np.nan, np.inf):
        assert not loop.finite({**good, "b": np.array([[0, 1], [bad, 2]], np.float32)})


def silent(prompts, completions, **columns):
    return [None] * len(completions)


def late(prompts, completions, **columns):
    raise TimeoutError("the judge has not answered for 20 minutes")


def full(prompts, completions, **columns):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17 GB")


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize(("failing", "told"), [(silent, "NoSignalError: no signal from scored"),
                                               (late, "TimeoutError: the judge has not"),
                                               (full, "RESOURCE_EXHAUSTED: Out of memory")])
def test_a_failure_ends_the_stage_and_the_run_goes_on(failing, told, step, whole, compiled, tokenizer, tmp_path,
                                                      capsys):
    calls = []

    def judge(prompts, completions, **columns):
        calls.append(prompts)
        return (failing if len(calls) == step else odd)(prompts, completions, **columns)

    judge.__name__ = "scored"
    run(tmp_path, tokenizer, judge=judge)
    goes_on = "its last good step" if step > 1 else "the adapter it began with"
    assert re.search(f"grpo has failed, and the run goes on with {goes_on}. .*{told}", capsys.readouterr().err)
    assert (tmp_path / "evaluation.json").exists()
    # after a step, the last good one is saved once more, without optimiser state
    assert loadable(tmp_path, tokenizer) == SFT.steps + step + (step > 1)
    (tmp_path / "grpo/manifest.json").unlink()
    check_same(run(tmp_path, tokenizer), whole)


def test_a_bug_is_no_failure_of_the_run(compiled, tokenizer, tmp_path):
    with pytest.raises(Fault):
        run(tmp_path, tokenizer, at("grpo judge", 2, fail))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run(tmp_path, tokenizer, at("grpo judge", 1, lambda: fail(jax.errors.JaxRuntimeError("INTERNAL: a bug"))))


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_noticed_and_old_steps_make_room(whole, compiled, tokenizer, tmp_path, monkeypatch):
    """First a disk that holds two steps, then one that holds none more."""
    disk = SimpleDisk(tmp_path / "checkpoints", holds=2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "disk_usage", disk)
        with pytest.raises(Fault):
            run(tmp_path, tokenizer, at("grpo update", 1, fail))
        assert disk.full, "the disk was never full"
        kept = loadable(tmp_path, tokenizer)
        disk.holds = 0
        with pytest.raises(DiskFullError, match=rf"a checkpoint needs \d+ MB in .*0 MB are free: step {kept} is kept"):
            run(tmp_path, tokenizer)
    assert loadable(tmp_path, tokenizer) == kept
    check_same(run(tmp_path, tokenizer), whole)


class SimpleDisk:
    """Free space as if the disk held some steps and no more."""

    def __init__(self, checkpoints, holds):
        self.checkpoints, self.holds, self.full = checkpoints, holds, False

    def __call__(self, path):
        full = len(steps_in(self.checkpoints)) >= self.holds
        self.full |= full
        return Usage(10**12, 0, 0 if full else 10**12)


def rewrite(step, tokenizer, rank=4, number=0.0):
    """Puts an adapter of that number, or of another rank, in the place of a step's."""
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    model = add_lora(init_random(CONFIG, mesh), mesh, rank, 8.0)
    state = jax.tree.map(lambda leaf: leaf + number, loop.nnx.state(model, loop.nnx.LoRAParam))
    with checkpoints.ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(step / "model_params", state, force=True)


def truncate(step, tokenizer):
    for path in (step / "model_params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


DAMAGE = {
    "truncated": truncate,
    "emptied": lambda step, tokenizer: (shutil.rmtree(step), step.mkdir()),
    "half deleted": lambda step, tokenizer: shutil.rmtree(step / "model_params"),
    "of NaN": partial(rewrite, number=np.nan),
    "of infinity": partial(rewrite, number=np.inf),
    "of another shape": partial(rewrite, rank=2),
    "without its moments' numbers": lambda step, tokenizer: (step / "optimizer_state/_METADATA").write_bytes(b"{"),
}


@pytest.mark.parametrize("damage", list(DAMAGE) if ALL else list(DAMAGE)[:3])
def test_a_damaged_checkpoint_is_not_the_last(damage, whole, compiled, tokenizer, tmp_path):
    with pytest.raises(Fault):
        run(tmp_path, tokenizer, at("grpo update", 2, fail))
    last = steps_in(tmp_path / "checkpoints")[-1]
    DAMAGE[damage](tmp_path / f"checkpoints/actor/{last}", tokenizer)
    rerun, said = warned(lambda: run(tmp_path, tokenizer))
    (said,) = (line for line in said if "damaged" in line)
    assert said.startswith(f"step {last} in ") and f"set_aside/{last}-damaged" in said
    check_same(rerun, whole)


def warned(work):
    with warnings.catch_warnings(record=True) as caught:  # pytest.warns would make errors of Tunix's own
        warnings.simplefilter("always")
        found = work()
    return found, [str(warning.message) for warning in caught]


def test_what_is_no_step_among_the_steps_changes_nothing(whole, compiled, tokenizer, tmp_path):
    with pytest.raises(Fault):
        run(tmp_path, tokenizer, at("grpo update", 2, fail))
    actor = tmp_path / "checkpoints/actor"
    shutil.copytree(actor / str(steps_in(tmp_path / "checkpoints")[-1]), actor / "099")
    (actor / "²").mkdir()
    (actor / "98").write_text("a step")
    (actor / "97").symlink_to("/nowhere")
    rerun, said = warned(lambda: run(tmp_path, tokenizer))
    for name in ("²", "099", "98", "97"):
        assert [line for line in said if f"actor/{name} is no step: it is now " in line]
    check_same(rerun, whole)


@pytest.mark.parametrize("text", [b"", b'{"started": 1', b"\xff\xfe", b"[]"])
def test_a_corrupt_ledger_is_named_before_anything_is_done(text, compiled, tokenizer, tmp_path):
    (tmp_path / "ledger.json").write_bytes(text)
    with pytest.raises(BudgetError, match="ledger.json is no ledger .*: delete it"):
        run(tmp_path, tokenizer, budget=TimeBudget(1, 0, tmp_path / "ledger.json"))
    assert (tmp_path / "ledger.json").read_bytes() == text and os.listdir(tmp_path) == ["ledger.json"]


def test_a_lost_adapter_is_named_and_the_steps_stay(compiled, tokenizer, tmp_path):
    with pytest.raises(Fault):
        run(tmp_path, tokenizer, at("grpo update", 2, fail))
    kept = loadable(tmp_path, tokenizer)
    shutil.rmtree(tmp_path / "sft/adapter")
    with pytest.raises(FileNotFoundError, match=r"sft/adapter/actor has the steps \[\]: train first, or fix the path"):
        run(tmp_path, tokenizer)
    (tmp_path / "sft/manifest.json").unlink()  # the stage anew, from steps of the one after it
    with pytest.raises(ValueError, match=r"stage 'grpo' began at step \d of .*, and stage 'sft', which comes before"):
        run(tmp_path, tokenizer)
    assert loadable(tmp_path, tokenizer) == kept


def test_a_second_kernel_is_told_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts, "CLAIM_SECONDS", 0.2)
    with (tmp_path / interrupts.LOCK).open("w") as lock:  # of another process, for all that flock knows
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(interrupts.FolderInUseError, match=f"{tmp_path} is in use by another process: two kernels"):
            open_run("smoke", "g_rar", 0, tmp_path)
        assert os.listdir(tmp_path) == [interrupts.LOCK]
    open_run("smoke", "g_rar", 0, tmp_path)
    assert (tmp_path / "run.json").is_file()


def test_a_jump_of_the_wall_clock_is_not_seen(whole, compiled, tokenizer, tmp_path, monkeypatch):
    """By more than the whole session. (Orbax's own waits do see it: by hours, during a save, that save fails.)"""
    real, jumps = time.time, iter([300.0, -300.0, *[0.0] * 9])
    budget = TimeBudget(288 / 3600, 0, tmp_path / "ledger.json")
    rerun = run(tmp_path, tokenizer, lambda place: monkeypatch.setattr(
        time, "time", partial(lambda shift: real() + shift, next(jumps))) if place.endswith("update") else None,
        budget=budget)
    assert budget.stop_reason("sft") == budget.stop_reason("grpo") == "data" and 0 < budget.minutes_used < 4.8
    check_same(rerun, whole)


HANGS = """
import sys, time
from pathlib import Path
from fault_run import Tokenizer, odd, run
from reasonkit.session import interrupts
interrupts.Watchdog.__init__.__defaults__ = (300.0, 15.0)
calls = []

def never_answers(prompts, completions, **columns):
    calls.append(prompts)
    if len(calls) == 3:
        time.sleep(600)
    return odd(prompts, completions)

never_answers.__name__ = "scored"
run(Path(sys.argv[1]), Tokenizer(Path(sys.argv[2]), "gemma3"), judge=never_answers)
"""


def test_a_hung_step_ends_the_process_with_a_report(whole, compiled, compiled_by_all, tokenizer, tmp_path):
    done = subprocess.run([sys.executable, "-c", HANGS, tmp_path, tokenizer.path], check=False, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"})
    assert done.returncode == 1, done.stderr[-2000:]
    report = (tmp_path / "checkpoints/hung_grpo.txt").read_text()
    assert report.startswith("Timeout (0:0") and "in never_answers" in report
    assert not (tmp_path / "checkpoints/hung_sft.txt").exists()
    assert RunLog(tmp_path / "grpo/log.jsonl").read("grpo_step")[-1]["step"] == 2
    assert loadable(tmp_path, tokenizer) == SFT.steps + 3
    check_same(run(tmp_path, tokenizer), whole)
    assert (tmp_path / "checkpoints/hung_grpo.txt").read_text() == report


IN_C = """
import pathlib, re, sys
from reasonkit.session.interrupts import Watchdog
with Watchdog(pathlib.Path(sys.argv[1]), first=0.5):
    re.match("(a+)+$", "a" * 60 + "b")  # years, and no other thread runs meanwhile
"""


def test_a_call_into_c_that_hangs_ends_the_process(tmp_path):
    done = subprocess.run([sys.executable, "-c", IN_C, tmp_path / "hung.txt"], check=False, timeout=50)
    assert done.returncode == 1 and "in <module>" in (tmp_path / "hung.txt").read_text()


def test_slow_steps_do_not_hang(tmp_path):
    """Ten times the longest step so far is allowed, and the first two compile."""
    with Watchdog(tmp_path / "hung.txt", first=30.0, least=0.3) as watchdog:
        for seconds in (0.8, 0.8, 0.25, 0.25, 1.0):
            watchdog.step_begins()
            time.sleep(seconds)
    assert not (tmp_path / "hung.txt").exists()


def test_the_trainer_has_what_is_used_of_it():
    """Private names of Tunix and of its manager; another version may have others."""
    from tunix.sft.peft_trainer import PeftTrainer
    assert callable(PeftTrainer._write_train_metrics)
    assert callable(checkpoints.ocp.CheckpointManager.should_save)
