"""Meters against exact values of small models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kayn
from kayn import meters
from tests.objectives.models import (
    X,
    gaussian,
    gaussian_guide,
    mixture,
    mixture_guide,
    mixture_tables,
    parameters,
)


def test_log_evidence_of_many_particles_is_exact_by_element_and_its_curve_rises():
    params = parameters(mixture, mixture_guide, X)
    exact = jax.nn.logsumexp(mixture_tables(params, X)[0], -1)
    found = meters.log_evidence(mixture, mixture_guide, params, X, num_particles=20_000, chunk=500)
    # the standard error of each is about 0.007
    np.testing.assert_allclose(found.by_element, exact, atol=0.035)
    np.testing.assert_allclose(found.total, float(exact.sum()), atol=0.05)
    few = meters.log_evidence(mixture, mixture_guide, params, X, num_particles=4000, chunk=1)
    curve = [few.curve[k] for k in (1, 4, 64)]
    assert curve[0] < curve[1] < curve[2] < float(exact.sum()) + 0.01
    assert list(few.curve)[-1] == 4000


def test_a_meter_takes_other_data_without_compiling_again(caplog):
    data = np.tile(X, 3)
    params = parameters(mixture, mixture_guide, data)
    settings = {"num_particles": 300, "chunk": 100}
    meter = meters.evidence_meter(mixture, mixture_guide, params, data, **settings)
    meter(params, 0)
    for other in (data[::-1] + 0.5, data[:-1]):
        expected = meters.log_evidence(mixture, mixture_guide, params, other, rng_key=1, **settings)
        caplog.clear()
        with jax.log_compiles():
            found = meter(params, 1, other)
        np.testing.assert_allclose(found.by_element, expected.by_element, rtol=1e-5)
        # fewer data are another program
        compiled = any("XLA compilation of jit(run)" in m for m in caplog.messages)
        assert compiled == (len(other) != len(data))


def test_gradient_noise_is_lower_when_reparameterised_doubly():
    params = parameters(gaussian, gaussian_guide, X)
    plain = meters.gradient_noise(kayn.VI(64, "local"), gaussian, gaussian_guide, params, X, num_draws=200)
    double = meters.gradient_noise(kayn.DReG(64, "local"), gaussian, gaussian_guide, params, X, num_draws=200)
    assert np.all(double.sd["weights"] < 0.5 * plain.sd["weights"])
    assert double.signal_to_noise["weights"] > plain.signal_to_noise["weights"]
    assert plain.mean["weights"].shape == (2, 2)


def test_active_units():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(500, 4)) * np.array([1.0, 0.2, 0.05, 0.0])
    assert meters.active_units(means) == 2
    assert meters.active_units(jnp.asarray(means), threshold=1e-4) == 3


def test_bad_numbers_are_refused():
    params = parameters(mixture, mixture_guide, X)
    with pytest.raises(kayn.KaynError, match="num_particles is 0"):
        meters.log_evidence(mixture, mixture_guide, params, X, num_particles=0)
