"""What is trained (`Recipe`) and where it runs (`Profile`): every choice of a run, side by side in one file.

A notebook names one of each and a seed; `open_run` turns the three into a `Run`: the folder of artifacts and the
clock. Nothing here trains: the notebooks call the stages themselves.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from reasonkit import reuse
from reasonkit._tunix import StageResult
from reasonkit.budget import TimeBudget
from reasonkit.checkpoint import latest_step
from reasonkit.files import write_atomic
from reasonkit.grpo import GrpoSettings
from reasonkit.handover import has_steps
from reasonkit.hosts import agreed_end, is_first
from reasonkit.lora import save_lora
from reasonkit.outcome import ENDINGS, earlier_minutes
from reasonkit.runlog import NullLog, RunLog, base_sha256, file_sha256, prompt_hash, write_manifest
from reasonkit.session import claim, release
from reasonkit.sft import SftSettings
from reasonkit.tags import TAGS


@dataclass(frozen=True)
class Profile:
    """Sizes for one kind of machine. `devices` are virtual CPU devices (0: the machine's own accelerators); `rows` are
    the problems of each split; `minutes` is the session's limit and `reserve_minutes` what the last save may need; on a
    machine of one's own the session `grows` with the pace of its steps, and `minutes` is a forecast; during GRPO the
    validation problems are answered every `probe_every` steps. `remat` saves memory in training (`models.load`);
    `judge_int8` halves a large judge (`models.int8`); `api_dollars` is what a judge behind an API may cost, where a
    secret switches one on (0: never, even then)."""

    name: str
    devices: int
    policy: str
    judge: str
    dtype: str
    minutes: float
    reserve_minutes: float
    rows: Mapping[str, int]
    lora_rank: int
    lora_alpha: float
    sft: SftSettings
    grpo: GrpoSettings
    eval_batch: int
    probe_every: int
    judge_batch: int
    judge_max_length: int
    remat: bool = False
    judge_int8: bool = False
    grows: bool = False
    api_dollars: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """What is trained: the data, the weight of each part of the reward (0: logged only), each stage's share of time.

    `curriculum` names the part of the reward whose pass rates choose GRPO's problems; without one they come in turn.
    """

    name: str
    summary: str
    data: str
    rewards: Mapping[str, float]
    shares: Mapping[str, float]
    curriculum: str = ""


_TINY = dict(policy="tiny-policy", judge="tiny-judge", dtype="float32", lora_rank=16, lora_alpha=32.0,
             judge_max_length=256, grows=True)
# Lengths of the winning runs; rows of a call and of a pass sized for v5e chips with the weights replicated. With
# a judge on chips of its own a step is sampled in two calls: the first one's replies are judged beside the second.
# Rank 32 is enough for RL, and a LoRA wants ten times a full fine-tune's rate ("LoRA without regret", TRL: 2e-4 in SFT,
# from 1e-5 in RL). For SFT half of it: qwix starts A 2.4 times as far out as PEFT. beta is the second winner's, of k3.
_GEMMA = dict(policy="gemma2-2b-it", dtype="bfloat16", lora_rank=32, lora_alpha=32.0, judge_max_length=2048,
              remat=True, api_dollars=5.0)
# A small real model in both roles, `realmodel`'s, with its vocabulary whole: the logits of a token take a megabyte, and
# set the rows of a pass. As a judge it rates a worked solution below a bare answer: take a recipe without its vote.
_REAL = dict(policy="gemma3-270m", judge="gemma3-270m", lora_rank=16, lora_alpha=32.0)

PROFILES = {
    "cpu": Profile(
        "cpu", devices=8, minutes=20, reserve_minutes=2, rows={"train": 3000, "validation": 240, "test": 600},
        sft=SftSettings(steps=120, batch_size=32, max_length=136, learning_rate=2e-3),
        grpo=GrpoSettings(steps=64, prompts_per_step=12, num_generations=8, max_prompt_length=80, max_new_tokens=64,
                          learning_rate=4e-4, beta=0.02),
        eval_batch=120, probe_every=20, judge_batch=16, **_TINY),
    "smoke": Profile(
        "smoke", devices=8, minutes=30, reserve_minutes=1, rows={"train": 64, "validation": 8, "test": 16},
        sft=SftSettings(steps=2, batch_size=8, max_length=136, learning_rate=2e-3),
        grpo=GrpoSettings(steps=2, prompts_per_step=4, num_generations=4, max_prompt_length=80, max_new_tokens=64,
                          learning_rate=4e-4, beta=0.02),
        eval_batch=16, probe_every=1, judge_batch=16, **_TINY),
    "kaggle": Profile(
        "kaggle", devices=0, judge="gemma3-12b-it", minutes=540, reserve_minutes=20,
        rows={"train": 33000, "validation": 400, "test": 1000},
        sft=SftSettings(steps=1000, batch_size=32, max_length=1024, learning_rate=1e-4),
        grpo=GrpoSettings(steps=420, prompts_per_step=32, num_generations=8, max_prompt_length=256, max_new_tokens=768,
                          learning_rate=2e-5, micro_prompts=4, rollout_micro_prompts=16, beta=0.07),
        eval_batch=64, probe_every=40, judge_batch=8, **_GEMMA),
    "colab": Profile(
        "colab", devices=0, judge="gemma3-1b-it", minutes=180, reserve_minutes=15,
        rows={"train": 8000, "validation": 200, "test": 400},
        sft=SftSettings(steps=400, batch_size=8, max_length=1024, learning_rate=1e-4),
        grpo=GrpoSettings(steps=300, prompts_per_step=8, num_generations=8, max_prompt_length=256, max_new_tokens=768,
                          learning_rate=1e-5, micro_prompts=1, beta=0.07),
        eval_batch=64, probe_every=50, judge_batch=4, **{**_GEMMA, "policy": "gemma3-1b-it"}),
    "gpu": Profile(
        "gpu", devices=0, judge="gemma3-4b-it", minutes=540, reserve_minutes=20,
        rows={"train": 33000, "validation": 400, "test": 1000},
        sft=SftSettings(steps=1000, batch_size=16, max_length=1024, learning_rate=1e-4),
        grpo=GrpoSettings(steps=800, prompts_per_step=8, num_generations=8, max_prompt_length=256, max_new_tokens=768,
                          learning_rate=1e-5, micro_prompts=2, beta=0.07),
        eval_batch=32, probe_every=100, judge_batch=8, **_GEMMA),
    "cpu-gemma3-270m": Profile(
        "cpu-gemma3-270m", devices=2, dtype="float32", minutes=360, reserve_minutes=15, grows=True,
        rows={"train": 1000, "validation": 32, "test": 96},
        sft=SftSettings(steps=60, batch_size=8, max_length=144, learning_rate=2e-4, save_every=20),
        grpo=GrpoSettings(steps=24, prompts_per_step=4, num_generations=4, max_prompt_length=80, max_new_tokens=80,
                          learning_rate=5e-5, micro_prompts=1, save_every=8),
        eval_batch=16, probe_every=12, judge_batch=4, judge_max_length=256, **_REAL),
    "gpu-gemma3-270m": Profile(
        "gpu-gemma3-270m", devices=0, dtype="bfloat16", minutes=120, reserve_minutes=10,
        rows={"train": 8000, "validation": 256, "test": 1000},
        sft=SftSettings(steps=500, batch_size=8, max_length=512, learning_rate=1e-4),
        grpo=GrpoSettings(steps=300, prompts_per_step=8, num_generations=8, max_prompt_length=256, max_new_tokens=256,
                          learning_rate=2e-5, micro_prompts=1),
        eval_batch=32, probe_every=50, judge_batch=8, judge_max_length=1024, **_REAL),
}

# A right answer counts in good form only, and to show the work and err earns more than a right answer behind none.
_JUDGED = {"tag_format": 1.0, "exact_answer_if_tag_format": 1.0, "rubric": 1.5}

RECIPES = {
    "g_rar": Recipe(
        "g_rar", "SFT warm start, then GRPO on form, exact answer and a rubric judge (after the winning G-RaR entry)",
        data="tiny_mix", rewards=_JUDGED,
        shares={"sft": 0.25, "grpo": 0.75}),
    "g_exact": Recipe(
        "g_exact", "the same without the judge's vote: the rubric is scored and logged, with weight 0",
        data="tiny_mix", rewards={**_JUDGED, "rubric": 0.0},
        shares={"sft": 0.25, "grpo": 0.75}),
    # Irrelevant, unstructured reasoning, by the halves, and none that is work cost what a right answer earns.
    "idea_e": Recipe(
        "idea_e", "no judge: form, an answer that counts in good form only, reasoning in the IDEA-E steps, held by "
        "TF-IDF to the question and off the answer, and problems by pass rate (after the third winning entry)",
        data="tiny_mix", rewards={"tag_format": 1.0, "exact_answer_if_tag_format": 1.0, "tfidf_relevance": 0.5,
                                  "tfidf_leak": 0.5, "scaffold": 0.5, "work_shown": 1.0},
        shares={"sft": 0.25, "grpo": 0.75}, curriculum="exact_answer_if_tag_format"),
    # Two controls. What a run would have earned is logged.
    "constant": Recipe(
        "constant", "control: every reply earns the same", data="tiny_mix", shares={"sft": 0.25, "grpo": 0.75},
        rewards={"constant": 1.0, "tag_format": 0.0, "exact_answer_if_tag_format": 0.0}),
    "shuffled": Recipe(
        "shuffled", "control: the exact answer's rewards, dealt to the step's replies at random", data="tiny_mix",
        rewards={"shuffled": 1.0, "tag_format": 0.0, "exact_answer_if_tag_format": 0.0},
        shares={"sft": 0.25, "grpo": 0.75}),
    "gym": Recipe(
        "gym", "no judge: form and an exact answer, on four families of reasoning-gym (the extra `data`)",
        data="gym_mix", rewards={"tag_format": 1.0, "exact_answer_if_tag_format": 1.0},
        shares={"sft": 0.25, "grpo": 0.75}),
}


def fitted(profile: Profile, recipe: Recipe) -> Profile:
    """The profile as the recipe uses it: where a judge would go on beside the sampling and there is none, a step is
    sampled in one call, and there is time for half as many again."""
    if "rubric" in recipe.rewards or not profile.grpo.rollout_micro_prompts:
        return profile
    return replace(profile, grpo=replace(profile.grpo, steps=3 * profile.grpo.steps // 2, rollout_micro_prompts=0))


@dataclass(frozen=True)
class Run:
    """One run: its choices, its folder of artifacts and its clock."""

    profile: Profile
    recipe: Recipe
    seed: int
    folder: Path
    budget: TimeBudget

    @property
    def checkpoints(self) -> Path:
        """The judges' CKPT_DIR: all stages save here, under growing step numbers."""
        return self.folder / "checkpoints"

    @property
    def lora(self) -> dict:
        """The adapter's shape, which every stage must share."""
        return {"rank": self.profile.lora_rank, "alpha": self.profile.lora_alpha}

    def stage(self, name: str) -> Path:
        """The folder of a stage's artifacts."""
        return self.folder / name

    def log(self, stage: str) -> RunLog | NullLog:
        """The log of a stage, appended to by every session that works on it; of several processes, by the first."""
        return RunLog(self.stage(stage) / "log.jsonl") if is_first() else NullLog()

    def finished(self, stage: str) -> bool:
        return (self.stage(stage) / "manifest.json").exists()

    def manifest(self, stage: str) -> dict:
        """What a stage left. Raises ManifestError when it has not ended, is of another prompt or adapter, an input of
        its own or a file of notebook 1 has changed since, or its adapter is gone."""
        if stage != "data" and self.finished("data"):
            self.manifest("data")
        return reuse.left(self.folder, stage, latest_step(self.checkpoints), prompt_sha256=prompt_hash(TAGS.template),
                          lora=None if stage == "data" else self.lora)

    def begin(self, stage: str, base: Path, inputs: Mapping[str, Path], **choices) -> bool:
        """Whether the stage is to be trained, from its start or from its last step; False, said in a line, where it is
        finished. `base` is the model's folder; `choices` are what else the outcome depends on.

        Raises ManifestError when the stage was trained with other settings, inputs or choices or on another base, and
        as `manifest` does.
        """
        settings = {name: value for name, value in vars(getattr(self.profile, stage)).items()
                    if name not in ("save_every", "keep")}
        model = {"policy": self.profile.policy, "dtype": self.profile.dtype, "base": base_sha256(base), **self.lora}
        now = {"model": model, "prompt_sha256": prompt_hash(TAGS.template), "settings": settings,
               "inputs": {name: file_sha256(path) for name, path in inputs.items()}, **choices}
        finished = self.finished(stage)
        reuse.check(self.folder, stage, now, finished or has_steps(self.checkpoints, stage), is_first())
        if finished and is_first():
            print(reuse.read_back(self.folder, self.manifest(stage)))
        return not finished

    def hand_over(self, stage: str, model, result: StageResult, inputs: Mapping[str, Path], **metrics) -> None:
        """Save the adapter of a stage that has ended, and its manifest: from here on the next notebook can start."""
        save_lora(model, self.stage(stage) / "adapter", result.checkpoint_step)
        if is_first():
            settings = getattr(self.profile, stage)
            self.finish(stage, inputs=inputs, metrics={"steps": result.steps, **metrics}, minutes=result.minutes,
                        checkpoint_step=result.checkpoint_step, stopped=result.stopped, settings=vars(settings))
            print(f"{stage}: {result.steps} of {settings.steps} steps in {result.minutes:.1f} minutes, ended by "
                  f"{ENDINGS.get(result.stopped, result.stopped)}")

    def finish(self, stage: str, *, inputs: Mapping[str, Path], metrics: Mapping, minutes: float, **extra) -> Path:
        """Write the stage's manifest. minutes: of this session; those of earlier sessions on the stage are added."""
        return write_manifest(self.stage(stage), stage, inputs=dict(inputs), metrics=dict(metrics),
                              prompt_sha256=prompt_hash(TAGS.template), lora=None if stage == "data" else self.lora,
                              minutes=minutes + earlier_minutes(self.log(stage), stage), extra=extra)


def _choose(kind: str, table: Mapping, name: str):
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(table)}")
    return table[name]


