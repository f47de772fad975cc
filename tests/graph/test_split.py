"""Log densities that are sums over rows are read row by row: whatever form the sum has, evidence is that of
enumeration, and of the plain model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import kayn
from kayn.errors import DataError
from kayn.evidence.draws import draw_particles
from kayn.evidence.read import read_model
from kayn.evidence.weights import log_evidence, weigh
from kayn.graph.types import MIXED
from kayn.programs.outputs import Part
from kayn.programs.sites import Inspected
from kayn.support.names import whole
from tests.graph.enumerated import agrees, build, normal, prior_of

GROUP = np.array([0, 2, 2, 1], np.int32)
Y = np.array([0.1, 0.5, -1.0, 2.0], np.float32)
N = 4


def latents():
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    with numpyro.plate("groups", 3):
        return sd, normal("z", 0.0, sd)


def terms(z, sd=0.7):
    return dist.Normal(z[GROUP], sd).log_prob(Y)


def factor(of):
    def model():
        sd, z = latents()
        numpyro.factor("f", of(z, sd))

    return model


def by_scan(z, sd):
    return lax.scan(lambda total, now: (total + dist.Normal(z[now[0]], 0.7).log_prob(now[1]), None), 0.0, (GROUP, Y))[0]


def by_loop(z, sd):
    index, data = jnp.asarray(GROUP), jnp.asarray(Y)
    return lax.fori_loop(0, N, lambda i, total: total - 0.5 * (data[i] - z[index[i]]) ** 2, 0.0)


def by_recursion(z, sd):
    """A loop with a state of its own besides the sum."""

    def step(state, now):
        x, total = state
        x = 0.5 * x + now[1]
        return (x, total + dist.Normal(z, 1.0).log_prob(x)), None

    return lax.scan(step, (jnp.zeros(()), jnp.zeros(3)), (GROUP, Y))[0][1].sum()


def several(z, sd):
    first, second = terms(z)[:2].sum(), dist.Normal(z, sd).log_prob(0.3).sum()
    return first + 2.0 * second - 0.5 * sd**2 - 3.0


MASK = np.array([True, False, True, True])
WEIGHTS = np.array([0.5, 1.0, 0.0, 2.0], np.float32)
FORMS = {
    "sum": lambda z, sd: terms(z).sum(),
    "scale of a latent": lambda z, sd: terms(z, sd).sum(),
    "several": several,
    "where": lambda z, sd: jnp.where(MASK, terms(z), 0.0).sum(),
    "mask": lambda z, sd: (MASK * terms(z)).sum(),
    "weights": lambda z, sd: jnp.dot(WEIGHTS, terms(z)),
    "ones": lambda z, sd: terms(z) @ jnp.ones(N),
    "mean": lambda z, sd: N * jnp.mean(terms(z)),
    "segments": lambda z, sd: jax.ops.segment_sum(terms(z), GROUP, 3).sum(),
    "concatenated": lambda z, sd: jnp.concatenate([terms(z), dist.Normal(z, 1.0).log_prob(0.5)]).sum(),
    "stacked": lambda z, sd: jnp.stack([terms(z).sum(), dist.Normal(z, 1.0).log_prob(0.5).sum()]).sum(),
    "axis": lambda z, sd: dist.Normal(z[GROUP][:, None], 1.0).log_prob(jnp.stack([Y, Y + 1], 1)).sum(0).sum(),
    "vmap": lambda z, sd: jax.vmap(lambda i, y: dist.Normal(z[i], 0.7).log_prob(y))(GROUP, Y).sum(),
    "vmap of blocks": lambda z, sd: jax.vmap(lambda i, y: dist.Normal(z[i], 0.7).log_prob(y).sum())(
        GROUP.reshape(2, 2), Y.reshape(2, 2)
    ).sum(),
    "python sum": lambda z, sd: sum(dist.Normal(z[g], 0.7).log_prob(y) for g, y in zip(GROUP, Y, strict=True)),
    "one row": lambda z, sd: dist.Normal(z[1], 0.7).log_prob(0.4),
    "indicators": lambda z, sd: dist.Normal(jnp.eye(3)[GROUP] @ z, 0.7).log_prob(Y).sum(),
    "scan": by_scan,
    "loop": by_loop,
    "recursion": by_recursion,
    "jit": lambda z, sd: jax.jit(lambda z: terms(z).sum())(z),
    "remat": lambda z, sd: jax.checkpoint(lambda z: terms(z).sum())(z),
    "temperature": lambda z, sd: sd * (terms(z).sum() + 1.0),
    "negative": lambda z, sd: -((Y - z[GROUP]) ** 2).sum() / 2,
    "two reads in a row": lambda z, sd: (terms(z) + dist.Normal(z[GROUP[::-1]], 1.0).log_prob(0.2)).sum(),
}


def read(model):
    """The model's program and graph; its terms add up to what they were, and every row reads one group."""
    found = read_model(Inspected.of(model, (), {}, {}))
    program = found.program
    assert program.rows
    values = {"sd": jnp.float32(0.8), "z": jnp.asarray([0.3, -1.2, 0.7], jnp.float32)}

    def total(program):
        outputs = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, program.consts))(*program.leaves(values, {}, {}))
        return sum(float(v.sum()) for n, v in zip(program.outputs, outputs, strict=True) if n.part is Part.DENSITY)

    np.testing.assert_allclose(total(program), total(program.plain), rtol=2e-5, atol=2e-4)
    graph = found.structure.graph
    assert not any(how is MIXED for o in graph.factors for r in o.reads for _, how in r.through)
    return program, graph


