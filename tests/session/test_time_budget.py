"""reasonkit.session.time_budget: the session's clock, its ledger, and the guard, on a clock that the tests move."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonkit.session import files, interrupts
from reasonkit.session import time_budget as module
from reasonkit.session.files import write_atomic
from reasonkit.session.interrupts import boot_id
from reasonkit.session.time_budget import BudgetError, TimeBudget


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def minutes(self, minutes: float) -> None:
        self.now += 60 * minutes


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "artifacts" / "ledger.json"


def train(passed, clock, seconds) -> int:
    """Consume with the given step durations (the last one repeats); the number of steps done."""
    done = 0
    for done, _ in enumerate(passed, start=1):  # noqa: B007
        clock.now += seconds[min(done, len(seconds)) - 1]
    return done


def row(ledger, stage):
    return json.loads(ledger.read_text())["stages"][stage]


# -- the clock


def test_minutes_count_from_the_start_and_stop_at_the_reserve(clock):
    budget = TimeBudget(hours=1, reserve_minutes=20, clock=clock)
    clock.minutes(10)
    assert (budget.minutes_used, budget.minutes_left) == (10, 30)
    clock.minutes(45)
    assert (budget.minutes_used, budget.minutes_left) == (55, 0)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"hours": 0}, "takes all of the session's 0 minutes"),
        ({"hours": float("nan")}, "takes all of the session's nan minutes"),
        ({"reserve_minutes": -1}, "reserve_minutes=-1"),
        ({"hours": 0.5, "reserve_minutes": 30}, "takes all of the session's 30 minutes"),
        ({"shares": {"sft": 1, "grpo": 0}}, r"shares\['grpo'\]=0"),
    ],
)
def test_senseless_settings_are_refused(settings, said):
    with pytest.raises(BudgetError, match=said):
        TimeBudget(**settings)


# -- the ledger


def test_a_restarted_kernel_goes_on_with_the_same_session(clock, ledger):
    first = TimeBudget(hours=9, ledger=ledger, clock=clock)
    train(first.guard(range(3), "sft"), clock, [60])
    clock.minutes(57)
    second = TimeBudget(hours=9, ledger=ledger, clock=clock)
    assert second.minutes_used == 60
    assert second.stop_reason("sft") == "data"


def test_an_older_ledger_belongs_to_an_ended_session(clock, ledger):
    first = TimeBudget(hours=2, ledger=ledger, clock=clock)
    train(first.guard(range(3), "sft"), clock, [60])
    clock.minutes(117)
    second = TimeBudget(hours=2, ledger=ledger, clock=clock)
    assert second.minutes_used == 0 and second.stop_reason("sft") is None
    assert json.loads(ledger.read_text()) == {
        "started": clock.now,
        "boot_id": boot_id(),
        "stages": {},
        "took": {},
    }


def test_a_ledger_of_another_boot_belongs_to_an_ended_session(clock, ledger, monkeypatch):
    TimeBudget(ledger=ledger, clock=clock)
    clock.minutes(5)
    monkeypatch.setattr(module, "boot_id", lambda: "another")
    assert TimeBudget(ledger=ledger, clock=clock).minutes_used == 0


def test_without_a_boot_id_the_age_decides(clock, ledger, monkeypatch, tmp_path):
    monkeypatch.setattr(interrupts, "_BOOT_ID", tmp_path / "absent")
    TimeBudget(ledger=ledger, clock=clock)
    clock.minutes(5)
    assert TimeBudget(ledger=ledger, clock=clock).minutes_used == 5
    assert json.loads(ledger.read_text())["boot_id"] == "unknown"


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"started": 1.0, "boot',
        "[]",
        '{"started": 1.0}',
        '{"started": "soon", "boot_id": "b", "stages": {}, "took": {}}',
        '{"started": 1.0, "boot_id": "b", "stages": [], "took": {}}',
        '{"started": 1.0, "boot_id": "b", "stages": {"sft": {"steps": 1}}, "took": {}}',
    ],
)
def test_a_corrupt_ledger_names_itself_and_the_remedy(text, clock, tmp_path):
    path = tmp_path / "ledger.json"
    path.write_text(text)
    with pytest.raises(BudgetError, match=r"ledger\.json is no ledger \(.*\): delete it to count"):
        TimeBudget(ledger=path, clock=clock)
    assert path.read_text() == text


def test_a_clock_that_began_anew_is_of_another_boot(clock, ledger, monkeypatch, tmp_path):
    """Where the system has no boot id."""
    monkeypatch.setattr(interrupts, "_BOOT_ID", tmp_path / "absent")
    TimeBudget(ledger=ledger, clock=clock)
    clock.now = 60.0
    assert TimeBudget(ledger=ledger, clock=clock).minutes_used == 0


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"] and path.read_text() == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_ledger_that_is_not_written_ends_no_stage(number, clock, ledger, monkeypatch, capsys):
    budget = TimeBudget(ledger=ledger, clock=clock)
    before = ledger.read_text()

    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", refuse, raising=False)
        for _ in budget.guard(range(5), "sft"):
            clock.minutes(1)
        with budget.measure("save"):
            clock.minutes(1)
    told = capsys.readouterr().err
    assert told.count("The stage goes on") == 1 and os.strerror(number) in told and ledger.read_text() == before
    assert budget.stop_reason("sft") == "data" and budget.minutes_used == 6
    with budget.measure("save"):
        clock.minutes(2)
    assert row(ledger, "sft") == {"steps": 5, "seconds": 300.0, "first_seconds": 60.0, "stopped": "data"}
    assert json.loads(ledger.read_text())["took"] == {"save": 120.0}, "written once the disk takes it"


def test_a_full_disk_is_told_before_anything_is_trained(clock, ledger, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(files.DiskFullError, match=r"ledger.json can't be written \(No space left on device\). It needs "
                                                  ".*Make room on the disk of .*, and run the cell again"):
        TimeBudget(ledger=ledger, clock=clock)


# -- stages and shares


def test_shares_split_what_is_left_among_the_stages_not_yet_done(clock):
    budget = TimeBudget(hours=2, reserve_minutes=20, shares={"sft": 1, "simpo": 1, "grpo": 3}, clock=clock)
    assert budget.stage_minutes("sft") == pytest.approx(20)
    train(budget.guard(range(4), "sft"), clock, [60])  # 4 of its 20 minutes: the rest goes to the others
    assert budget.stage_minutes("simpo") == pytest.approx(96 / 4)
    assert budget.stage_minutes("grpo") == pytest.approx(96 * 3 / 4)
    assert budget.stage_minutes("evaluation") == pytest.approx(96)  # no share: all the time left


def test_a_stage_that_was_killed_keeps_its_share_until_it_is_done(clock, ledger):
    settings = {"hours": 2, "reserve_minutes": 20, "ledger": ledger, "shares": {"sft": 1, "grpo": 1}}
    killed = TimeBudget(**settings, clock=clock)
    passed = killed.guard(range(100), "sft")
    for _ in range(3):
        next(passed)
        clock.minutes(5)  # the ledger is written at each pull
    resumed = TimeBudget(**settings, clock=clock)
    assert resumed.stop_reason("sft") is None and row(ledger, "sft")["steps"] == 2
    assert resumed.stage_minutes("grpo") == pytest.approx(85 / 2)
    assert train(resumed.guard(range(4), "sft"), clock, [60]) == 4
    assert row(ledger, "sft")["steps"] == 6 and row(ledger, "sft")["seconds"] == 600 + 240
    assert resumed.stage_minutes("grpo") == pytest.approx(81)


def test_a_stage_still_open_is_over_when_another_begins(clock):
    budget = TimeBudget(hours=2, reserve_minutes=20, shares={"sft": 1, "grpo": 1}, clock=clock)
    passed = budget.guard(range(9), "sft")
    next(passed)  # the trainer reached its max_steps and still holds the iterator
    assert budget.stage_minutes("grpo") == pytest.approx(100)
    assert budget.stage_minutes("sft") == pytest.approx(50)


def test_a_part_of_what_a_stage_would_get_is_never_an_error(clock):
    """What a stage makes before it trains must not end the notebook when the time is over."""
    budget = TimeBudget(hours=2, reserve_minutes=20, shares={"simpo": 1, "grpo": 3}, clock=clock)
    assert budget.part("simpo", 1 / 2) == pytest.approx(12.5)
    clock.minutes(101)
    assert budget.part("simpo", 1 / 2) == 0
    assert TimeBudget(hours=2, reserve_minutes=20, clock=clock, grows=True).part("simpo", 1 / 2) == math.inf


def test_a_stage_with_nothing_left_says_so_when_it_begins(clock, ledger):
    budget = TimeBudget(hours=1, reserve_minutes=20, ledger=ledger, clock=clock)
    clock.minutes(40)
    for begin in (budget.stage_minutes, lambda stage: budget.guard(range(3), stage)):
        with pytest.raises(BudgetError, match=r"'grpo' .*40\.0 of 60 .*20 reserved .*ledger\.json.*delete"):
            begin("grpo")
    assert budget.stop_reason("grpo") is None


def test_guard_wants_batches(clock):
    with pytest.raises(TypeError, match="not iterable"):
        TimeBudget(clock=clock).guard(3, "sft")


# -- the guard


def test_all_batches_pass_when_there_is_time(clock, ledger):
    budget = TimeBudget(ledger=ledger, clock=clock)
    batches = [{"prompts": ["a"]}, {"prompts": ["b"]}]
    passed = list(budget.guard(batches, "sft"))
    assert len(passed) == 2 and all(batch is kept for batch, kept in zip(passed, batches, strict=True))
    assert budget.stop_reason("sft") == "data"
    assert row(ledger, "sft") == {"steps": 2, "seconds": 0.0, "first_seconds": 0.0, "stopped": "data"}


def test_it_ends_before_the_batch_that_would_pass_the_deadline(clock, ledger):
    budget = TimeBudget(hours=1, reserve_minutes=20, ledger=ledger, clock=clock)
    assert train(budget.guard(iter(range(1000)), "grpo"), clock, [7 * 60]) == 5  # a sixth would end at 42
    assert budget.stop_reason("grpo") == "time" and budget.minutes_left == 5
    assert row(ledger, "grpo") == {"steps": 5, "seconds": 2100.0, "first_seconds": 420.0, "stopped": "time"}


def test_the_compilation_in_the_first_step_is_not_expected_again(clock, ledger):
    budget = TimeBudget(hours=1, reserve_minutes=20, ledger=ledger, clock=clock)
    assert train(budget.guard(range(1000), "grpo"), clock, [25 * 60, 60]) == 16
    assert budget.minutes_left == 0 and row(ledger, "grpo")["first_seconds"] == 1500


def test_nothing_passes_at_the_deadline_even_before_a_step_is_known(clock):
    budget = TimeBudget(hours=1, reserve_minutes=20, clock=clock)
    assert train(budget.guard(range(1000), "grpo"), clock, [40 * 60, 1]) == 1


def test_the_longest_recent_step_predicts_the_next(clock):
    budget = TimeBudget(hours=1, reserve_minutes=20, clock=clock)
    durations = [60] * 30 + [6 * 60, 60]
    assert train(budget.guard(range(99), "grpo"), clock, durations) == 31  # 36 of 40 min used


def test_an_old_long_step_is_forgotten(clock):
    budget = TimeBudget(hours=1, reserve_minutes=20, clock=clock)
    assert train(budget.guard(range(1000), "grpo"), clock, [60, 60, 6 * 60, 60]) == 34
    assert budget.minutes_left == 1  # the mean of 69 s still remembers it


def test_a_burst_of_fast_pulls_does_not_make_steps_free(clock):
    budget = TimeBudget(hours=1, reserve_minutes=20, clock=clock)
    passed = budget.guard(range(1000), "grpo")
    for _ in range(9):
        next(passed)
        clock.minutes(4)
    for _ in range(6):
        next(passed)  # fetched ahead, as many as the maximum looks back
    clock.minutes(3)
    assert next(passed, "ended") == "ended" and budget.stop_reason("grpo") == "time"


def test_a_resumed_trainer_skips_in_a_burst_and_then_compiles(clock):
    budget = TimeBudget(hours=1, reserve_minutes=20, clock=clock)
    assert train(budget.guard(range(1000), "grpo"), clock, [0] * 50 + [10 * 60] + [60]) == 81


def test_the_end_is_final_and_the_source_is_not_read_past_it(clock):
    budget = TimeBudget(hours=1, reserve_minutes=20, clock=clock)
    source = iter(range(1000))
    passed = budget.guard(source, "grpo")
    train(passed, clock, [10 * 60])
    assert next(passed, "ended") == "ended"
    assert next(source) == 4


def test_the_ledger_is_at_most_a_few_seconds_behind(clock, ledger):
    budget = TimeBudget(ledger=ledger, clock=clock)
    passed = budget.guard(range(1000), "sft")
    next(passed)
    clock.now += 4
    next(passed)
    assert json.loads(ledger.read_text())["stages"] == {}
    clock.now += 1
    next(passed)
    assert row(ledger, "sft") == {"steps": 2, "seconds": 5.0, "first_seconds": 4.0, "stopped": None}


def test_a_consumer_that_lets_go_or_fails_is_on_the_ledger(clock, ledger):
    budget = TimeBudget(ledger=ledger, clock=clock)
    passed = budget.guard(range(1000), "sft")
    next(passed)
    clock.now += 2
    passed.close()
    assert row(ledger, "sft") == {"steps": 1, "seconds": 2.0, "first_seconds": None, "stopped": "closed"}

    def failing():
        for _ in budget.guard(range(1000), "grpo"):
            clock.now += 3
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        failing()
    assert row(ledger, "grpo")["seconds"] == 3.0 and budget.stop_reason("grpo") == "closed"


def test_a_failing_source_is_on_the_ledger_and_raises(clock, ledger):
    def source():
        yield 1
        raise OSError("shard 2 is gone")

    budget = TimeBudget(ledger=ledger, clock=clock)
    with pytest.raises(OSError, match="shard 2"):
        train(budget.guard(source(), "sft"), clock, [1])
    assert row(ledger, "sft")["stopped"] == "closed" and row(ledger, "sft")["steps"] == 1


# -- what is measured


def test_the_compilation_is_paid_for_by_all_stages(clock):
    """20 minutes of it, of 120: SFT's half is then one of the 100 that are left."""
    budget = TimeBudget(hours=2, reserve_minutes=0, shares={"sft": 1, "grpo": 1}, clock=clock)
    assert train(budget.guard(range(1000), "sft"), clock, [20 * 60, 60]) == 1 + 50
    assert budget.stage_minutes("grpo") == pytest.approx(50)


