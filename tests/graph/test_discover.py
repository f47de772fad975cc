"""What kayn finds in a model (reads, links, couplings), and that its evidence under that structure is that of
enumeration."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import stats
from scipy.special import logsumexp

import kayn
from kayn.errors import ModelError, StructureError
from kayn.evidence.draws import draw_particles, draws_from_runs
from kayn.evidence.weights import log_evidence, weigh
from kayn.graph.types import MIXED, Link
from tests.graph.enumerated import agrees, build, normal, prior_of
from tests.laws.oracle import QUICK, BruteForce

# 32-bit on purpose: JAX 0.10 cannot trace one 64-bit NumPy array first with and then without x64
COUNTY = np.array([0, 2, 2, 0, 1], np.int32)
STATE = np.array([1, 0, 1], np.int32)
Y = np.array([0.1, 0.5, -1.0, 2.0, 1.5], np.float32)


def reads(problem, output):
    """latent -> {plate: "=" if aligned, the row plate if linked, MIXED}"""
    return {
        r.latent: {p: h if h == MIXED else h.source if isinstance(h, Link) else "=" for p, h in r.through}
        for r in problem.graph.output(output).reads
    }


def coupled(problem):
    return {(c.latents, c.plates) for c in problem.layout.couplings}


# -- plates


def test_nested_rectangular_plates():
    def model():
        mu = normal("mu")
        with numpyro.plate("b", 2, dim=-2):
            t = normal("t", mu)
            with numpyro.plate("w", 3, dim=-1):
                u = normal("u", t)
                normal("y", u + mu, obs=np.arange(6.0).reshape(2, 3) / 3)

    problem = agrees(model)
    assert reads(problem, "u") == {"t": {"b": "="}, "u": {"b": "=", "w": "="}}
    assert reads(problem, "y") == {"mu": {}, "u": {"b": "=", "w": "="}}
    assert problem.graph.output("y").dims == ("b", "w")
    assert not problem.layout.couplings


def test_plates_opened_in_either_order():
    def model():
        with numpyro.plate("w", 3, dim=-1):
            a = normal("a")
            with numpyro.plate("b", 2, dim=-2):
                u = normal("u", a)
        with numpyro.plate("b", 2, dim=-2), numpyro.plate("w", 3, dim=-1):
            normal("y", u, obs=np.ones((2, 3)))

    problem = agrees(model)
    assert reads(problem, "u")["a"] == {"w": "="}
    assert reads(problem, "y") == {"u": {"b": "=", "w": "="}}


def test_several_latents_in_one_plate():
    def model():
        with numpyro.plate("c", 2):
            a, b = normal("a"), normal("b")
            s = numpyro.sample("s", dist.HalfNormal(jnp.exp(0.3 * b)))
            normal("y", a * b, s, obs=Y[:2])

    problem = agrees(model)
    assert reads(problem, "y") == {n: {"c": "="} for n in "abs"}
    assert not problem.layout.couplings


def test_sibling_plates():
    def model():
        mu = normal("mu")
        with numpyro.plate("i", 2):
            normal("x", normal("a", mu), obs=Y[:2])
        with numpyro.plate("j", 3):
            normal("z", normal("b", mu), obs=Y[:3])

    problem = agrees(model)
    assert not problem.layout.couplings
    assert problem.layout.axis_of("a").scope == ("i",)
    assert problem.layout.axis_of("b").scope == ("j",)


def test_unplated_batch_dimensions_become_plates():
    def model():
        e = numpyro.sample("e", dist.Normal(0, 1).expand([3]))
        f = normal("f", e)
        numpyro.sample("y", dist.Normal(f - e, 1), obs=Y[:3])

    problem = agrees(model)
    assert problem.layout.axis_of("e").scope == problem.layout.axis_of("f").scope
    assert len(problem.layout.axis_of("e").scope) == 1
    assert reads(problem, "f") == {n: {problem.layout.axis_of("e").scope[0]: "="} for n in "ef"}
    assert not problem.layout.couplings


def test_one_element_plates():
    def model():
        mu = normal("mu")
        with numpyro.plate("c", 1):
            a = normal("a", mu)
        with numpyro.plate("h", 4):
            normal("y", a, obs=Y[:4])
        with numpyro.plate("h2", 2):
            normal("y2", a[np.array([0, 0])], obs=Y[:2])

    problem = agrees(model, num_particles=4)
    assert not problem.layout.couplings


# -- ragged groups


def ragged(county, y):
    mu = normal("mu")
    with numpyro.plate("counties", 3):
        alpha = normal("alpha", mu)
    with numpyro.plate("homes", 5):
        normal("y", alpha[county], obs=y)


@pytest.mark.parametrize(
    "kind", [np.asarray, jnp.asarray, lambda v: np.asarray(v, np.int8), lambda v: np.asarray(v, np.uint8)]
)
def test_ragged_groups(kind):
    problem = agrees(ragged, kind(COUNTY), Y)
    assert reads(problem, "y") == {"alpha": {"counties": "homes"}}
    assert not problem.layout.couplings


@pytest.mark.parametrize(
    "read",
    [
        lambda v: jnp.take(v, COUNTY),
        lambda v: jnp.take(v, COUNTY, axis=0, mode="clip"),
        lambda v: v.at[COUNTY].get(),
        lambda v: jnp.exp(v)[COUNTY] + v[COUNTY] ** 2,
        lambda v: jnp.stack([v, 2 * v], -1)[COUNTY, 1],
        lambda v: (v[:, None] * np.ones(2))[COUNTY].sum(-1),
        lambda v: jax.vmap(lambda i: v[i])(COUNTY),
        lambda v: v[jnp.asarray(COUNTY)][np.arange(5)[::-1]][::-1],
        lambda v: jnp.repeat(v, 2)[:5],
        lambda v: jnp.tile(v, 2)[1:],
        lambda v: jnp.where(COUNTY == 0, v[0], v[COUNTY]),
    ],
)
def test_ways_to_write_an_index(read):
    def model():
        with numpyro.plate("counties", 3):
            alpha = normal("alpha")
        with numpyro.plate("homes", 5):
            normal("y", read(alpha), obs=Y)

    agrees(model, num_particles=3)


def ragged_in_ragged(county, state, state_of_home=None):
    mu = normal("mu")
    with numpyro.plate("states", 2):
        g = normal("g", mu)
    with numpyro.plate("counties", 3):
        alpha = normal("alpha", g[state])
    with numpyro.plate("homes", 5):
        normal("y", alpha[county] + 0.5 * (g[state][county] if state_of_home is None else g[state_of_home]), obs=Y)


@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize("county", [COUNTY, np.array([0, 2, 2, 0, 2])], ids=["", "empty county"])
def test_ragged_in_ragged(precomputed, county):
    problem = agrees(ragged_in_ragged, county, STATE, STATE[county] if precomputed else None)
    assert reads(problem, "alpha")["g"] == {"states": "counties"}
    assert reads(problem, "y") == {"alpha": {"counties": "homes"}, "g": {"states": "homes"}}
    assert not problem.layout.couplings


@pytest.mark.parametrize("precomputed", [False, True])
def test_indices_that_are_arguments_of_jit(precomputed, x64):
    """Structure comes from the form of the expression; an index that cannot be recognised costs a coupling,
    never a fault."""
    seen = []

    @partial(jax.jit, compiler_options=QUICK)
    def run(county, state, state_of_home):
        args = (county, state, state_of_home)
        problem = build(ragged_in_ragged, *args)
        seen.append(coupled(problem))
        draws = draw_particles(problem, problem.numbers, jax.random.key(0), {})
        slots = weigh(problem, problem.numbers, draws, {})
        value = log_evidence(problem, problem.numbers, slots, {}, draws.subsample)
        return value, BruteForce(problem, ragged_in_ragged, prior_of(ragged_in_ragged), args).log_evidence(draws, {})

    value, expected = run(COUNTY, STATE, STATE[COUNTY] if precomputed else None)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    assert seen == [{(("g",), ("states",))}] if precomputed else seen == [set()]


def test_indices_with_two_columns(x64):
    """`theta[person, item]` over a rectangular grid of latents, read by rows that name both."""
    person, item = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])

    def model():
        with numpyro.plate("items", 2, dim=-1):
            d = normal("d")
            with numpyro.plate("people", 2, dim=-2):
                theta = normal("theta", d)
        with numpyro.plate("rows", 4):
            normal("y", theta[person, item] + d[item], obs=Y[:4])

    problem = agrees(model)
    assert reads(problem, "y") == {"theta": {"people": "rows", "items": "rows"}, "d": {"items": "rows"}}
    assert not problem.layout.couplings


def test_two_columns_that_happen_to_nest():
    """Each person answered one item only: an accident of the data, not a reason to couple."""
    person, item = np.array([0, 1, 1, 0]), np.array([1, 0, 0, 1])

    def model():
        with numpyro.plate("items", 2, dim=-1), numpyro.plate("people", 2, dim=-2):
            theta = normal("theta")
        with numpyro.plate("rows", 4):
            normal("y", theta[person, item], obs=Y[:4])

    assert not agrees(model).layout.couplings


def test_empty_groups():
    problem = agrees(ragged, np.array([0, 0, 2, 2, 2]), Y)
    assert not problem.layout.couplings


# -- what does not factorise


def test_crossed_groups_couple_the_smaller_loss():
    def model():
        with numpyro.plate("people", 3):
            a = normal("a")
        with numpyro.plate("items", 2):
            b = normal("b")
        with numpyro.plate("rows", 5):
            normal("y", a[np.array([0, 1, 2, 0, 1])] - b[np.array([0, 0, 1, 1, 1])], obs=Y)

    problem = agrees(model)
    assert coupled(problem) == {(("b",), ("items",))}
    assert "cross" in str(problem.layout.couplings[0])
    assert problem.layout.axis_of("a").scope == ("people",)
    problem = agrees(model, couple={"a": "people"})
    assert coupled(problem) == {(("a",), ("people",))}
    assert "asked for" in problem.layout.couplings[0].reason
    assert problem.layout.axis_of("b").scope == ("items",)
    # with more particles for b, dropping a costs less
    assert coupled(build(model, num_particles={"a": 2, "b": 9})) == {(("a",), ("people",))}


@pytest.mark.parametrize(
    "mix",
    [
        lambda a: a.sum(),
        lambda a: jnp.ones((5, 3)) @ a,
        lambda a: (a - a.mean())[COUNTY],
        lambda a: jnp.cumsum(a)[COUNTY],
        lambda a: jax.nn.softmax(a)[COUNTY],
        lambda a: a[COUNTY] - a[COUNTY[::-1]],
        lambda a: a[::-1][COUNTY] * a[COUNTY],
        lambda a: jnp.concatenate([a, a])[:5],
        lambda a: jax.lax.scan(lambda s, x: (s + x, s), 0.0, a)[1][COUNTY],
        lambda a: jnp.sort(a)[COUNTY],
        lambda a: jnp.convolve(a, jnp.ones(3))[:5],
        lambda a: jnp.zeros(5).at[:3].set(a),
    ],
    ids=[
        "sum",
        "matmul",
        "centred",
        "cumsum",
        "softmax",
        "difference",
        "reversed",
        "concatenate",
        "scan",
        "sort",
        "convolve",
        "scatter",
    ],
)
def test_reading_several_elements_couples(mix):
    def model():
        mu = normal("mu")
        with numpyro.plate("c", 3):
            a = normal("a", mu)
            b = normal("b")
        with numpyro.plate("h", 5):
            normal("y", mix(a) + b[COUNTY], obs=Y)

    problem = agrees(model)
    assert coupled(problem) == {(("a",), ("c",))}
    assert "a" in str(problem.layout.couplings[0])
    assert problem.layout.axis_of("b").scope == ("c",)


def test_enumerated_latents_cannot_be_coupled():
    def model():
        with numpyro.plate("c", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        normal("y", z.sum(), obs=1.0)

    with pytest.raises(StructureError, match="'z' is enumerated"):
        build(model, guide=lambda: None)


def test_unknown_names_are_refused():
    for options in (
        {"couple": {"nobody": "counties"}},
        {"groups": [["nobody", "mu"]]},
        {"num_particles": {"nobody": 3}},
    ):
        with pytest.raises(StructureError, match="nobody"):
            build(ragged, COUNTY, Y, **options)
    with pytest.raises(StructureError, match="nowhere"):
        build(ragged, COUNTY, Y, couple={"alpha": "nowhere"})


# -- event dimensions


def test_multivariate_normal_and_to_event():
    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
        with numpyro.plate("c", 2):
            ab = numpyro.sample("ab", dist.MultivariateNormal(mu, jnp.eye(2) + 0.3))
        with numpyro.plate("h", 4):
            county = np.array([0, 1, 1, 0])
            normal("y", ab[county, 0] + Y[:4] * ab[county, 1], obs=Y[:4])

    problem = agrees(model, num_particles=3)
    assert reads(problem, "y") == {"ab": {"c": "h"}}
    assert problem.graph.latent("mu").plates == ()
    assert not problem.layout.couplings


def test_dirichlet_and_lkj_cholesky():
    def model():
        L = numpyro.sample("L", dist.LKJCholesky(2, 1.0))
        with numpyro.plate("c", 2):
            p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
            u = numpyro.sample("u", dist.MultivariateNormal(jnp.zeros(2), scale_tril=L))
            numpyro.sample("y", dist.Categorical(p), obs=np.array([0, 2]))
            numpyro.sample("v", dist.MultivariateNormal(u, scale_tril=L), obs=np.ones((2, 2)))
            numpyro.sample("n", dist.Multinomial(4, p), obs=np.array([[1, 1, 2], [0, 4, 0]]))

    problem = agrees(model, num_particles=3)
    assert reads(problem, "v") == {"L": {}, "u": {"c": "="}}
    assert reads(problem, "n") == {"p": {"c": "="}}
    assert not problem.layout.couplings


# -- site decorations


def test_deterministic_factor_mask_and_scale():
    keep = np.array([True, False, True, True, False])

    def model():
        mu = normal("mu")
        with numpyro.plate("c", 3):
            a = normal("a", mu)
            th = numpyro.deterministic("th", 2 * a + mu)
            numpyro.factor("f", -0.3 * th**2)
        numpyro.factor("g", -(mu**4))
        with numpyro.plate("h", 5), handlers.mask(mask=keep), handlers.scale(scale=0.5):
            normal("y", th[COUNTY], obs=np.where(keep, Y, np.nan))

    problem = agrees(lambda: _nan_free(model, keep))
    assert reads(problem, "f") == {"a": {"c": "="}, "mu": {}}
    assert reads(problem, "y") == {"a": {"c": "h"}, "mu": {}}
    assert not problem.layout.couplings
    with jax.enable_x64(True):
        # NumPyro's own density is NaN with NaN data under a mask; kayn's is not
        with_nan = build(model)
        values = [_log_z(p, jax.random.key(1)) for p in (with_nan, build(lambda: _nan_free(model, keep)))]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-12)


def _nan_free(model, keep):
    """The model with masked observations replaced by zeros."""

    class Fill(numpyro.primitives.Messenger):
        def process_message(self, msg):
            if msg["type"] == "sample" and msg["name"] == "y":
                msg["value"] = jnp.where(keep, Y, 0.0)

    with Fill():
        return model()


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _log_z(problem, key):
    draws = draw_particles(problem, problem.numbers, key, {})
    slots = weigh(problem, problem.numbers, draws, {})
    return log_evidence(problem, problem.numbers, slots, {}, draws.subsample)


def test_partially_observed_site():
    seen = np.array([True, True, False])

    def model():
        mu = normal("mu")
        with numpyro.plate("c", 3):
            x = numpyro.sample("x", dist.Normal(mu, 1), obs=np.where(seen, Y[:3], 0.0), obs_mask=seen)
            normal("y", x, obs=Y[2:])

    def guide():
        normal("mu")
        with numpyro.plate("c", 3):
            normal("x_unobserved")

    problem = agrees(model, guide=guide, masks={"x_unobserved": ~seen}, num_particles=3)
    assert set(problem.graph.latent_names) == {"mu", "x_unobserved"}
    assert problem.layout.axis_of("x_unobserved").scope == ("c",)
    assert not problem.layout.couplings


def test_masked_latents():
    present = np.array([True, False, True])

    def model():
        mu = normal("mu")
        with numpyro.plate("c", 3), handlers.mask(mask=present):
            a = normal("a", mu)
        with numpyro.plate("h", 5):
            normal("y", a[COUNTY], obs=Y)

    def guide():
        normal("mu")
        with numpyro.plate("c", 3):
            normal("a", 0.3)

    # the data read the masked element, so that its particles are still divided by what they were drawn from
    agrees(model, guide=guide, num_particles=3)


def test_params_in_model_and_guide():
    def model():
        loc = numpyro.param("loc", 0.2)
        mu = normal("mu", loc)
        with numpyro.plate("c", 3):
            width = numpyro.param("width", jnp.ones(3), constraint=dist.constraints.positive)
            normal("y", normal("a", mu, width), obs=Y[:3])

    def guide():
        normal("mu", numpyro.param("mu_loc", 0.0))
        with numpyro.plate("c", 3):
            normal("a", numpyro.param("a_loc", jnp.zeros(3)))

    params = {
        "loc": jnp.float32(0.5),
        "width": jnp.array([0.5, 1.0, 2.0]),
        "mu_loc": jnp.float32(1.0),
        "a_loc": jnp.arange(3.0),
    }
    problem = agrees(model, guide=guide, params=params)
    assert reads(problem, "y") == {"a": {"c": "="}}


# -- subsampling


def test_subsampled_plate_is_unbiased_for_the_plates_log_sum(x64):
    """Averaged over all subsets, the scaled log-sum of a plate is that of the full data."""
    y = Y[:4]

    def model(size):
        mu = normal("mu")
        with numpyro.plate("n", 4, subsample_size=size) as rows:
            z = normal("z", mu)
            normal("y", z, obs=jnp.asarray(y)[rows])

    def guide(size):
        normal("mu")
        with numpyro.plate("n", 4, subsample_size=size):
            normal("z", 0.2)

    particles = np.array([-1.0, 0.3, 1.4])

    def log_z(size, rows):
        problem = build(model, size, guide=guide, num_particles={"mu": 1, "z": 3})
        runs = {"mu": jnp.full(3, 0.3), "z": jnp.tile(particles[:, None], size)}
        subsample = {"n": jnp.asarray(rows, jnp.int32)} if size < 4 else {}
        draws = draws_from_runs(problem, problem.numbers, {}, runs, subsample)
        slots = weigh(problem, problem.numbers, draws, {})
        return float(log_evidence(problem, problem.numbers, slots, {}, draws.subsample))

    full = log_z(4, range(4))
    per_row = [
        logsumexp(
            stats.norm.logpdf(particles, 0.3) + stats.norm.logpdf(v, particles) - stats.norm.logpdf(particles, 0.2)
        )
        - np.log(3)
        for v in y
    ]
    np.testing.assert_allclose(full, sum(per_row), rtol=1e-9)
    values = [log_z(2, rows) for rows in itertools.combinations(range(4), 2)]
    assert np.ptp(values) > 0.1
    np.testing.assert_allclose(np.mean(values), full, rtol=1e-9)


def test_subsampled_rows_of_a_global_latent(x64):
    """No local latents: the rows' log-likelihood is scaled, and the indices are drawn without replacement."""

    def model():
        mu = normal("mu")
        with numpyro.plate("n", 5, subsample_size=2) as rows:
            normal("y", mu, obs=jnp.asarray(Y)[rows])

    problem = build(model, num_particles=4)
    draws = draw_particles(problem, problem.numbers, jax.random.key(0), {})
    rows = np.asarray(draws.subsample["n"])
    assert len(set(rows)) == 2
    slots = weigh(problem, problem.numbers, draws, {})
    value = log_evidence(problem, problem.numbers, slots, {}, draws.subsample)
    expected = logsumexp(2.5 * stats.norm.logpdf(Y[rows], np.asarray(draws.values["mu"])[:, None]).sum(1)) - np.log(4)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


