"""Ordinary models, asked everything, under whatever settings of JAX this process has: see `dev.py lane`.

The lanes run these tests in float64, looking for leaked tracers, stopping at the first NaN, and with two devices.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy.stats import multivariate_normal

import kayn

# a handful of particles
pytestmark = pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")

GROUP = np.array([0, 0, 1, 1, 1, 2])
Y = np.array([0.3, -0.2, 1.1, 0.8, 1.4, -0.5])


def default():
    return jnp.result_type(float)


def groups(group, num_groups, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", num_groups):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 0.8))
        numpyro.deterministic("above", alpha - mu)
    with numpyro.plate("rows", len(group)):
        numpyro.sample("y", dist.Normal(alpha[group], 0.5), obs=y)


def exact_log_evidence(group, y):
    same = group[:, None] == group
    return multivariate_normal.logpdf(y, np.zeros(len(y)), 1.0 + 0.64 * same + 0.25 * np.eye(len(y)))


def sound(tree):
    """Every number is finite, and those that are not whole are of JAX's default precision."""
    for leaf in jax.tree.leaves(tree):
        leaf = jnp.asarray(leaf)
        assert bool(jnp.isfinite(leaf).all())
        assert leaf.dtype == default() or not jnp.issubdtype(leaf.dtype, jnp.floating)


@pytest.fixture(scope="module")
def posterior():
    args = (GROUP, 3, jnp.asarray(Y, float))
    return kayn.fit(groups, args=args, num_particles=20, num_steps=32, progress=False).posterior(num_replicates=16)


def test_a_fit(posterior):
    """Within 5 standard errors and a hundredth of the exact evidence: less than 1e-6 for one key,
    if the weights are no worse than they look."""
    error = float(posterior.log_evidence_error)
    assert abs(float(posterior.log_evidence) - exact_log_evidence(GROUP, Y)) < 5 * error + 0.01
    sound([posterior.log_evidences, posterior.weights("alpha"), posterior.ess("alpha")])
    assert posterior.khat("mu").shape == ()


def test_moments(posterior):
    sound([posterior.mean("alpha"), posterior.std("alpha"), posterior.mean("above"), posterior.std("above")])
    sound([posterior.expectation(lambda mu, alpha: mu * alpha), posterior.covariance("mu", "alpha")])
    sound([posterior.mode(), posterior.sample(1, 10)])
    np.testing.assert_allclose(posterior.mean("above"), posterior.mean("alpha") - posterior.mean("mu"), atol=1e-4)


def test_predictions(posterior):
    new = (np.array([0, 3]), 4, jnp.asarray([0.1, 0.2], float))
    sound(posterior.predictive(1, 5, *new))
    found = posterior.log_predictive(2, 20, *new)
    sound([found.total, found.pointwise, posterior.log_likelihood(3, 5)])
    assert "alpha" in str(posterior.summary())
    assert "posterior" in posterior.to_datatree(num_samples=4).children


def test_transformations_around_kayn():
    importance = kayn.Importance(groups, num_particles=4)
    run = lambda key, y: importance.run(key, {}, GROUP, 3, y).log_evidence  # noqa: E731
    keys, y = jax.random.split(jax.random.key(0), 3), jnp.asarray(Y, float)
    alone = [run(k, y) for k in keys]
    together = jax.jit(jax.vmap(run, (0, None)))(keys, y)
    sound([together, jax.grad(partial(run, keys[0]))(y)])
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-4)


def hidden(y):
    loc = numpyro.sample("loc", dist.Normal(jnp.array([-1.0, 1.0]), 0.5).to_event(1))
    drift = numpyro.sample("drift", dist.Normal(0.0, 0.3))

    def step(carry, y):
        state, level = carry
        state = numpyro.sample("state", dist.Bernoulli(0.2 + 0.6 * state), infer={"enumerate": "parallel"})
        level = numpyro.sample("level", dist.Normal(level + drift, 0.4))
        numpyro.sample("y", dist.Normal(level + loc[state], 0.5), obs=y)
        return (state, level), None

    scan(step, (jnp.zeros((), int), jnp.zeros(())), y)


def test_chains():
    qem = kayn.QEM(hidden, num_particles=4)
    y = jnp.asarray(Y, float)
    state = qem.init(0, y)
    for _ in range(2):
        state, log_z = qem.update(state, y)
    sound([log_z, qem.get_params(state)])
    found = kayn.Importance(hidden, qem.guide, 4).run(1, qem.get_params(state), y)
    sound([found.log_evidences, found.mean("state"), found.sample(1, 3)])


