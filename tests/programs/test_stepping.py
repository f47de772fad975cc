"""Innovations that a loop turns into its state step by step: vector autoregressions, and states that are not linear."""

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
from kayn.programs.running import Running
from kayn.programs.sites import Inspected
from tests.graph.enumerated import agrees

STEPS = 4
Y = np.array([[0.3, -0.2], [0.1, 0.4], [0.8, 0.1], [1.2, -0.5]], np.float32)
MIX = np.array([[0.6, 0.2], [-0.3, 0.5]], np.float32)
TIMES = np.array([1.0, 0.5, 2.0, 1.5], np.float32)


def innovations(how, shape):
    if how == "plate":
        with numpyro.plate("time", STEPS):
            return numpyro.sample("z", dist.Normal(0.0, 1.0).expand(shape[1:]).to_event(len(shape) - 1))
    return numpyro.sample("z", dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))


def model_of(states, how="plate", shape=(STEPS, 2)):
    """A model whose states are a function of a scale and of innovations."""

    def model(y):
        scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        x = numpyro.deterministic("x", states(scale, innovations(how, shape)))
        numpyro.sample("y", dist.Normal(x, 0.4).to_event(len(shape) - 1), obs=y if len(shape) > 1 else y[:, 0])

    return model


def loop(step, start):
    return lambda s, z: jax.lax.scan(lambda c, now: (step(s, c, now),) * 2, jnp.asarray(start, z.dtype), z)[1]


def two_lags(s, z):
    def step(carry, now):
        new = jnp.tanh(carry[0]) - 0.3 * carry[1] ** 2 + s * now
        return (new, carry[0]), new

    return jax.lax.scan(step, (jnp.asarray(0.4, z.dtype), jnp.asarray(-0.2, z.dtype)), z)[1]


def with_times(s, z):
    def step(carry, now):
        count, state = carry
        state = jnp.sin(state + 0.1 * count) * now[0] + s * now[1]
        return (count + 1, state), state

    return jax.lax.scan(step, (0, jnp.asarray(0.1, z.dtype)), (jnp.array(TIMES), z))[1]


LINEAR = {
    "a vector": loop(lambda s, c, e: MIX @ c + s * e, np.zeros(2)),
    "a vector, scaled before": lambda s, z: loop(lambda _, c, e: MIX @ c + e, np.zeros(2))(s, s * z),
}
"""Loops whose states are the scale times what they are for a scale of one."""
OTHERS = {
    "a vector from elsewhere": loop(lambda s, c, e: MIX @ c + s * e, np.ones(2)),
    "a vector that is not linear": loop(lambda s, c, e: jnp.tanh(MIX @ c) + s * e, np.zeros(2)),
    "a drift added before": lambda s, z: loop(lambda _, c, e: MIX @ c + e, np.zeros(2))(s, TIMES[:, None] + s * z),
    "a size of the state's": loop(lambda s, c, e: 0.5 * c + s * jnp.exp(0.3 * c[::-1]) * e, np.zeros(2)),
}
ROOTS = loop(lambda s, c, e: 0.5 * c + 0.2 + s * jnp.sqrt(jnp.maximum(c, 0.0)) * e, 0.5)
SINGLE = {
    "growth": loop(lambda s, c, e: c + 0.3 * c * (1.0 - c) + s * e, 0.5),
    "two lags": two_lags,
    "numbers of steps": with_times,
}
CASES = {
    **{n: model_of(f) for n, f in (LINEAR | OTHERS).items()},
    "an event": model_of(LINEAR["a vector"], "event"),
    **{n: model_of(f, shape=(STEPS,)) for n, f in SINGLE.items()},
}


def found(model):
    site = in_running_sums(Inspected.of(model, (Y,), {}, {})).sites.get("kayn:unbounded:z")
    return None if site is None else site.running


