"""Names that collide with what kayn adds change nothing: every model is fitted,
asked and exported under hostile names too."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, Predictive

import kayn
from kayn.axes.types import axis_name
from kayn.errors import GuideError, ModelError
from kayn.factors import choose_form
from kayn.programs.given import Given
from kayn.support.names import fresh, joined, parameter

Y = jnp.array([[1.3, 2.1, 0.4, 1.7], [0.2, -0.9, 0.8, -0.4], [-1.0, 0.3, 0.1, 0.6]])
GROUP = jnp.array([0, 2, 1, 0, 2])
ROWS = jnp.array([0.4, 1.9, -0.7, 0.9, 1.2])
SEEN = np.array([True, True, False, True, False])


def hierarchy(n):
    mu = numpyro.sample(n("a"), dist.Normal(0.0, 1.0))
    numpyro.deterministic(n("b"), 3.0 * mu)
    with numpyro.plate(n("c"), 3):
        alpha = numpyro.sample(n("d"), dist.Normal(mu, 1.0))
    with numpyro.plate(n("e"), 4, dim=-1), numpyro.plate(n("f"), 3, dim=-2):
        numpyro.sample(n("g"), dist.Normal(alpha[:, None], numpyro.param(n("h"), 0.7)), obs=Y)


def ragged(n):
    with numpyro.plate(n("a"), 3):
        alpha = numpyro.sample(n("b"), dist.Normal(0.0, 1.0))
        spread = numpyro.sample(n("c"), dist.LogNormal(0.0, 0.3))
    numpyro.sample(n("d"), dist.Normal(alpha[GROUP], spread[GROUP]), obs=ROWS)


def masked(n):
    mu = numpyro.sample(n("a"), dist.Normal(0.0, 1.0))
    with numpyro.plate(n("b"), 5), handlers.mask(mask=SEEN):
        numpyro.sample(n("c"), dist.Normal(numpyro.deterministic(n("d"), 2.0 * mu), 1.0), obs=ROWS)


def series(n):
    rate = numpyro.sample(n("a"), dist.Normal(0.5, 0.3))

    def step(z, y):
        z = numpyro.sample(n("b"), dist.Normal(rate * z, 1.0))
        numpyro.sample(n("c"), dist.Normal(z, 0.5), obs=y)
        return z, None

    scan(step, jnp.zeros(()), ROWS)
    with numpyro.plate(n("d"), 2):
        numpyro.sample(n("e"), dist.Normal(rate, 1.0), obs=ROWS[:2])


def enumerated(n):
    with numpyro.plate(n("a"), 2):
        mu = numpyro.sample(n("b"), dist.Normal(jnp.array([-1.0, 1.0]), 0.5))
    with numpyro.plate(n("c"), 5):
        z = numpyro.sample(n("d"), dist.Categorical(jnp.array([0.4, 0.6])), infer={"enumerate": "parallel"})
        numpyro.sample(n("e"), dist.Normal(mu[z], 0.7), obs=ROWS)


MODELS = [hierarchy, ragged, masked, series, enumerated]
HOSTILE = {
    "guide parameters": ["mu", "mu_loc", "mu_scale", "mu_loc_loc", "mu:loc", "loc", "mu_scale_tril", "scale"],
    "programs and axes": ["value:a", "data:a", "argument:loc:a", "K[a]", "proposal:K[a]", "a+b", "a", "b"],
    "plates and steps": ["x_dim_0", "x", "time", "scan_time", "time_5", "z@t-1", "z", "K[z@t-1]"],
    "results and signs": ["log_z", "notes", "a/b", "a.b", "a, b", "a['b']", "\\", "+"],
}


def plain(name):
    return f"site_{name}"


def renamed(table):
    """Hostile names by letter, in alphabetical order as the letters are."""
    ordered = sorted(table)
    return lambda letter: ordered["abcdefgh".index(letter)]


def sorted_alike(names):
    """Whether axes sort as their latents do; which random number goes to which axis of a scope depends on that,
    and nothing else does."""
    return sorted(names) == sorted(names, key=lambda n: axis_name([n]))


def answers(model, n):
    """Everything that is said of a model, under its plain names."""
    found = kayn.Importance(lambda: model(n), None, 8, num_replicates=2).run(0, None)
    back = {n(letter): plain(letter) for letter in "abcdefgh"}
    moments = {back[z]: (found.mean(z), found.std(z)) for z in (*found.latent_names, *found.deterministic_names)}
    weights = {back[z]: found.weights(z) for z in found.latent_names}
    drawn = [found.sample(1, 5), found.predictive(2, 5), found.log_likelihood(3, 5)]

    def by_letter(values):
        return {back[z]: v for z, v in values.items()}

    exact = {
        "log evidence": found.log_evidences,
        "moments": moments,
        "weights": weights,
        "mode": by_letter(found.mode()),
    }
    return exact, [by_letter(v) for v in drawn], found


@pytest.fixture(scope="module")
def right():
    return {model: answers(model, plain)[:2] for model in MODELS}


def same(found, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, right)


@pytest.mark.filterwarnings("ignore::kayn.errors.KaynWarning")
@pytest.mark.parametrize(
    ("model", "kind"),
    [(MODELS[(i + j) % 5], kind) for i, kind in enumerate(HOSTILE) for j in range(3)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_hostile_names(right, model, kind):
    exact, drawn, posterior = answers(model, renamed(HOSTILE[kind]))
    same(exact, right[model][0])
    if sorted_alike(posterior.latent_names):
        same(drawn, right[model][1])
    tree = posterior.to_datatree(0, 3)
    assert len(tree["posterior"].data_vars) == len(exact["moments"])
    assert len(tree["log_likelihood"].data_vars) == len(drawn[2])
    assert all(v.dims[:2] == ("chain", "draw") for v in tree["posterior"].data_vars.values())


def normal_guide(name):
    """A guide of a scalar `mu` whose parameter has a name of the user's choice."""

    def guide():
        numpyro.sample("mu", dist.Normal(numpyro.param(name, 0.5), 0.6))

    return guide