def categories(x):
    theta = numpyro.param("theta", lambda key: jnp.array([0.2, -0.1, 0.3]))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(logits=theta))
        numpyro.sample("x", dist.Normal(kayn.lookup(jnp.array([-1.0, 0.0, 1.5]), z), 0.8), obs=x)


def categories_guide(x):
    slope = numpyro.param("slope", lambda key: jnp.array([0.3, -0.2, 0.1]))
    numpyro.param("rebar_scale", lambda key: jnp.ones(()))
    numpyro.param("rebar_temperature", lambda key: 0.5 * jnp.ones(()), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Categorical(logits=slope * x[:, None]))


def smooth(x):
    mu = numpyro.sample("mu", dist.Normal(numpyro.param("loc", lambda key: 0.3 * jnp.ones(())), 1.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 0.7))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def smooth_guide(x):
    numpyro.sample("mu", dist.Normal(numpyro.param("a", lambda key: 0.1 * jnp.ones(())), 0.9))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(numpyro.param("slope", lambda key: 0.7 * jnp.ones(())) * x, 0.6))


DISCRETE = (
    kayn.RWS(3, "local", wake_phi=0.5, sleep_phi=0.5, defensive=0.2),
    kayn.VIMCO(3, "local"),
    kayn.REBAR(3, "local"),
)
DISCRETE = (*DISCRETE, kayn.Concrete(3), kayn.Reinforce(3), kayn.Sleep(2))
SMOOTH = (kayn.VI(3), kayn.STL(3), kayn.DReG(3), kayn.RWS(3), kayn.VIMCO(3))


@pytest.mark.parametrize(
    ("losses", "model", "guide"), [(DISCRETE, categories, categories_guide), (SMOOTH, smooth, smooth_guide)]
)
def test_gradients(losses, model, guide):
    x = jnp.asarray(Y[:3], float)
    params = {}
    for program in (model, guide):
        trace = numpyro.handlers.trace(numpyro.handlers.seed(program, 0)).get_trace(x)
        params |= {n: s["value"] for n, s in trace.items() if s["type"] == "param"}
    for loss in losses:
        sound(
            jax.jit(jax.value_and_grad(lambda p, loss=loss: loss.loss(jax.random.key(1), p, model, guide, x)))(params)
        )


def test_training():
    phase = kayn.Phase(kayn.RWS(3, "local"), optax.adam(1e-2))
    found = kayn.train(
        categories,
        categories_guide,
        phase,
        jnp.asarray(Y, float),
        batch_size=2,
        num_steps=4,
        held_out=Y[:2],
        progress=False,
    )
    sound([found.params, found.losses])


two_devices = pytest.mark.skipif(len(jax.devices()) < 2, reason="one device: see dev.py lane devices")


@two_devices
def test_data_on_another_device():
    """Data that a user has put on the second device stay there, and so does what is computed from them."""
    second, y = jax.devices()[1], jnp.asarray(Y, float)
    here = kayn.Importance(groups, num_particles=4).run(0, {}, GROUP, 3, y)
    there = kayn.Importance(groups, num_particles=4).run(0, {}, GROUP, 3, jax.device_put(y, second))
    assert there.log_evidences.devices() == {second}
    np.testing.assert_allclose(there.log_evidences, here.log_evidences, rtol=1e-5)
    np.testing.assert_allclose(there.mean("above"), here.mean("above"), rtol=1e-4, atol=1e-5)
    assert there.sample(0, 3)["alpha"].shape == (3, 3)


@two_devices
def test_rows_on_two_devices():
    """Rows that are cut between two devices give what they give on one."""
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    y = jnp.asarray(Y, float)
    one = kayn.Importance(groups, num_particles=4).run(0, {}, GROUP, 3, y)
    two = kayn.Importance(groups, num_particles=4).run(0, {}, GROUP, 3, jax.device_put(y, rows))
    np.testing.assert_allclose(two.log_evidences, one.log_evidences, rtol=1e-5)
    loss, params = kayn.VI(3), {"loc": jnp.array(0.3), "a": jnp.array(0.1), "slope": jnp.array(0.7)}
    gradient = jax.jit(jax.grad(lambda p, x: loss.loss(jax.random.key(1), p, smooth, smooth_guide, x)))
    found = gradient(params, jax.device_put(y, rows))
    for name, value in gradient(params, y).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)
