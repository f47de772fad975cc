"""Models with `scan`: brute-force enumeration of all paths, closed forms, the textbook forward algorithm."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import kayn
from kayn.axes.request import make_request
from kayn.contraction import chain_rounds
from kayn.contraction.chain_rounds import sum_over_paths
from kayn.contraction.steps.chain import Chain
from kayn.errors import ModelError, StructureWarning
from kayn.evidence.draws import draw_particles
from kayn.evidence.problem import build_problem
from kayn.guides.factorised import FactorisedGuide
from tests.laws.estimates import FALSE_ALARM, chi_square, chosen, close, estimates
from tests.laws.oracle import BruteForce, everything

RNG = np.random.default_rng(0)
Y = {n: RNG.normal(size=n).astype(np.float32) for n in (3, 4, 5, (3, 2), (4, 3), (4, 2))}
ENUMERATE = {"enumerate": "parallel"}


def walk(y=Y[3]):
    """A random walk with noise of unknown size, observed at every step."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(previous, now):
        z = numpyro.sample("z", dist.Normal(previous, scale))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=now)
        return z, z

    scan(step, jnp.array(0.3), y)


def regions(y=Y[3, 2]):
    """Walks in a plate, one observation missing, a covariate for every step, and the last state observed again."""
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

    def step(previous, now):
        y, x = now
        with numpyro.plate("regions", 2):
            z = numpyro.sample("z", dist.Normal(0.8 * previous + drift * x, 0.5))
            with numpyro.handlers.mask(mask=jnp.isfinite(y)):
                numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        return z, None

    y = jnp.asarray(y).at[1, 0].set(jnp.nan)
    last, _ = scan(step, jnp.zeros(2), (y, jnp.arange(3.0)))
    with numpyro.plate("regions_again", 2):
        numpyro.sample("final", dist.StudentT(4.0, last, 1.0), obs=jnp.array([0.5, -0.5]))


def second_order(y=Y[5]):
    """Two steps of memory through a carry of two."""

    def step(carry, now):
        one, two = carry
        z = numpyro.sample("z", dist.Normal(0.9 * one - 0.4 * two, 0.7))
        numpyro.sample("y", dist.StudentT(3.0, z, 1.0), obs=now)
        return (z, one), None

    (one, two), _ = scan(step, (jnp.array(0.2), jnp.array(-0.1)), y)
    numpyro.sample("difference", dist.Normal(one - two, 0.3), obs=0.4)


def two_chains(y=Y[3]):
    """Level and trend, each a chain, the level moved by the trend; one of them also enters the other's scale."""

    def step(carry, now):
        level, trend = carry
        trend = numpyro.sample("trend", dist.Normal(0.9 * trend, 0.3))
        level = numpyro.sample("level", dist.Normal(level + trend, jnp.exp(0.3 * trend)))
        numpyro.sample("y", dist.Normal(level, 1.0), obs=now)
        return (level, trend), None

    scan(step, (jnp.array(0.0), jnp.array(0.1)), y)


def hidden_markov(y=Y[5]):
    """Enumerated states with unknown means; the states of a plate of sequences would be a site with more dimensions."""
    table = jnp.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])
    with numpyro.plate("states", 3):
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))

    def step(previous, now):
        x = numpyro.sample("x", dist.Categorical(table[previous]), infer=ENUMERATE)
        numpyro.sample("y", dist.Normal(mean[x], 1.0), obs=now)
        return x, None

    scan(step, 0, y)


def switching(y=Y[3]):
    """A walk whose noise depends on an enumerated Markov state."""
    stay = jnp.array([[0.9, 0.1], [0.4, 0.6]])

    def step(carry, now):
        state, level = carry
        state = numpyro.sample("state", dist.Categorical(stay[state]), infer=ENUMERATE)
        level = numpyro.sample("level", dist.Normal(level, jnp.where(state == 0, 0.2, 1.5)))
        numpyro.sample("y", dist.Normal(level, 0.5), obs=now)
        return (state, level), None

    scan(step, (0, jnp.array(0.0)), y)