def tripled(data, det):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 5):
        numpyro.sample(data, dist.Normal(numpyro.deterministic(det, 3.0 * mu), 1.0), obs=ROWS)


@pytest.mark.parametrize(
    "loss", [kayn.VI(4), kayn.VIMCO(4), kayn.RWS(4), kayn.RWS(4, sleep_phi=1.0)], ids=lambda x: type(x).__name__
)
def test_parameters_of_a_guide_called_like_the_models_sites(loss):
    """Loss and gradient do not depend on what a parameter is called: not like data,
    a deterministic site or a plate either."""
    data, replace = {}, None
    if getattr(loss, "sleep_phi", 0):
        replace = lambda dream: ((), {})  # noqa: E731
        loss = kayn.RWS(4, sleep_phi=1.0, replace=replace)
    for name in ("w", "y", "d", "rows"):
        value, gradient = jax.value_and_grad(
            lambda p, name=name: loss.loss(jax.random.key(0), {name: p}, lambda: tripled("y", "d"), normal_guide(name))
        )(0.4)
        data[name] = value, gradient
        np.testing.assert_allclose(data[name], data["w"], rtol=1e-6)
    assert abs(data["w"][1]) > 1e-3


def test_numpyro_runs_the_default_guide_of_every_name():
    def model():
        loc = numpyro.sample("alpha_loc", dist.Normal(0.0, 1.0))
        scale = numpyro.sample("alpha_scale", dist.LogNormal(0.0, 0.2))
        with numpyro.plate("groups", 3):
            alpha = numpyro.sample("alpha", dist.Normal(loc, scale))
            numpyro.sample("y", dist.Normal(alpha, 1.0), obs=ROWS[:3])

    guide = kayn.FactorisedGuide.from_model(model)
    assert set(guide.start) == {
        parameter("alpha_scale", "skew"),
        *(parameter(z, p) for z in ("alpha", "alpha_loc", "alpha_scale") for p in ("loc", "scale")),
    }
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), kayn.VI(4))
    state, _ = svi.update(svi.init(jax.random.key(0)))
    params = svi.get_params(state)
    assert set(params) == set(guide.start)
    drawn = Predictive(guide, params=params, num_samples=2)(jax.random.key(0))
    assert set(drawn) == {"alpha", "alpha_loc", "alpha_scale"}
    assert set(handlers.trace(handlers.seed(guide, 0)).get_trace()) >= set(params) | set(drawn)


