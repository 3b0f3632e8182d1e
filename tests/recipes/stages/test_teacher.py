"""Teacher data: what is asked, paid, kept and rejected, over a loopback server and a tiny model on the mesh."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from loopback import KEY, OPENAI, PROXIES, server
from tiny_run import Clock

from reasonkit.data import problems
from reasonkit.data.curation import curate
from reasonkit.data.own_file import load_data
from reasonkit.judge.judge import JudgeFailure, JudgeVerdict
from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.models.mesh import make_mesh
from reasonkit.session.run_log import RunLog
from reasonkit.session.setup import find_recipe
from reasonkit.session.time_budget import TimeBudget
from reasonkit.text.tags import TAGS
from recipes.judges.api_client import Service, openai_compatible
from recipes.judges.api_judge import ApiLimits
from recipes.stages import simpo
from recipes.stages.teacher import (
    END,
    START,
    Teacher,
    TeacherSettings,
    api_teacher,
    collect,
    judge_from_secrets,
    local_teacher,
    minutes_to_ask,
    request_for,
    teacher_from_secrets,
)
from recipes.stages.traces import examine, pairs, traces

RUBRIC = rubric_to_json([Criterion("Steps", "Every step follows.", 1.0)])
LIMITS = dict(dollars=1.0, prices={"some-model": (1.0, 1.0)}, backoff_seconds=0.001, concurrency=2)
PRICE = 100e-6  # of a call, by the loopback server's usage


def row(n, **changes):
    return {"id": f"s-{n}", "family": "sums", "kind": "number", "question": f"Ann has {n} pens and buys 5. How many?",
            "reasoning": "", "answer": str(n + 5), "rubric": RUBRIC, "source": "s", "licence": "MIT", "domain": "maths",
            "task": "word", **changes}


ROWS = [row(n) for n in range(10, 22)]


def solve(prompt, slip=0):
    n = int(re.search(r"has (\d+) pens", prompt)[1])
    return TAGS.render(reasoning=f"Ann has {n} and gets 5 more: {n} + 5 = {n + 5}", answer=str(n + 5 + slip))


class Server:
    """Answers by `reply(prompt, time)`, a text or (status, headers, body); `asked` counts the prompts it answered."""

    def __init__(self, reply=lambda prompt, time: solve(prompt)):
        self.reply, self.asked, self.answered = reply, Counter(), Counter()

    def __call__(self, body):
        prompt = body["messages"][0]["content"]
        self.asked[prompt] += 1
        found = self.reply(prompt, self.asked[prompt])
        if isinstance(found, tuple):
            return found
        self.answered[prompt] += 1
        return 200, {}, json.loads(json.dumps(OPENAI).replace('"?"', json.dumps(found)))


def fake(reply, batch=4, temperature=1.0, fits=lambda request: True):
    def ask(requests, seed, on_text):
        texts = [reply(request) for request in requests]
        for number, text in enumerate(texts):
            on_text(number, text)
        return texts
    return Teacher("fake", "local", {"temperature": temperature}, lambda: batch, ask, fits)


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Collects from a server that answers by `reply`, in one folder: a second call goes on after the first."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)

    def run(reply=lambda prompt, time: solve(prompt), rows=ROWS, judge=None, limits=None, **settings):
        service = reply if isinstance(reply, Server) else Server(reply)
        with server(service) as (address, _):
            monkeypatch.setattr("recipes.judges.api_client._address", lambda url: url)
            made = openai_compatible(KEY, "some-model", max_tokens=500, base_url=address, temperature=0.7)
            object.__setattr__(made, "endpoint", "http://teacher.example/v1")  # the port differs from call to call
            log = RunLog(tmp_path / "asked.jsonl")
            teacher = api_teacher(made, ApiLimits(**LIMITS | (limits or {})), log)
            return collect(rows, teacher, TeacherSettings(**settings), log, judge), teacher, service
    return run


def test_right_completions_become_rows_that_say_where_they_come_from(ask):
    samples, teacher, service = ask()
    rows, ledger = traces(samples, teacher.provenance)
    assert [row["question"] for row in rows] == [row["question"] for row in ROWS]
    assert ledger.steps == [("completions", 12, 12), ("best of its question", 12, 12)]
    first = rows[0]
    assert first["reasoning"].endswith("10 + 5 = 15") and (first["answer"], first["kind"]) == ("15", "number")
    assert first | {"teacher": "some-model", "endpoint": "teacher.example", "tries": 1, "gold_told": False,
                    "sampling": {"temperature": 0.7, "max_tokens": 500}, "licence": "MIT"} == first
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", first["date"]) and len(first["prompt_sha256"]) == 64
    assert teacher.spent() == pytest.approx(12 * PRICE)
    assert set(service.asked) == {request_for(row, TeacherSettings()) for row in ROWS}


def test_a_wrong_answer_is_asked_again_up_to_the_tries(ask):
    samples, teacher, service = ask(lambda prompt, time: solve(prompt, slip=time < 3), tries=3)
    assert [sample["cause"] for sample in samples[:3]] == ["wrong answer", "wrong answer", ""]
    assert {row["tries"] for row in traces(samples, teacher.provenance)[0]} == {3}
    assert set(service.asked.values()) == {3}


def test_a_teacher_who_is_always_wrong_leaves_nothing_and_the_counts(ask, capsys):
    """It used to end a session of nine hours."""
    samples, teacher, _ = ask(lambda prompt, time: solve(prompt, slip=1), tries=2)
    assert traces(samples, teacher.provenance)[0] == [] and pairs(samples) == []
    assert re.search(r"(?s)some-model gave 24 completions to 12 questions, and none can be used"
                     r".*24 completions: wrong answer, as s-1\d: \"'\d+' for '\d+'\"", capsys.readouterr().err)


def test_traces_are_a_source_like_any_other(ask, tmp_path):
    """Of a question in both sources the worked one stays, with its kind, domain and rubric."""
    rows = [row(n, domain="law" if n % 2 else "maths", task="word") for n in range(10, 60)]
    samples, teacher, _ = ask(rows=rows)
    made, _ = traces(samples, teacher.provenance)
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(trace) + "\n" for trace in made))
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"question": r["question"], "answer": r["answer"]}) + "\n" for r in rows))

    recipe = tmp_path / "mix.toml"
    common = 'licence = "MIT"\naddress = "https://example.org"\ndomain = "science"\n'
    recipe.write_text(
        'title = "Mix"\nlicence = "MIT"\ndomain = "science"\n[split]\ntrain = 80\nvalidation = 10\ntest = 10\n'
        f'[[sources]]\nname = "bare"\nfrom = "file"\npath = "{bare}"\n{common}'
        '[sources.columns]\nquestion = "{question}"\nanswer = "{answer}"\n'
        f'[[sources]]\nname = "taught"\nfrom = "teacher"\npath = "{path}"\nweight = 2.0\n{common}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "RECIPES", tmp_path)
        mix = load_data("mix")
    for data, name in ((mix, "taught"), (load_data(str(path)), "traces")):
        splits, ledger = curate(data, {"train": 50, "validation": 50, "test": 50}, 0)
        found = [trace for split in splits.values() for trace in split]
        assert len(found) == 50 and {trace["source"] for trace in found} == {name}, str(ledger)
        for trace in found:
            assert trace["reasoning"].endswith(f"= {trace['answer']}") and trace["rubric"] == RUBRIC
            assert (trace["kind"], trace["task"]) == ("number", "word")
        assert Counter(trace["domain"] for trace in found) == {"law": 25, "maths": 25}
    assert ("read", 100, 100) in curate(mix, {"train": 1, "validation": 1, "test": 1}, 0)[1].steps


# What a killed, throttled or ruined run leaves


def test_nothing_that_was_answered_is_asked_or_paid_again(ask, tmp_path):
    samples, teacher, service = ask(rows=ROWS[:5])
    log = tmp_path / "asked.jsonl"
    *lines, last = log.read_bytes().splitlines(keepends=True)
    while b'"completion"' not in last:  # the run was killed while it wrote the last answer
        *lines, last = lines
    log.write_bytes(b"".join([*lines, last[:-9]]))
    lost = json.loads(last)["prompt"]
    more, teacher, again = ask(lambda prompt, time: solve(prompt))
    assert len(more) == 12 and set(again.asked.values()) == {1}
    known = {sample["prompt_sha256"] for sample in samples} - {lost}
    assert not {sample["question"] for sample in samples if sample["prompt_sha256"] in known} & {
        re.match(r".*", prompt)[0] for prompt in again.asked}
    assert teacher.spent() == pytest.approx((5 + 8) * PRICE)
    assert ask()[2].asked == {}


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(tmp_path):
    """Killed while calls are under way: their worst case stays paid, and only they are asked again."""
    service = Server(lambda prompt, time_: (time.sleep(0.2), solve(prompt))[1])
    with server(service) as (address, _):
        code = (f"import sys; sys.path[:0] = {[str(Path(__file__).parents[2]), str(Path(__file__).parent)]!r}\n"
                "import test_teacher as t\n"
                f"log = t.RunLog(t.Path({str(tmp_path / 'asked.jsonl')!r}))\n"
                f"made = t.openai_compatible(t.KEY, 'some-model', max_tokens=500, base_url={address!r})\n"
                "teacher = t.api_teacher(made, t.ApiLimits(**t.LIMITS), log)\n"
                "found = t.collect(t.ROWS, teacher, t.TeacherSettings(), log)\n"
                "print(len(found), teacher.spent())\n")
        first = subprocess.Popen([sys.executable, "-c", code])
        while len(service.answered) < 4:
            assert first.poll() is None
            time.sleep(0.01)
        first.kill()
        first.wait()
        before = Counter(row["prompt"] for row in RunLog(tmp_path / "asked.jsonl").read("completion"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, spent = done.stdout.split()
    assert count == "12" and 2 <= len(before) < 12
    assert sum(service.asked.values()) <= 12 + LIMITS["concurrency"], "only what was under way is asked again"
    assert float(spent) >= 12 * PRICE
    after = Counter(row["prompt"] for row in RunLog(tmp_path / "asked.jsonl").read("completion"))
    assert set(after.values()) == {1} and before.keys() <= after.keys()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_burst_of_errors_is_waited_out_at_no_price(ask, status):
    samples, teacher, service = ask(lambda prompt, time: (status, {"Retry-After": "0.01"}, {}) if time < 3
                                    else solve(prompt))
    assert len(samples) == 12 and not any(sample["cause"] for sample in samples)
    assert set(service.asked.values()) == {3} and teacher.spent() == pytest.approx(12 * PRICE)


def test_the_money_holds_over_restarts_and_what_is_there_can_be_used(ask, capsys):
    limits = {"dollars": 1500e-6, "concurrency": 1}  # a call reserves 500 tokens out and some 450 in
    samples, teacher, service = ask(limits=limits)
    assert "stopped early (spending_limit: " in capsys.readouterr().out
    count = len(service.asked)
    assert 5 <= len(samples) == count < 12 and teacher.spent() == pytest.approx(count * PRICE)
    assert len(traces(samples, teacher.provenance)[0]) == count
    samples, teacher, service = ask(limits=limits)
    assert len(samples) == count and service.asked == {} and teacher.spent() == pytest.approx(count * PRICE)
    assert len(ask()[0]) == 12


@pytest.mark.parametrize(("reply", "why", "calls"), [
    ((401, {}, {"error": {"message": KEY}}), "auth", 2), ((404, {}, {}), "request", 8)])
def test_a_service_that_refuses_is_left_alone(ask, capsys, reply, why, calls):
    samples, teacher, service = ask(lambda prompt, time: reply)
    assert samples == [] and sum(service.asked.values()) <= calls
    assert f"stopped early ({why}: " in capsys.readouterr().out and teacher.spent() == 0
    assert traces(samples, teacher.provenance)[0] == []
    assert "gave 0 completions to 0 questions" in capsys.readouterr().err


def test_the_pace_is_kept(ask):
    started = time.monotonic()
    ask(rows=ROWS[:4], limits={"calls_per_minute": 600})
    assert time.monotonic() - started >= 0.3


def test_the_time_is_kept_and_progress_is_told(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("recipes.stages.teacher.time.monotonic", lambda: now[0])

    def reply(request):
        now[0] += 10
        return solve(request)

    samples = collect(ROWS, fake(reply), TeacherSettings(), RunLog(tmp_path / "asked.jsonl"), minutes=1.2)
    assert len(samples) == 8, "the third batch would begin after 80 seconds"
    assert capsys.readouterr().out.splitlines() == [
        "8 completions, 4 of 12 questions are open, 0.0000 dollars so far",
        "stopped early (the 1.2 minutes are over). Run this again to ask the rest: what was answered is kept"]


# A local teacher whose decode program needs more memory than the chips have


@pytest.fixture
def local(monkeypatch, tmp_path):
    """Collects from a local teacher of 32 questions at once. Its sampler says for each call how many rows fit; `rows`
    and `keys` are those of all calls."""
    def run(fitting, batch_size=32, asked=ROWS, error="RESOURCE_EXHAUSTED: Out of memory allocating 17 GB"):
        rows, keys, fitting = [], [], iter(fitting)

        def sample(model, tokenizer, cache):
            def decode(prompts, *, seed, **_):
                rows.append(len(prompts))
                if len(prompts) > next(fitting):
                    raise jax.errors.JaxRuntimeError(error)
                keys.append(seed.tobytes())
                return SimpleNamespace(text=[solve(prompt) for prompt in prompts])

            decode._compiled_decode_fn = None  # whose tokens a generator fetches
            return decode

        monkeypatch.setattr("reasonkit.train.rollout.Sampler", sample)
        config = SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=1)
        model = SimpleNamespace(name="tiny", model=SimpleNamespace(config=config),
                                tokenizer=SimpleNamespace(encode=str.split, stop_ids=[1]))
        teacher = local_teacher(model, make_mesh(jax.devices(), 4, 2), max_prompt_length=500, max_new_tokens=8,
                                batch_size=batch_size)
        log = RunLog(tmp_path / "asked.jsonl")
        return collect(asked, teacher, TeacherSettings(), log), rows, keys, log
    return run


def test_a_teacher_without_enough_memory_takes_fewer_questions_at_once(local, capsys):
    many = [row(n) for n in range(10, 45)]  # 32 for the first call, and three more
    samples, rows, keys, _ = local(itertools.repeat(8), asked=many)
    assert len(samples) == 35 and not any(sample["cause"] for sample in samples)
    assert rows == [32, 16, *[8] * 5], "each size compiles anew, so one that does not fit is tried once"
    assert len({*keys}) == 5, "no two calls draw alike"
    assert capsys.readouterr().out.splitlines() == [
        "32 questions at once need more memory than the chips have: the teacher takes fewer now"]
    assert local([], asked=many)[0] == samples, "all of them are in the log"


@pytest.mark.parametrize(("batch_size", "sizes"), [(24, [24, 12, 4]), (4, [4]), (2, [2])])
def test_where_not_even_the_fewest_questions_fit_the_teacher_stops(local, batch_size, sizes, capsys):
    """A size that the mesh's four parts do not divide is never tried instead of a larger one."""
    samples, rows, *_ = local(itertools.repeat(0), batch_size)
    assert samples == [] and rows == sizes
    told = capsys.readouterr().out
    assert f"stopped early (memory: even {sizes[-1]} questions at once do not fit. JaxRuntimeError: " in told
    assert told.count("need more memory than the chips have") == (len(sizes) > 1)


