"""Does a run fit its chips and its hours? `forecast` compiles a profile's programs and estimates the minutes.

    python -m tools.preflight.forecast --recipe g_rar --model gemma2-2b-it --topology v5e:2x4

The minutes are rooflines divided by `EFFICIENCY`, which is a guess until a stage of the run has been timed. Results of
compiling are kept on disk, under a hash of everything that they depend on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp

from reasonkit.choices import choose
from reasonkit.config import PROFILES, STAGES, Profile, Recipe
from reasonkit.data.problems import domain_rubric, load_recipe
from reasonkit.data.sources import DataRecipe
from reasonkit.models.logprobs import SHARED, padded_lengths
from reasonkit.models.mesh import ROOM, Plan
from reasonkit.models.placement import CHIPS, GIB, KIND_OF, config_of, plan, plan_distillation
from reasonkit.session.files import RecordError, parse_json, read_file, write_atomic
from reasonkit.session.setup import find_recipe, recipe_names
from recipes.stages.reward_model import QUESTIONS
from tools.preflight.compiled import ProgramStats, preflight, table, topology_devices
from tools.preflight.programs import OTHERS, Run, is_shared, sizes

EFFICIENCY = 0.4  # of the roofline's speed. In training 0.3 to 0.5 of a chip's peak is usual
LOAD, LOAD_MINUTES = "load and compile", 25.0  # also a guess: loading weights and compiling, for all stages together
LOADING_MINUTES = 10.0  # of these, for loading, and for compiling what is not in the steps of TIMED's stages
TIMED = "sft", "grpo", "distill"  # stages whose steps, in a log, give the speed. SimPO also samples its pairs
# What the programs are made of
SOURCES = "reasonkit/models", "reasonkit/train", "recipes/rewards", "recipes/stages", "tools/preflight"
READS = "judge prefill", "reward model's pass", "policy's own pass"  # of a completion, for its reward
# Estimates of what a judge's row has besides question and reply: the request with a mark per line, and a criterion.
FENCE_TOKENS, CRITERION_TOKENS = 128, 72


@dataclass(frozen=True)
class Forecast:
    """A run's compiled programs, its `minutes` by stage, the session's `limit`, and the `steps` planned by stage."""

    rows: list[ProgramStats]
    chip: str
    reasons: dict[str, str]
    minutes: dict[str, float]
    steps: dict[str, int]
    limit: float
    efficiency: float

    @property
    def fits(self) -> bool:
        """Whether every program leaves a tenth of the memory free."""
        return all(row.needed <= ROOM * CHIPS[self.chip].memory for row in self.rows)

    def largest(self) -> dict[str, int]:
        """By program, about how many rows leave a tenth of the memory free. Its mesh divides the number."""
        found = {}
        for row in self.rows:
            if row.fixed is not None and row.needed > row.fixed:
                room = ROOM * CHIPS[self.chip].memory - row.fixed
                rows = max(0.0, room / (row.needed - row.fixed)) * row.rows
                found[row.program] = int(rows // row.mesh["fsdp"] * row.mesh["fsdp"])
        return found

    def correct(self, log_rows: Sequence[dict]) -> Forecast:
        """The forecast at the speed of the steps in the log. A stage without steps there gets the last stage's speed.

        A stage's first three steps compile and don't count. It needs at least five more to have a speed.
        If the log has compile times, the minutes to load and compile are LOADING_MINUTES, those logged, and for each
        stage without any an equal part of what LOAD_MINUTES leaves for compiling.
        """
        measured, efficiency, compiled = {}, self.efficiency, []  # compiled: minutes, by stage
        for stage, steps in self.steps.items():
            rows = [row for row in log_rows if row.get("event") == f"{stage}_step"]
            compiled.append(sum(_positive(each for row in rows for each in row.get("compiled", {}).values())) / 60)
            times = _positive(row.get("seconds") for row in rows)[3:]
            if len(times) >= 5:
                measured[stage] = steps * median(times) / 60
                efficiency = self.efficiency * self.minutes[stage] / measured[stage]
        scaled = {stage: minutes * (1 if stage in (LOAD, "teacher") else self.efficiency / efficiency)
                  for stage, minutes in self.minutes.items()}
        if any(compiled):
            to_come = compiled.count(0.0) / len(compiled) * (LOAD_MINUTES - LOADING_MINUTES)
            scaled[LOAD] = LOADING_MINUTES + sum(compiled) + to_come
        return replace(self, minutes={**scaled, **measured}, efficiency=efficiency)

    def text(self) -> str:
        total, (last, steps) = sum(self.minutes.values()), [*self.steps.items()][-1]
        verdict = "which fits"
        if total > self.limit:
            its = self.minutes[last]
            left = 0.0 if math.isinf(total) else max(0.0, self.limit - total + its) / its
            verdict = (f"which does not fit: {STAGES[last].title} has time for about {int(left * steps)} of its "
                       f"{steps} steps, and its schedule will be fitted to them")
        free = min(1 - row.needed / CHIPS[self.chip].memory for row in self.rows)
        return "\n".join([
            *(f"{role}: {reason}" for role, reason in self.reasons.items()), "", table(self.rows, self.chip), "",
            "largest rows that leave a tenth free, about: " + ", ".join(
                f"{program} {rows}" for program, rows in self.largest().items()),
            f"the fullest program leaves {free:.0%} of a chip free" + ("" if self.fits else ": less than a tenth"),
            f"minutes at {self.efficiency:.0%} of the roofline's speed, all completions as long as they may be: "
            + ", ".join(f"{stage} {minutes:.0f}" for stage, minutes in self.minutes.items())
            + f"; {total:.0f} of {self.limit:.0f}, {verdict}"])


def forecast(profile: Profile, recipe: Recipe, devices: Sequence[jax.Device], chip: str, folder: Path | None = None,
             efficiency: float = EFFICIENCY, whole: bool = False, judge: bool = True) -> Forecast:
    """Compile what a run of the recipe will run on these devices, or read it from `folder` if that was done before.

    `whole` compiles all layers, which takes longer. Without `judge` the recipe's judge, if it has one, runs elsewhere.
    Raises ValueError if a model does not fit, or the chip is not one of CHIPS.
    """
    if chip not in CHIPS:
        raise ValueError(f"chip {chip!r} is unknown: choose from {', '.join(CHIPS)}")
    judged = judge and recipe.uses_judge
    alone, together = plan(profile, devices, False), plan(profile, devices, judged, "grpo" in recipe.shares)

    def compile_for(profile: Profile, made: Plan, name: str) -> list[ProgramStats]:
        shared, config, other = is_shared(made), None, None
        if name not in ("judge", "reward model") or shared:  # a judge on separate chips is the same for every policy
            config = config_of(profile.policy, profile.remat, "policy" not in made.gathered)
        if name in (*OTHERS, "distill") or shared:
            other = config_of(profile.judge, replicated="judge" not in made.gathered)
        depends = (config, other, [str(mesh and mesh.shape) for mesh in (made.policy, made.judge)], chip, name, whole,
                   sizes(profile), [file.read_text() for source in SOURCES
                                    for file in sorted((Path(__file__).parents[2] / source).glob("*.py"))],
                   [importlib.metadata.version(package) for package in ("jax", "flax", "google-tunix", "qwix")])
        path = folder and folder / f"{hashlib.sha256(repr(depends).encode()).hexdigest()[:16]}.json"
        if path and path.exists():
            with contextlib.suppress(RecordError, TypeError):  # another file, or half of one, is compiled again
                return [ProgramStats(**row) for row in parse_json(read_file(path))]
        rows = preflight(Run(config, other, made, profile, jnp.bfloat16), name, whole)
        if path:
            write_atomic(path, json.dumps([vars(row) for row in rows]))
        return rows

    programs = {"sft": (alone, "sft" in recipe.shares), "simpo": (alone, "simpo" in recipe.shares),
                "rollout": (together, True), "grpo": (together, "grpo" in recipe.shares),
                "reward model": (together, judged and "reward_model" in recipe.shares),
                "judge": (together, judged and "reward_model" not in recipe.shares),
                "itself": (together, recipe.asks and not recipe.uses_judge)}
    wanted = [(profile, made, name) for name, (made, needed) in programs.items() if needed]
    reasons = {"SFT, evaluation": alone.reasons["policy"], **together.reasons} if judged else together.reasons
    if "distill" in recipe.shares:
        teaching = replace(profile, judge=profile.teacher, judge_int8=False)
        taught = plan_distillation(profile, devices)
        wanted += [(teaching, taught, "distill"), (teaching, taught, "teacher")]
        reasons = {**reasons, "student": taught.reasons["policy"], "teacher": taught.reasons["judge"]}
    rows = [row for each in wanted for row in compile_for(*each)]
    floors = {row.program: row.roofline(CHIPS[chip]) for row in rows}  # a program that was refused has none
    seconds = {name: floor[0] / efficiency if floor else math.inf for name, floor in floors.items()}
    return Forecast(rows, chip, reasons, _minutes(profile, recipe, seconds, together),
                    {stage: getattr(profile, stage).steps for stage in recipe.shares if stage in TIMED},
                    profile.minutes - profile.reserve_minutes, efficiency)


def _positive(values: Iterable[object]) -> list[float]:
    """Those that are numbers above 0, because a log may hold anything."""
    return [value for value in values if isinstance(value, int | float) and value > 0]


def _minutes(profile: Profile, recipe: Recipe, seconds: dict[str, float], made: Plan) -> dict[str, float]:
    """Minutes by stage, from the seconds of each program."""
    g, d, s = profile.grpo, profile.distill, profile.simpo
    reply = seconds["rollout prefill"] + g.max_new_tokens * seconds["one decode step"]
    minutes = {LOAD: LOAD_MINUTES}
    if "teacher" in recipe.shares:  # the clock ends it, unless every question has its trace before that
        share = recipe.shares["teacher"] / sum(recipe.shares.values())
        minutes["teacher"] = share * (profile.minutes - profile.reserve_minutes)
    if "sft" in recipe.shares:
        minutes["sft"] = profile.sft.steps * seconds["SFT train step"] / 60
    if "simpo" in recipe.shares:
        sampled = math.ceil(s.questions * s.num_generations / (g.prompts_per_call * g.num_generations)) * reply
        minutes["simpo"] = (sampled + s.steps * seconds["SimPO train step"]) / 60
    if "reward_model" in recipe.shares:
        minutes["reward_model"] = _examples(profile, seconds, reply) / 60
    if "grpo" in recipe.shares:
        drawn = reply
        if g.segments:  # with all rows to the end, but a cache that grows
            drawn = seconds["rollout prefill"] / g.num_generations + g.max_new_tokens * (
                seconds["early decode step"] + seconds["one decode step"]) / 2
        minutes["grpo"] = g.steps * _grpo_step(profile, recipe, seconds, drawn, made) / 60
    if "distill" in recipe.shares:  # its parts run one after the other
        sampled = seconds["distillation prefill"] + d.max_new_tokens * seconds["distillation decode step"]
        step = d.on_policy * sampled + seconds["teacher's pass"] + seconds["distillation train step"]
        minutes["distill"] = d.steps * step / 60
    probes = (g.steps // profile.probe_every + 2) * ("grpo" in recipe.shares)  # one before and one after
    asked = (1 + len(recipe.training_stages)) * profile.rows["test"] + profile.rows["validation"] * probes
    return {**minutes, "evaluation": math.ceil(asked / profile.eval_batch) * reply / 60}


def _examples(profile: Profile, seconds: dict[str, float], reply: float) -> float:
    """Seconds of notebook 2c: the policy answers for examples, and the judge model reads them. Of each question there
    may also be a worked solution and a flawed one."""
    g, most = profile.grpo, profile.judge_max_length
    asked = [min(QUESTIONS, profile.rows[split]) for split in ("train", "validation")]
    sampled = sum(math.ceil(count / g.prompts_per_call) for count in asked) * reply
    length = next(n for n in padded_lengths(most) if n >= min(g.max_prompt_length + g.max_new_tokens, most))
    read = math.ceil(sum(asked) * (g.num_generations + 2) / profile.judge_batch)
    return sampled + read * seconds.get("reward model's pass", 0.0) * length / most


def _grpo_step(profile: Profile, recipe: Recipe, seconds: dict[str, float], reply: float, made: Plan) -> float:
    g = profile.grpo
    passes = g.prompts_per_step // g.prompts_per_pass
    calls = g.prompts_per_step // g.prompts_per_call
    trained = passes * (seconds["GRPO reference"] + seconds["GRPO train step"])
    step = calls * reply + trained
    if reading := next((title for title in READS if title in seconds), ""):
        once = reading != READS[0]  # a head, or the policy itself, reads a completion once, whatever the rubric
        length, rows = _judge_rows(profile, 1 if once else criteria_of(load_recipe(recipe.data_for(profile))))
        rows += g.prompts_per_step * (reading == READS[2])  # the policy reads each prompt without reasoning, too
        judged = math.ceil(rows / profile.judge_batch) * seconds[reading] * length / profile.judge_max_length
        step += judged
        if g.rollout_micro_prompts and not is_shared(made):  # it scores a call's replies while the next are sampled
            first = judged / passes if calls == 1 else 0.0  # the first pass waits for its scores
            last = max(calls * reply + judged / calls, reply + judged)  # when the last score arrives
            step = max(calls * reply + first + trained, last + trained / passes)
    return step


def criteria_of(data: DataRecipe) -> int:
    """How many criteria the longest rubric of a data recipe has. Rows of a data set may have longer ones."""
    names = {source.rubric or source.domain for source in data.sources}
    return max([len(data.rubric), *(len(domain_rubric(data, name)) for name in names)])


def _judge_rows(profile: Profile, criteria: int) -> tuple[int, int]:
    """The length of the judge's rows with the longest replies, and their number in a step. As many of a reply's
    criteria as fit share a row (`logprobs.pack_shared_prefixes`)."""
    g, most = profile.grpo, profile.judge_max_length
    reply = g.max_prompt_length + g.max_new_tokens + FENCE_TOKENS
    together = min(criteria, SHARED, max(1, (most - reply) // CRITERION_TOKENS))
    longest = min(reply + together * CRITERION_TOKENS, most)
    return (next(n for n in padded_lengths(most) if n >= longest),
            g.prompts_per_step * g.num_generations * math.ceil(criteria / together))


def at_hand(profile: Profile, recipe: Recipe, devices: Sequence[jax.Device], folder: Path,
            log_rows: Sequence[dict] = (), judge: bool = True) -> str:
    """What a notebook prints before it loads anything: the forecast for its chips, at the speed of the steps in
    `log_rows`, or why there is none. Raises ValueError, with what to change, if a program will not fit."""
    chip = KIND_OF.get(devices[0].device_kind)
    if chip is None:
        return f"no forecast for {devices[0].device_kind!r}: peaks are known for {', '.join(KIND_OF)}"
    found = forecast(profile, recipe, devices, chip, folder, judge=judge).correct(log_rows)
    for row in found.rows:
        if row.needed > CHIPS[chip].memory:
            raise ValueError(f"{row.program} needs {row.needed / GIB:.1f} GiB of a {chip} chip's "
                             f"{CHIPS[chip].memory / GIB:g}: in profile {profile.name!r}, give it "
                             f"{found.largest().get(row.program, 0)} rows instead of {row.rows}\n{found.text()}")
    return found.text()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0 if everything fits in memory with a tenth free, else 1."""
    parser = argparse.ArgumentParser("tools.preflight.forecast", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=recipe_names(), default="g_rar")
    parser.add_argument("--profile", choices=[name for name in PROFILES if not PROFILES[name].devices],
                        default="kaggle")
    parser.add_argument("--model", help="the policy, instead of the profile's")
    parser.add_argument("--judge", help="the same for the judge")
    parser.add_argument("--int8", action="store_true", help="the judge's matrices as 8-bit integers")
    parser.add_argument("--topology", default="v5e:2x4", help="of TPU chips, as libtpu names them")
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY)
    parser.add_argument("--whole", action="store_true", help="compile all layers, instead of two shallow models")
    parser.add_argument("--cache", type=Path, default=Path("artifacts/preflight"))
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    recipe, chip = find_recipe(options.recipe), options.topology.split(":")[0]
    asked = {"policy": options.model, "judge": options.judge, "judge_int8": options.int8}
    try:
        lengths = load_recipe(recipe.data_for(PROFILES[options.profile])).lengths
        profile = choose(options.profile, recipe, {name: value for name, value in asked.items() if value}, lengths)
        devices = topology_devices(options.topology)
        print(f"compiling for {options.topology}: some minutes, unless it was done before", file=sys.stderr)
        found = forecast(profile, recipe, devices, chip, options.cache, options.efficiency, options.whole)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(f"recipe {options.recipe}, profile {options.profile}: {profile.policy}"
          + (f", judge {profile.judge}" if recipe.uses_judge else "")
          + f", {options.topology}\n{found.text()}")
    return 0 if found.fits else 1


if __name__ == "__main__":
    sys.exit(main())
