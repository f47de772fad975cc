"""Choose how to evaluate a factor: term by term, or as the product of two sides on particle axes of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from kayn.axes.types import Axis
from kayn.densities.exponential.contract import WEIGHTS, Form, weighted
from kayn.factors.task import Reduction
from kayn.graph.types import Density
from kayn.graph.work import MATMUL_SPEED

MIN_WORK = 2**19
"""Factors with fewer terms are not worth a second program."""
MIN_GAIN = 1.0
"""How much cheaper a product has to look."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """A form of a factor's density with the particle axes of either side and the shapes of their pieces."""

    form: Form
    density: Density
    left: tuple[Axis, ...]
    right: tuple[Axis, ...]
    left_shapes: tuple[Shape, ...]
    right_shapes: tuple[Shape, ...]

    def __str__(self) -> str:
        """The form, and the latents on either side of the product."""

        def named(axes: tuple[Axis, ...]) -> str:
            return ", ".join("+".join(a.latents) for a in axes) or "data"

        return f"{self.form.name}: [{named(self.left)}] x [{named(self.right)}]"

    @property
    def events(self) -> Shape:
        """Sizes of the outer dimensions that are summed."""
        value = next(a for a in self.density.arguments if a.name == "value")
        outer = self.outer_ndim
        return value.shape[outer - self.density.event_ndim : outer]

    @property
    def num_terms(self) -> int:
        """Terms of the density itself for one combination of particles."""
        return num_terms(self.density)

    @property
    def outer_ndim(self) -> int:
        """Dimensions of the arguments that are no part of one value: those of the output, and of its events."""
        inside = next(a for a in self.density.arguments if a.name == "inside")
        return len(inside.shape)

    @property
    def batch_ndim(self) -> int:
        """Dimensions of the output itself, those over plates."""
        return self.outer_ndim - self.density.event_ndim

    @property
    def features(self) -> Shape:
        """Terms of the product for one entry of the factor, by pair of pieces:
        those of dimensions in which both vary."""
        dims = range(self.batch_ndim, self.outer_ndim)
        return tuple(
            math.prod(a[d] for d in dims if a[d] > 1 and b[d] > 1) * max(a[-1], b[-1])
            for a, b in zip(self.left_shapes, self.right_shapes, strict=True)
        )

    @property
    def num_features(self) -> int:
        """Terms of the product for one entry of the factor, over all pairs of pieces."""
        return sum(self.features)

    @property
    def num_cancelling(self) -> int:
        """Leading features that are large terms of a small square."""
        return sum(self.features[: self.form.cancels])


def choose(way: Reduction) -> Split | None:
    """The cheapest form of a factor by counted operations, None where evaluating it term by term is about as cheap."""
    density, size = way.output.density, way.plan.size
    if density is None:
        return None
    terms = way.entries * num_terms(density)
    if terms < MIN_WORK:
        return None
    best, least = None, terms / MIN_GAIN
    for form in density.family.forms:
        split = _split(form, density, way.axes)
        if not _rows_are_free(split, way):
            continue
        kept = [size[d] for d in way.output.dims if d and d not in way.rows]
        kept += [size[link.target] for s in way.steps for link in s.links]
        features = (split.num_features + split.num_cancelling) / MATMUL_SPEED
        if split.num_cancelling and not way.rows and math.prod(split.events) == 1:
            features += 1  # to write every entry down and to check it; by itself it is made where it is used
        cost = way.entries * math.prod(kept) * features
        cost += work(split.left, split.left_shapes) + work(split.right, split.right_shapes)
        if density.family.solved:
            # either side solves a system for each of its combinations
            cost += num_terms(density) * sum(math.prod(a.size for a in side) for side in (split.left, split.right))
        if cost < least:
            best, least = split, cost
    return best


def num_terms(density: Density) -> int:
    """Operations of a density for one combination of particles; a Mahalanobis distance takes the square of its size."""
    value = next(a for a in density.arguments if a.name == "value")
    return density.family.operations(value.shape)


def work(axes: Sequence[Axis], shapes: Sequence[Shape]) -> int:
    """How many numbers pieces of these shapes, [*outer, *core], are on all particles of some axes."""
    return math.prod(a.size for a in axes) * sum(math.prod(s) for s in shapes)


def _split(form: Form, density: Density, axes: Sequence[Axis]) -> Split:
    given = {
        a.name: jax.ShapeDtypeStruct(a.shape, bool if a.dtype == "bool" else jnp.result_type(float))
        for a in density.arguments
    }
    weights = tuple(a.name for a in density.arguments if a.name in (*WEIGHTS, "inside"))
    referenced = {n: jax.ShapeDtypeStruct((*given[n].shape, 1), given[n].dtype) for n in form.referenced}
    reference = jax.eval_shape(form.reference, referenced)
    latents = {a.name: a.latents for a in density.arguments}

    def of(names: Sequence[str]) -> tuple[Axis, ...]:
        return tuple(a for a in axes if any(z in a.latents for n in names for z in latents[n]))

    return Split(
        form,
        density,
        of((*form.left, *weights)),
        of(form.right),
        tuple(p.shape for p in jax.eval_shape(lambda a, r: weighted(form, a, r), given, reference)),
        tuple(p.shape for p in jax.eval_shape(form.naturals, given, reference)),
    )


def _rows_are_free(split: Split, way: Reduction) -> bool:
    """Whether the naturals do not depend on the rows that are summed, so that these can be summed in the statistics."""
    rows = [d for d, plate in enumerate(way.output.dims) if plate in way.rows]
    return all(shape[d] == 1 for shape in split.right_shapes for d in rows)
