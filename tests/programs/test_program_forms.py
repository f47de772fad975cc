"""Programs in whatever form they are written: primitives, calls, reshapes, transformations around kayn,
and what is computed once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.ad_checkpoint import checkpoint_name
from numpyro.distributions import constraints
from numpyro.infer import SVI
from scipy.special import logsumexp

import kayn
from kayn.errors import GuideError
from kayn.graph.dependence import read_program
from kayn.graph.expressions import Node
from kayn.graph.plate_rules import Aligned
from kayn.graph.types import MIXED, Latent
from kayn.programs.outputs import Part
from kayn.programs.sites import inspect_sites
from kayn.programs.trace import trace_program

X = np.linspace(-1.0, 1.0, 12).reshape(3, 4).astype(np.float32)


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvps(lambda t, out, x: 2 * t)


@jax.custom_vjp
def tripled(x):
    return 3 * x


tripled.defvjp(lambda x: (3 * x, None), lambda saved, g: (3 * g,))


def spd(x):
    return jnp.einsum("ij,kj->ik", x, x) + 3 * jnp.eye(x.shape[0])


def by_row(function):
    return lambda x: jax.vmap(function)(x)


# functions of [3, 4] whose primitives have several results, call programs, move or merge dimensions, or have no rule
FORMS = {
    "barrier": jax.lax.optimization_barrier,
    "barrier of two": lambda x: sum(jax.lax.optimization_barrier((x, 2 * x[::-1]))),
    "custom jvp": doubled,
    "custom vjp": tripled,
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(x) * x),
    "jit": jax.jit(lambda x: x.T @ x),
    "nested jit": jax.jit(jax.jit(lambda x: jnp.tanh(x) + X)),
    "scan": lambda x: jax.lax.scan(lambda c, r: (c + r, c * r), jnp.zeros(4), x)[1],
    "map": lambda x: jax.lax.map(jnp.sin, x),
    "while": lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + x), (0, x))[1],
    "fori": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c * x, x),
    "cond": lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
    "sort of two": lambda x: sum(jax.lax.sort((x, X + x), dimension=0, num_keys=1)),
    "argsort": lambda x: 1.0 * jnp.argsort(x, 0),
    "top_k": lambda x: jax.lax.top_k(x, 2)[0],
    "top_k of the first axis": lambda x: jax.lax.top_k(x, 2, axis=0)[0],
    "split": lambda x: jnp.multiply(*jnp.split(x, 2, 1)),
    "unstack": lambda x: jnp.unstack(x)[1] + x,
    "reduce_and": lambda x: 1.0 * jnp.all(x > 0, 1),
    "reduce_or": lambda x: 1.0 * jnp.any(x > 0, 0),
    "reduce_prod": lambda x: x.prod(1),
    "reduce": lambda x: jax.lax.reduce(x, -jnp.inf, jnp.logaddexp, (1,)),
    "reduce_window": lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2), (1, 1), "VALID"),
    "argmax": lambda x: 1.0 * jnp.argmax(x, 0),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "cumlogsumexp": lambda x: jax.lax.cumlogsumexp(x, axis=0, reverse=True),
    "associative_scan": lambda x: jax.lax.associative_scan(jnp.add, x),
    "cholesky": lambda x: jnp.linalg.cholesky(spd(x)),
    "triangular_solve": lambda x: jax.scipy.linalg.solve_triangular(jnp.eye(3) + 0.3 * spd(x), x, lower=True),
    "lu": lambda x: jax.scipy.linalg.lu(spd(x))[2],
    "lu of rows": by_row(lambda r: jax.scipy.linalg.lu(spd(r.reshape(2, 2)))[1]),
    "qr": lambda x: jnp.linalg.qr(spd(x))[1],
    "eigh": lambda x: jnp.linalg.eigh(spd(x))[0],
    "eigh of rows": by_row(lambda r: jnp.linalg.eigh(spd(r.reshape(2, 2)))[0]),
    "svd": lambda x: jnp.linalg.svd(x, full_matrices=False)[1],
    "solve": lambda x: jnp.linalg.solve(spd(x), x),
    "slogdet": lambda x: jnp.linalg.slogdet(spd(x))[1],
    "scatter": lambda x: x.at[jnp.array([0, 2])].add(1.0),
    "dynamic_slice": lambda x: jax.lax.dynamic_slice(x, (jnp.argmax(x[:, 0]), 0), (1, 4)),
    "conv": lambda x: jnp.convolve(x.ravel(), jnp.ones(3)),
    "fft": lambda x: jnp.abs(jnp.fft.fft(x)),
    "tile": lambda x: jnp.tile(x, (2, 1)),
    "repeat": lambda x: jnp.repeat(x, 2, axis=1),
    "roll": lambda x: jnp.roll(x, 1, 0),
    "custom_linear_solve": lambda x: jax.lax.custom_linear_solve(
        lambda v: 2 * v, x, lambda m, b: b / 2, symmetric=True
    ),
    "log2": lambda x: jnp.log2(1 + x**2),
    "one_minus_square": lambda x: jnp.arcsin(jnp.tanh(x)) + jnp.sqrt(1 - jnp.tanh(x) ** 2),
    "complex": lambda x: jnp.abs(jax.lax.complex(x, x - 1)),
    "name": lambda x: checkpoint_name(jnp.sin(x), "kept"),
    "device_put": lambda x: jnp.add(*jax.device_put((2 * x, x + 1), jax.devices()[0])),
    "sharding_constraint": lambda x: jax.lax.with_sharding_constraint(
        jnp.cos(x), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    "pure_callback": lambda x: jax.pure_callback(np.sin, x, x, vmap_method="expand_dims"),
    "flat and back": lambda x: jnp.stack([x, X], -1).ravel().reshape(3, 4, 2),
    "transposed between": lambda x: jnp.stack([x, X]).T.ravel().reshape(4, 3, 2).transpose(1, 0, 2),
    "other cuts": lambda x: x.ravel().reshape(2, 6)[:, ::2],
}


def read(function, shape=(3, 4)):
    """How a deterministic value reads a latent with one plate a dimension."""

    def model():
        with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1):
            z = numpyro.sample("z", dist.Normal())
        numpyro.deterministic("out", function(z))

    sites = inspect_sites(model, (), {}, {})
    program = trace_program(model, (), {}, {}, sites)
    latent = Latent("z", shape, "float32", 2, (("rows", 0), ("columns", 1)), False, None)
    found, nodes = read_program(program, [latent], [*program.consts, None])
    return found[Part.VALUE.of("out")], nodes


def moved(function):
    """Whether each entry of the result moves with each entry of the argument, at a few places: [*out, 3, 4]."""
    rng = np.random.default_rng(0)
    compiled, out = jax.jit(function), 0
    for _ in range(3):
        x = rng.normal(size=X.shape).astype(np.float32)
        changed = [compiled(jnp.asarray(x).at[i, j].add(d)) for i in range(3) for j in range(4) for d in (0.7, -9.0)]
        differs = np.array([np.asarray(c) != np.asarray(compiled(x)) for c in changed])
        differs = differs.reshape(3, 4, 2, *differs.shape[1:]).any(2)
        out = out | np.moveaxis(differs, (0, 1), (-2, -1))
    return out


@pytest.mark.parametrize("name", FORMS)
def test_no_alignment_is_claimed_that_does_not_hold(name):
    """An entry moves with no element of a plate but the one it is said to read."""
    annotation, nodes = read(FORMS[name])
    assert not isinstance(annotation, Node)
    moves = moved(FORMS[name])
    for axis, plate in enumerate(("rows", "columns")):
        value = annotation.get(("z", plate), MIXED)
        if value is MIXED:
            continue
        assert isinstance(value, Aligned)
        read_by = moves.any(-1 if axis == 0 else -2)  # [*out, elements of the plate]
        link = np.arange(X.shape[axis]) if value.link is None else nodes.concrete(value.link)
        assert len(link) == read_by.shape[value.dim]
        allowed = link[:, None] == np.arange(X.shape[axis])
        shape = [1] * read_by.ndim
        shape[value.dim], shape[-1] = allowed.shape
        assert not (read_by & ~allowed.reshape(shape)).any(), (plate, value)


FOLLOWED = {
    "barrier": (0, 1),
    "custom jvp": (0, 1),
    "custom vjp": (0, 1),
    "checkpoint": (0, 1),
    "nested jit": (0, 1),
    "log2": (0, 1),
    "one_minus_square": (0, 1),
    "complex": (0, 1),
    "name": (0, 1),
    "device_put": (0, 1),
    "sharding_constraint": (0, 1),
    "top_k": (0, None),
    "top_k of the first axis": (None, 1),
    "reduce_prod": (0, None),
    "eigh of rows": (0, None),
    "flat and back": (0, 1),
    "transposed between": (0, 1),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_dimensions_are_followed(name):
    annotation, _ = read(FORMS[name])
    for plate, dim in zip(("rows", "columns"), FOLLOWED[name], strict=True):
        value = annotation[("z", plate)]
        assert value is MIXED if dim is None else (value.dim, value.link) == (dim, None)


@pytest.mark.parametrize("part", range(4))
def test_primitives_are_evaluated_on_particle_axes(part):
    """Three enumerated scalars that meet in every form: the evidence is the sum over their eight values."""
    names = list(FORMS)[part::4]

    def log_factor(name, bits):
        out = FORMS[name](jnp.asarray(X) + 0.5 * jnp.stack(bits)[:, None])
        return 0.1 * jnp.tanh(out).sum()

    def model():
        enumerated = {"enumerate": "parallel"}
        bits = [numpyro.sample(n, dist.Bernoulli(0.3), infer=enumerated) for n in "abc"]
        # a latent of its own, so that there is something to sample
        numpyro.sample("z", dist.Normal())
        for name in names:
            numpyro.factor(name, log_factor(name, [1.0 * b for b in bits]))

    every = np.stack(np.meshgrid([0.0, 1.0], [0.0, 1.0], [0.0, 1.0], indexing="ij"), -1).reshape(-1, 3)
    together = jax.jit(lambda row: sum(log_factor(name, list(row)) for name in names))
    logs = [float(together(jnp.asarray(row))) + np.log(np.where(row, 0.3, 0.7)).sum() for row in every]
    found = kayn.Importance(model, standard("z"), 2).run(0, None).log_evidence
    np.testing.assert_allclose(found, logsumexp(logs), rtol=2e-5, atol=2e-4)


def standard(*names):
    def guide(*args):
        for name in names:
            numpyro.sample(name, dist.Normal())

    return guide


@pytest.mark.parametrize("way", ["pairs", "columns", "transposed"])
def test_an_enumerated_latent_behind_flat_parameters(way):
    """A density may flatten its parameters: each row still reads its own component, and is summed out exactly."""
    y = jnp.array([-1.0, 0.2, 2.5, 0.7])

    class Flattening(dist.Normal):
        def log_prob(self, value):
            both = jnp.stack([self.loc, self.scale], 0 if way == "columns" else -1)
            both = both.T if way == "transposed" else both
            parts = both.ravel().reshape(both.shape)
            loc, scale = parts if way != "pairs" else (parts[:, 0], parts[:, 1])
            return dist.Normal(loc, scale).log_prob(value)

    def model():
        z = numpyro.sample("shift", dist.Normal())
        with numpyro.plate("rows", 4):
            b = numpyro.sample("b", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
            numpyro.sample("y", Flattening(z + 2.0 * b, jnp.full(4, 0.8)), obs=y)

    problem = kayn.Importance(model, standard("shift"), 3)
    posterior = problem.run(0, None)
    z = posterior.draws.values["shift"][0][:, None]
    rows = jnp.logaddexp(
        jnp.log(0.6) + dist.Normal(z, 0.8).log_prob(y), jnp.log(0.4) + dist.Normal(z + 2.0, 0.8).log_prob(y)
    )
    np.testing.assert_allclose(posterior.log_evidence, logsumexp(rows.sum(1)) - np.log(3), rtol=1e-5)


Y = jnp.array([0.1, 0.5, -0.3, 0.2])


def located(y):
    """Prior, support and likelihood from the data."""
    mu = numpyro.sample("mu", dist.Normal(jnp.mean(y), 1.0))
    scale = numpyro.sample("scale", dist.Uniform(0.0, 1.0 + jnp.max(y)))
    with numpyro.plate("rows", 4):
        numpyro.sample("y", dist.Normal(mu, scale), obs=y)


def _svi(y, key=0):
    guide = kayn.FactorisedGuide.from_model(located, (y,))
    svi = SVI(located, guide, numpyro.optim.Adam(0.1), kayn.RWS(3))
    return svi.update(svi.init(jax.random.key(0), y), y)[1]


ENTRIES = {
    "Importance": lambda y, key=0: kayn.Importance(located, None, 10).run(key, None, y).log_evidence,
    "a model that closes over data": lambda y: kayn.Importance(partial(located, y), None, 10).run(0, None).log_evidence,
    "QEM": lambda y, key=0: kayn.QEM(located, None, 5).run(key, 3, y).log_evidence[-1],
    "SVI": _svi,
    "fit": lambda y, key=0: (
        kayn.fit(located, (y,), num_particles=5, num_steps=9, rng_key=key, progress=False)
        .posterior(None, 2, escalate=False)
        .mean("mu")
    ),
}


@pytest.mark.filterwarnings("ignore::kayn.errors.PoorFitWarning")
@pytest.mark.parametrize("name", ENTRIES)
def test_the_default_guide_within_transformations(name):
    """The same numbers under the user's `jit` and `vmap` over data, and over the key, as without."""
    entry = ENTRIES[name]
    outside = entry(Y)
    np.testing.assert_allclose(jax.jit(entry)(Y), outside, rtol=1e-3)
    np.testing.assert_allclose(jax.vmap(entry)(jnp.stack([Y, Y])), [outside] * 2, rtol=1e-3)
    if name in ("Importance", "QEM", "fit"):
        key = jax.random.key(3)
        np.testing.assert_allclose(jax.jit(lambda k: entry(Y, k))(key), entry(Y, key), rtol=1e-3)


