"""What every stage does around Tunix's loop: `begin` and `train_stage`.

Tunix trains whatever adapter is in memory, resumes from the highest step it finds, and never looks at the loss. Here a
stage always begins with the same adapter and refuses steps of another stage. A failure ends it with the last good step.
Weights that are not finite are never saved, and every step has one log row, even after a kill.
"""

from __future__ import annotations

import contextlib
import gc
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh
from tunix.sft import hooks

from reasonkit.data.rows import TooFewRows
from reasonkit.models import checkpoints as store
from reasonkit.models import distributed
from reasonkit.models.gemma import finite
from reasonkit.rewards.mix import NoSignalError
from reasonkit.session.interrupts import Watchdog, clean_exit
from reasonkit.session.manifest import FAILED
from reasonkit.session.secrets import describe_error
from reasonkit.session.time_budget import BudgetError, TimeBudget
from reasonkit.train import tunix_compat

LOSS_LIMIT = 100.0  # nats per token: guessing among Gemma's 262,144 tokens costs 12.5
COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name of the event, with the program's as fun_name
ROOM = 1.2  # bytes on disk for each byte of a checkpoint, for its files and what the log writes meanwhile
BEGUN = "begun"  # <checkpoints>/begun/<stage> keeps each stage's first adapter, because orbax deletes old steps


@dataclass(frozen=True)
class StageResult:
    """What a training stage leaves behind: `steps` optimiser steps, and its adapter at `checkpoint_step` of the run's
    checkpoints. `stopped` is "data" (all steps done), "time" (the clock ended it), or FAILED and what failed."""

    steps: int
    checkpoint_step: int
    minutes: float
    stopped: str


def begin(model: nnx.Module, checkpoints: Path, stage: str, start_step: int, steps: int) -> None:
    """Load the adapter of `start_step`, with which `stage` begins, into `model`, and set damaged steps aside.

    It is the one in memory if the stage first begins at step 0 or without any checkpoints, as in a run of which only
    the adapters were copied. The trainer resumes from the stage's own later steps.

    Raises ValueError if the checkpoints are not at a step of this stage, or if later steps are not its own.
    """
    own = checkpoints / BEGUN / stage
    copied = start_step in store.steps_in(own)
    _check_later(checkpoints, stage, start_step, store.latest_step(checkpoints) - 1)  # before a step is removed
    if copied:
        store.undo_handover(checkpoints, start_step)
    if copied and store.latest_step(checkpoints) < start_step:  # the steps were deleted, to train the stage anew
        store.restore_lora(model, own, start_step)
        store.save_lora(model, checkpoints, start_step)
    elif start_step and not store.steps_in(checkpoints):
        store.save_lora(model, checkpoints, start_step)
    store.quarantine_damaged(checkpoints, model)
    latest = store.latest_step(checkpoints)
    if not start_step <= latest <= start_step + steps:
        raise ValueError(f"{checkpoints} is at step {latest}, and this stage goes from step {start_step} to "
                         f"{start_step + steps}: give it the step that was handed over, or another folder")
    _check_later(checkpoints, stage, start_step, latest)
    if latest > start_step and not copied:
        raise ValueError(f"{checkpoints} is at step {latest}, and stage {stage!r} has not begun at step {start_step} "
                         f"there: these steps are another stage's. Give it the step that was handed over, or another "
                         "folder")
    if latest == start_step and start_step in store.steps_in(checkpoints):
        store.restore_lora(model, checkpoints, start_step)
    elif copied:
        store.restore_lora(model, own, start_step)
    _forget(checkpoints, start_step if latest == start_step else latest + 1)
    if latest == start_step:
        store.save_lora(model, own, start_step)
        store.drop_optimiser_state(checkpoints, start_step)


def _check_later(checkpoints: Path, stage: str, start_step: int, latest: int) -> None:
    """Raises ValueError if a later stage began at one of the steps up to `latest`."""
    for other, began in _steps_at_begin(checkpoints).items():
        if other != stage and start_step < began <= latest:
            raise ValueError(f"stage {other!r} began at step {began} of {checkpoints}, and stage {stage!r}, which "
                             "comes before it, would resume from its steps: start anew in another folder")


def has_steps(checkpoints: Path, stage: str) -> bool:
    """Whether the stage, if asked for again, would resume from its own steps."""
    began = _steps_at_begin(checkpoints).get(stage)
    return began is not None and store.latest_step(checkpoints) > began


def _steps_at_begin(checkpoints: Path) -> dict[str, int]:
    return {copy.name: store.latest_step(copy) for copy in (checkpoints / BEGUN).glob("*")}


@distributed.on_main_process
def _forget(checkpoints: Path, step: int) -> None:
    """Delete the copies of stages that began at this step or a later one: they have no step of their own."""
    for stage, began in _steps_at_begin(checkpoints).items():
        if began >= step:
            shutil.rmtree(checkpoints / BEGUN / stage)


