"""What a subsampled plate means: its M rows stand for all N elements,
so that whatever is summed over them counts N/M times.

Model and guide alike: where an axis has an index of its own over the plate, the contraction multiplies the log-sum over
its elements, and so the proposal's; where it has none, log q is summed over the rows before the contraction and is
multiplied here. What is only drawn counts once.

Where particles of another axis are summed over after such a product, Z is no linear function of the weights of a single
row's particles: it holds their mean to the power N/M. Estimators whose baselines or derivatives rest on that linearity
refuse these axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from kayn.axes.types import Axis, Layout
from kayn.contraction.plan import Plan
from kayn.errors import GuideError, StructureWarning, warn
from kayn.graph.types import Graph
from kayn.programs.sites import Site
from kayn.programs.slices import needed_equations
from kayn.programs.trace import Program
from kayn.support.arrays import Array


def subsampled_plates(sites: Mapping[str, Site]) -> dict[str, tuple[int, int]]:
    """N and M of every subsampled plate of a program."""
    return {
        n: (s.batch_shape[0], s.shape[0]) for n, s in sites.items() if s.kind == "plate" and s.shape != s.batch_shape
    }


def blocks_of_rows(plates: Mapping[str, tuple[int, int]]) -> dict[str, Array]:
    """Indices of subsampled plates that together reach all their elements,
    and all pairs of elements of two plates: [blocks, M] by plate.

    Args:
        plates: N and M of every subsampled plate.
    """
    own = []
    for full, size in plates.values():
        # the last block overlaps where M does not divide N
        starts = np.minimum(np.arange(0, full, size), full - size)
        own.append(starts[:, None] + np.arange(size))
    pairs = list(itertools.product(*(range(len(rows)) for rows in own)))
    return {n: jnp.asarray(rows[[p[i] for p in pairs]]) for i, (n, rows) in enumerate(zip(plates, own, strict=True))}


def row_index(shape: Sequence[int], plates: Mapping[int, str], rows: Mapping[str, Array]) -> tuple[Array, ...]:
    """Where the rows of subsampled plates are in an array over all elements, to index it with.

    Args:
        shape: of the array over all elements.
        plates: subsampled plates by dimension.
        rows: indices by plate, [..., M].
    """
    found = []
    for d, length in enumerate(shape):
        at = rows[plates[d]] if d in plates else jnp.arange(length)
        found.append(at.reshape((*at.shape[:-1], *(-1 if i == d else 1 for i in range(len(shape))))))
    return tuple(found)


def full_shape(
    site: Site, shape: Sequence[int], plates: Mapping[str, tuple[int, int]]
) -> tuple[tuple[int, ...], dict[int, str]]:
    """The shape over all elements of an array over a latent's rows, its batch dimensions first,
    and the subsampled plates by dimension."""
    dims = {len(site.batch_shape) + dim: name for name, dim, _ in site.frames if name in plates}
    return tuple(plates[dims[d]][0] if d in dims else n for d, n in enumerate(shape)), dims


def assembled(values: Array, shape: Sequence[int], plates: Mapping[int, str], rows: Mapping[str, Array]) -> Array:
    """An array over all elements, [*shape], from those of blocks of rows, [blocks, *shape with M for N]."""
    if not plates:
        return values[0]
    return jnp.zeros(tuple(shape), values.dtype).at[row_index(shape, plates, rows)].set(values)


def chosen_rows(trace: Mapping[str, Any]) -> dict[str, Array]:
    """The indices that subsampled plates have in a trace of NumPyro's, by plate."""
    plates = {n: s for n, s in trace.items() if s["type"] == "plate"}
    return {n: s["value"] for n, s in plates.items() if jnp.shape(s["value"])[0] != s["args"][0]}


def plate_count(site: Mapping[str, Any], trace: Mapping[str, Any]) -> float:
    """How often a site of a trace counts because it is in subsampled plates."""
    plates = [trace[f.name] for f in site["cond_indep_stack"] if f.name in trace]
    return math.prod(p["args"][0] / jnp.shape(p["value"])[0] for p in plates)


def read_plates(program: Program) -> list[str]:
    """Subsampled plates whose indices a program reads."""
    variables = [*program.jaxpr.constvars, *program.jaxpr.invars]
    needed = needed_equations(program.jaxpr, range(len(program.outputs)))[1]
    return [n for i, n in enumerate(program.subsamples) if variables[program.first_subsample + i] in needed]


