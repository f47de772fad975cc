"""The posterior is left as it is: transition matrices of small discrete models, by going through all random choices."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn.inference.mcmc import passes, prepare, sweep
from kayn.inference.mcmc.lines import Line

from . import tapes
from .tapes import Tape, all_states, along, posterior_of, precise, transitions

Y = np.array([0.3, 1.2])
EXACT = 1e-10


def nested(y):
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.35, 0.65])))
    with numpyro.plate("rows", 2):
        b = numpyro.sample("b", dist.Categorical(jnp.array([[0.7, 0.3], [0.2, 0.8]])[a]))
        numpyro.sample("y", dist.Normal(b + 0.4 * a, 0.8), obs=y)


def nested_guide(y):
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.55, 0.45])))
    with numpyro.plate("rows", 2):
        numpyro.sample("b", dist.Categorical(jnp.array([[0.4, 0.6], [0.75, 0.25]])[a]))


def crossed(y):
    m = numpyro.sample("m", dist.Categorical(jnp.array([0.4, 0.6])))
    with numpyro.plate("users", 2):
        u = numpyro.sample("u", dist.Categorical(jnp.array([[0.8, 0.2], [0.45, 0.55]])[m]))
    with numpyro.plate("films", 2):
        f = numpyro.sample("f", dist.Categorical(jnp.array([[0.3, 0.7], [0.6, 0.4]])[m]))
    with numpyro.plate("rows", 4):
        numpyro.sample("y", dist.Normal(u[jnp.array([0, 0, 1, 1])] - f[jnp.array([0, 1, 0, 1])], 1.0), obs=y)


def pair(y):
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.3, 0.5, 0.2])))
    b = numpyro.sample("b", dist.Categorical(jnp.array([[0.6, 0.1, 0.3], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])[a]))
    numpyro.sample("y", dist.Normal(b - 0.5 * a, 0.9), obs=y)


def pair_guide(y):
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
    numpyro.sample("b", dist.Categorical(jnp.array([[0.3, 0.4, 0.3], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])[a]))


def single(y):
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.3, 0.5, 0.2])))
    numpyro.sample("y", dist.Normal(a, 0.9), obs=y)


NESTED = {"a": (), "b": (2,)}
PAIR = {"a": (), "b": ()}


def kernel_of(model, args, count, proposal="local"):
    return kayn.MPGibbs(model, count, proposal).prepared(args, {}).kernel


def error(model, args, shapes, count, values=(0, 1), guide=None, kernel=None, moves=True):
    """The largest change of the posterior's probabilities by a sweep."""
    states = all_states(shapes, values)
    kernel = kernel or kernel_of(model, args, count, guide or "local")
    matrix = transitions(kernel, states, values, guide, args)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=EXACT)
    # every state is left, or the test could not fail
    assert not moves or np.diag(matrix).max() < 0.95
    before = posterior_of(model, args, states)
    return np.abs(before @ matrix - before).max()


@pytest.fixture
def drawn(monkeypatch):
    """Discrete latents are drawn, not enumerated."""
    monkeypatch.setattr(passes, "MOST_VALUES", 0)


@pytest.mark.parametrize("count", [2, 3])
def test_any_value(count, drawn):
    with precise():
        assert error(nested, (Y,), NESTED, count) < EXACT


def by_whole_numbers(model, args, count):
    kernel = kernel_of(model, args, count)
    return replace(kernel, coordinates={n: replace(c, uniform=False) for n, c in kernel.coordinates.items()})


@pytest.mark.parametrize("count", [2, 3])
def test_local_by_whole_numbers(count, drawn):
    with precise():
        kernel = by_whole_numbers(pair, (Y[0],), count)
        assert error(pair, (Y[0],), PAIR, count, (0, 1, 2), kernel=kernel) < EXACT


@pytest.mark.parametrize("local", [False, True])
def test_ten_particles(local, drawn):
    with precise():
        kernel = by_whole_numbers(single, (Y[0],), 10) if local else kernel_of(single, (Y[0],), 10)
        assert error(single, (Y[0],), {"a": ()}, 10, (0, 1, 2), kernel=kernel) < EXACT


def test_exact_draws_forget_the_state():
    with precise():
        states = all_states(NESTED, (0, 1))
        matrix = transitions(kernel_of(nested, (Y,), 2), states, (0, 1))
        np.testing.assert_allclose(matrix, np.broadcast_to(posterior_of(nested, (Y,), states), (8, 8)), atol=EXACT)


@pytest.mark.parametrize("count", [2, 3])
def test_guide_with_parents(count):
    with precise():
        assert error(nested, (Y,), NESTED, count, guide=nested_guide) < EXACT


def two_of_two(y):
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.35, 0.65])))
    b = numpyro.sample("b", dist.Categorical(jnp.array([[0.7, 0.3], [0.2, 0.8]])[a]))
    numpyro.sample("y", dist.Normal(b + 0.4 * a, 0.8), obs=y)


