"""Posterior prediction: new data, new plate elements, pointwise log likelihood, held-out log predictive density."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from kayn.errors import PoorFitWarning, QueryError
from kayn.evidence.soundness import settled, warn_of_factors
from kayn.factors.elementwise import sound
from kayn.posterior.held_out import contracted_joint
from kayn.posterior.joint import JointDraws
from kayn.posterior.pool import Pool
from kayn.posterior.replay import BATCH, Setting, checked, over_draws, own_data, run_model, scorer
from kayn.programs.trace import innermost
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key

FEW = 10
"""Draws that a joint density has to rest on at least."""


@dataclass(frozen=True)
class LogPredictive:
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
        setting = checked(posterior, Setting(args, kwargs, False, new_plates))
    else:
        setting = replace(own_data(posterior, observe=False), new_plates=new_plates)

    def one(key: KeyArray, draw: JointDraws) -> dict[str, Array]:
        trace = run_model(posterior, setting, key, draw)
        return {
            n: s["value"]
            for n, s in trace.items()
            if s["type"] == "deterministic" or (s["type"] == "sample" and not isinstance(innermost(s["fn"]), dist.Unit))
        }

    return over_draws(_draws(posterior, rng_key, num_samples), one)


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
    setting = checked(posterior, Setting(args, kwargs, True, new_plates))
    items, score = _draws(posterior, rng_key, num_samples), scorer(posterior, setting)

    def batch(items: tuple[KeyArray, JointDraws]) -> tuple[Array, Array, Array, Array]:
        raw = jax.vmap(lambda item: score(*item)[0])(items)
        # as a logarithm, which adds up like the rest
        lies = {n: jnp.log(jnp.sum(jnp.isposinf(v)).astype(float)) for n, v in raw.items()}
        scores = {n: sound(v) for n, v in raw.items()}
        joint = sum(v.reshape((v.shape[0], -1)).sum(1) for v in scores.values())
        pointwise = {n: jax.nn.logsumexp(v, axis=0) for n, v in scores.items()}
        return jax.nn.logsumexp(joint), jax.nn.logsumexp(2 * joint), pointwise, lies

    @jax.jit
    def total(items: tuple[KeyArray, JointDraws]) -> tuple[Array, Array, Array, Array]:
        # batch by batch: the scores of all draws at once would be as large as draws times rows
        whole, rest = num_samples // BATCH * BATCH, num_samples % BATCH
        parts = [batch(jax.tree.map(lambda v: v[whole:], items))] if rest else []
        if whole:
            batches = jax.tree.map(lambda v: v[:whole].reshape(-1, BATCH, *v.shape[1:]), items)
            first, others = jax.tree.map(lambda v: v[0], batches), jax.tree.map(lambda v: v[1:], batches)

            def add(sums: PyTree, items: tuple[KeyArray, JointDraws]) -> tuple[PyTree, None]:
                return jax.tree.map(jnp.logaddexp, sums, batch(items)), None

            parts.append(jax.lax.scan(add, batch(first), others)[0])
        return jax.tree.map(lambda *v: jax.nn.logsumexp(jnp.stack(v), 0), *parts)

    joint, squares, pointwise, lies = total(items)
    warn_of_factors({n: count > -jnp.inf for n, count in lies.items()})
    count = jnp.log(float(num_samples))
    pointwise = {n: v - count for n, v in pointwise.items()}
    contracted = None if new_plates else contracted_joint(posterior, args, kwargs)
    if contracted is not None:
        return LogPredictive(contracted, pointwise, None)
    ess = jnp.exp(2 * joint - squares)
    if num_samples >= FEW and ess < FEW:
        warnings.warn(
            f"the joint log predictive density rests on {float(ess):.1f} of {num_samples} draws and is too low on "
            "average; take more draws, or compare by the pointwise densities",
            PoorFitWarning,
            stacklevel=4,
        )
    return LogPredictive(joint - count, pointwise, ess)


def log_likelihood(posterior: Pool, rng_key: KeyArray, num_samples: int) -> dict[str, Array]:
    """Pointwise log likelihood of the training data: [num_samples, *rows] for every observed site;
    0 in rows that a mask hides.

    Discrete states that a row owns are summed out of its density, see `kayn.posterior.states`. Along a subsampled plate
    with latents, the rows of a draw are those that its replicate holds (`draws.subsample`); along one without, all rows
    are scored.
    """
    items = _draws(posterior, rng_key, num_samples)
    return settled(over_draws(items, scorer(posterior, own_data(posterior, observe=True)))[0])


def _known_plates(posterior: Pool, new_plates: str | Sequence[str]) -> tuple[str, ...]:
    named = (new_plates,) if isinstance(new_plates, str) else tuple(new_plates)
    known = {p for z in posterior.problem.graph.latents for p in z.plate_names}
    unknown = [p for p in named if p not in known]
    if unknown:
        raise QueryError(f"new_plates= names {unknown}, over which no latent runs; plates of latents: {sorted(known)}")
    return named


def _draws(posterior: Pool, rng_key: KeyArray, num_samples: int) -> tuple[KeyArray, JointDraws]:
    """Keys and posterior draws, one each a sample."""
    draw_key, run_key = jax.random.split(as_key(rng_key))
    draws = posterior._joint(draw_key, num_samples)  # first, as it refuses numbers that no memory holds
    return jax.random.split(run_key, num_samples), draws
