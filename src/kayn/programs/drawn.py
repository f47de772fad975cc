"""A program as it is run, with the values that its latents are drawn at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from kayn.support.arrays import Array


@dataclass(frozen=True, eq=False)
class Drawn:
    """A program as it is run, with values of latents that are drawn within it.

    Attributes:
        closed: its results are the values of latents, and all that sites are made of.
        latents: names of the first of its results.
        laws: which of its results the law of each latent is made of.
    """

    closed: ClosedJaxpr
    latents: tuple[str, ...]
    laws: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def results_of(trace: Mapping[str, Any]) -> tuple[list[Array], tuple[str, ...], dict[str, tuple[int, ...]]]:
    """The results that `Drawn` has, the latents, and which of the results their laws are made of: those of values, and
    of parameters of distributions."""
    sites = {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
    values = [s["value"] for s in trace.values() if s["type"] in ("sample", "deterministic")]
    laws = {n: s["fn"] for n, s in trace.items() if s["type"] == "sample"}
    made = [x for x in jax.tree.leaves((values, [*laws.values()])) if isinstance(x, jax.core.Tracer)]
    results = [*(s["value"] for s in sites.values()), *made]
    places = {id(x): i for i, x in enumerate(results)}
    own = {n: tuple(places[id(x)] for x in jax.tree.leaves(laws[n]) if id(x) in places) for n in sites}
    return results, tuple(sites), own
