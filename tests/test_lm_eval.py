"""lm-eval's scores of a policy against our own on the same items. Needs the extra `eval` (`make parity`)."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from datasets import Dataset
from lm_eval.api.instance import Instance
from tiny_gemma import forward

from reasonkit.data.problems import make_problem
from reasonkit.eval.evaluate import evaluate
from reasonkit.judge.judge import LocalJudge
from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.models.load import load
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
from tools.lm_eval import Policy, drop_seen, make_tasks, rubric_task, run_tasks
from tools.trained import scorer


def row(name: str, kind: str, question: str, answer: str, reasoning: str = "1 + 1 = 2") -> dict:
    return {"id": name, "family": kind, "kind": kind, "question": question, "answer": answer, "reasoning": reasoning}


NUMBERS = [row(f"n{n}", "number", item.question, item.answer, item.reasoning) for n in range(24)
           for item in [make_problem("coins", n, seed=3)]]
CHOICES = [row(f"c{n}", "choice", f"Which is {n}?\n(A) {n + 1}\n(B) {n}\n(C) {n + 2}", f"(B) {n}") for n in range(8)]


def written(problem: dict, number: int) -> str:
    """A completion of one of six kinds, three of them right in the tag."""
    right, wrong = problem["answer"], "(C) 9" if problem["kind"] == "choice" else "-7"
    return [TAGS.render(reasoning="1 + 1 = 2", answer=right), TAGS.render(reasoning="1 + 1 = 3", answer=wrong),
            f"The answer is {right}", f"<answer>{right}</answer>", f"<reasoning>Hm\n<answer> {right}\n</answer>",
            ""][number % 6]


def test_both_score_the_same_completions_alike():
    problems = NUMBERS + CHOICES
    texts = {TAGS.prompt(problem["question"]): written(problem, n) for n, problem in enumerate(problems)}

    def generate(prompts: list[str]) -> list[str]:
        return [texts[prompt] for prompt in prompts]

    theirs = run_tasks(Policy(generate, None), problems, ours=True)["results"]
    numbers, choices = (evaluate(generate, rows, 8) for rows in (NUMBERS, CHOICES))
    assert theirs["numbers"]["exact_match,strict-match"] == numbers.accuracy.mean == 0.5
    assert theirs["numbers"]["exact_match,flexible-extract"] == numbers.content_accuracy.mean == pytest.approx(4 / 6)
    assert theirs["choices"]["exact_match,strict-match"] == choices.accuracy.mean > 0.3


def test_a_judge_scores_by_rubric_and_its_failures_are_no_low_scores():
    rubric = rubric_to_json((Criterion("Steps", "Every step follows.", 1.0),))
    problems = [{**row, "rubric": rubric} for row in NUMBERS[:4]]
    texts = dict(zip([TAGS.prompt(row["question"]) for row in problems], ["good", "good", "bad", "odd"], strict=True))

    def rate(prompts: list[str]) -> np.ndarray:
        if "> odd" in prompts[0]:
            raise TimeoutError("no answer")
        return np.array([[0.0 if column == (4 if "> good" in text else 0) else -50.0 for column in range(5)]
                         for text in prompts])

    policy = Policy(lambda prompts: [texts[prompt] for prompt in prompts], None)
    found = run_tasks(policy, problems, True, LocalJudge(rate, "fake"))["results"]["rubric"]
    assert found["rubric,none"] == pytest.approx(2 / 3) and found["judged,none"] == 0.75
    with pytest.raises(ValueError, match="no problem with a rubric"):
        rubric_task([{**NUMBERS[0], "rubric": ""}], True, LocalJudge(rate, "fake"))


@pytest.fixture(scope="module")
def tiny():
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    return load("tiny-policy", mesh, "float32"), mesh


@pytest.fixture(scope="module")
def asked(tiny):
    model, mesh = tiny
    return generator(model.model, model.tokenizer, mesh, max_prompt_length=96, max_new_tokens=32, batch_size=24)


def test_the_tiny_policy_has_the_same_score_from_both(tiny, asked):
    """It writes bare answers: by content it is right in some of them, in no tag."""
    theirs = run_tasks(Policy(asked, None), NUMBERS, ours=True)["results"]["numbers"]
    ours = evaluate(asked, NUMBERS, 24)
    assert 0 < theirs["exact_match,flexible-extract"] == ours.content_accuracy.mean < 1
    assert theirs["exact_match,strict-match"] == ours.accuracy.mean == 0


def test_log_probabilities_are_the_models_and_a_choice_is_the_likeliest_option(tiny):
    (model, mesh), context = tiny, "Question: Which is 2?\nAnswer:"
    policy = Policy(None, scorer(model, mesh, 64))
    ask = [Instance("loglikelihood", {}, (context, option), n) for n, option in enumerate((" 2", " 3 and 4", " 4"))]
    found = policy.loglikelihood(ask)
    for (total, greedy), instance in zip(found, ask, strict=True):
        begin = 1 + len(model.tokenizer.encode(context))
        ids = [model.tokenizer.bos_id(), *model.tokenizer.encode("".join(instance.args))]
        logp_TV = np.asarray(jax.nn.log_softmax(forward(model.model, np.array([ids], np.int32))[0]))
        places = range(begin - 1, len(ids) - 1)
        assert total == pytest.approx(sum(logp_TV[place, ids[place + 1]] for place in places), abs=1e-3)
        assert greedy == all(logp_TV[place].argmax() == ids[place + 1] for place in places)
    (alone,) = policy.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (context,), 0)])
    assert alone == pytest.approx(policy.loglikelihood([Instance("loglikelihood", {}, ("", context), 0)])[0][0])
    scores = run_tasks(policy, CHOICES, ours=False)["results"]["choices"]
    each = [policy.loglikelihood([Instance("loglikelihood", {}, (f"Question: Which is {n}?\nAnswer:", f" {m}"), 0)
                                  for m in (n + 1, n, n + 2)]) for n in range(8)]
    assert scores["acc,none"] == np.mean([np.argmax([total for total, _ in options]) == 1 for options in each])
    with pytest.raises(ValueError, match="tokens in .*, and 64 fit"):
        policy.loglikelihood([Instance("loglikelihood", {}, ("word " * 64, "x"), 0)])


def test_a_completion_ends_at_a_stop_text_and_a_chat_is_our_prompt():
    policy = Policy(lambda prompts: [f"{prompt}: 4\nQuestion: and\nStop" for prompt in prompts], None)
    said = policy.generate_until([Instance("generate_until", {}, ("a", {"until": until}), 0)
                                  for until in (["Question:"], ["Stop", "4"], [])])
    assert said == ["a: 4\n", "a: ", "a: 4\nQuestion: and\nStop"]
    history = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "How many?"}]
    assert policy.apply_chat_template(history) == TAGS.prompt("How many?")


def test_items_of_other_kinds_and_choices_that_cannot_be_read_are_left_out():
    others = [row("y", "yes_no", "Is it?", "yes"), row("c", "choice", "Without options?", "(B) 2")]
    with pytest.raises(ValueError, match="no problem of the kinds number and choice: give --data another mix"):
        make_tasks(others, ours=True)
    assert [task["task"] for task in make_tasks([*others, *CHOICES], ours=False)] == ["choices"]


def test_what_the_model_was_trained_on_is_left_out():
    long = "A farmer has twelve hens and each of them lays exactly one egg on every single day"
    train = Dataset.from_list([{"question": f"Hello. {long}. How many eggs?"}, {"question": "What is 1 + 1?"}])
    test = [{"question": f"{long}. How many in a week?"}, {"question": "what is 1 + 1"}, {"question": "What is 1 + 2?"}]
    assert drop_seen(test, train) == test[2:]
