"""Families of positive numbers and of shares."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betaln, gammaln

from kayn.densities.exponential.contract import Family, Pieces, attributes, natural_form, ones, scalars
from kayn.support.arrays import Array


def _dirichlet(concentration: Array) -> Pieces:
    log_beta = jnp.sum(gammaln(concentration), -1) - gammaln(jnp.sum(concentration, -1))
    return [concentration - 1, *scalars(-log_beta)]


def _gamma_normalizer(concentration: Array, rate: Array) -> Array:
    return concentration * jnp.log(rate) - gammaln(concentration)


EXPONENTIAL = Family(
    "Exponential",
    {dist.Exponential: attributes("rate")},
    natural_form(["rate"], lambda v: scalars(v, ones(v)), lambda b: scalars(-b, jnp.log(b))),
)
GAMMA = Family(
    "Gamma",
    {dist.Gamma: attributes("concentration", "rate")},
    natural_form(
        ["concentration", "rate"],
        lambda v: scalars(jnp.log(v), v, ones(v)),
        lambda a, b: scalars(a - 1, -b, _gamma_normalizer(a, b)),
    ),
    special=(("concentration",),),
)
INVERSE_GAMMA = Family(
    "InverseGamma",
    {dist.InverseGamma: attributes("concentration", "rate")},
    natural_form(
        ["concentration", "rate"],
        lambda v: scalars(jnp.log(v), 1 / v, ones(v)),
        lambda a, b: scalars(-a - 1, -b, _gamma_normalizer(a, b)),
    ),
    special=(("concentration",),),
)
BETA = Family(
    "Beta",
    {dist.Beta: attributes("concentration1", "concentration0")},
    natural_form(
        ["concentration1", "concentration0"],
        lambda v: scalars(jnp.log(v), jnp.log1p(-v), ones(v)),
        lambda a, b: scalars(a - 1, b - 1, -betaln(a, b)),
    ),
    special=(("concentration1",), ("concentration0",), ("concentration1", "concentration0")),
)
DIRICHLET = Family(
    "Dirichlet",
    {dist.Dirichlet: attributes("concentration")},
    natural_form(["concentration"], lambda v: [jnp.log(v), ones(v[..., :1])], _dirichlet),
    core_ndim={"value": 1, "concentration": 1},
    special=(("concentration",),),
)
