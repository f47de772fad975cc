"""A guide whose vectors follow the model given its numbers: Normal about the mode that these make likely.

Where a scale and the elements that it scales share a particle, no one Normal fits both: how far elements go depends on
the scale (a funnel). Given the scale they often are nearly Normal, about another mode and with another curvature for
every value of it, which the model's density tells (Tierney & Kadane, Accurate approximations for posterior moments and
marginal densities, 1986; Rue, Martino & Chopin, Approximate Bayesian inference for latent Gaussian models by using
integrated nested Laplace approximations, 2009). Weights correct what is left, so that nothing is approximate here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr
from numpyro.distributions import constraints
from numpyro.distributions.transforms import LowerCholeskyAffine, Transform

from kayn.guides.cholesky import lower_cholesky
from kayn.guides.curvature import WHOLE, Curvature, Root
from kayn.particles.lattice import counted, even_normal
from kayn.support.arrays import Array, KeyArray
from kayn.support.names import RESERVED, parameter

NUMBERS, NOISE, VOLUME = (RESERVED + n for n in ("numbers", "noise", "volume"))
"""Auxiliary sites: coordinates of all numbers, standard noise of all elements of vectors, and the logarithm of what
volume a unit of that noise has."""
LOC, TRIL = parameter("numbers", "loc"), parameter("numbers", "scale_tril")
BEGIN, WIDTH = parameter("vectors", "loc"), parameter("vectors", "scale")
"""Parameters: location and Cholesky factor (of the covariance) of the numbers, where the vectors' mode is looked for
first, and how many times as wide they are as the curvature there says."""
PARAMETERS: Mapping[str, constraints.Constraint] = {
    LOC: constraints.real_vector,
    TRIL: lower_cholesky,
    BEGIN: constraints.real_vector,
    WIDTH: constraints.positive,
}
UNIT = math.sqrt(3) / math.pi
"""Scale of a logistic variable whose variance is one."""
STEPS = 12
"""Of Newton's method at most."""
NEAR = 1e-2
"""Size of a step, in standard deviations, after which none follows."""
SHARES = (1.0, 0.5, 0.2, 0.05, 0.01, 0.002)
"""Of a step that are compared: a whole one may go too far."""


