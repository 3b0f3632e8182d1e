"""Where a stage begins: `begin` puts the adapter that it starts from into memory, the same one whenever it goes on.

Tunix trains the adapter that is in memory and resumes from the highest step there is, whoever made it. So a copy of
each stage's first adapter is kept in <checkpoints>/begun/<stage>, because orbax deletes the step that was handed over
once it has newer ones, and steps that another stage made are refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from flax import nnx

from reasonkit.models.distributed import on_main_process
from reasonkit.models.lora import restore_lora, save_lora
from reasonkit.train import checkpoint

BEGUN = "begun"


def begin(model: nnx.Module, checkpoints: Path, stage: str, start_step: int, steps: int) -> None:
    """Put the adapter with which `stage` begins into `model`: that of `start_step`; at step 0, which has none, the one
    in memory when the stage began for the first time. Its own later steps stay, for the trainer to resume from.

    Raises ValueError when the checkpoints are not at a step of this stage, or later steps are not its own.
    """
    own = checkpoints / BEGUN / stage
    copied = (own / "actor" / str(start_step)).is_dir()
    if copied:
        checkpoint.undo_handover(checkpoints, start_step)
    if copied and checkpoint.latest_step(checkpoints) < start_step:  # the steps were deleted, to train the stage anew
        restore_lora(model, own, start_step)
        checkpoint.save_for_next_stage(model, checkpoints, start_step)
    checkpoint.check_steps(checkpoints, start_step, steps, model)
    latest, handed = checkpoint.latest_step(checkpoints), checkpoints / "actor" / str(start_step)
    for other, began in _begun(checkpoints).items():
        if other != stage and start_step < began <= latest:
            raise ValueError(f"stage {other!r} began at step {began} of {checkpoints}, and stage {stage!r}, which "
                             "comes before it, would resume from its steps: start anew in another folder")
    if latest > start_step and not copied:
        raise ValueError(f"{checkpoints} is at step {latest}, and stage {stage!r} has not begun at step {start_step} "
                         f"there: these steps are another stage's. Give it the step that was handed over, or another "
                         "folder")
    if latest == start_step and handed.is_dir():
        restore_lora(model, checkpoints, start_step)
    elif copied:
        restore_lora(model, own, start_step)
    if latest == start_step:
        _forget(checkpoints, start_step)
        save_lora(model, own, start_step)
        checkpoint.leave_out_optimiser(checkpoints, start_step)


def has_steps(checkpoints: Path, stage: str) -> bool:
    """Whether there are steps that the stage, asked for again, would resume from."""
    began = _begun(checkpoints).get(stage)
    return began is not None and checkpoint.latest_step(checkpoints) > began


def _begun(checkpoints: Path) -> dict[str, int]:
    """Each stage that has a copy, and the step at which it began."""
    copies = (actor.parent for actor in (checkpoints / BEGUN).glob("*/actor"))
    return {copy.name: checkpoint.latest_step(copy) for copy in copies}


@on_main_process
def _forget(checkpoints: Path, start_step: int) -> None:
    """Delete the copies of stages of which no step is left."""
    for stage, began in _begun(checkpoints).items():
        if began >= start_step:
            shutil.rmtree(checkpoints / BEGUN / stage)
