"""Posterior prediction: new data, new plate elements, pointwise log likelihood, held-out log predictive density."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from kayn.errors import PoorFitWarning, QueryError
from kayn.evidence import read_model
from kayn.graph.given import Given
from kayn.graph.seeded import seeded
from kayn.graph.trace import Site, innermost, inspect_sites
from kayn.heldout import contracted_joint, observed_scores
from kayn.keys import as_key

if TYPE_CHECKING:
    from kayn.posterior import Posterior

BATCH = 100
"""Draws handled at a time."""
FEW = 10
"""Draws that a joint density has to rest on at least."""


@dataclass(frozen=True)
class LogPredictive:
    """Log predictive density of held-out data, in nats.

    Attributes:
        joint: `log p(all data | training data)`, a scalar: summed over all combinations of particles where one more contraction does that, else
            `log mean_s p(all data | draw s)`.
        pointwise: `log mean_s p(row | draw s)` for every observed site: [*rows].
        joint_ess: how many of the draws the joint density effectively rests on, None where it needs none. All rows at once single out few
            draws when there are many latents; below 10 the joint density is too low on average, and a warning says so.
    """

    joint: Any
    pointwise: dict[str, Any]
    joint_ess: Any

    @property
    def total(self) -> Any:
        """Sum of the pointwise log predictive densities."""
        return sum(jnp.sum(v) for v in self.pointwise.values())


class _Condition(Messenger):
    """Gives latents the values of one posterior draw; plate elements that the draw lacks are sampled from the model.

    Args:
        values: the draw.
        new_plates: plates whose elements are all new.
        observe: keep observed sites; otherwise they are drawn too.
    """

    def __init__(self, fn: Callable, values: Mapping[str, Any], new_plates: tuple[str, ...], observe: bool):
        super().__init__(fn)
        self.values, self.new_plates, self.observe = values, new_plates, observe

    def process_message(self, msg: dict[str, Any]) -> None:
        if self.observe:
            return
        if msg["type"] == "control_flow":
            # a loop tells of its sites only when it is over
            body, *rest = msg["args"]
            msg["args"] = (_Condition(body, {}, (), observe=False), *rest)
        elif msg["type"] == "sample" and msg["is_observed"] and not isinstance(innermost(msg["fn"]), dist.Unit):
            msg["is_observed"], msg["value"] = False, None

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg["is_observed"] or msg["name"] not in self.values:
            return
        msg["value"] = self._merge(msg["name"], msg["value"], self.values[msg["name"]], msg)

    def _merge(self, name: str, fresh: Any, drawn: Any, msg: Mapping[str, Any]) -> Any:
        walk = isinstance(innermost(msg["fn"]), dist.GaussianRandomWalk)
        if walk and fresh.shape[:-1] == drawn.shape[:-1] and fresh.shape[-1] > drawn.shape[-1]:
            return _carried_on(fresh, drawn)
        rank = len(msg["fn"].batch_shape)
        plates = {rank + f.dim: f.name for f in msg["cond_indep_stack"]}
        if jnp.ndim(fresh) != jnp.ndim(drawn):
            raise QueryError(
                f"latent {name!r} has {jnp.ndim(fresh)} dimensions under the new arguments, {jnp.ndim(drawn)} in the posterior"
            )
        keep = []
        for dim, (new, old) in enumerate(zip(jnp.shape(fresh), jnp.shape(drawn), strict=True)):
            if plates.get(dim) in self.new_plates:
                return fresh
            if new < old or (new > old and dim not in plates):
                where = f"plate {plates[dim]!r}" if dim in plates else f"dimension {dim}"
                raise QueryError(
                    f"latent {name!r} has {old} elements along {where} in the posterior but {new} under the new arguments; keep the "
                    "known elements first and append new ones, or name the plate in new_plates= if all its elements are new"
                )
            keep.append(slice(0, old))
        return jnp.asarray(fresh).at[tuple(keep)].set(drawn) if keep else drawn


def _carried_on(fresh: Any, drawn: Any) -> Any:
    """A walk whose later steps are those of a fresh one, moved to where the draw ends."""
    steps = drawn.shape[-1]
    moved = drawn[..., -1:] + fresh[..., steps:] - fresh[..., steps - 1 : steps]
    return jnp.concatenate([drawn, moved], -1)


def predictive(
    posterior: Posterior,
    rng_key: Any,
    num_samples: int,
    args: tuple,
    kwargs: Mapping,
    new_plates: str | Sequence[str] = (),
) -> dict[str, Any]:
    """Run the model with posterior draws of its latents, drawing the observed sites too.

    Args:
        args, kwargs: arguments of the model, e.g. for new rows (observed values among them only give shapes); without any
            those of the training data are used.
        new_plates: plates whose elements are all new, so that their latents are drawn from the model given the parents. A
            plate that has grown keeps its known elements first and gets new ones drawn after them.

    Returns:
        [num_samples, *shape] for every sample and deterministic site.
    """
    new_plates = _known_plates(posterior, new_plates)
    if args or kwargs:
        _check_arguments(posterior, args, kwargs, new_plates, observe=False)
    else:
        args, kwargs = posterior.call.args, posterior.call.kwargs

    def one(key: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        trace = _run(posterior, key, values, args, kwargs, new_plates, observe=False)
        return {
            n: s["value"]
            for n, s in trace.items()
            if s["type"] == "deterministic" or (s["type"] == "sample" and not isinstance(innermost(s["fn"]), dist.Unit))
        }

    return _over_draws(_draws(posterior, rng_key, num_samples), one)


def log_predictive(
    posterior: Posterior,
    rng_key: Any,
    num_samples: int,
    args: tuple,
    kwargs: Mapping,
    new_plates: str | Sequence[str] = (),
) -> LogPredictive:
    """Log predictive density of held-out data: the model's arguments with the test data in place of the training data.

    New plate elements are handled as in `predictive`.
    """
    if not args and not kwargs:
        raise QueryError(
            "log_predictive needs the model's arguments with the held-out data; for the training data use log_likelihood"
        )
    new_plates = _known_plates(posterior, new_plates)
    _check_arguments(posterior, args, kwargs, new_plates, observe=True)
    items, one = _scored_draws(posterior, rng_key, num_samples, args, kwargs, new_plates)

    def batch(items: Any) -> tuple[Any, Any, Any]:
        scores = jax.vmap(lambda item: one(*item))(items)
        joint = sum(v.reshape((v.shape[0], -1)).sum(1) for v in scores.values())
        pointwise = {n: jax.nn.logsumexp(v, axis=0) for n, v in scores.items()}
        return jax.nn.logsumexp(joint), jax.nn.logsumexp(2 * joint), pointwise

    @jax.jit
    def total(items: Any) -> tuple[Any, Any, Any]:
        # batch by batch: the scores of all draws at once would be as large as draws times rows
        whole, rest = num_samples // BATCH * BATCH, num_samples % BATCH
        parts = [batch(jax.tree.map(lambda v: v[whole:], items))] if rest else []
        if whole:
            batches = jax.tree.map(lambda v: v[:whole].reshape(-1, BATCH, *v.shape[1:]), items)
            first, others = jax.tree.map(lambda v: v[0], batches), jax.tree.map(lambda v: v[1:], batches)

            def add(sums: Any, items: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.logaddexp, sums, batch(items)), None

            parts.append(jax.lax.scan(add, batch(first), others)[0])
        return jax.tree.map(lambda *v: jax.nn.logsumexp(jnp.stack(v), 0), *parts)

    joint, squares, pointwise = total(items)
    count = jnp.log(float(num_samples))
    pointwise = {n: v - count for n, v in pointwise.items()}
    contracted = None if new_plates else contracted_joint(posterior, args, kwargs)
    if contracted is not None:
        return LogPredictive(contracted, pointwise, None)
    ess = jnp.exp(2 * joint - squares)
    if num_samples >= FEW and ess < FEW:
        warnings.warn(
            f"the joint log predictive density rests on {float(ess):.1f} of {num_samples} draws and is too low on average; take more draws, or "
            "compare by the pointwise densities",
            PoorFitWarning,
            stacklevel=4,
        )
    return LogPredictive(joint - count, pointwise, ess)


def log_likelihood(posterior: Posterior, rng_key: Any, num_samples: int) -> dict[str, Any]:
    """Pointwise log likelihood of the training data: [num_samples, *rows] for every observed site."""
    return _over_draws(*_scored_draws(posterior, rng_key, num_samples, posterior.call.args, posterior.call.kwargs, ()))


def _scored_draws(
    posterior: Posterior, rng_key: Any, num_samples: int, args: tuple, kwargs: Mapping, new_plates: tuple[str, ...]
) -> tuple[Any, Callable[[Any, Mapping], dict[str, Any]]]:
    """Keys and posterior draws, and what gives the log density of every datum under one of them."""

    def one(key: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        trace = _run(posterior, key, values, args, kwargs, new_plates, observe=True)
        scores = observed_scores(trace)
        if not scores:
            raise QueryError(
                "the model has no observed site under these arguments; pass the data (e.g. y=...) as when fitting"
            )
        return scores

    return _draws(posterior, rng_key, num_samples), one


def _known_plates(posterior: Posterior, new_plates: str | Sequence[str]) -> tuple[str, ...]:
    named = (new_plates,) if isinstance(new_plates, str) else tuple(new_plates)
    known = {p for z in posterior.problem.graph.latents for p in z.plate_names}
    unknown = [p for p in named if p not in known]
    if unknown:
        raise QueryError(f"new_plates= names {unknown}, over which no latent runs; plates of latents: {sorted(known)}")
    return named


def _check_arguments(
    posterior: Posterior, args: tuple, kwargs: Mapping, new_plates: tuple[str, ...], observe: bool
) -> None:
    """Refuse new arguments with indices out of range and, where data are scored, NaN or impossible data."""
    model = _Condition(posterior.call.model, {}, (), observe)
    sites = inspect_sites(model, args, kwargs, posterior.params)
    read_model(model, args, kwargs, posterior.params, sites)
    for name, old in _chains(posterior).items():
        if name not in sites or {f[0] for f in old.frames} & set(new_plates):
            continue
        new = sites[name]
        if new.shape[0] < old.shape[0] or new.shape[1:] != old.shape[1:]:
            raise QueryError(
                f"time series {name!r} has shape {old.shape} in the posterior but {new.shape} under the new arguments; it may "
                "get more steps, after those of the training data, but no new elements of other plates, unless all are new "
                "(new_plates=)"
            )


def _chains(posterior: Posterior) -> dict[str, Site]:
    sites = posterior.problem.model.sites
    return {n: sites[n] for n in posterior.latent_names if sites[n].steps is not None}


def _run(
    posterior: Posterior,
    key: Any,
    values: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping,
    new_plates: tuple[str, ...],
    observe: bool,
) -> dict[str, Any]:
    chains = _chains(posterior)
    all_new = {n for n, s in chains.items() if {f[0] for f in s.frames} & set(new_plates)}
    # NumPyro itself carries on the path of a scan where the draw ends
    paths = {n: values[n] for n, s in chains.items() if not s.walk and n not in all_new}
    known = {n: values[n] for n in posterior.latent_names if n not in (paths.keys() | all_new)}
    # inside the conditioning, so that it records the draw's values
    program = handlers.trace(Given(posterior.call.model, params=posterior.params, latents=paths))
    seeded(_Condition(program, known, new_plates, observe), key)(*args, **kwargs)
    return program.trace


def _draws(posterior: Posterior, rng_key: Any, num_samples: int) -> tuple[Any, Any]:
    """Keys and posterior draws, one each a sample."""
    draw_key, run_key = jax.random.split(as_key(rng_key))
    draws = posterior.sample(draw_key, num_samples)  # first, as it refuses numbers that no memory holds
    return jax.random.split(run_key, num_samples), draws


def _over_draws(items: tuple[Any, Any], one: Callable[[Any, Mapping], dict[str, Any]]) -> dict[str, Any]:
    size = min(BATCH, items[0].shape[0])
    return jax.jit(lambda items: jax.lax.map(lambda item: one(*item), items, batch_size=size))(items)
