"""What may lie in a run's checkpoints that is no good step: the last good one is used, and the rest is named."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from tiny_gemma import bump, small_config

from reasonkit.models import checkpoints, submission_check
from reasonkit.models.checkpoints import OtherAdapterError, restore_lora, save_lora, steps_in, strays
from reasonkit.models.lora import add_lora, fingerprint, reference
from reasonkit.models.mesh import make_mesh
from reasonkit.train import loop
from tools.flax import init_random

pytestmark = [pytest.mark.usefixtures("compiled"),
              # tensorstore's threads end after orbax has given up on a damaged file, and find nobody to tell
              pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

# Python's isdigit and int, and orbax, each take something else for a number.
NAMES = ("²", "007", "07", "00", "٣", "９", "⑦", "12 ", " 12", "1_0", "+7", "-3", "7.5", "1e3", "Ⅶ", "a b", "notes.txt",
         "7 (copy)", "7-copy", "step_7")
KINDS = ("folder", "file", "link to a step", "link to nothing", "pipe")


@pytest.fixture(scope="module")
def base():
    return init_random(small_config(), make_mesh(jax.devices()[:1], 1, 1))


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """Steps 5 and 6 of an adapter that moved between them, and the fingerprints."""
    folder, model, prints = tmp_path_factory.mktemp("saved"), adapter(base), {}
    for step in (5, 6):
        bump(model)
        save_lora(model, folder, step)
        prints[step] = fingerprint(model)
    return folder, prints


@pytest.fixture
def steps(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "checkpoints")


made = {}


def adapter(base, rank=2):
    """A fresh one, traced once."""
    if rank not in made:
        made[rank] = add_lora(base, make_mesh(jax.devices()[:1], 1, 1), rank, 8.0)
    return reference(made[rank])


def put(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("7")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("5" if kind == "link to a step" else "/nowhere")


def said(work):
    """What `work` gives, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = work()
    return found, [str(warning.message) for warning in caught if warning.category is UserWarning]


def judges_step(checkpoints):
    return max(int(name) for name in os.listdir(checkpoints / "actor") if name.isdigit())


@pytest.mark.parametrize(("name", "kind"), [
    *((name, kind) for name in NAMES for kind in ("folder", "file")),
    *(("9", kind) for kind in KINDS if kind != "folder"), *(("²", kind) for kind in KINDS[3:])])
def test_what_is_no_step_is_named_and_the_last_step_is_used(name, kind, base, saved, steps):
    path, model = steps / "actor" / name, adapter(base)
    put(path, kind)
    assert steps_in(steps) == [5, 6] and checkpoints.latest_step(steps) == 6
    assert strays(steps) == [path]
    found, warned = said(lambda: restore_lora(model, steps))
    assert found == 6 and fingerprint(model) == saved[1][6] and warned == [f"{path} is no step, and is passed over"]
    _, warned = said(lambda: loop.begin(model, steps, "sft", 6, 3))
    (warned,) = warned
    assert warned.startswith(f"{path} is no step: ")
    assert judges_step(steps) == 6 and steps_in(steps) == [5, 6]
    if name.strip().isdigit():
        assert os.path.lexists(steps / f"set_aside/{name}-stray") and not os.path.lexists(path)
    else:
        assert os.path.lexists(path), "it harms nobody, and is the user's"


@pytest.mark.parametrize("name", ["6.saving", "7.saving", "7.orbax-checkpoint-tmp", ".DS_Store", ".ipynb_checkpoints"])
def test_a_saves_own_leftovers_are_not_worth_a_word(name, base, steps):
    (steps / "actor" / name).mkdir()
    assert said(lambda: restore_lora(adapter(base), steps)) == (6, [])
    assert said(lambda: checkpoints.quarantine_damaged(steps, adapter(base))) == (None, [])


