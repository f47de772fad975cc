"""Random keys of every form are accepted, and all numbers come from one generator."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import kayn
from kayn.programs.seeding import draw
from kayn.support.keys import DEFAULT, as_key, default_key, generator


def numbers(key):
    return np.asarray(jax.random.bits(as_key(key), (4,)))


def test_forms_of_one_key_are_one_key():
    forms = [3, np.int32(3), jax.random.key(3), jax.random.PRNGKey(3), as_key(3)]
    assert {str(jax.random.key_impl(as_key(form))) for form in forms} == {generator()}
    for form in forms[1:]:
        np.testing.assert_array_equal(numbers(form), numbers(3))
    np.testing.assert_array_equal(jax.random.key_data(default_key(as_key(3))), jax.random.key_data(jax.random.key(3)))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_other_generators_count(impl):
    first, second = (numbers(jax.random.key(seed, impl=impl)) for seed in (0, 1))
    assert (first != second).any()


def test_several_devices_have_the_default_generator(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert generator() == DEFAULT
    assert str(jax.random.key_impl(as_key(0))) == DEFAULT


def test_the_users_generator_is_kept():
    with jax.default_prng_impl("rbg"):
        assert generator() == "rbg"
        assert str(jax.random.key_impl(as_key(0))) == "rbg"


def test_keys_work_under_jit_and_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    batched = jax.jit(jax.vmap(lambda key: jax.random.bits(as_key(key), (4,))))(keys)
    np.testing.assert_array_equal(batched, [numbers(key) for key in keys])


def test_counts_are_drawn_though_jax_draws_them_with_its_default_generator_only():
    """In a guide, in predictions, and in predictions within a loop."""
    counts = draw(dist.Poisson(jnp.full(1000, 4.0)), as_key(0), (2,))
    assert counts.shape == (2, 1000)
    assert abs(float(counts.mean()) - 4) < 4 * 2 / 2000**0.5  # four standard errors

    def model(y):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))

        def step(level, count):
            level = numpyro.sample("level", dist.Normal(level, 0.1))
            numpyro.sample("counts", dist.Poisson(rate * jnp.exp(level)), obs=count)
            return level, None

        scan(step, 0.0, y, length=3)
        with numpyro.plate("rows", 3):
            numpyro.sample("others", dist.NegativeBinomial2(rate, 2.0), obs=y)

    y = np.array([1, 3, 2], np.int32)
    posterior = kayn.fit(model, args=(y,), num_particles=4, num_steps=20, progress=False).posterior(num_replicates=4)
    drawn = posterior.predictive(0, 50)
    for name in ("counts", "others"):
        assert drawn[name].shape == (50, 3)
        assert (np.asarray(drawn[name]) >= 0).all()
        assert np.ptp(drawn[name]) > 0
