"""What a posterior's own weights say against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from kayn.axes.types import Axis
from kayn.errors import NumericsWarning, PoorFitWarning, warn
from kayn.evidence.dataless import is_prior
from kayn.evidence.soundness import unsound
from kayn.posterior import diagnostics
from kayn.posterior.diagnostics import (
    GOOD_EFFICIENCY,
    MIN_REPLICATES,
    POOR_KHAT,
    POOR_SHARE,
    POOR_SHIFT,
    POOR_SPREAD,
    POOR_TAILS,
    poor_below,
)
from kayn.posterior.enough import FIRST, MOST, by_replicate, deviations, possible
from kayn.posterior.khat import MIN_PARTICLES_FOR_KHAT, endless_khat, pareto_khat
from kayn.posterior.mixing import ENOUGH
from kayn.posterior.pool import Pool
from kayn.support.arrays import Array
from kayn.support.names import in_model, shown
from kayn.xla.compilation import is_traced

MAX_KHATS = 100
"""Plate elements whose k-hat is checked, those with the smallest effective sample size first."""
FEW = 0.05
"""Share of elements whose k-hat may be high by chance."""
LONG_VECTOR = 8
"""Coordinates on one particle from which advice says so."""
EVEN = 0.95
"""Efficiency above which the shape of the tail is not looked at: it would be that of rounding."""
LEAST_OFF = 0.05
"""Log evidence in nats, where zero is right, up to which nothing is said."""
ADVICE = "Fit the guide longer, use more particles, or group latents that are strongly dependent"


def warn_if_poor(posterior: Pool) -> None:
    """Warn of what the weights say, where they are known: not while a transformation of the user's is being traced."""
    if is_traced(posterior.log_evidences):
        return
    warn_if_unsound(posterior)
    warn_of(complaints(posterior))


def warn_if_unsound(posterior: Pool) -> None:
    """Warn of log densities that no density can have among the particles, whatever becomes of these."""
    for complaint in unsound(posterior.problem, posterior.numbers, posterior.params, posterior.draws):
        warn(complaint, NumericsWarning)


def warn_of(complaints: Iterable[str]) -> bool:
    """Warn of what is wrong with weights or with chains; whether anything is."""
    told = [*complaints]
    for complaint in told:
        warn(complaint, PoorFitWarning)
    return bool(told)


def warn_of_broken_sampler(error: Exception) -> None:
    """Warn that sampling ended in an error that kayn should not have raised."""
    warn(
        f"sampling ended in {type(error).__name__} ({error}), so that the answer is that of poor weights; please "
        "report it, with the model",
        PoorFitWarning,
    )


def check(pool: Pool) -> list[str]:
    """What is wrong with a posterior, as sentences that name the latent or the factor."""
    return [*unsound(pool.problem, pool.numbers, pool.params, pool.draws), *complaints(pool)]


def complaints(posterior: Pool, uneven: bool = True, tails: bool = True) -> Iterator[str]:
    """What there is to say against a posterior, a sentence each with the remedy; nothing if all is well.

    Args:
        uneven: whether effective sample sizes and k-hat count. What is known from uneven weights may be right all the
            same, which others can confirm.
        tails: whether noise of weights in the tails counts, of which the same is true.
    """
    log_z = np.asarray(posterior.log_evidences)
    seen = log_z[possible(posterior)]
    if not seen.size:
        yield (
            "every combination of particles is impossible (log evidence is -inf): the proposal misses the posterior's "
            "support, or an observed value has zero density. Fit the guide first (kayn.fit), or check the data"
        )
        return
    if seen.size < log_z.size:
        yield (
            f"{log_z.size - seen.size} of {log_z.size} replicates hold no possible combination of particles. {ADVICE}"
        )
    spread = float(np.std(seen))
    if not spread < POOR_SPREAD:
        yield (
            f"log evidence varies by {spread:.1f} nats (sd) between replicates, so its error is underestimated, and "
            f"means may be off{_shared_by_many(posterior)}. {ADVICE}"
        )
    yield from _known_evidence(posterior, spread / seen.size**0.5)
    for axis in _weighed(posterior):
        told = list(_uneven(posterior, axis)) if uneven else []
        # what is poor is off as well
        told = told or list(_few_particles(posterior, axis, uneven))
        yield from told or (_missing_tails(posterior, axis) if tails else ())


def _few_particles(posterior: Pool, axis: Axis, uneven: bool) -> Iterator[str]:
    """What single replicates say: moments that one of them makes, if `uneven`, and means that the number of particles
    moves: what each of many groups lacks a little of shows in none of them."""
    which = possible(posterior)
    if which.sum() < MIN_REPLICATES or posterior.draws.subsample:
        return
    log_z, share = (np.asarray(x, np.float64)[which] for x in (posterior.log_evidences, posterior._shares))
    for name in axis.latents:
        if posterior.problem.graph.latent(name).discrete:
            continue
        means, variances = by_replicate(posterior, name)
        if uneven and (told := _made_by_one(name, variances, share)):
            yield told
            return
        shift, error = diagnostics.shift(log_z, means, deviations(means, variances), share)
        worst, where = worst_element(np.abs(shift))
        if np.abs(shift[worst]) > POOR_SHIFT:
            yield (
                f"latent {in_model(name)!r}: replicates of higher evidence have other means: particles are too few: "
                f"the mean{where} is off by about {-shift[worst]:+.2f} +- {error[worst]:.2f} posterior sds. Use more "
                "particles: twice as many halve this"
            )