SITES = {
    "sample": lambda name: numpyro.sample(name, dist.Normal(0.0, 1.0)),
    "param": lambda name: numpyro.param(name, 0.0),
    "deterministic": lambda name: numpyro.deterministic(name, 1.0),
    "plate": lambda name: numpyro.plate(name, 2),
}


@pytest.mark.parametrize("kind", SITES)
def test_the_prefix_is_refused_in_models(kind):
    def model():
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        SITES[kind]("kayn:mu:loc")

    for run in (lambda: kayn.analyze(model), lambda: kayn.Importance(model, normal_guide("w")).run(0, None)):
        with pytest.raises(ModelError, match=f"{kind} site 'kayn:mu:loc'.*rename"):
            run()


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in SITES for b in SITES if a != b])
def test_one_name_for_sites_of_two_kinds_is_refused(first, second):
    """NumPyro's trace keeps the second only where that is a plate or a parameter:
    a latent would be lost without a word."""

    def model():
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        SITES[first]("x")
        SITES[second]("x")

    with pytest.raises(ModelError, match=r"['`]x['`]"):
        kayn.Importance(model, normal_guide("w")).run(0, None)


def test_a_plate_inside_a_loop_called_like_a_latent_is_refused():
    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

        def step(before, _):
            z = numpyro.sample("z", dist.Normal(before, 1.0))
            with numpyro.plate("x", 2):
                numpyro.sample("y", dist.Normal(z, 1.0), obs=jnp.zeros(2))
            return z, None

        scan(step, 0.0, None, length=3)

    with pytest.raises(ModelError, match="'x' is the name of a sample site and of a plate site"):
        kayn.Importance(model).problem(None)


@pytest.mark.parametrize(("name", "kind"), [("y", "observed"), ("d", "deterministic"), ("rows", "plate")])
def test_auxiliary_sites_called_like_the_models_are_refused(name, kind):
    def guide():
        aux = numpyro.sample(name, dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        numpyro.sample("mu", dist.Normal(aux, 1.0))

    with pytest.raises(GuideError, match=f"'{name}' is not a latent of the model .*{kind}"):
        kayn.Importance(lambda: tripled("y", "d"), guide).run(0, None)


def test_values_go_into_sites_of_their_kind_that_have_none():
    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=2.0)
        numpyro.deterministic("d", x)
        w = numpyro.param("w", 0.0)
        with numpyro.plate("rows", 4, subsample_size=2) as rows:
            return x, w, rows

    every = dict.fromkeys(("x", "y", "d", "w", "rows"), jnp.array([7, 8]))
    run = handlers.seed(Given(model, params=every), 0)
    trace = handlers.trace(run).get_trace()
    assert [np.size(trace[n]["value"]) for n in ("x", "y", "d", "w")] == [1, 1, 1, 2]
    trace = handlers.trace(handlers.seed(Given(model, latents=every), 0)).get_trace()
    assert [np.size(trace[n]["value"]) for n in ("x", "y", "d", "w")] == [2, 1, 2, 1]
    trace = handlers.trace(handlers.seed(Given(model, subsample=every), 0)).get_trace()
    assert list(trace["rows"]["value"]) == [7, 8]
    inner = handlers.substitute(model, {"x": 5.0, "w": 6.0})
    trace = handlers.trace(handlers.seed(Given(inner, params=every, latents=every), 0)).get_trace()
    assert trace["x"]["value"] == 5.0
    assert trace["w"]["value"] == 6.0


