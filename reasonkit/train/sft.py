"""Supervised fine-tuning: one LoRA adapter learns the tags from worked solutions, with Tunix's `PeftTrainer`.

The loss is only on the completion and its stop token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from jax.sharding import Mesh
from tunix.sft import peft_trainer
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.config import SftSettings
from reasonkit.data.rows import sft_batches
from reasonkit.models.mesh import check_divides, split_rows
from reasonkit.session.time_budget import TimeBudget
from reasonkit.train import loop, tunix_compat


def model_input(batch: peft_trainer.TrainingInput) -> dict:
    """Tunix's model input for right-padded rows: positions and causal mask from the padding (id 0)."""
    present_BL = batch.input_tokens != 0
    return {"input_tokens": batch.input_tokens, "input_mask": batch.input_mask,
            "positions": build_positions_from_mask(present_BL), "attention_mask": make_causal_attn_mask(present_BL)}


def sft(policy, mesh: Mesh, rows: Dataset, settings: SftSettings, budget: TimeBudget, log, checkpoints: Path, seed: int,
        on_step: Callable[[], None] = lambda: None) -> loop.StageResult:
    """Train the adapter of `policy` (a `LoadedModel` with LoRA) on `rows`, resuming from the checkpoints' last step.

    Raises ValueError when the batch does not divide over the mesh, no rows are left that fit `max_length`, or the
    checkpoints are those of a later stage; and as `loop.resilient_training` does.
    """
    check_divides(settings.batch_size, mesh, "SFT batch_size")
    loop.begin(policy.model, checkpoints, "sft", 0, settings.steps)
    trainer = peft_trainer.PeftTrainer(
        policy.model, tunix_compat.adamw_of(settings),
        peft_trainer.TrainingConfig(**tunix_compat.trainer_options(settings, checkpoints, settings.steps)),
    ).with_gen_model_input_fn(model_input)
    batches = (peft_trainer.TrainingInput(input_tokens=split_rows(batch["tokens_BL"], mesh),
                                          input_mask=split_rows(batch["loss_mask_BL"], mesh))
               for batch in sft_batches(rows, policy.tokenizer, settings.batch_size, settings.max_length, seed))
    return loop.train_stage(trainer, mesh, batches, "sft", settings, budget, log, checkpoints, 0, on_step=on_step)