def _made_by_one(name: str, variances: np.ndarray, share: np.ndarray) -> str:
    """That a single replicate makes much of a latent's variance; nothing where none does, or there are too few to say.

    Args:
        variances, share: as `diagnostics.largest_share` has them.
    """
    if share.size < FIRST:
        return ""
    largest = diagnostics.largest_share(variances, share)
    # of a few groups one may have it by chance
    if np.sum(largest > POOR_SHARE) <= max(FEW * largest.size, min(1, largest.size - 1)):
        return ""
    worst, where = worst_element(largest)
    return (
        f"latent {in_model(name)!r}: one replicate of {share.size} makes {largest[worst]:.0%} of the variance{where}: "
        f"a particle where the guide has hardly any. {ADVICE}"
    )


def worst_element(size: np.ndarray) -> tuple[tuple[np.intp, ...], str]:
    """Where an array is largest, and that place in words; nothing of a number."""
    worst = np.unravel_index(np.argmax(size), size.shape)
    return worst, f" of element {', '.join(map(str, worst))}" if worst else ""


def _missing_tails(posterior: Pool, axis: Axis) -> Iterator[str]:
    """Numbers whose tails fit few particles of a long vector, all of whose elements share one.

    Weights of the vector are even where most of the posterior is, and those of the number are sums over its particles:
    neither shows what the vector would have to be at other values of the number.
    """
    problem = posterior.problem
    others = [a for a in problem.layout.axes if a is not axis and not a.enumerated]
    many = [a for a in others if problem.together(a) >= LONG_VECTOR]
    values = {n: np.asarray(posterior.draws.values[n]) for n in axis.latents if not axis.scope}
    numbers = {n: v for n, v in values.items() if v.ndim == 2 and not problem.graph.latent(n).discrete}
    if not many or axis.size < MIN_PARTICLES_FOR_KHAT or posterior.log_evidences.size < MIN_REPLICATES:
        return
    which = possible(posterior)
    for name, value in numbers.items():
        noise = diagnostics.noise_of_tails(value[which], np.asarray(posterior._weights(name))[which])
        if noise > POOR_TAILS:
            who = ", ".join(repr(in_model(n)) for a in many for n in a.latents)
            about = next((text for a in many if (text := _about(posterior, a))), "")
            yield (
                f"latent {in_model(name)!r}: weights of nearly the same value in its tails differ by {noise**0.5:.0%} "
                f"(sd), as few particles of {who} fit there, so that its spread is too small. {ADVICE}{about}"
            )


def _shared_by_many(posterior: Pool) -> str:
    """Names of the latents on which all that lacks a little pulls: those without plates."""
    names = [in_model(z.name) for z in posterior.problem.graph.latents if not z.plates]
    return f", those of {', '.join(map(repr, names[:5]))}{', ...' * (len(names) > 5)} first" if names else ""


def _known_evidence(posterior: Pool, error: float) -> Iterator[str]:
    """Without data the log evidence is zero: what is found to be more or less tells what weights cannot."""
    latents = posterior.problem.graph.latent_names
    found = float(posterior.log_evidence)
    if is_prior(posterior.problem) and abs(found) > LEAST_OFF + 4 * error:
        who = ", ".join(repr(in_model(n)) for n in latents[:5]) + (", ..." if len(latents) > 5 else "")
        yield (
            f"nothing is observed, so the log evidence is 0, but it was found to be {found:.2f} +- {error:.2f}: the "
            f"guide does not reach all of the prior of {who}. kayn.fit(..., method='qem') without a guide draws them "
            "from the prior itself"
        )


def _uneven(posterior: Pool, axis: Axis) -> Iterator[str]:
    """Weights of an axis that are on few of its particles, most of them or the largest."""
    pooled, efficiency = _by_element(posterior, axis)
    alone, enough = _weights_alone(posterior, axis), posterior.widened
    if alone is not None and diagnostics.effective_sample_size(alone) >= ENOUGH:
        # those of every element
        pooled, efficiency, enough = alone[:, None], efficiency[:1], True
    worst = int(np.argmin(efficiency))
    who = ", ".join(repr(in_model(n)) for n in axis.latents)
    where = f" (worst element {worst} of {efficiency.size})" if efficiency.size > 1 else ""
    if efficiency[worst] < poor_below(axis.size) and not enough:
        ess = 1 + efficiency[worst] * (axis.size - 1)
        yield (
            f"latent {who}: effective sample size {ess:.1f} of {axis.size} particles{where}. "
            f"{ADVICE}{_about(posterior, axis)}"
        )
        return
    looked, khat = _khats(pooled, efficiency)
    most = np.where(efficiency[looked] < GOOD_EFFICIENCY, POOR_KHAT, endless_khat(len(pooled)))
    if np.mean(khat > most) > FEW:
        yield (
            f"latent {who}: Pareto k-hat {np.nanmax(khat):.2f} (above {POOR_KHAT}){where}. "
            f"{ADVICE}{_about(posterior, axis)}"
        )


