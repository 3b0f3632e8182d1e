"""Executes a notebook headless, and shows how it goes."""

from __future__ import annotations

import re
import time
from pathlib import Path

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

QUIET = 10.0  # seconds between two lines of a live view's progress


class OwnKernel(AsyncKernelManager):
    """Starts the kernel with the interpreter that runs this file, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


class Runner(NotebookClient):
    """Executes a notebook and shows how it goes: what cells print, how far a live view is, each cell's seconds."""

    def __init__(self, notebook: NotebookNode, name: str, cwd: Path, sockets: str):
        # Sockets in a folder of our own: no port, and no path too long for a socket.
        kernel = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        super().__init__(
            notebook,
            timeout=None,
            kernel_manager_class=OwnKernel,
            config=Config(OwnKernel=kernel),
            resources={"metadata": {"path": str(cwd)}},
            on_cell_start=self.start,
            on_cell_executed=self.done,
        )
        self.name, self.started, self.midline, self.told = name, 0.0, False, 0.0

    def start(self, cell: NotebookNode, cell_index: int) -> None:
        self.started = time.monotonic()

    def done(self, cell: NotebookNode, cell_index: int, execute_reply: dict) -> None:
        seconds = time.monotonic() - self.started
        above = [c.source for c in self.nb.cells[:cell_index] if c.cell_type == "markdown"]
        headings = re.findall(r"^#+ +(.+)$", "\n".join(above), flags=re.MULTILINE)
        end = "\n" if self.midline else ""
        place = f"cell {cell_index + 1}/{len(self.nb.cells)}"
        print(f"{end}[{self.name} {place}] {seconds:.1f} s  {headings[-1] if headings else ''}", flush=True)
        self.midline = False

    def process_message(self, msg: dict, cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            print(text, end="", flush=True)
            self.midline = not text.endswith("\n")
        elif msg["msg_type"] == "comm_msg" and time.monotonic() - self.told > QUIET:
            status = msg["content"]["data"].get("state", {}).get("value")
            if isinstance(status, str) and status.startswith("step "):  # the dashboard's line, which no page shows here
                print(f"[{self.name}] {status}", flush=True)
                self.told = time.monotonic()
        return super().process_message(msg, cell, cell_index)
