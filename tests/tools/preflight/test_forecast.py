"""The forecast of a run: its sizes, what it says, its cache, and the command."""

from __future__ import annotations

import inspect
from dataclasses import replace

import jax
import pytest
from tiny_gemma import small_config, small_profile

from reasonkit.config import PROFILES, adapt_to_lengths, adapt_to_recipe
from reasonkit.data.problems import load_recipe
from reasonkit.models import placement
from reasonkit.models.mesh import ROOM
from reasonkit.models.placement import CHIPS, config_of
from reasonkit.session.setup import find_recipe
from recipes.stages.simpo import read_or_sample_pairs
from tools.preflight import forecast as module
from tools.preflight.compiled import ProgramStats
from tools.preflight.forecast import Forecast, at_hand, forecast, main

SMALL = small_profile()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all, because to compile takes time."""
    return tmp_path_factory.mktemp("preflight")


@pytest.fixture
def small(monkeypatch):
    """Small models under the real names, and a chip's memory for the CPU's devices."""
    for place in (module, placement):
        monkeypatch.setattr(place, "config_of", lambda name, remat=False, replicated=True: small_config())
    monkeypatch.setattr(placement, "memory_of", lambda device: CHIPS["v5e"].memory)


def test_a_run_is_compiled_once_and_read_the_next_time(small, folder, monkeypatch):
    first = forecast(SMALL, find_recipe("g_rar"), jax.devices(), "v5e", folder)
    assert [row.program for row in first.rows] == [
        "SFT train step", "rollout prefill", "one decode step", "decode loop", "GRPO train step", "GRPO reference",
        "judge prefill"]
    assert first.fits and len(list(folder.glob("*.json"))) == 4  # a part of the run each
    monkeypatch.setattr(module, "preflight", None)  # compiles nothing more
    again = forecast(SMALL, find_recipe("g_rar"), jax.devices(), "v5e", folder)
    assert again == first and again.text() == first.text()
    text = first.text()
    assert "policy: devices 0, 1, 2, 3 as fsdp=4, tp=1, weights replicated" in text
    assert "SFT, evaluation: devices 0, 1, 2, 3, 4, 5, 6, 7 as fsdp=8, tp=1, weights replicated" in text
    assert "of 520, which fits" in text and "largest rows" in text
    half = forecast(SMALL, find_recipe("g_rar"), jax.devices(), "v5e", folder, efficiency=0.2)
    assert half.minutes["grpo"] == pytest.approx(2 * first.minutes["grpo"])
    alone = SMALL.sft.steps * first.rows[0].roofline(CHIPS["v5e"])[0] / 0.4 / 60
    assert first.minutes["sft"] == pytest.approx(alone)


def test_the_largest_batch_fits_and_one_more_of_each_chip_does_not(small, folder):
    found = forecast(SMALL, find_recipe("g_rar"), jax.devices(), "v5e", folder)
    for row in found.rows:
        rows, fsdp = found.largest()[row.program], row.mesh["fsdp"]

        def needed(rows, row=row):
            return row.fixed + (row.needed - row.fixed) * rows / row.rows

        assert rows % fsdp == 0 and needed(rows) <= ROOM * CHIPS["v5e"].memory < needed(rows + fsdp)


def test_a_run_that_does_not_fit_is_stopped_before_it_loads(small, folder, monkeypatch):
    assert "no forecast for 'cpu'" in at_hand(SMALL, find_recipe("g_rar"), jax.devices(), folder)
    monkeypatch.setattr(module, "KIND_OF", {"cpu": "v5e"})
    log = [{"event": "sft_step", "seconds": 1.0}] * 9
    assert "minutes at" in at_hand(SMALL, find_recipe("g_rar"), jax.devices(), folder, log)
    monkeypatch.setattr(placement, "memory_of", lambda device: 1e9)  # the estimate is content, the compiler is not
    monkeypatch.setitem(CHIPS, "v5e", replace(CHIPS["v5e"], memory=1e4))
    with pytest.raises(ValueError, match="SFT train step needs .* in profile 'kaggle', give it 0 rows instead of 8"):
        at_hand(SMALL, find_recipe("g_rar"), jax.devices(), folder)


def test_a_chip_without_known_peaks_is_named():
    with pytest.raises(ValueError, match="chip 'v9' is unknown: choose from v5e, v6e, v4, v5p"):
        forecast(SMALL, find_recipe("g_rar"), jax.devices(), "v9")


def at(efficiency, **seconds):
    """By program, its seconds at a share of the roofline's speed."""
    return {name.replace("_", " "): time / efficiency for name, time in seconds.items()}