def _weights_alone(posterior: Pool, axis: Axis) -> np.ndarray | None:
    """The pooled weights [P] of an axis that all latents share; None where there are others or elements, whose weights
    are sums over what these are.

    All is plain importance sampling then, of which the pooled effective sample size and k-hat tell.
    """
    if axis.scope or len(posterior.problem.layout.axes) > 1 or posterior.draws.subsample:
        return None
    weights = np.asarray(posterior._pooled(axis.latents[0]), np.float64)
    return weights.reshape(len(weights), -1)[:, 0]


def more_would_do(posterior: Pool) -> bool:
    """Whether nothing is said against plain importance sampling but that its effective sample size is too small, which
    more replicates would mend."""
    axes = _weighed(posterior)
    alone = _weights_alone(posterior, axes[0]) if len(axes) == 1 else None
    if alone is None or any(complaints(posterior, uneven=False)):
        return False
    size = diagnostics.effective_sample_size(alone)
    return bool(size < ENOUGH <= size * MOST / posterior.num_replicates)


def few_count(posterior: Pool) -> bool:
    """Whether the weights of some axis are on so few of its particles that a guide fitted again may do better."""
    return any(_by_element(posterior, a)[1].min() < poor_below(a.size) for a in _weighed(posterior))


def of_tails_alone(posterior: Pool) -> bool:
    """Whether nothing is said against a posterior but that its weights have heavy tails, as those of a guide have that
    is too light and not of a wider one."""
    return not few_count(posterior) and not any(complaints(posterior, uneven=False))


def heavy_tails(posterior: Pool) -> bool:
    """Whether weights of some axis have a k-hat of more than .7 in more than a few of its elements, however even most
    of them are."""
    return any(np.mean(_khats(*_by_element(posterior, a))[1] > POOR_KHAT) > FEW for a in _weighed(posterior))


def worst_efficiency(posterior: Pool) -> float:
    """Of the weights of the worst element of any axis."""
    return min((float(_by_element(posterior, a)[1].min()) for a in _weighed(posterior)), default=1.0)


def _weighed(posterior: Pool) -> list[Axis]:
    """Axes whose particles are drawn and differ in weight."""
    return [a for a in posterior.problem.layout.axes if not a.enumerated and a.size > 1]


def _by_element(posterior: Pool, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """The weights of an axis [particles of all replicates, elements], and the efficiency of every element."""
    weights = np.asarray(posterior._weights(axis.latents[0]))
    weights = weights.reshape(*weights.shape[:2], -1)
    efficiency = diagnostics.efficiency(weights)
    return weights.reshape(-1, efficiency.size), efficiency


def _khats(pooled: Array, efficiency: Array) -> tuple[np.ndarray, np.ndarray]:
    """The elements whose weights are the least even, and their k-hats: zero where there is nothing uneven."""
    uneven = np.flatnonzero(efficiency < EVEN)
    looked = uneven[np.argsort(efficiency[uneven])[:MAX_KHATS]]
    return (looked, pareto_khat(pooled[:, looked])) if looked.size else (np.zeros(1, int), np.zeros(1))


def _about(posterior: Pool, axis: Axis) -> str:
    return _about_couplings(posterior, axis) or _about_vectors(posterior, axis)


def _about_couplings(posterior: Pool, axis: Axis) -> str:
    """What made latents give up an index of their own over plates, and what would not."""
    mine = [c for c in posterior.problem.layout.couplings if c.plates and set(c.latents) & set(axis.latents)]
    told = [
        f"{', '.join(repr(in_model(n)) for n in c.latents)} over {', '.join(map(shown, c.plates))}, since {c.reason}"
        for c in mine
    ]
    if not told:
        return ""
    return (
        f". One particle index stands for all elements of {'; of '.join(told)}. Where every row reads one element, "
        "write that as a lookup in a plate of rows, z[group], and each element keeps particles of its own. What reads "
        "all elements at once has no such form (a total, a mean that is subtracted, a constraint on their sum): leave "
        "it out where prior and data say as much. print(kayn.analyze(...)) tells"
    )


def _about_vectors(posterior: Pool, axis: Axis) -> str:
    """Advice for vectors, all of whose coordinates share a particle."""
    longest = max(axis.latents, key=posterior.problem.coordinates)
    coordinates = posterior.problem.coordinates(longest)
    if coordinates < LONG_VECTOR:
        return ""
    return (
        f". The {coordinates} coordinates of {longest!r} share one particle; in a numpyro.plate, or in a "
        "numpyro.contrib.control_flow.scan if they are a time series, each has particles of its own"
    )
