"""The judge beside the policy, within a step: what comes out is what the serial order gives, and both are at work."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from flax import nnx
from tiny_gemma import equal
from tiny_run import CONFIG, ROWS, StopAfter, new_policy, short_tokenizer
from tunix.rl.rl_cluster import RLCluster

from reasonkit.judge.judge import JudgeFailure, JudgeItem, JudgeVerdict
from reasonkit.models.mesh import make_mesh
from reasonkit.rewards.mix import NoSignalError, RewardMix
from reasonkit.rewards.monitors import suspicious
from reasonkit.session import interrupts
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import GrpoSettings
from reasonkit.train import grpo as stage
from reasonkit.train.grpo import grpo
from reasonkit.train.rollout import Rollout
from recipes.stages.curriculum import Curriculum
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

G = 2
# A step of two rollout calls and four passes; 4 rows a pass, one on each device.
SETTINGS = GrpoSettings(steps=3, prompts_per_step=8, num_generations=G, max_prompt_length=32, max_new_tokens=16,
                        learning_rate=2e-2, micro_prompts=2, rollout_micro_prompts=4, save_every=50)
CALLS, PASSES = 2, 4
JUDGED = ROWS.map(lambda row: {"rubric": "of no account here"})


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    mesh = make_mesh(jax.devices()[:4], 4, 1)
    return SimpleNamespace(mesh=mesh, base=init_random(CONFIG, mesh),
                           tokenizer=short_tokenizer(tmp_path_factory.mktemp("tokenizer")))


class Serial(stage.Learner):
    """Tunix's own order, with as many rollout calls: sample the step, score it in one call, train on it."""

    def __init__(self, cluster, config, reward, rollout_micro_prompts):
        super().__init__(cluster, config, reward)
        self.each = rollout_micro_prompts
        Serial.lengths = cluster.rollout.mean_lengths

    def _generate_and_compute_advantage(self, batch, mode):
        self._rollout_micro_batch_size = self.each
        return super()._generate_and_compute_advantage(batch, mode)


class Judge:
    """Scores by the length of the reply and fails now and then; `before(n)` runs in front of its call number n."""

    def __init__(self, before=lambda number: None):
        self.before, self.failures, self.items, self.threads = before, Counter(), [], []

    def score(self, items):
        self.before(len(self.threads))
        self.threads.append(threading.current_thread().name)
        self.items.append(items)
        return [JudgeFailure("backend", "away") if len(item.reply) % 5 == 0
                else JudgeVerdict(len(item.reply) % 11 / 10, (0.5,)) for item in items]


def scored(judge):
    """What the judge says of each reply; `rubric` would ask it nothing about what an untrained policy writes."""
    def rubric(prompts, completions, question, **columns):
        results = judge.score([JudgeItem(str(q), reply, ()) for q, reply in zip(question, completions, strict=True)])
        rubric.failures.update(result.cause for result in results if isinstance(result, JudgeFailure))
        return [None if isinstance(result, JudgeFailure) else result.score for result in results]

    rubric.failures, rubric.rowwise = Counter(), True
    return rubric


def odd(prompts, completions, **columns):
    return [float(len(text) % 2) for text in completions]


def train(setup, folder, judge, settings=SETTINGS, budget=None, max_no_signal=1.0, **others):
    """One run of the stage with everything that reads along: curriculum, monitors, and a second part."""
    policy, log = new_policy(setup.base, setup.mesh, setup.tokenizer), RunLog(folder / "log.jsonl")
    curriculum = Curriculum(log)
    reward = RewardMix([(scored(judge), 1.0), (curriculum.watch(odd), 0.5), (suspicious(log), 0.0)],
                     log, max_no_signal)
    result = grpo(policy, setup.mesh, JUDGED, reward, settings, budget or TimeBudget(1, 0), log, folder / "checkpoints",
                  seed=3, start_step=0, curriculum=curriculum, **others)
    return SimpleNamespace(policy=policy, log=log, result=result, reward=reward, judge=judge,
                           adapter=nnx.state(policy.model, nnx.LoRAParam))


def rows(run, event):
    return [{name: value for name, value in row.items() if name not in ("t", "seconds", "compiled")}
            for row in run.log.read(event)]


@pytest.fixture(scope="module")
def overlapped(setup, tmp_path_factory):
    return train(setup, tmp_path_factory.mktemp("overlapped"), Judge())


def test_the_serial_order_gives_the_same_weights_bit_for_bit(overlapped, setup, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "Overlapped", Serial)
    serial = train(setup, tmp_path, Judge())
    assert len(serial.judge.items) == 3 and len(overlapped.judge.items) == 3 * PASSES
    assert sum(overlapped.judge.items, []) == sum(serial.judge.items, []), "samples"
    for event in ("reward", "grpo_step", "pass_rates", "texts"):
        assert rows(overlapped, event) == rows(serial, event) and len(rows(serial, event)) == 3, "a row a step"
    assert [row["length"] for row in rows(serial, "grpo_step")] == [
        sum(Serial.lengths[n:n + CALLS]) / CALLS for n in range(0, 3 * CALLS, CALLS)]
    assert any(row["parts"]["rubric"]["no_signal"] for row in rows(serial, "reward")), "no score was missing"
    assert len({json.dumps(row["parts"]) for row in rows(serial, "reward")}) == 3
    assert equal(overlapped.adapter, serial.adapter), "weights"
    assert not equal(nnx.state(new_policy(setup.base, setup.mesh, setup.tokenizer).model, nnx.LoRAParam),
                     serial.adapter), "nothing was learnt"


