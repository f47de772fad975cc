"""Draws from a model's prior, for guides to start from; they are compiled while their user goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to

from kayn.axes.minibatches import assembled, blocks_of_rows, full_shape, subsampled_plates
from kayn.errors import GuideError
from kayn.graph.flow import Sources, reach
from kayn.programs.given import Given
from kayn.programs.seeding import draw, seeded
from kayn.programs.sites import Site, placeholder
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.xla.compilation import ahead, is_traced

PRIOR_DRAWS = 100
MANY_LATENTS = 50


@dataclass(frozen=True)
class Prior:
    """Supports of the continuous latents, and `draws`, which waits for draws of each in unconstrained space:
    [PRIOR_DRAWS, *shape there]; of discrete latents, as they are.

    Where the prior is improper, these are a feasible value.
    """

    supports: dict[str, constraints.Constraint]
    draws: Callable[[], dict[str, Array]]


@dataclass(frozen=True, eq=False)
class Conditional:
    """Some latents of a model given all others, as the model draws them: a part of a guide with nothing to learn."""

    model: Callable
    names: tuple[str, ...]

    def run(self, args: tuple, kwargs: Mapping, others: Mapping[str, Array]) -> None:
        """Draw them within a guide; `others` are the values of its own sites."""
        program = handlers.substitute(Given(self.model, latents=others), substitute_fn=self._anything)
        handlers.block(program, hide_fn=self._hides)(*args, **kwargs)

    def _hides(self, msg: Mapping[str, Any]) -> bool:
        return msg["type"] in ("sample", "deterministic", "plate") and msg["name"] not in self.names

    def _anything(self, msg: Mapping[str, Any]) -> Array | None:
        """A value for latents that are neither: they are on no path to these."""
        if msg["type"] != "sample" or msg["is_observed"] or msg["name"] in self.names:
            return None
        return draw(msg["fn"], as_key(0), ())


def prior(
    model: Callable, args: tuple, kwargs: Mapping, params: Mapping, sites: Mapping[str, Site], key: KeyArray
) -> Prior:
    """Trace a model's prior and start to compile it.

    Args:
        sites: what `inspect_sites` found for the model; those that are enumerated are left out.

    Latents in subsampled plates are drawn for all N elements, a block of rows at a time.

    Raises:
        GuideError: a latent's support depends on another latent, or on the rows of a subsample.
    """
    latents = {n: s for n, s in sites.items() if s.kind == "sample" and not s.observed}
    names = [n for n, s in latents.items() if s.support_size is None]
    forms: dict[str, Any] = {}
    fixed: dict[str, list[Array]] = {}

    plates = subsampled_plates(sites)
    blocks = blocks_of_rows(plates) if plates else {}

    def one(key: KeyArray, rows: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, list[Array]]]:
        program = handlers.substitute(Given(model, params=params, subsample=rows), substitute_fn=placeholder)
        trace = handlers.trace(seeded(program, key)).get_trace(*args, **kwargs)
        computed, unconstrained = {}, {}
        for name in names:
            if latents[name].discrete:
                unconstrained[name] = trace[name]["value"]
                continue
            support = trace[name]["fn"].support
            unconstrained[name] = biject_to(support).inv(trace[name]["value"])
            bounds, forms[name] = jax.tree.flatten(support)
            if any(isinstance(b, jax.Array) for b in bounds):
                computed[name] = bounds
            else:
                fixed[name] = bounds
        return unconstrained, computed

    def all_rows(key: KeyArray) -> tuple[dict[str, Array], dict[str, list[Array]]]:
        if not blocks:
            return one(key, {})
        by_block, computed = jax.lax.map(lambda rows: one(key, rows), blocks)
        whole = {n: assembled(u, *full_shape(latents[n], u.shape[1:], plates), blocks) for n, u in by_block.items()}
        return whole, jax.tree.map(lambda b: b[0], computed)

    wait = _draws_of(all_rows, key, len(names) > MANY_LATENTS)
    continuous = [n for n in names if not latents[n].discrete]
    computed = [n for n in continuous if n not in fixed]
    if computed:
        refuse_dependent_supports(supports_that_depend(model, args, kwargs, params, latents, computed, plates))
        fixed |= {n: [b[0] for b in bounds] for n, bounds in wait()[1].items()}
    return Prior({n: jax.tree.unflatten(forms[n], fixed[n]) for n in continuous}, lambda: wait()[0])


def refuse_dependent_supports(found: Mapping[str, str]) -> None:
    """Refuse supports that are computed from another latent or from a subsample, as `supports_that_depend` finds them.

    Raises:
        GuideError: there is one.
    """
    for name, on in found.items():
        raise GuideError(
            f"the support of latent {name!r} depends on {on}, so one unconstrained space does not fit "
            "all particles; rewrite it with a fixed support (scale a Uniform(0, 1), or add a positive latent to "
            "the bound), or pass a guide"
        )


def supports_that_depend(
    model: Callable,
    args: tuple,
    kwargs: Mapping,
    params: Mapping,
    latents: Mapping[str, Site],
    names: Sequence[str],
    plates: Mapping[str, tuple[int, int]] | None = None,
    ends: Callable[[Any], Any] = lambda fn: fn.support,
) -> dict[str, str]:
    """Latents whose supports are computed from other latents or from a subsample, whatever the numbers; each with one
    of what it depends on, in words.

    Args:
        latents: all latents of the model.
        names: those whose supports are looked at.
        plates: N and M of subsampled plates, whose rows supports may depend on too.
        ends: a distribution to a tree of what its support is made of.
    """
    # a point mass is no source: it passes on what it was computed from
    given = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in latents.items() if not s.delta}
    rows = {n: jax.ShapeDtypeStruct((size,), "int32") for n, (_, size) in (plates or {}).items()}

    def bounds(given: Mapping[str, Array], rows: Mapping[str, Array]) -> list[list[Array]]:
        program = Given(model, params=params, latents=given, subsample=rows)
        trace = handlers.trace(seeded(program, jax.random.key(0))).get_trace(*args, **kwargs)
        return [jax.tree.leaves(ends(trace[n]["fn"])) for n in names]

    closed, shapes = jax.make_jaxpr(bounds, return_shape=True)(given, rows)
    # `make_jaxpr` flattens dictionaries by sorted key
    sources = iter(
        reach(
            closed.jaxpr,
            [Sources((f"latent {n!r}",)) for n in sorted(given)]
            + [Sources((f"the rows of plate {n!r}",)) for n in sorted(rows)],
        )
    )
    found = {n: Sources().union(*(next(sources) for _ in own)) for n, own in zip(names, shapes, strict=True)}
    return {n: min(on) for n, on in found.items() if on}


def best_start(
    starts: Sequence[dict[str, Array]], log_evidence: Callable[[dict[str, Array]], Array]
) -> dict[str, Array]:
    """The parameters under which a few sets of particles see more of the posterior.

    Args:
        log_evidence: parameters to log Z of several sets of particles from there, in nats.
    """
    if len(starts) == 1:
        return starts[0]
    found = [log_evidence(s) for s in starts]
    if is_traced(found):  # these are chosen between at run time
        best = jnp.argmax(jnp.stack([jax.nn.logsumexp(jnp.nan_to_num(logs, nan=-jnp.inf)) for logs in found]))
        return jax.tree.map(lambda *own: jnp.stack(own)[best], *starts)
    # plain NumPy for plain numbers: nothing to compile
    seen = [np.logaddexp.reduce(np.nan_to_num(np.asarray(logs, float), nan=-np.inf)) for logs in found]
    return starts[int(np.argmax(seen))]


def _draws_of(one: Callable[[KeyArray], PyTree], key: KeyArray, many: bool) -> Callable[[], PyTree]:
    """What waits for PRIOR_DRAWS draws."""

    def keys(key: KeyArray) -> KeyArray:
        # fits split the key itself, and small numbers folded in give what splitting gives
        return jax.random.split(jax.random.fold_in(key, 2**32 - 1), PRIOR_DRAWS)

    if many:
        # compilers take minutes over a program of hundreds of dependent draws; one operation at a time takes seconds
        found = jax.vmap(one)(keys(key))
        return lambda: found
    # a loop rather than a batch: it runs once, and compiles faster
    return ahead(lambda key: jax.lax.map(one, keys(key)), key)