@pytest.mark.parametrize(("name", "kind"), [("²", "folder"), ("007", "folder"), ("9", "file"), ("9", "link to a step")])
def test_what_the_judges_would_take_for_a_step_is_not_submitted(name, kind, steps):
    put(steps / "actor" / name, kind)
    refused = rf"actor holds \['{name}'\], which is no step, and the judges'"
    with pytest.raises(submission_check.SubmissionError, match=refused):
        submission_check.verify_submission(steps, "", [], model="", dtype="float32", rank=2, alpha=8.0,
                                           max_prompt_length=1, max_new_tokens=1)


# Half a step

PARTS = ("_METADATA", "_sharding", "array_metadatas/process_0", "manifest.ocdbt", "d")
DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "of other bytes": lambda path: path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes())),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("/nowhere")),
    "a link to a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


def instead(step, kind):
    """Something else in the place of the arrays."""
    shutil.rmtree(step / "model_params")
    put(step / "model_params", kind)


WHOLE = {"nothing in it": lambda step: (shutil.rmtree(step), step.mkdir()),
         "no model_params": lambda step: shutil.rmtree(step / "model_params"),
         "an empty model_params": lambda step: instead(step, "folder"),
         "a file as model_params": lambda step: instead(step, "file"),
         "a pipe as model_params": lambda step: instead(step, "pipe"),
         "a link as model_params": lambda step: instead(step, "link to nothing"),
         "an empty optimizer_state": lambda step: (step / "optimizer_state").mkdir(),
         "no _METADATA": lambda step: (step / "model_params/_METADATA").unlink(),
         "no manifest": lambda step: (step / "model_params/manifest.ocdbt").unlink()}


def part_of(step, name):
    """The file of that name; of the folder of numbers, the largest."""
    path = step / "model_params" / name
    return path if path.is_file() else max(path.iterdir(), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize(("part", "how"), [*((part, how) for part in PARTS for how in DAMAGE if part != "d" or
                                             how.startswith("a ")), *(("", how) for how in WHOLE)])
def test_half_a_step_is_set_aside_and_named(part, how, base, saved, steps):
    step, model = steps / "actor/6", adapter(base)
    WHOLE[how](step) if not part else DAMAGE[how](part_of(step, part))
    restored, warned = said(lambda: restore_lora(model, steps))
    if how != "an empty optimizer_state":
        assert restored == 5 and fingerprint(model) == saved[1][5]
        assert len(warned) == 1 and warned[0].startswith(f"step 6 of {steps}/actor is passed over, step 5 is used: ")
    _, warned = said(lambda: checkpoints.quarantine_damaged(steps, model))
    (warned,) = warned
    assert warned.startswith(f"step 6 in {steps} is damaged, the one before is used; it is now ")
    assert steps_in(steps) == [5] and (steps / "set_aside/6-damaged").is_dir()


@pytest.mark.parametrize("how", ["nothing in it", "no model_params", "no _METADATA"])
def test_damage_is_named_where_no_step_is_left(how, base, steps):
    for step in (5, 6):
        WHOLE[how](steps / "actor" / str(step))
    with pytest.raises((ValueError, FileNotFoundError), match=f"{steps}/actor/6/model_params is (damaged|not there)"):
        restore_lora(adapter(base), steps)
    _, warned = said(lambda: checkpoints.quarantine_damaged(steps, adapter(base)))
    assert len(warned) == 2 and checkpoints.latest_step(steps) == 0


def change(model, number, leaf):
    """One number of one of the adapter's arrays."""
    state = nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))
    path, chosen = sorted(state, key=lambda item: str(item[0]))[leaf]
    value = np.array(chosen.get_value())
    value.flat[-1] = number
    nnx.update(model, nnx.from_flat_state([(path, chosen.replace(jnp.asarray(value)))]))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("leaf", [0, 5, -1])
