"""Every test runs on eight virtual CPU devices, which must be said before jax is imported."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ["JAX_PLATFORMS"] = "cpu"
FLAG = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}".strip()

# A busy machine is no defect: no per-example deadline.
settings.register_profile("reasonkit", deadline=None)
settings.load_profile("reasonkit")
