"""Counts, times, choices and what is hidden behind them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import gammaln, xlogy

from examples.gallery.case import BLUE, RED, Case, Moments, moments, points, sampled
from examples.gallery.tables import DRUG, KICKS, LSAT, PLACEBO
from kayn import datasets


def chimpanzees(actor, left, partner, pulled=None):
    sd = numpyro.sample("sd", dist.HalfNormal(2.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.5))
    food = numpyro.sample("food", dist.Normal(0.0, 1.0))
    company = numpyro.sample("company", dist.Normal(0.0, 1.0))
    with numpyro.plate("actors", 7):
        habit = numpyro.sample("habit", dist.Normal(mu, sd))
    with numpyro.plate("trials", actor.shape[0]):
        logits = habit[actor] + (food + company * partner) * left
        numpyro.sample("pulled", dist.Bernoulli(logits=logits), obs=pulled)


def _chimpanzees() -> tuple:
    data = datasets.load("chimpanzees")
    left, partner = (data[f"table_{n}"].astype(np.float32) for n in ("prosoc_left", "condition"))
    return data["table_actor"].astype(np.int32) - 1, left, partner, data["table_pulled_left"].astype(np.int32)


def _draw_chimpanzees(axes: Any, posterior: Any, args: tuple) -> None:
    points(axes, posterior.mean("habit"), posterior.std("habit"), [f"actor {i + 1}" for i in range(7)])
    axes.set(xlabel="log odds of the left lever")


def kicks(deaths):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 2.0))
    gate = numpyro.sample("gate", dist.Beta(1.0, 4.0))
    with numpyro.plate("years", deaths.shape[0]):
        numpyro.sample("deaths", dist.ZeroInflatedPoisson(gate, rate), obs=deaths)


def _kicks() -> tuple:
    return (np.repeat([*KICKS], [*KICKS.values()]).astype(np.int32),)


def _kicks_exactly(args: tuple) -> Moments:
    rate, gate = np.meshgrid(np.linspace(1e-3, 3.0, 1500), np.linspace(5e-4, 0.9995, 1000), indexing="ij")
    log_p = np.log(rate) - 2.0 * rate + 3.0 * np.log1p(-gate)
    for deaths, times in KICKS.items():
        plain = (1 - gate) * np.exp(xlogy(deaths, rate) - rate - gammaln(deaths + 1))
        log_p += times * np.log(plain + gate * (deaths == 0))
    weights = np.exp(log_p - log_p.max())
    weights /= weights.sum()
    return {n: moments(v, weights) for n, v in (("rate", rate), ("gate", gate))}


def _draw_kicks(axes: Any, posterior: Any, args: tuple) -> None:
    drawn = np.asarray(posterior.predictive()["deaths"])
    counts = np.stack([(drawn == k).sum(1) for k in range(5)], 1)
    axes.bar(np.arange(5), [KICKS[k] for k in range(5)], color="#cccccc", label="years")
    axes.errorbar(np.arange(5), counts.mean(0), 2 * counts.std(0), fmt="o", color=BLUE, label="predicted")
    axes.set(xlabel="deaths", ylabel="corps and years")
    axes.legend(frameon=False)


def remission(ended, weeks, group):
    hazard = numpyro.sample("hazard", dist.Gamma(1.0, 10.0).expand([2]).to_event(1))
    with numpyro.plate("people", weeks.shape[0]):
        # a relapse has a density; of who had none until the end it is known that it takes longer
        score = ended * jnp.log(hazard[group]) - hazard[group] * weeks
        numpyro.factor("times", score)


def _remission() -> tuple:
    weeks = np.array([*DRUG[0], *DRUG[1], *PLACEBO], np.float32)
    ended = np.array([1] * len(DRUG[0]) + [0] * len(DRUG[1]) + [1] * len(PLACEBO), np.float32)
    return ended, weeks, np.repeat(np.arange(2, dtype=np.int32), [21, 21])


def _remission_exactly(args: tuple) -> Moments:
    ended, weeks, group = args
    events, times = (np.bincount(group, v) for v in (ended, weeks))
    return {"hazard": ((1 + events) / (10 + times), np.sqrt(1 + events) / (10 + times))}


def _draw_remission(axes: Any, posterior: Any, args: tuple) -> None:
    weeks, drawn = np.linspace(0.0, 36.0, 100), np.asarray(posterior["hazard"])
    for i, (name, colour) in enumerate((("6-mercaptopurine", BLUE), ("placebo", RED))):
        low, middle, high = np.quantile(np.exp(-drawn[:, i, None] * weeks), (0.05, 0.5, 0.95), axis=0)
        axes.fill_between(weeks, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(weeks, middle, color=colour, label=name)
    axes.set(xlabel="weeks", ylabel="share in remission", ylim=(0, 1))
    axes.legend(frameon=False)


def items(pattern, people):
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("items", 5):
        easy = numpyro.sample("easy", dist.Normal(0.0, 2.0))
    with numpyro.plate("people", people):
        able = numpyro.sample("able", dist.Normal(0.0, 1.0))
        score = pattern * jax.nn.log_sigmoid(easy + spread * able[:, None])
        score += (1 - pattern) * jax.nn.log_sigmoid(-easy - spread * able[:, None])
        numpyro.factor("answers", score.sum(1))


def _items() -> tuple:
    patterns = (np.arange(32)[:, None] >> np.arange(4, -1, -1)) & 1
    return np.repeat(patterns, LSAT, 0).astype(np.float32), 1000


def _items_summed(pattern, people):
    """The same with abilities summed out by quadrature, for NUTS."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("items", 5):
        easy = numpyro.sample("easy", dist.Normal(0.0, 2.0))
    patterns, times = np.unique(np.asarray(pattern), axis=0, return_counts=True)
    logits = easy + spread * jnp.asarray(nodes)[:, None, None]
    score = dist.Bernoulli(logits=logits).log_prob(patterns).sum(-1)
    numpyro.factor("answers", (times * jax.nn.logsumexp(score, 0, b=jnp.asarray(weights)[:, None])).sum())


