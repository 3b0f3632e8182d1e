"""A notebook's choices; the pinned packages, by pip and wheels made here, into a folder of the test's own; and the
notebooks' setup cells."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_build import NAMES, ROOT, build

from reasonkit.config import PROFILES
from reasonkit.session import setup

OFFLINE = ("No package index was reached .PIP_NO_INDEX is set.: turn Internet on, on Kaggle .* as the Input pane "
           "copies it: .* PIP_FIND_LINKS='/kaggle/input/datasets/OWNER/NAME'")


# Stands in for pip where it is about what comes after it: the pins and what they need, from the wheels to the target.
PIP = """
import os, pathlib, shutil, sys, zipfile
wheels, target = pathlib.Path(os.environ["TOY_WHEELS"]), pathlib.Path(os.environ["TOY_TARGET"])
for pin in [word for word in sys.argv if "==" in word]:
    name, version = pin.replace("-", "_").split("==")
    for name, version in [(name, version)] + [("toy_needed", "2.0")] * (name == "toy_needing"):
        for old in target.glob(f"{name}*"):
            shutil.rmtree(old)
        zipfile.ZipFile(next(wheels.glob(f"{name}-{version}*"))).extractall(target)
"""


def wheel(folder: Path, name: str, version: str) -> None:
    """A package of one module that states its version."""
    info = f"{name}-{version}.dist-info"
    texts = {f"{name}/__init__.py": f"__version__ = {version!r}\n",
             f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
             + "Requires-Dist: toy_needed==2.0\n" * (name == "toy_needing"),
             f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    texts[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in texts)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in texts.items():
            archive.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in (("toy_pinned", "1.0"), ("toy_pinned", "2.0"), ("toy_needed", "1.0"), ("toy_needed", "2.0"),
                          ("toy_needing", "1.0"), ("toy_built", "1.0+cuda12")):
        wheel(folder, name, version)
    return folder


@pytest.fixture
def real(tmp_path, monkeypatch, wheels):
    """The real pip, which finds only the wheels that were made here, and installs into a folder."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "KAGGLE"))]:
        monkeypatch.delenv(name)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": wheels, "TARGET": tmp_path / "target", "CONFIG_FILE": os.devnull,
                        }.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    (tmp_path / "target").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "target")
    monkeypatch.setattr(setup, "_REPLACED", set())
    yield tmp_path / "target"
    for name in [name for name in sys.modules if name.startswith("toy_")]:
        del sys.modules[name]


@pytest.fixture
def place(real, tmp_path, monkeypatch, wheels):
    """The same folder with the stand-in."""
    (tmp_path / "fake" / "pip").mkdir(parents=True)
    (tmp_path / "fake" / "pip" / "__init__.py").touch()
    (tmp_path / "fake" / "pip" / "__main__.py").write_text(PIP)
    for name, value in {"PYTHONPATH": tmp_path / "fake", "TOY_WHEELS": wheels, "TOY_TARGET": real}.items():
        monkeypatch.setenv(name, str(value))
    return real


def test_a_name_alone_is_any_version(place, capsys):
    for pins_now in (["toy-pinned==1.0"], ["toy-pinned", "toy-needing==1.0"], ["toy-pinned", "toy-needing"]):
        setup.install(pins_now)
        importlib.import_module("toy_pinned")
    assert capsys.readouterr().out.count("installing") == 2
    with pytest.raises(RuntimeError, match="would still not find toy-none .missing.: uninstall"):
        setup.install(["toy-none"])


@pytest.mark.slow
def test_real_pip_installs_a_wheel_that_is_attached(real):
    setup.install(["toy-pinned==1.0"])
    assert importlib.import_module("toy_pinned").__version__ == "1.0"


def test_what_is_missing_is_installed_once(place, capsys, monkeypatch):
    setup.install(["toy-pinned==1.0"])
    assert "installing toy-pinned 1.0 (missing)" in capsys.readouterr().out
    assert importlib.import_module("toy_pinned").__version__ == "1.0"
    monkeypatch.setattr(subprocess, "run", None)
    setup.install(["toy-pinned==1.0"])
    assert capsys.readouterr().out == ""


def test_a_version_that_was_not_imported_is_replaced(place, capsys):
    setup.install(["toy-pinned==1.0"])
    setup.install(["toy-pinned==2.0"])
    assert f"toy-pinned 2.0 (there is 1.0 in {place})" in capsys.readouterr().out
    assert importlib.import_module("toy_pinned").__version__ == "2.0"


