"""A guide's support must hold the latent's, and its draws must have a density: else it is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms
from scipy.stats import norm

import kayn
from kayn.errors import GuideError
from kayn.evidence.problem import build_problem
from kayn.inference.importance import Importance


def build(prior, guide):
    """Trace and compare, without running anything."""

    def model():
        b = numpyro.sample("b", prior)
        numpyro.sample("y", dist.Normal(jnp.sum(1.0 * b), 1.0), obs=0.5)

    return build_problem(model, lambda: numpyro.sample("b", guide), (), {}, {}, Importance(model).request)


NORMAL, PAIR = dist.Normal(0.0, 1.0), np.array([1.0, 2.0])
TOO_SMALL = {
    "positive for real": (NORMAL, dist.Gamma(2.0, 2.0)),
    "interval for real": (NORMAL, dist.Uniform(-0.6, 0.6)),
    "truncated on one side": (NORMAL, dist.LeftTruncatedDistribution(dist.Normal(0.0, 1.0), low=jnp.array(-1.0))),
    "truncated": (NORMAL, dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=1.0)),
    "circle for real": (NORMAL, dist.VonMises(0.0, 1.0)),
    "shifted, declared real": (
        NORMAL,
        dist.TransformedDistribution(NORMAL, [transforms.ExpTransform(), transforms.AffineTransform(-3.0, 1.0)]),
    ),
    "one element of two": (dist.Uniform(0.0, PAIR).to_event(1), dist.Uniform(0.0, np.ones(2)).to_event(1)),
    "starts later": (dist.Exponential(1.0), dist.Pareto(1.0, 1.0)),
    "two values of three": (dist.Categorical(np.ones(3) / 3), dist.Bernoulli(0.5)),
    "whole numbers within": (dist.DiscreteUniform(0, 5), dist.DiscreteUniform(1, 3)),
    "bounded counts": (dist.Poisson(2.0), dist.Binomial(5, 0.4)),
    "reals for a simplex": (dist.Dirichlet(np.ones(3)), dist.Normal(np.zeros(3), 1.0).to_event(1)),
    "improper": (dist.ImproperUniform(dist.constraints.real, (), ()), dist.LogNormal(0.0, 1.0)),
    "another total": (dist.Multinomial(4, np.ones(3) / 3), dist.Multinomial(3, np.ones(3) / 3)),
    "no multinomial": (dist.Multinomial(4, np.ones(3) / 3), dist.Poisson(np.ones(3)).to_event(1)),
}


@pytest.mark.parametrize("name", TOO_SMALL)
def test_supports_that_are_too_small_are_refused(name):
    with pytest.raises(GuideError, match="guide site 'b'"):
        build(*TOO_SMALL[name])


FITS = {
    "real for positive": (dist.Gamma(2.0, 2.0), NORMAL),
    "real for a circle": (dist.VonMises(0.0, 1.0), NORMAL),
    "the same ends": (dist.Uniform(0.0, PAIR).to_event(1), dist.Uniform(0.0, PAIR).to_event(1)),
    "unit interval": (dist.Uniform(0.0, 1.0), dist.Beta(2.0, 2.0)),
    "more values": (dist.Bernoulli(0.5), dist.Categorical(np.ones(3) / 3)),
    "unbounded counts": (dist.Binomial(5, 0.4), dist.Poisson(2.0)),
    "the same total": (dist.Multinomial(4, np.ones(3) / 3), dist.Multinomial(4, np.array([0.2, 0.3, 0.5]))),
    "simplex": (dist.Dirichlet(np.ones(3)), dist.Dirichlet(2 * np.ones(3))),
    "improper": (dist.ImproperUniform(dist.constraints.positive, (), ()), dist.LogNormal(0.0, 1.0)),
    "mixture": (NORMAL, dist.MixtureSameFamily(dist.Categorical(np.ones(2) / 2), dist.Normal(PAIR, 1.0))),
}


@pytest.mark.parametrize("name", FITS)
def test_supports_that_fit_are_taken(name):
    build(*FITS[name])


def chain():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(a, 1.0))
    numpyro.sample("y", dist.Normal(b, 1.0), obs=0.0)


def auxiliary(fn):
    return numpyro.sample("u", fn, infer={"is_auxiliary": True})


def beside():
    numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Delta(1.0))


def two_of_one():
    u = auxiliary(dist.Normal(0.0, 1.0))
    numpyro.sample("a", dist.Delta(u))
    numpyro.sample("b", dist.Delta(u))


def no_jacobian():
    numpyro.sample("a", dist.Delta(2 * auxiliary(dist.Normal(0.0, 0.5))))
    numpyro.sample("b", dist.Normal(0.0, 1.5))


def of_a_latent():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Delta(2 * a))


@pytest.mark.parametrize("guide", [beside, two_of_one, no_jacobian, of_a_latent])
def test_points_without_a_joint_density_are_refused(guide):
    with pytest.raises(GuideError, match="Delta"):
        build_problem(chain, guide, (), {}, {}, Importance(chain).request)


def two_of_two():
    u = auxiliary(dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("a", dist.Delta(u[0]))
    numpyro.sample("b", dist.Delta(u[0] + u[1]))


def test_points_with_a_joint_density_are_evaluated():
    """The guide is the prior, so that weights are bounded: the standard error is below 0.01,
    the tolerance is 5 of them."""
    found = kayn.Importance(chain, two_of_two, 1000, num_replicates=4).run(0, None).log_evidence
    np.testing.assert_allclose(found, norm(0, 3**0.5).logpdf(0.0), atol=0.05)


def test_values_of_another_type_are_cast():
    """Geometric counts are floats in NumPyro, Poisson's are integers; the tolerance is 5 standard errors."""

    def model():
        n = numpyro.sample("n", dist.Geometric(0.4))
        numpyro.sample("y", dist.Normal(1.0 * n, 1.0), obs=2.6)

    n = np.arange(80)
    right = np.log(np.sum(0.4 * 0.6**n * norm.pdf(2.6, n)))
    importance = kayn.Importance(model, lambda: numpyro.sample("n", dist.Poisson(2.5)), 1000, num_replicates=4)
    np.testing.assert_allclose(importance.run(0, None).log_evidence, right, atol=0.1)


