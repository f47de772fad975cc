"""RELAX and REBAR: score-function gradients with a learned, reparameterised control variate
(Grathwohl et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import discrete

from kayn.axes.types import proposal_name
from kayn.errors import GuideError, KaynError
from kayn.evidence.draws import Draws, draws_from_runs
from kayn.evidence.problem import Problem
from kayn.evidence.summands import Summands, log_evidence_summands, outer_plate
from kayn.evidence.weights import proposal_terms
from kayn.objectives.base import Call, MassivelyParallelELBO, along, log_evidence_of, only_gradient, sampled_axes
from kayn.objectives.relaxed import RELAXABLE, Relaxed, discrete_logits
from kayn.programs.given import Given
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.options import Particles, Strategy
from kayn.support.validate import Text, checked


class ControlVariate(MassivelyParallelELBO):
    """Minus log Z, with the gradient `[f(b) - c(z~)] grad log q(b) + grad c(z) - grad c(z~)`, f = log Z,
    unbiased for any c.

    z are logits plus Gumbel (Logistic) noise, b what they round to, and z~ the same noise drawn again given b. The
    control variate's parameters are trained on the squared gradient, one draw of which is an unbiased estimate of its
    variance up to a constant. Subclasses give c.

    Raises (from `loss`):
        GuideError: a guide site is not Bernoulli or categorical, or depends on another latent.
    """

    control_params: tuple[str, ...] = ()

    def controlled(self, call: Call, problem: Problem, params: Mapping[str, PyTree], z: Mapping[str, Array]) -> Array:
        """c at noisy logits: for every element of the outer plate, or a scalar."""
        raise NotImplementedError

    def objective(self, call: Call, rng_key: KeyArray, params: dict[str, PyTree]) -> Array:
        """Minus log Z, in nats; its gradient is the estimate, for the control variate that of the squared one.

        Raises:
            KaynError: `control_params` names what is no parameter.
            GuideError: a guide site is not Bernoulli or categorical, or depends on another latent.
        """
        missing = [n for n in self.control_params if n not in params]
        if missing:
            raise KaynError(
                f"control_params names {missing}, which are no parameters of model or guide ({sorted(params)}); "
                "register them with numpyro.param in the guide"
            )
        problem = self.problem(call, params)
        _check(problem, type(self).__name__)
        rho = {n: params[n] for n in self.control_params}
        guide = {n: v for n, v in params.items() if n not in rho}
        fixed, still, held = jax.lax.stop_gradient((params, guide, rho))
        noise = {n: x.noise(key, problem.num_runs) for (n, x), key in _keyed(_logits(call, fixed), rng_key)}
        rounded = {n: x.rounded(x.noisy(noise[n][0])) for n, x in _logits(call, fixed).items()}
        runs = {n: b.astype(problem.guide.density.sites[n].dtype) for n, b in rounded.items()}
        draws = draws_from_runs(problem, problem.numbers, fixed, runs, {})
        plate = outer_plate(problem)
        log_z = _summands(problem, draws, fixed)

        def controls(params: Mapping[str, PyTree]) -> tuple[Array, Array]:
            logits = _logits(call, params)
            z = {n: x.noisy(noise[n][0]) for n, x in logits.items()}
            again = {n: x.again(noise[n][1], rounded[n]) for n, x in logits.items()}
            return tuple(self.controlled(call, problem, params, v) for v in (z, again))

        def surrogate(guide: Mapping[str, PyTree], rho: Mapping[str, PyTree]) -> Array:
            """Its gradient in the first argument is the estimate of that of log Z."""
            every = {**guide, **held}
            terms = proposal_terms(problem, problem.numbers, draws, every)
            score = sum(along(-terms[proposal_name(a)], a, plate) for a in sampled_axes(problem))
            on_z, on_again = controls({**guide, **rho})
            coefficient = log_z.parts - controls({**still, **rho})[1]
            steered = log_z.scale * jnp.sum(coefficient * score + on_z - on_again)
            return steered + log_evidence_of(problem, draws, every, terms)

        # one gradient for both: the guide's own, and what the control variate makes small
        gradient = jax.grad(surrogate)(still, rho)
        moved = zip(jax.tree.leaves(gradient), jax.tree.leaves(guide), strict=True)
        steered = sum(jnp.sum(jax.lax.stop_gradient(g) * p) for g, p in moved)
        squared = sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))
        return -log_z.total - only_gradient(steered) + only_gradient(squared)


class RELAX(ControlVariate):
    """Minus log Z, with a score-function gradient and a control variate of yours; unbiased, see `ControlVariate`.

    Args:
        control: c, a function `(params, z, *args, **kwargs)` of the model's arguments; z is a dictionary by site of
            noisy logits [K, *shape] (Bernoulli) or [K, *shape, C] (categorical). Returns one number for every element
            of the outer plate if every latent has one, else a scalar.
        control_params: names of the parameters that `control` uses; register them with `numpyro.param` in the guide.

    Raises (from `loss`):
        GuideError: a guide site is not Bernoulli or categorical, or depends on another latent.
    """

    @checked()
    def __init__(
        self,
        num_particles: Particles = 10,
        strategy: Strategy = "parallel",
        *,
        control: Callable[..., Any],
        control_params: Sequence[Text],
        **options: Any,
    ):
        super().__init__(num_particles, strategy, **options)
        self.control, self.control_params = control, tuple(control_params)

    def controlled(self, call: Call, problem: Problem, params: Mapping[str, PyTree], z: Mapping[str, Array]) -> Array:
        """The user's function of noisy logits `z`, by site [K, *shape] or [K, *shape, C]; a scalar or [outer plate]."""
        return self.control(params, z, *call.args, **call.kwargs)


