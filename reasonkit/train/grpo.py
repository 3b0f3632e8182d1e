"""GRPO (arXiv 2402.03300) with Tunix's `GRPOLearner`: sample groups, score them, move towards the better ones.

Unlike in Tunix's demo, the reference is the adapter as it was when this stage began, a whole step is sampled in one
rollout call, unless the judge overlaps with it, and there is one composed reward, because Tunix counts a missing score
as zero. The loss and its dials are in `policy_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from flax import nnx
from jax.sharding import Mesh
from tunix.generate.sampler import Sampler
from tunix.rl.utils import is_sharing_backbone

from reasonkit.data.rows import grpo_batches, shuffle_rows
from reasonkit.models.lora import reference
from reasonkit.models.mesh import check_divides
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import GrpoSettings
from reasonkit.train import loop, overlap, tunix_compat
from reasonkit.train.decode import SegmentSampler
from reasonkit.train.policy_loss import completion_logprobs, loss_config
from reasonkit.train.rollout import Rollout, in_int8, sampling


def grpo(policy, mesh: Mesh, rows: Dataset, reward: Callable, settings: GrpoSettings, budget: TimeBudget, log,
         checkpoints: Path, seed: int, start_step: int,
         on_step: Callable[[], None] = lambda: None, curriculum: Any = None) -> loop.StageResult:
    """Train the adapter of `policy` on the reward. `start_step` is the step at which the last stage handed it over.

    That adapter becomes the reference, whatever is in memory (`loop.begin`). A run resumes from later steps in
    `checkpoints`. A `curriculum` (see `Recipe`) chooses the problems by its `order`, after `resume`. Without one the
    problems come in turn. Raises ValueError as `GrpoSettings.check` does, and if the rows of a pass do not divide over
    the mesh, the checkpoints are not at a step of this stage, or the curriculum's log does not reach that step. A
    failure ends the stage as `loop.end_failed` says.
    """
    settings.check()
    micro, each = settings.prompts_per_pass, settings.prompts_per_call
    calls = settings.prompts_per_step // each  # of the rollout, a step
    check_divides(micro * settings.num_generations, mesh, "GRPO micro_prompts x num_generations")
    last = settings.steps if budget.grows else settings.last_step
    loop.begin(policy.model, checkpoints, "grpo", start_step, last)
    anchor, int8 = reference(policy.model), settings.int8_weights or settings.int8_cache
    cluster = tunix_compat.grpo_cluster(
        policy.model, anchor if settings.beta else None, policy.tokenizer, mesh,
        partial(Rollout, sampler=SegmentSampler if settings.segments else Sampler,
                sampled=in_int8(policy.model, settings.int8_weights, settings.int8_cache) if int8 else None),
        sampling(policy.tokenizer, max_prompt_length=settings.max_prompt_length, max_new_tokens=settings.max_new_tokens,
                 temperature=settings.temperature, seed=seed, logprobs=int8),
        tunix_compat.trainer_options(settings, checkpoints, start_step + last + 1)  # not reached: the batches end
        | dict(actor_optimizer=tunix_compat.adamw(settings), mini_batch_size=settings.prompts_per_step,
               train_micro_batch_size=micro, rollout_micro_batch_size=settings.prompts_per_step,
               compute_logps_micro_batch_size=micro, checkpoint_root_directory=str(checkpoints.resolve())))
    if not is_sharing_backbone(cluster.actor_trainer.model, anchor):
        raise RuntimeError("the actor and its reference hold two copies of the base: the policy is on another mesh")
    if settings.beta and not settings.stock_loss:
        cluster.inference_worker.get_ref_per_token_logps = partial(completion_logprobs, *nnx.split(anchor))
    trainer, rollout = cluster.actor_trainer, cluster.rollout
    done = trainer.train_steps - start_step
    rollout.calls = done * calls  # samples go on from here
    config = loss_config(settings, settings.num_generations, not settings.stock_loss)
    learner = (overlap.Overlapped(cluster, config, reward, each) if settings.rollout_micro_prompts
               else overlap.Learner(cluster, config, reward))
    cluster.global_steps = trainer.train_steps  # a last checkpoint carries none

    def extra(ctx, step: int) -> dict:
        of_step = slice((step - done - 1) * calls, (step - done) * calls)
        history = ctx.metrics_logger.get_metric_history
        found = {"entropy": True, "kl": settings.beta, "rollout_kl": int8}
        return {"length": float(np.mean(rollout.mean_lengths[of_step])),
                "truncated": float(np.mean(rollout.truncated[of_step])),
                **{name: float(history("actor", name, "train")[-1]) for name, wanted in found.items() if wanted}}

    if curriculum:
        curriculum.resume(done, start_step)
    batches = grpo_batches(rows, policy.tokenizer, settings.prompts_per_step, settings.max_prompt_length, seed,
                           curriculum.order if curriculum else shuffle_rows)
    summed = settings.max_new_tokens if settings.loss_agg_mode == "seq-mean-token-sum" else 1  # tokens in the loss
    return loop.train_stage(trainer, mesh, batches, "grpo", settings, budget, log, checkpoints, start_step, extra,
                            on_step, most=last, summed=summed, learner=learner)