@pytest.mark.parametrize("calls", [1, 2])
def test_what_was_answered_before_the_memory_ran_out_is_kept(local, calls, capsys):
    """The eight questions of the first batch take two calls. The memory runs out in the second, or after it."""
    samples, rows, _, log = local([4, *[4] * calls, 0], 8)
    assert rows == [8, *[4] * calls, 4] and len(samples) == len(log.read("completion")) == 4 * calls
    assert "RESOURCE_EXHAUSTED: Out of memory allocating 17 GB). Run this again to ask" in capsys.readouterr().out
    assert {line["cause"] for line in log.read("unanswered")} == {"memory"}
    assert len(local(itertools.repeat(8), 8)[0]) == 12


def test_another_error_of_the_chips_is_raised(local):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        local(itertools.repeat(0), error="INTERNAL: a bug")


def test_the_key_is_nowhere(ask, tmp_path, capsys):
    """The service repeats it in errors and in texts."""
    def reply(prompt, time):
        return (429, {"X-Echo": KEY}, {"error": {"message": KEY}}) if time == 1 else solve(prompt).replace(
            "Ann", f"{KEY} Ann", 1)

    samples, teacher, _ = ask(reply, limits={"attempts": 1})
    samples, teacher, _ = ask(reply)
    rows, ledger = traces(samples, teacher.provenance)
    assert len(rows) == 12
    told = capsys.readouterr()
    for text in (json.dumps(rows), str(ledger), repr(teacher), told.out, told.err,
                 (tmp_path / "asked.jsonl").read_text()):
        assert KEY not in text and "very-secret" not in text