def local(y=Y[3]):
    """A latent of one step only beside the chain, and a weight that a recursion without latents computes."""

    def step(carry, now):
        previous, weight = carry
        z = numpyro.sample("z", dist.Normal(previous, 0.5))
        shock = numpyro.sample("shock", dist.Gamma(2.0, 1.0 + 0.1 * z**2))
        numpyro.sample("y", dist.Normal(z + weight * shock - 0.3 * previous, 1.0), obs=now)
        return (z, 0.5 * weight + 0.1), None

    scan(step, (jnp.array(0.0), jnp.array(1.0)), y)


def nested(y=Y[4, 3]):
    """A level for every country, which the chains of its regions return to."""
    country = jnp.array([0, 0, 1])
    with numpyro.plate("countries", 2):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))

    def step(previous, now):
        with numpyro.plate("regions", 3):
            z = numpyro.sample("z", dist.Normal(0.5 * previous + 0.5 * level[country], 0.4))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=now)
        return z, None

    scan(step, jnp.zeros(3), y)


def handed_on(y=Y[3, 2]):
    """A latent of every region travels along in the carry."""
    with numpyro.plate("regions", 2):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))

    def step(carry, now):
        previous, level = carry
        with numpyro.plate("regions", 2):
            z = numpyro.sample("z", dist.Normal(0.5 * previous + level, 0.4))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=now)
        return (z, level), None

    scan(step, (jnp.zeros(2), level), y)


def national(y=Y[3, 2]):
    """A chain for the nation inside those of its regions: no elimination order, so one of them has whole paths."""

    def step(carry, now):
        trend, previous = carry
        trend = numpyro.sample("trend", dist.Normal(trend, 0.3))
        with numpyro.plate("regions", 2):
            z = numpyro.sample("z", dist.Normal(0.7 * previous + trend, 0.5))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=now)
        return (trend, z), None

    scan(step, (jnp.array(0.0), jnp.zeros(2)), y)


def paths_outside(y=Y[4]):
    """The path leaves the loop and is observed outside, at every step."""

    def step(previous, _):
        z = numpyro.sample("z", dist.Normal(previous, 0.6))
        return z, z

    _, path = scan(step, jnp.array(0.0), None, length=4)
    smooth = numpyro.deterministic("smooth", 2 * path)
    with numpyro.plate("rows", 4):
        numpyro.sample("y", dist.Normal(smooth, 1.0), obs=y)


def accumulating(y=Y[3]):
    """Not Markov of any order: the carry adds up all states."""

    def step(total, now):
        z = numpyro.sample("z", dist.Normal(0.1 * total, 0.5))
        total = 0.9 * total + z
        numpyro.sample("y", dist.Normal(total, 1.0), obs=now)
        return total, None

    scan(step, jnp.array(0.0), y)


MODELS = [
    (walk, 3, {}),
    (regions, 2, {}),
    (second_order, 2, {}),
    (two_chains, 2, {}),
    (two_chains, 3, {"groups": [("level", "trend")]}),
    (hidden_markov, 2, {}),
    (switching, 2, {}),
    (local, 2, {}),
    (nested, 2, {}),
    (handed_on, 2, {}),
    (national, 2, {}),
    (paths_outside, 3, {}),
    (walk, 4, {"strategy": "global"}),
    (regions, 3, {"strategy": "local"}),
    (regions, 2, {"couple": {"z": "time"}}),
]


def build(model, count, options):
    guide = FactorisedGuide.from_model(model, ())
    problem = build_problem(model, guide, (), {}, guide.start, make_request(count, **options))
    return problem, guide, BruteForce(problem, model, guide)


