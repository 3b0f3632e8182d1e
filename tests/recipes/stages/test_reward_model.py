"""Traces and their labels, the pair AUC, and a head that is refused where it can't tell good from bad."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_run import CONFIG, ROWS, RUBRIC

from reasonkit.config import PROFILES
from reasonkit.judge.judge import JudgeFailure, JudgeItem
from reasonkit.models.load import LoadedModel
from reasonkit.models.mesh import make_mesh
from reasonkit.run import open_run
from reasonkit.session.manifest import ASKED, MANIFEST
from reasonkit.text.tags import TAGS
from recipes.rewards.thought_teacher import ThoughtJudge, ThoughtTeacher
from recipes.stages import reward_model as module
from recipes.stages.reward_model import (
    HEAD,
    PairAuc,
    corrupted_traces,
    examples,
    fit,
    pair_auc,
    policy_traces,
    read_back,
    thought_judge,
)
from recipes.stages.traces import examine, read_or_make, sampled_file

ROW = {"id": "1", "family": "coins", "kind": "number", "answer": "23", "rubric": RUBRIC,
       "question": "Sam has 24 shells, loses 11, buys 10. How many now?", "reasoning": "24-11=13; 13+10=23"}


def test_the_checker_labels_the_policys_own():
    texts = {"24-11=13; 13+10=23": "23", "24-11=13; 13+10=24": "24", "So 23": "23"}
    samples = [examine(ROW, TAGS.render(reasoning=text, answer=answer), "tags", told=False)
               for text, answer in texts.items()]
    samples += [samples[0], examine(ROW, "24-11=13 <answer>23", "tags", told=False)]
    found = policy_traces(samples)
    assert [(trace["reasoning"], trace["good"]) for trace in found] == [
        ("24-11=13; 13+10=23", True), ("24-11=13; 13+10=24", False), ("So 23", False)]
    assert {trace["by"] for trace in found} == {"policy"}


def test_a_worked_solution_is_corrupted_in_one_place():
    rows = [ROW, {**ROW, "id": "2", "reasoning": "So 23"}, {**ROW, "id": "3", "answer": ""}]
    seen = {}
    for seed in range(20):
        good, bad = corrupted_traces(rows, seed)
        assert (good["reasoning"], good["good"], good["by"]) == (ROW["reasoning"], True, "data") and not bad["good"]
        seen.setdefault(bad["by"], set()).add(bad["reasoning"])
    assert seen.keys() == {"other number", "step left out", "step said twice"}
    assert seen["step left out"] == {"13+10=23"} and seen["step said twice"] == {"24-11=13; 24-11=13; 13+10=23"}
    assert len(seen["other number"]) > 3 and ROW["reasoning"] not in seen["other number"]
    prose = {**ROW, "kind": "yes_no", "answer": "yes", "question": "Sam loses more than he buys. Has he less now?",
             "reasoning": "A man who loses more shells than he buys ends with fewer shells, so he has less"}
    assert [trace["by"] for trace in corrupted_traces([prose], 0)] == ["data"], "neither a number nor a second step"
    assert len(corrupted_traces(ROWS.to_list(), 0)) > len(ROWS)


def test_traces_are_made_once(tmp_path):
    path, made = tmp_path / "deep" / "train.jsonl", corrupted_traces([ROW], 0)
    assert read_or_make(path, lambda: made) == made
    assert read_or_make(path, lambda: pytest.fail("made again")) == made


def test_other_inputs_or_settings_have_another_file(tmp_path):
    adapter, settings = tmp_path / "adapter", PROFILES["cpu"].simpo
    adapter.write_text("of 120 steps")

    def file(settings=settings, questions=12, seed=0):
        return sampled_file(tmp_path, "pairs", {"adapter": adapter}, settings, questions, seed)

    first = file()
    files = {first, file(questions=13), file(seed=1), file(replace(settings, num_generations=3))}
    assert len(files) == 4 and file(replace(settings, steps=7)) == first, "training steps change no completion"
    with pytest.raises(ValueError, match="nothing made"):  # a making that fails leaves no file
        read_or_make(file(seed=1), fail)
    assert not file(seed=1).exists()
    adapter.write_text("of 240 steps")
    assert file() not in files


def fail():
    raise ValueError("nothing made")


def traces(**groups):
    return [{"question": question, "good": kind == "g", "reasoning": f"{question}{n}", "by": "policy"}
            for question, kinds in groups.items() for n, kind in enumerate(kinds)]


def test_the_auc_is_over_pairs_of_one_question():
    some = traces(a="gbb", b="gb", c="gg", d="gb")
    found = pair_auc([0.9, 0.1, 0.95, 0.3, 0.3, 0.0, 0.0, 1.0, np.nan], some)
    assert (found.value, found.questions, found.pairs) == (0.5, 2, 3) and found.low < 0.5 < found.high
    across = pair_auc([0.2, 0.1, 0.1, 0.9, 0.8, 0.0, 0.0, 0.6, 0.5], some)
    assert across.value == 1.0 and across.low < 1.0, "harder questions may have lower scores throughout"
    assert pair_auc([0.5, 0.5], traces(c="gg")) is None and pair_auc([], []) is None
    assert str(across).startswith("1.000 (95 % interval ")


def features(signal):
    """Good reasoning has a first feature that is larger by `signal`. The text is the question's letter and a number."""
    def read(questions, reasonings):
        rng = np.random.default_rng(len(reasonings))
        made = [[signal * (int(text[1:]) % 2 == 0) + rng.normal(), rng.normal()] for text in reasonings]
        return np.array(made).reshape(-1, 2)

    return read


