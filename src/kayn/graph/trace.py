"""Run a NumPyro program once for one particle and keep it as a jaxpr.

The jaxpr maps (latent values, parameters, subsample indices) to the log probability of every site. It is traced once,
evaluated many times on any combination of particle axes, and read by `kayn.graph.dependence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend.core import Jaxpr
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.util import is_identically_one
from numpyro.infer.autoguide import AutoGuide

from kayn.compilation import within_transformation
from kayn.errors import GuideError, ModelError
from kayn.graph.arguments import ARGUMENT, density_arguments, family_of
from kayn.graph.chains import Alias, Chains, aliases
from kayn.graph.densities import dependable
from kayn.graph.given import FIXED, Given, OneKind, refuse_two_kinds
from kayn.graph.params import CheckedParams
from kayn.graph.randomness import Keys
from kayn.graph.roles import ADDED, Fixed, Untransformed, as_read, check_guide
from kayn.graph.slices import slice_outputs
from kayn.graph.supports import Support, ends_of, support_of
from kayn.graph.tables import explained, refuse_shape
from kayn.graph.walks import WALK, Walks
from kayn.graph.wrappers import delta_density, element_mask, hide_masked, innermost, with_batch_ndim, without_masks
from kayn.names import RESERVED, fresh

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
which of its elements are in no factor at all (`kayn.graph.absent`), where point masses of guides are, indices of plates that a
handler has set, and ends of latents' supports that are
computed."""


CHECKED_SUPPORTS = (
    type(constraints.boolean),
    type(constraints.nonnegative_integer),
    type(constraints.positive_integer),
    type(constraints.unit_interval),
    constraints.integer_interval,
    constraints.integer_greater_than,
    constraints.interval,
)


@dataclass(frozen=True)
class Site:
    """A sample, deterministic, plate or param site as the trace shows it, without numbers."""

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    batch_shape: tuple[int, ...] = ()
    frames: tuple[tuple[str, int, int], ...] = ()
    observed: bool = False
    discrete: bool = False
    enumerate: bool = False
    support_size: int | None = None
    auxiliary: bool = False
    delta: bool = False
    reparameterised: bool = True
    family: str = ""
    exponential_family: str | None = None
    independent_ndim: int = 0
    support: Support | None = None
    mask_ndim: int = 0
    """Dimensions of what its masks stand at: those of the batch, and of events that are made of masked elements."""
    steps: int | None = None
    """Number of steps of the chain that the site is; its leading dimension."""
    walk: bool = False
    """Whether the chain is one site in the model, and not one of a `scan`."""
    added: bool = False
    """Whether kayn has added it: keys, and log densities of point masses."""
    fixed: bool = False
    """Whether a handler has set the indices of the plate that it is, in the program or in its partner (of model and guide)."""

    @property
    def event_dim(self) -> int:
        return len(self.shape) - len(self.batch_shape)


@dataclass(frozen=True, eq=False)
class Program:
    """A traced single-particle program.

    Its jaxpr takes `consts`, the values named in `inputs` (in this order), the leaves of the parameters and the
    subsample indices; it returns one array for every name in `outputs`.
    """

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sites: Mapping[str, Site]
    subsamples: tuple[str, ...]
    params_tree: Any
    aliases: tuple[Alias, ...] = ()
    """Inputs that are a chain's latents at other steps."""
    not_markov: tuple[str, ...] = ()
    """Why loops were left as they are."""

    @property
    def latents(self) -> tuple[str, ...]:
        """Latents of the program itself."""
        return tuple(n for n in self.inputs if n not in {a.name for a in self.aliases})

    def with_aliases(self, values: Mapping[str, Any], leading: int = 0) -> dict[str, Any]:
        """Values of latents, completed by those of the aliases.

        Args:
            leading: dimensions in front of the site's own.
        """
        return {**values, **{a.name: a.move(values[a.base], leading) for a in self.aliases if a.base in values}}

    def leaves(self, values: Mapping[str, Any], params: Any, subsample: Mapping[str, Any]) -> tuple[Any, ...]:
        """The jaxpr's inputs after its constants, in order."""
        leaves = [values.get(name) for name in self.inputs]
        return (*leaves, *jax.tree.leaves(params), *(subsample.get(name) for name in self.subsamples))


