"""Several processes as one: who writes the shared files, and the decisions that all must take alike.

Each runs the same program over the same data, on a mesh over the devices of all. One that trains a step more than the
others waits for them for ever. One process waits for nobody, and no function here makes JAX look for devices.
"""

from __future__ import annotations

import functools
import itertools
import operator
import signal
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from reasonkit.session.interrupts import STOPS


def is_multiprocess() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main_process() -> bool:
    """Whether this process writes the files that all share."""
    return not is_multiprocess() or jax.process_index() == 0


def check_one_process(what: str) -> None:
    """Raises RuntimeError where there are several processes, for what would fail there or be done by each of them."""
    if is_multiprocess():
        raise RuntimeError(f"{what} runs in one process, and this is one of {jax.process_count()}: run it on one host. "
                           "SFT, SimPO and distillation run on several")


def barrier(where: str) -> None:
    if is_multiprocess():
        multihost_utils.sync_global_devices(where)


def on_main_process(work: Callable[..., None]) -> Callable[..., None]:
    """A decorator for work on shared files. The first process does it, and all wait until it is done."""

    @functools.wraps(work)
    def once(*args, **kwargs) -> None:
        if is_main_process():
            work(*args, **kwargs)
        barrier(work.__name__)

    return once


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """All of an array, in every process. JAX by itself refuses rows that are on another process's devices."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def halve_hosts(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """The first half of each process's devices, then the second halves, because each of two models needs devices in
    every process. Raises ValueError if several processes do not have an even number each."""
    process = operator.attrgetter("process_index")
    hosts = [[*group] for _, group in itertools.groupby(sorted(devices, key=process), process)]
    if len(hosts) > 1 and any(len(host) % 2 for host in hosts):
        raise ValueError(f"the processes have {[*map(len, hosts)]} devices, and each of the two models needs half of "
                         "them: give every process an even number")
    halves = [host[:len(host) // 2] for host in hosts] + [host[len(host) // 2:] for host in hosts]
    return [*itertools.chain(*halves)]


def broadcast_from_main(value: float) -> float:
    """The first process's value, as float32 where there are several."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(value))) if is_multiprocess() else value


def agree_on_end(why: str | None) -> str | None:
    """Why a stage ends before its next batch, for `TimeBudget`: a signal that any process received, else the first
    process's reason. The signal is raised in the other processes too, so all end alike."""
    if not is_multiprocess():
        return why
    mine = next((number for number in STOPS if number.name == why), 0)
    heard_P, ends_P = multihost_utils.process_allgather(np.array([mine, bool(why)], np.int32)).T
    if not heard_P.any():
        return (why or "time") if ends_P[0] else None
    heard = signal.Signals(heard_P.max())
    if not mine:
        signal.raise_signal(heard)
    return heard.name
