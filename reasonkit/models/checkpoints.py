"""Checkpoints in the judges' layout, <folder>/actor/<step>/model_params: saved, restored, and set aside when damaged.

The judges take the highest number, so a step appears complete or not at all. Tunix's trainers save `optimizer_state`
beside the adapter. Damaged steps go to <folder>/set_aside.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from reasonkit.models.distributed import barrier, broadcast_from_main, is_main_process, on_main_process
from reasonkit.models.gemma import array_metadata, finite
from reasonkit.models.lora import lora_signature, lora_state
from reasonkit.session.files import DiskFullError

PARAMS, OPTIMISER = "model_params", "optimizer_state"
# Names that a save in progress gives to its folders, and hidden files
_UNFINISHED = re.compile(r"\d+\.(saving|replaced)|.*\.orbax-checkpoint-tmp.*|\..*")


class OtherAdapterError(ValueError):
    """A checkpoint holds an adapter of another shape than the model's."""


def actor(folder: str | Path) -> Path:
    """Where the steps lie. Tunix's SFT trainer takes this folder, its RL cluster the one above."""
    return Path(folder).resolve() / "actor"


def checkpoint_options(save_every: int, keep: int) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(save_interval_steps=save_every, max_to_keep=keep)


def steps_in(folder: str | Path) -> list[int]:
    """The steps saved in a folder, in order. First puts back a step that a killed `save_lora` had moved away."""
    for moved in actor(folder).glob("*.replaced"):
        with contextlib.suppress(OSError):  # the new one is there, or another process was quicker
            moved.rename(moved.with_suffix(""))
    return sorted(int(path.name) for path in actor(folder).glob("*") if _is_step(path))


def latest_step(folder: Path) -> int:
    """0 when there is none."""
    return max(steps_in(folder), default=0)


def next_step(folder: Path) -> int:
    """Where the next adapter goes: it replaces the last step, unless a stage could resume from that."""
    step = latest_step(folder)
    return step + (actor(folder) / str(step) / OPTIMISER).is_dir()


def strays(folder: str | Path) -> list[Path]:
    """What lies among the steps and is neither a step nor part of a save. The judges' loader takes any name for a step
    that `str.isdigit` calls a number: "007", "²", a file's, a link's."""
    return sorted(path for path in actor(folder).glob("*")
                  if not _is_step(path) and not _UNFINISHED.fullmatch(path.name))


def _is_step(path: Path) -> bool:
    name = path.name
    return name.isascii() and name.isdigit() and name == str(int(name)) and path.is_dir() and not path.is_symlink()


def save_lora(model: nnx.Module, folder: str | Path, step: int) -> Path:
    """Saves the adapter as a step, replacing the same step. A kill at any moment leaves the old step or the new one.

    Raises ValueError for no adapter, a negative step, or a later step there, which the judges would read instead.
    """
    lora, steps = lora_state(model), actor(folder)
    later = [other for other in steps_in(folder) if other > step]
    if step < 0 or later:
        raise ValueError(f"step {step} cannot be saved in {steps}, which has {later}: go on counting, or empty it")
    staging, before, final = (steps / f"{step}{end}" for end in (".saving", ".replaced", ""))
    if is_main_process():
        shutil.rmtree(staging, ignore_errors=True)
    barrier("save_lora")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(staging / PARAMS, lora)
        checkpointer.wait_until_finished()
    if is_main_process():
        shutil.rmtree(before, ignore_errors=True)
        if final.is_dir():
            os.rename(final, before)
        os.rename(staging, final)
        shutil.rmtree(before, ignore_errors=True)
    barrier("save_lora")
    return final


def restore_lora(model: nnx.Module, folder: str | Path, step: int | None = None) -> int:
    """Restores the adapter of a step, by default the last good one. Returns the step.

    It stays float32. One saved in bfloat16 is widened, which is exact. Warnings name the `strays` and the later steps
    that are skipped because they are damaged, of another shape or hold NaN.

    Raises:
        FileNotFoundError: no such step, or no step at all.
        ValueError: no adapter to restore into, or none in the checkpoint that is whole, finite and of the same shape.
    """
    lora_state(model)
    steps, skipped = steps_in(folder), {}
    for chosen in reversed(steps) if step is None and steps else [step]:
        path = actor(folder) / str(chosen) / PARAMS
        if not path.is_dir():
            skipped[chosen] = FileNotFoundError(f"{path} is not there; {actor(folder)} has the steps {steps}: train "
                                                "first, or fix the path")
            continue
        try:
            nnx.update(model, _read(path, model))
            break
        except ValueError as error:
            skipped[chosen] = error
    else:
        raise next(iter(skipped.values()))
    for path in strays(folder) if step is None else ():
        warnings.warn(f"{path} is no step, and is passed over", stacklevel=2)
    for later, error in skipped.items():
        warnings.warn(f"step {later} of {actor(folder)} is passed over, step {chosen} is used: {error}", stacklevel=2)
    return chosen


