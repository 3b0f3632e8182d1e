"""The choices behind a run: what is trained (`Recipe`), where it runs (`Profile`), and its stages (`STAGES`).

Recipes live in `recipes/`. `run.open_run` turns the choices made in a notebook into a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reasonkit.settings import DistillSettings, GrpoSettings, SftSettings, SimpoSettings


@dataclass(frozen=True)
class Stage:
    """One part of a run: its notebook, its name in tables and figures, and whether it trains the policy's adapter."""

    notebook: str
    title: str
    trains: bool = False


# In the order of the notebooks' numbers. Every run has data and evaluation.
STAGES = {
    "data": Stage("01_data_curation", "data"),
    "teacher": Stage("01b_teacher_data", "teacher data"),
    "sft": Stage("02_sft_warm_start", "SFT", trains=True),
    "simpo": Stage("02b_simpo", "SimPO", trains=True),
    "reward_model": Stage("02c_reward_model", "reward model"),
    "grpo": Stage("03_grpo_with_judge", "GRPO", trains=True),
    "distill": Stage("03b_on_policy_distillation", "distillation", trains=True),
    "evaluation": Stage("04_evaluation", "evaluation"),
}
TRAINED = tuple(name for name, stage in STAGES.items() if stage.trains)


@dataclass(frozen=True)
class Profile:
    """Sizes for one kind of machine.

    `devices`: virtual CPU devices (0: the machine's own `accelerator`s, "tpu" or "gpu"). `rows`: problems per split.
    `minutes`: the session's limit, of which `reserve_minutes` are kept for the last save. Where it `grows` with the
    pace of its steps, as on your own machine, they are only a forecast. `probe_every`: GRPO's steps between two tests
    on the validation problems. `remat` saves memory in training (`models.load`), and `judge_int8` halves the size of a
    large judge (`load.quantize_int8`). `api_dollars`: the most that a judge behind an API may cost, which then takes
    the place of the local one (0: none does). `toy`: the model is too small for real data.
    """

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
    simpo: SimpoSettings
    grpo: GrpoSettings
    distill: DistillSettings
    eval_batch: int
    probe_every: int
    judge_batch: int
    judge_max_length: int
    remat: bool = False
    judge_int8: bool = False
    grows: bool = False
    api_dollars: float = 0.0
    toy: bool = False
    accelerator: str = ""

    @property
    def larger(self) -> str:
        """The larger model at hand. A tiny policy has none with its tokens, so it is that policy itself."""
        return self.policy if self.toy else self.judge

    @property
    def teacher(self) -> str:
        """The model whose distribution distillation reads."""
        return self.distill.teacher or self.larger


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained. Each file in `recipes/` defines one, under the name RECIPE.

    `data`, and `toy_data` for a toy model: the name of a file in data_recipes/.
    `shares`: each stage's share of the time, in order, without data and evaluation.
    `rewards(judge, questions)` returns (reward function, weight) pairs. With weight 0 a reward is only logged. The
    judge is None unless `asks`. The questions are those of the training split.
    `judge(model, mesh, profile, folder)` makes the judge for the run in `folder`, from the profile's judge model.
    Without `uses_judge` it is made from the policy itself, and has to be meant for that (`of_policy`). None means
    `logprobs.local_judge`, or a judge behind an API.
    `curriculum(log, parts)` makes the curriculum that chooses GRPO's problems, and the parts of the reward, of which it
    watches one (`recipes.stages.curriculum`). Without it, the problems come in turn.
    `sft`, `simpo`, `grpo` and `distill`: settings that replace the profile's.
    `name` and `summary`: the file's name and its docstring's first line, as `setup.find_recipe` fills them in.
    """

    data: str
    toy_data: str
    shares: Mapping[str, float]
    rewards: Callable[[Any, Sequence[str]], list[tuple[Callable, float]]] = lambda judge, questions: []
    uses_judge: bool = False
    judge: Callable[..., Any] | None = None
    curriculum: Callable[..., Any] | None = None
    sft: Mapping[str, Any] = field(default_factory=dict)
    simpo: Mapping[str, Any] = field(default_factory=dict)
    grpo: Mapping[str, Any] = field(default_factory=dict)
    distill: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    summary: str = ""

    @property
    def asks(self) -> bool:
        """Whether its rewards ask a model: a judge, or the policy itself."""
        return self.uses_judge or self.judge is not None

    @property
    def stages(self) -> list[str]:
        """All stages of a run in order. A teacher comes before the data, because its traces are a source of data."""
        own = [stage for stage in self.shares if stage != "teacher"]
        return [*["teacher"] * ("teacher" in self.shares), "data", *own, "evaluation"]

    @property
    def training_stages(self) -> list[str]:
        """Those that train the adapter, in order."""
        return [stage for stage in self.shares if stage in TRAINED]

    def before(self, stage: str) -> str | None:
        """The stage whose adapter `stage` starts from. None for the first one."""
        earlier = [*self.shares][:[*self.shares].index(stage)]
        return next((name for name in reversed(earlier) if name in TRAINED), None)

    def data_for(self, profile: Profile) -> str:
        return self.toy_data if profile.toy else self.data


_TINY = dict(policy="tiny-policy", judge="tiny-judge", dtype="float32", lora_rank=16, lora_alpha=32.0,
             judge_max_length=256, grows=True, toy=True)
_TINY_LENGTHS = dict(max_prompt_length=80, max_new_tokens=64)

# The lengths come from the winning runs. SFT packs its rows: Kaggle's 16 sequences hold an estimated 30 to 50 worked
# solutions of 300 to 500 tokens. On a CPU it doesn't, because the tiny model's sequences hold only 1.2 toy problems and
# the small real model has only been run on padded rows. Rows per call and per pass fit v5e chips with replicated
# weights. Where the judge has its own chips, a step is sampled in two calls, and the first is judged during the second.
# Rank 32 is enough for RL, and LoRA needs ten times the learning rate of a full fine-tune ("LoRA without regret", TRL:
# 2e-4 in SFT, from 1e-5 in RL). SFT takes half of that, because qwix starts A 2.4 times as far out as PEFT, and GRPO
# the 1e-5, because entrants trained with 3e-6 and 5e-6. Its beta is the second winner's, for k3. A SimPO step has no
# more rows per chip than a GRPO pass, at five times the second winner's rate of 1e-6. In distillation every token has a
# target, so it has SFT's rate. Its steps leave room in the hours by the forecast, even if the longest completion of
# every batch is as long as it may be. Neither was measured on these models.
_GEMMA = dict(policy="gemma2-2b-it", dtype="bfloat16", lora_rank=32, lora_alpha=32.0, judge_max_length=2048,
              remat=True)
_GEMMA_LENGTHS = dict(max_prompt_length=256, max_new_tokens=768)
_GEMMA_SFT = dict(max_length=1024, learning_rate=1e-4, pack=True)
_GEMMA_GRPO = dict(num_generations=8, learning_rate=1e-5, beta=0.07, **_GEMMA_LENGTHS)
_GEMMA_DISTILL = dict(learning_rate=1e-4, **_GEMMA_LENGTHS)

# A small real model in both roles, from `gemma_from_gguf`. The logits of one token take a megabyte, which limits the
# rows of a pass. As a judge it scores a worked solution below a bare answer, so take a recipe that gives it weight 0.
_REAL = dict(policy="gemma3-270m", judge="gemma3-270m", lora_rank=16, lora_alpha=32.0, toy=True)
_CPU_LENGTHS = dict(max_prompt_length=128, max_new_tokens=96)
_GPU_LENGTHS = dict(max_prompt_length=256, max_new_tokens=256)

PROFILES = {
    "cpu": Profile(
        "cpu", devices=8, minutes=20, reserve_minutes=2, rows={"train": 3000, "validation": 240, "test": 600},
        sft=SftSettings(steps=120, batch_size=32, max_length=136, learning_rate=2e-3),
        simpo=SimpoSettings(steps=40, batch_size=16, questions=480, learning_rate=2e-4, **_TINY_LENGTHS),
        grpo=GrpoSettings(steps=64, prompts_per_step=12, num_generations=8, **_TINY_LENGTHS,
                          learning_rate=4e-4, beta=0.02),
        distill=DistillSettings(steps=64, batch_size=16, learning_rate=1e-3, **_TINY_LENGTHS),
        eval_batch=120, probe_every=20, judge_batch=16, **_TINY),
    "smoke": Profile(  # tests run it, so it switches on what Kaggle's does, in float32
        "smoke", devices=8, minutes=30, reserve_minutes=1, rows={"train": 64, "validation": 8, "test": 16},
        sft=SftSettings(steps=2, batch_size=8, max_length=136, learning_rate=2e-3, pack=True),
        simpo=SimpoSettings(steps=2, batch_size=4, questions=48, learning_rate=2e-4, **_TINY_LENGTHS),
        grpo=GrpoSettings(steps=2, most_steps=3, prompts_per_step=4, num_generations=4, **_TINY_LENGTHS,
                          learning_rate=4e-4, micro_prompts=2, rollout_micro_prompts=2, beta=0.02),
        distill=DistillSettings(steps=2, most_steps=3, batch_size=8, learning_rate=1e-3, **_TINY_LENGTHS),
        eval_batch=16, probe_every=1, judge_batch=16, remat=True, **_TINY),
    "kaggle": Profile(
        "kaggle", devices=0, accelerator="tpu", judge="gemma3-12b-it", minutes=540, reserve_minutes=20,
        rows={"train": 33000, "validation": 400, "test": 1000},
        sft=SftSettings(steps=1000, batch_size=16, **_GEMMA_SFT),
        simpo=SimpoSettings(steps=100, batch_size=16, questions=2000, learning_rate=5e-6, **_GEMMA_LENGTHS),
        grpo=GrpoSettings(steps=400, most_steps=1200, prompts_per_step=32, micro_prompts=4, rollout_micro_prompts=16,
                          **_GEMMA_GRPO),
        distill=DistillSettings(steps=1400, most_steps=4000, batch_size=32, teacher="gemma2-9b-it", **_GEMMA_DISTILL),
        eval_batch=128, probe_every=40, judge_batch=8, **_GEMMA),
    "colab": Profile(
        "colab", devices=0, accelerator="tpu", judge="gemma3-1b-it", minutes=180, reserve_minutes=15,
        rows={"train": 8000, "validation": 200, "test": 400},
        sft=SftSettings(steps=400, batch_size=4, **_GEMMA_SFT),
        simpo=SimpoSettings(steps=100, batch_size=4, questions=500, learning_rate=5e-6, **_GEMMA_LENGTHS),
        grpo=GrpoSettings(steps=300, most_steps=900, prompts_per_step=8, micro_prompts=1, **_GEMMA_GRPO),
        distill=DistillSettings(steps=1000, batch_size=2, teacher="gemma3-4b-it", **_GEMMA_DISTILL),
        eval_batch=64, probe_every=50, judge_batch=4, **{**_GEMMA, "policy": "gemma3-1b-it"}),
    "gpu": Profile(
        "gpu", devices=0, accelerator="gpu", judge="gemma3-4b-it", minutes=540, reserve_minutes=20,
        rows={"train": 33000, "validation": 400, "test": 1000},
        sft=SftSettings(steps=1000, batch_size=8, **_GEMMA_SFT),
        simpo=SimpoSettings(steps=200, batch_size=8, questions=2000, learning_rate=5e-6, **_GEMMA_LENGTHS),
        grpo=GrpoSettings(steps=800, most_steps=2400, prompts_per_step=8, micro_prompts=2, **_GEMMA_GRPO),
        distill=DistillSettings(steps=2000, most_steps=8000, batch_size=8, teacher="gemma2-9b-it", **_GEMMA_DISTILL),
        eval_batch=32, probe_every=100, judge_batch=8, **_GEMMA),
    "cpu-gemma3-270m": Profile(
        "cpu-gemma3-270m", devices=2, dtype="float32", minutes=360, reserve_minutes=15, grows=True,
        rows={"train": 8000, "validation": 32, "test": 300},
        sft=SftSettings(steps=120, batch_size=4, max_length=192, learning_rate=2e-4, save_every=40),
        simpo=SimpoSettings(steps=40, batch_size=2, questions=100, learning_rate=1e-5, **_CPU_LENGTHS),
        grpo=GrpoSettings(steps=24, prompts_per_step=4, num_generations=4, **_CPU_LENGTHS,
                          learning_rate=5e-5, micro_prompts=1, save_every=8),
        distill=DistillSettings(steps=40, batch_size=2, learning_rate=2e-4, **_CPU_LENGTHS),
        eval_batch=20, probe_every=12, judge_batch=4, judge_max_length=384, **_REAL),
    "gpu-gemma3-270m": Profile(
        "gpu-gemma3-270m", devices=0, accelerator="gpu", dtype="bfloat16", minutes=120, reserve_minutes=10,
        rows={"train": 8000, "validation": 256, "test": 1000},
        sft=SftSettings(steps=500, batch_size=2, max_length=512, learning_rate=1e-4, pack=True),
        simpo=SimpoSettings(steps=100, batch_size=4, questions=1000, learning_rate=5e-6, **_GPU_LENGTHS),
        grpo=GrpoSettings(steps=300, prompts_per_step=8, num_generations=8, **_GPU_LENGTHS,
                          learning_rate=2e-5, micro_prompts=1),
        distill=DistillSettings(steps=200, batch_size=4, learning_rate=1e-4, **_GPU_LENGTHS),
        eval_batch=32, probe_every=50, judge_batch=8, judge_max_length=1024, **_REAL),
}


def models_of(profile: Profile, recipe: Recipe, left: Sequence[str], writer: str = "") -> dict[str, str]:
    """The models that the stages in `left` load, by role. A "writer" writes the traces of notebook 1b."""
    stages = {"judge": ("reward_model", *["grpo"] * recipe.uses_judge), "teacher": ("distill",), "writer": ("teacher",)}
    names = {"judge": profile.judge, "teacher": profile.teacher, "writer": writer or profile.larger}
    return {"policy": profile.policy} | {role: name for role, name in names.items()
                                         if {*stages[role]} & {*left} and name not in ("api", "policy")}


def adapt_to_recipe(profile: Profile, recipe: Recipe) -> Profile:
    """The profile with the recipe's settings. Without a judge, whose work overlaps with the sampling, a step is sampled
    in a single call, and there is time for half as many steps again. By forecast a policy of 1B has time for 2,700."""
    if profile.grpo.rollout_micro_prompts and not recipe.uses_judge:
        more = dict(steps=3 * profile.grpo.steps // 2, most_steps=3 * profile.grpo.most_steps, rollout_micro_prompts=0)
        profile = replace(profile, grpo=replace(profile.grpo, **more))
    return replace(profile, **{stage: replace(getattr(profile, stage), **getattr(recipe, stage)) for stage in TRAINED})


def adapt_to_lengths(profile: Profile, lengths: Mapping[str, int]) -> Profile:
    """The profile with the lengths in tokens, `prompt` and `completion`, that a data recipe asks for.

    Rows for SFT and for the judge hold both, so their limits change by as many tokens. If rows get longer, each stage
    takes fewer steps, and trains on no more tokens than before: steps x old length // new length. The hours stay the
    same. Sampling, most of a GRPO step, hardly depends on the prompt, so this leaves time to go on to `most_steps`.
    """
    given = {name: lengths[key] for key, name in (("prompt", "max_prompt_length"), ("completion", "max_new_tokens"))
             if key in lengths}
    old = profile.grpo.max_prompt_length + profile.grpo.max_new_tokens
    more = sum(tokens - getattr(profile.grpo, name) for name, tokens in given.items())
    changes = {"sft": {"max_length": profile.sft.max_length + more}, "simpo": given, "grpo": given, "distill": given}
    own = {}
    for stage, change in changes.items():
        settings = getattr(profile, stage)
        length = profile.sft.max_length if stage == "sft" else old
        own[stage] = replace(settings, **change, steps=max(1, settings.steps * length // max(length, length + more)))
    return replace(profile, judge_max_length=profile.judge_max_length + more, **own)