@pytest.mark.parametrize("case", CASES)
def test_the_law_of_states_is_that_of_innovations(case):
    """All combinations of steps against enumeration, and the density against that of innovations and the volume."""
    model = CASES[case]
    with jax.enable_x64(True):
        coordinates = found(model)
        drawn = ReadRunning(model, {"z": coordinates})

    def guide(y):
        numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        law = dist.Normal(jnp.linspace(0.0, 1.0, coordinates.stepping.found_in[-1]), 1.0)
        if case == "an event":
            numpyro.sample("kayn:unbounded:z", law.expand([STEPS, 2]).to_event(1))
        else:
            with numpyro.plate("time", STEPS):
                numpyro.sample("kayn:unbounded:z", law.to_event(1) if len(coordinates.stepping.found_in) > 1 else law)

    problem = agrees(drawn, Y, guide=guide, close=1e-6)
    assert problem.layout.axis_of("kayn:unbounded:z").scope
    assert ("scale" in coordinates.latents) == (case not in (*LINEAR, "an event"))
    with jax.enable_x64(True):
        given = coordinates.given(dict.fromkeys(coordinates.latents, jnp.float64(0.7)))
        z = jax.random.normal(jax.random.key(0), coordinates.stepping.found_in)
        law = dist.Normal(0.0, 1.0).expand(z.shape).to_event(z.ndim)
        r = given.sums(z)
        slopes = jax.jacobian(lambda z: given.sums(z).ravel())(z).reshape(z.size, z.size)
        volume = np.linalg.slogdet(slopes)[1]
        np.testing.assert_allclose(given.innovations(r, given.earlier(r)), z, atol=1e-6)
        np.testing.assert_allclose(Running(law, given).log_prob(r), law.log_prob(z) - volume, atol=1e-6)
        alone = Running(law, given).steps(given.earlier(r)).log_prob(r).sum()
        np.testing.assert_allclose(alone, law.log_prob(z) - volume, atol=1e-6)


def test_states_that_lead_nowhere_are_impossible():
    """A root of states that particles have below zero."""
    model = model_of(ROOTS, shape=(STEPS,))
    given = found(model).given({"scale": jnp.float32(0.7)})
    law = Running(dist.Normal(0.0, 1.0).expand([STEPS]), given)
    density = law.log_prob(jnp.array([0.5, -0.5, 0.3, 0.4]))
    assert np.isfinite(density[:2]).all() and density[2] < -1e20
    assert np.isfinite(law.log_prob(jnp.array([0.5, 0.5, 0.3, 0.4]))).all()
    assert np.isfinite(kayn.Importance(model, num_particles=20).run(0, None, Y).log_evidence)


def test_loops_under_vmap_are_those_of_all_at_once():
    """Steps behind the plate of series and before it: the same structure and evidence."""

    def by_series(s, z):
        return jax.vmap(lambda x: SINGLE["growth"](s, x), 1, 1)(z)

    def model(turned):
        def run(y):
            scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
            series, time = numpyro.plate("series", 2, dim=-1 - turned), numpyro.plate("time", STEPS, dim=turned - 2)
            with series, time:
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                x = jax.vmap(lambda x: SINGLE["growth"](scale, x))(z) if turned else by_series(scale, z)
                numpyro.sample("y", dist.Normal(x, 0.4), obs=y.T if turned else y)

        return run

    results = [kayn.Importance(model(turned), num_particles=6).run(0, None, Y) for turned in (0, 1)]
    axes = [p.problem.layout.axis_of("kayn:unbounded:z") for p in results]
    assert [set(x.scope) for x in axes] == [{"series", "time"}] * 2
    for turned in (0, 1):
        z = jax.random.normal(jax.random.key(0), (2, STEPS) if turned else (STEPS, 2))
        given = found(model(turned)).given({"scale": jnp.float32(0.7)})
        states = jax.vmap(lambda x: SINGLE["growth"](0.7, x))(z if turned else z.T)
        np.testing.assert_allclose(given.sums(z), states if turned else states.T, rtol=1e-5)
        np.testing.assert_allclose(given.innovations(given.sums(z), given.earlier(given.sums(z))), z, atol=1e-4)


