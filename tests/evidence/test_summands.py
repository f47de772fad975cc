"""What is said of each element of a plate, and what belongs to none, make up the total."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import kayn
from kayn import meters
from kayn.axes.request import make_request
from kayn.evidence.draws import draw_particles
from kayn.evidence.problem import build_problem
from kayn.evidence.summands import log_evidence_summands
from kayn.evidence.weights import proposal_terms
from kayn.inference.rows import data_behind

X = jnp.linspace(-1.0, 1.0, 4)


def model(x, size=4, top=False, apart=True, inner=0):
    """Latents u by row: exact guides make every weight the same. `inner` is the size of a plate within the rows."""
    shift = numpyro.param("shift", 0.3)
    if apart:
        numpyro.sample("apart", dist.Normal(shift, 1.0), obs=0.5)
    centre = numpyro.sample("top", dist.Normal(0.0, 1.0)) if top else 0.0
    with numpyro.plate("rows", size, subsample_size=4, dim=-1):
        u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(u + centre, 1.0), obs=x)
        numpyro.sample("y", dist.Normal(shift * jnp.ones(4), 1.0), obs=x)
        if inner:
            with numpyro.plate("inner", inner, subsample_size=2, dim=-2):
                numpyro.sample("w", dist.Normal(shift * jnp.ones((2, 4)), 1.0), obs=jnp.ones((2, 4)))


def guide(x, size=4, top=False, apart=True, inner=0):
    if top:
        numpyro.sample("top", dist.Normal(0.0, 0.1))
    with numpyro.plate("rows", size, subsample_size=4, dim=-1):
        numpyro.sample("u", dist.Normal(0.5 * x, 0.5**0.5))


def log_normal(x, centre=0.0, variance=1.0):
    return np.asarray(dist.Normal(centre, variance**0.5).log_prob(x))


@pytest.mark.parametrize(
    "settings",
    [{}, {"size": 12}, {"inner": 6}, {"size": 12, "inner": 6}, {"apart": False}],
    ids=lambda s: ",".join(s) or "plain",
)
def test_elements_and_the_rest_make_the_total(settings):
    """The guide is the posterior of every row: exact for any particles."""
    found = meters.log_evidence(model, guide, {"shift": 0.3}, X, num_particles=2, **settings)
    rows = log_normal(X, 0.0, 2.0) + log_normal(X, 0.3) + settings.get("inner", 0) * log_normal(1.0, 0.3)
    rest = log_normal(0.5, 0.3) if settings.get("apart", True) else 0.0
    scale = settings.get("size", 4) / 4
    np.testing.assert_allclose(found.by_element, rows, rtol=1e-5)
    np.testing.assert_allclose([found.scale, found.rest], [scale, rest], rtol=1e-6)
    np.testing.assert_allclose(found.total, scale * rows.sum() + rest, rtol=1e-5)
    np.testing.assert_allclose(list(found.curve.values()), found.total, rtol=1e-5)


def test_summands_of_a_subsample_stand_for_all_rows():
    problem = build_problem(model, guide, (X,), {"size": 12}, {"shift": 0.3}, make_request(2))
    draws = draw_particles(problem, problem.numbers, jax.random.key(0), {"shift": 0.3})
    terms = proposal_terms(problem, problem.numbers, draws, {"shift": 0.3})
    found = log_evidence_summands(problem, problem.numbers, draws, {"shift": 0.3}, terms)
    np.testing.assert_allclose(found.parts, log_normal(X, 0.0, 2.0) + log_normal(X, 0.3), rtol=1e-5)
    np.testing.assert_allclose(found.scale * found.parts.sum() + found.rest, found.total, rtol=1e-5)


def test_without_a_plate_that_all_latents_have_there_is_a_total_only():
    found = meters.log_evidence(model, guide, {"shift": 0.3}, X, num_particles=5, top=True)
    assert found.by_element is None and found.rest == 0.0 and np.isfinite(found.total)


def test_all_chunks_of_particles_are_on_the_same_rows_of_a_subsample():
    """Rows that a plate picks itself: an exact guide, so that two chunks give what one does only if they are of the
    same rows."""
    data = jnp.linspace(-3.0, 3.0, 12)

    def picked(x):
        with numpyro.plate("rows", 12, subsample_size=4) as index:
            u = numpyro.sample("u", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(u, 1.0), obs=x[index])

    def exact(x):
        with numpyro.plate("rows", 12, subsample_size=4) as index:
            numpyro.sample("u", dist.Normal(0.5 * x[index], 0.5**0.5))

    found = meters.log_evidence(picked, exact, {}, data, num_particles=6, chunk=2)
    every = log_normal(data, 0.0, 2.0)
    assert all(np.abs(every - e).min() < 1e-4 for e in np.asarray(found.by_element))
    np.testing.assert_allclose(found.total, 3 * np.sum(found.by_element), rtol=1e-5)


@pytest.mark.parametrize("size", [4, 12])
def test_figures_of_training_are_per_datum(size):
    still = kayn.Phase(kayn.VI(2, "local"), optax.set_to_zero())
    found = kayn.train(
        lambda x: model(x, size, apart=False),
        lambda x: guide(x, size),
        still,
        X,
        batch_size=4,
        num_steps=1,
        held_out=X,
        progress=False,
    )
    right = np.mean(log_normal(X, 0.0, 2.0) + log_normal(X, 0.3))
    np.testing.assert_allclose([-found.losses[0], found.looks["held-out log evidence"][0][1]], right, rtol=1e-5)


def test_a_minibatch_stands_for_the_data_of_its_leftmost_plate():
    def grid(x):
        with numpyro.plate("items", 50, subsample_size=3, dim=-1), numpyro.plate("users", 90, subsample_size=3, dim=-2):
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    assert data_behind(grid, (jnp.zeros((3, 3)),), {}, 3) == 90
    assert data_behind(grid, (jnp.zeros((3, 3)),), {}, 7) == 7


def test_score_of_a_row_is_its_own_summand():
    """Reinforce subtracts a baseline by row; with the exact summands as baseline only their exact
    (zero) signal is left."""

    def summands(params, x):
        return log_normal(X, 0.0, 2.0) + log_normal(X, 0.3)

    loss = kayn.Reinforce(2, "local", baseline=summands)
    value, slope = jax.value_and_grad(
        lambda p: loss.loss(jax.random.key(0), p, lambda x: model(x), lambda x: guide(x), X)
    )({"shift": jnp.array(0.3)})
    np.testing.assert_allclose(-value, summands({}, X).sum() + log_normal(0.5, 0.3), rtol=1e-5)
    np.testing.assert_allclose(slope["shift"], -np.sum(np.asarray(X) - 0.3) - 0.2, rtol=1e-4)
