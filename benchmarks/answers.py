"""The answer grader against its peers on the same golden cases: `python benchmarks/answers.py`.

Needs `pip install 'reasonkit[verify,chem]' 'math-verify[antlr4_13_2]' trl verifiers`. The table names a peer that is
missing. Times are the median over the golden cases, warm, and over PLAIN other cases for a plain number. The
expressions are graded once more outside the main thread, where a reward may run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import multiprocessing
import random
import re
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from checkout import ROOT

LIMIT_SECONDS = 6.0  # above the 5 seconds that math-verify gives itself
START_SECONDS = 120.0
PLAIN = 300
Check = Callable[[str, str, str], bool | None]


def load_ours() -> Check:
    from reasonkit.text.answers import check

    return lambda answer, gold, kind: check(answer, gold, kind).correct


def load_math_verify() -> Check:
    from math_verify import parse, verify

    return lambda answer, gold, kind: verify(parse(gold), parse(answer))


def load_trl() -> Check:
    from trl.rewards import accuracy_reward

    def check(answer: str, gold: str, kind: str) -> bool | None:
        (reward,) = accuracy_reward([[{"role": "assistant", "content": boxed(answer)}]], [gold])
        return reward and reward == 1.0

    return check


def load_open_r1() -> Check:
    """Gold by the first match; the answer as anchored LaTeX, boxes first; no signal where the gold is not read."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    units = NormalizationConfig(basic_latex=True, units=True, malformed_operators=False, nits=False, boxed="all",
                                equations=True)
    config = LatexExtractionConfig(normalization_config=units, boxed_match_priority=0, try_extract_without_anchor=False)

    def check(answer: str, gold: str, kind: str) -> bool | None:
        expected = parse(gold, extraction_mode="first_match")
        found = parse(boxed(answer), extraction_config=[config], extraction_mode="first_match")
        return verify(expected, found) if expected else None

    return check


def load_verifiers() -> Check:
    from verifiers.v1.utils.score import verify_boxed_math_answer

    return lambda answer, gold, kind: verify_boxed_math_answer(boxed(answer), gold) == 1.0


def load_stock() -> Check:
    """The text between the tags, equal after strip; or the first run of digits and points in it, as a float."""
    number = re.compile(r"[\d.]+")

    def check(answer: str, gold: str, kind: str) -> bool:
        if answer.strip() == gold.strip():
            return True
        first = number.search(answer)
        try:
            return first is not None and float(first[0]) == float(gold)
        except ValueError:
            return False

    return check


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


PEERS = {  # name: how it is loaded, and the distribution whose version is printed
    "reasonkit": (load_ours, None),
    "math-verify": (load_math_verify, "math-verify"),
    "TRL accuracy_reward": (load_trl, "trl"),
    "open-r1 accuracy_reward (rule)": (load_open_r1, None),
    "verifiers": (load_verifiers, "verifiers"),
    "Tunix demo's rule": (load_stock, None),
}


