"""Subsampled plates: M rows stand for N elements, in every estimator, in dreams and in kayn's own guide.

Expected losses and gradients are exact: over all subsamples and all particles of small Bernoulli models,
against formulas of their own.
"""

import itertools
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from scipy.stats import norm

import kayn
from kayn import meters
from kayn.axes.request import make_request
from kayn.errors import GuideError, KaynError, ModelError, StructureWarning
from kayn.evidence.draws import draw_particles, draws_from_runs
from kayn.evidence.problem import build_problem
from kayn.evidence.weights import log_evidence, weigh
from kayn.guides.factorised import FactorisedGuide
from tests.replacing import replace_everywhere

N, M, K = 3, 2, 2
X = np.array([1.0, 0.0, 1.0])
PARAMS = {"q": np.array([-0.4, 0.3, 0.8]), "g_logit": np.array(0.2), "p": np.array([0.7, -0.6])}


def bernoulli(logit, value):
    return value * logit - jnp.logaddexp(0.0, logit)


# -- one plate: local latents, below a global one or not


def local_model(shared):
    def model(x):
        p = jnp.asarray(numpyro.param("p", PARAMS["p"]))
        g = numpyro.sample("g", dist.Bernoulli(0.4)) if shared else 0.0
        with numpyro.plate("rows", N, subsample_size=M) as rows:
            z = numpyro.sample("z", dist.Bernoulli(logits=p[0] + g))
            numpyro.sample("x", dist.Bernoulli(logits=2.0 * z + p[1] - g), obs=x[rows])

    return model


def local_guide(shared):
    def guide(x):
        q, g = (jnp.asarray(numpyro.param(n, PARAMS[n])) for n in ("q", "g_logit"))
        if shared:
            numpyro.sample("g", dist.Bernoulli(logits=g))
        with numpyro.plate("rows", N, subsample_size=M) as rows:
            numpyro.sample("z", dist.Bernoulli(logits=q[rows]))

    return guide


def log_joint(params, rows, g, z):
    """log p and log q of M rows given g: [M]."""
    p, q = params["p"], params["q"]
    log_p = bernoulli(p[0] + g, z) + bernoulli(2.0 * z + p[1] - g, jnp.asarray(X)[rows])
    return log_p, bernoulli(q[rows], z)


def log_z_of(params, shared, axes, rows, g, z):
    """log Z by its definition, for particles g [K] and z [K, M]: on one axis, on two, or z by row and g by pair."""
    own = bernoulli(np.log(0.4 / 0.6), g) - bernoulli(params["g_logit"], g) if shared else jnp.zeros(len(g))
    if axes == "one":
        terms = [own[k] + N / M * jnp.sum(jnp.subtract(*log_joint(params, rows, g[k], z[k]))) for k in range(len(g))]
        return jax.nn.logsumexp(jnp.stack(terms)) - np.log(len(g))
    particles = range(len(g)) if shared else range(1)
    terms = []
    for k in particles:
        by_row = jnp.stack(
            [jnp.subtract(*log_joint(params, rows, g[k] if shared else 0.0, z[j])) for j in range(len(z))]
        )
        terms.append(own[k] + N / M * jnp.sum(jax.nn.logsumexp(by_row, 0) - np.log(len(z))))
    return jax.nn.logsumexp(jnp.stack(terms)) - np.log(len(terms))


def outcomes(shared, count):
    """All subsamples and particles: rows [O, M], g [O, K], z [O, K, M]."""
    bits = list(itertools.product([0.0, 1.0], repeat=count * M + (count if shared else 0)))
    subsets = list(itertools.combinations(range(N), M))
    pairs = list(itertools.product(subsets, bits))
    rows, bits = jnp.array([r for r, _ in pairs]), jnp.array([b for _, b in pairs])
    z, g = bits[:, : count * M].reshape(-1, count, M), bits[:, count * M :]
    return rows, g if shared else jnp.zeros((len(pairs), count)), z


def log_probability(params, shared, rows, g, z):
    drawn = jnp.sum(bernoulli(params["q"][rows], z)) + (jnp.sum(bernoulli(params["g_logit"], g)) if shared else 0.0)
    return drawn - np.log(len(list(itertools.combinations(range(N), M))))


def exact(shared, axes, count):
    """The expected loss and its gradient, by autodiff of the enumerated expectation."""
    every = outcomes(shared, count)

    def loss(params):
        def one(rows, g, z):
            return -jnp.exp(log_probability(params, shared, rows, g, z)) * log_z_of(params, shared, axes, rows, g, z)

        return jnp.sum(jax.vmap(one)(*every))

    return jax.value_and_grad(loss)(params_of())


def params_of():
    return {n: jnp.asarray(v) for n, v in PARAMS.items()}


