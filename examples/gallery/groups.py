"""Groups that differ: schools, counties, states, rats, films, teams."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist

from examples import eight_schools, radon
from examples.gallery.case import RED, Case, points
from examples.gallery.tables import RATS, TEAMS, WINS
from kayn import datasets


def _schools() -> tuple:
    data = datasets.eight_schools()
    return data["sigma"], data["y"]


def _draw_schools(axes: Any, posterior: Any, args: tuple) -> None:
    points(axes, posterior.mean("theta"), posterior.std("theta"), [*"ABCDEFGH"])
    axes.scatter(args[1], np.arange(8), marker="x", color=RED, label="measured")
    axes.set(xlabel="effect of coaching", ylabel="school")
    axes.legend(frameon=False)


def _radon() -> tuple:
    data = datasets.load("radon_homes")
    first = data["county"] < 60
    county = data["county"][first].astype(np.int32)
    return county, (data["floor"][first] != 0).astype(np.float32), 60, data["log_radon"][first]


def _draw_radon(axes: Any, posterior: Any, args: tuple) -> None:
    sizes = np.bincount(args[0], minlength=60)
    mean, sd = (np.asarray(v) for v in (posterior.mean("alpha"), posterior.std("alpha")))
    axes.errorbar(sizes, mean, yerr=sd, fmt="o", markersize=4, linewidth=1)
    axes.axhline(float(posterior.mean("mu")), color=RED)
    axes.set(xscale="log", xlabel="houses in the county", ylabel="log radon in the basement")


def polls(state, female, black, num_states, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.5))
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    woman = numpyro.sample("woman", dist.Normal(0.0, 1.0))
    race = numpyro.sample("race", dist.Normal(0.0, 1.5))
    with numpyro.plate("states", num_states):
        a = numpyro.sample("a", dist.Normal(mu, sd))
    with numpyro.plate("people", state.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=a[state] + woman * female + race * black), obs=y)


def _polls() -> tuple:
    data = datasets.load("election88")
    some = slice(None, None, 8)
    state = data["state"][some].astype(np.int32)
    return state, *(data[n][some].astype(np.float32) for n in ("female", "black")), 51, data["y"][some].astype(np.int32)


def _draw_polls(axes: Any, posterior: Any, args: tuple) -> None:
    mean, sd = (np.asarray(v) for v in (posterior.mean("a"), posterior.std("a")))
    order = np.argsort(mean)
    axes.errorbar(np.arange(order.size), mean[order], yerr=2 * sd[order], fmt="o", markersize=3, linewidth=1)
    axes.set(xlabel="states, in order", ylabel="log odds for Bush, white men")


def rats(rat, day, weight=None):
    level = numpyro.sample("level", dist.Normal(240.0, 50.0))
    growth = numpyro.sample("growth", dist.Normal(6.0, 3.0))
    sd_level = numpyro.sample("sd_level", dist.HalfNormal(30.0))
    sd_growth = numpyro.sample("sd_growth", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(20.0))
    with numpyro.plate("rats", 30):
        a = numpyro.sample("a", dist.Normal(level, sd_level))
        b = numpyro.sample("b", dist.Normal(growth, sd_growth))
    with numpyro.plate("weighings", rat.shape[0]):
        numpyro.sample("weight", dist.Normal(a[rat] + b[rat] * day, sigma), obs=weight)


def _rats() -> tuple:
    days = np.array([8.0, 15.0, 22.0, 29.0, 36.0], np.float32) - 22.0
    return np.repeat(np.arange(30, dtype=np.int32), 5), np.tile(days, 30), RATS.ravel()


def _draw_rats(axes: Any, posterior: Any, args: tuple) -> None:
    days = np.linspace(8.0, 36.0, 2)
    a, b = (np.asarray(posterior.mean(n)) for n in "ab")
    axes.plot(days, a + b * (days[:, None] - 22.0), color="#1f5fa8", alpha=0.4, linewidth=0.8)
    axes.scatter(args[1] + 22.0, args[2], s=8, color=RED)
    axes.set(xlabel="day", ylabel="weight, grams")


def films(user, item, num_users, num_items, rating=None):
    mean = numpyro.sample("mean", dist.Normal(3.5, 1.0))
    sd_user = numpyro.sample("sd_user", dist.HalfNormal(1.0))
    sd_item = numpyro.sample("sd_item", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("users", num_users):
        u = numpyro.sample("u", dist.Normal(0.0, sd_user))
    with numpyro.plate("items", num_items):
        v = numpyro.sample("v", dist.Normal(0.0, sd_item))
    with numpyro.plate("ratings", user.shape[0]):
        numpyro.sample("rating", dist.Normal(mean + u[user] + v[item], sigma), obs=rating)


def _films() -> tuple:
    data = datasets.load("movielens_100k")
    often = np.argsort(-np.bincount(data["item"]), kind="stable")[:20]
    mine = np.isin(data["item"], often) & (data["user"] < 60)
    place = {int(i): n for n, i in enumerate(often)}
    item = np.array([place[int(i)] for i in data["item"][mine]], np.int32)
    return data["user"][mine].astype(np.int32), item, 60, 20, data["rating"][mine].astype(np.float32)


def _draw_films(axes: Any, posterior: Any, args: tuple) -> None:
    points(axes, posterior.mean("v"), posterior.std("v"))
    axes.set(xlabel="stars above the average film", ylabel="the twenty films rated most often")


def teams(first, second, games, wins=None):
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    with numpyro.plate("teams", 7):
        skill = numpyro.sample("skill", dist.Normal(0.0, sd))
    with numpyro.plate("pairs", first.shape[0]):
        numpyro.sample("wins", dist.Binomial(games, logits=skill[first] - skill[second]), obs=wins)


def _teams() -> tuple:
    first, second = (v.astype(np.int32) for v in np.triu_indices(7, 1))
    return first, second, (WINS + WINS.T)[first, second], WINS[first, second]


def _draw_teams(axes: Any, posterior: Any, args: tuple) -> None:
    points(axes, posterior.mean("skill"), posterior.std("skill"), TEAMS)
    axes.set(xlabel="skill, log odds against an average team")


CASES = (
    Case(
        "schools",
        "School effects: does coaching help?",
        "Eight schools measured what coaching adds to a test's result (Rubin, 1981). The effects are noisy; how far do "
        "they differ at all? Crosses are what was measured, dots what remains when the schools inform each other.",
        eight_schools.model,
        _schools,
        ("mu", "tau", "theta"),
        _draw_schools,
        accept=0.95,
    ),
    Case(
        "radon",
        "Counties with one house and with hundreds",
        "Radon in houses of sixty counties (Gelman and Hill, 2006). How high is it in a county where three houses were "
        "measured? Small counties are drawn to the line, the mean of all.",
        radon.varying_intercept,
        _radon,
        ("mu", "sd", "beta", "sigma", "alpha"),
        _draw_radon,
    ),
    Case(
        "polls",
        "Election polls by state",
        "Every eighth of 11,566 answers to polls before the US election of 1988 (Gelman and Hill, 2006): who would "
        "vote for Bush, by state, where some states have a handful of answers and some hundreds?",
        polls,
        _polls,
        ("mu", "sd", "woman", "race", "a"),
        _draw_polls,
        decentre=("a",),
    ),
    Case(
        "growth",
        "Growth curves of thirty rats",
        "Thirty rats were weighed in five weeks (Gelfand and others, 1990; Rats in the examples of BUGS). How fast do "
        "they grow, and how much do they differ in that?",
        rats,
        _rats,
        ("level", "growth", "sd_level", "sd_growth", "sigma"),
        _draw_rats,
    ),
    Case(
        "films",
        "Films and those who rate them",
        "Ratings of the twenty films rated most often by sixty users of MovieLens (Harper and Konstan, 2015). Which "
        "are liked, once it is known who gives high marks to everything?",
        films,
        _films,
        ("mean", "sd_user", "sd_item", "sigma", "v"),
        _draw_films,
    ),
    Case(
        "ratings",
        "Who is the best team?",
        "Games of seven teams of baseball's American League in 1987, thirteen for every pair (Agresti, 1990). How sure "
        "can one be that the first of the table is the best?",
        teams,
        _teams,
        ("sd", "skill"),
        _draw_teams,
    ),
)
