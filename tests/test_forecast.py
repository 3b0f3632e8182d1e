"""The forecast of a run: its sizes, what it says, its cache, and the command."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest
from tiny_gemma import small_config

from reasonkit import forecast as module
from reasonkit.forecast import at_hand, config_of, forecast, main, measured_efficiency, needs, plan, shapes_of
from reasonkit.mesh import ROOM
from reasonkit.preflight import CHIPS
from reasonkit.programs import abstract_model
from reasonkit.recipes import PROFILES, RECIPES

SMALL = replace(PROFILES["kaggle"], sft=replace(PROFILES["kaggle"].sft, batch_size=8, max_length=12), lora_rank=4,
                grpo=replace(PROFILES["kaggle"].grpo, prompts_per_step=8, num_generations=2, max_prompt_length=8,
                             max_new_tokens=4, rollout_micro_prompts=8), judge_max_length=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all, because to compile takes time."""
    return tmp_path_factory.mktemp("preflight")


@pytest.fixture
def small(monkeypatch):
    """Small models under the real names, and a chip's memory for the CPU's devices."""
    monkeypatch.setattr(module, "config_of", lambda name, remat=False: replace(small_config(), num_layers=6))
    monkeypatch.setattr(module, "memory_of", lambda device: CHIPS["v5e"].memory)


@pytest.mark.parametrize("name", ["gemma2-2b-it", "gemma3-1b-it", "gemma3-12b-it"])
def test_the_estimate_counts_a_models_parameters(name):
    """Within 1 % of the model as Tunix makes it."""
    config = config_of(name)
    model = abstract_model(config, plan(PROFILES["cpu"], jax.devices(), False).policy)
    leaves = jax.tree.leaves(module.programs.nnx.state(model))
    assert module._weights(config) == pytest.approx(sum(leaf.size for leaf in leaves), rel=0.01)


def test_the_sizes_of_the_kaggle_profile():
    shapes, profile = shapes_of(PROFILES["kaggle"]), PROFILES["kaggle"]
    assert (shapes.sft_rows, shapes.grpo_rows, shapes.decode_rows, shapes.judge_rows) == (32, 32, 128, 8)
    policy, judge = config_of(profile.policy, profile.remat), config_of(profile.judge)
    found = needs(profile, policy, judge, sft=False)
    assert found["judge"].weights == pytest.approx(23.5e9, rel=0.01)
    assert set(needs(profile, policy, None, sft=True)) == {"policy"}
    without = needs(profile, config_of(profile.policy, False), None, sft=True)["policy"].working
    assert without > 3 * needs(profile, policy, None, sft=True)["policy"].working  # what remat is for


def test_a_run_is_compiled_once_and_read_the_next_time(small, folder, monkeypatch):
    first = forecast(SMALL, RECIPES["g_rar"], jax.devices(), "v5e", folder)
    assert [row.program for row in first.report.rows] == [
        "SFT train step", "rollout prefill", "one decode step", "GRPO train step", "GRPO reference", "judge prefill"]
    assert first.fits and len(list(folder.glob("*.json"))) == 3  # a part of the run each
    monkeypatch.setattr(module, "preflight", None)  # compiles nothing more
    again = forecast(SMALL, RECIPES["g_rar"], jax.devices(), "v5e", folder)
    assert again == first and again.text() == first.text()
    text = first.text()
    assert "policy: devices 0, 1, 2, 3 as fsdp=4, tp=1, weights replicated" in text
    assert "of 520, which fits" in text and "largest rows" in text
    half = forecast(SMALL, RECIPES["g_rar"], jax.devices(), "v5e", folder, efficiency=0.2)
    assert half.minutes["grpo"] == pytest.approx(2 * first.minutes["grpo"])
    alone = SMALL.sft.steps * first.report.rows[0].floor(CHIPS["v5e"])[0] / 0.4 / 60
    assert first.minutes["sft"] == pytest.approx(alone)


def test_the_largest_batch_fits_and_one_more_of_each_chip_does_not(small, folder):
    found = forecast(SMALL, RECIPES["g_rar"], jax.devices(), "v5e", folder)
    for row in found.report.rows:
        rows, fsdp = found.largest()[row.program], row.mesh.shape["fsdp"]

        def needed(rows, row=row):
            return row.fixed + (row.needed - row.fixed) * rows / row.rows

        assert rows % fsdp == 0 and needed(rows) <= ROOM * CHIPS["v5e"].memory < needed(rows + fsdp)


def test_a_run_that_does_not_fit_is_stopped_before_it_loads(small, folder, monkeypatch):
    assert "no forecast for 'cpu'" in at_hand(SMALL, RECIPES["g_rar"], jax.devices(), folder)
    monkeypatch.setattr(module, "KIND_OF", {"cpu": "v5e"})
    log = [{"event": "sft_step", "seconds": 1.0}] * 9
    assert "minutes at" in at_hand(SMALL, RECIPES["g_rar"], jax.devices(), folder, log)
    monkeypatch.setattr(module, "memory_of", lambda device: 1e9)  # the estimate is content, the compiler is not
    monkeypatch.setitem(CHIPS, "v5e", replace(CHIPS["v5e"], memory=1e4))
    with pytest.raises(ValueError, match="SFT train step needs .* in profile 'kaggle', give it 0 rows instead of 8"):
        at_hand(SMALL, RECIPES["g_rar"], jax.devices(), folder)


def test_measured_steps_correct_the_efficiency(small, folder):
    found = forecast(SMALL, RECIPES["g_rar"], jax.devices(), "v5e", folder)
    floor = found.report.rows[0].floor(CHIPS["v5e"])[0]
    log = [{"event": "start"}, *({"event": "sft_step", "seconds": seconds} for seconds in (
        60.0, 9.0, 5.0, *[10 * floor] * 5))]
    assert measured_efficiency(found, SMALL, log) == pytest.approx(0.1)
    assert measured_efficiency(found, SMALL, log[:6]) is None


def test_the_command(small, folder, monkeypatch, capsys):
    monkeypatch.setattr(module, "topology_devices", lambda name: jax.devices())
    monkeypatch.setitem(module.PROFILES, "kaggle", SMALL)
    line = ["--recipe", "g_rar", "--model", "gemma2-2b", "--cache", str(folder)]
    assert main(line) == 0
    assert "recipe g_rar, profile kaggle: gemma2-2b, judge gemma3-12b-it, v5e:2x4" in capsys.readouterr().out
    monkeypatch.setattr(module, "config_of", config_of)
    with pytest.raises(SystemExit):
        main(["--model", "gemma9"])
    assert "model 'gemma9' has no configuration" in capsys.readouterr().err
