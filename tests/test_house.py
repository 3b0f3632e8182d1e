"""The house rules a reader relies on: imports point downwards, modules are short, nothing is half done."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Lowest first. A module may import any module of a lower layer, and those named before it in its own.
LAYERS = (
    ("stdlib", "pins tags cleaning units numerals dates texts choices lists notation structure expressions symbolic "
     "algebra planning isolated quantities answers replies ratings tfidf work files records session budget runlog "
     "outcome reuse"),
    ("numpy", "secrets rubrics judge judge_cache judge_text services judge_api groups rewards compose controls "
     "text_rewards screening data curriculum intervals exam evaluate monitors"),
    ("jax", "hosts mesh hf_files hf_config tokenizer gemma lora hf models hf_tokenizer realmodel readout export "
     "model_rewards abstract"),
    ("tunix", "policy_loss checkpoint _tunix rollout safety handover sft simpo grpo distill verify programs preflight"),
    ("user", "recipes sizes forecast stage report_style dashboard report publish"),
)
ORDER = ["", *(name for _, names in LAYERS for name in names.split()), "assets"]
FLOOR_OF = {name: layer for layer, names in LAYERS for name in names.split()}
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax", "qwix", "tunix"}
# What is below numpy and imports third parties: what reads files; optional ones, in a process of its own or a family.
ISOLATED = {"files": {"pydantic"}, "records": {"pydantic"}, "symbolic": {"sympy"}, "algebra": {"sympy"},
            "isolated": {"pint", "rdkit"}, "_gym": {"reasoning_gym"}}
EXECUTES = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
PRIVATE = {"_exit", "_asdict", "_replace", "_repr_png_"}  # public in all but name: os, named tuples, IPython
WORDS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")

LIBRARY = sorted((ROOT / "reasonkit").rglob("*.py"))
RECIPES = sorted((ROOT / "data_recipes").rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
TOOLS = [path for path in NOTEBOOKS if path.stem in ("build", "runner")]
SOURCES = [*LIBRARY, *RECIPES, *NOTEBOOKS, *TESTS, *sorted((ROOT / "benchmarks").glob("*.py"))]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """`reasonkit/sft.py` -> `sft`, `reasonkit/assets/build.py` -> `assets`, `reasonkit/__init__.py` -> ``."""
    first = path.relative_to(ROOT / "reasonkit").parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(source: str, modules: set[str]) -> set[str]:
    """Dotted names of everything imported anywhere in the source, inside functions too.

    `from reasonkit import x` and `from . import x` name `reasonkit.x` where x is one of `modules`.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = f"reasonkit.{base}".rstrip(".")
            if base == "reasonkit":
                names |= {f"reasonkit.{a.name}" if a.name in modules else base for a in node.names}
            else:
                names.add(base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def arrows(source: str) -> set[str]:
    """The reasonkit modules that a source imports, by their short names."""
    ours = {n for n in imported(source, set(ORDER)) if n.split(".")[0] == "reasonkit"}
    return {(name.split(".") + [""])[1] for name in ours}


def upward(name: str, source: str) -> list[str]:
    """The imports of module `name` that do not point downwards."""
    assert name in ORDER, f"reasonkit/{name} is in no layer: add it to LAYERS, in reading order"
    allowed = {*ORDER[: ORDER.index(name)], *({"assets"} if name == "assets" else ())}
    return sorted(arrows(source) - allowed)


@pytest.mark.parametrize("path", LIBRARY, ids=label)
def test_imports_point_downwards(path):
    assert upward(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("answers", "from reasonkit.tags import TAGS", []),
        ("answers", "from reasonkit import tags", []),
        ("tags", "import reasonkit.answers", ["answers"]),
        ("tags", "def f():\n    from reasonkit.answers import check", ["answers"]),
        ("tags", "def f():\n    from .answers import check", ["answers"]),
        ("tags", "from . import tags", ["tags"]),
        ("data", "import importlib\nimportlib.import_module('reasonkit.sft')", ["sft"]),
        ("report", "import reasonkit.sft\nfrom reasonkit.assets import build", ["assets"]),
        ("assets", "from reasonkit.assets import build\nfrom reasonkit import report", []),
        ("", "from reasonkit import tags", ["tags"]),
        ("mesh", "from reasonkit import unheard_of", []),
        ("mesh", "import reasonkit.unheard_of", ["unheard_of"]),
    ],
)
def test_an_upward_arrow_is_seen(name, source, expected):
    assert upward(name, source) == expected


def test_a_module_without_a_layer_is_refused():
    with pytest.raises(AssertionError, match="reasonkit/stray is in no layer"):
        upward("stray", "")


@pytest.mark.parametrize("path", [*LIBRARY, *RECIPES], ids=label)
def test_third_parties_stay_in_their_layer(path):
    tops = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"), set())}
    own = {"reasonkit", "data_recipes"}
    name = module_name(path) if path in LIBRARY else path.stem
    layer = FLOOR_OF.get(name) if path in LIBRARY else "stdlib"
    if layer == "stdlib":
        assert tops - own - sys.stdlib_module_names == ISOLATED.get(name, set())
    elif layer == "numpy":
        assert tops & ACCELERATED == set()


@pytest.mark.parametrize("path", [*LIBRARY, *RECIPES, *TOOLS], ids=label)
def test_modules_are_short_and_begin_with_what_they_are(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 300
    assert ast.get_docstring(ast.parse(source)), "a module begins with a docstring"


@pytest.mark.parametrize("path", [*LIBRARY, *RECIPES], ids=label)
def test_nothing_is_executed_and_nothing_is_a_stub(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in EXECUTES, f"line {node.lineno}: {node.func.id}()"
        if isinstance(node, ast.Raise) and node.exc:
            assert "NotImplemented" not in ast.unparse(node.exc), f"line {node.lineno}: a stub"


def borrowed(source: str) -> list[str]:
    """Private names of other objects that the source reaches for: anything but self, cls and the module `_tunix`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"_[a-z]\w*", node.attr) and node.attr not in PRIVATE:
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()") and node.attr != "_tunix":
                found.append(f"{owner}.{node.attr}")
    return sorted(found)


@pytest.mark.parametrize("path", LIBRARY, ids=label)
def test_private_names_of_libraries_stay_in_one_module(path):
    """What a new version of Tunix may take away is looked up in `_tunix` alone."""
    assert path.stem == "_tunix" or borrowed(path.read_text(encoding="utf-8")) == []


def test_a_borrowed_private_name_is_seen():
    assert borrowed("manager._checkpoint_manager.save(1); self._sampler._decode()") == [
        "manager._checkpoint_manager", "self._sampler._decode"]
    assert borrowed("self._x; _tunix.adamw(1); os._exit(0); row._asdict()") == []


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
