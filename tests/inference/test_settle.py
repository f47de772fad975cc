"""A guide that is fitted again where the weights of its posterior are poor."""

from dataclasses import replace

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn.inference import ascent, settle
from kayn.posterior import enough, wider
from kayn.posterior.poor_fit import few_count, worst_efficiency

SIZE = 30
A = np.random.default_rng(2).normal(size=(SIZE, SIZE)).astype(np.float32) / SIZE**0.5
Y = A @ np.linspace(-1, 1, SIZE, dtype=np.float32)
COVARIANCE = np.linalg.inv(np.eye(SIZE) + A.T @ A / 0.1**2)
MEAN = COVARIANCE @ A.T @ Y / 0.1**2


def vector(y):
    z = numpyro.sample("z", dist.Normal(0, 1).expand([SIZE]).to_event(1))
    numpyro.sample("y", dist.Normal(A @ z, 0.1).to_event(1), obs=y)


@pytest.fixture(scope="module")
def early():
    """Of strongly correlated coordinates, while their covariance is not known well: without gradients."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ascent.Gradients, "lead", lambda *given: None)
        return kayn.fit(vector, (Y,), num_steps=480, progress=False)


@pytest.fixture(scope="module")
def own(early):
    """The posterior of its own particles."""
    return early.sampler.posterior(early.call, jax.random.key(1), 256)


@pytest.mark.filterwarnings("error::kayn.PoorFitWarning")
def test_a_guide_whose_covariance_is_not_known_yet_is_fitted_again(early, own):
    """Means and standard deviations within four errors (taken for effective draws alone) of the closed form."""
    assert few_count(own)
    found = early.posterior(escalate=False)
    assert "fitted again" in str(early)
    assert worst_efficiency(found) > 2 * worst_efficiency(own)
    error = (found.num_replicates * worst_efficiency(found) * early.sampler.qem.blocks[0].size) ** -0.5
    sd = np.diag(COVARIANCE) ** 0.5
    np.testing.assert_array_less(np.abs(found.mean("z") - MEAN) / sd, 4 * error)
    np.testing.assert_array_less(np.abs(found.std("z") / sd - 1), 4 * error)


def test_the_guide_has_the_moments_of_all_replicates(early, own):
    """By their shares, as the posterior has them; those that hold nothing possible do not count, whatever is there."""
    again = early.sampler.fitted_again(own)
    np.testing.assert_allclose(again.proposal["kayn:z:loc"], own.mean("z"), rtol=1e-3, atol=1e-4)
    covariance = again.state.moments["z"]["covariance"]
    np.testing.assert_allclose(np.diag(covariance) ** 0.5, own.std("z"), rtol=0.01)
    log_evidences, weights = jax.tree.map(np.array, (own.log_evidences, own.axis_weights))
    log_evidences[:3], weights[own.problem.layout.axis_of("z").name][:3] = -np.inf, np.nan
    found = early.sampler.fitted_again(replace(own, log_evidences=log_evidences, axis_weights=weights))
    draws, log_evidences, weights = jax.tree.map(lambda x: x[3:], (own.draws, own.log_evidences, own.axis_weights))
    fewer = early.sampler.fitted_again(replace(own, draws=draws, log_evidences=log_evidences, axis_weights=weights))
    for name, value in found.proposal.items():
        np.testing.assert_allclose(value, fewer.proposal[name], rtol=1e-4, atol=1e-5)


def looks(monkeypatch, efficiencies):
    """Efficiencies that guides have, one after the other."""
    left = iter(efficiencies)
    monkeypatch.setattr(settle, "worst_efficiency", lambda posterior: next(left))


def again(early, own):
    """How many times a guide is fitted, and taken."""
    fitted, taken = [], []
    sampler = early.sampler

    class Watched:
        problem, posterior = sampler.problem, sampler.posterior

        def fitted_again(self, found):
            fitted.append(found)
            return self

    reasons = tuple(settle.complaints(own))
    settle._fitted_again(Watched(), early.call, own, reasons, lambda draw: taken.append(draw) or own, jax.random.key(0))
    return len(fitted), len(taken)


def test_it_is_fitted_again_as_long_as_that_helps(early, own, monkeypatch):
    looks(monkeypatch, [0.3, 0.2, 0.4, 0.3, 0.4, 0.4])  # of a glimpse, and of what was before
    assert again(early, own) == (3, 2)
    looks(monkeypatch, [0.4, 0.1] * 20)
    assert again(early, own) == (settle.MOST, settle.MOST)


@pytest.mark.parametrize("why", ["nothing", "few", "dear"])
def test_it_is_left_as_it_is(early, own, monkeypatch, why):
    """Where nothing is said against it and many of its particles count, replicates are too few to say so, or new ones
    take long."""
    if why == "nothing":
        monkeypatch.setattr(settle, "complaints", lambda posterior: iter(()))
        monkeypatch.setattr(settle, "few_count", lambda posterior: False)
    if why == "few":
        monkeypatch.setattr(wider, "MIN_REPLICATES", 257)
    if why == "dear":
        monkeypatch.setattr(wider, "OPERATIONS", 0)
    assert again(early, own) == (0, 0)


@pytest.mark.parametrize("cured", [True, False])
def test_heavy_tails_alone_are_for_a_wider_guide(cured, early, own, monkeypatch):
    """One whose vectors follow the model is asked only where they remain; a second time nothing is."""
    asked = []

    def assured(found, reasons, *_):
        asked.append("wider")
        return found, () if cured else reasons

    monkeypatch.setattr(settle, "_fitted_again", lambda sampler, call, found, reasons, *_: (sampler, found, reasons))
    monkeypatch.setattr(settle, "complaints", lambda _: ["k-hat"])
    monkeypatch.setattr(settle, "of_tails_alone", lambda _: True)
    monkeypatch.setattr(settle, "assured", assured)
    monkeypatch.setattr(settle, "_following", lambda *_: asked.append("following"))
    found = settle.settled(early.sampler, early.call, own, lambda draw: draw(None, 1), jax.random.key(0))
    assert asked == (["wider"] if cured else ["wider", "following"])
    assert found.posterior is own and found.reasons == (() if cured else ("k-hat",))


@pytest.mark.parametrize("other", ["same", "moved", "doubted", "none"])
def test_slow_posteriors_are_confirmed_by_a_guide_that_follows_the_model(other, early, own, monkeypatch):
    """That is asked before a wider one, whose replicates take as long; which has its say if the two do not agree."""
    asked, reasons = [], ("doubt",) if other == "doubted" else ()
    second = early.sampler.posterior(early.call, jax.random.key(2), 256)
    if other == "moved":
        draws = replace(second.draws, values={n: v + 1 for n, v in second.draws.values.items()})
        second = replace(second, draws=draws)
    following = None if other == "none" else settle._Following(None, second, reasons)

    def assured(found, reasons, *_):
        asked.append("wider")
        return found, reasons

    monkeypatch.setattr(settle, "SLOW", 0)
    monkeypatch.setattr(settle, "_fitted_again", lambda sampler, call, found, *_: (sampler, found, ()))
    monkeypatch.setattr(settle, "assured", assured)
    monkeypatch.setattr(settle, "_following", lambda *_: asked.append("following") or following)
    found = settle.settled(early.sampler, early.call, own, lambda draw: draw(None, 1), jax.random.key(0))
    assert asked == (["following"] if other == "same" else ["following", "wider"])
    assert found.posterior is (own if other == "none" else second) and found.reasons == reasons


@pytest.mark.parametrize("counted", [False, True])
def test_more_replicates_come_before_chains(counted, early, own, monkeypatch):
    """Where more particles of the same guide are all that is missing they are drawn; not beside a number that was
    asked for."""
    monkeypatch.setattr(settle, "_fitted_again", lambda sampler, call, found, reasons, *_: (sampler, found, reasons))
    monkeypatch.setattr(settle, "_following", lambda *_: None)
    monkeypatch.setattr(settle, "of_tails_alone", lambda _: False)
    monkeypatch.setattr(settle, "assured", lambda found, reasons, *_: (found, reasons))
    monkeypatch.setattr(settle, "complaints", lambda found: ["few"] if found is few else [])
    monkeypatch.setattr(settle, "more_would_do", lambda found: found is few)
    monkeypatch.setattr(enough, "KNOWN", 1e-6)
    monkeypatch.setattr(enough, "MOST", 128)
    key = jax.random.key(3)
    few = early.sampler.posterior(early.call, key, 32)
    found = settle.settled(early.sampler, early.call, few, enough.Replicates(key, 32 if counted else None), key)
    assert found.posterior.num_replicates == (32 if counted else 128)
    assert found.reasons == (("few",) if counted else ())
