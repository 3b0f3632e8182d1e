"""The judges' loading path: once in its own process, and in this one where only the comparison is looked at."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import traceback
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from tiny_gemma import bump
from tiny_run import CONFIG, ROWS, new_policy, short_tokenizer
from tunix.generate.sampler import Sampler

from reasonkit.models import checkpoints, submission_check
from reasonkit.models.checkpoints import save_lora
from reasonkit.models.load import load
from reasonkit.models.lora import add_lora, fingerprint
from reasonkit.models.mesh import make_mesh
from reasonkit.models.submission_check import SubmissionError, verify_submission
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
from tools.export import export_flax
from tools.flax import init_random, save_flax

pytestmark = pytest.mark.usefixtures("compiled")

LIMITS = {"max_prompt_length": 32, "max_new_tokens": 12}
QUESTIONS = ROWS["question"][:3]


@pytest.fixture(scope="module")
def submission(tmp_path_factory):
    """A trained adapter as the notebooks leave it: steps with growing numbers, the last one evaluated."""
    return submit(tmp_path_factory.mktemp("submission"), jnp.float32)


def submit(root, dtype):
    mesh = make_mesh(jax.devices()[:4], 4, 1)
    tokenizer = short_tokenizer(root / "pieces")
    folder = save_flax(init_random(CONFIG, mesh), tokenizer.path, root / "base")
    policy = new_policy(load(folder, mesh, dtype).model, mesh, tokenizer)
    checkpoints.save_for_next_stage(policy.model, root / "checkpoints", 9)
    bump(policy.model, 0.05)
    checkpoints.save_for_next_stage(policy.model, root / "checkpoints", 10)  # a larger number, but not a larger name
    replies = generator(policy.model, tokenizer, mesh, batch_size=4, **LIMITS)(
        [TAGS.prompt(question) for question in QUESTIONS])
    assert len(set(replies)) > 1 and all(replies)
    return SimpleNamespace(
        model=policy.model, checkpoints=root / "checkpoints", adapter=fingerprint(policy.model),
        samples=list(zip(QUESTIONS, replies, strict=True)),
        settings={"model": str(folder), "dtype": jnp.dtype(dtype).name, "rank": 4, "alpha": 8.0, **LIMITS})


@pytest.fixture
def in_this_process(monkeypatch):
    """Starting Python and JAX anew takes long, and is proven once."""
    def run(command, *, input, **_):
        assert command == [sys.executable, "-m", "reasonkit.models.submission_check"]
        said, complained, failed = io.StringIO(), io.StringIO(), 0
        with monkeypatch.context() as patch, contextlib.redirect_stdout(said):
            patch.setattr(sys, "stdin", io.StringIO(input))
            try:
                submission_check.main()
            except Exception:
                traceback.print_exc(file=complained)
                failed = 1
        return subprocess.CompletedProcess(command, failed, said.getvalue(), complained.getvalue())

    monkeypatch.setattr(submission_check.subprocess, "run", run)


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
            "max_generation_steps": 12, "max_prompt_length": 32, "temperature": 0, "top_k": 1, "top_p": None,
            "seed": 42, "eos_tokens": [1, 106]}


def test_the_job_is_read_as_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"ckpt_dir": "/somewhere", "rank": 2})))
    monkeypatch.setattr(submission_check, "load_as_judges", lambda ckpt_dir, rank: {"step": rank, "at": ckpt_dir})
    submission_check.main()
    assert json.loads(capsys.readouterr().out) == {"step": 2, "at": "/somewhere"}


# An export for the unrestricted mode


@pytest.fixture(scope="module")
def policy(submission):
    loaded = load(submission.settings["model"], make_mesh(jax.devices()[:4], 4, 1), jnp.float32)
    return replace(loaded, model=submission.model)


@pytest.fixture(scope="module")
def exports(policy, tmp_path_factory):
    """Of the policy, and of its base with an adapter of zeros."""
    root, stock = tmp_path_factory.mktemp("exports"), nnx.clone(policy.model)
    nnx.update(stock, jax.tree.map(jnp.zeros_like, nnx.state(stock, nnx.LoRAParam)))
    return export_flax(policy, root / "trained", 10), export_flax(replace(policy, model=stock), root / "stock", 10)


@pytest.fixture
def exported(exports, tmp_path):
    return shutil.copytree(exports[0], tmp_path / "flax")


@pytest.fixture
def stock_exported(exported, exports):
    """The merged model lacks the adapter, which lies beside it as it should."""
    shutil.rmtree(exported / "base")
    shutil.copytree(exports[1] / "base", exported / "base")
    return exported


def test_an_export_is_read_whole(submission, exported, in_this_process):
    """Rounded to bfloat16 as it is, of a model in float32."""
    found = verify_submission(exported, submission.adapter, submission.samples, **submission.settings)
    assert re.fullmatch(r"step 10: the same adapter, the same 3 greedy replies; merged, the same arrays, and alike at "
                        r"\d\d tokens of replies", found)


@pytest.mark.parametrize(("lost", "message"), [("base", "without its merged model"),
                                               ("tokenizer.model", "without its tokenizer.model"),
                                               ("base/_METADATA", "failed on .*(?s:.)*is no orbax checkpoint")])
def test_what_an_export_lacks_is_named(submission, exported, in_this_process, lost, message):
    gone = exported / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(SubmissionError, match=message):
        verify_submission(exported, submission.adapter, submission.samples, **submission.settings)


def test_another_merged_model_is_found_though_the_adapter_is_right(submission, stock_exported, in_this_process):
    with pytest.raises(SubmissionError, match=r"layers/0/\w+.* of 12 parts of the export .* are not the base with "):
        verify_submission(stock_exported, submission.adapter, [], **submission.settings)


def test_another_tokenizer_is_found(submission, exported, in_this_process):
    with (exported / "tokenizer.model").open("ab") as file:
        file.write(b"\x12\x00")  # an empty field: read as before
    with pytest.raises(SubmissionError, match="tokenizer.model of 1 parts of the export"):
        verify_submission(exported, submission.adapter, [], **submission.settings)


def test_the_policys_replies_are_what_the_merged_model_would_say(submission, policy, stock_exported):
    """As on an accelerator, where nothing is sampled again: token by token along the evaluated replies."""
    mesh = make_mesh(jax.devices()[:4], 4, 1)
    found = submission_check._compare(policy, stock_exported, mesh, "float32", submission.samples)
    assert found["tokens"] == sum(len(policy.tokenizer.encode(reply)) + 1 for _, reply in submission.samples)
    asked, start, ours, theirs = found["parts"][0]
    assert asked in QUESTIONS and ours != theirs


def test_an_adapter_that_was_lost_in_the_rounding_is_told(submission, exported, in_this_process, monkeypatch):
    monkeypatch.setattr(submission_check, "load_as_judges", lambda **_: {
        "step": 10, "adapter": submission.adapter, "replies": [r for _, r in submission.samples], "arrays": [],
        "tokens": 9, "parts": [["2 plus 3", "<reasoning>", "2", "I"]]})
    with pytest.raises(SubmissionError, match="after '<reasoning>', the policy goes on with '2' and the merged model "
                                              "with 'I': the adapter was lost in the rounding, export with a finer"):
        verify_submission(exported, submission.adapter, submission.samples, **submission.settings)
