"""The factors that take the place of a sum: their arrays, their plates, and whether the site's density is still known.

The first keeps the site's own name, so that tables and messages speak of what the user has written.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.graph.aligned import Aligned
from kayn.graph.dependence import read_program
from kayn.graph.summands import Sum
from kayn.graph.types import Latent
from kayn.programs.outputs import Part
from kayn.programs.sites import Site
from kayn.programs.trace import Outputs, Program
from kayn.support.arrays import Array
from kayn.support.names import summand

TOTAL = Part.VALUE.of("sum")


@dataclass(frozen=True, eq=False)
class Parts:
    """A sum as factors.

    Attributes:
        sum: the sum.
        weights: those of its terms, None where they are not known yet.
        rows: terms that are factors of their own.
        singles: terms of one entry that read one element each: a factor with a row for each, and at least two.
        rest: whether there is anything else; it is the last factor.
        sites: the factors by name, as sites with the factors' own dimensions.
        keeps_density: whether the only factor is the site's exponential family, element by element.
    """

    sum: Sum
    weights: Sequence[np.ndarray | None]
    rows: tuple[int, ...]
    singles: tuple[int, ...]
    rest: bool
    sites: Mapping[str, Site]
    keeps_density: bool

    def values(self, env: Mapping[Any, Array]) -> Outputs:
        """The factors' arrays, given the values of all variables of the flat program."""
        unknown = any(w is None for w in self.weights)
        computed = self.sum.weights(env) if unknown else self.weights
        known = [w if k is None else k for w, k in zip(computed, self.weights, strict=True)]
        arrays = [_weighed(env[v], w) for v, w in zip(self.sum.terms, known, strict=True)]
        found = [arrays[i].reshape(s.shape) for i, s in zip(self.rows, self.sites.values(), strict=False)]
        if self.singles:
            row = jnp.concatenate([arrays[i].ravel() for i in self.singles])
            found.append(jnp.pad(row, (0, max(0, 2 - row.size))))
        if self.rest:
            others = (a for i, a in enumerate(arrays) if i not in (*self.rows, *self.singles))
            rest = self.sum.rest(env)
            found.append(sum((jnp.reshape(a, rest.shape) for a in others), rest))
        return dict(zip(map(Part.DENSITY.of, self.sites), found, strict=True))


def _weighed(value: Array, weights: Array) -> Array:
    """Weighted entries; those without weight count for nothing, whatever they are."""
    if isinstance(weights, np.ndarray):
        if (weights == 1).all():
            return value
        if weights.all():
            return weights * value
    return jnp.where(weights == 0, 0.0, weights * value)


def parts_of(
    program: Program, name: str, found: Sum, weights: Sequence[np.ndarray | None], in_a_row: Container[Any]
) -> Parts:
    """The factors of one output.

    Args:
        name: the output, a site's log density.
        weights: those of the sum's terms, None where they are not known.
        in_a_row: terms whose entries are put into one dimension.
    """
    site = program.sites[name]
    shapes = [(v.aval.size,) if v in in_a_row else v.aval.shape for v in found.terms]
    alone = math.prod(found.out.aval.shape) == 1
    singles = tuple(i for i, v in enumerate(found.terms) if v.aval.size == 1 and v in in_a_row)
    # what is left of small things together, so that there are few factors
    rows = tuple(i for i, s in enumerate(shapes) if i not in singles and (not alone or math.prod(s) > 1))
    rest = len(rows) + len(singles) < len(shapes) or found.has_rest
    dims = _carried(found, in_a_row)
    sites: dict[str, Site] = {}
    for i in rows:
        sites |= _factor(site, len(sites), shapes[i], found.out.aval.ndim, dims[i])
    if singles:
        sites |= _factor(site, len(sites), (max(len(singles), 2),), found.out.aval.ndim, {})
    if rest:
        ndim = found.out.aval.ndim
        sites |= _factor(site, len(sites), found.out.aval.shape, ndim, {d: d for d in range(ndim)})
    keeps = not rest and not singles and len(rows) == 1 and shapes[rows[0]] == _outer_shape(program, site)
    if not keeps:
        sites = {n: replace(s, exponential_family=None) for n, s in sites.items()}
    return Parts(found, weights, rows, singles, rest, sites, keeps)


def keeps_plates(program: Program, name: str, found: Sum, in_a_row: Container[Any]) -> bool:
    """Whether the terms of a sum go over those of its plates of which the elements are more than a sum: elements of
    subsampled plates stand for several, steps of a loop follow each other."""
    site = program.sites[name]

    def counts(plate: str) -> bool:
        own = program.sites.get(plate)
        return site.steps is not None if own is None else own.shape != own.batch_shape

    kept = [found.out.aval.ndim + d for p, d, _ in site.frames if counts(p)]
    return not kept or all(d in dims for dims in _carried(found, in_a_row) for d in kept)


def _factor(site: Site, number: int, shape: tuple[int, ...], ndim: int, dims: Mapping[int, int]) -> dict[str, Site]:
    """A factor as a site.

    Args:
        ndim: dimensions of the sum.
        dims: those of the factor by that of the sum which they become.
    """
    frames = tuple((p, dims[ndim + d] - len(shape), n) for p, d, n in site.frames if ndim + d in dims)
    name = summand(site.name, number)
    observed = site.observed or number > 0
    changed = replace(site, name=name, shape=shape, batch_shape=shape, frames=frames, observed=observed)
    return {name: replace(changed, independent_ndim=0)}


def _carried(found: Sum, in_a_row: Container[Any]) -> list[dict[int, int]]:
    """For every term, its dimensions by that dimension of the sum which they become, element by element."""
    if not found.out.aval.ndim:
        return [{} for _ in found.terms]
    names = [f"{i}" for i, _ in enumerate(found.terms)]
    others = list(dict.fromkeys(v for e, _ in found.path for v in e.invars if not hasattr(v, "val")))

    def run(terms: Sequence[Array], values: Sequence[Array]) -> Array:
        return found.result(dict(zip(others, values, strict=True)), terms)

    avals = ([v.aval for v in found.terms], [v.aval for v in others])
    closed = jax.make_jaxpr(run)(*avals)
    latents = [
        Latent(n, s, "float32", len(s), tuple((str(d), d) for d in range(len(s))), False)
        for n, s in zip(names, (v.aval.shape for v in found.terms), strict=True)
    ]
    like = Program(closed.jaxpr, tuple(closed.consts), tuple(names), (TOTAL,), {}, ())
    known = [*closed.consts, *(None for _ in closed.jaxpr.invars)]
    read: Any = read_program(like, latents, known)[0][TOTAL]
    return [
        {
            how.dim: d
            for d in range(len(z.shape))
            if isinstance(how := read.get((z.name, str(d))), Aligned) and how.link is None and v not in in_a_row
        }
        for z, v in zip(latents, found.terms, strict=True)
    ]


def _outer_shape(program: Program, site: Site) -> tuple[int, ...] | None:
    """The shape of a site's density, element by element, None where it is no exponential family."""
    family = site.exponential_family
    ndim = len(site.batch_shape) + site.independent_ndim
    shapes = [
        v.aval.shape[:ndim]
        for o, v in zip(program.outputs, program.jaxpr.outvars, strict=True)
        if o.part is Part.ARGUMENT and o.site == site.name
    ]
    return None if family is None or not shapes else np.broadcast_shapes(*shapes)
