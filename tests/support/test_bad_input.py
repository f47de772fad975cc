"""Bad input: every refusal has a class of its own, names the site, plate or argument, and says what to do instead."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta, AutoNormal

import kayn
from kayn import (
    QEM,
    RWS,
    VI,
    DataError,
    GuideError,
    Importance,
    KaynError,
    ModelError,
    QueryError,
    StructureError,
)
from kayn.graph.discover import discover
from kayn.programs.sites import inspect_sites
from kayn.programs.trace import trace_program

Y = np.array([0.1, 0.5, -0.3, 0.2])
COUNTY = np.array([0, 1, 2, 0])
ENUMERATE = {"enumerate": "parallel"}


def sample(name, fn, **options):
    return numpyro.sample(name, fn, **options)


# -- models


def flat(y=None):
    mu = sample("mu", dist.Normal(0, 1))
    with numpyro.plate("rows", len(Y) if y is None else len(y)):
        sample("y", dist.Normal(mu, 1), obs=y)


def ragged(county, y=None, J=3):
    mu = sample("mu", dist.Normal(0, 1))
    with numpyro.plate("counties", J):
        alpha = sample("alpha", dist.Normal(mu, 1))
    numpyro.deterministic("twice", 2 * alpha)
    with numpyro.plate("rows", len(county)):
        sample("y", dist.Normal(alpha[county], 1), obs=y)


def chain(y):
    mu = sample("mu", dist.Normal(0, 1))
    theta = sample("theta", dist.Normal(mu, 1))
    sample("y", dist.Normal(theta, 1), obs=y)


def coin(y):
    z = sample("z", dist.Bernoulli(0.5))
    sample("y", dist.Normal(z, 1), obs=y)


def counted(y):
    z = sample("z", dist.Poisson(2.0))
    sample("y", dist.Normal(z, 1), obs=y)


def split(y):
    z = sample("z", dist.Multinomial(5, jnp.ones(3) / 3))
    sample("y", dist.Normal(z[0], 1), obs=y)


def mixture(y):
    mu = sample("mu", dist.Normal(0, 1))
    with numpyro.plate("rows", len(y)):
        z = sample("z", dist.Bernoulli(0.5), infer=ENUMERATE)
        sample("y", dist.Normal(mu + z, 1), obs=y)


def enumerated_sum(y):
    with numpyro.plate("elements", 3):
        z = sample("z", dist.Bernoulli(0.5), infer=ENUMERATE)
    sample("y", dist.Normal(z.sum(), 1), obs=y)


def enumerate_from(fn):
    def model(y):
        z = sample("z", fn, infer=ENUMERATE)
        sample("y", dist.Normal(jnp.sum(z), 1), obs=y)

    return model


def observed_only(y):
    sample("y", dist.Normal(0, 1), obs=y)


def same_name_twice():
    sample("mu", dist.Normal(0, 1))
    sample("mu", dist.Normal(0, 1))


def plate_with_two_sizes():
    with numpyro.plate("groups", 3):
        sample("a", dist.Normal(0, 1))
    with numpyro.plate("groups", 4):
        sample("b", dist.Normal(0, 1))


def moving_support(y):
    a = sample("a", dist.HalfNormal(1.0))
    b = sample("b", dist.Uniform(0.0, a))
    sample("y", dist.Normal(b, 1), obs=y)


def three():
    for name in "abc":
        sample(name, dist.Normal(0, 1))


def likelihood(fn):
    """A model with one latent in (0, 1) and the likelihood `fn(latent)` for rows of data."""

    def model(y):
        p = sample("p", dist.Uniform(0.0, 1.0))
        with numpyro.plate("rows", len(y)):
            sample("y", fn(p), obs=y)

    return model


def guide_of(**sites):
    """A guide with the given independent sites, whatever its arguments."""

    def guide(*args, **kwargs):
        for name, fn in sites.items():
            sample(name, fn)

    return guide


def dependent_guide(y):
    mu = sample("mu", dist.Normal(0, 1))
    sample("theta", dist.Normal(mu, 1))


NORMAL = dist.Normal(0.0, 1.0)


def refused(call, error, *fragments):
    """`call` raises exactly this class, with a message that holds every fragment."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error, f"{type(caught.value).__name__} instead of {error.__name__}: {caught.value}"
    missing = [f for f in fragments if f not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"


def case(name, call, error, *fragments):
    return pytest.param(call, error, fragments, id=name)


# -- model and guide

STRUCTURE = [
    case("same name twice", lambda: kayn.analyze(same_name_twice), ModelError, "`mu`", "own name", "rename"),
    case(
        "plate with two sizes", lambda: kayn.analyze(plate_with_two_sizes), ModelError,
        "'groups'", "size 3 at site 'a'", "size 4 at site 'b'", "use two names or one size",
    ),
    case("no latent", lambda: kayn.analyze(observed_only, 0.3), ModelError, "no latent sample site", "obs="),
    case("model is no function", lambda: kayn.analyze("model", Y), ModelError, "'model'", "NumPyro programs"),
    case(
        "guide is no function", lambda: kayn.analyze(flat, Y, guide="AutoNormal"), ModelError,
        "'AutoNormal'", "NumPyro programs",
    ),
    case(
        "guide misses a latent", lambda: kayn.analyze(flat, Y, guide=guide_of()), GuideError,
        "'mu'", "add a guide site",
    ),
    case(
        "guide misses a count", lambda: kayn.analyze(counted, 0.3, guide=guide_of()), GuideError,
        "'z'", "add a guide site", "summed out",
    ),
    case(
        "guide adds a site", lambda: kayn.analyze(flat, Y, guide=guide_of(mu=NORMAL, nu=NORMAL)), GuideError,
        "'nu'", "not a latent of the model", "['mu']", "is_auxiliary",
    ),
    case(
        "guide site is observed", lambda: kayn.analyze(flat, Y, guide=guide_of(mu=NORMAL, y=NORMAL.expand([4]))),
        GuideError, "'y'", "observed there", "remove it",
    ),
    case(
        "guide shape", lambda: kayn.analyze(flat, Y, guide=guide_of(mu=NORMAL.expand([2]))), GuideError,
        "'mu'", "shape (2,)", "has ()", "plates and event shape",
    ),
    case(
        "guide discrete, model continuous", lambda: kayn.analyze(flat, Y, guide=guide_of(mu=dist.Bernoulli(0.5))),
        GuideError, "'mu'", "is discrete but the model's is continuous", "support",
    ),
    case(
        "guide continuous, model discrete", lambda: kayn.analyze(coin, 0.3, guide=guide_of(z=NORMAL)), GuideError,
        "'z'", "is continuous but the model's is discrete", "support",
    ),
    case(
        "AutoDelta", lambda: kayn.analyze(flat, Y, guide=AutoDelta(flat)), GuideError,
        "'mu'", "AutoDelta", "no density", "AutoNormal",
    ),
    case(
        "no family, Importance", lambda: Importance(split).run(0, None, 0.3), GuideError,
        "'z' follows MultinomialProbs", "depend on each other", "pass a guide",
    ),
    case(
        "no family, fit", lambda: kayn.fit(split, (0.3,), progress=False), GuideError,
        "'z' follows MultinomialProbs", "depend on each other", "pass a guide",
    ),
    case(
        "no family, analyze", lambda: kayn.analyze(split, 0.3), GuideError, "'z' follows MultinomialProbs",
    ),
    case(
        "support depends on a latent", lambda: kayn.FactorisedGuide.from_model(moving_support, (0.3,)), GuideError,
        "support of latent 'b'", "depends on latent 'a'", "fixed support",
    ),
    case(
        "enumerating Poisson", lambda: kayn.analyze(enumerate_from(dist.Poisson(0.5)), 0.3), ModelError,
        "'z'", "Poisson cannot be enumerated", "finite support",
    ),
    case(
        "enumerating a continuous latent", lambda: kayn.analyze(enumerate_from(NORMAL), 0.3), ModelError,
        "'z'", "Normal cannot be enumerated", "kayn's own guide draws it",
    ),
    case(
        "enumerating event dimensions",
        lambda: kayn.analyze(enumerate_from(dist.Bernoulli(0.5 * jnp.ones(2)).to_event(1)), 0.3), ModelError,
        "'z'", "element by element", "no event dimension",
    ),
    case(
        "enumerated latent would be coupled", lambda: kayn.analyze(enumerated_sum, 0.3), StructureError,
        "'z' is enumerated", "plate 'elements'", "reads several elements", "Sample it from the guide",
    ),
    case(
        "enumerated latent asked to couple", lambda: kayn.analyze(mixture, Y, couple={"z": "rows"}), StructureError,
        "'z' is enumerated", "plate 'rows'", "asked for",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "fragments"), STRUCTURE)
def test_model_and_guide(call, error, fragments):
    refused(call, error, *fragments)


def test_a_models_own_error_is_left_alone():
    class Mine(RuntimeError):
        pass

    def model(y):
        raise Mine("the model's own words")

    for call in (lambda: kayn.analyze(model, Y), lambda: kayn.fit(model, (Y,), progress=False)):
        with pytest.raises(Mine, match=r"^the model's own words"):
            call()

    def asserts(y):
        assert len(y) == 2, "two rows, please"

    with pytest.raises(AssertionError, match="two rows, please"):
        kayn.analyze(asserts, Y)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        kayn.analyze(chain)


# -- data

DATA = [
    case(
        "arguments by name", lambda: kayn.analyze(flat, kwargs={"y": Y}), DataError,
        "unexpected keyword argument 'kwargs'", "given kwargs=", "*args, **kwargs",
    ),
    case(
        "arguments as a tuple", lambda: kayn.analyze(lambda county, y: ragged(county, y), (COUNTY, Y)), DataError,
        "missing 1 required", "a tuple as its only argument", "*args, **kwargs",
    ),
    case(
        "NaN", lambda: kayn.analyze(flat, np.array([0.1, np.nan])), DataError,
        "'y'", "1 NaN or infinite values of 2", "index (1,)", "handlers.mask", "missing='impute'",
    ),
    case("infinite", lambda: kayn.analyze(flat, np.array([-np.inf, 0.1])), DataError, "'y'", "infinite", "index (0,)"),
    case("NaN, fit", lambda: kayn.fit(flat, (np.array([0.1, np.nan]),), progress=False), DataError, "'y'"),
    case(
        "index too large", lambda: kayn.analyze(ragged, np.array([0, 1, 3, 0]), Y), DataError,
        "'alpha' has 3 elements along plate 'counties'", "index 3", "0..2", "make the plate larger",
    ),
    case(
        "index below minus J", lambda: kayn.analyze(ragged, np.array([0, 1, -4, 0]), Y), DataError,
        "'alpha'", "index -4", "0..2",
    ),
    case(
        "Bernoulli 3", lambda: kayn.analyze(likelihood(dist.Bernoulli), np.array([0, 1, 3])), DataError,
        "'y'", "1 values of 3", "outside the support of its Bernoulli", "index (2,): 3", "choose a likelihood",
    ),
    case(
        "Bernoulli 0.5", lambda: kayn.analyze(likelihood(dist.Bernoulli), np.array([0.5, 1.0])), DataError,
        "'y'", "index (0,): 0.5",
    ),
    case(
        "Poisson -1", lambda: kayn.analyze(likelihood(dist.Poisson), np.array([0, -1])), DataError,
        "'y'", "Poisson", "index (1,): -1",
    ),
    case(
        "Poisson 0.5", lambda: kayn.analyze(likelihood(dist.Poisson), np.array([0.5, 1.0])), DataError,
        "'y'", "Poisson",
    ),
    case(
        "binomial beyond its total",
        lambda: kayn.analyze(likelihood(lambda p: dist.Binomial(10, p)), np.array([10, 11])),
        DataError, "'y'", "Binomial", "index (1,): 11",
    ),
    case(
        "unknown category",
        lambda: kayn.analyze(likelihood(lambda p: dist.Categorical(jnp.ones(3) / 3 * p)), np.array([0, 3])),
        DataError, "'y'", "Categorical", "index (1,): 3",
    ),
    case(
        "Beta 1.2", lambda: kayn.analyze(likelihood(lambda p: dist.Beta(p, 1.0)), np.array([1.2])), DataError,
        "'y'", "Beta",
    ),
    case(
        "Gamma -1", lambda: kayn.analyze(likelihood(lambda p: dist.Gamma(p, 1.0)), np.array([-1.0])), DataError,
        "'y'", "Gamma",
    ),
    case(
        "HalfNormal -1", lambda: kayn.analyze(likelihood(dist.HalfNormal), np.array([-1.0])), DataError,
        "'y'", "HalfNormal",
    ),
    case("list", lambda: kayn.analyze(flat, [0.1, 0.2]), DataError, "'y' is a list", "jnp.asarray"),
    case(
        "missing group", lambda: kayn.analyze(ragged, np.array([0, -1, 2, -1]), Y), DataError,
        "argument 'county'", "'alpha'", "index -1", "'counties'", "in 2 of 4 rows, at 1, 3", "missing group",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "fragments"), DATA)
def test_data(call, error, fragments):
    refused(call, error, *fragments)


ACCEPTED = [
    (dist.Bernoulli, np.array([0.0, 1.0])),
    (dist.Bernoulli, np.array([True, False])),
    (dist.Bernoulli, np.array([0, 1], np.int8)),
    (dist.Poisson, np.array([0.0, 3.0])),
    (dist.Poisson, np.array([0, 3], np.uint16)),
    (lambda p: dist.Binomial(np.array([2, 3]), p), np.array([2, 3])),
    (lambda p: dist.Normal(p, 1), np.array([1, -2])),
    (lambda p: dist.Normal(p, 1), np.array([1, -2], np.float16)),
    (lambda p: dist.Exponential(p), np.array([0.0, 1.0])),
    (lambda p: dist.Beta(1.0 + p, 1.0), np.array([0.0, 1.0])),
    (lambda p: dist.VonMises(p, 1.0), np.array([0.1, 6.0])),
    (lambda p: dist.Uniform(0.0, 1.0 + p), np.array([0.2, 1.5])),
    (lambda p: dist.ZeroInflatedPoisson(p, 2.0), np.array([0, 4])),
    (lambda p: dist.Dirichlet(p * jnp.ones(3)), np.array([[0.2, 0.3, 0.5]], np.float32)),
    (lambda p: dist.Multinomial(3, probs=jnp.ones(3) / 3 * (1 + 0 * p)), np.array([[1, 1, 1], [0, 3, 0]])),
    (lambda p: dist.OrderedLogistic(p, jnp.array([-1.0, 1.0])), np.array([0, 2])),
    (lambda p: dist.TruncatedNormal(p, 1.0, low=-1.0), np.array([-1.0, 4.0])),
]


@pytest.mark.parametrize(("fn", "y"), ACCEPTED)
def test_no_false_alarm_about_data(fn, y):
    model = likelihood(fn)
    sites = inspect_sites(model, (y,), {}, {})
    program = trace_program(model, (y,), {}, {}, sites)
    discover(program, [*program.consts, *([None] * len(program.inputs))])


def test_masked_data_may_be_anything():
    def masked(y, mask):
        p = sample("p", dist.Beta(1.0, 1.0))
        with numpyro.plate("rows", len(y)), numpyro.handlers.mask(mask=mask):
            sample("y", dist.Bernoulli(p), obs=y)

    mask = np.array([True, False, False, True])
    one = Importance(masked, num_particles=5).run(0, None, np.array([0.0, np.nan, 7.0, 1.0]), mask).log_evidence
    other = Importance(masked, num_particles=5).run(0, None, np.array([0.0, 1.0, 0.0, 1.0]), mask).log_evidence
    assert np.isfinite(one)
    np.testing.assert_allclose(one, other, rtol=1e-6)
    refused(
        lambda: kayn.analyze(masked, np.array([0.0, np.nan, 7.0, 2.0]), mask),
        DataError,
        "'y'",
        "1 values of 4",
        "index (3,)",
    )


def test_negative_indices_count_from_the_end_where_the_model_makes_them():
    def from_the_end(county, y):
        return ragged(jnp.where(county == 2, county - 3, county), y)

    minus, plain = (
        Importance(m, num_particles=4).run(0, None, np.array([0, 1, 2, 0]), Y) for m in (from_the_end, ragged)
    )
    np.testing.assert_allclose(minus.log_evidence, plain.log_evidence, rtol=1e-6)


# -- options

GROUPED = {"a": "a", "b": "b"}
OPTIONS = [
    *(
        case(
            f"K is {k!r}", lambda k=k: kayn.analyze(flat, Y, num_particles=k), StructureError,
            "num_particles", repr(k), "at least 1",
        )
        for k in (0, -1, 2.5, "3", True)
    ),
    case("K of one latent", lambda: Importance(flat, num_particles={"mu": 0}), StructureError, "'mu'", "at least 1"),
    case("K, VI", lambda: VI(0), StructureError, "num_particles is 0"),
    case("K, QEM", lambda: QEM(flat, num_particles=0), StructureError, "num_particles is 0"),
    case(
        "strategy", lambda: kayn.analyze(flat, Y, strategy="paralel"), StructureError,
        "'paralel'", "'parallel', 'global', 'local'",
    ),
    case(
        "unknown latent in num_particles", lambda: kayn.analyze(flat, Y, num_particles={"nu": 3, "": 2}),
        StructureError,
        "num_particles=", "'nu'", "['mu']",
    ),
    case(
        "unknown latent in groups", lambda: kayn.analyze(flat, Y, groups=[("mu", "nu")]), StructureError,
        "groups=", "'nu'", "['mu']",
    ),
    case(
        "groups is flat", lambda: kayn.analyze(three, groups=["a", "b"]), StructureError,
        "groups=", "list of groups", "[('mu', 'alpha')]",
    ),
    case(
        "no numbers", lambda: Importance(flat, num_particles={}), StructureError,
        "num_particles is dict {}", "not empty",
    ),
    case("empty group", lambda: QEM(flat, groups=[()]), StructureError, "groups is", "none of them empty"),
    case(
        "latent twice in a group", lambda: RWS(3, groups=[("mu", "mu")]), StructureError,
        "groups is", "'mu'", "a latent twice",
    ),
    case(
        "no plate in couple", lambda: VI(3, couple={"alpha": []}), StructureError,
        "couple is", "'alpha'", "each with a plate",
    ),
    case(
        "plate twice in couple", lambda: VI(3, couple={"alpha": ["rows", "rows"]}), StructureError,
        "couple is", "'alpha'", "none twice",
    ),
    case(
        "unknown latent in couple", lambda: kayn.analyze(flat, Y, couple={"nu": "rows"}), StructureError,
        "couple=", "'nu'", "['mu']",
    ),
    case(
        "unknown plate in couple", lambda: kayn.analyze(ragged, COUNTY, Y, couple={"alpha": "county"}), StructureError,
        "couple=", "'alpha'", "['county']", "['counties']",
    ),
    case(
        "couple over a plate that the latent lacks", lambda: kayn.analyze(ragged, COUNTY, Y, couple={"mu": "counties"}),
        StructureError,
        "couple=", "'mu'", "['counties']",
    ),
    case(
        "latent in two groups", lambda: kayn.analyze(three, groups=[("a", "b"), ("b", "c")]), StructureError,
        "['b']", "two groups", "one particle axis",
    ),
    case(
        "two numbers in a group", lambda: kayn.analyze(three, groups=[("a", "b")], num_particles={"a": 3, "": 4}),
        StructureError,
        "['a', 'b']", "[3, 4]", "one number",
    ),
    case(
        "enumerated latent in a group", lambda: kayn.analyze(mixture, Y, groups=[("mu", "z")]), StructureError,
        "'z' is enumerated", "['mu']", "Leave it out",
    ),
    case(
        "memory too small for particles", lambda: kayn.analyze(flat, Y, memory=400), StructureError,
        "particles and guide alone would take", "num_particles=4", "memory=400 B",
    ),
    case(
        "memory too small", lambda: kayn.analyze(flat, Y, memory=900), StructureError,
        "a step would take", "num_particles=16", "memory=900 B",
    ),
    *(
        case(f"memory is {m}", lambda m=m: kayn.analyze(flat, Y, memory=m), KaynError, f"memory is {m!r}", "'2GB'")
        for m in (0, -5, "2 parsecs", "..", float("nan"), True)
    ),
    case(
        "denominator", lambda: Importance(flat, denominator="average").run(0, None, Y), GuideError,
        "'average'", "'mixture', 'paired'",
    ),
    case("phi", lambda: RWS(3, phi="joint"), KaynError, "'joint'", "'conditional', 'mixture'"),
    *(
        case(
            f"num_replicates is {n!r}", lambda n=n: Importance(flat, num_replicates=n), KaynError,
            "num_replicates", repr(n), "at least 1",
        )
        for n in (0, 1.5, True)
    ),
    *(
        case(f"rate is {r}", lambda r=r: QEM(flat, rate=r), KaynError, f"rate is {r}", "(0, 1]")
        for r in (0, -0.1, 1.5, float("nan"))
    ),
    *(
        case(f"min_ess is {m}", lambda m=m: QEM(flat, min_ess=m), KaynError, f"min_ess is {m}", "1 (no tempering)")
        for m in (-0.1, 0.5, float("nan"))
    ),
    case("method", lambda: kayn.fit(flat, (Y,), method="nuts"), KaynError, "'nuts'", "'qem', 'rws', 'vi'"),
    case("args is an array", lambda: kayn.fit(flat, Y), KaynError, "args is ndarray", "tuple", "args=(x, y)"),
    case("args one by one", lambda: kayn.fit(flat, Y, {}, Y), KaynError, "args is ndarray", "tuple", "args=(x, y)"),
    case("kwargs is a list", lambda: kayn.fit(flat, (), [Y]), KaynError, "kwargs is list", "mapping"),
    *(
        case(
            f"num_steps is {n!r}", lambda n=n: kayn.fit(flat, (Y,), num_steps=n), KaynError,
            "num_steps", repr(n), "at least 1",
        )
        for n in (0, 2.5, True)
    ),
    case("num_steps, QEM", lambda: QEM(flat).run(0, 0, Y), KaynError, "num_steps is 0"),
    case(
        "params is the data", lambda: Importance(flat).run(0, Y), KaynError,
        "params is ndarray", "numpyro.param names", "None",
    ),
    case(
        "params is NaN", lambda: Importance(flat).run(0, {"kayn:mu:loc": np.nan}, Y), KaynError,
        "params['kayn:mu:loc'] holds NaN",
    ),
    case(
        "params of no site", lambda: Importance(flat).run(0, {"kayn:mu:lco": 1.0}, Y), KaynError,
        "'kayn:mu:lco'", "numpyro.param", "kayn:mu:loc",
    ),
    case(
        "params of no site in fit", lambda: kayn.fit(flat, args=(Y,), params={"nu": 1.0}, progress=False), KaynError,
        "'nu'", "numpyro.param",
    ),
    case("QEM rate is a word", lambda: QEM(flat, rate="fast"), KaynError, "rate is 'fast'", "(0, 1]"),
    case(
        "QEM proposals narrower", lambda: QEM(flat, overdispersion=-0.5), KaynError,
        "overdispersion is -0.5", "0 or more",
    ),
    case(
        "params of another shape", lambda: Importance(flat).run(0, {"kayn:mu:loc": np.zeros(3)}, Y), KaynError,
        "'kayn:mu:loc'", "(3,)", "()",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "fragments"), OPTIONS)
def test_options(call, error, fragments):
    refused(call, error, *fragments)


KEYS = [1.5, "seed", True, None, [1, 2], np.array([1, 2, 3]), jnp.array(True), np.float32(1.0)]


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_keys_of_the_wrong_kind(key):
    refused(lambda: Importance(flat).run(key, None, Y), KaynError, "rng_key is", "int seed or jax.random.key(seed)")


def test_an_array_of_keys():
    keys = jax.random.split(jax.random.key(0), 3)
    refused(
        lambda: Importance(flat).run(keys, None, Y), KaynError, "array of keys of shape (3,)", "one key", "jax.vmap"
    )
    refused(lambda: QEM(flat).init(keys, Y), KaynError, "array of keys")
    refused(lambda: kayn.fit(flat, (Y,), rng_key="seed"), KaynError, "rng_key is str 'seed'")


# -- fitting

FITTING = [
    *(
        case(
            f"QEM with {name}", lambda fn=fn: QEM(flat, guide_of(mu=fn)).init(0, Y), GuideError,
            "'mu'", name, "MultivariateNormal", "kayn.RWS or kayn.VI",
        )
        for name, fn in {"StudentT": dist.StudentT(3.0, 0.0, 1.0), "Cauchy": dist.Cauchy(0.0, 1.0)}.items()
    ),
    case(
        "QEM with a dependent guide", lambda: QEM(chain, dependent_guide).init(0, 0.3), GuideError,
        "'theta' depends on 'mu'", "independent", "kayn.RWS",
    ),
    case(
        "QEM with a guide that misses a latent", lambda: QEM(chain, guide_of(mu=NORMAL)).init(0, 0.3), GuideError,
        "'theta' has no guide site",
    ),
    case(
        "QEM with a guide that adds a site", lambda: QEM(flat, guide_of(mu=NORMAL, nu=NORMAL)).init(0, Y), GuideError,
        "'nu'", "one site for each latent",
    ),
    case("QEM before init", lambda: QEM(flat).update(None), KaynError, "QEM.init", "before update"),
    case("QEM parameters before init", lambda: QEM(flat).get_params(None), KaynError, "QEM.init"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "fragments"), FITTING)
def test_fitting(call, error, fragments):
    refused(call, error, *fragments)


def svi_step(model, guide, loss, *args):
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), loss=loss)
    return svi, jax.eval_shape(lambda key: svi.update(svi.init(key, *args), *args)[0], jax.random.key(0))


