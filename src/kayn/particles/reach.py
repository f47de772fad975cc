"""Whether a guide can reach wherever its model's latents may lie, with densities that can be divided by.

Particles outside of the model's support have weight zero and do no harm. What a guide never draws is missing from the
evidence without a trace, so that a guide whose support does not hold the latent's is refused. So are points: a `Delta`
of the guide has a density only where it is an invertible function of auxiliary sites and says its Jacobian, as
autoguides do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide, AutoGuideList

from kayn.errors import GuideError
from kayn.programs.given import Given
from kayn.programs.outputs import Part
from kayn.programs.sites import Site
from kayn.programs.slices import slice_outputs
from kayn.programs.supports import BOX, ORDERED, Support
from kayn.programs.trace import Program
from kayn.programs.wrappers import delta_density
from kayn.support.arrays import Array, PyTree

LARGEST_JACOBIAN = 256
"""Coordinates up to which the density that points claim is compared with their Jacobian."""
ENDS = (Part.LOWER, Part.UPPER)
"""Of a support, as outputs of a program."""
REMEDY = (
    "What the guide never draws would be missing from the evidence. Use a distribution over the latent's whole "
    "support, e.g. a Normal for a real latent, or guide=None"
)


def refuse_smaller_supports(drawn: Mapping[str, Site], model_sites: Mapping[str, Site]) -> None:
    """Compare supports as far as they are known without running anything.

    Raises:
        GuideError: the support of a guide site does not hold that of the model's.
    """
    for name, site in drawn.items():
        mine = model_sites.get(name)
        if mine is None or site.delta or site.support is None or mine.support is None:
            continue
        if not _holds(site.support, mine.support):
            raise GuideError(
                f"guide site {name!r} is {site.family} over {site.support}, but the model's {mine.family} is over "
                f"{mine.support}. {REMEDY}"
            )


def _holds(guide: Support, model: Support) -> bool:
    """Whether the guide's support may hold the model's; ends that are not known yet are taken to fit."""
    if "multinomial" in (guide.kind, model.kind):
        return guide.kind == model.kind and (None in (guide.upper, model.upper) or guide.upper == model.upper)
    if guide.kind != BOX:
        return guide.kind == model.kind or (guide.kind, model.kind) == ("ordered_vector", "positive_ordered_vector")
    if model.kind != BOX and model.kind not in ORDERED:
        return False
    if (math.isinf(model.lower or 0.0) and guide.lower is None) or (
        math.isinf(model.upper or 0.0) and guide.upper is None
    ):
        return False
    low = None in (guide.lower, model.lower) or _at_most(guide.lower, model.lower)
    high = None in (guide.upper, model.upper) or _at_most(model.upper, guide.upper)
    return bool(low and high)


def _at_most(a: Any, b: Any) -> np.ndarray:
    """Whether a <= b up to rounding, in NumPy: within a transformation JAX would not say."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    close = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore"):
        return (a <= b) | (close & (a <= b + 1e-5 * np.maximum(np.abs(a), np.abs(b))))


@dataclass(frozen=True)
class _End:
    """An end of a support as a function of the latents it depends on."""

    value: Callable[[Mapping[str, Array]], Array]
    reads: tuple[str, ...] = ()


def refuse_smaller_ends(
    guide: Program,
    model: Program,
    known: tuple[Sequence[Array], Sequence[Array]],
    draw: Callable[[frozenset[str]], Mapping[str, Array] | None],
) -> None:
    """Compare the ends of supports that the programs compute, unless they depend on traced values.

    Args:
        known: constants and inputs of guide and model, None in the places of latents.
        draw: values of some guide sites in a few runs: [runs, *shape]; None where they are not known.

    Raises:
        GuideError: as `refuse_smaller_supports`.
    """
    computed = [n for n in guide.latents if any(e.of(n) in p.outputs for e in ENDS for p in (guide, model))]
    for name in computed:
        mine, yours = guide.sites[name], model.sites.get(name)
        if yours is None or mine.support is None or yours.support is None or mine.delta or yours.steps is not None:
            continue
        for side in ENDS:
            ends = [_end(p, side, name, k) for p, k in zip((guide, model), known, strict=True)]
            if None in ends or any(n not in guide.latents for e in ends if e for n in e.reads):
                continue
            drawn = draw(frozenset(n for e in ends if e for n in e.reads))
            if drawn is not None:
                with jax.ensure_compile_time_eval():
                    _compare(name, side, ends, drawn, yours)


def _end(program: Program, side: Part, name: str, known: Sequence[Array]) -> _End | None:
    """None where it depends on values that are not known."""
    if side.of(name) not in program.outputs:
        support = program.sites[name].support
        number = support.lower if side is Part.LOWER else support.upper  # type: ignore[union-attr]
        return _End(lambda values: number)
    run, used = program.sliced([side.of(name)])
    latents = {i: n for i, n in enumerate(program.inputs, len(program.consts)) if i in used}
    if any(known[i] is None or isinstance(known[i], jax.core.Tracer) for i in used if i not in latents):
        return None
    return _End(
        lambda values: run(*(values[latents[i]] if i in latents else known[i] for i in used))[0],
        tuple(latents.values()),
    )


def _compare(name: str, side: Part, ends: Sequence[Any], drawn: Mapping[str, Array], site: Site) -> None:
    reads = {n: drawn[n] for e in ends for n in e.reads}
    guide, model = (
        np.asarray(jax.vmap(e.value)({n: reads[n] for n in e.reads}) if e.reads else jnp.asarray(e.value({}))[None])
        for e in ends
    )
    rank = max(guide.ndim, model.ndim)
    guide, model = (x.reshape((x.shape[0],) + (1,) * (rank - x.ndim) + x.shape[1:]) for x in (guide, model))
    try:
        guide, model = np.broadcast_arrays(guide, model)
    except ValueError:
        return
    fits = _at_most(guide, model) if side is Part.LOWER else _at_most(model, guide)
    if not fits.all():
        where = np.argwhere(~fits)[0]
        word = "from" if side is Part.LOWER else "up to"
        raise GuideError(
            f"guide site {name!r} reaches {word} {float(guide[tuple(where)]):g} where the model's {site.family} goes "
            f"{word} {float(model[tuple(where)]):g}. {REMEDY}"
        )


