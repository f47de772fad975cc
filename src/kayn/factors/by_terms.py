"""Likelihoods whose predictor is a sum of terms, with every term evaluated on particle axes of its own.

In a regression every row depends on all latents at once, but only through the sum of functions of a few of them each,
`alpha[g] + x @ beta`. Squared residuals then sum to inner products over the rows of pairs of terms, and the rates of
counts, products of a factor for each term, to one inner product: what is formed for every row has one or two particle
axes, or none if rows are summed as a whole.

Terms are measured from a reference point among the particles, so that they are small where the guide is narrow. Where
numbers are not finite, would leave the range of floats, or would lose too many digits to cancellation, the factor is
evaluated as by `kayn.factors.elementwise.evaluate_reduced`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from kayn.axes.types import Axis, axes_of_terms
from kayn.contraction.logsum import expand
from kayn.densities.exponential.contract import WEIGHTS, Predictor
from kayn.densities.exponential.scales import LOG_ROOT_2PI
from kayn.factors.choose_form import MIN_WORK, num_terms
from kayn.factors.elementwise import in_front, in_parts, of_one_particle, on_axes
from kayn.factors.precision import LOST_BITS, SMALL_ERROR
from kayn.factors.task import Operands, Particles, Reduction, Task
from kayn.graph.types import Density
from kayn.graph.work import MATMUL_SPEED
from kayn.programs.outputs import Part
from kayn.support.arrays import Array, PyTree
from kayn.xla.compilation import matmul_precision

FAR = 80.0
"""Largest logarithm of a rate whose exponential is taken; that of 88 is the end of float32."""
MIN_GAIN = 1.0
"""How much cheaper it has to look."""

Groups = tuple[tuple[Axis, ...], ...]
"""The particle axes of every term."""
Term = Callable[[Particles], Any]
"""What one particle adds to the predictor: latent values to [*outer]."""


def choose(way: Reduction) -> Groups | None:
    """The terms that a factor is evaluated by, None where evaluating it as a whole is about as cheap by counted
    operations."""
    density = way.output.density
    if density is None or len(density.terms) < 2 or not (way.steps or density.event_ndim):
        return None
    if not _rest_is_data(density, way):
        return None
    groups = axes_of_terms(density.terms, way.axes)
    if len(groups) < 2 or way.entries * num_terms(density) < MIN_WORK:
        return None
    speed = 1 if any(s.links for s in way.steps) else MATMUL_SPEED
    sizes = [math.prod(a.size for a in g) for g in groups]
    pairs = sum(m * n for m, n in combinations_with_replacement(sizes, 2))
    cost = math.prod(sizes) if _predictor(density).exponential else pairs
    return groups if cost * MIN_GAIN < speed * math.prod(sizes) else None


def _predictor(density: Density) -> Predictor:
    assert density.family.predictor is not None, "others have no terms"
    return density.family.predictor


def _rest_is_data(density: Density, way: Reduction) -> bool:
    """Whether latents enter through the predictor only, or a Normal's scale that all summed rows share."""
    dims = way.output.dims
    summed = [d for d, plate in enumerate(dims) if plate in way.rows]
    for argument in density.arguments:
        if argument.latents and argument.name != _predictor(density).argument:
            events = range(len(dims), len(argument.shape))
            if argument.name != "scale" or any(argument.shape[d] > 1 for d in (*summed, *events)):
                return False
    return True


@dataclass(frozen=True, eq=False)
class Additive:
    """A factor by the terms of its predictor, from latent values to log densities."""

    task: Task
    groups: Groups

    @cached_property
    def density(self) -> Density:
        """The factor's family and its arguments, the terms of the predictor among them."""
        assert self.task.output.density is not None
        return self.task.output.density

    def prepare(self, operands: Operands) -> tuple[PyTree, Array]:
        """What `finish` needs, and whether it can be trusted."""
        rows = _Rows(self, self.task, operands)
        return rows.rates() if _predictor(self.density).exponential else rows.squares()

    def finish(self, prepared: PyTree) -> Array:
        """The log density: [*order]."""
        if _predictor(self.density).exponential:
            linear, rates = prepared
            return linear - rates
        constant, squares, count, scale = prepared
        total = constant - 0.5 * squares / scale**2 - count * jnp.log(scale)
        return jnp.broadcast_to(total, [self.task.plan.size[a] for a in self.task.order])


