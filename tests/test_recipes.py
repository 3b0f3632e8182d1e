"""Profiles, recipes and the run's folder; nothing is trained here."""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from reasonkit import choices
from reasonkit import run as run_module
from reasonkit.config import PROFILES, STAGES, adapt_to_lengths
from reasonkit.data import problems
from reasonkit.data.sources import Traces
from reasonkit.judge.judge import judge_prompt
from reasonkit.judge.rubric import rubric_from_json
from reasonkit.models.load import ASSETS, MODELS, Tokenizer
from reasonkit.models.mesh import check_divides, plan_mesh
from reasonkit.run import open_run, read_run
from reasonkit.session import run_log, setup
from reasonkit.session.manifest import ManifestError
from reasonkit.session.setup import find_recipe, recipe_names
from reasonkit.session.time_budget import BudgetError
from reasonkit.text.tags import TAGS


@pytest.fixture(autouse=True)
def eight_devices(monkeypatch):
    monkeypatch.delenv("REASONKIT_ARTIFACTS", raising=False)
    assert len(jax.devices()) == 8  # JAX has started, as the checks of the profile's devices expect


# Choices


@pytest.mark.parametrize(("profile", "recipe", "changes"), [
    ("kaggle", "g_rar", {}), ("kaggle", "g_exact", {}), ("cpu", "idea_e", {}),
    ("kaggle", "idea_e", {"steps": 600, "most_steps": 3600, "rollout_micro_prompts": 0})])
def test_a_step_is_sampled_in_parts_for_a_judge_alone(tmp_path, monkeypatch, profile, recipe, changes):
    monkeypatch.setattr(run_module, "use_virtual_devices", lambda count: None)
    run = open_run(profile, recipe, 0, tmp_path)
    assert run.profile.grpo == replace(PROFILES[profile].grpo, **changes)


def weights_of(recipe):
    judge = SimpleNamespace(failures=Counter()) if recipe.asks else None
    return {part.__name__: weight for part, weight in recipe.rewards(judge, ["How many shells has Leo?"])}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_names_what_there_is(name):
    recipe = find_recipe(name)
    weights = weights_of(recipe)
    assert recipe.name == name and recipe.summary.endswith(".")
    assert problems.load_recipe(recipe.data).rubric and problems.load_recipe(recipe.toy_data).rubric
    assert any(weights.values()) == ("grpo" in recipe.shares) and recipe.uses_judge == ("rubric" in weights)
    assert recipe.curriculum is None or recipe.curriculum.__name__ in weights
    assert recipe.training_stages and {*recipe.shares} <= {*STAGES} - {"data", "evaluation"}
    assert all(share > 0 for share in recipe.shares.values())


def test_stages_follow_the_recipe():
    recipe = replace(find_recipe("g_rar"), shares={"sft": 1, "teacher": 1, "simpo": 1, "reward_model": 1, "grpo": 1})
    assert recipe.stages == ["teacher", "data", "sft", "simpo", "reward_model", "grpo", "evaluation"]
    assert recipe.training_stages == ["sft", "simpo", "grpo"]
    assert [recipe.before(stage) for stage in recipe.training_stages] == [None, "sft", "simpo"]
    assert replace(recipe, shares={"grpo": 1}).before("grpo") is None


def test_the_recipes_are_the_files():
    assert {"g_rar", "g_exact", "idea_e", "gym", "constant", "shuffled"} <= set(recipe_names())


def test_two_recipes_differ_only_by_the_judges_weight():
    with_judge, without = find_recipe("g_rar"), find_recipe("g_exact")
    assert replace(without, name="", summary="", rewards=None) == replace(with_judge, name="", summary="", rewards=None)
    weight = weights_of(with_judge)["rubric"]
    assert weight > 0 == weights_of(without)["rubric"]
    assert weights_of(without) | {"rubric": weight} == weights_of(with_judge)


def test_the_rubric_without_a_judge_is_refused():
    with pytest.raises(ValueError, match="give the recipe uses_judge=True"):
        find_recipe("g_rar").rewards(None, [])


