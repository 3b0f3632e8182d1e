"""On-policy distillation (GKD, arXiv 2306.13649): the student samples, a larger teacher scores every token.

Tunix's `PeftTrainer` minimises the reverse KL from student to teacher at each token of the student's completions. No
gradient goes through the sampling. Each model has its own mesh. The teacher's distribution crosses whole: batch x
max_new_tokens x vocabulary, 1.6 GB for 4 x 768 x 262,144 in bfloat16. Choose `batch_size` by it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from datasets import Dataset
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.sft import peft_trainer
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.data.rows import grpo_batches
from reasonkit.models.mesh import check_divides
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import DistillSettings
from reasonkit.text.tags import TAGS
from reasonkit.train import loop, tunix_compat
from reasonkit.train.rollout import Rollout, sampling


def completion_logprobs(model: nnx.Module, tokens_BL: jax.Array, length: int, vocabulary: int) -> jax.Array:
    """Log-probabilities (B, length, vocabulary), float32, of the last `length` tokens. Padding is id 0."""
    mask_BL = tokens_BL != 0
    positions_BL, causal_BLL = build_positions_from_mask(mask_BL), make_causal_attn_mask(mask_BL)
    logits_BLV, _ = model(tokens_BL, positions_BL, None, causal_BLL)
    return jax.nn.log_softmax(logits_BLV[:, -length - 1:-1, :vocabulary].astype(jnp.float32))


def reverse_kl(student_BLV: jax.Array, teacher_BLV: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """KL(student || teacher) in nats, mean over each row's tokens (mask 1), then over the rows."""
    kl_BL = (jnp.exp(student_BLV) * (student_BLV - teacher_BLV)).sum(-1)
    return ((kl_BL * mask_BL).sum(-1) / jnp.maximum(mask_BL.sum(-1), 1)).mean()


def _vocabulary(policy, teacher, texts: list[str]) -> int:
    """How many embedding rows both have. Raises ValueError when their tokenizers differ."""
    ours, theirs = policy.tokenizer, teacher.tokenizer
    same = ours.vocab_size == theirs.vocab_size and [*map(ours.encode, texts)] == [*map(theirs.encode, texts)]
    if not same:
        raise ValueError(f"{teacher.name} reads text as other tokens than {policy.name}, and their "
                         "distributions cannot be compared: take a teacher of the same family")
    return min(policy.config.num_embed, teacher.config.num_embed)  # some files have unused rows at the end


def distill(
    policy, teacher, mesh: Mesh, teacher_mesh: Mesh, rows: Dataset, settings: DistillSettings,
    budget: TimeBudget, log, checkpoints: Path, seed: int, start_step: int,
    on_step: Callable[[], None] = lambda: None,
) -> loop.StageResult:
    """Move the adapter of `policy` towards `teacher`, on its own completions of the questions in `rows`.

    Both are a `LoadedModel`. Starts from the step under which the last stage left the adapter (or 0), and resumes from
    later steps in `checkpoints`. Rows "distill_step" of the log have the KL as loss, in nats per token, and the mean
    length of the completions. Raises ValueError when the batch does not divide over a mesh, or the two models read
    text as different tokens.
    """
    check_divides(settings.batch_size, mesh, "distillation batch_size")
    check_divides(settings.batch_size, teacher_mesh, "distillation batch_size, for the teacher,")
    vocabulary = _vocabulary(policy, teacher, [TAGS.prompt(question) for question in rows["question"][:16]])
    loop.begin(policy.model, checkpoints, "distill", start_step, settings.steps)
    trainer = peft_trainer.PeftTrainer(
        policy.model, tunix_compat.adamw_of(settings),
        peft_trainer.TrainingConfig(
            **tunix_compat.trainer_options(settings, checkpoints, start_step + settings.steps)))
    done, length = trainer.train_steps - start_step, settings.max_new_tokens
    config = sampling(policy.tokenizer, max_prompt_length=settings.max_prompt_length, max_new_tokens=length,
                      temperature=1.0, seed=seed)
    rollout = Rollout(policy.model, policy.tokenizer, mesh, config)  # reads the weights that are trained
    rollout.calls = done

    def loss(model, tokens_BL: jax.Array, teacher_BLV: jax.Array) -> jax.Array:
        student_BLV = completion_logprobs(model, tokens_BL, length, vocabulary)
        return reverse_kl(student_BLV, teacher_BLV, (tokens_BL[:, -length:] != 0).astype(jnp.float32))

    trainer.with_loss_fn(loss).with_gen_model_input_fn(lambda example: example)

    def extra(ctx, step: int) -> dict:
        return {"length": rollout.mean_lengths[step - done - 1]}

    graph, state = nnx.split(teacher.model)

    @jax.jit
    def score(state: nnx.State, tokens_BL: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        logprobs_BLV = completion_logprobs(model, tokens_BL, length, vocabulary)
        return logprobs_BLV.astype(model.embedder.input_embedding.dtype)

    def sample(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        with mesh:
            output = rollout.generate(list(batch["prompts"]), config)
        tokens_BL = np.zeros((settings.batch_size, settings.max_prompt_length + length), np.int32)
        tokens_BL[:, :settings.max_prompt_length] = output.left_padded_prompt_tokens
        for row, completion in enumerate(output.tokens):
            tokens_BL[row, settings.max_prompt_length:][:len(completion)] = completion
        here, there = (NamedSharding(place, PartitionSpec("fsdp")) for place in (mesh, teacher_mesh))
        with teacher_mesh:
            teacher_BLV = score(state, jax.device_put(tokens_BL, there))
        return jax.device_put({"tokens_BL": tokens_BL, "teacher_BLV": teacher_BLV}, here)

    batches = grpo_batches(rows, policy.tokenizer, settings.batch_size, settings.max_prompt_length, seed)
    return loop.train_stage(trainer, mesh, batches, "distill", settings, budget, log, checkpoints, start_step, extra,
                            on_step, prepare=sample)
