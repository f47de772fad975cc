"""Draws from a model's prior, for guides to start from; they are compiled while their user goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from kayn.compilation import ahead, is_traced
from kayn.errors import GuideError
from kayn.graph.given import Given
from kayn.graph.seeded import seeded
from kayn.graph.trace import placeholder

PRIOR_DRAWS = 100
MANY_LATENTS = 50


@dataclass(frozen=True)
class Prior:
    """Supports of the latents, and `draws`, which waits for draws of each in unconstrained space: [PRIOR_DRAWS, *shape there].

    Where the prior is improper, these are a feasible value.
    """

    supports: dict[str, Any]
    draws: Callable[[], dict[str, Any]]


def prior(model: Callable, args: tuple, kwargs: Mapping, params: Mapping, names: Sequence[str], key: Any) -> Prior:
    """Trace a model's prior and start to compile it.

    Raises:
        GuideError: a latent's support depends on another latent.
    """
    forms: dict[str, Any] = {}
    fixed: dict[str, list[Any]] = {}

    def one(key: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        program = handlers.substitute(Given(model, params=params), substitute_fn=placeholder)
        trace = handlers.trace(seeded(program, key)).get_trace(*args, **kwargs)
        moving, unconstrained = {}, {}
        for name in names:
            support = trace[name]["fn"].support
            unconstrained[name] = biject_to(support)._inverse(trace[name]["value"])
            bounds, forms[name] = jax.tree.flatten(support)
            if is_traced(bounds):
                moving[name] = bounds
            else:
                fixed[name] = bounds
        return unconstrained, moving

    wait = _draws_of(one, key, len(names) > MANY_LATENTS)
    if len(fixed) < len(names):
        fixed |= {n: _same(n, b) for n, b in wait()[1].items()}
    return Prior({n: jax.tree.unflatten(forms[n], fixed[n]) for n in names}, lambda: wait()[0])


def _draws_of(one: Callable[[Any], Any], key: Any, many: bool) -> Callable[[], Any]:
    """What waits for PRIOR_DRAWS draws."""

    def keys(key: Any) -> Any:
        # fits split the key itself, and small numbers folded in give what splitting gives
        return jax.random.split(jax.random.fold_in(key, 2**32 - 1), PRIOR_DRAWS)

    if many:
        # compilers take minutes over a program of hundreds of dependent draws; one operation at a time takes seconds
        found = jax.vmap(one)(keys(key))
        return lambda: found
    # a loop rather than a batch: it runs once, and compiles faster
    return ahead(lambda key: jax.lax.map(one, keys(key)), key)


def _same(name: str, bounds: Sequence[Any]) -> list[Any]:
    """Bounds of a support, which are the same in all draws."""
    if any(np.ptp(np.asarray(b), axis=0).any() for b in bounds):
        raise GuideError(
            f"the support of latent {name!r} depends on another latent, so one unconstrained space does not fit all "
            "particles; rewrite it with a fixed support (scale a Uniform(0, 1)), or pass a guide"
        )
    return [b[0] for b in bounds]
