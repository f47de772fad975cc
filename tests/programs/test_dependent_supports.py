"""Latents whose support depends on other latents: read in unconstrained space given these."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

import kayn
from kayn.programs.dependent_supports import Unbounded, unconstrained

S = numpyro.sample
Y = np.array([0.2, 0.9, 1.4, 0.5], np.float32)


def chain():
    """Flat cutpoints, each above the one before."""
    a = S("a", dist.ImproperUniform(constraints.real, (), ()))
    b = S("b", dist.ImproperUniform(constraints.greater_than(a), (), ()))
    S("y", dist.Normal(a, 1.0), obs=0.0)
    S("z", dist.Normal(b, 1.0), obs=0.5)


def rows(y):
    """An upper end that all rows share."""
    top = S("top", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("rows", len(y)):
        x = S("x", dist.Uniform(0.0, top))
        S("y", dist.Normal(x, 0.3), obs=y)


def parts(y):
    """A part of what another leaves, and the rest."""
    p = S("p", dist.Uniform(0, 1))
    q = S("q", dist.Uniform(0, 1 - p))
    S("y", dist.Multinomial(int(y.sum()), probs=jnp.stack([p, q, 1 - p - q])), obs=y)


def vector(y):
    """Both ends of several numbers at once."""
    a = S("a", dist.HalfNormal(1.0))
    v = S("v", dist.Uniform(-a * jnp.ones(2), a).to_event(1))
    S("y", dist.Normal(v, 0.5).to_event(1), obs=y)


def above(y):
    m = S("m", dist.Normal(0, 1))
    t = S("t", dist.TruncatedNormal(0.0, 2.0, low=m))
    S("y", dist.Normal(t, 0.5), obs=y)


def moved(y):
    """NumPyro calls the support of a shifted law real."""
    m = S("m", dist.Normal(0, 1))
    t = S("t", dist.TransformedDistribution(dist.Exponential(1.0), dist.transforms.AffineTransform(m, 1.0)))
    S("y", dist.Normal(t, 0.5), obs=y)


def stepped(y):
    """The end of the support is summed out."""
    k = S("k", dist.Bernoulli(0.4))
    x = S("x", dist.Uniform(0.0, 1.0 + k))
    S("y", dist.Normal(x, 0.5), obs=y)


def below(y):
    """A mean below a limit that is a latent."""
    c = S("c", dist.HalfNormal(1.0))
    x = S("x", dist.ImproperUniform(constraints.less_than(c), (), ()))
    S("y", dist.Normal(x, 0.5), obs=y)


GRID = np.linspace(-12.0, 12.0, 4801)
UP = np.linspace(1e-3, 30.0, 30_001)


def two(first, second, density):
    """log evidence, and means of both, by the trapezoid rule on a grid of both: [first, second]."""
    a, b = np.meshgrid(first, second, indexing="ij")
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.nan_to_num(density(a, b))
    inner = np.trapezoid(found, second)
    area = np.trapezoid(inner, first)
    return (
        np.log(area),
        np.trapezoid(inner * first, first) / area,
        np.trapezoid(np.trapezoid(found * b, second), first) / area,
    )


def of_chain():
    g = np.linspace(-8, 8, 3201)
    return two(g, g, lambda a, b: stats.norm.pdf(a) * stats.norm.pdf(b, 0.5) * ((b > a) + 0.5 * (a == b)))


def of_parts():
    """A Dirichlet posterior: the prior of both is 1 / (1 - p) on the triangle."""
    g = np.linspace(0, 1, 2001)
    y = np.array([4.0, 3.0, 2.0])

    def density(p, q):
        rest = np.maximum(1 - p - q, 0)
        coefficient = np.exp(stats.multinomial.logpmf(y, 9, y / 9)) / np.prod((y / 9) ** y)
        return coefficient * p**4 * q**3 * rest**2 / np.where(p < 1, 1 - p, 1)

    return two(g, g, density)


def of_vector():
    y = np.array([0.4, -0.2])
    inside = [(stats.norm.cdf((y_ + UP) / 0.5) - stats.norm.cdf((y_ - UP) / 0.5)) / (2 * UP) for y_ in y]
    weight = stats.halfnorm.pdf(UP) * inside[0] * inside[1]
    area = np.trapezoid(weight, UP)
    return np.log(area), np.trapezoid(weight * UP, UP) / area, None


def of_rows():
    inside = np.prod([(stats.norm.cdf(v / 0.3) - stats.norm.cdf((v - UP) / 0.3)) / UP for v in Y.astype(float)], 0)
    weight = stats.lognorm.pdf(UP, 1) * inside
    area = np.trapezoid(weight, UP)
    return np.log(area), np.trapezoid(weight * UP, UP) / area, None


def of_above():
    g = np.linspace(-8, 9, 3401)

    def density(m, t):
        cut = stats.norm.pdf(t, 0, 2) / stats.norm.sf(m, 0, 2)
        return stats.norm.pdf(m) * cut * ((t > m) + 0.5 * (t == m)) * stats.norm.pdf(1.3, t, 0.5)

    return two(g, g, density)


def of_moved():
    g = np.linspace(-8, 9, 3401)

    def density(m, t):
        late = np.exp(-np.maximum(t - m, 0)) * ((t > m) + 0.5 * (t == m))
        return stats.norm.pdf(m) * late * stats.norm.pdf(1.3, t, 0.5)

    return two(g, g, density)


def of_stepped():
    g = np.linspace(0, 2, 20_001)
    likely = stats.norm.pdf(0.7, g, 0.5)
    half = g <= 1
    short, long = 0.6 * np.trapezoid(likely[half], g[half]), 0.4 * np.trapezoid(likely, g) / 2
    mean = 0.6 * np.trapezoid((g * likely)[half], g[half]) + 0.2 * np.trapezoid(g * likely, g)
    return np.log(short + long), long / (short + long), mean / (short + long)


def of_below():
    g, up = np.linspace(-6, 8, 2801), np.linspace(0, 8, 1601)
    return two(up, g, lambda c, x: 2 * stats.norm.pdf(c) * ((x < c) + 0.5 * (x == c)) * stats.norm.pdf(1.3, x, 0.5))


CASES = {
    "flat, one above the other": (chain, (), ("a", "b"), of_chain),
    "shares": (parts, (np.array([4, 3, 2]),), ("p", "q"), of_parts),
    "a vector": (vector, (np.array([0.4, -0.2]),), ("a",), of_vector),
    "rows": (rows, (Y,), ("top",), of_rows),
    "a cut law": (above, (1.3,), ("m", "t"), of_above),
    "a shifted law": (moved, (1.3,), ("m", "t"), of_moved),
    "a summed end": (stepped, (0.7,), ("k", "x"), of_stepped),
    "flat below": (below, (1.3,), ("c", "x"), of_below),
}


@pytest.mark.parametrize("name", CASES)
def test_evidence_and_means_are_those_of_quadrature(name):
    """Z-scores of log evidence within 4 of their own standard errors: 6e-5 a case; means within 0.03 sd, five times
    what replicates differ by."""
    model, args, names, exactly = CASES[name]
    posterior = kayn.fit(model, args, num_particles=30, progress=False).posterior(num_replicates=100, escalate=False)
    log_z, *means = exactly()
    assert abs(posterior.log_evidence - log_z) < 4 * posterior.log_evidence_error + 2e-3
    assert posterior.log_evidence_error < 0.02
    for latent, mean in zip(names, means, strict=False):
        assert abs(posterior.mean(latent) - mean) < 0.03 * posterior.std(latent)


LAWS = {
    "an interval": dist.Uniform(jnp.array([0.1, -2.0]), jnp.array([0.7, 3.0])),
    "above": dist.TruncatedNormal(0.0, 1.0, low=jnp.array(0.3)),
    "below": dist.TruncatedNormal(0.0, 1.0, high=jnp.array(0.3)),
    "a vector": dist.Uniform(jnp.zeros(3), jnp.arange(1.0, 4.0)).to_event(1),
    "a simplex": dist.Dirichlet(jnp.array([[0.5, 2.0, 3.0]])),
    "expanded": dist.Uniform(0.0, jnp.array(2.0)).expand([2, 3]),
    "a matrix": dist.LKJCholesky(3, 2.0),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_density_of_free_coordinates(name):
    """Law and volume: the density of the value, times the Jacobian's determinant by derivatives."""
    law = LAWS[name]
    free = Unbounded(law, unconstrained(law))
    u = free.sample(jax.random.key(0))
    assert u.shape == free.shape()
    x = free.transform(u)
    assert x.shape == law.shape()
    whole = float(jnp.sum(free.log_prob(u)))
    assert free.log_prob(u).shape == law.batch_shape
    derivative = np.asarray(jax.jacfwd(lambda v: jnp.ravel(free.transform(v)))(u)).reshape(x.size, u.size)
    # a set of fewer dimensions has its volume in as many of its coordinates
    kept = {"a simplex": [0, 1], "a matrix": [3, 6, 7]}.get(name, range(x.size))
    volume = np.linalg.slogdet(derivative[list(kept)])[1]
    assert whole == pytest.approx(float(jnp.sum(law.log_prob(x))) + volume, abs=1e-4)


