"""Losses of enumerated latents and their gradients beside exact sums, after NumPyro's tests of `TraceEnum_ELBO`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.ops.indexing import Vindex
from scipy import stats
from scipy.special import log_softmax, logsumexp

import kayn
from experiments.peers.cases import case, gradient, states

MARK = {"enumerate": "parallel"}


def bernoulli(logits: Any, value: Any) -> Any:
    return value * logits - np.logaddexp(0, logits)


def summed_out(*sizes: int, of: Callable) -> Callable:
    """Minus the log of the sum over all combinations of discrete values."""
    return lambda p: -logsumexp([of(p, *values) for values in states(*sizes)])


def bound(*sizes: int, p: Callable, q: Callable) -> Callable:
    """Minus the expected log ratio, under the guide, over all combinations of discrete values."""

    def loss(params: Any) -> Any:
        terms = [(q(params, *v), p(params, *v)) for v in states(*sizes)]
        return sum(np.exp(lq) * (lq - lp) for lq, lp in terms)

    return loss


def bound_of_two(*sizes: int, p: Callable, q: Callable) -> Callable:
    """The same with two particles of each latent, weighed in all combinations; the guide's sites are independent:
    q gives one term a latent."""
    values = states(*sizes)

    def loss(params: Any) -> Any:
        log_p = np.array([p(params, *v) for v in values]).reshape(sizes)
        log_q = [np.array([q(params, i, v) for v in range(size)]) for i, size in enumerate(sizes)]
        total = 0.0
        for draws in states(*[s for s in sizes for _ in range(2)]):
            pairs = draws.reshape(len(sizes), 2)
            chance = np.exp(sum(lq[pair].sum() for lq, pair in zip(log_q, pairs, strict=True)))
            ratio = log_p[np.ix_(*pairs)] - sum(
                lq[pair].reshape([2 if i == j else 1 for j in range(len(sizes))])
                for i, (lq, pair) in enumerate(zip(log_q, pairs, strict=True))
            )
            total -= chance * (logsumexp(ratio) - len(sizes) * np.log(2))
        return total

    return loss


def no_guide(*_: Any) -> None:
    """Everything is enumerated in the model."""


OUTER, INNER = 0.8, np.array([0.5, 1.5])


@case("test_enum_elbo.py (plate 4: one latent outside of a plate and one within)", quick=True)
def loss_of_enumerated_latents_in_and_out_of_a_plate() -> Any:
    def model() -> None:
        u, v = numpyro.param("u", jnp.array([0.3, -0.2])), numpyro.param("v", jnp.array([-0.4, 0.6]))
        locs, scales = numpyro.param("locs", jnp.array([-1.0, 1.0])), jnp.array([1.0, 2.0])
        a = numpyro.sample("a", dist.Categorical(logits=u), infer=MARK)
        numpyro.sample("outer", dist.Normal(0.0, scales[a]), obs=OUTER)
        with numpyro.plate("inner", 2):
            b = numpyro.sample("b", dist.Categorical(logits=v), infer=MARK)
            numpyro.sample("x", dist.Normal(locs[b], scales[a]), obs=INNER)

    def log_joint(p: Any, a: int, *b: int) -> float:
        found = log_softmax(p["u"])[a] + stats.norm.logpdf(OUTER, 0, 1 + a)
        return found + sum(
            log_softmax(p["v"])[j] + stats.norm.logpdf(x, p["locs"][j], 1 + a) for j, x in zip(b, INNER, strict=True)
        )

    return gradient(kayn.VI(1), model, no_guide, (), summed_out(2, 2, 2, of=log_joint), draws=2)


@case("test_enum_elbo.py (scaled)", quick=True)
def loss_of_scaled_enumerated_latents() -> Any:
    @handlers.scale(scale=3.0)
    def model() -> None:
        u, locs = numpyro.param("u", jnp.array([0.3, -0.2])), numpyro.param("locs", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", 2):
            a = numpyro.sample("a", dist.Categorical(logits=u), infer=MARK)
            numpyro.sample("x", dist.Normal(locs[a], 1.0), obs=INNER)

    def exact(p: Any) -> float:
        # the density to the power of 3, as `log_density` has it;
        # `TraceEnum_ELBO` takes 3 times the log of the plain sum
        prior = log_softmax(p["u"])
        return -sum(logsumexp(3 * (prior + stats.norm.logpdf(x, p["locs"], 1))) for x in INNER)

    return gradient(kayn.VI(1), model, no_guide, (), exact, draws=2)


@case("test_enum_elbo.py (masked)", quick=True)
def loss_of_masked_enumerated_latents() -> Any:
    def model() -> None:
        u, t = numpyro.param("u", jnp.array([0.3, -0.2])), numpyro.param("t", jnp.array([[0.5, -0.5], [0.1, 0.9]]))
        with numpyro.plate("data", 3), handlers.mask(mask=jnp.arange(3) < 2):
            a = numpyro.sample("a", dist.Categorical(logits=u), infer=MARK)
            b = numpyro.sample("b", dist.Categorical(logits=t[a]), infer=MARK)
            numpyro.sample("x", dist.Normal(2.0 * b, 1.0), obs=jnp.array([0.5, 1.5, 9.0]))

    def exact(p: Any) -> float:
        table = log_softmax(p["u"])[:, None] + log_softmax(p["t"], -1)
        return -sum(logsumexp(table + stats.norm.logpdf(x, [0.0, 2.0], 1)) for x in INNER)

    return gradient(kayn.VI(1), model, no_guide, (), exact, draws=2)


@case("test_enum_elbo.py (nested and crossed plates)")
def loss_of_enumerated_latents_in_crossed_plates() -> Any:
    data = np.array([[0.3, -0.8], [1.6, 0.9], [0.1, 2.0]])

    def model() -> None:
        u, v = numpyro.param("u", jnp.array([0.3, -0.2])), numpyro.param("v", jnp.array([-0.4, 0.6]))
        w = numpyro.param("w", jnp.array([0.2, 0.7]))
        a = numpyro.sample("a", dist.Categorical(logits=u), infer=MARK)
        rows, columns = numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 2, dim=-1)
        with rows:
            b = numpyro.sample("b", dist.Categorical(logits=v * (1.0 + a)), infer=MARK)
        with rows, columns:
            c = numpyro.sample("c", dist.Categorical(logits=w * (1.0 + b[..., None])), infer=MARK)
            numpyro.sample("x", dist.Normal(a + 1.0 * b - 2.0 * c, 1.0), obs=data)

    def exact(p: Any) -> float:
        of_a = []
        for a in range(2):
            total = log_softmax(p["u"])[a]
            for row in data:
                by_b = [
                    log_softmax(p["v"] * (1 + a))[b]
                    + sum(
                        logsumexp(log_softmax(p["w"] * (1 + b)) + stats.norm.logpdf(x, a + b - 2 * np.arange(2), 1))
                        for x in row
                    )
                    for b in range(2)
                ]
                total += logsumexp(by_b)
            of_a.append(total)
        return -logsumexp(of_a)

    return gradient(kayn.VI(1), model, no_guide, (), exact, draws=2)


@case("test_enum_elbo.py (unrolled chains of order two)")
def loss_of_enumerated_chains_of_second_order() -> Any:
    y = np.array([0.4, 1.3, -0.2, 0.9])

    def model() -> None:
        t = numpyro.param("t", jnp.array([[[0.5, -0.5], [0.1, 0.9]], [[-0.3, 0.2], [0.7, 0.0]]]))
        before, last = 0, 0
        for i, now in enumerate(y):
            x = numpyro.sample(f"x_{i}", dist.Categorical(logits=Vindex(t)[before, last]), infer=MARK)
            numpyro.sample(f"y_{i}", dist.Normal(2.0 * x, 1.0), obs=now)
            before, last = last, x

    def log_joint(p: Any, *x: int) -> float:
        path = (0, 0, *x)
        moves = sum(log_softmax(p["t"][path[i], path[i + 1]])[path[i + 2]] for i in range(4))
        return moves + stats.norm.logpdf(y, 2.0 * np.array(x), 1).sum()

    return gradient(kayn.VI(1), model, no_guide, (), summed_out(2, 2, 2, 2, of=log_joint), draws=2)


@case("test_enum_elbo.py (guide's latent beside the model's, plate 7)", quick=True)
def loss_of_a_drawn_latent_beside_enumerated_ones() -> Any:
    def model() -> None:
        u, v = numpyro.param("u", jnp.array(0.4)), numpyro.param("v", jnp.array([-0.4, 0.6]))
        a = numpyro.sample("a", dist.Bernoulli(logits=u))
        b = numpyro.sample("b", dist.Bernoulli(logits=v[a]), infer=MARK)
        with numpyro.plate("data", 2):
            d = numpyro.sample("d", dist.Bernoulli(logits=1.0 * b - 0.3 + 0.4 * a), infer=MARK)
            numpyro.sample("x", dist.Normal(d - 1.0 * a, 1.0), obs=INNER)

    def guide() -> None:
        numpyro.sample("a", dist.Bernoulli(logits=numpyro.param("g", jnp.array(-0.5))))

    def log_p(p: Any, a: int) -> float:
        by_b = []
        for b in range(2):
            total = bernoulli(p["v"][a], b)
            for x in INNER:
                total += logsumexp([bernoulli(b - 0.3 + 0.4 * a, d) + stats.norm.logpdf(x, d - a, 1) for d in range(2)])
            by_b.append(total)
        return bernoulli(p["u"], a) + logsumexp(by_b)

    exact = bound(2, p=log_p, q=lambda p, a: bernoulli(p["g"], a))
    return gradient(kayn.Reinforce(1), model, guide, (), exact, draws=20_000)
