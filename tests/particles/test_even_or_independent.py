"""Who draws evenly and who independently: what an entry point says is what its particles are, whatever the guide.

Particles of a coordinate are even if there is one in each of K strata of its law. Of independent ones that is the case
with probability K! / K^K, below 0.0025 for K = 8, so a site of two coordinates looks even by accident once in 160,000
runs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import kayn
from kayn.evidence.draws import draws_from_runs
from kayn.objectives.base import Objective
from kayn.particles.draw import draw_runs
from kayn.programs.sites import inspect_sites
from tests.replacing import replace_everywhere

K = 8
Y = np.array([0.4, -0.3], np.float32)
LAWS = {"mu": (0.1, 0.8), "z": (0.2, 0.9)}
"""Location and scale of either site in `plain`."""


def model(y):
    with numpyro.plate("pairs", 2):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def plain(y):
    with numpyro.plate("pairs", 2):
        numpyro.sample("mu", dist.Normal(*LAWS["mu"]))
    numpyro.sample("z", dist.Normal(*(jnp.full(2, at) for at in LAWS["z"])).to_event(1))


def kayns(y):
    return kayn.FactorisedGuide.from_guide(plain, (y,), {}, {}, inspect_sites(model, (y,), {}, {}))


class Even(kayn.VI):
    """A loss of one's own that asks for even draws."""

    draws = "even"


def of_loss(make):
    def run(guide, params, key):
        jax.jit(lambda key: make().loss(key, params, model, guide, Y))(key)

    return run


def importance(guide, params, key):
    kayn.Importance(model, guide, K).run(key, params, Y)


def qem(guide, params, key):
    fitted = kayn.QEM(model, guide, K)
    fitted.update(fitted.init(key, Y))


def meter(guide, params, key):
    kayn.meters.log_evidence(model, guide, params, Y, num_particles=K, rng_key=key)


ENTRIES = {
    kayn.Importance: ("even", importance),
    kayn.QEM: ("even", qem),
    kayn.VI: ("independent", of_loss(lambda: kayn.VI(K))),
    kayn.STL: ("independent", of_loss(lambda: kayn.STL(K))),
    kayn.DReG: ("independent", of_loss(lambda: kayn.DReG(K))),
    kayn.RWS: ("independent", of_loss(lambda: kayn.RWS(K))),
    kayn.VIMCO: ("independent", of_loss(lambda: kayn.VIMCO(K))),
    kayn.Reinforce: ("independent", of_loss(lambda: kayn.Reinforce(K))),
    kayn.meters.log_evidence: ("independent", meter),
    Even: ("even", of_loss(lambda: Even(K))),
}


@pytest.fixture
def drawn(monkeypatch):
    """Sets of particles with the parameters they were drawn under, in the order in which guides are run."""
    found = []

    def recorded(guide, consts, key, num, params, subsample):
        runs = draw_runs(guide, consts, key, num, params, subsample)
        jax.debug.callback(lambda *x: found.append(jax.tree.map(np.asarray, x)), runs, dict(params))
        return runs

    replace_everywhere(monkeypatch, draw_runs, recorded)
    return found


def even_sites(runs, params):
    """Sites of which every coordinate has one particle in each stratum."""

    def of(name, values):
        loc, scale = (params.get(f"kayn:{name}:{p}", at) for p, at in zip(("loc", "scale"), LAWS[name], strict=True))
        strata = np.floor(stats.norm.cdf(values.astype(np.float64), loc, scale) * len(values))
        return (np.sort(strata, 0) == np.arange(len(values))[:, None]).all()

    return {n for n, values in runs.items() if n in LAWS and of(n, values)}