def test_the_reserve_grows_with_what_is_measured_of_what_lies_ahead(clock, ledger):
    settings = {"hours": 2, "reserve_minutes": 20, "ledger": ledger, "ahead": {"save": 1, "probe": 8}, "clock": clock}
    budget = TimeBudget(**settings)
    with budget.measure("save"):
        clock.minutes(0.5)
    assert budget.minutes_reserved == 20, "half of it, and 0.6 minutes, are less"
    for minutes in (4, 2):  # the first compiles
        with budget.measure("probe"):
            clock.minutes(minutes)
    assert budget.minutes_reserved == pytest.approx(10 + 1.25 * (0.5 + 8 * 2))
    assert TimeBudget(**settings).minutes_reserved == budget.minutes_reserved, "a restart forgot"
    assert budget.minutes_left == pytest.approx(120 - 6.5 - budget.minutes_reserved)


def test_a_part_of_what_lies_ahead_is_measured_for_the_whole(clock):
    budget = TimeBudget(hours=2, reserve_minutes=20, ahead={"probe": 8}, clock=clock)
    with budget.measure("probe", times=400 / 64):
        clock.minutes(0.5)
    assert budget.minutes_reserved == pytest.approx(10 + 1.25 * 8 * 0.5 * 400 / 64)


def test_a_reserve_that_grows_ends_the_stage_earlier(clock):
    budget = TimeBudget(hours=1, reserve_minutes=10, ahead={"probe": 10}, clock=clock)
    done = 0
    for done in budget.guard(range(1, 1000), "grpo"):  # noqa: B007
        clock.minutes(1)
        if done == 5:
            with budget.measure("probe"):
                clock.minutes(2)
    assert done == 27 and budget.minutes_left == 1, "of 60 - (5 + 25); the mean of 1.08 minutes remembers the probe"


