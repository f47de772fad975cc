"""`kayn.MPGibbs` as a kernel of `numpyro.infer.MCMC`: posteriors that are known, and everything around them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import kayn
from kayn.inference.mcmc import sweep

from .normals import SD, Y, normals, normals_exact
from .sampling import compare, run
from .tapes import precise


def compare_normals(mcmc, least=400):
    mean, covariance = normals_exact(SD, Y)
    draws = mcmc.get_samples(group_by_chain=True)
    compare(draws["mu"], mean[0], covariance[0, 0] ** 0.5, least)
    compare(draws["theta"], mean[1:], np.diag(covariance)[1:] ** 0.5, least)


def test_local_proposals_give_the_exact_posterior():
    kernel = kayn.MPGibbs(normals)
    mcmc = run(kernel, SD, Y, extra_fields=("moved.theta", "log_weight"))
    compare_normals(mcmc)
    draws = mcmc.get_samples(group_by_chain=True)
    np.testing.assert_array_equal(draws["twice"], 2 * draws["theta"])
    # five particles of one coordinate should move every other time
    assert abs(mcmc.get_extra_fields()["moved.theta"].mean() - 0.514) < 0.07
    assert np.isfinite(mcmc.get_extra_fields()["log_weight"]).all()
    assert "5 particles, least moved" in kernel.get_diagnostics_str(mcmc.last_state)


@pytest.mark.parametrize("proposal", ["prior", "fit", "auto"])
def test_independent_proposals_give_the_exact_posterior(proposal):
    params = None
    if proposal == "fit":
        proposal = kayn.fit(normals, (SD, Y), progress=False, num_steps=100)
    elif proposal == "auto":
        proposal = AutoNormal(normals, init_scale=1.0)
        params = {f"{n}_auto_{p}": jnp.ones(s) for n, s in (("mu", ()), ("theta", (6,))) for p in ("loc", "scale")}
    kernel = kayn.MPGibbs(normals, 20, proposal, params=params)
    compare_normals(run(kernel, SD, Y, warmup=50))


def test_some_latents_local_and_others_by_a_guide():
    kernel = kayn.MPGibbs(normals, proposal={"theta": "prior", "": "local"})
    assert "theta: 5 particles for every element of groups, prior" in str(kernel.passes(SD, Y))
    compare_normals(run(kernel, SD, Y))


def crossed(y, users, films):
    with numpyro.plate("users", 5):
        u = numpyro.sample("u", dist.Normal(0, 1))
    with numpyro.plate("films", 4):
        f = numpyro.sample("f", dist.Normal(0.5, 0.7))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(u[users] + f[films], 0.8), obs=y)


def test_crossed_groups_are_updated_in_turn():
    users, films = (jnp.asarray(i) for i in np.divmod(np.arange(20), 4))
    y = jnp.asarray(np.random.default_rng(0).normal(size=20), jnp.float32)
    design = np.hstack([np.eye(5)[users], np.eye(4)[films]])
    prior = np.r_[np.ones(5), np.full(4, 1 / 0.49)]
    covariance = np.linalg.inv(np.diag(prior) + design.T @ design / 0.64)
    mean = covariance @ (np.r_[np.zeros(5), np.full(4, 0.5 / 0.49)] + design.T @ np.asarray(y) / 0.64)
    kernel = kayn.MPGibbs(crossed)
    text = str(kernel.passes(y, users, films))
    assert text.splitlines() == [
        "Pass 1 of 2",
        "  u: 5 particles for every element of users, local",
        "  held: f",
        "Pass 2 of 2",
        "  f: 5 particles for every element of films, local",
        "  held: u",
        "Along learnt directions, together: u, f",
    ]
    draws = run(kernel, y, users, films, samples=3000).get_samples(group_by_chain=True)
    both = np.concatenate([draws["u"], draws["f"]], -1)
    compare(both, mean, np.diag(covariance) ** 0.5)


def shrunk(x, y):
    tau = numpyro.sample("tau", dist.LogNormal(0, 1))
    slope = numpyro.sample("slope", dist.Normal(0, tau).expand([8]).to_event(1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


def test_a_scale_moves_with_what_it_governs_and_vectors_number_by_number():
    """Against quadrature over the scale. Without these moves 470 draws of the worst slope are effective, and 2,100 of
    the scale."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(12, 8)), jnp.float32)
    y = x @ jnp.asarray(rng.normal(size=8), jnp.float32)
    kernel = kayn.MPGibbs(shrunk, 10)
    assert str(kernel.passes(x, y)).splitlines()[-4:] == [
        "Along learnt directions, together: tau, slope",
        "One number at a time: slope",
        "One number at a time, others along with it: tau",
        "  along with them: slope",
    ]
    taus = np.exp(np.linspace(-6, 5, 2000))
    own = np.asarray(x) @ np.asarray(x).T
    laws = taus[:, None, None] ** 2 * own + np.eye(12)
    logs = -0.5 * (
        np.log(taus) ** 2 + np.linalg.slogdet(laws)[1] + np.linalg.solve(laws, np.asarray(y)) @ np.asarray(y)
    )
    weight = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
    mean = weight @ np.log(taus)
    draws = run(kernel, x, y).get_samples(group_by_chain=True)
    compare(np.log(draws["tau"]), mean, np.sqrt(weight @ (np.log(taus) - mean) ** 2), 2600)
    assert effective_sample_size(np.asarray(draws["slope"])).min() > 1500


