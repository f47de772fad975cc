"""What the time of a step decides: which latents share an index, and where more particles are affordable."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn.axes.choose import settled
from kayn.axes.more import MORE, with_more_for_groups, with_more_for_shared
from kayn.axes.request import USUAL, make_request
from kayn.axes.rules.by_cost import OPERATIONS, contracting, evaluating, operations, slow_contraction, slow_factor
from kayn.axes.types import axis_of
from kayn.evidence.read import read_model
from kayn.graph.types import MIXED
from kayn.programs.sites import Inspected
from tests.axes.graphs import PLATES, apply, state, structure, told


def with_work(found, **work):
    """A structure whose factors take so many operations: name -> {letters of latents: operations}."""

    def counted(output):
        mine = tuple((tuple(names), float(n)) for names, n in work.get(output.name, {}).items())
        return replace(output, work=mine)

    return replace(found, graph=replace(found.graph, outputs=tuple(map(counted, found.graph.outputs))))


def reads(names, plates=""):
    return (plates, {z: {} for z in names})


def test_operations_are_repeated_for_what_they_depend_on():
    """A latent's own function of a thousand rows costs its own particles, what joins two of them all pairs."""
    x = jnp.linspace(0.0, 1.0, 1000)

    def model():
        a, b = numpyro.sample("a", dist.Normal(0.0, 1.0)), numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.factor("own", jnp.tanh(a * x).sum())
        numpyro.factor("both", jnp.sin(a * x + b).sum() + jnp.tanh(b * x).sum())

    graph = read_model(Inspected.of(model, (), {}, {})).structure.graph
    own, both = dict(graph.output("own").work), dict(graph.output("both").work)
    assert own == {("a",): 1000 + 4 * 1000 + 1000}  # the product, four for each tanh, the sum
    assert both == {("a",): 1000, ("a", "b"): 1000 + 4 * 1000 + 1000 + 1, ("b",): 6000}


def test_special_functions_of_a_density_are_counted_where_their_parameters_vary():
    """The log Beta function of a Beta density takes three special functions, each of 32 operations for its own
    latents and elements; a Gamma's rate none."""

    def model():
        a, b = numpyro.sample("a", dist.LogNormal(0.0, 1.0)), numpyro.sample("b", dist.LogNormal(0.0, 1.0))
        numpyro.sample("x", dist.Beta(a * jnp.arange(1, 8), b).to_event(1), obs=jnp.full(7, 0.5))
        numpyro.sample("y", dist.Gamma(a, b), obs=0.5)

    graph = read_model(Inspected.of(model, (), {}, {})).structure.graph
    x, y = dict(graph.output("x").work), dict(graph.output("y").work)
    assert (x[("a",)], x[("b",)], x[("a", "b")]) == (7 + 7 * 32, 32, 7 * 32)
    assert y[("a",)] == 32 and not y.get(("b",))


def test_triangular_systems_of_a_density_are_counted_where_location_and_covariance_vary():
    """Rows of a regression with correlated errors: 60 x 60 operations for every pair of slope and covariance. With a
    covariance of data, and without a location that varies, either side of a product solves its own."""
    apart = jnp.abs(jnp.arange(60.0)[:, None] - jnp.arange(60.0))

    def model():
        b, rho = numpyro.sample("b", dist.Normal(0.0, 1.0)), numpyro.sample("rho", dist.LogNormal(0.0, 1.0))
        x, y, cov = jnp.linspace(0.0, 1.0, 60), jnp.zeros(60), jnp.exp(-rho * apart) + 0.1 * jnp.eye(60)
        numpyro.sample("both", dist.MultivariateNormal(b * x, cov), obs=y)
        numpyro.sample("covariance", dist.MultivariateNormal(x, cov), obs=y)
        numpyro.sample("location", dist.MultivariateNormal(b * x, jnp.exp(-apart) + 0.1 * jnp.eye(60)), obs=y)

    graph = read_model(Inspected.of(model, (), {}, {})).structure.graph
    pair = ("b", "rho")
    assert [dict(graph.output(n).work).get(pair) for n in ("both", "covariance", "location")] == [3600, None, None]