@pytest.mark.parametrize(("model", "count", "options"), MODELS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_everything_matches_enumeration_of_paths(model, count, options, x64):
    problem, guide, oracle = build(model, count, options)
    assert oracle.combinations < 70_000
    draws = draw_particles(problem, problem.numbers, jax.random.key(1), guide.start)
    log_weights, expected, expected_gradient = everything(oracle, draws, guide.start)
    value, again, weights, gradient = estimates(problem, draws, guide.start)
    close(value, expected, 1e-9)
    close(again, expected, 1e-9)
    log_weights = np.asarray(log_weights)
    probabilities = np.exp(log_weights - np.logaddexp.reduce(log_weights))
    for name, marginal in oracle.marginals(probabilities).items():
        close(weights[name], marginal, 1e-9)
    for name, found in gradient.items():
        close(found, expected_gradient[name], 1e-9)
    drawn, (largest, best) = chosen(problem, draws, guide.start, jax.random.split(jax.random.key(2), 10_000))
    mine = {a.name for a in oracle.axes}
    drawn, best = ({n: v for n, v in found.items() if n in mine} for found in (drawn, best))
    assert chi_square(oracle.position(drawn), probabilities) > FALSE_ALARM
    position = oracle.position({n: np.asarray(v)[None] for n, v in best.items()})
    close(largest, np.max(log_weights), 1e-9)
    close(log_weights[position[0]], log_weights.max(), 1e-12)


LONG = RNG.normal(size=37)


@pytest.mark.parametrize(
    ("model", "count", "options"),
    [*MODELS[:10], (partial(walk, LONG), 3, {}), (partial(second_order, LONG[:18]), 2, {})],
    ids=lambda v: getattr(v, "__name__", str(v)[:20]),
)
def test_rounds_of_products_are_the_same_sum(model, count, options, x64, monkeypatch):
    """As on devices that do many things at once, with gradients; 37 steps are no power of two."""
    guide = FactorisedGuide.from_model(model, ())
    called, rounds, found = [], sum_over_paths, []
    monkeypatch.setattr(chain_rounds, "sum_over_paths", lambda *a: called.append(a) or rounds(*a))
    for worthwhile in (False, True):
        monkeypatch.setattr(chain_rounds, "worthwhile", lambda *_, answer=worthwhile: answer)
        problem = build_problem(model, guide, (), {}, guide.start, make_request(count, **options))
        assert any(isinstance(step, Chain) for step in problem.layout.plan.steps)
        draws = draw_particles(problem, problem.numbers, jax.random.key(1), guide.start)
        found.append(estimates(problem, draws, guide.start))
        assert bool(called) == worthwhile
    jax.tree.map(lambda a, b: close(a, b, 1e-9), *found)


def chains_of(problem):
    return [s for s in problem.layout.plan.steps if isinstance(s, Chain)]


def test_chains_are_contracted_as_chains():
    """Exactness would also hold for whole paths as particles; the point is that none of these need them."""
    for model in (
        walk,
        regions,
        second_order,
        two_chains,
        hidden_markov,
        switching,
        local,
        nested,
        handed_on,
        paths_outside,
    ):
        problem, _, _ = build(model, 2, {})
        assert len(chains_of(problem)) == 1, model.__name__
        assert all("time" not in c.plates for c in problem.layout.couplings), model.__name__
    assert build(national, 2, {})[0].layout.couplings


def test_float32_and_debug_nans():
    for model in (regions, second_order, switching):
        problem, guide, oracle = build(model, 2, {})
        with jax.debug_nans(True):
            draws = draw_particles(problem, problem.numbers, jax.random.key(1), guide.start)
            value, _, _, gradient = estimates(problem, draws, guide.start)
        _, expected, expected_gradient = everything(oracle, draws, guide.start)
        close(value, expected, 1e-4)
        for name, found in gradient.items():
            close(found, expected_gradient[name], 1e-3)


def test_what_is_not_markov_is_named_and_whole_paths_are_used(x64):
    with pytest.warns(StructureWarning, match=r"'z'.*not a Markov chain.*depends on its own earlier values"):
        problem, guide, oracle = build(accumulating, 3, {})
    assert not chains_of(problem)
    draws = draw_particles(problem, problem.numbers, jax.random.key(1), guide.start)
    _, expected, _ = everything(oracle, draws, guide.start)
    close(estimates(problem, draws, guide.start)[0], expected, 1e-9)


def test_a_subsampled_plate_in_a_loop_is_refused():
    def model(y=Y[3]):
        def step(previous, now):
            with numpyro.plate("regions", 4, subsample_size=2):
                numpyro.sample("z", dist.Normal(previous, 1.0))
            return previous, None

        scan(step, jnp.zeros(()), y)

    with pytest.raises(ModelError, match="'regions' is subsampled inside scan"):
        kayn.analyze(model)


# the chain of Heap, Leech & Aitchison (UAI 2023): z_t ~ N(z_{t-1}, 1/30) for 30 steps, x ~ N(z_30, 1), x = 4
EXACT = -5.2655


def long_chain(steps=30, x=4.0):
    def step(previous, _):
        z = numpyro.sample("z", dist.Normal(previous, (1 / steps) ** 0.5))
        return z, None

    last, _ = scan(step, jnp.zeros(()), None, length=steps)
    numpyro.sample("x", dist.Normal(last, 1.0), obs=x)


def long_prior(steps=30, x=None):
    def step(previous, _):
        z = numpyro.sample("z", dist.Normal(previous, (1 / steps) ** 0.5))
        return z, None

    scan(step, jnp.zeros(()), None, length=steps)


def test_the_exact_posterior_of_the_published_chain_weighs_the_published_evidence(x64):
    """All of whose paths have the same weight: z_t given z_{t-1} and x has the precisions of a step, and of all that
    is to come."""

    def posterior(steps=30, x=4.0):
        def step(previous, left):
            ahead = 1.0 + left / steps
            precision = steps + 1 / ahead
            z = numpyro.sample("z", dist.Normal((previous * steps + x / ahead) / precision, precision**-0.5))
            return z, None

        scan(step, jnp.zeros(()), jnp.arange(steps, 0, -1) - 1.0)

    paths = kayn.Importance(long_chain, posterior, 3, strategy="global", num_replicates=2, denominator="paired")
    found = paths.run(0, None)
    np.testing.assert_allclose(found.log_evidences, stats.norm(0, 2**0.5).logpdf(4.0), rtol=1e-12)
    np.testing.assert_allclose(found.log_evidence, EXACT, atol=5e-5)


@pytest.mark.parametrize(("count", "replicates"), [(2, 40_000), (10, 10_000)])
@pytest.mark.filterwarnings("ignore::kayn.errors.PoorFitWarning")
def test_the_prior_as_guide_is_unbiased(count, replicates):
    """Every z_t is drawn given z_{t-1} and divided by the mixture over all of the latter's particles.
    Four standard errors."""
    importance = kayn.Importance(long_chain, long_prior, num_particles=count, num_replicates=replicates)
    posterior = importance.run(0, None)
    assert len(chains_of(posterior.problem)) == 1
    ratio = np.exp(np.asarray(posterior.log_evidences) - EXACT)
    error = ratio.std() / replicates**0.5
    assert error < 0.02
    assert abs(ratio.mean() - 1) < 4 * error


def test_a_fitted_guide_finds_the_posterior_of_the_chain():
    posterior = kayn.fit(long_chain, num_particles=30, progress=False).posterior()
    # z_30 | x is N(2, 1/2); the whole path is Gaussian with mean 2 t / 30
    np.testing.assert_allclose(posterior.mean("z"), 2 * np.arange(1, 31) / 30, atol=0.1)
    assert abs(float(posterior.std("z")[-1]) - 0.5**0.5) < 0.1
    assert abs(float(posterior.log_evidence) - EXACT) < 0.3


def test_draws_are_joint_paths():
    """With a transition sd of 0.01 drawn paths have increments of 0.01, and not of the marginal spread."""

    def model(y):
        def step(carry, now):
            previous, scale = carry
            z = numpyro.sample("z", dist.Normal(previous, scale))
            numpyro.sample("y", dist.Normal(z, 2.0), obs=now)
            return (z, 0.01), None

        scan(step, (0.0, 1.0), y)

    y = 0.3 + 2 * np.random.default_rng(1).normal(size=8).astype(np.float32)

    def guide(y):
        numpyro.sample("z", dist.Normal(jnp.zeros(8), 0.6))

    near = kayn.Importance(model, guide, num_particles=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", kayn.errors.PoorFitWarning)
        paths = np.asarray(near.run(0, None, y).sample(1, 2000)["z"])
    increments = np.diff(paths, axis=1)
    assert paths.std(0).min() > 0.2
    assert abs(increments.std() / 0.01 - 1) < 0.1


def test_a_hidden_markov_model_equals_the_forward_algorithm(x64):
    states, steps, sequences = 4, 60, 3
    rng = np.random.default_rng(3)
    table, first = rng.dirichlet(np.ones(states), states), rng.dirichlet(np.ones(states))
    rate = rng.gamma(2.0, 3.0, states)
    y = rng.poisson(4.0, (steps, sequences))

    def model(y):
        def step(carry, now):
            previous, started = carry
            probs = jnp.where(started, jnp.asarray(table)[previous], jnp.asarray(first))
            with numpyro.plate("sequences", sequences):
                x = numpyro.sample("x", dist.Categorical(probs), infer=ENUMERATE)
                numpyro.sample("y", dist.Poisson(jnp.asarray(rate)[x]), obs=now)
            return (x, jnp.ones((sequences, 1), bool)), None

        scan(step, (jnp.zeros(sequences, int), jnp.zeros((sequences, 1), bool)), y)

    posterior = kayn.Importance(model, num_particles=1).run(0, None, jnp.asarray(y))
    likelihood = stats.poisson(rate).pmf(y[..., None])
    total, gamma = 0.0, np.zeros((steps, sequences, states))
    for s in range(sequences):
        alpha = np.zeros((steps, states))
        alpha[0] = first * likelihood[0, s]
        for t in range(1, steps):
            alpha[t] = alpha[t - 1] @ table * likelihood[t, s]
        beta = np.ones(states)
        for t in reversed(range(steps)):
            gamma[t, s] = alpha[t] * beta / alpha[-1].sum()
            beta = table @ (beta * likelihood[t, s])
        total += np.log(alpha[-1].sum())
    np.testing.assert_allclose(float(posterior.log_evidence), total, rtol=1e-9)
    np.testing.assert_allclose(np.moveaxis(np.asarray(posterior.weights("x")), 0, -1), gamma, atol=1e-9)


def test_forecasts_use_future_covariates():
    def model(x, y=None):
        beta = numpyro.sample("beta", dist.Normal(0.0, 1.0))

        def step(previous, now):
            x, y = now
            z = numpyro.sample("z", dist.Normal(previous + beta * x, 0.1))
            numpyro.sample("y", dist.Normal(z, 0.1), obs=y)
            return z, None

        scan(step, jnp.zeros(()), (x, y), length=len(x))

    x = np.ones(30, np.float32)
    y = np.cumsum(x[:20]) + 0.1 * np.random.default_rng(0).normal(size=20).astype(np.float32)
    posterior = kayn.fit(model, args=(x[:20], y), num_particles=30, progress=False).posterior()
    later = posterior.predictive(0, 500, np.concatenate([x[:20], 0 * x[20:25], x[25:]]))["y"]
    assert later.shape == (500, 30)
    np.testing.assert_allclose(later[:, :20].mean(0), y, atol=0.25)
    # no change for five steps, then one a step
    np.testing.assert_allclose(later[:, 20:].mean(0), [20] * 5 + [21, 22, 23, 24, 25], atol=0.4)
    assert later[:, 29].std() > 1.5 * later[:, 20].std()


@pytest.mark.parametrize("loss", [kayn.VI, kayn.RWS])
def test_losses_train_guides_of_chains(loss):
    model = walk
    guide = numpyro.infer.autoguide.AutoNormal(model)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.03), loss(10))
    result = svi.run(jax.random.key(0), 300, progress_bar=False)
    assert np.isfinite(result.losses).all()
    assert np.mean(result.losses[-50:]) < np.mean(result.losses[:20])


