"""Which weighed particles a fit's posterior is of: the guide's, those of the guide fitted again, or of a wider one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax

from kayn.inference.sampler import Sampler
from kayn.posterior.call import Call
from kayn.posterior.enough import Draw, Take
from kayn.posterior.poor_fit import complaints, worst_efficiency
from kayn.posterior.posterior import Posterior
from kayn.posterior.wider import GLIMPSE, assured, comparable
from kayn.support.arrays import KeyArray

MOST = 8
"""Times that a guide is fitted again."""
BETTER = 1.2
"""By what factor the efficiency of its weights has to grow, in a glimpse of it."""
AGAIN = "posterior: of the guide fitted again to all replicates of a first one, whose weights were poor"
WIDENED = "posterior: of a wider guide, whose replicates disagree less or whose weights have no heavy tails"


@dataclass(frozen=True, eq=False)
class Settled:
    """A posterior, and what there is to say of it.

    Attributes:
        reasons: not to trust it; none where all is well.
        sampler: of its guide, or of that which was made wider; None where the fit has none.
        told: what became of the posterior, in words, by what it is about.
    """

    posterior: Posterior
    reasons: tuple[str, ...]
    sampler: Sampler | None
    told: dict[str, str]


def settled(sampler: Sampler | None, call: Call, own: Posterior, take: Take[Posterior], key: KeyArray) -> Settled:
    """The posterior of a fit, given the particles of its guide.

    Args:
        sampler: None where there is none.
    """
    told: dict[str, str] = {}
    draws = sampler if sampler is not None and sampler.qem.blocks and sampler.qem.keeps_particles() else None
    found, reasons = own, tuple(complaints(own))
    if draws is not None:
        draws, found, reasons = _fitted_again(draws, call, own, reasons, take, jax.random.fold_in(key, 4))
        told |= {"again": AGAIN} if found is not own else {}

    def wider(how: float, vectors: bool) -> Draw[Posterior] | None:
        return None if draws is None else partial(draws.wider(how, vectors).posterior, call)

    found, reasons = assured(found, reasons, wider, take, jax.random.fold_in(key, 3))
    told |= {"widened": WIDENED} if found.widened else {}
    return Settled(found, reasons, draws or sampler, told)


def _fitted_again(
    sampler: Sampler,
    call: Call,
    found: Posterior,
    reasons: tuple[str, ...],
    take: Take[Posterior],
    key: KeyArray,
) -> tuple[Sampler, Posterior, tuple[str, ...]]:
    """A guide, its posterior and what is said against it, fitted again as long as something is and that helps.

    QEM's last steps average over some hundreds of effective particles, from which the covariance of sixty coordinates
    is not known. All replicates of a posterior hold ten times as many, and cost no further step (adaptive importance
    sampling: Cappe, Guillin, Marin & Robert, Population Monte Carlo, 2004).
    """
    for turn in range(MOST):
        if not reasons or not comparable(found):
            break
        again = sampler.fitted_again(found)
        draw = partial(_with_own_keys, partial(again.posterior, call), turn)
        glimpse = draw(key, GLIMPSE)
        better = worst_efficiency(glimpse) > BETTER * worst_efficiency(found)
        if not better and any(complaints(glimpse)):
            break
        sampler, found = again, take(draw)
        reasons = tuple(complaints(found))
        if not better:
            break  # what so few replicates say nothing of would not go by doing the same again
    return sampler, found, reasons


def _with_own_keys(draw: Draw[Posterior], turn: int, key: KeyArray, count: int) -> Posterior:
    """Replicates by other random numbers than those that the guide has been fitted to."""
    return draw(jax.random.fold_in(key, MOST + turn), count)
