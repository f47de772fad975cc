"""A start by gradients, for guides that hold many coordinates on one particle, or are far from the posterior for long.

From the prior's quantiles all particles of a long vector are far from the posterior, one has all the weight, and QEM
takes hundreds of steps to the posterior's place and more to its covariance. Gradients know both at once.

First the best independent Normals in unconstrained space, by maximising the evidence's lower bound over fixed draws
(Giordano, Ingram & Broderick, Black box variational inference with a deterministic objective, 2024). Then, for
coordinates that are joint, the inverse of the expected curvature under them, which is what the covariance of the best
joint Normal is (Opper & Archambeau, The variational Gaussian approximation revisited, 2009).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from kayn.evidence.problem import Problem
from kayn.guides.factorised import FactorisedGuide, GuideSite
from kayn.guides.joint import JointPart, by_part
from kayn.guides.normal import Gaussian, MultivariateNormal, Normal
from kayn.inference.coordinates import coordinate_density
from kayn.programs.sites import Inspected
from kayn.support.arrays import Array
from kayn.support.names import parameter
from kayn.xla.compilation import is_traced, once_options, quick_options
from kayn.xla.jit import QuickJit

LONG = 16
"""Coordinates on one particle from which gradients are worth the time that compiling them takes."""
DEAR = 2**27
"""Operations of a step from which they are, too: fewer of these are needed, and none far from the posterior."""
PAIRS, FEWEST = 8, 2
"""Antithetic pairs of draws over which the bound is averaged, and where these take too long."""
MOST_ENTRIES = 2**20
"""Numbers in a model up to which gradients are taken."""
STEPS = 200
"""Of L-BFGS at most."""
OPERATIONS = 2**31
"""That all values of the density may take, which with their gradients is a few seconds on two cores."""
LITTLE = 2**26
"""Up to which the program had better be compiled fast than made fast."""
SECONDS = 10.0
"""After which it is given up, for what operations do not tell; compiling apart."""
BEGINNING = 0.4
"""Scale of the first Normals, in those of the guide's own start."""
WIDTHS = (-20.0, 5.0)
"""Logarithms of the narrowest and the widest scale, in the same."""
IMPOSSIBLE = 1e30
"""Stands for a loss that is not finite."""
FLATTEST = 1e-4
"""Curvature of the flattest direction at least, where that along the coordinates is one."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of a model's density, by which kayn's own guide may find where to start.

    Attributes:
        params: of the model.
        problem: that the guide is fitted to.
    """

    inspected: Inspected
    params: Mapping[str, Array]
    problem: Problem

    def pay(self, guide: FactorisedGuide) -> bool:
        """Whether they are worth compiling before any step is taken: a vector is long, or a step dear."""
        longest = max((sum(_length(s) for s in block) for block in _blocks(guide)), default=0)
        return self._there_are(guide) and (longest >= LONG or self.problem.layout.operations >= DEAR)

    def lead(self, guide: FactorisedGuide) -> dict[str, Array] | None:
        """Parameters of the guide where they lead from its start; None where there are none, or they lead nowhere."""
        if not self._there_are(guide):
            return None
        try:
            ascent = _Ascent(guide, *coordinate_density(guide, self.inspected, self.params))
            at = ascent.climbed() if ascent.pairs >= FEWEST else None
            found = None if at is None else _parameters(ascent, at)
        except (ValueError, TypeError, NotImplementedError, FloatingPointError, TimeoutError):
            return None  # what has no gradient, or a dear one
        return None if found is None else {n: jnp.asarray(v, jnp.result_type(float)) for n, v in found.items()}

    def _there_are(self, guide: FactorisedGuide) -> bool:
        if is_traced((self.inspected.args, self.inspected.kwargs, self.params)):
            return False
        entries = sum(math.prod(s.shape) for s in self.inspected.sites.values() if s.kind == "sample")
        normal = all(isinstance(s.family, Gaussian) for s in guide.sites)
        return guide.draws_together and normal and entries <= MOST_ENTRIES


