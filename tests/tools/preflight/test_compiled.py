from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from tiny_gemma import small_config, small_profile

from reasonkit.models.logprobs import SHARED
from reasonkit.models.mesh import plan_mesh
from reasonkit.models.placement import CHIPS, GIB, config_of
from tools.preflight import compiled as module
from tools.preflight.abstract import array, bytes_of
from tools.preflight.compiled import ProgramStats, compile_program, depths, preflight, table, topology_devices
from tools.preflight.programs import PROGRAMS, Run

SMALL = small_profile()


@pytest.fixture(scope="module")
def plan():
    return plan_mesh(jax.devices(), judge=True)


@pytest.fixture(scope="module")
def rows(plan):
    run = Run(small_config(), small_config(), plan, SMALL)
    return [row for name in PROGRAMS for row in preflight(run, name)]


def test_every_program_is_compiled(rows, plan):
    assert [row.program for row in rows] == [
        "SFT train step", "SimPO train step", "GRPO train step", "GRPO reference", "rollout prefill",
        "one decode step", "decode loop", "judge prefill", "distillation prefill", "distillation decode step",
        "distillation loop", "distillation train step", "teacher's pass", "reward model's pass", "policy's own pass"]
    assert [row.rows for row in rows] == [8, 8, 8, 8, 16, 16, 16, 8, 8, 8, 8, 8, 8, 8, 8]
    run = Run(small_config(), small_config(), plan, SMALL)
    made = [program for build in PROGRAMS.values() for program in build(run)]
    assert [program.title for program in made] == [row.program for row in rows]
    theirs = {"judge prefill", "teacher's pass", "reward model's pass"}
    assert all(program.mesh is (plan.judge if program.title in theirs else plan.policy) for program in made)
    assert all(row.mesh == {"fsdp": 4, "tp": 1} for row in rows)
    assert table(rows, "v5e").count("  yes  ") == 15


def test_the_numbers_are_those_of_one_device(rows):
    """The judge by hand: 400 x 32 embedding, 2 layers of 4 heads (2 for keys and values) and 48 hidden."""
    row = rows[7]
    layer = 32 * 64 * 2 + 2 * 32 * 32 + 3 * 32 * 48 + 4 * 32 + 2 * 16
    weights, tokens = 400 * 32 + 2 * layer + 32, 2 * 10  # of 8 rows, 2 are on each of 4 devices
    assert row.arguments == 4 * weights + 4 * 3 * tokens  # ids, positions and pieces
    matmuls = tokens * 2 * (layer - 4 * 32 - 2 * 16) + 2 * SHARED * 400 * 32  # logits of so many positions a row
    assert 2 * matmuls < row.flops < 2 * matmuls * 1.3
    assert row.needed == row.arguments + row.temporaries + row.outputs
    assert row.traffic == row.needed + row.temporaries > row.arguments


def test_gradients_are_summed_over_the_devices_and_nothing_else_is(rows):
    sft, simpo, grpo, reference, prefill, decode, _, judge, *_ = rows  # a CPU gathers for top_k, a TPU does not
    assert all(row.collectives.keys() == {"all-reduce"} for row in (sft, grpo))
    assert "all-reduce" in simpo.collectives  # and, to pair the chosen with the rejected, others
    assert not reference.collectives and not judge.collectives
    assert prefill.collectives == decode.collectives == {"all-reduce": 1}  # where the cache ends: one number


def test_sharded_weights_are_gathered_in_every_decode_step():
    config = small_config()
    config.shd_config = type(config.shd_config).get_default_sharding()
    plan = plan_mesh(jax.devices(), judge=False)
    prefill, decode, _ = preflight(Run(config, None, plan, SMALL), "rollout")
    assert decode.collectives["all-gather"] > 4 and prefill.collectives["all-gather"] > 4


def row(plan, **numbers):
    return ProgramStats("program", dict(plan.policy.shape), 8, **{"needed": GIB, **numbers})


def test_the_roofline_is_the_longer_of_compute_and_memory(plan):
    chip = CHIPS["v5e"]
    assert row(plan, flops=197e12, traffic=409.5e9).roofline(chip) == (1.0, "compute")
    assert row(plan, flops=19.7e12, traffic=409.5e9).roofline(chip) == (0.5, "memory")
    assert row(plan).roofline(chip) is None


