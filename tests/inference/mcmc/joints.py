"""Hierarchies whose latents and data can be drawn together, and chains of many such sets at once: ragged, crossed, with
discrete latents, and in steps."""

from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

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
from kayn.xla.compilation import once_options, quick_options

MARK = np.arange(6, dtype=np.float32) + np.float32(0.123)
"""Data that a kernel is made for, to be found again among its numbers."""
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


def discrete(y):
    """Rows of one of three kinds, with counts that have no end."""
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.full(3, 2.0)))
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    gap = numpyro.sample("gap", dist.HalfNormal(2.0))
    with numpyro.plate("rows", 6):
        kind = numpyro.sample("kind", dist.Categorical(shares))
        count = numpyro.sample("count", dist.Poisson(rate * (1.0 + kind)))
        numpyro.sample("y", dist.Normal(gap * kind - 0.5 * count, 0.8), obs=y)


def chain(y):
    """Steps whose size is drawn, and counts without end."""
    size = numpyro.sample("size", dist.LogNormal(-0.5, 0.5))

    def step(x, seen):
        x = numpyro.sample("x", dist.Normal(0.8 * x, size))
        return x, numpyro.sample("y", dist.Normal(x, 0.5), obs=seen)

    n = numpyro.sample("n", dist.Poisson(2.0 + size))
    scan(step, 0.2 * n, y, length=6)


@dataclass(frozen=True)
class Joint:
    """Chains of many sets of latents and data at once.

    Attributes:
        count: particles.
        sets: how many.
    """

    model: object
    count: int
    sets: int

    @cached_property
    def kernel(self):
        return kayn.MPGibbs(self.model, self.count).prepared((MARK,), {}).kernel

    @property
    def names(self):
        return self.kernel.passes[0].problem.graph.latent_names

    @cached_property
    def drawn(self):
        """A function of a key: coordinates of latents, and data, [sets, ...] each."""

        def one(key):
            sites = handlers.trace(handlers.seed(self.model, key)).get_trace(None)
            values = {n: jnp.asarray(sites[n]["value"]) for n in self.names}
            return self.kernel.of_values(values), sites["y"]["value"]

        every = lambda key: jax.vmap(one)(jax.random.split(key, self.sets))  # noqa: E731
        return jax.jit(every, compiler_options=once_options())

    @cached_property
    def tuning(self):
        """A function of state: steps of size one for every set."""
        return jax.jit(jax.vmap(self.kernel.first_tuning), compiler_options=once_options())

    @cached_property
    def swept(self):
        """A function of state, steps, data, a key, sweeps, whether steps are learnt from the first on, and what the log
        volume of latents that follow is multiplied by: state and steps afterwards."""
        own_volume = Affine.log_volume

        def one(state, tuning, y, key, sweeps, learning, volume):
            kernel = _with_data(self.kernel, y)

            def step(number, carry):
                state, tuning = carry
                return kernel.sweep(state, tuning, jax.random.fold_in(key, number), number, learning)[:2]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Affine, "log_volume", lambda *args: volume * own_volume(*args))
                return jax.lax.fori_loop(0, sweeps, step, (state, tuning))

        def every(state, tuning, y, key, sweeps, learning=False, volume=1.0):
            alone = partial(one, sweeps=sweeps, learning=learning, volume=volume)
            return jax.vmap(alone)(state, tuning, y, jax.random.split(key, self.sets))

        return jax.jit(every, compiler_options=quick_options())


@cache
def joint(model, count=4, sets=200):
    """The same one for all tests, since it takes long to compile."""
    return Joint(model, count, sets)


def _with_data(kernel, y):
    """A kernel whose data are other numbers than those that it was made for."""

    def other(one):
        program = one.problem.model
        known = [c.shape == MARK.shape and np.array_equal(np.asarray(c), MARK) for c in program.consts]
        assert any(known)
        consts = tuple(y if k else c for k, c in zip(known, program.consts, strict=True))
        return replace(one, problem=replace(one.problem, model=replace(program, consts=consts)))

    lines = kernel.lines and replace(kernel.lines, one=other(kernel.lines.one))
    return replace(kernel, passes=tuple(map(other, kernel.passes)), lines=lines)
