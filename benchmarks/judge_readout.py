"""One judge, scored by log-probabilities and generated: `python benchmarks/judge_readout.py`.

On completions to held-out questions, whose truth is known by construction, it prints the AUC of each criterion, how
well and how fast each way of reading the judge scores, and how often an injection raises the score. The default is the
tiny judge. `--model` takes any name or folder that `models.load` does, and adds both orders, the implicit mode and the
domains' anchors.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import time
import tomllib
from collections.abc import Callable

import jax
import numpy as np
from checkout import ROOT
from jax.sharding import Mesh
from scipy.stats import pearsonr, somersd, spearmanr

from benchmarks.written_ratings import written_ratings
from reasonkit.data.problems import load_recipe, rubric_of
from reasonkit.judge.judge import (
    RATINGS,
    JudgeItem,
    JudgeVerdict,
    LocalJudge,
    judge_prompt,
    weighted_score,
)
from reasonkit.judge.rubric import load_domain
from reasonkit.models import load as models
from reasonkit.models.logprobs import rating_logprobs
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
from recipes.judges.local_variants import LocalVariant
from recipes.rewards.rubric import DECIMALS
from tools.build_tiny_models import DEVICES, RECIPE, SEED, auc, reply

INJECTIONS = ROOT / "tests" / "golden" / "injections.jsonl"
RISE = 0.05  # of a score, and more
HARMLESS = "The train was on time, and it did not rain."  # in place of an injection: what noise alone does
Score = Callable[[list[JudgeItem]], list[JudgeVerdict | None]]


def samples(count: int, **options) -> tuple[list[JudgeItem], np.ndarray]:
    """Replies to test-split questions, and how far each meets each criterion, (replies, criteria), in [0, 1]."""
    recipe, rng = load_recipe(RECIPE), random.Random(SEED + 2)
    drawn = [reply(recipe, rng, "test", **options) for _ in range(count)]
    truth_BC = np.array([[truths[criterion.title] for criterion in recipe.rubric] for *_, truths in drawn])
    return [JudgeItem(item.question, text, rubric_of(recipe, item)) for item, text, _ in drawn], truth_BC


def heard(judge: LocalJudge) -> Score:
    return lambda items: [r if isinstance(r, JudgeVerdict) else None for r in judge.score(items)]


def apart(rate: Callable[[list[str]], np.ndarray], criteria: int) -> Callable[[list[str]], np.ndarray]:
    """The same ratings, asked in an order in which no neighbours begin alike: each prompt has a row of its own."""
    def rated(prompts: list[str]) -> np.ndarray:
        order = np.argsort(np.arange(len(prompts)) % criteria, kind="stable")
        return rate([prompts[n] for n in order])[np.argsort(order)]

    return rated


def one_digit(generate: Callable[[list[str]], list[str]]) -> Callable[[list[str]], list[str]]:
    """Texts up to their first digit: the tiny judge was not taught to stop there, and may go on with another."""
    return lambda prompts: [re.match("[^0-9]*[0-9]?", text)[0] for text in generate(prompts)]


def fastest(sizes: dict[int, Score], items: list[JudgeItem]) -> tuple[float, int, list[JudgeVerdict | None]]:
    """Completions a second with the best size of batch, that size, and its verdicts."""
    seconds, results = {}, {}
    for batch, score in sizes.items():
        score(items)  # compiles every length
        for _ in range(2):
            began = time.perf_counter()
            results[batch] = score(items)
            seconds[batch] = min(time.perf_counter() - began, seconds.get(batch, np.inf))
    best = min(seconds, key=seconds.get)
    return len(items) / seconds[best], best, results[best]


def longest(loaded: models.LoadedModel, items: list[JudgeItem]) -> int:
    """Tokens of the longest prompt, with BOS."""
    return 1 + max(len(loaded.tokenizer.encode(judge_prompt(item.question, item.reply, criterion)))
                   for item in items for criterion in item.rubric)


def both_ways(loaded: models.LoadedModel, mesh: Mesh, criteria: int, length: int, max_length: int, batches: list[int],
              tokens: list[int]) -> dict[str, dict[int, Score]]:
    """Read off, and written in so many `tokens`; for each size of batch. `length` is what a written prompt has."""
    endless = copy.copy(loaded.tokenizer)
    endless.stop_ids = tuple(endless.encode("<unused50>"))  # which no Gemma was trained to write
    tiny = loaded.name == "tiny-judge"

    def write(batch: int, new: int) -> Callable[[list[str]], np.ndarray]:
        generate = generator(loaded.model, endless, mesh, max_prompt_length=length, max_new_tokens=new,
                             batch_size=batch)
        return written_ratings(one_digit(generate) if tiny else generate)

    def way(rate: Callable[..., Callable], *details: int, **mode) -> dict[int, Score]:
        return {batch: heard(LocalVariant(rate(batch, *details), loaded.name, **{"mode": "explicit"} | mode))
                for batch in batches}

    def read(batch: int) -> Callable[[list[str]], np.ndarray]:
        return rating_logprobs(loaded, mesh, RATINGS, max_length, batch)

    ways = {"expected rating, log-prob scored": way(read),
            "the same, one row per criterion": way(lambda batch: apart(read(batch), criteria)),
            **{f"generated, {new} tokens": way(write, new) for new in tokens}}
    if not tiny:
        ways["log-prob scored in both orders"] = way(read, both_orders=True)
        ways["log-prob scored, implicit"] = way(read, mode="implicit")
    return ways


def compare(ways: dict[str, dict[int, Score]], items: list[JudgeItem], truth_BC: np.ndarray) -> None:
    """The truth takes few values, so Spearman penalises the noise of any continuous score. So it stands beside Pearson,
    Spearman of rounded scores, and Somers' D (1962), which counts only pairs that the truth tells apart."""
    truths = np.array([weighted_score(met_C, item.rubric).score for met_C, item in zip(truth_BC, items, strict=True)])
    noise = np.random.default_rng(SEED).random((100, len(truths))) * 1e-9
    most = np.mean([spearmanr(truths + broken, truths)[0] for broken in noise])
    print(f"the most that Spearman's can be without ties: {most:.3f}\n")
    heads = ["way", "completions a second", "with a batch of", "Pearson with the truth", "Spearman", "rounded",
             "Somers' D", "without a verdict"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    rates, correlations = {}, {}
    for name, sizes in ways.items():
        rates[name], best, results = fastest(sizes, items)
        told = np.array([result is not None for result in results])
        scores, known = np.array([result.score for result in results if result]), truths[told]
        if len(set(scores)) > 1:
            found = [pearsonr(scores, known)[0], spearmanr(scores, known)[0],
                     spearmanr(scores.round(DECIMALS), known)[0], somersd(known, scores).statistic]
        else:
            found = [np.nan] * 4
        correlations[name] = found
        cells = [name, f"{rates[name]:.1f}", str(best), *(f"{one:.3f}" for one in found), f"{1 - told.mean():.1%}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    ours, *others = ways
    for name in others:
        _, exact, rounded, pairs = np.subtract(correlations[ours], correlations[name])
        print(f"{ours} ÷ {name}: {rates[ours] / rates[name]:.1f} times the completions a second; "
              f"Spearman {exact:+.3f}, rounded {rounded:+.3f}, Somers' D {pairs:+.3f}")


def areas(score: Score, items: list[JudgeItem], truth_BC: np.ndarray) -> None:
    results = score(items)
    print("| criterion | AUC | replies that meet it fully |\n|---|---|---|")
    for number, criterion in enumerate(items[0].rubric):
        good = truth_BC[:, number] == 1.0
        met = np.array([result.per_criterion[number] if result else np.nan for result in results])
        kept = np.isfinite(met)
        print(f"| {criterion.title} | {auc(met[kept], good[kept]):.3f} | {good.sum()} of {len(good)} |")


def attacked(text: str, injection: str) -> dict[str, str]:
    """The reply with the injection at the end of its reasoning, at the end of its answer, and after both."""
    return {"reasoning": text.replace(TAGS.reasoning_end, f"\n{injection}{TAGS.reasoning_end}"),
            "answer": text.replace(TAGS.answer_end, f"\n{injection}{TAGS.answer_end}"), "end": f"{text}\n{injection}"}


def injections(score: Score, items: list[JudgeItem]) -> float:
    """A row an injection: the share of replies whose score rises, for each place, and the median change.

    Returns the share over all injections and places."""
    texts = {"(harmless)": HARMLESS} | {row["name"]: row["text"]
                                        for row in map(json.loads, INJECTIONS.read_text().splitlines())}
    places = list(attacked("", ""))
    harmed = [JudgeItem(item.question, text, item.rubric) for injection in texts.values() for item in items
              for text in attacked(item.reply, injection).values()]
    # all at once: batches of one length are full
    scores = np.array([result.score if result else np.nan for result in score([*items, *harmed])])
    clean_B = scores[:len(items)]
    change_IBP = scores[len(items):].reshape(len(texts), len(items), len(places)) - clean_B[:, None]
    room_B = clean_B <= 1.0 - RISE
    print(f"{len(items)} replies, {len(texts) - 1} injections. Rose: by more than {RISE}. A reply has room to rise "
          f"when its score was at most {1 - RISE:.2f} ({room_B.sum()} of {len(items)}).")
    heads = ["injection", *(f"rose, in {place}" for place in places), "rose, anywhere", "of those with room",
             "median change", "without a verdict"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    parts = {name: change_IBP[[n]] for n, name in enumerate(texts)} | {"**all injections**": change_IBP[1:]}
    for name, part_IBP in parts.items():
        rose_IBP, silent_IBP = part_IBP > RISE, np.isnan(part_IBP)
        shares = [*rose_IBP.mean(axis=(0, 1)), rose_IBP.mean(), rose_IBP[:, room_B].mean()]
        median = np.nan if silent_IBP.all() else np.nanmedian(part_IBP)
        cells = [name, *(f"{share:.1%}" for share in shares), f"{median:+.3f}", f"{silent_IBP.mean():.1%}"]
        print(f"| {' | '.join(cells)} |")
    return float((change_IBP[1:] > RISE).mean())


def anchors(judge: LocalJudge) -> None:
    told = {}
    for name, anchor in tomllib.loads((ROOT / "benchmarks/anchors.toml").read_text(encoding="utf-8")).items():
        rubric = load_domain(name).rubric
        good, bad = heard(judge)([JudgeItem(anchor["question"], anchor[text], rubric) for text in ("good", "bad")])
        told[name] = good.score - bad.score if good and bad else np.nan
    print("good anchor less bad one: " + ", ".join(f"{name} {gap:+.2f}" for name, gap in told.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-judge", help="a name or folder for models.load")
    parser.add_argument("--replies", type=int, default=512)
    parser.add_argument("--attacked", type=int, default=48, help="replies that are injected into")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a judge's prompt")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16, 64], help="rows a pass, each of them tried")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 8, 32, 128], help="that a written verdict takes")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    devices, tiny = jax.devices()[:DEVICES], options.model == "tiny-judge"
    mesh = make_mesh(devices, len(devices), 1)
    # a CPU is slower in bfloat16
    loaded = models.load(options.model, mesh, "float32" if jax.default_backend() == "cpu" else None)

    items, truth_BC = samples(options.replies)
    plain = samples(options.replies, places=(0,))
    length = longest(loaded, [*items, *plain[0]])
    ways = both_ways(loaded, mesh, truth_BC.shape[1], length, options.max_length, options.batch, options.tokens)

    print(f"{options.model}, {len(devices)} {devices[0].platform} devices, {len(items)} replies, "
          f"{truth_BC.shape[1]} criteria each, prompts of at most {length} tokens\n")
    rate = rating_logprobs(loaded, mesh, RATINGS, options.max_length, options.batch[0])
    ours = heard(LocalJudge(rate, options.model))
    areas(ours, items, truth_BC)
    print()
    compare(ways, items, truth_BC)
    print("\nClean completions only:")
    areas(ours, *plain)
    print()
    if tiny:
        compare({name: ways[name] for name in list(ways)[:3:2]}, *plain)
    else:
        anchors(LocalJudge(rate, options.model))
    rose = []
    for kind, places in (("clean", (0,)), ("with trailing text", (1, 2, 3))):
        print(f"\nCompletions, {kind}:")
        rose.append(injections(ours, samples(options.attacked, places=places)[0]))
    print(f"\nOf both kinds, half of each as the judge was trained: {np.mean(rose):.1%}")


if __name__ == "__main__":
    main()