class DivergedError(RuntimeError):
    """A loss that is NaN or beyond LOSS_LIMIT, or a weight that is not finite. Steps from `since` on are bad."""

    def __init__(self, message: str, since: int):
        super().__init__(message)
        self.since = since


# These end a stage, but not the run: no time left when it begins, a judge that never answers (TimeoutError), and so on.
FAILURES = BudgetError, DivergedError, NoSignalError, TimeoutError, TooFewRows


def out_of_memory(error: Exception) -> str:
    """The error in words if it says that the chips ran out of memory, else ""."""
    full = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return describe_error(error) if full else ""


def end_failed(error: Exception, model: nnx.Module, checkpoints: Path, stage: str, start_step: int,
               minutes: float) -> StageResult:
    """What a stage leaves behind that failed: its last good step, or the adapter that it began with.

    So an unattended session goes on with what it has. Failures are FAILURES, and a device that is out of memory. Raises
    any other error again, and these too if the run has no adapter yet.
    """
    since = error.since if isinstance(error, DivergedError) else math.inf
    good = [step for step in store.steps_in(checkpoints) if start_step < step < since]
    # the others see the same loss and the same rows, but their clocks, judges and memory may not have failed
    alone = distributed.is_multiprocess() and not isinstance(error, DivergedError | TooFewRows)
    if alone or not (out_of_memory(error) or isinstance(error, FAILURES)) or not (good or start_step):
        raise error
    traceback.clear_frames(error.__traceback__)  # they hold arrays of the failed step
    gc.collect()
    store.restore_lora(model, checkpoints if good else checkpoints / BEGUN / stage, good[-1] if good else start_step)
    last = store.latest_step(checkpoints)
    if last > start_step:
        last += 1
        store.save_lora(model, checkpoints, last)
    why, late = describe_error(error), isinstance(error, BudgetError)
    goes_on = "its last good step" if good else "the adapter it began with"
    print(f"{stage} {'has no time left' if late else 'has failed'}, and the run goes on with {goes_on}. {why}",
          file=sys.stderr)
    return StageResult(good[-1] - start_step if good else 0, last, minutes, "time" if late else FAILED + why)


class _Steps(hooks.TrainingHooks):
    """One row per step in the run log: loss, seconds, what `extra` adds, and the seconds that programs took to compile.

    A metrics backend would also receive the next stage's scalars, because Tunix never removes its global listeners.
    """

    def __init__(self, log, event: str, first_step: int, steps: int, budget: TimeBudget, extra, on_step, summed: int,
                 most: int):
        self._log, self._event, self._first, self._steps, self._budget = log, event, first_step, steps, budget
        self._extra, self._on_step, self._summed, self._most = extra, on_step, summed, most
        self._last, self._stretch = time.perf_counter(), math.nan  # a resumed optimiser has that of its last session
        self._compiled: dict[str, float] = {}

    def on_compile(self, event: str, seconds: float, fun_name: str = "", **_) -> None:
        """JAX calls this for every duration that it measures."""
        if event == COMPILED:
            self._compiled[fun_name] = self._compiled.get(fun_name, 0.0) + seconds

    def on_train_step_start(self, train_ctx):
        """Fit the schedule to the steps that there is time for. A run with time for all keeps the factor 1."""
        done, left = train_ctx.train_steps - self._first, distributed.broadcast_from_main(self._budget.steps_left)
        if done and left == math.inf and not self._budget.grows:  # not known yet: the optimiser's own factor stays
            return
        most = self._steps if left == math.inf else self._most
        reached = most if left >= most - done else done + max(1, int(left))
        if self._steps / reached != self._stretch:
            self._stretch = self._steps / reached
            tunix_compat.scale_schedule(train_ctx, self._stretch)

    def on_train_step_end(self, train_ctx, train_step, train_loss):
        now, loss = time.perf_counter(), float(train_loss)
        step = int(train_step) - self._first
        compiled, self._compiled = self._compiled, {}
        self._log.write(self._event, step=step, loss=loss, seconds=now - self._last, **self._extra(train_ctx, step),
                        **({"compiled": compiled} if compiled else {}))
        self._last = now
        if not abs(loss) <= LOSS_LIMIT * self._summed:
            raise DivergedError(f"{self._event} {step}: the loss is {loss:g}", since=int(train_step) - 1)
        self._on_step()

    def on_train_start(self, *_):
        """Nothing, but Tunix's methods are all abstract."""

    on_train_end = on_eval_step_start = on_eval_step_end = on_train_start


