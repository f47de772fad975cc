"""Run a NumPyro program once for one particle and keep it as a jaxpr.

The jaxpr maps (latent values, parameters, subsample indices) to the log probability of every site. It is traced once,
evaluated many times on any combination of particle axes, and read by `kayn.graph.dependence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.extend.core import Jaxpr
from numpyro import handlers
from numpyro.distributions import constraints

from kayn.densities.log_prob import dependable
from kayn.errors import ModelError
from kayn.programs.density_arguments import argument_of, argument_output, density_arguments
from kayn.programs.given import FIXED, Given
from kayn.programs.random_walks import Walks
from kayn.programs.randomness import Keys
from kayn.programs.roles import Fixed, as_read
from kayn.programs.scans import Alias, Chains, aliases
from kayn.programs.sites import CHECKED_SUPPORTS, Site, own_scale
from kayn.programs.slices import slice_outputs
from kayn.programs.supports import ends_of, support_of
from kayn.programs.wrappers import delta_density, element_mask, hide_masked, innermost, with_batch_ndim, without_masks
from kayn.support.arrays import Array, PyTree
from kayn.support.names import RESERVED

VALUE = f"{RESERVED}value:"
DATA = f"{RESERVED}data:"
MASK = f"{RESERVED}mask:"
SUPPORT = f"{RESERVED}support:"
INSIDE = f"{RESERVED}inside:"
UNMASKED = f"{RESERVED}unmasked:"
ABSENT = f"{RESERVED}absent:"
POINT = f"{RESERVED}point:"
ROWS = f"{RESERVED}rows:"
LOWER, UPPER = f"{RESERVED}lower:", f"{RESERVED}upper:"
"""Prefixes of traced outputs that are no factors: deterministic values, observed data, masks, supports of enumerated
latents, whether data lie in their likelihood's support, what a masked latent's density would be without its masks,
which of its elements are in no factor at all (`kayn.graph.absent`), where point masses of guides are, indices of plates
that a handler has set, and ends of latents' supports that are computed."""


def site_of(output: str) -> str:
    """The site that a traced output belongs to. Names of sites may have colons; those of users begin with none of the
    prefixes."""
    found = argument_of(output)
    if found is not None:
        return found[1]
    return output.removeprefix(RESERVED).partition(":")[2] if output.startswith(RESERVED) else output