def test_a_build_of_the_version_is_the_version(place, monkeypatch):
    setup.install(["toy-built==1.0"])
    importlib.import_module("toy_built")
    monkeypatch.setattr(subprocess, "run", None)
    setup.install(["toy-built==1.0"])


def test_a_version_that_was_replaced_after_its_import_needs_a_restart_until_there_is_one(place):
    setup.install(["toy-pinned==1.0"])
    importlib.import_module("toy_pinned")
    for _ in range(2):  # the second time, all files are right, and what is in memory is not
        with pytest.raises(RuntimeError, match="toy-pinned: imported before .* Restart the kernel .* then Run all"):
            setup.install(["toy-pinned==2.0"])
    del sys.modules["toy_pinned"]
    setup._REPLACED.clear()
    setup.install(["toy-pinned==2.0"])


def test_so_does_one_that_the_user_replaced(place):
    setup.install(["toy-pinned==1.0"])
    importlib.import_module("toy_pinned")
    subprocess.run([sys.executable, "-m", "pip", "toy-pinned==2.0"], check=True)
    importlib.invalidate_caches()
    with pytest.raises(RuntimeError, match="toy-pinned: imported before"):
        setup.install(["toy-pinned==2.0"])


@pytest.mark.parametrize("batch", [False, True])
def test_so_does_what_a_pinned_package_needs(place, monkeypatch, batch):
    """But for a session without a user, which can't restart: what is in memory there is the kernel's own."""
    setup.install(["toy-needed==1.0"])
    importlib.import_module("toy_needed")
    if batch:
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
        setup.install(["toy-needing==1.0"])
    else:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="toy-needed: imported before"):
                setup.install(["toy-needing==1.0"])


def test_the_first_copy_on_the_path_counts(place, tmp_path, monkeypatch, wheels):
    setup.install(["toy-pinned==2.0"])
    first = tmp_path / "first"
    zipfile.ZipFile(wheels / "toy_pinned-1.0-py3-none-any.whl").extractall(first)
    monkeypatch.syspath_prepend(first)
    with pytest.raises(RuntimeError, match=rf"still not find toy-pinned 2.0 .there is 1.0 in {first}.: uninstall"):
        setup.install(["toy-pinned==2.0"])


@pytest.mark.slow
@pytest.mark.parametrize(("pin", "environment", "message"), [
    ("toy-none==1.0", {}, rf"could not install toy-none 1.0 .missing.\. {OFFLINE}"),
    ("toy-pinned==3.0", {}, r"could not install toy-pinned 3.0 .missing.(.|\n)*from versions: 1.0, 2.0"),
    ("toy-pinned==3.0", {"PIP_NO_INDEX": "", "PIP_INDEX_URL": "http://localhost:9", "PIP_RETRIES": "1"},
     "No package index was reached: turn Internet on"),
    ("toy-needed==1.0 toy-needing==1.0", {}, r"Mend what it names(.|\n)*ResolutionImpossible"),
])
def test_pips_failure_is_one_error(real, monkeypatch, pin, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if environment:
        monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(RuntimeError, match=message):
        setup.install(pin.split())
    assert list(real.iterdir()) == []


def test_a_wheel_that_there_is_not_for_this_python_is_named(real, monkeypatch):
    """An index that answers: for pip, a folder is one."""
    index = real.parent / "index" / "toy-none"
    index.mkdir(parents=True)
    (index / "index.html").write_text('<a href="toy_none-1.0-cp27-cp27m-win32.whl">of another machine</a>')
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"file://{real.parent / 'index'}")
    with pytest.raises(RuntimeError, match=r"There is no wheel for Python 3\.\d+\.\d+ .*take Python 3.11, 3.12 or"):
        setup.install(["toy-none==1.0"])


def test_all_pins_state_the_version_that_is_installed():
    """What is in memory is compared by that."""
    for cell in build.setup_cells(ROOT, "data"):
        for name, version in re.findall(r"^([\w-]+)==(\S+)", "\n".join(cell.source.split()), re.M):
            module = {"google-tunix": "tunix", "orbax-checkpoint": "orbax.checkpoint"}.get(name, name)
            assert getattr(importlib.import_module(module), "__version__", version) == version


# The setup cells, as a kernel in `cwd` runs them


def set_up(cwd: Path, before: str, after: str = "", **environment: str):
    """A process that runs the cells up to the installation, after `before`."""
    cells = "\n".join(cell.source for cell in build.setup_cells(ROOT, "data")[:2])
    report = "\nimport reasonkit, json; print(json.dumps(reasonkit.__file__))"
    done = subprocess.run([sys.executable, "-c", f"{before}\n{cells}\n{after}{report}"], cwd=cwd, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": "", **environment}, check=False)
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]
    return json.loads(last) if done.returncode == 0 else last