@pytest.fixture(scope="module")
def fitted():
    return kayn.fit(rows, (Y,), progress=False)


@pytest.fixture(scope="module")
def posterior(fitted):
    return fitted.posterior()


def test_answers_have_the_models_names(fitted, posterior):
    assert posterior.latent_names == ("top", "x")
    assert posterior.deterministic_names == ()
    assert {n.rpartition(":")[0] for n in fitted.params} == {"kayn:top", "kayn:x"}
    assert set(posterior.particles) == {"top"}
    assert set(posterior.mean()) == set(posterior.sample(0, 4)) == set(posterior.mode()) == {"top", "x"}
    assert set(posterior.predictive(0, 4)) == {"top", "x", "y"}
    tree = posterior.to_datatree(0, 4)
    assert set(tree.posterior.data_vars) == {"top", "x"}
    assert tree.posterior["x"].dims == ("chain", "draw", "rows")
    assert [r.name for r in posterior.summary().rows] == ["top", "x[0]", "x[1]", "x[2]", "x[3]"]
    assert all(np.isfinite(r.ess) for r in posterior.summary().rows)
    assert "kayn:" not in str(posterior.summary())


def test_all_values_are_within_bounds(posterior):
    draws, mode = posterior.sample(0, 500), posterior.mode()
    for found in (draws, mode):
        assert np.all(found["x"] > 0)
        assert np.all(np.asarray(found["top"]) > np.asarray(found["x"]).T)
    assert posterior.log_likelihood(0, 4)["y"].shape == (4, 4)
    assert np.all(posterior.quantile("x", 0.5) > 0)


