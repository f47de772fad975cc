"""Normal sites of any guide, placed from noise that all particles draw together: the same law,
evidence without bias, less noise."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import init_to_value
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from scipy import stats

import kayn
from kayn.evidence.draws import draw_particles
from kayn.particles.draw import draw_runs, runs_read
from kayn.support.keys import as_key

Y = np.array([[0.3, -0.4], [1.2, 0.1], [-0.7, 0.8]], np.float32)
TRIL = np.array([[1.0, 0.0], [0.6, 0.5]], np.float32)


def model(y=Y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 2):
        z = numpyro.sample("z", dist.Normal(mu, 0.7))
        with numpyro.plate("rows", 3):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def exact():
    """Log evidence: y is Normal with covariance from mu, z and noise."""
    group = np.repeat(np.arange(2), 3)
    covariance = 1.0 + 0.49 * (group[:, None] == group) + np.eye(6)
    return stats.multivariate_normal.logpdf(Y.T.ravel(), np.zeros(6), covariance)


def structured(y=Y):
    mu = numpyro.sample("mu", dist.Normal(0.1, 0.8))
    with numpyro.plate("groups", 2):
        numpyro.sample("z", dist.Normal(0.5 * mu + 0.1, 0.7))


def problem_of(model, guide, count, *args):
    return kayn.Importance(model, guide, num_particles=count).problem({}, *args)


def runs(problem, count, keys):
    """Particles of every site for many keys: [keys, count, *shape]."""
    draw = lambda key: draw_runs(problem.guide, problem.guide.sampler_consts, key, count, {}, {})  # noqa: E731
    return jax.jit(jax.vmap(draw))(jax.random.split(as_key(0), keys))


LAWS = {
    "a plate": lambda: dist.Normal(jnp.array([1.0, -2.0]), 0.5),
    "an expansion": lambda: dist.Normal(1.0, 0.5).expand([2]),
    "a vector": lambda: dist.Normal(jnp.zeros(2), jnp.array([1.0, 3.0])).to_event(1),
    "a covariance": lambda: dist.MultivariateNormal(jnp.array([0.0, 1.0]), scale_tril=TRIL),
    "expanded vectors": lambda: dist.MultivariateNormal(jnp.zeros(2), scale_tril=TRIL).expand([3]),
    "a transform": lambda: dist.LogNormal(jnp.array([0.0, 0.5]), 0.3),
    "transformed vectors": lambda: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([2, 3]).to_event(1), dist.transforms.StickBreakingTransform()
    ),
    "a mask": lambda: dist.Normal(0.0, 2.0).expand([2]).mask(np.array([True, False])).to_event(1),
}


@pytest.mark.parametrize("name", LAWS)
def test_every_particle_has_the_sites_law(name):
    """Kolmogorov-Smirnov against NumPyro's own draws, for every particle and coordinate:
    false alarm in one of 1,000 runs."""

    def program():
        numpyro.sample("x", LAWS[name]())

    problem = problem_of(program, program, 3)
    assert [n.site for n in problem.guide.noise] == ["x"]
    found = np.asarray(runs(problem, 3, 4000)["x"])
    expected = np.asarray(LAWS[name]().sample(jax.random.key(1), (12_000,)))
    assert found.shape[2:] == expected.shape[1:]
    columns = found.reshape(4000, 3, -1), expected.reshape(12_000, -1)
    pvalues = [
        stats.ks_2samp(columns[0][:, k, i], columns[1][:, i]).pvalue
        for k in range(3)
        for i in range(columns[1].shape[1])
    ]
    assert min(pvalues) > 1e-3 / len(pvalues)


def test_dependence_on_earlier_sites_is_kept():
    """Moments of (mu, z) of a particle within four standard errors of the guide's: 6e-5 a comparison."""
    found = runs(problem_of(model, structured, 5), 5, 4000)
    mu, z = np.asarray(found["mu"])[:, 2], np.asarray(found["z"])[:, 2]
    products = (mu - 0.1)[:, None] * (z - 0.15)
    for sample, expected in ((z - 0.15, 0.0), (products, 0.5 * 0.64), ((z - 0.15) ** 2, 0.25 * 0.64 + 0.49)):
        assert (np.abs(sample.mean(0) - expected) < 4 * sample.std(0) / 4000**0.5).all()
    # particles of one site together are even, those of different sites independent
    assert (np.diff(np.sort(stats.norm.cdf(np.asarray(found["mu"]), 0.1, 0.8) * 5 // 1, axis=1), axis=1) > 0).all()
    first, other = np.asarray(found["mu"])[:, 0] > 0.1, np.asarray(found["z"])[:, 1, 0] > 0.15
    assert stats.chisquare(np.histogram2d(first, other, bins=2)[0].ravel()).pvalue > 1e-4


@pytest.mark.parametrize("count", [1, 2, 5, {"mu": 5, "z": 2}, {"mu": 2, "z": 5}], ids=str)
@pytest.mark.parametrize("guide", [structured, lambda y=Y: handlers.block(model, hide=["y"])(y)])
def test_evidence_has_no_bias(guide, count):
    """The mean of Z over 8,000 sets within four of its standard errors of the evidence: 6e-5 a comparison."""
    posterior = kayn.Importance(model, guide, num_particles=count, num_replicates=8000).run(3, {}, Y)
    assert posterior.problem.guide.noise
    ratios = np.exp(np.asarray(posterior.log_evidences, np.float64) - exact())
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / 8000**0.5


START = init_to_value(values={"mu": 0.1, "z": jnp.array([0.2, 0.15])})


@pytest.mark.parametrize(
    "guide", [structured, AutoNormal(model, init_loc_fn=START, init_scale=0.5)], ids=["structured", "auto"]
)
def test_evidence_is_less_noisy(guide):
    """The variance of log Z over 1,000 sets, against independent draws of the same guide:
    lower by more than four of its standard errors."""
    importance = kayn.Importance(model, guide, num_particles=10, num_replicates=1000)
    even = np.asarray(importance.run(0, {}, Y).log_evidences)
    importance.request = replace(importance.request, draws="independent")
    independent = np.asarray(importance.run(0, {}, Y).log_evidences)
    spread = [(s - s.mean()) ** 2 for s in (even, independent)]
    error = np.hypot(*(s.std() / 1000**0.5 for s in spread))
    assert spread[0].mean() < spread[1].mean() - 4 * error


def apart(y=Y):
    numpyro.sample("mu", dist.Normal(0.1, 0.8))
    with numpyro.plate("groups", 2):
        numpyro.sample("z", dist.Normal(0.1, 0.9))


@pytest.mark.parametrize(("mu", "z"), [(11, 4), (4, 11)])
def test_fewer_particles_are_even_on_their_own(mu, z):
    """One particle in each of as many strata of its law as there are particles, in every element of a site."""
    problem = problem_of(model, apart, {"mu": mu, "z": z}, Y)
    values = draw_particles(problem, problem.numbers, as_key(0), {}).values
    for name, scale, count in (("mu", 0.8, mu), ("z", 0.9, z)):
        strata = stats.norm.cdf(np.asarray(values[name], np.float64), 0.1, scale) * count // 1
        assert (np.sort(strata.reshape(count, -1), axis=0) == np.arange(count)[:, None]).all()


def test_sites_that_depend_on_each_other_are_even_together():
    """A guide's particle is drawn given one of those it depends on, so that all of these are needed."""
    problem = problem_of(model, structured, {"mu": 3, "z": 7})
    assert runs_read(problem.guide, problem.layout) == {"mu": 7, "z": 7}
    assert runs_read(problem_of(model, apart, {"mu": 3, "z": 7}).guide, problem.layout) == {"mu": 3, "z": 7}


@pytest.mark.parametrize("guide", [None, apart], ids=["kayn's", "a user's"])
def test_more_particles_elsewhere_make_no_noise(guide):
    """The sd of log Z over 1,000 sets is no larger than with five particles of all latents; with the first five of
    eleven even ones it would be ten times as large."""

    def noise(counts):
        found = kayn.Importance(model, guide, num_particles=counts, num_replicates=1000)
        return np.std(found.run(0, None if guide is None else {}, Y).log_evidences)

    same = noise(5)
    assert noise({"mu": 11, "z": 5}) < 1.3 * same
    assert noise({"mu": 5, "z": 11}) < 1.3 * same


def test_joint_autoguides_are_placed_too():
    problem = problem_of(model, AutoMultivariateNormal(model, init_loc_fn=START), 5, Y)
    assert [n.shape for n in problem.guide.noise] == [(3,)]


def test_what_is_not_normal_or_in_a_loop_is_drawn_as_before():
    def program(y):
        numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("b", dist.Gamma(2.0, 1.0))

        def step(level, now):
            level = numpyro.sample("level", dist.Normal(level, 1.0))
            numpyro.sample("y", dist.Normal(level, 1.0), obs=now)
            return level, None

        scan(step, 0.0, y)

    guide = handlers.block(program, hide=["y"])
    problem = problem_of(program, guide, 4, np.zeros(3, np.float32))
    assert [n.site for n in problem.guide.noise] == ["a"]
    found = runs(problem, 4, 10)
    assert {n: v.shape for n, v in found.items()} == {"a": (10, 4), "b": (10, 4), "level": (10, 4, 3)}
    assert all(len(np.unique(v)) == v.size for v in found.values())


def test_subsampled_guides_draw_as_before():
    def program():
        with numpyro.plate("rows", 6, subsample_size=2):
            numpyro.sample("x", dist.Normal(0.0, 1.0))

    assert problem_of(program, program, 3).guide.noise == ()
