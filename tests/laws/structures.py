"""Descriptions of random models: sites, plates, names and numbers, without programs.

Numbers (data, index arrays, guide parameters, masks) come from the seed of a `Structure`, which prints itself when an
example fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

CATEGORIES = 3
INTEGERS = {"bernoulli": 2, "categorical": CATEGORIES, "poisson": 5}
ROWS = "rows"
"""The plate of data, which may be subsampled."""
PREFIX = "part"
"""What `handlers.scope` puts before every name."""
DISCRETE = ("bernoulli", "categorical")


@dataclass(frozen=True)
class PlateSpec:
    """A plate.

    Attributes:
        declared: by `numpyro.plate`; otherwise a plain batch dimension of the distribution.
        whole: how many elements there are, if only `size` of them are seen.
    """

    name: str
    size: int
    dim: int
    declared: bool = True
    whole: int = 0

    @property
    def elements(self) -> int:
        return self.whole or self.size


@dataclass(frozen=True)
class Read:
    """How a site reads `source`: for each of its plates "aligned", "sum", "flip", "first",
    or an index's path of plates."""

    source: str
    how: tuple[tuple[str, Any], ...] = ()
    gather: bool = False


@dataclass(frozen=True)
class SiteSpec:
    """One site.

    Attributes:
        wrap: "mask" or "scale" around it; "part" masks numbers within events of data.
        select: a discrete latent and what it picks an element of.
        fixed: the handler that gives a latent its value.
        steps: of a loop, if it is a Markov chain, with data of its own.
        guided_by_loop: the guide draws a chain in a loop too.
    """

    name: str
    home: tuple[str, ...]
    family: str
    reads: tuple[Read, ...]
    observed: bool = False
    wrap: str = ""
    enumerate: bool = False
    select: tuple[str, str] | None = None
    fixed: str = ""
    steps: int = 0
    guided_by_loop: bool = False

    @property
    def drawn(self) -> bool:
        """Whether the guide draws it."""
        return not (self.observed or self.enumerate or self.fixed)


