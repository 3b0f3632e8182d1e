"""Supervised fine-tuning: one LoRA adapter learns the tags from worked solutions, with Tunix's `PeftTrainer`.

The loss is the mean over all tokens of a step's completions, including stop tokens, however the rows are packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
from datasets import Dataset
from flax import nnx
from jax.sharding import Mesh
from tunix.sft import peft_trainer

from reasonkit.data.rows import sft_batches, sft_pairs, without_terse
from reasonkit.data.screening import is_worked
from reasonkit.models.logprobs import piece_mask, token_logprobs
from reasonkit.models.mesh import check_divides, split_rows
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import SftSettings
from reasonkit.train import loop, tunix_compat


def model_input(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Tunix's model input for a batch of `sft_batches`. Each row sees only itself, and its positions begin at 0."""
    mask_BLL = piece_mask(batch["tokens_BL"] != 0, batch["piece_BL"])
    return {"input_tokens": batch["tokens_BL"], "input_mask": batch["loss_mask_BL"],
            "positions": mask_BLL.sum(-1) - 1, "attention_mask": mask_BLL}


def sft_loss(model: nnx.Module, input_tokens: jax.Array, input_mask: jax.Array, positions: jax.Array,
             attention_mask: jax.Array) -> jax.Array:
    """Tunix's loss on `model_input`, in chunks of logits: the mean negative log-likelihood in nats per token."""
    logps_BL, _ = token_logprobs(model, input_tokens, positions, attention_mask, input_tokens.shape[1] - 1)
    return -(logps_BL * input_mask[:, 1:]).sum() / (input_mask[:, 1:].sum() + 1e-8)


@nnx.jit
def _loss(model: nnx.Module, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The loss, and the number of tokens that have one."""
    return sft_loss(model, **model_input(batch)), batch["loss_mask_BL"][:, 1:].sum()


def validation_loss(policy, mesh: Mesh, rows: Dataset, settings: SftSettings, most: int = 64) -> float:
    """SFT's loss in nats per token, over at most `most` of the held-out `rows` that SFT could imitate. NaN if they are
    fewer than the chips. Each chip takes one row at a time, so this fits wherever training does."""
    chips, total, count = mesh.shape["fsdp"], 0.0, 0.0
    found = len(sft_pairs(rows, policy.tokenizer, settings.max_length))
    if found < chips:
        return math.nan
    batches = sft_batches(rows, policy.tokenizer, chips, settings.max_length, 0)
    for batch in islice(batches, min(most, found) // chips):
        with mesh:
            loss, tokens = _loss(policy.model, {name: split_rows(array, mesh) for name, array in batch.items()})
        total, count = total + float(loss * tokens), count + float(tokens)
    return total / count


def _within_epochs(settings: SftSettings, rows: Dataset, tokenizer) -> SftSettings:
    """The settings with the steps of `max_epochs` passes over the rows, if those are fewer."""
    sizes = [len(prompt) + len(completion) for prompt, completion in sft_pairs(rows, tokenizer, settings.max_length)]
    if not sizes:
        return settings  # `sft_batches` says so
    sequences = sum(sizes) / settings.max_length if settings.pack else len(sizes)
    steps = max(1, math.ceil(settings.max_epochs * sequences / settings.batch_size))
    if steps >= settings.steps:
        return settings
    print(f"SFT takes {steps:,} of {settings.steps:,} steps: that is {settings.max_epochs:g} epochs of "
          f"{len(sizes):,} rows (max_epochs)")
    return replace(settings, steps=steps)


def sft(policy, mesh: Mesh, rows: Dataset, settings: SftSettings, budget: TimeBudget, log, checkpoints: Path, seed: int,
        on_step: Callable[[], None] = lambda: None) -> loop.StageResult:
    """Train the adapter of `policy` (a `LoadedModel` with LoRA) on `rows`, resuming from the checkpoints' last step.

    The log has the number of `rows` and of `tokens` without padding for each step. Raises ValueError if the batch does
    not divide over the mesh, no rows fit `max_length`, or the checkpoints belong to a later stage. A failure ends the
    stage as `loop.end_failed` says. Raises DiskFullError.
    """
    check_divides(settings.batch_size, mesh, "SFT batch_size")
    if settings.skip_terse:
        worked, rows = sum(map(is_worked, rows)), without_terse(rows)
        print(f"SFT imitates {len(rows):,} of {worked:,} worked rows: the others' reasoning shows no work (skip_terse)")
    if settings.max_epochs:
        settings = _within_epochs(settings, rows, policy.tokenizer)
    loop.begin(policy.model, checkpoints, "sft", 0, settings.steps)
    trainer = peft_trainer.PeftTrainer(
        policy.model, tunix_compat.adamw(settings),
        peft_trainer.TrainingConfig(**tunix_compat.trainer_options(settings, checkpoints, settings.steps)),
    ).with_gen_model_input_fn(model_input)
    if not settings.stock_loss:
        trainer.with_loss_fn(sft_loss)
    drawn: dict[int, dict[str, int]] = {}  # by step: Tunix reports one after the next is drawn

    def batches() -> Iterator[dict[str, jax.Array]]:
        for step, batch in enumerate(sft_batches(rows, policy.tokenizer, settings.batch_size, settings.max_length, seed,
                                                 settings.pack), 1):
            piece_BL = batch["piece_BL"]
            drawn[step] = {"rows": int(piece_BL.max(1).sum()), "tokens": int((piece_BL > 0).sum())}
            yield {name: split_rows(array, mesh) for name, array in batch.items()}

    return loop.train_stage(trainer, mesh, batches(), "sft", settings, budget, log, checkpoints, 0,
                            lambda ctx, step: drawn.pop(step), on_step)
