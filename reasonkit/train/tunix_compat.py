"""What depends on Tunix's version: its private names, the optimiser, checkpoints, GRPO's cluster and learner.

Written against 0.1.7, and pyproject.toml allows no other: 0.1.8 changes private names that are used here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from queue import SimpleQueue
from threading import Thread

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tunix.rl import function_registry, rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutOutput
from tunix.rl.utils import merge_micro_batches

from reasonkit.rewards.mix import RewardMix
from reasonkit.train.policy_loss import LossConfig

# Two warnings that tell the reader nothing: orbax looks for the metadata of a step inside one of its items, and Tunix
# asks a CPU for its HBM.
HARMLESS = ("Metadata file does not exist", "Skipping non-TPU device")
logging.getLogger("absl").addFilter(lambda record: not str(record.msg).startswith(HARMLESS))
PATIENCE = 20 * 60  # seconds that a step waits for one answer of the judge, its compilation included


@dataclass(frozen=True)
class StageResult:
    """What a training stage leaves: `steps` optimiser steps in `minutes`; the adapter is `checkpoint_step` of the run's
    checkpoints; `stopped` is "data" (all steps done) or "time" (the clock ended it)."""

    stage: str
    steps: int
    checkpoint_step: int
    minutes: float
    stopped: str


def adamw(learning_rate: float, steps: int, warmup: float, weight_decay: float,
          clip: float) -> optax.GradientTransformation:
    """AdamW with gradient clipping, linear warm-up over a share of the steps, then cosine to a tenth.

    The warm-up begins one step above zero, so that the first update is not lost. The state has a scalar that
    `scale_schedule`
    sets: a stage whose time ends after a half of the steps goes through the whole schedule twice as fast. At 1, where
    it begins, the updates are those of optax's AdamW bit for bit. Raises ValueError for a warm-up of all steps.
    """
    rise = max(1, round(warmup * steps))
    if rise >= max(2, steps):
        raise ValueError(f"warmup={warmup} of {steps} steps leaves none to train at the full learning rate: take less")
    schedule = optax.warmup_cosine_decay_schedule(learning_rate / (rise + 1), learning_rate, rise, max(2, steps),
                                                  learning_rate / 10)

    def stretched(stretch) -> optax.GradientTransformation:
        return optax.adamw(lambda count: schedule(count * stretch), b2=0.99, weight_decay=weight_decay)

    return optax.chain(optax.clip_by_global_norm(clip), optax.inject_hyperparams(stretched)(stretch=1.0))


def scale_schedule(trainer, factor: float) -> None:
    """Let the learning rate of `adamw` follow `factor` times the steps made, from the trainer's next step on."""
    state = trainer.optimizer.opt_state
    state = getattr(state, "inner_opt_state", state)  # with micro-batches it is wrapped
    scalar = state[1].hyperparams["stretch"]
    scalar[...] = jax.device_put(jnp.float32(factor), scalar[...].sharding)


def remaining_steps(batches: Iterator, done: int, steps: int, guard: Callable[[Iterator], Iterator]) -> Iterator:
    """The batches of a stage for Tunix: the `done` ones, which it skips, unguarded; then `steps` under the clock."""
    return chain(islice(batches, done), guard(islice(batches, steps)))


def should_save(trainer, step: int) -> bool:
    """Whether the trainer's checkpoint manager keeps this step, by its `save_every`."""
    return trainer.checkpoint_manager._checkpoint_manager.should_save(step)


def wait_for_saves(trainer) -> None:
    """Return once no save is under way."""
    trainer.checkpoint_manager._checkpoint_manager.wait_until_finished()


def delete_step(trainer, step: int) -> None:
    """Delete one saved step of the trainer's checkpoints."""
    trainer.checkpoint_manager._checkpoint_manager.delete(step)


class _NoBar:
    """Stands for Tunix's progress bar."""

    def update_metrics(self, *args, **kwargs) -> None:
        pass

    update = close = update_metrics


def hide_progress_bar(trainer) -> None:
    """Let the trainer draw no progress bar: `show.dashboard` has the stage's."""
    trainer._pbar = _NoBar()


def report_step(trainer) -> None:
    """Call the hooks for the step just made. Tunix would call them one step late, which may be after its save."""
    trainer._write_train_metrics()


