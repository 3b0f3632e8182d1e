"""API judges: what is grouped, waited for, repeated, paid and refused, over plain functions, then over real SDKs."""

import asyncio
import builtins
import json
import re
import sys
import threading
import time
import types
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reasonkit import services
from reasonkit.judge import JudgeFailure, JudgeItem
from reasonkit.judge_api import ApiJudge, Limits, from_secrets
from reasonkit.rubrics import Criterion
from reasonkit.services import Answer, CallError, Service, call_error, gemini, openai_compatible

STEPS = Criterion("Steps", "Every step follows.", 1.0)
CLEAR = Criterion("Clear", "A reader can follow it.", 0.3)
KEY = "sk-very-secret-0123456789"
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

    return ApiJudge(Service("fake", call, max_tokens, secret), Limits(**limits), **form), asked


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


def test_replies_per_call_and_both_orders():
    judge, asked = made(None, replies_per_call=2, both_orders=True, mode="implicit")
    assert [result.score for result in judge.score(items("a", "b", "c"))] == [4 / 9] * 3
    assert sorted("".join(re.findall(r"^> (.)$", prompt, re.MULTILINE)) for prompt in asked) == ["qab", "qba", "qc"]


def test_answers_belong_to_their_items_whatever_their_order():
    async def call(prompt, schema):
        n = int(re.search(r"Reply 1:\n> (\d)", prompt)[1])
        await asyncio.sleep(0.02 * (5 - n))
        return Answer(good(prompt, rating=n), 1, 1)

    judge = ApiJudge(Service("fake", call, 10), Limits(**QUICK))
    batch = [item for n in (3, 1, 5, 2) for item in items(str(n), question=f"is {n} good?")]
    assert [result.score for result in judge.score(batch)] == [0.5, 0.0, 1.0, 0.25]