@pytest.mark.parametrize("form", FORMS)
def test_factor_of_a_sum(form):
    read(factor(FORMS[form]))


@pytest.mark.parametrize("form", ["sum", "several", "where", "temperature", "recursion"])
def test_evidence_is_that_of_enumeration(form):
    problem = agrees(factor(FORMS[form]))
    assert problem.layout.axis_of("z").scope == ("groups",)


class Summed(dist.Distribution):
    """A density of one's own over all rows at once."""

    support = dist.constraints.real_vector

    def __init__(self, loc):
        self.loc = loc
        super().__init__((), jnp.shape(loc), validate_args=False)

    def log_prob(self, value):
        return dist.Normal(self.loc, 0.7).log_prob(value).sum(-1)


BLOCKS = np.array([[1.0, 0, 0, 0.5], [0, 2, 0.3, 0], [0, 0.3, 1, 0], [0.5, 0, 0, 1]], np.float32)
"""Joins the first row with the last, and those between with each other."""


def observed(fn_of, data=Y):
    def model():
        sd, z = latents()
        numpyro.sample("y", fn_of(z, sd), obs=data)

    return model


OBSERVED = {
    "to_event": lambda z, sd: dist.Normal(z[GROUP], sd).to_event(1),
    "masked": lambda z, sd: dist.Normal(z[GROUP], sd).mask(MASK).to_event(1),
    "own": lambda z, sd: Summed(z[GROUP]),
    "transformed": lambda z, sd: dist.TransformedDistribution(
        dist.Normal(z[GROUP], 1.0).to_event(1), dist.transforms.AffineTransform(0.5, 2.0)
    ),
    "expanded": lambda z, sd: dist.Normal(z[GROUP], sd).expand([4]).to_event(1),
    "diagonal covariance": lambda z, sd: dist.MultivariateNormal(z[GROUP], jnp.diag(jnp.array([1.0, 2.0, 0.5, 3.0]))),
    "covariance in blocks": lambda z, sd: dist.MultivariateNormal(z[jnp.array([0, 1, 1, 0])], BLOCKS),
    "precision in blocks": lambda z, sd: dist.MultivariateNormal(z[jnp.array([0, 1, 1, 0])], precision_matrix=BLOCKS),
}


@pytest.mark.parametrize("form", OBSERVED)
def test_likelihood_of_all_rows(form):
    problem = agrees(observed(OBSERVED[form]))
    assert problem.layout.axis_of("z").scope == ("groups",)
    assert problem.model.sites["y"].batch_shape == ()


def test_exponential_family_is_kept():
    problem = agrees(observed(OBSERVED["to_event"]))
    assert problem.graph.output("y").density.event_ndim == 0
    assert agrees(observed(OBSERVED["own"])).graph.output("y").density is None


