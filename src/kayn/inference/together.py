"""Which sites of a guide QEM keeps together, and their mean parameters as arrays.

Compiling a program takes time in proportion to its kernels, and site by site the M step would be most of them. Sites
with independent Normal coordinates and equally many particles are therefore kept side by side in one array. The sites
of a joint Normal have their moments in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from kayn.axes.minibatches import row_index
from kayn.errors import GuideError
from kayn.evidence.problem import Problem
from kayn.guides.factorised import GuideSite
from kayn.guides.families import Family, Moments, Params
from kayn.guides.joint import Exchangeable, JointPart, by_part, chains
from kayn.guides.normal import MultivariateNormal, Normal
from kayn.guides.skewed import OF_TAILS, Skewed
from kayn.particles.guide_program import GuideProgram
from kayn.support.arrays import Array
from kayn.support.names import RESERVED, joined
from kayn.xla.compilation import is_traced


@dataclass(frozen=True, eq=False)
class Single:
    """One site of any family, its mean parameters as the family has them.

    Attributes:
        size: its number of particles.
        widening: factor on the variance of its proposal.
    """

    site: GuideSite
    size: int
    widening: float

    @property
    def sites(self) -> tuple[GuideSite, ...]:
        """The one site, as a block of several has them."""
        return (self.site,)

    @property
    def name(self) -> str:
        """The site's own name."""
        return self.site.name

    @property
    def family(self) -> Family:
        """The site's own family."""
        return self.site.family

    def moments(self, by_site: Mapping[str, Params]) -> Moments:
        """Mean parameters of the member with these parameters."""
        return self.family.moments(by_site[self.name])

    def parameters(self, moments: Moments) -> tuple[Params, Params]:
        """Parameters with these mean parameters, and those of the wider proposal."""
        found = self.family.from_moments(moments)
        return found, self.family.widened(found, self.widening)

    def by_site(self, params: Params) -> dict[str, Params]:
        """Parameters, or mean parameters, of every site."""
        return {self.name: params}

    def by_coordinate(self, of_sites: Sequence[np.ndarray]) -> np.ndarray:
        """Numbers for the batch of every site, laid out as weights are to be."""
        return of_sites[0]

    def index(self, rows: Mapping[str, Array]) -> tuple[Array, ...] | None:
        """Where the elements of the particles are among all of the batch; None if these are all."""
        shape = np.shape(next(iter(self.site.start.values())))[: self.site.batch_ndim]
        return row_index(shape, self.site.subsampled, rows) if self.site.subsampled else None

    def expect(self, values: Mapping[str, Array], weights: Array) -> Moments:
        """Mean parameters under particles [K, *B, *E] with weights [K, *B]."""
        own = values[self.name]
        return self.family.expect(own, weights.reshape((*weights.shape, *(1,) * (own.ndim - weights.ndim))))


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Sites of independent Normal coordinates, their mean parameters as those of one Normal in [M],
    in the order of the sites.

    Attributes:
        size: the number of particles of each.
        widening: factors on the variance of their proposals, one a site.
    """

    sites: tuple[GuideSite, ...]
    size: int
    widening: tuple[float, ...]

    @cached_property
    def family(self) -> Normal:
        """That of all coordinates; those of Normal sites have no longer tails."""
        return Skewed(may=np.repeat(self.skewed, self.lengths)) if any(self.skewed) else Normal()

    @cached_property
    def skewed(self) -> list[bool]:
        """Which sites may have longer tails."""
        return [isinstance(s.family, Skewed) for s in self.sites]

    @property
    def name(self) -> str:
        """A name that no site has, made of all of theirs."""
        return RESERVED + joined(s.name for s in self.sites)

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of u of every site."""
        return [np.shape(s.start["loc"]) for s in self.sites]

    @property
    def dtype(self) -> Any:
        """The type of the joint array, which holds the numbers of every site."""
        return jnp.result_type(*(s.start["loc"] for s in self.sites))

    @cached_property
    def lengths(self) -> list[int]:
        """How many coordinates of the joint array are each site's."""
        return [math.prod(shape) for shape in self.shapes]

    def moments(self, by_site: Mapping[str, Params]) -> Moments:
        """Mean parameters of the members with these parameters."""

        def together(name: str) -> Array:
            own = [by_site[s.name].get(name, 0.0) for s in self.sites]
            # plain NumPy for plain arrays: nothing to compile before the first step
            xp: Any = jnp if is_traced(own) else np
            return xp.concatenate(
                [xp.broadcast_to(xp.asarray(v), n).ravel() for v, n in zip(own, self.shapes, strict=True)]
            )

        return self.family.moments({name: together(name) for name in self.family.parameters})

    def parameters(self, moments: Moments) -> tuple[Params, Params]:
        """Parameters with these mean parameters, and those of the wider proposal."""
        units = [_normal(s).unit for s in self.sites]
        found = self.family.from_moments(moments, np.repeat(units, self.lengths).astype(self.dtype))
        return found, self.family.widened(found, np.repeat(self.widening, self.lengths))

    def by_site(self, params: Params) -> dict[str, Params]:
        """Parameters, or mean parameters, of every site."""
        ends = np.cumsum(self.lengths)
        return {
            s.name: {p: v[end - n : end].reshape(shape) for p, v in params.items() if may or p not in OF_TAILS}
            for s, may, shape, n, end in zip(self.sites, self.skewed, self.shapes, self.lengths, ends, strict=True)
        }

    def by_coordinate(self, of_sites: Sequence[np.ndarray]) -> np.ndarray:
        """Numbers for the batch of every site, laid out as weights are to be."""
        # a subsampled site has particles of some of its coordinates
        lengths = [math.prod(s.sampled(shape)) for s, shape in zip(self.sites, self.shapes, strict=True)]
        return np.concatenate(
            [np.repeat(np.ravel(own), n // own.size) for own, n in zip(of_sites, lengths, strict=True)]
        )

    def index(self, rows: Mapping[str, Array]) -> tuple[Array, ...] | None:
        """Where the coordinates of the particles are among all of them; None if these are all."""
        if not any(s.subsampled for s in self.sites):
            return None
        found, first = [], 0
        for site, shape, length in zip(self.sites, self.shapes, self.lengths, strict=True):
            places = jnp.arange(first, first + length).reshape(shape)
            found.append(places[row_index(shape, site.subsampled, rows)].ravel())
            first += length
        return (jnp.concatenate(found),)

    def expect(self, values: Mapping[str, Array], weights: Array) -> Moments:
        """Mean parameters under particles [K, ...] of every site with weights [K, M]."""
        u = [_normal(s).unconstrained(values[s.name]).reshape(self.size, -1) for s in self.sites]
        return self.family.unconstrained_moments(jnp.concatenate(u, 1), weights)


@dataclass(frozen=True, eq=False)
class Joint:
    """The sites of a joint Normal, their mean parameters those of one Normal with a full covariance: [*S, N].

    Attributes:
        size: the number of particles.
        widening: factor on the variance of the proposal.
    """

    sites: tuple[GuideSite, ...]
    size: int
    widening: float

    @property
    def name(self) -> str:
        """A name that no site has, made of all of theirs."""
        return RESERVED + joined(s.name for s in self.sites)

    @cached_property
    def family(self) -> MultivariateNormal:
        """That of the joint Normal, coordinates of one site being of a kind."""
        kinds = np.repeat(np.arange(len(self.parts)), [p.coordinates.length for p in self.parts])
        return Exchangeable(kinds=tuple(kinds.tolist()))

    @cached_property
    def parts(self) -> list[JointPart]:
        """The families of the sites."""
        return [s.family for s in self.sites if isinstance(s.family, JointPart)]

    def moments(self, by_site: Mapping[str, Params]) -> Moments:
        """Mean parameters of the members with these parameters."""
        loc, tril = chains(self.parts, [by_site[s.name] for s in self.sites])
        return self.family.moments({"loc": loc, "scale_tril": tril})

    def parameters(self, moments: Moments) -> tuple[Params, Params]:
        """Parameters with these mean parameters, and those of the wider proposal."""
        units = np.repeat([p.unit for p in self.parts], [p.coordinates.length for p in self.parts])
        found = self.family.from_moments(moments, units.astype(moments["mean"].dtype))
        return found, self.family.widened(found, self.widening)

    def by_site(self, params: Params) -> dict[str, Params]:
        """Parameters of every site."""
        return dict(zip([s.name for s in self.sites], by_part(self.parts, params), strict=True))

    def by_coordinate(self, of_sites: Sequence[np.ndarray]) -> np.ndarray:
        """Numbers for the batch of every site, which are the same for all that is joint, laid out as weights are to
        be."""
        apart = self.parts[0].coordinates.apart
        own = of_sites[0]
        return own[tuple(slice(None) if d in apart else 0 for d in range(own.ndim))]

    def index(self, rows: Mapping[str, Array]) -> tuple[Array, ...] | None:
        """None: the particles are of all elements."""
        return None

    def expect(self, values: Mapping[str, Array], weights: Array) -> Moments:
        """Mean parameters under particles [K, *shape] of every site with weights [K, *S]."""
        u = [
            p.coordinates.vectors(p.unconstrained(values[s.name])) for s, p in zip(self.sites, self.parts, strict=True)
        ]
        return self.family.unconstrained_moments(jnp.concatenate(u, -1), weights[..., None])


Block = Single | SideBySide | Joint
"""Sites whose mean parameters are kept together."""


def _normal(site: GuideSite) -> Normal:
    assert isinstance(site.family, Normal)
    return site.family


def blocks(problem: Problem, sites: Sequence[GuideSite], widening: Mapping[str, float]) -> tuple[Block, ...]:
    """How the sites of a guide are kept together."""
    sizes = {s.name: problem.layout.axis_of(s.name).size for s in sites}
    normal: dict[int, list[GuideSite]] = {}
    for site in sites:
        if type(site.family) in (Normal, Skewed):
            normal.setdefault(sizes[site.name], []).append(site)
    beside = [SideBySide(tuple(own), size, tuple(widening[s.name] for s in own)) for size, own in normal.items()]
    parts: dict[tuple[str, ...], list[GuideSite]] = {}
    for site in sites:
        if isinstance(site.family, JointPart):
            parts.setdefault(site.family.block, []).append(site)
    joint = [Joint(tuple(own), sizes[names[0]], widening[names[0]]) for names, own in parts.items()]
    others = [s for s in sites if type(s.family) not in (Normal, Skewed, JointPart)]
    return (*beside, *joint, *(Single(s, sizes[s.name], widening[s.name]) for s in others))


def wider_by(overdispersion: float, coordinates: int) -> float:
    """Factor on the variance of a proposal of so many coordinates that share a particle, see `kayn.QEM`."""
    return 1 + overdispersion / math.sqrt(coordinates)


def refuse_dependence(guide: GuideProgram) -> None:
    """Refuse a user's guide whose sites depend on each other.

    Raises:
        GuideError: they do.
    """
    for name, parents in guide.parents.items():
        if parents:
            raise GuideError(
                f"guide site {name!r} depends on {', '.join(map(repr, parents))}, but QEM fits independent sites. "
                "Make the sites independent, or fit this guide with kayn.RWS and numpyro.infer.SVI"
            )
