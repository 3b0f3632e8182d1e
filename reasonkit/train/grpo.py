"""GRPO (arXiv 2402.03300) with Tunix's `GRPOLearner`: sample groups, score them, move towards the better ones.

Unlike in Tunix's demo, the reference is the adapter as it was when this stage began, a whole step is sampled in one
rollout call, unless the judge overlaps with it, and there is one composed reward, because Tunix counts a missing score
as zero. The loss and its dials are in `policy_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from datasets import Dataset
from flax import nnx
from jax.sharding import Mesh
from tunix.generate.sampler import Sampler
from tunix.rl import function_registry, rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutOutput
from tunix.rl.utils import is_sharing_backbone, merge_micro_batches

from reasonkit.data.rows import grpo_batches, shuffle_rows
from reasonkit.models.distributed import check_one_process
from reasonkit.models.lora import reference
from reasonkit.models.mesh import check_divides
from reasonkit.rewards.mix import RewardMix
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import GrpoSettings
from reasonkit.train import loop, tunix_compat
from reasonkit.train.decode import SegmentSampler
from reasonkit.train.policy_loss import LossConfig, SampledExample, completion_logprobs, loss_config
from reasonkit.train.rollout import Rollout, in_int8, sampling

# Seconds for an answer of the judge, in the first two steps, which compile, and later. The watchdog waits longer.
FIRST_PATIENCE, PATIENCE = 20 * 60, 8 * 60


class Learner(GRPOLearner):
    """Tunix's learner with one reward function and the loss's metrics. Truncated completions are left out if wanted. If
    the rollout keeps the log-probabilities of what it samples, the loss gets a `SampledExample`."""

    def __init__(self, cluster, config: LossConfig, reward: Callable):
        super().__init__(cluster, config, [reward])
        sampled = cluster.get_rollout_config(rl_cluster.Mode.TRAIN).return_logprobs
        names = ["kl", "entropy", *["rollout_kl"] * sampled]
        cluster.actor_trainer.with_rl_metrics_to_log(dict.fromkeys(names, np.mean))

    def _generate_and_compute_advantage(self, training_input, mode=rl_cluster.Mode.TRAIN):
        example = super()._generate_and_compute_advantage(training_input, mode)
        if sampled := self.rl_cluster.rollout.logprobs:
            example = SampledExample(**vars(example), rollout_logps=jnp.array(np.concatenate(sampled)))
            sampled.clear()
        if not self.algo_config.mask_truncated:
            return example
        stops = jnp.array(self.rl_cluster.get_rollout_config(mode).eos_tokens)
        ended_B1 = jnp.isin(example.completion_ids, stops).any(-1, keepdims=True)
        return example.replace(completion_mask=example.completion_mask & ended_B1)


def _answer_all(asked: SimpleQueue) -> None:
    """The judge's thread: answers in order, until None. Unlike an executor's it is a daemon, so a hanging judge cannot
    hold up the end of the stage or of the interpreter."""
    while (task := asked.get()) is not None:
        future, ask = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(ask())
            except BaseException as error:  # noqa: BLE001 - whatever it is, the step that waits for it raises it
                future.set_exception(error)


def _result(future: Future, patience: float):
    """The judge's answer. Raises what it raised, and TimeoutError after `patience` seconds."""
    wait([future], patience)
    if not future.done():
        raise TimeoutError(f"the judge has not answered for {patience / 60:.0f} minutes: see to its chips or service")
    return future.result()


class Overlapped(Learner):
    """A thread scores what has been sampled while the next `rollout_micro_prompts` prompts are sampled, and each
    micro-batch is trained on as soon as it is scored. Samples, rewards and updates are those of sequential order:
    weights change only after a step's last micro-batch.

    Tunix's own reward metrics are NaN, because the scores come later. Raises ValueError for other than a `RewardMix`.
    """

    def __init__(self, cluster, config: LossConfig, reward: Callable, rollout_micro_prompts: int):
        if not isinstance(reward, RewardMix):
            raise ValueError(f"the reward {reward.__name__!r} can't be asked ahead: pass a RewardMix")
        super().__init__(cluster, config, reward)
        self.can_enable_async_rollout = True  # the trainer takes each micro-batch as it comes, not all at the end
        self._reward, self._rollout_micro_prompts = reward, rollout_micro_prompts
        self._asked, self._judged, self._steps = SimpleQueue(), [], 0
        cluster.rollout.on_output = self._judge

    def train(self, *args, **kwargs) -> None:
        Thread(target=_answer_all, args=(self._asked,), name="judge", daemon=True).start()
        try:
            super().train(*args, **kwargs)
        finally:
            for judged in self._judged:
                judged.cancel()
            self._asked.put(None)

    def _process_accumulated_batches(self, micro_batches, micro_batch_sizes, mode):
        if not micro_batches:
            return []
        self._rollout_micro_batch_size = self._rollout_micro_prompts  # set earlier, it would cut the step itself
        self._batch, self._size, self._mode = merge_micro_batches(micro_batches), micro_batch_sizes[0], str(mode)
        self._judged: list[Future] = []
        examples = super()._process_accumulated_batches(micro_batches, micro_batch_sizes, mode)
        return map(self._with_advantages, examples, self._rewards)  # lazy: waits for the scores of each in turn

    def _judge(self, output: RolloutOutput) -> None:
        for judged in filter(Future.done, self._judged):
            judged.result()  # an error ends the step here
        for start in range(0, len(output.text), self._size):
            first = len(self._judged) * self._size
            self._judged.append(Future())
            self._asked.put((self._judged[-1], partial(
                self._reward.ask_ahead, completions=output.text[start:start + self._size], mode=self._mode,
                num_generations=self._num_generations(),
                **{name: values[first:first + self._size] for name, values in self._batch.items()})))

    def _compute_rewards(self, prompts, completions, mode, step=None, **columns) -> np.ndarray:
        self._steps += 1
        patience = FIRST_PATIENCE if self._steps <= 2 else PATIENCE
        answers = [partial(_result, judged, patience) for judged in self._judged]
        self._rewards = self._reward.in_parts(answers, prompts, completions, self._num_generations(), self._mode,
                                              **columns)
        return np.full(len(prompts), np.nan)

    def _with_advantages(self, example, rewards: list[float]):
        estimate = function_registry.get_advantage_estimator(self.algo_config.advantage_estimator)
        advantages_B = estimate(rewards=np.array(rewards), num_generations=self._num_generations())
        return example.replace(advantages=jax.device_put(advantages_B))


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
    check_one_process("GRPO")
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
    learner = (Overlapped(cluster, config, reward, each) if settings.rollout_micro_prompts
               else Learner(cluster, config, reward))
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