SCALE, TEMPERATURE = "rebar_scale", "rebar_temperature"


class REBAR(ControlVariate):
    """As `kayn.RELAX`, with the objective itself at relaxed latents as control variate,
    `scale * log Z(softmax(z / temperature))` (Tucker et al., NeurIPS 2017).

    The densities of model and guide are those of the discrete latents, taken linearly at relaxed values. Scale and
    temperature are trained: register `numpyro.param("rebar_scale", 1.0)` and
    `numpyro.param("rebar_temperature", 0.5, constraint=constraints.positive)` in the guide. In the model, write
    `kayn.lookup(table, z)` instead of `table[z]`.
    """

    control_params = (SCALE, TEMPERATURE)

    def controlled(self, call: Call, problem: Problem, params: Mapping[str, PyTree], z: Mapping[str, Array]) -> Array:
        """`scale` times the parts of log Z at the relaxed latents `softmax(z / temperature)`: a scalar or [outer
        plate]."""
        still = jax.lax.stop_gradient(dict(params))
        soft = replace(call, model=Relaxed(call.model, 1.0, True), guide=Relaxed(call.guide, 1.0, True))
        relaxed = self.problem(soft, still)
        # one more dimension than the integers have stands for categories
        shares = {
            n: jax.nn.softmax(v / params[TEMPERATURE], -1)
            if v.ndim > 1 + len(problem.guide.density.sites[n].shape)
            else jax.nn.sigmoid(v / params[TEMPERATURE])
            for n, v in z.items()
        }
        draws = draws_from_runs(relaxed, relaxed.numbers, still, shares, {})
        return params[SCALE] * _summands(relaxed, draws, still).parts