def factorisations(jaxpr):
    """Factorisations in a jaxpr, the branches of conditions included."""
    total = 0
    for equation in jaxpr.eqns:
        values = [s for v in equation.params.values() for s in (v if isinstance(v, list | tuple) else [v])]
        inner = [getattr(s, "jaxpr", s) for s in values]
        total += (equation.primitive.name == "cholesky") + sum(factorisations(s) for s in inner if hasattr(s, "eqns"))
    return total


POINTS = jnp.linspace(-1.0, 1.0, 6)
NAMES = ("height", "length", "noise")


def kernel(height, length, noise):
    return height * jnp.exp(-0.5 * ((POINTS[:, None] - POINTS) / length) ** 2) + (noise + 0.1) * jnp.eye(6)


def test_a_covariance_is_factorised_once():
    """Whatever branch is taken."""

    def model(y):
        covariance = kernel(*(numpyro.sample(n, dist.LogNormal(0.0, 1.0)) for n in NAMES))
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(6), covariance_matrix=covariance), obs=y)

    def guide(y):
        for name in NAMES:
            numpyro.sample(name, dist.LogNormal(0.0, 1.0))

    y = jnp.sin(POINTS)
    jaxpr = jax.make_jaxpr(lambda key: kayn.RWS(10).loss(key, {}, model, guide, y))(jax.random.key(0))
    assert factorisations(jaxpr.jaxpr) == 1


