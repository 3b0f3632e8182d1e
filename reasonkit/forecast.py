"""A run held against its chips and its hours before it begins: does it fit, and how long will it take?

    python -m reasonkit.forecast --recipe g_rar --model gemma2-2b-it --topology v5e:2x4

What it is: the meshes of a profile, chosen by an estimate of bytes; the programs of its stages, compiled (`preflight`);
and minutes, of floors and an efficiency. A compiled table is kept on disk, under a hash of all that it depends on.
What it is not: a promise. `EFFICIENCY` is a guess until a stage of the run has been timed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from reasonkit import programs
from reasonkit.budget import write_atomic
from reasonkit.data import load_recipe
from reasonkit.hf_config import LIBRARY
from reasonkit.mesh import ROOM, Need, Plan, plan_mesh
from reasonkit.models import MODELS
from reasonkit.preflight import CHIPS, GIB, KIND_OF, Report, Row, preflight, topology_devices
from reasonkit.programs import Shapes
from reasonkit.recipes import PROFILES, RECIPES, Profile, Recipe

EFFICIENCY = 0.4  # of the floor's speed; 0.3 to 0.5 of a chip's peak is usual in training
COMPILE_MINUTES = 25.0  # to load the weights and compile, over all stages
DEPTHS = (2, 4)


def config_of(name: str, remat: bool = False) -> Any:
    """Tunix's configuration of a named model, weights replicated. Raises ValueError for a name without one."""
    source = MODELS.get(name)
    if source is None or not source.config:
        known = ", ".join(key for key, found in MODELS.items() if found.config)
        raise ValueError(f"model {name!r} has no configuration to plan with: choose one of {known}")
    library = LIBRARY[source.family]
    return replace(getattr(library.ModelConfig, source.config)(),
                   shd_config=library.ShardingConfig.get_default_sharding(is_sampling=True),
                   remat_config=library.RematConfig["DECODER" if remat else "NONE"])


def shapes_of(profile: Profile) -> Shapes:
    """The sizes of the programs of a profile's stages."""
    g = profile.grpo
    micro = g.micro_prompts or g.prompts_per_step
    return Shapes(sft_rows=profile.sft.batch_size, sft_length=profile.sft.max_length,
                  grpo_rows=micro * g.num_generations, max_prompt_length=g.max_prompt_length,
                  max_new_tokens=g.max_new_tokens,
                  decode_rows=(g.rollout_micro_prompts or g.prompts_per_step) * g.num_generations,
                  judge_rows=profile.judge_batch, judge_length=profile.judge_max_length)


def _weights(config: Any) -> int:
    """Parameters: the embedding, and in each layer attention, feed-forward and what is small."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    layer = config.embed_dim * (heads + 3 * config.hidden_dim)
    return config.num_embed * config.embed_dim + config.num_layers * layer


def needs(profile: Profile, policy: Any, judge: Any, sft: bool) -> dict[str, Need]:
    """Bytes of the roles, estimated for bfloat16: weights, and the largest of what the stages work with.

    A decode step holds the KV cache and the prompts' logits; a train step the logits, each layer's input, and one
    layer's activations (all layers' without remat); a judge its logits and one layer.
    """
    s = shapes_of(profile)

    def layer(config: Any, rows: int, length: int) -> float:
        wide = 12 * config.embed_dim + 3 * config.hidden_dim + 3 * config.num_heads * length
        return 2.0 * rows * length * wide

    def train(rows: int, length: int, replied: int) -> float:
        deep = 1 if policy.remat_config.name != "NONE" else policy.num_layers
        inputs = 2.0 * rows * length * policy.embed_dim * policy.num_layers
        return deep * layer(policy, rows, length) + inputs + 4.0 * rows * replied * policy.num_embed

    adapter = policy.num_layers * profile.lora_rank * (
        8 * policy.embed_dim + 2 * policy.num_heads * policy.head_dim + 3 * policy.hidden_dim)
    rows, size = s.decode_rows, s.max_prompt_length + s.max_new_tokens
    cache = 4.0 * rows * size * policy.num_layers * policy.num_kv_heads * policy.head_dim
    working = [cache + 2.0 * rows * s.max_prompt_length * policy.num_embed, train(s.grpo_rows, size, s.max_new_tokens)]
    if sft:
        working = [train(s.sft_rows, s.sft_length, s.sft_length)]
    found = {"policy": Need(2.0 * (_weights(policy) + 4 * adapter), max(working), policy.num_kv_heads)}
    if judge is not None:
        logits = 2.0 * s.judge_rows * s.judge_length * judge.num_embed
        found["judge"] = Need(2.0 * _weights(judge), layer(judge, s.judge_rows, s.judge_length) + logits,
                              judge.num_kv_heads)
    return found


def memory_of(device: jax.Device) -> float:
    """Bytes that programs may use on a device; infinite on a CPU, where virtual devices share the machine's."""
    if device.platform == "cpu":
        return math.inf
    if device.device_kind in KIND_OF:
        return CHIPS[KIND_OF[device.device_kind]].memory
    return float(device.memory_stats()["bytes_limit"])