def test_what_failed_is_not_measured(clock):
    budget = TimeBudget(hours=1, reserve_minutes=10, ahead={"probe": 10}, clock=clock)
    with pytest.raises(RuntimeError), budget.measure("probe"):
        clock.minutes(20)
        raise RuntimeError
    assert budget.minutes_reserved == 10


def test_steps_left_are_those_that_fit_at_the_mean_pace(clock):
    budget = TimeBudget(hours=1, reserve_minutes=10, shares={"sft": 1, "grpo": 4}, clock=clock)
    assert budget.steps_left == float("inf")
    passed = budget.guard(range(1000), "sft")
    next(passed)
    clock.minutes(5)
    next(passed)
    assert budget.steps_left == float("inf"), "of the compilation nothing follows"
    clock.minutes(0.5)
    next(passed)
    assert budget.steps_left == pytest.approx((45 / 5 - 0.5) / 0.5)
    clock.minutes(60)
    assert budget.steps_left == 0


def test_a_stage_that_is_told_to_end_ends_before_its_next_batch(clock, ledger):
    budget = TimeBudget(ledger=ledger, clock=clock)
    passed = budget.guard(range(1000), "grpo")
    next(passed)
    budget.end("SIGTERM")
    assert next(passed, "ended") == "ended" and row(ledger, "grpo")["stopped"] == "SIGTERM"
    budget.end(None)
    assert list(budget.guard(range(3), "sft")) == [0, 1, 2]