def test_a_vector_autoregression_has_its_evidence_and_innovations():
    """Of a known scale: within 0.1 nats and a fifth of a standard deviation, three times what other keys change."""
    states = LINEAR["a vector"]

    def model(y, steps=STEPS):
        with numpyro.plate("time", steps):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        x = numpyro.deterministic("x", states(0.5, z))
        numpyro.sample("y", dist.Normal(x, 0.4).to_event(2), obs=y)

    posterior = kayn.fit(model, args=(Y,), progress=False, num_particles=50).posterior()
    unit = np.eye(2 * STEPS, dtype=np.float32).reshape(-1, STEPS, 2)
    matrix = np.stack([np.asarray(states(0.5, jnp.asarray(e))).ravel() for e in unit], 1)
    covariance = matrix @ matrix.T + 0.16 * np.eye(2 * STEPS)
    exact = multivariate_normal(np.zeros(2 * STEPS), covariance).logpdf(Y.ravel())
    assert abs(float(posterior.log_evidence) - exact) < 0.1
    mean = (matrix.T @ np.linalg.solve(covariance, Y.ravel())).reshape(STEPS, 2)
    np.testing.assert_allclose(posterior.mean("z"), mean, atol=0.2)
    # steps behind the data are made of innovations of the prior
    longer = posterior.predictive(0, 200, None, STEPS + 2)
    assert longer["x"].shape == (200, STEPS + 2, 2)
    np.testing.assert_allclose(longer["x"], jax.vmap(lambda z: states(0.5, z))(longer["z"]), atol=1e-4)


def test_what_reads_several_states_at_once_stays_as_it_is():
    vector, single = LINEAR["a vector"], SINGLE["growth"]
    kept = {
        "centred": model_of(lambda s, z: vector(s, z) - vector(s, z).mean(0)),
        "summed": model_of(lambda s, z: jnp.cumsum(vector(s, z), 0)),
        "read before": model_of(lambda s, z: vector(s, jnp.cumsum(z, 0) + z[::-1])),
        "innovations as well": model_of(lambda s, z: single(s, z) + z.mean(), shape=(STEPS,)),
        "mixed innovations": model_of(lambda s, z: loop(lambda s, c, e: MIX @ c + MIX @ e, np.zeros(2))(s, z)),
        "squares": model_of(loop(lambda s, c, e: jnp.tanh(c) + s * e**2, 0.0), shape=(STEPS,)),
        "backward": model_of(
            lambda s, z: jax.lax.scan(lambda c, e: (jnp.tanh(c) + s * e,) * 2, jnp.zeros(2), z, reverse=True)[1]
        ),
    }
    assert {n for n, m in kept.items() if getattr(found(m), "stepping", None) is not None} == set()


def test_what_a_step_depends_on_may_be_drawn_behind():
    """But for what is drawn in a plate, of a law that depends on latents, or beside parameters."""

    def behind(law):
        def model(y):
            z = innovations("plate", (STEPS, 2))
            decay = law()
            x = jax.lax.scan(lambda c, e: (jnp.tanh(decay * c) + e,) * 2, jnp.zeros(2), z)[1]
            numpyro.sample("y", dist.Normal(x, 0.4).to_event(1), obs=y)

        return model

    def among_others():
        numpyro.param("unused", 1.0)
        return numpyro.sample("decay", dist.Normal(0.5, 0.1))

    def in_a_plate():
        with numpyro.plate("both", 2):
            return numpyro.sample("decay", dist.Normal(0.5, 0.1))

    def in_a_part_of_a_plate():
        with numpyro.plate("many", 4, subsample_size=2):
            return numpyro.sample("decay", dist.Normal(0.5, 0.1))

    def below():
        return numpyro.sample("decay", dist.Normal(numpyro.sample("centre", dist.Normal(0.5, 0.1)), 0.1))

    plain = behind(lambda: numpyro.sample("decay", dist.Normal(jnp.full(2, 0.5), 0.1).to_event(1)))
    assert found(plain).latents == ("decay",)
    assert [found(behind(law)) for law in (among_others, in_a_part_of_a_plate, below)] == [None] * 3
    for law in (plain, behind(in_a_plate)):
        read = in_running_sums(Inspected.of(law, (Y,), {}, {}))
        names = [n for n, s in read.sites.items() if s.kind == "sample"]
        assert names == ["decay", "kayn:unbounded:z", "y"]
    assert [f[0] for f in read.sites["decay"].frames] == ["both"]


