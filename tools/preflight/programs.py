"""The programs of a run as shapes. `preflight` compiles them without weights, data or devices' memory.

They make the same calls into Tunix as the stages, on models, batches and caches with the sharding of a run. Two things
differ: the learning rate is constant, and the rollout's loop is `SegmentSampler`'s, which holds what Tunix's does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from tunix.generate.sampler import sample_top_p
from tunix.generate.utils import compute_attention_masks
from tunix.rl import function_registry
from tunix.rl.grpo.grpo_learner import TrainExample
from tunix.sft.dpo.dpo_trainer import TrainExample as PairExample
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.config import Profile
from reasonkit.models.cache import cache_arrays, heads_first
from reasonkit.models.logprobs import last_tokens, piece_mask
from reasonkit.models.mesh import Plan
from reasonkit.settings import LossSettings
from reasonkit.train.decode import SEGMENT, decode_segment
from reasonkit.train.policy_loss import completion_logprobs, loss_config
from reasonkit.train.sft import model_input, sft_loss
from recipes.rewards.rlpr import read_probability
from recipes.rewards.thought_teacher import read_features
from recipes.stages.distill import student_loss, teacher_pass
from recipes.stages.simpo import loss_fn as simpo_loss
from tools.preflight.abstract import Program, abstract_model, array, with_shardings

RATINGS = 5  # logits that are read from a judge
ADAMW = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5))


@dataclass(frozen=True)
class Run:
    """The models of a run as shapes, made when a program first asks for them. The configurations are Tunix's, with
    `shd_config` and `remat_config` as in the run. `dtype` is the weights', with None as in `load`.

    In distillation the teacher takes the judge's place.
    """

    policy_config: Any
    judge_config: Any
    plan: Plan
    profile: Profile
    dtype: Any = None

    @cached_property
    def policy(self) -> nnx.Module:
        return abstract_model(self.policy_config, self.plan.policy, self.dtype, self.profile.lora_rank)

    @cached_property
    def rollout_policy(self) -> nnx.Module:
        """The policy that GRPO samples from."""
        if not self.profile.grpo.int8_weights:
            return self.policy
        return abstract_model(self.policy_config, self.plan.policy, self.dtype, self.profile.lora_rank, int8=True)

    @property
    def rollout_copy(self) -> list[nnx.State]:
        """What `rollout_policy` has beside the policy: its layers and its head. The rest is shared."""
        own = nnx.Any(*map(nnx.PathContains, ("layers", "int8_head", "int8_scale")))
        return [nnx.state(self.rollout_policy, own)] * self.profile.grpo.int8_weights

    @cached_property
    def judge(self) -> nnx.Module:
        if self.judge_config is None or self.plan.judge is None:
            raise ValueError("programs 'judge', 'distill' and 'teacher' need a judge_config and a plan with a judge: "
                             "pass both, or leave them out")
        return abstract_model(self.judge_config, self.plan.judge, self.dtype, int8=self.profile.judge_int8)

    @cached_property
    def adapter(self) -> nnx.State:
        """The trained adapter. The reference has another of the same shape."""
        return nnx.state(self.policy, nnx.LoRAParam)

    def optimizer(self, passes: bool = False) -> nnx.Optimizer:
        """It takes a step per batch. With `passes` it adds up the gradients of a step's, as GRPO does even of one."""
        transformation = optax.MultiSteps(ADAMW, 2) if passes else ADAMW
        made = nnx.eval_shape(lambda model: nnx.Optimizer(model, transformation, wrt=nnx.LoRAParam), self.policy)
        return with_shardings(made, self.plan.policy, self.policy_config)

    def resident(self, *trees: Any) -> tuple:
        """These trees, and the judge if it shares the policy's devices."""
        return (*trees, nnx.state(self.judge)) if is_shared(self.plan) else trees


def is_shared(plan: Plan) -> bool:
    """Whether policy and judge are in the same devices' memory."""
    return plan.judge is not None and not {*plan.judge.devices.flat}.isdisjoint(plan.policy.devices.flat)


