"""States that a program makes of innovations in whatever way: read as a chain, with the evidence that they have."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import kayn
from kayn.evidence.as_drawn import in_running_sums
from kayn.programs.read_running import ReadRunning
from kayn.programs.sites import Inspected
from tests.graph.enumerated import agrees

STEPS = 8
Y = np.array([0.3, 0.1, 0.8, 1.2, 0.9, 1.6, 1.4, 2.1], np.float32)
LAGS = np.arange(STEPS)[:, None] - np.arange(STEPS)
LOWER = np.tril(np.ones((STEPS, STEPS)))


def series_of(levels, steps=STEPS):
    """A model whose levels are a function of a scale, a decay and innovations."""

    def model(y):
        scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        decay = numpyro.sample("decay", dist.Uniform(0.0, 1.0))
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y) - STEPS + steps]).to_event(1))
        level = numpyro.deterministic("level", levels(scale, decay, z))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(level, 0.4), obs=y)

    return model


def autoregression(decay, added, start=0.0):
    return jax.lax.scan(lambda c, x: (decay * c + x,) * 2, start, added)[1]


def spread(decay):
    return 1.0 / jnp.sqrt(1.0 - decay**2)


def first_apart(s, d, z):
    first = s * z[0] * spread(d)
    return jnp.concatenate([first[None], autoregression(d, s * z[1:], first)])


def written_out(s, d, z):
    states = [s * z[0] * spread(d)]
    for now in z[1:]:
        states.append(d * states[-1] + s * now)
    return jnp.stack(states)


def in_place(s, d, z):
    first = jnp.zeros(len(z)).at[0].set(s * z[0] * spread(d))
    return jax.lax.fori_loop(1, len(z), lambda t, x: x.at[t].set(d * x[t - 1] + s * z[t]), first)


def associative(s, d, z):
    def join(a, b):
        return a[0] * b[0], a[1] * b[0] + b[1]

    return jax.lax.associative_scan(join, (jnp.full(len(z), d), s * z.at[0].multiply(spread(d))))[1]


STATIONARY = {
    "the first apart": first_apart,
    "the first divided": lambda s, d, z: autoregression(d, s * z.at[0].divide(jnp.sqrt(1 - d**2))),
    "the first chosen": lambda s, d, z: autoregression(d, s * jnp.where(jnp.arange(len(z)) == 0, z * spread(d), z)),
    "scales of steps": lambda s, d, z: autoregression(
        d, z * jnp.concatenate([(s * spread(d))[None], jnp.full(len(z) - 1, s)])
    ),
    "written out": written_out,
    "in place": in_place,
    "an associative scan": associative,
    "a matrix": lambda s, d, z: jnp.where(LAGS >= 0, s * d ** np.maximum(LAGS, 0), 0.0) @ z.at[0].multiply(spread(d)),
}
"""An autoregression that is stationary from its first step on."""


def matrix_of(levels, scale, decay):
    """That of the linear map of innovations."""
    return np.asarray(jax.vmap(lambda e: levels(scale, decay, e), out_axes=1)(jnp.eye(STEPS)), float)


def exact(levels, steps=40):
    """Log evidence, and mean of the decay, by quadrature over scale and decay."""
    logs, decays = np.linspace(-3.0, 1.0, steps), (np.arange(steps) + 0.5) / steps
    prior = -0.5 * ((logs + 1.0) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi)) + np.log((logs[1] - logs[0]) / steps)
    matrices = {(u, d): matrix_of(levels, np.exp(u), d) for u in logs for d in decays}
    unit = 0.16 * np.eye(STEPS)
    laws = {k: multivariate_normal(np.zeros(STEPS), m @ m.T + unit) for k, m in matrices.items()}
    joint = np.array([[laws[u, d].logpdf(Y) + p for d in decays] for u, p in zip(logs, prior, strict=True)])
    weight = np.exp(joint - joint.max())
    return np.log(weight.sum()) + joint.max(), (weight * decays).sum() / weight.sum()


def coordinates_of(model, *args):
    site = in_running_sums(Inspected.of(model, args, {}, {})).sites.get("kayn:unbounded:z")
    return None if site is None else site.running


@cache
def whole(form):
    return kayn.Importance(series_of(STATIONARY[form]), num_particles=20).run(0, None, Y)


@pytest.mark.parametrize("form", STATIONARY)
def test_one_structure_and_one_evidence_in_every_form(form):
    """The decay decides what a state is made of, and the scale, which all innovations have, does not."""
    coordinates = coordinates_of(series_of(STATIONARY[form]), Y)
    assert coordinates.latents == ("decay",)
    given = coordinates.given({"decay": jnp.float32(0.6)})
    np.testing.assert_allclose(given.decays[0][1:], 0.6, rtol=1e-5)
    np.testing.assert_allclose(given.weight, np.where(np.arange(STEPS) == 0, 1.25, 1.0), rtol=1e-5)
    assert whole(form).problem.layout.axis_of("kayn:unbounded:z").scope
    np.testing.assert_allclose(whole(form).log_evidence, whole("the first apart").log_evidence, rtol=1e-5)


@pytest.mark.parametrize("form", ["the first apart", "an associative scan"])
def test_all_combinations_of_steps_are_weighed(form):
    """Against enumeration, with the density of the model that makes the states itself; derivatives are those of single
    precision."""
    model = series_of(STATIONARY[form])
    drawn = ReadRunning(model, {"z": coordinates_of(model, Y)})

    def guide(y):
        numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        numpyro.sample("decay", dist.Uniform(0.0, 1.0))
        numpyro.sample("kayn:unbounded:z", dist.Normal(jnp.linspace(0.0, 1.0, STEPS), 1.0))

    problem = agrees(drawn, Y, guide=guide, close=1e-5)
    assert problem.layout.axis_of("kayn:unbounded:z").scope


def test_an_autoregression_has_its_evidence_and_moments():
    """Within 0.1 nats and a tenth of a standard deviation, about .29: five times what other keys change."""
    posterior = kayn.fit(series_of(first_apart), args=(Y,), progress=False).posterior()
    evidence, mean = exact(first_apart)
    assert abs(float(posterior.log_evidence) - evidence) < 0.1
    assert abs(float(posterior.mean("decay")) - mean) < 0.03
    # what users see are innovations, and all that the model makes of them
    drawn = posterior.predictive(0, 500)
    levels = jax.vmap(first_apart)(drawn["scale"], drawn["decay"], drawn["z"])
    np.testing.assert_allclose(drawn["level"], levels, rtol=1e-3, atol=1e-4)


def test_weights_that_are_latents_have_their_evidence():
    def fading(s, d, z):
        return s * jnp.cumsum(z * d ** jnp.arange(STEPS))

    coordinates = coordinates_of(series_of(fading), Y)
    assert coordinates.latents == ("decay",)
    posterior = kayn.fit(series_of(fading), args=(Y,), progress=False).posterior()
    evidence, mean = exact(fading)
    assert abs(float(posterior.log_evidence) - evidence) < 0.1
    assert abs(float(posterior.mean("decay")) - mean) < 0.03


def test_states_with_a_first_entry_of_their_own():
    """That is no innovation: the sum of a start and of steps. Numbers alone decide, so that no latent does."""

    def model(y):
        start = numpyro.sample("start", dist.Normal(0.0, 1.0))
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([STEPS - 1]).to_event(1))
        level = jnp.cumsum(jnp.concatenate([start[None], 0.5 * z]))
        numpyro.sample("y", dist.Normal(level, 0.4).to_event(1), obs=y)

    coordinates = coordinates_of(model, Y)
    assert coordinates.latents == () and coordinates.shape == (STEPS - 1,)
    posterior = kayn.fit(model, args=(Y,), progress=False).posterior()
    matrix = LOWER * np.array([1.0, *(0.5,) * (STEPS - 1)])
    evidence = multivariate_normal(np.zeros(STEPS), matrix @ matrix.T + 0.16 * np.eye(STEPS)).logpdf(Y)
    assert abs(float(posterior.log_evidence) - evidence) < 0.05
    right = matrix.T @ np.linalg.solve(matrix @ matrix.T + 0.16 * np.eye(STEPS), Y)
    np.testing.assert_allclose(posterior.mean("z"), right[1:], atol=0.05)


def test_series_are_read_again_where_there_are_more_steps():
    drawn = whole("the first apart").predictive(0, 200, np.append(Y, [2.2, 2.4]).astype(np.float32))
    assert drawn["z"].shape == (200, STEPS + 2)
    levels = jax.vmap(first_apart)(drawn["scale"], drawn["decay"], drawn["z"])
    np.testing.assert_allclose(drawn["level"], levels, rtol=1e-3, atol=1e-4)


def test_what_is_no_such_state_stays_as_it_is():
    """What is linear where innovations are small, what reads several states, what depends on more than the state
    before, and steps that are written out in many operations."""

    def bounded(s, d, z):
        return jax.lax.scan(lambda c, x: (jnp.clip(d * c + s * x, -9.0, 9.0),) * 2, 0.0, z[1:])[1]

    kept = {
        "bounded": (lambda s, d, z: jnp.append(z[0], bounded(s, d, z)), STEPS),
        "and their mean": (lambda s, d, z: first_apart(s, d, z) - first_apart(s, d, z).mean(), STEPS),
        "two steps on": (lambda s, d, z: first_apart(s, d, z) + jnp.roll(first_apart(s, d, z), 3), STEPS),
        "an average": (lambda s, d, z: s * (z + d * jnp.append(0.0, z[:-1])), STEPS),
        "products": (lambda s, d, z: jnp.cumprod(1.0 + s * z.at[0].multiply(d)), STEPS),
        "all of them": (lambda s, d, z: s * jnp.sum(z.at[0].multiply(d)) + z, STEPS),
        "written out": (lambda s, d, z: written_out(s, d, z)[-STEPS:], 150),
    }
    models = {n: series_of(*case) for n, case in kept.items()}
    assert {n for n, m in models.items() if coordinates_of(m, Y) is not None} == set()


def test_scales_that_cannot_be_are_all_but_impossible():
    """At a decay of one the first step has no scale: no NaN, and no density to speak of."""
    coordinates = coordinates_of(series_of(first_apart), Y)
    sums = [coordinates.given({"decay": jnp.float32(d)}).sums(jnp.ones(STEPS)) for d in (1.0, 0.5)]
    assert np.all(np.isfinite(sums))
    assert sums[0][0] > 1e9


def test_sums_over_thresholds_of_what_rows_have_of_their_own_are_no_states():
    """A partial credit model: every person's sum runs over an item's thresholds, which are no series, and no crash."""

    def model(y):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([3, 2]))
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([5]))
        steps = jnp.cumsum(z[:, None, None] - b, -1)
        logits = jnp.concatenate([jnp.zeros((5, 3, 1)), steps], -1)
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    scopes = {a.latents: a.scope for a in kayn.analyze(model, jnp.zeros((5, 3), int)).layout.axes}
    assert scopes[("z",)] == ("z_dim_0",)