def test_expectations_are_contracted(posterior):
    """Without a warning of draws: the mean of the value, by way of a function of it."""
    shares = posterior.expectation(lambda x, top: x / top, "x", "top")
    draws = posterior.sample(0, 4000)
    want = np.asarray(draws["x"]) / np.asarray(draws["top"])[:, None]
    assert np.all(np.abs(shares - want.mean(0)) < 4 * want.std(0) / np.sqrt(2000))
    np.testing.assert_allclose(posterior.expectation(lambda x: x, "x"), posterior.mean("x"), rtol=1e-5)
    np.testing.assert_allclose(posterior.covariance("x", "x"), posterior.std("x") ** 2, rtol=1e-3)


def test_it_is_said(posterior):
    text = str(kayn.analyze(rows, Y))
    assert "Latents whose support depends on others, read in unconstrained space given these: x" in text
    assert "kayn:" not in text
    assert posterior.ess("x").shape == posterior.khat("x").shape == (4,)
    with pytest.raises(kayn.QueryError, match="'x' is a latent whose support depends on others"):
        posterior.weights("x")


def test_options_go_by_the_models_names():
    found = kayn.analyze(rows, Y, num_particles={"x": 7, "": 5}, couple={"x": "rows"})
    assert {a.size for a in found.axes} == {5, 7}
    assert str(found.couplings[0]).startswith("x: one particle index over rows")
    grouped = kayn.analyze(rows, Y, groups=[("top", "x")])
    assert len(grouped.axes) == 1
    with pytest.raises(kayn.StructureError, match="'free'"):
        kayn.analyze(rows, Y, groups=[("top", "free")])


