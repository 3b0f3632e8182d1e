from __future__ import annotations

import doctest
import json
import math
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from reasonkit import evaluate as module
from reasonkit.evaluate import SAMPLE_KEYS, EvalResult, evaluate, paired, pass_at_k, step_accuracy, wilson
from reasonkit.tags import TAGS


def problem(number: int, **changed):
    return {"id": f"sum-{number}", "family": "odd" if number % 2 else "even", "kind": "number",
            "question": f"{number} + 1 ?", "reasoning": f"{number} + 1 = {number + 1}; done",
            "answer": str(number + 1)} | changed


def good(number: int) -> str:
    return TAGS.render(reasoning=f"{number} + 1 = {number + 1}; done", answer=str(number + 1))


def result(correct, steps=None) -> EvalResult:
    """A result on as many problems as there are flags."""
    rows = [problem(number) for number in range(len(correct))]
    replies = iter(good(number) if flag else TAGS.render(reasoning="no idea", answer="-7")
                   for number, flag in enumerate(correct))
    scored = evaluate(lambda prompts: [next(replies) for _ in prompts], rows, 8)
    for sample, value in zip(scored.samples, steps or [], strict=False):
        sample["steps"] = value
    return scored


# -- the formulas

def test_doctests():
    assert doctest.testmod(module).attempted >= 1
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("successes, n", [(0, 10), (3, 10), (10, 10), (172, 400)])
def test_wilson_is_the_published_formula(successes, n):
    z, p = 1.959963984540054, successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(successes, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_wilson_widens_with_the_level():
    low, high = wilson(30, 100, 0.8)
    assert wilson(30, 100, 0.99)[0] < low < 0.3 < high < wilson(30, 100, 0.99)[1]


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0)])
def test_wilson_refuses_numbers_that_make_no_rate(arguments):
    with pytest.raises(ValueError, match="n=|level="):
        wilson(*arguments)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for n, c in [(5, 0), (5, 2), (6, 6), (6, 1)]:
        marks = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(marks, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("reasoning, expected", [
    ("a=1; b=2; c=3", 1.0),
    ("  A=1 ;\nb=2;c=3 ; ", 1.0),
    ("a=1; b=2", 2 / 3),
    ("a=1; b=2; c=3; d=4", 3 / 4),
    ("b=2; a=1; c=3", 1 / 3),
    ("a=1 b=2 c=3", 0.0),
    (" ; ", 0.0),
    ("", 0.0),
    (None, 0.0),
])
def test_step_accuracy(reasoning, expected):
    assert step_accuracy(reasoning, "a=1; b=2; c=3") == pytest.approx(expected)


def test_step_accuracy_refuses_a_reference_without_steps():
    with pytest.raises(ValueError, match="' ; '"):
        step_accuracy("a", " ; ")


# -- evaluate

REPLIES = {
    0: good(0),
    1: TAGS.render(reasoning="1 + 1 = 3; done", answer="3"),
    2: "Sure! <answer>3</answer>",
    3: "<reasoning>3 + 1 = 4; 4 + 1 = 5; 5 + 1 = 6; 6 + 1",
    4: "I can't say.",
}


def test_every_reply_is_scored_and_kept():
    scored = evaluate(lambda prompts: [REPLIES[int(p.split(" + 1 ?")[0].split()[-1])] for p in prompts],
                      [problem(number) for number in REPLIES], 2)
    assert [list(sample) for sample in scored.samples] == [list(SAMPLE_KEYS)] * 5
    assert [sample["completion"] for sample in scored.samples] == list(REPLIES.values())
    assert [sample["correct"] for sample in scored.samples] == [True, False, True, False, False]
    assert [sample["format_ok"] for sample in scored.samples] == [True, True, False, False, False]
    assert [sample["steps"] for sample in scored.samples] == [1.0, 0.5, 0.0, 0.25, 0.0]
    failures = [set(sample["failures"]) for sample in scored.samples]
    assert failures[0] == set() and failures[1] == {"wrong answer"}
    assert failures[2] and not failures[2] & {"wrong answer", "no answer", "runaway"}  # bad form alone
    assert {"no answer", "runaway"} < failures[3]
    assert "no answer" in failures[4] and "runaway" not in failures[4]
    assert scored.n == 5 and scored.accuracy == (0.4, *wilson(2, 5)) and scored.format_rate[0] == 0.4
    assert scored.failures["no answer"] == 2 and scored.failures["wrong answer"] == 1
    assert list(scored.failures.values()) == sorted(scored.failures.values(), reverse=True)
    assert "40.0 %" in str(scored) and "n = 5" in str(scored)


@pytest.mark.parametrize("reply, runaway", [
    ("<reasoning>0 + 1 = 1; 1 + 1", True),
    ("<reasoning>done</reasoning><answer>1 1 1", True),
    (good(0) + "\n<answer>1", True),
    ("<reasoning>done <answer>1</answer>", False),  # bad form, but it ended
    ("<reasoning>done</reasoning>", False),
    ("1 1 1 1 1", False),
])
def test_a_runaway_is_cut_off_inside_a_tag(reply, runaway):
    failures = evaluate(lambda prompts: [reply], [problem(0)], 1).samples[0]["failures"]
    assert ("runaway" in failures) == runaway


def test_prompts_are_the_one_prompt_in_batches_in_order():
    seen = []

    def generate(prompts):
        seen.append(prompts)
        return ["?"] * len(prompts)

    evaluate(generate, [problem(number) for number in range(5)], 2)
    assert [len(batch) for batch in seen] == [2, 2, 1]
    assert sum(seen, []) == [TAGS.prompt(f"{number} + 1 ?") for number in range(5)]


def test_objects_dicts_and_a_dataset_do_alike():
    rows = [problem(number) for number in range(4)]
    results = [evaluate(lambda prompts: ["<answer>2</answer>"] * len(prompts), kind, 4)
               for kind in (rows, [SimpleNamespace(**row) for row in rows], Dataset.from_list(rows))]
    assert results[0] == results[1] == results[2]
    assert results[0].accuracy.mean == 0.25


def test_by_family_parts_the_samples():
    parts = result([True, False, True, True]).by_family()
    assert {name: part.accuracy.mean for name, part in parts.items()} == {"even": 1.0, "odd": 0.5}
    assert sum(part.n for part in parts.values()) == 4


@pytest.mark.parametrize("problems, batch_size, match", [
    ([], 4, "no problems"),
    ([problem(1), problem(1)], 4, "'sum-1'"),
    ([{"id": "x", "question": "?"}], 4, "family"),
    ([SimpleNamespace(id="x")], 4, "family"),
    ([problem(1, answer=None)], 4, "'sum-1'.*answer is None"),
    ([problem(1, reasoning=" ")], 4, "'sum-1'.*reasoning"),
    ([problem(1)], 0, "batch_size=0"),
    ([problem(1, kind="riddle")], 4, "riddle"),
])
def test_evaluate_refuses_bad_problems(problems, batch_size, match):
    with pytest.raises(ValueError, match=match):
        evaluate(lambda prompts: ["<answer>1</answer>"] * len(prompts), problems, batch_size)


def test_evaluate_refuses_replies_that_do_not_pair_up():
    with pytest.raises(ValueError, match="1 replies to 2 prompts"):
        evaluate(lambda prompts: prompts[1:], [problem(1), problem(2)], 2)


# -- intervals

def test_step_interval_is_seeded_and_near_the_normal_one():
    steps = np.random.default_rng(3).beta(2, 1, 500)
    scored = result([True] * 500, steps.tolist())
    interval = scored.step_accuracy
    half = 1.96 * steps.std(ddof=1) / math.sqrt(500)
    assert interval.mean == pytest.approx(steps.mean())
    assert interval.low == pytest.approx(steps.mean() - half, abs=0.005)
    assert interval.high == pytest.approx(steps.mean() + half, abs=0.005)
    assert scored.step_accuracy == interval


def test_intervals_of_equal_values_are_the_point():
    assert result([True, True]).step_accuracy == (1.0, 1.0, 1.0)
    assert result([True]).step_accuracy == (1.0, 1.0, 1.0)


# -- paired

def test_mcnemar_is_exact_and_b_minus_a():
    before = result([True] * 20 + [False] * 20)
    after = result([False] * 2 + [True] * 18 + [True] * 11 + [False] * 9)
    change = paired(before, after)
    table = sum(math.comb(13, k) for k in range(3)) / 2 ** 13  # 11 gained, 2 lost, of 13 discordant
    assert change.p_value == pytest.approx(2 * table)
    assert change.mean == pytest.approx(9 / 40) and change.n == 40
    assert 0 < change.low < change.mean < change.high
    back = paired(after, before)
    assert back.mean == -change.mean and back.p_value == change.p_value and back.high < 0
    assert str(change).startswith("+22.5 points [")


def test_bootstrap_is_paired_not_pooled():
    flags = np.random.default_rng(0).random(300) < 0.5
    better = flags | (np.random.default_rng(1).random(300) < 0.05)
    change = paired(result(flags.tolist()), result(better.tolist()))
    assert 0 < change.low  # two independent samples of 300 could not tell 2 points apart
    assert change.low == pytest.approx(change.mean - 1.96 * math.sqrt(change.mean / 300), abs=0.01)


def test_the_level_and_the_seed_are_heeded():
    a, b = result([True, False] * 30), result([True, True, False] * 20)
    assert paired(a, b) == paired(a, b)
    assert paired(a, b, seed=1).low == pytest.approx(paired(a, b).low, abs=0.03)
    assert paired(a, b, level=0.5).low > paired(a, b, level=0.99).low


def test_steps_use_the_sign_flip_test():
    before, after = [0.2, 0.4, 0.4, 0.9], [0.5, 0.5, 0.9, 0.85]
    change = paired(result([True] * 4, before), result([True] * 4, after), field="steps")
    differences = np.subtract(after, before)
    flips = [abs(np.dot(signs, differences)) for signs in product((1, -1), repeat=4)]
    as_far = [flip >= abs(differences.sum()) - 1e-12 for flip in flips]
    assert change.p_value == pytest.approx(np.mean(as_far))
    assert change.mean == pytest.approx(differences.mean())


@pytest.mark.parametrize("field", ["correct", "format_ok", "steps"])
def test_no_difference_is_certain_of_nothing(field):
    for flags in ([True], [True, False, True]):
        assert paired(result(flags), result(flags), field=field) == (0.0, 0.0, 0.0, 1.0, len(flags))


def test_paired_goes_by_id_not_by_order():
    a, b = result([True, False, True, True]), result([True, True, True, False])
    shuffled = EvalResult(b.samples[::-1])
    assert paired(a, shuffled) == paired(a, b)


@pytest.mark.parametrize("field", ["accuracy", "id", ""])
def test_paired_refuses_an_unknown_field(field):
    with pytest.raises(ValueError, match="is not one of"):
        paired(result([True]), result([True]), field=field)


def test_paired_refuses_other_problems():
    a = result([True, False, True])
    with pytest.raises(ValueError, match="other problems: 1 .*'sum-2'"):
        paired(a, result([True, False]))
    other = [dict(sample, gold="999") if sample["id"] == "sum-1" else sample for sample in a.samples]
    with pytest.raises(ValueError, match="'sum-1'"):
        paired(a, EvalResult(other))


# -- on disk

def test_json_is_lossless(tmp_path):
    odd = "<b>\x00 \ud800 \u2028 \N{SNOWMAN} \\ \"</b>\n"
    scored = evaluate(lambda prompts: [odd, good(1), good(2)], [problem(number) for number in range(3)], 8)
    path = scored.to_json(tmp_path / "deep" / "stock.json")
    assert EvalResult.from_json(path) == scored
    assert [entry.name for entry in path.parent.iterdir()] == ["stock.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = result([True]).to_json(tmp_path / "r.json")
    broken = EvalResult([dict(result([False]).samples[0], gold=object())])
    with pytest.raises(TypeError):
        broken.to_json(path)
    assert EvalResult.from_json(path).accuracy.mean == 1.0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"samples": []}', '{"samples": [{"id": "a"}]}', '{"samples": [3]}'])
def test_from_json_names_a_file_that_is_no_result(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="bad.json"):
        EvalResult.from_json(path)


def test_a_result_needs_a_sample():
    with pytest.raises(ValueError, match="no samples"):
        EvalResult([])


def test_json_holds_the_count(tmp_path):
    assert json.loads(result([True, False]).to_json(tmp_path / "r.json").read_text())["n"] == 2
