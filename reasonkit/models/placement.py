"""The meshes of a profile, chosen by an estimate of bytes: `plan`. Nothing is compiled, so it takes no time.

`tools.preflight` compiles the programs for these meshes and reports what they really need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from reasonkit.config import Profile
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.gemma import LIBRARY
from reasonkit.models.load import MODELS, LoadedModel, load, quantize_int8
from reasonkit.models.logprobs import CHUNK
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import MemoryNeed, Plan, plan_mesh
from reasonkit.session.setup import CHOOSE

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Peak bfloat16 FLOP/s, peak HBM bytes/s, and the bytes of HBM that programs may use."""

    flops: float
    bandwidth: float
    memory: float


# Peaks as Google publishes them; memory as libtpu grants it, of 16, 32, 32 and 96 GiB.
CHIPS = {"v5e": Chip(197e12, 819e9, 15.75 * GIB), "v6e": Chip(918e12, 1640e9, 31.25 * GIB),
         "v4": Chip(275e12, 1228e9, 30.75 * GIB), "v5p": Chip(459e12, 2765e9, 95.74 * GIB)}

KIND_OF = {"TPU v5 lite": "v5e", "TPU v6 lite": "v6e", "TPU v4": "v4", "TPU v5": "v5p"}  # JAX's names


def config_of(name: str, remat: bool = False, replicated: bool = True) -> Any:
    """Tunix's configuration of a named model, placed as by `models.load`. Raises ValueError for a name without one."""
    source = MODELS.get(name)
    if source is None or not source.config:
        known = ", ".join(key for key, found in MODELS.items() if found.config)
        raise ValueError(f"model {name!r} has no configuration to plan with: choose one of {known}")
    library = LIBRARY[source.family]
    config = getattr(library.ModelConfig, source.config)()
    if source.config.startswith("gemma2_9b"):  # Tunix 0.1.7 has twice as much: see `gemma.from_flax`
        config = replace(config, hidden_dim=14336)
    return replace(config, shd_config=library.ShardingConfig.get_default_sharding(is_sampling=replicated),
                   remat_config=library.RematConfig["DECODER" if remat else "NONE"])


def parameters(config: Any) -> tuple[int, int]:
    """How many the embedding has, and attention and feed-forward in all layers."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    layer = config.embed_dim * (heads + 3 * config.hidden_dim)
    return config.num_embed * config.embed_dim, config.num_layers * layer


def adapter_parameters(profile: Profile, policy: Any) -> int:
    return policy.num_layers * profile.lora_rank * (
        8 * policy.embed_dim + 2 * policy.num_heads * policy.head_dim + 3 * policy.hidden_dim)


def cache_bytes(config: Any, itemsize: int = 2) -> int:
    """Of one token of one row in the KV cache, in all layers."""
    return 2 * itemsize * config.num_layers * config.num_kv_heads * config.head_dim


def disk_bytes(profile: Profile) -> float:
    """Estimated bytes of a run's checkpoints, in float32 with two moments: those kept, the one being written, and the
    stages' adapters. A model without a configuration here counts as a tiny one."""
    source = MODELS.get(profile.policy)
    if not (source and source.config):
        return 1e8
    return 12.0 * adapter_parameters(profile, config_of(profile.policy)) * (profile.grpo.keep + 3)


def needs(profile: Profile, policy: Any, judge: Any, sft: bool, chips: int = 1) -> dict[str, MemoryNeed]:
    """Bytes of the roles, estimated for bfloat16: weights, and the largest working memory of the stages.

    The policy's weights include float32 arrays of the adapter's size: the adapter, its gradients and two moments, and
    in the base's dtype the copy that computes and its gradients. GRPO adds the reference's adapter and the sum of a
    step's gradients, and with `int8_weights` a byte for each number of embedding and matrices. A rollout or an
    evaluation holds the KV cache and one layer's activations of the prompts. A train step holds the logits, each
    layer's input, and the activations of one layer, or of all layers without remat. A judge holds one layer's
    activations. The teacher of notebook 1b in its place also answers `judge_batch` questions, as a rollout does.
    """
    g = profile.grpo
    length = g.max_prompt_length + g.max_new_tokens

    def layer(config: Any, rows: int, length: int) -> float:
        wide = 12 * config.embed_dim + 3 * config.hidden_dim + 3 * config.num_heads * length
        return 2.0 * rows * length * wide

    def train(rows: int, length: int, replied: int, stock_loss: bool) -> float:
        deep = 1 if policy.remat_config.name != "NONE" else policy.num_layers
        inputs = 2.0 * rows * length * policy.embed_dim * policy.num_layers
        logits = min(rows * replied * policy.num_embed, math.inf if stock_loss else CHUNK * chips)
        return deep * layer(policy, rows, length) + inputs + 4.0 * logits

    def rollout(config: Any, rows: int, itemsize: int = 2) -> float:
        return rows * length * cache_bytes(config, itemsize) + layer(config, rows, g.max_prompt_length)

    adapter = adapter_parameters(profile, policy)
    working = [rollout(policy, profile.eval_batch)]
    if sft:
        longest = profile.sft.max_length
        working += [train(profile.sft.batch_size, longest, longest, profile.sft.stock_loss)]
    else:
        working += [rollout(policy, g.prompts_per_call * g.num_generations, 1 if g.int8_cache else 2),
                    train(g.prompts_per_pass * g.num_generations, length, g.max_new_tokens, g.stock_loss)]
    weights = 2.0 * sum(parameters(policy)) + 4.0 * (5 if sft else 7) * adapter
    weights += sum(parameters(policy)) * (g.int8_weights and not sft)
    found = {"policy": MemoryNeed(weights, max(working), policy.num_kv_heads)}
    if judge is not None:
        (embedding, matrices), rows = parameters(judge), profile.judge_batch
        weights = 2.0 * embedding + (1.0 if profile.judge_int8 else 2.0) * matrices
        working = max(layer(judge, rows, profile.judge_max_length), rollout(judge, rows))
        found["judge"] = MemoryNeed(weights, working, judge.num_kv_heads)
    return found


