"""Cached verdicts: asked once, kept through a kill, never those of another judge, and never a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from plain_judge import PlainJudge

from reasonkit.judge.judge import JudgeFailure, JudgeItem, JudgeVerdict, LocalJudge
from reasonkit.judge.rubric import Criterion
from recipes.judges.api_client import Service
from recipes.judges.api_judge import ApiJudge, ApiLimits
from recipes.judges.cache import CachedJudge
from recipes.judges.local_variants import LocalVariant

RUBRIC = (Criterion("Steps", "Every step follows.", 1.0), Criterion("Clear", "Reads well.", 0.3))


class Echo:
    """A judge that remembers what it was asked: a reply "0.4" scores 0.4, any other text fails."""

    identity = "echo 1"

    def __init__(self):
        self.asked, self.failures = [], Counter()

    def score(self, items):
        self.asked += [item.reply for item in items]
        results = []
        for item in items:
            try:
                results.append(JudgeVerdict(float(item.reply), (float(item.reply),) * len(item.rubric)))
            except ValueError:
                results.append(JudgeFailure("no_number", item.reply))
                self.failures["no_number"] += 1
        return results


def item(reply, question="q", rubric=RUBRIC):
    return JudgeItem(question, reply, rubric)


def test_a_verdict_is_asked_for_once_and_survives_the_process(tmp_path):
    path, judge = tmp_path / "folder" / "verdicts.jsonl", Echo()
    cached = CachedJudge(judge, path)
    first = cached.score([item("0.1"), item("0.2"), item("0.1")])
    assert [verdict.score for verdict in first] == [0.1, 0.2, 0.1]
    assert judge.asked == ["0.1", "0.2"], "identical items of one call are asked once"
    again = CachedJudge(other := Echo(), path)
    assert again.score([item("0.2"), item("0.3"), item("0.1")]) == [first[1], JudgeVerdict(0.3, (0.3, 0.3)), first[0]]
    assert judge.asked == ["0.1", "0.2"] and other.asked == ["0.3"]
    assert cached.score([]) == []


def test_what_a_reply_prevented_is_kept_with_its_cause(tmp_path):
    judge = LocalJudge(lambda prompts: np.array([[np.nan if "xyz" in p else 0.0] * 5 for p in prompts]), "fake")
    asked = [item("xyz"), item("fine")]
    first = CachedJudge(judge, tmp_path / "verdicts.jsonl").score(asked)
    assert [verdict.cause for verdict in first] == ["reply_unreadable", None] and not judge.failures
    rows = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [row.get("cause", "none") for row in rows] == ["reply_unreadable", "none"]
    again = LocalJudge(lambda prompts: None, "fake")
    assert CachedJudge(again, tmp_path / "verdicts.jsonl").score(asked) == first


@pytest.mark.parametrize("other", [
    item("0.1", "q2"), item("0.1", "q", RUBRIC[:1]), item("0.1 "), item("0.1", rubric=RUBRIC[::-1]),
    item("0.1", rubric=(Criterion("Steps", "Every step follows.", 1.0, ("no", "yes")), RUBRIC[1])),
])
def test_another_item_is_another_verdict(tmp_path, other):
    cached = CachedJudge(judge := Echo(), tmp_path / "v.jsonl")
    cached.score([item("0.1")])
    cached.score([other])
    assert len(judge.asked) == 2


def test_texts_are_not_run_together(tmp_path):
    cached = CachedJudge(judge := Echo(), tmp_path / "v.jsonl")
    cached.score([item("0.1", "1"), item(".1", "10"), item("0.1", "\ud800")])
    assert len(judge.asked) == 3


def test_a_failure_is_counted_on_record_and_asked_again(tmp_path):
    path = tmp_path / "v.jsonl"
    for calls in (1, 2):
        cached = CachedJudge(Echo(), path)
        (result,) = cached.score([item("junk")])
        assert result == JudgeFailure("no_number", "junk") and cached.failures == {"no_number": 1}
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["cause"] for row in rows] == ["no_number"] * calls and "score" not in rows[0]


def test_the_record_names_judge_criteria_and_hashes_and_holds_no_text(tmp_path):
    path = tmp_path / "v.jsonl"
    CachedJudge(Echo(), path).score([item("0.5", "a secret question")])
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (row["judge"], row["titles"]) == ("echo 1", ["Steps", "Clear"])
    assert (row["score"], row["per_criterion"]) == (0.5, [0.5, 0.5])
    assert len(row["question"]) == len(row["reply"]) == 16 and "secret" not in path.read_text()


def rate(prompts):
    return [[0.0, 0.0, 0.0, 0.0, 9.0]] * len(prompts)


@pytest.mark.parametrize("other", [
    LocalJudge(rate, "tiny 2"), LocalVariant(rate, "tiny"),
    LocalVariant(rate, "tiny", mode="explicit", both_orders=True),
], ids=["name", "mode", "orders"])
def test_another_judge_finds_nothing(tmp_path, other):
    path = tmp_path / "v.jsonl"
    CachedJudge(LocalJudge(rate, "tiny"), path).score([item("r")])
    asked = []
    other.rating_logprobs = lambda prompts: asked.extend(prompts) or rate(prompts)
    CachedJudge(other, path).score([item("r")])
    assert asked


def test_a_changed_prompt_finds_nothing(tmp_path, monkeypatch):
    path, asked = tmp_path / "v.jsonl", []
    judge = LocalJudge(lambda prompts: asked.extend(prompts) or rate(prompts), "tiny")
    cached = CachedJudge(judge, path)
    cached.score([item("r")])
    cached.score([item("r")])
    assert len(asked) == 2
    monkeypatch.setattr("reasonkit.judge.judge.quote_block", lambda text: f"| {text}")
    cached.score([item("r")])
    assert len(asked) == 4


def test_a_judge_without_identity_needs_one(tmp_path):
    judge = PlainJudge([lambda item: 0.5])
    with pytest.raises(ValueError, match="PlainJudge has no identity; give it one that changes with model and prompt"):
        CachedJudge(judge, tmp_path / "v.jsonl")
    judge.identity = "half"
    assert CachedJudge(judge, tmp_path / "v.jsonl").score([item("r")]) == [JudgeVerdict(0.5, (0.5,))]
    with pytest.raises(ValueError, match="is a folder"):
        CachedJudge(judge, tmp_path)


def test_a_judge_that_answers_short_is_an_error(tmp_path):
    judge = Echo()
    judge.score = lambda items: []
    with pytest.raises(ValueError, match="0 results for 1 items"):
        CachedJudge(judge, tmp_path / "v.jsonl").score([item("0.1")])


def line(path, **changes):
    """The row that Echo's verdict 0.4 on this item leaves, with these changes (None: left out)."""
    CachedJudge(Echo(), path).score([item("0.4")])
    row = json.loads(path.read_text()) | changes
    return json.dumps({name: value for name, value in row.items() if value is not Ellipsis})


