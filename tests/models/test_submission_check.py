"""The judges' loading path: once in its own process, and in this one where only the comparison is looked at."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from submitted import QUESTIONS, run_in_this_process, submit
from tiny_gemma import bump
from tunix.generate.sampler import Sampler

from reasonkit.models import submission_check
from reasonkit.models.checkpoints import next_step, restore_lora, save_lora, steps_in
from reasonkit.models.load import load
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.models.submission_check import SubmissionError, ending_turns, load_in_place, verify_submission
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def submission(tmp_path_factory):
    """A trained adapter as the notebooks leave it: steps with growing numbers, the last one evaluated."""
    return submit(tmp_path_factory.mktemp("submission"), jnp.float32)


@pytest.fixture
def in_this_process(monkeypatch):
    run_in_this_process(monkeypatch)


@pytest.mark.slow
def test_what_was_saved_is_what_the_judges_load_in_a_process_of_their_own(submission, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nothing is found by luck
    found = verify_submission(submission.checkpoints, submission.adapter, submission.samples, **submission.settings)
    assert found == "step 10: the same adapter, the same 3 greedy replies"


def test_onto_the_judges_bfloat16_adapter_comes_what_was_evaluated(in_this_process, tmp_path):
    """Trained and saved in float32: theirs is rounded by the restore, as ours is where it computes."""
    made = submit(tmp_path, jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(made.model, nnx.LoRAParam))} == {"float32"}
    found = verify_submission(made.checkpoints, made.adapter, made.samples, **made.settings)
    assert found == "step 10: the same adapter, the same 3 greedy replies"


def test_a_later_save_of_another_adapter_is_found(submission, in_this_process, tmp_path):
    save_lora(submission.model, tmp_path, 3)
    other = add_lora(load(submission.settings["model"], make_mesh(jax.devices()[:1], 1, 1), jnp.float32).model,
                     make_mesh(jax.devices()[:1], 1, 1), 4, 8.0)
    save_lora(other, tmp_path, 20)
    with pytest.raises(SubmissionError, match="step 20 in .* is not the adapter that was evaluated: a later save"):
        verify_submission(tmp_path, submission.adapter, [], **submission.settings)


def test_a_reply_that_differs_is_shown(submission, in_this_process):
    (question, reply), *rest = submission.samples
    with pytest.raises(SubmissionError) as caught:
        verify_submission(submission.checkpoints, submission.adapter, [*rest, (question, reply + "!")],
                          **submission.settings)
    message = str(caught.value)
    assert repr(question) in message and f"says {reply + '!'!r}, and" in message and f"says {reply!r}:" in message


def test_the_loaders_last_words_are_passed_on(submission, in_this_process):
    with pytest.raises(SubmissionError, match=f"the judges' loader failed on {submission.checkpoints}:\n(?s:.*)"
                                              "ValueError: model '/nowhere' is neither a folder nor a known name"):
        verify_submission(submission.checkpoints, submission.adapter, [], **submission.settings | {"model": "/nowhere"})


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_a_step_is_named(submission, in_this_process, tmp_path, folder):
    (tmp_path / "empty" / "actor").mkdir(parents=True)
    with pytest.raises(SubmissionError, match=rf"{folder}.* has no step: .*save"):
        verify_submission(tmp_path / folder, submission.adapter, [], **submission.settings)


def test_one_prompt_at_a_time_is_decoded_with_the_templates_settings(submission, in_this_process, monkeypatch):
    calls, sample = [], Sampler.__call__

    def spy(sampler, prompts, **settings):
        calls.append((prompts, settings, sampler.cache_config.cache_size))
        return sample(sampler, prompts, **settings)

    monkeypatch.setattr(Sampler, "__call__", spy)
    found = verify_submission(submission.checkpoints, submission.adapter, submission.samples[:2], **submission.settings)
    assert found == "step 10: the same adapter, the same 2 greedy replies"
    assert [prompts for prompts, *_ in calls] == [[TAGS.template.format(question=q)] for q in QUESTIONS[:2]]
    for _, settings, cache_size in calls:
        assert cache_size == 32 + 12 + 256 and settings == {
            "max_generation_steps": 12, "max_prompt_length": 32, "temperature": None, "top_k": 1, "top_p": None,
            "seed": 42, "eos_tokens": [1, 106]}


@pytest.fixture
def at_hand():
    """As notebook 4 has it: GRPO trained on half of the devices, and the model is on all of them."""
    half, whole = make_mesh(jax.devices()[:4], 4, 1), make_mesh(jax.devices(), 8, 1)
    made = SimpleNamespace()
    trained = load("tiny-policy", half, "float32")
    made.trained = add_lora(trained.model, half, 4, 8.0)
    bump(made.trained, 0.05)
    there = load("tiny-policy", whole, "float32")
    made.policy = replace(there, model=add_lora(there.model, whole, 4, 8.0))
    return made


def test_an_adapter_saved_from_half_of_the_chips_cannot_be_loaded_onto_all_of_them(at_hand, tmp_path):
    """The template restores without a sharding, so orbax places the arrays where the file says. Its sampler then
    fails, in the judges' hands. What is saved once more from the model at hand can be loaded."""
    limits = {"max_prompt_length": 80, "max_new_tokens": 8}
    save_lora(at_hand.trained, tmp_path, 7)
    restore_lora(at_hand.policy.model, tmp_path)
    with pytest.raises(SubmissionError, match="step 7 in .* was saved from other devices than the model is on"):
        load_in_place(at_hand.policy, tmp_path, [], **limits)
    restore_lora(at_hand.policy.model, tmp_path)
    save_lora(at_hand.policy.model, tmp_path, next_step(tmp_path))
    assert steps_in(tmp_path) == [7]
    questions = ["What is 1 + 2?", "What is 2 + 2?"]
    generate = generator(at_hand.policy.model, at_hand.policy.tokenizer, make_mesh(jax.devices(), 8, 1), batch_size=8,
                         **limits)
    samples = list(zip(questions, generate([TAGS.prompt(question) for question in questions]), strict=True))
    told = load_in_place(at_hand.policy, tmp_path, samples, **limits)
    assert told == "step 7: loaded onto this model, 2 of 2 greedy replies as in the evaluation"
    told = load_in_place(at_hand.policy, tmp_path, [(questions[0], "another")], **limits)
    assert told == "step 7: loaded onto this model, 0 of 1 greedy replies as in the evaluation"
    save_lora(at_hand.policy.model, tmp_path, 8)
    bump(at_hand.policy.model, 0.05)
    with pytest.raises(SubmissionError, match="step 8 in .* is not the adapter that was evaluated"):
        load_in_place(at_hand.policy, tmp_path, [], **limits)


