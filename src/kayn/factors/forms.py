"""Exponential families as products: `log p(value | parameters) = sum_f statistic_f * natural_f`.

A *form* splits a log density into statistics, computed from some arguments, and naturals, computed from the others, so
that each is evaluated on its own particle axes and a matrix product combines them. Families have several forms: which
one pays depends on which arguments share particle axes. Forms that expand a square (`cancels`) measure value and
location from a common reference, and are only used where float precision survives the subtraction (`is_safe`).

Functions of one particle: arguments are [*outer, *core] with outer dimensions aligned, results are lists of pieces
[*outer, F].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import betaln, gammaln

from kayn.support.arrays import Array

Arguments = Mapping[str, Any]
Pieces = list[Any]
LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
LOST_BITS = 6
"""A form may form terms 2^6 times larger than those of the plain density: 8e-6 of relative error in float32."""
COUNTS = ("Poisson", "Binomial", "Multinomial")
"""Families whose statistics end with log factorials, which cancel against the other terms."""
SMALL_ERROR = 1e-3
"""Rounding error of a log factorial that does not matter, in nats."""
WEIGHTS = ("mask", "scale_factor")
"""Arguments that multiply the statistics, whatever the family."""


@dataclass(frozen=True)
class Form:
    """One way to split a family's log density.

    Attributes:
        left: arguments that the statistics depend on.
        right: arguments that the naturals depend on.
        statistics: (arguments, reference) to pieces.
        naturals: (arguments, reference) to as many pieces.
        referenced: arguments that the reference is computed from.
        reference: means over particles, from the referenced arguments as [*outer, *core, P]; constants to the gradient.
        cancels: the number of leading pieces that are large terms of a small square.
    """

    name: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    statistics: Callable[[Arguments, Arguments], Pieces]
    naturals: Callable[[Arguments, Arguments], Pieces]
    referenced: tuple[str, ...] = ()
    reference: Callable[[Arguments], Arguments] = lambda arguments: {}
    cancels: int = 0


def _scalars(*pieces: Array) -> Pieces:
    return [jnp.asarray(p)[..., None] for p in pieces]


def _one(like: Array) -> Array:
    """One, with dimensions of size one: pieces that do not vary must not look as if they did."""
    return jnp.ones((1,) * like.ndim, like.dtype)


def _mean(array: Array) -> Array:
    """Over particles; those that are not finite do not count."""
    valid = jnp.isfinite(array)
    return jnp.sum(jnp.where(valid, array, 0.0), -1) / jnp.maximum(jnp.sum(valid, -1), 1)


def _typical_scale(scale: Array) -> Array:
    """Geometric mean over the particles with a positive scale."""
    positive = (scale > 0) & jnp.isfinite(scale)
    logs = jnp.log(jnp.where(positive, scale, 1.0))
    return jnp.exp(jnp.sum(logs, -1) / jnp.maximum(jnp.sum(positive, -1), 1))


def _unit_scale(a: Arguments) -> Arguments:
    return {"unit": _typical_scale(a["scale"])}


def _center_and_unit(a: Arguments) -> Arguments:
    return {"center": _mean(a["loc"]), "unit": _typical_scale(a["scale"])}


def _log_normalizer(scale: Array) -> Array:
    return -jnp.log(scale) - LOG_ROOT_2PI


def _normal_forms(transform: Callable = lambda v: v, log_jacobian: Callable | None = None) -> tuple[Form, ...]:
    """A Normal law of `transform(value)`: three forms, by what value, location and scale have in common."""

    def one_more(like: Array) -> Pieces:
        return [] if log_jacobian is None else [_one(like)]

    def base(a: Arguments) -> Pieces:
        return [] if log_jacobian is None else [log_jacobian(a["value"])]

    def squared_residual(a: Arguments, r: Arguments) -> Pieces:
        return _scalars(((transform(a["value"]) - a["loc"]) / r["unit"]) ** 2, _one(r["unit"]), *base(a))

    def precision(a: Arguments, r: Arguments) -> Pieces:
        return _scalars(-0.5 * (r["unit"] / a["scale"]) ** 2, _log_normalizer(a["scale"]), *one_more(a["scale"]))

    def powers(a: Arguments, r: Arguments) -> Pieces:
        x = (transform(a["value"]) - r["center"]) / r["unit"]
        one = _one(x)
        return _scalars(x**2, x, one, one, *base(a))

    def natural(a: Arguments, r: Arguments) -> Pieces:
        p, m = (r["unit"] / a["scale"]) ** 2, (a["loc"] - r["center"]) / r["unit"]
        return _scalars(-0.5 * p, p * m, -0.5 * p * m**2, _log_normalizer(a["scale"]), *one_more(a["scale"]))

    def standardised(a: Arguments, r: Arguments) -> Pieces:
        x = (transform(a["value"]) - r["center"]) / a["scale"]
        return _scalars(x**2, x, _one(x), _log_normalizer(a["scale"]), *base(a))

    def standardised_loc(a: Arguments, r: Arguments) -> Pieces:
        m = (a["loc"] - r["center"]) / a["scale"]
        one = _one(m)
        return _scalars(-0.5 * one, m, -0.5 * m**2, one, *one_more(m))

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
            lambda a: {"center": _mean(a["loc"])},
            cancels=3,
        ),
    )


def _solve(tril: Array, vector: Array) -> Array:
    shape = jnp.broadcast_shapes(tril.shape[:-1], vector.shape)
    tril = jnp.broadcast_to(tril, (*shape, shape[-1]))
    return solve_triangular(tril, jnp.broadcast_to(vector, shape)[..., None], lower=True)[..., 0]


def _log_determinant(tril: Array) -> Array:
    return jnp.sum(jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)), -1)


def _multivariate_normal_forms() -> tuple[Form, ...]:
    def flat_outer(x: Array) -> Array:
        return (x[..., :, None] * x[..., None, :]).reshape((*x.shape[:-1], -1))

    def normalizer(tril: Array) -> Array:
        return -_log_determinant(tril) - tril.shape[-1] * LOG_ROOT_2PI

    # the mean of Cholesky factors is one again: coordinates in which no particle's covariance is far from the identity
    def whitening(a: Arguments) -> Arguments:
        return {"center": _mean(a["loc"]), "unit": _mean(a["scale_tril"])}

    def powers(a: Arguments, r: Arguments) -> Pieces:
        x = _solve(r["unit"], a["value"] - r["center"])
        return [flat_outer(x), x, _one(x), _one(x)]

    def natural(a: Arguments, r: Arguments) -> Pieces:
        size = a["scale_tril"].shape[-1]
        shape = jnp.broadcast_shapes(a["scale_tril"].shape, r["unit"].shape)
        tril = jnp.broadcast_to(a["scale_tril"], shape)
        root = solve_triangular(tril, jnp.broadcast_to(r["unit"], shape), lower=True)  # Cholesky of the precision
        m = (root @ _solve(r["unit"], a["loc"] - r["center"])[..., None])[..., 0]
        precision = jnp.swapaxes(root, -1, -2) @ root
        linear = (jnp.swapaxes(root, -1, -2) @ m[..., None])[..., 0]
        return [
            -0.5 * precision.reshape((*precision.shape[:-2], size * size)),
            linear,
            *_scalars(-0.5 * jnp.sum(m**2, -1), normalizer(a["scale_tril"])),
        ]

    def standardised(a: Arguments, r: Arguments) -> Pieces:
        x = _solve(a["scale_tril"], a["value"] - r["center"])
        return [*_scalars(jnp.sum(x**2, -1)), x, _one(x), *_scalars(normalizer(a["scale_tril"]))]

    def standardised_loc(a: Arguments, r: Arguments) -> Pieces:
        m = _solve(a["scale_tril"], a["loc"] - r["center"])
        return [-0.5 * _one(m), m, *_scalars(-0.5 * jnp.sum(m**2, -1)), _one(m)]

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
            lambda a: {"center": _mean(a["loc"])},
            cancels=3,
        ),
    )


def _natural(
    parameters: Sequence[str], statistics: Callable[..., Pieces], naturals: Callable[..., Pieces], *known: str
) -> tuple[Form, ...]:
    """The textbook form of a family whose terms the plain density sums just the same.

    Args:
        known: parameters that belong with the value, such as a number of trials.
    """
    left, right = ("value", *known), tuple(parameters)

    def of(function: Callable[..., Pieces], names: Sequence[str]) -> Callable[[Arguments, Arguments], Pieces]:
        return lambda arguments, reference: function(*(arguments[n] for n in names))

    return (Form("natural", left, right, of(statistics, left), of(naturals, right)),)


def _counts(successes: Array, trials: Array) -> Pieces:
    combinations = gammaln(trials + 1.0) - gammaln(successes + 1.0) - gammaln(trials - successes + 1.0)
    return _scalars(successes, trials - successes, combinations)


def _indicators(category: Array, categories: Array) -> Pieces:
    category = category[..., None]
    return [jnp.where(jnp.isnan(category), jnp.nan, (category == categories).astype(category.dtype))]


def _dirichlet(concentration: Array) -> Pieces:
    log_beta = jnp.sum(gammaln(concentration), -1) - gammaln(jnp.sum(concentration, -1))
    return [concentration - 1, *_scalars(-log_beta)]


def _gamma_normalizer(concentration: Array, rate: Array) -> Array:
    return concentration * jnp.log(rate) - gammaln(concentration)


FORMS: Mapping[str, tuple[Form, ...]] = {
    "Normal": _normal_forms(),
    "LogNormal": _normal_forms(jnp.log, lambda v: -jnp.log(v)),
    "MultivariateNormal": _multivariate_normal_forms(),
    "HalfNormal": (
        Form(
            "natural",
            ("value",),
            ("scale",),
            lambda a, r: _scalars((a["value"] / r["unit"]) ** 2, _one(r["unit"])),
            lambda a, r: _scalars(-0.5 * (r["unit"] / a["scale"]) ** 2, _log_normalizer(a["scale"]) + math.log(2.0)),
            ("scale",),
            _unit_scale,
        ),
    ),
    "Laplace": (
        Form(
            "residual",
            ("value", "loc"),
            ("scale",),
            lambda a, r: _scalars(jnp.abs(a["value"] - a["loc"]) / r["unit"], _one(r["unit"])),
            lambda a, r: _scalars(-r["unit"] / a["scale"], -jnp.log(2 * a["scale"])),
            ("scale",),
            _unit_scale,
        ),
    ),
    "Exponential": _natural(["rate"], lambda v: _scalars(v, _one(v)), lambda b: _scalars(-b, jnp.log(b))),
    "Gamma": _natural(
        ["concentration", "rate"],
        lambda v: _scalars(jnp.log(v), v, _one(v)),
        lambda a, b: _scalars(a - 1, -b, _gamma_normalizer(a, b)),
    ),
    "InverseGamma": _natural(
        ["concentration", "rate"],
        lambda v: _scalars(jnp.log(v), 1 / v, _one(v)),
        lambda a, b: _scalars(-a - 1, -b, _gamma_normalizer(a, b)),
    ),
    "Beta": _natural(
        ["concentration1", "concentration0"],
        lambda v: _scalars(jnp.log(v), jnp.log1p(-v), _one(v)),
        lambda a, b: _scalars(a - 1, b - 1, -betaln(a, b)),
    ),
    "Dirichlet": _natural(["concentration"], lambda v: [jnp.log(v), _one(v[..., :1])], _dirichlet),
    "Poisson": _natural(
        ["rate"],
        lambda v: _scalars(v, _one(v), -gammaln(v + 1.0)),
        lambda rate: _scalars(jnp.log(rate), -rate, _one(rate)),
    ),
    "Bernoulli": _natural(
        ["log_success", "log_failure"], lambda v: _scalars(v, 1.0 - v), lambda yes, no: _scalars(yes, no)
    ),
    "Binomial": _natural(
        ["log_success", "log_failure"], _counts, lambda yes, no: _scalars(yes, no, _one(yes)), "total_count"
    ),
    "Categorical": _natural(["log_probs"], _indicators, lambda log_p: [log_p], "categories"),
    "Multinomial": _natural(
        ["log_probs"],
        lambda v, n: [v, *_scalars(gammaln(n + 1.0) - jnp.sum(gammaln(v + 1.0), -1))],
        lambda log_p: [log_p, _one(log_p[..., :1])],
        "total_count",
    ),
}
"""Forms by family, the one without cancellation first."""


def weighted(form: Form, arguments: Mapping[str, Array], reference: Mapping[str, Array]) -> Pieces:
    """Statistics times the site's scale, zero where masked."""
    pieces = form.statistics(arguments, reference)
    if "mask" in arguments:
        pieces = [jnp.where(arguments["mask"][..., None], p, 0.0) for p in pieces]
    if "scale_factor" in arguments:
        pieces = [p * arguments["scale_factor"][..., None] for p in pieces]
    return pieces
