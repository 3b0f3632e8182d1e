"""The trained policy under EleutherAI's lm-eval: `Policy`, and a command on a finished run.

    python -m tools.lm_eval                                    # the run's test problems
    python -m tools.lm_eval --data packaged --temperature 1    # those of another mix, sampled

Numbers are asked and scored as in GSM8K, and choices as in ARC, with our prompt and with theirs. With --rubric the
run's judge also scores problems by their rubrics. Needs the extra `eval`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import jax
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from reasonkit.data import curation, filters
from reasonkit.data.filters import find_contaminated
from reasonkit.data.options import LETTERS, Refused, find_option, split_options
from reasonkit.data.rows import read_rows
from reasonkit.data.screening import question_key
from reasonkit.judge.judge import Judge, JudgeItem, JudgeVerdict
from reasonkit.judge.rubric import rubric_from_json
from reasonkit.models import placement
from reasonkit.models.logprobs import local_judge
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
from tools.trained import load_trained, scorer

ROWS = 200  # to take from another mix
GENERATED = {"output_type": "generate_until", "generation_kwargs": {"until": ["Question:"], "do_sample": False}}
# The answer of a completion is what is in our tag, after GSM8K's mark, or the last number (lm-eval's pattern).
IN_TAG, MARKED, LAST = r"<answer>\s*\(?([^<]*?)\)?\s*</answer>", r"#### (\-?[0-9\.\,]+)", r"(-?[$0-9.,]{2,})|(-?[0-9]+)"


class Policy(LM):
    """A model for lm-eval, of a `rollout.generator` and a `trained.scorer`. Its chat template is our prompt."""

    tokenizer_name = "reasonkit"

    def __init__(self, generate: Callable[[list[str]], list[str]],
                 score: Callable[[Sequence[tuple[str, str]]], list[tuple[float, bool]]]) -> None:
        super().__init__()
        self._generate, self._score = generate, score

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return TAGS.prompt(chat_history[-1]["content"])  # the model was trained on single questions

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Completions of the generator's length, each cut at the first of its stop texts."""
        texts = self._generate([request.args[0] for request in requests])
        return [min((text.partition(stop)[0] for stop in request.args[1]["until"]), key=len, default=text)
                for request, text in zip(requests, texts, strict=True)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return self._score([request.args for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [total for total, _ in self._score([("", *request.args) for request in requests])]


def drop_seen(test: Iterable[Mapping[str, Any]], train: Dataset) -> list[Mapping[str, Any]]:
    """The test problems that share neither a question nor 13 words in a row with the training data."""
    test, asked = list(test), {question_key(question) for question in train["question"]}
    shared = find_contaminated([row["question"] for row in test], train["question"])
    return [row for n, row in enumerate(test) if n not in shared and question_key(row["question"]) not in asked]


def make_tasks(problems: Iterable[Mapping[str, Any]], ours: bool) -> list[dict[str, Any]]:
    """lm-eval tasks for the problems of the kinds number and choice. With their prompt a model chooses the option of
    the highest log-probability, and with ours the one in its completion. Raises ValueError without such a problem."""
    rows: dict[str, list[dict]] = {"numbers": [], "choices": []}
    for row in problems:
        if row["kind"] == "number":
            rows["numbers"].append({"question": row["question"], "answer": row["answer"]})
        elif row["kind"] == "choice":
            try:
                stem, texts = split_options(row["question"])
                label = find_option(row["answer"], texts, list(LETTERS))
            except Refused:
                continue
            rows["choices"].append({"question": row["question"] if ours else stem, "answer": LETTERS[label],
                                    "label": label, "choices": texts})
    tasks = [_task(name, there, ours) for name, there in rows.items() if there]
    if not tasks:
        raise ValueError("no problem of the kinds number and choice: give --data another mix")
    return tasks


def rubric_task(problems: Iterable[Mapping[str, Any]], ours: bool, judge: Judge) -> dict[str, Any]:
    """A task for the problems with a rubric, including open ones. `rubric` is the mean score, in [0, 1], of completions
    with a verdict, and `judged` is their share. Raises ValueError without such a problem."""
    rows = [{"question": row["question"], "rubric": row["rubric"]} for row in problems if row["rubric"]]
    if not rows:
        raise ValueError("no problem with a rubric: give --data another mix")

    def verdict(doc: Mapping[str, str], completions: list[str]) -> dict[str, float]:
        (found,) = judge.score([JudgeItem(doc["question"], completions[0], rubric_from_json(doc["rubric"]))])
        scored = isinstance(found, JudgeVerdict)
        return {"rubric": found.score if scored else math.nan, "judged": float(scored)}

    def mean(scores: list[float]) -> float:
        return fmean([score for score in scores if score == score] or [math.nan])

    return _common("rubric", rows, ours) | GENERATED | {
        "doc_to_target": "", "process_results": verdict, "metric_list": [
            {"metric": name, "aggregation": mean, "higher_is_better": True} for name in ("rubric", "judged")]}


def _common(name: str, rows: list[dict[str, Any]], ours: bool) -> dict[str, Any]:
    return {"task": name, "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}, "test_split": "test",
            "doc_to_text": "{{question}}" if ours else "Question: {{question}}\nAnswer:"}


def _task(name: str, rows: list[dict[str, Any]], ours: bool) -> dict[str, Any]:
    common = _common(name, rows, ours)
    mean = {"aggregation": "mean", "higher_is_better": True}
    if name == "choices" and not ours:
        return common | {"output_type": "multiple_choice", "doc_to_target": "label", "doc_to_choice": "choices",
                         "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}]}
    strict, last = (IN_TAG if ours else MARKED, 0), [("flexible-extract", (LAST, -1))] * (name == "numbers")
    filters = [{"name": title, "filter": [{"function": "regex", "regex_pattern": pattern, "group_select": group},
                                          {"function": "take_first"}]}
               for title, (pattern, group) in [("strict-match", strict), *last]]
    exact = {"metric": "exact_match", **mean, "ignore_case": True, "ignore_punctuation": False,
             "regexes_to_ignore": [",", r"\$", r"(?s).*#### ", r"\.$", r"(?s)(?<=^[A-J])\).*"]}
    return common | GENERATED | {"doc_to_target": "{{answer}}", "filter_list": filters, "metric_list": [exact]}


def run_tasks(policy: Policy, problems: Iterable[Mapping[str, Any]], ours: bool,
              judge: Judge | None = None) -> dict[str, Any]:
    """What lm-eval's `simple_evaluate` returns for the tasks, without its samples."""
    tasks = [*make_tasks(problems, ours), *([rubric_task(problems, ours, judge)] if judge else [])]
    return simple_evaluate(policy, tasks=tasks, apply_chat_template=ours, log_samples=False,
                           bootstrap_iters=1, task_manager=TaskManager(include_defaults=False))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.lm_eval", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("artifacts"), help="a run's folder of artifacts")
    parser.add_argument("--data", help="a mix in data_recipes/, or a file (default: the run's test problems)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--rubric", action="store_true", help="let the profile's judge score by rubric, too")
    options = parser.parse_args(arguments)
    run, policy, mesh, _ = load_trained(options.folder)
    limits = run.profile.grpo
    test = read_rows(run.stage("data") / "test.parquet")
    if options.data:
        limit = policy.tokenizer, limits.max_prompt_length
        splits, ledger = curation.curate(run.data_recipe(options.data), {"test": ROWS}, run.seed, *limit)
        fitting = filters.screen(splits, *limit, ledger)["test"]
        test = drop_seen(fitting, read_rows(run.stage("data") / "train.parquet"))
        print(f"{len(fitting) - len(test)} of {len(fitting)} problems left out: the training data has them")
    sizes = {"max_prompt_length": limits.max_prompt_length, "max_new_tokens": limits.max_new_tokens}
    generate = generator(policy.model, policy.tokenizer, mesh, batch_size=run.profile.eval_batch,
                         temperature=options.temperature, **sizes)
    judge = None
    if options.rubric:
        plan = placement.plan(run.profile, jax.devices(), judge=True)
        judge = local_judge(placement.load_judge(run.profile, plan), plan.judge, run.profile, run.folder)
    for prompt, ours in (("our", True), ("their", False)):
        asked = Policy(partial(generate, seed=run.seed), scorer(policy, mesh, sum(sizes.values())))
        print(f"in {prompt} prompt\n{make_table(run_tasks(asked, test, ours, judge))}")


if __name__ == "__main__":
    main()
