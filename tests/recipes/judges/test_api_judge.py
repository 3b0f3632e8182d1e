"""API judges: what is grouped, waited for, repeated, paid and refused, over plain functions, then over real SDKs."""

import asyncio
import builtins
import json
import logging
import re
import sys
import threading
import time
import types
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from loopback import GEMINI, KEY, OPENAI, PROXIES, server

from reasonkit.judge.judge import JudgeFailure, JudgeItem
from reasonkit.judge.rubric import Criterion
from recipes.judges import api_client
from recipes.judges.api_client import Answer, CallError, Service, call_error, gemini, hide_in_logs, openai_compatible
from recipes.judges.api_judge import ApiJudge, ApiLimits, from_secrets
from recipes.judges.score_sheet import ScoreSheet

STEPS = Criterion("Steps", "Every step follows.", 1.0)
CLEAR = Criterion("Clear", "A reader can follow it.", 0.3)
QUICK = dict(dollars=1.0, prices={"fake": (1.0, 1.0), "some-model": (1.0, 1.0)}, backoff_seconds=0.001)


def good(prompt, *, rating=5):
    """The verdict that the prompt asks for, with this rating everywhere."""
    form = re.search(r'^\{"number".*\}$', prompt, re.MULTILINE)[0]
    return form.replace("?", str(rating))


class Status(Exception):
    """As SDKs raise it."""

    def __init__(self, status, text="", headers=None):
        super().__init__(text)
        self.status_code, self.response = status, types.SimpleNamespace(headers=headers or {})


def made(*script, limits=QUICK, secret=KEY, max_tokens=1000, **form):
    """A judge whose n-th call does the n-th of the script (the last for ever): raise, wait, return; and its prompts."""
    asked = []

    async def call(prompt, schema):
        step = script[min(len(asked), len(script) - 1)]
        asked.append(prompt)
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, float):
            await asyncio.sleep(step)
        return step if isinstance(step, Answer) else Answer(step if isinstance(step, str) else good(prompt), 100, 10)

    return ApiJudge(Service("fake", call, max_tokens, secret), ApiLimits(**limits), **form), asked


def items(*replies, question="q", rubric=(STEPS, CLEAR)):
    return [JudgeItem(question, reply, rubric) for reply in replies]


def apart(count):
    """Items that cannot share a call."""
    return [item for n in range(count) for item in items("r", question=str(n))]


def causes(results):
    return [getattr(result, "cause", None) for result in results]


def test_a_group_is_one_call_and_is_paid_by_its_tokens():
    judge, asked = made(None)
    results = judge.score(items("a", "b", "c") + items("d", question="other"))
    assert [result.score for result in results] == [1.0] * 4 and len(asked) == 2
    assert sorted(prompt.count("Reply ") for prompt in asked) == [1, 3]
    assert judge.usage == {"calls": 2, "tokens_in": 200, "tokens_out": 20}
    assert judge.spent == pytest.approx(220e-6) and not judge.failures
    assert judge.score([]) == []


def test_replies_per_call():
    judge, asked = made(None, replies_per_call=2)
    assert [result.score for result in judge.score(items("a", "b", "c"))] == [1.0] * 3
    assert sorted("".join(re.findall(r"^> (.)$", prompt, re.MULTILINE)) for prompt in asked) == ["qab", "qc"]


def test_one_rating_for_all_criteria():
    judge, _ = made(None, mode="implicit")
    assert [(result.score, result.per_criterion) for result in judge.score(items("a", "b"))] == [(4 / 9, (4 / 9,))] * 2


@pytest.mark.parametrize(("mode", "forth", "back", "met"), [
    ("explicit", "[5, 1]", "[3, 4]", (0.875, 0.25)), ("implicit", "[10]", "[4]", (2 / 3,))])
def test_both_orders_are_asked_paid_and_averaged(mode, forth, back, met):
    """The second order's ratings begin with the last criterion."""
    async def call(prompt, schema):
        asked.append(prompt)
        row = back if "(fully met) to 1" in prompt else forth
        return Answer(re.sub(r"\[\?.*?\]", row, good(prompt, rating="?")), 100, 10)

    asked = []
    judge = ApiJudge(Service("fake", call, 1000), ApiLimits(**QUICK), mode=mode, both_orders=True)
    results = judge.score(items("a", "b") + items("c", rubric=(CLEAR, STEPS)))
    score = (met[0] + 0.3 * met[-1]) / 1.3, (0.3 * met[0] + met[-1]) / 1.3
    assert [result.score for result in results] == pytest.approx([score[0], score[0], score[1]])
    assert [result.per_criterion for result in results] == [pytest.approx(met)] * 3
    assert sorted(asked) == sorted(
        ScoreSheet("q", replies, rubric, mode, reverse).prompt for reverse in (False, True)
        for replies, rubric in ((("a", "b"), (STEPS, CLEAR)), (("c",), (CLEAR, STEPS))))
    assert judge.usage["calls"] == 4 and judge.spent == pytest.approx(440e-6)


