"""Mixtures and models of annotation, whose Dirichlet and Beta latents integrate away given the discrete ones,
after NumPyro's examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam
from numpyro.ops.indexing import Vindex
from scipy import stats
from scipy.special import gammaln, logsumexp

from experiments.peers.cases import Exact, case, compare, fitted, hermite, nodes, nuts, states

LABELS = np.array([[0, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1], [1, 1, 1]])
"""Five items, each labelled by three annotators."""
ITEMS, WORKERS = LABELS.shape
WHO = np.arange(WORKERS)


def dirichlet(counts: Any, prior: Any) -> Any:
    """Log probability of a sequence with these counts, its probabilities integrated away: over the last axis."""
    counts, prior = np.asarray(counts, float), np.broadcast_to(prior, np.shape(counts)).astype(float)
    whole = gammaln(prior.sum(-1)) - gammaln((prior + counts).sum(-1))
    return whole + (gammaln(prior + counts) - gammaln(prior)).sum(-1)


def tables(of: Any, given: Any, sizes: tuple[int, int]) -> np.ndarray:
    """How often each value goes with each class: [classes, values]"""
    found = np.zeros(sizes)
    np.add.at(found, (np.ravel(given), np.ravel(of)), 1)
    return found


def by_classes(log_joint: Any, combinations: np.ndarray) -> tuple[float, np.ndarray]:
    """Log evidence, and the mean of every discrete latent."""
    terms = np.array([log_joint(c) for c in combinations])
    log_z = logsumexp(terms)
    return float(log_z), np.exp(terms - log_z) @ combinations


@case("examples/annotation.py (multinomial)", quick=True)
def annotators_as_one() -> Any:
    def model(labels: Any) -> None:
        with numpyro.plate("class", 2):
            zeta = numpyro.sample("zeta", dist.Dirichlet(jnp.array([1.0, 2.0])))
        pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(2)))
        with numpyro.plate("item", ITEMS, dim=-2):
            c = numpyro.sample("c", dist.Categorical(pi), infer={"enumerate": "parallel"})
            with numpyro.plate("position", WORKERS):
                numpyro.sample("y", dist.Categorical(zeta[c]), obs=labels)

    def log_joint(c: Any) -> float:
        given = np.repeat(c[:, None], WORKERS, 1)
        return dirichlet(np.bincount(c, minlength=2), 1) + dirichlet(tables(LABELS, given, (2, 2)), [1, 2]).sum()

    log_z, means = by_classes(log_joint, states(*[2] * ITEMS))
    return compare(fitted(model, LABELS), log_z, c=(means[:, None], None))


def dawid_skene(labels: Any, mark: Any = None) -> None:
    with numpyro.plate("annotator", WORKERS, dim=-2), numpyro.plate("class", 2):
        beta = numpyro.sample("beta", dist.Dirichlet(jnp.array([1.0, 2.0])))
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("item", ITEMS, dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer=mark or {})
        with numpyro.plate("position", WORKERS):
            numpyro.sample("y", dist.Categorical(Vindex(beta)[WHO, c, :]), obs=labels)


def dawid_skene_exactly() -> tuple[float, np.ndarray]:
    def log_joint(c: Any) -> float:
        by_worker = sum(dirichlet(tables(LABELS[:, w], c, (2, 2)), [1, 2]).sum() for w in WHO)
        return dirichlet(np.bincount(c, minlength=2), 1) + by_worker

    return by_classes(log_joint, states(*[2] * ITEMS))


@case("examples/annotation.py (Dawid-Skene)")
def annotators_with_confusions() -> Any:
    log_z, means = dawid_skene_exactly()
    posterior = fitted(lambda y: dawid_skene(y, {"enumerate": "parallel"}), LABELS, count=10, replicates=1000)
    return compare(posterior, log_z, c=(means[:, None], None))


@case("examples/annotation.py (Dawid-Skene, labels sampled)")
def annotators_with_confusions_and_sampled_labels() -> Any:
    log_z, means = dawid_skene_exactly()
    return compare(fitted(dawid_skene, LABELS, count=10, replicates=1000), log_z, c=(means[:, None], None))


@case("examples/annotation.py (MACE)")
def annotators_who_may_be_spammers() -> Any:
    labels = LABELS[:4, :2]

    def model(labels: Any) -> None:
        with numpyro.plate("annotator", 2):
            epsilon = numpyro.sample("epsilon", dist.Dirichlet(jnp.full(2, 3.0)))
            theta = numpyro.sample("theta", dist.Beta(2.0, 2.0))
        with numpyro.plate("item", 4, dim=-2):
            c = numpyro.sample("c", dist.Categorical(logits=jnp.zeros(2)), infer={"enumerate": "parallel"})
            with numpyro.plate("position", 2):
                s = numpyro.sample("s", dist.Bernoulli(1 - theta[WHO[:2]]), infer={"enumerate": "parallel"})
                probs = jnp.where(s[..., None] == 0, jax.nn.one_hot(c, 2), epsilon[WHO[:2]])
                numpyro.sample("y", dist.Categorical(probs), obs=labels)

    def log_joint(values: Any) -> float:
        c, s = values[:4], values[4:].reshape(4, 2)
        if ((s == 0) & (labels != c[:, None])).any():
            return -np.inf
        total = -4 * np.log(2.0)
        for w in range(2):
            spam = s[:, w] == 1
            total += dirichlet([(s[:, w] == 0).sum(), spam.sum()], 2) + dirichlet(
                np.bincount(labels[spam, w], minlength=2), 3
            )
        return total

    log_z, means = by_classes(log_joint, states(*[2] * 12))
    right = {"c": (means[:4, None], None), "s": (means[4:].reshape(4, 2), None)}
    return compare(fitted(model, labels), log_z, **right)


@case("examples/annotation.py (hierarchical Dawid-Skene)")
def annotators_with_a_population() -> Any:
    def model(labels: Any) -> None:
        with numpyro.plate("class", 2):
            zeta = numpyro.sample("zeta", dist.Normal(jnp.array([-1.0, 1.0]), 0.5))
            omega = numpyro.sample("omega", dist.HalfNormal(1.0))
        offsets = handlers.reparam(config={"beta": LocScaleReparam(0)})
        with numpyro.plate("annotator", WORKERS, dim=-2), numpyro.plate("class", 2), offsets:
            beta = numpyro.sample("beta", dist.Normal(zeta, omega))
        pi = numpyro.sample("pi", dist.Beta(1.0, 1.0))
        with numpyro.plate("item", ITEMS, dim=-2):
            c = numpyro.sample("c", dist.Bernoulli(pi), infer={"enumerate": "parallel"})
            with numpyro.plate("position", WORKERS):
                numpyro.sample("y", dist.Bernoulli(logits=Vindex(beta)[WHO, c]), obs=labels)

    (z, wz), (o, wo), (t, log_t) = nodes(-3.5, 3.5, 60), nodes(0, 4.5, 40), hermite()
    b = z[:, None, None] + o[:, None] * t  # [zeta, omega, beta]
    hyper = stats.halfnorm.logpdf(o) + np.log(wo)

    def of_class(k: int, c: Any) -> float:
        mine = LABELS[c == k]
        likely = 0.0
        for w in WHO:
            ones, count = mine[:, w].sum(), len(mine)
            likely = likely + logsumexp(log_t + ones * b - count * np.logaddexp(0, b), axis=-1)
        prior = stats.norm.logpdf(z, [-1.0, 1.0][k], 0.5) + np.log(wz)
        return float(logsumexp(likely + prior[:, None] + hyper))

    def log_joint(c: Any) -> float:
        return dirichlet(np.bincount(c, minlength=2), 1) + of_class(0, c) + of_class(1, c)

    log_z, means = by_classes(log_joint, states(*[2] * ITEMS))
    posterior = fitted(model, LABELS, count=10, replicates=500)
    return compare(posterior, log_z, c=(means[:, None], None))


@case("examples/annotation.py (item difficulty)")
def items_of_different_difficulty() -> Any:
    def model(labels: Any) -> None:
        with numpyro.plate("class", 2):
            eta = numpyro.sample("eta", dist.Normal(jnp.array([-1.0, 1.0]), 1.0))
        with numpyro.plate("item", ITEMS, dim=-2):
            c = numpyro.sample("c", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
            theta = numpyro.sample("theta", dist.Normal(eta[c], 0.7))
            with numpyro.plate("position", WORKERS):
                numpyro.sample("y", dist.Bernoulli(logits=theta), obs=labels)

    (e, we), (t, wt) = nodes(-6, 6, 100), nodes(-9, 9, 120)
    ones = LABELS.sum(1)
    # of every number of ones: [4, eta]
    item = logsumexp(
        stats.norm.logpdf(t, e[:, None], 0.7)
        + np.log(wt)
        + np.arange(4)[:, None, None] * t
        - WORKERS * np.logaddexp(0, t),
        axis=-1,
    )

    def log_joint(c: Any) -> float:
        total = np.log(np.where(c, 0.4, 0.6)).sum()
        for k, centre in enumerate((-1.0, 1.0)):
            total += logsumexp(stats.norm.logpdf(e, centre) + np.log(we) + item[ones[c == k]].sum(0))
        return float(total)

    log_z, means = by_classes(log_joint, states(*[2] * ITEMS))
    return compare(fitted(model, LABELS), log_z, c=(means[:, None], None))


@case("examples/annotation.py (logistic random effects)")
def annotators_and_items_with_effects() -> Any:
    def model(labels: Any) -> None:
        with numpyro.plate("annotator", WORKERS, dim=-2), numpyro.plate("class", 2):
            beta = numpyro.sample("beta", dist.Normal(jnp.array([-1.0, 1.0]), 1.0))
        with numpyro.plate("class", 2):
            chi = numpyro.sample("chi", dist.HalfNormal(1.0))
        with numpyro.plate("item", ITEMS, dim=-2):
            c = numpyro.sample("c", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
            with handlers.reparam(config={"theta": LocScaleReparam(0)}):
                theta = numpyro.sample("theta", dist.Normal(0, chi[c]))
            with numpyro.plate("position", WORKERS):
                numpyro.sample("y", dist.Bernoulli(logits=Vindex(beta)[WHO, c] - theta), obs=labels)

    def summed(labels: Any) -> None:
        """The classes summed out by hand, for NumPyro's sampler."""
        beta = numpyro.sample("beta", dist.Normal(jnp.array([-1.0, 1.0]), 1.0).expand([WORKERS, 2]))
        chi = numpyro.sample("chi", dist.HalfNormal(1.0).expand([2]))
        offset = numpyro.sample("offset", dist.Normal(0, 1).expand([ITEMS, 1]))
        logits = beta.T[:, None] - chi[:, None, None] * offset  # [2, items, annotators]
        terms = dist.Bernoulli(logits=logits).log_prob(labels).sum(-1)
        numpyro.factor("y", jax.nn.logsumexp(terms + jnp.log(jnp.array([[0.6], [0.4]])), axis=0).sum())

    return compare(fitted(model, LABELS, count=10), beta=nuts(summed, LABELS, names=["beta"], samples=4000)["beta"])