def made(minutes, steps, limit):
    row = ProgramStats("SFT train step", {"fsdp": 8, "tp": 1}, 8, 1.0)
    return Forecast([row], "v5e", {}, minutes, steps, limit, 0.4)


def sixteen(**changes):
    """Kaggle's profile with 800 steps of 16 prompts, 4 of them a pass, probed eight times."""
    made = replace(PROFILES["kaggle"].grpo, steps=800, prompts_per_step=16, micro_prompts=4, rollout_micro_prompts=16)
    return replace(PROFILES["kaggle"], grpo=replace(made, **changes), probe_every=100)


FLOORS = {"SFT_train_step": 0.5, "rollout_prefill": 0.2, "one_decode_step": 0.01, "GRPO_train_step": 0.4,
          "GRPO_reference": 0.1, "early_decode_step": 0.006}


@pytest.mark.parametrize(
    ("changes", "judge", "seconds"),
    [
        # 4 passes of 4 prompts; a reply is 0.2 + 768 x 0.01 = 7.88 s, training 4 x 0.5 s
        ({}, None, 7.88 + 2.0),
        ({"segments": True}, None, 0.025 + 768 * 0.008 + 2.0),  # each prompt once, and a cache that grows
        # 128 replies, two criteria in a row, in batches of 8: 16 prefills of 1,536 tokens of 2,048: 12 x 0.1 s
        ({}, 0.2, 7.88 + 2.4 + 0.5),  # the last pass waits for the last score
        ({}, 0.02, 7.88 + 0.06 + 2.0),  # the first for the first ones
        ({"rollout_micro_prompts": 8}, 0.2, 2 * 7.88 + 2.0),  # all but the last half is judged beside the sampling
        ({"rollout_micro_prompts": 0}, 0.2, 7.88 + 2.0 + 2.4),  # one after the other
    ],
)
def test_the_seconds_of_a_grpo_step(changes, judge, seconds):
    profile = sixteen(**changes)
    found = at(0.5, **FLOORS, **({"judge_prefill": judge} if judge else {}))
    meshes = placement.plan(PROFILES["cpu"], jax.devices(), True)
    minutes = module._minutes(profile, replace(find_recipe("g_rar"), data="tiny_mix"), found, meshes)
    assert minutes["grpo"] == pytest.approx(800 * seconds / 0.5 / 60)
    assert minutes["sft"] == pytest.approx(1000 * 0.5 / 0.5 / 60)
    assert minutes["evaluation"] == pytest.approx(-(-(3000 + 10 * 400) // 128) * 7.88 / 0.5 / 60)


@pytest.mark.parametrize(
    ("most", "criteria", "length", "rows"),
    [
        (2048, 1, 1536, 256), (2048, 2, 1536, 256),  # 1,152 tokens of reply, and 72 a criterion
        (2048, 8, 2048, 256), (2048, 9, 2048, 512),  # eight share a row, a ninth has one of its own
        (1300, 2, 1300, 256), (1300, 3, 1300, 512),  # two find room
        (1100, 3, 1100, 768),  # some replies will be too long
    ])
def test_the_rows_of_a_judge(most, criteria, length, rows):
    assert module._judge_rows(replace(PROFILES["kaggle"], judge_max_length=most), criteria) == (length, rows)


def test_the_minutes_are_those_of_the_recipes_stages():
    """Distillation samples, the teacher reads, and the student learns, one after the other."""
    distilled = {"distillation_prefill": 0.1, "distillation_decode_step": 0.005, "distillation_train_step": 0.2,
                 "teacher's_pass": 0.4}
    seconds = at(0.5, **FLOORS, **distilled)
    meshes = placement.plan(PROFILES["cpu"], jax.devices(), False)
    profile, recipe = PROFILES["kaggle"], find_recipe("on_policy_distillation")
    minutes = module._minutes(profile, recipe, seconds, meshes)
    assert list(minutes) == [module.LOAD, "sft", "distill", "evaluation"]
    assert minutes["distill"] == pytest.approx(1400 * (0.1 + 768 * 0.005 + 0.2 + 0.4) / 0.5 / 60)
    less = replace(profile, distill=replace(profile.distill, on_policy=0.5))
    half = module._minutes(less, recipe, seconds, meshes)
    assert half["distill"] == pytest.approx(1400 * ((0.1 + 768 * 0.005) / 2 + 0.2 + 0.4) / 0.5 / 60)
    assert minutes["evaluation"] == pytest.approx(-(-3000 // 128) * 7.88 / 0.5 / 60), "nothing is probed"
    alone = module._minutes(profile, find_recipe("tunix_demo"), seconds, meshes)
    assert list(alone) == [module.LOAD, "grpo", "evaluation"]
    asked = 2 * 1000 + 12 * 400  # the base model and the one trained, and validation before, between and after
    assert alone["evaluation"] == pytest.approx(-(-asked // 128) * 7.88 / 0.5 / 60)
    seconds = at(0.5, **FLOORS, SimPO_train_step=0.3)
    pairs = module._minutes(profile, find_recipe("pinocchio"), seconds, meshes)
    assert list(pairs) == [module.LOAD, "sft", "simpo", "grpo", "evaluation"]
    sampled = 63 * 7.88  # four completions of each of 2,000 questions, 128 at a time, as in GRPO
    assert pairs["simpo"] == pytest.approx((sampled + 100 * 0.3) / 0.5 / 60)
    assert "at_once = grpo.prompts_per_call * grpo.num_generations" in inspect.getsource(read_or_sample_pairs)
    taught = module._minutes(profile, find_recipe("gemmatron"), seconds, meshes)
    assert list(taught) == [module.LOAD, "teacher", "sft", "grpo", "evaluation"]
    assert taught["teacher"] == pytest.approx(520 / 5), "its share of the session"
    seconds = at(0.5, **FLOORS, **{"reward_model's_pass": 0.2})
    halves = placement.plan(PROFILES["cpu"], jax.devices(), True)
    headed = module._minutes(profile, find_recipe("deep_corgi"), seconds, halves)
    assert list(headed) == [module.LOAD, "sft", "reward_model", "grpo", "evaluation"]
    examples = 2 * 25 * 7.88 + 800 * 10 / 8 * 0.2 / 2  # 16 questions at a time; rows of 1,024 tokens of 2,048
    assert headed["reward_model"] == pytest.approx(examples / 0.5 / 60)
    late = made(minutes, {"sft": 1000, "distill": 2000}, 60.0)
    assert "does not fit: distillation has time for about" in late.text()


# Seconds at the roofline on a v5e-8, from the tables in benchmarks/RESULTS.md: prompts of 256 and of 512 tokens.
COMPILED = {
    256: {"SFT_train_step": 0.164, "rollout_prefill": 0.182, "one_decode_step": 0.011, "GRPO_train_step": 0.631,
          "GRPO_reference": 0.218, "judge_prefill": 0.482, "reward_model's_pass": 0.524},
    512: {"SFT_train_step": 0.208, "SimPO_train_step": 0.391, "rollout_prefill": 0.368, "one_decode_step": 0.0121,
          "GRPO_train_step": 0.782, "GRPO_reference": 0.267, "judge_prefill": 0.547}}


@pytest.mark.parametrize(("name", "steps", "expected"), [
    ("g_rar", 400, 484), ("chemistry", 400, 484), ("medical", 320, 429), ("legal", 320, 429), ("robotics", 320, 429),
    ("pinocchio", 320, 459), ("deep_corgi", 400, 489)])
def test_the_recipes_with_a_judge_fit_the_hours_of_kaggle(name, steps, expected):
    recipe = find_recipe(name)
    profile = adapt_to_recipe(PROFILES["kaggle"], recipe)
    profile = adapt_to_lengths(profile, load_recipe(recipe.data_for(profile)).lengths)
    other = "judge_prefill" if "reward_model" in recipe.shares else "reward_model's_pass"
    seconds = at(module.EFFICIENCY, **{program: floor for program, floor in
                                       COMPILED[profile.grpo.max_prompt_length].items() if program != other})
    meshes = placement.plan(PROFILES["cpu"], jax.devices(), True)
    minutes = sum(module._minutes(profile, recipe, seconds, meshes).values())
    assert profile.grpo.steps == steps and minutes <= profile.minutes - profile.reserve_minutes
    assert minutes == pytest.approx(expected, abs=3)  # these rooflines are rounded


def test_a_recipe_with_a_teacher_is_compiled_with_it(small, folder):
    """The student on one half of the chips, the teacher on the other, after SFT on all of them."""
    found = forecast(SMALL, find_recipe("on_policy_distillation"), jax.devices(), "v5e", folder)
    assert [(row.program, row.mesh["fsdp"]) for row in found.rows] == [
        ("SFT train step", 8), ("rollout prefill", 8), ("one decode step", 8), ("decode loop", 8),
        ("distillation prefill", 4), ("distillation decode step", 4), ("distillation loop", 4),
        ("distillation train step", 4), ("teacher's pass", 4)]
    assert found.steps == {"sft": 1000, "distill": 1400} and found.fits
    assert found.reasons["teacher"].startswith("devices 4, 5, 6, 7")
    again = forecast(SMALL, find_recipe("on_policy_distillation"), jax.devices(), "v5e", folder)
    assert again == found, "read back, the teacher's mesh included"


def test_a_step_on_a_shared_chip_is_judged_in_turn():
    profile = sixteen()
    seconds = at(1.0, **FLOORS, judge_prefill=0.2)
    shared = placement.plan(PROFILES["cpu"], jax.devices()[:1], True)
    minutes = module._minutes(profile, replace(find_recipe("g_rar"), data="tiny_mix"), seconds, shared)
    assert minutes["grpo"] == pytest.approx(800 * (7.88 + 2.0 + 2.4) / 60)


def test_measured_steps_correct_the_minutes():
    first = made({module.LOAD: 25.0, "sft": 30.0, "grpo": 300.0, "evaluation": 10.0}, {"sft": 100, "grpo": 200}, 365.0)
    assert "365 of 365, which fits" in first.text() and first.correct([]) == first
    taught = replace(first, minutes={"teacher": 60.0, **first.minutes})
    sft = [{"event": "start"}, *({"event": "sft_step", "seconds": time} for time in (600.0, 90.0, 50.0, *[36.0] * 5))]
    assert first.correct(sft[:-1]) == first, "too few to tell"
    later = first.correct(sft)  # twice as long as planned: so is all that the chips do
    assert later.minutes == pytest.approx({module.LOAD: 25.0, "sft": 60.0, "grpo": 600.0, "evaluation": 20.0})
    assert later.efficiency == pytest.approx(0.2)
    assert taught.correct(sft).minutes == {"teacher": 60.0, **later.minutes}, "the clock ends it"
    assert "does not fit: GRPO has time for about 86 of its 200 steps" in later.text()  # 260 minutes of 600
    grpo = [{"event": "grpo_step", "seconds": 120.0}] * 8
    assert first.correct(sft + grpo).minutes == pytest.approx(
        {module.LOAD: 25.0, "sft": 60.0, "grpo": 400.0, "evaluation": 40 / 3})


def test_logged_compile_times_correct_the_minutes_to_load_and_compile():
    """Of the 25 minutes 10 are for loading. Of the other 15 each of the two stages has a half, until it is logged."""
    first = made({module.LOAD: 25.0, "sft": 30.0, "grpo": 300.0, "evaluation": 10.0}, {"sft": 100, "grpo": 200}, 400.0)
    sft = [{"event": "sft_step", "seconds": 300.0, "compiled": {"train_step": 200.0, "jit_add": 10.0, "odd": "nan"}},
           {"event": "sft_step", "seconds": 120.0, "compiled": {"train_step": 90.0}}, {"event": "sft_step"}]
    assert first.correct(sft).minutes == {**first.minutes, module.LOAD: 10.0 + 5.0 + 7.5}, "and no speed from 3 steps"
    grpo = [{"event": "grpo_step", "seconds": 900.0, "compiled": {"decode": 600.0}}]
    assert first.correct(sft + grpo).minutes[module.LOAD] == 10.0 + 5.0 + 10.0
    assert first.correct(grpo).minutes[module.LOAD] == 10.0 + 7.5 + 10.0
    assert first.correct([{"event": "grpo_step", "compiled": {}}]) == first


def test_a_recipe_judged_elsewhere_has_all_chips(small, monkeypatch):
    names = {"sft": ["SFT train step"], "simpo": ["SimPO train step"], "grpo": ["GRPO train step", "GRPO reference"],
             "rollout": ["rollout prefill", "one decode step"]}

    def fake(run, name, whole):
        assert run.judge_config is None and run.plan.judge is None and not whole
        return [ProgramStats(title, dict(run.plan.policy.shape), 8, 1.0) for title in names[name]]

    monkeypatch.setattr(module, "preflight", fake)
    found = forecast(SMALL, find_recipe("pinocchio"), jax.devices(), "v5e", judge=False)
    assert [row.mesh["fsdp"] for row in found.rows] == [8] * 6
    assert set(found.reasons) == {"policy"}


def test_the_command(small, folder, monkeypatch, capsys):
    monkeypatch.setattr(module, "topology_devices", lambda name: jax.devices())
    monkeypatch.setitem(module.PROFILES, "kaggle", SMALL)
    line = ["--recipe", "g_rar", "--model", "gemma2-2b", "--cache", str(folder)]
    assert main(line) == 0
    assert "recipe g_rar, profile kaggle: gemma2-2b, judge gemma3-12b-it, v5e:2x4" in capsys.readouterr().out
    monkeypatch.setattr(module, "config_of", config_of)
    with pytest.raises(SystemExit):
        main(["--model", "gemma9"])
    assert "policy='gemma9' is neither a folder nor a known model" in capsys.readouterr().err


def test_the_command_plans_the_run_that_the_notebooks_would_make(monkeypatch, folder, capsys):
    """A Gemma 3 does not learn from a Gemma 2."""
    planned = []

    def fake(profile, *others):
        planned.append(profile)
        raise ValueError("seen")

    monkeypatch.setattr(module, "topology_devices", lambda name: jax.devices())
    monkeypatch.setattr(module, "forecast", fake)
    for model in ("gemma2-2b-it", "gemma3-1b-it"):
        with pytest.raises(SystemExit):
            main(["--recipe", "on_policy_distillation", "--model", model, "--cache", str(folder)])
    assert [(profile.policy, profile.teacher) for profile in planned] == [
        ("gemma2-2b-it", "gemma2-9b-it"), ("gemma3-1b-it", "gemma3-12b-it")]
