"""A stage that made the model worse hands over the adapter it began with, to the next stage and to the judges."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest
from fault_run import GRPO, SFT, odd
from tiny_run import CONFIG, ROWS, new_policy, short_tokenizer

from reasonkit.config import PROFILES
from reasonkit.eval.evaluate import evaluate
from reasonkit.models.checkpoints import restore_lora, steps_in
from reasonkit.models.lora import fingerprint
from reasonkit.models.mesh import make_mesh
from reasonkit.rewards.mix import RewardMix
from reasonkit.run import Run
from reasonkit.session.manifest import MANIFEST, caveats
from reasonkit.session.run_log import NullLog
from reasonkit.session.setup import find_recipe
from reasonkit.session.time_budget import TimeBudget
from reasonkit.text.tags import TAGS
from reasonkit.train.grpo import grpo
from reasonkit.train.sft import sft
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

PROBLEMS = [dict(id=str(n), family="coins", kind="number", question=f"{n}?", answer="7", reasoning="3 + 4 = 7")
            for n in range(40)]


def answers(right: int, in_format: int = 40):
    """A result in which so many answers are right, and so many completions keep the format."""
    def generate(prompts):
        replies = [TAGS.render(reasoning="3 + 4 = 7", answer="7" if n < right else "8") for n in range(len(prompts))]
        return [reply if n < in_format else f"Well. {reply}" for n, reply in enumerate(replies)]

    return evaluate(generate, PROBLEMS, 40)


class Trained:
    """SFT and GRPO, each trained and handed over."""

    def __init__(self, folder):
        self.mesh = make_mesh(jax.devices()[:1], 1, 1)
        self.policy = new_policy(init_random(CONFIG, self.mesh), self.mesh, short_tokenizer(folder))
        self.run = Run(replace(PROFILES["smoke"], sft=SFT, grpo=GRPO), find_recipe("g_rar"), 0, folder / "run",
                       TimeBudget(1, 0))
        self.start = sft(self.policy, self.mesh, ROWS, SFT, self.run.budget, NullLog(), self.run.checkpoints, 3)
        self.run.hand_over("sft", self.policy.model, self.start, {})
        self.handed = fingerprint(self.policy.model)
        self.practise()
        self.trained = fingerprint(self.policy.model)

    def practise(self):
        result = grpo(self.policy, self.mesh, ROWS, RewardMix([(odd, 1.0)], NullLog()), GRPO, self.run.budget,
                      NullLog(), self.run.checkpoints, 3, self.start.checkpoint_step)
        self.run.hand_over("grpo", self.policy.model, result, {})
        return result

    def found(self):
        """The adapter in memory, the one for the next stage and the one for the judges, and their last steps."""
        kept, folders = [fingerprint(self.policy.model)], (self.run.stage("grpo") / "adapter", self.run.checkpoints)
        steps = {restore_lora(self.policy.model, folder) for folder in folders}
        for folder in folders:
            restore_lora(self.policy.model, folder)
            kept.append(fingerprint(self.policy.model))
        return kept, steps


@pytest.fixture
def done(tmp_path):
    made = Trained(tmp_path)
    assert made.handed != made.trained
    return made


def test_a_stage_that_made_the_model_worse_hands_over_what_it_began_with(done, capsys):
    last = steps_in(done.run.checkpoints)[-1]
    for _ in range(2):  # as after a kill between the two adapters
        done.run.keep_better("grpo", done.policy.model, answers(30), answers(10))
        assert done.found() == ([done.handed] * 3, {last + 1})
    told, manifest = capsys.readouterr().out, done.run.manifest("grpo")
    assert "grpo, before and after: accuracy -50.0 points [" in told and "grpo made the model worse, so" in told
    assert manifest["extra"]["checkpoint_step"] == last + 1
    assert any(line.startswith("Stage grpo made the model worse on validation problems (accuracy -50.0 points")
               for line in caveats([manifest]))


def test_a_stage_that_a_later_one_went_on_from_is_left_as_it_is(done, monkeypatch):
    """Its adapter would have become the last step of the judges' folder, above that of the later stage."""
    monkeypatch.setattr(type(done.run), "_is_last", lambda run, stage: False)
    done.run.keep_better("grpo", done.policy.model, answers(30), answers(10))
    assert done.found()[0] == [done.trained] * 3


def test_the_stage_can_still_be_trained_on(done):
    """From its own last step, as `describe_finished` advises."""
    done.run.keep_better("grpo", done.policy.model, answers(30), answers(10))
    (done.run.stage("grpo") / MANIFEST).unlink()
    assert done.practise().steps == GRPO.steps
    assert done.found()[0] == [done.trained] * 3
    assert "worse" not in done.run.manifest("grpo")["extra"]


def test_only_a_stage_that_is_surely_worse_and_better_in_nothing_is_taken_back(done):
    for before, after in ((answers(30), answers(29)), (answers(10), answers(30)), (answers(20), answers(20)),
                          (answers(10), answers(40, in_format=20)),  # the format for accuracy
                          (answers(40, in_format=20), answers(20, in_format=40))):
        done.run.keep_better("grpo", done.policy.model, before, after)
        assert done.found()[0] == [done.trained] * 3
    done.run.keep_better("grpo", done.policy.model, answers(20), answers(20, in_format=10))  # the format alone
    assert done.found()[0] == [done.handed] * 3
