"""An export for the unrestricted mode: its merged model is the evaluated policy, or the check says what differs."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from submitted import QUESTIONS, run_in_this_process, submit

from reasonkit.models.load import load
from reasonkit.models.mesh import make_mesh
from reasonkit.models.submission_check import SubmissionError
from tools import export_check
from tools.export import export_flax
from tools.export_check import compare, verify_export

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def submission(tmp_path_factory):
    return submit(tmp_path_factory.mktemp("submission"), jnp.float32)


@pytest.fixture
def in_this_process(monkeypatch):
    run_in_this_process(monkeypatch)


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
    found = verify_export(exported, submission.adapter, submission.samples, **submission.settings)
    assert re.fullmatch(r"step 10: the same adapter, the same 3 greedy replies; merged, the same arrays, and alike at "
                        r"\d\d tokens of replies", found)


@pytest.mark.parametrize(("lost", "message"), [("base", "without its merged model"),
                                               ("tokenizer.model", "without its tokenizer.model"),
                                               ("base/_METADATA", "failed on .*(?s:.)*is no orbax checkpoint")])
def test_what_an_export_lacks_is_named(submission, exported, in_this_process, lost, message):
    gone = exported / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(SubmissionError, match=message):
        verify_export(exported, submission.adapter, submission.samples, **submission.settings)


def test_another_merged_model_is_found_though_the_adapter_is_right(submission, stock_exported, in_this_process):
    with pytest.raises(SubmissionError, match=r"layers/0/\w+.* of 12 parts of the export .* are not the base with "):
        verify_export(stock_exported, submission.adapter, [], **submission.settings)


def test_another_tokenizer_is_found(submission, exported, in_this_process):
    with (exported / "tokenizer.model").open("ab") as file:
        file.write(b"\x12\x00")  # an empty field: read as before
    with pytest.raises(SubmissionError, match="tokenizer.model of 1 parts of the export"):
        verify_export(exported, submission.adapter, [], **submission.settings)


def test_the_policys_replies_are_what_the_merged_model_would_say(submission, policy, stock_exported):
    """As on an accelerator, where nothing is sampled again: token by token along the evaluated replies."""
    mesh = make_mesh(jax.devices()[:4], 4, 1)
    found = compare(policy, stock_exported, mesh, "float32", submission.samples)
    assert found["tokens"] == sum(len(policy.tokenizer.encode(reply)) + 1 for _, reply in submission.samples)
    asked, start, ours, theirs = found["parts"][0]
    assert asked in QUESTIONS and ours != theirs


def test_an_adapter_that_was_lost_in_the_rounding_is_told(submission, exported, in_this_process, monkeypatch):
    monkeypatch.setattr(export_check, "compare", lambda *_: {
        "arrays": [], "tokens": 9, "parts": [["2 plus 3", "<reasoning>", "2", "I"]]})
    with pytest.raises(SubmissionError, match="after '<reasoning>', the policy goes on with '2' and the merged model "
                                              "with 'I': the adapter was lost in the rounding, export with a finer"):
        verify_export(exported, submission.adapter, submission.samples, **submission.settings)
