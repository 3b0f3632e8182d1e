"""The tiny stand-ins that ship with the package: their size, what they know, and that the command makes them again."""

from __future__ import annotations

import json
import random

import jax
import pytest
from flax import nnx
from tiny_gemma import equal

from reasonkit.data.problems import load_recipe
from reasonkit.models.load import Tokenizer, load
from reasonkit.models.mesh import make_mesh
from tools.build_tiny_models import (
    ASSETS,
    RECIPE,
    SEED,
    VOCABULARY,
    build_tokenizer,
    measure_judge,
    policy_texts,
    reply,
    rows,
    train,
)
from tools.flax import init_random, save_flax, tiny_config


def test_they_are_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 4_000_000


def test_the_judge_is_as_good_as_its_file_says():
    """Held-out AUC per criterion, measured anew: the figure in measured.json is not taken on trust."""
    mesh = make_mesh(jax.devices()[:4], 4, 1)
    measured = measure_judge(load_recipe(RECIPE), load("tiny-judge", mesh, "float32"), mesh, 400)
    written = json.loads((ASSETS / "judge/measured.json").read_text())["auc"]
    assert measured == pytest.approx(written, abs=0.07)
    assert min(measured.values()) >= 0.9


def test_the_stock_policy_is_often_wrong():
    policy = json.loads((ASSETS / "policy/measured.json").read_text())
    assert 0.2 < policy["right_without_tags"] < 0.8


def test_flawed_replies_are_labelled_as_such():
    rng, recipe = random.Random(0), load_recipe(RECIPE)
    truths = [reply(recipe, rng, "test")[2] for _ in range(500)]
    for criterion in recipe.rubric:
        share = sum(truth[criterion.title] == 1.0 for truth in truths) / len(truths)
        assert 0.4 < share < 0.95, (criterion, share)
    assert all(0.0 <= value <= 1.0 for truth in truths for value in truth.values())


@pytest.mark.slow
def test_training_them_again_gives_the_same_bytes(tmp_path):
    recipe, mesh = load_recipe(RECIPE), make_mesh(jax.devices()[:2], 2, 1)
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        build_tokenizer(recipe, folder / "tokenizer.model")
        tokenizer = Tokenizer(folder / "tokenizer.model", "gemma3")
        model = init_random(tiny_config(VOCABULARY), mesh, SEED)
        train(model, mesh, rows(policy_texts(recipe, tokenizer), 8, 104), 3, 3e-3, "policy")
        save_flax(model, tokenizer.path, folder)
    for file in ("tokenizer.model", "model.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    one, two = (nnx.state(load(tmp_path / name, mesh, "float32").model) for name in ("one", "two"))
    assert equal(one, two)