def guide_of_two(y):
    a = numpyro.sample("a", dist.Categorical(jnp.array([0.55, 0.45])))
    numpyro.sample("b", dist.Categorical(jnp.array([[0.4, 0.6], [0.75, 0.25]])[a]))


def test_guide_with_parents_and_five_particles():
    with precise():
        assert error(two_of_two, (Y[0],), PAIR, 5, guide=guide_of_two) < EXACT


def single_guide(y):
    numpyro.sample("a", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))


def test_guide_of_ten_particles():
    with precise():
        assert error(single, (Y[0],), {"a": ()}, 10, (0, 1, 2), guide=single_guide) < EXACT


@pytest.mark.parametrize(
    ("model", "shapes", "count", "values"),
    [(nested, NESTED, 2, (0, 1)), (nested, NESTED, 3, (0, 1)), (single, {"a": ()}, 10, (0, 1, 2))],
)
def test_prior(model, shapes, count, values):
    y = Y if model is nested else Y[0]
    with precise():
        kernel = kernel_of(model, (y,), count, "prior")
        assert error(model, (y,), shapes, count, values, guide=model, kernel=kernel) < EXACT


def test_guide_with_parents_of_three_values():
    with precise():
        assert error(pair, (Y[0],), PAIR, 3, (0, 1, 2), guide=pair_guide) < EXACT


def test_places_drawn_evenly_would_be_wrong(monkeypatch):
    """What `test_guide_with_parents` is worth."""
    evenly = lambda self, key, logits: self.choose(jax.nn.log_softmax(jnp.zeros_like(logits), -1))  # noqa: E731
    monkeypatch.setattr(Tape, "categorical", evenly)
    with precise():
        assert error(nested, (Y,), NESTED, 3, guide=nested_guide) > 1e-5


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_directions(count, drawn, monkeypatch):
    """Steps of whole numbers along directions of whole numbers."""
    monkeypatch.setattr(prepare, "moving_together", list)
    with precise():
        kernel = by_whole_numbers(pair, (Y[0],), count)
        states = all_states(PAIR, (0, 1, 2))
        lines = [Line(jnp.array(v), jnp.array(False), jnp.zeros(())) for v in ([1.0, 1.0], [1.0, -2.0])]
        matrix = along(kernel, lines, states, (0, 1, 2))
        before = posterior_of(pair, (Y[0],), states)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=EXACT)
        assert (np.diag(matrix) < 0.95).any()
        assert np.abs(before @ matrix - before).max() < EXACT


@pytest.mark.parametrize("count", [2, 3])
def test_passes(count, drawn):
    y = jnp.array([0.2, -0.7, 1.1, 0.4])
    with precise():
        kernel = kernel_of(crossed, (y,), count)
        assert [set(p.free) for p in kernel.passes] == [{"m", "u"}, {"m", "f"}]
        assert error(crossed, (y,), {"m": (), "u": (2,), "f": (2,)}, count, kernel=kernel) < EXACT


def test_passes_by_exact_draws():
    y = jnp.array([0.2, -0.7, 1.1, 0.4])
    with precise():
        kernel = kernel_of(crossed, (y,), 3)
        assert len(kernel.passes) == 2
        assert error(crossed, (y,), {"m": (), "u": (2,), "f": (2,)}, 3, kernel=kernel) < EXACT


def test_a_guide_for_one_latent_and_any_value_for_the_other(drawn):
    with precise():
        kernel = kernel_of(pair, (Y[0],), 3, {"b": pair_guide, "": "local"})
        assert error(pair, (Y[0],), PAIR, 3, (0, 1, 2), guide=pair_guide, kernel=kernel) < EXACT


def two_of_a_group(y):
    with numpyro.plate("groups", 2):
        a = numpyro.sample("a", dist.Categorical(jnp.array([0.3, 0.5, 0.2])))
        b = numpyro.sample("b", dist.Categorical(jnp.array([[0.6, 0.1, 0.3], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])[a]))
        numpyro.sample("y", dist.Normal(b - 0.5 * a, 0.9), obs=y)


@pytest.mark.parametrize("count", [2, 3])
def test_correlated_steps_of_latents_that_share_an_index(count, drawn, monkeypatch):
    """Steps of two, so that nought and two are states and one is none."""
    monkeypatch.setattr(sweep.Kernel, "_together", lambda self, one, axis: len(axis.latents) > 1)
    factor = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    monkeypatch.setattr(sweep, "correlated", lambda noise, covariance: noise @ factor.T)
    monkeypatch.setattr(tapes, "STEPS", (-1.0, 1.0))
    monkeypatch.setattr(tapes, "STEP_PROBABILITIES", (0.5, 0.5))
    with precise():
        kernel = kayn.MPGibbs(two_of_a_group, count, groups=[("a", "b")]).prepared((Y,), {}).kernel
        kernel = replace(kernel, coordinates={n: replace(c, uniform=False) for n, c in kernel.coordinates.items()})
        assert error(two_of_a_group, (Y,), {"a": (2,), "b": (2,)}, count, (0, 2), kernel=kernel) < EXACT
