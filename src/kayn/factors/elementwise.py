"""Evaluate traced outputs on exactly the particle axes they depend on.

The single-particle jaxpr of one output is wrapped in one `jax.vmap` for each of its particle axes, so that every
intermediate is batched over the axes it depends on and no others. Rows that only have to be summed are reduced part by
part: a factor over thousands of rows is never held on all its particle axes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from kayn.axes.memory import CHUNK_ELEMENTS
from kayn.axes.types import Axis
from kayn.contraction.steps.product import Product, apply_products
from kayn.factors.cost import is_dear
from kayn.factors.task import Operands, Particles, Shared, Task
from kayn.programs.outputs import OutputName
from kayn.programs.trace import Program
from kayn.support.arrays import Array
from kayn.xla.compilation import LANES, apart


def evaluate(task: Task, operands: Operands) -> Array:
    """An output on its particle axes: `[*dims, *(K of every axis)]`, dims of size one that are no plate removed."""
    array = on_axes(_single(task, operands), task.axes, operands.particles, ())
    return finite(array) if task.is_log_factor else array


def evaluate_reduced(task: Task, operands: Operands, terms: int = 0) -> Array:
    """As `evaluate`, followed by the task's plate products, in parts that fit `CHUNK_ELEMENTS`:
    [*plates, *(K of axes)].

    Args:
        terms: entries of the largest array formed on the way, where that is not the factor itself.
    """
    single, index = _single(task, operands), operands.links.__getitem__

    def summed(values: Mapping[str, Array]) -> Array:
        # for one particle, before its axes are moved behind: XLA would transpose the rows on the way back
        return apply_products(task.plan, task.first, single(values), index, tuple(task.plan.scope))

    # what is summed over its rows at once is computed along them anyway
    axis_of = {n: a.name for a in task.axes for n in a.latents}
    alone = not task.first and is_dear(task.program, task.output.traced, axis_of)
    elements = max(task.elements, terms)
    reduced = in_parts(task, operands, summed, task.axes, task.left, elements, alone=alone)
    # after the products: a selection inside a chain of arithmetic keeps XLA from vectorising it
    return finite(reduced) if task.is_log_factor else reduced


def in_parts(
    task: Task,
    operands: Operands,
    single: Callable[[Mapping], Array],
    axes: Sequence[Axis],
    steps: Sequence[Product],
    elements: int,
    trailing: int = 0,
    alone: bool = False,
) -> Array:
    """Map a function of one particle over axes, followed by plate products, at most `CHUNK_ELEMENTS` entries at a time.

    Args:
        single: latent values to [*plates, *trailing].
        axes: some of the task's particle axes; the others are left out of everything.
        steps: the last of the task's products.
        elements: entries of the whole before the steps.
        trailing: number of dimensions behind the plates that stay the last ones.
        alone: the function is dear, see `along_plates`; no trailing dimensions then.

    Returns:
        [*the task's order, *trailing].
    """
    plan, particles, index = task.plan, operands.particles, operands.links.__getitem__
    loops = _loop_axes(axes, elements)
    looped, mine = [a.name for a in loops], [a.name for a in axes]
    inner = [a for a in axes if a not in loops]
    without = [v for v in plan.scope if v not in mine or v in looped]

    def part(fixed: Mapping[str, Array]) -> Array:
        def given(values: Mapping[str, Array]) -> Array:
            return single({**values, **fixed})

        if alone:
            array = along_plates(given, inner, particles, tuple(fixed))
        else:
            array = on_axes(given, inner, particles, tuple(fixed), trailing)
        return apply_products(plan, steps, array, index, without)

    result = _looped(part, loops, particles, {})
    # loop axes come out in front; plates and inner axes follow in the order of the plan
    present = [a for a in task.order if a not in without or a in looped]
    have = [*looped, *(a for a in present if a not in looped)]
    last = range(len(have), len(have) + trailing)
    return jnp.transpose(result, [*(have.index(a) for a in present), *last])


def of_one_particle(
    program: Program, outputs: Sequence[OutputName], particles: Particles, inputs: Sequence[Array]
) -> Callable[[Mapping], list[Array]]:
    """Some outputs of a program as a function of one particle's latent values."""
    run, used = program.sliced(outputs)
    latents = {len(program.consts) + i: n for i, n in enumerate(program.inputs)}

    def single(values: Mapping[str, Array]) -> list[Array]:
        def argument(i: int) -> Array:
            if i not in latents:
                return inputs[i]
            # a latent that the equations mention but the result does not depend on: any particle will do
            if latents[i] in values:
                return values[latents[i]]
            other = particles[latents[i]]
            return other.of_any() if isinstance(other, Shared) else other[0]

        return run(*(argument(i) for i in used))

    return single


def _single(task: Task, operands: Operands) -> Callable[[Mapping], Array]:
    dims = task.output.dims
    squeezed = tuple(d for d, plate in enumerate(dims) if not plate)
    assert len(task.aval.shape) == len(dims), (task.name, task.aval.shape, dims)
    run = of_one_particle(task.program, [task.output.traced], operands.particles, operands.inputs)
    return lambda values: jnp.squeeze(run(values)[0], squeezed)


@jax.custom_jvp
def finite(log_factor: Array) -> Array:
    """Impossible instead of undefined: NaN log densities (overflow at a wild particle) get no weight.

    Densities below any that floats could tell from zero, the result of a clipped argument, are zero. What is +inf no
    density can be; it stays as it is, for `sound` to notice.
    """
    top = _top(log_factor)
    kept = jnp.where(log_factor >= -top, jnp.minimum(log_factor, top), -jnp.inf)
    return jnp.where(log_factor == jnp.inf, jnp.inf, kept)


@finite.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    log_factor, tangent = primals[0], tangents[0]
    return finite(log_factor), jnp.where(jnp.abs(log_factor) <= _top(log_factor), tangent, 0.0)


def is_unsound(log_factor: Array) -> Array:
    """Whether any log density is +inf, as at a pole or where a probability above one was found: a boolean scalar."""
    return jnp.any(log_factor == jnp.inf)


@jax.custom_jvp
def sound(log_factor: Array) -> Array:
    """The same log factor with no weight where it is +inf: one such entry would be all of the evidence."""
    return jnp.where(log_factor == jnp.inf, -jnp.inf, log_factor)


@sound.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    log_factor, tangent = primals[0], tangents[0]
    return sound(log_factor), jnp.where(log_factor == jnp.inf, 0.0, tangent)


def _top(log_factor: Array) -> float:
    return float(jnp.finfo(log_factor.dtype).max) / 1e6


LONG = 2**14
"""Entries from which an array is worth a copy."""


def on_axes(
    single: Callable[[Mapping], Array],
    axes: Sequence[Axis],
    particles: Particles,
    fixed: Sequence[str],
    trailing: int = 0,
) -> Array:
    """Map a function of one particle over axes, which come out before the last `trailing` dimensions, in order."""
    return _mapped(single, axes, particles, fixed, -1 - trailing)


def in_front(single: Callable[[Mapping], Array], axes: Sequence[Axis], particles: Particles) -> Array:
    """As `on_axes`, but axes come out in front, the last one first."""
    return _mapped(single, axes, particles, (), 0)


def along_plates(
    single: Callable[[Mapping], Array], axes: Sequence[Axis], particles: Particles, fixed: Sequence[str]
) -> Array:
    """As `on_axes`, but computed along the plates and transposed then,
    where it would otherwise be computed one entry at a time."""
    array = _mapped(single, axes[::-1], particles, fixed, 0)
    last = axes[-1].size if axes else 1
    if 1 < last < 2 * LANES and last != LANES and array.size >= LONG:
        array = apart(array, jnp.ravel(particles[axes[-1].latents[0]])[0])
    return jnp.transpose(array, (*range(len(axes), array.ndim), *range(len(axes))))


def _mapped(
    single: Callable[[Mapping], Array], axes: Sequence[Axis], particles: Particles, fixed: Sequence[str], place: int
) -> Array:
    """Map a function of one particle over axes one after the other, each of which comes out at dimension `place`."""
    mapped = [a.name for a in axes]
    shared = {n: s for n, s in particles.items() if isinstance(s, Shared) and all(a in mapped for a in s.axes)}
    names = [*(n for a in axes for n in a.latents if n not in fixed), *shared]
    # the axis that is mapped last is the first of the operands
    operands = [shared[n].moved(mapped[::-1]) if n in shared else particles[n] for n in names]

    def call(*values: Array) -> Array:
        return single(dict(zip(names, values, strict=True)))

    for axis in axes:
        mine = [n in axis.latents or (n in shared and axis.name in shared[n].axes) for n in names]
        call = jax.vmap(call, in_axes=tuple(0 if m else None for m in mine), out_axes=place)
    return call(*operands)


def _loop_axes(axes: Sequence[Axis], elements: int) -> list[Axis]:
    """Axes to loop over instead of batching, so that one part has at most `CHUNK_ELEMENTS` entries."""
    loops: list[Axis] = []
    for axis in reversed(axes):
        if elements <= CHUNK_ELEMENTS:
            break
        loops.append(axis)
        elements //= axis.size
    return loops


def _looped(
    part: Callable[[Mapping], Array], loops: Sequence[Axis], particles: Particles, fixed: Mapping[str, Array]
) -> Array:
    if not loops:
        return part(fixed)
    mine = {n: particles[n] for n in loops[0].latents if n in particles}

    def body(values: Mapping[str, Array]) -> Array:
        return _looped(part, loops[1:], particles, {**fixed, **values})

    return jax.lax.map(jax.checkpoint(body), mine)
