"""Single completions: the reward's example, and questions to two adapters of one model."""

from __future__ import annotations

import html
import re

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_gemma import TOKENS, bump, forward, small_config
from tiny_run import ROWS, short_tokenizer

from reasonkit.config import PROFILES
from reasonkit.data.rows import sft_batches
from reasonkit.models.checkpoints import save_lora
from reasonkit.models.lora import add_lora, lora_state
from reasonkit.models.mesh import Plan, make_mesh
from reasonkit.rewards.mix import RewardMix
from reasonkit.rewards.rules import exact_answer, tag_format
from reasonkit.session.run_log import RunLog
from reasonkit.show import completions
from reasonkit.show.completions import (
    Ask,
    adapter_in,
    group_table,
    loss_mask,
    reward_example,
    sample_table,
)
from reasonkit.show.figures import chips
from reasonkit.text.tags import TAGS
from tools.flax import init_random

HOSTILE = "</pre><script>x()</script><answer>7</answer>"


@pytest.fixture(scope="module")
def model():
    mesh = make_mesh(jax.devices(), 8, 1)
    model = add_lora(init_random(small_config(), mesh), mesh, 4, 8.0)
    bump(model)
    return model


def silent(prompts, completions, **columns):
    return [None] * len(prompts)


def test_the_example_has_every_part_and_the_total_of_training():
    page = reward_example([(tag_format, 1.0), (exact_answer, 2.0), (silent, 0.0)], ROWS[0])
    assert "tag_format" in page and "silent" in page and page.count("no signal") == 4
    assert page.count("2.00") == 2, "a right answer in the tags, with steps or without, is paid the same here"
    assert all(head in page for head in ("worked solution", "without steps", "tag left open", "bare answer"))


def test_text_from_outside_is_no_markup():
    page = reward_example([(tag_format, 1.0)], {**ROWS[0], "reasoning": "<script>y()</script>", "question": HOSTILE})
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_mask_shows_what_has_a_loss(tmp_path):
    tokenizer = short_tokenizer(tmp_path)
    page = loss_mask([{**ROWS[0], "reasoning": ""}, {**ROWS[0], "reasoning": "2 3"}], tokenizer, 64)
    spans = re.findall(r'<span style="([^"]*)">(.*?)</span>', page, re.S)
    text = {kind: "".join(html.unescape(part) for style, part in spans if ("color" in style) is kind)
            for kind in (True, False)}
    assert text[True] == TAGS.render(reasoning="2 3", answer="0") + "<end_of_turn>"
    assert text[False].endswith("model\n") and "<reasoning>" not in page, "tags are text, not markup"
    batch = next(sft_batches(ROWS.select([0]), tokenizer, 1, 64, 0))
    whole = loss_mask([ROWS[0]], tokenizer, 64)
    assert f"{int(batch['loss_mask_BL'].sum())} of {int((batch['tokens_BL'] > 0).sum())} tokens have a loss" in whole


def test_a_group_is_shown_as_the_last_step_was_trained_on(tmp_path):
    def worth(prompts, completions, **columns):
        return [None if text == "?" else float(len(text)) for text in completions]

    log = RunLog(tmp_path / "log.jsonl")
    mix = RewardMix([(worth, 2.0), (silent, 0.0)], log)
    assert mix.group is None
    mix(["a"] * 3 + ["b"] * 3, ["xx", "xx", "xx", HOSTILE[:1], "?", HOSTILE[:3]], 3)
    log.write("group", **mix.group)
    page = group_table(log.last("group"), PROFILES["cpu"].grpo)
    assert log.skipped == 0 and page.index("<pre>b</pre>") < page.index("<table>"), "the group whose rewards differ"
    cells = [[re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row, re.S)]
             for row in re.findall("<tr>.*?</tr>", page, re.S)[1:]]
    assert cells == [["&lt;/p", "3.00", "no signal", "6.00", "+1.00"], ["?", "no signal", "no signal", "4.00", "+0.00"],
                     ["&lt;", "1.00", "no signal", "2.00", "-1.00"]], "no signal counts as the group's mean"
    assert "worth × 2" in page and "silent × 0" in page and "mean 4.00 and standard deviation 2.00" in page


def reward_row(step, completion, first, weight=1.0):
    parts = {"right": {"weight": weight}, "words": {"weight": 0.0}}
    return {"event": "reward", "at": step, "parts": parts, "sample": {
        "prompt": "a", "completion": completion, "total": 1.0 * step, "parts": {"right": first, "words": 0.25}}}


