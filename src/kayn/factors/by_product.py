"""Evaluate factors that are exponential families as matrix products of statistics and naturals, where that pays.

Statistics and naturals are evaluated on the particle axes of their own arguments; one `dot_general` over event
dimensions makes the factor of them. Rows that the naturals do not depend on are summed in the statistics, before the
product. The result is that of `kayn.factors.elementwise.evaluate_reduced`, to which everything else falls back: where
no form saves much work, and at run time where anything is not finite, outside the support, or would lose too many bits
to cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from kayn.densities.exponential.contract import WEIGHTS, Pieces, weighted
from kayn.factors.choose_form import Shape, Split, work
from kayn.factors.elementwise import in_parts, of_one_particle, on_axes
from kayn.factors.precision import LOST_BITS, SMALL_ERROR
from kayn.factors.task import Operands, Task
from kayn.programs.outputs import Part
from kayn.support.arrays import Array, PyTree
from kayn.xla.compilation import matmul_precision


@dataclass(frozen=True, eq=False)
class Factorisation:
    """A split factor, from latent values to statistics and naturals, and from these to the factor.

    The plates that the task's products sum over are summed in the statistics.
    """

    task: Task
    split: Split

    @property
    def left_names(self) -> list[str]:
        """Axes of the statistics, in the factor's order: plates, and the particle axes of the value's side."""
        mine = {a.name for a in self.split.left}
        return [a for a in self.task.order if a not in self.task.plan.scope or a in mine]

    @property
    def right_names(self) -> list[str]:
        """Axes of the naturals: plates that are not reduced, then the particle axes of the parameters' side."""
        dims = self.task.output.dims
        return [d for d in dims if d and d not in self.task.rows] + [a.name for a in self.split.right]

    def prepare(self, operands: Operands) -> tuple[PyTree, Array]:
        """Statistics [*left_names, rows, F] and naturals [*right_names, rows, F], and whether they can be trusted."""
        task, split, dims = self.task, self.split, self.task.output.dims
        reference = jax.lax.stop_gradient(_reference(task, operands, split))
        absent = tuple(d for d, plate in enumerate(dims) if not plate)
        summed = tuple(d for d, plate in enumerate(dims) if plate in task.rows)
        left_arguments = _arguments(task, operands, (*split.form.left, *WEIGHTS, "inside"))
        right_arguments = _arguments(task, operands, split.form.right)

        def left(values: Mapping[str, Array]) -> Array:
            pieces = weighted(split.form, _supported(left_arguments(values)), reference)
            joined = _joined(pieces, split.right_shapes, split, split.events)
            full = [task.plan.size[p] if d in summed else joined.shape[d] for d, p in enumerate(dims)]
            return jnp.squeeze(jnp.broadcast_to(joined, (*full, *joined.shape[-2:])), absent)

        def right(values: Mapping[str, Array]) -> Array:
            joined = _joined(split.form.naturals(right_arguments(values), reference), split.left_shapes, split, None)
            return jnp.squeeze(joined, (*absent, *summed))

        elements = work(split.left, split.left_shapes) if task.steps else 0
        statistics = in_parts(task, operands, left, split.left, task.steps, elements, trailing=2)
        naturals = on_axes(right, split.right, operands.particles, (), trailing=2)
        return (statistics, naturals), self._safe(*jax.lax.stop_gradient((statistics, naturals)))

    def finish(self, prepared: PyTree) -> Array:
        """The factor from statistics and naturals: their inner products over the features and rows."""
        statistics, naturals = prepared
        return self._contract(statistics[..., 0, :], naturals[..., 0, :])

    def _safe(self, statistics: Array, naturals: Array) -> Array:
        """Finite, and for forms that expand a square, no term much larger than those of the plain density."""
        cut, end = self.split.num_cancelling, self.split.num_features
        finite = (
            _length(statistics) * _length(naturals) < jnp.finfo(statistics.dtype).max / 1e6 / end
        )  # false for NaN too
        if self.split.density.family.has_factorials:
            finite &= self._holds_counts(statistics)
        if not cut:
            return finite

        def bits(rows: Array) -> Array:
            expanded = self._contract(rows[..., 1, :cut], naturals[..., 1, :cut])
            plain = self._contract(rows[..., 1, cut:], naturals[..., 1, cut:])
            return expanded, plain

        def bounded() -> Array:
            # particles apart: the largest terms of all particles on the left against the normaliser's
            axes = tuple(i for i, a in enumerate(self.left_names) if a in self.task.plan.scope)
            expanded, plain = bits(
                jnp.concatenate(
                    [
                        jnp.max(statistics[..., :cut], axes, keepdims=True),
                        jnp.min(statistics[..., cut:], axes, keepdims=True),
                    ],
                    -1,
                )
            )
            return jnp.all(expanded <= 2.0**LOST_BITS * plain)

        def exactly() -> Array:
            expanded, plain = bits(statistics)
            square = self._contract(statistics[..., 0, :cut], naturals[..., 0, :cut])
            return jnp.all(expanded <= 2.0**LOST_BITS * (plain + jnp.abs(square)))

        return finite & jax.lax.cond(bounded(), lambda: jnp.array(True), exactly)

    def _holds_counts(self, statistics: Array) -> Array:
        """Whether log factorials are small enough that their digits survive a sum, in the mean over rows;
        the plain density forms none."""
        factorials = jnp.sum(jnp.abs(statistics[..., 0, -self.split.features[-1] :]))
        particles = math.prod(a.size for a in self.split.left)
        dims = [d for d in self.task.output.dims if d]
        rows = math.prod(self.task.plan.size[d] for d in dims) * math.prod(self.split.events)
        return factorials < rows * particles * SMALL_ERROR / jnp.finfo(statistics.dtype).eps

    def _contract(self, left: Array, right: Array) -> Array:
        sizes = {a: self.task.plan.size[a] for a in self.task.order}
        return _contract(left, self.left_names, right, self.right_names, sizes)