def chain(y):
    def step(x, seen):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 0.6))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=seen)
        return x, None

    scan(step, jnp.zeros(()), y)


def test_every_step_of_a_chain_has_an_index_of_its_own():
    kernel = kayn.MPGibbs(chain)
    assert "x: 5 particles for every element of time, local" in str(kernel.passes(Y))
    step = np.eye(6) - 0.9 * np.eye(6, k=-1)
    covariance = np.linalg.inv(step.T @ step / 0.36 + np.eye(6) / 0.25)
    draws = run(kernel, Y).get_samples(group_by_chain=True)
    compare(draws["x"], covariance @ np.asarray(Y) / 0.25, np.diag(covariance) ** 0.5)


def constrained(counts, trials):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    numpyro.sample("counts", dist.Poisson(rate).expand([len(counts)]).to_event(1), obs=counts)
    numpyro.sample("trials", dist.Multinomial(12, shares), obs=trials)


@pytest.mark.parametrize("grouped", [False, True])
def test_constrained_latents_are_moved_in_unconstrained_space(grouped):
    counts, trials = jnp.array([3, 1, 4, 2]), jnp.array([5, 3, 4])
    kernel = kayn.MPGibbs(constrained, groups=[("rate", "shares")] if grouped else ())
    draws = run(kernel, counts, trials).get_samples(group_by_chain=True)
    compare(draws["rate"], 12 / 5, 12**0.5 / 5, 200)
    a = np.array([6.0, 5.0, 7.0])
    compare(draws["shares"], a / 18, np.sqrt(a * (18 - a) / 18**2 / 19), 200)


def counted(y):
    rate = numpyro.sample("rate", dist.Gamma(3.0, 1.0))
    with numpyro.plate("rows", len(y)):
        n = numpyro.sample("n", dist.Poisson(rate))
        on = numpyro.sample("on", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(n + 2.0 * on, 1.0), obs=y)


def test_discrete_latents_without_end_and_with_few_values():
    y = jnp.array([1.0, 4.2, 2.4])
    kernel = kayn.MPGibbs(counted)
    text = str(kernel.passes(y))
    assert "n: 5 particles for every element of rows, local, by whole numbers" in text
    assert "on: 2 values for every element of rows, exact draw" in text
    rates, n = np.linspace(1e-3, 15, 3001), np.arange(40)
    prior = np.asarray(jnp.exp(dist.Poisson(rates[:, None]).log_prob(n)))
    both = [np.exp(-0.5 * (np.asarray(y)[:, None] - n - 2 * on) ** 2) * p for on, p in ((0, 0.7), (1, 0.3))]
    likelihood = prior @ sum(both).T
    weight = np.exp(dist.Gamma(3.0, 1.0).log_prob(rates)) * likelihood.prod(1)
    weight = np.asarray(weight / weight.sum())
    draws = run(kernel, y, samples=3000).get_samples(group_by_chain=True)
    mean = weight @ rates
    compare(draws["rate"], mean, np.sqrt(weight @ (rates - mean) ** 2), 300)
    compare(draws["on"], weight @ (prior @ both[1].T / likelihood), np.std(draws["on"], (0, 1)), 300)
    compare(draws["n"], weight @ (prior @ (n * sum(both)).T / likelihood), np.std(draws["n"], (0, 1)), 300)


def test_sequential_chains_and_a_second_run_take_one_reading_of_the_model():
    times = []

    def model(y):
        times.append(1)
        normals(SD, y)

    kernel = kayn.MPGibbs(model, 3)
    mcmc = run(kernel, Y, warmup=20, samples=30, chains=2, method="sequential")
    assert mcmc.get_samples(group_by_chain=True)["theta"].shape == (2, 30, 6)
    often = len(times)
    mcmc.run(jax.random.key(2), Y)
    assert len(times) == often
    frozen = mcmc.last_state.tuning.log_step
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(jax.random.key(3), Y)
    jax.tree.map(np.testing.assert_array_equal, frozen, mcmc.last_state.tuning.log_step)


