"""Where a stage begins: with the adapter that was handed to it, whatever happened to the one in memory since."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from datasets import Dataset
from fault_run import GRPO, SFT, odd
from flax import nnx
from tiny_gemma import bump
from tiny_run import CONFIG, ROWS, StopAfter, new_policy, short_tokenizer
from tunix.sft.checkpoint_manager import CheckpointManager

from reasonkit.models import checkpoints
from reasonkit.models.checkpoints import restore_lora, steps_in
from reasonkit.models.lora import fingerprint
from reasonkit.models.mesh import make_mesh
from reasonkit.rewards.mix import RewardMix
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.train import loop, tunix_compat
from reasonkit.train.grpo import grpo
from reasonkit.train.sft import sft
from recipes.stages.simpo import SimpoSettings, simpo
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    return SimpleNamespace(mesh=mesh, base=init_random(CONFIG, mesh),
                           tokenizer=short_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def policy(setup):
    return new_policy(setup.base, setup.mesh, setup.tokenizer)


@pytest.fixture
def warm_up(setup, policy, tmp_path):
    """SFT, by default all of it; the same call again goes on."""
    def warm_up(budget=None, **options):
        return sft(policy, setup.mesh, ROWS, SFT, budget or TimeBudget(1, 0), RunLog(tmp_path / "sft.jsonl"),
                   tmp_path / "run", 3, **options)

    return warm_up


@pytest.fixture
def practise(setup, policy, tmp_path, monkeypatch):
    """GRPO, as the training cell of notebook 3 calls it; `anchors` are the references that Tunix was given."""
    anchors, make = [], tunix_compat.grpo_cluster

    def cluster(actor, reference, *args):
        anchors.append(fingerprint(reference))
        return make(actor, reference, *args)

    monkeypatch.setattr(tunix_compat, "grpo_cluster", cluster)
    log = RunLog(tmp_path / "grpo.jsonl")

    def practise(start_step, budget=None, **options):
        return grpo(policy, setup.mesh, ROWS, RewardMix([(odd, 1.0)], log), replace(GRPO, beta=0.1),
                    budget or TimeBudget(1, 0), log, tmp_path / "run", 3, start_step, **options)

    return SimpleNamespace(run=practise, anchors=anchors)


def test_the_training_cell_again_has_the_reference_that_was_handed_over(warm_up, practise, policy, tmp_path):
    """After the stop button the adapter in memory is half trained, and orbax has deleted the step handed over."""
    start = warm_up().checkpoint_step
    handed = fingerprint(policy.model)

    steps = []

    def stop():
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        practise.run(start, on_step=stop)
    assert fingerprint(policy.model) != handed and start not in steps_in(tmp_path / "run")
    result = practise.run(start)
    assert (result.steps, result.stopped) == (3, "data") and practise.anchors == [handed, handed]


def test_a_stage_that_was_stopped_is_handed_over_as_it_is(warm_up, practise, tmp_path):
    """By `time_budget.end("hand")`, as `Run.manifest` advises."""
    def stop():
        os.kill(os.getpid(), signal.SIGINT)

    ended = []
    for train in (warm_up, lambda **options: practise.run(ended[0].checkpoint_step, **options)):
        with pytest.raises(KeyboardInterrupt):
            train(on_step=stop)
        budget = TimeBudget(1, 0)
        budget.end("hand")
        ended.append(train(budget=budget, on_step=stop))
        assert ended[-1].stopped == "hand" and 0 < ended[-1].steps < 3
        assert steps_in(tmp_path / "run")[-1] == ended[-1].checkpoint_step


def test_an_adapter_that_is_not_the_one_handed_over_is_replaced(warm_up, practise, policy):
    start = warm_up().checkpoint_step
    handed = fingerprint(policy.model)
    bump(policy.model)
    practise.run(start)
    assert practise.anchors == [handed]


def test_a_stage_that_failed_before_its_first_save_begins_again_as_it_began(warm_up, policy, monkeypatch, tmp_path):
    fresh = fingerprint(policy.model)
    monkeypatch.setattr(tunix_compat, "checkpoint_options",
                        lambda every, keep: checkpoints.ocp.CheckpointManagerOptions(save_interval_steps=50))

    def fail():
        raise RuntimeError("the disk of the log is full")

    with pytest.raises(RuntimeError, match="the disk of the log"):
        warm_up(on_step=fail)
    assert fingerprint(policy.model) != fresh and not steps_in(tmp_path / "run")
    loop.begin(policy.model, tmp_path / "run", "sft", 0, SFT.steps)
    assert fingerprint(policy.model) == fresh


def test_an_earlier_stage_does_not_go_on_with_a_later_ones_steps(warm_up, practise, tmp_path):
    """The later stage's steps are numbers that the earlier one could have reached."""
    clock = StopAfter(1)
    cut = warm_up(clock.budget, on_step=clock.on_step)
    assert cut.stopped == "time" and cut.checkpoint_step == 2
    clock = StopAfter(1)
    assert practise.run(2, clock.budget, on_step=clock.on_step).checkpoint_step == 3 <= SFT.steps
    with pytest.raises(ValueError, match="stage 'grpo' began at step 2 of .*, and stage 'sft', which comes before it, "
                                         "would resume from its steps: start anew in another folder"):
        warm_up()
    assert steps_in(tmp_path / "run")[-1] == 3, "nothing is removed before the check"


