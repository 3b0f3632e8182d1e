"""Rebuild the tiny stock policy and the tiny judge from nothing: `python -m tools.build_tiny_models`.

Both are Gemma 3s of about 1 M parameters. They share a SentencePiece tokenizer with Gemma 3's ids for control tokens.
The policy reads worked solutions as documents, and writes them if asked to think step by step. It answers our prompt
directly and without tags, as a stock model does. The judge starts from the policy's weights and learns to rate a reply
on one criterion, by programmatic labels. Only questions of the training split are seen. Everything follows from SEED.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import string
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import optax
import sentencepiece
from flax import nnx
from scipy.stats import mannwhitneyu
from tunix.sft import peft_trainer

from reasonkit.data.problems import Problem, load_recipe, make_problem, make_problems, rubric_of, split_of
from reasonkit.data.sources import DataRecipe
from reasonkit.judge.judge import RATINGS, judge_prompt, quote_block
from reasonkit.models.load import LoadedModel, Tokenizer, load
from reasonkit.models.logprobs import rating_logprobs
from reasonkit.models.mesh import make_mesh
from reasonkit.session.files import write_atomic
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
from reasonkit.train.sft import model_input
from tools.flax import init_random, save_flax, tiny_config

ASSETS = Path(__file__).parents[1] / "reasonkit" / "assets"
SEED = 1
DEVICES = 2  # part of what makes a rebuild the same, because it decides how sums are rounded
VOCABULARY = 640
RECIPE = "tiny_mix"
STEPWISE = "<start_of_turn>user\n{question}\nThink step by step.<end_of_turn>\n<start_of_turn>model\n"
CONTROL = ["<mask>", *(f"<unused{n}>" for n in range(100)), "<start_of_turn>", "<end_of_turn>"]  # ids 4 to 106
SYMBOLS = [TAGS.reasoning_start, TAGS.reasoning_end, TAGS.answer_start, TAGS.answer_end, "\n", *"0123456789+-=;:,.()"]


def build_tokenizer(recipe: DataRecipe, path: Path) -> None:
    """Train a BPE tokenizer with byte fallback on the words of the problems and prompts."""
    rubrics = [judge_prompt("", "", criterion) for criterion in recipe.rubric]
    texts = ([TAGS.prompt("")] * 2 + [STEPWISE] + rubrics) * 200
    for number in range(400):
        for family in recipe.families:
            item = make_problem(family, number, SEED)
            texts += [item.question, item.reasoning, item.answer]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text.replace("<start_of_turn>", "").replace("<end_of_turn>", "") for text in texts),
        model_writer=model, vocab_size=VOCABULARY, model_type="bpe", byte_fallback=True, character_coverage=1.0,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, user_defined_symbols=CONTROL + SYMBOLS, add_dummy_prefix=False,
        remove_extra_whitespaces=False, normalization_rule_name="identity", num_threads=1, minloglevel=2)
    path.write_bytes(model.getvalue())


Spans = list[tuple[list[int], float, int]]  # a row's spans: token ids, their weight in the loss, their piece


def rows(texts: Iterator[Spans], batch_size: int, length: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of rows, which may have pieces as in `logprobs.prefill`. Rows that are too long are left out."""
    while True:
        tokens_BL, piece_BL = np.zeros((2, batch_size, length), np.int32)
        mask_BL = np.zeros((batch_size, length), np.float32)
        for row in range(batch_size):
            end = 0
            for ids, weight, piece in next(text for text in texts if sum(len(ids) for ids, *_ in text) <= length):
                start, end = end, end + len(ids)
                tokens_BL[row, start:end], mask_BL[row, start:end], piece_BL[row, start:end] = ids, weight, piece
        yield {"tokens_BL": tokens_BL, "loss_mask_BL": mask_BL, "piece_BL": piece_BL}


def results(item: Problem) -> str:
    """The results of the steps without the calculations."""
    return "So " + ", ".join(step.replace("=", " ").split()[-1] for step in item.steps)


def policy_texts(recipe: DataRecipe, tokenizer: Tokenizer) -> Iterator[Spans]:
    """Of eleven texts, three are chat turns answered directly. Four chat turns and four documents have worked steps.

    A third of the worked ones give only the steps' results. The policy is about equally good at both.
    """
    for number, item in enumerate(make_problems(recipe, "train", SEED)):
        worked = f"{item.reasoning if number // 11 % 3 else results(item)}\n{item.answer}"
        context, target, stop = (
            (TAGS.prompt(item.question), item.answer, tokenizer.end_of_turn) if number % 11 < 3 else
            (STEPWISE.format(question=item.question), worked, tokenizer.end_of_turn) if number % 11 < 7 else
            (item.question + "\n", worked, tokenizer.eos_id()))
        yield [([tokenizer.bos_id(), *tokenizer.encode(context)], 0.0, 0), ([*tokenizer.encode(target), stop], 1.0, 0)]


