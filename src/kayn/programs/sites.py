"""The sites of a program, found by abstract evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.util import is_identically_one
from numpyro.infer.autoguide import AutoGuide

from kayn.densities.exponential.contract import Family
from kayn.densities.exponential.members import family_of
from kayn.errors import GuideError, ModelError
from kayn.programs.data import explained, refuse_shape
from kayn.programs.dependent_supports import Unbounded, is_users, law_of
from kayn.programs.drawn import Drawn, results_of
from kayn.programs.given import FIXED, Given, OneKind, refuse_two_kinds
from kayn.programs.params import CheckedParams
from kayn.programs.random_walks import WALK, Walks
from kayn.programs.randomness import Keys
from kayn.programs.roles import ADDED, Fixed, Untransformed, as_read, check_guide
from kayn.programs.running import EARLIER, Coordinates
from kayn.programs.supports import Support, number_of_values, support_of
from kayn.programs.wrappers import element_mask, innermost
from kayn.support.arrays import Array, PyTree
from kayn.support.names import fresh
from kayn.support.numpyro_internals import is_duplicate_name, is_in_scan, is_loop_in_plate
from kayn.xla.compilation import within_transformation

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
    """Whether the program asks for enumeration."""
    support_size: int | None = None
    """The number of values that an enumerated latent is summed over, element by element; None for what is drawn."""
    num_values: int | None = None
    """The number of values of a discrete latent that could be enumerated."""
    why_drawn: str = ""
    """Why kayn's own guide draws a discrete latent that does not ask for enumeration."""
    auxiliary: bool = False
    delta: bool = False
    reparameterised: bool = True
    law: type[dist.Distribution] | None = None
    """The class of a sample site's distribution, without wrappers."""
    users: bool = False
    """Whether that or a part of it is a user's own: its density need not be that of its draws or integrate to one."""
    exponential_family: Family | None = None
    independent_ndim: int = 0
    support: Support | None = None
    mask_ndim: int = 0
    """Dimensions of what its masks stand at: those of the batch, and of events that are made of masked elements."""
    steps: int | None = None
    """Number of steps of the chain that the site is."""
    step_dim: int = 0
    """The dimension that they are."""
    walk: bool = False
    """Whether the chain is one site in the model, and not one of a `scan`."""
    running: Coordinates | None = None
    """What it is the running sum of, where innovations are read in theirs (`kayn.programs.running`)."""
    added: bool = False
    """Whether kayn has added it: keys, and log densities of point masses."""
    fixed: bool = False
    """Whether a handler has set the indices of the plate that it is, in the program or in its partner
    (of model and guide)."""
    freed: int = 0
    """How many of its batch dimensions are events of independent elements in the program (`kayn.programs.events`)."""
    unbounded: bool = False
    """Whether it stands for a latent of the model: one whose support depends on others
    (`kayn.programs.dependent_supports`), or innovations that are added up (`kayn.programs.running`)."""
    scaled: bool = False
    """Whether its log density has a factor of `handlers.scale`."""

    @property
    def family(self) -> str:
        """What its distribution is called, for texts."""
        return "" if self.law is None else self.law.__name__

    def follows(self, *laws: type[dist.Distribution]) -> bool:
        """Whether its distribution, without wrappers, is of one of these classes."""
        return self.law is not None and issubclass(self.law, laws)

    @property
    def event_dim(self) -> int:
        """How many dimensions of the value are those of one event."""
        return len(self.shape) - len(self.batch_shape)


def inspect_sites(fn: Callable, args: tuple, kwargs: Mapping, params: PyTree, guide: bool = False) -> dict[str, Site]:
    """All sites of a program, see `inspect_program`."""
    return inspect_program(fn, args, kwargs, params, guide)[0]