@dataclass(frozen=True)
class Structure:
    """A model, a guide, and how particles are taken.

    Attributes:
        guide_reads: what guide sites read of each other.
        auxiliary: guide sites that read an auxiliary one.
        handlers: around the model: "scale", "seed", "block", "scope", "condition", "substitute" (of a parameter),
            "reparam".
        names: of sites, plates and parameters, where they are not their own.
        missing: whether data are NaN where a mask takes them out.
    """

    plates: tuple[PlateSpec, ...]
    sites: tuple[SiteSpec, ...]
    guide_reads: tuple[tuple[str, tuple[Read, ...]], ...]
    seed: int
    strategy: str = "parallel"
    groups: tuple[tuple[str, ...], ...] = ()
    num_particles: tuple[tuple[str, int], ...] = field(default=())
    denominator: str = "mixture"
    auxiliary: tuple[str, ...] = ()
    handlers: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    missing: bool = False

    def plate(self, name: str) -> PlateSpec:
        return next(p for p in self.plates if p.name == name)

    def site(self, name: str) -> SiteSpec:
        return next(s for s in self.sites if s.name == name)

    @property
    def latents(self) -> tuple[SiteSpec, ...]:
        return tuple(s for s in self.sites if not s.observed)

    @property
    def rows(self) -> PlateSpec | None:
        """The subsampled plate, if there is one."""
        return next((p for p in self.plates if p.whole > p.size), None)

    def shape(self, home: tuple[str, ...]) -> tuple[int, ...]:
        """Of all elements, also those that a subsample leaves out."""
        dims = {self.plate(p).dim: self.plate(p).elements for p in home}
        return tuple(dims.get(d, 1) for d in range(min(dims, default=0), 0))

    # -- names

    def written(self, name: str) -> str:
        """How the program writes a name."""
        return dict(self.names).get(name, name)

    def full(self, name: str) -> str:
        """The name that a site, plate or parameter has to whoever runs the model."""
        return f"{PREFIX}/{self.written(name)}" if "scope" in self.handlers else self.written(name)

    def latent(self, site: SiteSpec) -> str:
        """The name of the latent that stands for a site."""
        return self.full(site.name) + ("_decentered" if self.moved(site) else "")

    def moved(self, site: SiteSpec) -> bool:
        """Whether a latent is drawn in other coordinates."""
        return "reparam" in self.handlers and site.family == "normal" and site.drawn and not (site.steps or site.wrap)

    # -- numbers

    def index(self, source: str, target: str) -> np.ndarray:
        """Which element of `target` every row of `source` belongs to."""
        names = [p.name for p in self.plates]
        rng = np.random.default_rng([self.seed, names.index(source), names.index(target)])
        return rng.integers(0, self.plate(target).size, self.plate(source).elements)

    def subsample(self) -> dict[str, jnp.ndarray]:
        """The elements of the subsampled plate that are seen, by its full name."""
        if (rows := self.rows) is None:
            return {}
        drawn = np.random.default_rng([self.seed, 50]).permutation(rows.whole)[: rows.size]
        return {self.full(rows.name): jnp.asarray(drawn, jnp.int32)}

    def mask(self, site: SiteSpec) -> np.ndarray:
        """Which elements of a site count; for "part", of its events."""
        shape = (*self.shape(site.home), *((2,) if site.wrap == "part" else ()))
        return np.random.default_rng([self.seed, 60, self._position(site)]).random(shape) < 0.6

    def counted(self, site: SiteSpec) -> np.ndarray:
        """`mask`, of the elements that a subsample has."""
        mask = self.mask(site)
        for rows in self.subsample().values() if ROWS in site.home else ():
            mask = np.take(mask, np.asarray(rows), mask.ndim + self.plate(ROWS).dim)
        return mask

    def data(self, site: SiteSpec, broken: bool = False) -> np.ndarray:
        """Data of an observed site; `broken`: NaN wherever a mask takes them out."""
        rng = np.random.default_rng([self.seed, 100 + self._position(site)])
        shape = self.shape(site.home)
        if site.family not in ("normal", "event"):
            return rng.integers(0, INTEGERS[site.family], shape)
        # representable in float32, so that both precisions see the same data
        values = rng.normal(size=(*shape, 2) if site.family == "event" else shape).astype(np.float32).astype(np.float64)
        if not broken or site.wrap not in ("mask", "part"):
            return values
        seen = self.mask(site)
        return np.where(seen.reshape((*seen.shape, *(1,) * (values.ndim - seen.ndim))), values, np.nan)

    def constant(self, site: SiteSpec) -> np.ndarray:
        """What a handler gives a latent."""
        rng = np.random.default_rng([self.seed, 300 + self._position(site)])
        shape = self.shape(site.home)
        if site.family in DISCRETE:
            return rng.integers(0, INTEGERS[site.family], shape)
        shape = (*shape, 2) if site.family in ("mvn", "event") else shape
        return np.float64(np.float32(rng.gamma(2.0, size=shape) if site.family == "gamma" else rng.normal(size=shape)))

    def chain_shape(self, site: SiteSpec) -> tuple[int, ...]:
        return (site.steps, *self.shape(site.home))

    def chain_data(self, site: SiteSpec) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 400 + self._position(site)])
        return rng.normal(size=self.chain_shape(site)).astype(np.float32)

    def params(self) -> dict[str, jnp.ndarray]:
        out = {self.full("theta"): jnp.asarray(np.float32(0.3), jnp.result_type(float))}
        for i, site in enumerate(self.sites):
            if site.drawn:
                rng = np.random.default_rng([self.seed, 200 + i])
                shape = self.chain_shape(site) if site.steps else self.shape(site.home)
                start = (0.4 * rng.normal(size=shape)).astype(np.float32)
                out[self.full(f"{site.name}_q")] = jnp.asarray(start, jnp.result_type(float))
        return out

    def _position(self, site: SiteSpec) -> int:
        return [s.name for s in self.sites].index(site.name)
