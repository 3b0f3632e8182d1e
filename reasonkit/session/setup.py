"""What a notebook does before it imports anything else: `check_choices`, `require_tpu` and `install`.

The version that counts is that of the first copy on sys.path, because an import finds that one. A package that was
replaced after its import stays in memory until the process ends.
"""

from __future__ import annotations

import importlib
import math
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import Any

from reasonkit.config import PROFILES, STAGES, TRAINED, Profile, Recipe

CHOOSE = ("choose one and start anew (Kaggle: Settings, Accelerator, TPU v5e-8; Colab: Runtime, Change runtime type; "
          "an NVIDIA GPU also needs the jax[cuda13] of requirements.txt), or take PROFILE = \"cpu\" in a clone")
TPU_FILES = ("accel*", "vfio/*")  # below /dev: what a TPU's driver opens, before and since v5e
_NO_NETWORK = ("NewConnectionError", "NameResolutionError", "Temporary failure in name resolution", "ProxyError",
               "ConnectTimeoutError", "Network is unreachable")
_REPLACED: set[str] = set()  # packages that pip replaced in this process after their import


def check_name(kind: str, name: object, names: Collection[str]) -> None:
    """Raises ValueError for a name that is not in `names`."""
    if name not in names:
        raise ValueError(f"unknown {kind} {name!r}: {suggest(name, names)}")


def suggest(name: object, names: Collection[str]) -> str:
    """What to choose instead of an unknown name."""
    nearest = get_close_matches(str(name), names, 1, 0.5)
    return f"choose one of {', '.join(names)}" + "".join(f". The nearest is {near!r}" for near in nearest)


def recipe_names() -> list[str]:
    """The files in `recipes/`. A user changes them, so they stand above the library and are looked up by name."""
    folder = importlib.import_module("recipes").__path__
    return [module.name for module in pkgutil.iter_modules(folder) if not module.ispkg]


def find_recipe(name: str) -> Recipe:
    """The RECIPE of `recipes/<name>.py`. Raises ValueError for an unknown name, stage or setting, or a wrong value."""
    check_name("recipe", name, recipe_names())
    module = importlib.import_module(f"recipes.{name}")
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipes/{name}.py has no RECIPE = Recipe(...): see recipes/g_rar.py")
    stages = [stage for stage in STAGES if stage not in ("data", "evaluation")]
    for stage in recipe.shares:
        check_name(f"stage in the shares of recipes/{name}.py:", stage, stages)
    for stage in TRAINED:
        known = [field.name for field in fields(getattr(PROFILES["cpu"], stage))]
        for setting, value in getattr(recipe, stage).items():
            check_name(f"setting of {stage} in recipes/{name}.py:", setting, known)
            if f"{stage}_{setting}" in SETTINGS:
                check_value(f"{stage}_{setting}", value, f"or leave it out of recipes/{name}.py")
    if recipe.judge and not recipe.uses_judge and not getattr(recipe.judge, "of_policy", False):
        raise ValueError(f"recipes/{name}.py has a `judge` and no uses_judge=True: add that, or leave the judge out")
    return replace(recipe, name=name, summary=(module.__doc__ or "").partition("\n")[0])


# By the annotation of a setting's field: the types of its values, and what an error asks for.
KINDS = {"int": (int, "a whole number"), "float": ((int, float), "a number"), "str": (str, "a name in quotes")}
_OWNERS = {"": Profile} | {f"{stage}_": getattr(PROFILES["cpu"], stage) for stage in TRAINED}
SETTINGS = {f"{prefix}{field.name}": field.type for prefix, owner in _OWNERS.items() for field in fields(owner)
            if field.type in KINDS and field.name not in ("name", "devices", "accelerator")}
