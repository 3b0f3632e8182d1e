"""Rewards on hostile text: do they raise, are they linear, are they fast? `python benchmarks/rewards.py`.

It prints (1) whether random and mutated completions make tags, answers or any rule-based reward raise, (2) the time for
hostile text of double length over that of single length, and (3) the seconds for well-formed completions through one
composed reward on one core. No model is called, so a judge's time is not included.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator

import checkout  # noqa: F401

from reasonkit.data import problems
from reasonkit.models.load import ASSETS, MODELS, Tokenizer
from reasonkit.rewards import rules
from reasonkit.rewards.mix import RewardMix
from reasonkit.session.run_log import NullLog
from reasonkit.text.answers import KINDS, check
from reasonkit.text.tags import TAGS
from recipes.rewards import extra
from recipes.rewards import text as text_rewards

GOLDS = {"number": "20", "choice": "B", "yes_no": "yes", "list": "1, 2", "set": "1, 2", "text": "blue",
         "expression": "x^2 + 1", "quantity": "5 km", "smiles": "CCO", "date": "2024-03-05",
         "plan": '{"start": ["lamp off"], "goal": ["lamp on"], "actions": {"flip": {"adds": ["lamp on"]}}}'}
QUESTION = "Leo has 6 shells, buys 5, buys 7, finds 2. How many shells now?"
HONEST = TAGS.render(answer="20", reasoning=(
    "Identify: Leo starts with 6 shells and the story changes that number three times.\n"
    "Determine: buying and finding both add, so every number is added.\n"
    "Explore: 6 + 5 = 11, then 11 + 7 = 18 shells.\nAct: the last find gives 18 + 2 = 20.\n"
    "Evaluate: only additions, so ending above six makes sense: 20."))
FRAGMENTS = (
    "<reasoning>", "</reasoning>", "<answer>", "</answer>", "< ANSWER >", "<end_of_turn>", "Identify:", "Act:\n", "20",
    "\\frac{1}{2}", "1e999", "10^9", "-", "1,000", "(A)", "yes", "\u0131dentify:", "\u2212", "\u200b", "\x00", "\ud800",
    "\U0001f600", "\u0301", "½", "²", "{question}", "%s", "shells", "\n", " ", "!", "\\", "$", "`")
HOSTILE = (
    "x", "1", "1,", "9.", "- ", " ", "\n", "!", "! ", "<", "< ", "<answer", "<answer>", "<answer>1</answer>",
    "<reasoning>", "</reasoning>", "<reasoning><answer>", "Identify:\n", "Identify\n", "step 1 ", ". 1. ",
    "act: a b c ", "one two three four ", "\u0130", "\u0301", "\ud800", "数", "\U0001f600", "\\frac{", "$", "**",
    "(a) ")
FRAMES = ("{}", "<reasoning>{}</reasoning>\n<answer>20</answer>", "<reasoning>x</reasoning>\n<answer>{}</answer>")
SLACK = 2.5  # times as long for a text twice as long
NOISE = 2e-3  # seconds that are below the clock's noise


def parts() -> list[Callable]:
    """Every reward that asks no model."""
    questions = list(problems.make_splits(problems.load_recipe("tiny_mix"), {"train": 300}, 0)["train"]["question"])
    words = text_rewards.TfIdf(questions)
    model = MODELS["tiny-policy"]
    tokenizer = Tokenizer(ASSETS / model.asset / "tokenizer.model", model.family)
    return [rules.tag_format, rules.exact_answer, rules.gate(rules.exact_answer, rules.tag_format),
            extra.numeric_closeness, text_rewards.tfidf_relevance(words), text_rewards.tfidf_leak(words),
            text_rewards.scaffold, text_rewards.work_shown, extra.repetition, extra.script("LATIN"),
            extra.length_band(tokenizer, 20, 400, 20), extra.overlong(tokenizer, 768, 128)]


def ask(part: Callable, replies: list[str], kind: str = "number") -> list[float | None]:
    n = len(replies)
    return part(prompts=["p"] * n, completions=replies, question=[QUESTION] * n,
                answer=[GOLDS[kind]] * n, kind=[kind] * n)


def replies(count: int, seed: int) -> Iterator[str]:
    """Arbitrary code points, joined fragments, and mutations of an honest reply, in turn."""
    rng = random.Random(seed)
    for number in range(count):
        if number % 3 == 0:
            yield "".join(map(chr, (rng.randrange(0x110000 if rng.random() < 0.5 else 0x250)
                                    for _ in range(rng.randrange(60)))))
        elif number % 3 == 1:
            yield "".join(rng.choice(FRAGMENTS) for _ in range(rng.randrange(30)))
        else:
            text = HONEST
            for _ in range(rng.randint(1, 6)):
                start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
                middle = rng.choice((rng.choice(FRAGMENTS), text[start:end] * 2, text[start:end][::-1], ""))
                text = (text[:start] + middle + text[end:])[:4000]
            yield text


def fuzz(made: list[Callable], count: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The range of each part over `count` replies. An exception, or a value outside [-1, 1], ends it with its reply."""
    ranges = {part.__name__: (1.0, -1.0) for part in made}
    kinds = list(KINDS)
    for number, reply in enumerate(replies(count, seed)):
        kind = kinds[number // 3 % len(kinds)]
        try:
            TAGS.parse(reply)
            check(reply, GOLDS[kind], kind)
            for part in made:
                (value,) = ask(part, [reply], kind)
                low, high = ranges[part.__name__]
                if value is not None and not -1.0 <= value <= 1.0:
                    raise ValueError(f"{part.__name__} gave {value}")
                if value is not None:
                    ranges[part.__name__] = (min(low, value), max(high, value))
        except Exception as error:
            raise AssertionError(f"reply {number}, {ascii(reply)}, kind {kind}") from error
    return ranges


def seconds(call: Callable[[int], object], repeats: int = 3, enough: float = 0.0) -> float:
    """Of this process, so that other programs on the machine count less; the least of the numbered repeats, or the
    first that is not above `enough`.

    Without the garbage collector, whose full passes come in steps and at any moment.
    """
    times = []
    gc.disable()
    try:
        for repeat in range(repeats):
            began = time.process_time()
            call(repeat)
            times.append(time.process_time() - began)
            if times[-1] <= enough:
                break
    finally:
        gc.enable()
    return min(times)


def doubling(call: Callable[[str], object], length: int) -> tuple[float, float, str]:
    """The worst ratio of seconds at 2 x `length` characters to those at `length`, those seconds, and the text's unit.

    What is below the noise at the double length counts as ratio 1. A ratio past `SLACK` is measured again, at most four
    times: noise goes away, a quadratic search does not.
    """
    worst = (0.0, 0.0, "")
    for frame in FRAMES:
        for unit in HOSTILE:
            short, long = (frame.format(unit * (size // len(unit))) for size in (length, 2 * length))
            for _ in range(5):
                # no repeat has the same text, because a reply that was read is not read again
                two, ratio = seconds(lambda repeat, text=long: call(text + " " * repeat), enough=NOISE), 1.0
                if two > NOISE:
                    ratio = two / seconds(lambda repeat, text=short: call(text + " " * repeat))
                if ratio <= SLACK:
                    break
            worst = max(worst, (ratio, two, frame.format(unit)))
    return worst


def throughput(made: list[Callable], count: int, group: int = 8, call: int = 1000) -> float:
    """Seconds for `count` well-formed replies, all different, through one composed reward, `call` at a time."""
    reward = RewardMix([(part, 1.0) for part in made], NullLog())
    texts = [HONEST.replace("20", str(number)) for number in range(count)]
    columns = {"question": [QUESTION] * call, "answer": ["20"] * call, "kind": ["number"] * call}
    return seconds(lambda _: [reward(["p"] * call, texts[start:start + call], num_generations=group, **columns)
                              for start in range(0, count, call)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fuzz", type=int, default=100_000, help="replies")
    parser.add_argument("--length", type=int, default=100_000, help="characters, doubled")
    parser.add_argument("--completions", type=int, default=10_000)
    options = parser.parse_args()
    made = parts()
    recipe = [part for part in made if part.__name__ in (
        "tag_format", "exact_answer_if_tag_format", "tfidf_relevance", "tfidf_leak", "scaffold", "work_shown")]

    began = time.perf_counter()
    ranges = fuzz(made, options.fuzz)
    print(f"{options.fuzz} random and mutated replies, no exception, {time.perf_counter() - began:.0f} s\n")
    print(f"| part | range in the fuzz | worst time ratio, {options.length} to {2 * options.length} characters | "
          "seconds at the double | text, over and over |\n|---|---|---|---|---|")
    calls = {"tags": TAGS.parse} | {part.__name__: lambda text, part=part: ask(part, [text]) for part in made}
    for name, call in calls.items():
        low, high = ranges.get(name, (0.0, 0.0))
        ratio, two, text = doubling(call, options.length)
        seen = f"{low:.2f} to {high:.2f}" if name in ranges else "–"
        print(f"| {name} | {seen} | {ratio:.2f} | {two:.3f} | `{ascii(text)}` |")
    print()
    for name, chosen in (("idea_e's six parts", recipe), (f"all {len(made)} parts", made)):
        print(f"{options.completions} completions of {len(HONEST)} characters, {name}: "
              f"{throughput(chosen, options.completions):.2f} s")


if __name__ == "__main__":
    main()
