"""Which problems are drawn, and that a run that was killed draws the same ones again."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from reasonkit.rewards.mix import RewardMix
from reasonkit.rewards.rules import exact_answer
from reasonkit.session.run_log import NullLog, RunLog
from recipes.stages.curriculum import BAND, EVENT, Curriculum, _update

IDS = np.array([f"p{n}" for n in range(30)])
SKILL = dict(zip(IDS, [0.0] * 10 + [0.5] * 10 + [1.0] * 10, strict=True))
G, SIZE = 4, 6


def solve(prompts, completions, id, **columns):
    """A policy with a fixed skill: of each group that share is right."""
    return [float(n % G < SKILL[name] * G) for n, name in enumerate(id)]


class Killed(Exception):
    pass


def run(log, steps, done=0, ahead=0, kill_at=None, fn=solve):
    """The batches of steps done + 1 to `steps`, as a trainer draws and scores them, `ahead` batches in advance."""
    curriculum = Curriculum(log)
    curriculum.resume(done)
    reward, seen = curriculum.watch(fn), []
    stream = (IDS[numbers] for numbers in curriculum.order(IDS, SIZE, 7))
    replayed = list(itertools.islice(stream, done))
    waiting = list(itertools.islice(stream, ahead))
    for step in range(done + 1, steps + 1):
        if step + ahead <= steps:
            waiting.append(next(stream))
        batch = waiting.pop(0)
        if step == kill_at:
            raise Killed
        reward(prompts=[""] * SIZE * G, completions=[""] * SIZE * G, id=np.repeat(batch, G), mode="train")
        seen.append(batch.tolist())
    return [batch.tolist() for batch in replayed], seen


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path / "log.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(RunLog(tmp_path_factory.mktemp("whole") / "log.jsonl"), 40)[1]


def test_problems_that_are_solved_sometimes_come_more_often(whole):
    assert all(len(set(batch)) == SIZE for batch in whole)
    first, last = (Counter(SKILL[name] for batch in part for name in batch) for part in (whole[:4], whole[20:]))
    assert min(first.values()) >= 4, "unseen problems count as favourable"
    assert last[0.5] > 3 * (last[0.0] + last[1.0]) / 2 and last[0.0] and last[1.0], "the others still come now and then"


def test_a_rate_halves_the_weight_of_what_is_older():
    rates = {}
    for measured in ({"a": 1.0, "b": None}, {"a": 0.0}, {"a": 1.0, "c": 0.25}):
        _update(rates, measured)
    assert rates == {"a": 0.75, "b": None, "c": 0.25}


def test_the_order_is_a_function_of_seed_and_rates(log, whole, tmp_path):
    assert run(log, 40)[1] == whole
    other = run(RunLog(tmp_path / "b"), 40, fn=lambda prompts, completions, id, **columns: [0.5] * len(id))[1]
    assert other[:2] == whole[:2], "nothing is known yet"
    assert other != whole
    assert next(Curriculum(log).order(IDS, SIZE, 8)).tolist() != next(Curriculum(log).order(IDS, SIZE, 7)).tolist()


def test_the_batch_that_is_drawn_ahead_is_the_same(log, whole):
    assert run(log, 40, ahead=1)[1] == whole


@pytest.mark.parametrize(("kill_at", "done"), [(21, 20), (21, 16), (2, 0), (21, 1)])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_sees_the_same_batches(log, whole, kill_at, done, torn):
    """Killed in step `kill_at`, with weights saved after `done`; its last row may be half written."""
    with pytest.raises(Killed):
        run(log, 40, kill_at=kill_at, ahead=1)
    if torn and done < kill_at - 1:
        log.path.write_bytes(log.path.read_bytes()[:-9])
    elif torn:
        with log.path.open("ab") as file:
            file.write(b'{"t": 1, "event": "pass_rates", "step": ')
    replayed, seen = run(log, 40, done=done)
    assert (replayed, seen) == (whole[:done], whole[done:])
    assert [row["step"] for row in RunLog(log.path).read(EVENT)][-1] == 40


def test_the_steps_of_earlier_stages_are_led_by_batches_that_nobody_sees(log, whole):
    run(log, 3)
    curriculum = Curriculum(log)
    curriculum.resume(3, earlier=2)
    batches = [IDS[numbers].tolist() for numbers in itertools.islice(curriculum.order(IDS, SIZE, 7), 6)]
    assert batches[2:] == whole[:4] and len(batches[0]) == len(batches[1]) == SIZE


def test_killed_twice_and_started_anew_over_an_old_log(log, whole):
    for done, kill_at in ((0, 15), (10, 18), (10, 12)):
        with pytest.raises(Killed):
            run(log, 40, done=done, kill_at=kill_at)
    assert run(log, 40, done=11) == (whole[:11], whole[11:])
    assert run(log, 40) == ([], whole)


@pytest.mark.parametrize("lost", [[5], [1], [2, 3], [1, 2, 3, 4, 5]])
def test_a_step_whose_row_is_lost_measured_nothing_and_the_stage_goes_on(log, whole, lost, capsys):
    run(log, 5)
    kept = [line if number not in lost else line[:-9]
            for number, line in enumerate(log.path.read_text().splitlines(), 1)]
    log.path.write_text("\n".join(kept) + "\n")
    replayed, seen = run(log, 8, done=5)
    assert len(replayed) == 5 and [replayed[n - 1] == whole[n - 1] for n in range(1, 6)] == [
        n not in lost for n in range(1, 6)]
    assert len(seen) == 3 and all(len(set(batch)) == SIZE for batch in seen)
    assert f"no 'pass_rates' row of {len(lost)} of the 5 steps that are in the weights, step {lost[0]}" in (
        capsys.readouterr().out)


def test_only_the_training_of_the_drawn_batch_is_noted(log):
    curriculum = Curriculum(log)
    reward = curriculum.watch(exact_answer)
    assert reward.__name__ == "exact_answer"
    columns = {"answer": ["4"] * 2, "kind": ["number"] * 2}
    trial = dict(prompts=["p"] * 2, completions=["<answer>4</answer>", ""], **columns)
    assert reward(**trial, id=["p1"] * 2) == [1.0, 0.0], "a trial, before anything is drawn"
    batch = IDS[next(curriculum.order(IDS, 1, 0))]
    reward(**trial, id=np.repeat(batch, 2), mode="eval")
    reward(**trial, id=["another"] * 2, mode="train")
    assert log.read() == []
    RewardMix([(reward, 1.0)], NullLog())(**trial, id=np.repeat(batch, 2), num_generations=2)
    assert [(row["step"], row["rates"]) for row in log.read()] == [(1, {batch[0]: 0.5})]


def test_a_watched_judge_is_asked_for_the_whole_batch_at_once(log):
    """Not ahead, in parts: none of them is the batch that was drawn."""
    def judged(prompts, completions, **columns):
        return [1.0] * len(completions)

    judged.rowwise = True
    reward, watched = (RewardMix([(fn, 1.0)], log) for fn in (judged, Curriculum(log).watch(judged)))
    assert list(reward.ask_ahead(["a"], ["b"], id=["p0"]).values) == ["judged"]
    assert list(watched.ask_ahead(["a"], ["b"], id=["p0"]).values) == []


def test_no_signal_leaves_the_rate_as_it_was(log):
    """Problems on which nothing is ever heard stay as good as unseen."""
    replayed, seen = run(log, 6, fn=lambda prompts, completions, id, **columns: [None] * len(id))
    unseen = run(RunLog(log.path.with_name("b")), 6, fn=lambda prompts, completions, id, **columns: [BAND[1]] * len(id))
    assert seen == unseen[1]
    assert set(log.last(EVENT)["rates"].values()) == {None}


def test_open_questions_do_not_take_the_place_of_those_that_are_solved(log):
    """Nothing measures them. They were drawn ten times as often as solved ones, and at the end nearly alone."""
    closed = {str(name) for name in IDS[::2]}
    _, seen = run(log, 120, fn=lambda prompts, completions, id, **columns: [
        1.0 if str(name) in closed else None for name in id])
    late = [name in closed for batch in seen[60:] for name in batch]
    assert 0.4 < np.mean(late) < 0.6


@pytest.mark.parametrize("value", [-1.0, 1.5, 5])
def test_a_part_that_is_no_pass_rate_is_named(log, value):
    """A penalty, say: all problems would be outside of the band, and drawn alike."""
    with pytest.raises(ValueError, match=f"penalty gave {value}, and a pass rate is from 0 to 1: watch another part"):
        def penalty(prompts, completions, id, **columns):
            return [None, float("nan"), 1.0, value, 0.0][:len(id)] + [0.0] * (len(id) - 5)

        run(log, 1, fn=penalty)


def test_what_cannot_be_ordered_is_named(log):
    with pytest.raises(ValueError, match="2 rows are fewer than one batch of 3"):
        next(Curriculum(log).order(["a", "b"], 3, 0))
    stream = Curriculum(log).order(IDS, SIZE, 0)
    with pytest.raises(ValueError, match="step 3 is drawn before the pass rates of step 1 are known: wrap one part"):
        list(stream)
    run(log, 2)
    curriculum = Curriculum(log)
    curriculum.resume(2)
    with pytest.raises(ValueError, match="step 1 drew the problem 'p[0-9]+', which is not among the 7 rows now"):
        next(curriculum.order([f"q{n}" for n in range(7)], SIZE, 7))
