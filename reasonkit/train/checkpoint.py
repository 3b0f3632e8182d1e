"""The steps in a run's checkpoints: one more for a stage that ends, one set aside because it is damaged.

The layout is the judges': `actor/<step>/model_params`. What is set aside stays beside it, under another name.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from tunix.sft import checkpoint_manager

from reasonkit.models.distributed import on_main_process
from reasonkit.models.gemma import array_metadata, finite
from reasonkit.models.lora import OtherAdapterError, check_shape, steps_in, strays


def checkpoint_options(save_every: int, keep: int) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(save_interval_steps=save_every, max_to_keep=keep)


def save_for_next_stage(model, checkpoints: Path, step: int) -> None:
    """Save the adapter alone as the next step: the following stage starts from it with a fresh optimiser state."""
    manager = checkpoint_manager.CheckpointManager(str(checkpoints.resolve() / "actor"), checkpoint_options(1, 3))
    manager.save(step, model, save_only_lora_params=True, force=True)
    manager.close()


@on_main_process
def undo_handover(checkpoints: Path, start_step: int) -> None:
    """Undo a stage's own `save_for_next_stage`: one that the clock ended goes on from its last step with optimiser
    state."""
    step, actor = latest_step(checkpoints), checkpoints / "actor"
    before, last = ((actor / str(number) / "optimizer_state").is_dir() for number in (step - 1, step))
    if step > start_step and before and not last:
        shutil.rmtree(quarantine_step(checkpoints, step, "copy"))


@on_main_process
def leave_out_optimiser(checkpoints: Path, step: int) -> None:
    """Keep the adapter of a step alone: the stage that begins there would go on with the last one's moments."""
    state = checkpoints / "actor" / str(step) / "optimizer_state"
    if state.is_dir():
        aside = checkpoints / f"{step}.optimizer_state"
        shutil.rmtree(aside, ignore_errors=True)  # left by a kill
        shutil.rmtree(state.rename(aside))


def quarantine_step(checkpoints: Path, step: int | str, why: str) -> Path:
    """Move a step, or what is named like one, out of everyone's way, at once: nothing there is loaded."""
    target = checkpoints / "set_aside" / f"{step}-{why}"
    shutil.rmtree(target, ignore_errors=True)
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    return (checkpoints / "actor" / str(step)).rename(target)


@on_main_process
def quarantine_damaged(checkpoints: Path, model) -> None:
    """Set aside what is named like a step and is none, and the last steps that are damaged, hold NaN or an adapter of
    another shape, so that the last good one is the last. A warning names each.

    Raises OtherAdapterError, and sets no step aside, when that is all there is: it is another run's.
    """
    actor, bad = checkpoints.resolve() / "actor", {}
    for path in strays(actor):
        taken = path.name.strip().isdigit()
        where = f"it is now {quarantine_step(checkpoints, path.name, 'stray')}" if taken else "nothing there is read"
        warnings.warn(f"{path} is no step: {where}", stacklevel=2)
    for step in reversed(steps_in(actor)):
        try:
            _check(actor / str(step), model)
            break
        except Exception as error:  # noqa: BLE001 - orbax and its storage raise what they like on damaged files
            bad[step] = error.with_traceback(None)
    else:
        for error in bad.values():
            if isinstance(error, OtherAdapterError):
                raise error
    for step, error in bad.items():
        moved = quarantine_step(checkpoints, step, "damaged")
        warnings.warn(f"step {step} in {checkpoints} is damaged, the one before is used; it is now {moved} "
                      f"({type(error).__name__}: {str(error)[:200]})", stacklevel=2)


def _check(folder: Path, model) -> None:
    """Read a step as the judges' loader does, whatever devices it was saved from. Raises when the model's adapter
    cannot go on from it."""
    here = ocp.ArrayRestoreArgs(sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    # waits for no other process
    alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="mend")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        for item in ("model_params", "optimizer_state"):
            if item == "optimizer_state" and not (folder / item).exists():
                continue
            saved = array_metadata(checkpointer, folder / item)
            if item == "model_params":
                check_shape(saved, model, folder / item)
            args = jax.tree.map(lambda _: here, saved)
            if not finite(checkpointer.restore(folder / item, restore_args=args)):
                raise ValueError(f"{item} holds infinities or NaN")


def check_steps(checkpoints: Path, start_step: int, steps: int, model) -> None:
    """Sets damaged steps aside. Raises ValueError when the last is none of this stage's: Tunix would resume from it;
    as `quarantine_damaged`, too."""
    quarantine_damaged(checkpoints, model)
    step = latest_step(checkpoints)
    if not start_step <= step <= start_step + steps:
        raise ValueError(f"{checkpoints} is at step {step}, and this stage goes from step {start_step} to "
                         f"{start_step + steps}: give it the step that was handed over, or another folder")


def latest_step(checkpoints: Path) -> int:
    """The highest step saved in the judges' layout, 0 when there is none."""
    return max(steps_in(checkpoints / "actor"), default=0)