def warn_of_strangers(model: Program, guide: Program) -> None:
    """Warn where a guide goes by the elements of a plate that a model goes by no more:
    its parameters are those of rows that are not the data's."""
    observed = {p for s in model.sites.values() if s.observed for p, _, _ in s.frames}
    for plate in set(read_plates(guide)) - set(read_plates(model)):
        local = [n for n in model.latents if plate in {p for p, _, _ in model.sites[n].frames}]
        if local and plate in observed and plate in model.subsamples and not model.sites[plate].fixed:
            warn(
                f"the model takes its rows of the subsampled plate {plate!r} from its arguments and does not read "
                f"the plate's indices, but the guide has parameters of {', '.join(map(repr, local))} by element, "
                "which are then those of elements drawn at random. Index the data by the plate (with "
                f"numpyro.plate({plate!r}, ...) as rows: y[rows]), give its indices "
                f"(numpyro.handlers.substitute(model, {{{plate!r}: rows}})), or pass a guide that computes these "
                "parameters from the data",
                StructureWarning,
            )


def warn_of_averages(graph: Graph, model: Program, who: str) -> None:
    """Warn where posteriors of single minibatches are averaged:
    those of latents that rows share differ from one to the next."""
    for plate in (p for p in model.subsamples if not model.sites[p].fixed):
        shared = [n for n in _connected(graph, plate) if plate not in graph.latent(n).plate_names]
        if shared:
            warn(
                f"kayn.{who} averages the posteriors of {', '.join(map(repr, shared))} given single minibatches of "
                f"plate {plate!r}, which together are wider than the posterior given all rows. Leave subsample_size "
                "out of the plate, or fit with kayn.VI(num_particles=1), whose bound of a minibatch is unbiased",
                StructureWarning,
            )


def _connected(graph: Graph, plate: str) -> list[str]:
    """Latents that the factors over a plate tell of, through others too."""
    found: set[str] = set()
    for output in graph.factors:
        if plate in output.dims:
            found |= {*output.latents} | {output.name} & set(graph.latent_names)
    while True:
        more = {n for o in graph.factors if found & {*o.latents, o.name} for n in (*o.latents, o.name)} & set(
            graph.latent_names
        )
        if more <= found:
            return [n for n in graph.latent_names if n in found]
        found |= more


def proposal_count(guide: Program, graph: Graph, axis: Axis, name: str) -> float:
    """How often the log density of a guide site counts before the contraction:
    N/M for every subsampled plate that its axis has no index over."""
    if name in graph.latent_names:
        return math.prod(graph.plate(p).scale for p in graph.latent(name).plate_names if p not in axis.scope)
    # an auxiliary site, all of whose elements are summed
    sites = [guide.sites[plate] for plate, _, _ in guide.sites[name].frames if plate in guide.subsamples]
    return math.prod(s.batch_shape[0] / s.shape[0] for s in sites)


def refuse_powers(layout: Layout, who: str) -> None:
    """Raise where Z is not linear in the weight of each particle.

    Raises:
        GuideError: a latent in a subsampled plate is summed over for each particle of a latent outside.
    """
    found = _powers(layout.plan)[0]
    for axis in layout.axes:
        if axis.name in found and not axis.enumerated:
            plate, scale = found[axis.name]
            raise GuideError(
                f"kayn.{who} needs an evidence that is linear in the weight of every particle, but "
                f"{axis.latents[0]!r} is in the subsampled plate {plate!r}, whose rows count {scale:g} times for "
                "every particle of a latent outside of it. Use kayn.RWS or kayn.Reinforce, put them on one axis "
                "(strategy='global'), or leave subsample_size out of the plate"
            )


def _powers(plan: Plan, within: Sequence[frozenset[str]] = ()) -> tuple[dict[str, tuple[str, float]], frozenset[str]]:
    """Variables that are summed over, or multiplied out, inside of a power that other variables remain in;
    and all of the plan.

    Args:
        within: further variables that are in the plan's terms.

    Returns:
        The plate and the exponent by variable, and all variables.
    """
    variables = set(plan.scope)
    holds = {i: frozenset(variables.intersection(t.axes)) for i, t in enumerate(plan.terms)}
    holds |= {i: holds[i] | more for i, more in enumerate(within)}
    found: dict[str, tuple[str, float]] = {}
    for step in plan.steps:
        mine = frozenset[str]().union(*(holds[s] for s in step.read))
        left = variables.intersection(plan.axes[step.out])
        if step.power is not None and left:
            found |= dict.fromkeys(mine - left, step.power)
        if step.inner is not None:
            inner, more = _powers(step.inner, [frozenset() if s is None else holds[s] for s in step.inner_read])
            found |= inner
            mine |= more
        holds[step.out] = mine
    return found, frozenset[str]().union(*holds.values())
