"""Posterior prediction: new data, new plate elements, pointwise log likelihood, held-out log predictive density."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kayn.errors import PoorFitWarning, QueryError, warn
from kayn.evidence.soundness import settled, warn_of_factors
from kayn.factors.elementwise import sound
from kayn.posterior.blocks import block_size, keys_of, on_device, starts
from kayn.posterior.held_out import contracted_joint
from kayn.posterior.joint import JointDraws, entries
from kayn.posterior.pool import Pool
from kayn.posterior.replay import (
    BATCH,
    Setting,
    block_of,
    checked,
    drawn_sites,
    over_draws,
    own_data,
    run_model,
    scorer,
)
from kayn.programs.missing_outcomes import Gaps
from kayn.support.arrays import Array, KeyArray
from kayn.support.keys import as_key
from kayn.support.prints import Outlined
from kayn.xla.compilation import is_traced, seldom_options
from kayn.xla.jit import QuickJit

FEW = 10
"""Draws that a joint density has to rest on at least."""


@dataclass(frozen=True, repr=False)
class LogPredictive(Outlined):
    """Log predictive density of held-out data, in nats.

    Attributes:
        joint: `log p(all data | training data)`, a scalar: summed over all combinations of particles where one more
            contraction does that, else `log mean_s p(all data | draw s)`.
        pointwise: `log mean_s p(row | draw s)` for every observed site: [*rows].
        joint_ess: how many of the draws the joint density effectively rests on, None where it needs none. All rows at
            once single out few draws when there are many latents; below 10 the joint density is too low on average, and
            a warning says so.
    """

    joint: Array
    pointwise: dict[str, Array]
    joint_ess: Array | None

    @property
    def total(self) -> Array:
        """Sum of the pointwise log predictive densities."""
        return sum(jnp.sum(v) for v in self.pointwise.values())


def predictive(
    posterior: Pool,
    rng_key: KeyArray,
    num_samples: int,
    args: tuple,
    kwargs: Mapping,
    new_plates: str | Sequence[str] = (),
) -> dict[str, Array]:
    """Run the model with posterior draws of its latents, drawing the observed sites too.

    Args:
        args, kwargs: arguments of the model, e.g. for new rows (observed values among them only give shapes); without
            any those of the training data are used.
        new_plates: plates whose elements are all new, so that their latents are drawn from the model given the parents.
            A plate that has grown keeps its known elements first and gets new ones drawn after them.

    Returns:
        [num_samples, *shape] for every sample and deterministic site.
    """
    new_plates = _known_plates(posterior, new_plates)
    if args or kwargs:
        setting, _ = checked(posterior, Setting(args, kwargs, False, new_plates))
    else:
        setting = replace(own_data(posterior, observe=False), new_plates=new_plates)
    return predicted(posterior, *_draws(posterior, rng_key, num_samples), setting)


def predicted(posterior: Pool, key: KeyArray, draws: JointDraws, setting: Setting) -> dict[str, Array]:
    """All sites of the model run on some draws: [S, *shape]."""
    return over_draws(posterior, key, draws, lambda k, draw: drawn_sites(run_model(posterior, setting, k, draw)))


def imputed(posterior: Pool, rng_key: KeyArray, num_samples: int) -> dict[str, Array]:
    """The data of those observed sites where some were missing, with draws in the gaps: [num_samples, *shape]."""
    program = posterior.call.model
    if not isinstance(program, Gaps):
        return {}
    key, draws = _draws(posterior, rng_key, num_samples)
    left_out = program.data.keys() - program.latents
    found = predicted(posterior, key, draws, own_data(posterior, observe=False)) if left_out else {}
    found = {n: jnp.where(jnp.isnan(program.data[n]), found[n], program.data[n]) for n in sorted(left_out)}
    return found | {n: draws.values[n] for n in sorted(program.latents)}


def log_predictive(
    posterior: Pool,
    rng_key: KeyArray,
    num_samples: int,
    args: tuple,
    kwargs: Mapping,
    new_plates: str | Sequence[str] = (),
) -> LogPredictive:
    """Log predictive density of held-out data: the model's arguments with the test data in place of the training data.

    New plate elements are handled as in `predictive`.

    Raises:
        QueryError: there are no arguments, or no data among them.
    """
    if not args and not kwargs:
        raise QueryError(
            "log_predictive needs the model's arguments with the held-out data; for the training data use "
            "log_likelihood"
        )
    new_plates = _known_plates(posterior, new_plates)
    setting, read = checked(posterior, Setting(args, kwargs, True, new_plates))
    key, draws = _draws(posterior, rng_key, num_samples)
    joint, squares, pointwise, lies = _summed(posterior, key, draws, scorer(posterior, setting))
    warn_of_factors({n: count > -jnp.inf for n, count in lies.items()})
    count = jnp.log(float(num_samples))
    pointwise = {n: v - count for n, v in pointwise.items()}
    contracted = None if new_plates or posterior.chained else contracted_joint(posterior, read)
    if contracted is not None:
        return LogPredictive(contracted, pointwise, None)
    ess = jnp.exp(2 * joint - squares)
    if num_samples >= FEW and ess < FEW:
        warn(
            f"the joint log predictive density rests on {float(ess):.1f} of {num_samples} draws and is too low on "
            "average; take more draws, or compare by the pointwise densities",
            PoorFitWarning,
        )
    return LogPredictive(joint - count, pointwise, ess)


def _summed(
    posterior: Pool,
    key: KeyArray,
    draws: JointDraws,
    score: Callable[[KeyArray, JointDraws], tuple[dict[str, Array], dict[str, Array]]],
) -> tuple[Array, Array, dict[str, Array], dict[str, Array]]:
    """Logarithms of sums over draws: of the density of all data, its square, every datum's, and how many are none.

    Block by block: the scores of all draws at once would be as large as draws times rows.
    """
    count = len(next(iter(draws.values.values())))
    size = block_size(count, BATCH, entries(posterior.problem))

    def block(
        key: KeyArray, start: Array, num: Array, draws: JointDraws
    ) -> tuple[Array, Array, dict[str, Array], dict[str, Array]]:
        asked = start + jnp.arange(size) < num

        def of_asked(v: Array, other: float) -> Array:
            return jnp.where(asked.reshape((-1, *(1,) * (v.ndim - 1))), v, other)

        raw = {n: of_asked(v, -jnp.inf) for n, v in jax.vmap(score)(keys_of(key, start, size), draws)[0].items()}
        # as a logarithm, which adds up like the rest
        lies = {n: jnp.log(jnp.sum(jnp.isposinf(v)).astype(float)) for n, v in raw.items()}
        scores = {n: sound(v) for n, v in raw.items()}
        joint = sum(v.reshape((v.shape[0], -1)).sum(1) for v in scores.values())
        pointwise = {n: jax.nn.logsumexp(v, axis=0) for n, v in scores.items()}
        return jax.nn.logsumexp(joint), jax.nn.logsumexp(2 * joint), pointwise, lies

    run = QuickJit(block, open_consts=True, options=seldom_options)
    parts = [run(key, s, np.int32(count), block_of(draws, s, size)) for s in starts(count, size)]
    xp: Any = jnp if is_traced(parts) else np
    return on_device(jax.tree.map(lambda *v: reduce(xp.logaddexp, map(xp.asarray, v)), *parts))


def log_likelihood(posterior: Pool, rng_key: KeyArray, num_samples: int) -> dict[str, Array]:
    """Pointwise log likelihood of the training data: [num_samples, *rows] for every observed site;
    0 in rows that a mask hides.

    Discrete states that a row owns are summed out of its density, see `kayn.posterior.states`. Along a subsampled plate
    with latents, the rows of a draw are those that its replicate holds (`draws.subsample`); along one without, all rows
    are scored.
    """
    key, draws = _draws(posterior, rng_key, num_samples)
    return settled(over_draws(posterior, key, draws, scorer(posterior, own_data(posterior, observe=True)))[0])


def _known_plates(posterior: Pool, new_plates: str | Sequence[str]) -> tuple[str, ...]:
    named = (new_plates,) if isinstance(new_plates, str) else tuple(new_plates)
    known = {p for z in posterior.problem.graph.latents for p in z.plate_names}
    unknown = [p for p in named if p not in known]
    if unknown:
        raise QueryError(f"new_plates= names {unknown}, over which no latent runs; plates of latents: {sorted(known)}")
    return named


def _draws(posterior: Pool, rng_key: KeyArray, num_samples: int) -> tuple[KeyArray, JointDraws]:
    """A key for what is drawn given them, and those posterior draws that `sample` gives for the same key."""
    key = as_key(rng_key)
    draws = posterior._joint(key, num_samples)  # first, as it refuses numbers that no memory holds
    return jax.random.fold_in(key, 2**32 - 1), draws