@pytest.fixture
def clone(tmp_path):
    """What a clone has that matters here, in a folder named as the repository is."""
    (tmp_path / "content" / "reasonkit" / "notebooks").mkdir(parents=True)
    for name in ("reasonkit", "recipes"):
        (tmp_path / "content" / "reasonkit" / name).symlink_to(ROOT / name)
    return tmp_path / "content" / "reasonkit"


# An installed reasonkit would be found anyway: hide it.
CHOSEN = 'PROFILE, RECIPE, SEED, SETTINGS = "{}", "g_rar", 0, {{}}'
ALONE = f"""{CHOSEN.format("cpu")}
import sys
sys.meta_path[:] = [found for found in sys.meta_path if "editable" not in repr(found)]"""


@pytest.mark.parametrize("where", [".", "notebooks", "..", "../elsewhere/../.."])
def test_the_library_is_found_in_a_clone(clone, where):
    (clone.parent / "elsewhere").mkdir()
    found = set_up(clone / where, ALONE)
    if where.endswith("../.."):
        assert "ModuleNotFoundError" in found  # two folders down
    else:
        assert found == str(clone / "reasonkit" / "__init__.py")


def test_the_clones_own_folder_is_not_taken_for_the_library(clone):
    """Beside a clone named reasonkit, `import reasonkit` finds a package without a file, and it stays."""
    before = ALONE + "\nimport reasonkit\nassert reasonkit.__file__ is None"
    found = set_up(clone.parent, before, "from reasonkit.data import problems as data")
    assert found == str(clone / "reasonkit" / "__init__.py")


def test_a_notebook_alone_says_what_to_do(tmp_path):
    said = set_up(tmp_path, ALONE)
    assert said.startswith(f"ModuleNotFoundError: no reasonkit/__init__.py in {tmp_path}, above it")
    assert "On Kaggle import notebooks/submission.ipynb, which carries it." in said and "!git clone" in said


def test_cells_that_were_left_out_are_named():
    assert set_up(ROOT, "") == ("NameError: PROFILE is not set: run the cell tagged 'parameters' first, or Run all")


