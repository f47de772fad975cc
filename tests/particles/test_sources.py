"""What a point of a guide is drawn from, all of which its density counts."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import kayn


@pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")
def test_all_sources_of_a_point_count_whether_its_density_reads_them_or_not():
    """A point made of two draws, whose density reads one of them, as `z = exp(s) * e` with `-s`: the evidence is the
    plain average of weights that NumPyro counts, within four standard errors."""

    def model(y):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(z[0] + z[1], 0.5), obs=y)

    def points(y):
        s = numpyro.sample("s", dist.Normal(0, 0.7), infer={"is_auxiliary": True})
        e = numpyro.sample("e", dist.Normal(0, 0.8), infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Delta(jnp.stack([s, jnp.exp(s) * e]), -s, event_dim=1))

    found = kayn.Importance(model, points, num_particles=4000, num_replicates=8).run(0, {}, 0.7)
    exact = dist.Normal(0, 2.25**0.5).log_prob(0.7)
    assert abs(found.log_evidence - exact) < 4 * found.log_evidence_error + 1e-4
    assert found.log_evidence_error < 0.05