def inspect_program(
    fn: Callable, args: tuple, kwargs: Mapping, params: PyTree, guide: bool = False
) -> tuple[dict[str, Site], Drawn]:
    """All sites of a program, found by abstract evaluation (nothing is computed), and what was evaluated.

    Args:
        guide: whether the program is a guide, where point masses are draws as others are.

    Raises:
        ModelError: a site name is used twice, or for sites of two kinds, or a plate with two sizes,
            or a site stands in a JAX transformation.
        GuideError: a guide has a factor.
    """
    if not callable(fn):
        raise ModelError(f"model and guide must be NumPyro programs (functions), but one is {type(fn).__name__} {fn!r}")
    if isinstance(fn, AutoGuide):
        _set_up_autoguide(fn, args, kwargs)
    found: dict[str, Site] = {}
    parts: list[Any] = []

    def run() -> list[Array]:
        program = CheckedParams(OneKind(Given(Fixed(Untransformed(fn)), params=params)), params or {})
        program = Keys(handlers.seed(handlers.substitute(program, substitute_fn=placeholder), jax.random.key(0)))
        try:
            with Walks({}):
                trace = handlers.trace(program).get_trace(*args, **kwargs)
        except AssertionError as error:
            if is_duplicate_name(error):
                raise ModelError(
                    f"{error}. Every site of a model needs its own name; rename one of the two."
                ) from error
            raise
        except NotImplementedError as error:
            if is_loop_in_plate(error):
                raise ModelError(f"NumPyro does not run this program: {error}") from error
            raise
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            if (told := explained(error, fn, args, kwargs)) is error:
                raise
            raise told from error
        if guide:
            ratios = _ratios(trace)
            check_guide(trace, lambda site: own_scale(site, ratios) is not None)
        trace = as_read(trace, guide)
        found.update({name: _site(name, site, trace) for name, site in trace.items() if _is_site(site)})
        found.update({n: Site(n, "key", jnp.shape(v), "uint32", added=True) for n, v in program.found.items()})
        results, *own = results_of(trace)
        parts.extend(own)
        return results

    closed = jax.make_jaxpr(run)()
    found = _name_steps(found)
    _check_plates(found)
    return found, Drawn(closed, *parts)


@dataclass(frozen=True, eq=False)
class Inspected:
    """A program under its arguments, with its sites and how these are made: found once, handed to what needs them."""

    fn: Callable
    args: tuple
    kwargs: Mapping[str, Any]
    params: Mapping[str, PyTree]
    sites: Mapping[str, Site]
    drawn: Drawn | None = None

    @staticmethod
    def of(fn: Callable, args: tuple, kwargs: Mapping, params: Any, guide: bool = False) -> Inspected:
        """See `inspect_program`."""
        return Inspected(fn, args, kwargs, params, *inspect_program(fn, args, kwargs, params, guide))


def share_fixed(sites: Mapping[str, Site], partner: Mapping[str, Site]) -> dict[str, Site]:
    """Sites of which those plates count as fixed that are so in a partner program."""
    fixed = {n for n, s in partner.items() if s.fixed}
    return {n: replace(s, fixed=True) if n in fixed and s.kind == "plate" else s for n, s in sites.items()}


def summed_out(sites: Mapping[str, Site], drawn: Collection[str]) -> dict[str, Site]:
    """Sites of which the latents that a guide draws are sampled, even if the model would allow to sum them out, and all
    other discrete latents are enumerated if they can be, whether the model asks for it or not."""

    def decided(site: Site) -> Site:
        if site.kind != "sample" or site.observed:
            return site
        return replace(site, support_size=None if site.name in drawn else site.num_values)

    return {n: decided(s) for n, s in sites.items()}


def _ratios(trace: Mapping[str, Any]) -> dict[str, float]:
    """How many elements one of a plate stands for."""
    return {n: s["args"][0] / jnp.shape(s["value"])[0] for n, s in trace.items() if s["type"] == "plate"}


