"""The house rules a reader relies on: imports point downwards, modules are short, nothing is half done."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Packages and modules in reading order, lowest first. A module may import those before it. The first word is what the
# package may import of third parties: nothing, what runs without an accelerator, JAX, Tunix, or what shows things.
HOUSE = """
stdlib reasonkit: settings config
stdlib reasonkit.session: setup files records secrets interrupts time_budget run_log manifest
stdlib reasonkit.text: tags cleaning hedges units numbers words choices answers
numpy reasonkit.eval: intervals evaluate
numpy reasonkit.judge: rubric judge
numpy reasonkit.rewards: sums work rules mix monitors
numpy reasonkit.data: screening sources problems rows options readers loading filters router own_file curation golds
jax reasonkit.models: distributed mesh cache gemma lora checkpoints load logprobs placement submission_check
tunix reasonkit.train: policy_loss tunix_compat decode rollout loop sft grpo
user reasonkit.show: figures report settings_table data_view dashboard completions
jax reasonkit: choices run precheck inference
stdlib recipes.graders: worker notation structure symbolic operations algebra expression quantity smiles plan list set
numpy recipes.judges: cache exam score_sheet api_client api_calls api_judge
jax recipes.judges: local_variants
user recipes.judges: open_questions
numpy recipes.rewards: rubric text extra controls tunix_demo
jax recipes.rewards: rlpr thought_teacher
numpy recipes.stages: curriculum
tunix recipes.stages: traces simpo distill reward_model teacher
numpy recipes: g_rar g_exact idea_e gym constant shuffled pinocchio gemmatron tunix_demo
numpy recipes: medical chemistry legal robotics on_policy_distillation worked_sft reasonkit all_traces
jax recipes: rlpr
tunix recipes: deep_corgi
tunix tools.preflight: abstract programs compiled forecast
tunix tools: flax
tunix tools.hf: config weights tokenizer __main__
tunix tools: export export_check
user tools: uncertainty data_card trained card publish share lm_eval gemma_from_gguf train_stage build_tiny_models
"""
FLOORS = [(floor, package, names.split()) for line in HOUSE.strip().splitlines()
          for floor, package, names in [re.fullmatch(r"(\w+) ([\w.]+): (.+)", line).groups()]]
ORDER = [f"{package}.{name}" for _, package, names in FLOORS for name in names]
FLOOR_OF = {f"{package}.{name}": floor for floor, package, names in FLOORS for name in names}
ROOTS = ("reasonkit", "recipes", "tools")
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax", "qwix", "tunix"}
# What is below numpy and imports third parties: what reads files; optional ones, in a process of its own or a family.
ISOLATED = {"reasonkit.session.files": {"pydantic"}, "reasonkit.session.records": {"pydantic"},
            "recipes.graders.symbolic": {"sympy"}, "recipes.graders.operations": {"sympy"},
            "recipes.graders.algebra": {"sympy"}, "recipes.graders.quantity": {"pint"},
            "recipes.graders.smiles": {"rdkit"}, "_gym": {"reasoning_gym"},
            "reasonkit.session.secrets": {"google", "kaggle_secrets", "kagglehub"}}  # each only on its platform
# By name, when it is asked for: what a user changes stands above the library, and `reasonkit.ask` above the package.
LOOKED_UP = {"reasonkit.session.setup": {"recipes"}, "reasonkit": {"reasonkit.inference"}}
EXECUTES = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
PRIVATE = {"_exit", "_asdict", "_replace", "_repr_png_", "_repr_html_"}  # public: os, named tuples, IPython
WORDS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")

LIBRARY = sorted(path for root in ROOTS for path in (ROOT / root).rglob("*.py"))
DATA_RECIPES = sorted((ROOT / "data_recipes").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
BUILD = [path for path in NOTEBOOKS if path.stem in ("build", "parameters", "runner", "kaggle_folder", "library_cells",
                                                         "recipe_cells")]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
SOURCES = [*LIBRARY, *DATA_RECIPES, *NOTEBOOKS, *TESTS, *BENCHMARKS]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """`reasonkit/train/sft.py` -> `reasonkit.train.sft`, `tools/__init__.py` -> `tools`."""
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def imported(source: str) -> set[str]:
    """Dotted names of everything imported anywhere in the source, inside functions too; of `from a import b` a.b where
    that is a module of ours, else a."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            ours = {f"{node.module}.{alias.name}" for alias in node.names} & {*ORDER}
            names |= ours or {node.module}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def upward(name: str, source: str) -> list[str]:
    """The imports of module `name` that do not point downwards."""
    packages = {part for _, package, _ in FLOORS for part in (package, package.split(".")[0])} | {"reasonkit.assets"}
    assert name in ORDER or name in packages, f"{name} is in no package of HOUSE: add it, in reading order"
    allowed = {*ORDER[: ORDER.index(name)]} if name in ORDER else set()
    allowed |= LOOKED_UP.get(name, set())
    return sorted(found for found in imported(source) if found.split(".")[0] in ROOTS and found not in allowed)