def test_objectives_refuse_guides_they_cannot_use():
    def discrete_guide(y):
        sample("z", dist.Bernoulli(numpyro.param("p", 0.5)))

    refused(
        lambda: svi_step(coin, discrete_guide, VI(3), 0.3),
        GuideError,
        "kayn.VI",
        "'z' is discrete",
        "kayn.RWS",
        "parallel",
    )
    refused(lambda: svi_step(flat, AutoDelta(flat), VI(3), Y), GuideError, "'mu'", "AutoDelta")
    refused(lambda: svi_step(flat, guide_of(), RWS(3), Y), GuideError, "'mu' has no guide site")
    refused(
        lambda: svi_step(flat, guide_of(mu=NORMAL), VI(3, denominator="average"), Y),
        GuideError,
        "'average'",
        "'mixture'",
    )


def test_missing_numbers_of_a_subsample_under_jit():
    broken = np.array([0.1, np.nan, 0.3, 0.4])

    def model():
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("rows", 4, subsample_size=2) as rows:
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=jnp.asarray(broken)[rows])

    def guide():
        numpyro.sample("mu", dist.Normal())

    run = jax.jit(lambda key: Importance(model, guide, num_particles=3).run(key, {}).log_evidence)
    refused(lambda: run(jax.random.key(0)), DataError, "1 NaN", "at 1", "'y'")


