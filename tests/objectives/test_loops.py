"""Every estimator on every kind of plate, loops among them, against gradients over all sets of two particles (exact; no
test here is statistical but those that say so)."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import kayn
from kayn.particles.draw import draw_runs
from tests.replacing import replace_everywhere

PARAMS = {"weight": jnp.array(1.4), "slope": jnp.array(0.8)}
ROWS = jnp.array([0.9, -0.6])
STEPS = jnp.array([[0.9, -0.6], [1.3, 0.2]])  # [steps, sequences]
TEMPERATURE = 0.6
K = 2


# -- families: what latents are drawn from, in the programs and on paper


@dataclass(frozen=True)
class Family:
    """Latents of a kind: as NumPyro sites of prior and guide, as log densities, and as draws from noise."""

    prior: Callable
    guide: Callable
    log_p: Callable
    log_q: Callable
    draw: Callable


def relaxed(x, z):
    return dist.RelaxedBernoulliLogits(TEMPERATURE, x).log_prob(z)


def bernoulli(x, z):
    return z * x - jnp.logaddexp(0.0, x)


def normal(x, z, sd=1.0):
    return dist.Normal(x, sd).log_prob(z)


def binary(x):
    return dist.Bernoulli(logits=x)


DISCRETE = Family(binary, binary, bernoulli, bernoulli, lambda x, noise: noise + 0.0 * x)
NORMAL = Family(
    dist.Normal,
    lambda x: dist.Normal(x, 0.7),
    normal,
    lambda x, z: normal(x, z, 0.7),
    lambda x, noise: x + 0.7 * noise,
)
CONCRETE = Family(binary, binary, relaxed, relaxed, lambda x, noise: jax.nn.sigmoid((x + noise) / TEMPERATURE))


def observe(name, centre, value):
    return numpyro.sample(name, dist.Normal(centre, 1.0), obs=value)


def guess(x, slope=None):
    return (numpyro.param("slope", PARAMS["slope"]) if slope is None else slope) * x - 0.3


# -- cases: programs, and the same on paper


@dataclass(frozen=True)
class Case:
    """A model of flat latents z [n].

    Attributes:
        model, guide: `(family) -> program(data)`.
        sites: shapes of the latents, in the order of z.
        units: `(positions of every axis, ...)` of the independent parts of log Z.
        log_p: `(family, params, z, unit) -> log joint` of one part.
        means: `(params, z) -> [n]`, what the guide draws from.
        scale: how often every part counts.
        rest: `(params) -> log density` of what no latent touches.
        strategy: of the losses.
    """

    model: Callable
    guide: Callable
    data: jnp.ndarray
    sites: dict
    units: tuple
    log_p: Callable
    means: Callable
    scale: float = 1.0
    rest: Callable = lambda params: 0.0
    strategy: str = "parallel"


def rows_case(size=2, scale=1.0, mask=(1.0, 1.0), alone=False):
    """A latent a row; the plate subsampled, the likelihood scaled or masked,
    or data that no latent touches beside it."""

    def model(family):
        def run(x):
            weight = numpyro.param("weight", PARAMS["weight"])
            if alone:
                observe("apart", weight, 0.7)
            with numpyro.plate("rows", size, subsample_size=2):
                z = 1.0 * numpyro.sample("z", family.prior(0.4 * jnp.ones(2)))
                with handlers.scale(scale=scale), handlers.mask(mask=jnp.array(mask) > 0):
                    observe("x", weight * z, x)
                if alone:
                    observe("y", weight * jnp.ones(2), x)

        return run

    def guide(family):
        def run(x):
            with numpyro.plate("rows", size, subsample_size=2):
                numpyro.sample("z", family.guide(guess(x)))

        return run

    def log_p(family, params, z, unit):
        i = unit[0][0]
        return family.log_p(0.4, z[i]) + scale * mask[i] * normal(params["weight"] * z[i], ROWS[i])

    def rest(params):
        beside = normal(params["weight"], 0.7) + size / 2 * jnp.sum(normal(params["weight"], ROWS))
        return beside if alone else 0.0

    units = (((0,),), ((1,),))
    return Case(model, guide, ROWS, {"z": (2,)}, units, log_p, lambda p, z: p["slope"] * ROWS - 0.3, size / 2, rest)


def global_case():
    def model(family):
        def run(x):
            weight = numpyro.param("weight", PARAMS["weight"])
            top = 1.0 * numpyro.sample("top", family.prior(jnp.array(0.2)))
            with numpyro.plate("rows", 2):
                z = 1.0 * numpyro.sample("z", family.prior(0.4 - top * jnp.ones(2)))
                observe("x", weight * z, x)

        return run

    def guide(family):
        def run(x):
            numpyro.sample("top", family.guide(guess(0.5)))
            with numpyro.plate("rows", 2):
                numpyro.sample("z", family.guide(guess(x)))

        return run

    def log_p(family, params, z, unit):
        own = family.log_p(0.4 - z[0], z[1:]) + normal(params["weight"] * z[1:], ROWS)
        return family.log_p(0.2, z[0]) + own.sum()

    means = jnp.concatenate([jnp.array([0.5]), ROWS])
    return Case(
        model,
        guide,
        ROWS,
        {"top": (), "z": (2,)},
        (((0,), (1,), (2,)),),
        log_p,
        lambda p, z: p["slope"] * means - 0.3,
    )


def nested_case():
    """A subsampled plate around another."""

    def model(family):
        def run(x):
            weight = numpyro.param("weight", PARAMS["weight"])
            with numpyro.plate("outer", 3, subsample_size=1, dim=-2):
                z = 1.0 * numpyro.sample("z", family.prior(0.4 * jnp.ones((1, 1))))
                with numpyro.plate("inner", 2, dim=-1):
                    w = 1.0 * numpyro.sample("w", family.prior(z - 0.3 + jnp.zeros((1, 2))))
                    observe("x", weight * w, x)

        return run

    def guide(family):
        def run(x):
            with numpyro.plate("outer", 3, subsample_size=1, dim=-2):
                numpyro.sample("z", family.guide(guess(0.5 * jnp.ones((1, 1)))))
                with numpyro.plate("inner", 2, dim=-1):
                    numpyro.sample("w", family.guide(guess(x)))

        return run

    def log_p(family, params, z, unit):
        own = family.log_p(z[0] - 0.3, z[1:]) + normal(params["weight"] * z[1:], ROWS)
        return family.log_p(0.4, z[0]) + own.sum()

    means = jnp.concatenate([jnp.array([0.5]), ROWS])
    return Case(
        model,
        guide,
        ROWS[None],
        {"z": (1, 1), "w": (1, 2)},
        (((0,), (1,), (2,)),),
        log_p,
        lambda p, z: p["slope"] * means - 0.3,
        3.0,
    )


def loop_case(sequences=2, memory=0.0, strategy="parallel", led=False):
    """A loop over two steps, with a plate of sequences inside; a state with a memory of its own is no Markov chain.

    Args:
        led: the guide draws a step given the one before.
    """
    data = STEPS[:, :sequences] if sequences else STEPS[:, 0]
    width = data.shape[1:]

    def plate():
        return numpyro.plate("sequences", sequences) if sequences else handlers.scale(scale=1.0)

    def model(family):
        def run(x):
            weight = numpyro.param("weight", PARAMS["weight"])

            def step(state, now):
                with plate():
                    z = 1.0 * numpyro.sample("z", family.prior(0.6 - 1.1 * state))
                    state = jnp.tanh(z + memory * state) if memory else z
                    observe("x", weight * state, now)
                return state, None

            scan(step, jnp.full(width, 0.5), x)

        return run

    def guide(family):
        def run(x):
            slope = numpyro.param("slope", PARAMS["slope"])

            def step(before, now):
                with plate():
                    z = 1.0 * numpyro.sample("z", family.guide(guess(now, slope) + (0.9 * before if led else 0.0)))
                return z, None

            scan(step, jnp.zeros(width), x)

        return run

    count = max(sequences, 1)

    def log_p(family, params, z, unit):
        n, state, total = unit[0][0] % count, 0.5, 0.0
        for t in range(2):
            now = z[t * count + n]
            total += family.log_p(0.6 - 1.1 * state, now)
            state = jnp.tanh(now + memory * state) if memory else now
            total += normal(params["weight"] * state, data.reshape(2, count)[t, n])
        return total

    def means(params, z):
        led_by = jnp.concatenate([jnp.zeros(count), z[:count]]) if led else 0.0
        return params["slope"] * data.ravel() - 0.3 + 0.9 * led_by

    together = memory or strategy == "local"
    units = tuple(((n, n + count),) if together else ((n,), (n + count,)) for n in range(count))
    return Case(model, guide, data, {"z": (2, *width)}, units, log_p, means, strategy=strategy)


CASES = {
    "plate": rows_case(),
    "subsampled": rows_case(size=6),
    "scaled": rows_case(scale=2.5),
    "masked": rows_case(mask=(1.0, 0.0)),
    "data without a latent": rows_case(size=6, alone=True),
    "below a global latent": global_case(),
    "nested": nested_case(),
    "steps": loop_case(sequences=0),
    "plate in steps": loop_case(),
    "recurrent": loop_case(memory=0.7),
    "paths": loop_case(strategy="local"),
    "paths of a chain": loop_case(strategy="local", led=True),
}


# -- on paper


def log_z(case, family, params, drawn, of_guide=None):
    """The log of the mean weight over all combinations of particles [K, n].

    Args:
        of_guide: the parameters in the guide's density, where they are others.
    """
    of_guide = params if of_guide is None else of_guide
    total = case.rest(params)
    for unit in case.units:
        weights = []
        for chosen in itertools.product(range(K), repeat=len(unit)):
            z = jnp.zeros(drawn.shape[1])
            for axis, k in zip(unit, chosen, strict=True):
                z = z.at[jnp.array(axis)].set(drawn[k, jnp.array(axis)])
            mine = jnp.array([p for axis in unit for p in axis])
            log_q = family.log_q(case.means(of_guide, z), z)[mine].sum()
            weights.append(case.log_p(family, params, z, unit) - log_q)
        total += case.scale * (jax.nn.logsumexp(jnp.stack(weights)) - jnp.log(len(weights)))
    return total


def log_probability(case, params, drawn):
    return sum(bernoulli(case.means(params, z), z).sum() for z in drawn)


def all_sets(case):
    """Every set of two particles: [sets, K, n]."""
    n = sum(int(np.prod(shape)) for shape in case.sites.values())
    return jnp.array(list(itertools.product((0.0, 1.0), repeat=K * n))).reshape(-1, K, n)


# -- kayn, on given particles


def gradients(monkeypatch, case, family, loss, noise):
    """Loss and gradient for particles drawn from noise [sets, K, n], one after the other."""

    def one(noise):
        def runs(guide, consts, key, num, params, subsample):
            drawn = _from_noise(case, family, params, noise)
            out, start = {}, 0
            for name, shape in case.sites.items():
                stop = start + int(np.prod(shape))
                value = drawn[:, start:stop].reshape((K, *shape))
                out[name], start = value.astype(guide.density.sites[name].dtype), stop
            return out

        replace_everywhere(monkeypatch, draw_runs, runs)
        return jax.value_and_grad(
            lambda p: loss.loss(jax.random.key(0), p, case.model(family), case.guide(family), case.data)
        )(PARAMS)

    return jax.jit(lambda x: jax.lax.map(one, x, batch_size=64))(noise)


def _from_noise(case, family, params, noise):
    """Particles, each latent given the ones before it: [K, n]."""
    drawn = jnp.zeros_like(noise)
    for i in range(noise.shape[1]):
        means = jax.vmap(lambda z: case.means(params, z))(drawn)
        drawn = drawn.at[:, i].set(family.draw(means[:, i], noise[:, i]))
    return drawn


def close(found, exact, rtol=2e-4):
    for name in PARAMS:
        np.testing.assert_allclose(found[name], exact[name], rtol=rtol, atol=2e-5, err_msg=name)


@lru_cache
def exact_means(name):
    """Over all sets of particles: their probabilities, the mean loss and its gradient,
    and the mean of RWS's gradient."""
    case = CASES[name]
    sets = all_sets(case)

    def shares(params):
        return jnp.exp(jax.vmap(lambda s: log_probability(case, params, s))(sets))

    def mean(params):
        return -jnp.sum(shares(params) * jax.vmap(lambda s: log_z(case, DISCRETE, params, s))(sets))

    def awake(params):
        """Minus log Z in the model's parameter; plus log Z, by the guide's density in it, in the guide's."""
        theta, phi = ({**PARAMS, n: params[n]} for n in ("weight", "slope"))
        pair = jax.vmap(lambda s: (log_z(case, DISCRETE, theta, s), log_z(case, DISCRETE, PARAMS, s, phi)))(sets)
        return jnp.sum(shares(PARAMS) * (pair[1] - pair[0]))

    return jax.jit(lambda p: (shares(p), *jax.value_and_grad(mean)(p), jax.grad(awake)(p)))(PARAMS)