def test_padded_sequences_leave_the_evidence_as_it_is(x64):
    """The first model of NumPyro's hmm_enum example: sequences of unequal length, tones, masks;
    against the forward algorithm."""
    states, tones, lengths = 3, 4, np.array([5, 2, 4])
    rng = np.random.default_rng(5)
    table, tone = rng.dirichlet(np.ones(states), states), rng.uniform(0.1, 0.9, (states, tones))
    y = rng.integers(0, 2, (3, 5, tones))

    def model(y, lengths):
        def transition(carry, y):
            previous, t = carry
            with numpyro.plate("sequences", 3, dim=-2), numpyro.handlers.mask(mask=(t < lengths)[..., None]):
                x = numpyro.sample("x", dist.Categorical(jnp.asarray(table)[previous]), infer=ENUMERATE)
                with numpyro.plate("tones", tones, dim=-1):
                    numpyro.sample("y", dist.Bernoulli(jnp.asarray(tone)[x.squeeze(-1)]), obs=y)
            return (x, t + 1), None

        scan(transition, (jnp.zeros((3, 1), int), 0), jnp.swapaxes(y, 0, 1))

    posterior = kayn.Importance(model, num_particles=1).run(0, None, jnp.asarray(y), jnp.asarray(lengths))
    assert len(chains_of(posterior.problem)) == 1
    total = 0.0
    for s in range(3):
        alpha = table[0]
        for t in range(lengths[s]):
            if t:
                alpha = alpha @ table
            alpha = alpha * np.prod(np.where(y[s, t], tone, 1 - tone), -1)
        total += np.log(alpha.sum())
    np.testing.assert_allclose(float(posterior.log_evidence), total, rtol=1e-9)