# -- a session that grows


def growing(clock, ledger=None, **settings):
    return TimeBudget(**{"hours": 1 / 3, "reserve_minutes": 2, "shares": {"sft": 1, "grpo": 3}, **settings},
                      ledger=ledger, clock=clock, grows=True)


def test_a_session_that_grows_makes_all_steps_however_slow(clock, ledger):
    """On a laptop whose steps take five times as long as where the demo's 20 minutes were measured."""
    budget = growing(clock, ledger)
    assert budget.minutes_left == 18
    assert train(budget.guard(range(120), "sft", 120), clock, [90, 15]) == 120
    assert budget.stop_reason("sft") == "data" and budget.minutes_left > 3 * 120 * 15 / 60, "GRPO has three times that"
    assert train(budget.guard(range(64), "grpo", 64), clock, [120, 60]) == 64
    assert budget.stop_reason("grpo") == "data" and row(ledger, "grpo")["steps"] == 64


def test_it_grows_with_the_pace_of_the_first_steps(clock, capsys):
    budget = growing(clock)
    passed = budget.guard(range(64), "grpo", 64)
    for seconds in (120, 60):
        next(passed)
        clock.now += seconds
    assert budget.minutes_left < 18 and budget.steps_left == float("inf"), "one pace is not known before its step ends"
    next(passed)
    assert capsys.readouterr().out == "grpo: 62 minutes to go at this pace; all 64 steps will be run\n"
    assert budget.minutes_left > 62 and budget.steps_left == float("inf"), "the schedule is not cut to the clock"