def test_names_that_are_made_are_distinct():
    groups = [["a+b"], ["a", "b"], ["a+", "b"], ["a", "+b"], ["a\\", "b"], ["a\\+b"], ["a", "b", ""]]
    assert len({joined(g) for g in groups}) == len(groups)
    assert fresh("time", {"x"}) == "time"
    assert fresh("time", {"time", "time_2"}) == "time_3"


def test_names_that_graphviz_would_read_otherwise():
    """A colon begins a port there, and backslash and letter are an escape."""
    pytest.importorskip("graphviz")

    def model():
        a = numpyro.sample("a:b", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 3):
            numpyro.sample("y\\l", dist.Normal(a, 1.0), obs=jnp.ones(3))

    source = kayn.analyze(model).render().source
    nodes = dict(re.findall(r'(\w+) \[label="([^\n"]*)', source))
    assert sorted(nodes.values()) == ["a:b", "y\\\\l"]
    (first, second) = re.search(r"(\w+) -> (\w+)", source).groups()
    assert (nodes[first], nodes[second]) == ("a:b", "y\\\\l")


def test_steps_get_a_name_that_no_site_has():
    def model(latent, data):
        def step(z, y):
            z = numpyro.sample(latent, dist.Normal(z, 1.0))
            numpyro.sample(data, dist.Normal(z, 0.5), obs=y)
            return z, None

        scan(step, jnp.zeros(()), ROWS)

    found = [
        kayn.Importance(model, None, 8).run(0, None, *names).log_evidence
        for names in (("s", "t"), ("time", "scan_time"), ("scan_time", "time"))
    ]
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


@pytest.mark.parametrize("method", ["vi", "rws", "train"])
def test_a_parameter_called_like_a_plate_is_refused_where_numpyro_cannot_tell_them_apart(method):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 5):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        numpyro.sample("mu", dist.Normal(numpyro.param("rows", 0.5), 0.5))

    def trained():
        phase = kayn.Phase(kayn.VI(2), optax.adam(0.1))
        kayn.train(model, guide, phase, np.asarray(ROWS), batch_size=5, num_steps=1, progress=False)

    def fitted():
        kayn.fit(model, (ROWS,), guide=guide, method=method, num_steps=1, progress=False)

    assert np.isfinite(kayn.Importance(model, guide, 5).run(0, None, ROWS).log_evidence)
    with pytest.raises(GuideError, match="'rows' is a plate of the model and a site of another kind in the guide"):
        (trained if method == "train" else fitted)()


def absent_if(name):
    """A latent that another one decides about: absent, it keeps its prior."""

    def model(y):
        gate = numpyro.sample("gate", dist.Normal(0.0, 1.0))
        with handlers.mask(mask=gate > 0):
            numpyro.sample(name, dist.Normal(0.5 * gate, 1.0).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(gate, 1.0), obs=y)

    def guide(y):
        numpyro.sample("gate", dist.Normal(0.2, 1.1))
        numpyro.sample(name, dist.Normal(0.3, 1.3).expand([3]).to_event(1))

    return model, guide


def test_a_colon_in_the_name_of_a_latent_that_may_be_absent(monkeypatch):
    monkeypatch.setattr(choose_form, "MIN_WORK", 0)
    monkeypatch.setattr(choose_form, "MIN_GAIN", 1e-9)
    log_z = [float(kayn.Importance(*absent_if(n), 20).run(0, None, 0.3).log_evidence) for n in ("h", "h:h")]
    assert log_z[0] == pytest.approx(log_z[1], abs=1e-5)


def test_random_numbers_are_told_of_by_whole_names():
    def model():
        noise = jax.random.normal(numpyro.prng_key())
        numpyro.sample("a:b", dist.Normal(noise, 1.0), obs=0.3)

    with pytest.raises(ModelError, match="site 'a:b' of the model depends on random numbers"):
        kayn.Importance(model, None, 5).run(0, None)
