"""Problems as tasks for EleutherAI's lm-eval: `make_tasks`, in the form of its GSM8K and its ARC, and `rubric_task`,
where a judge scores each completion by its problem's rubric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from datasets import Dataset

from reasonkit.data.options import LETTERS, Refused, find_option, split_options
from reasonkit.judge.judge import Judge, JudgeItem, JudgeVerdict
from reasonkit.judge.rubric import rubric_from_json

THEIRS = "Question: {{question}}\nAnswer:"
# The answer of a completion is what is in our tag, after GSM8K's mark, or the last number (lm-eval's pattern).
IN_TAG, MARKED, LAST = r"<answer>\s*\(?([^<]*?)\)?\s*</answer>", r"#### (\-?[0-9\.\,]+)", r"(-?[$0-9.,]{2,})|(-?[0-9]+)"


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

    return {"task": "rubric", "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}, "test_split": "test",
            "doc_to_text": "{{question}}" if ours else THEIRS, "doc_to_target": "", "output_type": "generate_until",
            "generation_kwargs": {"until": ["Question:"], "do_sample": False}, "process_results": verdict,
            "metric_list": [{"metric": name, "aggregation": mean, "higher_is_better": True}
                            for name in ("rubric", "judged")]}


def _task(name: str, rows: list[dict[str, Any]], ours: bool) -> dict[str, Any]:
    common = {"task": name, "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}, "test_split": "test",
              "doc_to_text": "{{question}}" if ours else THEIRS}
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
    return common | {"output_type": "generate_until", "doc_to_target": "{{answer}}", "filter_list": filters,
                     "generation_kwargs": {"until": ["Question:"], "do_sample": False}, "metric_list": [exact]}