def test_where_there_is_time_it_does_not_grow(clock):
    budget = growing(clock)
    train(budget.guard(range(64), "grpo", 64), clock, [20, 6])
    assert budget.hours == 1 / 3 and budget.stop_reason("grpo") == "data"


def test_a_restarted_kernel_goes_on_with_the_session_that_grew(clock, ledger):
    first = growing(clock, ledger)
    train(first.guard(range(120), "sft", 120), clock, [15])
    again = growing(clock, ledger)
    assert again.minutes_used == first.minutes_used == 30 and again.hours == first.hours > 0.5
    assert TimeBudget(hours=1 / 3, reserve_minutes=2, ledger=ledger, clock=clock).minutes_used == 0, "a limit's"


def test_a_stage_that_begins_late_has_the_forecast_anew(clock):
    budget = growing(clock)
    clock.minutes(19)
    assert train(budget.guard(range(64), "grpo", 64), clock, [120, 60]) == 64


def test_it_is_told_to_end_as_any_other(clock):
    budget = growing(clock)
    passed = budget.guard(range(64), "grpo", 64)
    next(passed)
    budget.end("SIGTERM")
    assert next(passed, "ended") == "ended" and budget.stop_reason("grpo") == "SIGTERM"


def test_the_minutes_here_are_those_of_one_kernel(clock, ledger):
    TimeBudget(ledger=ledger, clock=clock)
    clock.minutes(7)
    second = TimeBudget(ledger=ledger, clock=clock)
    clock.minutes(2)
    assert second.minutes_used == 9 and second.minutes_here == 2


