from __future__ import annotations

import doctest
import json
import math
from types import SimpleNamespace

import pytest
from datasets import Dataset

from reasonkit.eval import evaluate as module
from reasonkit.eval.evaluate import EvalResult, compare_paired, evaluate, step_accuracy
from reasonkit.eval.intervals import interval, p_value
from reasonkit.text.tags import TAGS

FIELDS = "id family kind question gold completion answer format_ok correct content steps failures".split()


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
    assert [list(sample) for sample in scored.samples] == [FIELDS] * 5
    assert [sample["completion"] for sample in scored.samples] == list(REPLIES.values())
    assert [sample["correct"] for sample in scored.samples] == [True, False, True, False, False]
    assert [sample["format_ok"] for sample in scored.samples] == [True, True, False, False, False]
    assert [sample["steps"] for sample in scored.samples] == [1.0, 0.5, 0.0, 0.25, 0.0]
    failures = [set(sample["failures"]) for sample in scored.samples]
    assert failures[0] == set() and failures[1] == {"wrong answer"}
    assert failures[2] and not failures[2] & {"wrong answer", "no answer", "runaway"}  # bad form alone
    assert {"no answer", "runaway"} < failures[3]
    assert "no answer" in failures[4] and "runaway" not in failures[4]
    assert [sample["content"] for sample in scored.samples] == [True, False, True, False, False]
    assert scored.n == 5 and scored.accuracy == (0.4, *interval([1, 1, 0, 0, 0], 0, 1))
    assert scored.format_rate[0] == scored.content_accuracy[0] == 0.4
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


@pytest.mark.parametrize("reply, kind, gold, right", [
    ("12", "number", "12", True),
    ("12<end_of_turn>", "number", "12", True),
    ("The answer is **12**.", "number", "12", True),
    ("7 + 5 = 12", "number", "12", True),
    ("7 + 5 = 12\n12 apples\n", "number", "12", True),
    ("It is 12, not 13.", "number", "12", False),  # the last number is what it says
    ("Of 12 pears, 3 are left.", "number", "12", False),
    ("1,200 in all", "number", "1200", True),
    ("x = -1/2", "number", "-1/2", True),
    ("Let me see.\n\nB) Paris", "choice", "B", True),
    ("B or C", "choice", "B", False),
    ("First sort them.\n[1, 2, 3]", "list", "1, 2, 3", True),
    ("Yes, they are.", "yes_no", "yes", True),
    ("I can't say.", "number", "12", False),
    ("", "number", "12", False),
    ("<reasoning>7 + 5</reasoning>12", "number", "12", True),  # an answer after the form was left
    ("<reasoning>7 + 5</reasoning>", "number", "5", False),  # steps are no answer
    ("<reasoning>7 + 5 = 12", "number", "12", False),  # nor is reasoning that was cut off
    ("< Reasoning >7 + 5 = 12", "number", "12", False),
    ("<answer>12", "number", "12", True),
    ("<answer>13</answer> no, 12", "number", "12", False),  # the tag holds the answer, if there is one
    ("<answer>12</answer><answer>13</answer>", "number", "12", False),
    ("So the limit is \\(\\frac12\\).", "expression", "1/2", True),
    ("Thus the chance is **1/2**.", "expression", "1/2", True),
    ("Hence $f(x) = x^2+1$.", "expression", "x^2 + 1", True),
    ("So the statement is **true**.", "yes_no", "yes", True),
    ("The capital is Paris.", "text", "Paris", True),
    ("The capital is Paris.", "text", "Rome", False),
])
def test_content_is_what_is_said_last_where_no_tag_holds_an_answer(reply, kind, gold, right):
    scored = evaluate(lambda prompts: [reply], [problem(0, kind=kind, answer=gold)], 1)
    assert scored.samples[0]["content"] is right
    assert scored.content_accuracy.mean == right >= scored.accuracy.mean