def test_the_tokenizer_for_the_judges_ends_where_the_policy_does(at_hand):
    tokenizer = at_hand.policy.tokenizer
    assert ending_turns(tokenizer).eos_id() == tokenizer.end_of_turn != tokenizer.eos_id()
    assert ending_turns(tokenizer).stop_ids == tokenizer.stop_ids


def test_the_job_is_read_as_json(monkeypatch, capsys):
    job = {"ckpt_dir": "/somewhere", "rank": 2, "questions": ["Why?"], "max_prompt_length": 3, "max_new_tokens": 4}
    tokenizer = SimpleNamespace(stop_ids=(1, 106))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(job)))
    monkeypatch.setattr(submission_check, "load_as_judges",
                        lambda ckpt_dir, rank: (SimpleNamespace(model=ckpt_dir, tokenizer=tokenizer), rank))
    monkeypatch.setattr(submission_check, "fingerprint", lambda model: f"of {model}")
    monkeypatch.setattr(submission_check, "replies_as_judges",
                        lambda policy, *sampling, eos_tokens: [*sampling, eos_tokens])
    submission_check.main()
    assert json.loads(capsys.readouterr().out) == {"step": 2, "adapter": "of /somewhere",
                                                   "replies": [["Why?"], 3, 4, [1, 106]]}
