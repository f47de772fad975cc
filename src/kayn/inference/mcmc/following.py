"""Latents that follow others: where a location or a scale moves, what it governs may move along.

In its coordinates a latent of a location-scale law is `u = loc + scale * e`, with a loc and a scale that other latents
decide, as in `u_g ~ Normal(mu, tau)`. Held at their e, the u of all groups follow every step of tau. Where data say
little of single groups this is what leaves the likelihood nearly alone, and where tau mixes (Yu & Meng, To center or
not to center: that is not the question, 2011). It leaves the posterior as it is for any loc and scale that are
functions of what stands before u in the program, as long as the volume of u's step, |du/de| = scale, is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform, ExpTransform, IdentityTransform
from numpyro.primitives import Messenger

from kayn.graph.types import Graph
from kayn.inference.mcmc.coordinates import Coordinates
from kayn.programs.given import Given
from kayn.programs.roles import Fixed
from kayn.programs.seeding import seeded
from kayn.programs.wrappers import innermost
from kayn.support.arrays import Array, PyTree


@dataclass(frozen=True, eq=False)
class Affine:
    """u = loc + scale * e.

    Attributes:
        loc, scale: of shapes that broadcast to u.
        factor: a Cholesky factor [*batch, E, E] in the place of `scale`; None for none.
    """

    loc: Array
    scale: Array
    factor: Array | None = None

    def follow(self, e: Array, stays: Array) -> Array:
        """u of e, which is e itself where it stays."""
        step = self.scale * e if self.factor is None else (self.factor @ e[..., None])[..., 0]
        return jnp.where(stays, e, self.loc + step)

    def innovations(self, u: Array, stays: Array) -> Array:
        """e of u."""
        rest = u - self.loc
        if self.factor is None:
            return jnp.where(stays, u, rest / self.scale)
        factor = jnp.broadcast_to(self.factor, (*u.shape, u.shape[-1]))
        return jnp.where(stays, u, solve_triangular(factor, rest[..., None], lower=True)[..., 0])

    def log_volume(self, u: Array, stays: Array) -> Array:
        """log |du/de|, a scalar."""
        scale = self.scale if self.factor is None else jnp.diagonal(self.factor, axis1=-2, axis2=-1)
        return jnp.where(stays, 0.0, jnp.broadcast_to(jnp.log(jnp.abs(scale)), u.shape)).sum()


def affine_of(fn: dist.Distribution, coordinates: Coordinates, shape: tuple[int, ...]) -> Affine | None:
    """A law in the coordinates u [*shape] of its values; None where it is not known to be of a location and a scale."""
    law = innermost(fn)
    if isinstance(coordinates.transform, IdentityTransform):
        found = _of_reals(law)
    elif isinstance(coordinates.transform, ExpTransform):
        found = _of_logs(law)
    else:
        found = None
    if found is None:
        return None
    inner = found.loc if found.factor is None else found.factor[..., 0]
    try:
        fits = jnp.broadcast_shapes(jnp.shape(inner), jnp.shape(found.loc), jnp.shape(found.scale), shape) == shape
    except ValueError:
        return None
    return found if fits else None


def _of_reals(law: dist.Distribution) -> Affine | None:
    if isinstance(law, dist.MultivariateNormal):
        return Affine(law.loc, jnp.ones(()), law.scale_tril)
    if isinstance(law, dist.TransformedDistribution):
        base = _of_reals(innermost(law.base_dist))
        for step in law.transforms:
            if base is None or base.factor is not None or not isinstance(step, AffineTransform):
                return None
            base = Affine(step.loc + step.scale * base.loc, step.scale * base.scale)
        return base
    known = law.support is constraints.real and {"loc", "scale"} <= set(law.arg_constraints)
    return Affine(jnp.asarray(law.loc), jnp.asarray(law.scale)) if known else None


def _of_logs(law: dist.Distribution) -> Affine | None:
    """Of the logarithm of a positive value: a scale is a location there."""
    if isinstance(law, dist.InverseGamma):
        return Affine(jnp.log(law.rate), jnp.ones(()))
    if isinstance(law, dist.TransformedDistribution):
        steps = [*law.transforms]
        if len(steps) == 1 and isinstance(steps[0], ExpTransform):
            return _of_reals(innermost(law.base_dist))
        return None
    arguments = set(law.arg_constraints)
    if "loc" in arguments or law.support is not constraints.positive:
        return None
    if "scale" in arguments:
        return Affine(jnp.log(law.scale), jnp.ones(()))
    return Affine(-jnp.log(law.rate), jnp.ones(())) if "rate" in arguments else None


class _Followed(Messenger):
    """A program whose latents of a location and a scale are told their e, or take it.

    Args:
        coordinates: of the latents.
        stays: by latent, elements that do not follow, in the shape of u or one that broadcasts to it.
        u, e: what is known of the latents, [*shape]: all u, or all e.
    """

    def __init__(
        self,
        fn: Callable,
        coordinates: Mapping[str, Coordinates],
        stays: Mapping[str, Array],
        u: Mapping[str, Array] | None = None,
        e: Mapping[str, Array] | None = None,
    ):
        super().__init__(fn)
        self.coordinates, self.stays, self.u, self.e = coordinates, stays, u, e
        self.found: dict[str, Array] = {}
        self.log_volume = jnp.zeros(())

    def process_message(self, msg: dict[str, Any]) -> None:
        """Tell or take a latent's e."""
        name = str(msg.get("name"))
        if msg["type"] != "sample" or name not in self.coordinates or msg["is_observed"]:
            return
        known = self.e if self.u is None else self.u
        assert known is not None
        law = affine_of(msg["fn"], self.coordinates[name], known[name].shape)
        if law is None:
            return
        stays = self.stays.get(name, False)
        if self.u is not None:
            self.found[name] = law.innovations(self.u[name], stays)
        else:
            self.found[name] = law.follow(known[name], stays)
            msg["value"] = self.coordinates[name].values(self.found[name])
        self.log_volume = self.log_volume + law.log_volume(known[name], stays)