def expected(monkeypatch, estimator, shared, count):
    """The mean of an estimator's loss and gradient over all outcomes."""
    rows, g, z = outcomes(shared, count)

    def chosen(problem, numbers, key, params):
        n = jax.random.key_data(key)[-1]
        own = {"z": z[n]} | ({"g": g[n]} if shared else {})
        runs = {name: own[name].astype(problem.guide.density.sites[name].dtype) for name in problem.guide.names}
        return draws_from_runs(problem, numbers, params, runs, {"rows": rows[n].astype(jnp.int32)})

    replace_everywhere(monkeypatch, draw_particles, chosen)
    params = params_of()

    def one(n):
        key = jax.random.wrap_key_data(jnp.array([0, n], jnp.uint32))
        return jax.value_and_grad(
            lambda p: estimator.loss(key, p, local_model(shared), local_guide(shared), jnp.asarray(X))
        )(params)

    value, gradient = jax.jit(jax.vmap(one))(jnp.arange(len(rows), dtype=jnp.uint32))
    weights = jnp.exp(jax.vmap(lambda *o: log_probability(params, shared, *o))(rows, g, z))
    return jax.tree.map(lambda v: jnp.tensordot(weights, v, 1), (value, gradient))


ESTIMATORS = [
    (kayn.Reinforce(K, "local"), False, "rows"),
    (kayn.Reinforce(K, "global"), False, "one"),
    (kayn.Reinforce(K, couple={"z": "rows"}), False, "one"),
    (kayn.VIMCO(K, "local"), False, "rows"),
    (kayn.VIMCO(K, "global"), False, "one"),
    (kayn.VIMCO(K, "global", baseline="geometric"), False, "one"),
    (kayn.Reinforce(K), True, "rows"),
    (kayn.Reinforce(K, "global"), True, "one"),
    (kayn.Reinforce(K, groups=[("g", "z")]), True, "one"),
    (kayn.VIMCO(K, "global"), True, "one"),
]


@pytest.mark.parametrize(
    "case",
    ESTIMATORS,
    ids=lambda c: f"{type(c[0]).__name__}-{c[0].request.strategy}-{c[0].request.num_particles}-{c[1]}",
)
def test_expected_losses_and_gradients(case, monkeypatch, x64):
    estimator, shared, axes = case
    value, gradient = expected(monkeypatch, estimator, shared, estimator.request.num_particles)
    right, slope = exact(shared, axes, estimator.request.num_particles)
    np.testing.assert_allclose(value, right, rtol=1e-9)
    for name in slope:
        np.testing.assert_allclose(gradient[name], slope[name], rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("strategy", ["local", "global"])
def test_one_particle_gives_the_full_data_bound(strategy, monkeypatch, x64):
    """Its expectation over subsamples is the evidence lower bound of all data."""
    params = params_of()
    log_p, log_q = zip(*(log_joint(params, jnp.arange(N), 0.0, jnp.full(N, z)) for z in (0.0, 1.0)), strict=True)
    bound = sum(jnp.sum(jnp.exp(q) * (p - q)) for p, q in zip(log_p, log_q, strict=True))
    value, _ = expected(monkeypatch, kayn.Reinforce(1, strategy), False, 1)
    np.testing.assert_allclose(value, -bound, rtol=1e-9)


@pytest.mark.parametrize("loss", [kayn.VIMCO(2), kayn.VIMCO(2, "local"), kayn.DReG(2)], ids=lambda v: type(v).__name__)
def test_powers_below_a_global_latent_are_refused(loss):
    """Z is then no linear function of a row's weights, which leaving out a particle and doubly reparameterised
    gradients rest on."""
    normal = isinstance(loss, kayn.DReG)

    def program(observe):
        g = numpyro.sample("g", dist.Normal(0, 1) if normal else dist.Bernoulli(0.4))
        mean = 1.0 * g if observe else 0.0
        with numpyro.plate("rows", 6, subsample_size=1):
            z = numpyro.sample("z", dist.Normal(mean, 1) if normal else dist.Bernoulli(logits=mean))
            if observe:
                numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.ones(1))

    with pytest.raises(GuideError, match=r"'z' is in the subsampled plate 'rows', whose rows count 6 times"):
        loss.loss(jax.random.key(0), {}, lambda: program(1), lambda: program(0))