@pytest.mark.parametrize("said, kind, gold", [
    ("Natalia sold 72 clips.", "number", "72"), ("There are 72 clips in total.", "number", "72"),
    ("Total: 72", "number", "72"), ("72\n\nNatalia sold 72 clips.", "number", "72"), ("- 72", "number", "72"),
    ("Therefore $\\boxed{72}$.", "number", "72"), ("He pays $72.00 in total.", "number", "72"),
    ("The capital is Paris.", "text", "Paris"), ("So the statement is **true**.", "yes_no", "yes"),
    ("I think the answer is B.", "choice", "B"), ("A is wrong. The answer is B.", "choice", "B"),
    ("The answer is **B**, not A.", "choice", "B"), ("The primes are 2, 3, 5", "list", "2, 3, 5"),
    ("So the set is {2, 3, 5}.", "set", "2, 3, 5"), ("The statement is false.", "yes_no", "no"),
    ("Therefore, the statement is **false**.", "yes_no", "no"),
    ("The capital is **Paris**, not Rome.", "text", "Paris"),
    ("There are **72** clips if we count both months.", "number", "72"),
    ("The answer is **72** (no rounding needed).", "number", "72"),
    ("If n is even, the answer is $x+1$.", "expression", "x+1"),
])
def test_by_content_the_same_words_count_in_a_tag_and_without_one(said, kind, gold):
    """Else the change from a model without tags to one with them would be partly a change of readers."""
    rows = [problem(n, kind=kind, answer=gold) for n in range(3)]
    replies = [said, f"Let me see.\n{said}", f"<reasoning>Let me see.</reasoning>\n<answer>{said}</answer>"]
    scored = evaluate(lambda prompts: replies, rows, 3)
    assert [sample["content"] for sample in scored.samples] == [True] * 3


@pytest.mark.parametrize("said, kind, gold", [
    ("x^2 + 5", "number", "5"), ("10 - 4", "number", "4"), ("10-5", "number", "-5"), ("-\\frac{3}{4}", "number", "4"),
    ("5 > 3", "number", "3"), ("12:30", "number", "30"), ("12:30", "expression", "30"),
    ("$3$ but not $2$", "expression", "2"),     ("B, because the claim in **A** is wrong", "choice", "A"),
    ("It is not clear whether the statement is true", "yes_no", "yes"),
    ("We cannot say that this is true", "yes_no", "yes"), ("It is false that this claim is true", "yes_no", "yes"),
    ("No. Nothing here shows that the statement is **true**.", "yes_no", "yes"),
    ("The capital is Paris.", "text", "Rome"),
])
def test_by_content_words_beside_the_answer_do_not_count(said, kind, gold):
    rows = [problem(n, kind=kind, answer=gold) for n in range(2)]
    replies = [f"Let me see.\n{said}", f"<reasoning>Let me see.</reasoning>\n<answer>{said}</answer>"]
    assert not any(sample["content"] for sample in evaluate(lambda prompts: replies, rows, 2).samples)


def test_a_stock_models_bare_answers_count_by_content_and_by_nothing_else():
    scored = evaluate(lambda prompts: ["1", "2", "7"], [problem(number) for number in range(3)], 8)
    assert scored.accuracy.mean == scored.format_rate.mean == 0 and scored.content_accuracy.mean == 2 / 3
    assert "accuracy 0.0 % [0.0, 63.2] · content accuracy 66.7 %" in str(scored)
    tagged = evaluate(lambda prompts: [good(0), good(1), "7"], [problem(number) for number in range(3)], 8)
    assert compare_paired(scored, tagged, "content").mean == 0 and compare_paired(scored, tagged).mean == 2 / 3


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
    ([problem(1, reasoning=None)], 4, "'sum-1'.*reasoning is None"),
    ([problem(1)], 0, "batch_size=0"),
    ([problem(1, kind="riddle")], 4, "riddle"),
])
def test_evaluate_refuses_bad_problems(problems, batch_size, match):
    with pytest.raises(ValueError, match=match):
        evaluate(lambda prompts: ["<answer>1</answer>"] * len(prompts), problems, batch_size)