def test_a_judge_without_a_model_must_be_made_for_the_policy(tmp_path, monkeypatch):
    """It would rate the policy's completions with the policy, without an exam."""
    (tmp_path / "own.py").write_text('"""Own."""\nfrom dataclasses import replace\nfrom recipes import g_rar\nfrom '
                                      'recipes.judges.local_variants import variant\nRECIPE = replace(g_rar.RECIPE, '
                                      'uses_judge=False, judge=variant("implicit"))\n')
    monkeypatch.setattr("recipes.__path__", [*importlib.import_module("recipes").__path__, str(tmp_path)])
    with pytest.raises(ValueError, match="own.py has a `judge` and no uses_judge=True"):
        find_recipe("own")
    assert find_recipe("rlpr").asks and not find_recipe("rlpr").uses_judge and not find_recipe("idea_e").asks


def test_a_policy_that_scores_itself_samples_a_step_in_one_call(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "use_virtual_devices", lambda count: None)
    with pytest.raises(ValueError, match="grpo_rollout_micro_prompts=16, and in the recipe 'rlpr' the policy can't"):
        open_run("kaggle", "rlpr", 0, tmp_path, settings={"grpo_rollout_micro_prompts": 16})


def test_a_recipe_is_a_file_that_changes_settings(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text('"""Mine. Nothing else.\n\nMore."""\nfrom recipes import gym\nfrom dataclasses '
                                      'import replace\nRECIPE = replace(gym.RECIPE, sft={"steps": 7}, '
                                      'grpo={"beta": 0.0}, simpo={"max_new_tokens": 32}, toy_data="tiny_mix", '
                                      'data="gym_mix")\n')
    monkeypatch.setattr("recipes.__path__", [*importlib.import_module("recipes").__path__, str(tmp_path)])
    run = open_run("smoke", "mine", 0, tmp_path / "run")
    assert (run.recipe.name, run.recipe.summary) == ("mine", "Mine. Nothing else.")
    assert (run.profile.sft.steps, run.profile.grpo.beta, run.profile.simpo.max_new_tokens) == (7, 0.0, 32)
    others = {stage: getattr(PROFILES["smoke"], stage) for stage in ("sft", "simpo", "grpo")}
    assert replace(run.profile, **others) == PROFILES["smoke"]
    found = {name: run.recipe.data_for(profile) for name, profile in PROFILES.items()}
    assert [name for name in found if found[name] == "gym_mix"] == ["kaggle", "colab", "gpu"]


def test_idea_e_has_no_judge_and_its_text_can_cost_what_a_right_answer_pays():
    weights = weights_of(find_recipe("idea_e"))
    text = [weights[name] for name in ("tfidf_relevance", "tfidf_leak", "scaffold")]
    assert "rubric" not in weights and max(text) < weights["exact_answer_if_tag_format"] < sum(text)
    assert weights["work_shown"] == weights["exact_answer_if_tag_format"], "a right answer behind no work earns nothing"


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_consistent(name):
    profile = PROFILES[name]
    assert profile.name == name and {profile.policy, profile.judge} <= set(MODELS)
    assert profile.minutes > profile.reserve_minutes > 0
    assert set(profile.rows) == set(problems.SPLITS)
    assert profile.rows["train"] >= max(profile.sft.batch_size, profile.grpo.prompts_per_step)
    assert profile.rows["train"] >= profile.simpo.questions >= profile.simpo.batch_size
    assert adapt_to_lengths(profile, {}) == profile, "all stages have the lengths of GRPO"
    assert profile.grpo.prompts_per_step % (profile.grpo.micro_prompts or profile.grpo.prompts_per_step) == 0


@pytest.mark.parametrize(("name", "count"), [("cpu", 8), ("smoke", 8), ("kaggle", 8), ("colab", 1), ("gpu", 1),
                                              ("cpu-gemma3-270m", 2), ("gpu-gemma3-270m", 1)])
def test_the_batches_of_a_profile_divide_over_its_chips(name, count):
    """Virtual devices here, the eight chips of a v5e-8 at Kaggle, one chip or GPU elsewhere."""
    profile, devices = PROFILES[name], jax.devices()[:count]
    assert profile.devices in (0, count)
    alone = plan_mesh(devices, judge=False)
    check_divides(profile.sft.batch_size, alone.policy, "SFT")
    check_divides(2 * profile.simpo.batch_size, alone.policy, "SimPO")
    plan = plan_mesh(devices, judge=True)
    micro = profile.grpo.micro_prompts or profile.grpo.prompts_per_step
    for policy in (plan.policy, alone.policy):  # a recipe without a rubric has no judge
        check_divides(micro * profile.grpo.num_generations, policy, "GRPO")
    check_divides(profile.judge_batch, plan.judge, "judge")
    for mesh in (plan.policy, plan.judge):
        check_divides(profile.distill.batch_size, mesh, "distillation")


@pytest.mark.parametrize("name", PROFILES)
def test_the_teacher_of_a_profile_reads_the_tokens_of_its_policy(name):
    profile = PROFILES[name]
    assert MODELS[profile.teacher].family == MODELS[profile.policy].family
    assert (profile.teacher == profile.policy) == profile.toy, "else it is a larger one"


def switches(value, name=""):
    """What a profile switches on, by field."""
    if is_dataclass(value):
        return {key: found for field in fields(value)
                for key, found in switches(getattr(value, field.name), f"{name}.{field.name}").items()}
    return {name: value if name == ".dtype" else bool(value)}


def test_the_tests_smallest_run_has_every_switch_of_kaggles():
    """No notebook had run with remat, and then a policy could not sample (2026-11-29)."""
    small, kaggle = switches(PROFILES["smoke"]), switches(PROFILES["kaggle"])
    others = {name for name in small if small[name] != kaggle[name]}
    assert others == {".dtype", ".devices", ".accelerator", ".grows", ".toy", ".distill.teacher"}


@pytest.mark.parametrize("name", ["cpu", "smoke"])
def test_every_problem_fits_the_limits_of_its_profile(name):
    """Rows that are too long are left out in silence, so the demo must have none."""
    profile, recipe = PROFILES[name], problems.load_recipe("tiny_mix").model_copy(update={"traces": Traces()})
    folder = ASSETS / MODELS[profile.policy].asset
    tokenizer = Tokenizer(folder / "tokenizer.model", MODELS[profile.policy].family)
    for row in problems.make_splits(recipe, {"train": 500}, 0)["train"]:
        prompt = 1 + len(tokenizer.encode(TAGS.prompt(row["question"])))
        reply = len(tokenizer.encode(TAGS.render(reasoning=row["reasoning"], answer=row["answer"]))) + 1
        assert prompt <= profile.grpo.max_prompt_length and reply <= profile.grpo.max_new_tokens, row
        assert prompt + reply <= profile.sft.max_length, row
        for criterion in rubric_from_json(row["rubric"]):  # a longer one is no signal; both models share the tokenizer
            judged = 1 + len(tokenizer.encode(judge_prompt(row["question"], "", criterion)))
            assert judged + profile.grpo.max_new_tokens <= profile.judge_max_length, row


# Runs


def test_a_run_is_opened_and_continued(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_run("smoke", "g_rar", 3, "mine")
    assert run.folder == tmp_path / "mine" and run.checkpoints.is_absolute(), "orbax takes no relative folder"
    assert json.loads((run.folder / "run.json").read_text()) == {"profile": "smoke", "recipe": "g_rar", "seed": 3}
    assert (run.profile, run.recipe, run.seed) == (PROFILES["smoke"], find_recipe("g_rar"), 3)
    assert run.budget.shares == find_recipe("g_rar").shares and 28 < run.budget.minutes_left <= 29
    started = json.loads((run.folder / "ledger.json").read_text())["started"]
    again = open_run("smoke", "g_rar", 3, "mine")
    assert json.loads((again.folder / "ledger.json").read_text())["started"] == started, "the clock began anew"
    again.budget._record["took"] = {"probe": 60.0, "save": 30.0}
    assert again.budget.minutes_reserved == 0.5 + 1.25 * (6 + 2 + 0.5), (
        "three models answer 16 problems, a probe answers 8, and each trained one is probed once more")


@pytest.fixture
def cache_folder():
    """JAX's, as it was, after a test that opens runs for accelerators."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("cache_folder")
@pytest.mark.parametrize("name", PROFILES)
def test_the_clock_ends_stages_where_somebody_ends_the_session(name, tmp_path, monkeypatch):
    """Kaggle's nine hours and Colab's; on one's own CPU all steps are made, however slow it is."""
    monkeypatch.setattr(run_module, "use_virtual_devices", lambda count: None)
    assert open_run(name, "g_exact", 0, tmp_path).budget.grows == name.startswith(("cpu", "smoke"))


@pytest.mark.usefixtures("cache_folder")
@pytest.mark.parametrize(("name", "expected"), [("kaggle", "run/compiled"), ("smoke", None)])
def test_what_is_compiled_for_an_accelerator_stays_with_the_run(name, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "use_virtual_devices", lambda count: None)
    jax.config.update("jax_compilation_cache_dir", None)
    open_run(name, "g_exact", 0, tmp_path / "run")
    assert jax.config.jax_compilation_cache_dir == (expected and str(tmp_path / expected))
    jax.config.update("jax_compilation_cache_dir", "mine")
    open_run(name, "g_exact", 0, tmp_path / "other")
    assert jax.config.jax_compilation_cache_dir == "mine"


def test_the_folder_is_named_or_set_or_the_usual_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_run("smoke", "g_rar", 0).folder == tmp_path / "artifacts"
    monkeypatch.setenv("REASONKIT_ARTIFACTS", "elsewhere")
    assert open_run("smoke", "g_rar", 0).folder == tmp_path / "elsewhere"
    assert open_run("smoke", "g_rar", 0, tmp_path / "named").folder == tmp_path / "named"


@pytest.mark.parametrize("other", [("smoke", "g_rar", 4), ("smoke", "g_exact", 3), ("cpu", "g_rar", 3)])
def test_the_folder_of_another_run_is_refused(tmp_path, other):
    run = open_run("smoke", "g_rar", 3, tmp_path)
    held = r"\{'profile': 'smoke', 'recipe': 'g_rar', 'seed': 3\}"
    begin(run, tmp_path)
    with pytest.raises(ValueError, match=f"holds the run {held}, and .* was asked for: go on with that one, or start "
                       r'in another folder: `import os; os.environ\["REASONKIT_ARTIFACTS"\] = "artifacts-2"` in the '
                       "first cell, or `REASONKIT_ARTIFACTS=artifacts-2 make demo ...`. The folder holds what was "
                       "trained: delete it only if nobody needs that"):
        open_run(*other, tmp_path, data="")
    assert open_run("smoke", "g_rar", 3, tmp_path).seed == 3, "the refused run took the folder"


def begin(run, base):
    """As SFT begins, with the first file at hand as its input, and makes a step."""
    assert run.begin("sft", base, {"train": run.folder / "run.json"})
    (run.checkpoints / "actor/1").mkdir(parents=True)


@pytest.mark.parametrize("other", [("smoke", "g_rar", 4, {}), ("smoke", "g_exact", 3, {}), ("cpu", "g_rar", 3, {}),
                                   ("smoke", "g_rar", 3, {"grpo_max_prompt_length": 160})])
def test_a_run_that_has_trained_nothing_gives_way_to_another_in_notebook_1(tmp_path, other):
    """Notebook 1 may stop because questions are too long. Then the docs say to raise that setting."""
    *choices, settings = other
    run = open_run("smoke", "g_rar", 3, tmp_path)
    run.finish("data", inputs={}, metrics={}, minutes=0.1)
    (run.stage("sft") / "asked.json").parent.mkdir()
    (run.stage("sft") / "asked.json").write_text("{}")  # SFT ran out of memory before its first step
    with pytest.raises(ValueError, match="holds the run .* was asked for: go on with that one, or, because it has "
                       r"trained nothing yet, run notebook 01 \(01_data_curation\) with these choices first"):
        open_run(*choices, tmp_path, settings=settings)
    assert run.is_finished("data"), "a slip in notebook 2 costs the rows"
    again = open_run(*choices, tmp_path, data="", settings=settings)
    assert not again.is_finished("data") and not again.has_begun("sft"), "the rows are another run's"
    assert open_run(*choices, tmp_path, settings=settings).seed == choices[2]
    assert [again.profile.name, again.recipe.name, again.seed] == choices


@pytest.mark.parametrize(("profile", "recipe", "message"), [
    ("tpu", "g_rar", "unknown profile 'tpu': choose one of cpu, smoke, kaggle, colab, gpu"),
    ("cpu", "g_rare", "unknown recipe 'g_rare': choose one of all_traces, .*g_rar, .*gym.* The nearest is 'g_rar'"),
    (None, "g_rar", "unknown profile None: choose one of"), ("cpu", ["g_rar"], r"unknown recipe \['g_rar'\]: choose"),
])
def test_an_unknown_profile_or_recipe_leaves_no_folder(tmp_path, profile, recipe, message):
    with pytest.raises(ValueError, match=message):
        open_run(profile, recipe, 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("profile", "settings", "message"), [
    ("smoke", {"policy": "tiny-polcy"}, "policy='tiny-polcy' is neither a folder .* The nearest is 'tiny-policy'"),
    ("kaggle", {"judge": "gemma-3-12b-it"}, "judge='gemma-3-12b-it' is neither .* The nearest is 'gemma3-12b-it'"),
    ("cpu", {"policy": "gemma2-2b-it"}, "policy='gemma2-2b-it' does not go with the profile 'cpu', whose lengths and"),
    ("kaggle", {"judge": "tiny-judge"}, "judge='tiny-judge' does not go with the profile 'kaggle'"),
    ("kaggle", {"grpo_prompts_per_step": 8}, "grpo_prompts_per_step=8, grpo_rollout_micro_prompts=16, .*=4: each of "
     "these must be a multiple of the next, so change one of them"),
    ("colab", {"grpo_micro_prompts": 3}, "grpo_prompts_per_step=8, grpo_rollout_micro_prompts=8, .*=3: each of these "),
    ("cpu", {"grpo_warmup": 1}, "grpo_warmup=1: give a number above 0 and below 1, or 0, or leave it out")])
def test_settings_that_do_not_go_together_leave_no_folder(tmp_path, profile, settings, message):
    with pytest.raises(ValueError, match=message):
        open_run(profile, "g_rar", 0, tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("recipe", "settings", "message"), [
    ("pinocchio", {"simpo_max_prompt_length": 60}, "simpo_max_prompt_length=60, and notebook 1 keeps .*_length=80 tok"),
    ("on_policy_distillation", {"grpo_max_prompt_length": 90}, "distill_max_prompt_length=80, .* to at least 90"),
    ("pinocchio", {"simpo_questions": 3}, "simpo_questions=3 make at most .* simpo_batch_size=4: ask more")])
def test_what_a_later_stage_cannot_take_is_named_first(tmp_path, recipe, settings, message):
    """It used to end that stage, after hours of SFT. A recipe without the stage is none of its concern."""
    with pytest.raises(ValueError, match=message):
        open_run("smoke", recipe, 0, tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()
    open_run("smoke", "g_rar", 0, tmp_path, settings=settings).close()


def test_the_notebooks_of_a_run_have_the_same_settings_but_for_the_clock(tmp_path):
    run = open_run("smoke", "g_rar", 0, tmp_path, settings={"sft_steps": 1, "grpo_learning_rate": 1e-3, "minutes": 60})
    assert (run.profile.sft.steps, run.profile.grpo.learning_rate, run.budget.hours) == (1, 1e-3, 1.0)
    kept = {"sft_steps": 1, "grpo_learning_rate": 1e-3}
    again = open_run("smoke", "g_rar", 0, tmp_path, settings={**kept, "minutes": 90, "grpo_steps": 0})
    assert (again.profile.sft.steps, again.budget.hours) == (1, 1.5)
    begin(run, tmp_path)
    sizes = {"eval_batch": 8, "judge_batch": 8, "grpo_micro_prompts": 1, "sft_save_every": 1, "grpo_keep": 3}
    smaller = open_run("smoke", "g_rar", 0, tmp_path, settings={**kept, **sizes})
    assert (smaller.profile.eval_batch, smaller.profile.grpo.micro_prompts, smaller.profile.sft.save_every) == (8, 1, 1)
    assert read_run(tmp_path).profile == smaller.profile, "who reads the run does not know its sizes"
    for other in ({}, {**kept, "sft_steps": 2}, {**kept, "grpo_steps": 9}, {**kept, "sft_batch_size": 4}):
        with pytest.raises(ValueError, match="holds the run .*'settings': .'sft_steps': 1.* was asked for"):
            open_run("smoke", "g_rar", 0, tmp_path, settings=other)


def test_the_notebook_has_the_last_word_over_profile_and_recipe(tmp_path, monkeypatch):
    idea_e = find_recipe("idea_e")
    monkeypatch.setattr(choices, "find_recipe", lambda name: replace(idea_e, sft={"steps": 7}, grpo={"steps": 5}))
    run = open_run("smoke", "idea_e", 0, tmp_path, settings={"grpo_steps": 3})
    assert (run.profile.sft.steps, run.profile.grpo.steps) == (7, 3)


@pytest.mark.parametrize("seed", ["zero", "0", -1, 1.5, 1.0, True, False, None, 2**32, 10**30, float("nan"), [0], (1,),
                                  1j, b"1", np.int64(-1), np.float64(1.0), np.bool_(True), {}, range(1), -(10**30)])
def test_a_seed_that_is_none_is_named_and_leaves_no_folder(tmp_path, seed):
    """From 2**32 on, JAX would take it for a smaller one."""
    with pytest.raises(ValueError, match=re.escape(f"SEED={seed!r}: give a whole number from 0 to 4294967295")):
        open_run("smoke", "g_rar", seed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_budget_that_is_all_reserve_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(PROFILES, "short", replace(PROFILES["smoke"], minutes=5, reserve_minutes=5))
    with pytest.raises(BudgetError, match="reserve_minutes=5 takes all of the session's 5 minutes: raise"):
        open_run("short", "g_rar", 0, tmp_path)


def test_devices_that_came_too_late_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(PROFILES, "wide", replace(PROFILES["smoke"], devices=16))
    with pytest.raises(RuntimeError, match="needs 16 virtual CPU devices and JAX runs with 8: restart the kernel"):
        open_run("wide", "g_rar", 0, tmp_path)


# Handing over


def test_a_stage_reads_what_the_last_one_left(tmp_path):
    run = open_run("smoke", "g_rar", 0, tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    assert not run.is_finished("sft")
    run.finish("data", inputs={}, metrics={"rows": 1}, minutes=0.1)
    run.finish("sft", inputs={"train": rows}, metrics={"form": 0.9}, minutes=2.0, checkpoint_step=7)
    (tmp_path / "sft/adapter/actor/7").mkdir(parents=True)
    assert run.is_finished("sft") and run.manifest("data")["lora"] is None
    manifest = run.manifest("sft")
    assert manifest["extra"] == {"checkpoint_step": 7} and manifest["metrics"] == {"form": 0.9}
    assert manifest["lora"] == run.lora == {"rank": 16, "alpha": 32.0}
    run.log("sft").write("sft_step", step=1)
    assert (tmp_path / "sft" / "log.jsonl").exists()


def test_a_stage_begins_with_what_the_one_before_left_and_gets_its_share_of_the_time(tmp_path, monkeypatch):
    shares = {"sft": 0.2, "simpo": 0.2, "grpo": 0.6}
    monkeypatch.setattr(choices, "find_recipe", lambda name: replace(find_recipe(name), shares=shares))
    run = open_run("smoke", "g_rar", 0, tmp_path)
    with pytest.raises(ManifestError, match="run notebook 01"):
        run.inputs("sft")
    run.finish("data", inputs={}, metrics={}, minutes=0.1)
    assert run.inputs("sft") == {"train": tmp_path / "data/train.parquet"}
    with pytest.raises(ManifestError, match=r"run notebook 02 \(02_sft_warm_start\) first"):
        run.inputs("simpo")
    for stage, step in (("sft", 7), ("simpo", 9)):
        run.finish(stage, inputs={}, metrics={}, minutes=1.0, checkpoint_step=step)
        (tmp_path / f"{stage}/adapter/actor/{step}").mkdir(parents=True)
    assert run.inputs("grpo")["adapter"] == tmp_path / "simpo/adapter"
    assert open_run("smoke", "g_rar", 0, tmp_path).budget.shares == {"grpo": 0.6}, "a finished stage needs no time"


def test_lengths_of_grpo_in_the_settings_lengthen_what_holds_its_rows(tmp_path):
    """Else notebook 1 would pass, and notebook 2 would find that no row fits."""
    usual = open_run("smoke", "g_rar", 0, tmp_path / "one").profile
    longer = {"grpo_max_prompt_length": 160, "grpo_max_new_tokens": 160}
    more = 320 - usual.grpo.max_prompt_length - usual.grpo.max_new_tokens
    found = open_run("smoke", "g_rar", 0, tmp_path / "two", settings=longer).profile
    assert found.sft.max_length == usual.sft.max_length + more
    assert found.judge_max_length == usual.judge_max_length + more
    given = {**longer, "sft_max_length": 200, "judge_max_length": 300}
    found = open_run("smoke", "g_rar", 0, tmp_path / "three", settings=given).profile
    assert (found.sft.max_length, found.judge_max_length) == (200, 300)
    shorter = open_run("smoke", "g_rar", 0, tmp_path / "four", settings={"grpo_max_new_tokens": 32}).profile
    assert (shorter.sft, shorter.judge_max_length) == (usual.sft, usual.judge_max_length), "no row gets shorter"


@pytest.mark.parametrize(("text", "said"), [
    ('RECIPE = Recipe(**MIX, shares={"sft": 1, "gpro": 1})', "unknown stage in the shares .* 'gpro': .* 'grpo'"),
    ('RECIPE = Recipe(**MIX, shares={"sft": 1, "data": 1})', "unknown stage in the shares .* 'data'"),
    ('RECIPE = Recipe(**MIX, shares={"sft": 1}, sft={"max_lenght": 9})',
     "unknown setting of sft .* 'max_lenght': .* The nearest is 'max_length'"),
    ('RECIPE = Recipe(**MIX, shares={"sft": 1}, sft={"warmup": 1.0})',
     "sft_warmup=1.0: give a number above 0 and below 1, or 0, or leave it out of recipes/mine.py"),
    ('recipe = Recipe(**MIX, shares={"sft": 1})', "recipes/mine.py has no RECIPE"),
])
def test_a_mistake_in_ones_own_recipe_is_named(text, said, monkeypatch):
    module = types.ModuleType("recipes.mine")
    mix = 'MIX = {"data": "g_rar", "toy_data": "tiny_mix"}'
    exec(f"from reasonkit.config import Recipe\n{mix}\n{text}", vars(module))
    monkeypatch.setitem(sys.modules, "recipes.mine", module)
    monkeypatch.setattr(setup, "recipe_names", lambda: ["g_rar", "mine"])
    with pytest.raises(ValueError, match=said):
        find_recipe("mine")


def test_data_has_lengths_of_its_own_for_every_notebook(tmp_path, monkeypatch):
    """Notebook 1 takes the data by its name. The later ones take what its manifest says."""
    asked = {"prompt": 512, "completion": 700}
    monkeypatch.setattr(choices, "load_data",
                        lambda name: SimpleNamespace(lengths={"mine": asked, "tiny_mix": {}}[name]))

    def opened(data=None):
        return open_run("smoke", "g_rar", 0, tmp_path, data=data).profile

    own, long = opened(""), opened("mine")
    more = 512 + 700 - own.grpo.max_prompt_length - own.grpo.max_new_tokens
    assert (long.grpo.max_prompt_length, long.grpo.max_new_tokens) == (512, 700)
    assert long.judge_max_length == own.judge_max_length + more and long.sft.max_length == own.sft.max_length + more
    assert opened() == own
    open_run("smoke", "g_rar", 0, tmp_path).finish("data", inputs={}, metrics={}, minutes=0.1, lengths=asked)
    assert opened() == long and opened("") == own
    (tmp_path / "data" / "manifest.json").write_text("{")
    assert opened() == own, "notebook 1 can be run again"


@pytest.mark.parametrize("name", PROFILES)
def test_longer_rows_make_fewer_steps_and_no_more_tokens(name):
    profile = PROFILES[name]
    prompt, completion = profile.grpo.max_prompt_length, profile.grpo.max_new_tokens
    longer = adapt_to_lengths(profile, {"prompt": 2 * prompt, "completion": 3 * completion})
    for stage in ("sft", "simpo", "grpo", "distill"):
        before, after = getattr(profile, stage).steps, getattr(longer, stage).steps
        assert after * (2 * prompt + 3 * completion) <= max(before * (prompt + completion), 2 * prompt + 3 * completion)
        assert 1 <= after < before
        assert getattr(adapt_to_lengths(profile, {"prompt": prompt - 8}), stage).steps == before, "never more steps"


def test_a_stages_minutes_are_those_of_all_its_sessions(tmp_path, monkeypatch):
    """GRPO is killed in one session and ends in another, days later; SFT and the evaluation took one each."""
    clock = SimpleNamespace(now=1e9)
    monkeypatch.setattr(run_log.time, "time", lambda: clock.now)
    first = open_run("smoke", "g_rar", 0, tmp_path)
    first.finish("sft", inputs={}, metrics={}, minutes=8.0)
    for begun, steps in ((0, 5), (3, 5)):  # killed at step 5; the last checkpoint was of step 3
        log = open_run("smoke", "g_rar", 0, tmp_path).log("grpo")
        log.write("start", stage="grpo", step=begun)
        for step in range(begun + 1, begun + 1 + steps):
            clock.now += 60
            log.write("grpo_step", step=step, loss=0.0)
        clock.now += 86_400
        log.write("verdict", score=1.0)  # the next session's, before it trains
    second = open_run("smoke", "g_rar", 0, tmp_path)
    second.finish("grpo", inputs={}, metrics={}, minutes=5.5)
    assert [second.manifest(stage)["minutes"] for stage in ("sft", "grpo")] == [8.0, 5 + 5.5]


def test_a_missing_or_foreign_manifest_is_named(tmp_path, monkeypatch):
    run = open_run("smoke", "g_rar", 0, tmp_path)
    with pytest.raises(ManifestError, match=r"run notebook 02 \(02_sft_warm_start\) first: .* does not exist"):
        run.manifest("sft")
    run.finish("sft", inputs={}, metrics={}, minutes=1.0)
    other = replace(run, profile=replace(run.profile, lora_rank=8))
    with pytest.raises(ManifestError, match="has the adapter {'rank': 16, 'alpha': 32.0}, this run wants {'rank': 8"):
        other.manifest("sft")
    monkeypatch.setattr(run_module, "prompt_hash", lambda template: "0" * 64)
    with pytest.raises(ManifestError, match="used another prompt"):
        run.manifest("sft")
