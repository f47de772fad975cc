"""Parts of a posterior that no particle of the fitted guide meets."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn.posterior import poor_fit
from kayn.posterior.poor_fit import complaints, of_tails_alone
from kayn.posterior.wider import REACHING, WIDENED, assured


def parts(gap, share, spread):
    """A posterior of two parts: a standard Normal, and another of a share, at a distance."""

    def model():
        z = numpyro.sample("z", dist.Normal(0, 20))
        first = jnp.log1p(-share) + dist.Normal(0, 1).log_prob(z)
        second = jnp.log(share) + dist.Normal(gap, spread).log_prob(z)
        numpyro.factor("parts", jnp.logaddexp(first, second) - dist.Normal(0, 20).log_prob(z))

    mean = share * gap
    return model, mean, ((1 - share) + share * (spread**2 + gap**2) - mean**2) ** 0.5


def test_a_part_that_the_guide_leaves_out_is_seen_and_sampled(monkeypatch):
    """Where weights of the wider guide vary too much to be the posterior themselves."""
    monkeypatch.setattr("kayn.posterior.wider.EVEN_SPREAD", 0.0)
    model, mean, sd = parts(6.0, 0.1, 1.5)
    fit = kayn.fit(model, progress=False, rng_key=3)
    with pytest.warns(kayn.PoorFitWarning, match="latent 'z': particles of a wider guide tell of another posterior"):
        weighed = fit.posterior(escalate=False)
    # by this key the guide has settled on one part, and its own weights say nothing against it
    assert weighed.mean("z") < mean - 0.2 * sd
    assert weighed.std("z") < 0.7 * sd
    assert not list(complaints(weighed))
    chains = fit.posterior()
    assert isinstance(chains, kayn.Chains)
    assert "wider guide" in str(fit)
    error = chains.summary().to_dataframe().loc["z", "MC error"]
    assert abs(chains.mean("z") - mean) < 4 * error + 0.02 * sd
    assert abs(chains.std("z") / sd - 1) < 0.2


@pytest.mark.filterwarnings("error::kayn.PoorFitWarning")
def test_a_guide_that_reaches_both_parts_is_left_alone():
    model, mean, sd = parts(4.5, 0.3, 1.0)
    found = kayn.fit(model, progress=False).posterior()
    assert not isinstance(found, kayn.Chains)
    assert abs(found.mean("z") - mean) < 0.02 * sd
    assert abs(found.std("z") / sd - 1) < 0.02


def standard(y):
    z = numpyro.sample("z", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(z, 1), obs=y)


def weighed(loc, scale, key=0, y=0.0, count=64):
    def guide(y):
        numpyro.sample("z", dist.Normal(loc, scale))

    return kayn.Importance(standard, guide, num_particles=100, num_replicates=count).run(key, None, y)


def judged(found, wider):
    """What `assured` gives for a posterior and draws of wider guides."""
    return assured(found, tuple(complaints(found)), wider, lambda draw: draw(None, 64), jax.random.key(0))


def doubts(found, draw):
    """What `assured` says, given what is drawn by how much wider the guide is."""

    def wider(how, vectors):
        return None if draw is None else lambda key, count: draw(how)

    best, reasons = judged(found, wider)
    assert best.widened == (best is not found)
    return best.draws, reasons


@pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")
def test_a_wider_guide_without_heavy_tails_takes_the_place_of_one_with(monkeypatch):
    """Whatever else the weights say: most may be even, and of the tails a particle in thousands tells."""
    monkeypatch.setattr(poor_fit, "POOR_KHAT", 0.4)
    narrow, wide = weighed(0.0, 0.4), weighed(0.0, 1.3, 1)
    assert any("k-hat" in text for text in complaints(narrow))
    assert not list(complaints(narrow, uneven=False, tails=False))
    assert doubts(narrow, lambda how: wide) == (wide.draws, ())
    monkeypatch.setattr(poor_fit, "GOOD_EFFICIENCY", 0.1)  # so that nothing is said against it
    assert not list(complaints(narrow))
    assert doubts(narrow, lambda how: wide) == (wide.draws, ())


@pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")
def test_heavy_tails_are_told_from_poor_weights(monkeypatch):
    monkeypatch.setattr(poor_fit, "POOR_KHAT", 0.4)
    narrow, elsewhere = weighed(0.0, 0.4), weighed(6.0, 0.3)
    assert list(complaints(narrow)) and of_tails_alone(narrow)
    assert list(complaints(elsewhere)) and not of_tails_alone(elsewhere)


@pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")
def test_heavy_tails_are_confirmed_or_not(monkeypatch):
    """Where weights of a wider guide vary, it still knows whether something is missing in the tails."""
    monkeypatch.setattr(poor_fit, "POOR_KHAT", 0.4)
    monkeypatch.setattr("kayn.posterior.wider.EVEN_SPREAD", 0.0)
    narrow, asked = weighed(0.0, 0.4), []

    def draws(found):
        return lambda how: asked.append(how) or found

    assert doubts(narrow, draws(weighed(0.0, 1.3, 1))) == (narrow.draws, ())
    assert doubts(narrow, draws(weighed(0.5, 1.3, 1, 1.0))) == (narrow.draws, tuple(complaints(narrow)))
    assert set(asked) == {REACHING, WIDENED[0]}
    assert doubts(narrow, None) == (narrow.draws, tuple(complaints(narrow)))


@pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")
def test_wider_guides_whose_weights_vary_too_much_do_not_judge(monkeypatch):
    monkeypatch.setattr("kayn.posterior.wider.EVEN_SPREAD", 0.0)
    right, asked = weighed(0.0, 0.8), []
    uneven = weighed(6.0, 0.3)  # which says that the mean is elsewhere

    def draw(how):
        asked.append(how)
        return uneven if how == WIDENED[0] else weighed(0.0, 1.3, 1)

    assert doubts(right, draw) == (right.draws, ())
    assert asked == [WIDENED[0], WIDENED[1], WIDENED[1]]  # a glimpse is enough to see that


@pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")
@pytest.mark.parametrize("dear", [False, True])
def test_few_replicates_are_looked_at_where_they_are_dear(dear, monkeypatch):
    if dear:
        monkeypatch.setattr("kayn.posterior.wider.LOOK", 0)
    right, wide, counts = weighed(0.0, 0.8), weighed(0.0, 1.3, 1), []
    monkeypatch.setattr("kayn.posterior.wider.EVEN_SPREAD", 0.0)

    def draw(key, count):
        counts.append(count)
        return wide

    assert assured(
        right, tuple(complaints(right)), lambda how, vectors: draw, lambda draw: draw(None, 64), jax.random.key(0)
    ) == (right, ())
    assert counts == ([16] if dear else [16, 64])


@pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")
def test_what_is_poor_anyway_is_not_looked_at():
    far = weighed(6.0, 0.5)
    assert any(complaints(far, uneven=False, tails=False))
    assert doubts(far, None) == (far.draws, tuple(complaints(far)))


@pytest.mark.filterwarnings("error::kayn.PoorFitWarning")
@pytest.mark.parametrize(("gap", "share", "spread"), [(0.0, 0.03, 4.0), (4.0, 0.02, 2.0), (6.0, 0.1, 1.5)])
def test_tails_that_the_guide_hardly_meets_are_known(gap, share, spread):
    """Its own weights are even, nothing is said against them but where a particle happens to be in that tail, and the
    standard deviation is short."""
    model, mean, sd = parts(gap, share, spread)
    fit = kayn.fit(model, progress=False)
    own = fit.sampler.posterior(fit.call, jax.random.key(1), 32)
    assert ["one replicate of 32" in text for text in complaints(own)] == [True] * (gap == 6.0)
    assert own.std("z") < 0.97 * sd
    found = fit.posterior()
    assert "posterior: of a wider guide" in str(fit)
    assert not found.check()  # though few of a wide guide's particles weigh much
    assert abs(found.mean("z") - mean) < 0.005 * sd
    assert abs(found.std("z") / sd - 1) < 0.01


def test_posteriors_of_a_wider_guide_are_saved(tmp_path):
    model, *_ = parts(0.0, 0.03, 4.0)
    found = kayn.fit(model, progress=False).posterior()
    assert found.widened
    found.save(tmp_path / "posterior.npz")
    again = kayn.load(tmp_path / "posterior.npz", model)
    assert again.widened
    np.testing.assert_array_equal(again.sample(0, 50)["z"], found.sample(0, 50)["z"])


def test_the_wider_guide_is_wider():
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([4]).to_event(1))
        numpyro.sample("s", dist.Gamma(3.0, 1.0))
        numpyro.sample("y", dist.Normal(z.sum(), 1), obs=1.0)

    sampler = kayn.fit(model, num_steps=8, progress=False).sampler
    wider = sampler.wider(8.0)
    for name, own in sampler.qem.get_params(sampler.state).items():
        made = wider.qem.get_params(wider.state)[name]
        if name.endswith("scale"):
            factor = np.sqrt(1 + 8 / 2) if "z" in name else 3.0
            np.testing.assert_allclose(made, factor * own, rtol=1e-5)
        if name.endswith("loc"):
            np.testing.assert_allclose(made, own, rtol=1e-5)
    assert sampler.wider(8.0) is wider
    again, own = (s.posterior(None, jax.random.key(0), 64) for s in (wider, sampler))
    assert abs(float(again.log_evidence - own.log_evidence)) < 0.1


def test_a_guide_is_made_wider_in_its_long_vectors_alone():
    def model():
        z = numpyro.sample("z", dist.Normal(0, 1).expand([8]).to_event(1))
        s = numpyro.sample("s", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z.sum() + s, 1), obs=1.0)

    sampler = kayn.fit(model, num_steps=8, progress=False).sampler
    wider, all_of_it = sampler.wider(2.0, True), sampler.wider(2.0)
    own, made, both = (s.qem.get_params(s.state) for s in (sampler, wider, all_of_it))
    for name in own:
        np.testing.assert_allclose(made[name], own[name] if "s:" in name else both[name], rtol=1e-5)
    assert not np.allclose(both["kayn:s:scale"], own["kayn:s:scale"])
    assert sampler.wider(2.0, True) is wider


@pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")
@pytest.mark.parametrize("alone", [True, False])
def test_noise_in_the_tails_is_confirmed_by_wider_vectors(monkeypatch, alone):
    """Where it is all there is against a posterior, and no guide that is wider in all coordinates can judge."""
    monkeypatch.setattr("kayn.posterior.poor_fit._missing_tails", lambda *given: iter(["tails differ"]))
    right, uneven, asked = weighed(0.0, 0.8), weighed(6.0, 0.3), []
    if not alone:
        monkeypatch.setattr("kayn.posterior.poor_fit._uneven", lambda *given: iter(["few particles"]))

    def wider(how, vectors):
        asked.append((how, vectors))
        return lambda key, count: weighed(0.0, 1.3, 1) if vectors else uneven

    reasons = () if alone else ("few particles",)
    assert judged(right, wider) == (
        right,
        reasons,
    )
    assert asked == [(how, False) for how in WIDENED] + [(WIDENED[-1], True)] * alone


@pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")
def test_wider_vectors_do_not_confirm_what_a_wider_guide_denies(monkeypatch):
    monkeypatch.setattr("kayn.posterior.poor_fit._missing_tails", lambda *given: iter(["tails differ"]))
    monkeypatch.setattr("kayn.posterior.wider.EVEN_SPREAD", 0.0)
    right, elsewhere, same = weighed(0.0, 0.8), weighed(0.5, 1.3, 1, 1.0), weighed(0.0, 1.3, 1)

    def wider(how, vectors):
        return lambda key, count: same if vectors else elsewhere

    assert judged(right, wider) == (
        right,
        ("tails differ",),
    )


@pytest.mark.filterwarnings("ignore::kayn.PoorFitWarning")
def test_moments_are_confirmed_by_as_many_replicates_as_it_takes(monkeypatch):
    """Or by none, where a thousand would not know them."""
    monkeypatch.setattr("kayn.posterior.poor_fit._uneven", lambda *given: iter(["few particles"]))
    monkeypatch.setattr("kayn.posterior.wider.EVEN_SPREAD", 0.0)
    right, counts = weighed(0.0, 0.8), []

    def draw(key, count):
        counts.append(count)
        return weighed(0.0, 1.3, 1, count=count)

    def confirmed(known_from):
        monkeypatch.setattr("kayn.posterior.wider._same", lambda own, seen: seen.num_replicates >= known_from)
        monkeypatch.setattr("kayn.posterior.wider._may_know", lambda own, seen, count: count >= known_from)
        counts.clear()
        return assured(
            right, tuple(complaints(right)), lambda how, vectors: draw, lambda draw: draw(None, 64), jax.random.key(0)
        )[1]

    assert confirmed(256) == ()
    assert counts == [16, 64, 64, *[32] * 6]
    assert confirmed(1024) == ()
    assert sum(counts[2:]) == 1024
    assert confirmed(1025) == ("few particles",)
    assert counts == [16, 64]  # as a thousand would not be enough


@pytest.mark.parametrize("unlucky", [1, 9])
def test_what_few_replicates_tell_is_asked_again(monkeypatch, unlucky):
    """Sixteen replicates of another posterior, and of the right one after these: chance; or of the other throughout."""
    monkeypatch.setattr("kayn.posterior.wider.LOOK", 0)  # sixteen are all that are drawn at first
    monkeypatch.setattr("kayn.posterior.wider.EVEN_SPREAD", 0.0)  # and take nobody's place
    found, asked = weighed(0.0, 0.75), []

    def draw(key, count):
        asked.append(count)
        return weighed(0.0, 1.0, len(asked), 1.0 if len(asked) <= unlucky else 0.0, count)

    best, reasons = assured(found, (), lambda how, vectors: draw, lambda draw: draw(None, 64), jax.random.key(0))
    assert best is found
    assert bool(reasons) == (unlucky > 1)
    assert asked == [16, 32, 32, 32]