def test_dreg_where_rows_share_an_index():
    """Its gradient is that of kayn.VI, by 4,000 common keys: z-score within 4.5 of this run's own standard error,
    7e-6 a comparison."""
    y = jnp.array([0.4, -1.0, 2.0])

    def model():
        with numpyro.plate("rows", 3, subsample_size=1) as rows:
            numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0, 1)), 0.8), obs=y[rows])

    def guide():
        loc, scale = numpyro.param("loc", jnp.array(0.3)), numpyro.param("scale", jnp.array(0.9))
        with numpyro.plate("rows", 3, subsample_size=1):
            numpyro.sample("z", dist.Normal(loc, scale))

    params = {"loc": jnp.array(0.3), "scale": jnp.array(0.9)}
    keys = jax.random.split(jax.random.key(0), 4000)
    found = [
        jax.jit(jax.vmap(lambda k, loss=loss: jax.grad(lambda p: loss.loss(k, p, model, guide))(params)))(keys)
        for loss in (kayn.VI(2, "global"), kayn.DReG(2, "global"))
    ]
    for name in params:
        difference = np.asarray(found[0][name] - found[1][name])
        assert abs(difference.mean()) < 4.5 * difference.std() / np.sqrt(len(keys)), name
        assert difference.std() > 0


# -- two subsampled plates, nested and crossed


@pytest.mark.parametrize("strategy", ["local", "parallel", "global"])
@pytest.mark.parametrize("crossed", [False, True], ids=["nested", "crossed"])
def test_two_subsampled_plates(crossed, strategy, x64):
    """The expected loss of one particle, over all pairs of subsamples, is minus the bound of all data;
    losses of one pair are linear in rows."""
    y = jax.random.normal(jax.random.key(1), (3, 4))

    def program(observe):
        with numpyro.plate("a", 3, dim=-2, subsample_size=2) as i:
            u = numpyro.sample("u", dist.Normal(0.0, 1.0))
            with numpyro.plate("b", 4, dim=-1, subsample_size=2) as j:
                if not crossed:
                    numpyro.sample("z", dist.Normal(u * observe, 1.0))
        if crossed:
            with numpyro.plate("b", 4, dim=-1, subsample_size=2) as j:
                numpyro.sample("v", dist.Normal(0.0, 2.0))
        if observe:
            with numpyro.plate("a", 3, dim=-2, subsample_size=2), numpyro.plate("b", 4, dim=-1, subsample_size=2):
                numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y[i[:, None], j])

    names = ("u", "v") if crossed else ("u", "z")
    problem = build_problem(lambda: program(1), lambda: program(0), (), {}, {}, make_request(1, strategy))

    def one(i, j):
        draws = {"u": jnp.full((1, 2, 1), 0.5), "v": jnp.full((1, 2), 0.5), "z": jnp.full((1, 2, 2), 0.25)}
        runs = {n: draws[n] for n in names}
        drawn = draws_from_runs(problem, problem.numbers, {}, runs, {"a": i, "b": j})
        slots = weigh(problem, problem.numbers, drawn, {})
        return log_evidence(problem, problem.numbers, slots, {}, drawn.subsample)

    pairs = list(itertools.product(itertools.combinations(range(3), 2), itertools.combinations(range(4), 2)))
    mean = jax.vmap(one)(*(jnp.array([p[n] for p in pairs], jnp.int32) for n in (0, 1))).mean()
    # u and v are drawn from their priors
    tied = 0.0 if crossed else 12 * (dist.Normal(0.5, 1.0).log_prob(0.25) - dist.Normal(0.0, 1.0).log_prob(0.25))
    np.testing.assert_allclose(mean, dist.Normal(0.0, 1.0).log_prob(y).sum() + tied, rtol=1e-9)


@pytest.mark.parametrize("strategy", ["parallel", "local", "global"])
def test_latents_by_way_of_auxiliary_sites_count_as_their_own(strategy, x64):
    """The same particles, drawn as they are or as a copy of a site that the model has not, of which a run is one
    whole: rows then share an index whatever the strategy."""

    def model():
        with numpyro.plate("rows", 6, subsample_size=2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=jnp.array([0.3, -0.8]))

    def guide(copied):
        with numpyro.plate("rows", 6, subsample_size=2):
            infer = {"is_auxiliary": copied}
            u = numpyro.sample("u" if copied else "z", dist.Normal(0.2, 0.7), infer=infer)
            if copied:
                numpyro.sample("z", dist.Delta(u))

    found, values = [], np.random.default_rng(0).normal(size=(3, 2))
    for copied in (False, True):
        problem = build_problem(
            model, partial(guide, copied), (), {}, {}, make_request(3, strategy if copied else "global")
        )
        runs = {n: jnp.asarray(values) for n in problem.guide.names}
        runs |= {n: jnp.asarray(values) for n in problem.guide.auxiliary}
        draws = draws_from_runs(problem, problem.numbers, {}, runs, {"rows": jnp.array([1, 4], jnp.int32)})
        found.append(weigh(problem, problem.numbers, draws, {}).log_evidence())
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_the_whole_plate_is_no_subsample():
    def model(size):
        with numpyro.plate("rows", 3, subsample_size=size) as rows:
            numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0, 1)), 1.0), obs=jnp.asarray(X)[rows])

    found = [kayn.Importance(model, None, 20).run(0, None, size).log_evidence for size in (None, 3)]
    np.testing.assert_array_equal(*found)


