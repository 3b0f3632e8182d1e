"""Models and programs as shapes, to compile a run without placing anything on devices.

`abstract_model` is a Gemma of `jax.ShapeDtypeStruct`s with the sharding of a run. `Program` is a function to lower on
such shapes. Tunix leaves out its activation constraints if JAX runs on a CPU. For other chips they are put back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3
from tunix.utils import sharding_utils

from reasonkit.models.gemma import quantize_layers
from reasonkit.models.lora import Float32Lora, on_int8_base


@dataclass(frozen=True)
class Program:
    """`function(*arguments)`, with shapes as arguments. The arguments numbered in `donated` are reused for outputs.

    `resident` are shapes that other programs keep in the same memory. They count as arguments. Of `looked_up`, which
    are arguments too, only a few rows are read. They need memory, and no traffic. A `loop` is compiled for its memory
    only, because its rounds are not known.
    """

    title: str
    mesh: Mesh
    rows: int
    function: Callable
    arguments: tuple
    donated: tuple[int, ...] = ()
    resident: tuple = ()
    looked_up: tuple = ()
    loop: bool = False

    def lower(self) -> jax.stages.Lowered:
        """Trace it for the devices of its mesh, ready to be compiled."""
        donated = [number + 1 for number in self.donated]
        step = jax.jit(lambda resident, *arguments: self.function(*arguments), keep_unused=True, donate_argnums=donated)
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"  # a run on a CPU has no constraints either
        with self.mesh, contextlib.nullcontext() if on_cpu else constraints(self.mesh):
            return step.lower(self.resident, *self.arguments)


def bytes_of(*trees: Any) -> int:
    """Of the shapes in the trees, on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(trees))


@contextlib.contextmanager
def constraints(mesh: Mesh) -> Iterator[None]:
    """In this block, Tunix constrains activations to the mesh, whatever JAX itself runs on."""

    def shard(x: jax.Array, spec: tuple, eager: bool = False) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    with patch.object(sharding_utils, "shard", shard), patch.object(gemma2, "shard", shard):
        yield


def abstract_model(config: Any, mesh: Mesh, dtype: Any = None, lora_rank: int = 0, int8: bool = False) -> nnx.Module:
    """A Gemma as shapes on the mesh, with an adapter unless the rank is 0. `int8` gives it the matrices of
    `on_int8_base`, or without an adapter those of `quantize_int8`.

    `dtype` None is the configuration's, or bfloat16 if it has none. The adapter is float32, as in a run.
    """
    kind = gemma3.Gemma3 if isinstance(config, gemma3.ModelConfig) else gemma2.Gemma

    def build() -> nnx.Module:
        model = kind(config, rngs=nnx.Rngs(0))
        if not lora_rank:
            return quantize_layers(model, mesh.shape["fsdp"]) if int8 else model
        inputs = model.get_model_input()
        model = qwix.apply_lora_to_model(model, Float32Lora(lora_rank, 1.0), rngs=nnx.Rngs(0), **inputs)
        model.lora_alpha = 1.0
        return on_int8_base(model) if int8 else model

    return with_shardings(nnx.eval_shape(build), mesh, config, dtype or getattr(config, "param_dtype", jnp.bfloat16))


def with_shardings(node: Any, mesh: Mesh, config: Any, dtype: Any = None) -> Any:
    """The node with the sharding it has in a run. `dtype` replaces that of floats outside the adapter."""
    graph, lora, rest = nnx.split(node, nnx.LoRAParam, ...)
    replicated = "fsdp" not in config.shd_config.emb_vd  # then a single KV head is too: see `gemma`

    def place(leaf: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        axes = [None if size == 1 or replicated and axis == "fsdp" else axis  # size 1: one scale for a whole column
                for size, axis in zip(leaf.shape, spec, strict=False)]
        return array(mesh, leaf.shape, leaf.dtype, *axes)

    if dtype is not None:
        rest = jax.tree.map(lambda leaf: leaf.update(dtype=dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
                            rest)
    return nnx.merge(graph, *(jax.tree.map(place, state, nnx.get_partition_spec(state)) for state in (lora, rest)))


def array(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes: str | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