def _check(problem: Problem, who: str) -> None:
    subsampled = [*problem.model.subsamples, *problem.guide.density.subsamples]
    if subsampled:
        raise KaynError(
            f"kayn.{who} does not draw minibatches itself, but plate {subsampled[0]!r} is subsampled; pass the "
            "minibatch as data in a plate of its size, or use kayn.VIMCO, kayn.Reinforce or kayn.RWS"
        )
    for name, site in problem.guide.density.sites.items():
        if site.kind != "sample" or site.observed:
            continue
        if not site.follows(*RELAXABLE):
            raise GuideError(
                f"kayn.{who} needs Bernoulli and categorical guide sites, but {name!r} is a {site.family}; use "
                "kayn.VIMCO or kayn.RWS"
            )
        if problem.guide.parents[name]:
            raise GuideError(
                f"kayn.{who} needs guide sites that do not depend on each other, but {name!r} is drawn given "
                f"{problem.guide.parents[name][0]!r}; use kayn.VIMCO or kayn.RWS"
            )


def _summands(problem: Problem, draws: Draws, params: Mapping[str, PyTree]) -> Summands:
    terms = proposal_terms(problem, problem.numbers, draws, params)
    return log_evidence_summands(problem, problem.numbers, draws, params, terms)


@dataclass(frozen=True)
class _Logits:
    """Logits of one site: [*shape] of a Bernoulli, [*shape, C] and normalised of a categorical one.

    Formulas: Grathwohl et al. (2018), appendix; Tucker et al. (REBAR, 2017).
    """

    values: Array
    categorical: bool

    def noise(self, key: KeyArray, count: int) -> tuple[Array, Array]:
        """Two sets of uniform numbers for K particles, never zero or one."""
        x = self.values
        low, high = float(jnp.finfo(x.dtype).tiny), 1 - float(jnp.finfo(x.dtype).eps)
        first, second = (jax.random.uniform(k, (count, *x.shape), x.dtype, low, high) for k in jax.random.split(key))
        return first, second

    def noisy(self, u: Array) -> Array:
        """z: logits and Gumbel (categorical) or Logistic (Bernoulli) noise."""
        return self.values + (-jnp.log(-jnp.log(u)) if self.categorical else jnp.log(u) - jnp.log1p(-u))

    def rounded(self, z: Array) -> Array:
        """b: what z stands for, integers without the dimension of categories."""
        return jnp.argmax(z, -1) if self.categorical else (z > 0).astype(int)

    def again(self, v: Array, b: Array) -> Array:
        """z~: drawn from the law of z given b."""
        if not self.categorical:
            off, tiny = jax.nn.sigmoid(-self.values), float(jnp.finfo(v.dtype).tiny)
            u = jnp.where(b == 1, off + v * (1 - off), v * off)
            u = jnp.clip(u, tiny, 1 - float(jnp.finfo(v.dtype).eps))
            return self.values + jnp.log(u) - jnp.log1p(-u)
        chosen = jax.nn.one_hot(b, v.shape[-1], dtype=bool)
        top = -jnp.log(jnp.sum(jnp.where(chosen, v, 0), -1, keepdims=True))
        others = -jnp.log(-jnp.log(v) / jnp.exp(self.values) + top)
        return jnp.where(chosen, -jnp.log(top), others)


def _keyed(logits: Mapping[str, _Logits], key: KeyArray) -> list[tuple[tuple[str, _Logits], KeyArray]]:
    return list(zip(sorted(logits.items()), jax.random.split(key, len(logits)), strict=True))


def _logits(call: Call, params: Mapping[str, PyTree]) -> dict[str, _Logits]:
    """Logits of every guide site under given parameters."""
    guide = handlers.seed(Given(call.guide, params=params), jax.random.key(0))
    out = {}
    for name, site in handlers.trace(guide).get_trace(*call.args, **call.kwargs).items():
        if site["type"] == "sample" and not site["is_observed"]:
            fn, shape = site["fn"], jnp.shape(site["value"])
            while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
                fn = fn.base_dist
            values = discrete_logits(fn)
            assert values is not None, "_check refuses other families"
            if isinstance(fn, discrete.CategoricalProbs | discrete.CategoricalLogits):
                values = jnp.broadcast_to(values, (*shape, values.shape[-1]))
                out[name] = _Logits(jax.nn.log_softmax(values, -1), True)
            else:
                out[name] = _Logits(jnp.broadcast_to(values, shape), False)
    return out