@dataclass(frozen=True, eq=False)
class Unconstrained:
    """A latent, as coordinates in unconstrained space.

    Attributes:
        shape: of the coordinates.
        transform: from them to the latent.
    """

    name: str
    shape: tuple[int, ...]
    transform: Transform

    @property
    def size(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class LaplaceGuide:
    """A NumPyro guide: one joint law of all numbers, and given them one joint Normal of all elements of vectors.

    Numbers are logistic variables, moved, scaled and mixed: that of a scale in a funnel has tails like theirs, and what
    is wider than a posterior by a little has weights that are hardly less even (`docs/decisions/inference.md`).
    Gradients do not go through the mode.

    Attributes:
        numbers: latents whose coordinates are drawn first, in the order in which these stand.
        vectors: latents on the real line, likewise.
        density: log density of model and data, a scalar in nats, of the coordinates of all by name.
        start: parameters by `numpyro.param` name.
        curvature: how that of the vectors is read.
    """

    numbers: Sequence[Unconstrained]
    vectors: Sequence[Unconstrained]
    density: Callable[[Mapping[str, Array]], Array]
    start: Mapping[str, Array]
    curvature: Curvature = WHOLE

    draws_together: ClassVar[bool] = True

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run as a NumPyro guide. Arguments, the model's, are not looked at."""
        params = {n: numpyro.param(n, self.start[n], constraint=c) for n, c in PARAMETERS.items()}
        apart = dist.Logistic(jnp.zeros_like(params[LOC]), UNIT).to_event(1)
        placed = LowerCholeskyAffine(params[LOC], params[TRIL])
        numbers = _auxiliary(NUMBERS, dist.TransformedDistribution(apart, placed))
        noise = _auxiliary(NOISE, dist.Normal(jnp.zeros_like(params[BEGIN]), 1).to_event(1))
        u, volume = self._placed(numbers, noise, params)
        volume = _auxiliary(VOLUME, dist.Delta(volume))
        for latent, own in _cut(self.numbers, numbers):
            value = latent.transform(own)
            claimed = -jnp.sum(latent.transform.log_abs_det_jacobian(own, value))
            numpyro.sample(latent.name, dist.Delta(value, claimed, event_dim=jnp.ndim(value)))
        for place, (latent, own) in enumerate(_cut(self.vectors, u)):
            # that of all stands with one of them
            claimed = jnp.zeros_like(volume) if place else -volume
            numpyro.sample(latent.name, dist.Delta(own, claimed, event_dim=jnp.ndim(own)))

    def draw_particles(
        self, key: KeyArray, num: int | Mapping[str, int], params: Mapping[str, Any]
    ) -> dict[str, Array]:
        """`num` particles of every site, which all have as many: [num, *shape], from noise that fills the quantiles
        evenly."""
        (num,) = set(counted(num, (c.name for c in (*self.numbers, *self.vectors))).values())
        params = {n: jnp.asarray(params.get(n, self.start[n])) for n in PARAMETERS}
        sizes = [(1, sum(c.size for c in latents)) for latents in (self.numbers, self.vectors)]
        first, noise = jnp.split(even_normal(key, num, sizes, params[LOC].dtype), [sizes[0][1]], axis=1)
        # the quantiles that normal noise is at
        apart = UNIT * (log_ndtr(first) - log_ndtr(-first))
        numbers = params[LOC] + apart @ params[TRIL].T
        u, volume = jax.vmap(lambda n, e: self._placed(n, e, params))(numbers, noise)
        out = {NUMBERS: numbers, NOISE: noise, VOLUME: volume}
        out |= {c.name: c.transform(own) for c, own in _cut(self.numbers, numbers)}
        return out | {c.name: own for c, own in _cut(self.vectors, u)}

    def _placed(self, numbers: Array, noise: Array, params: Mapping[str, Array]) -> tuple[Array, Array]:
        """Elements of all vectors [N] by their noise, and the log volume of a unit of it, given numbers [M]."""
        mode, root = self._traced_once(numbers, params[BEGIN])
        u = mode + params[WIDTH] * self.curvature.back(root, noise)
        return u, len(noise) * jnp.log(params[WIDTH]) - self.curvature.log_volume(root)

    @cached_property
    def _traced_once(self) -> Callable[[Array, Array], tuple[Array, Root]]:
        return jax.jit(self.mode)

    def mode(self, numbers: Array, begin: Array) -> tuple[Array, Root]:
        """Where the density of all vectors is highest, [N], and a root of its curvature there.

        Args:
            numbers: coordinates [M].
            begin: of the vectors, where Newton's method begins.
        """
        numbers, begin = jax.lax.stop_gradient((numbers, begin))
        known = {c.name: own for c, own in _cut(self.numbers, numbers)}

        @jax.jit  # traced once for all its uses
        def energy(u: Array) -> Array:
            return self.energy(known, u)

        def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
            count, u, *_ = state
            root = self.curvature.root(energy, u)
            half = self.curvature.half(root, jax.grad(energy)(u))
            move = -self.curvature.back(root, half)
            ahead = u + jnp.asarray(SHARES, u.dtype)[:, None] * move
            values = jax.vmap(energy)(ahead)
            best = ahead[jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))]
            return count + 1, best, root, jnp.sqrt(half @ half)

        def goes_on(state: tuple[Any, ...]) -> Array:
            return (state[0] < STEPS) & ~(state[-1] < NEAR)

        any_root, far = self.curvature.identity(begin), jnp.full((), jnp.inf, begin.dtype)
        # the curvature of the last step, which was short, is that of the mode
        _, mode, root, _ = jax.lax.while_loop(goes_on, step, (jnp.zeros((), int), begin, any_root, far))
        # numbers at which there is no density, as of a kernel that is singular in so many digits, have no weight
        known = jnp.array([jnp.isfinite(x).all() for x in (mode, *jax.tree.leaves(root))]).all()
        return jax.tree.map(lambda a, b: jnp.where(known, a, b), (mode, root), (begin, any_root))

    def energy(self, numbers: Mapping[str, Array], u: Array) -> Array:
        """Minus the log density at coordinates of all vectors [N], a scalar in nats.

        Args:
            numbers: coordinates by latent.
        """
        return -self.density({**numbers, **{c.name: own for c, own in _cut(self.vectors, u)}})


def _auxiliary(name: str, law: dist.Distribution) -> Array:
    return numpyro.sample(name, law, infer={"is_auxiliary": True})


def _cut(latents: Sequence[Unconstrained], u: Array) -> list[tuple[Unconstrained, Array]]:
    """Every latent with its own of the coordinates of all [..., N]."""
    ends = np.cumsum([c.size for c in latents])
    lead = u.shape[:-1]
    return [(c, u[..., end - c.size : end].reshape(*lead, *c.shape)) for c, end in zip(latents, ends, strict=True)]