# -- kayn's own guide

Y = np.array([-3.0, -1.0, 1.0, 3.0, 0.5])


def hierarchy(y, size=2):
    with numpyro.plate("rows", 5, subsample_size=size) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        v = numpyro.sample("v", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])
        numpyro.sample("w", dist.Normal(v[:, 1], 1.0), obs=2 * y[rows])


def test_parameters_of_the_default_guide_go_by_element():
    """At the exact posterior every loss is minus N/M times the evidence of its rows, whichever they are."""
    guide = FactorisedGuide.from_model(hierarchy, (jnp.asarray(Y),))
    assert {n: np.shape(v)[0] for n, v in guide.start.items()} == dict.fromkeys(guide.start, 5)
    params = {
        "kayn:z:loc": Y / 2,
        "kayn:z:scale": np.full(5, 0.5**0.5),
        "kayn:v:loc": np.stack([0 * Y, Y], 1),
        "kayn:v:scale_tril": np.tile(np.diag([1.0, 0.5**0.5]), (5, 1, 1)),
    }
    params = {n: jnp.asarray(v, jnp.float32) for n, v in params.items()}
    marginal = dist.Normal(0.0, 2**0.5)
    each = np.asarray(-5 / 2 * (marginal.log_prob(Y) + marginal.log_prob(2 * Y)))
    possible = [each[i] + each[j] for i, j in itertools.combinations(range(5), 2)]
    loss = kayn.VI(2)
    keys = jax.random.split(jax.random.key(0), 30)
    found = jax.jit(jax.vmap(lambda k: loss.loss(k, params, hierarchy, guide, jnp.asarray(Y))))(keys)
    gaps = np.abs(np.asarray(found)[:, None] - np.array(possible)).min(1)
    assert gaps.max() < 1e-3
    assert len(np.unique(np.round(found, 2))) > 3


def test_qem_moves_the_elements_that_it_drew():
    """Local latents: their posteriors are known, and are met by all elements;
    a step leaves other elements where they are."""
    fit = kayn.QEM(hierarchy, None, 30)
    state = fit.init(0, jnp.asarray(Y))
    before = fit.get_params(state)["kayn:z:loc"]
    state, _ = fit.advance(state, 1)
    assert np.sum(np.asarray(fit.get_params(state)["kayn:z:loc"]) != np.asarray(before)) == 2
    state, _ = fit.advance(state, 150)
    params = fit.get_params(state)
    np.testing.assert_allclose(params["kayn:z:loc"], Y / 2, atol=0.12)
    np.testing.assert_allclose(params["kayn:z:scale"], 0.5**0.5, atol=0.12)
    np.testing.assert_allclose(params["kayn:v:loc"][:, 1], Y, atol=0.15)


def test_starts_are_those_of_every_element():
    """Medians of 100 draws from priors of each row's own, 0.13 off on average: 5 of these, 12 comparisons."""
    shift = jnp.arange(12.0).reshape(3, 4) * 3

    def model():
        with numpyro.plate("a", 3, dim=-2, subsample_size=2) as i, numpyro.plate("b", 4, dim=-1, subsample_size=3) as j:
            z = numpyro.sample("z", dist.Normal(shift[i[:, None], j], 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=jnp.zeros((2, 3)))

    guide = FactorisedGuide.from_model(model)
    np.testing.assert_allclose(guide.start["kayn:z:loc"], shift, atol=0.65)


def test_a_users_guide_gives_qem_all_of_its_elements():
    def guide(y):
        loc = numpyro.param("loc", jnp.arange(5.0))
        with numpyro.plate("rows", 5, subsample_size=2) as rows:
            numpyro.sample("z", dist.Normal(loc[rows], 1.0))
            numpyro.sample("v", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))

    fit = kayn.QEM(hierarchy, guide, 10)
    params = fit.get_params(fit.init(0, jnp.asarray(Y)))
    np.testing.assert_array_equal(params["kayn:z:loc"], np.arange(5.0))
    assert params["kayn:v:scale_tril"].shape == (5, 2, 2)


def test_supports_that_depend_on_the_rows_are_refused():
    high = jnp.array([1.0, 2.0, 3.0])

    def model():
        with numpyro.plate("rows", 3, subsample_size=2) as rows:
            z = numpyro.sample("z", dist.Uniform(0.0, high[rows]))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=jnp.asarray(X)[rows])

    with pytest.raises(GuideError, match=r"support of latent 'z' depends on the rows of plate 'rows'"):
        FactorisedGuide.from_model(model)


# -- dreams


