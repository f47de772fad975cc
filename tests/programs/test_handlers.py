"""NumPyro's own trace of a program decides what is latent, observed and scaled: handlers and special sites,
in models and in guides."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density
from scipy.stats import multivariate_normal, norm

import kayn
from kayn.errors import GuideError, KaynError, ModelError, StructureWarning
from kayn.programs.outputs import Part
from kayn.programs.sites import inspect_sites
from kayn.programs.trace import trace_program

X = np.linspace(-9, 9, 6001)
Y = 0.3


def integral(log_joint):
    """Log of the integral of a function of one latent."""
    return float(np.log(np.trapezoid(np.exp(log_joint(X)), X)))


def single():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=Y)


def guide():
    numpyro.sample("z", dist.Normal(Y / 2, 0.8))


def pair():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a + b, 1.0), obs=Y)


def plated():
    m = numpyro.param("m", 0.5)
    a = numpyro.sample("a", dist.Normal(m, 1.0))
    with numpyro.plate("rows", 3):
        b = numpyro.sample("b", dist.Normal(a, 1.0))
        numpyro.sample("y", dist.Normal(b, 1.0), obs=jnp.array([0.1, 0.2, 0.3]))


def evidence(model, guide=None, num_particles=100):
    return float(kayn.Importance(model, guide, num_particles, num_replicates=8).run(0, None).log_evidence)


def summed(model, latents):
    """The log density of kayn's traced program, its factors summed, and its latents."""
    sites = inspect_sites(model, (), {}, {})
    program = trace_program(model, (), {}, {}, sites)
    names = [n for n, s in sites.items() if s.kind == "sample"]
    known = {n: jnp.asarray(latents[n]) for n in program.inputs if n in latents}
    known |= {n: jnp.zeros(s.shape, s.dtype) for n, s in sites.items() if s.kind == "key"}
    values = program.leaves(known, {}, {})
    out = dict(zip(program.outputs, jax.core.eval_jaxpr(program.jaxpr, program.consts, *values), strict=True))
    return sum(float(out[Part.DENSITY.of(n)].sum()) for n in names), {n for n in names if not sites[n].observed}


HANDLERS = {
    "condition": lambda f: handlers.condition(f, data={"a": 0.4}),
    "substitute": lambda f: handlers.substitute(f, data={"a": 0.4}),
    "substitute in a plate": lambda f: handlers.substitute(f, data={"b": jnp.array([0.1, 0.0, 0.2])}),
    "substitute of a parameter": lambda f: handlers.substitute(f, data={"m": 1.5}),
    "do": lambda f: handlers.do(f, data={"a": 0.4}),
    "scale": lambda f: handlers.scale(f, scale=1.7),
    "mask": lambda f: handlers.mask(f, mask=False),
    "seed": lambda f: handlers.seed(f, 3),
    "block of data": lambda f: handlers.block(f, hide=["y"]),
    "uncondition": lambda f: handlers.uncondition(f),
    "lift": lambda f: handlers.lift(f, prior={"m": dist.Normal(0.0, 2.0)}),
    "reparam": lambda f: handlers.reparam(f, config={"b": LocScaleReparam(0.3)}),
    "scope": lambda f: handlers.scope(f, prefix="s"),
    "infer_config": lambda f: handlers.infer_config(f, config_fn=lambda site: {"note": 1}),
    "condition of scale": lambda f: handlers.condition(handlers.scale(f, scale=1.7), data={"a": 0.4}),
    "substitute of lift": lambda f: handlers.substitute(handlers.lift(f, prior={"m": dist.Normal()}), data={"m": 0.2}),
    "scope of substitute": lambda f: handlers.scope(handlers.substitute(f, data={"a": 0.4}), prefix="s"),
}