@case("examples/lda.py")
def topics_of_words() -> Any:
    words = np.array([[0, 0, 1], [2, 1, 2]])

    def model(words: Any) -> None:
        with numpyro.plate("topics", 2):
            phi = numpyro.sample("phi", dist.Dirichlet(jnp.full(3, 0.8)))
        with numpyro.plate("documents", 2, dim=-1):
            theta = numpyro.sample("theta", dist.Dirichlet(jnp.array([1.0, 2.0])))
            with numpyro.plate("words", 3, dim=-2):
                z = numpyro.sample("z", dist.Categorical(theta), infer={"enumerate": "parallel"})
                numpyro.sample("word", dist.Categorical(phi[z]), obs=words)

    def log_joint(z: Any) -> float:
        z = z.reshape(2, 3)
        documents = sum(dirichlet(np.bincount(row, minlength=2), [1, 2]) for row in z)
        return documents + dirichlet(tables(words, z, (2, 3)), 0.8).sum()

    log_z, means = by_classes(log_joint, states(*[2] * 6))
    return compare(fitted(model, words.T), log_z, z=(means.reshape(2, 3).T, None))


POINTS = np.array([-2.1, -1.6, 2.4, 1.9, 2.2])


@case("test_funsor.py (Gaussian mixture), examples/gaussian_shells.py")
def gaussian_mixture() -> Any:
    def model(x: Any) -> None:
        mix = numpyro.sample("mix", dist.Dirichlet(jnp.ones(2)))
        with numpyro.plate("clusters", 2):
            means = numpyro.sample("means", dist.Normal(jnp.array([-1.0, 1.0]), 1.0))
        with numpyro.plate("data", len(POINTS)):
            z = numpyro.sample("z", dist.Categorical(mix), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(means[z], 1.0), obs=x)

    def log_joint(z: Any) -> float:
        total = dirichlet(np.bincount(z, minlength=2), 1)
        for k, centre in enumerate((-1.0, 1.0)):
            n = int((z == k).sum())
            if n:
                total += stats.multivariate_normal(np.full(n, centre), np.eye(n) + 1).logpdf(POINTS[z == k])
        return float(total)

    log_z, means = by_classes(log_joint, states(*[2] * len(POINTS)))
    return compare(fitted(model, POINTS), log_z, z=(means, None))


