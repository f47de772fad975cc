"""Events of independent elements: where each element is read by itself, it has particles of its own, and every answer
is that of the model without events."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import kayn
from kayn.axes.choose import choose_layout
from kayn.axes.request import make_request
from kayn.evidence.read import read_model
from kayn.evidence.unguided import inspected_for

GROUP = np.repeat(np.arange(6), 3).astype(np.int32)
X = np.linspace(-1, 1, 18, dtype=np.float32)
Y = (0.7 * np.sin(3.0 * GROUP) + 0.4 * np.cos(7 * np.arange(18))).astype(np.float32)


def grouped(form, y=Y):
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    law = dist.Normal(0.0, sd).expand([6])
    z = numpyro.sample("z", law.to_event(1) if form == "event" else law)
    # one positive scale a group
    law = dist.LogNormal(-0.5, 0.3).expand([6])
    noise = numpyro.sample("noise", law.to_event(1) if form == "event" else law)
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("rows", len(y)):
        at = z[GROUP] + jnp.stack([X, X**2], 1) @ beta
        numpyro.sample("y", dist.Normal(at, noise[GROUP]), obs=y)


@pytest.fixture(scope="module")
def fits():
    run = {"num_particles": 5, "num_steps": 8, "progress": False}
    return {form: kayn.fit(grouped, (form,), {"y": Y}, **run) for form in ("event", "plain")}


def test_elements_that_are_read_together_stay_together(fits):
    layout = fits["event"].posterior(escalate=False).problem.layout
    assert layout.axis_of("z").scope == ("z_dim_0",)
    assert layout.axis_of("noise").scope == ("noise_dim_0",)
    assert layout.axis_of("beta").scope == ()
    sites = fits["event"].posterior(escalate=False).problem.model.sites
    assert (sites["beta"].batch_shape, sites["beta"].freed) == ((), 0)


def test_answers_are_those_of_the_plain_model(fits):
    found, expected = (fits[form].posterior(escalate=False) for form in ("event", "plain"))

    def answers(posterior):
        return {
            "evidence": posterior.log_evidence,
            "moments": [(posterior.mean(n), posterior.std(n)) for n in ("sd", "z", "noise", "beta")],
            "sample": posterior.sample(0, 5),
            "mode": posterior.mode(),
            "predictive": posterior.predictive(0, 5)["y"],
            "log likelihood": posterior.log_likelihood(0, 5),
            "held out": posterior.log_predictive(0, 5, "event" if posterior is found else "plain", y=Y + 0.1).joint,
        }

    for a, b in zip(*map(jax.tree.leaves, (answers(found), answers(expected))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    dims = [p.to_datatree(0, 5)["posterior"]["z"].dims for p in (found, expected)]
    assert dims[0] == dims[1]


def test_files(fits, tmp_path):
    posterior = fits["event"].posterior(escalate=False)
    posterior.save(tmp_path / "posterior")
    again = kayn.load(tmp_path / "posterior", grouped)
    np.testing.assert_array_equal(again.mean("z"), posterior.mean("z"))


def test_other_estimators():
    """Those that are given kayn's own guide read the model by what that draws."""

    def evidence(form, method):
        fit = kayn.fit(grouped, (form,), {"y": Y}, method=method, num_particles=4, num_steps=3, progress=False)
        assert fit.posterior(escalate=False).problem.layout.axis_of("z").scope == ("z_dim_0",)
        return fit.posterior(escalate=False).log_evidence

    for method in ("vi", "rws"):
        np.testing.assert_allclose(evidence("event", method), evidence("plain", method), rtol=1e-5)


def test_events_in_plates():
    """Rows of a minibatch with an event each, and plates beside."""
    data = np.arange(12, dtype=np.float32).reshape(6, 2) / 6

    def model(form):
        sd = numpyro.sample("sd", dist.HalfNormal(1.0))
        with numpyro.plate("rows", 6, subsample_size=3, dim=-1 if form == "event" else -2) as rows:
            y, law = jnp.asarray(data)[rows], dist.Normal(0.0, sd).expand([3, 2])
            if form == "event":
                z = numpyro.sample("z", law.to_event(1))
                numpyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)
            else:
                with numpyro.plate("columns", 2):
                    numpyro.sample("y", dist.Normal(numpyro.sample("z", law), 1.0), obs=y)

    posteriors = [kayn.Importance(model, num_particles=4).run(0, None, form) for form in ("event", "plain")]
    scopes = [len(p.problem.layout.axis_of("z").scope) for p in posteriors]
    assert scopes == [2, 2]
    np.testing.assert_allclose(*(p.log_evidence for p in posteriors), rtol=1e-5)


PAIR = np.array([[1.0, 0.0], [0.4, 0.9]], np.float32)
PAIRS = {
    "groups last": ((2, 6), lambda z: PAIR @ z, 1),
    "groups first": ((6, 2), lambda z: (z @ PAIR.T).T, 0),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_matrix_is_freed_where_one_of_its_dimensions_is_read_together(case):
    """Correlated lines of groups, against the evidence of their rows: within five times what other keys change."""
    shape, lines, groups = PAIRS[case]

    def model(y):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand(shape).to_event(2))
        first, slope = lines(z)
        with numpyro.plate("rows", 18):
            numpyro.sample("y", dist.Normal(first[GROUP] + slope[GROUP] * X, 0.5), obs=y)

    problem = kayn.analyze(model, Y)
    assert problem.layout.axis_of("z").scope == (f"z_dim_{groups}",)
    design = np.stack([np.ones(18), X], 1)
    same = GROUP[:, None] == GROUP
    covariance = same * (design @ PAIR @ PAIR.T @ design.T) + 0.25 * np.eye(18)
    right = multivariate_normal(np.zeros(18), covariance).logpdf(Y)
    posterior = kayn.fit(model, (Y,), progress=False, num_particles=30).posterior()
    assert abs(float(posterior.log_evidence) - right) < 0.05


def crossed(*sizes):
    """Rows of a table: a latent in a plate of two and events of these sizes, each read by an index of its own."""
    rows, rng = np.arange(280), np.random.default_rng(0)
    at = [rng.permutation(rows) % size for size in sizes]

    def model(plate):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        total = 0.0
        if plate:
            with numpyro.plate("pair", 2):
                total = numpyro.sample("a", dist.Normal(mu, 1.0))[rows % 2]
        for i, (size, index) in enumerate(zip(sizes, at, strict=True)):
            z = numpyro.sample(f"z{i}", dist.Normal(mu, 1.0).expand([size]).to_event(1))
            total = total + z[index]
        with numpyro.plate("rows", rows.size):
            numpyro.sample("y", dist.Normal(total, 1.0), obs=np.sin(rows).astype(np.float32))

    return model


@pytest.mark.parametrize(
    ("sizes", "plate", "free"),
    [
        ((5,), False, {"z0"}),
        ((5,), True, set()),  # the plate's latent would give up its index
        ((70,), True, {"z0"}),  # too long for a covariance
        ((3, 5), False, {"z1"}),  # the shorter would gain none: its groups cross those of the longer
        ((70, 5), True, {"z0"}),
    ],
)
def test_short_events_stay_together_where_others_would_lose(sizes, plate, free):
    request = make_request()
    inspected = inspected_for(None, crossed(*sizes), (plate,), {}, {}, request)
    assert {n for n, s in inspected.sites.items() if s.freed} == free
    structure = read_model(inspected).structure
    layout = choose_layout(structure, request)
    own = {n for n in structure.graph.latent_names if layout.axis_of(n).scope}
    assert own == free | ({"a"} if plate and "z0" not in free else set())
