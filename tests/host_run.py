"""One of two processes, for `test_hosts`: `python tests/host_run.py PORT PROCESS FOLDER` prints what came to pass here.

Nothing is trained: it is about what the processes do outside of their arrays.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a script's own folder comes first, and has a folder `tools`

from reasonkit.config import PROFILES
from reasonkit.models import distributed
from reasonkit.run import open_run
from reasonkit.session.files import write_atomic
from reasonkit.session.interrupts import clean_exit
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from tools import train_stage

BATCHES = 5


class Late:
    """A clock that runs out in one process: the batch at which it does, there."""

    def __init__(self, at: float):
        self.now, self.left = 0.0, at

    def __call__(self) -> float:
        return self.now

    def batch(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.now = 7200.0


def passed(clock: Late, on_batch=lambda number: None) -> tuple[int, str]:
    """How many batches the guard let through, and why it ended."""
    budget, number = TimeBudget(1, 0, clock=clock, agree=distributed.agree_on_end), 0
    with clean_exit(budget.end):
        for number in budget.guard(iter(range(1, BATCHES + 1)), "sft"):
            clock.batch()
            on_batch(number)
    return number, budget.stop_reason("sft")


def main() -> None:
    port, process, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    train_stage.join(PROFILES["smoke"], f"localhost:{port}", 2, process)
    run = open_run("smoke", "g_rar", 0, folder / "shared")
    seen = {"first": distributed.is_main_process(), "agreed": distributed.broadcast_from_main(process + 0.5)}
    signals = []

    def end(number: int) -> None:
        if number == 2 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    @distributed.on_main_process
    def once() -> None:
        (folder / f"written by {process}").touch()

    once()
    seen["written"] = sorted(path.name for path in folder.glob("written*"))
    seen["clock of the first"] = passed(Late(3 if process == 0 else math.inf))
    seen["clock of the other"] = passed(Late(3 if process == 1 else math.inf))
    signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    seen["signal"] = passed(Late(math.inf), end)
    seen["came again"] = signals
    seen["ledger"] = run.budget.ledger is not None
    run.log("sft").write("who", process=process)
    distributed.barrier("log")
    seen["log"] = [row["process"] for row in RunLog(run.stage("sft") / "log.jsonl").read("who")]
    train_stage.check_shared(run)
    write_atomic(folder / str(process) / "shared_by_hosts", "0.5")  # of another run
    for name, work in (("apart", lambda: train_stage.check_shared(replace(run, folder=folder / str(process)))),
                       ("other seed", lambda: train_stage.check_shared(replace(run, seed=process))),
                       ("GRPO", lambda: distributed.check_one_process("GRPO"))):
        try:
            work()
            seen[name] = None
        except (ValueError, RuntimeError) as error:
            seen[name] = str(error)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