def test_autoregression_on_observed_data(x64):
    """NumPyro's ar2 example: the loop has no latent, its carry is the conditioned data."""
    y = np.random.default_rng(6).normal(size=12).cumsum()

    def ar2(steps):
        constant = numpyro.sample("constant", dist.Normal(0.0, 1.0))
        one = numpyro.sample("one", dist.Normal(0.0, 1.0))
        two = numpyro.sample("two", dist.Normal(0.0, 1.0))

        def transition(carry, _):
            previous, before = carry
            now = numpyro.sample("y", dist.Normal(constant + one * previous + two * before, 1.0))
            return (now, previous), None

        with numpyro.handlers.condition(data={"y": jnp.asarray(y[2:])}):
            scan(transition, (y[1], y[0]), jnp.arange(steps))

    guide = FactorisedGuide.from_model(ar2, (10,))
    problem = build_problem(ar2, guide, (10,), {}, guide.start, make_request(6))
    oracle = BruteForce(problem, ar2, guide, (10,))
    draws = draw_particles(problem, problem.numbers, jax.random.key(1), guide.start)
    _, expected, _ = everything(oracle, draws, guide.start)
    close(estimates(problem, draws, guide.start)[0], expected, 1e-9)
    posterior = kayn.fit(ar2, args=(10,), num_particles=20, progress=False).posterior()
    design = np.stack([np.ones(10), y[1:-1], y[:-2]], 1)
    exact = np.linalg.solve(design.T @ design + np.eye(3), design.T @ y[2:])
    found = [float(posterior.mean(n)) for n in ("constant", "one", "two")]
    np.testing.assert_allclose(found, exact, atol=0.15)
