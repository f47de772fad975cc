"""Evaluate traced outputs on exactly the particle axes they depend on.

The single-particle jaxpr of one output is wrapped in one `jax.vmap` for each of its particle axes, so that every
intermediate is batched over the axes it depends on and no others. Rows that only have to be summed are reduced part by
part: a factor over thousands of rows is never held on all its particle axes at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kayn.axes import Axis
from kayn.contraction.execute import Index, apply_products
from kayn.contraction.plan import Plan, Product
from kayn.graph.slices import slice_outputs
from kayn.graph.trace import Program
from kayn.graph.types import Output

CHUNK_ELEMENTS = 2**22
"""Entries of a factor evaluated at a time where rows are summed on the fly (16 MB in float32)."""

Particles = Mapping[str, Any]
"""[K, *shape] for every latent, K that of the latent's axis."""


def evaluate(
    program: Program, name: str, output: Output, axes: Sequence[Axis], particles: Particles, inputs: Sequence[Any]
) -> Any:
    """An output on its particle axes: `[*dims, *(K of every axis)]`, dims of size one that are no plate removed.

    Args:
        program: the traced model.
        name: the output's name in the program.
        axes: its particle axes, in order.
        inputs: the jaxpr's constants and inputs, anything in the places of latents.
    """
    return _mapped(_single(program, name, output, particles, inputs), axes, particles, ())


def evaluate_reduced(
    program: Program,
    name: str,
    output: Output,
    axes: Sequence[Axis],
    particles: Particles,
    inputs: Sequence[Any],
    plan: Plan,
    steps: Sequence[Product],
    index: Index,
) -> Any:
    """As `evaluate`, followed by the plate products `steps`, in parts that fit `CHUNK_ELEMENTS`."""
    single = _single(program, name, output, particles, inputs)
    loops = _loop_axes(plan, steps, axes)
    inner = [a for a in axes if a not in loops]
    without = [a.name for a in loops]

    def part(fixed: Mapping[str, Any]) -> Any:
        array = _mapped(lambda z: single({**z, **fixed}), inner, particles, tuple(fixed))
        return apply_products(plan, steps, array, index, without)

    result = _looped(part, loops, particles, {})
    if not loops:
        return result
    # loop axes come out in front; plates and inner axes follow in the order of the plan
    order = [a for a in plan.axes[steps[-1].out] if a not in without]
    have = [*without, *order]
    return jnp.transpose(result, [have.index(a) for a in plan.axes[steps[-1].out]])


def _single(
    program: Program, name: str, output: Output, particles: Particles, inputs: Sequence[Any]
) -> Callable[[Mapping], Any]:
    position = program.outputs.index(name)
    run, used = slice_outputs(program.jaxpr, [position])
    names = {len(program.consts) + i: n for i, n in enumerate(program.inputs)}
    shape = program.jaxpr.outvars[position].aval.shape
    squeezed = tuple(d for d, plate in enumerate(output.dims) if not plate)
    assert len(shape) == len(output.dims), (name, shape, output.dims)

    def single(values: Mapping[str, Any]) -> Any:
        def argument(i: int) -> Any:
            if i not in names:
                return inputs[i]
            # a latent that the equations mention but the result does not depend on: any particle will do
            return values[names[i]] if names[i] in values else particles[names[i]][0]

        return jnp.squeeze(run(*(argument(i) for i in used))[0], squeezed)

    return lambda values: (
        _finite(single(values))
        if jnp.issubdtype(program.jaxpr.outvars[position].aval.dtype, jnp.floating) and output.kind.value != "value"
        else single(values)
    )


def _finite(log_factor: Any) -> Any:
    """Impossible instead of undefined: NaN log densities (overflow at a wild particle) get no weight, poles a finite one."""
    top = jnp.finfo(log_factor.dtype).max / 1e6
    return jnp.where(jnp.isnan(log_factor), -jnp.inf, jnp.minimum(log_factor, top))


def _mapped(single: Callable[[Mapping], Any], axes: Sequence[Axis], particles: Particles, fixed: Sequence[str]) -> Any:
    names = [n for a in axes for n in a.latents if n not in fixed]

    def call(*values: Any) -> Any:
        return single(dict(zip(names, values, strict=True)))

    for axis in axes:
        call = jax.vmap(call, in_axes=tuple(0 if n in axis.latents else None for n in names), out_axes=-1)
    return call(*(particles[n] for n in names))


def _loop_axes(plan: Plan, steps: Sequence[Product], axes: Sequence[Axis]) -> list[Axis]:
    """Axes to loop over instead of batching, so that one part has at most `CHUNK_ELEMENTS` entries."""
    if not steps:
        return []
    elements = math.prod(plan.size[a] for a in plan.axes[steps[0].source])
    loops: list[Axis] = []
    for axis in reversed(axes):
        if elements <= CHUNK_ELEMENTS:
            break
        loops.append(axis)
        elements //= axis.size
    return loops


def _looped(
    part: Callable[[Mapping], Any], loops: Sequence[Axis], particles: Particles, fixed: Mapping[str, Any]
) -> Any:
    if not loops:
        return part(fixed)
    mine = {n: particles[n] for n in loops[0].latents if n in particles}

    def body(values: Mapping[str, Any]) -> Any:
        return _looped(part, loops[1:], particles, {**fixed, **values})

    return jax.lax.map(jax.checkpoint(body), mine)
