#!/usr/bin/env bash
# Closing Tunix's metrics logger removes the jax.monitoring listeners of everybody else, and leaves its own.
#
# Guess:     `MetricsLogger.close`, which a trainer calls at its end, closes the logger's backends. Listeners that others
#            have registered with jax.monitoring, such as a count of compilations, go on.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, Python 3.11, CPU.
# Behaviour: it calls `jax.monitoring.clear_event_listeners()`. From then on a listener of one's own hears nothing, in
#            later stages of the same process too, and removing it raises an AssertionError without a message. Tunix's
#            own listener is for scalars, and that JAX function leaves scalar listeners where they are: it assigns the
#            empty list to a local name. So a closed logger's backends still receive every metric.
# Output:    compilations heard before: True, after: False
#            removing the listener: AssertionError
#            the closed logger's backend received: ['jax/train/loss']
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from tunix.sft.metrics_logger import MetricsLogger, MetricsLoggerOptions

heard = []


def listener(event, seconds, **others):
    heard.append(event)


def compiles(size):
    """Whether the listener hears of a program that is compiled now."""
    heard.clear()
    jax.jit(lambda x: x * size)(jnp.zeros(size)).block_until_ready()
    return any("compile" in event for event in heard)


class Backend:
    """A logging backend as Tunix's protocol has it."""

    def __init__(self):
        self.received = []

    def log_scalar(self, event, value, **others):
        self.received.append(event)

    def close(self):
        pass


backend = Backend()
logger = MetricsLogger(MetricsLoggerOptions(log_dir="logs", backend_kwargs={"custom_backend": [lambda: backend]}))
jax.monitoring.register_event_duration_secs_listener(listener)
before = compiles(3)
logger.close()
after = compiles(4)
print(f"compilations heard before: {before}, after: {after}")
try:
    jax.monitoring.unregister_event_duration_listener(listener)
    raised = "nothing"
except AssertionError:
    raised = "AssertionError"
print("removing the listener:", raised)
backend.received.clear()
jax.monitoring.record_scalar("jax/train/loss", 1.0)
print("the closed logger's backend received:", backend.received)
assert before and not after and raised == "AssertionError" and backend.received
PYTHON
