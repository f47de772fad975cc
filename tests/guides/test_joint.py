"""Joint Normals for coordinates that share a particle: the right law, drawn and weighed as such, found by QEM."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO

import kayn
from kayn.guides.joint import Coordinates, Exchangeable, JointPart, by_part, chains, closest
from kayn.guides.joint_blocks import LARGEST_BLOCK
from kayn.inference.importance import Importance
from kayn.inference.qem import QEM

S, P = numpyro.sample, numpyro.plate
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)) @ np.array([[1.0, 0.9, 0.3], [0.0, 0.4, 0.2], [0.0, 0.0, 0.5]])
Y = X @ [1.0, -0.5, 0.3] + 2.0 + 0.5 * RNG.normal(size=12)


def coefficients(x, y):
    """Rows read all elements of a plate, so that these share a particle; the intercept is asked to."""
    a = S("a", dist.Normal(0.0, 3.0))
    with P("columns", 3):
        b = S("b", dist.Normal(0.0, 2.0))
    with P("rows", 12):
        S("y", dist.Normal(a + x @ b, 0.5), obs=y)


def lines(x, y):
    """An intercept and a positive slope in each group, the slope by the logarithm."""
    with P("groups", 3):
        a = S("a", dist.Normal(0.0, 3.0))
        b = S("b", dist.LogNormal(0.0, 1.0))
        with P("rows", 4, dim=-2):
            S("y", dist.Normal(a + jnp.log(b) * x, 0.5), obs=y)


def grid(x, y):
    """One plate of two stays apart, the other's elements are read together; a vector beside it."""
    with P("groups", 3, dim=-1):
        v = S("v", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with P("items", 2, dim=-2):
            z = S("z", dist.Normal(0.0, 2.0))
        S("y", dist.Normal(z.sum(0) + 0.5 * z[0] + v[..., 0] - v[..., 1], 0.5), obs=y)


def table(x, y):
    """The plate that stays apart stands in front of the one whose elements are read together."""
    with P("groups", 3, dim=-2):
        with P("items", 4, dim=-1):
            z = S("z", dist.Normal(0.0, 2.0))
        S("y", dist.Normal(z.sum(-1, keepdims=True) + 0.5 * z[:, :1], 0.5), obs=y)


def scales(x, y):
    """A matrix event, in a plate whose elements are read together: unconstrained it is a vector."""
    with P("kinds", 2):
        z = S("z", dist.LogNormal(jnp.zeros((2, 2)), 1.0).to_event(2))
    S("y", dist.Normal(jnp.log(z).sum(), 0.5), obs=y)


# 32-bit: JAX 0.10 cannot trace one 64-bit NumPy array first with and then without x64
X, Y = np.float32(X), np.float32(Y)
CASES = {
    "coefficients": (coefficients, (X, Y), {"groups": [["a", "b"]]}, (("a", "b"),)),
    "lines": (lines, (X[:4], Y.reshape(4, 3)), {"groups": [["a", "b"]]}, (("a", "b"),)),
    "grid": (grid, (X, Y[:3]), {"groups": [["v", "z"]]}, (("v", "z"),)),
    "table": (table, (X, Y[:3, None]), {}, (("z",),)),
    "scales": (scales, (X, Y[0]), {}, (("z",),)),
}


def unconstrained(model, args):
    """The joint log density of unconstrained latents, those of a log-normal being their logarithms, and its shape."""
    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(*args)
    latents = {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
    positive = {n for n, s in latents.items() if "LogNormal" in str(s["fn"]) or np.all(np.asarray(s["value"]) > 0)}
    positive &= {"z"} if model is scales else {"b"} if model is lines else set()
    zeros = {n: jnp.zeros(jnp.shape(s["value"])) for n, s in latents.items()}
    flat, back = ravel_pytree(zeros)

    def log_density(u):
        values = back(u)
        given = {n: jnp.exp(v) if n in positive else v for n, v in values.items()}
        return numpyro.infer.util.log_density(model, args, {}, given)[0] + sum(values[n].sum() for n in positive)

    return log_density, flat, back


def exact(model, args):
    """Mean and covariance of the Gaussian posterior in unconstrained space, log evidence, and the way back."""
    log_density, flat, back = unconstrained(model, args)
    precision = -np.asarray(jax.hessian(log_density)(flat), np.float64)
    mean = np.linalg.solve(precision, np.asarray(jax.grad(log_density)(flat), np.float64))
    log_z = float(log_density(jnp.asarray(mean))) + len(mean) / 2 * np.log(2 * np.pi)
    return mean, np.linalg.inv(precision), log_z - 0.5 * np.linalg.slogdet(precision)[1], back


def places(parts, block, numbers):
    """Where the coordinates of a block's vectors stand among those of the model, which are numbered: int [*S, N]."""
    own = zip(block, parts, strict=True)
    vectors = [p.coordinates.vectors(np.asarray(numbers[n]).reshape(p.coordinates.shape)) for n, p in own]
    return np.concatenate(vectors, -1).astype(int)


def at_the_posterior(guide, mean, covariance, back, block):
    """Parameters of the guide's joint Normal at the exact posterior."""
    sites = {s.name: s for s in guide.sites}
    parts = guide.parts(block)
    index = places(parts, block, back(jnp.arange(len(mean))))
    params = {
        "loc": mean[index],
        "scale_tril": np.linalg.cholesky(covariance[index[..., :, None], index[..., None, :]]),
    }
    named = zip(block, by_part(parts, params), strict=True)
    assert set(sites) == set(block)
    return {f"kayn:{n}:{p}": jnp.asarray(v) for n, own in named for p, v in own.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_exact_posterior_weighs_all_particles_alike(name, x64):
    """One particle is enough, whatever the key: densities, draws and their parameters belong together."""
    model, args, options, blocks = CASES[name]
    qem = QEM(model, num_particles=4, **options)
    state = qem.init(0, *args)
    assert qem.guide.blocks == blocks
    mean, covariance, log_z, back = exact(model, args)
    params = at_the_posterior(qem.guide, mean, covariance, back, blocks[0])
    posterior = Importance(model, qem.guide, 4, num_replicates=2, **options).run(1, params, *args)
    np.testing.assert_allclose(posterior.log_evidences, log_z, atol=1e-8)
    for site in blocks[0]:
        np.testing.assert_allclose(posterior.weights(site), 1 / 8, atol=1e-8)
    assert qem.get_params(state).keys() == params.keys()
    # and of what the guide draws as a program
    program = numpyro.handlers.substitute(numpyro.handlers.seed(qem.guide, 3), params)
    drawn = numpyro.handlers.trace(program).get_trace(*args)
    values = {n: drawn[n]["value"] for n in blocks[0]}
    joint = numpyro.infer.util.log_density(model, args, {}, values)[0]
    log_q = sum(jnp.sum(drawn[n]["fn"].log_prob(values[n])) for n in blocks[0])
    np.testing.assert_allclose(joint - log_q, log_z, atol=1e-8)


@pytest.mark.parametrize("name", ["coefficients", "lines", "grid"])
def test_fit_finds_the_joint_posterior(name):
    """Every element's covariance, from the prior's quantiles, to a twentieth of a nat by its divergence."""
    model, args, options, (block,) = CASES[name]
    fit = kayn.fit(model, args, progress=False, **options)
    mean, covariance, log_z, back = exact(model, args)
    parts = fit.guide.parts(block)
    found = [{p: np.asarray(fit.params[f"kayn:{n}:{p}"]) for p in s.start} for n, s in by_name(fit.guide, block)]
    loc, tril = (np.asarray(v, np.float64) for v in chains(parts, found))
    index = places(parts, block, back(jnp.arange(len(mean))))
    for i in np.ndindex(index.shape[:-1]):
        right, inverse = covariance[np.ix_(index[i], index[i])], np.linalg.inv(tril[i] @ tril[i].T)
        off, relative = loc[i] - mean[index[i]], inverse @ right
        gap = np.trace(relative) - np.linalg.slogdet(relative)[1] - len(relative) + off @ inverse @ off
        assert gap / 2 < 0.05
    assert fit.converged
    assert float(fit.posterior().log_evidence) == pytest.approx(log_z, abs=0.02)


def by_name(guide, block):
    sites = {s.name: s for s in guide.sites}
    return [(n, sites[n]) for n in block]


def test_the_evidence_is_unbiased_whatever_the_joint_guide():
    """Three particles of a wrong joint guide, 4,000 times: mean Z over the exact one within 4 of its own standard
    errors, 6e-5 a comparison."""
    model, args, options, (block,) = CASES["grid"]
    qem = QEM(model, num_particles=3, **options)
    qem.init(0, *args)
    mean, covariance, log_z, back = exact(model, args)
    wrong = covariance * 1.5 + 0.1 * np.eye(len(mean)) + 0.05
    params = at_the_posterior(qem.guide, mean + 0.2, wrong, back, block)
    found = Importance(model, qem.guide, 3, num_replicates=4000, **options).run(5, params, *args)
    ratio = np.exp(np.asarray(found.log_evidences, np.float64) - log_z)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(ratio) ** 0.5
    assert ratio.std() > 0.05


def test_blocks_leave_the_axes_as_they_are():
    """Axes are chosen without blocks, and more particles later keep joint latents on one."""
    model, args, options, _ = CASES["grid"]
    alone = Importance(model, None, 8, **options).problem({}, *args).layout
    fit = kayn.fit(model, args, num_particles=8, num_steps=48, progress=False, **options)
    kept = fit.posterior().problem.layout
    assert (kept.axes, kept.couplings) == (alone.axes, alone.couplings)
    more = fit.posterior(num_particles=12, num_replicates=2).problem.layout
    assert [(a.latents, a.scope) for a in more.axes] == [(a.latents, a.scope) for a in alone.axes]
    assert [a.size for a in more.axes] == [12]
    # the guide itself says what it draws jointly
    plain = Importance(scales, joint_guide_of(scales, (X, Y[0])), 8).problem({}, X, Y[0]).layout
    assert [a.scope for a in plain.axes] == [()]


def joint_guide_of(model, args):
    qem = QEM(model, num_particles=4)
    qem.init(0, *args)
    return qem.guide


def test_svi_trains_a_joint_guide():
    """NumPyro's loss gets within a nat of the log evidence, where independent Normals stay 1.5 nats further off."""
    model, args = coefficients, (X, Y)
    guide = joint_guide_of(model, args)
    *_, log_z, _ = exact(model, args)
    optimiser = numpyro.optim.optax_to_numpyro(optax.adam(optax.exponential_decay(0.1, 200, 0.2)))
    result = SVI(model, guide, optimiser, Trace_ELBO(8)).run(jax.random.key(0), 600, *args, progress_bar=False)
    assert -float(np.mean(result.losses[-50:])) == pytest.approx(log_z, abs=1.0)


def test_gradients_pass_through_a_joint_guide(x64):
    """kayn's pathwise gradient against differences of the loss under one key, along a direction of all parameters."""
    model, args, options, _ = CASES["grid"]
    guide = joint_guide_of(model, args)
    rng = np.random.default_rng(6)
    start = {n: np.asarray(v) + 0.1 * rng.normal(size=np.shape(v)) for n, v in guide.start.items()}
    along = {
        n: np.tril(d) if n.endswith("tril") else d for n, v in start.items() if (d := rng.normal(size=v.shape)).size
    }
    loss = kayn.VI(4, **options)

    def at(step):
        params = {n: v + step * along[n] for n, v in start.items()}
        return loss.loss(jax.random.key(2), params, model, guide, *args)

    slope = (at(1e-5) - at(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(at)(0.0), slope, rtol=1e-6)


def test_single_sites_and_long_blocks():
    """A vector of its own stays the family it was; what is longer than a block is left out of it."""

    def model(y):
        v = S("v", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with P("long", LARGEST_BLOCK + 6):
            z = S("z", dist.Normal(0.0, 1.0))
        a = S("a", dist.Normal(0.0, 1.0))
        S("y", dist.Normal(v.sum() + z.sum() + a, 1.0), obs=y)

    qem = QEM(model, num_particles=4, groups=[["z", "a", "v"]])
    qem.init(0, 1.0)
    assert qem.guide.blocks == (("v", "a"),)
    qem = QEM(model, num_particles=4, groups=[])
    qem.init(0, 1.0)
    assert qem.guide.blocks == ()


def test_coordinates_come_back():
    coordinates = Coordinates((2, 3, 4), (1,))
    u = jnp.arange(48.0).reshape(2, 2, 3, 4)
    vectors = coordinates.vectors(u)
    assert vectors.shape == (2, 3, 8)
    np.testing.assert_array_equal(vectors[:, 1], u[:, :, 1].reshape(2, 8))
    np.testing.assert_array_equal(coordinates.whole(vectors), u)


def test_parameters_of_sites_and_of_the_whole():
    parts = [
        JointPart(coordinates=Coordinates((2,), ()), block=("a", "b"), place_in_block=0, width=0),
        JointPart(coordinates=Coordinates((), ()), block=("a", "b"), place_in_block=1, width=2),
    ]
    loc, tril = np.arange(3.0), np.tril(np.arange(1.0, 10).reshape(3, 3))
    back = chains(parts, by_part(parts, {"loc": loc, "scale_tril": tril}))
    np.testing.assert_array_equal(back[0], loc)
    np.testing.assert_array_equal(back[1], tril)


def test_noise_does_not_widen_narrow_directions():
    """Of a nearly singular correlation, 100 effective particles tell each direction to a fifth of its variance."""
    right = 0.999 * np.ones((4, 4)) + 0.001 * np.eye(4)
    family = Exchangeable(kinds=(0, 1, 2, 3))
    draws = np.random.default_rng(2).multivariate_normal(np.zeros(4), right, 100)
    covariance = jnp.asarray(np.cov(draws.T), jnp.float32)
    found = family.from_moments({"mean": jnp.zeros(4), "covariance": covariance, "noise": jnp.asarray(0.01)})
    tril = np.asarray(found["scale_tril"], np.float64)
    relative = np.linalg.eigvals(np.linalg.solve(right, tril @ tril.T)).real
    assert relative.min() > 0.5
    assert relative.max() < 2


def test_shrinkage_is_towards_what_elements_of_a_plate_have_in_common():
    """All correlations .5 and little to tell them from: their average is kept, its noise is not."""
    right = 0.5 * np.ones((20, 20)) + 0.5 * np.eye(20)
    draws = np.random.default_rng(3).multivariate_normal(np.zeros(20), right, 25)
    covariance = jnp.asarray(np.cov(draws.T), jnp.float32)
    moments = {"mean": jnp.zeros(20), "covariance": covariance, "noise": jnp.asarray(0.04)}
    tril = np.asarray(Exchangeable(kinds=(0,) * 20).from_moments(moments)["scale_tril"], np.float64)
    scale = np.sqrt(np.diag(tril @ tril.T))
    found = (tril @ tril.T / np.outer(scale, scale))[~np.eye(20, dtype=bool)]
    sample = np.corrcoef(draws.T)[~np.eye(20, dtype=bool)]
    assert found.mean() == pytest.approx(sample.mean(), abs=0.05)
    assert found.std() < 0.4 * sample.std()


def test_share_of_the_target():
    """Without noise next to nothing, with nothing but noise everything."""
    covariance = jnp.asarray(np.cov(np.random.default_rng(4).normal(size=(3, 30))), jnp.float32)
    none, all_ = (float(closest(covariance, jnp.asarray(noise))) for noise in (0.0, 0.5))
    assert none < 1e-3
    assert all_ > 0.5


def test_a_fit_goes_on_from_the_parameters_of_another():
    """Parameters of joint Normals are taken where a guide is made anew; those of none are refused."""

    def model():
        a, b = (numpyro.sample(n, dist.Normal(0.0, 1.0)) for n in "ab")
        numpyro.sample("y", dist.Normal(a + b, 0.3), obs=1.0)

    first = kayn.QEM(model, num_particles=10, groups=[("a", "b")])
    state, _ = first.advance(first.init(0), 8)
    found = first.get_params(state)
    assert any(n.endswith("scale_tril") for n in found)
    again = kayn.QEM(model, num_particles=10, groups=[("a", "b")])
    begun = again.get_params(again.init(1, params=found))
    for name, value in found.items():
        np.testing.assert_allclose(begun[name], value, rtol=1e-3, atol=1e-4)
    with pytest.raises(kayn.KaynError, match="kayn:a:scale_trill"):
        again.init(1, params={"kayn:a:scale_trill": np.ones((1, 1))})
