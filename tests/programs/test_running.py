"""Innovations that a model adds up: read in their running sum, whatever the form of the sum, with results in theirs."""

import warnings
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
from kayn.graph.types import MIXED
from kayn.programs.read_running import ReadRunning
from kayn.programs.sites import Inspected
from tests.graph.enumerated import agrees

STEPS = 8
Y = np.array([0.3, 0.1, 0.8, 1.2, 0.9, 1.6, 1.4, 2.1], np.float32)
GAPS = np.array([1.0, 0.5, 0.7, 2.0, 1.0, 1.3, 0.4, 0.9], np.float32)
LOWER = np.tril(np.ones((STEPS, STEPS), np.float32))
ROOT = np.sqrt(GAPS)


def innovations(how):
    if how == "event":
        return numpyro.sample("z", dist.Normal(0.0, 1.0).expand([STEPS]).to_event(1))
    if how == "batch":
        return numpyro.sample("z", dist.Normal(jnp.zeros(STEPS), 1.0))
    with numpyro.plate("time", STEPS):
        return numpyro.sample("z", dist.Normal(0.0, 1.0))


def walk_of(levels, how="plate"):
    """A model whose levels are a function of a scale and of innovations."""

    def model(y):
        scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        level = numpyro.deterministic("level", levels(scale, innovations(how)))
        with numpyro.plate("rows", STEPS):
            numpyro.sample("y", dist.Normal(level, 0.4), obs=y)

    return model


def loop(decay):
    def levels(scale, z):
        def step(state, now):
            state = decay * state + scale * now
            return state, state

        return jax.lax.scan(step, 0.0, z)[1]

    return levels


def loop_of_states_before(scale, z):
    def step(carry, now):
        count, state = carry
        return (count + 1, state + scale * now), (state, count)

    (_, last), (states, _) = jax.lax.scan(step, (0, 0.0), z)
    return jnp.concatenate([states[1:], last[None]])


PLAIN = walk_of(lambda s, z: s * jnp.cumsum(z))
SAME = {
    "scaled before": walk_of(lambda s, z: jnp.cumsum(s * z)),
    "an event": walk_of(lambda s, z: s * jnp.cumsum(z), "event"),
    "a batch": walk_of(lambda s, z: s * jnp.cumsum(z), "batch"),
    "an associative scan": walk_of(lambda s, z: jax.lax.associative_scan(jnp.add, s * z)),
    "a matrix": walk_of(lambda s, z: LOWER @ (s * z)),
    "a matrix of the model's": walk_of(lambda s, z: s * (jnp.tril(jnp.ones((STEPS, STEPS))) @ z)),
    "a loop": walk_of(loop(1.0)),
    "products of exponentials": walk_of(lambda s, z: jnp.log(jnp.cumprod(jnp.exp(s * z)))),
    "the first apart": walk_of(lambda s, z: jnp.concatenate([z[:1] * s, s * (z[0] + jnp.cumsum(z[1:]))])),
    "states before a step": walk_of(loop_of_states_before),
}
OTHERS = {
    "gaps": (walk_of(lambda s, z: s * jnp.cumsum(jnp.sqrt(GAPS) * z)), LOWER * np.sqrt(GAPS)),
    "from the first": (
        walk_of(lambda s, z: s * (jnp.cumsum(z) - z[0])),
        LOWER * (np.arange(STEPS) > 0),
    ),
    "from the first state": (
        walk_of(lambda s, z: s * jnp.cumsum(ROOT * z) - (s * jnp.cumsum(ROOT * z))[0]),
        LOWER * ROOT * (np.arange(STEPS) > 0),
    ),
    "an autoregression": (
        walk_of(loop(0.8)),
        LOWER * 0.8 ** np.maximum(np.arange(STEPS)[:, None] - np.arange(STEPS), 0),
    ),
}


