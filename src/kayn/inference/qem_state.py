"""What QEM carries from step to step, and what a run of it gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax

from kayn.guides.factorised import FactorisedGuide
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.prints import Outlined


@dataclass(frozen=True, repr=False)
class QEMState(Outlined):
    """What QEM carries from step to step: the guide's mean parameters by block of sites, a step counter and a key.

    Attributes:
        ahead: by block, how many steps further its rate is.
    """

    moments: dict[str, dict[str, Array]]
    step: Array
    rng_key: KeyArray
    ahead: dict[str, Array] = field(default_factory=dict)


jax.tree_util.register_dataclass(QEMState, ["moments", "step", "rng_key", "ahead"], [])


@dataclass(frozen=True, eq=False, repr=False)
class QEMResult(Outlined):
    """A fitted guide: `guide` is a NumPyro guide, `params` its parameters,
    `log_evidence` [num_steps] the history in nats."""

    params: dict[str, PyTree]
    guide: FactorisedGuide
    state: QEMState
    log_evidence: Array
