"""Starts by gradients, of guides that hold many coordinates on one particle."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn import QEM
from kayn.inference import ascent, mstep, stopping
from kayn.inference.ascent import Gradients
from kayn.inference.mstep import default_rate, steps_ahead

SIZE = 60
A = (np.random.default_rng(2).normal(size=(SIZE, SIZE)) / SIZE**0.5).astype(np.float32)
Y = A @ np.linspace(-1, 1, SIZE, dtype=np.float32)
COVARIANCE = np.linalg.inv(np.eye(SIZE) + A.T @ A / 0.1**2)
MEAN, SD = COVARIANCE @ A.T @ Y / 0.1**2, np.diag(COVARIANCE) ** 0.5


def vector(y):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([SIZE]).to_event(1))
    numpyro.sample("y", dist.Normal(A @ z, 0.1).to_event(1), obs=y)


def found(model, *args, monkeypatch):
    """What gradients give for a model's guide."""
    given, own = [None], Gradients.lead
    monkeypatch.setattr(Gradients, "lead", lambda *asked: given.append(own(*asked)) or given[-1])
    begun(model, *args)
    return given[-1]


def begun(model, *args):
    """QEM as a fit begins with it, and its state."""
    fitter = QEM(model)
    return fitter, fitter.start(jax.random.key(0), args, {}, {}, "gradients")


def test_place_and_covariance_of_a_normal_are_known_at_once(monkeypatch):
    """Up to single precision and where the line search stops: a hundredth of a standard deviation."""
    start = found(vector, Y, monkeypatch=monkeypatch)
    tril = np.asarray(start["kayn:z:scale_tril"], float)
    np.testing.assert_allclose(start["kayn:z:loc"], MEAN, atol=0.05 * SD.max())
    relative = np.linalg.eigvals(np.linalg.solve(COVARIANCE, tril @ tril.T)).real
    np.testing.assert_allclose(relative, 1, atol=0.05)


@pytest.mark.filterwarnings("error::kayn.PoorFitWarning")
def test_a_long_vector_of_strongly_correlated_coordinates_takes_few_steps():
    """From the prior's quantiles a thousand steps do not find it. Errors: four of 32 times 80 effective draws."""
    fit = kayn.fit(vector, (Y,), progress=False)
    assert fit.converged and len(fit.log_evidence) <= 100
    posterior = fit.posterior(escalate=False)
    np.testing.assert_array_less(np.abs(posterior.mean("z") - MEAN) / SD, 4 * (32 * 80) ** -0.5)
    np.testing.assert_array_less(np.abs(posterior.std("z") / SD - 1), 4 * (32 * 80) ** -0.5)
    exact = dist.MultivariateNormal(np.zeros(SIZE), np.eye(SIZE) * 0.01 + A.astype(float) @ A.T).log_prob(Y)
    assert abs(posterior.log_evidence - exact) < 4 * posterior.log_evidence_error + 0.02


def groups(x, y):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with numpyro.plate("groups", 3, dim=-1):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([16]).to_event(1))
        numpyro.sample("y", dist.Normal(jnp.einsum("gij,gj->gi", x, z), scale).to_event(1), obs=y)


def test_vectors_of_groups_have_covariances_of_their_own(monkeypatch):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3, 16, 16)).astype(np.float32)
    y = np.einsum("gij,gj->gi", x, rng.normal(size=(3, 16))).astype(np.float32)
    start = found(groups, x, y, monkeypatch=monkeypatch)
    scale, width = np.exp(start["kayn:scale:loc"]), start["kayn:scale:scale"]
    noise = np.exp(2 * width**2) / scale**2  # precision of a row, averaged over the scale's Normal
    tril = np.asarray(start["kayn:z:scale_tril"], float)
    assert tril.shape == (3, 16, 16)
    for own, rows in zip(tril, x.astype(float), strict=True):
        relative = np.linalg.eigvals((np.eye(16) + noise * rows.T @ rows) @ own @ own.T).real
        np.testing.assert_allclose(relative, 1, atol=0.25)