def flat(support):
    return dist.ImproperUniform(support, (), ())


S = numpyro.sample
DEPENDENT = {
    "Uniform": lambda: S("b", dist.Uniform(0.0, 1.0 - S("a", dist.Uniform()))),
    "truncated": lambda: S("b", dist.TruncatedNormal(low=S("a", dist.Normal()))),
    "flat": lambda: S("b", flat(constraints.greater_than(S("a", flat(constraints.real))))),
    "a deterministic site": lambda: S(
        "b", flat(constraints.interval(0.0, numpyro.deterministic("d", jnp.exp(S("a", flat(constraints.real))))))
    ),
    "a point mass": lambda: S("b", dist.Uniform(0.0, S("c", dist.Delta(2.0 * S("a", dist.HalfNormal()))))),
    "a simplex": lambda: S("b", dist.Uniform(0.0, S("a", dist.Dirichlet(jnp.ones(3)))[0])),
    "an enumerated latent": lambda: S(
        "b", dist.Uniform(0.0, 1.0 + S("a", dist.Bernoulli(0.5), infer={"enumerate": "parallel"}))
    ),
    "a branch": lambda: S("b", dist.Uniform(0.0, jax.lax.cond(S("a", dist.Normal()) > 0, lambda: 1.0, lambda: 2.0))),
}
INDEPENDENT = {
    "numbers": lambda: S("b", dist.Uniform(0.0, 2.0)),
    "arrays": lambda: S("b", dist.Uniform(jnp.zeros(2), jnp.exp(jnp.ones(2))).to_event(1)),
    "a parameter": lambda: S("b", dist.Uniform(0.0, numpyro.param("w", 2.0))),
    "the shape of a latent": lambda: S("b", dist.Uniform(jnp.zeros_like(S("a", dist.Normal())), 1.0)),
    "a constant point mass": lambda: S("b", dist.Uniform(0.0, S("c", dist.Delta(2.0)))),
    "a jitted pair": lambda: S(
        "b", dist.Uniform(0.0, jax.jit(lambda a, d: (2 * a, 2 * d))(S("a", dist.Normal()), jnp.array(1.0))[1])
    ),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_supports_that_depend_on_latents_are_refused(name):
    with pytest.raises(GuideError, match="the support of latent 'b' depends on latent 'a'"):
        kayn.FactorisedGuide.from_model(DEPENDENT[name])


@pytest.mark.parametrize("name", INDEPENDENT)
def test_other_supports_are_not(name):
    assert "b" in [s.name for s in kayn.FactorisedGuide.from_model(INDEPENDENT[name]).sites]


@pytest.mark.parametrize("read_rows", [True, False])
def test_supports_along_plates(read_rows):
    def model():
        with numpyro.plate("groups", 2):
            top = S("a", flat(constraints.positive))
        with numpyro.plate("rows", 3):
            S("b", dist.Uniform(0.0, top[jnp.array([0, 1, 1])] if read_rows else jnp.arange(1.0, 4.0)))

    if read_rows:
        with pytest.raises(GuideError, match="support of latent 'b'"):
            kayn.FactorisedGuide.from_model(model)
    else:
        assert len(kayn.FactorisedGuide.from_model(model).sites) == 2