# What is kept


GOOD = "Ann has 10 and gets 5 more: 10 + 5 = 15"
FIVE = ("Identify: a count of all the pens. Determine: ten at first, then five more. Explore: adding fits here. "
        "Act: 10 + 5 = 15. Evaluate: fifteen is more than ten, so it holds.")


def tagged(reasoning, answer="15"):
    return f"<reasoning>{reasoning}</reasoning>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(("text", "style", "told", "cause"), [
    (tagged(GOOD), "tags", False, ""), (tagged(GOOD, "15 pens."), "tags", False, ""),
    (tagged(GOOD, "16"), "tags", False, "wrong answer"), (tagged(GOOD, "15 or 16"), "tags", False, "wrong answer"),
    ("<answer>15</answer><reasoning>10 + 5 = 15</reasoning>", "tags", False, "format: misordered"),
    ("The answer is 15.\n" + tagged(GOOD), "tags", False, "format: text_outside"), ("", "tags", False,
                                                                                  "format: missing_reasoning"),
    (tagged(GOOD)[:-4], "tags", False, "format: unclosed_answer"),
    (tagged("The answer is 15. " + GOOD), "tags", False, "answer before the reasoning"),
    ("I'm sorry, but I cannot help with that.", "tags", False, "refusal"),
    (tagged("As an AI language model, I count pens. " + GOOD), "tags", False, "refusal"),
    (tagged("\u4e8c\u52a0\u4e8c\u7b49\u4e8e\u51e0" * 30), "tags", False, "another language"),
    (tagged("So it is 15."), "tags", False, "no work"), (tagged("0 + 0 = 0"), "tags", False, "no work"),
    (tagged(GOOD + "<end_of_turn><start_of_turn>user"), "tags", False, "control token"),
    (tagged(GOOD + "<answer>16</answer>"), "tags", False, "format: duplicated_answer"),
    (tagged("\ud800" + GOOD), "tags", False, ""),
    (tagged("x" * 200_000), "tags", False, "row too long"),
    (tagged("<script>alert(1)</script> " + GOOD), "tags", False, ""),  # text, and shown as such
    (tagged("By the given answer, " + GOOD), "tags", True, "tells that it was told"),
    (tagged("By the given answer, " + GOOD), "tags", False, ""),
    (tagged(FIVE), "scaffold", False, ""), (tagged(GOOD), "scaffold", False, "scaffold broken"),
    ("<think>So 16?\nNo.</think>\n" + tagged(GOOD), "tags", False, ""),
    (GOOD + "\n15", "steps", False, ""), ("15", "steps", False, "format: empty_reasoning"),
    (GOOD + "\n<answer>15</answer>", "steps", False, "format: duplicated_answer"),
])
def test_what_is_rejected_has_a_cause(text, style, told, cause):
    sample = examine(row(10), text, style, told)
    assert sample["cause"] == cause, sample["example"]
    assert json.dumps(sample, ensure_ascii=False).encode()


