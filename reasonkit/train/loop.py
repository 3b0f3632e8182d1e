"""Training with nothing lost: what stands around Tunix's loop in every stage.

A loss that is no number, or beyond `LOSS_LIMIT`, ends the stage; weights that are not finite are never saved. A save
has room on the disk before it begins. A signal ends the stage at a step's boundary, and a hung step too (`session`).
Each step has one row in the log, also after a kill, and the learning rate comes to its end with the time.

Tunix reports a step only after the next one, which may be after its save; here a save reports first. It looks at no
loss at all.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
from flax import nnx
from tunix.sft import hooks

from reasonkit.models import distributed
from reasonkit.models.lora import finite, steps_in
from reasonkit.session.files import DiskFullError
from reasonkit.session.interrupts import Watchdog, clean_exit
from reasonkit.session.time_budget import TimeBudget
from reasonkit.train import checkpoint, tunix_compat

LOSS_LIMIT = 100.0  # nats per token: to guess among Gemma's 262,144 tokens costs 12.5
ROOM = 1.2  # bytes on disk for each byte of a checkpoint: its files, and what the log writes meanwhile


class DivergedError(RuntimeError):
    """A loss or a weight that is no number, or far from all sense: the weights from step `since` on are bad."""

    def __init__(self, message: str, since: int):
        super().__init__(message)
        self.since = since


class _Steps(hooks.TrainingHooks):
    """One row a step in the run log: loss, seconds, and what `extra(ctx, step)` adds.

    Hooks, not a metrics backend: Tunix's backends listen globally and are never removed, so the log of a stage that is
    over would go on receiving the scalars of the next.
    """

    def __init__(self, log, event: str, first_step: int, steps: int, budget: TimeBudget,
                 extra: Callable[[object, int], dict], on_step: Callable[[], None], summed: int):
        self._log, self._event, self._first, self._steps, self._budget = log, event, first_step, steps, budget
        self._extra, self._on_step, self._summed = extra, on_step, summed
        self._last, self._stretch = time.perf_counter(), math.nan  # a resumed optimiser has that of its last session

    def on_train_step_start(self, train_ctx):
        """Fit the schedule to the steps that there is time for; a run with time for all keeps the factor 1."""
        done, left = train_ctx.train_steps - self._first, distributed.broadcast_from_main(self._budget.steps_left)
        reached = self._steps if left >= self._steps - done else done + max(1, int(left))
        if self._steps / reached != self._stretch:
            self._stretch = self._steps / reached
            tunix_compat.scale_schedule(train_ctx, self._stretch)

    def on_train_step_end(self, train_ctx, train_step, train_loss):
        now, loss = time.perf_counter(), float(train_loss)
        step = int(train_step) - self._first
        self._log.write(self._event, step=step, loss=loss, seconds=now - self._last, **self._extra(train_ctx, step))
        self._last = now
        if not abs(loss) <= LOSS_LIMIT * self._summed:
            raise DivergedError(f"{self._event} {step}: the loss is {loss:g}", since=int(train_step) - 1)
        self._on_step()

    def on_train_start(self, train_ctx):
        pass

    def on_train_end(self, train_ctx):
        pass

    def on_eval_step_start(self, train_ctx):
        pass

    def on_eval_step_end(self, train_ctx, eval_loss):
        pass


def check_room(checkpoints: Path, needed: float, delete: Callable[[int], None]) -> None:
    """Make room for `needed` bytes: `delete` all steps but the last. Raises DiskFullError when that is not enough."""
    actor = checkpoints / "actor"
    actor.mkdir(parents=True, exist_ok=True)
    steps = steps_in(actor)
    if distributed.broadcast_from_main(shutil.disk_usage(actor).free) < needed and distributed.is_main_process():
        shutil.rmtree(checkpoints / "set_aside", ignore_errors=True)
    while (free := distributed.broadcast_from_main(shutil.disk_usage(actor).free)) < needed:
        if len(steps) < 2:
            raise DiskFullError(f"a checkpoint needs {needed / 1e6:.0f} MB in {actor}, and {free / 1e6:.0f} MB are "
                                f"free: step {steps[-1] if steps else 'none'} is kept; delete what is not needed, and "
                                "run the stage again")
        delete(steps.pop(0))


def _keep_good(checkpoints: Path, since: int) -> str:
    """Set aside the steps from `since` on, if there is an older one; says what is left."""
    steps = steps_in(checkpoints / "actor")
    good = [step for step in steps if step < since]
    for step in steps[len(good):] if good and distributed.is_main_process() else ():
        checkpoint.quarantine_step(checkpoints, step, "diverged")
    return f"Step {good[-1]} is the last good one" if good else "No step before it was saved"


@contextlib.contextmanager
def resilient_training(trainer, budget: TimeBudget, log, stage: str, checkpoints: Path, first_step: int, steps: int,
         extra: Callable[[object, int], dict] = lambda ctx, step: {}, on_step: Callable[[], None] = lambda: None,
         summed: int = 1) -> Iterator[Callable[[Iterator], Iterator]]:
    """Around a stage's training; gives the guard for its batches, and ends with the last step saved.

    `trainer` is Tunix's, as it resumed; the stage goes from `first_step` over `steps` steps, and a row "<stage>_step"
    of the log is written at each, with what `extra(trainer, step)` adds. `summed` is how many tokens a loss adds up, 1
    for a mean over them. Raises DivergedError, DiskFullError and StageHung with the last good checkpoint kept. A signal
    comes again after the save: the stage is not handed over.
    """
    manager, begun, ending = trainer.checkpoint_manager, trainer.train_steps, contextlib.ExitStack()
    save, event = manager.save, f"{stage}_step"

    def checked_save(step, model, optimizer, force=False, **options):
        if not force and not tunix_compat.should_save(trainer, step):
            return False
        tunix_compat.report_step(trainer)  # looks at the loss of this step, and has its row in the log, before the save
        adapter = nnx.state(model, nnx.LoRAParam)
        if not finite(adapter):
            raise DivergedError(f"{event} {step - first_step}: the adapter has weights that are no numbers", since=step)
        tunix_compat.wait_for_saves(trainer)  # as orbax would: the step before counts too
        leaves = jax.tree.leaves((adapter, nnx.state(optimizer, nnx.optimizer.OptState)))
        check_room(checkpoints, ROOM * sum(leaf.nbytes for leaf in leaves), partial(tunix_compat.delete_step, trainer))
        return save(step, model, optimizer, force=force, **options)

    def numbered(batches: Iterator) -> Iterator:
        for number, batch in enumerate(batches, begun - first_step + 1):
            log.step = number
            yield batch
        ending.enter_context(budget.timed("save"))  # what is in flight, and the last save

    manager.save = checked_save
    tunix_compat.hide_progress_bar(trainer)
    trainer.with_training_hooks(_Steps(log, event, first_step, steps, budget, extra, on_step, summed))
    log.write("start", stage=stage, step=begun - first_step)
    dog = Watchdog(lambda: budget.pulse, checkpoints / f"hung_{stage}{jax.process_index() or ''}.txt")
    try:
        with clean_exit(budget.end, lambda: dog.hung), dog:
            try:
                yield lambda rest: numbered(budget.guard(rest, stage, first_step + steps - begun))
                ending.close()
            except BaseException:
                manager.close()  # waits for a save under way
                raise
    except DivergedError as error:
        raise DivergedError(f"{error}. {_keep_good(checkpoints, error.since)} in {checkpoints}. Lower learning_rate or "
                            "clip, or look at the data of that step, and run the stage again", error.since) from error
    log.step = None  # not after an error: what a thread left behind still writes is of a step that is done again