def test_scale_and_mask_handlers():
    def scaled():
        with handlers.scale(scale=0.3):
            observed(OBSERVED["to_event"])()

    def masked():
        _, z = latents()
        with handlers.mask(mask=False):
            numpyro.factor("hidden", terms(z).sum())
        with handlers.scale(scale=2.0):
            numpyro.factor("f", terms(z).sum())

    for model in (scaled, masked):
        assert agrees(model).layout.axis_of("z").scope == ("groups",)


def test_sums_in_a_plate():
    """The plate's own dimension stays what it is."""

    def model():
        _, z = latents()
        with numpyro.plate("items", 2):
            numpyro.factor("f", dist.Normal(z[GROUP][:, None], 1.0).log_prob(jnp.stack([Y, Y], 1)).sum(0))

    problem = agrees(model)
    assert problem.layout.axis_of("z").scope == ("groups",)
    assert "items" in problem.graph.output("f").dims


def test_prior_of_a_vector():
    """Its elements are not apart, but the groups that its prior reads are."""

    def model():
        _, z = latents()
        w = numpyro.sample("w", dist.Normal(z[GROUP], 1.0).to_event(1))
        normal("y", w.sum(), 1.0, obs=0.3)

    problem = agrees(model)
    assert problem.layout.axis_of("z").scope == ("groups",)
    assert problem.graph.latent("w").parents == ("z",)


def evidence(model, *args):
    """log Z at one key, of a model whose latents alone are drawn."""
    problem = build(model, *args, num_particles=3)
    draws = draw_particles(problem, problem.numbers, jax.random.key(1), {})
    return log_evidence(problem, problem.numbers, weigh(problem, problem.numbers, draws, {}), {}, draws.subsample)


def test_data_that_are_traced():
    """Within a compiled function weights, groups and data are unknown; derivatives are those of the plain model."""

    def plain(group, mask, y):
        _, z = latents()
        with numpyro.plate("rows", N), handlers.mask(mask=mask):
            normal("y", z[group], 0.7, obs=y)

    def summed(group, mask, y):
        _, z = latents()
        numpyro.factor("f", jnp.where(mask, dist.Normal(z[group], 0.7).log_prob(y), 0.0).sum())

    data = (GROUP, MASK, jnp.asarray(Y))
    found = [jax.jit(jax.value_and_grad(partial(evidence, m), argnums=2))(*data) for m in (plain, summed)]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert np.abs(found[0][1]).min() == 0 < np.abs(found[0][1]).max()
    np.testing.assert_allclose(evidence(summed, *data), found[0][0], rtol=1e-6)


def test_subsampled_rows():
    """A row of a minibatch stands for several, its sum too."""
    data = np.arange(24, dtype=np.float32).reshape(6, 4) / 12

    def model(form):
        _, z = latents()
        with numpyro.plate("rows", 6, subsample_size=3, dim=-2 if form == "plain" else -1) as rows:
            y, of = jnp.asarray(data)[rows], dist.Normal(jnp.broadcast_to(z[GROUP], (3, 4)), 1.0)
            if form == "plain":
                with numpyro.plate("columns", 4):
                    numpyro.sample("y", of, obs=y)
            elif form == "event":
                numpyro.sample("y", of.to_event(1), obs=y)
            else:
                numpyro.factor("y", of.log_prob(y) @ jnp.ones(4))

    expected = evidence(partial(model, "plain"))
    for form in ("event", "factor"):
        problem = build(partial(model, form))
        assert problem.graph.output("y").dims[0] == "rows"
        assert problem.layout.axis_of("z").scope == ("groups",)
        np.testing.assert_allclose(evidence(partial(model, form)), expected, rtol=1e-5)

    def over_rows():
        """A sum over what is sampled from loses what a row stands for: it is left as it is."""
        _, z = latents()
        with numpyro.plate("rows", 6, subsample_size=3) as rows:
            numpyro.factor("y", jnp.ones((3, 4)) @ dist.Normal(z[GROUP], 1.0).log_prob(Y) + jnp.asarray(data)[rows, 0])

    assert not build(over_rows).model.rows