@pytest.mark.parametrize("guide", [plain, kayns], ids=["plain", "kayn's own"])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.__name__)
def test_particles_are_drawn_as_the_entry_point_says(entry, guide, drawn):
    how, run = ENTRIES[entry]
    assert getattr(entry, "draws", "independent") == how
    made = kayns(Y) if guide is kayns else plain
    run(made, made.start if guide is kayns else {}, jax.random.key(3))
    jax.effects_barrier()
    assert drawn
    assert all(even_sites(*one) == (set(LAWS) if how == "even" else set()) for one in drawn)


def test_a_fit_by_a_loss_learns_from_independent_draws_and_its_posterior_is_even(drawn):
    fitted = kayn.fit(model, (Y,), None, "rws", K, 1, False, guide=kayns(Y), num_steps=2)
    jax.effects_barrier()
    assert drawn
    assert all(even_sites(*one) == set() for one in drawn)
    drawn.clear()
    fitted.posterior(num_replicates=2)
    jax.effects_barrier()
    assert [even_sites(*one) for one in drawn] == [set(LAWS)] * 2


# -- discrete latents, relaxed ones and dreams


def bits(y):
    with numpyro.plate("rows", 256):
        b = numpyro.sample("b", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(jnp.asarray(b, float), 1.0), obs=y)


def bits_guide(y):
    numpyro.param("rebar_scale", 0.8)
    numpyro.param("rebar_temperature", 0.7)
    with numpyro.plate("rows", 256):
        numpyro.sample("b", dist.Bernoulli(0.5))


BITS = {"rebar_scale": 0.8, "rebar_temperature": 0.7}
DISCRETE = {
    kayn.RELAX: lambda: kayn.RELAX(K, control=lambda params, z, y: 0.1 * z["b"].sum(), control_params=[]),
    kayn.REBAR: lambda: kayn.REBAR(K),
    kayn.Concrete: lambda: kayn.Concrete(K),
    kayn.ConcreteHardPrior: lambda: kayn.ConcreteHardPrior(K),
}


def spread_of_ranks(values):
    """Variance over coordinates of the number of particles above the median, over that of independent ones."""
    return (values > 0.5).sum(0).var() / (len(values) / 4)


@pytest.mark.parametrize("loss", DISCRETE, ids=lambda e: e.__name__)
def test_discrete_and_relaxed_particles_are_independent(loss, monkeypatch):
    """The variance of 256 counts within five standard errors, 0.44, of its expectation: 6e-7 a comparison."""
    found = []

    def recorded(problem, numbers, params, runs, subsample):
        jax.debug.callback(lambda x: found.append(np.asarray(x)), runs["b"])
        return draws_from_runs(problem, numbers, params, runs, subsample)

    replace_everywhere(monkeypatch, draws_from_runs, recorded)
    assert loss.draws == "independent"
    y = np.zeros(256, np.float32)
    jax.jit(lambda key: DISCRETE[loss]().loss(key, BITS, bits, bits_guide, y))(jax.random.key(2))
    jax.effects_barrier()
    assert found
    assert all(abs(spread_of_ranks(values) - 1) < 0.44 for values in found)


def test_dreams_are_independent():
    """As above, of the data of eight dreams, which are Normal around zero or one."""
    found = []

    def replace(dream, y):
        jax.debug.callback(lambda x: found.append(np.asarray(x)), dream["y"])
        return (dream["y"],), {}

    y = np.zeros(256, np.float32)
    asleep = kayn.Sleep(K, replace=replace)
    jax.jit(lambda key: asleep.loss(key, BITS, bits, bits_guide, y))(jax.random.key(4))
    jax.effects_barrier()
    assert len(found) == K
    assert abs(spread_of_ranks(np.stack(found)) - 1) < 0.44


def test_every_loss_is_looked_at():
    losses = {e for e in vars(kayn).values() if isinstance(e, type) and issubclass(e, Objective)}
    assert losses == {
        e
        for e in (*ENTRIES, *DISCRETE)
        if getattr(kayn, e.__name__, None) is e and e not in (kayn.Importance, kayn.QEM)
    } | {kayn.Sleep}