def _blocks(guide: FactorisedGuide) -> list[list[GuideSite]]:
    """Sites whose coordinates are joint, together."""
    by_name = {s.name: s for s in guide.sites}
    alone = [[s] for s in guide.sites if type(s.family) is MultivariateNormal]
    return [[by_name[n] for n in block] for block in guide.blocks] + alone


def _vectors(site: GuideSite, u: Array) -> Array:
    """[*shape of u] to [*S, n], with n joint coordinates."""
    return site.family.coordinates.vectors(u) if isinstance(site.family, JointPart) else u


def _length(site: GuideSite) -> int:
    whole = np.shape(site.start["loc"])
    return site.family.coordinates.length if isinstance(site.family, JointPart) else whole[-1]


@dataclass(frozen=True, eq=False)
class _Ascent:
    """The bound of independent Normals, whose locations are `loc + scale * shift` and whose scales `scale * width`.

    Attributes:
        guide: whose start gives `loc` and `scale`.
        problem, density: see `coordinate_density`.
    """

    guide: FactorisedGuide
    problem: Problem
    density: Callable[[Mapping, Mapping[str, Array]], Array]

    @cached_property
    def places(self) -> dict[str, np.ndarray]:
        """Where the coordinates of a site are among all: [*shape of u]."""
        shapes = {s.name: np.shape(s.start["loc"]) for s in self.guide.sites}
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
        return {
            n: np.arange(end - math.prod(shape), end).reshape(shape)
            for (n, shape), end in zip(shapes.items(), ends, strict=True)
        }

    @cached_property
    def size(self) -> int:
        """Coordinates of all sites."""
        return sum(p.size for p in self.places.values())

    @cached_property
    def _operations(self) -> float:
        """Of all values of the density, for one pair of draws."""
        numbers = [p for p in self.places.values() if p.ndim == 0]
        columns = len(numbers) + sum(_length(s) for block in _blocks(self.guide) for s in block)
        return 2 * max(self.problem.layout.operations, 1) * (STEPS + 2 * columns)

    @cached_property
    def pairs(self) -> int:
        """Antithetic pairs of draws."""
        return min(PAIRS, int(OPERATIONS / self._operations))

    @cached_property
    def _deadline(self) -> float:
        return time.perf_counter() + SECONDS

    @cached_property
    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """`loc` and `scale`, [size] each."""
        loc, scale = np.zeros(self.size), np.ones(self.size)
        for site in self.guide.sites:
            own = {n: np.asarray(v, float) for n, v in site.start.items()}
            loc[self.places[site.name]] = own["loc"]
            if "scale" in own:
                scale[self.places[site.name]] = own["scale"]
            else:  # joint, and independent of all others at the start
                scale[_vectors(site, self.places[site.name])] = np.sqrt((own["scale_tril"] ** 2).sum(-1))
        return loc, scale

    @cached_property
    def _run(self) -> Callable[[Array], tuple[Array, Array]]:
        half = np.random.default_rng(0).normal(size=(self.pairs, self.size))
        known = tuple(jnp.asarray(x, jnp.result_type(float)) for x in (*self.start, np.concatenate([half, -half])))

        def loss(numbers: Mapping, known: tuple[Array, ...], at: Array) -> Array:
            loc, scale, noise = known
            shift, log_width = at
            points = loc + scale * (shift + jnp.exp(log_width) * noise)
            each = jax.vmap(lambda u: self.density(numbers, {n: u[own] for n, own in self.places.items()}))(points)
            return -jnp.mean(each) - jnp.sum(log_width)

        little = self.pairs * self._operations < LITTLE
        run = QuickJit(jax.value_and_grad(loss, 2), options=once_options if little else quick_options)
        return lambda at: run(self.problem.numbers, known, at)

    def loss(self, at: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the bound, up to a constant, and its gradient, in nats; `at` are shifts and log widths [2 * size]."""
        value, gradient = self._run(jnp.asarray(at.reshape(2, -1), jnp.result_type(float)))
        value, gradient = float(value), np.asarray(gradient, float).ravel()
        if time.perf_counter() > self._deadline:  # which is set after the first time, when all is compiled
            raise TimeoutError
        # a step to where nothing is finite is too long
        return (value, gradient) if np.isfinite(value) and np.isfinite(gradient).all() else (IMPOSSIBLE, 0 * gradient)

    def climbed(self) -> np.ndarray | None:
        """Where the bound is highest."""
        import scipy.optimize  # takes half as long as all that kayn imports

        at = np.concatenate([np.zeros(self.size), np.full(self.size, math.log(BEGINNING))])
        bounds = [(None, None)] * self.size + [WIDTHS] * self.size
        options = {"maxiter": STEPS, "maxcor": 20}
        best = scipy.optimize.minimize(self.loss, at, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return best.x if best.fun < IMPOSSIBLE else None

    def curvature(self, at: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Of minus the bound along the locations of vectors, which have nothing to do with each other, in units of
        their widths: [*S, n, n].

        From gradients at both ends of each width, as far as draws reach.

        Args:
            places: of the vectors' coordinates [*S, n].
        """
        widths = np.exp(at[self.size :])

        def column(where: np.ndarray) -> np.ndarray:
            step = np.zeros(2 * self.size)
            step[where] = widths[where]
            ahead, back = (self.loss(at + sign * step)[1] for sign in (1, -1))
            return (widths * (ahead - back)[: self.size] / 2)[places]

        return np.stack([column(places[..., i]) for i in range(places.shape[-1])], -1)


def _parameters(ascent: _Ascent, at: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters of the guide by `numpyro.param` name, with the covariances that the curvature says.

    What has no plates varies together, whichever axes it is on, and every vector takes what it varies by then.
    """
    guide, (loc, scale) = ascent.guide, ascent.start
    loc, scale = loc + scale * at[: ascent.size], scale * np.exp(at[ascent.size :])
    found = {n: {"loc": loc[own], "scale": scale[own]} for n, own in ascent.places.items()}
    numbers = [[s] for s in guide.sites if isinstance(s.family, Normal) and ascent.places[s.name].ndim == 0]
    units = [(own, _places(own, ascent.places)) for own in (*numbers, *_blocks(guide))]
    whole = [unit for unit in units if unit[1].ndim == 1]
    for group in ([whole] if whole else []) + [[unit] for unit in units if unit[1].ndim > 1]:
        places = np.concatenate([own for _, own in group], -1)
        covariance, end = _inverse(ascent.curvature(at, places)), 0
        for sites, own in group:
            begin, end = end, end + own.shape[-1]
            root = np.linalg.cholesky(covariance[..., begin:end, begin:end])
            joint = {"loc": loc[own], "scale_tril": scale[own][..., :, None] * root}
            parts = [s.family for s in sites if isinstance(s.family, JointPart)]
            if sites in numbers:
                found[sites[0].name]["scale"] = joint["scale_tril"].reshape(())
            else:
                found |= dict(zip((s.name for s in sites), by_part(parts, joint) if parts else [joint], strict=True))
    return {
        parameter(s.name, p): found[s.name].get(p, np.zeros(np.shape(first)))
        for s in guide.sites
        for p, first in s.start.items()
    }


def _places(sites: Sequence[GuideSite], places: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where joint coordinates of sites are among all: [*S, n]."""
    return np.concatenate([np.atleast_1d(_vectors(s, places[s.name])) for s in sites], -1)


def _inverse(curvature: np.ndarray) -> np.ndarray:
    """Of matrices [..., n, n] that should be symmetric and positive, in units in which their diagonal is about one."""
    values, vectors = np.linalg.eigh((curvature + curvature.swapaxes(-1, -2)) / 2)
    return np.einsum("...ij,...j,...kj->...ik", vectors, 1 / np.maximum(values, FLATTEST), vectors)
