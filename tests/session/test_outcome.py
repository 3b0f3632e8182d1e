"""What stages took and how they ended."""

from __future__ import annotations

import json

import pytest

from reasonkit.session.outcome import cut_short, earlier_minutes, progress
from reasonkit.session.run_log import NullLog, RunLog


def manifest(stage="grpo", made=17, planned=64, **extra):
    return {"stage": stage, "metrics": {"steps": made}, "extra": {"settings": {"steps": planned}, **extra}}


@pytest.mark.parametrize(("stopped", "told"), [
    ("time", ("17 of 64", "the clock")), ("SIGTERM", ("17 of 64", "SIGTERM")), (None, ("17 of 64", "")),
])
def test_progress_is_what_was_made_of_what_was_asked_for(stopped, told):
    assert progress(manifest(stopped=stopped)) == told


def test_a_stage_that_made_all_steps_is_not_cut_short():
    whole = [manifest("sft", 120, 120, stopped="data"), manifest("grpo", 64, 64, stopped="closed")]
    assert cut_short(whole) == []
    assert cut_short([*whole, manifest(stopped="time")]) == [
        "Stage grpo was cut short: 17 of 64 steps, ended by the clock. What follows is of that shorter run."]
    assert cut_short([manifest("sft", 0, 2)]) == [
        "Stage sft was cut short: 0 of 2 steps. What follows is of that shorter run."]


@pytest.mark.parametrize("other", [
    {"stage": "data", "metrics": {"train": 3000}, "extra": {}},
    {"stage": "evaluation", "metrics": {"stock": {"steps": [0, 0, 1]}}},
    {"stage": "sft", "metrics": {"steps": 3}, "extra": {}},
])
def test_a_stage_without_steps_has_no_progress(other):
    assert progress(other) == ("", "") and cut_short([other]) == []


def log_of(path, *rows):
    path.write_text("".join(json.dumps({"t": t, "event": event, **more}) + "\n" for t, event, more in rows))
    return RunLog(path)


def start(t, step, stage="sft"):
    return t, "start", {"stage": stage, "step": step}


def test_earlier_minutes_are_those_up_to_the_newest_start(tmp_path):
    log = log_of(tmp_path / "log.jsonl", start(0, 0), (60, "sft_step", {"step": 1}), (120, "sft_step", {"step": 2}),
                 (9000, "probe", {"mean": 0}), start(9060, 1), (9120, "sft_step", {"step": 2}))
    assert earlier_minutes(log, "sft") == 2, "the step that was made again took its time"
    assert earlier_minutes(log, "grpo") == 0


def test_a_session_that_made_no_step_took_none(tmp_path):
    log = log_of(tmp_path / "log.jsonl", start(0, 0), start(500, 0), (560, "sft_step", {"step": 1}), start(900, 1))
    assert earlier_minutes(log, "sft") == 1
    assert earlier_minutes(RunLog(tmp_path / "none.jsonl"), "sft") == earlier_minutes(NullLog(), "sft") == 0
