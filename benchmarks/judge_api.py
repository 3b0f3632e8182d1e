"""An API judge against a service that misbehaves: `python benchmarks/judge_api.py` (needs `reasonkit[judge]`).

A local server speaks OpenAI's and Gemini's protocols to the vendors' SDKs. Each misbehaviour and SDK gives one row.
Exits with 1 if an item has no result, a score that the server did not send or an unexpected cause of failure, if a
batch is late, if the key shows up anywhere, or if the money spent falls or passes its limit.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import re
import secrets
import sys
import threading
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import checkout  # noqa: F401

from reasonkit.judge.judge import JudgeFailure, JudgeItem, JudgeVerdict
from reasonkit.judge.rubric import WEIGHTS, Criterion
from recipes.judges.api_calls import GRACE, ApiLimits
from recipes.judges.api_client import gemini, openai_compatible
from recipes.judges.api_judge import ApiJudge

KEY = f"key-{secrets.token_hex(16)}"
LIMITS = ApiLimits(dollars=1.0, prices={"a-model": (0.3, 2.5)}, concurrency=8, attempts=3, backoff_seconds=0.2,
                call_seconds=2.0, batch_seconds=8.0)
BOUND = LIMITS.batch_seconds + 3 * GRACE
RUBRIC = (Criterion("Steps", "Every step follows from the one before.", WEIGHTS["essential"]),)
GROUPS, REPLIES = 8, 3  # questions, a call each, and replies to each
LATE = 30.0

# What the server does, and the causes that items may end in; None is a verdict.
BEHAVIOURS = {
    "good": {None},
    "429 + Retry-After 1 s, once": {None},
    "429, always": {"rate_limit"},
    "500, once": {None},
    "500, always": {"server"},
    "401": {"auth"},
    "closes the connection": {"connection"},
    "half a body": {"connection"},
    "bytes that are no JSON": {"unparsable"},
    "prose around no verdict": {"unparsable"},
    "half a verdict": {"unparsable"},
    "another call's verdict": {"unparsable"},
    "a rating out of range": {"bad_rating"},
    f"answers after {LATE:.0f} s": {"timeout"},
    "the key in headers and status line": {None},
    "one reply of each call refused": {None, "blocked"},
    "content that is a list": {"unparsable"},
    "no choices": {"unparsable", "blocked"},
}
# Numbers of tokens in and out, for a good answer; Gemini's SDK refuses what is no whole number, with the answer.
CLAIMS = {"-10^9": (-10**9, -10**9), "0": (0, 0), "NaN": (float("nan"), float("nan")), "true": (True, True),
          "text": ("300", "many"), "lists": ([300], [20]), "10^400": (10**400, 10**400), "1.5": (1.5, 2.5),
          "null": (None, None), "an object": ({}, {})}
BEHAVIOURS |= {f"claims {name} tokens": {None, "unparsable"} for name in CLAIMS}
MIXED = "any of these, by chance"


class Handler(BaseHTTPRequestHandler):
    """One request; `server` has `behaviour`, `sent` (ratings by reply), `tries` (by question), `rng` and `over`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_gemini = ":generateContent" in self.path
        prompt = body["contents"][0]["parts"][0]["text"] if is_gemini else body["messages"][0]["content"]
        behaviour = self.server.behaviour
        if behaviour == MIXED:
            behaviour = self.server.rng.choice(list(BEHAVIOURS))
        try:
            self.behave(behaviour, prompt, is_gemini)
        except OSError:  # the client went away
            self.close_connection = True

    def behave(self, behaviour: str, prompt: str, is_gemini: bool) -> None:
        question = re.search(r"^> (question \d+)$", prompt, re.MULTILINE)[1]
        self.server.tries[question] += 1
        first = self.server.tries[question] == 1
        error = {"error": {"message": f"no, {KEY}, {self.headers.get('authorization')}", "status": "X"}}
        if behaviour.startswith("429") and (first or "always" in behaviour):
            return self.reply(429, error, {"Retry-After": "1"} if "Retry-After" in behaviour else {})
        if behaviour.startswith("500") and (first or "always" in behaviour):
            return self.reply(500, error)
        if behaviour == "401":
            return self.reply(401, error)
        if behaviour == "closes the connection":
            self.close_connection = True
            return None
        if behaviour == "bytes that are no JSON":
            return self.reply(200, b"\xff\x00<html>" + KEY.encode())
        if behaviour == "one reply of each call refused" and "> reply 1 to" in prompt:
            return self.reply(200, self.answer(is_gemini, "", 300, 20, refused=True))
        if behaviour == "no choices":
            return self.reply(200, {"candidates": None, "choices": None, "told": KEY})
        if behaviour.startswith("answers after"):
            self.server.over.wait(LATE)
        number = int(re.search(r'^\{"number": (\d+)', prompt, re.MULTILINE)[1])
        replies = re.findall(r"^> (reply \d+ .*)$", prompt, re.MULTILINE)
        ratings = [self.server.rng.randint(1, 5) for _ in replies]
        text = {
            "prose around no verdict": f"All are fine {{I think}}, {KEY}: 5, 5, 5.",
            "another call's verdict": self.verdict(number + 1, ratings),
            "a rating out of range": self.verdict(number, [6 for _ in replies]),
            "half a verdict": self.verdict(number, ratings)[:-9],
        }.get(behaviour, self.verdict(number, ratings))
        if text == self.verdict(number, ratings) and behaviour != "half a body" and "after" not in behaviour.split():
            self.server.sent.update(zip(replies, ratings, strict=True))
        content = [text] if behaviour == "content that is a list" else text
        claim = CLAIMS.get(behaviour.removeprefix("claims ").removesuffix(" tokens"), (300, 20))
        headers = {"X-Told": KEY, "Retry-After": KEY} if behaviour.startswith("the key") else {}
        return self.reply(200, self.answer(is_gemini, content, *claim), headers, half=behaviour == "half a body")

    @staticmethod
    def answer(is_gemini: bool, content: object, tokens_in: object, tokens_out: object, refused: bool = False) -> dict:
        if is_gemini:
            candidate = {"content": {"role": "model", "parts": [{"text": content}] if content else []},
                         "finishReason": "SAFETY" if refused else "STOP"}
            return {"candidates": [candidate],
                    "usageMetadata": {"promptTokenCount": tokens_in, "candidatesTokenCount": tokens_out}}
        choice = {"index": 0, "finish_reason": "content_filter" if refused else "stop",
                  "message": {"role": "assistant", "content": content}}
        return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": 320}}

    @staticmethod
    def verdict(number: int, ratings: list[int]) -> str:
        return json.dumps({"number": number, **{f"reply_{n}": [rating] for n, rating in enumerate(ratings, 1)}})

    def reply(self, status: int, body: object, headers: dict[str, str] | None = None, half: bool = False) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status, KEY if "X-Told" in (headers or {}) else None)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:len(data) // 2] if half else data)
        self.close_connection = half

    def log_message(self, *args: object) -> None:
        """What comes in is not shown: the table is."""


