"""Latents without plates share an axis where a step with all their combinations would be slow."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.stats
from numpyro.contrib.control_flow import scan

import kayn
from kayn.axes.choose import settled
from kayn.axes.fewer import FEWEST, LARGEST, STEP, with_fewer_axes
from kayn.axes.more import MORE, SHARED
from kayn.axes.request import TARGET_ELEMENTS, USUAL
from kayn.axes.rules.by_cost import operations
from kayn.axes.rules.by_size import pairs_within_groups
from tests.axes.graphs import state, structure


def with_ends(found, names):
    latents = tuple(replace(z, endless=z.name not in names) for z in found.graph.latents)
    return replace(found, graph=replace(found.graph, latents=latents))


def hierarchy(rows, coefficients="abc", **events):
    """Coefficients and groups in a likelihood of many rows, a scale of the groups above them."""
    latents = {**dict.fromkeys(coefficients, ""), "s": "", "u": "g"}
    reads = {**{z: {} for z in coefficients}, "u": {}}
    factors = {"y": ("g", reads), "u": ("g", {"u": {}, "s": {}})}
    return with_ends(structure({"g": rows}, latents, factors, events=events), "s")


def chosen(found, **request):
    begun = state(found, **request)
    after = with_fewer_axes(settled(begun), begun, settled)
    return {"".join(sorted(a.latents)): a.size for a in after.axes}, after


def test_numbers_without_ends_share_an_axis_first():
    """So many as it takes; the scale, whose guide may have a longer tail alone, stays apart."""
    sizes, after = chosen(hierarchy(20))
    assert sizes == {"abc": MORE, "s": USUAL, "u": MORE}
    assert operations(after) < STEP * TARGET_ELEMENTS
    assert all("operations" in c.reason for c in after.couplings if not c.plates)


def test_axes_are_merged_where_that_saves_what_is_dear():
    """A decomposition of two numbers with ends is shared by all values of the third, which has none."""
    found = structure({}, dict.fromkeys("lsm", ""), {"y": ("", {z: {} for z in "lsm"})})
    dear = with_ends(
        replace(
            found,
            graph=replace(
                found.graph,
                outputs=tuple(
                    replace(o, work=((("l", "s"), 1e5), (("l", "m", "s"), 1e2))) for o in found.graph.outputs
                ),
            ),
        ),
        "ls",
    )
    sizes, after = chosen(dear)
    assert set(sizes) == {"ls", "m"}
    assert operations(after) < STEP * TARGET_ELEMENTS


def axes_of(model, *args):
    return {"+".join(sorted(a.latents)): a.size for a in kayn.analyze(model, *args).layout.axes}


def test_an_axis_that_saves_little_is_given_up_for_the_next():
    """Growth curves: with one scale fewer a step takes half as long, nearly, and with all of them a sixtieth."""
    x = np.array([-14.0, -7.0, 0.0, 7.0, 14.0])

    def model():
        a, b = numpyro.sample("a", dist.Normal(0.0, 100.0)), numpyro.sample("b", dist.Normal(0.0, 10.0))
        r, s, t = (numpyro.sample(n, dist.Gamma(1.0, 1.0)) for n in "rst")
        with numpyro.plate("rats", 30, dim=-2):
            u, v = numpyro.sample("u", dist.Normal(a, s)), numpyro.sample("v", dist.Normal(b, t))
            with numpyro.plate("times", 5):
                numpyro.sample("y", dist.Normal(u + v * x, r), obs=jnp.zeros((30, 5)))

    assert axes_of(model) == {"a+b+r+s+t": MORE, "u": USUAL, "v": USUAL}


def test_entries_that_no_product_forms_count_in_full():
    """A missing covariate times its coefficient: every row of every combination is computed, unlike a sum of squares
    over rows."""
    missing, x = np.arange(12), np.linspace(-1.0, 1.0, 29)

    def model():
        a, b, c = (numpyro.sample(n, dist.Normal(0.0, 1.0)) for n in "abc")
        s = numpyro.sample("s", dist.Exponential(1.0))
        with numpyro.plate("missing", 12):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        covariate = jnp.zeros(29).at[missing].set(z)
        with numpyro.plate("rows", 29):
            numpyro.sample("y", dist.Normal(a + b * covariate + c * x, s), obs=jnp.zeros(29))

    assert axes_of(model) == {"a+b+c+s": MORE, "z": MORE}


def test_what_is_inside_of_groups_shares_an_axis_where_all_combinations_are_slow():
    """Four numbers of every subject in a density of hundreds of operations a row: two axes of them have a thousandth of
    the combinations, and one all of the means and scales. Crossed groups and discrete latents stay apart."""
    subject = np.repeat(np.arange(15), 40)

    def model():
        means = [numpyro.sample(f"m{i}", dist.Normal(0.0, 1.0)) for i in range(4)]
        scales = [numpyro.sample(f"s{i}", dist.HalfNormal(1.0)) for i in range(4)]
        with numpyro.plate("subjects", 15):
            own = [numpyro.sample(n, dist.Normal(m, s)) for n, m, s in zip("vbat", means, scales, strict=True)]
        v, b, a, t = (z[subject] for z in own)
        with numpyro.plate("rows", 600):
            terms = [jnp.exp(-((0.5 + 2 * k) ** 2) * a - t) * jnp.cos(v + k * b) for k in range(-3, 4)]
            numpyro.factor("y", jnp.log(sum(terms) ** 2 + 1e-3))

    assert axes_of(model) == {"m0+m1+m2+m3+s0+s1+s2+s3": MORE, "a+b+t+v": MORE}


def test_pairs_within_groups():
    """Of the same plates, drawn, read by no other step, and not many together."""
    latents = {"a": "g", "b": "g", "c": "h", "d": "g", "e": "gh", "f": "hg", "s": ""}
    found = state(structure({"g": 3, "h": 2}, latents, {}, events={"d": 7}, enumerated=""))
    pairs = pairs_within_groups(found, found.axes, 8)
    assert ["".join(n for x in pair for n in x.latents) for pair in pairs] == ["ab", "ad", "bd", "ef"]
    assert not pairs_within_groups(found, found.axes, 1)


def test_what_only_a_running_state_reads_together_is_merged():
    """A local level: no factor reads both scales, and the running state of the series has all their combinations. On
    one axis they cost a thirtieth, and neither they nor the levels have fewer particles."""

    def model():
        s, t = (numpyro.sample(n, dist.HalfNormal(1.0)) for n in "st")

        def step(before, y):
            z = numpyro.sample("z", dist.Normal(before, s))
            numpyro.sample("y", dist.Normal(z, t), obs=y)
            return z, None

        scan(step, numpyro.sample("z0", dist.Normal(0.0, 5.0)), jnp.zeros(100))

    assert axes_of(model) == {"s+t+z0": MORE, "z": USUAL}


def test_sums_that_no_product_forms_count_in_full():
    """Pairs of effects with a covariance: the exponential of every combination of them, their means and their scales is
    taken, and summed at once, which takes as long as ten of a matrix product."""
    group, x = np.repeat(np.arange(40), 10), np.linspace(-1.0, 1.0, 40)

    def model():
        m, b = (numpyro.sample(n, dist.Normal(0.0, 1.0).expand([2]).to_event(1)) for n in "mb")
        s = numpyro.sample("s", dist.Exponential(1.0).expand([2]).to_event(1))
        root = numpyro.sample("root", dist.LKJCholesky(2, 2.0))
        t = numpyro.sample("t", dist.Exponential(1.0))
        with numpyro.plate("groups", 40):
            u = numpyro.sample("u", dist.MultivariateNormal(m + x[:, None] * b, scale_tril=s[:, None] * root))
        with numpyro.plate("rows", 400):
            numpyro.sample("y", dist.Normal(u[group].sum(-1), t), obs=jnp.zeros(400))

    assert axes_of(model) == {"b+m+root+s+t": MORE, "u": MORE}


def test_crossed_vectors_share_an_axis():
    """Items whose loadings and scales have lost their index to the persons': eighteen coordinates on one axis, at a
    thirtieth of the price of two."""

    def model():
        with numpyro.plate("items", 6, dim=-1):
            a, b = numpyro.sample("a", dist.Normal(0.0, 1.0)), numpyro.sample("b", dist.HalfNormal(1.0))
            s = numpyro.sample("s", dist.HalfNormal(1.0))
        with numpyro.plate("persons", 120, dim=-2):
            f = numpyro.sample("f", dist.Normal(0.0, 1.0))
            with numpyro.plate("items", 6, dim=-1):
                numpyro.sample("y", dist.Normal(a + b * f, s), obs=jnp.zeros((120, 6)))

    assert axes_of(model) == {"a+b+s": MORE, "f": MORE}


def test_series_that_stream_through_memory_have_fewer_particles():
    """A second-order autoregression: all triples of states for every particle of its coefficients, which no product
    shares; a number that is given is kept."""

    def model():
        phi = numpyro.sample("phi", dist.Normal(0.0, 0.3).expand([2]).to_event(1))
        s = numpyro.sample("s", dist.HalfNormal(1.0))

        def step(before, e):
            now = phi[0] * before[0] + phi[1] * before[1] + s * e
            return (now, before[0]), now

        with numpyro.plate("time", 80):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        x = jax.lax.scan(step, (0.0, 0.0), z)[1]
        with numpyro.plate("time", 80):
            numpyro.sample("y", dist.Normal(x, 0.3), obs=jnp.zeros(80))

    def particles(layout):
        return next(a.size for a in layout.axes if "time" in a.scope)

    layout = kayn.analyze(model).layout
    assert FEWEST <= particles(layout) < USUAL
    assert layout.operations <= SHARED
    assert particles(kayn.analyze(model, num_particles=USUAL).layout) == USUAL


def test_what_is_quick_keeps_its_axes():
    sizes, _ = chosen(hierarchy(2, "ab"))
    assert {"a", "b", "s", "u"} == set(sizes)


def test_a_number_that_is_given_keeps_all_combinations():
    sizes, _ = chosen(hierarchy(20, "ab"), num_particles=USUAL)
    assert set(sizes) == {"a", "b", "s", "u"}


def test_long_vectors_are_not_joined():
    """More coordinates than a hundred particles are for."""
    sizes, _ = chosen(hierarchy(20, "ab", a=LARGEST, b=LARGEST))
    assert {"a", "b"} <= set(sizes)


def test_the_evidence_is_that_of_the_closed_form():
    """Four coefficients above 25 groups, Normal throughout: within five standard errors, 6e-7 false alarms; and so are
    the coefficients' means."""
    rng = np.random.default_rng(0)
    group, x = np.repeat(np.arange(25), 6), rng.normal(size=(150, 4))
    y = (x @ [1.0, -0.5, 0.2, 0.0] + rng.normal(size=25)[group] + 0.7 * rng.normal(size=150)).astype(np.float32)

    def model(y):
        a, b, c, d = (numpyro.sample(n, dist.Normal(0.0, 1.0)) for n in "abcd")
        with numpyro.plate("groups", 25):
            u = numpyro.sample("u", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 150):
            mean = a * x[:, 0] + b * x[:, 1] + c * x[:, 2] + d * x[:, 3] + u[group]
            numpyro.sample("y", dist.Normal(mean, 0.7), obs=y)

    posterior = kayn.fit(model, (y,), progress=False).posterior(escalate=False)
    axis = posterior.problem.layout.axis_of("a")
    assert (sorted(axis.latents), axis.size) == (list("abcd"), MORE)
    z = np.c_[x, np.eye(25)[group]]
    exact = scipy.stats.multivariate_normal(np.zeros(150), z @ z.T + 0.49 * np.eye(150)).logpdf(y)
    error = float(posterior.log_evidence_error)
    assert error < 0.05
    assert abs(float(posterior.log_evidence) - exact) < 5 * error
    covariance = np.linalg.inv(z.T @ z / 0.49 + np.eye(29))
    mean = covariance @ z.T @ y / 0.49
    found = np.array([float(posterior.mean(n)) for n in "abcd"])
    assert (np.abs(found - mean[:4]) < 5 * 0.025 * np.diag(covariance)[:4] ** 0.5).all()