WEIGHTED = {
    "before the sum": walk_of(lambda s, z: jnp.cumsum(s * ROOT * z)),
    "divided": walk_of(lambda s, z: jnp.cumsum(z / (1 / ROOT / s))),
    "moved first": walk_of(lambda s, z: jnp.cumsum(-z * -jnp.broadcast_to(s * ROOT[::-1], (2, STEPS))[1][::-1])),
    "a loop": walk_of(lambda s, z: jax.lax.scan(lambda c, x: (c + s * x[0] * x[1],) * 2, 0.0, (jnp.array(ROOT), z))[1]),
}
"""A walk of a latent scale whose steps have numbers of their own."""


def loop_of_two(scale, z):
    def step(carry, now):
        new = 0.6 * carry[0] + 0.2 * carry[1] + scale * now
        return (new, carry[0]), new

    return jax.lax.scan(step, (0.0, 0.0), z)[1]


def loop_of_two_with_the_oldest_first(scale, z):
    def step(carry, now):
        older, old, count = carry
        new = 0.6 * old + 0.2 * older + scale * now
        return (old, new, count + 1), (old, count)

    (_, last, _), (states, _) = jax.lax.scan(step, (0.0, 0.0, 0), z)
    return jnp.concatenate([states[1:], last[None]])


def loop_of_three(scale, z):
    def step(carry, now):
        new = 0.5 * carry[0] + 0.2 * carry[1] + 0.1 * carry[2] + scale * now
        return (new, *carry[:2]), new

    return jax.lax.scan(step, (0.0, 0.0, 0.0), z)[1]


def matrix_of(levels):
    """That of a linear map of innovations, for a scale of one."""
    return np.stack([np.asarray(levels(1.0, jnp.asarray(e))) for e in np.eye(STEPS, dtype=np.float32)], 1)


BACKWARD = {
    "turned twice": lambda s, z: s * jnp.cumsum(z[::-1])[::-1],
    "a sum in reverse": lambda s, z: jax.lax.cumsum(s * z, reverse=True),
    "a matrix": lambda s, z: LOWER.T @ (s * z),
    "a loop": lambda s, z: jax.lax.scan(lambda c, x: (c + s * x,) * 2, 0.0, z, reverse=True)[1],
}
"""Innovations added up from the last to the first."""
FURTHER = {
    "sums of sums": lambda s, z: s * jnp.cumsum(jnp.cumsum(z)),
    "two lags": loop_of_two,
    "two lags, the oldest first": loop_of_two_with_the_oldest_first,
    "a moving average": lambda s, z: s * jnp.convolve(z, jnp.array([0.5, 0.3, 0.2]))[:STEPS],
    "slices": lambda s, z: s * jnp.concatenate([z[:2], z[2:] - 0.5 * z[:-2]]),
    "a sum and one step before": lambda s, z: s * (jnp.cumsum(z) + jnp.append(0.0, 0.5 * jnp.cumsum(z)[:-1])),
    "decays and gaps from the last": lambda s, z: jax.lax.scan(
        lambda c, x: (0.8 * c + s * x[0] * x[1],) * 2, 0.0, (jnp.array(ROOT), z), reverse=True
    )[1],
}
"""Chains in which a step reads two before it, or whose values read several steps of one."""


