"""A program as it is run, with the values that its latents are drawn at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """

    closed: ClosedJaxpr
    latents: tuple[str, ...]


def made_of(trace: Mapping[str, Any]) -> list[Array]:
    """What the sites of a trace are made of: values, and parameters of distributions."""
    values = [s["value"] for s in trace.values() if s["type"] in ("sample", "deterministic")]
    laws = [s["fn"] for s in trace.values() if s["type"] == "sample"]
    return [x for x in jax.tree.leaves((values, laws)) if isinstance(x, jax.core.Tracer)]
