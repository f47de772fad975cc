"""Random models as NumPyro programs, with guides for them, for Hypothesis.

A `Spec` is a plain description that prints itself when an example fails; `Spec.model` and `Spec.guide` run it. Numbers (data,
index arrays, guide parameters) come from `Spec.seed`.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from hypothesis import strategies as st
from numpyro import handlers

CONTINUOUS = ("normal", "student", "gamma", "mvn", "event")
DISCRETE = ("bernoulli", "categorical")
MAX_ELEMENTS = 12
"""Independent indices of a model, at most: 2 particles each give 4096 combinations."""
MAX_COMBINATIONS = 20_000


@dataclass(frozen=True)
class PlateSpec:
    """`declared`: by `numpyro.plate`; otherwise a plain batch dimension of the distribution."""

    name: str
    size: int
    dim: int
    declared: bool = True


@dataclass(frozen=True)
class Read:
    """How a site reads `source`: for each of its plates "aligned", "sum", "flip", "first", or the path of plates of an index."""

    source: str
    how: tuple[tuple[str, Any], ...] = ()
    gather: bool = False


@dataclass(frozen=True)
class SiteSpec:
    name: str
    home: tuple[str, ...]
    family: str
    reads: tuple[Read, ...]
    observed: bool = False
    wrap: str = ""
    enumerate: bool = False


@dataclass(frozen=True)
class Spec:
    plates: tuple[PlateSpec, ...]
    sites: tuple[SiteSpec, ...]
    guide_reads: tuple[tuple[str, tuple[Read, ...]], ...]
    seed: int
    strategy: str = "parallel"
    groups: tuple[tuple[str, ...], ...] = ()
    num_particles: tuple[tuple[str, int], ...] = field(default=())
    denominator: str = "mixture"

    def plate(self, name: str) -> PlateSpec:
        return next(p for p in self.plates if p.name == name)

    def site(self, name: str) -> SiteSpec:
        return next(s for s in self.sites if s.name == name)

    def shape(self, home: tuple[str, ...]) -> tuple[int, ...]:
        dims = {self.plate(p).dim: self.plate(p).size for p in home}
        return tuple(dims.get(d, 1) for d in range(min(dims, default=0), 0))

    # -- numbers

    def index(self, source: str, target: str) -> np.ndarray:
        """Which element of `target` every row of `source` belongs to."""
        names = [p.name for p in self.plates]
        rng = np.random.default_rng([self.seed, names.index(source), names.index(target)])
        return rng.integers(0, self.plate(target).size, self.plate(source).size)

    def data(self, site: SiteSpec) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 100 + [s.name for s in self.sites].index(site.name)])
        shape = self.shape(site.home)
        if site.family == "normal":
            # representable in float32, so that both precisions see the same data
            return rng.normal(size=shape).astype(np.float32).astype(np.float64)
        return rng.integers(0, {"bernoulli": 2, "categorical": 3, "poisson": 5}[site.family], shape)

    def params(self) -> dict[str, jnp.ndarray]:
        out = {"theta": jnp.asarray(np.float32(0.3), jnp.result_type(float))}
        for i, site in enumerate(self.sites):
            if not site.observed and not site.enumerate:
                rng = np.random.default_rng([self.seed, 200 + i])
                start = (0.4 * rng.normal(size=self.shape(site.home))).astype(np.float32)
                out[f"{site.name}_q"] = jnp.asarray(start, jnp.result_type(float))
        return out

    # -- programs

    def model(self) -> None:
        theta = numpyro.param("theta", 0.3)
        values: dict[str, Any] = {}
        for position, site in enumerate(self.sites):
            signal = sum((0.5 * self._read(values, r, site.home) for r in site.reads), 0.1 * position) + (
                theta if site.observed else 0.0
            )
            if site.family == "factor":
                with self._context(site):
                    numpyro.factor(site.name, jnp.broadcast_to(-0.2 * jnp.square(signal), self.shape(site.home)))
                continue
            fn = self._distribution(site, signal)
            with self._context(site):
                obs = self.data(site) if site.observed else None
                infer = {"enumerate": "parallel"} if site.enumerate else {}
                values[site.name] = numpyro.sample(site.name, fn, obs=obs, infer=infer)

    def guide(self) -> None:
        values: dict[str, Any] = {}
        reads = dict(self.guide_reads)
        for site in self.sites:
            if site.observed or site.enumerate or site.family == "factor":
                continue
            signal = numpyro.param(f"{site.name}_q", jnp.zeros(self.shape(site.home)))
            signal = signal + sum(0.5 * self._read(values, r, site.home) for r in reads.get(site.name, ()))
            with self._context(site, wrapped=False):
                values[site.name] = numpyro.sample(site.name, self._distribution(site, signal))

    def _context(self, site: SiteSpec, wrapped: bool = True) -> ExitStack:
        stack = ExitStack()
        for name in site.home:
            plate = self.plate(name)
            if plate.declared:
                stack.enter_context(numpyro.plate(name, plate.size, dim=plate.dim))
        if wrapped and site.wrap == "mask":
            mask = np.random.default_rng(self.seed).random(self.shape(site.home)) < 0.6
            stack.enter_context(handlers.mask(mask=mask))
        if wrapped and site.wrap == "scale":
            stack.enter_context(handlers.scale(scale=0.7))
        return stack

    def _distribution(self, site: SiteSpec, signal: Any) -> dist.Distribution:
        signal = jnp.asarray(signal, jnp.result_type(float))
        if any(not self.plate(p).declared for p in site.home):
            signal = jnp.broadcast_to(signal, jnp.broadcast_shapes(jnp.shape(signal), self.shape(site.home)))
        match site.family:
            case "normal":
                return dist.Normal(signal, jnp.exp(0.3 * jnp.tanh(signal)))
            case "student":
                return dist.StudentT(5.0, signal, 0.8)
            case "gamma":
                return dist.Gamma(2.0, jnp.exp(0.3 * jnp.tanh(signal)))
            case "mvn":
                scale = jnp.asarray(np.array([[1.0, 0.0], [0.5, 0.8]]), signal.dtype)
                return dist.MultivariateNormal(jnp.stack([signal, -signal], -1), scale_tril=scale)
            case "event":
                return dist.Normal(signal[..., None] * jnp.asarray([1.0, -0.5]), 1.0).to_event(1)
            case "bernoulli":
                return dist.Bernoulli(logits=signal)
            case "categorical":
                return dist.Categorical(logits=jnp.stack([signal, jnp.zeros_like(signal), -0.5 * signal], -1))
            case "poisson":
                return dist.Poisson(jnp.exp(jnp.clip(signal, -3, 1.5)))
        raise AssertionError(site.family)

    def _read(self, values: dict[str, Any], read: Read, home: tuple[str, ...]) -> Any:
        """The value of `read.source`, broadcastable over the plates of `home`."""
        source = self.site(read.source)
        value = jnp.asarray(values[read.source], jnp.result_type(float))
        if source.family in ("mvn", "event"):
            value = value[..., 0] - 0.3 * value[..., 1] if source.family == "mvn" else value.sum(-1)
        how = dict(read.how)
        rank = -min((self.plate(p).dim for p in home), default=0)
        by_dim = {self.plate(p).dim: p for p in source.home}
        for dim, plate in by_dim.items():
            if how[plate] == "sum":
                value = value.sum(dim, keepdims=True)
        if not read.gather and all(h in ("aligned", "sum") for h in how.values()):
            return value.reshape(value.shape[max(value.ndim - rank, 0) :])

        def along(vector: np.ndarray, plate: str) -> np.ndarray:
            dim = self.plate(plate).dim
            return vector.reshape([-1 if d == dim else 1 for d in range(-rank, 0)])

        index: list[Any] = []
        for dim in range(-value.ndim, 0):
            plate = by_dim.get(dim)
            mode = "sum" if plate is None else how[plate]
            if mode in ("sum", "first"):
                index.append(0)
            elif mode in ("aligned", "flip"):
                vector = np.arange(self.plate(plate).size)
                index.append(along(vector if mode == "aligned" else vector[::-1], plate))
            else:
                vector = np.arange(self.plate(mode[0]).size)
                for a, b in itertools.pairwise(mode):
                    vector = self.index(a, b)[vector]
                index.append(along(vector, mode[0]))
        return value[tuple(index)]


@st.composite
def specs(draw: Any, discrete: bool = True) -> Spec:
    """Random models of 2 to 6 latents with at most `MAX_ELEMENTS` independent particle indices."""
    sizes = st.sampled_from([2, 2, 3, 1])
    plates = [
        PlateSpec("outer", draw(sizes), -2),
        PlateSpec("inner", draw(sizes), -1),
        PlateSpec("group", draw(sizes), -1),
        PlateSpec("batch", draw(sizes), draw(st.sampled_from([-1, -2])), declared=False),
        PlateSpec("rows", draw(st.integers(1, 6)), -1),
    ]
    by_name = {p.name: p for p in plates}
    homes = st.sampled_from(
        [(), (), ("outer",), ("inner",), ("group",), ("batch",), ("outer", "inner"), ("outer", "group")]
    )
    budget, latents = MAX_ELEMENTS, []
    for i in range(draw(st.integers(2, 6))):
        home = draw(homes)
        cost = int(np.prod([by_name[p].size for p in home]))
        if cost > budget - 1:
            home, cost = (), 1
        budget -= cost
        family = draw(st.sampled_from((*CONTINUOUS, "normal", *(DISCRETE if discrete else ()))))
        enumerated = family in DISCRETE and draw(st.booleans())
        wrap = draw(st.sampled_from(["", "", "", "scale"]))
        reads = draw(_reads(by_name, latents, home, most=2))
        latents.append(SiteSpec(f"z{i}", home, family, reads, wrap=wrap, enumerate=enumerated))
        if budget <= 1:
            break
    observed = []
    for i in range(draw(st.integers(1, 3))):
        home = draw(
            st.sampled_from([("rows",), ("rows",), ("outer", "rows"), ("outer", "inner"), ("group",), ("batch",), ()])
        )
        family = draw(st.sampled_from(["normal", "bernoulli", "poisson", "factor"]))
        wrap = draw(st.sampled_from(["", "", "mask", "scale"]))
        reads = draw(_reads(by_name, latents, home, most=3, least=1))
        observed.append(SiteSpec(f"y{i}", home, family, reads, observed=True, wrap=wrap))
    sampled = [z for z in latents if not z.enumerate]
    guide_reads = []
    if draw(st.booleans()):
        for i, site in enumerate(sampled):
            guide_reads.append((site.name, draw(_reads(by_name, sampled[:i], site.home, most=2))))
    strategy = draw(st.sampled_from(["parallel", "parallel", "parallel", "global", "local"]))
    groups: tuple[tuple[str, ...], ...] = ()
    if len(sampled) > 1 and draw(st.integers(0, 3)) == 0:
        groups = (tuple(draw(st.permutations([z.name for z in sampled]))[: draw(st.integers(2, 3))]),)
    most = int(np.clip(MAX_COMBINATIONS ** (1 / (MAX_ELEMENTS - budget)), 2, 4))
    if strategy == "parallel" and not groups:
        counts = tuple((z.name, draw(st.integers(1, most))) for z in sampled)
    else:
        counts = (("", draw(st.integers(1, most))),)
    return Spec(
        tuple(plates),
        (*latents, *observed),
        tuple(guide_reads),
        draw(st.integers(0, 1000)),
        strategy,
        groups,
        counts or (("", 2),),
        draw(st.sampled_from(["mixture", "mixture", "paired"])),
    )


@st.composite
def _reads(
    draw: Any, plates: dict[str, PlateSpec], latents: list[SiteSpec], home: tuple[str, ...], most: int, least: int = 0
) -> tuple:
    if not latents:
        return ()
    names = draw(st.lists(st.sampled_from([z.name for z in latents]), min_size=least, max_size=most, unique=True))
    out = []
    for name in names:
        source = next(z for z in latents if z.name == name)
        how = []
        for plate in source.home:
            options: list[Any] = ["sum", "first"]
            if plate in home:
                options = ["aligned"] * 8 + ["sum", "flip"]
            elif home:
                paths = [(h, plate) for h in home] * 4
                paths += [
                    (h, via, plate)
                    for h in home
                    for via in ("group", "inner")
                    if via not in (h, plate) and plate != "rows"
                ]
                options = paths * 2 + ["sum", "first"]
            how.append((plate, draw(st.sampled_from(options))))
        out.append(Read(name, tuple(how), draw(st.booleans())))
    return tuple(out)