@pytest.mark.parametrize("handler", HANDLERS)
def test_density_and_roles_are_those_of_numpyro(handler):
    model = HANDLERS[handler](plated)
    fixed = handlers.trace(handlers.seed(model, 0)).get_trace()
    again = handlers.trace(handlers.seed(model, 1)).get_trace()
    drawn = {n: s["value"] for n, s in fixed.items() if s["type"] == "sample" and not s["is_observed"]}
    free = {n for n in drawn if handler == "seed" or not np.array_equal(drawn[n], again[n]["value"])}
    right = float(log_density(model, (), {}, {n: drawn[n] for n in free})[0]) if free == set(drawn) else None
    if right is None:
        right = float(log_density(handlers.seed(model, 0), (), {}, {n: drawn[n] for n in free})[0])
    found, latent = summed(model, drawn)
    assert latent == free
    assert found == pytest.approx(right, rel=1e-5, abs=1e-5)


FIXED = norm(1.5, 2**0.5).logpdf(Y)


@pytest.mark.parametrize(
    ("model", "right"),
    [
        (handlers.substitute(pair, data={"b": 1.5}), FIXED + norm.logpdf(1.5)),
        (handlers.condition(pair, data={"b": 1.5}), FIXED + norm.logpdf(1.5)),
        (handlers.do(pair, data={"b": 1.5}), FIXED),
    ],
)
def test_evidence_under_handlers(model, right):
    assert evidence(model) == pytest.approx(right, abs=0.02)


@pytest.mark.parametrize("handler", [handlers.condition, handlers.substitute])
def test_values_given_inside_a_loop_are_data(handler):
    def chain():
        def step(x, _):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            s = numpyro.sample("s", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(x + s, 1.0), obs=Y)
            return x, None

        scan(step, 0.0, None, length=2)

    model = handler(chain, data={"s": jnp.array([0.1, -0.2])})
    sites = inspect_sites(model, (), {}, {})
    assert sites["s"].observed
    assert not sites["x"].observed


def test_a_seeded_program_is_drawn_anew():
    # over 400 draws the sd has an error of 0.04: five of them, 6e-7
    posterior = kayn.Importance(handlers.seed(single, 0), handlers.seed(guide, 0), 100, num_replicates=4).run(0, None)
    assert float(posterior.log_evidence) == pytest.approx(norm(0, 2**0.5).logpdf(Y), abs=0.05)
    assert float(posterior.predictive(1, 400)["y"].std()) == pytest.approx(1.5**0.5, abs=0.22)


