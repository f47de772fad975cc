"""Which weighed particles a fit's posterior is of: the guide's, those of the guide fitted again, of one whose vectors
follow the model, or of a wider one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax

from kayn.errors import KaynError
from kayn.inference.laplace import LaplaceSampler
from kayn.inference.sampler import Sampler
from kayn.posterior.call import Call
from kayn.posterior.enough import Draw, Replicates, affordable
from kayn.posterior.poor_fit import complaints, few_count, more_would_do, of_tails_alone, worst_efficiency
from kayn.posterior.posterior import Posterior
from kayn.posterior.wider import GLIMPSE, REPLICATES, agree, assured, comparable
from kayn.support.arrays import KeyArray

MOST = 8
"""Times that a guide is fitted again."""
BETTER = 1.2
"""By what factor the efficiency of its weights has to grow, in a glimpse of it."""
SLOW = 2**27
"""Operations of a replicate from which a guide that follows the model, of one particle at a time, is asked before wider
ones, which take as long as the fit's."""
LESS, MORE = 0.1, 1.0
"""Nats of evidence that a guide may lack, and from which it is on its way."""
AGAIN = "posterior: of the guide fitted again to all replicates of a first one, whose weights were poor"
FOLLOWS = "posterior: of a guide whose vectors follow the model given its numbers (Laplace)"
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


def settled(sampler: Sampler | None, call: Call, own: Posterior, take: Replicates, key: KeyArray) -> Settled:
    """The posterior of a fit, given the particles of its guide.

    Args:
        sampler: None where there is none.
    """
    told: dict[str, str] = {}

    def last() -> Sampler | LaplaceSampler | None:
        return draws if follows is None else follows.sampler

    def wider(how: float, vectors: bool) -> Draw[Posterior] | None:
        return None if (guide := last()) is None else partial(guide.wider(how, vectors).posterior, call)

    def sure(found: Posterior, reasons: tuple[str, ...]) -> tuple[Posterior, tuple[str, ...]]:
        return assured(found, reasons, wider, take, jax.random.fold_in(key, 3))

    draws = sampler if sampler is not None and sampler.qem.blocks and sampler.qem.keeps_particles() else None
    found, reasons, follows = own, tuple(complaints(own)), None
    if draws is not None:
        draws, found, reasons = _fitted_again(draws, call, own, reasons, take, jax.random.fold_in(key, 4))
        told |= {"again": AGAIN} if found is not own else {}
    slow = found.problem.layout.operations >= SLOW
    asked = not slow and (not reasons or of_tails_alone(found))  # what a wider guide tells of at once
    if asked:
        found, reasons = sure(found, reasons)
    if (reasons or slow) and draws is not None:
        follows = _following(draws, call, found, take, jax.random.fold_in(key, 5))
    certain = follows is not None and not (reasons or follows.reasons) and agree(found, follows.posterior)
    if follows is not None:
        found, reasons, told = follows.posterior, follows.reasons, {"follows": FOLLOWS}
    if reasons and (guide := last()) is not None and more_would_do(found):
        found = take.more(partial(guide.posterior, call), found)
        reasons = tuple(complaints(found))
    if not certain and (not asked or follows is not None):
        found, reasons = sure(found, reasons)
    told |= {"widened": WIDENED} if found.widened else {}
    return Settled(found, reasons, draws or sampler, told)


def _fitted_again(
    sampler: Sampler,
    call: Call,
    found: Posterior,
    reasons: tuple[str, ...],
    take: Replicates,
    key: KeyArray,
) -> tuple[Sampler, Posterior, tuple[str, ...]]:
    """A guide, its posterior and what is said against it, fitted again as long as something is and that helps.

    QEM's last steps average over some hundreds of effective particles, from which the covariance of sixty coordinates
    is not known. All replicates of a posterior hold ten times as many, and cost no further step (adaptive importance
    sampling: Cappe, Guillin, Marin & Robert, Population Monte Carlo, 2004).
    """
    for turn in range(MOST):
        if not (reasons or few_count(found)) or not comparable(found):
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


@dataclass(frozen=True, eq=False)
class _Following:
    """A posterior of a guide whose vectors follow the model, and what there is to say against it."""

    sampler: LaplaceSampler
    posterior: Posterior
    reasons: tuple[str, ...]


def _following(sampler: Sampler, call: Call, poor: Posterior, take: Replicates, key: KeyArray) -> _Following | None:
    """A guide whose vectors follow the model given its numbers, fitted to a posterior that something is said against;
    None where there is none, or its weights are not better."""
    try:
        made = LaplaceSampler.of(sampler, call, poor) if comparable(poor) else None
        return None if made is None else _followed(made, call, poor, take, key)
    except (KaynError, FloatingPointError):  # no derivatives; a curvature without a root, under `jax_debug_nans`
        return None


def _followed(made: LaplaceSampler, call: Call, poor: Posterior, take: Replicates, key: KeyArray) -> _Following | None:
    best, seen = made, poor
    for turn in range(MOST):
        again = best.fitted_again(seen)
        draw = partial(_with_own_keys, partial(again.posterior, call), turn)
        glimpse = draw(key, GLIMPSE)
        if not comparable(glimpse):
            return None
        if turn and any(complaints(glimpse)) and affordable(glimpse) >= REPLICATES:
            glimpse = draw(key, REPLICATES)
        gained = float(glimpse.log_evidence - seen.log_evidence) > MORE
        if turn > 1 and not (gained or worst_efficiency(glimpse) > BETTER * worst_efficiency(seen)):
            break
        best, seen = again, glimpse
        if turn > 1 and not any(complaints(seen)):
            break  # fitted twice to its own particles
    better = worst_efficiency(seen) > BETTER * worst_efficiency(poor)
    if _sees_less(seen, poor) or (any(complaints(seen)) and not better):
        return None
    found = take(partial(best.posterior, call))
    return None if _sees_less(found, poor) else _Following(best, found, tuple(complaints(found)))


def _sees_less(found: Posterior, poor: Posterior) -> bool:
    """Whether a posterior lacks evidence that poor weights have found, as where it is about one mode of several."""
    error = math.hypot(*(float(p.log_evidence_error) for p in (found, poor)))
    return not float(poor.log_evidence - found.log_evidence) < max(LESS, 3 * error)


def _with_own_keys(draw: Draw[Posterior], turn: int, key: KeyArray, count: int) -> Posterior:
    """Replicates by other random numbers than those that the guide has been fitted to."""
    return draw(jax.random.fold_in(key, MOST + turn), count)
