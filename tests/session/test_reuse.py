"""A stage is taken up, finished or not, only with what it was begun with; a kernel goes on without the old model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from reasonkit import run as run_module
from reasonkit.config import PROFILES
from reasonkit.data import problems
from reasonkit.data.own_file import load_data
from reasonkit.rewards.rules import gate, tag_format
from reasonkit.run import open_run
from reasonkit.session.manifest import ASKED, ManifestError, code_sha256, differences
from reasonkit.session.setup import find_recipe

TESTS = Path(__file__).parents[1]
REWARDS = {"exact_answer": 1.0, "rubric": 1.5}


@pytest.fixture
def asked(tmp_path):
    """A run, its two stages' inputs, and how the second is asked for."""
    run = open_run("smoke", "g_rar", 0, tmp_path / "run")
    base, train = tmp_path / "model", run.stage("data") / "train.parquet"
    for path, text in ((base / "config.json", "{}"), (base / "model.safetensors", "weights"), (train, "{}\n")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return SimpleNamespace(run=run, base=base, train=train)


def sft(asked, run=None, **changes):
    run = run or asked.run
    run = replace(run, profile=replace(run.profile, sft=replace(run.profile.sft, **changes)))
    return run.begin("sft", asked.base, {"train": asked.train})


def grpo(asked, rewards=None, run=None, judge="tiny-judge", **changes):
    run = run or asked.run
    run = replace(run, profile=replace(run.profile, grpo=replace(run.profile.grpo, **changes)))
    return run.begin("grpo", asked.base, {"train": asked.train, "adapter": run.stage("sft") / "adapter"},
                     rewards=rewards or REWARDS, judge=judge)


def steps(run, stage, begun, *numbers):
    """The folders of a stage's checkpoints."""
    for path in [run.checkpoints / "begun" / stage / "actor" / str(begun),
                 *(run.checkpoints / "actor" / str(number) for number in numbers)]:
        path.mkdir(parents=True, exist_ok=True)


def finish(asked, stage, step, stopped="data"):
    """As `Run.save_for_next_stage`, with an adapter that is none."""
    adapter = asked.run.stage(stage) / "adapter/actor" / str(step)
    adapter.mkdir(parents=True)
    (adapter / "model_params").write_text(stage)
    inputs = {"train": asked.train} | ({"adapter": asked.run.stage("sft") / "adapter"} if stage == "grpo" else {})
    settings = vars(getattr(asked.run.profile, stage))
    asked.run.finish(stage, inputs=inputs, metrics={"steps": 2}, minutes=1.0, checkpoint_step=step, stopped=stopped,
                     settings=settings)


def other_prompt(asked, monkeypatch):
    monkeypatch.setattr(run_module, "prompt_hash", lambda template: "0" * 64)
    return sft(asked)


def profiled(**changes):
    return lambda asked, patch: sft(asked, replace(asked.run, profile=replace(asked.run.profile, **changes)))


def rewritten(name, text="{}\n{}\n"):
    def change(asked, patch):
        getattr(asked, name.split("/")[0]).joinpath(*name.split("/")[1:]).write_text(text)
        return sft(asked)

    return change


CHANGES = {
    "learning rate": (lambda asked, patch: sft(asked, learning_rate=2e-2),
                      "settings.learning_rate: 0.002 then, 0.02 now"),
    "steps": (lambda asked, patch: sft(asked, steps=50), "settings.steps: 2 then, 50 now"),
    "policy": (profiled(policy="gemma3-270m"), "model.policy: 'tiny-policy' then, 'gemma3-270m' now"),
    "dtype": (profiled(dtype="bfloat16"), "model.dtype: 'float32' then, 'bfloat16' now"),
    "rank": (profiled(lora_rank=8), "model.rank: 16 then, 8 now"),
    "weights": (rewritten("base/model.safetensors"), "model.base: SHA-256 .{12}… then, SHA-256 .{12}… now"),
    "data": (rewritten("train"), "inputs.train: SHA-256 .{12}… then, SHA-256 .{12}… now"),
    "prompt": (other_prompt, "prompt_sha256: SHA-256 .{12}… then, SHA-256 000000000000… now"),
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_a_stage_is_not_taken_up_with_other_inputs(name, finished, asked, monkeypatch):
    ask, differs = CHANGES[name]
    assert sft(asked)
    steps(asked.run, "sft", 0, 1)
    if finished:
        finish(asked, "sft", 3)
    with pytest.raises(ManifestError, match=(
            "stage 'sft' was trained with other inputs than it is asked for now: " + differs
            + r'. Set them back, or train anew in another folder: `import os; os.environ\["REASONKIT_ARTIFACTS"\] = '
            '"artifacts-2"` in the first cell; or here, once sft, grpo, evaluation and checkpoints are moved out of')):
        ask(asked, monkeypatch)


@pytest.mark.parametrize("name", CHANGES)
def test_a_stage_without_steps_may_be_asked_for_anew(name, asked, monkeypatch):
    """After a first step that did not fit in memory, say."""
    assert sft(asked)
    steps(asked.run, "sft", 0)
    assert CHANGES[name][0](asked, monkeypatch)


def test_several_differences_are_all_named(asked):
    sft(asked)
    steps(asked.run, "sft", 0, 1)
    with pytest.raises(ManifestError, match=r"steps: 2 then, 50 now; settings.learning_rate: 0.002 then, 0.02 now"):
        sft(asked, learning_rate=0.02, steps=50)


def test_the_rewards_and_the_judge_are_inputs_of_grpo(asked):
    sft(asked)
    finish(asked, "sft", 3)
    assert grpo(asked)
    steps(asked.run, "grpo", 3, 4)
    assert grpo(asked), "the same again goes on"
    for changes, differs in (({"rewards": REWARDS | {"rubric": 0.0}}, "rewards.rubric: 1.5 then, 0.0 now"),
                             ({"rewards": {"exact_answer": 1.0}}, "rewards.rubric: 1.5 then, absent now"),
                             ({"rewards": REWARDS | {"scaffold": 0.5}}, "rewards.scaffold: absent then, 0.5 now"),
                             ({"judge": "other"}, "judge: 'tiny-judge' then, 'other' now"),
                             ({"beta": 0.0}, "settings.beta: 0.02 then, 0.0 now")):
        with pytest.raises(ManifestError, match=f"stage 'grpo' was trained with .*: {differs}.*once grpo, evaluation "
                                                "and checkpoints/actor are moved out of"):
            grpo(asked, **changes)
    assert grpo(asked, save_every=7, keep=9), "how often it saves changes nothing"
    assert grpo(asked, micro_prompts=1), "nor how many prompts a pass has, where passes are averaged as one"
    for changes in ({"loss_agg_mode": "token-mean"}, {"mask_truncated": True}):
        assert "micro_prompts" in replace(asked.run.profile.grpo, **changes).identity()
    finish(asked, "grpo", 5)
    (asked.run.stage("sft") / "adapter/actor/3/model_params").write_text("another")
    with pytest.raises(ManifestError, match="inputs.adapter: SHA-256"):
        grpo(asked)


def test_two_stages_have_one_base(asked):
    sft(asked)
    finish(asked, "sft", 3)
    (asked.base / "model.safetensors").write_text("others")
    with pytest.raises(ManifestError, match="stage 'sft' was trained on another model than 'grpo' is asked for now, "
                                            "and one adapter goes through both: model.base: SHA-256"):
        grpo(asked)
    assert not (asked.run.stage("grpo") / ASKED).exists()


def test_a_finished_stage_is_said_to_be_read_back(asked, capsys):
    assert sft(asked)
    finish(asked, "sft", 3)
    assert not sft(asked)
    out = capsys.readouterr().out
    assert out.startswith("sft: finished on 20")
    assert out.endswith(" and read back, 2 of 2 steps, ended by its last step\n")
    assert out.count("\n") == 1


def test_a_stage_that_the_clock_cut_short_says_how_to_go_on(asked, capsys):
    assert sft(asked)
    steps(asked.run, "sft", 0, 1)
    finish(asked, "sft", 3, stopped="time")
    assert not sft(asked)
    path = asked.run.stage("sft") / "manifest.json"
    out = capsys.readouterr().out
    assert out.endswith(f"ended by the clock. To train it on, delete {path} and run this cell again\n")
    path.unlink()
    assert sft(asked)


def test_only_the_last_stage_that_has_begun_may_be_trained_on(asked, capsys):
    """A later one began with what it left. Without its manifest, neither could be gone on with."""
    assert sft(asked)
    finish(asked, "sft", 3, "time")
    assert not sft(asked) and "To train it on, delete" in capsys.readouterr().out
    assert grpo(asked)
    assert not sft(asked)
    told = capsys.readouterr().out
    assert "sft: finished on" in told and "ended by the clock" in told and "delete" not in told


def test_a_stage_that_is_trained_on_gets_its_share_of_the_time(asked):
    """Its manifest was there when the run was opened, and is deleted in the same kernel, as the line above says."""
    assert sft(asked)
    finish(asked, "sft", 3, "time")
    asked.run.close()
    run = open_run("smoke", "g_rar", 0, asked.run.folder)
    assert run.budget.shares == {"grpo": 0.75} and run.budget.stage_minutes("sft") > 0.9 * run.budget.minutes_left
    (run.stage("sft") / "manifest.json").unlink()
    assert sft(asked, run)
    assert run.budget.stage_minutes("sft") == pytest.approx(0.25 * run.budget.minutes_left, rel=0.01)


def test_a_stage_of_which_nobody_knows_what_it_was_trained_with(asked):
    sft(asked)
    finish(asked, "sft", 3)
    (asked.run.stage("sft") / ASKED).unlink()
    with pytest.raises(ManifestError, match=r"asked\.json is not there, and without it nobody knows what stage 'sft'"):
        sft(asked)


def test_a_stage_that_was_stopped_says_how_to_go_on(asked):
    sft(asked)
    steps(asked.run, "sft", 0, 10)
    with pytest.raises(ManifestError, match=r"stage 'sft' has begun and has not ended: run its training cell, in "
                       r"notebook 02 \(02_sft_warm_start\), again; it goes on from step 10. To hand the stage over as "
                       r'it is, put `run.budget.end\("hand"\)` in a cell before that one'):
        asked.run.manifest("sft")


def test_an_adapter_that_is_gone_is_named_with_a_remedy(asked):
    sft(asked)
    finish(asked, "sft", 3)
    adapter = asked.run.stage("sft") / "adapter"
    adapter.rename(asked.run.folder / "elsewhere")
    for read in (lambda: asked.run.manifest("sft"), lambda: sft(asked)):
        with pytest.raises(ManifestError, match=f"stage 'sft' is finished, but its adapter {adapter}/actor/3 is gone: "
                           r"delete .*sft/manifest.json and run notebook 02 \(02_sft_warm_start\) again"):
            read()
    steps(asked.run, "grpo", 3, 4)
    with pytest.raises(ManifestError, match="is gone: copy .*checkpoints/begun/grpo/actor/3 there"):
        asked.run.manifest("sft")


def test_an_input_that_was_rewritten_is_seen_by_the_next_notebook(asked):
    asked.run.finish("data", inputs={"train": asked.train}, metrics={}, minutes=0.1)
    asked.run.manifest("data")
    asked.run.folder.rename(asked.run.folder.with_name("moved"))
    moved = open_run("smoke", "g_rar", 0, asked.run.folder.with_name("moved"))
    train = moved.stage("data") / "train.parquet"
    moved.manifest("data")
    train.write_text("{}\n{}\n")
    with pytest.raises(ManifestError, match=f"{train} has changed since stage 'data' was finished with it: put the old "
                                            r"one back, or run notebook 01 \(01_data_curation\) first with this one"):
        moved.manifest("data")


def made(run, recipe) -> dict:
    """The rows of notebook 1, made as it makes them."""
    paths = {name: run.stage("data") / f"{name}.parquet" for name in problems.SPLITS}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n")
    run.finish("data", inputs=paths, metrics={}, minutes=0.1, asked=run.data_asked(recipe))
    return paths


def test_rows_that_are_made_are_read_back_unless_something_changed(asked, tmp_path, capsys):
    """The hub may have other rows today, and stages that were begun with yesterday's would refuse to go on."""
    file = tmp_path / "mine.csv"
    file.write_text("question,answer\n1+1?,2\n")
    run, recipe = asked.run, load_data(str(file))
    assert not run.data_is_made(recipe)
    paths = made(run, recipe)
    assert run.data_is_made(recipe) and "To make them anew, delete" in capsys.readouterr().out
    assert not run.data_is_made(load_data("tiny_mix")), "no stage has begun with them"
    file.write_text("question,answer\n1+1?,2\n2+2?,4\n")
    assert not run.data_is_made(load_data(str(file)))
    file.write_text("question,answer\n1+1?,2\n")
    assert run.data_is_made(recipe)
    sft(asked)
    assert run.data_is_made(recipe)
    with pytest.raises(ManifestError, match="has the rows that this run was begun with, and others are asked for now: "
                                            "recipe: SHA-256 .* then, SHA-256 .* now.* Set that back, or start in"):
        run.data_is_made(load_data("tiny_mix"))
    run.finish("data", inputs=paths, metrics={}, minutes=0.1)
    assert run.data_is_made(load_data("tiny_mix")), "of an earlier release, and a stage has begun with them"
    made(run, recipe)
    paths["test"].write_text("{}\n{}\n")
    assert not run.data_is_made(recipe), "a changed file is made again"
    made(run, recipe)
    paths["test"].unlink()
    assert not run.data_is_made(recipe)


def test_a_stage_that_began_when_no_time_was_left_is_trained_in_the_next_session(asked, capsys):
    """It hands over what it began with, so that the evaluation comes. That must not count as trained for good."""
    assert sft(asked)
    finish(asked, "sft", 3)
    assert grpo(asked)
    finish(asked, "grpo", 3, "time")
    manifest = asked.run.stage("grpo") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"steps": 2', '"steps": 0', 1))
    assert grpo(asked), "it has done nothing"
    assert grpo(asked, judge="another"), "so it may be asked for with anything else"
    assert grpo(asked)
    manifest.write_text(manifest.read_text().replace('"steps": 0', '"steps": 1', 1))
    assert not grpo(asked) and "ended by the clock" in capsys.readouterr().out


@pytest.mark.parametrize("stopped", ["time", "a failure: TooFewRows: of 0 pairs"])
def test_stages_that_made_nothing_bind_nobody_until_a_later_one_makes_a_step(asked, tmp_path, stopped):
    """The day after a session that ended in SFT: SimPO samples its pairs now, and GRPO gets another adapter. Both used
    to be refused, because they were asked for with other inputs than when there was no time for them."""
    asked.run, base = open_run("smoke", "pinocchio", 0, tmp_path / "late"), {"train": asked.train}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}")

    def ask(stage, **inputs):
        return asked.run.begin(stage, asked.base, {**base, **inputs})

    def nothing(stage, step):
        """As the stage hands over the adapter it began with."""
        (asked.run.stage(stage) / "adapter/actor" / str(step)).mkdir(parents=True, exist_ok=True)
        (asked.run.stage(stage) / "adapter/actor" / str(step) / "model_params").write_text("sft")
        asked.run.finish(stage, inputs=before[stage], metrics={"steps": 0}, minutes=0.1, checkpoint_step=step,
                         stopped=stopped, settings=vars(getattr(asked.run.profile, stage)))

    assert ask("sft")
    finish(asked, "sft", 3)
    before = {stage: {"adapter": asked.run.stage(last) / "adapter"} for stage, last in (("simpo", "sft"),
                                                                                       ("grpo", "simpo"))}
    for stage, inputs in before.items():
        assert ask(stage, **inputs)
        nothing(stage, 3)
    asked.run.close()
    asked.run = open_run("smoke", "pinocchio", 0, asked.run.folder)
    assert asked.run.budget.shares == {"simpo": 0.1, "grpo": 0.6} and not asked.run.is_done("simpo")
    assert ask("simpo", **before["simpo"], pairs=pairs)
    (asked.run.stage("simpo") / "adapter/actor/3/model_params").write_text("simpo")
    assert ask("grpo", **before["grpo"]), "its manifest says that its input has changed"
    assert asked.run.budget.shares == {"grpo": 0.6}, "no time is kept for SimPO, which does not come any more"
    assert ask("simpo", **before["simpo"])
    steps(asked.run, "grpo", 3, 4)
    assert asked.run.is_done("simpo") and not asked.run.is_done("grpo") and asked.run.resumes("grpo")
    assert not ask("simpo", **before["simpo"]), "GRPO has begun with what it left"


def test_a_file_that_is_mounted_elsewhere_is_the_same_data(asked, tmp_path):
    """Kaggle mounts inputs in other places than a year ago."""
    one, two = tmp_path / "q/mine.csv", tmp_path / "datasets/me/q/mine.csv"
    for path in (one, two):
        path.parent.mkdir(parents=True)
        path.write_text("question,answer\n1+1?,2\n")
    made(asked.run, asked.run.data_recipe(str(one)))
    assert asked.run.data_is_made(asked.run.data_recipe(str(two)))
    two.write_text("question,answer\n1+1?,3\n")
    assert not asked.run.data_is_made(asked.run.data_recipe(str(two)))


def test_the_traces_are_those_of_this_run(asked, tmp_path):
    """They were read from ./artifacts, whichever folder the run was in. A recipe with a teacher also reads them before
    a file of one's own, which has answers and no solutions."""
    file, traces = tmp_path / "mine.csv", asked.run.folder / "teacher/traces.jsonl"
    file.write_text("question,answer\n1+1?,2\n")
    taught = replace(asked.run, recipe=find_recipe("gemmatron"))
    kinds = [(source.kind_of, source.path) for source in taught.data_recipe(str(file)).sources]
    assert kinds == [("teacher", str(traces)), ("file", str(file))]
    assert [source.kind_of for source in asked.run.data_recipe(str(file)).sources] == ["file"]
    assert [getattr(source, "path", "") for source in taught.data_recipe("").sources] == [str(traces), ""]
    first, *others = taught.data_recipe("packaged").sources  # a mix without traces, where those with them fail
    assert first.path == str(traces) and others == asked.run.data_recipe("packaged").sources
    assert not taught.data_recipe("tiny_mix").sources, "families alone"


@pytest.mark.parametrize("data", ["", "mine.csv"])
def test_data_whose_teacher_left_nothing_go_on_without_it_and_say_so(asked, data, tmp_path, monkeypatch):
    """A key that was refused in notebook 1b used to end the session. Traces that are lost still do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("question,answer\n1+1?,2\n")
    taught, folder = replace(asked.run, recipe=find_recipe("gemmatron")), asked.run.folder / "teacher"
    told = ", WITHOUT a teacher's solutions: notebook 1b kept none"
    for left, file, reads in ((0, False, False), (0, True, True), (3, False, True)):
        taught.finish("teacher", inputs={}, metrics={"traces": left}, minutes=1.0)
        (folder / "traces.jsonl").unlink(missing_ok=True)
        if file:
            (folder / "traces.jsonl").touch()
        found = taught.data_recipe(data)
        assert ("teacher" in {source.kind_of for source in found.sources}, told not in found.title) == (reads, reads)
        assert len(found.sources) == 1 + reads


@pytest.mark.parametrize("changed", ["train", "validation", "test"])
@pytest.mark.parametrize("stage", ["data", "sft", "grpo", "evaluation"])
def test_data_changed_since_notebook_1_is_told_by_every_later_notebook(asked, stage, changed):
    """Also where the stage itself did not read that file."""
    run, paths = asked.run, {}
    for name in problems.SPLITS:
        paths[name] = run.stage("data") / f"{name}.parquet"
        paths[name].write_text("{}\n")
    run.finish("data", inputs=paths, metrics={}, minutes=0.1)
    if stage != "data":
        run.finish(stage, inputs={}, metrics={}, minutes=0.1)
    run.manifest(stage)
    paths[changed].write_text("{}\n{}\n")
    with pytest.raises(ManifestError, match=f"{paths[changed]} has changed since stage 'data' was finished with it: "
                                            r"put the old one back, or run notebook 01 \(01_data_curation\) first"):
        run.manifest(stage)


def test_a_manifest_without_its_figures_is_read_back_all_the_same(asked, capsys):
    assert sft(asked)
    finish(asked, "sft", 3, stopped="hand")
    path = asked.run.stage("sft") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["metrics"], manifest["extra"]["settings"] = {}, {}
    path.write_text(json.dumps(manifest))
    assert not sft(asked)
    assert "and read back, nobody knows how many steps, ended by nobody knows what" in capsys.readouterr().out


def test_differences_go_both_ways_and_down():
    assert differences({"a": {"b": 1, "c": None}}, {"a": {"b": 1.0}, "d": []}) == [
        "a.c: None then, absent now", "d: absent then, [] now"]
    assert differences({"a": 1}, {"a": {"b": 2}}) == ["a: 1 then, {'b': 2} now"]
    settings = vars(PROFILES["cpu"].grpo)
    assert differences(json.loads(json.dumps(settings)), settings) == []


KERNEL = """
import gc, os, sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell

LOAD = '''
policy = None
run = open_run("smoke", "g_rar", 0, folder)
freed = sum(array.nbytes for array in jax.live_arrays())
policy = new_policy(init_random(CONFIG, mesh), mesh, tokenizer)
'''
TRAIN = '''
sft(policy, mesh, ROWS, SFT, TimeBudget(1, 0), RunLog(folder / "log.jsonl"), folder / "checkpoints", 3,
    on_step=lambda: os.kill(os.getpid(), signal.SIGINT))
'''
shell = InteractiveShell()
shell.user_ns["folder"] = Path(sys.argv[1])
shell.user_ns["folder"].mkdir()
assert shell.run_cell('''
import jax, os, signal
from fault_run import *
from tiny_run import short_tokenizer
from reasonkit.config import PROFILES
from reasonkit.data import problems as data
from reasonkit.run import open_run
from reasonkit.models.mesh import make_mesh
jax.config.update("jax_num_cpu_devices", 8)
mesh = make_mesh(jax.devices()[:1], 1, 1)
tokenizer = short_tokenizer(folder)
''').success
shell.run_cell(LOAD).raise_error()
empty = shell.user_ns["freed"]
for _ in range(2):
    stopped = shell.run_cell(TRAIN)
    assert isinstance(stopped.error_in_exec, KeyboardInterrupt), stopped
    del stopped
    held = sum(array.nbytes for array in shell.user_ns["jax"].live_arrays())
    shell.run_cell(LOAD).raise_error()
    print(empty, held, shell.user_ns["freed"])
"""


@pytest.mark.slow
def test_run_all_after_a_stop_begins_with_an_empty_chip(tmp_path, compiled_by_all):
    """IPython keeps the last traceback, and with it the frames of the stage: policy, trainer and moments."""
    done = subprocess.run([sys.executable, "-c", KERNEL, tmp_path / "run"], check=False, capture_output=True, text=True,
                          env={**os.environ, "IPYTHONDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(
                              [str(TESTS), str(TESTS.parent)])})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for line in [line for line in done.stdout.splitlines() if line.replace(" ", "").isdigit()][-2:]:
        empty, held, freed = map(int, line.split())
        assert held - empty > 200_000 and freed - empty < 1000, line


def before():
    def reward(prompts, completions, **columns):
        return [1.0] * len(prompts)
    return reward


def after():
    def reward(prompts, completions, **columns):
        return [2.0] * len(prompts)
    return reward


def test_an_edited_reward_has_another_hash():
    """Its name is the same; so it is within a gate."""
    assert code_sha256([before()]) == code_sha256([before()]) != code_sha256([after()])
    one, same, other = (code_sha256([gate(made(), tag_format)]) for made in (before, before, after))
    assert one == same != other