def test_a_kaggle_session_without_network_stops_in_the_setup():
    """There, libtpu is missing: it is pinned for TPUs alone. The machine is given a TPU's device file."""
    before = CHOSEN.format("kaggle") + "\nfrom reasonkit.session import setup\nsetup.TPU_FILES = ('null',)"
    said = set_up(ROOT, before, PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert "libtpu" in said and said.startswith("ERROR")  # pip's own line is the last


def test_a_kaggle_session_without_a_tpu_stops_before_anything_is_installed():
    said = set_up(ROOT, CHOSEN.format("kaggle"), PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert said.startswith("RuntimeError: this profile is for a TPU, and the machine has none: choose one and start")


def test_a_slip_in_the_first_cell_is_found_before_anything_is_installed():
    """And before anything but the standard library is imported: what is imported can't be replaced."""
    before = CHOSEN.format("cpuu") + "\nimport sys\nsys.modules.update(jax=None, numpy=None, pydantic=None)"
    assert set_up(ROOT, before).endswith("The nearest is 'cpu'")


# Choices


@pytest.mark.parametrize(("settings", "kept"), [
    ({}, {}), ({"sft_steps": 0, "policy": "", "minutes": None, "grpo_learning_rate": 0.0}, {}),
    ({"sft_steps": 7, "minutes": 30, "judge": "x"}, {"sft_steps": 7, "minutes": 30, "judge": "x"}),
    ({"lora_rank": 8, "grpo_beta": 0.5}, {"lora_rank": 8, "grpo_beta": 0.5}),
    ({"grpo_beta": 0, "sft_warmup": 0.0, "judge": None}, {"grpo_beta": 0, "sft_warmup": 0.0})])
def test_only_what_is_set_replaces_the_profiles_own(settings, kept):
    assert setup.check_choices("cpu", "g_rar", 0, settings) == kept
    changed = setup.change(PROFILES["cpu"], kept)
    for name in setup.SETTINGS:
        assert setup.value_of(changed, name) == kept.get(name, setup.value_of(PROFILES["cpu"], name))


@pytest.mark.parametrize(("settings", "message"), [
    ({"sft_step": 7}, r"unknown setting 'sft_step': choose one of .*\. The nearest is 'sft_steps'"),
    ({"devices": 2}, "unknown setting 'devices'"), ({"name": "x"}, "unknown setting 'name'"),
    ({"sft_step": 0}, "unknown setting 'sft_step'"), ({"minute": ""}, "unknown setting 'minute'"),
    ({"sft_steps": "7"}, "sft_steps='7': give a whole number above 0, or leave it out for the profile's own, 120"),
    ({"lora_rank": 0}, "lora_rank=0: give a whole number above 0, or leave it out for the profile's own, 16"),
    ({"grpo_temperature": 0}, "grpo_temperature=0: give a number above 0, or leave it out for the profile's own, 1.0"),
    ({"grpo_beta": False}, "grpo_beta=False: give a number above 0, or 0, or leave"), ({"grpo_beta": -0.1}, "a=-0.1"),
    ({"sft_steps": 7.5}, "sft_steps=7.5: give a whole"), ({"sft_steps": True}, "sft_steps=True: give a whole"),
    ({"sft_steps": -1}, "sft_steps=-1: give a whole"), ({"minutes": float("nan")}, "minutes=nan: give a number above"),
    ({"grpo_learning_rate": "1e-5"}, "grpo_learning_rate='1e-5': give a number above 0"),
    ({"grpo_learning_rate": float("inf")}, "grpo_learning_rate=inf: give"),
    ({"grpo_warmup": 1}, "grpo_warmup=1: give a number above 0 and below 1, or 0, or leave it out .* own, 0.1"),
    ({"sft_warmup": 10.0}, "sft_warmup=10.0"), ({"simpo_label_smoothing": 0.5}, "above 0 and below 0.5, or 0, or"),
    ({"sft_learning_rate": 2}, "sft_learning_rate=2: give a number above 0 and below 1, or leave it out"),
    ({"simpo_max_new_tokens": 9}, "simpo_max_new_tokens=9: give a whole number above 15, or leave it out"),
    ({"grpo_num_generations": 1}, "grpo_num_generations=1: give a whole number above 1, or leave"),
    ({"simpo_num_generations": 0}, "simpo_num_generations=0: give"),
    ({"dtype": "bf16"}, "unknown dtype 'bf16': choose one of bfloat16, float16, float32. The nearest is 'bfloat16'"),
    ({"policy": 3}, "policy=3: give a name in quotes"), ({"policy": ["x"]}, r"policy=\['x'\]: give a name")])
def test_a_setting_that_is_none_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        setup.check_choices("cpu", "g_rar", 0, settings)


def test_a_zero_takes_effect_where_it_switches_something_off():
    """It used to be dropped in silence: a beta of 0 ran as 0.07. Every 0 of a profile can be written out."""
    zeros = {name for profile in PROFILES.values() for name in setup.SETTINGS if setup.value_of(profile, name) == 0}
    assert zeros <= {*setup.MAY_BE_0} <= {*setup.SETTINGS} - {*setup.LISTED}
    for name in setup.MAY_BE_0:
        changed = setup.change(PROFILES["kaggle"], setup.check_choices("kaggle", "g_rar", 0, {name: 0}))
        assert setup.value_of(changed, name) == 0


@pytest.mark.parametrize("name", [*NAMES, "submission_template"])
def test_a_first_cell_as_it_is_changes_nothing(name):
    cell = build.parameters(build.read_source(ROOT / "notebooks" / f"{name}.py"))[1]
    assert setup.check_choices("cpu", "g_rar", 0, ast.literal_eval(cell["SETTINGS"].value)) == {}


@pytest.mark.parametrize(("stage", "steps"), [("grpo", 400), ("distill", 1400)])
def test_a_stage_makes_exactly_the_steps_that_are_set(stage, steps):
    own = getattr(PROFILES["kaggle"], stage)
    assert own.last_step > own.steps == steps

    def last(**settings):
        return getattr(setup.change(PROFILES["kaggle"], settings), stage).last_step

    assert last(**{f"{stage}_steps": 5}) == 5 and last(**{f"{stage}_steps": 5, f"{stage}_most_steps": 9}) == 9
    assert last(sft_steps=5) == own.last_step


def test_minutes_that_are_set_are_a_limit_on_a_laptop_too():
    assert PROFILES["cpu"].grows and setup.change(PROFILES["cpu"], {"sft_steps": 5}).grows
    changed = setup.change(PROFILES["cpu"], {"minutes": 5.0})
    assert not changed.grows and changed.minutes == 5.0
