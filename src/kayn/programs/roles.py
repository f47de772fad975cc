"""What NumPyro's own trace says a site is: what a handler has fixed is data, a point mass is a value,
a factor is known.

The rules stand here for models and guides, so that all who read programs agree on what is latent, observed and scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend.core import get_opaque_trace_state
from numpyro.primitives import Messenger

from kayn.errors import GuideError, ModelError, StructureWarning, warn
from kayn.programs.wrappers import innermost
from kayn.support.arrays import Array
from kayn.support.names import RESERVED
from kayn.support.numpyro_internals import is_told_afterwards, substitutions

ADDED = "_kayn_added"
"""Marks factors, in `infer`, that stand for the log densities of point masses."""


class Fixed(Messenger):
    """A program whose sample sites count as observed where a handler within it has set their value,
    or where there is nothing to draw.

    `numpyro.handlers.substitute` and `replay` keep a site's density and fix its value, as `condition` does.
    A `Unit` has no value.
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        """Mark a site as observed where a handler has set its value; give a `Unit` its empty one."""
        if msg["type"] == "control_flow":
            stack = substitutions(msg)
            # conditions act on sample sites only, so what else is substituted stays as it is
            stack += [("condition", table) for kind, table in list(stack) if kind == "substitute"]
        elif msg["type"] != "sample" or msg["is_observed"] or is_told_afterwards(msg):
            return
        elif msg["value"] is not None:
            msg["is_observed"] = True
        elif isinstance(innermost(msg["fn"]), dist.Unit):
            msg["value"], msg["is_observed"] = jnp.empty(msg["fn"].shape()), True


class Untransformed(Messenger):
    """Refuses sites within JAX transformations, where NumPyro's handlers cannot follow them.

    Args:
        fn: the program; it starts in the transformation, or outside of any, in which its sites have to be.
    """

    def __init__(self, fn: Callable):
        super().__init__(fn)
        self.outside: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program, with the transformation that it starts in as the outside."""
        self.outside = get_opaque_trace_state(convention="flax")
        return super().__call__(*args, **kwargs)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Look where a site stands.

        Raises:
            ModelError: in a transformation that began within the program.
        """
        if msg["type"] not in ("sample", "deterministic", "prng_key", "control_flow"):
            return
        if is_told_afterwards(msg) or get_opaque_trace_state(convention="flax") == self.outside:
            return
        if msg["type"] == "prng_key" and msg["kwargs"]["rng_key"] is not None:
            return  # within a loop of NumPyro's, which has keys of its own
        name = f"site {msg['name']!r}" if "name" in msg else f"a {msg['type']} statement"
        raise ModelError(
            f"{name} stands inside a JAX transformation (such as jax.jit, jax.vmap, jax.lax.cond, jax.lax.map), "
            "where NumPyro cannot see it. Use numpyro.plate instead of jax.vmap and jax.lax.map, "
            "numpyro.contrib.control_flow.scan instead of jax.lax.scan; sample before jax.lax.cond and choose by "
            "jnp.where; and pass the program itself, not jax.jit of it"
        )


def as_read(trace: Mapping[str, Any], guide: bool) -> dict[str, Any]:
    """A trace with every site in the role that kayn gives it.

    In models, point masses are values, as deterministic sites are, and their log densities factors. The density of a
    guide is what its particles are drawn from, which `numpyro.handlers.scale` does not change.
    """
    out: dict[str, Any] = {}
    for name, site in trace.items():
        if site["type"] == "sample" and guide:
            out[name] = {**site, "scale": None}
        elif site["type"] == "sample" and not site["is_observed"] and isinstance(innermost(site["fn"]), dist.Delta):
            out[name] = {k: site[k] for k in ("name", "cond_indep_stack")} | {
                "type": "deterministic",
                "value": jnp.asarray(site["value"]),
            }
            density = _density(site["fn"], site["value"])
            if density is not None:
                added = f"{RESERVED}density of:{name}"
                fn = dist.Unit(jnp.broadcast_to(density, site["fn"].batch_shape))
                kept = {k: site[k] for k in ("type", "scale", "cond_indep_stack")}
                own = {"name": added, "fn": fn, "value": jnp.empty(fn.shape()), "is_observed": True}
                out[added] = {**kept, **own, "infer": {"is_auxiliary": True, ADDED: True}}
        else:
            out[name] = site
    return out


def _density(fn: dist.Distribution, value: Array) -> Array | None:
    """The log density of a point mass at its value, None where it is known to be zero."""
    inner: Any = innermost(fn)
    density = inner.log_density
    if not isinstance(density, jax.core.Tracer) and not np.any(np.asarray(density)):
        return None
    return fn.log_prob(value)


def check_guide(trace: Mapping[str, Any], scaled: Callable[[Mapping[str, Any]], bool]) -> None:
    """Refuse and warn of what is no density in a guide.

    Args:
        scaled: whether a site has a factor of `numpyro.handlers.scale`.

    Raises:
        GuideError: the guide has a factor.
    """
    sites = {n: s for n, s in trace.items() if s["type"] == "sample"}
    for name, site in sites.items():
        if isinstance(innermost(site["fn"]), dist.Unit):
            raise GuideError(
                f"the guide has a numpyro.factor site {name!r}, but particles are divided by the density that they "
                "were drawn from, which a factor does not change. Put the term into the model, or the log density "
                "of a transformed draw into Delta(value, log_density=...)"
            )
    data = [n for n, s in sites.items() if s["is_observed"]]
    if data:
        warn(
            f"the guide has data at {', '.join(map(repr, data))}; particles are divided by the density that they "
            "were drawn from, which data do not change, so these sites are left out (numpyro.infer.Trace_ELBO "
            "subtracts their log density)",
            StructureWarning,
        )
    names = [n for n, s in sites.items() if scaled(s)]
    if names:
        warn(
            f"the guide scales the log density of {', '.join(map(repr, names))} (numpyro.handlers.scale); particles "
            "are divided by the density that they were drawn from, so the scale is left out there",
            StructureWarning,
        )
