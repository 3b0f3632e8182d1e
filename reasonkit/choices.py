"""The choices in a notebook's first cell: the profile that follows (`settle`), and the run that they are (run.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reasonkit.config import PROFILES, TRAINED, Profile, Recipe, adapt_to_lengths, adapt_to_recipe
from reasonkit.data.own_file import load_data
from reasonkit.models.load import MODELS
from reasonkit.session.files import read
from reasonkit.session.manifest import ELSEWHERE, NOTEBOOKS, peek
from reasonkit.session.records import RunFile
from reasonkit.session.setup import change, check_choices, find_recipe, suggest

# Settings that may differ between the sessions of a run. The sizes among them change memory and speed, and results by
# rounding only. Where `grpo_micro_prompts` changes more, `GrpoSettings.identity` has it. With another `eval_batch`,
# completions at temperature 1 are other draws, but a stage that has begun keeps its own in a file.
FREE = ("minutes", "reserve_minutes", "api_dollars", "eval_batch", "judge_batch", "grpo_micro_prompts", *(
    f"{stage}_{name}" for stage in TRAINED for name in ("save_every", "keep")))


def settle(profile: str, recipe: str, seed: int, settings: Mapping[str, Any], folder: Path,
           data: str | None) -> tuple[dict[str, Any], Recipe, Profile]:
    """The checked settings, the recipe, and the profile that follows from these and the data. Raises as its parts."""
    settings, plan = check_choices(profile, recipe, seed, settings), find_recipe(recipe)
    lengths = data_lengths(folder, data, plan.data_for(PROFILES[profile]))
    return settings, plan, choose(profile, plan, settings, lengths)


def choose(profile: str, recipe: Recipe, settings: Mapping[str, Any], lengths: Mapping[str, int]) -> Profile:
    """The profile changed by the recipe, then by the lengths of its data, then by the checked settings. A teacher that
    the policy cannot learn from gives way to the profile's judge, unless it was asked for.

    Raises ValueError for a model that is unknown or not of the same kind as the profile's own, for a teacher of another
    family, whose tokens are others, and for settings of the recipe's stages that do not go together.
    """
    usual = adapt_to_lengths(adapt_to_recipe(PROFILES[profile], recipe), lengths)
    chosen = change(usual, settings)
    more = max(0, sum(getattr(chosen.grpo, name) - getattr(usual.grpo, name)
                      for name in ("max_prompt_length", "max_new_tokens")))
    if "sft_max_length" not in settings:  # a row of SFT holds both, and so does a prompt to the judge
        chosen = replace(chosen, sft=replace(chosen.sft, max_length=chosen.sft.max_length + more))
    if "judge_max_length" not in settings:
        chosen = replace(chosen, judge_max_length=chosen.judge_max_length + more)
    if "grpo" in recipe.shares:
        chosen.grpo.check()
    if recipe.asks and not recipe.uses_judge and chosen.grpo.rollout_micro_prompts:
        raise ValueError(f"grpo_rollout_micro_prompts={chosen.grpo.rollout_micro_prompts}, and in the recipe "
                         f"{recipe.name!r} the policy can't score its completions while it samples: leave that out")
    for stage in (stage for stage in ("simpo", "distill") if stage in recipe.shares):
        least, given = chosen.grpo.max_prompt_length, getattr(chosen, stage).max_prompt_length
        if given < least:
            raise ValueError(f"{stage}_max_prompt_length={given}, and notebook 1 keeps questions of up to "
                             f"grpo_max_prompt_length={least} tokens: set it to at least {least}")
    if "simpo" in recipe.shares and chosen.simpo.questions < chosen.simpo.batch_size:
        raise ValueError(f"simpo_questions={chosen.simpo.questions} make at most as many pairs, and a step takes "
                         f"simpo_batch_size={chosen.simpo.batch_size}: ask more questions, or take smaller steps")
    for role in ("policy", "judge"):
        own, name = getattr(PROFILES[profile], role), getattr(chosen, role)
        if name not in MODELS and not Path(name).is_dir():
            raise ValueError(f"{role}={name!r} is neither a folder nor a known model: {suggest(name, MODELS)}")
        if name in MODELS and bool(MODELS[name].asset) != bool(MODELS[own].asset):
            raise ValueError(f"{role}={name!r} does not go with the profile {profile!r}, whose lengths and learning "
                             f"rates are for {own}: choose the profile for it (tiny models: cpu; others: kaggle, "
                             "colab, gpu), or another model")
    if "distill_teacher" not in settings and not _same_tokens(chosen.policy, chosen.teacher):
        chosen = replace(chosen, distill=replace(chosen.distill, teacher="" if chosen.toy else chosen.larger))
    if "distill" in recipe.shares and not _same_tokens(chosen.policy, chosen.teacher):
        raise ValueError(f"the teacher {chosen.teacher!r} splits text into other tokens than the policy "
                         f"{chosen.policy!r}: set distill_teacher to one of "
                         f"{', '.join(name for name in MODELS if _same_tokens(chosen.policy, name))}")
    return chosen


def _same_tokens(policy: str, teacher: str) -> bool:
    """Whether two models are of one family, as far as their names tell. A folder's is not known before it is loaded."""
    known = [MODELS[name] for name in (policy, teacher) if name in MODELS]
    return len({(source.family, bool(source.asset)) for source in known}) < 2


def data_lengths(folder: Path, data: str | None, own: str) -> Mapping[str, int]:
    """The lengths in tokens that `data` asks for. "" is the mix `own`, and None whatever notebook 1 has used."""
    made = peek(folder / "data") if data is None else None
    return made.extra.lengths if made else load_data(data or own).lengths


def identify(profile: str, recipe: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says: the choices of the run's last session."""
    return {"profile": profile, "recipe": recipe, "seed": seed} | ({"settings": dict(settings)} if settings else {})


def run_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The choices that are the same in all sessions of a run."""
    settings = identity.get("settings", {})
    return identify(**{**identity, "settings": {name: settings[name] for name in settings if name not in FREE}})


def check_identity(folder: Path, identity: Mapping[str, Any], begins: bool) -> bool:
    """Whether the folder holds another run that this one may replace, because no stage of it has made a step.

    Only notebooks 1 and 1b `begin` a run, because the others read its rows. Raises ValueError for another run that may
    not be replaced, with what to do, and for a damaged file.
    """
    path, asked = folder / "run.json", run_identity(identity)
    if not path.exists():
        return False
    old = read(path, RunFile, f"put the old one back, or start {ELSEWHERE}")
    found = run_identity(old.model_dump(exclude_unset=True))
    begun = any(any(folder.glob(trained)) for trained in ("checkpoints/actor/[0-9]*", "*/adapter"))
    if found == asked or begins and not begun:
        return found != asked
    holds = f"{folder} holds the run {found}, and {asked} was asked for: go on with that one, or"
    if not begun:
        raise ValueError(f"{holds}, because it has trained nothing yet, run notebook {NOTEBOOKS['data']} with these "
                         "choices first")
    raise ValueError(f"{holds} start {ELSEWHERE}, or `REASONKIT_ARTIFACTS=artifacts-2 make demo ...`. The folder holds "
                     "what was trained: delete it only if nobody needs that")