def test_autoguide_first_used_under_jit():
    """It would keep tracers of its model, and fail from then on."""
    guide = AutoNormal(flat)
    run = jax.jit(lambda key: Importance(flat, guide, num_particles=3).run(key, None, Y).log_evidence)
    refused(lambda: run(jax.random.key(0)), GuideError, "AutoNormal", "jax.jit", "call it once before")
    numpyro.handlers.seed(guide, 0)(Y)
    assert np.isfinite(run(jax.random.key(0)))


def test_shapes_that_change_between_svi_steps():
    svi, state = svi_step(ragged, AutoNormal(ragged), VI(3), COUNTY, Y)
    refused(
        lambda: jax.eval_shape(lambda s: svi.update(s, COUNTY, Y, J=5), state), GuideError, "'alpha'", "(3,)", "(5,)"
    )


@pytest.fixture(scope="module")
def stepper():
    qem = QEM(ragged, num_particles=4)
    return qem, qem.init(0, COUNTY, Y)


def test_qem_update_with_other_data(stepper):
    qem, state = stepper
    refused(lambda: qem.update(state, COUNTY, Y, J=5), GuideError, "'alpha'", "(3,)", "(5,)", "plates")
    refused(lambda: qem.update(state, COUNTY, np.full(4, np.nan)), DataError, "'y'", "4 NaN")
    refused(lambda: qem.update(state, np.array([0, 1, 2, 3]), Y), DataError, "'alpha'", "index 3")