# -- discrete latents


def test_enumerated_latents_are_summed_exactly(x64):
    """A mixture with every latent enumerated has no sampling error at all."""
    y = Y[:3].astype(float)

    def model():
        k = numpyro.sample("k", dist.Categorical(jnp.array([0.2, 0.5, 0.3])), infer={"enumerate": "parallel"})
        with numpyro.plate("c", 3):
            z = numpyro.sample("z", dist.Bernoulli(jnp.array([0.2, 0.6, 0.9])[k]), infer={"enumerate": "parallel"})
            normal("y", 2.0 * z, obs=y)

    problem = build(model, guide=lambda: None)
    assert all(a.enumerated for a in problem.layout.axes)
    p = np.array([0.2, 0.6, 0.9])
    rows = np.log(p[:, None] * stats.norm.pdf(y, 2) + (1 - p[:, None]) * stats.norm.pdf(y, 0))
    expected = logsumexp(np.log([0.2, 0.5, 0.3]) + rows.sum(1))
    np.testing.assert_allclose(_log_z(problem, jax.random.key(0)), expected, rtol=1e-12)


def test_latent_component_of_a_mixture():
    """Component means are latents in a plate, chosen by an enumerated or a sampled latent."""

    def model(enumerate_):
        with numpyro.plate("components", 2):
            m = normal("m")
        with numpyro.plate("c", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.4), infer={"enumerate": "parallel"} if enumerate_ else {})
            normal("y", m[z], obs=Y[:3])

    def guide(enumerate_):
        with numpyro.plate("components", 2):
            normal("m", 0.2)
        if not enumerate_:
            with numpyro.plate("c", 3):
                numpyro.sample("z", dist.Bernoulli(0.5))

    for enumerate_ in (True, False):
        problem = agrees(model, enumerate_, guide=guide, num_particles=3)
        assert problem.layout.axis_of("z").enumerated == enumerate_
        assert problem.layout.axis_of("z").scope == ("c",)
        assert coupled(problem) == {(("m",), ("components",))}