THIRDS, SHUT = jnp.ones(3) / 3, jnp.array([0.5, 0.5, 0.0])


def read_categories(guide_probs, model_probs=THIRDS, widths=(9.0, 9.0, 9.0), y=0.3):
    """Trace y, Normal with a width that a category chooses, beside another category."""

    def model():
        with numpyro.plate("rows", 2):
            other = numpyro.sample("other", dist.Bernoulli(0.5))
            b = numpyro.sample("b", dist.Categorical(model_probs))
            numpyro.sample("y", dist.Normal(0.0, jnp.array(widths)[b] + 0.0 * other), obs=y)

    def guide():
        with numpyro.plate("rows", 2):
            other = numpyro.sample("other", dist.Bernoulli(0.5))
            numpyro.sample("b", dist.Categorical(guide_probs(other)))

    build_problem(model, guide, (), {}, {}, Importance(model).request)


@pytest.mark.parametrize(
    "guide_probs",
    [
        lambda other: jnp.stack([THIRDS, SHUT]),
        lambda other: jnp.where(other[:, None] > 0, THIRDS, SHUT),
        lambda other: jnp.where(other[:, None] > 0, jnp.stack([THIRDS, SHUT]), THIRDS),
        lambda other: jnp.array([0.5, 0.5 - 1e-9, 1e-9]),
    ],
    ids=["one element", "given another latent", "one element given another latent", "too rare for float32"],
)
def test_categories_that_are_never_drawn_are_refused(guide_probs):
    with pytest.raises(GuideError, match="guide site 'b' has probability zero at 2"):
        read_categories(guide_probs)


@pytest.mark.parametrize(
    "options", [{"model_probs": SHUT}, {"widths": (9.0, 9.0, 0.01)}], ids=["no prior", "no likelihood"]
)
def test_categories_that_carry_no_weight_need_not_be_drawn(options):
    read_categories(lambda other: jnp.broadcast_to(SHUT, (2, 3)), **options)


def test_categories_too_rare_for_float32_are_drawn_in_float64(x64):
    read_categories(lambda other: jnp.array([0.5, 0.5 - 1e-9, 1e-9]))


def read_vectors(probs):
    """Trace vectors of 40 bits, all of which go with the data, under a guide of given probabilities of ones."""

    def model():
        with numpyro.plate("rows", 2):
            bits = numpyro.sample("bits", dist.Bernoulli(0.5).expand([40]).to_event(1))
            numpyro.sample("y", dist.Normal(0.0, 9.0), obs=0.0 * bits[..., 0])

    def guide():
        with numpyro.plate("rows", 2):
            numpyro.sample("bits", dist.Bernoulli(probs).to_event(1))

    build_problem(model, guide, (), {}, {}, Importance(model).request)


def test_vectors_that_are_merely_rare_are_taken():
    """All zeros have probability 0.5^40, as any other vector has."""
    read_vectors(jnp.full((2, 40), 0.5))


@pytest.mark.parametrize(("probability", "value"), [(0.0, 1), (1.0, 0)])
def test_one_element_of_a_vector_that_is_never_drawn_is_refused(probability, value):
    with pytest.raises(GuideError, match=f"guide site 'bits' has probability zero at {value}"):
        read_vectors(jnp.full((2, 40), 0.5).at[1, 7].set(probability))


def read_counts(logits_of_guide):
    """Trace how many of 9 trials succeed, under a guide that draws them with a share of its own."""

    def model():
        logits = numpyro.sample("logits", dist.Normal(0.0, 3.0))
        with numpyro.plate("rows", 2):
            n = numpyro.sample("n", dist.Binomial(9, logits=logits))
            numpyro.sample("y", dist.Normal(0.0, 9.0), obs=0.0 * n)

    def guide():
        numpyro.sample("logits", dist.Normal(0.0, 3.0))
        with numpyro.plate("rows", 2):
            numpyro.sample("n", dist.Binomial(9, logits=logits_of_guide))

    build_problem(model, guide, (), {}, {}, Importance(model).request)


def test_counts_that_are_merely_rare_are_taken():
    """No success at all has probability 1e-12, to which no single draw comes down."""
    read_counts(3.0)


def test_counts_that_are_never_drawn_are_refused():
    with pytest.raises(GuideError, match="guide site 'n' has probability zero at 1"):
        read_counts(-200.0)


def test_values_that_are_never_drawn_are_refused_within_a_program_of_the_users():
    with pytest.raises(GuideError, match="guide site 'n' has probability zero at 1"):
        jax.jit(lambda: read_counts(-200.0))()