def test_point_masses_of_a_model_are_values():
    def model():
        with numpyro.plate("rows", 3):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            with handlers.scale(scale=2.0), handlers.mask(mask=jnp.array([True, False, True])):
                z = numpyro.sample("z", dist.Delta(2 * a, log_density=0.25 * a))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=jnp.full(3, Y))

    posterior = kayn.Importance(model, None, 200, num_replicates=4).run(0, None)
    rows = [integral(lambda a, k=k: norm.logpdf(a) + norm.logpdf(Y, 2 * a) + k * a) for k in (0.5, 0.0, 0.5)]
    assert float(posterior.log_evidence) == pytest.approx(sum(rows), abs=0.03)
    assert posterior.latent_names == ("a",)
    np.testing.assert_allclose(posterior.mean("z"), 2 * posterior.mean("a"), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(posterior.std("z"), 2 * posterior.std("a"), rtol=1e-4)
    draws = posterior.sample(0, 10)
    np.testing.assert_allclose(draws["z"], 2 * draws["a"], rtol=1e-6)


def test_constants_and_factors_have_nothing_to_infer():
    def model():
        scale = numpyro.sample("scale", dist.Delta(jnp.array([0.5, 1.0]), event_dim=1, log_density=0.4))
        numpyro.sample("bonus", dist.Unit(0.7))
        z = numpyro.sample("z", dist.Normal(0.0, scale[0]))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    assert evidence(model) == pytest.approx(1.1 + norm(0, 1.25**0.5).logpdf(Y), abs=0.02)


def own_randomness():
    shift = 0.5 * jax.random.normal(numpyro.prng_key())
    numpyro.sample("a", dist.Normal(shift, 1.2))
    numpyro.sample("b", dist.Normal(-shift, 1.2))


def hidden_site():
    u = numpyro.sample("u", dist.Normal(0.0, 0.5))
    numpyro.sample("a", dist.Normal(u, 1.2))
    numpyro.sample("b", dist.Normal(-u, 1.2))


def first_values():
    m = numpyro.param("mean", jax.random.normal)
    numpyro.sample("a", dist.Normal(m, 1.2))
    numpyro.sample("b", dist.Normal(-m, 1.2))


@pytest.mark.parametrize("program", [own_randomness, handlers.block(hidden_site, hide=["u"]), first_values])
@pytest.mark.parametrize("options", [{}, {"strategy": "global"}, {"denominator": "paired"}])
def test_guides_are_weighed_with_the_randomness_they_were_drawn_with(program, options):
    # within five of the run's own standard errors: 6e-7 a case
    posterior = kayn.Importance(pair, program, 60, num_replicates=40, **options).run(0, None)
    right = norm(0, 3**0.5).logpdf(Y)
    assert abs(float(posterior.log_evidence) - right) < 5 * float(posterior.log_evidence_error) + 1e-3


def keyed_series():
    def step(before, y):
        z = numpyro.sample("z", dist.Normal(before, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        return z, None

    scan(step, 0.0, SERIES)


def keyed_steps():
    def step(before, y):
        shift = 0.3 * jax.random.normal(numpyro.prng_key())
        z = numpyro.sample("z", dist.Normal(0.5 * (before + y) + shift, 0.8))
        return z, None

    scan(step, 0.0, SERIES)


SERIES = jnp.array([0.3, 0.1, -0.2])


@pytest.mark.parametrize("strategy", ["parallel", "global"])
def test_keys_inside_the_loops_of_a_guide(strategy):
    """Every step has its own, which particles are drawn and weighed with:
    log Z to five of the run's own standard errors, 6e-7 a case."""
    posterior = kayn.Importance(keyed_series, keyed_steps, 100, strategy, num_replicates=30).run(0, None)
    walk = np.minimum.outer(np.arange(1, 4), np.arange(1, 4)) + np.eye(3)
    right = multivariate_normal(np.zeros(3), walk).logpdf(np.asarray(SERIES))
    assert abs(float(posterior.log_evidence) - right) < 5 * float(posterior.log_evidence_error) + 1e-3


def dropout():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z + jax.random.normal(numpyro.prng_key()), 1.0), obs=Y)


@pytest.mark.parametrize("model", [dropout, handlers.block(pair, hide=["a"])])
def test_randomness_of_a_model_that_no_site_records_is_refused(model):
    with pytest.raises(ModelError, match=r"'y'.*no sample site records.*numpyro\.sample"):
        kayn.Importance(model, None, 10).run(0, None)


def test_keys_that_nothing_depends_on_do_no_harm():
    def model(key):
        numpyro.prng_key()
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z + jax.random.normal(key), 1.0), obs=Y)

    key = jax.random.key(5)
    right = norm(float(jax.random.normal(key)), 2**0.5).logpdf(Y)
    for given in (key, jax.random.key_data(key)):
        found = kayn.Importance(model, None, 100, num_replicates=4).run(0, None, given).log_evidence
        assert float(found) == pytest.approx(right, abs=0.02)


def test_scales_count_in_models_and_not_in_guides():
    scaled = handlers.scale(guide, scale=2.0)
    with pytest.warns(StructureWarning, match=r"guide scales.*'z'"):
        assert evidence(single, scaled) == evidence(single, guide)
    right = integral(lambda z: 2 * (norm.logpdf(z) + norm.logpdf(Y, z)))
    assert evidence(handlers.scale(single, scale=2.0)) == pytest.approx(right, abs=0.02)


def with_data():
    guide()
    numpyro.sample("seen", dist.Normal(0.0, 1.0), obs=3.0)


def test_data_in_a_guide_are_left_out():
    with pytest.warns(StructureWarning, match=r"guide has data at 'seen'"):
        assert evidence(single, with_data) == evidence(single, guide)


def point_of_a_key():
    numpyro.sample("z", dist.Delta(jax.random.normal(numpyro.prng_key())))