def at_rest(loss, params, model, guide, *args, num=3000):
    """Whether a gradient vanishes: within 4.5 of this run's own standard errors, 7e-6 a comparison.
    Returns the standard errors."""
    keys = jax.random.split(jax.random.key(0), num)
    one = jax.vmap(lambda k: jax.grad(lambda p: loss.loss(k, p, model, guide, *args))(params))
    found = jax.tree.map(np.asarray, jax.jit(one)(keys))
    for name, g in found.items():
        assert np.all(np.abs(g.mean(0)) <= 4.5 * g.std(0) / np.sqrt(num) + 1e-6), (name, g.mean(0), g.std(0))
    return {n: g.std(0) for n, g in found.items()}


def masked_entries(how):
    """Two entries of a row, one of them missing; `how` says where the mask is."""

    def model(x, seen):
        with numpyro.plate("rows", 2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            if how == "event":
                numpyro.sample("x", dist.Normal(z[:, None], 1.0).mask(seen).to_event(1), obs=x)
        if how == "plate":
            with numpyro.plate("again", 2, dim=-2), numpyro.plate("entries", 2, dim=-1), handlers.mask(mask=seen):
                numpyro.sample("x", dist.Normal(z[:, None], 1.0), obs=x)

    return model


@pytest.mark.parametrize("how", ["plate", "event"])
@pytest.mark.parametrize(
    "loss", [kayn.Sleep(1), kayn.RWS(1, "local", wake_phi=0.0, sleep_phi=1.0)], ids=["sleep", "ws"]
)
def test_masked_data_are_not_dreamt(how, loss):
    x, seen = jnp.array([[0.4, 7.0], [1.2, 7.0]]), jnp.array([[True, False], [True, False]])

    def guide(x, seen):
        weights, bias = numpyro.param("weights", jnp.array([0.5, 0.0])), numpyro.param("bias", jnp.array(0.0))
        with numpyro.plate("rows", 2):
            numpyro.sample("z", dist.Normal(x @ weights + bias, 0.5**0.5))

    params = {"weights": jnp.array([0.5, 0.0]), "bias": jnp.array(0.0)}
    spread = at_rest(loss, params, masked_entries(how), guide, x, seen)
    # entries under the mask are shown as they were given: 7
    np.testing.assert_allclose(spread["weights"][1], 7 * spread["bias"], rtol=1e-4)


def test_labels_observed_in_part():
    """Dreamt labels where there are labels, a latent where there are none: at rest at p(label | x) and p(z | label)."""
    label, known = jnp.array([1, 0, 0]), jnp.array([True, True, False])
    probs = 0.3

    def model(x, label, known):
        with numpyro.plate("rows", 3):
            c = numpyro.sample("c", dist.Bernoulli(probs), obs=label, obs_mask=known)
            numpyro.sample("x", dist.Normal(3.0 * c, 1.0), obs=x)

    def guide(x, label, known):
        slope, bias, off = (numpyro.param(n, jnp.array(0.0)) for n in ("slope", "bias", "off"))
        with numpyro.plate("rows", 3):
            numpyro.sample("c_unobserved", dist.Bernoulli(logits=slope * x + bias + jnp.where(known, off, 0.0)))

    params = {"slope": jnp.array(3.0), "bias": jnp.log(0.3 / 0.7) - 4.5, "off": jnp.array(2.0)}
    spread = at_rest(kayn.Sleep(1), params, model, guide, jnp.zeros(3), label, known)
    assert spread["off"] == 0 and spread["slope"] > 0, "rows with a label have no latent to be trained on"


def test_dreams_and_guide_are_on_the_same_rows():
    shift = jnp.array([-3.0, 0.0, 3.0, 6.0])

    def model(shift, x):
        with numpyro.plate("rows", 4, subsample_size=2) as rows:
            z = numpyro.sample("z", dist.Normal(shift[rows], 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(shift, x, dreamt=None):
        share = numpyro.param("share", jnp.array(0.5))
        with numpyro.plate("rows", 4, subsample_size=2) as rows:
            seen = x[rows] if dreamt is None else dreamt
            numpyro.sample("z", dist.Normal(share * seen + (1 - share) * shift[rows], 0.5**0.5))

    def replace(dream, shift, x):
        return (shift, x, dream["x"]), {}

    at_rest(kayn.Sleep(2, replace=replace), {"share": jnp.array(0.5)}, model, guide, shift, jnp.zeros(4))


def test_dreams_go_on_inside_loops():
    """A series whose data feed the next state: z_t given x_t and x_(t-1), which is the dreamt one."""

    def model(x):
        def step(before, x):
            z = numpyro.sample("z", dist.Normal(0.8 * before, 1.0))
            x = numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return x, None

        numpyro.contrib.control_flow.scan(step, jnp.array(0.0), x)

    def guide(x):
        a, b = numpyro.param("a", jnp.array(0.5)), numpyro.param("b", jnp.array(0.4))

        def step(before, x):
            numpyro.sample("z", dist.Normal(a * x + b * before, 0.5**0.5))
            return x, None

        numpyro.contrib.control_flow.scan(step, jnp.array(0.0), x)

    loss = kayn.Sleep(1, replace=lambda dream, x: ((dream["x"],), {}))
    at_rest(loss, {"a": jnp.array(0.5), "b": jnp.array(0.4)}, model, guide, jnp.array([3.0, -2.0, 5.0]))


def _scaled(x):
    with handlers.scale(scale=0.5):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _factor(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
    numpyro.factor("extra", -(z**2))


def _imputed(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(0.0, 1.0), obs=jnp.where(jnp.isnan(x), z, x))


def _guide(x):
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def _auxiliary(x):
    e = numpyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    numpyro.sample("z", dist.Delta(2 * e))


def _plain(x):
    numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "says"),
    [
        (_scaled, _guide, "within numpyro.handlers.scale"),
        (_factor, _guide, "'extra' is a factor"),
        (_imputed, _guide, "computed from latent 'z'"),
        (_plain, _auxiliary, "'e' is no latent of the model"),
    ],
    ids=["scale", "factor", "imputed", "auxiliary"],
)
@pytest.mark.parametrize("shown", [True, False], ids=["replace", "found"])
def test_what_no_dream_can_be_drawn_from_is_refused(model, guide, says, shown):
    replace = (lambda dream, x: ((dream["x"],), {})) if shown else None
    with pytest.raises(KaynError, match=says):
        kayn.Sleep(1, replace=replace).loss(jax.random.key(0), {}, model, guide, jnp.array(0.3))


def test_defensive_proposals_inside_loops():
    """Steps are drawn from the mixture that they are divided by: E Z is the evidence,
    within 4.5 of this run's own standard error, 7e-6."""
    x = jnp.array([1.0, 0.0])

    def program(observe):
        def step(before, x):
            z = numpyro.sample("z", dist.Bernoulli(0.3 + 0.4 * before if observe else 0.05))
            if observe:
                numpyro.sample("x", dist.Bernoulli(0.2 + 0.6 * z), obs=x)
            return 1.0 * z, None

        numpyro.contrib.control_flow.scan(step, jnp.array(0.0), x)

    loss = kayn.RWS(1, "local", defensive=0.5)
    keys = jax.random.split(jax.random.key(0), 4000)
    z = np.exp(-np.asarray(jax.jit(jax.vmap(lambda k: loss.loss(k, {}, lambda: program(1), lambda: program(0))))(keys)))
    paths = itertools.product((0, 1), repeat=2)
    # a step's probability, then that of its datum: seen at first, not seen at the second
    right = sum(
        (0.3 if a else 0.7) * (0.2 + 0.6 * a) * (0.3 + 0.4 * a if b else 0.7 - 0.4 * a) * (0.8 - 0.6 * b)
        for a, b in paths
    )
    assert abs(z.mean() - right) < 4.5 * z.std() / np.sqrt(len(keys))


# -- indices that a handler has set

HELD = jnp.array([3, 1])
FAR = jnp.array([-30.0, -10.0, 0.0, 10.0, 30.0])


def rows_model(y, size=2):
    with numpyro.plate("rows", 5, subsample_size=size) as rows:
        z = numpyro.sample("z", dist.Normal(0.0, 100.0))
        numpyro.deterministic("row", y[rows])
        numpyro.sample("y", dist.Normal(z, 0.1), obs=y[rows])


def rows_guide(y, size=2):
    loc = numpyro.param("loc", jnp.asarray(y))
    with numpyro.plate("rows", 5, subsample_size=size) as rows:
        numpyro.sample("z", dist.Normal(loc[rows], 0.1))


def held(program, rows=HELD):
    return handlers.substitute(program, {"rows": rows})


PAIRS = [(held(rows_model), rows_guide), (rows_model, held(rows_guide)), (held(rows_model), held(rows_guide))]


@pytest.mark.parametrize("pair", PAIRS, ids=["model", "guide", "both"])
def test_indices_of_a_handler_hold_for_model_and_guide(pair):
    """A latent meets the datum of its own row, or is a hundred standard deviations away."""
    found = kayn.Importance(*pair, 50, num_replicates=2).run(0, None, FAR)
    assert (np.asarray(found.draws.subsample["rows"]) == HELD).all()
    exact = 5 / 2 * norm(0.0, np.hypot(100.0, 0.1)).logpdf(FAR[HELD]).sum()
    np.testing.assert_allclose(found.log_evidence, exact, atol=0.02)
    np.testing.assert_allclose(found.mean("z"), FAR[HELD], atol=0.1)
    assert found.log_likelihood(0, 5)["y"].min() > -20
    assert (found.predictive(0, 5)["row"] == FAR[HELD]).all()
    asleep = kayn.Sleep(3, replace=lambda dream, y: ((y,), {}))
    slopes = jax.grad(lambda p: asleep.loss(jax.random.key(0), p, *pair, FAR))({"loc": jnp.zeros(5)})["loc"]
    assert (np.flatnonzero(slopes) == np.sort(HELD)).all()


@pytest.mark.parametrize("pair", [(held(rows_model), None), (rows_model, held(rows_guide))], ids=["model", "guide"])
def test_qem_stays_on_the_rows_of_a_handler(pair):
    qem = kayn.QEM(pair[0], pair[1], 20)
    state = qem.init(0, FAR)
    before = qem.get_params(state)["kayn:z:loc"]
    state, _ = qem.advance(state, 4)
    moved = np.flatnonzero(before != qem.get_params(state)["kayn:z:loc"])
    assert (moved == np.sort(HELD)).all()


def test_a_permutation_of_a_whole_plate_holds_too():
    back = jnp.arange(5)[::-1]
    for pair in ((held(rows_model, back), rows_guide), (rows_model, held(rows_guide, back))):
        found = kayn.Importance(*pair, 50).run(0, None, FAR, None)
        np.testing.assert_allclose(found.mean("z"), FAR[back], atol=0.1)


def test_indices_may_be_traced():
    def loss(rows):
        return kayn.VI(20).loss(jax.random.key(0), {}, held(rows_model, rows), rows_guide, FAR)

    np.testing.assert_allclose(jax.jit(loss)(HELD), loss(HELD), rtol=1e-5)


@pytest.mark.parametrize("rows", [jnp.array([3, 5]), jnp.array([-1, 2]), jnp.array([0.0, 1.0]), jnp.array([[0, 1]])])
def test_indices_that_are_none_are_refused(rows):
    with pytest.raises(ModelError, match="plate 'rows' the indices"):
        kayn.Importance(held(rows_model, rows), rows_guide, 5).run(0, None, FAR)


def test_indices_that_differ_are_refused():
    with pytest.raises(GuideError, match="plate 'rows' other indices in the guide"):
        kayn.Importance(held(rows_model), held(rows_guide, jnp.array([0, 1])), 5).run(0, None, FAR)


def test_layers_stay_on_the_rows_of_a_handler():
    spent = meters.layers(held(rows_model), rows_guide, {}, FAR, num_draws=30)
    assert spent.likelihood / 2.5 > -40  # of another row, below -4,000


# -- what a minibatch cannot tell


def above(y, size=2):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("alone", dist.Normal(0.0, 1.0))
    nu = numpyro.sample("nu", dist.Normal(mu, 1.0))
    with numpyro.plate("rows", 5, subsample_size=size) as rows:
        z = numpyro.sample("z", dist.Normal(nu, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def above_guide(y, size=2):
    for name in ("mu", "alone", "nu"):
        numpyro.sample(name, dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 5, subsample_size=size):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def rws(model, guide, *args):
    return jax.eval_shape(lambda key: kayn.RWS(2).loss(key, {}, model, guide, *args), jax.random.key(0))


AVERAGES = {
    "QEM": lambda model, guide, *args: kayn.QEM(model, guide, 2).init(0, *args),
    "RWS": lambda model, guide, *args: rws(model, guide, *args),
}


@pytest.mark.parametrize("who", AVERAGES)
def test_averages_of_minibatch_posteriors_are_told(who):
    with pytest.warns(StructureWarning, match=rf"{who} averages the posteriors of 'mu', 'nu' .*plate 'rows'"):
        AVERAGES[who](above, above_guide, FAR)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StructureWarning)
        for model, guide, *args in (
            (above, above_guide, FAR, None),
            (held(above), above_guide, FAR),
            (rows_model, rows_guide, FAR),
        ):
            AVERAGES[who](model, guide, *args)


def fed(y):
    """The rows come as an argument: the plate's own indices are not read."""
    with numpyro.plate("rows", 5, subsample_size=len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def amortised(y):
    with numpyro.plate("rows", 5, subsample_size=len(y)):
        numpyro.sample("z", dist.Normal(numpyro.param("w", 0.5) * y, 1.0))


def test_parameters_of_rows_that_are_not_the_datas_are_told():
    data = FAR[HELD] / 10
    with pytest.warns(StructureWarning, match=r"subsampled plate 'rows' .* parameters of 'z' by element"):
        kayn.Importance(fed, None, 3).problem(None, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StructureWarning)
        kayn.Importance(fed, amortised, 3).problem(None, data)
        kayn.Importance(held(fed), None, 3).problem(None, data)
        kayn.Importance(rows_model, None, 3).problem(None, FAR)


def tied_guide(y, size=2, apart=False):
    """Points at noise: of both latents at once, or of each its own."""
    hidden = {"infer": {"is_auxiliary": True}}
    noise = dist.Normal(jnp.zeros(1 if apart else 3), 1.0).to_event(1)
    u = numpyro.sample("u", noise, **hidden)
    numpyro.sample("mu", dist.Delta(u[0]))
    with numpyro.plate("rows", 5, subsample_size=size):
        v = numpyro.sample("v", dist.Normal(0.0, 1.0), **hidden) if apart else u[1:]
        numpyro.sample("z", dist.Delta(v))


def tied(y, size=2):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 5, subsample_size=size) as rows:
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def test_one_density_of_rows_and_what_they_share_is_refused():
    with pytest.raises(GuideError, match=r"'u' \(1 times\) is drawn for 'mu' \(1 times\), 'z' \(2.5 times\) together"):
        kayn.Importance(tied, tied_guide, 3).problem(None, FAR)
    kayn.Importance(tied, partial(tied_guide, apart=True), 3).problem(None, FAR)
    kayn.Importance(partial(tied, size=None), partial(tied_guide, size=None, apart=True), 3).problem(None, FAR)


def test_values_that_a_handler_fixes_are_dreamt_as_data():
    """Else a latent above the fixed one would dream from its prior, with data of the fixed value."""

    def chain(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(a, 1.0))
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)

    def guide(y):
        numpyro.sample("a", dist.Normal(numpyro.param("w", 0.2) * y, 1.0))

    for handler in (handlers.substitute, handlers.condition):
        with pytest.raises(KaynError, match="data of observed site 'b' are not an argument"):
            kayn.Sleep(2).loss(jax.random.key(0), {}, handler(chain, {"b": jnp.array(0.7)}), guide, jnp.array(0.3))


# -- minibatches that training makes, and those of a plate


def coins(x, whole=False):
    """States are summed out, so that losses are exact; rows are those of the plate, or what the argument holds."""
    p = jnp.asarray(numpyro.param("p", PARAMS["p"]))
    with numpyro.plate("rows", N, subsample_size=M if whole else len(x)) as rows:
        z = numpyro.sample("z", dist.Bernoulli(logits=p[0]), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Bernoulli(logits=2.0 * z + p[1]), obs=x[rows] if whole else x)


def test_minibatches_of_training_and_of_a_plate_have_one_mean():
    """Over all subsets of rows, the loss and gradient of either are those of all rows."""

    def nothing(x, whole=False):
        pass

    def found(model, *args):
        return jax.value_and_grad(lambda p: kayn.VI(1).loss(jax.random.key(0), p, model, nothing, *args))(p)

    p, x = {"p": jnp.asarray(PARAMS["p"])}, jnp.asarray(X)
    subsets = [jnp.array(s) for s in itertools.combinations(range(N), M)]
    right = found(coins, x)
    for every in ([found(coins, x[s]) for s in subsets], [found(held(coins, s), x, True) for s in subsets]):
        mean = jax.tree.map(lambda *v: sum(v) / len(subsets), *every)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mean, right)
    still = kayn.Phase(kayn.VI(1), optax.set_to_zero())
    steps = kayn.train(coins, nothing, still, x, batch_size=1, num_steps=N, progress=False).losses
    np.testing.assert_allclose(np.mean(steps), right[0] / N, rtol=1e-5)


def test_dreams_of_summed_states_and_of_several_observed_sites():
    """The gradient of the guide's log density, against the mean over all values that the model gives:
    four standard errors of 4,000 dreams, 6e-5."""

    # with x = y = 1 a logit of exactly 0, where NumPyro's own density of a Bernoulli has another gradient
    start = [0.125, 0.25, -0.375]

    def model(x, y):
        a = numpyro.sample("a", dist.Bernoulli(0.3))
        z = numpyro.sample("z", dist.Bernoulli(0.6), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Bernoulli(0.2 + 0.5 * a + 0.2 * z), obs=x)
        numpyro.sample("y", dist.Bernoulli(0.7 - 0.4 * a - 0.2 * z), obs=y)

    def guide(x, y):
        w = jnp.asarray(numpyro.param("w", jnp.array(start)))
        numpyro.sample("a", dist.Bernoulli(logits=w[0] + w[1] * x + w[2] * y))

    w, right = np.array(start), np.zeros(3)
    for a, z, x, y in itertools.product([0, 1], repeat=4):
        weight = (0.3 if a else 0.7) * (0.6 if z else 0.4)
        for value, p in ((x, 0.2 + 0.5 * a + 0.2 * z), (y, 0.7 - 0.4 * a - 0.2 * z)):
            weight *= p if value else 1 - p
        features = np.array([1, x, y])
        right -= weight * (a - 1 / (1 + np.exp(-features @ w))) * features
    loss = kayn.Sleep(4000)
    slope = jax.grad(lambda p: loss.loss(jax.random.key(0), p, model, guide, jnp.array(1.0), jnp.array(0.0)))
    np.testing.assert_allclose(slope({"w": jnp.asarray(w)})["w"], right, atol=4 * 0.5 / np.sqrt(4000))