NAN, INF = float("nan"), float("inf")
UNBELIEVED = {
    "score": [*({"score": s} for s in (NAN, INF, -INF, -0.1, 1.1, 7, -1, 1e400, True, False, "0.4", "", None, [0.4],
                                           {}, ..., 10**400)),
                  *({"per_criterion": c} for c in ([], [NAN, 0.4], [0.4, INF], [0.4, -0.1], [0.4, 1.0001], [0.4, True],
                                                   ["0.4", "0.4"], [0.4, None], [[0.4], [0.4]], 0.4, "0.4", None, {},
                                                   {"0": 0.4, "1": 0.4}, ...))],
    "key": [*({"judge": j} for j in (None, 5, ["echo 1"], {}, True, ...)),
                *({"item": i} for i in (None, 5, [], {}, "", "0" * 63, "0" * 65, "G" * 64, "0" * 63 + "\n", True,
                                         ...))],
    "rubric": [{"per_criterion": [0.4] * 3}, {"per_criterion": [0.4] * 7}, {"score": 0.9}, {"score": 0.0},
                     {"per_criterion": [0.4, 0.5]}, {"per_criterion": [0.0, 1.0], "score": 1.0},
                     {"per_criterion": [0.9]}, {"per_criterion": [1.0, 0.0], "score": 0.0}, {"score": 0.41},
                     {"score": 1, "per_criterion": [0, 0]}],
}


@pytest.mark.parametrize("changes", [change for changes in UNBELIEVED.values() for change in changes], ids=repr)
def test_no_row_is_believed_unchecked(tmp_path, capsys, changes):
    path = tmp_path / "v.jsonl"
    path.write_text(line(path, **changes) + "\n")
    cached = CachedJudge(judge := Echo(), path)
    assert cached.score([item("0.4")]) == [JudgeVerdict(0.4, (0.4, 0.4))] and judge.asked == ["0.4"]
    assert cached.skipped == 1 and f"{path}: " in capsys.readouterr().out
    CachedJudge(last := Echo(), path).score([item("0.4")])
    assert last.asked == [], "what was asked anew is on record"


@pytest.mark.parametrize("changes", [
    {"score": 0, "per_criterion": [0, 0]}, {"score": 1, "per_criterion": [1, 1]}, {"per_criterion": [0.4]},
    {"per_criterion": [0.5, 0.3], "score": (0.5 + 0.3 * 0.3) / 1.3}, {"per_criterion": [0.5, 0.3], "score": 0.4},
    {"titles": ...}, {"event": ...}, {"t": "yesterday"}, {"more": [[{}]]}, {"question": None, "reply": 5}], ids=repr)
