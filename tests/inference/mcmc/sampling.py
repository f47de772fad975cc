"""A model sampled, and draws compared with a posterior that is known.

Means are compared within five of the chains' own standard errors, 6e-7 false alarms a comparison; standard deviations
within a tenth, four of their errors at the least effective sample size that is asked for."""

import jax
import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC


def run(kernel, *args, warmup=400, samples=1500, chains=4, method="vectorized", **kwargs):
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=samples,
        num_chains=chains,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), *args, **kwargs)
    jax.effects_barrier()  # all has been said
    return mcmc


def compare(draws, mean, sd, least=400):
    """Draws [chains, samples, *shape] against a known posterior."""
    draws = np.asarray(draws, float)
    size = effective_sample_size(draws)
    assert np.min(size) > least
    assert np.max(split_gelman_rubin(draws)) < 1.02
    found = draws.std((0, 1))
    np.testing.assert_array_less(np.abs(draws.mean((0, 1)) - mean), 5 * found / np.sqrt(size))
    np.testing.assert_allclose(found, sd, rtol=0.1)