def serve(name: str, connection) -> None:
    """Replies to (answer, gold, kind) with (verdict or None, seconds, error or None)."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        check = PEERS[name][0]()
    except ImportError as error:
        connection.send(str(error).splitlines()[0])
        return
    connection.send(None)
    pool = ThreadPoolExecutor(1)
    while True:
        threaded, *case = connection.recv()
        start, verdict, error = time.perf_counter(), None, None
        try:
            verdict = pool.submit(check, *case).result() if threaded else check(*case)
        except Exception as caught:
            error = type(caught).__name__
        connection.send((verdict, time.perf_counter() - start, error))


class Peer:
    """A peer in a killable process. `missing` says why it could not be loaded, None if it could."""

    def __init__(self, name: str) -> None:
        self.name, self._context = name, multiprocessing.get_context("spawn")
        self.missing = self._start()

    def _start(self) -> str | None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=serve, args=[self.name, theirs])
        self._process.start()
        theirs.close()
        return self._connection.recv() if self._connection.poll(START_SECONDS) else "not loaded in time"

    def ask(self, *case: str, threaded: bool = False) -> tuple[bool | None, float, str | None]:
        self._connection.send((threaded, *case))
        if not self._connection.poll(LIMIT_SECONDS):
            self._stop()
            self._start()
            return None, LIMIT_SECONDS, "hang"
        try:
            return self._connection.recv()
        except EOFError:
            self._start()
            return None, 0.0, "died"

    def _stop(self) -> None:
        self._process.kill()
        self._process.join()

    close = _stop


def measure(name: str, rows: list[dict], plain: list[tuple[str, str, str]]) -> dict:
    """The counts and times of one peer; {"missing": why} if it is not installed."""
    peer = Peer(name)
    if peer.missing:
        peer.close()
        return {"missing": peer.missing}
    agree, errors, taken, refused, times = Counter(), Counter(), 0, 0, []
    for kind in {row["kind"] for row in rows}:  # what starts once is not timed
        first = next(row for row in rows if row["kind"] == kind)
        peer.ask(first["answer"] or "", first["gold"], kind)
    for row in rows:
        verdict, seconds, error = peer.ask(row["answer"] or "", row["gold"], row["kind"])
        agree[row["kind"]] += verdict is not None and bool(verdict) == row["expected"]
        taken += bool(verdict) and not row["expected"]
        refused += not verdict and row["expected"]
        times += [seconds] if error is None else []
        errors[error if error in (None, "hang") else "crash"] += 1
    plain_times = [peer.ask(*case)[1] for case in plain]
    outside = Counter("hang" if error == "hang" else "wrong" if verdict != row["expected"] else "right"
                      for row in rows if row["kind"] == "expression"
                      for verdict, _, error in [peer.ask(row["answer"] or "", row["gold"], row["kind"], threaded=True)])
    peer.close()
    return {"agree": agree, "crash": errors["crash"], "hang": errors["hang"], "taken": taken, "refused": refused,
            "outside": outside, "us": 1e6 * statistics.median(times), "plain_us": 1e6 * statistics.median(plain_times)}


def table(rows: list[dict], found: dict[str, dict]) -> str:
    totals = Counter(row["kind"] for row in rows)
    ran = {name: result for name, result in found.items() if "missing" not in result}
    lines = ["| kind | cases | " + " | ".join(ran) + " |", "|---" * (len(ran) + 2) + "|"]
    for kind, total in totals.items():
        lines.append(f"| {kind} | {total} | " + " | ".join(str(r["agree"][kind]) for r in ran.values()) + " |")
    for label, cell in (("all", lambda r: f"{r['agree'].total()} ({100 * r['agree'].total() / len(rows):.1f} %)"),
                        ("wrong answers accepted", lambda r: r["taken"]),
                        ("right answers rejected", lambda r: r["refused"]),
                        ("expression, in a thread", lambda r: r["outside"]["right"]),
                        ("hangs in a thread", lambda r: r["outside"]["hang"]),
                        ("crashes", lambda r: r["crash"]), ("hangs", lambda r: r["hang"]),
                        ("µs per check", lambda r: f"{r['us']:,.1f}"),
                        ("µs a plain number", lambda r: f"{r['plain_us']:,.1f}")):
        lines.append(f"| {label} | {len(rows) if label == 'all' else ''} | "
                     + " | ".join(str(cell(result)) for result in ran.values()) + " |")
    ours = ran["reasonkit"]
    best = {kind: max((r["agree"][kind], name) for name, r in ran.items() if name != "reasonkit") for kind in totals}
    lines += [""] + [f"not installed: {name} ({r['missing']})" for name, r in found.items() if "missing" in r]
    lines += [f"plain number: {r['plain_us'] / ours['plain_us']:,.1f} times as long in {name}"
              for name, r in ran.items() if name != "reasonkit"]
    lines += [f"behind on {kind}: {ours['agree'][kind]} against {count} of {name}"
              for kind, (count, name) in best.items() if ours["agree"][kind] < count]
    versions = [f"{package} {importlib.metadata.version(package)}" for name, (_, package) in PEERS.items()
                if package and name in ran]
    return "\n".join([*lines, f"versions: {', '.join(versions)}; Python {sys.version.split()[0]}"])


def main() -> None:
    golden = (ROOT / "tests" / "golden" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows, rng = [json.loads(line) for line in golden], random.Random(0)
    plain = [(str(value + rng.randint(0, 1)), str(value), "number") for value in rng.sample(range(10**6), PLAIN)]
    print(table(rows, {name: measure(name, rows, plain) for name in PEERS}))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