# -- the session


def processes(tmp_path, monkeypatch, uptime, **started):
    """A /proc with these processes' starting times, in seconds since boot."""
    for pid, seconds in started.items():
        (tmp_path / pid.strip("_")).mkdir()
        ticks = int(seconds * interrupts.os.sysconf("SC_CLK_TCK"))
        (tmp_path / pid.strip("_") / "stat").write_text(f"7 (a) b) S {' '.join(['0'] * 18)} {ticks} 0 0\n")
    (tmp_path / "uptime").write_text(f"{uptime} 1.0\n")
    monkeypatch.setattr(interrupts, "_PROC", tmp_path)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")


@pytest.mark.parametrize(("started", "age"), [
    ({"_1": 400.0, "self": 900.0}, 600.0),  # the container is older than the kernel
    ({"_1": 400.0}, 600.0),
    ({"self": 900.0}, 100.0),
    ({}, 0.0),
])
def test_on_kaggle_the_session_began_before_the_first_cell(started, age, tmp_path, monkeypatch, clock):
    processes(tmp_path, monkeypatch, 1000.0, **started)
    assert interrupts.session_age(3600) == pytest.approx(age)
    assert TimeBudget(hours=1, clock=clock).minutes_used == pytest.approx(age / 60)


def test_a_process_older_than_a_session_can_be_is_none_of_it(tmp_path, monkeypatch):
    processes(tmp_path, monkeypatch, 90_000.0, _1=100.0, self=89_000.0)
    assert interrupts.session_age(3600) == pytest.approx(1000)
    assert interrupts.session_age(500) == 0.0


def test_elsewhere_it_begins_with_the_ledger(tmp_path, monkeypatch):
    processes(tmp_path, monkeypatch, 1000.0, _1=400.0, self=900.0)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    assert interrupts.session_age(3600) == 0.0


def test_the_age_of_this_process_is_what_the_system_says(monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert 0 < interrupts._age("self") <= interrupts._age("1") or interrupts._age("1") == 0


@given(
    steps=st.lists(st.floats(0.1, 600), min_size=2, max_size=60),
    minutes=st.floats(1, 60),
    ahead=st.integers(0, 3),
)
def test_the_overshoot_is_bounded_by_the_steps_in_flight(steps, minutes, ahead):
    """A consumer that runs `ahead` batches ahead is late by at most those and one more."""
    clock = Clock()
    budget = TimeBudget(hours=(minutes + 20) / 60, reserve_minutes=20, clock=clock)
    end = clock.now + 60 * minutes
    in_flight = []
    for seconds in budget.guard(steps, "sft"):
        in_flight.append(seconds)
        if len(in_flight) > ahead:
            clock.now += in_flight.pop(0)
    clock.now += sum(in_flight)
    assert clock.now <= end + (ahead + 1) * max(steps) + 1e-3


@given(step=st.floats(1, 600), minutes=st.floats(1, 60), compilation=st.floats(0, 60))
def test_steady_steps_end_in_time_and_waste_less_than_one(step, minutes, compilation):
    clock = Clock()
    budget = TimeBudget(hours=(minutes + 20) / 60, reserve_minutes=20, clock=clock)
    end = clock.now + 60 * minutes
    done = train(budget.guard(itertools.count(), "sft"), clock, [step + compilation, step])
    late = clock.now - end
    assert late <= (1e-3 if done > 2 else step + compilation)
    assert late > -step - 1e-3