def test_discrete_latents_from_the_guide_are_sampled():
    def model():
        k = numpyro.sample("k", dist.Categorical(jnp.array([0.2, 0.5, 0.3])), infer={"enumerate": "parallel"})
        with numpyro.plate("c", 2):
            n = numpyro.sample("n", dist.Poisson(1.0 + k))
            normal("y", n.astype(float) - k, obs=Y[:2])

    def guide():
        numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
        with numpyro.plate("c", 2):
            numpyro.sample("n", dist.Poisson(2.0))

    problem = agrees(model, guide=guide, num_particles=4)
    assert not any(a.enumerated for a in problem.layout.axes)
    assert problem.graph.latent("n").discrete


# -- names, sizes, strategies


def test_a_latent_may_not_be_called_as_its_plate():
    def model():
        with numpyro.plate("c", 2):
            normal("c")

    with pytest.raises(ModelError, match="c"):
        build(model, guide=lambda: normal("other"))


def test_names_that_look_like_kayns_own():
    def model():
        a = normal("K[a]")
        with numpyro.plate("a", 2):
            b = normal("b", a)
            normal("y", b, obs=Y[:2])

    agrees(model)


def test_strategies_and_groups(x64):
    def axes(**options):
        return {(a.latents, a.scope) for a in agrees(two_levels, **options).layout.axes}

    def two_levels():
        mu = normal("mu")
        sd = numpyro.sample("sd", dist.HalfNormal(1.0))
        with numpyro.plate("c", 2):
            a = normal("a", mu, sd)
            b = normal("b", a)
            normal("y", b, obs=Y[:2])

    assert axes() == {(("mu",), ()), (("sd",), ()), (("a",), ("c",)), (("b",), ("c",))}
    assert axes(strategy="global", num_particles=5) == {(("mu", "sd", "a", "b"), ())}
    assert axes(strategy="local", num_particles=3) == {(("mu", "sd"), ()), (("a", "b"), ("c",))}
    assert axes(groups=[["a", "b"]]) == {(("mu",), ()), (("sd",), ()), (("a", "b"), ("c",))}
    assert axes(groups=[["mu", "a"]]) == {(("mu", "a"), ()), (("sd",), ()), (("b",), ("c",))}
    assert axes(num_particles={"mu": 4, "sd": 3, "": 2}) == axes()
    assert build(two_levels, num_particles={"mu": 4, "": 2}).layout.axis_of("mu").size == 4