def test_what_does_not_fit_says_by_how_much(plan):
    small, large = row(plan), row(plan, needed=17 * GIB, collectives={"all-gather": 3, "all-reduce": 1})
    head, names, first, second = table([small, large], "v5e").splitlines()
    assert "one v5e chip, which has 15.75" in head and names.startswith("program")
    assert "  yes  " in first and "  no: 1.25 over  " in second
    assert second.endswith("3 all-gather, 1 all-reduce")


class Refused:
    """A program that the compiler answers with an error."""

    title, rows, resident = "program", 8, ()

    def __init__(self, plan, message):
        """On each of four devices, a GiB that does not depend on the rows, and a GiB that does."""
        self.mesh, self.message = plan.policy, message
        self.arguments = array(self.mesh, (GIB,), jnp.int8), array(self.mesh, (8, GIB // 2), jnp.int8, "fsdp")

    def lower(self):
        return self

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
         "(29.26G) exceeds available HBM (15.75G).", 31.26 * GIB),
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used "
         "16.44G of 15.75G hbm. Exceeded hbm capacity by 704.00M.", 16.44 * GIB),
    ],
)
def test_a_program_that_the_compiler_refuses_is_a_row(plan, message, needed):
    found = compile_program(Refused(plan, message))
    assert found.needed == pytest.approx(needed) and found.flops is None and found.fixed == GIB
    assert f"no: {needed / GIB - 15.75:.2f} over" in table([found], "v5e")


def test_other_errors_of_the_compiler_are_raised(plan):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: out of luck"):
        compile_program(Refused(plan, "INTERNAL: out of luck"))


def test_rows_that_do_not_divide_are_named(plan):
    odd = replace(SMALL, sft=replace(SMALL.sft, batch_size=6))
    with pytest.raises(ValueError, match="SFT train step = 6 rows cannot be split over fsdp=4"):
        preflight(Run(small_config(), small_config(), plan, odd), "sft")


def test_an_unknown_topology_says_what_it_takes():
    with pytest.raises(RuntimeError, match=r"(?s)no TPU topology 'w5:2x4'.*pip install libtpu"):
        topology_devices("w5:2x4")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v5e:2x4", {}),
        ("v6e:1x1", {"chips_per_host_bounds": (1, 1, 1)}),
        ("v4:2x2x1", {"chip_config_name": "megacore"}),
    ],
)
def test_a_topology_is_asked_for_as_libtpu_wants_it(monkeypatch, name, options):
    monkeypatch.setattr(module.topologies, "get_topology_desc", lambda **asked: SimpleNamespace(devices=[asked]))
    assert topology_devices(name) == [{"platform": "tpu", "topology_name": name, **options}]


def test_a_deep_model_lies_on_the_line_of_two_shallow_ones(plan, monkeypatch):
    """Arguments, work and what is fixed exactly; the compiler's temporaries nearly."""
    monkeypatch.setattr(module, "depths", lambda config: (1, 3))
    deep = small_config(num_layers=5)  # all local
    whole, line = ([row for name in ("grpo", "rollout") for row in preflight(Run(deep, None, plan, SMALL), name, whole)]
                   for whole in (True, False))
    for a, b in zip(whole, line, strict=True):
        assert (a.program, a.rows, a.arguments, a.fixed, a.collectives) == (
            b.program, b.rows, b.arguments, b.fixed, b.collectives)
        assert (b.flops is None) == (a.flops is None) == (a.program == "decode loop"), "it has no known rounds"
        assert a.flops is None or b.flops == pytest.approx(a.flops, rel=0.01), a.program
        assert b.needed == pytest.approx(a.needed, rel=0.05), a.program


def test_the_depths_leave_whole_periods_of_attention():
    assert depths(config_of("gemma2-2b-it")) == (4, 6)
    assert depths(config_of("gemma3-1b-it")) == (8, 14)
    assert depths(config_of("gemma3-12b-it")) == (6, 12)


def test_in_one_memory_the_other_model_keeps_its_layers(monkeypatch):
    """Shallow is only the model that the program runs."""
    seen = []

    def fake(program):
        seen.append((program.title, bytes_of(program.resident, program.looked_up)))
        return ProgramStats(program.title, dict(program.mesh.shape), program.rows, 1.0)

    monkeypatch.setattr(module, "compile_program", fake)
    monkeypatch.setattr(module, "depths", lambda config: (1, 2))
    shared, deep = plan_mesh(jax.devices()[:1], judge=True), small_config(num_layers=3)
    for whole in (True, False):
        preflight(Run(deep, deep, shared, SMALL), "judge", whole)
    assert seen == [("judge prefill", seen[0][1])] * 3 and seen[0][1] > 0
