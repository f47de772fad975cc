"""Loops over several states that do not all depend on each other: split, with the results of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.extend.core import jaxpr_as_fun
from scipy.stats import multivariate_normal

import kayn
from kayn.graph.split_loops import groups_of, with_split_loops

STEPS = 6
SERIES = np.array([0.3, 0.1, 0.8, 1.2, 2.5, 3.1], np.float32)


def level_of_new_slope(a, b, damping):
    def step(c, x):
        slope = damping * c[1] + 0.5 * x[1]
        level = c[0] + slope + 0.3 * x[0]
        return (level, slope), level

    return jax.lax.scan(step, (0.0, 0.0), (a, b))[1]


def level_of_old_slope(a, b, damping):
    def step(c, x):
        level = c[0] + c[1] + 0.3 * x[0]
        return (level, damping * c[1] + 0.5 * x[1]), level

    return jax.lax.scan(step, (0.0, 0.0), (a, b))[1]


def turned(a, b, damping):
    def step(c, x):
        slope, level = damping * c[0] + 0.5 * x[1], c[1] + c[0] + 0.3 * x[0]
        return (slope, level), (level, slope * level)

    last, (levels, products) = jax.lax.scan(step, (0.1, 0.2), (a, b), reverse=True)
    return levels + last[0] + jnp.sin(products) + last[1]


def with_a_count(a, b, damping):
    def step(c, x):
        count, level, slope, before = c
        slope, before = damping * slope + 0.5 * x[1], slope
        return (count + 1, level + before + 0.3 * x[0], slope, before), (level, count)

    (_, last, *_), (levels, counts) = jax.lax.scan(step, (0, 0.0, 0.0, 0.0), (a, b))
    return levels + last + counts


def of_both(a, b, damping):
    step = lambda c, x: ((c[0] + 0.1 * c[1] + x[0], damping * c[1] + 0.2 * c[0] + x[1]), c[0])  # noqa: E731
    return jax.lax.scan(step, (0.0, 0.0), (a, b))[1]


FORMS = {f.__name__: f for f in (level_of_new_slope, level_of_old_slope, turned, with_a_count)}


@pytest.mark.parametrize("form", FORMS)
def test_split_loops_have_the_results_of_the_whole(form):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=STEPS), jnp.float32) for _ in "ab")
    closed = jax.make_jaxpr(FORMS[form])(a, b, 0.8)
    starts = closed.jaxpr.invars[:2]
    again = jax.make_jaxpr(lambda *x: with_split_loops(closed.jaxpr, x, starts))(a, b, 0.8)
    loops = [sum(e.primitive.name == "scan" for e in c.jaxpr.eqns) for c in (closed, again)]
    assert loops[0] == 1 and loops[1] > 1
    np.testing.assert_allclose(jax.jit(jaxpr_as_fun(again))(a, b, 0.8)[0], FORMS[form](a, b, 0.8), rtol=1e-5)


def test_states_that_depend_on_each_other_stay_together():
    (loop,) = (e for e in jax.make_jaxpr(of_both)(jnp.ones(3), jnp.ones(3), 0.5).eqns if e.primitive.name == "scan")
    assert groups_of(loop, range(len(loop.invars))) == ()


@pytest.mark.parametrize("form", ["level_of_new_slope", "level_of_old_slope"])
def test_level_and_slope_in_one_loop_are_one_chain_of_two_states(form):
    """Each is read by itself at every step; the evidence is that of the joint Normal of all rows, within 0.05 nats."""

    def model(y):
        with numpyro.plate("time", STEPS):
            level, slope = (numpyro.sample(n, dist.Normal(0.0, 1.0)) for n in ("level", "slope"))
            numpyro.sample("y", dist.Normal(FORMS[form](level, slope, 1.0), 0.4), obs=y)

    layout = kayn.analyze(model, SERIES).layout
    assert all(layout.axis_of(f"kayn:unbounded:{n}").scope for n in ("slope", "level")) and not layout.couplings
    both = jnp.eye(2 * STEPS)
    run = jax.vmap(lambda a, b: FORMS[form](a, b, 1.0), out_axes=1)
    matrix = np.asarray(run(both[:, :STEPS], both[:, STEPS:]), float)
    exact = multivariate_normal(np.zeros(STEPS), matrix @ matrix.T + 0.16 * np.eye(STEPS)).logpdf(SERIES)
    posterior = kayn.fit(model, args=(SERIES,), progress=False, num_particles=20).posterior(escalate=False)
    assert abs(float(posterior.log_evidence) - exact) < 0.05