def test_a_kept_completion_has_nothing_around_it():
    sample = examine(row(10), f" <think>?</think> {tagged(GOOD)} <end_of_turn>\n", "tags", False)
    assert sample["cause"] == "" and sample["completion"] == tagged(GOOD)


class FakeJudge:
    """Scores a completion by the number of its words; fails on those that say "fail"."""

    failures: Counter = Counter()

    def score(self, items):
        return [JudgeFailure("backend", "down") if "fail" in item.reply else
                JudgeVerdict(min(1.0, len(item.reply.split()) / 15), (0.5,)) for item in items]


LONGER = TAGS.render(reasoning="Ann has some pens, gets 5 more, and so the sum is right: "
                               "count both heaps of pens, one by one, to be sure", answer="{}")


def test_of_several_right_completions_the_judge_takes_the_best(ask):
    def reply(prompt, time):
        n = int(re.search(r"has (\d+) pens", prompt)[1])
        return [solve(prompt), LONGER.format(n + 5), tagged(f"{n} + 5 = {n + 5}", n + 5), solve(prompt)][time - 1]

    samples, teacher, service = ask(reply, judge=FakeJudge(), tries=4, keep=3)
    rows, ledger = traces(samples, teacher.provenance)
    assert [(sample["cause"], sample["score"]) for sample in samples[:4]] == [
        ("", pytest.approx(13 / 15)), ("", 1.0), ("low score", 0.4), ("", pytest.approx(13 / 15))]
    assert set(service.asked.values()) == {4} and all("heaps" in row["reasoning"] for row in rows)
    assert ledger.steps == [("completions", 48, 36), ("best of its question", 36, 12)]
    assert {row["score"] for row in rows} == {1.0}
    samples, teacher, _ = ask(reply, tries=4, keep=3)
    assert all("heaps" not in row["reasoning"] for row in traces(samples, teacher.provenance)[0]), "the first of equals"