@dataclass(frozen=True, eq=False)
class Program:
    """A traced single-particle program.

    Its jaxpr takes `consts`, the values named in `inputs` (in this order), the leaves of the parameters and the
    subsample indices; it returns one array for every name in `outputs`.
    """

    jaxpr: Jaxpr
    consts: tuple[Array, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sites: Mapping[str, Site]
    subsamples: tuple[str, ...]
    params_tree: Any
    aliases: tuple[Alias, ...] = ()
    """Inputs that are a chain's latents at other steps."""
    not_markov: tuple[str, ...] = ()
    """Why loops were left as they are."""
    plain: Program | None = None
    """The program as it was traced, if absences have been looked up in it: further factors may read what is absent."""

    @property
    def latents(self) -> tuple[str, ...]:
        """Latents of the program itself."""
        return tuple(n for n in self.inputs if n not in {a.name for a in self.aliases})

    def with_aliases(self, values: Mapping[str, Array], leading: int = 0) -> dict[str, Array]:
        """Values of latents, completed by those of the aliases.

        Args:
            leading: dimensions in front of the site's own.
        """
        return {**values, **{a.name: a.move(values[a.base], leading) for a in self.aliases if a.base in values}}

    def leaves(self, values: Mapping[str, Array], params: PyTree, subsample: Mapping[str, Array]) -> tuple[Array, ...]:
        """The jaxpr's inputs after its constants, in order."""
        leaves = [values.get(name) for name in self.inputs]
        return (*leaves, *jax.tree.leaves(params), *(subsample.get(name) for name in self.subsamples))


def trace_program(
    fn: Callable,
    args: tuple,
    kwargs: Mapping,
    params: PyTree,
    sites: Mapping[str, Site],
    batch_ndims: Mapping[str, int] | None = None,
) -> Program:
    """Trace log probabilities, deterministic values and data of every site as functions of the latent values.

    Args:
        sites: what `inspect_sites` found for `fn`.
        batch_ndims: for a guide, how many batch dimensions the log probability of each site should keep (those of the
            model's site), whatever the guide's distribution declares to be an event.
    """
    guide = batch_ndims is not None
    inputs = tuple(n for n, s in sites.items() if s.kind == "key" or (s.kind == "sample" and not s.observed))
    subsamples = tuple(n for n, s in sites.items() if s.kind == "plate" and (s.fixed or s.shape != s.batch_shape))
    ratios = {n: s.batch_shape[0] / s.shape[0] for n, s in sites.items() if s.kind == "plate"}
    lengths = {n: s.steps for n in inputs if (s := sites[n]).steps is not None}
    values = {n: jax.ShapeDtypeStruct(sites[n].shape, sites[n].dtype) for n in inputs}
    indices = {n: jax.ShapeDtypeStruct(sites[n].shape, "int32") for n in subsamples}

    orders: dict[str, int] = {}
    broken: list[str] = []
    # looked at where these are (`kayn.particles.points`)
    points = guide and bool(subsamples)

    def run(values: dict, params: PyTree, indices: dict) -> dict[str, Array]:
        own = {n: v for n, v in values.items() if n in inputs and sites[n].kind == "sample"}
        program = Given(Fixed(fn), params=params, latents=own, subsample=indices)
        program = Keys(
            handlers.seed(program, jax.random.key(0)), {n: v for n, v in values.items() if n in inputs and n not in own}
        )
        chains, walks = Chains(values, lengths), Walks(values)
        with chains, walks:
            trace = as_read(handlers.trace(program).get_trace(*args, **kwargs), guide)
        orders.update(chains.orders | walks.orders)
        broken[:] = chains.broken
        out: dict[str, Array] = {}
        for name, site in trace.items():
            if FIXED in site:
                out[ROWS + name] = site[FIXED]
            elif site["type"] == "deterministic":
                out[VALUE + name] = jnp.asarray(site["value"])
            elif site["type"] == "sample":
                keep = None if batch_ndims is None else batch_ndims.get(name)
                if batch_ndims is not None and not site["is_observed"]:
                    # a guide's particles are divided by what they were drawn from, masked or not
                    site = {**site, "fn": without_masks(site["fn"])}
                    if points and sites[name].delta:
                        out[POINT + name] = jnp.asarray(innermost(site["fn"]).v)
                out[name] = _log_prob(site, ratios, keep)
                if keep in (None, len(site["fn"].batch_shape)) and sites[name].exponential_family is not None:
                    arguments = _arguments(site, ratios)
                    out.update({argument_output(argument, name): array for argument, array in arguments.items()})
                mask = element_mask(site["fn"])
                if site["is_observed"] and site["value"] is not None:
                    out[DATA + name] = jnp.asarray(site["value"])
                    inside = None if keep is not None else _inside(site["fn"].support, site["value"])
                    if inside is not None:
                        out[INSIDE + name] = inside
                if sites[name].support_size is not None:
                    support = site["fn"].enumerate_support(expand=False)
                    shape = (support.shape[0], *sites[name].shape)
                    out[SUPPORT + name] = jnp.broadcast_to(support, shape).astype(sites[name].dtype)
                if not site["is_observed"]:
                    out.update(_ends(name, site["fn"]))
                if mask is not None:
                    out[MASK + name] = mask
                    if not site["is_observed"]:
                        out[UNMASKED + name] = _unmasked(site["fn"], site["value"], mask.ndim)
        return out

    if lengths:
        # how many steps back a loop reads is known once its body has been read
        jax.eval_shape(run, values, params, indices)
        values |= {a.name: _alias_shape(a, sites[a.base]) for a in aliases(orders)}
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(values, params, indices)
    names = tuple(jax.tree.leaves({n: n for n in shapes}))
    if not guide:
        _refuse_unrecorded(closed.jaxpr, names, tuple(closed.consts), [sites.get(n) for n in sorted(values)])
    # `make_jaxpr` flattens dictionaries by sorted key
    order = tuple(sorted(values))
    return Program(
        closed.jaxpr,
        tuple(closed.consts),
        order,
        names,
        sites,
        tuple(sorted(subsamples)),
        jax.tree.structure(params),
        aliases(orders),
        tuple(broken),
    )


def _refuse_unrecorded(jaxpr: Jaxpr, names: Sequence[str], consts: tuple, inputs: Sequence[Site | None]) -> None:
    """Raise where a model depends on random numbers that no site records."""
    keys = {len(consts) + i for i, site in enumerate(inputs) if site is not None and site.kind == "key"}
    for position, name in enumerate(names if keys else ()):
        if keys & set(slice_outputs(jaxpr, [position])[1]):
            raise ModelError(
                f"site {site_of(name)!r} of the model depends on random numbers that no sample site records "
                "(numpyro.prng_key, dropout, a site hidden by numpyro.handlers.block), so nothing could be inferred "
                "about them. Draw them by numpyro.sample, switch dropout off, or fix them by "
                "numpyro.handlers.seed(model, 0)"
            )


def _alias_shape(alias: Alias, site: Site) -> Any:
    return jax.ShapeDtypeStruct(site.shape[1:] if alias.end else site.shape, site.dtype)


def _log_prob(site: Mapping[str, Any], ratios: Mapping[str, float], keep: int | None) -> Array:
    fn, value = site["fn"], site["value"]
    if site["is_observed"] and value is not None:
        value = jnp.asarray(value)  # NumPyro's support checks mix NumPy data and traced bounds
    if isinstance(innermost(fn), dist.Delta) and not site["is_observed"]:
        # a joint autoguide's deterministic transform: equality with a recomputed float is not a test worth making
        log_prob = delta_density(fn)
    elif keep is not None:
        log_prob = dependable(with_batch_ndim(fn, keep), site["value"]).log_prob(value)
    else:
        value = hide_masked(fn, value) if site["is_observed"] else value
        log_prob = dependable(fn, site["value"]).log_prob(value)
    if keep is not None and jnp.ndim(log_prob) > keep:
        log_prob = log_prob.sum(tuple(range(keep, jnp.ndim(log_prob))))
    if keep is None:
        log_prob = jnp.broadcast_to(log_prob, jnp.broadcast_shapes(jnp.shape(log_prob), fn.batch_shape))
    scale = own_scale(site, ratios)
    return log_prob if scale is None else log_prob * scale


def _ends(name: str, fn: dist.Distribution) -> dict[str, Array]:
    """Ends of a latent's support that are not plain numbers."""
    support, ends = support_of(fn), ends_of(fn)
    if support is None or ends is None:
        return {}
    pairs = ((LOWER, support.lower, ends.lower), (UPPER, support.upper, ends.upper))
    return {prefix + name: jnp.asarray(end) for prefix, number, end in pairs if number is None}


def _unmasked(fn: dist.Distribution, value: Array, ndim: int) -> Array:
    """A latent's log density as it is without masks, for each element that one may hide:
    the shape of `element_mask`."""
    return dependable(with_batch_ndim(without_masks(fn), ndim), value).log_prob(value)


def _arguments(site: Mapping[str, Any], ratios: Mapping[str, float]) -> dict[str, Array]:
    fn, value = site["fn"], site["value"]
    value = hide_masked(fn, value) if site["is_observed"] else value
    return density_arguments(fn, value, own_scale(site, ratios))


def _inside(support: Any, value: Array) -> Array | None:
    """Whether data lie in a support, elementwise; None for supports where a check could raise a false alarm.

    Those over several coordinates at once (a simplex) are only met up to rounding, and a density may be finite at the
    end of an open one (Exponential at zero).
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    value = jnp.asarray(value)
    if isinstance(support, constraints.greater_than):
        return value >= support.lower_bound
    return support(value) if type(support) in CHECKED_SUPPORTS else None