def point_of_a_site_and_a_key():
    u = numpyro.sample("u", dist.Normal(Y / 2, 0.8), infer={"is_auxiliary": True})
    shift = 0.1 * jax.random.normal(numpyro.prng_key())
    numpyro.sample("z", dist.Delta(u + shift))


def test_a_point_mass_may_be_moved_by_a_key_that_has_no_density():
    """Given the key, the auxiliary site's density is that of the latent: log Z to four standard errors, 6e-5."""
    found = kayn.Importance(single, point_of_a_site_and_a_key, 100, num_replicates=30).run(0, None)
    exact = norm(0.0, np.sqrt(2.0)).logpdf(Y)
    assert abs(found.log_evidence - exact) < 4 * found.log_evidence_error


def with_factor():
    guide()
    numpyro.factor("f", 1.0)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (with_factor, "factor site 'f'"),
        (point_of_a_key, "puts a point mass on 'z'"),
        (handlers.substitute(guide, data={"z": 0.2}), "'z' has no guide site"),
    ],
)
def test_what_is_no_density_in_a_guide_is_refused(program, words):
    with pytest.raises(GuideError, match=words):
        kayn.Importance(single, program, 10).run(0, None)


def in_cond():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    w = jax.lax.cond(z > 0, lambda: numpyro.sample("w", dist.Normal(0.0, 1.0)), lambda: 0.0)
    numpyro.sample("y", dist.Normal(z + w, 1.0), obs=Y)


def in_vmap():
    jax.vmap(lambda m: numpyro.sample("w", dist.Normal(m, 1.0)))(jnp.arange(3.0))


def in_map():
    jax.lax.map(lambda m: numpyro.sample("w", dist.Normal(m, 1.0)), jnp.arange(3.0))


def in_grad():
    jax.grad(lambda m: numpyro.sample("w", dist.Normal(m, 1.0)))(0.0)


@pytest.mark.parametrize(
    ("model", "program", "site"),
    [
        (in_cond, None, "'w'"),
        (in_vmap, None, "'w'"),
        (in_map, None, "'w'"),
        (in_grad, None, "'w'"),
        (jax.jit(single), None, "'z'"),
        (single, jax.jit(guide), "'z'"),
    ],
)
def test_sites_inside_transformations_are_refused_by_name(model, program, site):
    with pytest.raises(ModelError, match=rf"{site} stands inside a JAX transformation"):
        kayn.Importance(model, program, 10).run(0, None)


ROWS = jnp.linspace(2.0, 4.0, 8)


def rows_model(x):
    with numpyro.plate("rows", 8):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def running_guide(x):
    slope = numpyro.param("slope", 0.1)
    running = numpyro.primitives.mutable("running", {"mean": jnp.zeros(())})
    running["mean"] = 0.5 * running["mean"] + 0.5 * jax.lax.stop_gradient(x.mean())
    with numpyro.plate("rows", 8):
        numpyro.sample("z", dist.Normal(slope * (x - running["mean"]), 1.0))


def running_means(loss):
    svi = SVI(rows_model, running_guide, numpyro.optim.Adam(1e-2), loss)
    state = svi.init(jax.random.key(0), ROWS)
    found, update = [state.mutable_state["running"]["mean"]], jax.jit(svi.update)
    for _ in range(2):
        state, _ = update(state, ROWS)
        found.append(state.mutable_state["running"]["mean"])
    return np.asarray(found), {**svi.get_params(state), **state.mutable_state}


@pytest.mark.parametrize("loss", [kayn.VI(3, "local"), kayn.RWS(3), kayn.VIMCO(3)])
def test_state_of_modules_goes_on_as_in_numpyro(loss):
    found, params = running_means(loss)
    np.testing.assert_allclose(found, running_means(Trace_ELBO())[0], rtol=1e-6)
    posterior = kayn.Importance(rows_model, running_guide, 20).run(0, params, ROWS)
    assert np.isfinite(float(posterior.log_evidence))
    with pytest.raises(KaynError, match="running"):
        kayn.train(
            rows_model, running_guide, kayn.Phase(loss, optax.sgd(0.1)), ROWS, batch_size=8, num_steps=1, progress=False
        )