def test_a_head_that_tells_good_from_bad_is_kept_and_one_that_does_not_has_a_fault(tmp_path):
    train, held_out = (traces(**dict.fromkeys(letters, "gb" * 10)) for letters in ("abcdefghij", "klmnop"))
    held_out += [{**trace, "by": "data" if trace["good"] else "other number"} for trace in traces(q="gb", r="gb")]
    teacher, found, scores = fit(features(4), "toy", train, held_out, 0.85)
    assert len(scores) == len(held_out) and pair_auc(scores, held_out) == found["all"], "each trace is read once"
    assert teacher.model == "toy" and teacher.weights_D[0] > 0
    assert found["all"].value > 0.95 and found["policy"].questions == 6 and found["worked"].questions == 2
    assert fit(features(4), "toy", [], held_out, 0.85, teacher)[:2] == (teacher, found), "it was trained elsewhere"
    with pytest.raises(ValueError, match="trained on toy, and the judge model is toy-int8: take that one"):
        fit(features(4), "toy-int8", [], held_out, 0.85, teacher)
    assert not teacher.fault
    for signal, held, fault in ((0, held_out, r"AUC is 0\.\d+ \(95 % interval .*, and 0.85 is the least. Take more"),
                                (4, traces(z="gg"), "AUC is unknown, for want of pairs")):
        unfit, *_ = fit(features(signal), "toy", train, held, 0.85)
        assert re.search(fault, unfit.fault)
        unfit.save(tmp_path / HEAD)
        assert ThoughtTeacher.load(tmp_path / HEAD).fault == unfit.fault