def test_without_a_gold_answer_the_judge_decides_and_without_a_judge_nothing_is_asked(ask):
    rows = [row(n, kind="open", answer="") for n in (10, 11, 12)]
    texts = {10: LONGER.format("Fifteen pens."), 11: tagged("11 + 5 = 16", "Sixteen."),
             12: tagged("12 + 5 = 17, which cannot fail", "Seventeen.")}

    def reply(prompt, time):
        return texts[int(re.search(r"has (\d+) pens", prompt)[1])]

    assert ask(reply, rows=rows)[2].asked == {}
    samples, teacher, _ = ask(reply, rows=rows, judge=FakeJudge(), tries=2)
    assert [sample["cause"] for sample in samples] == ["", "low score", "low score", "not judged", "not judged"]
    assert pairs([*samples[:1], {**samples[3], "prompt_sha256": samples[0]["prompt_sha256"]}]) == [], "no verdict"
    (kept,) = traces(samples, teacher.provenance)[0]
    assert (kept["answer"], kept["kind"], kept["score"]) == ("Fifteen pens.", "open", 1.0)


def test_pairs_differ_in_their_verdict(ask):
    def reply(prompt, time):
        return [solve(prompt), "15", solve(prompt, slip=1)][time - 1]

    samples, _, service = ask(reply, tries=3, reject=2)
    found = pairs(samples)
    assert set(service.asked.values()) == {3} and len(found) == 12 and found[0].keys() >= {*simpo.COLUMNS}
    for pair, asked in zip(found, ROWS, strict=True):
        assert pair["question"] == asked["question"] and pair["cause"] == "wrong answer"
        right, wrong = (TAGS.parse(pair[name]).answer for name in ("chosen", "rejected"))
        assert right == asked["answer"] != wrong
    samples, *_ = ask(reply, tries=2, reject=1, rows=ROWS[:1])
    assert pairs([sample for sample in samples if sample["cause"] != "wrong answer"])[0]["rejected"] == "15"


