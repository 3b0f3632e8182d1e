"""A judge's speed at its real size: `python benchmarks/judge_speed.py --model gemma3-1b-it`, on all devices.

`judge_readout` measures how well a judge rates. This measures how fast one of a real Gemma's shape reads and writes at
a run's lengths. Its weights are random, because the cost does not depend on them and no download is needed. The rubric
is that of mathematics. Question and completion are as long as the TPU profiles allow, in tokens of the tiny judge's
tokenizer. What such a model generates has no meaning, so its generated verdicts are none.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import tomllib

import jax
from checkout import ROOT
from judge_readout import both_ways, fastest, longest

from reasonkit.judge.judge import JudgeItem
from reasonkit.judge.rubric import load_domain
from reasonkit.models import load
from reasonkit.models.mesh import make_mesh
from reasonkit.models.placement import config_of
from tools.build_tiny_models import SEED
from tools.flax import init_random


def drawn(name: str, mesh: jax.sharding.Mesh) -> load.LoadedModel:
    """A fresh model of the named one's shape, in bfloat16 (float32 on a CPU), with the tiny judge's tokenizer."""
    folder = load.ASSETS / "judge"
    dtype = jax.numpy.float32 if jax.default_backend() == "cpu" else jax.numpy.bfloat16
    config = dataclasses.replace(config_of(name), param_dtype=dtype)
    tokenizer = load.Tokenizer(folder / "tokenizer.model", "gemma3")
    return load.LoadedModel(init_random(config, mesh), tokenizer, config, f"{name}, at random", folder)


def long_items(tokenizer: load.Tokenizer, count: int, asked: int, replied: int) -> list[JudgeItem]:
    """Questions and replies of so many tokens, no two alike: the domain's anchors, with words in another order."""
    rubric, rng = load_domain("maths").rubric, random.Random(SEED)

    def long(text: str, tokens: int) -> str:
        words = text.split() * (1 + tokens // len(text.split()))
        rng.shuffle(words)
        while len(tokenizer.encode(" ".join(words))) > tokens:
            words.pop()
        return " ".join(words)

    anchor = tomllib.loads((ROOT / "benchmarks/anchors.toml").read_text(encoding="utf-8"))["maths"]
    question, good = anchor["question"], anchor["good"]
    return [JudgeItem(long(question, asked), long(good, replied), rubric) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma3-1b-it", help="the name of a Gemma 3 of models.MODELS")
    parser.add_argument("--replies", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs=2, default=[256, 768], help="tokens of a question and of a reply")
    parser.add_argument("--max-length", type=int, default=3072, help="tokens of a row that is read")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 64], help="rows a pass, each of them tried")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 32, 128], help="that a written verdict takes")
    options = parser.parse_args()
    mesh = make_mesh(jax.devices(), jax.device_count(), 1)
    loaded = drawn(options.model, mesh)
    items = long_items(loaded.tokenizer, options.replies, *options.lengths)
    criteria, length = len(items[0].rubric), longest(loaded, items)
    print(f"{loaded.name}, {jax.device_count()} × {jax.devices()[0].device_kind}, {len(items)} replies, "
          f"{criteria} criteria each, prompts of at most {length} tokens\n")
    print("| way | completions a second | with a batch of | over | without a verdict |\n|---|---|---|---|---|")
    ways = both_ways(loaded, mesh, criteria, length, options.max_length, options.batch, options.tokens)
    first = None
    for name, sizes in ways.items():
        rate, batch, results = fastest(sizes, items)
        first = first or rate
        silent = results.count(None) / len(items)
        print(f"| {name} | {rate:.2f} | {batch} | {first / rate:.1f} | {silent:.0%} |", flush=True)


if __name__ == "__main__":
    main()
