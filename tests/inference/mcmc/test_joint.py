"""Latents and data keep their joint law when sweeps move the latents (Geweke, Getting it right, 2004): hierarchies that
are ragged, crossed, with discrete latents, and chains.

Latents and data are drawn from the model many times over; each set is then swept with the steps of frozen chains, and
means of functions of latents and data before and after are compared within 5.5 standard errors of their differences:
4e-8 false alarms a comparison, less than 3e-5 in all. `KAYN_EXAMPLES=30` draws thirty times as many.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import kayn
from kayn.inference.mcmc.following import Affine

from ...laws.strategies import examples

SETS, SWEEPS, FARTHEST = examples(3000), 3, 5.5
GROUP = np.array([0, 0, 0, 1, 1, 2])
FACTOR = np.array([[1.0, 0.0], [0.5, 0.8]], np.float32)
DESIGN = np.array([[1.0, 0.5], [-0.3, 1.0], [0.2, -1.0], [1.5, 0.1], [0.0, 0.7], [-1.0, 0.4]], np.float32)


def ragged(y):
    """Groups of three, two and one row, with a level, a slope and a spread each."""
    centre = numpyro.sample("centre", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    tau = numpyro.sample("tau", dist.LogNormal(-0.3, 0.6))
    with numpyro.plate("groups", 3):
        own = numpyro.sample("own", dist.MultivariateNormal(centre, scale_tril=tau * FACTOR))
        spread = numpyro.sample("spread", dist.Gamma(3.0, 3.0 / tau))
    with numpyro.plate("rows", 6):
        numpyro.sample("y", dist.Normal((own[GROUP] * DESIGN).sum(-1), 0.4 + spread[GROUP]), obs=y)


def crossed(y):
    """Users and films, and which users are hard to please."""
    sd = numpyro.sample("sd", dist.HalfNormal(1))
    share = numpyro.sample("share", dist.Beta(2.0, 2.0))
    with numpyro.plate("users", 3):
        user = numpyro.sample("user", dist.Normal(0, sd))
        hard = numpyro.sample("hard", dist.Bernoulli(share))
    with numpyro.plate("films", 2):
        film = numpyro.sample("film", dist.Normal(0.3, sd))
    users, films = np.divmod(np.arange(6), 2)
    with numpyro.plate("rows", 6):
        numpyro.sample("y", dist.Normal(user[users] + film[films] - 2.0 * hard[users], 0.7), obs=y)


def chain(y):
    """Steps whose size is drawn, and counts without end."""
    size = numpyro.sample("size", dist.LogNormal(-0.5, 0.5))

    def step(x, seen):
        x = numpyro.sample("x", dist.Normal(0.8 * x, size))
        return x, numpyro.sample("y", dist.Normal(x, 0.5), obs=seen)

    n = numpyro.sample("n", dist.Poisson(2.0 + size))
    scan(step, 0.2 * n, y, length=6)


def farthest(model, count=4, volumes=(1.0,)):
    """The largest change of a mean by sweeps, in its standard errors.

    Args:
        volumes: what the log volume of latents that follow is multiplied by, a result each.
    """
    mark = np.arange(6, dtype=np.float32) + np.float32(0.123)
    kernel = kayn.MPGibbs(model, count).prepared((mark,), {}).kernel
    names = kernel.passes[0].problem.graph.latent_names
    own_volume = Affine.log_volume

    def drawn(key):
        sites = handlers.trace(handlers.seed(model, key)).get_trace(None)
        values = {n: jnp.asarray(sites[n]["value"]) for n in names}
        return kernel.of_values(values), sites["y"]["value"]

    def swept(state, y, key):
        own, tuning = with_data(kernel, mark, y), kernel.first_tuning(state)

        def one(state, key):
            return own.sweep(state, tuning, key, jnp.zeros((), int), jnp.array(False))[0], None

        return jax.lax.scan(one, state, jax.random.split(key, SWEEPS))[0]

    def told(state, y):
        flat = jnp.concatenate([jnp.tanh(state[n]).ravel().astype(float) for n in names])
        pairs = jnp.outer(flat, flat)[jnp.triu_indices(len(flat))]
        return jnp.concatenate([flat, pairs, jnp.outer(flat, jnp.tanh(y)).ravel()])

    def difference(key, volume):
        first, second = jax.random.split(key)
        state, y = drawn(first)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Affine, "log_volume", lambda *args: volume * own_volume(*args))
            return told(swept(state, y, second), y) - told(state, y)

    run = jax.jit(jax.vmap(difference, (0, None)))
    return [_worst(np.asarray(run(jax.random.split(jax.random.key(0), SETS), v), np.float64)) for v in volumes]


def _worst(found):
    assert found.shape[1] < 200
    spread = found.std(0)
    moves = spread > 0
    assert moves.sum() > 0.8 * len(moves)
    return np.max(np.abs(found.mean(0)[moves]) / spread[moves]) * SETS**0.5


def with_data(kernel, mark, y):
    """A kernel whose data are other numbers than those that it was made for."""

    def other(one):
        program = one.problem.model
        known = [c.shape == mark.shape and np.array_equal(np.asarray(c), mark) for c in program.consts]
        assert any(known)
        consts = tuple(y if k else c for k, c in zip(known, program.consts, strict=True))
        return replace(one, problem=replace(one.problem, model=replace(program, consts=consts)))

    lines = kernel.lines and replace(kernel.lines, one=other(kernel.lines.one))
    return replace(kernel, passes=tuple(map(other, kernel.passes)), lines=lines)


@pytest.mark.parametrize("model", [crossed, chain])
def test_sweeps_keep_the_joint_law(model):
    assert farthest(model)[0] < FARTHEST


def test_groups_keep_it_and_would_not_without_the_volume_of_those_that_follow():
    right, wrong = farthest(ragged, volumes=(1.0, 0.0))
    assert right < FARTHEST
    assert wrong > 2 * FARTHEST