def test_a_problem_without_worked_steps_is_scored_by_its_answer_alone(tmp_path):
    rows = [problem(1), problem(2, reasoning=" ")]
    result = evaluate(lambda prompts: [TAGS.render(reasoning="1 + 1 = 2", answer="2")] * len(prompts), rows, 2)
    assert [sample["steps"] is None for sample in result.samples] == [False, True]
    assert result.n == 2 and result.step_accuracy.mean == result.samples[0]["steps"]
    assert EvalResult.from_json(result.to_json(tmp_path / "r.json")) == result
    assert compare_paired(result, result, "steps").n == 1
    assert not result.has_steps and "step accuracy" not in str(result), "of half of the problems"
    alone = evaluate(lambda prompts: [""] * len(prompts), rows[1:], 2)
    assert alone.step_accuracy == (0.0, 0.0, 1.0), "nothing was measured"
    assert not alone.has_steps and str(alone).endswith(str(alone.format_rate))
    most = EvalResult([*result.samples, result.samples[0]])
    assert most.has_steps and str(most).endswith(f"step accuracy {most.step_accuracy}, n = 2")
    all_of_them = EvalResult(result.samples[:1])
    assert str(all_of_them).endswith(f"step accuracy {all_of_them.step_accuracy}")


@pytest.mark.parametrize("changed", [
    {"answer": None}, {"answer": ""}, {"answer": "abc"}, {"answer": "1 or 2"}, {"answer": 7}, {"answer": ["1"]},
    {"kind": "riddle"}, {"kind": ""}, {"kind": None}, {"kind": "plan"}, {"kind": "date"}, {"kind": "open"},
    {"reasoning": None}, {"question": " "}, {"question": None},
    {"id": ""}, {"id": None}, {"id": 3}, {"family": None}, {"family": "\n"}, {"answer": "9" * 40000},
])
def test_a_problem_that_cannot_be_scored_is_left_out_and_counted(changed, capsys):
    rows = [problem(0), problem(1, **changed), problem(2)]
    scored = evaluate(lambda prompts: [good(0), good(2)][:len(prompts)], rows, 8)
    assert [sample["id"] for sample in scored.samples] == ["sum-0", "sum-2"]
    assert (scored.n, scored.left_out, scored.accuracy.mean) == (2, 1, 1.0)
    told = capsys.readouterr().out
    assert told.startswith("1 of 3 problems can't be scored and are left out. The first, row 2: ") and len(told) < 400


def test_what_was_left_out_is_in_the_file(tmp_path):
    scored = evaluate(lambda prompts: [good(0)], [problem(0), problem(1, answer=None)], 8)
    again = EvalResult.from_json(scored.to_json(tmp_path / "r.json"))
    assert again == scored and again.left_out == 1


def test_evaluate_refuses_replies_that_do_not_pair_up():
    with pytest.raises(ValueError, match="1 completions to 2 prompts"):
        evaluate(lambda prompts: prompts[1:], [problem(1), problem(2)], 2)


# -- intervals

def test_figures_have_the_intervals_of_their_samples():
    steps = [1.0, 0.5, 1 / 3, 0.0]
    scored = result([True, True, False, False], steps)
    assert scored.step_accuracy == (pytest.approx(sum(steps) / 4), *interval(steps, 0, 1))
    assert scored.accuracy == scored.content_accuracy == (0.5, *interval([1, 1, 0, 0], 0, 1))
    assert scored.step_accuracy == scored.step_accuracy


def test_what_was_never_seen_is_not_said_to_be_impossible():
    none = result([False] * 25, [0.0] * 25)
    assert none.step_accuracy == none.accuracy == (0.0, 0.0, pytest.approx(0.1129, abs=1e-4))
    assert result([True]).step_accuracy == (1.0, pytest.approx(0.05), 1.0)


# -- paired

