"""The packages of a session: installed where they are missing, in the pinned versions, and in force in this process.

Entry point: `install`, which the notebooks call before they import anything else of the library. The version that
counts is that of the copy which an import would find, the first on sys.path. A package that was replaced after its
import is still in memory as it was, beside files of another version: only a new process mends that.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions

_NO_NETWORK = ("NewConnectionError", "NameResolutionError", "Temporary failure in name resolution", "ProxyError",
               "ConnectTimeoutError", "Network is unreachable")
_REPLACED: set[str] = set()  # after they were imported, by pip in this process


def install(pins: Sequence[str]) -> None:
    """Have every pin in force, `name==version` or a name alone for any version; pip is run for all where one is not.

    Raises RuntimeError when pip fails, with what it said and what to do; when another copy comes first on sys.path;
    and when what is in memory is not what is installed now, so that the kernel must be restarted.
    """
    wanted = {name: version for name, _, version in (pin.partition("==") for pin in pins)}
    if wrong := _wrong(wanted):
        print(f"installing {', '.join(wrong)}: a few minutes", flush=True)
        before = _versions()
        _pip(pins, wrong)
        importlib.invalidate_caches()
        after = _versions()
        changed = {name for name in before if before[name] != after.get(name)}
        if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch":  # all there is in memory is the kernel's own
            changed &= {_key(name) for name in wanted}
        _REPLACED.update(name for name in changed if name in after and any(_in_memory(name)))
        if wrong := _wrong(wanted):
            raise RuntimeError(f"pip ended well, and an import would still not find {', '.join(wrong)}: uninstall that "
                               "copy or take its folder off PYTHONPATH, see where pip installs (python -m pip config "
                               "list), then restart the kernel and Run all")
    stale = _REPLACED | {name for name, version in wanted.items() if version
                         for loaded in _in_memory(name) if _public(loaded) not in ("", version)}
    if stale:
        raise RuntimeError(f"{', '.join(sorted(stale))}: imported before the installed version was there. Restart the "
                           "kernel (Kaggle: Run, Restart & clear cell outputs; Colab: Runtime, Restart session), then "
                           "Run all: nothing is installed twice")


def _pip(pins: Sequence[str], wrong: Sequence[str]) -> None:
    """Run pip. Raises RuntimeError with its errors and what to do about them."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
    said = "\n".join(errors)
    missing, told = "No matching distribution" in said, " (PIP_NO_INDEX is set)" * bool(os.environ.get("PIP_NO_INDEX"))
    if missing and told or any(sign in line for line in lines for sign in _NO_NETWORK):
        remedy = (f"No package index was reached{told}: turn Internet on, on Kaggle in the notebook's settings, or "
                  "attach a folder of wheels and name it in a cell above: import os; "
                  "os.environ.update(PIP_NO_INDEX='1', PIP_FIND_LINKS='/kaggle/input/NAME')")
    elif missing:
        remedy = (f"There is no wheel for Python {sys.version.split()[0]} on this machine where pip looks (python -m "
                  "pip config list): take Python 3.11, 3.12 or 3.13 on Linux x86-64")
    else:
        remedy = "Mend what it names, or start from a fresh environment, and run this cell again"
    raise RuntimeError(f"pip could not install {', '.join(wrong)}. {remedy}. pip said:\n{said}")


def _key(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _public(version: str | None) -> str:
    """A version without its local part: 0.10.2+cuda12 is a build of 0.10.2 (PEP 440)."""
    return (version or "").split("+")[0]


def _wrong(wanted: dict[str, str]) -> list[str]:
    """The pins that are not in force, in words."""
    out = []
    for name, version in wanted.items():
        pin = f"{name} {version}".strip()
        try:
            found = distribution(name)
        except PackageNotFoundError:
            out.append(f"{pin} (missing)")
        else:
            if version and _public(found.version) != version:
                out.append(f"{pin} (there is {found.version} in {found.locate_file('')})")
    return out


def _versions() -> dict[str, str | None]:
    """Of each distribution, the version of the copy that comes first on sys.path."""
    out: dict[str, str | None] = {}
    for found in distributions():
        if name := found.metadata["Name"]:  # a broken installation has none
            out.setdefault(_key(name), found.version)
    return out


def _modules(found: Distribution) -> Iterator[str]:
    """The names of a distribution's modules."""
    for file in found.files or ():
        if file.suffix == ".py":
            parts = file.with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _in_memory(name: str) -> Iterator[str | None]:
    """Of each of a distribution's imported packages (none inside another) the version that it states, if it does."""
    imported = {module for module in _modules(distribution(name)) if module in sys.modules}
    for module in imported:
        if module.rpartition(".")[0] not in imported:
            version = getattr(sys.modules[module], "__version__", None)
            yield version if isinstance(version, str) else None