def test_chains_in_turn_are_those_at_once(monkeypatch):
    kernel = kayn.MPGibbs(normals)
    state = kernel.init(jax.random.split(jax.random.key(0), 3), 10, None, (SD, Y), {})

    def swept():
        steps = jax.make_jaxpr(lambda state: kernel.sample(state, (SD, Y), {}).z)(state).eqns
        loops = [e.params["length"] for e in steps if e.primitive.name == "scan"]
        return kernel.sample(state, (SD, Y), {}).z, 3 in loops

    at_once, looped = swept()
    assert not looped
    monkeypatch.setattr(sweep, "IN_TURN", 0)
    in_turn, looped = swept()
    assert looped
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), in_turn, at_once)
    assert not np.array_equal(state.z["theta"], in_turn["theta"])


def test_starts_may_be_given_and_float64_works():
    with precise():
        kernel = kayn.MPGibbs(constrained)
        args = jnp.array([3, 1, 4, 2]), jnp.array([5, 3, 4])
        start = {"rate": jnp.full((2,), -7.0)}
        mcmc = run(kernel, *args, warmup=0, samples=1, chains=2, init_params=start)
        assert mcmc.get_samples()["shares"].dtype == jnp.float64
        state = kernel.init(jax.random.key(0), 0, {"rate": jnp.array(-7.0)}, args, {})
        assert state.z["rate"] == -7.0
        with pytest.raises(kayn.KaynError, match="init_params has 'rat', which is no latent"):
            kernel.init(jax.random.key(0), 0, {"rat": jnp.array(0.0)}, args, {})


def test_arviz_reads_the_chains():
    az = pytest.importorskip("arviz_base")
    mcmc = run(kayn.MPGibbs(normals, 3), SD, Y, warmup=20, samples=30, chains=2)
    data = az.from_numpyro(mcmc)
    assert data["posterior"]["theta"].shape == (2, 30, 6)


def empty(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def rows(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 6, subsample_size=2) as i:
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y[i])


def impossible(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a, 1.0), obs=y)
    numpyro.factor("never", jnp.where(a < 1e9, -jnp.inf, 0.0))


def part(sd, y):
    numpyro.sample("mu", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "options", "args", "words"),
    [
        (normals, {"num_particles": 1}, (SD, Y), "num_particles is 1; it must be a whole number, at least 2"),
        (normals, {"proposal": "globally"}, (SD, Y), "proposal is 'globally'; it must be 'local', 'prior', a NumPyro"),
        (normals, {"proposal": {"mu": "local"}}, (SD, Y), "proposal has nothing for latent 'theta'"),
        (normals, {"proposal": {"nu": "local", "": "prior"}}, (SD, Y), "proposal names 'nu', which is no latent"),
        (normals, {"proposal": {"mu": part, "theta": "prior"}}, (SD, Y), "proposal has several guides"),
        (normals, {"proposal": part}, (SD, Y), "latent 'theta' has no guide site"),
        (normals, {"proposal": AutoMultivariateNormal(normals)}, (SD, Y), "a function of an auxiliary site"),
        (rows, {}, (Y,), "plate 'rows' is a subsample of 2 of 6 elements"),
        (empty, {}, (Y,), "no latent to sample"),
        (impossible, {}, (Y,), "chain 0 of impossible found no start"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(model, options, args, words):
    with pytest.raises(kayn.KaynError, match=re.escape(words)):
        kayn.MPGibbs(model, **options).init(jax.random.key(0), 10, None, args, {})


def test_arguments_that_are_traced_are_refused():
    mcmc = MCMC(kayn.MPGibbs(normals), num_warmup=1, num_samples=1, progress_bar=False, jit_model_args=True)
    with pytest.raises(kayn.KaynError, match="leave out jit_model_args"):
        mcmc.run(jax.random.key(0), SD, Y)


def pole(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a, 1.0), obs=y)
    numpyro.factor("pole", jnp.where(a > 0, jnp.inf, 0.0))


def test_a_pole_is_told_once():
    with pytest.warns(kayn.NumericsWarning, match="log densities of 'pole' were") as said:
        mcmc = run(kayn.MPGibbs(pole), Y, warmup=5, samples=20, chains=2)
    assert (mcmc.get_samples()["a"] <= 0).all()
    assert sum("log densities of" in str(w.message) for w in said) == 1


def still(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a, 1e-6), obs=y)


def test_a_latent_that_stays_is_named():
    with pytest.warns(kayn.PoorFitWarning, match="no element of 'a' has moved for 500 sweeps"):
        run(kayn.MPGibbs(still, 2, "prior"), jnp.array(0.5), warmup=1, samples=2500, chains=1)


def test_a_start_is_a_guide_and_for_local_proposals():
    with pytest.raises(kayn.KaynError, match="start is 3; it must be a NumPyro guide"):
        kayn.MPGibbs(normals, start=3).passes(SD, Y)
    with pytest.raises(kayn.KaynError, match="start= is for chains whose proposals are all local"):
        kayn.MPGibbs(normals, proposal="prior", start=part).passes(SD, Y)