def classes(x, y):
    """Positive coefficients, and a discrete latent a row that is summed out."""
    b = numpyro.sample("b", dist.LogNormal(0.0, 1.0).expand([16]).to_event(1))
    with numpyro.plate("rows", len(y)):
        c = numpyro.sample("c", dist.Bernoulli(0.1))
        numpyro.sample("y", dist.Normal(x @ b, jnp.where(c == 1, 5.0, 0.3)), obs=y)


def test_latents_that_are_summed_out_and_supports_count(monkeypatch):
    """The start is where the density summed over classes has no slope, in log space."""
    rng = np.random.default_rng(5)
    x, right = rng.normal(size=(80, 16)).astype(np.float32), np.exp(0.5 * rng.normal(size=16))
    y = (x @ right + np.where(rng.random(80) < 0.1, 5.0, 0.3) * rng.normal(size=80)).astype(np.float32)
    start = found(classes, x, y, monkeypatch=monkeypatch)

    def density(u):
        rows = jnp.stack([dist.Normal(x @ jnp.exp(u), s).log_prob(y) + jnp.log(p) for p, s in ((0.9, 0.3), (0.1, 5.0))])
        return jnp.sum(jax.nn.logsumexp(rows, 0)) + dist.Normal(0, 1).log_prob(u).sum()

    u = jnp.asarray(start["kayn:b:loc"])
    tril = start["kayn:b:scale_tril"]
    inverse = -np.linalg.inv(jax.hessian(density)(u))
    # the mode, up to what the mean of a skewed density is off
    newton = inverse @ jax.grad(density)(u)
    assert np.abs(newton / np.diag(inverse) ** 0.5).max() < 0.5
    np.testing.assert_allclose(np.sqrt(np.diag(tril @ tril.T)), np.sqrt(np.diag(inverse)), rtol=0.3)


def loop(y):
    """A number found by iteration, which has no gradient backwards."""
    z = numpyro.sample("z", dist.Normal(0, 1).expand([20]).to_event(1))
    root = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, 0.5 * s[1] + z), (0, z))[1]
    numpyro.sample("y", dist.Normal(root, 1.0).to_event(1), obs=y)


def short(y):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([15]).to_event(1))
    numpyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def test_what_has_no_gradient_or_is_short_starts_from_the_prior(monkeypatch):
    start = found(loop, jnp.ones(20), monkeypatch=monkeypatch)
    assert start is None
    assert found(short, jnp.ones(15), monkeypatch=monkeypatch) is None
    monkeypatch.setattr(ascent, "MOST_ENTRIES", 100)
    assert found(vector, Y, monkeypatch=monkeypatch) is None


def test_nothing_is_tried_where_numbers_are_traced_the_guide_is_given_or_by_qem_itself(monkeypatch):
    monkeypatch.setattr(ascent, "LONG", 1)
    monkeypatch.setattr(ascent, "_Ascent", lambda *given: pytest.fail("looked"))
    traced = jax.jit(lambda y: kayn.fit(short, (y,), num_steps=2, progress=False).log_evidence)(jnp.ones(15))
    assert np.isfinite(traced).all()
    guide = kayn.FactorisedGuide.from_model(short, (jnp.ones(15),))
    kayn.fit(short, (jnp.ones(15),), guide=guide, num_steps=2, progress=False)
    QEM(short).init(0, jnp.ones(15))


def test_a_start_with_less_evidence_is_not_taken(monkeypatch):
    own = Gradients.lead

    def far(*given):
        start = own(*given)
        return {n: v + 30 if n.endswith("loc") else v for n, v in start.items()}

    monkeypatch.setattr(Gradients, "lead", far)
    fitter, state = begun(vector, Y)
    assert np.abs(fitter.get_params(state)["kayn:z:loc"]).max() < 5
    assert all(float(v) == 0 for v in state.ahead.values())