@dataclass(frozen=True, eq=False)
class _Rows:
    """Sums over the rows of a factor.

    Arrays of single entries are [*outer], results are over `task.order`,
    with dimensions of size one where they do not vary.
    """

    way: Additive
    task: Task
    operands: Operands

    def rates(self) -> tuple[Array, Array]:
        """The part of the log density that is linear in the terms, and the sum of all rates."""
        data, (base, terms) = self.data, self.predictor(jnp.log)
        reach = jnp.max(jnp.abs(base)) + sum(
            jnp.max(jnp.abs(in_front(t, g, self.operands.particles)))
            for t, g in zip(terms, self.way.groups, strict=True)
        )

        def product(values: Particles) -> Array:
            return math.prod((jnp.exp(t(values)) for t in terms[:-1]), start=data["weight"] * jnp.exp(base))

        counts = data["weight"] * data["value"]
        linear = self.over((), lambda _: counts * base - data["weight"] * gammaln(data["value"] + 1.0))
        linear = linear + sum(self.over(g, lambda _: counts, t) for t, g in zip(terms, self.way.groups, strict=True))
        rates = self.over(self.task.axes, product, lambda values: jnp.exp(terms[-1](values)))
        holds = jnp.mean(gammaln(data["value"] + 1.0)) < SMALL_ERROR / jnp.finfo(linear.dtype).eps
        return (linear, rates), (reach < FAR) & holds & jnp.all(jnp.isfinite(jax.lax.stop_gradient(linear)))

    def squares(self) -> tuple[Array, Array]:
        """What is constant, the sum of squared residuals, the number of rows, and the scale."""
        data, (base, terms) = self.data, self.predictor(lambda loc: loc)
        log_value = _predictor(self.way.density).log_value
        logs = jnp.log(data["value"]) if log_value else 0.0
        value = logs if log_value else data["value"]
        unit = data.get("scale", 1.0)

        def minus(term: Term) -> Term:
            return lambda values: -term(values) / unit

        def weighted(term: Term) -> Term:
            return lambda values: data["weight"] * term(values)

        pieces: list[tuple[tuple[Axis, ...], Term]] = [((), lambda _: (value - base) / unit)]
        pieces += [(g, minus(t)) for t, g in zip(terms, self.way.groups, strict=True)]
        squares, lengths = 0.0, 0.0
        for (mine, one), (theirs, other) in combinations_with_replacement(pieces, 2):
            axes = tuple(a for a in self.task.axes if a in (*mine, *theirs))
            found = self.over(axes, weighted(one), other)
            squares = squares + (found if one is other else 2 * found)
            if one is other:
                lengths = lengths + jnp.sqrt(jnp.maximum(jax.lax.stop_gradient(found), 0.0))
        total = jax.lax.stop_gradient(squares)
        safe = jnp.all((lengths**2 <= 2.0**LOST_BITS * total) & jnp.isfinite(total))
        constant = self.over((), lambda _: -data["weight"] * (logs + jnp.log(unit) + LOG_ROOT_2PI))
        scale = 1.0 if "scale" in data else self.scale
        return (constant, squares, self.over((), lambda _: data["weight"]), scale), safe

    @cached_property
    def data(self) -> dict[str, Array]:
        """Arguments without latents as floats, and the weight of every entry, NaN outside of the support: [*outer]."""
        density = self.way.density
        known = [
            a.name for a in density.arguments if not a.latents and a.name in ("value", "scale", "inside", *WEIGHTS)
        ]
        found = dict(zip(known, self.one_particle(known)({}), strict=True))
        weight = jnp.where(found.pop("inside"), 1.0, jnp.nan) * found.pop("scale_factor", 1.0)
        mask = found.pop("mask", None)
        found["weight"] = weight if mask is None else jnp.where(mask, weight, 0.0)
        return {n: v.astype(jnp.result_type(float)) for n, v in found.items()}

    def predictor(self, transform: Callable[[Array], Array]) -> tuple[Array, list[Term]]:
        """The predictor at the reference point, and what every group of axes adds to it."""
        run = self.one_particle([_predictor(self.way.density).argument])
        latents = {n for names in self.way.density.terms for n in names}
        reference = {n: _centre(self.operands.particles[n]) for n in latents}
        base = transform(run(reference)[0])

        def term(group: Sequence[Axis]) -> Term:
            mine = [n for a in group for n in a.latents if n in latents]
            return lambda values: transform(run({**reference, **{n: values[n] for n in mine}})[0]) - base

        return base, [term(g) for g in self.way.groups]

    @cached_property
    def scale(self) -> Array:
        """A scale that depends on latents, over `task.order`."""
        task, argument = self.task, self.way.density.argument("scale")
        assert argument is not None
        axes = [a for a in task.axes if any(n in a.latents for n in argument.latents)]
        dims, gone = task.output.dims, task.rows
        constant = [d for d in range(len(argument.shape)) if d >= len(dims) or not dims[d] or dims[d] in gone]
        run = self.one_particle(["scale"])
        found = on_axes(lambda values: jnp.squeeze(run(values)[0], constant), axes, self.operands.particles, ())
        return expand(found, [*(d for d in dims if d and d not in gone), *(a.name for a in axes)], task.order)

    def one_particle(self, arguments: Sequence[str]) -> Callable[[Particles], list[Array]]:
        names = [Part.ARGUMENT.of(self.task.name, n) for n in arguments]
        return of_one_particle(self.task.program, names, self.operands.particles, self.operands.inputs)

    def over(self, axes: Sequence[Axis], one: Term, other: Term = lambda _: jnp.ones(())) -> Array:
        """The sum over rows of a product, over some particle axes."""
        task = self.task
        rows = num_terms(self.way.density) if task.left else 1
        found = in_parts(
            task,
            self.operands,
            lambda values: self.inner(one(values), other(values)),
            axes,
            task.left,
            rows * math.prod(a.size for a in axes),
            alone=not task.first and len(axes) > 1,
        )
        mine = [a.name for a in axes]
        return expand(found, [a for a in task.order if a not in task.plan.scope or a in mine], task.order)

    def inner(self, one: Array, other: Array) -> Array:
        """The sum of a product over event dimensions and the plates that are summed as a whole: [*other plates].

        A matrix product under `vmap`.
        """
        task, value = self.task, self.way.density.argument("value")
        assert value is not None
        dims, plates = task.output.dims, {s.plate for s in task.first}
        rank = len(value.shape)
        summed = [d for d in range(rank) if d >= len(dims) or dims[d] in plates]
        letters = [chr(ord("a") + d) for d in range(rank)]
        kept = [letters[d] for d in range(rank) if d not in summed]
        each = "".join(letters)
        one, other = (jnp.broadcast_to(x, value.shape) for x in (one, other))
        found = jnp.einsum(f"{each},{each}->{''.join(kept)}", one, other, precision=matmul_precision())
        absent = [i for i, x in enumerate(kept) if not dims[letters.index(x)]]
        return math.prod(s.scale for s in task.first) * jnp.squeeze(found, absent)


def _centre(particles: Array) -> Array:
    """A point among particles: their mean, for whole numbers the first; a constant to gradients."""
    middle = jnp.mean(particles, 0) if jnp.issubdtype(particles.dtype, jnp.floating) else particles[0]
    return jax.lax.stop_gradient(middle)
