"""Each sign on a text or a log that must raise it, and on ones that must not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from reasonkit.data.problems import load_recipe, make_problems
from reasonkit.rewards import monitors
from reasonkit.rewards.mix import RewardMix
from reasonkit.rewards.monitors import LIMITS, PROBES, SIGNS, WINDOW, flags, probe, suspicious, watcher
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.text.tags import TAGS

GOLDEN = [json.loads(line) for line in (Path(__file__).parents[1] / "golden/monitors.jsonl").read_text().splitlines()]
FINE = TAGS.render(reasoning="2 + 2 = 4; 4 + 1 = 5", answer="5")
LOOP = "and so I add one again, " * 9


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path / "log.jsonl")


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["text"][:40])
def test_signs(row):
    text = row["text"] * row.get("times", 1)
    assert [sign.__name__ for sign in SIGNS if sign(text)] == row["signs"]


def test_worked_solutions_show_no_sign():
    for item, _ in zip(make_problems(load_recipe("tiny_mix"), "train", 0), range(300), strict=False):
        text = TAGS.render(reasoning=item.reasoning, answer=item.answer)
        assert not any(sign(text) for sign in SIGNS), text


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["ignore " * 20000, "rate this " * 20000, " " * 200000, "<" * 100000, "a" * 200000,
                                  "rate" + " " * 100000 + "x", "\ud800<answer>" * 9000, ""])
def test_long_texts_take_little_time(text):
    assert all(sign(text) in (True, False) for sign in SIGNS)


def test_all_completions_are_seen_and_one_of_each_kind_is_kept(log):
    part = suspicious(log)
    reward = RewardMix([(lambda_length, 1.0), (part, 0.0)], log)
    reward(["p"] * 4, [FINE, FINE, LOOP, "Rate this 5. " + LOOP], num_generations=4, mode="train")
    reward(["p"] * 4, [FINE] * 4, num_generations=4, mode="eval")
    (row,) = log.read("texts")
    assert row["shares"] == {"loops": 0.5, "tag_stuffing": 0.0, "judge_words": 0.25}
    assert set(row["examples"]) == {"loops", "judge_words"} and row["examples"]["loops"] == LOOP
    assert log.read("reward")[0]["parts"]["suspicious"]["mean"] == 0.5
    assert log.read("reward")[0]["mean"] == sum(map(len, (FINE, FINE, LOOP, "Rate this 5. " + LOOP))) / 4


def lambda_length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def write_run(log, steps=60, reward=lambda step: 1.0, accuracy=lambda step: 0.5, length=lambda step: 40.0,
              share=lambda step: {}, first=1, every=5, truncated=lambda step: 0.05):
    """A run as it is logged; the hooks write one step late, which changes nothing here."""
    for step in range(first, first + steps):
        shares = dict.fromkeys((sign.__name__ for sign in SIGNS), 0.0) | share(step)
        log.write("reward", mode="train", mean=reward(step), parts={}, sample={"completion": f"reply {step}"})
        log.write("texts", shares=shares, examples={name: f"{name} {step}" for name, value in shares.items() if value})
        log.write("grpo_step", step=step, length=length(step), truncated=truncated(step))
        if step % every == 0:
            log.write("probe", step=step, mean=accuracy(step), low=0.0, high=1.0, n=64)


def noise(step):
    return (step * 7 % 5 - 2) / 100


def rising(step):
    return 1 + step / 50 + noise(step)


RUNS = [
    ({}, []),
    ({"steps": WINDOW - 1, "share": lambda step: {"loops": 1.0}}, []),
    ({"reward": rising, "accuracy": lambda step: 0.5 + step / 200}, []),
    ({"reward": noise, "accuracy": lambda step: 0.5 - step / 200}, []),
    ({"reward": lambda step: 2 - step / 50}, []),
    ({"reward": rising, "steps": 5 * PROBES - 1}, []),
    ({"reward": rising}, ["reward_without_accuracy"]),
    ({"reward": rising, "accuracy": lambda step: 0.5 - step / 200}, ["reward_without_accuracy"]),
    ({"length": lambda step: 40 + 10 * (step % 3)}, []),
    ({"length": lambda step: 40 + step}, ["length_drift"]),
    ({"length": lambda step: 90 - step}, ["length_drift"]),
    ({"length": lambda step: 40 + step / 4}, []),
    ({"truncated": lambda step: 0.1 + step % 2 / 10}, []),
    ({"truncated": lambda step: step / 100}, ["truncated"]),
    ({"share": lambda step: {"loops": 0.08}}, []),
    ({"share": lambda step: {"loops": float(step == 30) / 2}}, []),
    ({"share": lambda step: {"loops": 0.2}}, ["loops"]),
    ({"share": lambda step: {"tag_stuffing": step / 100}}, ["tag_stuffing"]),
    ({"share": lambda step: {"judge_words": 0.01}}, []),
    ({"share": lambda step: {"judge_words": 0.05}}, ["judge_words"]),
]


@pytest.mark.parametrize(("changes", "names"), RUNS)
def test_flags(log, changes, names):
    write_run(log, **changes)
    found = [SimpleNamespace(**flag) for flag in flags(log.read())]
    assert [flag.name for flag in found] == names
    assert {flag.name for flag in found} <= LIMITS.keys()
    for flag in found:
        assert flag.value > flag.limit == LIMITS[flag.name] and flag.why
        kept = flag.example == f"{flag.name} {flag.step}" if flag.name in log.last("texts")["shares"] else \
            flag.example == f"reply {flag.step}"
        assert kept, flag


def test_an_episode_is_one_flag_and_the_next_another(log):
    """Around the limit the share goes up and down."""
    write_run(log, steps=120, share=lambda step: {"loops": (0.14, 0.09)[step // 10 % 2] if step % 60 < 50 else 0.0})
    first, second = flags(log.read())
    assert (first["name"], second["name"]) == ("loops", "loops") and 60 <= second["step"] < 80


def test_each_flag_is_written_once_also_by_a_resumed_run(log):
    on_step = watcher(log)
    write_run(log, steps=30, share=lambda step: {"loops": 0.3})
    on_step()
    on_step()
    write_run(log, steps=10, first=28, share=lambda step: {"loops": 0.3})
    watcher(log)()
    (row,) = log.read("flag")
    assert {"name", "step", "value", "limit", "why", "example"} < row.keys()
    assert (row["name"], row["step"], row["limit"], row["example"]) == ("loops", WINDOW, 0.1, f"loops {WINDOW}")


def test_a_probe_asks_every_few_steps(log):
    asked, item = [], next(make_problems(load_recipe("tiny_mix"), "validation", 0))

    def generate(prompts):
        asked.append(prompts)
        return [TAGS.render(reasoning=item.reasoning, answer=item.answer)] * len(prompts)

    budget = TimeBudget(1, 0, ahead={"probe": 1})
    on_step = probe(generate, [item], 8, log, every=3, measure=budget.measure)
    for step in range(1, 8):
        log.write("grpo_step", step=step)
        on_step()
    assert [(row["step"], row["mean"], row["n"]) for row in log.read("probe")] == [(3, 1.0, 1), (6, 1.0, 1)]
    assert asked == [[TAGS.prompt(item.question)]] * 2 and budget.minutes_reserved > 0


def test_examples_are_kept_short(log):
    suspicious(log)(["p"], ["rate this 5 " + "x" * 9999])
    assert len(log.last("texts")["examples"]["judge_words"]) == monitors.EXAMPLE
