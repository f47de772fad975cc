"""Joint Normals over coordinates of several sites, or of several elements of one, drawn site by site.

Every site is Normal in unconstrained space given those before it: `u = loc + given @ noise + scale_tril @ own noise`,
where `noise` are the standardised coordinates of the earlier sites. Together that is one Normal with a full covariance,
and the guide's sites, plates and `loc` parameters are those of independent sites.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import constraints
from numpyro.distributions.transforms import IdentityTransform

from kayn.guides.cholesky import lower_cholesky
from kayn.guides.families import Params
from kayn.guides.normal import GUARD, Gaussian, MultivariateNormal, kept
from kayn.support.arrays import Array, KeyArray
from kayn.xla.compilation import is_traced


@dataclass(frozen=True)
class Coordinates:
    """How u of a site, [*B, *E], is a vector of n coordinates for every element of the plates that stay apart, [*S, n].

    Attributes:
        shape: of u.
        apart: dimensions of B whose elements have vectors of their own, ascending.
    """

    shape: tuple[int, ...]
    apart: tuple[int, ...]

    @cached_property
    def batch(self) -> tuple[int, ...]:
        """S, the sizes of the dimensions that stay apart."""
        return tuple(self.shape[d] for d in self.apart)

    @cached_property
    def length(self) -> int:
        """n, the number of coordinates of a vector."""
        return math.prod(n for d, n in enumerate(self.shape) if d not in self.apart)

    def vectors(self, u: Array) -> Array:
        """[..., *B, *E] to [..., *S, n]."""
        lead = np.ndim(u) - len(self.shape)
        moved = u.transpose((*range(lead), *(lead + d for d in self._order)))
        return moved.reshape((*np.shape(u)[:lead], *self.batch, self.length))

    def whole(self, vectors: Array) -> Array:
        """[..., *S, n] to [..., *B, *E]."""
        lead = np.ndim(vectors) - len(self.batch) - 1
        apart = vectors.reshape((*np.shape(vectors)[:lead], *(self.shape[d] for d in self._order)))
        return apart.transpose((*range(lead), *(lead + int(d) for d in np.argsort(self._order))))

    @cached_property
    def _order(self) -> tuple[int, ...]:
        return (*self.apart, *(d for d in range(len(self.shape)) if d not in self.apart))


@dataclass(frozen=True, eq=False)
class JointPart(Gaussian):
    """A site of a joint Normal, given the earlier sites of its block.

    Attributes:
        coordinates: how u is made of vectors.
        block: names of the sites of the joint Normal, in the order in which they are drawn.
        place_in_block: which of them this is.
        width: how many coordinates the earlier ones have.
    """

    coordinates: Coordinates = field(default_factory=lambda: Coordinates((), ()))
    block: tuple[str, ...] = ()
    place_in_block: int = 0
    width: int = 0

    parameters: ClassVar[Mapping[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale_tril": lower_cholesky,
        "given": constraints.independent(constraints.real, 2),
    }

    @property
    def earlier(self) -> tuple[str, ...]:
        """The sites of the block that this one is drawn given."""
        return self.block[: self.place_in_block]

    @property
    def later(self) -> tuple[str, ...]:
        """Those that are drawn given this one."""
        return self.block[self.place_in_block + 1 :]

    def conditional(self, params: Params, noise: Array) -> Params:
        """Parameters given the standardised coordinates of the earlier sites [*S, width]."""
        # sums of products, whose elements are seen to be apart
        shift = jnp.sum(params["given"] * noise[..., None, :], -1)
        return {**params, "loc": params["loc"] + self.coordinates.whole(shift)}

    def noise(self, values: Array, params: Params) -> Array:
        """Standardised coordinates [*S, n] of values under parameters that `conditional` gave."""
        off = self.coordinates.vectors(self.unconstrained(values) - params["loc"])
        tril = params["scale_tril"]
        if self.coordinates.length == 1:
            return off / tril[..., 0]
        return solve_triangular(tril, off[..., None], lower=True)[..., 0]

    def distribution(self, params: Params) -> dist.Distribution:
        """The law of z given the earlier sites: batch shape B, event shape E."""
        joint = self.coordinates.length > 1
        batch_ndim = len(self.coordinates.shape) - self.unconstrained_event_dim
        if joint and (len(self.coordinates.apart) < batch_ndim or self.unconstrained_event_dim != 1):
            return Elements(self, batch_ndim, params)
        return super().distribution(params)

    def base(self, params: Params) -> dist.Distribution:
        """The law of u, where no elements of a plate are joint."""
        loc, tril = params["loc"], params["scale_tril"]
        if self.coordinates.length > 1:
            return dist.MultivariateNormal(loc, scale_tril=tril, validate_args=False)
        scale = self.coordinates.whole(tril[..., 0])
        return dist.Normal(loc, scale, validate_args=False).to_event(self.unconstrained_event_dim)

    def scaled(self, loc: Array, scale: Array) -> Params:
        """Parameters with these locations and scales, without correlations."""
        scales = self.coordinates.vectors(scale)
        own = {"loc": loc, "scale_tril": scales[..., None] * np.eye(scales.shape[-1], dtype=scales.dtype)}
        return {**own, "given": np.zeros((*scales.shape, self.width), scales.dtype)} if self.width else own


@dataclass(frozen=True, eq=False)
class Exchangeable(MultivariateNormal):
    """A full covariance of coordinates of which some are of a kind, such as the elements of a plate.

    Elements of a plate often have a direction in common that no other coordinate determines, so that all of their
    correlations are alike. Correlations are therefore shrunk towards their averages over all pairs of two kinds, which
    many pairs tell with less noise, and these towards zero. Averages over permutations of the coordinates of a kind are
    correlations too.

    Attributes:
        kinds: a number for every coordinate; those with the same one are of a kind.
    """

    kinds: tuple[int, ...] = ()

    @cached_property
    def member(self) -> np.ndarray:
        """Which coordinates are of which kind: zeros and ones [kinds, E]."""
        return np.equal.outer(np.unique(self.kinds), np.array(self.kinds)).astype(float)

    def shrunk(self, correlation: Array, noise: Array) -> Array:
        """See `MultivariateNormal.shrunk`."""
        member, eye = self.member.astype(correlation.dtype), np.eye(len(self.kinds), dtype=correlation.dtype)
        apart = 1 - eye
        pairs = np.maximum(member @ apart @ member.T, 1)
        means = jnp.einsum("ai,...ij,bj->...ab", member, correlation, member) / pairs
        target = jnp.einsum("ai,...ab,bj->...ij", member, means, member) * apart
        # within a kind each pair stands twice
        alike = (member.T @ ((1 + np.eye(len(pairs), dtype=pairs.dtype)) / pairs) @ member) * apart
        share = kept(target, noise, alike)
        whiten = self.whitened(share * means)
        share, target = closest(whiten @ (correlation + eye) @ whiten.swapaxes(-1, -2), noise), share * target
        return correlation + share[..., None, None] * (target - correlation)

    def whitened(self, means: Array) -> Array:
        """R [*B, E, E] with R T R' = I, where T are correlations that are all alike, `means` [*B, kinds, kinds].

        No matrix of E rows is factorised: T scales deviations within a kind, and acts as a matrix of the size of
        `means` on their averages. (Triangular systems of 32 right sides and more are given to several threads, which
        wait for each other while other programs run.)
        """
        counts = self.member.sum(-1)
        basis = (self.member / np.sqrt(counts)[:, None]).astype(means.dtype)
        within = 1 - jnp.diagonal(means, axis1=-2, axis2=-1)
        eye = np.eye(len(counts), dtype=means.dtype)
        sizes = np.sqrt(np.outer(counts, counts)).astype(means.dtype)
        root = jnp.linalg.cholesky(within[..., None] * eye + sizes * means)
        between = solve_triangular(root, jnp.broadcast_to(eye, root.shape), lower=True)
        deviations = np.eye(basis.shape[-1], dtype=means.dtype) - basis.T @ basis
        return deviations / jnp.sqrt(within @ self.member.astype(means.dtype))[..., None] + basis.T @ between @ basis


SHARES = np.geomspace(GUARD, 1.0, 41)
"""Shares of a target in a covariance that are compared."""


def closest(relative: Array, noise: Array) -> Array:
    """The share of a target in a noisy covariance with which a Normal predicts a further particle best: [*B].

    Prediction counts each direction by its own variance, where shrinkage by squared distances would widen directions in
    which little of the variance is left. One of the E = 1 / noise particles is left out of the covariance in turn
    (Hoffbeck & Landgrebe, Covariance matrix estimation and classification with limited training data, 1996), their
    squared distances being taken as equal, so that their moments tell all.

    Args:
        relative: the covariance [*B, E, E] in coordinates in which the target is the identity.
        noise: [*B].
    """
    values = jnp.maximum(eigenvalues(relative), 0.0)[..., None, :]
    shares = jnp.asarray(SHARES, values.dtype)[:, None]
    noise = jnp.minimum(noise, 0.5)[..., None]
    mixed = (1 - shares) * values / (1 - noise[..., None]) + shares
    distance = jnp.sum(values / mixed, -1)
    others = 1 - (1 - shares[:, 0]) * noise / (1 - noise) * distance
    safe = jnp.maximum(others, jnp.finfo(values.dtype).tiny)
    loss = jnp.where(others > 0, jnp.sum(jnp.log(mixed), -1) + jnp.log(safe) + distance / safe, jnp.inf)
    return shares[jnp.argmin(jnp.nan_to_num(loss, nan=jnp.inf), -1), 0]


def eigenvalues(symmetric: Array) -> Array:
    """Of symmetric matrices [*B, E, E], ascending: [*B, E]. Those of two rows, of which there may be many, at once."""
    if symmetric.shape[-1] != 2:
        return jnp.linalg.eigvalsh(symmetric)
    first, second = symmetric[..., 0, 0], symmetric[..., 1, 1]
    middle, off = (first + second) / 2, (symmetric[..., 0, 1] + symmetric[..., 1, 0]) / 2
    radius = jnp.hypot((first - second) / 2, off)
    return jnp.stack([middle - radius, middle + radius], -1)


class Elements(dist.Distribution):
    """The law of a site of which elements of a plate are drawn jointly.

    Its batch shape is that of the site's plates, and its log density has one entry for all elements that are joint.
    """

    arg_constraints: ClassVar[Mapping[str, Any]] = {}
    has_rsample = True
    pytree_data_fields = ("_params",)
    pytree_aux_fields = ("_part", "_batch_ndim")

    def __init__(self, part: JointPart, batch_ndim: int, params: Params):
        self._part, self._batch_ndim, self._params = part, batch_ndim, dict(params)
        shape = part.coordinates.shape
        event = part.transform.forward_shape(shape)[batch_ndim:]
        super().__init__(batch_shape=shape[:batch_ndim], event_shape=event, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Where the transform leads to."""
        inner = self._part.transform.codomain
        return constraints.independent(inner, self.event_dim - inner.event_dim)

    @property
    def _vectors(self) -> dist.MultivariateNormal:
        loc = self._part.coordinates.vectors(self._params["loc"])
        return dist.MultivariateNormal(loc, scale_tril=self._params["scale_tril"], validate_args=False)

    def sample(self, key: KeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws [*sample_shape, *B, *E]."""
        return self._part.transform(self._part.coordinates.whole(self._vectors.sample(key, sample_shape)))

    def log_prob(self, value: Array) -> Array:
        """[*B], with size one along dimensions whose elements are joint."""
        part, batch = self._part, self._batch_ndim
        u = value if isinstance(part.transform, IdentityTransform) else part.transform.inv(value)
        lead = np.ndim(u) - len(part.coordinates.shape)
        joint = [lead + d for d in range(batch) if d not in part.coordinates.apart]
        log_q = jnp.expand_dims(self._vectors.log_prob(part.coordinates.vectors(u)), tuple(joint))
        if isinstance(part.transform, IdentityTransform):
            return log_q
        volume = part.transform.log_abs_det_jacobian(u, value)
        volume = jnp.sum(volume, tuple(range(lead + batch, jnp.ndim(volume))))
        return log_q - jnp.sum(volume, tuple(joint), keepdims=True)


def chains(parts: Sequence[JointPart], params: Sequence[Params]) -> tuple[Array, Array]:
    """The locations [*S, N] and Cholesky factor [*S, N, N] of a joint Normal from the parameters of its sites."""
    xp: Any = jnp if is_traced(params) else np
    total = sum(p.coordinates.length for p in parts)

    def rows(part: JointPart, own: Params) -> Array:
        tril = xp.asarray(own["scale_tril"])
        after = total - part.width - part.coordinates.length
        given = [xp.asarray(own["given"])] if part.width else []
        return xp.concatenate([*given, tril, xp.zeros((*tril.shape[:-1], after), tril.dtype)], -1)

    locs = [p.coordinates.vectors(xp.asarray(own["loc"])) for p, own in zip(parts, params, strict=True)]
    return xp.concatenate(locs, -1), xp.concatenate([rows(p, o) for p, o in zip(parts, params, strict=True)], -2)


def by_part(parts: Sequence[JointPart], params: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Parameters of every site of a joint Normal with `loc` [*S, N] and `scale_tril` [*S, N, N]."""
    out = []
    for part in parts:
        start, end = part.width, part.width + part.coordinates.length
        own = {
            "loc": part.coordinates.whole(params["loc"][..., start:end]),
            "scale_tril": params["scale_tril"][..., start:end, start:end],
        }
        out.append({**own, "given": params["scale_tril"][..., start:end, :start]} if start else own)
    return out


def placed(parts: Sequence[JointPart], params: Sequence[Params], noise: Array) -> list[Array]:
    """Particles of every site, each [num, *B, *E], from standard normal noise [num, coordinates]."""
    loc, tril = chains(parts, params)
    u = loc + jnp.einsum("...ij,k...j->k...i", tril, noise.reshape((-1, *np.shape(loc))))
    found = []
    for part in parts:
        own = part.coordinates.whole(u[..., part.width : part.width + part.coordinates.length])
        found.append(own if isinstance(part.transform, IdentityTransform) else part.transform(own))
    return found