def _read(path: Path, model: nnx.Module) -> nnx.State:
    """The adapter in a step, placed as the model's. Raises ValueError as `restore_lora` does."""
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, lora_state(model))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            # Compared first, because orbax notices a wrong shape late and leaves its other reads running.
            _check_shape(array_metadata(checkpointer, path), model, path)
            found = checkpointer.restore(path, target)
    except OtherAdapterError:
        raise
    except Exception as error:  # orbax and its storage raise many kinds of errors on damaged files
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}): delete that step, or run "
                         "the stage again") from error
    if not finite(found):
        raise ValueError(f"{path} holds an adapter of infinities or NaN: delete that step, or run the stage again")
    return found


def _check_shape(saved: Any, model: nnx.Module, path: Path) -> None:
    found, ours = (sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree)) for tree in (saved, lora_state(model)))
    if found != ours:
        raise OtherAdapterError(f"{path} holds an adapter of another shape than {lora_signature(model)}: "
                                f"{len(found)} arrays, the smallest {found[:1]}, for {len(ours)}, the smallest "
                                f"{ours[:1]}")


@on_main_process
def undo_handover(folder: Path, start_step: int) -> None:
    """Remove the step that a stage saved for the next one, so that it can go on from its own, with optimiser state."""
    step = latest_step(folder)
    before, last = ((actor(folder) / str(number) / OPTIMISER).is_dir() for number in (step - 1, step))
    if step > start_step and before and not last:
        shutil.rmtree(quarantine_step(folder, step, "copy"))


@on_main_process
def drop_optimiser_state(folder: Path, step: int) -> None:
    """Keep only a step's adapter, or the stage that begins there would take over the last stage's moments."""
    state = actor(folder) / str(step) / OPTIMISER
    if state.is_dir():
        aside = folder / f"{step}.optimizer_state"
        shutil.rmtree(aside, ignore_errors=True)  # left by a kill
        shutil.rmtree(state.rename(aside))


def quarantine_step(folder: Path, step: int | str, why: str) -> Path:
    """Move a step, or a file that is named like one, to set_aside at once. Nothing loads from there."""
    target = folder / "set_aside" / f"{step}-{why}"
    shutil.rmtree(target, ignore_errors=True)
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    return (actor(folder) / str(step)).rename(target)


def quarantine_diverged(folder: Path, since: int) -> str:
    """Set aside the steps from `since` on, if there is an older one. Says what is left."""
    steps = steps_in(folder)
    good = [step for step in steps if step < since]
    for step in steps[len(good):] if good and is_main_process() else ():
        quarantine_step(folder, step, "diverged")
    return f"Step {good[-1]} is the last good one" if good else "No step before it was saved"


@on_main_process
def quarantine_damaged(folder: Path, model: nnx.Module) -> None:
    """Set aside strays named like a step, then bad steps from the last one back to a good one. A warning names each.

    A step is bad if it is damaged, holds NaN or an adapter of another shape. If all are bad and one has another shape,
    they are another run's: raises OtherAdapterError, and sets no step aside.
    """
    bad: dict[int, Exception] = {}
    for path in strays(folder):
        taken = path.name.strip().isdigit()
        where = f"it is now {quarantine_step(folder, path.name, 'stray')}" if taken else "nothing there is read"
        warnings.warn(f"{path} is no step: {where}", stacklevel=2)
    for step in reversed(steps_in(folder)):
        try:
            _check(actor(folder) / str(step), model)
            break
        except Exception as error:  # noqa: BLE001 - orbax and its storage raise many kinds of errors
            bad[step] = error.with_traceback(None)
    else:
        for error in bad.values():
            if isinstance(error, OtherAdapterError):
                raise error
    for step, error in bad.items():
        moved = quarantine_step(folder, step, "damaged")
        warnings.warn(f"step {step} in {folder} is damaged, the one before is used; it is now {moved} "
                      f"({type(error).__name__}: {str(error)[:200]})", stacklevel=2)


def _check(step: Path, model: nnx.Module) -> None:
    """Read a step onto one device, whatever devices saved it. Raises if the model's adapter cannot continue from it."""
    here = ocp.ArrayRestoreArgs(sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    # waits for no other process
    alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="quarantine")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        for item in (PARAMS, OPTIMISER) if (step / OPTIMISER).exists() else (PARAMS,):
            saved = array_metadata(checkpointer, step / item)
            if item == PARAMS:
                _check_shape(saved, model, step / item)
            args = jax.tree.map(lambda _: here, saved)
            if not finite(checkpointer.restore(step / item, restore_args=args)):
                raise ValueError(f"{item} holds infinities or NaN")


def make_room(folder: Path, needed: float, delete: Callable[[int], None]) -> None:
    """Make room for `needed` bytes: remove what was set aside, then `delete` all steps but the last. Raises
    DiskFullError if that is not enough."""
    place, steps = actor(folder), steps_in(folder)
    place.mkdir(parents=True, exist_ok=True)

    def free() -> float:
        return broadcast_from_main(shutil.disk_usage(place).free)

    if free() < needed and is_main_process():
        shutil.rmtree(folder / "set_aside", ignore_errors=True)
    while (left := free()) < needed:
        if len(steps) < 2:
            raise DiskFullError(f"a checkpoint needs {needed / 1e6:.0f} MB in {place}, and {left / 1e6:.0f} MB are "
                                f"free: step {steps[-1] if steps else 'none'} is kept; delete what is not needed, and "
                                "run the stage again")
        delete(steps.pop(0))