def keep_token_buffer(sampler, keep: Callable[[jax.Array], None]) -> None:
    """Show `keep` the token buffer (B, T) of each call of the sampler: its own output has no stop tokens."""
    decode = sampler._compiled_decode_fn

    def decode_and_keep(params, state):
        state = decode(params, state)
        keep(state.token_buffer)
        return state

    sampler._compiled_decode_fn = decode_and_keep


def grpo_cluster(actor, reference, tokenizer, mesh: Mesh, rollout: type, rollout_config, training_config: dict):
    """Actor, reference and rollout colocated on one mesh: one base, the rollout reads the weights that are trained."""
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh), rollout_engine=rollout, offload_to_cpu=False,
        training_config=rl_cluster.RLTrainingConfig(**training_config), rollout_config=rollout_config)
    return rl_cluster.RLCluster(actor=actor, reference=reference, tokenizer=tokenizer, cluster_config=config)


class Learner(GRPOLearner):
    """Tunix's learner with one reward function, the loss's metrics, and truncated completions left out if wanted."""

    def __init__(self, cluster, config: LossConfig, reward: Callable):
        super().__init__(cluster, config, [reward])
        cluster.actor_trainer.with_rl_metrics_to_log(dict.fromkeys(("kl", "entropy"), np.mean))

    def _generate_and_compute_advantage(self, training_input, mode=rl_cluster.Mode.TRAIN):
        example = super()._generate_and_compute_advantage(training_input, mode)
        if not self.algo_config.mask_truncated:
            return example
        stops = jnp.array(self.rl_cluster.get_rollout_config(mode).eos_tokens)
        ended_B1 = jnp.isin(example.completion_ids, stops).any(-1, keepdims=True)
        return example.replace(completion_mask=example.completion_mask & ended_B1)


def _answer(asked: SimpleQueue) -> None:
    """The judge's thread: what is asked, one after the other, until None. A daemon, unlike an executor's: a judge that
    hangs holds up neither the stage's end nor the interpreter's."""
    while (task := asked.get()) is not None:
        future, ask = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(ask())
            except BaseException as error:  # noqa: BLE001 - whatever it is, the step that waits for it raises it
                future.set_exception(error)


def _told(future: Future):
    """What the judge answered. Raises what it raised, and TimeoutError when it takes longer than `PATIENCE`."""
    wait([future], PATIENCE)
    if not future.done():
        raise TimeoutError(f"the judge has not answered for {PATIENCE / 60:.0f} minutes. The steps saved so far are "
                           "kept: restart the kernel and run the notebook again, and it goes on from the last of them")
    return future.result()


class Overlapped(Learner):
    """Tunix's learner with the judge beside the policy, within the step: what is sampled is judged in a thread of its
    own while the next `rollout_micro_prompts` prompts are sampled, and a micro-batch is trained on once it is judged.

    Samples, rewards and updates are those of the serial order: a group's advantages need its own rewards alone, and
    weights change after a step's last micro-batch. All sampling, and the reference, come before the first update: the
    policy's chips run one program at a time. Not kept are Tunix's own metrics of rewards, which are made before the
    scores and therefore NaN. Raises ValueError for a reward that is not a `RewardMix`.
    """

    def __init__(self, cluster, config: LossConfig, reward: Callable, rollout_micro_prompts: int):
        if not isinstance(reward, RewardMix):
            raise ValueError(f"the reward {reward.__name__!r} can't be asked ahead: pass a RewardMix")
        super().__init__(cluster, config, reward)
        self.can_enable_async_rollout = True  # the trainer takes each micro-batch as it comes, not all at the end
        self._reward, self._rollout_micro_prompts = reward, rollout_micro_prompts
        self._asked, self._judged = SimpleQueue(), []
        cluster.rollout.on_output = self._judge

    def train(self, *args, **kwargs) -> None:
        Thread(target=_answer, args=(self._asked,), name="judge", daemon=True).start()
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
        self._rewards = self._reward.in_parts([partial(_told, judged) for judged in self._judged], prompts, completions,
                                              self._num_generations(), self._mode, **columns)
        return np.full(len(prompts), np.nan)

    def _with_advantages(self, example, rewards: list[float]):
        estimate = function_registry.get_advantage_estimator(self.algo_config.advantage_estimator)
        advantages_B = estimate(rewards=np.array(rewards), num_generations=self._num_generations())
        return example.replace(advantages=jax.device_put(advantages_B))