@pytest.mark.parametrize(("step", "cause", "calls"), [
    (Status(429), "rate_limit", 5), (Status(500), "server", 5), (Status(503), "server", 5), (Status(408), "timeout", 5),
    (ConnectionResetError(), "connection", 5), (TimeoutError(), "timeout", 5), (Status(400), "request", 1),
    (Status(404), "request", 1), (Status(401), "auth", 1), (Status(403), "auth", 1),
    (Status(400, "reason: API_KEY_INVALID"), "auth", 1), (RuntimeError("?"), "backend", 1),
    (json.JSONDecodeError("Expecting value", "<html>", 0), "unparsable", 1), ("I'd say 5.", "unparsable", 1),
    (CallError("blocked", "no text"), "blocked", 1),
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
        judge = ApiJudge(Service("fake", call, 10), Limits(**QUICK, batch_seconds=0.2, concurrency=2))
        started = time.perf_counter()
        assert causes(judge.score(apart(5))) == ["timeout"] * 5
        assert time.perf_counter() - started < 2.5


def test_what_came_in_time_counts():
    async def call(prompt, schema):
        await asyncio.sleep(0 if "> 0" in prompt else 60)
        return Answer(good(prompt), 1, 1)

    judge = ApiJudge(Service("fake", call, 10), Limits(**QUICK, batch_seconds=0.5))
    assert causes(judge.score(apart(3))) == [None, "timeout", "timeout"]


def test_a_service_that_blocks_the_loop_cannot_hold_a_batch():
    released = threading.Event()

    async def call(prompt, schema):
        released.wait(30)

    judge = ApiJudge(Service("fake", call, 10), Limits(**QUICK, batch_seconds=0.1))
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

    judge = ApiJudge(Service("fake", call, 10), Limits(**QUICK, concurrency=3))
    threads = [threading.Thread(target=judge.score, args=[apart(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3 and judge.usage["calls"] == 40


def test_calls_a_minute_are_spread_evenly():
    judge, asked = made(None, limits=QUICK | dict(calls_per_minute=600))
    started = time.perf_counter()
    judge.score(apart(3))
    judge.score(apart(3))
    assert 0.5 <= time.perf_counter() - started < 3 and len(asked) == 6


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


def test_a_denied_key_ends_the_batch_but_not_the_judge():
    judge, asked = made(Status(401), None, limits=QUICK | dict(concurrency=1))
    assert causes(judge.score(apart(6))) == ["auth"] * 6 and len(asked) == 1
    assert causes(judge.score(apart(2))) == [None] * 2


@pytest.mark.parametrize(("dollars", "cause", "calls"), [(1.0, "auth", 1), (0.0, "spending_limit", 0)])
def test_what_is_refused_waits_for_no_turn(dollars, cause, calls):
    judge, asked = made(Status(401), limits=QUICK | dict(dollars=dollars, concurrency=1, calls_per_minute=30))
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


@pytest.mark.parametrize("wrong", [{"dollars": -1}, {"dollars_in": float("nan")}, {"concurrency": 0}, {"attempts": 0},
                                   {"calls_per_minute": 0}, {"call_seconds": 0}, {"batch_seconds": -1}])
def test_limits_that_make_no_sense_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Limits(**QUICK | wrong)


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

        monkeypatch.setattr(services, name, note)
    return found


def test_without_a_secret_there_is_no_judge(nowhere, monkeypatch):
    assert from_secrets(Limits(**QUICK)) is None
    monkeypatch.setenv("GEMINI_API_KEY", " \n")
    assert from_secrets(Limits(**QUICK)) is None and nowhere == []


def test_secrets_of_the_environment(nowhere, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here/v1")
    judge = from_secrets(Limits(**QUICK), mode="implicit", max_tokens=7)
    assert nowhere == [("openai_compatible", KEY, services.MODELS["openai"],
                        {"max_tokens": 7, "base_url": "http://here/v1"})]
    assert judge.form[0] == "implicit" and judge.service.secret == KEY
    monkeypatch.setenv("GOOGLE_API_KEY", "google")
    monkeypatch.setenv("GEMINI_MODEL", "gemini-x")
    from_secrets(Limits(**QUICK))
    assert nowhere[1][:3] == ("gemini", "google", "gemini-x")


def test_secrets_of_kaggle_then_colab(nowhere, monkeypatch):
    def get(name):
        if name != "GEMINI_API_KEY":
            raise RuntimeError(f"no user secrets exist for {name}")
        return KEY

    colab = types.ModuleType("google.colab")
    colab.userdata = types.SimpleNamespace(get=get)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    from_secrets(Limits(**QUICK))
    assert nowhere == [("gemini", KEY, services.MODELS["gemini"], {"max_tokens": 4096})]
    kaggle = types.ModuleType("kaggle_secrets")
    kaggle.UserSecretsClient = lambda: types.SimpleNamespace(get_secret={"OPENAI_API_KEY": "k"}.__getitem__)
    monkeypatch.setitem(sys.modules, "kaggle_secrets", kaggle)
    from_secrets(Limits(**QUICK))
    assert nowhere[1][:2] == ("openai_compatible", "k")
    kaggle.UserSecretsClient = {}.__getitem__  # which raises, as without a token
    assert from_secrets(Limits(**QUICK)) is None  # Colab's module is on Kaggle too, and hangs there


@pytest.mark.parametrize(("make", "package"), [(gemini, "google-genai"), (openai_compatible, "openai")])
def test_a_missing_sdk_is_named(monkeypatch, make, package):
    real = builtins.__import__

    def without(name, *args):
        if name in ("google", "openai"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf'{package}: pip install "reasonkit\[judge\]"'):
        make(KEY, "model")


GEMINI = {"candidates": [{"content": {"parts": [{"text": "?"}], "role": "model"}, "finishReason": "STOP"}],
          "usageMetadata": {"promptTokenCount": 90, "candidatesTokenCount": 7, "thoughtsTokenCount": 3}}
OPENAI = {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
          "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "?"}}],
          "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}}


@contextmanager
def server(respond):
    """A loopback server; `respond(body)` gives (status, headers, object or bytes). Yields its address and requests."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, dict(self.headers), body))
            status, headers, reply = respond(body)
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json", "Connection": "close"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", seen
        http.shutdown()


@pytest.fixture(params=["gemini", "openai"])
def sdk(request, monkeypatch):
    """(make a judge for an address, an answer of this text, the prompt in a request's body) for each real SDK."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "gemini":
        template, prompt, make = GEMINI, (lambda body: body["contents"][0]["parts"][0]["text"]), gemini
    else:
        template, prompt, make = OPENAI, (lambda body: body["messages"][0]["content"]), openai_compatible

    def judge(address, **limits):
        base_url = address if make is gemini else f"{address}/v1"
        return ApiJudge(make(KEY, "some-model", max_tokens=500, base_url=base_url), Limits(**QUICK | limits))

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