def _is_known(guide: Callable) -> bool:
    """Whether a guide is NumPyro's or kayn's own, whose points have the density that they say."""
    automatic = isinstance(guide, AutoGuide) and not isinstance(guide, AutoGuideList)
    return automatic or getattr(guide, "draws_together", False)


def refuse_points(
    guide: Callable,
    args: tuple,
    kwargs: Mapping,
    params: PyTree,
    sites: Mapping[str, Site],
    model_sites: Mapping[str, Site],
) -> None:
    """Refuse point masses whose joint density is not known.

    A point is no proposal; a `Delta` at an invertible function of auxiliary sites of the guide is one,
    with the density that it says.

    Raises:
        GuideError: points that are no functions of auxiliary sites, more coordinates than these have,
            or another density than the Jacobian's.
    """
    drawn = {n: s for n, s in sites.items() if s.kind == "sample" and not s.observed}
    points = sorted(n for n, s in drawn.items() if s.delta and n in model_sites)
    if not points or _is_known(guide):
        return
    sources = sorted(n for n, s in drawn.items() if n not in model_sites and not s.delta and not s.discrete)
    forms = {n: jax.ShapeDtypeStruct(drawn[n].shape, drawn[n].dtype) for n in sources}

    def placed(values: Mapping[str, Array], params: PyTree) -> tuple[dict[str, Array], dict[str, Array]]:
        program = handlers.seed(Given(guide, params=params, latents=values), jax.random.key(0))
        trace = handlers.trace(program).get_trace(*args, **kwargs)
        claimed = {n: jnp.sum(delta_density(trace[n]["fn"])) for n in points}
        return {n: jnp.asarray(trace[n]["value"]) for n in points}, claimed

    jaxpr = jax.make_jaxpr(placed)(forms, dict(params or {})).jaxpr
    for group, used in _tied(jaxpr, points, sources):
        size, room = (sum(math.prod(drawn[n].shape) for n in names) for names in (group, used))
        if any(drawn[n].discrete or model_sites[n].discrete for n in group) or not used:
            raise GuideError(_point_message(group))
        if any(s is None or s.kind not in (BOX, *ORDERED) for s in (model_sites[n].support for n in group)):
            continue  # sets of fewer dimensions than numbers
        if size != room:
            raise GuideError(_point_message(group, size, room))
        if room <= LARGEST_JACOBIAN and not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params)):
            with jax.ensure_compile_time_eval():
                _compare_jacobian(
                    partial(placed, params=dict(params or {})), group, {n: forms[n] for n in sources}, used
                )


def _tied(jaxpr: Jaxpr, points: Sequence[str], sources: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Points that share auxiliary sites, with these."""
    groups: list[tuple[list[str], list[str]]] = []
    first = len(jaxpr.constvars)
    for position, point in enumerate(points):
        used = slice_outputs(jaxpr, [position])[1]
        mine = ([point], [n for i, n in enumerate(sources, first) if i in used])
        others = []
        for group in groups:
            if set(group[1]) & set(mine[1]):
                mine = (group[0] + mine[0], sorted({*group[1], *mine[1]}))
            else:
                others.append(group)
        groups = [*others, mine]
    return groups


def _point_message(points: Sequence[str], size: int = 0, room: int = 0) -> str:
    names = ", ".join(map(repr, points))
    why = (
        f"its {size} coordinates are computed from {room} of auxiliary sites, so that they have no joint density"
        if room
        else "a point has no density to weight particles with, and reaches one value only"
    )
    return (
        f"the guide puts a point mass (Delta) on {names}: {why}. Draw it from a distribution with spread, e.g. "
        "Normal, or make it an invertible function of an auxiliary site of its own size, with Delta(value, "
        "log_density=...)"
    )


def _compare_jacobian(
    placed: Callable[[PyTree], tuple[dict[str, Array], dict[str, Array]]],
    group: Sequence[str],
    forms: Mapping[str, Any],
    used: Sequence[str],
) -> None:
    """Whether points say minus the log of the Jacobian of the map that places them,
    at some value of their auxiliary sites."""
    keys = jax.random.split(jax.random.key(0), len(forms))
    at = {n: jax.random.uniform(k, f.shape, f.dtype, 0.3, 0.7) for (n, f), k in zip(forms.items(), keys, strict=True)}

    def coordinates(mine: Mapping[str, Array]) -> Array:
        return jnp.concatenate([jnp.ravel(placed({**at, **mine})[0][n]) for n in group])

    flat, back = ravel_pytree({n: at[n] for n in used})
    volume = float(jnp.linalg.slogdet(jax.jacfwd(lambda x: coordinates(back(x)))(flat))[1])
    claimed = float(sum(placed(at)[1][n] for n in group))
    if math.isinf(volume):
        raise GuideError(_point_message(group, len(flat) - 1, len(flat)))
    if math.isfinite(volume) and abs(claimed + volume) > 1e-2 * max(1.0, abs(volume)):
        names = ", ".join(map(repr, group))
        raise GuideError(
            f"the guide places {names} by a map of auxiliary sites with log Jacobian {volume:.4g}, but its Delta "
            f"says log_density {claimed:.4g}; say minus the log of the absolute Jacobian: Delta(value, "
            "log_density=-log_jacobian)"
        )
