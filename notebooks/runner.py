"""Executes a notebook without a front end and prints its progress."""

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
    """Prints what the cells print, the status line of a live view, and each cell's seconds."""

    def __init__(self, notebook: NotebookNode, name: str, cwd: Path, sockets: str):
        # sockets in a folder of their own: they need no port, and the path of a socket must be short
        kernel = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        super().__init__(notebook, timeout=None, kernel_manager_class=OwnKernel, config=Config(OwnKernel=kernel),
                         resources={"metadata": {"path": str(cwd)}}, on_cell_start=self.start_clock,
                         on_cell_executed=self.print_seconds)
        self.name, self.started, self.last_status, self.midline = name, 0.0, 0.0, False

    def start_clock(self, cell: NotebookNode, cell_index: int) -> None:
        self.started = time.monotonic()

    def print_seconds(self, cell: NotebookNode, cell_index: int, execute_reply: dict) -> None:
        seconds = time.monotonic() - self.started
        above = [c.source for c in self.nb.cells[:cell_index] if c.cell_type == "markdown"]
        *_, heading = ["", *re.findall(r"^#+ +(.+)$", "\n".join(above), flags=re.MULTILINE)]
        place = f"cell {cell_index + 1}/{len(self.nb.cells)}"
        print("\n" * self.midline + f"[{self.name} {place}] {seconds:.1f} s  {heading}", flush=True)
        self.midline = False

    def process_message(self, msg: dict, cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            print(text, end="", flush=True)
            self.midline = not text.endswith("\n")
        elif msg["msg_type"] == "comm_msg" and time.monotonic() - self.last_status > QUIET:
            status = msg["content"]["data"].get("state", {}).get("value")
            if isinstance(status, str) and status.startswith("step "):  # the live view's, which nobody sees here
                print(f"[{self.name}] {status}", flush=True)
                self.last_status = time.monotonic()
        return super().process_message(msg, cell, cell_index)
