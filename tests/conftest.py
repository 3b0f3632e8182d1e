"""Every test runs on eight virtual CPU devices, which must be said before jax is imported."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import settings

os.environ["JAX_PLATFORMS"] = "cpu"
# Tiny programs compile for longer than they run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The older of XLA's two ways to emit fused loops compiles a quarter faster.
FLAGS = "--xla_force_host_platform_device_count=8", "--xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()

# A busy machine is no defect: no per-example deadline.
settings.register_profile("reasonkit", deadline=None)
settings.load_profile("reasonkit")


# They take minutes each. Begun first, they do not keep one process busy when the others have nothing left.
LONGEST = ("test_notebooks", "test_faults", "test_distributed", "test_simpo", "test_logprobs", "test_distill",
           "test_decode", "test_overlap", "test_begin", "test_lora", "test_grpo", "test_layouts", "test_compiled",
           "test_forecast", "test_float32", "test_submission_check", "test_sft", "test_interrupts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, in the order of LONGEST."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def nothing_old_is_collected():
    """A full collection takes seconds once a process has compiled much, and `open_run` asks for one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory):
    """The folder in which all test processes keep compiled programs: many make the same samplers and trainers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def compiled(compile_cache):
    """For modules that make many samplers and trainers: what one has compiled, the next one reads."""
    from tiny_run import compiled_once  # it imports jax

    with compiled_once(compile_cache):
        yield compile_cache


@pytest.fixture(scope="module")
def compiled_by_all(compile_cache):
    """The same for the processes that a module starts."""
    from tiny_run import kept_in

    with pytest.MonkeyPatch.context() as patch:
        for name, value in kept_in(compile_cache).items():
            patch.setenv(name.upper(), str(value))
        yield
