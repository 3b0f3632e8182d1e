"""The profile that follows from the choices in a notebook's first cell: `settle`, and its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reasonkit.config import PROFILES, Profile, Recipe, adapt_to_lengths, adapt_to_recipe
from reasonkit.data.own_file import load_data
from reasonkit.models.load import MODELS
from reasonkit.session.manifest import peek
from reasonkit.session.setup import change, check_choices, find_recipe, suggest


def settle(profile: str, recipe: str, seed: int, settings: Mapping[str, Any], folder: Path,
           data: str | None) -> tuple[dict[str, Any], Recipe, Profile]:
    """The checked settings, the recipe, and the profile that follows from these and the data. Raises ValueError as
    `check_choices`, `data_lengths` and `choose` do."""
    settings, plan = check_choices(profile, recipe, seed, settings), find_recipe(recipe)
    lengths = data_lengths(folder, data, plan.data_for(PROFILES[profile]))
    return settings, plan, choose(profile, plan, settings, lengths)


def choose(profile: str, recipe: Recipe, settings: Mapping[str, Any], lengths: Mapping[str, int]) -> Profile:
    """The profile changed by the recipe, then by the lengths of its data, then by the checked settings. A teacher that
    the policy cannot learn from gives way to the profile's judge, unless it was asked for.

    Raises ValueError for a model that is unknown or not of the same kind as the profile's own, for a teacher of another
    family than the policy's, because its tokens are others, and for settings of the recipe's stages that do not go
    together.
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
