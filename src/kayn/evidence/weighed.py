"""What was weighed: one set of particles as a log factor for every term of a plan. Every query takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from kayn.contraction.execute import log_contract, look_up
from kayn.contraction.plan import Plan
from kayn.contraction.ways import Index, LinkKey
from kayn.evidence.problem import Problem, model_inputs
from kayn.support.arrays import Array, PyTree


@dataclass(frozen=True, eq=False)
class Weighed(Mapping[int, Any]):
    """The weights of all combinations of one set of particles, by log factor. A mapping from slots to log factors.

    Attributes:
        problem: what the particles are of. Static.
        slots: log factors by slot of the problem's plan, nats: the model's, rows already multiplied out, and minus the
            proposal's. In the place of a factor that is made part by part stands what makes it.
        links: index vectors of the plan's links: int [source plate].
        unsound: by factor, whether any of its entries was no log density; such entries have no weight.
    """

    problem: Problem
    slots: Mapping[int, Any]
    links: Mapping[LinkKey, Array]
    unsound: dict[str, Array] = field(default_factory=dict)

    def __getitem__(self, slot: int) -> Any:
        """The log factor in a slot."""
        return self.slots[slot]

    def __iter__(self) -> Iterator[int]:
        """Slots that have a log factor."""
        return iter(self.slots)

    def __len__(self) -> int:
        """How many log factors there are."""
        return len(self.slots)

    @property
    def plan(self) -> Plan:
        """The plan whose terms the log factors are."""
        return self.problem.layout.plan

    @property
    def index(self) -> Index:
        """Looks up the index vector of a link."""
        return self.links.__getitem__

    def log_evidence(self, slots: Mapping[int, Any] | None = None) -> Array:
        """log Z: the log of the average weight over all particle combinations. A scalar, in nats.

        Args:
            slots: factors beside those that were weighed, or in their place, e.g. to differentiate in them.
        """
        return log_contract(self.plan, {**self.slots, **(slots or {})}, self.index)


jax.tree_util.register_dataclass(Weighed, ["slots", "links", "unsound"], ["problem"])


def links_of(problem: Problem, numbers: Mapping, params: PyTree, subsample: Mapping) -> dict[LinkKey, Array]:
    """Index vectors of all links of a problem's plan, each computed once: int [source plate]."""
    inputs, memo = model_inputs(problem, numbers, params, subsample), dict[int, Array]()
    links = (link for links in problem.layout.plan.links for link in links)
    # arrays of JAX, where data are known in plain NumPy: a traced place cannot be looked up in others
    return look_up(links, lambda key: jnp.asarray(problem.structure.index(key, inputs, memo)))