@pytest.mark.parametrize("steps", [(None, Status(400)), (Status(400), None), (Status(400), Status(401))])
def test_an_item_that_fails_in_one_order_is_one_failure(steps):
    judge, asked = made(*steps, both_orders=True)
    assert causes(judge.score(items("a"))) == ["request"] and judge.failures == {"request": 1} and len(asked) == 2


def test_the_second_order_keeps_to_the_money():
    judge, asked = made(0.05, limits=QUICK | dict(dollars=3000e-6), both_orders=True)
    assert causes(judge.score(items("a"))) == ["spending_limit"]
    assert len(asked) == 1 and judge.spent == pytest.approx(110e-6)


def test_answers_belong_to_their_items_whatever_their_order():
    async def call(prompt, schema):
        n = int(re.search(r"Reply 1:\n> (\d)", prompt)[1])
        await asyncio.sleep(0.02 * (5 - n))
        return Answer(good(prompt, rating=n), 1, 1)

    judge = ApiJudge(Service("fake", call, 10), ApiLimits(**QUICK))
    batch = [item for n in (3, 1, 5, 2) for item in items(str(n), question=f"is {n} good?")]
    assert [result.score for result in judge.score(batch)] == [0.5, 0.0, 1.0, 0.25]


@pytest.mark.parametrize(("step", "cause", "calls"), [
    (Status(429), "rate_limit", 5), (Status(500), "server", 5), (Status(503), "server", 5), (Status(408), "timeout", 5),
    (ConnectionResetError(), "connection", 5), (TimeoutError(), "timeout", 5), (Status(400), "request", 1),
    (Status(404), "request", 1), (Status(401), "auth", 1), (Status(403), "auth", 1),
    (Status(400, "reason: API_KEY_INVALID"), "auth", 1), (RuntimeError("?"), "backend", 1),
    (json.JSONDecodeError("Expecting value", "<html>", 0), "unparsable", 3), ("I'd say 5.", "unparsable", 3),
    (CallError("blocked", "no text"), "blocked", 3), (CallError("too_long", "cut"), "too_long", 3),
    (Status(400, "code: content_filter"), "blocked", 3), (SystemExit(), "backend", 1),
    (KeyboardInterrupt(), "backend", 1), (RecursionError(), "backend", 1), (Answer(None, 1, 1), "unparsable", 3),
    (Answer(["5"], 1, 1), "unparsable", 3),
    (asyncio.CancelledError(), "timeout", 1)])
def test_what_ends_in_which_cause_after_how_many_calls(step, cause, calls):
    judge, asked = made(step)
    assert causes(judge.score(items("a", "b"))) == [cause] * 2
    assert len(asked) == calls == judge.usage["calls"] and judge.failures == {cause: 2}


@pytest.mark.parametrize("steps", [[Status(429)], [Status(500), ConnectionResetError(), Status(408), TimeoutError()]])
def test_a_service_that_comes_round_is_believed(steps):
    judge, asked = made(*steps, None)
    assert causes(judge.score(items("a"))) == [None] and len(asked) == len(steps) + 1


def test_a_call_is_cut_at_its_time_and_asked_again():
    judge, asked = made(9.0, None, limits=QUICK | dict(call_seconds=0.05))
    assert causes(judge.score(items("a"))) == [None] and len(asked) == 2


def test_the_wait_that_the_service_asks_for_is_kept():
    judge, asked = made(Status(429, headers={"retry-after": "0.4"}), None)
    started = time.perf_counter()
    assert causes(judge.score(items("a"))) == [None]
    assert 0.4 <= time.perf_counter() - started < 3


def test_a_wait_past_the_deadline_is_a_failure_at_once():
    judge, asked = made(Status(429, headers={"retry-after": "4000"}), None)
    started = time.perf_counter()
    assert causes(judge.score(items("a"))) == ["rate_limit"]
    assert len(asked) == 1 and time.perf_counter() - started < 3


def test_retry_after_is_read_in_all_its_forms():
    def seconds(value, text=""):
        return call_error(Status(429, text, {"retry-after": value} if value else {})).retry_after

    assert (seconds("7"), seconds("0.5"), seconds(""), seconds("soon"), seconds("-3"), seconds("nan")) == (
        7, 0.5, 0, 0, 0, 0)
    assert 50 < seconds(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)) <= 60
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert seconds("", "{'@type': 'google.rpc.RetryInfo', 'retryDelay': '31s'}") == 31


def test_a_hanging_service_cannot_hold_a_batch():
    async def stubborn(prompt, schema):
        while True:
            try:
                await asyncio.sleep(3)
                return Answer(good(prompt), 1, 1)
            except asyncio.CancelledError:
                pass

    for call in (stubborn, made(60.0)[0].service.call):
        judge = ApiJudge(Service("fake", call, 10), ApiLimits(**QUICK, batch_seconds=0.2, concurrency=2))
        started = time.perf_counter()
        assert causes(judge.score(apart(5))) == ["timeout"] * 5
        assert time.perf_counter() - started < 2.5