def inspect_sites(fn: Callable, args: tuple, kwargs: Mapping, params: Any, guide: bool = False) -> dict[str, Site]:
    """All sites of a program, found by abstract evaluation (nothing is computed).

    Args:
        guide: whether the program is a guide, where point masses are draws as others are.

    Raises:
        ModelError: a site name is used twice, or for sites of two kinds, or a plate with two sizes, or a site stands in a JAX transformation.
        GuideError: a guide has a factor.
    """
    if not callable(fn):
        raise ModelError(f"model and guide must be NumPyro programs (functions), but one is {type(fn).__name__} {fn!r}")
    if isinstance(fn, AutoGuide):
        _set_up_autoguide(fn, args, kwargs)
    found: dict[str, Site] = {}

    def run() -> int:
        program = CheckedParams(OneKind(Given(Fixed(Untransformed(fn)), params=params)), params or {})
        program = Keys(handlers.seed(handlers.substitute(program, substitute_fn=placeholder), jax.random.key(0)))
        try:
            with Walks({}):
                trace = handlers.trace(program).get_trace(*args, **kwargs)
        except AssertionError as error:
            if "unique names" in str(error):
                raise ModelError(
                    f"{error}. Every site of a model needs its own name; rename one of the two."
                ) from error
            raise
        except NotImplementedError as error:
            if "control flow" in str(error):
                raise ModelError(f"NumPyro does not run this program: {error}") from error
            raise
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            if (told := explained(error, fn, args, kwargs)) is error:
                raise
            raise told from error
        if guide:
            ratios = _ratios(trace)
            check_guide(trace, lambda site: _own_scale(site, ratios) is not None)
        trace = as_read(trace, guide)
        found.update({name: _site(name, site, trace) for name, site in trace.items() if _is_site(site)})
        found.update({n: Site(n, "key", jnp.shape(v), "uint32", added=True) for n, v in program.found.items()})
        return 0

    jax.eval_shape(run)
    found = _name_steps(found)
    _check_plates(found)
    return found


def share_fixed(sites: Mapping[str, Site], partner: Mapping[str, Site]) -> dict[str, Site]:
    """Sites of which those plates count as fixed that are so in a partner program."""
    fixed = {n for n, s in partner.items() if s.fixed}
    return {n: replace(s, fixed=True) if n in fixed and s.kind == "plate" else s for n, s in sites.items()}


def _ratios(trace: Mapping[str, Any]) -> dict[str, float]:
    """How many elements one of a plate stands for."""
    return {n: s["args"][0] / jnp.shape(s["value"])[0] for n, s in trace.items() if s["type"] == "plate"}


