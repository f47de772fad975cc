"""Meters for training: log evidence with very many particles, noise of gradients, active units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from numpyro import handlers
from numpyro.infer.util import compute_log_probs

from kayn.axes.request import make_request
from kayn.errors import KaynError
from kayn.evidence.draws import draw_particles
from kayn.evidence.fixed_rows import fixed_rows_of
from kayn.evidence.problem import Problem, build_problem
from kayn.evidence.soundness import warn_of_factors
from kayn.evidence.summands import log_evidence_summands, outer_plate
from kayn.evidence.weights import proposal_terms
from kayn.programs.given import Given
from kayn.programs.roles import Fixed
from kayn.programs.seeding import seeded
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.keys import as_key
from kayn.support.memory import refuse_too_many
from kayn.support.options import Guide, Key, Loss, Model, Params, Strategy
from kayn.support.validate import Count, NonNegative, checked, parameter_values, shown
from kayn.xla.fingerprint import fingerprint


@dataclass(frozen=True)
class Evidence:
    """Log evidence under a trained model and guide, in nats.

    Attributes:
        total: over all data, with all particles: `scale * by_element.sum() + rest`.
        by_element: its summands by the elements of the outer plate, e.g. one for each image; None where there is none.
        scale: how many elements each of these stands for; above one where the plate is subsampled.
        rest: log density of data that belong to no element. Zero without an outer plate.
        curve: the mean total that fewer particles would give, by their number: disjoint sets of the same particles.
    """

    total: float
    by_element: Array
    curve: Mapping[int, float]
    scale: float = 1.0
    rest: float = 0.0


@checked()
def log_evidence(
    model: Model,
    guide: Guide,
    params: Params,
    *args: Any,
    num_particles: Count = 1000,
    chunk: Count = 100,
    rng_key: Key = 0,
    strategy: Strategy = "local",
    **kwargs: Any,
) -> Evidence:
    """Log evidence of (held-out) data by importance weighting with many particles, a chunk at a time.

    Args:
        params: values of `numpyro.param` sites of model and guide.
        args, kwargs: arguments of the model.
        num_particles: K in all, rounded up to whole chunks; memory grows with `chunk` only.
        strategy: as in `kayn.Importance`; "local" gives every element of the outer plate weights of its own.

    The estimate of each summand is a lower bound on average, which tightens with K
    (Burda, Grosse & Salakhutdinov, 2016).
    """
    meter = evidence_meter(
        model, guide, params, *args, num_particles=num_particles, chunk=chunk, strategy=strategy, **kwargs
    )
    return meter(params, rng_key)


@checked()
def evidence_meter(
    model: Model,
    guide: Guide,
    params: Params,
    *args: Any,
    num_particles: Count = 1000,
    chunk: Count = 100,
    strategy: Strategy = "local",
    **kwargs: Any,
) -> Callable[..., Evidence]:
    """`log_evidence` to be called many times, `(params, rng_key, *args) -> Evidence`, compiled once.

    Without arguments of the model, the meter takes those given here. With others of the same shapes, such as the next
    batch of test data, it reads the model again without compiling it again.

    Args:
        params: any values of the parameters; the meter takes others of the same shapes.
    """
    chunk = min(chunk, num_particles)
    count = -(-num_particles // chunk)
    # the bound that the losses ascend, at other numbers of particles
    request = make_request(chunk, strategy, draws="independent")

    def read(args: tuple, kwargs: Mapping[str, Any]) -> Problem:
        return build_problem(model, guide, args, kwargs, parameter_values(params), request)

    problem = read(args, kwargs)
    plate = outer_plate(problem)
    scale = problem.graph.plate(plate).scale if plate else 1.0

    elements = problem.graph.plate(plate).size if plate else 1
    refuse_too_many("num_particles", num_particles, (4 + 2 * elements) / chunk)

    def one(numbers: PyTree, params: PyTree, key: KeyArray, rows_key: KeyArray) -> tuple[Array, Array, Array]:
        draws = draw_particles(problem, numbers, key, params, rows_key)
        terms = proposal_terms(problem, numbers, draws, params)
        found = log_evidence_summands(problem, numbers, draws, params, terms)
        return jnp.atleast_1d(found.parts), found.rest, found.unsound

    @jax.jit
    def run(numbers: PyTree, params: PyTree, keys: KeyArray) -> tuple[Array, Array, Array]:
        # all chunks on the same rows: particles of one row are not averaged with another's
        return jax.lax.map(lambda k: one(numbers, params, k, jax.random.fold_in(keys[0], 1)), keys)

    def meter(params: Mapping[str, PyTree], rng_key: Any, *others: Any, **named: Any) -> Evidence:
        now = read(others, named) if others or named else problem
        if now is not problem and _program(now) != _program(problem):
            settings: dict[str, Any] = {"num_particles": num_particles, "chunk": chunk, "strategy": strategy}
            return log_evidence(model, guide, params, *others, rng_key=rng_key, **settings, **named)
        keys = jax.random.split(as_key(rng_key), count)
        *found, unsound = run(now.numbers, parameter_values(params), keys)
        warn_of_factors(unsound, "the particles")
        logs, rests = (np.asarray(x, np.float64) for x in found)
        rest = float(rests[0])  # no particle is in it
        whole = _pooled(logs, count)[0]
        curve = {g * chunk: scale * float(_pooled(logs, g).sum(1).mean()) + rest for g in _groups(count)}
        return Evidence(scale * float(whole.sum()) + rest, whole if plate else None, curve, scale, rest)

    return meter


def _groups(count: int) -> list[int]:
    """1, 2, 4, ... chunks at a time, and all of them."""
    return [*(2**i for i in range(count.bit_length()) if 2**i < count), count]


def _program(problem: Problem) -> Any:
    """What two problems have in common if the program compiled for one computes the other: equations, layout,
    shapes of arrays."""
    shapes = jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), problem.numbers)
    programs = (problem.model, problem.guide.density)
    equations = [fingerprint(ClosedJaxpr(p.jaxpr, p.consts)).digest for p in programs]
    return equations, problem.layout, shapes


def _pooled(logs: np.ndarray, group: int) -> np.ndarray:
    """Log means over disjoint groups of chunks: [groups, elements]."""
    count = logs.shape[0] // group
    parts = logs[: count * group].reshape(count, group, -1)
    return np.logaddexp.reduce(parts, axis=1) - np.log(group)


@dataclass(frozen=True)
class Noise:
    """Mean and standard deviation of a gradient estimate, and the mean over parameters of |mean| / sd."""

    mean: Mapping[str, Array]
    sd: Mapping[str, Array]
    signal_to_noise: Mapping[str, float]


@checked()
def gradient_noise(
    loss: Loss,
    model: Model,
    guide: Guide,
    params: Params,
    *args: Any,
    num_draws: Count = 100,
    rng_key: Key = 0,
    **kwargs: Any,
) -> Noise:
    """How noisy a loss's gradient is at given parameters, from independent draws on the same data.

    The signal-to-noise ratio is that of Rainforth et al., Tighter variational bounds are not necessarily better
    (ICML 2018), by parameter.
    """
    params = parameter_values(params)

    def gradient(params: PyTree, key: KeyArray) -> PyTree:
        return jax.grad(lambda p: loss.loss_with_mutable_state(key, p, model, guide, *args, **kwargs)["loss"])(params)

    refuse_too_many("num_draws", num_draws, 4 + sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(params)))
    keys = jax.random.split(as_key(rng_key), num_draws)
    found = jax.jit(lambda params, keys: jax.lax.map(lambda k: gradient(params, k), keys))(params, keys)
    mean = {n: jnp.mean(g, 0) for n, g in found.items()}
    sd = {n: jnp.std(g, 0, ddof=1) for n, g in found.items()}
    ratio = {n: float(jnp.mean(jnp.abs(mean[n]) / jnp.maximum(sd[n], jnp.finfo(sd[n].dtype).tiny))) for n in mean}
    return Noise(mean, sd, ratio)


@checked()
def active_units(means: Any, threshold: NonNegative = 0.01) -> int:
    """How many coordinates of an amortised posterior depend on the data:
    variance of E_q[z | x] over x above a threshold.

    Args:
        means: [N, D], posterior means of the D coordinates for N data (Burda, Grosse & Salakhutdinov, 2016).

    Raises:
        KaynError: means are no array of finite numbers with two dimensions.
    """
    try:
        array = np.asarray(means, float)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise KaynError(f"means is {shown(means)}; it must be an array of finite numbers, [N, D]")
    return int(np.sum(np.var(array, axis=0) > threshold))


@dataclass(frozen=True)
class Layers:
    """Entropy of the guide and its divergence from the model by latent, in nats, averaged over draws from the guide.

    Attributes:
        entropy: `-E log q(z_i | its guide parents)`, by latent.
        divergence: `E log q(z_i | ...) - log p(z_i | its model parents)`, by latent: what it costs to say which z_i.
        likelihood: `E log p(x | z)` of all observed sites.
    """

    entropy: Mapping[str, float]
    divergence: Mapping[str, float]
    likelihood: float

    @property
    def elbo(self) -> float:
        """The bound with one particle: the likelihood less all divergences."""
        return self.likelihood - sum(self.divergence.values())

    def gap(self, log_evidence: float) -> float:
        """KL(q, p(z | x)), given a log evidence; a lower bound on it where that was estimated with few particles."""
        return log_evidence - self.elbo


@checked()
def layers(
    model: Model,
    guide: Guide,
    params: Params,
    *args: Any,
    num_draws: Count = 100,
    rng_key: Key = 0,
    **kwargs: Any,
) -> Layers:
    """Where a guide spends its nats, latent by latent, over all data (plate scales included).

    Args:
        params: values of `numpyro.param` sites of model and guide.
        args, kwargs: arguments of the model.
    """
    params = parameter_values(params)
    rows = fixed_rows_of(model, guide, args, kwargs, params, as_key(rng_key))

    def one(key: KeyArray) -> tuple[dict[str, Array], dict[str, Array]]:
        inner, outer = jax.random.split(key)
        log_q, drawn = compute_log_probs(
            Given(seeded(Fixed(guide), inner), params=params, subsample=rows), args, kwargs, {}
        )
        draws = {n: s for n, s in drawn.items() if s["type"] in ("sample", "plate") and not s.get("is_observed")}
        again = handlers.seed(handlers.replay(model, draws), outer)
        log_p, _ = compute_log_probs(Given(again, params=params), args, kwargs, {})
        return {n: v for n, v in log_q.items() if n in log_p and n in draws}, log_p

    refuse_too_many("num_draws", num_draws, 20)
    keys = jax.random.split(as_key(rng_key), num_draws)
    q, p = jax.tree.map(lambda x: float(jnp.mean(x)), jax.jit(lambda keys: jax.lax.map(one, keys))(keys))
    return Layers(
        {n: -v for n, v in q.items()}, {n: v - p[n] for n, v in q.items()}, sum(p[n] for n in p if n not in q)
    )