SCORE = {"Reinforce": kayn.Reinforce, "VIMCO": kayn.VIMCO, "RWS": kayn.RWS}


@pytest.mark.parametrize("loss", SCORE)
@pytest.mark.parametrize("name", CASES)
def test_mean_gradient_over_all_sets_of_particles(monkeypatch, name, loss):
    """Of the score-function estimators the gradient of E log Z; of RWS that of its two wake phases."""
    case = CASES[name]
    losses, found = gradients(monkeypatch, case, DISCRETE, SCORE[loss](K, case.strategy), all_sets(case))
    share, mean, slopes, awake = exact_means(name)
    np.testing.assert_allclose(jnp.sum(share * losses), mean, rtol=1e-5)
    close({n: jnp.sum(share * g) for n, g in found.items()}, awake if loss == "RWS" else slopes)


PATHWISE = {
    "VI": (kayn.VI(K), NORMAL),
    "STL": (kayn.STL(K), NORMAL),
    "Concrete": (kayn.Concrete(K, temperature=TEMPERATURE), CONCRETE),
}


@pytest.mark.parametrize("case", ["nested", "recurrent", "paths of a chain"])
@pytest.mark.parametrize("loss", PATHWISE)
def test_pathwise_gradient_for_given_noise(monkeypatch, case, loss):
    (loss, family), case = PATHWISE[loss], CASES[case]
    loss = type(loss)(K, case.strategy, **({"temperature": TEMPERATURE} if family is CONCRETE else {}))
    noise = jax.random.normal(jax.random.key(1), (3, *all_sets(case).shape[1:]))
    losses, found = gradients(monkeypatch, case, family, loss, noise)

    def exact(params, noise):
        still = jax.lax.stop_gradient(params) if isinstance(loss, kayn.STL) else params
        return -log_z(case, family, params, _from_noise(case, family, params, noise), still)

    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(exact), (None, 0)))(PARAMS, noise)
    np.testing.assert_allclose(losses, values, rtol=1e-4)
    close(found, slopes, 1e-3)