def _name_steps(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Sites in loops with the loop's steps as a plate: "time", or "time_<length>" where there are several lengths."""
    lengths = {s.steps for s in sites.values() if s.steps is not None}
    taken = {f[0] for s in sites.values() for f in s.frames} | set(sites)
    base = "time" if "time" not in taken else "scan_time"
    names = {length: fresh(base if len(lengths) == 1 else f"{base}_{length}", taken) for length in sorted(lengths)}

    def named(site: Site) -> Site:
        if site.steps is None:
            return site
        return replace(site, frames=(*site.frames, (names[site.steps], -len(site.batch_shape), site.steps)))

    return {n: named(s) for n, s in sites.items()}


def _set_up_autoguide(guide: AutoGuide, args: tuple, kwargs: Mapping) -> None:
    """An autoguide reads its model on first use and keeps what it finds, which must happen outside of any tracing."""
    if guide.prototype_trace is not None:
        return
    if within_transformation():
        raise GuideError(
            f"{type(guide).__name__} is used for the first time inside a JAX transformation such as jax.jit; call it once "
            "before, as SVI.init does: numpyro.handlers.seed(guide, 0)(*args)"
        )
    handlers.block(handlers.seed(guide, jax.random.key(0)))(*args, **kwargs)


def _check_plates(sites: Mapping[str, Site]) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for site in sites.values():
        for plate, _, size in site.frames:
            if plate in sites and sites[plate].kind != "plate":  # NumPyro does not tell of plates inside loops
                refuse_two_kinds(plate, sites[plate].kind, "plate")
            known, first = sizes.setdefault(plate, (size, site.name))
            if known != size:
                raise ModelError(
                    f"plate {plate!r} has size {known} at site {first!r} but size {size} at site {site.name!r}; "
                    "one plate name stands for one set of elements, so use two names or one size"
                )


def trace_program(
    fn: Callable,
    args: tuple,
    kwargs: Mapping,
    params: Any,
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
    # looked at where these are (`kayn.points`)
    points = guide and bool(subsamples)

    def run(values: dict, params: Any, indices: dict) -> dict[str, Any]:
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
        out: dict[str, Any] = {}
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
                    out.update({f"{ARGUMENT}{argument}:{name}": array for argument, array in arguments.items()})
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
            site = name.rpartition(":")[2] if name not in {s.name for s in inputs if s} else name
            raise ModelError(
                f"site {site!r} of the model depends on random numbers that no sample site records (numpyro.prng_key, dropout, a site hidden by "
                "numpyro.handlers.block), so nothing could be inferred about them. Draw them by numpyro.sample, switch dropout off, or fix them "
                "by numpyro.handlers.seed(model, 0)"
            )


def _alias_shape(alias: Alias, site: Site) -> Any:
    return jax.ShapeDtypeStruct(site.shape[1:] if alias.end else site.shape, site.dtype)


def _is_site(site: Mapping[str, Any]) -> bool:
    return site["type"] in ("sample", "deterministic", "plate", "param", "mutable")


def _site(name: str, site: Mapping[str, Any], trace: Mapping[str, Any]) -> Site:
    if site["type"] == "plate":
        full, size = site["args"][0], jnp.shape(site["value"])[0]
        return Site(name, "plate", shape=(size,), batch_shape=(full,), fixed=FIXED in site)
    if site["type"] in ("param", "mutable"):
        return Site(name, site["type"])
    value = site["value"]
    shape, dtype = jnp.shape(value), str(jnp.result_type(value)) if value is not None else "float32"
    frames = tuple((f.name, f.dim, f.size) for f in site["cond_indep_stack"])
    if site["type"] == "deterministic":
        return Site(name, "deterministic", shape, dtype, shape, frames)
    fn = site["fn"]
    if site["is_observed"] and value is not None and not isinstance(innermost(fn), dist.Unit):
        plates = [dim - fn.event_dim for _, dim, _ in frames]
        refuse_shape(name, shape, fn.shape(), innermost(fn).event_dim, plates)
    infer = site["infer"]
    walk = WALK in infer
    steps = shape[0] if walk or ("_scan_current_index" in infer and shape) else None
    base = innermost(fn)
    discrete = bool(getattr(fn.support, "is_discrete", False)) if not isinstance(base, dist.Unit) else False
    enumerate_ = infer.get("enumerate") == "parallel"
    return Site(
        name,
        "sample",
        shape,
        dtype,
        tuple(fn.batch_shape),
        frames,
        observed=site["is_observed"],
        discrete=discrete,
        enumerate=enumerate_,
        support_size=_support_size(name, fn) if enumerate_ and not site["is_observed"] else None,
        auxiliary=bool(infer.get("is_auxiliary")),
        delta=isinstance(base, dist.Delta),
        reparameterised=bool(fn.has_rsample),
        family=type(base).__name__,
        exponential_family=family_of(base),
        independent_ndim=fn.event_dim - base.event_dim,
        support=None if site["is_observed"] else support_of(fn),
        mask_ndim=0 if (mask := element_mask(fn)) is None else mask.ndim,
        steps=steps,
        walk=walk,
        added=ADDED in infer,
    )


def _support_size(name: str, fn: dist.Distribution) -> int:
    if not fn.has_enumerate_support or fn.event_dim > 0:
        raise ModelError(
            f"site {name!r} asks for enumeration, but its distribution {type(fn).__name__} cannot be enumerated "
            "element by element; drop infer={'enumerate': 'parallel'} and give the site a guide, or use a "
            "distribution with finite support and no event dimension"
        )
    return int(jax.eval_shape(lambda: fn.enumerate_support(expand=False)).shape[0])


def placeholder(site: Mapping[str, Any]) -> Any:
    """A value for priors that cannot be drawn from (improper ones); shapes are all that matters here."""
    if site["type"] != "sample" or site["is_observed"]:
        return None
    fn = site["fn"]
    if isinstance(innermost(fn), dist.ImproperUniform):
        return fn.support.feasible_like(jnp.zeros(fn.shape()))
    return None


def _log_prob(site: Mapping[str, Any], ratios: Mapping[str, float], keep: int | None) -> Any:
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
    scale = _own_scale(site, ratios)
    return log_prob if scale is None else log_prob * scale


def _ends(name: str, fn: dist.Distribution) -> dict[str, Any]:
    """Ends of a latent's support that are not plain numbers."""
    support, ends = support_of(fn), ends_of(fn)
    if support is None or ends is None:
        return {}
    pairs = ((LOWER, support.lower, ends.lower), (UPPER, support.upper, ends.upper))
    return {prefix + name: jnp.asarray(end) for prefix, number, end in pairs if number is None}


def _unmasked(fn: dist.Distribution, value: Any, ndim: int) -> Any:
    """A latent's log density as it is without masks, for each element that one may hide: the shape of `element_mask`."""
    return dependable(with_batch_ndim(without_masks(fn), ndim), value).log_prob(value)


def _arguments(site: Mapping[str, Any], ratios: Mapping[str, float]) -> dict[str, Any]:
    fn, value = site["fn"], site["value"]
    value = hide_masked(fn, value) if site["is_observed"] else value
    return density_arguments(fn, value, _own_scale(site, ratios))


def _own_scale(site: Mapping[str, Any], ratios: Mapping[str, float]) -> Any:
    """The factor of `handlers.scale` alone: that of subsampled plates multiplies the plate's reduced log-sum instead."""
    scale = site["scale"]
    if scale is None:
        return None
    ratio = math.prod(ratios.get(f.name, 1.0) for f in site["cond_indep_stack"])
    scale = scale / ratio
    concrete = not isinstance(scale, jax.core.Tracer)
    return None if concrete and (is_identically_one(scale) or np.allclose(scale, 1.0, rtol=1e-12)) else scale


def _inside(support: Any, value: Any) -> Any:
    """Whether data lie in a support, elementwise; None for supports where a check could raise a false alarm.

    Those over several coordinates at once (a simplex) are only met up to rounding, and a density may be finite at the end
    of an open one (Exponential at zero).
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    value = jnp.asarray(value)
    if isinstance(support, constraints.greater_than):
        return value >= support.lower_bound
    return support(value) if type(support) in CHECKED_SUPPORTS else None


def refuse_point_estimates(sites: Mapping[str, Site]) -> None:
    """Raise for guides such as AutoDelta, whose draws have no density."""
    random = [s for s in sites.values() if s.kind == "sample" and not s.delta and not s.observed]
    points = [s.name for s in sites.values() if s.kind == "sample" and s.delta and not s.observed]
    if points and not random:
        raise GuideError(
            f"the guide puts a point mass on {', '.join(map(repr, points))} (as AutoDelta does); a point has no density "
            "to weight particles with. Use a guide with spread, such as AutoNormal, or guide=None"
        )