def measure(
    server: ThreadingHTTPServer, judge: ApiJudge, name: str, behaviour: str,
) -> tuple[str, list[str], list[str]]:
    """One batch: the table's cells, what is wrong with it, and the details of its failures."""
    server.behaviour, server.sent, server.tries = behaviour, {}, Counter()
    items = [JudgeItem(f"question {q}", f"reply {n} to question {q}", RUBRIC)
             for q in range(GROUPS) for n in range(REPLIES)]
    began, before = time.perf_counter(), judge.spent
    results = judge.score(items)
    seconds = time.perf_counter() - began
    failures = Counter(result.cause for result in results if isinstance(result, JudgeFailure))
    verdicts = [(item, result) for item, result in zip(items, results, strict=True) if isinstance(result, JudgeVerdict)]
    allowed = set.union(*BEHAVIOURS.values()) if behaviour == MIXED else BEHAVIOURS[behaviour]
    wrong = []
    if len(verdicts) + failures.total() != len(items):
        wrong.append("a result that is neither verdict nor failure")
    if unearned := [item for item, result in verdicts
                    if item.reply not in server.sent or result.score != (server.sent[item.reply] - 1) / 4]:
        wrong.append(f"{len(unearned)} scores that were not sent")
    if unexpected := {getattr(result, "cause", None) for result in results} - allowed:
        wrong.append(f"unexpected ends: {unexpected}")
    if not before <= judge.spent <= LIMITS.dollars:
        wrong.append(f"{judge.spent} dollars are spent, after {before}")
    if seconds > BOUND:
        wrong.append(f"{seconds:.1f} s, past the bound")
    causes = ", ".join(f"{cause} {count}" for cause, count in sorted(failures.items())) or "–"
    row = f"{name} | {behaviour} | {len(items)} | {len(verdicts)} | {causes} | {seconds:.1f}"
    return row, wrong, [result.detail for result in results if isinstance(result, JudgeFailure)]


def main() -> int:
    logs = io.StringIO()
    handler = logging.StreamHandler(logs)
    logging.basicConfig(level=logging.DEBUG, handlers=[handler], force=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.rng, server.over = random.Random(0), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    made = {"gemini": gemini(KEY, "a-model", max_tokens=500, base_url=address),
            "openai": openai_compatible(KEY, "a-model", max_tokens=500, base_url=f"{address}/v1")}
    for name in logging.root.manager.loggerDict:  # the SDKs', whatever level they were given
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).propagate = True

    print(f"Bound of every batch: {BOUND:.0f} s ({LIMITS.attempts} attempts of {LIMITS.call_seconds:g} s, "
          f"{LIMITS.batch_seconds:g} s a batch). {GROUPS} calls of {REPLIES} replies each.\n")
    print("| service | behaviour | items | verdicts | failures by cause | seconds |\n|---|---|---|---|---|---|")
    problems, output, details, began = [], io.StringIO(), [], time.perf_counter()
    for name, service in made.items():
        judge = ApiJudge(service, LIMITS)
        for behaviour in [*BEHAVIOURS, MIXED]:
            with redirect_stdout(output), redirect_stderr(output):
                row, wrong, more = measure(server, judge, name, behaviour)
            print(f"| {row} |", flush=True)
            problems += [f"{name}, {behaviour}: {problem}" for problem in wrong]
            details += more
    server.over.set()
    server.shutdown()
    seconds, rows = time.perf_counter() - began, len(made) * (len(BEHAVIOURS) + 1)
    if seconds > rows * BOUND:
        problems.append(f"{seconds:.0f} s in all")
    heard = {"logs": logs.getvalue(), "output": output.getvalue(), "details": "\n".join(details)}
    problems += [f"the key is in the {where}" for where, text in heard.items() if KEY in text]
    problems += [f"no {where} to look for the key in" for where in ("logs", "details") if not heard[where]]
    print(f"\n{seconds:.0f} s in all; the key looked for in "
          + ", ".join(f"{len(text)} characters of {where}" for where, text in heard.items()))
    print("\n".join(f"FAILED: {problem}" for problem in problems) or "All checks passed.")
    return 1 if problems else 0


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    sys.exit(main())
