"""Run a NumPyro program once for one particle and keep it as a jaxpr.

The jaxpr maps (latent values, parameters, subsample indices) to the log probability of every site. It is traced once,
evaluated many times on any combination of particle axes, and read by `kayn.graph.dependence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.extend.core import Jaxpr
from numpyro import handlers
from numpyro.distributions import constraints

from kayn.densities.log_prob import dependable
from kayn.errors import ModelError
from kayn.programs.density_arguments import density_arguments
from kayn.programs.given import FIXED, Given
from kayn.programs.outputs import OutputName, Part
from kayn.programs.random_walks import Walks
from kayn.programs.randomness import Keys
from kayn.programs.roles import Fixed, as_read
from kayn.programs.scans import Alias, Chains, aliases
from kayn.programs.sites import CHECKED_SUPPORTS, Site, own_scale
from kayn.programs.slices import slice_outputs
from kayn.programs.supports import ends_of, support_of
from kayn.programs.wrappers import delta_density, element_mask, hide_masked, innermost, with_batch_ndim, without_masks
from kayn.support.arrays import Array, PyTree

Outputs = dict[OutputName, Array]
"""What a run of a program puts out."""


@dataclass(frozen=True, eq=False)
class Program:
    """A traced single-particle program.

    Its jaxpr takes `consts`, the values named in `inputs` (in this order), the leaves of its parameters and the
    subsample indices; it returns one array for every name in `outputs`.
    """

    jaxpr: Jaxpr
    consts: tuple[Array, ...]
    inputs: tuple[str, ...]
    outputs: tuple[OutputName, ...]
    sites: Mapping[str, Site]
    subsamples: tuple[str, ...]
    params: tuple[str, ...] = ()
    """Parameters of its own, among all that may be given."""
    aliases: tuple[Alias, ...] = ()
    """Inputs that are a chain's latents at other steps."""
    not_markov: tuple[str, ...] = ()
    """Why loops were left as they are."""
    plain: Program | None = None
    """The program as it was traced, if it has been changed since: further factors may read what is absent, and sums
    are taken apart by what all factors read."""

    rows: Mapping[str, Site] = field(default_factory=dict)
    """Factors that sums have been taken apart into, as sites with the dimensions of these."""

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

    def sliced(self, outputs: Sequence[OutputName]) -> tuple[Callable[..., list[Array]], tuple[int, ...]]:
        """The program that computes some outputs only, and which of its constants and inputs that one reads
        (`slice_outputs`)."""
        return slice_outputs(self.jaxpr, [self.outputs.index(o) for o in outputs])

    def aval(self, output: OutputName) -> Any:
        """Shape and type of an output."""
        return self.jaxpr.outvars[self.outputs.index(output)].aval

    def leaves(self, values: Mapping[str, Array], params: PyTree, subsample: Mapping[str, Array]) -> tuple[Array, ...]:
        """The jaxpr's inputs after its constants, in order."""
        leaves = [values.get(name) for name in self.inputs]
        return (*leaves, *jax.tree.leaves(self.own(params)), *(subsample.get(name) for name in self.subsamples))

    @property
    def first_subsample(self) -> int:
        """Where the indices of subsampled plates begin among the jaxpr's constants and inputs."""
        return len(self.consts) + len(self.jaxpr.invars) - len(self.subsamples)

    def own(self, params: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Those of some parameters that are the program's."""
        return {name: params[name] for name in self.params}


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
    known = _Known(sites, batch_ndims)
    lengths = {n: s.steps for n in known.inputs if (s := sites[n]).steps is not None}
    values = {n: jax.ShapeDtypeStruct(sites[n].shape, sites[n].dtype) for n in known.inputs}
    indices = {n: jax.ShapeDtypeStruct(sites[n].shape, "int32") for n in known.subsamples}
    # what else is given is another program's, and may be other parameters when this one is computed
    own = {n: v for n, v in params.items() if n in sites and sites[n].kind in ("param", "mutable")}
    orders: dict[str, int] = {}
    broken: list[str] = []

    def run(values: dict, params: PyTree, indices: dict) -> Outputs:
        chains, walks = Chains(values, lengths), Walks(values)
        with chains, walks:
            trace = handlers.trace(known.filled_in(fn, values, params, indices)).get_trace(*args, **kwargs)
            trace = as_read(trace, known.guide)
        orders.update(chains.orders | walks.orders)
        broken[:] = chains.broken
        return known.outputs(trace)

    if lengths:
        # how many steps back a loop reads is known once its body has been read
        jax.eval_shape(run, values, own, indices)
        dims = {n: sites[n].step_dim for n in orders}
        values |= {a.name: _alias_shape(a, sites[a.base]) for a in aliases(orders, dims)}
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(values, own, indices)
    consts, names = tuple(closed.consts), tuple(jax.tree.leaves({n: n for n in shapes}))
    # `make_jaxpr` flattens dictionaries by sorted key
    inputs, subsamples = tuple(sorted(values)), tuple(sorted(known.subsamples))
    if not known.guide:
        _refuse_unrecorded(closed.jaxpr, names, consts, [sites.get(n) for n in inputs])
    moved = aliases(orders, {n: sites[n].step_dim for n in orders})
    return Program(closed.jaxpr, consts, inputs, names, sites, subsamples, tuple(sorted(own)), moved, tuple(broken))


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of a program before it is traced, and what each of its sites puts out by that.

    Attributes:
        batch_ndims: None for a model; for a guide as in `trace_program`.
    """

    sites: Mapping[str, Site]
    batch_ndims: Mapping[str, int] | None

    @property
    def guide(self) -> bool:
        """Whether the program is a guide."""
        return self.batch_ndims is not None

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Latents and keys, by which the program is filled in."""
        return tuple(n for n, s in self.sites.items() if s.kind == "key" or (s.kind == "sample" and not s.observed))

    @cached_property
    def subsamples(self) -> tuple[str, ...]:
        """Plates whose indices are inputs."""
        plates = {n: s for n, s in self.sites.items() if s.kind == "plate"}
        return tuple(n for n, s in plates.items() if s.fixed or s.shape != s.batch_shape)

    @cached_property
    def ratios(self) -> dict[str, float]:
        """Size of every plate over that of its subsample."""
        return {n: s.batch_shape[0] / s.shape[0] for n, s in self.sites.items() if s.kind == "plate"}

    def filled_in(self, fn: Callable, values: Mapping[str, Array], params: PyTree, indices: dict) -> Callable:
        """The program with values for all that is random in it."""
        given = {n: v for n, v in values.items() if n in self.inputs}
        latents = {n: v for n, v in given.items() if self.sites[n].kind == "sample"}
        program = Given(Fixed(fn), params=params, latents=latents, subsample=indices)
        keys = {n: v for n, v in given.items() if n not in latents}
        return Keys(handlers.seed(program, jax.random.key(0)), keys)

    def outputs(self, trace: Mapping[str, dict[str, Any]]) -> Outputs:
        """All outputs of a run, by name."""
        out: Outputs = {}
        for name, site in trace.items():
            if FIXED in site:
                out[Part.ROWS.of(name)] = site[FIXED]
            elif site["type"] == "deterministic":
                out[Part.VALUE.of(name)] = jnp.asarray(site["value"])
            elif site["type"] == "sample":
                out |= self._observed(name, site) if site["is_observed"] else self._latent(name, site)
        return out

    def _observed(self, name: str, site: dict[str, Any]) -> Outputs:
        densities, mask = self._densities(name, site), element_mask(site["fn"])
        return {**densities, **self._data(name, site), **self._support(name, site), **_if_any(Part.MASK.of(name), mask)}

    def _latent(self, name: str, site: dict[str, Any]) -> Outputs:
        # a guide's particles are divided by what they were drawn from, masked or not
        fn = without_masks(site["fn"]) if self.guide else site["fn"]
        site = {**site, "fn": fn}
        point, densities, mask = self._point(name, fn), self._densities(name, site), element_mask(fn)
        out = {**point, **densities, **self._support(name, site), **_ends(name, fn)}
        if mask is not None:
            out |= {Part.MASK.of(name): mask, Part.UNMASKED.of(name): _unmasked(fn, site["value"], mask.ndim)}
        return out

    def _kept(self, name: str) -> int | None:
        """How many batch dimensions a log probability keeps; None for those of the distribution."""
        if self.batch_ndims is None:
            return len(self.sites[name].batch_shape) if self.sites[name].freed else None
        return self.batch_ndims.get(name)

    def _densities(self, name: str, site: dict[str, Any]) -> Outputs:
        """The log probability of a site, and the arguments of it where it is an exponential family."""
        keep = self._kept(name)
        out = {Part.DENSITY.of(name): _log_prob(site, self.ratios, keep)}
        whole = keep in (None, len(site["fn"].batch_shape) + self.sites[name].freed)
        if whole and self.sites[name].exponential_family is not None:
            arguments = _arguments(site, self.ratios)
            out |= {Part.ARGUMENT.of(name, argument): array for argument, array in arguments.items()}
        return out

    def _point(self, name: str, fn: dist.Distribution) -> Outputs:
        """Where a guide's point mass is; looked at if there are subsamples (`kayn.particles.points`)."""
        wanted = self.guide and self.subsamples and self.sites[name].delta
        return {Part.POINT.of(name): jnp.asarray(innermost(fn).v)} if wanted else {}

    def _data(self, name: str, site: dict[str, Any]) -> Outputs:
        """Observed data, and whether they lie in their likelihood's support."""
        if site["value"] is None:
            return {}
        data = jnp.asarray(site["value"])
        inside = _inside(site["fn"].support, site["value"]) if self._kept(name) is None else None
        return {Part.DATA.of(name): data, **_if_any(Part.INSIDE.of(name), inside)}

    def _support(self, name: str, site: dict[str, Any]) -> Outputs:
        """What a latent that can be enumerated may be."""
        known = self.sites[name]
        if known.support_size is None:
            return {}
        support = site["fn"].enumerate_support(expand=False)
        return {Part.SUPPORT.of(name): jnp.broadcast_to(support, (support.shape[0], *known.shape)).astype(known.dtype)}


def _if_any(output: OutputName, array: Array | None) -> Outputs:
    return {} if array is None else {output: array}


def _refuse_unrecorded(jaxpr: Jaxpr, names: Sequence[OutputName], consts: tuple, inputs: Sequence[Site | None]) -> None:
    """Raise where a model depends on random numbers that no site records."""
    keys = {len(consts) + i for i, site in enumerate(inputs) if site is not None and site.kind == "key"}
    for position, name in enumerate(names if keys else ()):
        if keys & set(slice_outputs(jaxpr, [position])[1]):
            raise ModelError(
                f"site {name.site!r} of the model depends on random numbers that no sample site records "
                "(numpyro.prng_key, dropout, a site hidden by numpyro.handlers.block), so nothing could be inferred "
                "about them. Draw them by numpyro.sample, switch dropout off, or fix them by "
                "numpyro.handlers.seed(model, 0)"
            )


def _alias_shape(alias: Alias, site: Site) -> Any:
    shape = site.shape[: alias.dim] + site.shape[alias.dim + alias.end :]
    return jax.ShapeDtypeStruct(shape, site.dtype)


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


def _ends(name: str, fn: dist.Distribution) -> Outputs:
    """Ends of a latent's support that are not plain numbers."""
    support, ends = support_of(fn), ends_of(fn)
    if support is None or ends is None:
        return {}
    pairs = ((Part.LOWER, support.lower, ends.lower), (Part.UPPER, support.upper, ends.upper))
    return {part.of(name): jnp.asarray(end) for part, number, end in pairs if number is None}


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