def test_the_change_is_b_minus_a():
    before = result([True] * 20 + [False] * 20)
    after = result([False] * 2 + [True] * 18 + [True] * 11 + [False] * 9)
    change = compare_paired(before, after)
    values = [1.0] * 11 + [-1.0] * 2 + [0.0] * 27
    assert change == (9 / 40, *interval(values, -1, 1), p_value(values, -1, 1), 40)
    mcnemar = sum(math.comb(13, k) for k in range(3)) / 2 ** 12 - math.comb(13, 2) / 2 ** 13  # 11 to 2, mid-p
    assert change.p_value == pytest.approx(mcnemar, abs=0.005)
    assert 0 < change.low < change.mean < change.high
    back = compare_paired(after, before)
    assert (-back.mean, -back.high, -back.low, back.p_value) == pytest.approx(change[:4], abs=1e-6)
    assert str(change).startswith("+22.5 points [") and "p = 0.0" in str(change)


def test_the_comparison_is_paired_not_pooled():
    flags, better = [True, False] * 150, [True, False] * 142 + [True] * 16
    change = compare_paired(result(flags), result(better))
    assert 0 < change.low and change.p_value < 0.01  # two independent samples of 300 could not tell 3 points apart
    assert change.mean == pytest.approx(8 / 300)
    assert change.low == pytest.approx(change.mean - 1.96 * math.sqrt(change.mean / 300), abs=0.01)


def test_five_of_five_gained_is_no_certainty():
    change = compare_paired(result([False] * 5), result([True] * 5))
    assert change == (1.0, pytest.approx(0.0986, abs=1e-4), 1.0, pytest.approx(1 / 32), 5)
    assert str(change) == "+100.0 points [+9.9, +100.0], p = 0.031, n = 5"


def test_a_very_small_p_value_is_told_as_such():
    assert str(compare_paired(result([False] * 40), result([True] * 40))).endswith("p < 0.001, n = 40")


def test_steps_are_compared_by_their_changes():
    before, after = [0.2, 0.4, 0.4, 0.9], [0.5, 0.5, 0.9, 0.85]
    change = compare_paired(result([True] * 4, before), result([True] * 4, after), field="steps")
    values = [b - a for a, b in zip(before, after, strict=True)]
    assert change == (pytest.approx(sum(values) / 4), *interval(values, -1, 1), p_value(values, -1, 1), 4)


@pytest.mark.parametrize("field", ["correct", "content", "format_ok", "steps"])
def test_no_difference_is_certain_of_nothing(field):
    for flags, end in (([True], 0.95), ([True, False, True], 1 - 0.05 ** (1 / 3))):
        change = compare_paired(result(flags), result(flags), field=field)
        assert change == (0.0, pytest.approx(-end, abs=1e-4), pytest.approx(end, abs=1e-4), 1.0, len(flags))


def test_paired_goes_by_id_not_by_order():
    a, b = result([True, False, True, True]), result([True, True, True, False])
    shuffled = EvalResult(b.samples[::-1])
    assert compare_paired(a, shuffled) == compare_paired(a, b)


@pytest.mark.parametrize("field", ["accuracy", "id", ""])
def test_paired_refuses_an_unknown_field(field):
    with pytest.raises(ValueError, match="is not one of"):
        compare_paired(result([True]), result([True]), field=field)


def test_paired_refuses_other_problems():
    a = result([True, False, True])
    with pytest.raises(ValueError, match="different problems: 1 .*'sum-2'"):
        compare_paired(a, result([True, False]))
    other = [dict(sample, gold="999") if sample["id"] == "sum-1" else sample for sample in a.samples]
    with pytest.raises(ValueError, match="'sum-1'"):
        compare_paired(a, EvalResult(other))


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


def test_a_result_needs_a_sample():
    with pytest.raises(ValueError, match="no samples"):
        EvalResult([])


def test_json_holds_the_count(tmp_path):
    assert json.loads(result([True, False]).to_json(tmp_path / "r.json").read_text())["n"] == 2