@pytest.mark.parametrize("method", ["rws", "vi"])
def test_fits_hand_on_the_state(method):
    """After 16 steps the running mean is that of the data to 2^-16,
    and log Z is exact to five of the run's own standard errors, 6e-7."""
    fitted = kayn.fit(rows_model, (ROWS,), method=method, guide=running_guide, num_steps=16, progress=False)
    assert float(fitted.params["running"]["mean"]) == pytest.approx(float(ROWS.mean()), rel=1e-4)
    posterior = fitted.posterior()
    right = norm(0, 2**0.5).logpdf(np.asarray(ROWS)).sum()
    assert abs(float(posterior.log_evidence) - right) < 5 * float(posterior.log_evidence_error)


def test_parameters_of_a_module_without_its_state_are_refused():
    def guide(x):
        slope = numpyro.param("net$params", 0.1)
        numpyro.primitives.mutable("net$state")
        with numpyro.plate("rows", 8):
            numpyro.sample("z", dist.Normal(slope * x, 1.0))

    with pytest.raises(KaynError, match=r"no value for the state 'net.state'"):
        kayn.Importance(rows_model, guide, 20).run(0, {"net$params": jnp.array(0.1)}, ROWS)


def drawn_often(times, model):
    """A normal mean of each of twelve groups, drawn by number or made larger, and a covariance for each of three."""

    def program(y):
        m, s = numpyro.sample("m", dist.Normal(0.0, 1.0)), numpyro.sample("s", dist.HalfNormal(1.0))
        z = times("z", dist.Normal(m, s), (12,))
        w = times("w", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), (3, 2))
        if model:
            numpyro.sample("y", dist.Normal(z + w.reshape(12), 1.0), obs=y)

    return program


@pytest.mark.parametrize("own", [False, True])
def test_what_is_drawn_several_times_has_these_dimensions_in_its_batch(own):
    """`sample_shape` says what `expand` does, in models and guides: the same structure, and the same evidence for a
    key."""

    def by_number(name, fn, shape):
        return numpyro.sample(name, fn, sample_shape=shape)

    def expanded(name, fn, shape):
        return numpyro.sample(name, fn.expand(shape))

    y, found = jnp.linspace(-1.0, 2.0, 12), []
    for times in (by_number, expanded):
        model, guide = (drawn_often(times, is_model) for is_model in (True, False))
        assert {a.scope for a in kayn.analyze(model, y).layout.axes} >= {("z_dim_0",), ("w_dim_0", "w_dim_1")}
        weighed = kayn.Importance(model, guide if own else None, 7, num_replicates=2)
        found.append(weighed.run(0, None, y).log_evidences)
        mine, numpyros = (dict(handlers.trace(handlers.seed(model, 0)).get_trace(y)) for _ in "ab")
        assert mine["z"]["value"].shape == numpyros["z"]["value"].shape == (12,)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("count", [2, 3], ids=["other than steps", "as many as steps"])
def test_what_is_drawn_several_times_in_every_step_of_a_loop(count):
    """As what is made larger; NumPyro 0.22 refuses its shapes, or takes each draw for that of another step."""
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, count)), "float32")

    def model(expand, y):
        s = numpyro.sample("s", dist.HalfNormal(1.0))

        def step(before, now):
            law = dist.Normal(before, s)
            if expand:
                z = numpyro.sample("z", law.expand([count]))
            else:
                z = numpyro.sample("z", law, sample_shape=(count,))
            numpyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=now)
            return z.mean(), None

        scan(step, 0.0, y)

    posteriors = [kayn.Importance(partial(model, e), None, 20, num_replicates=4).run(0, None, y) for e in (True, False)]
    np.testing.assert_array_equal(*(p.log_evidences for p in posteriors))
    predicted = posteriors[1].predictive(0, 5)
    assert predicted["y"].shape == (5, 3, count)
