"""What depends on Tunix's version: its private names, the optimiser's state, trainer options and GRPO's cluster.

Written for 0.1.7. pyproject.toml allows no other version, because 0.1.8 changes private names that we use here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tunix.rl import rl_cluster
from tunix.rl import utils as rl_utils

from reasonkit.models.checkpoints import actor, checkpoint_options
from reasonkit.models.distributed import fetch
from reasonkit.settings import StageSettings

# They tell the reader nothing: orbax looks for a step's metadata in one of its items, Tunix asks a CPU for its HBM.
HARMLESS = ("Metadata file does not exist", "Skipping non-TPU device")
logging.getLogger("absl").addFilter(lambda record: not str(record.msg).startswith(HARMLESS))


def trainer_options(settings, checkpoints: Path, last_step: int) -> dict:
    """Tunix's TrainingConfig for a stage that ends at `last_step`, without Tunix's own evaluation."""
    return dict(eval_every_n_steps=last_step + 1, max_steps=last_step,
                checkpoint_root_directory=str(actor(checkpoints)),
                checkpointing_options=checkpoint_options(settings.save_every, settings.keep))


def adamw(settings: StageSettings) -> optax.GradientTransformation:
    """AdamW with gradient clipping, linear warm-up over a share of the steps, then cosine decay to a tenth.

    The warm-up begins one step above zero, or the first update would be lost. `scale_schedule` sets a scalar in the
    state, so a stage with time for half of its steps goes through the schedule twice as fast. At 1, where it begins,
    the updates equal optax's AdamW bit for bit.
    """
    rate, steps = settings.learning_rate, settings.steps
    rise = max(1, min(round(settings.warmup * steps), steps - 1))  # of two or more steps, one has the full rate
    schedule = optax.warmup_cosine_decay_schedule(rate / (rise + 1), rate, rise, max(2, steps), rate / 10)

    def adamw_at(stretch) -> optax.GradientTransformation:
        return optax.adamw(lambda count: schedule(count * stretch), b2=0.99, weight_decay=settings.weight_decay)

    return optax.chain(optax.clip_by_global_norm(settings.clip), optax.inject_hyperparams(adamw_at)(stretch=1.0))


def scale_schedule(trainer, factor: float) -> None:
    """From the trainer's next step on, let the learning rate of `adamw` follow `factor` times the steps made."""
    state = trainer.optimizer.opt_state
    state = getattr(state, "inner_opt_state", state)  # with micro-batches it is wrapped
    scalar = state[1].hyperparams["stretch"]
    scalar[...] = jax.device_put(jnp.float32(factor), scalar[...].sharding)


def remaining_steps(batches: Iterator, done: int, steps: int, guard: Callable[[Iterator], Iterator]) -> Iterator:
    """The `done` batches, which Tunix skips, unguarded, then `steps` under the clock."""
    return chain(islice(batches, done), guard(islice(batches, steps)))


def orbax_manager(trainer):
    return trainer.checkpoint_manager._checkpoint_manager


def hide_progress_bar(trainer) -> None:
    """Hides Tunix's bar, because `show.dashboard` draws one."""
    methods = dict.fromkeys(("update_metrics", "update", "close"), lambda *args, **kwargs: None)
    trainer._pbar = SimpleNamespace(**methods)


def report_step(trainer) -> None:
    """Call the hooks for the step just made: Tunix would a step late, which may be after its save."""
    trainer._write_train_metrics()


def fetch_drawn(sampler, keep: Callable[[np.ndarray, np.ndarray | None], None] = lambda *drawn: None) -> None:
    """Fetch each call's token buffer (B, T) and, if wanted, its log-probabilities, in every process, and pass them to
    `keep`, because Tunix's output has no stop tokens. Not the whole state, which holds the KV cache."""
    decode = sampler._compiled_decode_fn

    def decode_and_fetch(params, state):
        state = decode(params, state)
        tokens_BT, logprobs_BT = jax.tree.map(fetch, (state.token_buffer, state.logprobs_buffer))
        keep(tokens_BT, logprobs_BT)
        return SimpleNamespace(token_buffer=tokens_BT, logprobs_buffer=logprobs_BT, logits_buffer=None,
                               sampling_mode="")

    sampler._compiled_decode_fn = decode_and_fetch


def grpo_cluster(policy, reference, tokenizer, mesh: Mesh, rollout: Callable, rollout_config, training_config: dict):
    """Actor, reference and rollout on one mesh, sharing one base. Without Tunix's copy of the policy in host memory per
    chip that has all the weights: only losses of several iterations read it, and ours have one."""
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh), rollout_engine=rollout, offload_to_cpu=False,
        training_config=rl_cluster.RLTrainingConfig(**training_config), rollout_config=rollout_config)
    with mock.patch.object(rl_utils, "put_params_on_memory_kind", lambda state, kind: None):
        return rl_cluster.RLCluster(actor=policy, reference=reference, tokenizer=tokenizer, cluster_config=config)
