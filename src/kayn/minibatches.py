"""What a subsampled plate means: its M rows stand for all N elements, so that whatever is summed over them counts N/M times.

Model and guide alike: where an axis has an index of its own over the plate, the contraction multiplies the log-sum over its elements, and so the
proposal's; where it has none, log q is summed over the rows before the contraction and is multiplied here. What is only drawn counts once.

Where particles of another axis are summed over after such a product, Z is no linear function of the weights of a single row's particles: it holds
their mean to the power N/M. Estimators whose baselines or derivatives rest on that linearity refuse these axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from kayn.axes import Axis, Layout
from kayn.contraction.plan import Chain, Plan, Product, Sliced, Step
from kayn.errors import GuideError
from kayn.graph.trace import Program, Site
from kayn.graph.types import Graph


def subsampled_plates(sites: Mapping[str, Site]) -> dict[str, tuple[int, int]]:
    """N and M of every subsampled plate of a program."""
    return {
        n: (s.batch_shape[0], s.shape[0]) for n, s in sites.items() if s.kind == "plate" and s.shape != s.batch_shape
    }


def blocks_of_rows(plates: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Indices of subsampled plates that together reach all their elements, and all pairs of elements of two plates: [blocks, M] by plate.

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


def row_index(shape: Sequence[int], plates: Mapping[int, str], rows: Mapping[str, Any]) -> tuple[Any, ...]:
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
    """The shape over all elements of an array over a latent's rows, its batch dimensions first, and the subsampled plates by dimension."""
    dims = {len(site.batch_shape) + dim: name for name, dim, _ in site.frames if name in plates}
    return tuple(plates[dims[d]][0] if d in dims else n for d, n in enumerate(shape)), dims


def assembled(values: Any, shape: Sequence[int], plates: Mapping[int, str], rows: Mapping[str, Any]) -> Any:
    """An array over all elements, [*shape], from those of blocks of rows, [blocks, *shape with M for N]."""
    if not plates:
        return values[0]
    return jnp.zeros(tuple(shape), values.dtype).at[row_index(shape, plates, rows)].set(values)


def chosen_rows(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The indices that subsampled plates have in a trace of NumPyro's, by plate."""
    plates = {n: s for n, s in trace.items() if s["type"] == "plate"}
    return {n: s["value"] for n, s in plates.items() if jnp.shape(s["value"])[0] != s["args"][0]}


def plate_count(site: Mapping[str, Any], trace: Mapping[str, Any]) -> float:
    """How often a site of a trace counts because it is in subsampled plates."""
    plates = [trace[f.name] for f in site["cond_indep_stack"] if f.name in trace]
    return math.prod(p["args"][0] / jnp.shape(p["value"])[0] for p in plates)


def proposal_count(guide: Program, graph: Graph, axis: Axis, name: str) -> float:
    """How often the log density of a guide site counts before the contraction: N/M for every subsampled plate that its axis has no index over."""
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
            product = found[axis.name]
            raise GuideError(
                f"kayn.{who} needs an evidence that is linear in the weight of every particle, but {axis.latents[0]!r} is in the subsampled plate "
                f"{product.plate!r}, whose rows count {product.scale:g} times for every particle of a latent outside of it. Use kayn.RWS or "
                "kayn.Reinforce, put them on one axis (strategy='global'), or leave subsample_size out of the plate"
            )


def _powers(plan: Plan, within: Sequence[frozenset[str]] = ()) -> tuple[dict[str, Product], frozenset[str]]:
    """Variables that are summed over, or multiplied out, inside of a power that other variables remain in; and all variables of the plan.

    Args:
        within: further variables that are in the plan's terms.
    """
    variables = set(plan.scope)
    holds = {i: frozenset(variables.intersection(t.axes)) for i, t in enumerate(plan.terms)}
    holds |= {i: holds[i] | more for i, more in enumerate(within)}
    found: dict[str, Product] = {}
    for step in plan.steps:
        holds[step.out] = frozenset[str]().union(*(holds[s] for s in step.read))
        if isinstance(step, Product):
            left = variables.intersection(plan.axes[step.out])
            if step.scale != 1.0 and left:
                found |= dict.fromkeys(holds[step.source] - left, step)
        elif isinstance(step, Chain | Sliced):
            inner, more = _powers(step.body, _sources(step, holds))
            found |= inner
            holds[step.out] |= more
    return found, frozenset[str]().union(*holds.values())


def _sources(step: Step, holds: dict[int, frozenset[str]]) -> list[frozenset[str]]:
    """What the terms of a step's body hold: for a chain, the first is what comes from the step before."""
    own = [holds[s] for s in step.read]
    return [frozenset(), *own] if isinstance(step, Chain) else own
