"""The tiny stand-ins that ship with the package: their size, what they know, and that the command makes them again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import jax
import pytest

from reasonkit.assets.build import ASSETS, RECIPE, measure_judge, reply
from reasonkit.data import load_recipe
from reasonkit.mesh import make_mesh
from reasonkit.models import load


def test_they_are_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 4_000_000


def test_the_judge_is_as_good_as_its_file_says():
    """Held-out AUC per criterion, measured anew: the figure in measured.json is not taken on trust."""
    mesh = make_mesh(jax.devices()[:4], 4, 1)
    measured = measure_judge(load_recipe(RECIPE), load("tiny-judge", mesh, "float32"), mesh, 400)
    written = json.loads((ASSETS / "judge/measured.json").read_text())["auc"]
    assert measured == pytest.approx(written, abs=0.07)
    assert measured["All steps shown"] >= 0.9
    assert measured["Correct steps"] > 0.6  # better than chance, and no more: see benchmarks/RESULTS.md


def test_the_stock_policy_is_often_wrong():
    policy = json.loads((ASSETS / "policy/measured.json").read_text())
    assert 0.2 < policy["right_without_tags"] < 0.8


def test_flawed_replies_are_labelled_as_such():
    rng, recipe = random.Random(0), load_recipe(RECIPE)
    truths = [reply(recipe, rng, "test")[2] for _ in range(500)]
    for criterion in range(len(recipe.rubric)):
        share = sum(truth[criterion] == 1.0 for truth in truths) / len(truths)
        assert 0.4 < share < 0.95, (criterion, share)
    assert all(0.0 <= value <= 1.0 for truth in truths for value in truth)


@pytest.mark.slow
def test_the_command_makes_the_same_bytes_twice(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # it sets its own devices
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-m", "reasonkit.assets.build", "policy", "--steps", "3",
                        "--out", str(tmp_path / name)], check=True, capture_output=True, env=environment)
    for file in ("model.safetensors", "tokenizer.model", "config.json"):
        assert (tmp_path / "one/policy" / file).read_bytes() == (tmp_path / "two/policy" / file).read_bytes()
