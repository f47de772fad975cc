"""Parameters of the user's model beside those of kayn's own guide, which change while the guide is chosen."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import kayn

X = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
Y = (X @ [1.0, 2.0] + 0.5 * np.random.default_rng(1).normal(size=12)).astype(np.float32)
GIVEN = {"y_scale": 9.0, "z_noise": 0.5, "slopes": np.array([1.0, 2.0], np.float32)}


def lines(noise, slopes, y):
    a, b = (numpyro.sample(n, dist.Normal(0.0, 1.0)) for n in "ab")
    numpyro.sample("c", dist.HalfNormal(1.0))
    with numpyro.plate("rows", 12):
        numpyro.sample("y", dist.Normal(X[:, 0] * a * slopes[0] + X[:, 1] * b * slopes[1], noise), obs=y)


def with_parameters(y):
    numpyro.param("y_scale", 3.0)
    lines(numpyro.param("z_noise", 3.0), numpyro.param("slopes", np.array([5.0, 7.0], np.float32)), y)


def with_constants(y):
    lines(GIVEN["z_noise"], GIVEN["slopes"], y)


def test_parameters_stay_with_their_names_whatever_the_guide_becomes():
    """A joint Normal has other parameters than independent ones: the model's own keep their places."""

    def evidence(model, params):
        qem = kayn.QEM(model, num_particles=5, groups=[("a", "b", "c")])
        state = qem.init(0, Y, params=params)
        state, log_z = qem.advance(state, 3)
        found = qem.get_params(state)
        assert "kayn:b:given" in found
        return np.asarray(log_z), found

    log_z, params = evidence(with_parameters, GIVEN)
    np.testing.assert_allclose(log_z, evidence(with_constants, {})[0], rtol=1e-6)
    assert all(np.array_equal(params[n], v) for n, v in GIVEN.items())


def test_held_out_rows_beside_parameters():
    options = {"num_particles": 5, "groups": [("a", "b", "c")], "num_steps": 3, "progress": False}
    fit = kayn.fit(with_parameters, (Y,), params=GIVEN, **options)
    plain = kayn.fit(with_constants, (Y,), **options)
    found = (f.posterior().log_predictive(0, 50, Y + 0.1) for f in (fit, plain))
    np.testing.assert_allclose(*(f.joint for f in found), rtol=1e-5)
    assert jax.tree.structure(fit.params) != jax.tree.structure(plain.params)
