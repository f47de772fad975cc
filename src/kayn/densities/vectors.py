"""Log densities of vectors and matrices with large concentrations, as sums of small terms."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist

from kayn.densities.counts import student
from kayn.densities.special import LOG_ROOT_2PI, deviance, excess, floats, log_rising
from kayn.densities.triangular import SMALL, solved
from kayn.support.arrays import Array

CONCENTRATED = 1e3
"""Concentration from which a density is taken in its stable form, where that has poles at the ends of the support."""


def dirichlet(fn: dist.Distribution, value: Array) -> Array:
    """Log density on a simplex, nats; value and concentration: [..., C].

    As deviances where the sum of concentrations is above `CONCENTRATED`, else as NumPyro has it.
    """
    a, x = floats(fn.concentration, value)
    large = jnp.sum(a, -1, keepdims=True) > CONCENTRATED
    a, x = jnp.where(large, a, 1.0), jnp.where(large, x, 1 / a.shape[-1])
    total = jnp.sum(a, -1, keepdims=True)
    parts = excess(a) - jnp.log(a) + jnp.log(x) + deviance(a, total * x, a - total * x)
    stable = (excess(total) - jnp.log(total))[..., 0] - jnp.sum(parts, -1)
    return jnp.where(large[..., 0], stable, fn.log_prob(value))


def multivariate_normal(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a Normal of vectors, nats; value: [..., E], `scale_tril`: [..., E, E].

    That of short vectors, if there are several, in the form that stays quick for many at a time.
    """
    if fn.event_shape[0] > SMALL or (jnp.ndim(value) == 1 and not fn.batch_shape):
        return fn.log_prob(value)
    loc, root, value = floats(fn.loc, fn.scale_tril, value)
    square = jnp.sum(solved(root, value - loc) ** 2, -1)
    logs = jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1))
    return -0.5 * square - jnp.sum(logs, -1) - root.shape[-1] * LOG_ROOT_2PI


def multivariate_student(fn: dist.Distribution, value: Array) -> Array:
    """Log density of Student's law of vectors, nats; value: [..., E], `scale_tril`: [..., E, E]."""
    df, loc, root, value = floats(fn.df, fn.loc, fn.scale_tril, value)
    square = jnp.sum(solved(root, value - loc) ** 2, -1)
    diagonal = jnp.diagonal(root, axis1=-2, axis2=-1)
    return student(df, root.shape[-1], square) - jnp.sum(jnp.log(jnp.abs(diagonal)), -1)


def lkj_cholesky(fn: dist.Distribution, value: Array) -> Array:
    """Log density of a Cholesky factor [..., D, D] of correlations, nats: [...].

    The diagonal by what is beside it, and the constant as a sum of ratios of gamma functions.
    """
    c, root = floats(fn.concentration, value)
    large = c > CONCENTRATED
    size = fn.dimension - 1
    off = jnp.sum(jnp.tril(root, -1)[..., 1:, :] ** 2, -1)
    near = large[..., None] & (off < 0.5)
    diagonal = jnp.diagonal(root, axis1=-2, axis2=-1)[..., 1:]
    logs = jnp.where(near, 0.5 * jnp.log1p(-jnp.where(near, off, 0.0)), jnp.log(jnp.where(near, 1.0, diagonal)))
    c = jnp.where(large, c, CONCENTRATED)
    order = 2 * c[..., None] - 2 + jnp.arange(size)[::-1]
    alpha = c + 0.5 * size
    ratios = sum(log_rising(alpha - 0.5 - 0.5 * k, 0.5 + 0.5 * k) for k in range(size))
    constant = 0.25 * size * (size + 1) * jnp.log(jnp.pi) - ratios
    return jnp.where(large, jnp.sum(order * logs, -1) - constant, fn.log_prob(value))