def test_events_in_a_loop():
    """The steps stay what they are: each follows the one before."""

    def model(form):
        def step(x, y):
            with numpyro.plate("series", 3):
                x = normal("x", x, 1.0)
            if form == "plain":
                with numpyro.plate("rows", N):
                    normal("y", x[GROUP], 1.0, obs=y)
            else:
                numpyro.sample("y", dist.Normal(x[GROUP], 1.0).to_event(1), obs=y)
            return x, None

        scan(step, jnp.zeros(3), jnp.stack([Y, Y + 1]))

    problem = build(partial(model, "event"))
    assert problem.layout.axis_of("x").scope == ("time", "series")
    assert problem.graph.output("y").dims[0] == "time"
    np.testing.assert_allclose(evidence(partial(model, "event")), evidence(partial(model, "plain")), rtol=1e-6)


def test_messages_name_the_site():
    """Factors that kayn makes are told of by the name of the user's site."""
    x = np.array([1.0, np.nan, 2.0, 0.0], np.float32)

    def missing(x):
        _, z = latents()
        numpyro.factor("f", dist.Normal(z, 1.0).log_prob(0.1).sum() + (terms(z) * x).sum() + 1.0)

    with pytest.raises(DataError, match=r"argument 'x'.*density of site 'f'"):
        build(missing, x)

    def crossed():
        _, z = latents()
        with numpyro.plate("others", 3):
            w = normal("w")
        numpyro.factor("f", dist.Normal(z[GROUP] + w[GROUP[::-1]], 1.0).log_prob(Y).sum() + terms(z).sum())

    problem = build(crossed)
    text = str(kayn.analyze(crossed, guide=prior_of(crossed), num_particles=2))
    assert "Sums" in text and "f: 4 + 4 terms" in text and "kayn:summand" not in text
    assert [whole(n) for n in problem.model.rows] == ["f", "f"]


def test_sites_in_a_loop_of_python():
    """Each reads one element, and none has a dimension along which an index could lie."""

    def model():
        _, z = latents()
        for i in range(3):
            normal(f"y{i}", z[i], 1.0 + i, obs=Y[i])

    assert agrees(model).layout.axis_of("z").scope == ("groups",)


def test_nothing_is_split_without_gain():
    def total():
        _, z = latents()
        normal("y", z.sum(), 1.0, obs=0.4)
        numpyro.factor("f", terms(z).sum())

    def row_by_row():
        _, z = latents()
        with numpyro.plate("rows", N):
            normal("y", z[GROUP], 1.0, obs=Y)
        numpyro.factor("f", terms(z))

    for model in (total, row_by_row):
        assert not build(model).model.rows


def written(rng, z, depth=3):
    """A random scalar that is linear in terms of rows, or in their sums."""
    rows = dist.Normal(z[jnp.asarray(rng.integers(0, 3, 6))], 0.7).log_prob(rng.normal(size=6))
    for _ in range(depth):
        constant, place = jnp.asarray(rng.normal(size=6), jnp.float32), jnp.asarray(rng.permutation(6))
        steps = (
            lambda x, c, i: x * c + 1.0,
            lambda x, c, i: jnp.where(c > 0, x, 0.3),
            lambda x, c, i: x[i] - 2 * x,
            lambda x, c, i: jnp.cumsum(x)[::-1],
            lambda x, c, i: x.reshape(2, 3).sum(0)[i % 3],
            lambda x, c, i: jnp.concatenate([x[:2], c[:1], x[3:]]),
            lambda x, c, i: jax.ops.segment_sum(x, i // 2, 6) / 2,
            lambda x, c, i: jnp.zeros(6).at[i[:3]].add(x[:3]) + x.sum(),
            lambda x, c, i: jnp.outer(c, c) @ x,
            lambda x, c, i: lax.dynamic_update_slice(x, -x[2:4], (1,)),
            lambda x, c, i: jnp.pad(x[1:5], 1, constant_values=0.5),
        )
        rows = steps[rng.integers(len(steps))](rows, constant, place)
    return rows.sum() + 0.1


@pytest.mark.parametrize("seed", range(12))
def test_terms_add_up(seed):
    """Whatever linear operations come between."""

    def model():
        _, z = latents()
        numpyro.factor("f", written(np.random.default_rng(seed), z))

    read(model)