def test_covariances_that_are_known_move_slowly_and_all_else_as_before():
    fitter, state = begun(vector, Y)
    (block,) = fitter.blocks
    rate = default_rate(state.ahead[block.name])
    np.testing.assert_allclose(rate, block.size / 2 / SIZE**2, rtol=1e-3)
    assert steps_ahead(block, {"variance": np.ones(3)}) == 0.0
    assert steps_ahead(block, {"covariance": np.eye(3)}) == 0.0


@pytest.mark.parametrize("dear", [False, True])
def test_dear_steps_begin_by_gradients_where_no_vector_is_long(monkeypatch, dear):
    if dear:
        monkeypatch.setattr(ascent, "DEAR", 1)
    assert (found(short, jnp.ones(15), monkeypatch=monkeypatch) is not None) == dear


@pytest.mark.parametrize("even", [False, True])
def test_other_starts_are_looked_at_unless_weights_are_even(monkeypatch, even):
    """A start is a chunk of steps, which are the dearest of a fit where they are far from the posterior."""
    if not even:
        monkeypatch.setattr(mstep, "EVEN", 1.1)
    looked, own = [], QEM._chunk
    monkeypatch.setattr(QEM, "_chunk", lambda self, *given: looked.append(given) or own(self, *given))
    fitter, _ = begun(vector, Y)
    assert len(looked) == (1 if even else 1 + len(fitter.guide.starts))


def test_gradients_are_asked_once(monkeypatch):
    """Where they are asked before the first step they are not asked again, also if they led nowhere."""
    monkeypatch.setattr(Gradients, "lead", lambda *given: None)
    assert begun(vector, Y)[0].nearer() is None
    assert begun(short, jnp.ones(15))[0].nearer() is not None


@pytest.mark.parametrize("bound", ["OPERATIONS", "SECONDS"])
def test_gradients_that_are_dear_are_given_up(monkeypatch, bound):
    monkeypatch.setattr(ascent, bound, 0)
    assert found(vector, Y, monkeypatch=monkeypatch) is None


def growth(x, y):
    """Lines of many, under priors that span the range of floats."""
    a, b = numpyro.sample("a", dist.Normal(0, 100)), numpyro.sample("b", dist.Normal(0, 100))
    r, s, t = (numpyro.sample(n, dist.InverseGamma(0.001, 0.001)) for n in "rst")
    with numpyro.plate("rats", len(y)):
        u, v = numpyro.sample("u", dist.Normal(a, s**0.5)), numpyro.sample("v", dist.Normal(b, t**0.5))
        numpyro.sample("y", dist.Normal(u[:, None] + v[:, None] * x, r**0.5).to_event(1), obs=y)


def test_a_fit_that_is_on_its_way_for_long_asks_where_gradients_lead(monkeypatch):
    """From the prior's quantiles it climbs for more than two hundred steps, by tens of nats a chunk."""
    rng, x = np.random.default_rng(3), np.array([-14.0, -7.0, 0.0, 7.0, 14.0])
    lines = rng.normal(240, 14, (8, 1)) + rng.normal(6, 0.5, (8, 1)) * x
    monkeypatch.setattr(stopping, "WORTH", 1)
    asked, own = [], Gradients.lead
    monkeypatch.setattr(Gradients, "lead", lambda *given: asked.append(own(*given)) or asked[-1])
    fit = kayn.fit(growth, (x, lines + rng.normal(0, 6, (8, 5))), progress=False)
    history = fit.log_evidence
    assert len(asked) == 1 and asked[0] is not None and len(history) <= 120 and fit.converged
    before, after = history[: stopping.LATE], history[stopping.LATE :]
    assert before.max() < after.min() - 20
    np.testing.assert_allclose(after, after[-8:].mean(), atol=2)
