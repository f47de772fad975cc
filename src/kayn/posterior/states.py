"""Discrete states that one row of data owns, such as a row's component in a mixture, summed out of that row's density.

Given its own state a row looks more likely than it is: draws of the state have seen the row. Leave-one-out weights
would have to undo that from draws of states that a posterior hardly ever holds, so the density that is compared is that
of the row given everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kayn.evidence.problem import Problem
from kayn.graph.types import Graph, Kind, Output
from kayn.support.arrays import Array

MOST = 256
"""Combinations of a row's states that are summed; with more, a row is scored given its states."""


def owned_states(problem: Problem) -> dict[str, tuple[str, ...]]:
    """By observed site, discrete latents of which every element meets one row of the site and nothing else."""
    graph = problem.graph
    found: dict[str, tuple[str, ...]] = {}
    discrete = {z.name for z in graph.latents if z.discrete}
    for name in sorted(discrete):
        readers = [o for o in graph.factors if name in o.latents and o.name != name]
        depends = set(graph.output(name).latents) & (discrete - {name})
        chained = any(a.base == name for a in graph.aliases)
        if len(readers) == 1 and not depends and not chained and _row_by_row(graph, name, readers[0]):
            found[readers[0].name] = (*found.get(readers[0].name, ()), name)
    return found


def _row_by_row(graph: Graph, name: str, output: Output) -> bool:
    plates = graph.latent(name).plate_names
    read = next(r for r in output.reads if r.latent == name)
    rows = tuple(d for d in output.dims if d)
    return output.kind is Kind.LIKELIHOOD and rows == plates and all(read.of(p) == p for p in plates)


def summed_out(
    owned: Mapping[str, tuple[str, ...]],
    trace: Mapping[str, Any],
    scores: Mapping[str, Array],
    again: Callable[[Mapping[str, Array]], Mapping[str, Array]],
) -> dict[str, Array]:
    """Log densities of data, [*rows] by observed site, with the states that rows own summed out where that is feasible.

    Args:
        trace, scores: of the model given all states.
        again: the model's trace with other values of some states.
    """
    out = dict(scores)
    for site, names in owned.items():
        if site not in scores or not all(_enumerable(trace[n], scores[site]) for n in names):
            continue
        supports = [trace[n]["fn"].enumerate_support(expand=False).reshape(-1) for n in names]
        if math.prod(s.shape[0] for s in supports) > MOST:
            continue
        grid = [g.ravel() for g in jnp.meshgrid(*supports, indexing="ij")]

        def one(states: list[Array], site: str = site, names: tuple[str, ...] = names) -> Array:
            values = {n: jnp.broadcast_to(v, trace[n]["value"].shape) for n, v in zip(names, states, strict=True)}
            run = again(values)
            return sum(run[n]["fn"].log_prob(run[n]["value"]) for n in (site, *names))

        out[site] = jax.nn.logsumexp(jax.lax.map(one, grid), 0)
    return out


def _enumerable(site: Mapping[str, Any], score: Array) -> bool:
    fn = site["fn"]
    return fn.has_enumerate_support and fn.event_dim == 0 and tuple(fn.batch_shape) == jnp.shape(score)