def test_loops_with_numbers_for_every_step_are_read_again_where_there_are_more():
    coordinates = found(CASES["numbers of steps"])
    longer = ReadRunning(lambda: numpyro.sample("z", dist.Normal(jnp.zeros(STEPS + 1), 1.0)), {"z": coordinates})
    with pytest.raises(kayn.errors.ModelError, match="draw the states in a numpyro"):
        numpyro.handlers.seed(longer, 0)()

    def states(z, times):
        step = lambda c, now: (jnp.sin(c) * now[0] + 0.5 * now[1],) * 2  # noqa: E731
        return jax.lax.scan(step, 0.1, (jnp.asarray(times), z))[1]

    def model(y, times):
        with numpyro.plate("time", len(times)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            x = numpyro.deterministic("x", states(z, times))
            numpyro.sample("y", dist.Normal(x, 0.4), obs=y)

    posterior = kayn.Importance(model, num_particles=20).run(0, None, Y[:, 0], TIMES)
    more = np.append(TIMES, [0.7, 1.1]).astype(np.float32)
    drawn = posterior.predictive(0, 400, None, more)
    assert drawn["x"].shape == (400, STEPS + 2)
    np.testing.assert_allclose(drawn["x"], jax.vmap(lambda z: states(z, more))(drawn["z"]), atol=1e-4)
    # five standard errors: 6e-7
    assert abs(float(drawn["z"][:, STEPS:].mean())) < 5 / np.sqrt(800)
    np.testing.assert_allclose(drawn["x"][:, :STEPS].mean(0), posterior.mean("x"), atol=0.2)


def trend_of(names, how="plate", of_noise=jnp.cumsum):
    """A local linear trend: a level to which its slope and noise of its own are added, whose slope adds up noise."""

    def model(y):
        if how == "plate":
            with numpyro.plate("time", len(y)):
                drawn = {n: numpyro.sample(n, dist.Normal(0.0, 1.0)) for n in names}
        else:
            drawn = {n: numpyro.sample(n, dist.Normal(0.0, 1.0).expand([len(y)])) for n in names}
        level = jnp.cumsum(of_noise(0.5 * drawn["slope"]) + 0.3 * drawn["level"])
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(level, 0.4), obs=y)

    return model


TRENDS = {
    "slope first": trend_of(("slope", "level")),
    "level first": trend_of(("level", "slope")),
    "vectors": trend_of(("level", "slope"), "vectors"),
}
SERIES = np.array([0.3, 0.1, 0.8, 1.2, 2.5, 3.1], np.float32)


@pytest.mark.parametrize("case", TRENDS)
def test_level_and_slope_are_one_chain_of_two_states(case):
    """Each is read by itself at every step; the evidence is that of the joint Normal of all rows, within 0.05 nats."""
    posterior = kayn.fit(TRENDS[case], args=(SERIES,), progress=False, num_particles=20).posterior(escalate=False)
    layout = kayn.analyze(TRENDS[case], SERIES).layout
    assert all(layout.axis_of(f"kayn:unbounded:{n}").scope for n in ("slope", "level")) and not layout.couplings
    added = np.tril(np.ones((len(SERIES), len(SERIES))))
    spread = 0.25 * added @ added @ (added @ added).T + 0.09 * added @ added.T + 0.16 * np.eye(len(SERIES))
    assert abs(float(posterior.log_evidence) - multivariate_normal(np.zeros(len(SERIES)), spread).logpdf(SERIES)) < 0.05
    # means of innovations, which are what users see: five standard errors of the 20 x 32 particles and more
    for name, matrix in (("slope", 0.5 * added @ added), ("level", 0.3 * added)):
        right = matrix.T @ np.linalg.solve(spread, SERIES)
        np.testing.assert_allclose(posterior.mean(name), right, atol=0.1)


def test_levels_whose_slopes_have_states_of_their_own_stay_as_they_are():
    """Sums that read each other both ways."""
    both = lambda z: jnp.cumsum(jnp.cumsum(z))  # noqa: E731
    names = {
        n
        for n, s in in_running_sums(
            Inspected.of(trend_of(("level", "slope"), of_noise=both), (SERIES,), {}, {})
        ).sites.items()
        if s.running is not None
    }
    assert names == {"kayn:unbounded:level"}