def test_an_adapter_of_no_numbers_is_passed_over(number, leaf, base, saved, steps):
    model = adapter(base)
    change(model, number, leaf)
    save_lora(model, steps, 7)
    restored, (warned,) = said(lambda: restore_lora(model, steps))
    assert restored == 6 and fingerprint(model) == saved[1][6] and "7/model_params holds an adapter of inf" in warned
    with pytest.raises(ValueError, match="7/model_params holds an adapter of infinities or NaN: delete that step, or"):
        restore_lora(model, steps, 7)
    _, (warned,) = said(lambda: checkpoints.quarantine_damaged(steps, model))
    assert steps_in(steps) == [5, 6] and "model_params holds infinities or NaN" in warned


def test_moments_of_no_numbers_are_not_gone_on_from(base, steps):
    for number, step in ((1.0, 7), (np.nan, 8)):
        save_lora(adapter(base), steps, step)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(steps / f"actor/{step}/optimizer_state", {"m": jnp.full(3, number), "n": jnp.int32(4)})
    _, (warned,) = said(lambda: checkpoints.quarantine_damaged(steps, adapter(base)))
    assert steps_in(steps) == [5, 6, 7] and "optimizer_state holds infinities or NaN" in warned


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_an_adapter_of_another_shape_is_passed_over(rank, base, saved, steps):
    save_lora(adapter(base, rank), steps, 7)
    model = adapter(base)
    restored, (warned,) = said(lambda: restore_lora(model, steps))
    assert restored == 6 and fingerprint(model) == saved[1][6]
    assert "7/model_params holds an adapter of another shape than {'rank': 2" in warned
    _, (warned,) = said(lambda: checkpoints.quarantine_damaged(steps, model))
    assert steps_in(steps) == [5, 6] and "another shape" in warned


def test_steps_that_are_all_of_another_shape_are_another_runs_and_stay(base, steps):
    other = adapter(base, 4)
    for work in (lambda: checkpoints.quarantine_damaged(steps, other), lambda: restore_lora(other, steps)):
        with pytest.raises(OtherAdapterError, match="6/model_params holds an adapter of another shape than"):
            work()
    assert steps_in(steps) == [5, 6] and not (steps / "set_aside").exists()


# A save of the same step

def killed_at(monkeypatch, name, call):
    """Lets the `call`-th of the calls of os.rename or shutil.rmtree that concern the step be the process's last."""
    seen, (owner, function) = [], {"rename": (checkpoints.os, os.rename),
                                   "rmtree": (checkpoints.shutil, shutil.rmtree)}[name]

    def dies(path, *args, **options):
        if Path(path).parent.name == "actor":
            seen.append(path)
            if len(seen) == call:
                raise KeyboardInterrupt
        return function(path, *args, **options)

    monkeypatch.setattr(owner, name, dies)


@pytest.mark.parametrize(("function", "call"), [("rmtree", 1), ("rmtree", 2), ("rename", 1), ("rename", 2),
                                                ("rmtree", 3)])
@pytest.mark.parametrize("alone", [True, False])
def test_a_save_of_the_same_step_killed_anywhere_leaves_a_step(function, call, alone, base, saved, steps, monkeypatch):
    model = adapter(base)
    if alone:
        shutil.rmtree(steps / "actor/5")
    bump(model, 0.7)
    new = fingerprint(model)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, function, call)
        save_lora(model, steps, 6)
    replaced = function == "rmtree" and call == 3
    for _ in range(2):
        assert steps_in(steps)[-1] == judges_step(steps) == 6
        assert restore_lora(model, steps) == 6 and fingerprint(model) == (new if replaced else saved[1][6])
    bump(model)
    save_lora(model, steps, 6)
    assert [path.name for path in sorted((steps / "actor").iterdir())][-1] == "6" and not strays(steps)
    assert not list((steps / "actor").glob("6.*"))


def test_an_optimisers_state_that_a_kill_left_is_no_obstacle(steps):
    (steps / "actor/6/optimizer_state").mkdir()
    (steps / "6.optimizer_state/old").mkdir(parents=True)
    checkpoints.drop_optimiser_state(steps, 6)
    assert not (steps / "6.optimizer_state").exists() and not (steps / "actor/6/optimizer_state").exists()