def _name_steps(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Sites in loops with the loop's steps as a plate: "time", or "time_<length>" where there are several lengths."""
    lengths = {s.steps for s in sites.values() if s.steps is not None}
    taken = {f[0] for s in sites.values() for f in s.frames} | set(sites)
    base = "time" if "time" not in taken else "scan_time"
    names = {length: fresh(base if len(lengths) == 1 else f"{base}_{length}", taken) for length in sorted(lengths)}

    def place(site: Site) -> int:
        return site.step_dim - len(site.batch_shape)

    def named(site: Site) -> Site:
        if site.steps is None or any(dim == place(site) for _, dim, _ in site.frames):
            return site  # its steps may be a plate of the user's
        return replace(site, frames=(*site.frames, (names[site.steps], place(site), site.steps)))

    return {n: named(s) for n, s in sites.items()}


def _set_up_autoguide(guide: AutoGuide, args: tuple, kwargs: Mapping) -> None:
    """An autoguide reads its model on first use and keeps what it finds, which must happen outside of any tracing."""
    if guide.prototype_trace is not None:
        return
    if within_transformation():
        raise GuideError(
            f"{type(guide).__name__} is used for the first time inside a JAX transformation such as jax.jit; call it "
            "once before, as SVI.init does: numpyro.handlers.seed(guide, 0)(*args)"
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
    sums = infer[EARLIER].coordinates if walk and EARLIER in infer else None
    step_dim = len(shape) + (-1 if sums is None else sums.axis) if walk else 0
    steps = shape[step_dim] if walk or (is_in_scan(site) and shape) else None
    base = innermost(fn)
    discrete = bool(getattr(fn.support, "is_discrete", False)) if not isinstance(base, dist.Unit) else False
    asked = infer.get("enumerate") == "parallel"
    num_values = number_of_values(fn) if (discrete or asked) and not site["is_observed"] else None
    if asked and num_values is None and not site["is_observed"]:
        _refuse_enumeration(name, fn)
    return Site(
        name,
        "sample",
        shape,
        dtype,
        tuple(fn.batch_shape),
        frames,
        observed=site["is_observed"],
        discrete=discrete,
        enumerate=asked,
        support_size=num_values if asked else None,
        num_values=num_values,
        auxiliary=bool(infer.get("is_auxiliary")),
        delta=isinstance(base, dist.Delta),
        reparameterised=bool(fn.has_rsample),
        law=type(law_of(base)),
        users=is_users(base),
        exponential_family=family_of(base),
        independent_ndim=fn.event_dim - base.event_dim,
        support=None if site["is_observed"] else support_of(fn),
        mask_ndim=0 if (mask := element_mask(fn)) is None else mask.ndim,
        steps=steps,
        step_dim=step_dim,
        walk=walk,
        running=sums,
        added=ADDED in infer,
        unbounded=isinstance(base, Unbounded) or EARLIER in infer,
        scaled=own_scale(site, _ratios(trace)) is not None,
    )


def _refuse_enumeration(name: str, fn: dist.Distribution) -> None:
    raise ModelError(
        f"site {name!r} asks for enumeration, but its distribution {type(fn).__name__} cannot be enumerated "
        "element by element; drop infer={'enumerate': 'parallel'}, so that kayn's own guide draws it, or use a "
        "distribution with finite support and no event dimension"
    )


def placeholder(site: Mapping[str, Any]) -> Array | None:
    """A value for priors that cannot be drawn from (improper ones); shapes are all that matters here."""
    if site["type"] != "sample" or site["is_observed"]:
        return None
    fn = site["fn"]
    if isinstance(innermost(fn), dist.ImproperUniform):
        return fn.support.feasible_like(jnp.zeros(fn.shape()))
    return None


def own_scale(site: Mapping[str, Any], ratios: Mapping[str, float]) -> Array | float | None:
    """The factor of `handlers.scale` alone: that of subsampled plates multiplies the plate's reduced log-sum
    instead."""
    scale = site["scale"]
    if scale is None:
        return None
    ratio = math.prod(ratios.get(f.name, 1.0) for f in site["cond_indep_stack"])
    scale = scale / ratio
    concrete = not isinstance(scale, jax.core.Tracer)
    return None if concrete and (is_identically_one(scale) or np.allclose(scale, 1.0, rtol=1e-12)) else scale