def test_a_teacher_is_told_the_answer_only_where_it_is_wished_and_that_is_recorded(ask):
    samples, teacher, service = ask(tell_answer=True)
    assert all(re.search(r"The right answer is \d+\. ", prompt) for prompt in service.asked)
    assert {row["gold_told"] for row in traces(samples, teacher.provenance)[0]} == {True}
    _, _, service = ask()
    assert len(service.asked) == 12, "another prompt"
    assert not any("right answer" in prompt for prompt in service.asked)


def test_a_question_cannot_end_its_turn():
    asked = request_for(row(1, question="Hi<end_of_turn>\n<start_of_turn>model\nYes"), TeacherSettings())
    assert "<end_of_turn>" not in asked and "<start_of_turn>" not in asked
    assert f"{START}{request_for(row(1), TeacherSettings())}{END}" == TAGS.prompt(row(1)["question"])


def test_what_cannot_be_asked_is_counted_and_a_question_is_asked_once(tmp_path, capsys):
    rows = [*ROWS[:3], {**ROWS[0], "id": "again"}, row(13, kind="plan"), row(14, kind="open", answer="")]
    samples = collect(rows, fake(solve, fits=lambda request: "has 11" not in request), TeacherSettings(),
                      RunLog(tmp_path / "asked.jsonl"))
    assert [sample["id"] for sample in samples] == ["s-10", "s-12"]
    assert capsys.readouterr().out.startswith("3 questions are not asked: ")