def test_the_samples_of_the_last_steps_are_a_table(monkeypatch):
    monkeypatch.setattr(completions, "SAMPLES", 2)
    page = sample_table([reward_row(1, "old", 0.0), reward_row(2, HOSTILE, None), {"at": 2}, reward_row(3, "new", 1.0)])
    cells = [[re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row, re.S)]
             for row in re.findall("<tr>.*?</tr>", page, re.S)[1:]]
    assert cells == [["2", "no signal", "0.25", "2.00", html.escape(HOSTILE)], ["3", "1.00", "0.25", "3.00", "new"]]
    assert "right × 1<" in page and "words × 0, only logged<" in page and "<script" not in page
    assert page.count("onclick=") == 4, "the completions have no order"


def test_a_group_of_equal_rewards_has_no_advantage():
    group = {"prompt": "a", "completions": ["x", "y"], "weights": {"r": 1.0}, "totals": [0.1, 0.1],
             "parts": {"r": [0.1, 0.1]}}
    assert group_table(group, PROFILES["cpu"].grpo).count("+0.00") == 2


def test_answers_stand_side_by_side_and_the_adapter_is_put_back(model, tmp_path):
    save_lora(model, tmp_path / "adapter", 3)
    before = [np.array(leaf) for leaf in jax.tree.leaves(lora_state(model))]
    seen = []

    def generate(prompts):
        seen.append(np.array(forward(model, TOKENS)))
        return [f"{HOSTILE} {len(seen)}" for _ in prompts]

    page = Ask(model, generate, {"base model": None, "trained": tmp_path / "adapter"})(f"Why? {HOSTILE}")._repr_html_()
    assert page.index("base model") < page.index("trained") and "<script" not in page
    assert not np.allclose(seen[0], seen[1]), "each adapter answers for itself"
    np.testing.assert_array_equal(seen[1], forward(model, TOKENS))
    for then, now in zip(before, jax.tree.leaves(lora_state(model)), strict=True):
        np.testing.assert_array_equal(then, np.array(now))


def test_the_adapter_is_put_back_after_an_error(model):
    before = np.array(forward(model, TOKENS))
    with pytest.raises(RuntimeError, match="stop"), adapter_in(model, None):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))
        raise RuntimeError("stop")
    np.testing.assert_array_equal(before, forward(model, TOKENS))


@pytest.mark.parametrize(("variables", "boxes"), [
    ({}, 0), ({"JPY_SESSION_NAME": "x"}, 1), ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, 1),
    ({"KAGGLE_KERNEL_RUN_TYPE": "Batch", "JPY_SESSION_NAME": "x"}, 0)])
def test_the_box_is_shown_where_someone_looks_on(model, monkeypatch, variables, boxes):
    for name in ("KAGGLE_KERNEL_RUN_TYPE", *completions.FRONT_ENDS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = []
    monkeypatch.setattr(completions, "display", shown.append)
    Ask(model, lambda prompts: ["4"] * len(prompts), {"base model": None}).show("2 + 2?")
    assert len(shown) == 1 + boxes


def test_the_box_answers_and_shows_what_is_wrong(model):
    def generate(prompts):
        if "long" in prompts[0]:
            raise ValueError("too long: <b>")
        return ["<answer>4</answer>"]

    text, button, answers = Ask(model, generate, {"base model": None}).box("2 + 2?").children
    button.click()
    assert "4" in answers.value and "base model" in answers.value and not button.disabled
    text.value = "a long one"
    button.click()
    assert answers.value == "too long: &lt;b&gt;" and not button.disabled


@pytest.mark.parametrize(("judge_tp", "expected"), [
    (0, ["policy", "copy 8"]), (1, ["policy", "judge", "copy 4"]), (4, ["judge", "part 4 of 4"])])
def test_the_chips_are_drawn_with_what_they_hold(judge_tp, expected):
    half = make_mesh(jax.devices()[:4], 4, 1)
    plan = Plan(half, make_mesh(jax.devices()[4:], 4 // judge_tp, judge_tp), {}) if judge_tp else (
        Plan(make_mesh(jax.devices(), 8, 1), None, {}))
    figure = chips(plan)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 8 + 1 + bool(judge_tp) and all(any(word in text for text in texts) for word in expected)
    assert figure._repr_png_().startswith(b"\x89PNG")