def _draw_items(axes: Any, posterior: Any, args: tuple) -> None:
    points(axes, posterior.mean("easy"), posterior.std("easy"), [f"item {i + 1}" for i in range(5)])
    axes.set(xlabel="log odds that an average person solves it")


CASES = (
    Case(
        "chimpanzees",
        "Do chimpanzees care for company?",
        "Seven chimpanzees chose 504 times between two levers; one of them also fed a partner, who was there or not "
        "(Silk and others, 2005; McElreath, Statistical Rethinking). `company` is what a partner adds.",
        chimpanzees,
        _chimpanzees,
        ("mu", "sd", "food", "company", "habit"),
        _draw_chimpanzees,
    ),
    Case(
        "kicks",
        "Counts with excess zeros: kicks of horses",
        "Deaths from kicks of horses in 200 years of Prussian corps (Bortkiewicz, 1898), the example of Poisson's law. "
        "Are there more years without any than the law has? `gate` is the share that would be too many. Exact by "
        "quadrature.",
        kicks,
        _kicks,
        ("rate", "gate"),
        _draw_kicks,
        "exact",
        _kicks_exactly,
    ),
    Case(
        "remission",
        "Survival: how long does a remission last?",
        "Weeks in remission of 42 children with leukaemia, half of them under 6-mercaptopurine, twelve still well when "
        "the study ended (Freireich and others, 1963). With constant hazards the answer is known exactly.",
        remission,
        _remission,
        ("hazard",),
        _draw_remission,
        "exact",
        _remission_exactly,
    ),
    Case(
        "items",
        "Item response: which question is hard?",
        "Answers of 1,000 people to five questions of the LSAT (Bock and Lieberman, 1970). NUTS is given abilities "
        "summed out by quadrature; kayn has all thousand of them.",
        items,
        _items,
        ("spread", "easy"),
        _draw_items,
        answer=sampled(_items_summed, ("spread", "easy")),
    ),
)