def test_a_row_that_can_be_true_is_used(tmp_path, capsys, changes):
    path = tmp_path / "v.jsonl"
    path.write_text(line(path, **changes) + "\n")
    cached = CachedJudge(judge := Echo(), path)
    (verdict,) = cached.score([item("0.4")])
    assert judge.asked == [] and verdict.score == pytest.approx(changes.get("score", 0.4))
    assert not cached.skipped and capsys.readouterr().out == ""


@pytest.mark.parametrize("text", [
    b"null", b"[]", b"7", b'"text"', b"true", b"NaN", b"{", b"}", b"", b" ", b"\xff\xfe", b"\x00" * 9, b"[" * 100_000,
    b'{"a":' * 5_000, b"9" * 5_000, b"{'score': 0.4}", b'{"score": 0.4', b"\xef\xbb\xbf[]", b"# a comment", b"<html>"],
    ids=lambda text: repr(text[:12]))
def test_a_line_that_is_no_row_is_counted_and_told(tmp_path, capsys, text):
    path = tmp_path / "v.jsonl"
    good = line(path).encode()
    path.write_bytes(text + b"\n" + good + b"\n")
    cached = CachedJudge(judge := Echo(), path)
    cached.score([item("0.4")])
    assert judge.asked == [] and cached.skipped == 1
    said = f"{path}: skipped 1 lines that are not verdicts; their items are asked again\n"
    assert capsys.readouterr().out == said


def test_a_pipe_is_no_record(tmp_path):
    os.mkfifo(tmp_path / "v.jsonl")
    with pytest.raises(ValueError, match="v.jsonl is a folder or a pipe"):
        CachedJudge(Echo(), tmp_path / "v.jsonl")


def test_a_verdict_of_another_endpoint_is_not_used(tmp_path):
    async def call(prompt, schema):
        raise AssertionError("nobody is asked")

    def judge(endpoint):
        return ApiJudge(Service("m", call, 10, endpoint=endpoint), ApiLimits(1.0, {"m": (1, 1)}, attempts=1))

    path = tmp_path / "v.jsonl"
    path.write_text(line(path, judge=judge("https://a.example/v1").identity) + "\n")
    assert CachedJudge(judge("https://a.example/v1"), path).score([item("0.4")]) == [JudgeVerdict(0.4, (0.4, 0.4))]
    assert isinstance(CachedJudge(judge("https://b.example/v1"), path).score([item("0.4")])[0], JudgeFailure)


@pytest.mark.parametrize("torn", [b'{"judge": "echo 1", "item": "', b'{"score": 1}\n[]\nnull\n\xff\n7'])
def test_a_line_cut_short_harms_no_other(tmp_path, torn):
    path = tmp_path / "v.jsonl"
    CachedJudge(Echo(), path).score([item("0.1")])
    with open(path, "ab") as file:
        file.write(torn)
    cached = CachedJudge(judge := Echo(), path)
    cached.score([item("0.1"), item("0.2")])
    cached.score([item("0.3")])
    assert judge.asked == ["0.2", "0.3"]
    CachedJudge(last := Echo(), path).score([item("0.1"), item("0.2"), item("0.3")])
    assert last.asked == []


@pytest.mark.slow
def test_what_a_killed_run_wrote_is_kept(tmp_path):
    """A process is killed while it writes; the next one reads all its whole lines and asks only for the rest."""
    path = tmp_path / "v.jsonl"
    code = ("import sys; sys.path[:0] = sys.argv[2:]\nfrom pathlib import Path\n"
            "from test_cache import CachedJudge, Echo, item\ncached = CachedJudge(Echo(), Path(sys.argv[1]))\n"
            "for n in range(10**9): cached.score([item(f'0.{n}{m}') for m in range(50)])\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(path), *sys.path])
    try:
        until = time.monotonic() + 60
        while (not path.exists() or path.stat().st_size < 200_000) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    whole = path.read_bytes().count(b"\n")
    cached = CachedJudge(judge := Echo(), path)
    assert whole >= 500 and len(cached._loaded) == whole
    cached.score([item("0.00"), item("0.01")])
    assert judge.asked == []


def test_it_is_fast(tmp_path):
    """Far above what a judge can say in a second, new and known."""
    cached = CachedJudge(Echo(), tmp_path / "v.jsonl")
    items = [item(f"0.{n}") for n in range(5_000)]
    for _ in ("new", "known"):
        began = time.process_time()
        for start in range(0, len(items), 100):
            cached.score(items[start:start + 100])
        assert time.process_time() - began < 5.0
