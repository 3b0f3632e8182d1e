"""Compiles the programs of a run before the run: `preflight` gives bytes, FLOP, collectives and the roofline.

Nothing is loaded and nothing runs. The roofline counts HBM traffic. XLA's "bytes accessed" also counts on-chip memory,
where prefetched data appears three times. Numbers grow linearly with the periods of local and global layers. So two
shallow models are compiled and extrapolated (no whole model has been compiled against these lines).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.experimental import topologies
from tunix.models.gemma3 import model as gemma3

from reasonkit.models.mesh import check_divides
from reasonkit.models.placement import CHIPS, GIB, Chip
from tools.preflight.abstract import Program, bytes_of
from tools.preflight.programs import OTHERS, PROGRAMS, Run

COLLECTIVE = re.compile(r"\b(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
REFUSED = re.compile(r"(Used |temporaries \()([\d.]+)([MGT])")  # what libtpu says of a program that is too large


@dataclass(frozen=True)
class ProgramStats:
    """A compiled program. `mesh` has the sizes of its axes. Bytes and FLOP are for one device. None is unknown, because
    the compiler refused the program or because it is a loop.

    `fixed` are the bytes of the arguments that do not depend on the rows. `needed` bytes are in HBM at once: arguments,
    what other programs keep there, temporaries, and outputs that reuse no argument. `traffic` is the HBM traffic: the
    program's arguments and those outputs count once, temporaries twice, and what is only looked up not at all.
    """

    program: str
    mesh: dict[str, int]
    rows: int
    needed: float
    arguments: float | None = None
    temporaries: float | None = None
    outputs: float | None = None
    traffic: float | None = None
    flops: float | None = None
    collectives: dict[str, int] = field(default_factory=dict)
    fixed: float | None = None

    def roofline(self, chip: Chip) -> tuple[float, str] | None:
        """Seconds at the chip's peak, and what limits them: "compute" or "memory"."""
        if self.flops is None:
            return None
        return max((self.flops / chip.flops, "compute"), (self.traffic / chip.bandwidth, "memory"))


def table(rows: Sequence[ProgramStats], chip: str) -> str:
    """What the programs need, compared with what a chip of CHIPS has."""
    peak = CHIPS[chip]
    lines = [("program", "fsdp,tp", "rows", "arguments", "temporaries", "outputs", "needed", "fits",
              "TFLOP", "HBM GB", "roofline", "collectives")]
    for row in rows:
        over, roofline = row.needed - peak.memory, row.roofline(peak)
        lines.append((
            row.program, "{fsdp},{tp}".format(**row.mesh), str(row.rows),
            *(_number(size, GIB) for size in (row.arguments, row.temporaries, row.outputs, row.needed)),
            "yes" if over <= 0 else f"no: {over / GIB:.2f} over",
            _number(row.flops, 1e12), _number(row.traffic, 1e9),
            "-" if roofline is None else f"{1000 * roofline[0]:.3g} ms, {roofline[1]}",
            ", ".join(f"{count} {kind}" for kind, count in row.collectives.items()) or "-"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head = f"sizes in GiB of one {chip} chip, which has {peak.memory / GIB:g}"
    return "\n".join([head, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.3g}"


def preflight(run: Run, name: str, whole: bool = True) -> list[ProgramStats]:
    """Compile the programs that PROGRAMS has by this name. Unless `whole`, models of two `depths` are compiled and
    extrapolated. Raises ValueError for rows that do not divide over their mesh, or a missing judge."""
    role = "judge_config" if name in OTHERS else "policy_config"
    config = getattr(run, role)
    if config is None or whole or depths(config)[1] >= config.num_layers:
        return [*map(compile_program, PROGRAMS[name](run))]
    # the other model keeps all its layers if it is in the same memory
    shallow = [replace(run, **{role: replace(config, num_layers=depth)}) for depth in depths(config)]
    return [extrapolate_layers(compile_program(low), compile_program(high), depths(config), config.num_layers)
            for low, high in zip(*map(PROGRAMS[name], shallow), strict=True)]


def depths(config: Any) -> tuple[int, int]:
    """Two numbers of layers, one period of local and global attention apart, and whole periods from all layers.

    They are at least four, because the compiler schedules shallower train steps differently and with more memory.
    """
    period = len(gemma3.GEMMA3_ATTENTION_PATTERN) if isinstance(config, gemma3.ModelConfig) else 2
    low = config.num_layers % period
    while low < 4:
        low += period
    return low, low + period


def extrapolate_layers(low: ProgramStats, high: ProgramStats, at: tuple[int, int], layers: int) -> ProgramStats:
    """The row of a model with `layers` layers, on the line through the rows of two shallower ones."""
    steps = (layers - at[0]) / (at[1] - at[0])

    def line(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a + steps * (b - a)

    numbers = {name: line(getattr(low, name), getattr(high, name)) for name in
               ("needed", "arguments", "temporaries", "outputs", "traffic", "flops", "fixed")}
    kinds = {kind: round(line(low.collectives.get(kind, 0), high.collectives.get(kind, 0)))
             for kind in {**low.collectives, **high.collectives}}
    return replace(high, **numbers, collectives=kinds)


def compile_program(program: Program) -> ProgramStats:
    """Compile a program and read what it needs, or would need if the compiler refuses it."""
    check_divides(program.rows, program.mesh, program.title)
    what, lowered = (program.title, dict(program.mesh.shape), program.rows), program.lower()
    given = jax.tree.leaves((program.resident, program.arguments))
    fixed = bytes_of([leaf for leaf in given  # all but the rows of the batch and the cache
                      if (leaf.shape[:1], leaf.sharding.spec[:1]) != ((program.rows,), ("fsdp",))])
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := REFUSED.search(str(error))) is None:
            raise
        needed = float(found[2]) * {"M": 2**20, "G": GIB, "T": 2**40}[found[3]]
        if found[1] != "Used ":
            needed += bytes_of(given)
        return ProgramStats(*what, needed, fixed=fixed)
    memory, cost = executable.memory_analysis(), executable.cost_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    needed = arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes
    traffic = needed + temporaries - bytes_of(program.resident, program.looked_up)
    return ProgramStats(*what, needed, arguments, temporaries, memory.output_size_in_bytes,
                        None if program.loop else traffic, None if program.loop else cost["flops"],
                        dict(Counter(COLLECTIVE.findall(executable.as_text()))), fixed)


def topology_devices(name: str) -> list[jax.Device]:
    """The devices of a TPU topology, only to compile for. Raises RuntimeError if libtpu is missing or doesn't
    know it."""
    # Otherwise libtpu asks a cloud machine's metadata server what it is, and complains if there is none.
    local = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
             "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for variable, value in local.items():
        os.environ.setdefault(variable, value)
    chip, _, grid = name.partition(":")
    options = {"chip_config_name": "megacore"} if chip == "v4" else {}  # two cores are one device, as on a host
    if set(grid.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except RuntimeError as error:  # JAX's own errors are RuntimeErrors too
        raise RuntimeError(
            f"no TPU topology {name!r}: {error}\nIt takes a name such as v5e:2x4, and libtpu; "
            "beside jax 0.10.2: pip install libtpu==0.0.42.1") from error