def sizes(profile: Profile) -> tuple:
    """The settings that the programs read."""
    g, s, d = profile.grpo, profile.simpo, profile.distill
    return (profile.lora_rank, profile.judge_int8, profile.judge_batch, profile.judge_max_length,
            profile.sft.batch_size, profile.sft.max_length, s.batch_size, s.max_prompt_length, s.max_new_tokens,
            g.prompts_per_pass, g.prompts_per_call, g.num_generations, g.max_prompt_length, g.max_new_tokens,
            g.segments, g.int8_weights, g.int8_cache,
            d.batch_size, d.max_prompt_length, d.max_new_tokens, d.top_k, d.beta)


def rows_of(mesh: Mesh, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    """An array whose rows are over fsdp."""
    return array(mesh, shape, dtype, "fsdp")


def _train_step(run: Run, title: str, loss: Callable, batch: Any, rows: int, optimizer: nnx.Optimizer,
                resident: tuple = ()) -> Program:
    """As in Tunix's trainer: the adapter's gradients, their norm, and one update that reuses the optimiser's memory."""
    graph, moments, params = nnx.split((run.policy, optimizer), nnx.optimizer.OptState, ...)

    def step(moments: nnx.State, params: nnx.State, batch: Any) -> tuple:
        model, optimizer = nnx.merge(graph, moments, params)
        diff = nnx.DiffState(0, nnx.LoRAParam)
        out, grads = nnx.value_and_grad(loss, argnums=diff, has_aux=True)(model, batch)
        optimizer.update(model, grads)
        adapter, moments = nnx.state(model, nnx.LoRAParam), nnx.state(optimizer, nnx.optimizer.OptState)
        return out, optax.global_norm(grads), adapter, moments

    return Program(title, run.plan.policy, rows, step, (moments, params, batch), (0,), resident)


def sft_programs(run: Run) -> list[Program]:
    mesh, shape = run.plan.policy, (run.profile.sft.batch_size, run.profile.sft.max_length)

    def loss(model: nnx.Module, batch: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        return sft_loss(model, **model_input(batch)), None

    tokens = rows_of(mesh, *shape)
    batch = {"tokens_BL": tokens, "loss_mask_BL": rows_of(mesh, *shape, dtype=jnp.float32), "piece_BL": tokens}
    return [_train_step(run, "SFT train step", loss, batch, shape[0], run.optimizer())]


def simpo_programs(run: Run) -> list[Program]:
    mesh, s = run.plan.policy, run.profile.simpo
    rows, length = 2 * s.batch_size, s.max_prompt_length + s.max_new_tokens
    tokens = rows_of(mesh, rows, length)
    batch = PairExample(
        input_ids=tokens, positions=tokens, attention_mask=rows_of(mesh, rows, length, length, dtype=bool),
        ref_chosen_logps=None, ref_rejected_logps=None,
        completion_mask=rows_of(mesh, rows, s.max_new_tokens, dtype=bool), logits_to_keep=s.max_new_tokens)
    return [_train_step(run, "SimPO train step", simpo_loss(s), batch, rows, run.optimizer())]


def grpo_programs(run: Run) -> list[Program]:
    """The train step of GRPO, and the reference's log-probabilities of its completions."""
    g, mesh, (graph, state) = run.profile.grpo, run.plan.policy, nnx.split(run.policy)
    rows, length = g.prompts_per_pass * g.num_generations, g.max_new_tokens
    config = loss_config(LossSettings(), num_generations=2)
    config.temperature = 1.0  # as the learner sets it
    loss = partial(function_registry.get_policy_loss_fn(config.policy_loss_fn), algo_config=config, pad_id=0, eos_id=1)
    prompts, completions = rows_of(mesh, rows, g.max_prompt_length), rows_of(mesh, rows, length)
    example = TrainExample(
        prompt_ids=prompts, prompt_mask=prompts.update(dtype=bool),
        completion_ids=completions, completion_mask=completions.update(dtype=bool),
        advantages=rows_of(mesh, rows, dtype=jnp.float32), ref_per_token_logps=completions.update(dtype=jnp.float32),
        old_per_token_logps=None)
    return [
        _train_step(run, "GRPO train step", loss, example, rows, run.optimizer(passes=True),
                    run.resident(run.adapter, *run.rollout_copy)),
        Program("GRPO reference", mesh, rows, partial(completion_logprobs, graph, pad_id=0, eos_id=1),
                (state, prompts, completions),
                resident=run.resident(run.adapter, nnx.state(run.optimizer(passes=True)), *run.rollout_copy))]


def rollout_programs(run: Run) -> list[Program]:
    """The prefill of a step's prompts, one decode step and the loop around it, next to what GRPO keeps in memory. For a
    rollout in segments also a step of the first one, with its short cache."""
    g = run.profile.grpo
    trained = [nnx.state(run.policy)["layers"]] * g.int8_weights
    resident = run.resident(run.adapter, nnx.state(run.optimizer(passes=True)), *trained)
    rows = g.prompts_per_call * g.num_generations
    sampled = run, run.rollout_policy, rows, resident, g.int8_cache, g.max_prompt_length
    programs = _rollout(*sampled, g.max_new_tokens, ("rollout prefill", "one decode step", "decode loop"))
    if g.segments:
        programs.append(_rollout(*sampled, min(SEGMENT, g.max_new_tokens), ("", "early decode step", ""))[1])
    return programs


def _cache(run: Run, rows: int, size: int, int8: bool) -> dict:
    mesh, dtype = run.plan.policy, run.policy.embedder.input_embedding.dtype
    arrays = cache_arrays(run.policy_config, rows, size, dtype, int8, mesh)
    axes = ("tp", None) if heads_first(mesh) else (None, "tp")
    layer = {name: array(mesh, *shape_and_dtype, "fsdp", *axes) for name, shape_and_dtype in arrays.items()}
    layer["end_index"] = rows_of(mesh, rows)
    return {f"layer_{number}": layer for number in range(run.policy_config.num_layers)}


def _rollout(run: Run, policy: nnx.Module, rows: int, resident: tuple, int8_cache: bool, prompt: int, new: int,
             titles: tuple[str, str, str]) -> list[Program]:
    """Sampled at temperature 1, with a KV cache for `prompt` and `new` tokens. The step tells the time of a token, the
    loop the memory, because the compiler may lay out the cache anew before it and after it."""
    mesh, size, (graph, state) = run.plan.policy, prompt + new, nnx.split(policy)

    def draw(key: jax.Array, logits_BLV: jax.Array, cache: dict) -> tuple[jax.Array, dict]:
        return sample_top_p(logits_BLV[:, -1:], key, temperature=1.0, top_p=1.0, top_k=None)[0], cache

    def prefill(state: nnx.State, cache: dict, key: jax.Array, tokens_BP: jax.Array) -> tuple:
        present_BP = tokens_BP != 0
        mask_BPS = jnp.pad(make_causal_attn_mask(present_BP), ((0, 0), (0, 0), (0, new)))
        return draw(key, *nnx.merge(graph, state)(
            tokens_BP, build_positions_from_mask(present_BP), cache, mask_BPS, decode_only_last_token=True))

    def decode(state: nnx.State, cache: dict, key: jax.Array, tokens_BS, positions_BS, step: jax.Array) -> tuple:
        token_B1, position_B1 = (x_BS[:, step][:, None] for x_BS in (tokens_BS, positions_BS))
        mask_B1S = compute_attention_masks(step, size, tokens_BS == 0)  # inside, as in the sampler: half the traffic
        return draw(key, *nnx.merge(graph, state)(token_B1, position_B1, cache, mask_B1S))

    def loop(state: nnx.State, cache: dict, key: jax.Array, *arguments: jax.Array) -> tuple:
        tokens_BS, done_B, rows_B, pads_B, eos, step, enough = arguments
        return decode_segment(graph, 0, state, cache, tokens_BS, None, done_B, rows_B, pads_B, eos, key, step, enough,
                              temperature=1.0, top_p=1.0, top_k=None, return_logprobs=False)

    shared = state, _cache(run, rows, size, int8_cache), array(mesh, (2,), jnp.uint32)
    prompts, buffer = rows_of(mesh, rows, prompt), rows_of(mesh, rows, size)
    row, pair, number = (array(mesh, shape, jnp.int32) for shape in ((rows,), (2,), ()))
    inputs = (prompts,), (buffer, buffer, number), (
        buffer, array(mesh, (rows,), bool), row, row, pair, number, number)
    looked_up = (state["embedder"]["input_embedding"],) * ("int8_head" in state["embedder"])  # or it is the head
    return [Program(title, mesh, rows, function, (*shared, *more), (1,), resident, looked_up, function is loop)
            for title, function, more in zip(titles, (prefill, decode, loop), inputs, strict=True)]


def judge_programs(run: Run, read: Callable | None = None, title: str = "judge prefill") -> list[Program]:
    """The judge's prefill of rows in pieces, with the log-probabilities of the ratings, or with what `read` reads."""

    def ratings(model: nnx.Module, inputs: tuple, piece_BL: jax.Array) -> jax.Array:
        logits_BKV, _ = model(*inputs, logits_at=last_tokens(piece_BL))
        return jax.nn.log_softmax(logits_BKV.astype(jnp.float32))[..., :RATINGS]

    resident = ()
    if is_shared(run.plan):
        resident = nnx.state(run.policy), run.adapter, nnx.state(run.optimizer(passes=True)), *run.rollout_copy
    return [_prefill(run, title, run.plan.judge, run.judge, read or ratings, resident)]


def itself_programs(run: Run) -> list[Program]:
    """The policy's pass over its own completions, for RLPR, next to what GRPO keeps in memory."""
    resident = run.resident(run.adapter, nnx.state(run.optimizer(passes=True)), *run.rollout_copy)
    return [_prefill(run, "policy's own pass", run.plan.policy, run.policy, read_probability, resident)]


def _prefill(run: Run, title: str, mesh: Mesh, model: nnx.Module, read: Callable, resident: tuple) -> Program:
    """The program of `logprobs.prefill` for its longest rows."""
    graph, state = nnx.split(model)

    def forward(state: nnx.State, tokens_BL: jax.Array, positions_BL: jax.Array, piece_BL: jax.Array) -> jax.Array:
        inputs = tokens_BL, positions_BL, None, piece_mask(tokens_BL != 0, piece_BL)
        return read(nnx.merge(graph, state), inputs, piece_BL)

    inputs = [rows_of(mesh, run.profile.judge_batch, run.profile.judge_max_length)] * 3
    return Program(title, mesh, run.profile.judge_batch, forward, (state, *inputs), resident=resident)


def distill_programs(run: Run) -> list[Program]:
    """The student's rollout and its train step."""
    mesh, d, vocabulary = run.plan.policy, run.profile.distill, min(run.policy.num_embed, run.judge.num_embed)
    rows, prompt, length = d.batch_size, d.max_prompt_length, d.max_new_tokens
    loss = student_loss(d, mesh, vocabulary)
    batch = {"tokens_BL": rows_of(mesh, rows, prompt + length), "targets_BT": rows_of(mesh, rows, length),
             "ids_BTK": rows_of(mesh, rows, length, d.top_k),
             "teacher_BTC": rows_of(mesh, rows, length, d.top_k + 1, dtype=jnp.float32)}
    return [
        *_rollout(run, run.policy, rows, run.resident(nnx.state(run.optimizer())), False, prompt, length,
                  ("distillation prefill", "distillation decode step", "distillation loop")),
        _train_step(run, "distillation train step", lambda model, batch: (loss(model, **batch), None), batch, rows,
                    run.optimizer(), run.resident())]


def teacher_programs(run: Run) -> list[Program]:
    """The teacher's pass over the student's completions."""
    mesh, d, (graph, state) = run.plan.judge, run.profile.distill, nnx.split(run.judge)
    read = teacher_pass(d, mesh, min(run.policy.num_embed, run.judge.num_embed))
    resident = (nnx.state(run.policy), nnx.state(run.optimizer())) if is_shared(run.plan) else ()
    tokens = rows_of(mesh, d.batch_size, d.max_prompt_length + d.max_new_tokens)
    return [Program("teacher's pass", mesh, d.batch_size, lambda state, ids_BL: read(nnx.merge(graph, state), ids_BL),
                    (state, tokens), resident=resident)]


OTHERS = "judge", "reward model", "teacher"  # programs of the model in the judge's place
PROGRAMS = {"sft": sft_programs, "simpo": simpo_programs, "grpo": grpo_programs,
            "rollout": rollout_programs, "judge": judge_programs,
            "distill": distill_programs, "teacher": teacher_programs,
            "reward model": partial(judge_programs, read=read_features, title="reward model's pass"),
            "itself": itself_programs}
