"""Priors of a formula's sites as source: weakly informative ones scaled by the data, and those that a user gives."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpyro.distributions as dist

from kayn.errors import ModelError
from kayn.support.validate import shown

WIDTH = 2.5
"""Standard deviations of the outcome (units of the link) that a predictor's standard deviation may well be worth."""


def number(x: float, digits: int = 3) -> str:
    """A number as source, with a point."""
    text = f"{float(x):.{digits}g}"
    return text if any(c in text for c in ".en") else f"{text}.0"


def normal(loc: float, scale: float) -> str:
    """Source of a Normal prior."""
    return f"dist.Normal({number(loc)}, {number(scale)})"


def effect(values: np.ndarray, unit: float) -> str:
    """Prior of the coefficient of a predictor: [rows]."""
    return normal(0.0, WIDTH * unit / spread(values))


def group_scale(values: np.ndarray, unit: float) -> str:
    """Prior of the standard deviation of effects of a predictor over groups."""
    return f"dist.HalfNormal({number(WIDTH * unit / spread(values))})"


def spread(values: np.ndarray) -> float:
    """The standard deviation of a predictor; 1 where it has none."""
    found = float(np.std(values)) if np.size(values) else 0.0
    return found or 1.0


def cutpoints(counts: np.ndarray) -> str:
    """Prior of the cutpoints between ordered categories of so many rows each, about where the rows put them."""
    shares = np.cumsum(counts + 1)[:-1] / np.sum(counts + 1)
    at = np.log(shares / (1 - shares))
    centre = [at[0], *np.log(np.diff(at))]
    texts = ", ".join(number(x) for x in centre)
    base = f"dist.Normal(jnp.array([{texts}]), 1.5).to_event(1)"
    return f"dist.TransformedDistribution({base}, dist.transforms.OrderedTransform())"


def given(priors: Mapping[str, Any] | None, known: Mapping[str, str]) -> dict[str, str]:
    """All priors: those that a user gives in the place of the default.

    Args:
        priors: distributions of NumPyro, or their text, such as "Normal(0, 1)", by site.
        known: source of the default prior of every site.

    Raises:
        ModelError: there is no such site, or no such distribution.
    """
    unknown = sorted(set(priors or {}) - set(known))
    if unknown:
        raise ModelError(f"priors= names {unknown[0]!r}; this formula has priors of {', '.join(map(repr, known))}")
    own = {n: _source(n, p) for n, p in (priors or {}).items()}
    for name, text in own.items():
        _refuse_support(name, text, known[name])
    return {**known, **own}


def _refuse_support(site: str, text: str, default: str) -> None:
    """Refuse a prior of numbers that the site cannot be, such as negative standard deviations."""
    own, usual = _ends(text), _ends(default)
    if own is None or usual is None:
        return
    (low, high), (least, most) = own, usual
    if low < least or high > most:
        raise ModelError(
            f"priors[{site!r}] is {text!r}, which has numbers from {low:g} to {high:g}; {site!r} is from {least:g} to "
            f"{most:g}, as is its default, {default!r}"
        )


def _ends(text: str) -> tuple[float, float] | None:
    """The ends of the support of a distribution written with numbers alone; None of others."""
    try:
        call = ast.parse(text.removeprefix("dist."), mode="eval").body
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)
        named = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        support = getattr(dist, call.func.id)(*map(ast.literal_eval, call.args), **named).support
    except (AssertionError, ValueError, AttributeError, TypeError):
        return None
    if support is dist.constraints.real:
        return -math.inf, math.inf
    return float(getattr(support, "lower_bound", -math.inf)), float(getattr(support, "upper_bound", math.inf))


def _source(site: str, prior: Any) -> str:
    if isinstance(prior, str):
        return _of_text(site, prior)
    if isinstance(prior, dist.Distribution):
        names = [*getattr(prior, "reparametrized_params", ()), *prior.arg_constraints]
        arguments = {n: getattr(prior, n) for n in dict.fromkeys(names) if n in vars(prior) or hasattr(prior, n)}
        if all(np.ndim(v) == 0 and np.isreal(v) for v in arguments.values()) and prior.event_shape == ():
            inner = ", ".join(f"{n}={number(float(v), 9)}" for n, v in arguments.items())
            return _of_text(site, f"{type(prior).__name__}({inner})")
    raise ModelError(
        f"priors[{site!r}] is {shown(prior)}; pass a distribution of numbers, e.g. dist.Normal(0.0, 1.0), or its text, "
        "'Normal(0, 1)'"
    )


def _of_text(site: str, text: str) -> str:
    """Source of a distribution called with numbers alone."""
    wanted = f"priors[{site!r}] is {text!r}; it must be a distribution of NumPyro with numbers, e.g. 'Normal(0, 1)'"
    try:
        call = ast.parse(text.strip().removeprefix("dist."), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ModelError(wanted)
        positional = [float(ast.literal_eval(a)) for a in call.args]
        named = {str(k.arg): float(ast.literal_eval(k.value)) for k in call.keywords}
        made = getattr(dist, call.func.id)(*positional, **named)
    except (AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise ModelError(wanted) from error
    if not isinstance(made, dist.Distribution) or made.shape() != ():
        raise ModelError(wanted)
    texts = [number(v, 9) for v in positional] + [f"{k}={number(v, 9)}" for k, v in named.items()]
    return f"dist.{call.func.id}({', '.join(texts)})"