def full(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


@pytest.mark.parametrize(("read", "train", "why"), [
    (features(4), [], "0 good traces of 0 that fit: give some of both kinds"),  # no time was left
    (features(4), traces(a="ggg"), "3 good traces of 3 that fit: give some of both kinds"),
    (full, traces(a="gb"), "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory")])
def test_a_run_goes_on_without_a_head_that_could_not_be_trained(read, train, why, tmp_path):
    """Each of these used to end the notebook, hours into the session."""
    head, found, scores = fit(read, "small", train, traces(k="gb"), 0.7)
    assert (found, [*scores]) == ({}, []) and head.fault == f"the reward model was not trained: {why}"
    head.save(tmp_path / HEAD)
    loaded = LoadedModel(nnx.Dict(), SimpleNamespace(pad_id=lambda: 0), CONFIG, "small", None)
    judge = ThoughtJudge(ThoughtTeacher.load(tmp_path / HEAD), loaded, make_mesh(jax.devices()[:2], 2, 1), 64, 2)
    (verdict,) = judge.score([JudgeItem("a", TAGS.render(reasoning="b", answer="c"), ())])
    assert verdict == JudgeFailure("unfit", head.fault)


def test_examples_without_the_policys_own_are_none(monkeypatch, capsys):
    """So that no file keeps them (`read_or_make`), and there may be some tomorrow."""
    def sample(policy, mesh, rows, settings, batch_size, minutes, seed):
        wrong = TAGS.render(reasoning="So 24", answer="24")
        return [examine(row, wrong, "tags", told=False) for row in rows if minutes]

    monkeypatch.setattr(module, "own_completions", sample)
    assert {trace["by"] for trace in examples(None, None, [ROW], PROFILES["smoke"], 1.0, 0)} > {"policy", "data"}
    assert examples(None, None, [ROW], PROFILES["smoke"], 0.0, 0) is None
    monkeypatch.setattr(module, "own_completions", full)
    assert examples(None, None, [ROW], PROFILES["smoke"], 1.0, 0) is None
    assert "no examples for the reward model: JaxRuntimeError: RESOURCE_EXHAUSTED" in capsys.readouterr().err
    monkeypatch.setattr(jax.errors.JaxRuntimeError, "__str__", lambda error: "INTERNAL: a bug")
    for broken in (lambda: examples(None, None, [ROW], PROFILES["smoke"], 1.0, 0),
                   lambda: fit(full, "small", traces(a="gb"), traces(k="gb"), 0.7)):
        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            broken()


def test_a_head_that_grpo_has_begun_with_is_read_back(tmp_path, capsys):
    """It used to be fitted again each day. On another processor it had other bits, so GRPO refused its judge."""
    run, path = open_run("smoke", "deep_corgi", 0, tmp_path), tmp_path / "reward_model" / HEAD
    auc = PairAuc(0.8, 0.7, 0.9, 12, 34)
    head = ThoughtTeacher("toy", np.array([1.0, 2.0]), 0.5)
    head.save(path)
    run.finish("reward_model", inputs={"head": path}, metrics={"all": vars(auc)}, minutes=1.0)
    assert read_back(run) is None, "GRPO has not begun"
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo" / ASKED).write_text("{}")
    for steps, bound in ((0, False), (3, True)):  # of a GRPO that the clock ended
        run.finish("grpo", inputs={}, metrics={"steps": steps}, minutes=1.0, checkpoint_step=1, stopped="time",
                   settings={"steps": 64})
        assert bool(read_back(run)) is bound
    found, measured, scores = read_back(run)
    assert (found.model, found.weights_D.tolist(), found.bias) == ("toy", [1.0, 2.0], 0.5)
    assert measured == {"all": auc} and not scores
    assert "and read back, because GRPO has begun with it" in capsys.readouterr().out
    (tmp_path / "grpo" / MANIFEST).unlink()
    assert read_back(run) is None
    for step in (1, 2):  # it was killed after a step
        (tmp_path / f"checkpoints/{'begun/grpo/' * (step == 1)}actor/{step}/model_params").mkdir(parents=True)
    assert read_back(run)[1] == {"all": auc}
    path.unlink()
    assert read_back(run) is None


def test_the_judge_of_a_run_is_read_from_its_folder(tmp_path):
    profile = SimpleNamespace(judge_max_length=64, judge_batch=2)
    mesh = make_mesh(jax.devices()[:2], 2, 1)
    with pytest.raises(FileNotFoundError, match="no reward model at .*head.safetensors: train one"):
        thought_judge(None, mesh, profile, tmp_path)
    ThoughtTeacher("toy", np.ones(CONFIG.embed_dim), 0.0).save(tmp_path / "reward_model" / HEAD)
    with pytest.raises(ValueError, match="trained on toy, but the model is small: load toy"):
        thought_judge(LoadedModel(None, None, CONFIG, "small", None), mesh, profile, tmp_path)