def test_what_came_in_time_counts():
    async def call(prompt, schema):
        await asyncio.sleep(0 if "> 0" in prompt else 60)
        return Answer(good(prompt), 1, 1)

    judge = ApiJudge(Service("fake", call, 10), ApiLimits(**QUICK, batch_seconds=0.5))
    assert causes(judge.score(apart(3))) == [None, "timeout", "timeout"]


def test_a_service_that_blocks_the_loop_cannot_hold_a_batch():
    released = threading.Event()

    async def call(prompt, schema):
        released.wait(30)

    judge = ApiJudge(Service("fake", call, 10), ApiLimits(**QUICK, batch_seconds=0.1))
    started = time.perf_counter()
    assert causes(judge.score(items("a"))) == ["timeout"]
    assert time.perf_counter() - started < 6
    released.set()


def test_no_more_calls_at_once_than_allowed():
    running, most = 0, 0

    async def call(prompt, schema):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return Answer(good(prompt), 1, 1)

    judge = ApiJudge(Service("fake", call, 10), ApiLimits(**QUICK, concurrency=3))
    threads = [threading.Thread(target=judge.score, args=[apart(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3 and judge.usage["calls"] == 40


def test_money_is_reserved_before_a_call_and_never_overshot():
    # a call reserves about 1,000 tokens in and 1,000 out, and costs 110
    judge, asked = made(0.05, limits=QUICK | dict(dollars=4000e-6))
    results = judge.score(apart(8))
    assert 1 <= len(asked) < 4 and causes(results).count("spending_limit") == 8 - len(asked)
    assert judge.spent == pytest.approx(110e-6 * len(asked))  # what was reserved is settled
    while causes(judge.score(apart(1))) == [None]:
        pass
    calls = len(asked)
    assert 10 < calls < 40 and judge.spent <= 4000e-6
    assert causes(judge.score(apart(3))) == ["spending_limit"] * 3 and len(asked) == calls
    assert judge.usage["calls"] == calls


@pytest.mark.parametrize(("step", "reserved"), [
    (Status(500), False), (Status(400), False), (Status(401), False), (ConnectionResetError(), True),
    (Answer("?", None, None), True), (ValueError("half a JSON"), True), (9.0, True)])
def test_a_call_that_nobody_knows_the_price_of_costs_its_worst(step, reserved):
    judge, _ = made(step, limits=QUICK | dict(attempts=1, call_seconds=0.05))
    judge.score(items("a"))
    assert 1000e-6 < judge.spent < 3000e-6 if reserved else judge.spent == 0.0


def test_calls_cut_at_the_deadline_are_paid():
    judge, _ = made(9.0, limits=QUICK | dict(batch_seconds=0.1))
    judge.score(items("a"))
    assert 1000e-6 < judge.spent < 3000e-6


def test_calls_that_still_wait_for_their_turn_at_the_deadline_are_not_paid():
    judge, asked = made(None, limits=QUICK | dict(calls_per_minute=60, batch_seconds=0.3))
    assert causes(judge.score(apart(3))) == [None, "timeout", "timeout"]
    assert len(asked) == judge.usage["calls"] == 1 and judge.spent == pytest.approx(110e-6)


def test_a_denied_key_ends_the_batch_but_not_the_judge():
    judge, asked = made(Status(401), None, limits=QUICK | dict(concurrency=1))
    assert causes(judge.score(apart(6))) == ["auth"] * 6 and len(asked) == 1
    assert causes(judge.score(apart(2))) == [None] * 2


@pytest.mark.parametrize(("dollars", "cause", "calls"), [(1.0, "auth", 1), (0.0, "spending_limit", 0)])
def test_what_is_refused_waits_for_no_turn(dollars, cause, calls):
    judge, asked = made(Status(401), limits=QUICK | dict(dollars=dollars, concurrency=1))
    started = time.perf_counter()
    assert causes(judge.score(apart(4))) == [cause] * 4 and len(asked) == calls
    assert time.perf_counter() - started < 1.5


@pytest.mark.parametrize("step", [Status(401, f"Incorrect API key provided: {KEY}."), Status(500, KEY), OSError(KEY),
                                  RuntimeError(f"header b'Bearer {KEY}'"), CallError("blocked", KEY), KEY * 9,
                                  "x" * 60 + KEY, Status(400, "x" * 250 + KEY)])
def test_a_key_in_a_message_is_cut_out(step):
    judge, _ = made(step, limits=QUICK | dict(attempts=1))
    (failure,) = judge.score(items("a"))
    assert isinstance(failure, JudgeFailure) and "[key]" in failure.detail
    assert "very-secret" not in failure.detail and "sk-v" not in failure.detail
    assert KEY not in f"{judge.service!r}{vars(judge)}"


@pytest.mark.parametrize("before", [40, 60, 75, 270, 285, 295])
def test_no_part_of_a_key_is_left_where_a_message_is_cut(before):
    for step in (Status(400, "x" * before + KEY), "x" * before + KEY):
        (failure,) = made(step)[0].score(items("a"))
        assert "sk-" not in failure.detail and len(failure.detail) < 350


def test_score_works_under_a_running_loop():
    judge, _ = made(None)

    async def cell():
        return judge.score(items("a", "b"))

    assert causes(asyncio.run(cell())) == [None] * 2


@pytest.mark.parametrize("wrong", [{"dollars": -1}, {"dollars": float("nan")}, {"dollars": "5"}, {"dollars": True},
                                   {"concurrency": 0}, {"attempts": 0}, {"call_seconds": 0},
                                   {"batch_seconds": -1}, {"batch_seconds": None}, {"prices": 0.4},
                                   {"prices": (0.4, 2.5)}, {"prices": None}])
def test_limits_that_make_no_sense_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        ApiLimits(**QUICK | wrong)


@pytest.mark.parametrize("price", [
    (1.0,), (1.0, 1.0, 1.0), (), 1.0, None, "1.0 2.0", "12", (-1, 1), (1, -0.1), (float("nan"), 1), (1, float("inf")),
    ("1", "2"), (None, None), (True, True), ([1], [2])])
def test_a_price_that_is_none_is_named(price):
    with pytest.raises(ValueError, match=r"prices\['a-model'\]=.*: give dollars per million tokens, in and out"):
        ApiLimits(1.0, {"a-model": price})


@pytest.mark.parametrize(("name", "endpoint", "prices", "cost"), [
    ("gemini-3.5-flash-lite", api_client.GEMINI, {}, 0.3 * 100 + 2.5 * 10),
    ("gpt-6-luna", api_client.OPENAI, {}, 0.1 * 100 + 0.5 * 10),
    ("gpt-6-luna", api_client.OPENAI, {"gpt-6-luna": (1, 2)}, 120), ("other", "", {"other": (0, 0)}, 0),
    ("other", api_client.GEMINI, {"other": (2, 3), "gemini-3.5-flash-lite": (1, 1)}, 230),
    ("gpt-6-luna", "https://other.example/v1", {}, None), ("gemini-3.5-flash-lite", api_client.OPENAI, {}, None),
    ("gemini-3.1-pro", api_client.GEMINI, {}, None), ("gemini-3.5-flash", api_client.GEMINI, {}, None),
    ("models/gemini-3.5-flash-lite", api_client.GEMINI, {}, None), ("GPT-6-Luna", api_client.OPENAI, {}, None),
    ("gpt-5", api_client.OPENAI, {"gpt-6-luna": (1, 1)}, None), ("", api_client.OPENAI, {}, None)])
def test_a_price_belongs_to_one_model(name, endpoint, prices, cost):
    async def call(prompt, schema):
        return Answer(good(prompt), 100, 10)

    service = Service(name, call, 10, endpoint=endpoint)
    if cost is None:
        with pytest.raises(ValueError, match=f"no price is known for model '{name}' .*prices={{'{name}': "):
            ApiJudge(service, ApiLimits(1.0, prices))
    else:
        judge = ApiJudge(service, ApiLimits(1.0, prices))
        judge.score(items("a"))
        assert judge.spent == pytest.approx(cost / 1e6)


HOSTILE = [-1, -10**9, 0, float("nan"), float("inf"), -float("inf"), 1.0, 100.5, True, False, "100", "",
           "many", None, [], [100], {}, 1, 5, {"total": 100}, (1,), b"1", 10**7 + 1, 10**12,
           10**400, -10**400, 1j, object(), int]


@pytest.mark.parametrize("place", ["in", "out", "both"])
@pytest.mark.parametrize("claim", HOSTILE, ids=lambda value: repr(value)[:20].split(" at ")[0])
def test_a_number_of_tokens_that_cannot_be_true_leaves_the_worst_case(claim, place):
    answer = Answer("?" * 400, *{"in": (claim, 10), "out": (100, claim), "both": (claim, claim)}[place])
    judge, _ = made(None, answer)
    judge.score(items("a"))
    before = judge.spent
    assert causes(judge.score(items("b"))) == ["unparsable"]
    assert before + 1000e-6 < judge.spent < before + 3000e-6 and judge.usage["tokens_in"] == 100
    assert causes(judge.score(items("c"))) == ["unparsable"] and judge.spent > before + 2000e-6


def test_a_hostile_number_spoils_no_verdict():
    async def call(prompt, schema):
        return Answer(good(prompt), "free", -1)

    judge = ApiJudge(Service("fake", call, 10), ApiLimits(**QUICK))
    assert causes(judge.score(items("a", "b"))) == [None] * 2 and judge.spent > 0


def test_what_is_spent_never_falls_not_by_a_rounding():
    judge, _ = made(Status(500), Answer("?", 1, 1), Answer("?", -5, 3), Status(400), ConnectionResetError(), "?",
                    limits=QUICK | dict(attempts=1, prices={"fake": (0.1, 0.7)}))
    spent = [0.0]
    for number in range(12):
        judge.score(items(str(number)))
        spent.append(judge.spent)
    assert spent == sorted(spent) and spent[1] == 0.0 and spent[4] == spent[3]


@pytest.mark.parametrize("answer", [None, "text", 5, [], {}, Answer(None, 1, 1), Answer(5, 1, 1), Answer(b"5", 1, 1),
                                    Answer([{"type": "text", "text": "5"}], 1, 1), Answer({}, 1, 1),
                                    Answer(True, 1, 1)], ids=repr)
def test_an_answer_that_is_none_is_a_typed_failure(answer):
    async def call(prompt, schema):
        return answer

    judge = ApiJudge(Service("fake", call, 10), ApiLimits(**QUICK))
    assert causes(judge.score(items("a"))) == ["unparsable"] and judge.spent > 0


class Odd(Exception):
    """With attributes that no SDK's errors have."""

    def __init__(self, **more):
        super().__init__("odd")
        vars(self).update(more)


@pytest.mark.parametrize("error", [
    Odd(status_code="500"), Odd(status_code=True), Odd(status_code=-1), Odd(code=None), Odd(status_code=10**30),
    Odd(code=[429]), Odd(status_code=429, response=5),
    Odd(status_code=429, response=types.SimpleNamespace(headers=[1])),
    Odd(status_code=429, response=types.SimpleNamespace(headers={"retry-after": None})),
    Odd(status_code=429, response=types.SimpleNamespace(headers={"retry-after": "Mon, 01 Jan 0001 00:00:00 GMT"})),
    Odd(status_code=429, response=types.SimpleNamespace(headers={"retry-after": "9" * 400})),
    Odd(status_code=429, response=types.SimpleNamespace(headers={"retry-after": "-inf"})),
    BaseExceptionGroup("many", [KeyboardInterrupt()]), ExceptionGroup("many", [ValueError()]), StopAsyncIteration(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), AttributeError(), MemoryError(), AssertionError()],
    ids=lambda error: f"{type(error).__name__} {vars(error)}")
def test_any_exception_is_a_typed_failure(error):
    judge, _ = made(error, None, limits=QUICK | dict(attempts=1))
    (failure,) = judge.score(items("a"))
    assert isinstance(failure, JudgeFailure) and failure.cause and len(failure.detail) < 400
    assert causes(judge.score(items("a"))) == [None], "and the loop of all calls runs on"


def test_a_failure_is_one_visible_line_and_holds_no_exception():
    async def call(prompt, schema):
        raise ValueError(f"\x1b[2J{KEY}\n\u202e\ud800{KEY!r}")

    service = Service("fake", call, 10, KEY)
    with pytest.raises(CallError) as caught:
        asyncio.run(service.ask("", {}))
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    assert str(caught.value).isprintable() and "sk-v" not in str(caught.value)


@pytest.mark.parametrize("cause", ["blocked", "too_long", "unparsable", "contradictory", "miscounted"])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("both_orders", [False, True])
def test_one_reply_does_not_silence_the_others(cause, place, both_orders):
    bad, asked = "bcde"[place], []

    async def call(prompt, schema):
        asked.append(prompt)
        if f"> {bad}" not in prompt:
            return Answer(good(prompt), 1, 1)
        if cause in ("blocked", "too_long"):
            raise CallError(cause, "")
        text = {"unparsable": "no", "contradictory": good(prompt) + good(prompt, rating=1),
                "miscounted": good(prompt).replace("reply_1", "reply_9")}[cause]
        return Answer(text, 1, 1)

    judge = ApiJudge(Service("fake", call, 10), ApiLimits(**QUICK), both_orders=both_orders)
    results = judge.score(items(*"bcde"))
    assert causes(results) == [cause if reply == bad else None for reply in "bcde"]
    assert len(asked) == (10 if both_orders else 5) and judge.failures == {cause: 1}


def test_asking_each_alone_keeps_to_money_and_time():
    judge, asked = made(CallError("blocked", ""), None, limits=QUICK | dict(dollars=4500e-6))
    found = causes(judge.score(items(*"abcdefgh")))
    assert len(asked) < 8 and found.count("spending_limit") >= 4 and judge.spent <= 4500e-6
    judge, asked = made(CallError("blocked", ""), 9.0, limits=QUICK | dict(batch_seconds=0.3))
    started = time.perf_counter()
    assert causes(judge.score(items("a", "b"))) == ["timeout"] * 2 and time.perf_counter() - started < 3


def test_the_endpoint_is_part_of_the_identity():
    judges = [ApiJudge(Service("m", None, 10, KEY, endpoint), ApiLimits(1.0, {"m": (1, 1)}))
              for endpoint in ("https://a.example/v1", "https://b.example/v1", "http://a.example/v1", "")]
    assert len({judge.identity for judge in judges}) == 4 and KEY not in judges[0].identity


@pytest.mark.parametrize("make", [gemini, openai_compatible])
@pytest.mark.parametrize("address", [
    "https://user:passw0rd@h.example/v1", "https://t0ken@h.example/v1", "https://h.example/v1?key=t0ken",
    "https://h.example/v1#t0ken", "ftp://h.example/t0ken", "h.example/t0ken", "t0ken", "https://", "https:///t0ken",
    "https://h.example:t0ken/", "https://h.example:99999/t0ken", "https://h.example/t0ken\n",
    "https://h. example/t0ken", "javascript:t0ken", "file:///t0ken", "https://h\u00e4.example/t0ken", "https://[::1/t0ken"])
def test_an_address_that_is_none_is_refused_and_not_shown(make, address):
    with pytest.raises(ValueError, match="the base URL of the service must be http:// or https://") as caught:
        make(KEY, "model", base_url=address)
    assert "t0ken" not in str(caught.value) and "passw0rd" not in str(caught.value)


@pytest.mark.parametrize("make", [gemini, openai_compatible])
@pytest.mark.parametrize(("address", "endpoint"), [
    (None, None), ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"), ("https://h.example/v1/", "https://h.example/v1"),
    ("http://[::1]:80", "http://[::1]:80"), ("https://h.example", "https://h.example")])
def test_an_endpoint_is_named(make, address, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "https://elsewhere.example/v1")  # which the SDK would take
    vendors = {gemini: api_client.GEMINI, openai_compatible: api_client.OPENAI}[make]
    assert make(KEY, "model", base_url=address).endpoint == (endpoint or vendors)


BROKEN = ["sk-0123\n456789", "sk-0123\r\n456789", "sk-0123 456789", "sk-0123\x00456789", "sk-0123\u200b456789",
          "schl\u00fcssel-456789", "\x1b[31msk-456789"]


@pytest.mark.parametrize("key", BROKEN, ids=ascii)
@pytest.mark.parametrize("make", [gemini, openai_compatible])
def test_a_key_that_would_break_the_header_is_refused_before_use(make, key):
    with pytest.raises(ValueError, match="the (Gemini|OpenAI) key is empty, or holds") as caught:
        make(key, "model")
    assert "456789" not in str(caught.value)


def test_an_empty_rubric_is_a_programming_error():
    with pytest.raises(ValueError, match="item 0 has an empty rubric"):
        made(None)[0].score(items("a", rubric=()))


@pytest.fixture
def nowhere(monkeypatch):
    """No secret anywhere; services are noted, not made."""
    for name in ("GEMINI", "GOOGLE", "OPENAI"):
        for what in ("API_KEY", "MODEL", "BASE_URL"):
            monkeypatch.delenv(f"{name}_{what}", raising=False)
    for name in ("kaggle_secrets", "google.colab"):
        monkeypatch.setitem(sys.modules, name, None)
    found = []
    for name in ("gemini", "openai_compatible"):
        def note(key, model, name=name, **more):
            found.append((name, key, model, more))
            return Service(name, None, 1, key)

        monkeypatch.setattr(api_client, name, note)
    return found


def test_without_a_secret_there_is_no_judge(nowhere, monkeypatch):
    assert from_secrets(ApiLimits(**QUICK)) is None
    monkeypatch.setenv("GEMINI_API_KEY", " \n")
    assert from_secrets(ApiLimits(**QUICK)) is None and nowhere == []


@pytest.mark.parametrize("key", BROKEN[:2] + BROKEN[4:], ids=ascii)
@pytest.mark.parametrize("name", ["GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"])
def test_a_broken_secret_is_named_and_not_shown(nowhere, monkeypatch, name, key):
    monkeypatch.setenv(name, "sk-\x7f456789" if "\0" in key else key)
    with pytest.raises(ValueError, match=f"{name} is empty, or holds") as caught:
        from_secrets(NAMED)
    assert "456789" not in str(caught.value) and nowhere == []


def test_a_secret_that_names_another_model_needs_its_price(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GEMINI_MODEL", "gemini-3-ultra")
    with pytest.raises(ValueError, match="no price is known for model 'gemini-3-ultra' .https.*another model, such"):
        from_secrets(ApiLimits(5.0))
    assert from_secrets(ApiLimits(5.0, {"gemini-3-ultra": (2.0, 12.0)})).name == "gemini-3-ultra"
    monkeypatch.delenv("GEMINI_MODEL")
    assert from_secrets(ApiLimits(5.0)).name == api_client.MODELS["gemini"]


NAMED = ApiLimits(1.0, {"gemini": (1, 1), "openai_compatible": (1, 1)})  # as the fixture calls its services


def test_secrets_of_the_environment(nowhere, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here/v1")
    judge = from_secrets(NAMED, mode="implicit", both_orders=True, replies_per_call=3, max_tokens=7)
    assert nowhere == [("openai_compatible", KEY, api_client.MODELS["openai"],
                        {"max_tokens": 7, "base_url": "http://here/v1"})]
    assert (judge.mode, judge.orders, judge.replies_per_call) == ("implicit", (False, True), 3)
    assert judge.service.secret == KEY
    monkeypatch.setenv("GOOGLE_API_KEY", "google")
    monkeypatch.setenv("GEMINI_MODEL", "gemini-x")
    from_secrets(NAMED)
    assert nowhere[1][:3] == ("gemini", "google", "gemini-x")


def test_secrets_of_kaggle_then_colab(nowhere, monkeypatch):
    def get(name):
        if name != "GEMINI_API_KEY":
            raise RuntimeError(f"no user secrets exist for {name}")
        return KEY

    colab = types.ModuleType("google.colab")
    colab.userdata = types.SimpleNamespace(get=get)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    from_secrets(NAMED)
    assert nowhere == [("gemini", KEY, api_client.MODELS["gemini"], {"max_tokens": 4096})]
    kaggle = types.ModuleType("kaggle_secrets")
    kaggle.UserSecretsClient = lambda: types.SimpleNamespace(get_secret={"OPENAI_API_KEY": "k"}.__getitem__)
    monkeypatch.setitem(sys.modules, "kaggle_secrets", kaggle)
    from_secrets(NAMED)
    assert nowhere[1][:2] == ("openai_compatible", "k")
    kaggle.UserSecretsClient = {}.__getitem__  # which raises, as without a token
    assert from_secrets(NAMED) is None  # Colab's module is on Kaggle too, and hangs there


@pytest.mark.parametrize(("make", "package"), [(gemini, "google-genai"), (openai_compatible, "openai")])
def test_a_missing_sdk_is_named(monkeypatch, make, package):
    real = builtins.__import__

    def without(name, *args):
        if name in ("google", "openai"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=f"{package}: pip install"):
        make(KEY, "model")


@pytest.fixture(params=["gemini", "openai"])
def sdk(request, monkeypatch):
    """(make a judge for an address, an answer of this text, the prompt in a request's body) for each real SDK."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    if request.param == "gemini":
        template, prompt, make = GEMINI, (lambda body: body["contents"][0]["parts"][0]["text"]), gemini
    else:
        template, prompt, make = OPENAI, (lambda body: body["messages"][0]["content"]), openai_compatible

    def judge(address, **limits):
        base_url = address if make is gemini else f"{address}/v1"
        return ApiJudge(make(KEY, "some-model", max_tokens=500, base_url=base_url), ApiLimits(**QUICK | limits))

    def answer(text, ended=None):
        reply = json.loads(json.dumps(template).replace('"?"', json.dumps(text)))
        if ended:
            choice = reply["candidates" if make is gemini else "choices"][0]
            choice["finishReason" if make is gemini else "finish_reason"] = ended[make is gemini]
        return reply

    return judge, answer, prompt


def test_sdk_sends_prompt_schema_and_key_and_reads_text_and_usage(sdk):
    make, answer, prompt = sdk
    with server(lambda body: (200, {}, answer(good(prompt(body))))) as (address, seen):
        judge = make(address)
        assert [result.score for result in judge.score(items("ä", "\ud800"))] == [1.0] * 2
    ((path, headers, body),) = seen
    assert KEY not in path and any(KEY in value for value in headers.values())
    sent = json.dumps(body)
    assert '"minItems": 2' in sent and '"additionalProperties": false' in sent and ": 500" in sent
    assert judge.usage == {"calls": 1, "tokens_in": 90, "tokens_out": 10} and judge.spent == pytest.approx(100e-6)


@pytest.mark.parametrize(("status", "headers", "reply", "cause", "calls"), [
    (429, {"Retry-After": "0.01"}, {"error": {"code": 429, "message": KEY, "status": "X"}}, "rate_limit", 3),
    (503, {}, b"<html>busy", "server", 3), (408, {}, {}, "timeout", 3),
    (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, "auth", 1), (404, {}, {}, "request", 1),
    (200, {}, b"\xff\x00garbage", "unparsable", 1), (200, {"Content-Type": "text/html"}, b"<html>", "unparsable", 1),
    (200, {"Content-Type": "text/html"}, b"x" * 60 + KEY.encode(), "unparsable", 1),
    (200, {}, b'{"candidates": [{"conte', "unparsable", 1)])
def test_sdk_errors_have_our_causes_and_no_retries_but_ours(sdk, status, headers, reply, cause, calls):
    with server(lambda body: (status, headers, reply)) as (address, seen):
        judge = sdk[0](address, attempts=3)
        results = judge.score(items("a"))
    assert (causes(results), len(seen)) == ([cause], calls)
    assert "sk-v" not in results[0].detail


@pytest.mark.parametrize(("status", "said"), [
    (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra inputs"}]}),
    (400, {"error": {"message": "Unsupported parameter: max_completion_tokens"}}),
    (400, {"error": {"message": "This response_format type is unavailable now"}})])
def test_an_endpoint_that_knows_an_older_set_of_parameters_is_asked_with_it(monkeypatch, status, said):
    """As Mistral's and DeepSeek's do. What it refused once is not sent again."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    refused = next(name for name in ("max_completion_tokens", "response_format") if name in json.dumps(said))

    def respond(body):
        if refused in body:
            return status, {}, said
        text = good(body["messages"][0]["content"])
        return 200, {}, json.loads(json.dumps(OPENAI).replace('"?"', json.dumps(text)))

    with server(respond) as (address, seen):
        judge = ApiJudge(openai_compatible(KEY, "some-model", max_tokens=500, base_url=f"{address}/v1"),
                         ApiLimits(**QUICK))
        results = [judge.score(items(text))[0] for text in "ab"]
    assert [result.score for result in results] == [1.0] * 2
    assert [refused in body for *_, body in seen] == [True, False, False]
    assert all(body.get("max_completion_tokens", body.get("max_tokens")) == 500 for *_, body in seen)


@pytest.mark.parametrize("claim", [-10**9, 0, "many", [300], {}, True, 1.5, 10**400, None, float("nan")], ids=ascii)
def test_sdk_numbers_of_tokens_are_not_believed(sdk, claim):
    make, answer, prompt = sdk

    def respond(body):
        reply = answer(good(prompt(body)))
        for used in (reply.get("usage"), reply.get("usageMetadata")):
            (used or {}).update(dict.fromkeys(used or {}, claim))
        return 200, {}, reply

    with server(respond) as (address, _):
        judge = make(address)
        (result,) = judge.score(items("a"))
    assert getattr(result, "cause", None) in (None, "unparsable")  # Gemini's SDK refuses the whole answer
    assert judge.spent > 500e-6 and judge.usage["tokens_in"] == 0


@pytest.mark.parametrize("reply", [
    None, [], "text", 5, {}, {"choices": None}, {"choices": []}, {"choices": {}}, {"choices": "abc"},
    {"choices": [None]}, {"choices": [[]]}, {"choices": ["text"]}, {"choices": [{}]}, {"choices": [{"message": None}]},
    {"choices": [{"message": "text"}]}, {"choices": [{"message": {}}]}, {"choices": [{"message": {"content": None}}]},
    {"choices": [{"message": {"content": 5}}]}, {"choices": [{"message": {"content": ["5"]}}]},
    {"choices": [{"message": {"content": {"text": "5"}}}]}, {"choices": [{"message": {"content": "5"}}], "usage": []},
    {"choices": [{"message": {"content": "5"}}], "usage": "x"},
    {"candidates": None}, {"candidates": [None]}, {"candidates": [{}]}, {"candidates": [{"content": None}]},
    {"candidates": [{"content": {"parts": None}}]}, {"candidates": [{"content": {"parts": [{"text": None}]}}]},
    {"candidates": [{"content": {"parts": [{"text": ["5"]}]}}]}, {"candidates": [{"content": "5"}]},
    {"promptFeedback": {"blockReason": "SAFETY"}}, {"promptFeedback": 5}, {"usageMetadata": []}], ids=ascii)
def test_sdk_answers_of_any_shape_are_typed_failures(sdk, reply):
    with server(lambda body: (200, {}, reply)) as (address, _):
        judge = sdk[0](address, attempts=1)
        assert causes(judge.score(items("a")))[0] in {"unparsable", "blocked", "backend"} and judge.spent > 0


def test_sdk_without_a_server_is_a_connection_failure(sdk):
    with server(None) as (address, _):
        pass
    assert causes(sdk[0](address, attempts=2).score(items("a"))) == ["connection"]


@pytest.mark.parametrize(("text", "ended", "cause"), [
    ("", ("content_filter", "SAFETY"), "blocked"), ('{"number": 1', ("length", "MAX_TOKENS"), "too_long")])
def test_sdk_answers_that_are_none(sdk, text, ended, cause):
    make, answer, _ = sdk
    with server(lambda body: (200, {}, answer(text, ended))) as (address, seen):
        assert causes(make(address).score(items("a"))) == [cause] and len(seen) == 1


def test_logs_are_written_without_the_key(caplog):
    loggers = [logging.getLogger(name) for name in ("sdk_of_ours", "sdk_of_ours.http", "sdk_of_ours2.http", "other")]
    for _ in range(3):
        hide_in_logs(("sdk_of_ours",), KEY)
    with caplog.at_level(logging.DEBUG):
        for logger in loggers:
            logger.info("status %s, %d", KEY, 200)
            try:
                raise ValueError(KEY)
            except ValueError:
                logger.exception("failed")
    ours = [logging.Formatter().format(record) for record in caplog.records if record.name != "other"]
    assert len(ours) == 6 and ours[0] == "status [key], 200" and not any(KEY in text for text in ours)
    assert all("ValueError: [key]" in text for text in ours[1::2])
    assert [len(logger.filters) for logger in loggers] == [1, 1, 1, 0] and KEY not in repr(loggers[0].filters)