def evidence_and_scale(matrix):
    """Log evidence, and mean and standard deviation of the scale, by quadrature over a scale of levels `matrix @ z`."""
    logs = np.linspace(-5.0, 3.0, 801)
    prior = -0.5 * ((logs + 1.0) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    unit = 0.16 * np.eye(STEPS)
    at = [multivariate_normal(np.zeros(STEPS), np.exp(2 * u) * matrix @ matrix.T + unit).logpdf(Y) for u in logs]
    joint = prior + np.array(at)
    weight = np.exp(joint - joint.max())
    scales = np.exp(logs)
    mean = (weight * scales).sum() / weight.sum()
    spread = np.sqrt((weight * (scales - mean) ** 2).sum() / weight.sum())
    return np.log(weight.sum() * (logs[1] - logs[0])) + joint.max(), mean, spread


def running(model, *args):
    """The coordinates that a model's innovations are read in, None where these are their own."""
    site = in_running_sums(Inspected.of(model, args, {}, {})).sites.get("kayn:unbounded:z")
    return None if site is None else site.running


def fitted(model, particles=30, **options):
    return kayn.fit(model, args=(Y,), progress=False, num_particles=particles, **options).posterior()


@pytest.fixture(scope="module")
def plain():
    return fitted(PLAIN, 100)


@pytest.mark.parametrize("form", SAME)
def test_one_structure_in_every_form(form):
    coordinates = running(SAME[form], Y)
    assert (coordinates.decays, coordinates.weight, coordinates.computed) == ((None,), None, None)
    analysis = kayn.analyze(SAME[form], Y)
    assert not [c for c in analysis.layout.couplings if "kayn:unbounded:z" in c.latents]
    (read,) = (r for r in analysis.graph.output("y").reads if r.latent == "kayn:unbounded:z")
    assert all(how != MIXED for _, how in read.through)


@pytest.mark.parametrize("form", ["an associative scan", "a loop"])
def test_one_evidence_for_one_key(form):
    whole = [kayn.Importance(m, num_particles=20).run(0, None, Y).log_evidence for m in (PLAIN, SAME[form])]
    np.testing.assert_allclose(*whole, rtol=1e-5)


@pytest.mark.parametrize("form", WEIGHTED)
def test_numbers_times_a_scale_are_weights(form):
    coordinates, plain = running(WEIGHTED[form], Y), OTHERS["gaps"][0]
    np.testing.assert_allclose(coordinates.weight, running(plain, Y).weight, rtol=1e-5)
    whole = [kayn.Importance(m, num_particles=20).run(0, None, Y).log_evidence for m in (plain, WEIGHTED[form])]
    np.testing.assert_allclose(*whole, rtol=1e-5)


def test_a_random_walk_has_its_evidence_and_moments(plain):
    """Within 0.1 nats and a tenth of a standard deviation: five times what other keys change."""
    evidence, mean, spread = evidence_and_scale(LOWER)
    assert abs(float(plain.log_evidence) - evidence) < 0.1
    assert abs(float(plain.mean("scale")) - mean) < 0.1 * spread


@pytest.mark.parametrize("form", BACKWARD)
def test_one_structure_in_every_form_of_a_sum_from_the_last_step(form):
    models = [walk_of(BACKWARD[n]) for n in ("turned twice", form)]
    found = running(models[1], Y)
    assert (found.decays, found.weight, found.backward) == ((None,), None, True)
    np.testing.assert_allclose(
        *(kayn.Importance(m, num_particles=20).run(0, None, Y).log_evidence for m in models), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("case", "how"), [("turned twice", "event"), *((n, "plate") for n in ("turned twice", *FURTHER))]
)
def test_all_combinations_of_steps_are_weighed(case, how):
    """Against enumeration, with the density of the model that adds up the innovations itself; weights and decays were
    found in single precision."""
    model = walk_of((BACKWARD | FURTHER)[case], how)
    drawn = ReadRunning(model, {"z": running(model, Y)})

    def guide(y):
        numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        law = dist.Normal(jnp.linspace(0.0, 1.0, STEPS), 1.0)
        if how == "event":
            numpyro.sample("kayn:unbounded:z", law)
        else:
            with numpyro.plate("time", STEPS):
                numpyro.sample("kayn:unbounded:z", law)

    problem = agrees(drawn, Y, guide=guide, close=1e-6)
    assert problem.layout.axis_of("kayn:unbounded:z").scope


@pytest.mark.parametrize("case", ["turned twice", "two lags", "a moving average"])
def test_chains_of_higher_order_have_their_evidence_and_moments(case):
    """Within 0.1 nats and a tenth of a standard deviation: three times what other keys change."""
    levels = (BACKWARD | FURTHER)[case]
    posterior = fitted(walk_of(levels), 30)
    evidence, mean, spread = evidence_and_scale(matrix_of(levels))
    assert abs(float(posterior.log_evidence) - evidence) < 0.1
    assert abs(float(posterior.mean("scale")) - mean) < 0.1 * spread
    assert abs(float(posterior.std("scale")) - spread) < 0.1 * spread


@pytest.mark.parametrize("case", OTHERS)
def test_weights_and_decays_that_are_numbers(case):
    model, matrix = OTHERS[case]
    posterior = fitted(model, 100)
    evidence, mean, spread = evidence_and_scale(matrix)
    assert abs(float(posterior.log_evidence) - evidence) < 0.1
    assert abs(float(posterior.mean("scale")) - mean) < 0.1 * spread


def test_a_decay_that_is_a_latent():
    """Against quadrature over the decay: an autoregression of known scale."""

    def model(y):
        decay = numpyro.sample("decay", dist.Uniform(0.0, 1.0))
        with numpyro.plate("time", STEPS):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        level = loop(decay)(0.5, z)
        numpyro.sample("y", dist.Normal(level, 0.4), obs=y)

    def behind(y):
        with numpyro.plate("time", STEPS):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        decay = numpyro.sample("decay", dist.Uniform(0.0, 1.0))
        numpyro.sample("y", dist.Normal(loop(decay)(0.5, z), 0.4), obs=y)

    assert running(model, Y).computed.latents == ("decay",)
    assert running(behind, Y).computed.latents == ("decay",)
    decays = (np.arange(400) + 0.5) / 400
    lags = np.arange(STEPS)[:, None] - np.arange(STEPS)
    matrices = [0.5 * LOWER * d ** np.maximum(lags, 0) for d in decays]
    logs = np.array([multivariate_normal(np.zeros(STEPS), m @ m.T + 0.16 * np.eye(STEPS)).logpdf(Y) for m in matrices])
    weight = np.exp(logs - logs.max())
    mean = (weight * decays).sum() / weight.sum()
    posterior = fitted(model)
    assert abs(float(posterior.log_evidence) - np.log(weight.mean()) - logs.max()) < 0.1
    assert abs(float(posterior.mean("decay")) - mean) < 0.03


def test_results_are_those_of_the_innovations():
    """Of a known scale, where their posterior is Normal; within a fifth of a standard deviation of it."""

    def model(y, steps=STEPS):
        with numpyro.plate("time", steps):
            z = numpyro.sample("z", dist.Normal(0.1, 1.0))
            level = numpyro.deterministic("level", 0.5 * jnp.cumsum(z))
            numpyro.sample("y", dist.Normal(level, 0.4), obs=y)

    posterior = fitted(model, 100)
    matrix = 0.5 * LOWER
    precision = np.eye(STEPS) + matrix.T @ matrix / 0.16
    mean = np.linalg.solve(precision, 0.1 + matrix.T @ Y / 0.16)
    spread = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert posterior.latent_names == ("z",)
    draws = posterior.sample(1, 2000)
    assert set(draws) == {"z", "level"}
    for found in (posterior.mean("z"), draws["z"].mean(0)):
        np.testing.assert_allclose(found, mean, atol=0.2 * spread.min())
    np.testing.assert_allclose(posterior.std("z"), spread, rtol=0.15)
    np.testing.assert_allclose(draws["level"], 0.5 * np.cumsum(draws["z"], -1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(posterior.mean("level"), matrix @ mean, atol=0.1)
    longer = posterior.predictive(0, 500, None, STEPS + 3)
    assert {n: v.shape for n, v in longer.items()} == dict.fromkeys(("z", "level", "y"), (500, STEPS + 3))
    # innovations behind the data are those of the prior: five standard errors
    np.testing.assert_allclose(longer["z"][:, STEPS:].mean(), 0.1, atol=5 / np.sqrt(1500))
    np.testing.assert_allclose(longer["z"][:, :STEPS].mean(0), mean, atol=5 * spread.max() / np.sqrt(500))
    np.testing.assert_allclose(longer["level"], 0.5 * np.cumsum(longer["z"], -1), rtol=1e-3, atol=1e-4)
    drawn = posterior.to_datatree(num_samples=20)["posterior"]["z"]
    assert drawn.shape[-1] == STEPS
    np.testing.assert_allclose(drawn.attrs["effective_sample_size"], min(20, np.min(posterior.ess("z"))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(posterior.expectation(lambda z: z), posterior.mean("z"), atol=1e-4)
    scores = posterior.log_predictive(0, 50, np.append(Y, [2.2, 2.3, 2.4]), STEPS + 3)
    assert scores.pointwise["y"].shape == (STEPS + 3,)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_walk_for_every_element_of_a_plate(axis):
    """Steps in front of the plate and behind it, of a known scale and with gaps: walks do not know of each other."""
    data = np.moveaxis(np.stack([Y, -Y, 1.5 - Y]), 1, axis)
    gaps = np.sqrt(GAPS) if axis else np.sqrt(GAPS)[:, None]

    def model(y):
        with numpyro.plate("walks", 3, dim=-1 - axis), numpyro.plate("time", STEPS, dim=axis - 2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            level = numpyro.deterministic("level", 0.5 * jnp.cumsum(gaps * z, axis))
            numpyro.sample("y", dist.Normal(level, 0.4), obs=y)

    covariance = 0.25 * (LOWER * GAPS) @ LOWER.T
    unit = covariance + 0.16 * np.eye(STEPS)
    rows = np.moveaxis(data, axis, 1)
    posterior = kayn.fit(model, args=(data,), progress=False, num_particles=30).posterior()
    assert posterior.problem.layout.axis_of("kayn:unbounded:z").scope == tuple(
        n for n, _ in posterior.problem.graph.latent("kayn:unbounded:z").plates
    )
    evidence = sum(multivariate_normal(np.zeros(STEPS), unit).logpdf(row) for row in rows)
    assert abs(float(posterior.log_evidence) - evidence) < 0.3
    levels = np.moveaxis(np.asarray(posterior.mean("level")), axis, 1)
    spread = np.sqrt(np.diag(covariance - covariance @ np.linalg.solve(unit, covariance)))
    np.testing.assert_allclose(levels, rows @ np.linalg.solve(unit, covariance), atol=0.3 * spread.min())
    draws = posterior.sample(0, 100)
    np.testing.assert_allclose(draws["level"], 0.5 * np.cumsum(gaps * draws["z"], axis + 1), rtol=1e-3, atol=1e-4)


def panel(states, units_first=False):
    """Three series, whose states are a function of scale, decays and innovations [STEPS, 3]."""

    def model(y):
        scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        with numpyro.plate("series", 3, dim=-1):
            decay = numpyro.sample("decay", dist.Uniform(0.0, 1.0))
        dims = (-2, -1) if units_first else (-1, -2)
        series, time = (
            numpyro.plate(n, size, dim=d) for n, size, d in zip(("series", "time"), (3, STEPS), dims, strict=True)
        )
        with series, time:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        level = states(scale, decay, z)
        with series, time:
            numpyro.sample("y", dist.Normal(level, 0.4), obs=y.T if units_first else y)

    return model


def series(scale, decay, z):
    return jax.lax.scan(lambda c, x: (c + scale * x,) * 2, jnp.zeros(3), z)[1]


def decaying(scale, decay, z):
    return jax.lax.scan(lambda c, x: (decay * c + scale * x,) * 2, jnp.zeros(3), z)[1]


def decaying_one_by_one(scale, decay, z):
    def one(d, own):
        return jax.lax.scan(lambda c, x: (d * c + scale * x,) * 2, 0.0, own)[1]

    return jax.vmap(one, (0, 1), 1)(decay, z)


PANEL = np.stack([Y, -Y, 1.5 - Y], 1)
OWN_SCALES = panel(lambda s, d, z: s * d * jnp.cumsum(z, 0))
SERIES = {
    "a loop": (panel(series), panel(lambda s, d, z: s * jnp.cumsum(z, 0))),
    "steps last": (panel(lambda s, d, z: series(s, d, z.T).T, True), panel(lambda s, d, z: s * jnp.cumsum(z, 1), True)),
    "decays, under vmap": (panel(decaying_one_by_one), panel(decaying)),
    "scales in a sum": (panel(lambda s, d, z: jnp.cumsum(ROOT[:, None] * (s * d * z) / ROOT[:, None], 0)), OWN_SCALES),
    "scales in a sum of columns": (panel(lambda s, d, z: jnp.cumsum((z / (1 / d)).T * s, 1).T), OWN_SCALES),
    "scales in a loop": (panel(lambda s, d, z: series(s * d, d, z)), OWN_SCALES),
    "scales of columns": (
        panel(lambda s, d, z: jnp.cumsum(s * d[:, None] * z, 1), True),
        panel(lambda s, d, z: s * d[:, None] * jnp.cumsum(z, 1), True),
    ),
}
"""Ways to write one panel, and what they have to be."""


@cache
def evidence_of_panel(model):
    assert running(model, PANEL) is not None
    posterior = kayn.Importance(model, num_particles=10).run(0, None, PANEL)
    assert len(posterior.problem.layout.axis_of("kayn:unbounded:z").scope) == 2
    return posterior.log_evidence


@pytest.mark.parametrize("case", SERIES)
def test_series_of_a_panel_in_one_loop(case):
    np.testing.assert_allclose(*map(evidence_of_panel, SERIES[case]), rtol=1e-5)


@pytest.mark.parametrize(("events", "last"), [(1, True), (2, True), (2, False)])
def test_series_that_are_events_are_those_of_plates(events, last):
    """Every series has indices of its own, and one key gives one evidence."""

    def law(shape, events):
        return dist.Normal(0.0, 1.0).expand(shape).to_event(events)

    def model(y, events=events):
        scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        time = numpyro.plate("time", STEPS, dim=-1)
        if events == 2:
            z = numpyro.sample("z", law([3, STEPS] if last else [STEPS, 3], 2))
        elif events:
            with numpyro.plate("series", 3):
                z = numpyro.sample("z", law([STEPS], 1))
        else:
            dims = (-2, -1) if last else (-1, -2)
            with numpyro.plate("series", 3, dim=dims[0]), numpyro.plate("steps", STEPS, dim=dims[1]):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        z = z if last else z.T
        with numpyro.plate("all of them", 3, dim=-2), time:
            numpyro.sample("y", dist.Normal(scale * jnp.cumsum(z, -1), 0.4), obs=y)

    plain = kayn.Importance(lambda y: model(y, 0), num_particles=10).run(0, None, PANEL.T)
    posterior = kayn.Importance(model, num_particles=10).run(0, None, PANEL.T)
    assert len(posterior.problem.layout.axis_of("kayn:unbounded:z").scope) == 2
    np.testing.assert_allclose(posterior.log_evidence, plain.log_evidence, rtol=1e-5)
    np.testing.assert_allclose(posterior.mean("scale"), plain.mean("scale"), rtol=1e-4)


def test_series_that_depend_on_each_other_are_one_chain():
    """All of their states of a time share an index (`tests/programs/test_stepping.py` has the evidence of such)."""

    def loop_of(before):
        return panel(lambda s, d, z: jax.lax.scan(lambda c, x: (before(c) + s * x,) * 2, jnp.zeros(3), z)[1])

    crossed = np.array([[0.5, 0.2, 0.0], [0.0, 0.5, 0.2], [0.0, 0.0, 0.5]], np.float32)
    mixed = [lambda c: crossed @ c, lambda c: 0.5 * c[::-1], lambda c: c - c.mean(), lambda c: 0.5 * c + jnp.roll(c, 1)]
    apart = [lambda c: jnp.where(c.size > 1, 0.5 * c, 0.0)]
    for before, scope in [*((m, {"time"}) for m in mixed), *((a, {"series", "time"}) for a in apart)]:
        axes = kayn.analyze(loop_of(before), PANEL).layout.axes
        assert [set(a.scope) for a in axes if "time" in a.scope] == [scope]


def test_heavy_tails_stay_what_they_are():
    def model(y):
        with numpyro.plate("time", STEPS):
            z = numpyro.sample("z", dist.StudentT(4.0, 0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.5 * jnp.cumsum(z), 0.4), obs=y)

    posterior = fitted(model, 100)
    rng = np.random.default_rng(0)
    z = rng.standard_t(4.0, (400_000, STEPS))
    logs = -0.5 * ((Y - 0.5 * np.cumsum(z, -1)) ** 2).sum(-1) / 0.16 - STEPS * np.log(0.4 * np.sqrt(2 * np.pi))
    # draws from the prior know it to 0.03 nats
    assert abs(float(posterior.log_evidence) - np.log(np.exp(logs - logs.max()).mean()) - logs.max()) < 0.2


def test_what_is_no_chain_stays_as_it_is():
    """Sums of sums of sums, sums of two levels, what is not linear; latents that a handler sets, and masked ones."""
    kept = {
        "thrice": walk_of(lambda s, z: s * jnp.cumsum(jnp.cumsum(jnp.cumsum(z)))),
        "centred": walk_of(lambda s, z: s * (jnp.cumsum(z) - jnp.cumsum(z).mean())),
        "distant steps": walk_of(lambda s, z: s * (jnp.cumsum(z) - jnp.roll(jnp.cumsum(z), 4))),
        "three lags": walk_of(loop_of_three),
        "an average of five": walk_of(lambda s, z: s * jnp.convolve(z, jnp.ones(5))[:STEPS]),
        "an average by latents": walk_of(lambda s, z: z + s * jnp.append(0.0, z[:-1])),
        "products": walk_of(lambda s, z: jnp.cumprod(1.0 + s * z)),
        "the largest": walk_of(lambda s, z: s * jax.lax.cummax(z)),
        "logs of sums": walk_of(lambda s, z: s * jax.lax.cumlogsumexp(z)),
        "two levels": walk_of(lambda s, z: s * (jnp.cumsum(z) + jnp.cumsum(z)[::-1])),
        "of squares": walk_of(lambda s, z: s * jnp.cumsum(z**2)),
        "elementwise": walk_of(lambda s, z: s * z),
        "set": numpyro.handlers.condition(PLAIN, {"z": jnp.zeros(STEPS)}),
        "masked": numpyro.handlers.mask(PLAIN, mask=False),
    }
    assert {n for n, m in kept.items() if running(m, Y) is not None} == set()


def test_beside_another_chain_none_reads_two_steps_back():
    """A sum of sums beside another sum stays as it is; in one sum with it, both are chains of one step back."""

    def chains_of(level):
        def model(y):
            z = innovations("plate")
            slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([STEPS]))
            numpyro.sample("y", dist.Normal(level(z, 0.1 * slopes), 0.4), obs=y)

        sites = in_running_sums(Inspected.of(model, (Y,), {}, {})).sites
        return {n: s.running.order for n, s in sites.items() if s.running is not None}

    assert chains_of(lambda z, x: jnp.cumsum(z) + jnp.cumsum(jnp.cumsum(x))) == {"kayn:unbounded:z": 1}
    together = {"kayn:unbounded:z": 1, "kayn:unbounded:slopes": 1}
    assert chains_of(lambda z, x: jnp.cumsum(z + jnp.cumsum(x))) == together


def test_a_guide_of_the_users_draws_the_innovations():
    def guide(y):
        numpyro.sample("scale", dist.LogNormal(-1.0, 0.3))
        with numpyro.plate("time", STEPS):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    posterior = kayn.Importance(PLAIN, guide, num_particles=5).run(0, None, Y)
    assert set(posterior.problem.graph.latent_names) == {"scale", "z"}