@dataclass(frozen=True, eq=False)
class Following:
    """A model's latents in their innovations.

    Attributes:
        program: the model, a function of nothing.
        params: values of `numpyro.param` sites.
        coordinates: of all latents that have any.
        names: latents that follow others.
    """

    program: Callable
    params: Mapping[str, PyTree]
    coordinates: Mapping[str, Coordinates]
    names: tuple[str, ...] = ()

    def names_of(self, graph: Graph) -> Following:
        """With the names of those that can follow: whose prior has a location or a scale, and reads others."""
        able = {z.name for z in graph.latents if z.parents}
        mine = {n: c for n, c in self.coordinates.items() if n in able and not c.discrete}
        names: list[str] = []

        def run(state: Mapping[str, Array]) -> Array:
            handler = _Followed(self._given(self._values(state)), mine, {}, u=state)
            handler()
            names.extend(handler.found)
            return handler.log_volume

        jax.eval_shape(run, self._shapes(graph))
        return replace(self, names=tuple(names))

    def innovations(self, state: Mapping[str, Array], stays: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
        """e of those that follow in the place of u, and log |du/de|.

        Args:
            state: coordinates of all latents, [*shape].
            stays: by latent, elements that do not follow.
        """
        handler = _Followed(self._given(self._values(state)), self._mine, stays, u=state)
        handler()
        return {**state, **handler.found}, handler.log_volume

    def follow(self, state: Mapping[str, Array], stays: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
        """u in the place of e, and log |du/de|."""
        held = {n: v for n, v in state.items() if n not in self.names}
        handler = _Followed(self._given(self._values(held)), self._mine, stays, e=state)
        handler()
        return {**state, **handler.found}, handler.log_volume

    @property
    def _mine(self) -> dict[str, Coordinates]:
        return {n: self.coordinates[n] for n in self.names}

    def _shapes(self, graph: Graph) -> dict[str, jax.ShapeDtypeStruct]:
        out = {}
        for z in graph.latents:
            mine = self.coordinates.get(z.name)
            shape = z.shape if mine is None else mine.shape_of(z.shape)
            out[z.name] = jax.ShapeDtypeStruct(shape, z.dtype)
        return out

    def _values(self, state: Mapping[str, Array]) -> dict[str, Array]:
        return {n: self.coordinates[n].values(u) if n in self.coordinates else u for n, u in state.items()}

    def _given(self, values: Mapping[str, Array]) -> Callable:
        # what has no value, such as outcomes that are predicted, is drawn and not looked at
        return seeded(Given(Fixed(self.program), params=self.params, latents=values), jax.random.key(0))