def open_run(profile: str, recipe: str, seed: int, folder: Path | str | None = None) -> Run:
    """Open or continue a run in `folder` (default: $REASONKIT_ARTIFACTS, else ./artifacts).

    What the last error of this process holds, a stage's model and trainer, is let go. Raises ValueError for an unknown
    profile or recipe, for a seed that is none, and when the folder holds another run; FolderInUseError as `claim`.
    """
    chosen, plan = _choose("profile", PROFILES, profile), _choose("recipe", RECIPES, recipe)
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"SEED={seed!r}: give a whole number from 0 to {2**32 - 1}, without quotes")
    release()
    chosen = fitted(chosen, plan)
    folder = Path(folder or os.environ.get("REASONKIT_ARTIFACTS", "artifacts")).resolve()
    identity = {"profile": profile, "recipe": recipe, "seed": seed}
    path = reuse.identify(folder, identity)
    if chosen.devices:
        _virtual_devices(chosen.devices)
    if is_first():
        claim(folder)
        write_atomic(path, json.dumps(identity))
    # at the end the test problems are answered by the stock model, after SFT and after GRPO
    probes = math.ceil(3 * chosen.rows["test"] / chosen.rows["validation"])
    budget = TimeBudget(hours=chosen.minutes / 60, reserve_minutes=chosen.reserve_minutes,
                        ledger=folder / "ledger.json" if is_first() else None, shares=plan.shares,
                        ahead={"save": 1, "probe": probes}, agree=agreed_end, grows=chosen.grows)
    return Run(chosen, plan, seed, folder, budget)


def _virtual_devices(count: int) -> None:
    """Let the CPU play `count` devices; only possible before JAX has looked for any."""
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # JAX has started: the check below decides
    if len(jax.devices()) != count:
        raise RuntimeError(f"this profile needs {count} virtual CPU devices and JAX runs with {len(jax.devices())}: "
                           "restart the kernel and run the notebook from its first cell")
