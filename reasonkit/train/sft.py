"""Supervised fine-tuning: one LoRA adapter learns the tags from worked solutions, with Tunix's `PeftTrainer`.

The loss is on the reply and its stop token only. Checkpoints go to the judges' layout from the first save on. The stage
ends by handing the adapter over as one more step, without optimiser state: that is what the next stage starts from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from jax.sharding import Mesh
from tunix.sft import peft_trainer
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.config import SftSettings
from reasonkit.data.problems import sft_batches
from reasonkit.models.mesh import check_divides, split_rows
from reasonkit.session.time_budget import TimeBudget
from reasonkit.train import checkpoint, loop, tunix_compat
from reasonkit.train.handover import begin


def model_input(batch: peft_trainer.TrainingInput) -> dict:
    """Tunix's model input for right-padded rows: positions and causal mask from the padding (id 0)."""
    present_BL = batch.input_tokens != 0
    return {"input_tokens": batch.input_tokens, "input_mask": batch.input_mask,
            "positions": build_positions_from_mask(present_BL), "attention_mask": make_causal_attn_mask(present_BL)}


def sft(policy, mesh: Mesh, rows: Dataset, settings: SftSettings, budget: TimeBudget, log, checkpoints: Path, seed: int,
        on_step: Callable[[], None] = lambda: None) -> tunix_compat.StageResult:
    """Train the adapter of `policy` (a `models.LoadedModel` with LoRA) on `rows`; resumes from the checkpoints' last
    step.

    Raises ValueError when the batch does not divide over the mesh, no rows are left that fit `max_length`, or the
    checkpoints are those of a later stage; and what `loop.kept` raises.
    """
    check_divides(settings.batch_size, mesh, "SFT batch_size")
    begin(policy.model, checkpoints, "sft", 0, settings.steps)
    trainer = peft_trainer.PeftTrainer(
        policy.model,
        tunix_compat.adamw(settings.learning_rate, settings.steps, settings.warmup, settings.weight_decay,
                           settings.clip),
        peft_trainer.TrainingConfig(
            eval_every_n_steps=settings.steps + 1, max_steps=settings.steps, data_sharding_axis=("fsdp",),
            pbar_description=None, checkpoint_root_directory=str(checkpoints.resolve() / "actor"),
            checkpointing_options=checkpoint.checkpoint_options(settings.save_every, settings.keep)),
    ).with_gen_model_input_fn(model_input)
    done, minutes = trainer.train_steps, budget.minutes_used
    batches = (peft_trainer.TrainingInput(input_tokens=split_rows(batch["tokens_BL"], mesh),
                                          input_mask=split_rows(batch["loss_mask_BL"], mesh))
               for batch in sft_batches(rows, policy.tokenizer, settings.batch_size, settings.max_length, seed))
    # Tunix reads only the context of `with mesh`: under jax.set_mesh its data sharding silently vanishes
    with loop.resilient_training(trainer, budget, log, "sft", checkpoints, 0, settings.steps,
                                 on_step=on_step) as guard, mesh:
        trainer.train(tunix_compat.remaining_steps(batches, done, max(0, settings.steps - done), guard))
    checkpoint.save_for_next_stage(policy.model, checkpoints, trainer.train_steps + 1)
    return tunix_compat.StageResult("sft", trainer.train_steps, trainer.train_steps + 1, budget.minutes_used - minutes,
                              budget.stopped("sft"))