def misread(text: str, rng: random.Random) -> str:
    """The text with another last digit, letter or word of the same kind."""
    for one, other in (("on", "off"), ("off", "on"), ("yes", "no"), ("no", "yes")):
        if text.endswith(one):
            return text.removesuffix(one) + other
    alphabet = "0123456789" if text[-1].isdigit() else "ABC"
    return text[:-1] + rng.choice([symbol for symbol in alphabet if symbol != text[-1]])


def babble(recipe: DataRecipe, rng: random.Random) -> str:
    """Text with which a reply may talk on: random characters, random words such as the judge's, or one of these many
    times."""
    kind, repeated = rng.randrange(4), 1
    if kind == 3:
        kind, repeated = rng.randrange(3), rng.randint(4, 40)
    few = 3 if repeated > 1 else 14
    if kind == 0:
        text = "".join(rng.choices(string.printable, k=rng.randint(1, 3 * few)))
    elif kind == 1:  # usually of one script
        start = rng.randint(0xA0, 0xFF00)
        text = "".join(c if (c := chr(start + rng.randint(0, 60))).isprintable() else " "
                       for _ in range(rng.randint(1, few)))
    else:
        prompt = judge_prompt("", "", rng.choice(recipe.rubric)).replace("_", " ")
        words = [*prompt.split(), "Rating:", "perfect", *RATINGS * 4, *rng.choices(CONTROL, k=4),
                 *string.punctuation.replace("<", "")]  # which would open a tag
        text = rng.choice(SEPARATORS).join(rng.choices(words, k=rng.randint(1, few)))
    return rng.choice(SEPARATORS).join([text] * repeated)[:60]


SEPARATORS = ("", " ", " ", "\n", "\u2028", "\x0b", "\\u003c", ">", '", "')
FLAWS = ("none",) * 3 + ("slip",) * 2 + ("misread", "answer") + ("drop",) * 3 + ("pad",) * 3 + ("cut", "results")


def reply(recipe: DataRecipe, rng: random.Random, split: str,
          places: tuple[int, ...] = (0, 0, 0, 1, 2, 3)) -> tuple[Problem, str, dict[str, float]]:
    """A question, a good or flawed reply to it, and how well it meets each criterion, by title, in [0, 1].

    It talks on at one or two drawn `places`: 0 nowhere, 1 in the reasoning, 2 in the answer, 3 after the end.
    """
    while True:
        family, number = rng.choice(recipe.families), rng.randrange(10**9)
        item = make_problem(family, number, SEED)
        if split_of(item.question, recipe.split) == split:
            break
    steps, answer, flaw = list(item.steps), item.answer, rng.choice(FLAWS)
    at = rng.randrange(len(steps))
    if flaw == "slip":  # one result is wrong, and what follows builds on it
        error, count = rng.choice((-10, -2, -1, 1, 2, 10, rng.randint(3, 9))), iter(range(99))
        slipped = make_problem(family, number, SEED, lambda value: value + error * (next(count) == at))
        steps, answer = list(slipped.steps), slipped.answer
    elif flaw == "misread":  # one result is wrong, and nothing builds on it
        steps[at] = misread(steps[at], rng)
    elif flaw == "drop":
        del steps[at]
    elif flaw == "pad":  # a repeated step, or one of another problem
        for _ in range(rng.randint(1, 2)):
            steps.insert(at, rng.choice([*steps, *make_problem(family, number + 1, SEED).steps]))
    elif flaw == "cut":
        steps = steps[:at]
    elif flaw == "answer":
        answer = misread(answer, rng)
    shown, needed = len(steps), len(item.steps)
    if flaw == "results":
        shown, steps = 0, [results(item)]
    complete, useful = min(1.0, shown / needed), min(shown, needed)
    reasoning, after = "; ".join(steps) or "-", ""
    place = rng.choice(places)
    talks = {place, rng.choice(places)} - {0} if place else ()  # a reply that talks on may do so in two places
    if 1 in talks:
        reasoning += rng.choice(("; ", "\n")) + babble(recipe, rng)
    if 2 in talks:
        answer += rng.choice(" \n") + babble(recipe, rng)
    if 3 in talks:
        after = rng.choice(" \n") + babble(recipe, rng)
    # talking on, in any place and at any length, counts only as padding
    truths = {"All steps shown": complete, "No padding": 0.0 if talks else useful / shown if shown else 1.0}
    return item, TAGS.render(reasoning=reasoning, answer=answer) + after, truths


def judge_texts(recipe: DataRecipe, tokenizer: Tokenizer) -> Iterator[Spans]:
    """Rows as the judge reads them: a reply, and the rating that it deserves on each criterion. A little of the loss is
    on the reply, so the judge learns what a good reply says next."""
    rng = random.Random(SEED)
    while True:
        item, text, truths = reply(recipe, rng, "train")
        asked = []
        for piece, criterion in enumerate(rubric_of(recipe, item), 1):
            rating = RATINGS[round(truths[criterion.title] * (len(RATINGS) - 1))]
            before, _, after = judge_prompt(item.question, text, criterion).partition(quote_block(text))
            asked += [(tokenizer.encode(after), 0.0, piece), (tokenizer.encode(rating), 1.0, piece)]
        yield [([tokenizer.bos_id(), *tokenizer.encode(before)], 0.0, 0),
               (tokenizer.encode(quote_block(text)), 0.01, 0), *asked]