# The numbers in the notebooks' first cell. There, 0 stands for the profile's own value.
LISTED = ("sft_steps", "sft_learning_rate", "grpo_steps", "grpo_learning_rate", "minutes")
# Those that may be 0: what that switches off is in the settings' docstrings.
MAY_BE_0 = ("api_dollars", "reserve_minutes", "sft_max_epochs", "simpo_gamma", "simpo_label_smoothing",
            "simpo_sft_weight", "grpo_beta", "distill_beta", "distill_on_policy", *(
                name for name in SETTINGS
                if name.endswith(("_warmup", "_weight_decay", "_most_steps", "_micro_prompts"))))
# Numbers must be above this: GRPO compares the completions of a question with each other, and nothing fits 15 tokens.
ABOVE = {"grpo_num_generations": 1} | {
    name: 15 for name in SETTINGS if name.endswith(("_max_prompt_length", "_max_new_tokens"))}
# And below this: a warm-up of all steps leaves none at the full learning rate, at a rate of 1 nothing is learned, and
# with every other pair the wrong way round nothing is preferred.
BELOW = {"simpo_label_smoothing": 0.5} | {
    name: 1 for name in SETTINGS if name.endswith(("_warmup", "_learning_rate"))}
DTYPES = ("bfloat16", "float16", "float32")


def value_of(profile: Profile, setting: str) -> int | float | str:
    """A profile's value of a setting, such as "minutes" or, of a stage, "sft_steps"."""
    stage, _, inner = setting.partition("_")
    return getattr(profile, setting) if setting in vars(profile) else getattr(getattr(profile, stage), inner)


