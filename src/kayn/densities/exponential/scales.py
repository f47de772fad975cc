"""Families of a location and a scale: Normal laws and their like."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from kayn.densities.exponential.contract import (
    Arguments,
    Family,
    Form,
    Pieces,
    Predictor,
    attributes,
    mean,
    ones,
    scalars,
    typical_scale,
)
from kayn.densities.triangular import solved
from kayn.support.arrays import Array

LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


def _unit_scale(a: Arguments) -> Arguments:
    return {"unit": typical_scale(a["scale"])}


def _center_and_unit(a: Arguments) -> Arguments:
    return {"center": mean(a["loc"]), "unit": typical_scale(a["scale"])}


def _log_normalizer(scale: Array) -> Array:
    return -jnp.log(scale) - LOG_ROOT_2PI


def _normal_forms(transform: Callable = lambda v: v, log_jacobian: Callable | None = None) -> tuple[Form, ...]:
    """A Normal law of `transform(value)`: three forms, by what value, location and scale have in common."""

    def one_more(like: Array) -> Pieces:
        return [] if log_jacobian is None else [ones(like)]

    def base(a: Arguments) -> Pieces:
        return [] if log_jacobian is None else [log_jacobian(a["value"])]

    def squared_residual(a: Arguments, r: Arguments) -> Pieces:
        return scalars(((transform(a["value"]) - a["loc"]) / r["unit"]) ** 2, ones(r["unit"]), *base(a))

    def precision(a: Arguments, r: Arguments) -> Pieces:
        return scalars(-0.5 * (r["unit"] / a["scale"]) ** 2, _log_normalizer(a["scale"]), *one_more(a["scale"]))

    def powers(a: Arguments, r: Arguments) -> Pieces:
        x = (transform(a["value"]) - r["center"]) / r["unit"]
        one = ones(x)
        return scalars(x**2, x, one, one, *base(a))

    def natural(a: Arguments, r: Arguments) -> Pieces:
        p, m = (r["unit"] / a["scale"]) ** 2, (a["loc"] - r["center"]) / r["unit"]
        return scalars(-0.5 * p, p * m, -0.5 * p * m**2, _log_normalizer(a["scale"]), *one_more(a["scale"]))

    def standardised(a: Arguments, r: Arguments) -> Pieces:
        x = (transform(a["value"]) - r["center"]) / a["scale"]
        return scalars(x**2, x, ones(x), _log_normalizer(a["scale"]), *base(a))

    def standardised_loc(a: Arguments, r: Arguments) -> Pieces:
        m = (a["loc"] - r["center"]) / a["scale"]
        one = ones(m)
        return scalars(-0.5 * one, m, -0.5 * m**2, one, *one_more(m))

    return (
        Form("residual", ("value", "loc"), ("scale",), squared_residual, precision, ("scale",), _unit_scale),
        Form(
            "natural",
            ("value",),
            ("loc", "scale"),
            powers,
            natural,
            ("loc", "scale"),
            _center_and_unit,
            cancels=3,
        ),
        Form(
            "standardised",
            ("value", "scale"),
            ("loc", "scale"),
            standardised,
            standardised_loc,
            ("loc",),
            lambda a: {"center": mean(a["loc"])},
            cancels=3,
        ),
    )


def _log_determinant(tril: Array) -> Array:
    return jnp.sum(jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)), -1)


def _multivariate_normal_forms() -> tuple[Form, ...]:
    def flat_outer(x: Array) -> Array:
        return (x[..., :, None] * x[..., None, :]).reshape((*x.shape[:-1], -1))

    def normalizer(tril: Array) -> Array:
        return -_log_determinant(tril) - tril.shape[-1] * LOG_ROOT_2PI

    # the mean of Cholesky factors is one again: coordinates in which no particle's covariance is far from the identity
    def whitening(a: Arguments) -> Arguments:
        return {"center": mean(a["loc"]), "unit": mean(a["scale_tril"])}

    def powers(a: Arguments, r: Arguments) -> Pieces:
        x = solved(r["unit"], a["value"] - r["center"])
        return [flat_outer(x), x, ones(x), ones(x)]

    def natural(a: Arguments, r: Arguments) -> Pieces:
        size = a["scale_tril"].shape[-1]
        shape = jnp.broadcast_shapes(a["scale_tril"].shape, r["unit"].shape)
        tril = jnp.broadcast_to(a["scale_tril"], shape)
        root = solve_triangular(tril, jnp.broadcast_to(r["unit"], shape), lower=True)  # Cholesky of the precision
        m = (root @ solved(r["unit"], a["loc"] - r["center"])[..., None])[..., 0]
        precision = jnp.swapaxes(root, -1, -2) @ root
        linear = (jnp.swapaxes(root, -1, -2) @ m[..., None])[..., 0]
        return [
            -0.5 * precision.reshape((*precision.shape[:-2], size * size)),
            linear,
            *scalars(-0.5 * jnp.sum(m**2, -1), normalizer(a["scale_tril"])),
        ]

    def standardised(a: Arguments, r: Arguments) -> Pieces:
        x = solved(a["scale_tril"], a["value"] - r["center"])
        return [*scalars(jnp.sum(x**2, -1)), x, ones(x), *scalars(normalizer(a["scale_tril"]))]

    def standardised_loc(a: Arguments, r: Arguments) -> Pieces:
        m = solved(a["scale_tril"], a["loc"] - r["center"])
        return [-0.5 * ones(m), m, *scalars(-0.5 * jnp.sum(m**2, -1)), ones(m)]

    return (
        Form(
            "natural",
            ("value",),
            ("loc", "scale_tril"),
            powers,
            natural,
            ("loc", "scale_tril"),
            whitening,
            cancels=3,
        ),
        Form(
            "standardised",
            ("value", "scale_tril"),
            ("loc", "scale_tril"),
            standardised,
            standardised_loc,
            ("loc",),
            lambda a: {"center": mean(a["loc"])},
            cancels=3,
        ),
    )


NORMAL = Family(
    "Normal",
    {dist.Normal: attributes("loc", "scale")},
    _normal_forms(),
    predictor=Predictor("loc"),
)
LOG_NORMAL = Family(
    "LogNormal",
    {dist.LogNormal: attributes("loc", "scale")},
    _normal_forms(jnp.log, lambda v: -jnp.log(v)),
    predictor=Predictor("loc", log_value=True),
)
MULTIVARIATE_NORMAL = Family(
    "MultivariateNormal",
    {dist.MultivariateNormal: attributes("loc", "scale_tril")},
    _multivariate_normal_forms(),
    core_ndim={"value": 1, "loc": 1, "scale_tril": 2},
    solved=("loc", "scale_tril"),
)
HALF_NORMAL = Family(
    "HalfNormal",
    {dist.HalfNormal: attributes("scale")},
    (
        Form(
            "natural",
            ("value",),
            ("scale",),
            lambda a, r: scalars((a["value"] / r["unit"]) ** 2, ones(r["unit"])),
            lambda a, r: scalars(-0.5 * (r["unit"] / a["scale"]) ** 2, _log_normalizer(a["scale"]) + math.log(2.0)),
            ("scale",),
            _unit_scale,
        ),
    ),
)
LAPLACE = Family(
    "Laplace",
    {dist.Laplace: attributes("loc", "scale")},
    (
        Form(
            "residual",
            ("value", "loc"),
            ("scale",),
            lambda a, r: scalars(jnp.abs(a["value"] - a["loc"]) / r["unit"], ones(r["unit"])),
            lambda a, r: scalars(-r["unit"] / a["scale"], -jnp.log(2 * a["scale"])),
            ("scale",),
            _unit_scale,
        ),
    ),
)
