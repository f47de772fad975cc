"""What nobody has seen: missing values, states, the time of a change, presence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from scipy.special import gammaln, xlog1py, xlogy

from examples.gallery.case import BLUE, RED, Case, Moments, moments, sampled
from examples.gallery.tables import CARS, DISASTERS, EARTHQUAKES
from kayn import datasets


def stopping(speed, seen, distance=None):
    slope = numpyro.sample("slope", dist.Normal(3.0, 3.0))
    level = numpyro.sample("level", dist.Normal(40.0, 20.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(20.0))
    with numpyro.plate("cars", speed.shape[0]):
        mean = level + slope * (speed - 15.0)
        hidden = numpyro.sample("hidden", dist.Normal(mean, sigma))
        # what was seen is at its place; the others are latents
        numpyro.sample("distance", dist.Normal(mean, sigma).mask(seen), obs=distance)
        numpyro.deterministic("complete", jnp.where(seen, distance, hidden))


def _stopping() -> tuple:
    seen = np.arange(50) % 5 != 2
    return CARS[:, 0], seen, np.where(seen, CARS[:, 1], 0.0).astype(np.float32)


def _draw_stopping(axes: Any, posterior: Any, args: tuple) -> None:
    speed, seen, distance = args
    mean, sd = (np.asarray(v) for v in (posterior.mean("hidden"), posterior.std("hidden")))
    axes.scatter(speed[seen], distance[seen], s=12, color="#888888", label="known")
    axes.errorbar(speed[~seen], mean[~seen], 2 * sd[~seen], fmt="o", color=BLUE, label="found")
    axes.scatter(speed[~seen], CARS[~seen, 1], marker="x", color=RED, label="hidden")
    axes.set(xlabel="miles an hour", ylabel="feet")
    axes.legend(frameon=False)


def earthquakes(counts):
    calm = numpyro.sample("calm", dist.Gamma(15.0, 1.0))
    more = numpyro.sample("more", dist.Gamma(10.0, 1.0))
    stay = numpyro.sample("stay", dist.Beta(8.0, 2.0).expand([2]).to_event(1))
    change = jnp.stack([jnp.stack([stay[0], 1 - stay[0]]), jnp.stack([1 - stay[1], stay[1]])])

    def year(state, count):
        state = numpyro.sample("state", dist.Categorical(change[state]))
        numpyro.sample("count", dist.Poisson(calm + more * state), obs=count)
        return state, None

    scan(year, 0, counts)


def _earthquakes_summed(counts):
    """The same with the states summed out by hand, for NUTS."""
    calm = numpyro.sample("calm", dist.Gamma(15.0, 1.0))
    more = numpyro.sample("more", dist.Gamma(10.0, 1.0))
    stay = numpyro.sample("stay", dist.Beta(8.0, 2.0).expand([2]).to_event(1))
    change = jnp.log(jnp.stack([jnp.stack([stay[0], 1 - stay[0]]), jnp.stack([1 - stay[1], stay[1]])]))
    scores = dist.Poisson(jnp.stack([calm, calm + more])).log_prob(counts[:, None])

    def year(before, score):
        return jax.nn.logsumexp(before[:, None] + change, 0) + score, None

    last = jax.lax.scan(year, change[0] + scores[0], scores[1:])[0]
    numpyro.factor("counts", jax.nn.logsumexp(last))


def _draw_earthquakes(axes: Any, posterior: Any, args: tuple) -> None:
    calm, more = (float(posterior.mean(n)) for n in ("calm", "more"))
    state = np.asarray(posterior.mean("state"))
    years = np.arange(1900, 2007)
    axes.scatter(years, args[0], s=10, color=RED)
    axes.plot(years, calm + more * state, color=BLUE)
    axes.set(ylabel="earthquakes of magnitude 7 and more")


def mines(disasters, known):
    before = numpyro.sample("before", dist.Gamma(2.0, 1.0))
    after = numpyro.sample("after", dist.Gamma(2.0, 1.0))
    switch = numpyro.sample("switch", dist.Categorical(jnp.full(111, 1 / 111)))
    with numpyro.plate("years", 111):
        rate = jnp.where(jnp.arange(111) < switch, before, after)
        numpyro.sample("disasters", dist.Poisson(rate).mask(known), obs=disasters)


def _mines() -> tuple:
    return np.maximum(DISASTERS, 0), DISASTERS >= 0


def _mines_exactly(args: tuple) -> Moments:
    counts, known = (np.concatenate([[0], np.cumsum(v)]) for v in args)
    # given the year, either rate is a Gamma
    shape = np.stack([2 + counts[:-1], 2 + counts[-1] - counts[:-1]])
    speed = np.stack([1 + known[:-1], 1 + known[-1] - known[:-1]])
    log_p = (gammaln(shape) - shape * np.log(speed)).sum(0)
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    means, squares = shape / speed, shape * (shape + 1) / speed**2
    found = {"switch": moments(np.arange(111), weights)}
    for i, name in enumerate(("before", "after")):
        mean = (weights * means[i]).sum()
        found[name] = mean, np.sqrt((weights * squares[i]).sum() - mean**2)
    return found


def _draw_mines(axes: Any, posterior: Any, args: tuple) -> None:
    years = np.arange(1851, 1962)
    axes.bar(years[args[1]], args[0][args[1]], color="#cccccc")
    switch = posterior.probabilities("switch")
    own = axes.twinx()
    own.plot(years, [float(switch.get(i, 0.0)) for i in range(111)], color=BLUE)
    own.set(ylabel="probability of the change")
    axes.set(ylabel="disasters")


def birds(stops, seen):
    present = numpyro.sample("present", dist.Beta(1.0, 1.0))
    found = numpyro.sample("found", dist.Beta(1.0, 1.0))
    with numpyro.plate("visits", seen.shape[0]):
        there = numpyro.sample("there", dist.Bernoulli(present))
        numpyro.sample("seen", dist.Binomial(stops, there * found), obs=seen)


def _birds() -> tuple:
    counts = datasets.load("occupancy")["birds_train_0"][0].sum(-1)
    seldom = np.argsort((counts > 0).mean(-1))[6]
    return 5, counts[seldom].astype(np.int32)


def _birds_exactly(args: tuple) -> Moments:
    stops, seen = args
    at = (np.arange(1000) + 0.5) / 1000
    present, found = np.meshgrid(at, at, indexing="ij")
    log_p = np.zeros_like(present)
    for count, times in zip(*np.unique(seen, return_counts=True), strict=True):
        own = np.exp(xlogy(count, found) + xlog1py(stops - count, -found))
        log_p += times * np.log(present * own + (1 - present) * (count == 0))
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    return {n: moments(v, weights) for n, v in (("present", present), ("found", found))}


def _draw_birds(axes: Any, posterior: Any, args: tuple) -> None:
    drawn = np.asarray(posterior["present"])
    axes.hist(drawn, 40, color=BLUE, alpha=0.6, label="sites with the bird")
    axes.axvline((args[1] > 0).mean(), color=RED, label="sites where it was seen")
    axes.set(xlabel="share of sites", ylabel="draws")
    axes.legend(frameon=False)


CASES = (
    Case(
        "missing",
        "Missing data: how far does a car go?",
        "Fifty cars, their speeds, and the way that they took to stop (Ezekiel, 1930). Of every fifth the way was "
        "hidden. Crosses are what was hidden, dots what is found.",
        stopping,
        _stopping,
        ("slope", "level", "sigma", "hidden"),
        _draw_stopping,
    ),
    Case(
        "earthquakes",
        "A hidden Markov model of earthquakes",
        "Earthquakes of magnitude 7 and more in each year from 1900 to 2006 (Zucchini and MacDonald, 2009). Are there "
        "calm and restless times? kayn has the states as they are; NUTS needs them summed out by hand.",
        earthquakes,
        lambda: (EARTHQUAKES,),
        ("calm", "more", "stay"),
        _draw_earthquakes,
        answer=sampled(_earthquakes_summed, ("calm", "more", "stay")),
    ),
    Case(
        "mines",
        "When did coal mines become safer?",
        "Disasters in British coal mines, 1851 to 1961, two years of them not known (Jarrett, 1979). In which year did "
        "the rate change? The year is a discrete latent; with Gamma priors the answer is known exactly.",
        mines,
        _mines,
        ("before", "after", "switch"),
        _draw_mines,
        "exact",
        _mines_exactly,
    ),
    Case(
        "occupancy",
        "Occupancy: a bird that is not seen may be there",
        "A species of birds, 200 visits of five stops each (Breeding Bird Survey). At how many sites is it, if it can "
        "be missed? The line is the share of visits at which it was seen. Exact by quadrature.",
        birds,
        _birds,
        ("present", "found"),
        _draw_birds,
        "exact",
        _birds_exactly,
    ),
)