def plan(profile: Profile, devices: Sequence[jax.Device], judge: bool) -> Plan:
    """The meshes of a stage: GRPO's with the judge on its own chips, SFT's and the evaluation's without.

    Raises ValueError when a model does not fit on its chips however it is split.
    """
    memory = memory_of(devices[0])
    if math.isinf(memory):
        return plan_mesh(devices, judge=judge)
    policy = config_of(profile.policy, profile.remat)
    found = needs(profile, policy, config_of(profile.judge) if judge else None, sft=not judge)
    return plan_mesh(devices, judge=judge, needs=found, memory=memory)


@dataclass(frozen=True)
class Forecast:
    """The compiled programs of a run and what follows: `minutes` by stage, against those of the session."""

    report: Report
    reasons: dict[str, str]
    minutes: dict[str, float]
    limit: float
    efficiency: float

    @property
    def fits(self) -> bool:
        """Whether every program leaves a tenth of the memory free."""
        return all(row.needed <= ROOM * CHIPS[self.report.chip].memory for row in self.report.rows)

    def largest(self) -> dict[str, int]:
        """Program -> about how many rows would still leave a tenth of the memory free, as its mesh divides them."""
        found = {}
        for row in self.report.rows:
            if row.fixed is not None and row.needed > row.fixed:
                room = ROOM * CHIPS[self.report.chip].memory - row.fixed
                rows = max(0.0, room / (row.needed - row.fixed)) * row.rows
                found[row.program] = int(rows // row.mesh.shape["fsdp"] * row.mesh.shape["fsdp"])
        return found

    def text(self) -> str:
        """All of it, for a person."""
        total = sum(self.minutes.values())
        verdict = ("which fits" if total <= self.limit else
                   "which does not fit: GRPO will end when its time does, with the schedule fitted to it")
        free = min(1 - row.needed / CHIPS[self.report.chip].memory for row in self.report.rows)
        return "\n".join([
            *(f"{role}: {reason}" for role, reason in self.reasons.items()), "", self.report.table(), "",
            "largest rows that leave a tenth free, about: " + ", ".join(
                f"{program} {rows}" for program, rows in self.largest().items()),
            f"the fullest program leaves {free:.0%} of a chip free" + ("" if self.fits else ": less than a tenth"),
            f"minutes at {self.efficiency:.0%} of the floor's speed: " + ", ".join(
                f"{stage} {minutes:.0f}" for stage, minutes in self.minutes.items())
            + f"; {total:.0f} of {self.limit:.0f}, {verdict}"])


def forecast(profile: Profile, recipe: Recipe, devices: Sequence[jax.Device], chip: str, folder: Path | None = None,
             efficiency: float = EFFICIENCY, depths: tuple[int, int] | None = DEPTHS) -> Forecast:
    """Compile what a run of the recipe will run on these devices, or read it in `folder` where that was done before.

    `depths` None compiles all layers: ten times as long. Raises ValueError when a model does not fit, or the chip is
    not one of CHIPS.
    """
    judged = "rubric" in recipe.rewards
    policy, judge = config_of(profile.policy, profile.remat), config_of(profile.judge) if judged else None
    alone, together = plan(profile, devices, False), plan(profile, devices, judged)
    shapes = shapes_of(profile)

    def compiled(made: Plan, judge: Any, names: Sequence[str]) -> tuple[Row, ...]:
        config = policy
        if "policy" in made.gathered:
            config = replace(policy, shd_config=type(policy.shd_config).get_default_sharding())
        depends = (config, judge, [str(mesh and mesh.shape) for mesh in (made.policy, made.judge)], chip, shapes, names,
                   profile.lora_rank, depths, Path(programs.__file__).read_text(),
                   [importlib.metadata.version(name) for name in ("jax", "flax", "google-tunix", "qwix")])
        path = folder and folder / f"{hashlib.sha256(repr(depends).encode()).hexdigest()[:16]}.json"
        if path and path.exists():
            rows = json.loads(path.read_text())
            return tuple(Row(**row, mesh=made.judge if row["program"].startswith("judge") else made.policy)
                         for row in rows)
        report = preflight(config, judge, made, shapes, profile.lora_rank, chip, names, jnp.bfloat16, depths)
        if path:
            plain = [{name: value for name, value in vars(row).items() if name != "mesh"} for row in report.rows]
            write_atomic(path, json.dumps(plain))
        return report.rows

    rows = (*compiled(alone, None, ("sft",)), *compiled(together, judge, ("rollout", "grpo")),
            *(compiled(together, judge, ("judge",)) if judged else ()))
    report = Report(rows, chip)
    return Forecast(report, together.reasons, _minutes(profile, recipe, report, efficiency, together), profile.minutes
                    - profile.reserve_minutes, efficiency)


def _minutes(profile: Profile, recipe: Recipe, report: Report, efficiency: float, made: Plan) -> dict[str, float]:
    """Of each stage, at this share of the floor's speed. A program that was refused counts as endless."""
    seconds = {}
    for row in report.rows:
        floor = row.floor(CHIPS[report.chip])
        seconds[row.program] = math.inf if floor is None else floor[0] / efficiency
    g = profile.grpo
    passes = g.prompts_per_step // (g.micro_prompts or g.prompts_per_step)
    calls = g.prompts_per_step // (g.rollout_micro_prompts or g.prompts_per_step)
    reply = seconds["rollout prefill"] + g.max_new_tokens * seconds["one decode step"]
    trained = passes * (seconds["GRPO reference"] + seconds["GRPO train step"])
    step = calls * reply + trained
    if "judge prefill" in seconds:
        rated = g.prompts_per_step * g.num_generations * len(load_recipe(recipe.data).rubric)
        judged = math.ceil(rated / profile.judge_batch) * seconds["judge prefill"]
        apart = not set(made.judge.devices.flat) & set(made.policy.devices.flat)
        # beside the policy, all but the first pass is judged while another trains
        step = calls * reply + (judged / passes + max(trained, judged) if apart and g.rollout_micro_prompts
                                else trained + judged)
    asked = 3 * profile.rows["test"] + profile.rows["validation"] * (g.steps // profile.probe_every)
    return {"load and compile": COMPILE_MINUTES, "sft": profile.sft.steps * seconds["SFT train step"] / 60,
            "grpo": g.steps * step / 60, "evaluation": math.ceil(asked / profile.eval_batch) * reply / 60}


def at_hand(profile: Profile, recipe: Recipe, devices: Sequence[jax.Device], folder: Path,
            log_rows: Sequence[dict] = ()) -> str:
    """What a notebook says before it loads anything: the forecast for its own chips, at SFT's measured speed once
    `log_rows` has it, or why there is none. Raises ValueError when a program will not fit, with what to change."""
    chip = KIND_OF.get(devices[0].device_kind)
    if chip is None:
        return f"no forecast for {devices[0].device_kind!r}: peaks are known for {', '.join(KIND_OF)}"
    found = forecast(profile, recipe, devices, chip, folder)
    if measured := measured_efficiency(found, profile, log_rows):
        found = forecast(profile, recipe, devices, chip, folder, measured)
    for row in found.report.rows:
        if row.needed > CHIPS[chip].memory:
            raise ValueError(f"{row.program} needs {row.needed / GIB:.1f} GiB of a {chip} chip's "
                             f"{CHIPS[chip].memory / GIB:g}: in profile {profile.name!r}, give it "
                             f"{found.largest().get(row.program, 0)} rows instead of {row.rows}\n{found.text()}")
    return found.text()


def measured_efficiency(forecast: Forecast, profile: Profile, log_rows: Sequence[dict]) -> float | None:
    """The efficiency that SFT's steps had by its log; None with too few. The first steps compile and don't count."""
    times = [row["seconds"] for row in log_rows if row.get("event") == "sft_step"][3:]
    if len(times) < 5:
        return None
    return forecast.efficiency * 60 * forecast.minutes["sft"] / profile.sft.steps / median(times)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0 when all fits in memory with a tenth free, 1 when something does not."""
    parser = argparse.ArgumentParser("reasonkit.forecast", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, default="g_rar")
    parser.add_argument("--profile", choices=[name for name in PROFILES if not PROFILES[name].devices],
                        default="kaggle")
    parser.add_argument("--model", help="the policy, instead of the profile's")
    parser.add_argument("--judge", help="the same for the judge")
    parser.add_argument("--topology", default="v5e:2x4", help="of TPU chips, as libtpu names them")
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY)
    parser.add_argument("--whole", action="store_true", help="compile all layers, instead of two shallow models")
    parser.add_argument("--cache", type=Path, default=Path("artifacts/preflight"))
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    profile = PROFILES[options.profile]
    profile = replace(profile, policy=options.model or profile.policy, judge=options.judge or profile.judge)
    chip = options.topology.split(":")[0]
    try:
        devices = topology_devices(options.topology)
        print(f"compiling for {options.topology}: some minutes, unless it was done before", file=sys.stderr)
        found = forecast(profile, RECIPES[options.recipe], devices, chip, options.cache, options.efficiency,
                         None if options.whole else DEPTHS)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(f"recipe {options.recipe}, profile {options.profile}: {profile.policy}"
          + (f", judge {profile.judge}" if found.report.rows[-1].program.startswith("judge") else "")
          + f", {options.topology}\n{found.text()}")
    return 0 if found.fits else 1


if __name__ == "__main__":
    sys.exit(main())