def test_qem_update_uses_the_data_it_is_given(stepper):
    qem, state = stepper
    start = qem.update(state)[1]
    np.testing.assert_allclose(qem.update(state, COUNTY, Y)[1], start, rtol=1e-6)
    update = jax.jit(qem.update)
    np.testing.assert_allclose(update(state, COUNTY, Y)[1], start, rtol=1e-5)
    moved = update(state, COUNTY, Y + 5)[1]
    assert moved < start - 5
    np.testing.assert_allclose(
        update(state, COUNTY[:2], Y[:2])[1],
        QEM(ragged, num_particles=4).run(0, 1, COUNTY[:2], Y[:2]).log_evidence[0],
        atol=1.0,
    )


# -- questions to a posterior


@pytest.fixture(scope="module")
def posterior():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Importance(ragged, num_particles=8, num_replicates=2).run(0, None, COUNTY, Y)


QUERIES = [
    *(
        case(
            f"{query} of an unknown site", lambda p, q=query: getattr(p, q)("nu"),
            QueryError, "'nu' is no site of the model", "['mu', 'alpha']", "['twice']",
        )
        for query in ("mean", "std", "weights", "ess", "khat", "probabilities")
    ),
    *(
        case(
            f"{query} of an observed site", lambda p, q=query: getattr(p, q)("y"),
            QueryError, "'y' is an observed site", "['mu', 'alpha']",
        )
        for query in ("mean", "std", "weights")
    ),
    case(
        "weights of a deterministic site", lambda p: p.weights("twice"), QueryError,
        "'twice' is a deterministic site", "mean, std",
    ),
    case("expectation of an unknown site", lambda p: p.expectation(lambda x: x, "nu"), QueryError, "'nu' is no site"),
    case(
        "expectation of an observed site", lambda p: p.expectation(lambda x: x, "y"), QueryError,
        "'y' is an observed site",
    ),
    case(
        "expectation of too many latents", lambda p: p.expectation(lambda x: x, "mu", "alpha"), QueryError,
        "for every argument", "'mu', 'alpha'",
    ),
    case(
        "expectation without arguments", lambda p: p.expectation(lambda: 1.0), QueryError,
        "name of a latent for every argument",
    ),
    case(
        "expectation of an argument of another name", lambda p: p.expectation(lambda x: x), QueryError,
        "'x' is no site",
    ),
    case(
        "expectation of a tuple", lambda p: p.expectation(lambda x: (x, x), "mu"), QueryError,
        "returned tuple", "one array",
    ),
    case("covariance with an unknown site", lambda p: p.covariance("mu", "nu"), QueryError, "'nu' is no site"),
    case(
        "probabilities of a continuous latent", lambda p: p.probabilities("mu"), QueryError,
        "'mu' is continuous", "mean() and std()",
    ),
    *(
        case(f"num_samples is {n!r}", lambda p, n=n: p.sample(0, n), QueryError, "num_samples", repr(n), "at least 1")
        for n in (0, -1, 2.5, "7", True)
    ),
    case("draws with a key of the wrong kind", lambda p: p.sample(0.5, 3), KaynError, "rng_key is float 0.5"),
    case(
        "predictive without a number", lambda p: p.predictive(0, COUNTY), QueryError,
        "num_samples is ndarray", "whole number",
    ),
    case("predictive, num_samples", lambda p: p.predictive(0, 0), QueryError, "num_samples is 0"),
    case(
        "predictive with a shrunken plate", lambda p: p.predictive(0, 5, np.array([0, 1]), J=2), QueryError,
        "'alpha' has 3 elements", "plate 'counties'", "2 under the new arguments", "new_plates=",
    ),
    case(
        "predictive with an index out of range", lambda p: p.predictive(0, 5, np.array([0, 7])), DataError,
        "'alpha'", "index 7", "0..2",
    ),
    case(
        "unknown plate in new_plates", lambda p: p.predictive(0, 5, COUNTY, new_plates=("county",)), QueryError,
        "new_plates=", "['county']", "['counties']",
    ),
    case(
        "new_plates over which no latent runs", lambda p: p.log_predictive(0, 5, COUNTY, Y, new_plates="rows"),
        QueryError,
        "['rows']", "['counties']",
    ),
    case(
        "log_predictive without arguments", lambda p: p.log_predictive(0, 5), QueryError,
        "held-out data", "log_likelihood",
    ),
    case(
        "log_predictive without data", lambda p: p.log_predictive(0, 5, COUNTY), QueryError,
        "no observed site", "y=...",
    ),
    case(
        "log_predictive of NaN", lambda p: p.log_predictive(0, 5, COUNTY, np.array([0.1, np.nan, 0, 0])), DataError,
        "'y'", "index (1,)",
    ),
    case("log_likelihood, num_samples", lambda p: p.log_likelihood(0, 0), QueryError, "num_samples is 0"),
    case(
        "coords of an unknown dimension", lambda p: p.to_datatree(coords={"county": [1, 2, 3]}), QueryError,
        "coords=", "'county'", "'counties'",
    ),
    case(
        "coords of wrong length", lambda p: p.to_datatree(coords={"counties": ["a", "b"]}), QueryError,
        "coords=", "(2,)", "'counties'", "3 elements",
    ),
    case("coords is a scalar", lambda p: p.to_datatree(coords={"counties": 3}), QueryError, "coords=", "'counties'"),
    case("coords is a list", lambda p: p.to_datatree(coords=["counties"]), QueryError, "coords is list", "mapping"),
    case("to_datatree, num_samples", lambda p: p.to_datatree(num_samples=0), QueryError, "num_samples is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "fragments"), QUERIES)
def test_queries(posterior, call, error, fragments):
    refused(lambda: call(posterior), error, *fragments)


def test_posterior_of_a_fit():
    fitted = kayn.fit(flat, (Y,), num_particles=3, num_steps=1, progress=False)
    refused(lambda: fitted.posterior(num_particles=0), StructureError, "num_particles is 0")
    refused(lambda: fitted.posterior(num_replicates=0), KaynError, "num_replicates is 0")
    refused(lambda: fitted.posterior(num_particles=3, num_replicates=1.5), KaynError, "num_replicates is 1.5")
    refused(lambda: fitted.posterior(rng_key="a"), KaynError, "rng_key is str 'a'")


def test_impossible_particles_are_reported():
    def model():
        p = sample("p", dist.Uniform(0.0, 1.0))
        numpyro.factor("never", jnp.where(p < 2, -jnp.inf, 0.0))

    with pytest.warns(kayn.PoorFitWarning, match=r"impossible.*-inf"):
        assert Importance(model, num_particles=3).run(0, None).log_evidence == -np.inf


def test_at_least_25_kinds():
    """What the tables hold, so that nothing is lost unnoticed."""
    kinds = {re.sub(r" is .*", "", p.id) for p in (*STRUCTURE, *DATA, *OPTIONS, *FITTING, *QUERIES)}
    assert len(kinds) > 80
    assert issubclass(KaynError, ValueError)