def memory_of(device: jax.Device) -> float:
    """Bytes that programs may use on a device. Infinite on a CPU, where virtual devices share the machine's."""
    if device.platform == "cpu":
        return math.inf
    if device.device_kind in KIND_OF:
        return CHIPS[KIND_OF[device.device_kind]].memory
    return float(device.memory_stats()["bytes_limit"])


def plan(profile: Profile, devices: Sequence[jax.Device], judge: bool, grpo: bool = False) -> Plan:
    """The meshes of a stage. With a judge, which has its own chips if there are several, they have room for GRPO.
    Without one they have it if `grpo`, else for SFT and the evaluation.

    Raises ValueError when a model does not fit on its chips however it is split. Raises RuntimeError for a profile of
    an accelerator on a CPU, which would train for weeks.
    """
    memory = memory_of(devices[0])
    if math.isinf(memory) and not profile.devices:
        raise RuntimeError(f"profile {profile.name!r} is for an accelerator, and JAX sees {len(devices)} CPU device"
                           f"{'s' * (len(devices) > 1)}: {CHOOSE}")
    if math.isinf(memory):
        return plan_mesh(devices, judge=judge)
    policy = config_of(profile.policy, profile.remat)
    found = needs(profile, policy, config_of(profile.judge) if judge else None, not (judge or grpo),
                  chips=max(1, len(devices) // 2) if judge else len(devices))
    return plan_mesh(devices, judge=judge, needs=found, memory=memory)


def plan_distillation(profile: Profile, devices: Sequence[jax.Device]) -> Plan:
    """The meshes of notebook 3b: the student, and the teacher in the judge's place. A student samples and trains on
    `distill.batch_size` completions at once, and never on GRPO's. Raises as `plan`."""
    d = profile.distill
    rows = replace(profile.grpo, prompts_per_step=d.batch_size, num_generations=1, micro_prompts=0,
                   rollout_micro_prompts=0, max_prompt_length=d.max_prompt_length, max_new_tokens=d.max_new_tokens,
                   int8_weights=False, int8_cache=False)
    return plan(replace(profile, judge=profile.teacher, judge_int8=False, grpo=rows), devices, judge=True)


def plan_teacher(profile: Profile, devices: Sequence[jax.Device], judge: bool) -> tuple[Plan, int, int]:
    """The meshes of notebook 1b, where the policy writes and nothing is trained, how many questions it answers at once,
    and how many tokens a request may have. It answers `eval_batch` questions, or a half, a quarter or an eighth of it
    if no weights are gathered then. Raises as `plan`."""
    length = profile.grpo.max_prompt_length + 128  # a request may say more than the prompt of training
    idle = replace(profile, lora_rank=0, sft=replace(profile.sft, batch_size=0),
                   grpo=replace(profile.grpo, max_prompt_length=length, num_generations=0, int8_weights=False))
    fitting, error = [], None
    for rows in dict.fromkeys(max(1, profile.eval_batch // part) for part in (1, 2, 4, 8)):
        try:
            fitting.append((plan(replace(idle, eval_batch=rows), devices, judge), rows, length))
        except ValueError as refused:
            error = refused
    if not fitting:
        raise ValueError(f"{profile.policy}, which writes in the policy's place: {error}") from error
    return next((found for found in fitting if "policy" not in found[0].gathered), fitting[0])


def load_policy(profile: Profile, made: Plan, seed: int, adapter: Path | None = None) -> tuple[LoadedModel, int]:
    """The profile's policy on its chips, with the adapter in `adapter` and its step, or with a fresh one and 0. Prints
    which. Raises as `load` and `restore_lora`."""
    base = load(profile.policy, made.policy, profile.dtype, replicated="policy" not in made.gathered,
                remat=profile.remat)
    policy = replace(base, model=add_lora(base.model, made.policy, profile.lora_rank, profile.lora_alpha, seed))
    step = restore_lora(policy.model, adapter) if adapter else 0
    print(f"{policy.name} with " + (f"the adapter that ended at step {step}" if adapter else "a fresh adapter")
          + f" of rank {profile.lora_rank}, alpha {profile.lora_alpha:g}, on all linear layers")
    return policy, step


def load_judge(profile: Profile, made: Plan) -> LoadedModel:
    """The profile's judge model on the judge's chips, in 8 bits if the profile says so."""
    judge = load(profile.judge, made.judge, profile.dtype, replicated="judge" not in made.gathered)
    return quantize_int8(judge, made.judge) if profile.judge_int8 else judge