@pytest.mark.parametrize("case", ["data without a latent", "steps"])
def test_doubly_reparameterised_gradient_has_the_mean_of_the_pathwise_one(monkeypatch, case):
    """By quadrature over the noise: to 2e-3."""
    case, nodes = CASES[case], np.polynomial.hermite_e.hermegauss(9)
    grid = jnp.array(list(itertools.product(nodes[0], repeat=2 * K))).reshape(-1, K, 2)
    share = jnp.array([np.prod(w) for w in itertools.product(nodes[1] / nodes[1].sum(), repeat=2 * K)])
    _, found = gradients(monkeypatch, case, NORMAL, kayn.DReG(K), grid)
    _, other = gradients(monkeypatch, case, NORMAL, kayn.VI(K), grid)
    for name in PARAMS:
        np.testing.assert_allclose(jnp.sum(share * found[name]), jnp.sum(share * other[name]), atol=2e-3, err_msg=name)


LOOPS = {
    "scan": lambda z: jax.lax.scan(lambda c, i: (jnp.tanh(c + z * i), c), jnp.zeros(4), jnp.arange(3.0))[1][-1],
    "while": lambda z: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] + z)), (0, z))[1],
    "cond": lambda z: jax.lax.cond(numpyro.param("side", 1.0) > 0, lambda z: 2 * z, lambda z: z - 1, z),
}
TANGLED = {
    "steps that shift": lambda z: jax.lax.fori_loop(0, 3, lambda i, s: jnp.roll(s, 1) + z, jnp.zeros(4)),
    "latents say how often": lambda z: jax.lax.while_loop(lambda s: s.sum() < 1, lambda s: s + 1 + z, z),
    "an index of the step": lambda z: jax.lax.fori_loop(
        0, 3, lambda i, s: s + z[(jnp.arange(4) + i) % 4], jnp.zeros(4)
    ),
}


@pytest.mark.parametrize("loop", [*LOOPS, *TANGLED])
def test_loops_keep_rows_apart_where_every_step_does(loop):
    def model():
        with numpyro.plate("rows", 4):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal({**LOOPS, **TANGLED}[loop](z), 1.0), obs=jnp.zeros(4))

    shared = "one particle index over rows" in str(kayn.analyze(model))
    assert shared == (loop in TANGLED)


def test_a_parameter_in_a_loop_is_refused():
    def model(x):
        scan(lambda c, now: (numpyro.sample("z", dist.Normal(numpyro.param("drift", 0.0), 1.0)), None), 0.0, x)
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=1.0)

    with pytest.raises(kayn.errors.ModelError, match="'drift' is inside scan"):
        kayn.analyze(model, jnp.zeros(3))