def check_choices(profile: str, recipe: str, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that leave the profile's own value: None, "", and 0 for one of `LISTED`.

    Raises ValueError for an unknown profile, recipe or setting, with the nearest name, and for a wrong seed or value.
    """
    check_name("profile", profile, [*PROFILES])
    check_name("recipe", recipe, recipe_names())
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"SEED={seed!r}: give a whole number from 0 to {2**32 - 1}, without quotes")
    if not isinstance(settings, Mapping):
        raise ValueError(f"SETTINGS={settings!r}: give a dict, such as {{\"grpo_steps\": 100}}, or {{}}")
    chosen = {}
    for name, value in settings.items():
        check_name("setting", name, SETTINGS)
        if value in (None, "") or name in LISTED and value == 0:
            continue
        own = value_of(PROFILES[profile], name)
        check_value(name, value, f"or leave it out for the profile's own, {own!r}")
        chosen[name] = value
    return chosen


def check_value(name: str, value: object, instead: str) -> None:
    """Raises ValueError, which ends with `instead`, for a value that one of SETTINGS cannot have."""
    kinds, what = KINDS[SETTINGS[name]]
    right = isinstance(value, kinds) and not isinstance(value, bool)
    if kinds is not str:
        low, high, zero = ABOVE.get(name, 0), BELOW.get(name, math.inf), name in MAY_BE_0
        right = right and (low < value < high or zero and value == 0)
        what += f" above {low}" + f" and below {high}" * (high < math.inf) + ", or 0" * zero
    if not right:
        raise ValueError(f"{name}={value!r}: give {what}, {instead}")
    if name == "dtype":
        check_name(name, value, DTYPES)


def change(profile: Profile, settings: Mapping[str, Any]) -> Profile:
    """The profile with checked settings. `minutes` are then a limit, on a laptop too, and a stage's `steps` exact."""
    exact = {f"{stage}_most_steps": 0 for stage in ("grpo", "distill") if f"{stage}_steps" in settings}
    for name, value in {**exact, **settings}.items():
        stage, _, inner = name.partition("_")
        new = {name: value} if name in vars(profile) else {stage: replace(getattr(profile, stage), **{inner: value})}
        profile = replace(profile, **new)
    return replace(profile, grows=profile.grows and "minutes" not in settings)


def require_tpu() -> None:
    """Raises RuntimeError on a machine without a TPU's device files, before minutes of installation."""
    if not any(any(Path("/dev").glob(name)) for name in TPU_FILES):
        raise RuntimeError(f"this profile is for a TPU, and the machine has none: {CHOOSE}")


def install(pins: Sequence[str]) -> None:
    """Install all `pins` if one is not in force. A pin is `name==version`, or a name for any version.

    Raises RuntimeError if pip fails, with what it said and what to do, if another copy comes first on sys.path, and if
    an imported package is not the installed one, so that the kernel must be restarted.
    """
    wanted = {name: version for name, _, version in (pin.partition("==") for pin in pins)}
    if wrong := _wrong(wanted):
        print(f"installing {', '.join(wrong)}: a few minutes", flush=True)
        before = _versions()
        _pip(pins, wrong)
        importlib.invalidate_caches()
        after = _versions()
        changed = {name for name in before if before[name] != after.get(name)}
        if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch":  # all there is in memory is the kernel's own
            changed &= {_key(name) for name in wanted}
        _REPLACED.update(name for name in changed if name in after and any(_in_memory(name)))
        if wrong := _wrong(wanted):
            raise RuntimeError(f"pip ended well, and an import would still not find {', '.join(wrong)}: uninstall that "
                               "copy or take its folder off PYTHONPATH, see where pip installs (python -m pip config "
                               "list), then restart the kernel and Run all")
    stale = _REPLACED | {name for name, version in wanted.items() if version
                         for loaded in _in_memory(name) if _public(loaded) not in ("", version)}
    if stale:
        raise RuntimeError(f"{', '.join(sorted(stale))}: imported before the installed version was there. Restart the "
                           "kernel (Kaggle: Run, Restart & clear cell outputs; Colab: Runtime, Restart session), then "
                           "Run all: nothing is installed twice")


def _pip(pins: Sequence[str], wrong: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
    said = "\n".join(errors)
    missing, told = "No matching distribution" in said, " (PIP_NO_INDEX is set)" * bool(os.environ.get("PIP_NO_INDEX"))
    if missing and told or any(sign in line for line in lines for sign in _NO_NETWORK):
        remedy = (f"No package index was reached{told}: turn Internet on, on Kaggle in the notebook's settings, or "
                  "attach a folder of wheels and name it in a cell above, with its path as the Input pane copies it: "
                  "import os; os.environ.update(PIP_NO_INDEX='1', PIP_FIND_LINKS='/kaggle/input/datasets/OWNER/NAME')")
    elif missing:
        remedy = (f"There is no wheel for Python {sys.version.split()[0]} on this machine where pip looks (python -m "
                  "pip config list): take Python 3.11, 3.12 or 3.13 on Linux x86-64")
    else:
        remedy = "Mend what it names, or start from a fresh environment, and run this cell again"
    raise RuntimeError(f"pip could not install {', '.join(wrong)}. {remedy}. pip said:\n{said}")


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()  # as PEP 503 compares names


def _public(version: str | None) -> str:
    """A version without its local part: 0.10.2+cuda12 is a build of 0.10.2 (PEP 440)."""
    return (version or "").split("+")[0]


def _wrong(wanted: dict[str, str]) -> list[str]:
    """The pins that are not in force, each with what was found."""
    out = []
    for name, version in wanted.items():
        found, pin = next(iter(distributions(name=name)), None), f"{name} {version}".strip()
        if found is None:
            out.append(f"{pin} (missing)")
        elif version and _public(found.version) != version:
            out.append(f"{pin} (there is {found.version} in {found.locate_file('')})")
    return out


def _versions() -> dict[str, str | None]:
    """The version of each distribution's first copy on sys.path."""
    out: dict[str, str | None] = {}
    for found in distributions():
        if name := found.metadata["Name"]:  # a broken installation has none
            out.setdefault(_key(name), found.version)
    return out


def _in_memory(name: str) -> Iterator[str | None]:
    """The stated version, or None, of each top package that was imported from a distribution."""
    paths = [".".join(file.with_suffix("").parts) for file in distribution(name).files or () if file.suffix == ".py"]
    imported = sys.modules.keys() & {path.removesuffix(".__init__") for path in paths}
    for module in imported:
        if module.rpartition(".")[0] not in imported:
            version = getattr(sys.modules[module], "__version__", None)
            yield version if isinstance(version, str) else None