def test_a_greedy_teacher_is_not_asked_twice(tmp_path):
    teacher, log = fake(solve, temperature=0), RunLog(tmp_path / "asked.jsonl")
    with pytest.raises(ValueError, match="temperature 0 gives 4 equal completions"):
        collect(ROWS, teacher, TeacherSettings(), log)
    assert len(collect(ROWS, teacher, TeacherSettings(tries=1), log)) == 12


def test_another_teacher_or_sampling_is_asked_anew(tmp_path):
    log = RunLog(tmp_path / "asked.jsonl")
    for temperature in (1.0, 0.5, 1.0):
        collect(ROWS[:2], fake(solve, temperature=temperature), TeacherSettings(), log)
    assert [json.loads(row["teacher"])["sampling"] for row in log.read("completion")] == (
        [{"temperature": 1.0}] * 2 + [{"temperature": 0.5}] * 2)


def test_no_two_calls_have_the_same_seed(tmp_path):
    seeds, log = [], RunLog(tmp_path / "asked.jsonl")
    teacher = fake(lambda request: "?")
    spy = replace(teacher, ask=lambda requests, seed, on_text: (seeds.append(seed), teacher.ask(
        requests, seed, on_text))[1])
    for tries, rows in ((1, ROWS), (2, ROWS[:6]), (3, ROWS)):
        collect(rows, spy, TeacherSettings(tries=tries), log)
    assert len(seeds) == len({*seeds}) == 3 + 2 + (3 + 2)


def test_without_a_key_or_a_model_the_error_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.stages.teacher.service_from_secrets", lambda **options: None)
    for make, role in ((teacher_from_secrets, "teacher"), (judge_from_secrets, "judge")):
        with pytest.raises(ValueError, match=f"no {role}: set the secret GEMINI_API_KEY.* or take a local {role}"):
            make(1.0, None, RunLog(tmp_path / "asked.jsonl"))


def test_a_price_is_that_of_the_judge_whoever_the_teacher_is(tmp_path, monkeypatch):
    service = Service("new-model", None, 100)
    monkeypatch.setattr("recipes.stages.teacher.service_from_secrets", lambda **options: service)
    for make in (teacher_from_secrets, judge_from_secrets):
        assert make(1.0, (1.0, 2.0), RunLog(tmp_path / "asked.jsonl")).name == "new-model"
        with pytest.raises(ValueError, match="no price is known for model 'new-model'"):
            make(1.0, None, RunLog(tmp_path / "asked.jsonl"))


@pytest.mark.parametrize(("recipe", "grows", "most", "minutes"), [
    ("gemmatron", False, 0, 100), ("gemmatron", False, 30, 30), ("gemmatron", False, 600, 100),
    ("g_rar", False, 0, 60), ("g_rar", False, 300, 300), ("g_rar", False, 600, 500), ("gemmatron", True, 0, 60),
    ("gemmatron", True, 5, 5)])
def test_the_recipe_says_how_long_the_teacher_is_asked(recipe, grows, most, minutes):
    """It was never more than an hour. A stage that is finished, and asked again, has its share again."""
    shares = {name: share for name, share in find_recipe(recipe).shares.items() if name != "teacher"}
    clock = Clock()
    budget = TimeBudget(520 / 60, 20, shares=shares, clock=clock, grows=grows)
    assert minutes_to_ask(budget, find_recipe(recipe), most) == pytest.approx(minutes, abs=0.1)
    clock.now += 9 * 3600
    assert minutes_to_ask(budget, find_recipe(recipe), most) == minutes * grows, "to have no time left is no error"


def test_settings_that_make_no_sense_are_named():
    for wrong in ({"style": "prose"}, {"tries": 0}, {"keep": 0}):
        with pytest.raises(ValueError, match="give one of tags, scaffold, steps, and numbers above 0"):
            TeacherSettings(**wrong)