def test_matrix_products_count_for_less():
    """Eight multiply-adds of a product in the time of one operation."""
    matrix = jnp.ones((60, 40))

    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(40), 1.0).to_event(1))
        numpyro.factor("f", jnp.max(matrix @ z))

    work = dict(read_model(Inspected.of(model, (), {}, {})).structure.graph.output("f").work)
    assert work == {("z",): 60 * 40 / 8 + 60}


def test_operations_inside_loops_and_calls():
    def model():
        a, b = numpyro.sample("a", dist.Normal(0.0, 1.0)), numpyro.sample("b", dist.Normal(0.0, 1.0))

        def step(carry, x):
            return jnp.exp(carry * a), x * b

        last, out = jax.lax.scan(step, jnp.ones(()), jnp.ones(50))
        numpyro.factor("f", last + out.sum())

    work = dict(read_model(Inspected.of(model, (), {}, {})).structure.graph.output("f").work)
    assert work["a",] == pytest.approx(50 * 5)
    assert work["b",] == pytest.approx(50 + 50)


def test_a_slow_factor_joins_what_leaves_least_to_do():
    found = structure(PLATES, {"a": "i", "b": "i", "c": "i"}, {"y": reads("abc", "i")})
    found = with_work(found, y={"ab": 10.0, "abc": 1.0, "c": 5.0})
    start = state(found, num_particles=10, target_elements=3)
    assert evaluating(start, start.case.graph.output("y")) == 10 * 100 + 1000 + 50
    merged = apply(slow_factor, start, "y")
    assert told(merged) == ({"ab": "i", "c": "i"}, "a, b: share one particle axis (y would take 2e+03 operations)")
    assert apply(slow_factor, merged, "y") is None  # 10 * 10 + 100 + 50
    assert apply(slow_factor, state(found, num_particles=10, target_elements=2050 // OPERATIONS + 1), "y") is None


def test_a_slow_factor_keeps_indices_over_plates():
    """A group's latent and the population's do not share an index, however slow."""
    found = structure(PLATES, {"a": "i", "m": ""}, {"y": reads("am", "i")})
    found = with_work(found, y={"am": 1e9})
    assert apply(slow_factor, state(found, num_particles=10), "y") is None


def test_a_slow_contraction_joins_latents_without_plates_first():
    """Four elements of z, whose 30 particles meet those of a, b and c: 3e6 combinations, or 1e5 where two share."""
    graph = {"z": reads("zab", "i"), "y": reads("zc", "i")}
    found = structure(PLATES, {"z": "i", "a": "", "b": "", "c": ""}, graph)
    start = state(found, target_elements=10_000)
    assert 4 * 30**4 <= contracting(start.plan) < 5 * 30**4
    changed = apply(slow_contraction, start)
    axes, why = told(changed)
    assert axes == {"z": "i", "ab": "", "c": ""}
    took = f"{contracting(start.plan):.2g}"
    assert why == f"a, b: share one particle axis (the contraction would take {took} multiply-adds)"
    assert apply(slow_contraction, changed) is None
    # where a number is given, and where there is time
    assert apply(slow_contraction, state(found, num_particles=USUAL, target_elements=10_000)) is None
    assert apply(slow_contraction, state(found)) is None


def test_a_slow_contraction_joins_latents_of_the_same_plates():
    found = structure(PLATES, {"u": "i", "v": "i", "a": ""}, {"p": reads("uva", "i")})
    changed = apply(slow_contraction, state(found, target_elements=300))
    assert told(changed)[0] == {"uv": "i", "a": ""}
    alone = structure(PLATES, {"u": "i", "a": ""}, {"p": reads("ua", "i")})
    assert apply(slow_contraction, state(alone, target_elements=2)) is None


def test_sums_over_rows_are_no_contraction():
    """Factors are summed over their rows while they are made."""
    found = structure({"i": 4, "n": 1000}, {"z": "i", "a": ""}, {"z": reads("za", "i"), "y": ("n", {"a": {}})})
    plan = state(found).plan
    assert plan.flops - contracting(plan) == 30 * 1000
    assert contracting(plan) < 4 * 30 * 30 * 3


def with_more(changed, begun):
    return with_more_for_groups(with_more_for_shared(changed, begun), begun)


def test_more_particles_for_what_shares_an_index():
    found = structure(PLATES, {"a": "i", "b": ""}, {"y": ("", {"a": {"i": MIXED}, "b": {}})})
    begun = state(found)
    changed = settled(begun)
    sizes = {a.name: a.size for a in with_more(changed, begun).axes}
    assert sizes == {axis_of(changed.axes, "a").name: MORE, axis_of(changed.axes, "b").name: USUAL}
    asked = state(found, num_particles=USUAL)
    assert {a.size for a in with_more(settled(asked), asked).axes} == {USUAL}


def test_more_particles_only_where_they_are_affordable():
    found = structure(PLATES, {"a": "i", "b": ""}, {"y": ("", {"a": {"i": MIXED}, "b": {}})})
    for work, sizes in ((2e5, {USUAL}), (1e5, {USUAL, MORE})):  # 6e8 operations with a hundred of one, or 3e8
        begun = state(with_work(found, y={"ab": work}))
        assert {a.size for a in with_more(settled(begun), begun).axes} == sizes


def test_more_particles_for_many_elements():
    """What is short with a hundred gets them, what would be long keeps the usual number."""
    small = structure({"i": 40}, {"a": "i", "m": ""}, {"a": reads("am", "i")})
    begun = state(small)
    assert {a.latents: a.size for a in with_more(begun, begun).axes} == {("a",): MORE, ("m",): USUAL}
    large = structure({"i": 400_000}, {"a": "i", "m": ""}, {"a": reads("am", "i")})
    begun = state(large)
    assert {a.size for a in with_more(begun, begun).axes} == {USUAL}


@pytest.mark.parametrize(("each", "size"), [(0.99, USUAL), (1.01, MORE)])
def test_more_particles_cost_no_more_than_their_elements_are_worth(each, size, monkeypatch):
    found = structure({"i": 40}, {"a": "i", "m": ""}, {"a": reads("am", "i")})
    begun = state(found)
    larger = begun.resized(next(a for a in begun.axes if a.scope), MORE)
    monkeypatch.setattr("kayn.axes.more.EACH", each * operations(larger) / 40)
    assert {a.latents: a.size for a in with_more(begun, begun).axes} == {("a",): size, ("m",): USUAL}


def test_a_number_that_is_given_is_kept():
    assert make_request(7).num_particles == 7
    assert not make_request(7).more
    assert make_request(None).num_particles == USUAL
    assert make_request(None).more


def test_four_latents_of_a_series():
    """Latents of a group in a series of many terms: an answer in seconds, right by quadrature over one group's own."""
    rng = np.random.default_rng(0)
    group, x = np.repeat(np.arange(6), 40), rng.normal(size=240)
    y = np.tanh(x) + 0.3 * rng.normal(size=240)
    nodes = jnp.linspace(-1.0, 1.0, 200)

    def model():
        with numpyro.plate("groups", 6):
            a, b, c, d = (numpyro.sample(n, dist.Normal(0.0, 1.0)) for n in "abcd")
        with numpyro.plate("rows", 240):
            inner = jnp.tanh(a[group, None] + (x * b[group])[:, None] + 1e-3 * c[group, None] * nodes)
            mean = inner.mean(-1) + 1e-3 * d[group]
            numpyro.sample("y", dist.Normal(mean, 0.3), obs=y)

    analysis = kayn.analyze(model)
    assert {a.latents for a in analysis.layout.axes} != {("a",), ("b",), ("c",), ("d",)}
    assert all(a.scope == ("groups",) for a in analysis.layout.axes)
    assert "operations" in str(analysis)
    assert sum(evaluated(analysis)) <= OPERATIONS * 2**20


def evaluated(analysis):
    """Operations of every factor on the axes of an analysis."""
    sizes = {n: a.size for a in analysis.layout.axes for n in a.latents}
    names = {n: a.name for a in analysis.layout.axes for n in a.latents}
    for output in analysis.graph.factors:
        for latents, count in output.work:
            yield count * np.prod([sizes[n] for n in {names[n]: n for n in latents}.values()])