def test_a_stage_that_was_cut_short_goes_on_while_no_later_one_has_made_a_step(warm_up, practise, policy, tmp_path):
    clock = StopAfter(1)
    cut = warm_up(clock.budget, on_step=clock.on_step)

    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        practise.run(cut.checkpoint_step, StopAfter(1).budget, curriculum=SimpleNamespace(resume=lambda *_: fail()))
    whole = warm_up()
    assert (whole.steps, whole.stopped) == (SFT.steps, "data")
    assert not loop.has_steps(tmp_path / "run", "grpo"), "its copy is of the step before"
    handed = fingerprint(policy.model)
    practise.run(whole.checkpoint_step)
    assert practise.anchors[-1] == handed


def test_steps_of_another_stage_are_not_taken_for_ones_own(warm_up, practise):
    warm_up()
    with pytest.raises(ValueError, match="is at step 4, and this stage goes from step 0 to 3"):
        practise.run(0)
    with pytest.raises(ValueError, match="is at step 4, and stage 'grpo' has not begun at step 2 there: these steps "
                                         "are another stage's. Give it the step that was handed over, or another"):
        practise.run(2)
    assert practise.run(4).checkpoint_step == 4 + GRPO.steps, "the step that was handed over is gone"


def test_a_stage_is_trained_anew_when_its_steps_are_deleted(warm_up, practise, policy, tmp_path):
    start = warm_up().checkpoint_step
    handed = fingerprint(policy.model)
    practise.run(start)
    one = fingerprint(policy.model)
    assert start not in steps_in(tmp_path / "run")
    (tmp_path / "run/actor").rename(tmp_path / "deleted")
    (tmp_path / "grpo.jsonl").unlink()
    assert practise.run(start).checkpoint_step == start + GRPO.steps
    assert practise.anchors == [handed, handed] and fingerprint(policy.model) == one


def test_a_run_of_which_only_the_adapters_were_copied_goes_on(warm_up, practise, policy, tmp_path):
    """The notebook has restored the one that was handed over. It used to be told that the checkpoints are at step 0."""
    start = warm_up().checkpoint_step
    handed = fingerprint(policy.model)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    result = practise.run(start)
    assert (result.steps, result.checkpoint_step, practise.anchors) == (3, start + 3, [handed])
    restore_lora(policy.model, tmp_path / "run/begun/grpo", start)
    assert fingerprint(policy.model) == handed


def test_a_stage_after_grpo_has_an_optimiser_of_its_own(warm_up, practise, policy, setup, tmp_path, monkeypatch):
    """GRPO's last step carries its moments and counts, and Tunix's trainer would take them up."""
    start = practise.run(warm_up().checkpoint_step).checkpoint_step
    assert (tmp_path / f"run/actor/{start}/optimizer_state").is_dir()
    pairs = Dataset.from_list([{"question": row["question"], "chosen": row["answer"], "rejected": "no"}
                               for row in ROWS])
    settings = SimpoSettings(steps=2, batch_size=4, max_prompt_length=32, max_new_tokens=8, learning_rate=2e-2,
                                 questions=4)
    counts, trainer = [], CheckpointManager.maybe_restore

    def restore(self, model, optimizer=None, **options):
        found = trainer(self, model, optimizer, **options)
        flat = nnx.to_flat_state(nnx.state(optimizer, nnx.optimizer.OptState))
        counts.extend(int(leaf[...]) for path, leaf in flat if path[-1] == "count")
        return found

    monkeypatch.setattr(CheckpointManager, "maybe_restore", restore)
    handed = fingerprint(policy.model)
    other = new_policy(setup.base, setup.mesh, setup.tokenizer, seed=9)
    result = simpo(other, setup.mesh, pairs, settings, TimeBudget(1, 0), RunLog(tmp_path / "simpo.jsonl"),
                   tmp_path / "run", 0, start)
    assert counts and set(counts) == {0} and (result.steps, result.checkpoint_step) == (2, start + 3)
    restore_lora(other.model, tmp_path / "run/begun/simpo", start)
    assert fingerprint(other.model) == handed