def test_new_rows_are_drawn_given_their_bound(posterior):
    found = posterior.predictive(0, 50, jnp.zeros(6))
    assert found["x"].shape == (50, 6)
    assert np.all(found["x"] < found["top"][:, None])


def test_a_fitted_guide_serves_elsewhere(fitted, posterior):
    again = kayn.Importance(rows, fitted.guide, num_replicates=20).run(0, fitted.proposal, Y)
    assert again.log_evidence == pytest.approx(float(posterior.log_evidence), abs=0.05)
    assert again.latent_names == ("top", "x")


def test_files_hold_them(fitted, posterior, tmp_path):
    posterior.save(tmp_path / "posterior.npz")
    again = kayn.load(tmp_path / "posterior.npz", rows)
    np.testing.assert_array_equal(again.mean("x"), posterior.mean("x"))


def test_fits_by_gradients_have_them():
    found = kayn.fit(rows, (Y,), method="rws", num_steps=150, progress=False).posterior()
    assert found.log_evidence == pytest.approx(of_rows()[0], abs=0.1)


def test_a_users_guide_draws_the_latent_itself():
    def guide(y):
        top = S("top", dist.LogNormal(0.4, 0.4))
        with numpyro.plate("rows", len(y)):
            S("x", dist.Uniform(0.0, top))

    found = kayn.Importance(rows, guide, num_replicates=200).run(0, None, Y)
    assert "x" in found.particles
    assert abs(found.log_evidence - of_rows()[0]) < 4 * found.log_evidence_error


def test_rows_of_a_minibatch():
    def model(y):
        top = S("top", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("rows", len(y), subsample_size=2) as i:
            x = S("x", dist.Uniform(0.0, top))
            S("y", dist.Normal(x, 0.3), obs=y[i])

    posterior = kayn.fit(model, (jnp.asarray(Y),), progress=False).posterior(num_replicates=1)
    draws = posterior.sample(0, 20)
    assert draws["x"].shape == (20, 2)
    assert np.all(draws["x"] < draws["top"][:, None])


def test_values_that_are_set_are_data():
    """A handler within the model, and one around it."""
    for model in (numpyro.handlers.condition(rows, {"x": Y}), numpyro.handlers.substitute(rows, {"x": Y})):
        assert kayn.analyze(model, Y).unbounded == ()


@pytest.mark.parametrize("how", ["mask", "scale", "loop"])
def test_what_would_change_the_volume_is_left(how):
    def model(y):
        a = S("a", dist.HalfNormal(1.0))
        if how == "loop":
            numpyro.contrib.control_flow.scan(lambda c, _: (S("b", dist.Uniform(0.0, a)), None), a, None, length=3)
        elif how == "mask":
            S("b", dist.Uniform(0.0, a).mask(jnp.array(True)))
        else:
            with numpyro.handlers.scale(scale=2.0):
                S("b", dist.Uniform(0.0, a))
        S("y", dist.Normal(a, 0.5), obs=y)

    with pytest.raises(kayn.GuideError, match="the support of latent 'b' depends on latent 'a'"):
        kayn.fit(model, (1.3,), progress=False)


def test_the_prefix_is_kept_for_kayn():
    def model():
        S("kayn:unbounded:x", dist.Normal())

    with pytest.raises(kayn.ModelError, match="rename the site"):
        kayn.analyze(model)