@pytest.mark.parametrize("path", LIBRARY, ids=label)
def test_imports_point_downwards(path):
    assert upward(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("reasonkit.text.answers", "from reasonkit.text.tags import TAGS", []),
        ("reasonkit.text.answers", "from reasonkit.text import tags", []),
        ("reasonkit.text.tags", "import reasonkit.text.answers", ["reasonkit.text.answers"]),
        ("reasonkit.text.tags", "def f():\n    from reasonkit.text.answers import check", ["reasonkit.text.answers"]),
        ("reasonkit.text.tags", "from reasonkit.text import tags", ["reasonkit.text.tags"]),
        ("reasonkit.data.problems", "import importlib\nimportlib.import_module('tools.export')", ["tools.export"]),
        ("reasonkit.config", "from recipes.g_rar import RECIPE", ["recipes.g_rar"]),
        ("reasonkit.text", "from reasonkit.text import tags", ["reasonkit.text.tags"]),
        ("reasonkit.models.mesh", "from reasonkit.models import unheard_of", ["reasonkit.models"]),
        ("reasonkit.models.mesh", "import reasonkit.unheard_of", ["reasonkit.unheard_of"]),
    ],
)
def test_an_upward_arrow_is_seen(name, source, expected):
    assert upward(name, source) == expected


def test_the_house_has_what_it_lists():
    assert [name for name in ORDER if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []


def test_a_module_without_a_package_is_refused():
    with pytest.raises(AssertionError, match="reasonkit.stray is in no package"):
        upward("reasonkit.stray", "")


@pytest.mark.parametrize("path", [*LIBRARY, *DATA_RECIPES], ids=label)
def test_third_parties_stay_in_their_layer(path):
    name = module_name(path) if path in LIBRARY else path.stem
    layer = FLOOR_OF.get(name, "stdlib")
    tops = {found.split(".")[0] for found in imported(path.read_text(encoding="utf-8"))}
    if layer == "stdlib":
        assert tops - {*ROOTS, "data_recipes"} - sys.stdlib_module_names == ISOLATED.get(name, set())
    elif layer == "numpy":
        assert tops & ACCELERATED == set()


@pytest.mark.parametrize("path", [*LIBRARY, *DATA_RECIPES, *BUILD], ids=label)
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300


@pytest.mark.parametrize("path", [*LIBRARY, *DATA_RECIPES, *BUILD, *BENCHMARKS, *TESTS], ids=label)
def test_modules_begin_with_a_header_of_at_most_five_lines(path):
    """Blank lines and commands do not count. A test module needs none."""
    header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert header or path in TESTS
    assert sum(bool(line) and not line.startswith("    ") for line in header.splitlines()) <= 5


@pytest.mark.parametrize("path", [*LIBRARY, *DATA_RECIPES], ids=label)
def test_nothing_is_executed_and_nothing_is_a_stub(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in EXECUTES, f"line {node.lineno}: {node.func.id}()"
        if isinstance(node, ast.Raise) and node.exc:
            assert "NotImplemented" not in ast.unparse(node.exc), f"line {node.lineno}: a stub"


def borrowed(source: str) -> list[str]:
    """Private names of other objects that the source reaches for: anything but self, cls and `tunix_compat`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"_[a-z]\w*", node.attr) and node.attr not in PRIVATE:
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()") and node.attr != "tunix_compat":
                found.append(f"{owner}.{node.attr}")
    return sorted(found)


@pytest.mark.parametrize("path", LIBRARY, ids=label)
def test_private_names_of_libraries_stay_in_one_module(path):
    """What a new version of Tunix may take away is looked up in `tunix_compat` only."""
    assert path.stem == "tunix_compat" or borrowed(path.read_text(encoding="utf-8")) == []


def test_a_borrowed_private_name_is_seen():
    assert borrowed("manager._checkpoint_manager.save(1); self._sampler._decode()") == [
        "manager._checkpoint_manager", "self._sampler._decode"]
    assert borrowed("self._x; tunix_compat.adamw(1); os._exit(0); row._asdict()") == []


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_mark_of_unfinished_work(path):
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            assert not WORDS.search(token.string), f"line {token.start[0]}: {token.string}"


@pytest.mark.parametrize("path", TESTS, ids=label)
def test_no_test_is_put_aside(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("pytest.mark.skip", "pytest.mark.xfail"), f"line {node.lineno}"


GENERATED = re.compile(r"ValidateProtobufRuntimeVersion\(\s*[\w.]+,\s*(\d+),\s*(\d+),\s*(\d+)")
IMPORTED = """
import json, sys
import reasonkit.precheck, reasonkit.train.grpo, reasonkit.train.sft, tools.share
print(json.dumps([module.__file__ for name, module in sys.modules.items() if name.endswith("_pb2")]))
"""


def test_no_import_needs_a_newer_protobuf_than_the_platforms_images_have():
    """Kaggle's and Colab's have 5.29, and pip leaves it there. A file that a newer one made stops at its import."""
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    files = [Path(name) for name in json.loads(done.stdout.splitlines()[-1])]
    made_by = {path.name: tuple(map(int, found.groups())) for path in files
               if (found := GENERATED.search(path.read_text(encoding="utf-8")))}
    assert "perfetto_trace_pb2.py" in {path.name for path in files} and "sentencepiece_model_pb2.py" in str(files)
    assert {name: version for name, version in made_by.items() if version > (5, 29, 5)} == {}