def _length(array: Array) -> Array:
    """The root of the sum of squares: no less than the largest entry,
    and several times quicker to find than that on CPUs."""
    return jnp.sqrt(jnp.vdot(array, array))


def _supported(arguments: dict[str, Array]) -> dict[str, Array]:
    """Values outside of the support as NaN, which no product can hide."""
    value, inside = arguments["value"], arguments["inside"]
    inside = inside.reshape(inside.shape + (1,) * (value.ndim - inside.ndim))
    return {**arguments, "value": jnp.where(inside, value, jnp.nan)}


def _arguments(task: Task, operands: Operands, names: Sequence[str]) -> Callable[[Mapping], dict[str, Array]]:
    """Some arguments of a density for one particle, numbers as floats."""
    assert task.output.density is not None
    present = [a.name for a in task.output.density.arguments if a.name in names]
    outputs = [Part.ARGUMENT.of(task.name, n) for n in present]
    run = of_one_particle(task.program, outputs, operands.particles, operands.inputs)

    def single(values: Mapping[str, Array]) -> dict[str, Array]:
        found = dict(zip(present, run(values), strict=True))
        return {n: v if v.dtype == bool else v.astype(jnp.result_type(float)) for n, v in found.items()}

    return single


def _reference(task: Task, operands: Operands, split: Split) -> Mapping[str, Array]:
    """Where statistics and naturals are measured from: means over the particles of every referenced argument."""
    found: dict[str, Array] = {}
    for argument in split.density.arguments:
        if argument.name in split.form.referenced:
            own = [a for a in task.axes if any(z in a.latents for z in argument.latents)]
            single = _arguments(task, operands, (argument.name,))
            found |= on_axes(single, own, operands.particles, ())
            found[argument.name] = found[argument.name].reshape((*argument.shape, -1))
    return split.form.reference(found)


def _joined(pieces: Pieces, others: Sequence[Shape], split: Split, events: Shape | None) -> Array:
    """Pieces side by side: [*batch, 1 or 2, F], the second row their magnitudes if they are needed.

    Event dimensions in which the other side does not vary are summed here; where neither does, `events` (given for one
    of the sides) says how many equal terms there are.
    """
    first, last = split.batch_ndim, split.outer_ndim
    columns = []
    for piece, other in zip(pieces, others, strict=True):
        rows = jnp.stack([piece, jnp.abs(piece)]) if split.num_cancelling else piece[None]
        alone = tuple(d + 1 for d in range(first, last) if piece.shape[d] > 1 and other[d] == 1)
        rows = jnp.sum(rows, alone, keepdims=True)
        if events is not None:
            equal = [n for d, n in zip(range(first, last), events, strict=True) if piece.shape[d] == other[d] == 1]
            rows = rows * math.prod(equal)
        # a row of ones stands for all features of its pair
        kept = [piece.shape[d] if piece.shape[d] > 1 and other[d] > 1 else 1 for d in range(first, last)]
        width = max(piece.shape[-1], other[-1])
        rows = jnp.broadcast_to(rows, (*rows.shape[: first + 1], *kept, width))
        columns.append(rows.reshape((*rows.shape[: first + 1], -1)))
    batch = jnp.broadcast_shapes(*(c.shape[:-1] for c in columns))
    together = jnp.concatenate([jnp.broadcast_to(c, (*batch, c.shape[-1])) for c in columns], -1)
    return jnp.moveaxis(together, 0, -2)


def _contract(
    left: Array, left_names: Sequence[str], right: Array, right_names: Sequence[str], sizes: Mapping[str, int]
) -> Array:
    """Sum over the last dimension of both: an array over all of `sizes`, in order."""

    def varying(array: Array, names: Sequence[str]) -> tuple[Array, list[str]]:
        constant = tuple(i for i, n in enumerate(names) if array.shape[i] == 1)
        return jnp.squeeze(array, constant), [n for i, n in enumerate(names) if i not in constant]

    left, left_names = varying(left, left_names)
    right, right_names = varying(right, right_names)
    letter = {name: chr(ord("a") + i) for i, name in enumerate(sizes)}
    present = [n for n in sizes if n in left_names or n in right_names]
    subscripts = [[*(letter[n] for n in names)] for names in (left_names, right_names, present)]
    equation = "{}Z,{}Z->{}".format(*("".join(s) for s in subscripts))
    out = jnp.einsum(equation, left, right, precision=matmul_precision())
    shape = [n if name in present else 1 for name, n in sizes.items()]
    return jnp.broadcast_to(out.reshape(shape), tuple(sizes.values()))