def train(model: nnx.Module, mesh, batches: Iterator, steps: int, learning_rate: float, what: str) -> None:
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(50, steps // 2), steps, learning_rate / 20)
    trainer = peft_trainer.PeftTrainer(model, optax.adamw(schedule, weight_decay=0.01), peft_trainer.TrainingConfig(
        eval_every_n_steps=steps + 1, max_steps=steps, data_sharding_axis=("fsdp",), pbar_description=None,
    )).with_gen_model_input_fn(model_input)
    began = time.perf_counter()

    def report_loss() -> Iterator:
        for step in range(steps):
            if step % 100 == 50:
                loss = trainer.metrics_logger.get_metric_history("", "loss", "train")[-10:].mean()
                print(f"{what}: step {step}/{steps}, loss {loss:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
            yield next(batches)

    with mesh:
        trainer.train(report_loss())


def auc(scores: np.ndarray, good: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a good reply scores above a bad one (Mann and Whitney 1947)."""
    return float(mannwhitneyu(scores[good], scores[~good]).statistic / (good.sum() * (~good).sum()))


def measure_judge(recipe: DataRecipe, judge: LoadedModel, mesh, size: int) -> dict[str, float]:
    """AUC per criterion on replies to test-split questions. A good reply meets the criterion fully, by program."""
    rng = random.Random(SEED + 1)
    samples = [reply(recipe, rng, "test") for _ in range(size)]
    rate = rating_logprobs(judge, mesh, RATINGS, max_length=1024, batch_size=64)  # some replies are long
    measured = {}
    for number, criterion in enumerate(recipe.rubric):
        logprobs_BR = rate([judge_prompt(item.question, text, rubric_of(recipe, item)[number])
                            for item, text, _ in samples])
        expected_B = np.exp(logprobs_BR) @ np.arange(1, len(RATINGS) + 1) / np.exp(logprobs_BR).sum(-1)
        good_B = np.array([truths[criterion.title] == 1.0 for *_, truths in samples])
        measured[criterion.title] = auc(expected_B, good_B)
    return measured


def build_policy(recipe: DataRecipe, mesh, out: Path, steps: int) -> dict:
    """Train the stock policy. Returns its measured accuracy on test-split questions, answered without tags."""
    folder = out / "policy"
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(recipe, folder / "tokenizer.model")
    tokenizer = Tokenizer(folder / "tokenizer.model", "gemma3")
    model = init_random(tiny_config(VOCABULARY), mesh, SEED)
    train(model, mesh, rows(policy_texts(recipe, tokenizer), 64, 104), steps, 3e-3, "policy")
    policy = load(save_flax(model, tokenizer.path, folder, "tiny-policy"), mesh, jax.numpy.float32)
    generate = generator(policy.model, policy.tokenizer, mesh, max_prompt_length=80, max_new_tokens=64, batch_size=64)
    asked = list(islice(make_problems(recipe, "test", SEED), 500))
    replies = generate([TAGS.prompt(item.question) for item in asked])
    right = np.mean([text.strip() == item.answer for text, item in zip(replies, asked, strict=True)])
    return {"steps": steps, "right_without_tags": float(right), "example": replies[0]}


def build_judge(recipe: DataRecipe, mesh, out: Path, steps: int) -> dict:
    """Train the judge from the policy's weights. Returns its AUC per criterion on replies to test-split questions."""
    judge = load(out / "policy", mesh, jax.numpy.float32)
    train(judge.model, mesh, rows(judge_texts(recipe, judge.tokenizer), 32, 320), steps, 2e-3, "judge")
    folder = save_flax(judge.model, judge.tokenizer.path, out / "judge", "tiny-judge")
    return {"steps": steps, "auc": measure_judge(recipe, load(folder, mesh, jax.numpy.float32), mesh, 1500)}


BUILDS = {"policy": (build_policy, 1300), "judge": (build_judge, 1800)}  # with the steps of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=BUILDS, help="only one; the judge needs the policy")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--steps", type=int, help="fewer steps, to try the command")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    recipe, mesh = load_recipe(RECIPE), make_mesh(jax.devices("cpu"), DEVICES, 1)
    for what in [options.what] if options.what else BUILDS:
        build, steps = BUILDS[what]
        facts = build(recipe, mesh, options.out, options.steps or steps)
        write_atomic(options.out / what / "measured.json", json.dumps(facts, indent=2) + "\n")
        print(facts, flush=True)


if __name__ == "__main__":
    main()