@case("examples/toy_mixture_model_discrete_enumeration.py")
def binomial_mixture_with_networks_of_causes() -> Any:
    data = np.array([1, 0, 1, 1])

    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.Beta(2.0, 2.0))
        rates = numpyro.sample("rates", dist.Beta(jnp.array([1.0, 3.0]), jnp.array([3.0, 1.0])).to_event(1))
        with numpyro.plate("data", 4):
            first = numpyro.sample("first", dist.Bernoulli(a), infer={"enumerate": "parallel"})
            second = numpyro.sample("second", dist.Bernoulli(0.2 + 0.5 * first), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Bernoulli(jnp.where(second == 1, rates[1], rates[0])), obs=y)

    def log_joint(values: Any) -> float:
        first, second = values[:4], values[4:]
        total = dirichlet(np.bincount(first, minlength=2), 2)
        p = 0.2 + 0.5 * first
        total += np.log(np.where(second, p, 1 - p)).sum()
        counts = tables(data, second, (2, 2))
        return float(total + dirichlet(counts, [[3, 1], [1, 3]]).sum())

    log_z, means = by_classes(log_joint, states(*[2] * 8))
    return compare(fitted(model, data), log_z, first=(means[:4], None), second=(means[4:], None))


@case("test_funsor.py (change point)", quick=True)
def change_point() -> Any:
    counts = np.array([4, 6, 3, 5, 1, 0, 2, 1])

    def model(counts: Any) -> None:
        before = numpyro.sample("before", dist.Gamma(2.0, 0.5))
        after = numpyro.sample("after", dist.Gamma(2.0, 0.5))
        tau = numpyro.sample("tau", dist.Categorical(logits=jnp.zeros(8)), infer={"enumerate": "parallel"})
        rate = jnp.where(tau > jnp.arange(8), before, after)
        with numpyro.plate("data", 8):
            numpyro.sample("counts", dist.Poisson(rate), obs=counts)

    def segment(x: Any) -> float:
        s, n = x.sum(), len(x)
        gamma = 2 * np.log(0.5) - gammaln(2) + gammaln(2 + s) - (2 + s) * np.log(0.5 + n)
        return float(gamma - gammaln(x + 1).sum())

    terms = np.array([segment(counts[:t]) + segment(counts[t:]) - np.log(8) for t in range(8)])
    p = np.exp(terms - logsumexp(terms))
    mean = p @ np.arange(8)
    sd = (p @ (np.arange(8) - mean) ** 2) ** 0.5
    return compare(fitted(model, counts), logsumexp(terms), tau=(mean, sd))


@case("test_funsor.py (Bernoulli latents)")
def two_layers_of_bits_with_a_rate() -> Any:
    def model(x: Any) -> None:
        rate = numpyro.sample("rate", dist.Beta(1.0, 1.0))
        with numpyro.plate("data", len(POINTS)):
            y = numpyro.sample("y", dist.Bernoulli(rate), infer={"enumerate": "parallel"})
            z = numpyro.sample("z", dist.Bernoulli(0.65 * y + 0.1), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)

    def log_joint(rate: Any) -> Any:
        r = rate[:, None]
        on = r * 0.75 + (1 - r) * 0.1
        return np.log(on * stats.norm.pdf(POINTS, 2) + (1 - on) * stats.norm.pdf(POINTS)).sum(-1)

    exact = Exact(log_joint, nodes(0, 1))
    return compare(fitted(model, POINTS), exact.log_z, rate=exact.moments(exact.at[0]))