def test_judge_and_policy_are_at_work_at_once(setup, tmp_path, monkeypatch):
    """The first replies are being judged while the next are sampled; the last, while the first are trained on."""
    sampling, trained, seen = threading.Event(), threading.Event(), []
    generate, update = Rollout.generate, RLCluster.update_actor

    def second_call(rollout, *args, **settings):
        if rollout.calls:
            sampling.set()
        return generate(rollout, *args, **settings)

    def first_pass(cluster, *args):
        update(cluster, *args)
        trained.set()

    def wait(number):
        if number in (0, PASSES - 1):
            seen.append((sampling, trained)[number > 0].wait(timeout=60))

    monkeypatch.setattr(Rollout, "generate", second_call)
    monkeypatch.setattr(RLCluster, "update_actor", first_pass)
    run = train(setup, tmp_path, Judge(wait), replace(SETTINGS, steps=1))
    assert seen == [True, True] and len(set(run.judge.threads)) == 1 and run.result.steps == 1
    assert not alive()


def alive():
    """Threads of the judge that are still there after a moment."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("judge")]
    for thread in found:
        thread.join(timeout=10)
    return [thread for thread in found if thread.is_alive()]


def test_a_stopped_run_draws_the_same_samples_when_it_goes_on(overlapped, setup, tmp_path):
    clock, judge = StopAfter(1), Judge()
    first = train(setup, tmp_path, judge, budget=clock.budget, on_step=clock.on_step)
    assert first.result.stopped == "time" and 0 < first.result.steps < 3
    second = train(setup, tmp_path, judge)
    assert (second.result.stopped, second.result.steps) == ("data", 3)
    assert sum(judge.items, []) == sum(overlapped.judge.items, [])
    assert rows(second, "grpo_step") == rows(overlapped, "grpo_step")


def test_an_error_of_the_judge_ends_the_stage_as_itself_before_the_step_is_sampled(setup, tmp_path, monkeypatch):
    calls, broken, generate = [], threading.Event(), Rollout.generate

    def slow(rollout, *args, **settings):
        calls.append(not rollout.calls or broken.wait(timeout=60))
        return generate(rollout, *args, **settings)

    def fail(number):
        broken.set()
        raise OSError("no more chips")

    monkeypatch.setattr(Rollout, "generate", slow)
    with pytest.raises(OSError, match="no more chips"):
        train(setup, tmp_path, Judge(fail), replace(SETTINGS, rollout_micro_prompts=2))
    assert all(calls) and len(calls) < 4 and not alive()


def test_a_judge_that_hangs_ends_the_stage_before_the_watchdog_does(setup, tmp_path, monkeypatch):
    free = threading.Event()
    monkeypatch.setattr(stage, "FIRST_PATIENCE", 0.6)
    assert stage.PATIENCE < interrupts.LEAST_SECONDS and stage.FIRST_PATIENCE < interrupts.FIRST_SECONDS
    with pytest.raises(TimeoutError, match="the judge has not answered for 0 minutes: see to its chips or service"):
        train(setup, tmp_path, Judge(lambda number: free.wait(timeout=60)))
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "judge"] == [True]
    free.set()
    assert not alive()


HANGS = """
from queue import SimpleQueue
from concurrent.futures import Future
from threading import Event, Thread
from reasonkit.train import grpo as t
asked, begun = SimpleQueue(), Event()
Thread(target=t._answer_all, args=(asked,), name="judge", daemon=True).start()
asked.put((Future(), lambda: begun.set() or Event().wait()))
print(begun.wait(60), flush=True)
"""


def test_a_judge_that_hangs_does_not_hold_up_the_interpreter(tmp_path):
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr


def test_too_little_signal_ends_the_stage_after_the_row_is_logged(setup, tmp_path):
    with pytest.raises(NoSignalError, match="rubric: .* of 16 completions"):
        train(setup, tmp_path, Judge(), max_no_signal=0.0)
    log = RunLog(tmp_path / "log.jsonl")
    assert len(log.read("reward")) == 1 and not log.read("grpo_step") and not alive()


def test_an_interrupt_leaves_at_once_and_what_waits_is_not_judged(setup, tmp_path, monkeypatch):
    free, asked = threading.Event(), []

    def interrupt(cluster, *args):
        raise KeyboardInterrupt

    def wait(number):
        asked.append(number)
        if number:
            assert free.wait(timeout=60)

    monkeypatch.setattr(RLCluster, "update_actor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(setup, tmp_path, Judge(wait))
    free.set()
    assert not alive() and asked == [0, 1]


@pytest.mark.parametrize("changes", [{"rollout_micro_prompts": 3}, {"rollout_micro_prompts": 6},
                                     {"micro_prompts": 4, "rollout_micro_prompts": 2}])
def test_sizes_that_do_not_divide_are_named(setup, tmp_path, changes):
    with pytest.raises(ValueError, match="grpo_prompts_per_step=8, grpo_rollout_micro_prompts=., .*: each of these"):
        train(setup, tmp_path, Judge(), replace(SETTINGS, **changes))


def test_a_reward_that_is_not_composed_is_named(setup, tmp_path):
    policy = new_policy(setup.base, setup.mesh, setup.tokenizer)
    with pytest.raises(ValueError, match="the reward 'odd' can't be asked ahead: pass a RewardMix"):
        grpo(policy, setup.mesh, JUDGED, odd, SETTINGS, TimeBudget(1, 0), RunLog(tmp_path / "log.jsonl"),
             tmp_path / "checkpoints", seed=3, start_step=0)