def test_a_hundred_scalar_latents(x64):
    """A random walk of a hundred separate sites: linear cost, and the value of a forward recursion."""
    T, K = 100, 3

    def model():
        x = 0.0
        for t in range(T):
            x = normal(f"x{t}", x)
        normal("y", x, 2.0, obs=4.0)

    def guide():
        for t in range(T):
            normal(f"x{t}", 0.0, 3.0)

    problem = build(model, guide=guide, num_particles=K)
    assert problem.layout.plan.peak_elements <= K**3
    runs = {f"x{t}": v for t, v in enumerate(jnp.asarray(np.random.default_rng(0).normal(size=(T, K))))}
    draws = draws_from_runs(problem, problem.numbers, {}, runs, {})
    slots = weigh(problem, problem.numbers, draws, {})
    found = log_evidence(problem, problem.numbers, slots, {}, {})
    forward, before = np.zeros(1), np.zeros(1)
    for t in range(T):
        x = np.asarray(runs[f"x{t}"])
        step = forward[:, None] + stats.norm.logpdf(x[None], before[:, None]) - stats.norm.logpdf(x, 0, 3.0)
        forward, before = logsumexp(step, 0) - np.log(K), x
    np.testing.assert_allclose(found, logsumexp(forward + stats.norm.logpdf(4.0, before, 2.0)), rtol=1e-9)


def test_analysis_shows_the_structure():
    text = str(kayn.analyze(ragged_in_ragged, COUNTY, STATE, num_particles=7))
    for word in ("alpha", "counties", "homes", "states", "Links", "Couplings: none", "combinations", "7"):
        assert word in text
    crossed = str(kayn.analyze(lambda: normal("y", numpyro.sample("a", dist.Normal(0, 1).expand([3])).sum(), obs=1.0)))
    assert "one particle index over" in crossed