@contextlib.contextmanager
def _resilient(trainer, budget: TimeBudget, log, stage: str, checkpoints: Path, first_step: int, steps: int, extra,
               on_step, summed: int, most: int) -> Iterator[Callable[[Iterator], Iterator]]:
    """Wraps `train_stage`'s training. It yields the guard for the stage's batches.

    A signal ends the stage between two steps, and is raised again after the last save. Raises DivergedError and
    DiskFullError, and keeps the last good checkpoint.
    """
    manager, begun, ending = trainer.checkpoint_manager, trainer.train_steps, contextlib.ExitStack()
    save, event, orbax = manager.save, f"{stage}_step", tunix_compat.orbax_manager(trainer)

    def checked_save(step, model, optimizer, force=False, **options):
        if not force and not orbax.should_save(step):
            return False
        tunix_compat.report_step(trainer)  # checks and logs this step's loss before the save
        adapter = nnx.state(model, nnx.LoRAParam)
        if not finite(adapter):
            raise DivergedError(f"{event} {step - first_step}: the adapter has weights that are no numbers", since=step)
        orbax.wait_until_finished()  # as its save would: the step before counts too
        leaves = jax.tree.leaves((adapter, nnx.state(optimizer, nnx.optimizer.OptState)))
        store.make_room(checkpoints, ROOM * sum(leaf.nbytes for leaf in leaves), orbax.delete)
        return save(step, model, optimizer, force=force, **options)

    def number_batches(batches: Iterator) -> Iterator:
        for number, batch in enumerate(batches, begun - first_step + 1):
            log.step = number
            watchdog.step_begins()
            yield batch
        ending.enter_context(budget.measure("save"))  # what is in flight, and the last save

    manager.save = checked_save
    tunix_compat.hide_progress_bar(trainer)
    rows = _Steps(log, event, first_step, steps, budget, extra, on_step, summed, most)
    trainer.with_training_hooks(rows)
    jax.monitoring.register_event_duration_secs_listener(rows.on_compile)
    log.write("start", stage=stage, step=begun - first_step, steps=most)
    watchdog = Watchdog(checkpoints / f"hung_{stage}{jax.process_index() or ''}.txt")
    try:
        with clean_exit(budget.end), watchdog:
            try:
                yield lambda rest: number_batches(budget.guard(rest, stage, first_step + steps - begun))
                ending.close()
            except BaseException:
                manager.close()  # waits for a save under way
                raise
            finally:
                with contextlib.suppress(AssertionError):  # Tunix's logger removes all listeners when it closes
                    jax.monitoring.unregister_event_duration_listener(rows.on_compile)
    except DivergedError as error:
        left = store.quarantine_diverged(checkpoints, error.since)
        distributed.barrier("diverged")
        raise DivergedError(f"{error}. {left} in {checkpoints}. Lower learning_rate or clip, or look at the data of "
                            "that step", error.since) from error
    log.step = None  # not after an error: what a thread left behind still writes is of a step that is done again


def train_stage(trainer, mesh: Mesh, batches: Iterator, stage: str, settings, budget: TimeBudget, log,
                checkpoints: Path, start_step: int, extra: Callable[[object, int], dict],
                on_step: Callable[[], None], *, prepare: Callable[[dict], dict] = lambda batch: batch, most: int = 0,
                summed: int = 1, learner=None) -> StageResult:
    """Train up to the stage's last step. Without a `learner`, hand over the adapter as one more step, without
    optimiser state. A learner's last save is what it hands over.

    `trainer` is Tunix's, already resumed; an RL `learner` trains through it. `batches` are those of the whole stage.
    `prepare` turns each that a resumed stage does not skip into what is trained on. Each step writes a "<stage>_step"
    row to the log, with what `extra(trainer, step)` adds. `summed` is the number of tokens that a loss adds up, 1 for a
    mean. If the clock has time, there are up to `most` steps (0: `settings.steps`), and the learning rate follows the
    time that is left. A failure ends the stage as `end_failed` says. Raises DiskFullError.
    """
    done, minutes, most = trainer.train_steps, budget.minutes_used, most or settings.steps
    try:
        # Tunix reads only the context of `with mesh`. Under jax.set_mesh its data sharding silently vanishes. A learner
        # enters the mesh itself. With a second one around it, its last probe would be compiled anew.
        with _resilient(trainer, budget, log, stage, checkpoints, start_step, settings.steps, extra, on_step, summed,
                        most) as guard, mesh if learner is None else contextlib.nullcontext():
            (learner or trainer).train(tunix_compat.remaining_steps(
                batches, done, max(0, start_step + most - done), lambda rest: map(prepare, guard(rest))))
    except Exception as error:  # noqa: BLE001 - those that are no failures of a run are raised again
        return end_failed(error, trainer.model, checkpoints, stage, start_step, budget.minutes_used - minutes)
    step = trainer.train_steps + (learner is None)
    if learner is None:
        store.save_lora(trainer.model, checkpoints, step)
    return StageResult(trainer.train_steps - start_step, step, budget.minutes_used - minutes, budget.stop_reason(stage))
