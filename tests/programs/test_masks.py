"""A mask changes the density where it stands and nothing else; particles are divided by what they were drawn from."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from numpyro import handlers
from numpyro.ops.indexing import Vindex
from scipy.stats import norm

import kayn
from kayn.graph.absent import absences

X = np.array([1.0, 2.0, -1.0], np.float32)
SEEN = np.array([True, False, True])


def evidence(model, guide=None, *args, params=None, num_particles=4, seed=0, **options):
    return kayn.Importance(model, guide, num_particles, **options).run(seed, params or {}, *args).log_evidence


# -- masked priors: where the mask stands


def normal(shape=()):
    return dist.Normal(jnp.zeros(shape), 1.0)


NESTINGS = {
    "mask, then event": lambda m: numpyro.sample("z", normal((3,)).mask(m).to_event(1)),
    "event, then mask": lambda m: numpyro.sample("z", normal((3,)).to_event(1).mask(False)),
    "expand, then mask": lambda m: numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).mask(m)),
    "mask, then expand": lambda m: numpyro.sample("z", dist.Normal(0.0, 1.0).mask(False).expand([3])),
    "two masks": lambda m: numpyro.sample("z", normal((3,)).mask(m).mask(np.array([True, True, False])).to_event(1)),
    "handler within a plate": lambda m: _plated(m, False),
    "handler around a plate": lambda m: _plated(m, True),
    "handler around two plates": lambda m: _two_plates(),
}


def _plated(m, outside):
    plate, mask = numpyro.plate("rows", 3), handlers.mask(mask=m)
    with mask if outside else plate, plate if outside else mask:
        return numpyro.sample("z", dist.Normal(0.0, 1.0))


def _two_plates():
    with handlers.mask(mask=False), numpyro.plate("outer", 3, dim=-2), numpyro.plate("inner", 1, dim=-1):
        return numpyro.sample("z", dist.Normal(0.0, 1.0))[:, 0]


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("masked_guide", [False, True])
def test_masked_elements_that_others_read_are_divided_by_their_density(nesting, masked_guide):
    """With the exact posterior as guide every weight is the evidence: no chance of a false alarm beyond rounding."""
    mask = np.array([False, True, False])
    left = {"event, then mask": np.zeros(3), "mask, then expand": np.zeros(3), "handler around two plates": np.zeros(3)}
    left = left.get(nesting, mask * 1.0) * (np.array([1, 1, 0]) if nesting == "two masks" else 1)

    def model():
        z = NESTINGS[nesting](mask)
        numpyro.sample("twin", normal((3,)).to_event(1), obs=z)
        numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=X)

    # of precision 2, or 3 where the prior counts too
    precision = 2.0 + left

    def guide():
        shape = (3, 1) if nesting == "handler around two plates" else (3,)
        fn = dist.Normal((X / precision).reshape(shape), (precision**-0.5).reshape(shape))
        fn = fn.mask(np.array([False, True, True]).reshape(shape)) if masked_guide else fn
        if "event" in nesting or nesting == "two masks":
            numpyro.sample("z", fn.to_event(1))
        elif nesting == "handler around two plates":
            with numpyro.plate("outer", 3, dim=-2), numpyro.plate("inner", 1, dim=-1):
                numpyro.sample("z", fn)
        elif "plate" in nesting:
            with numpyro.plate("rows", 3):
                numpyro.sample("z", fn)
        else:
            numpyro.sample("z", fn)

    # the product of 1 + left standard Normals is a Normal of that precision, times a constant
    n = 1.0 + left
    constant = -0.5 * (n - 1) * np.log(2 * np.pi) - 0.5 * np.log(n)
    right = np.sum(constant + norm(0, np.sqrt(1 + 1 / n)).logpdf(X))
    np.testing.assert_allclose(evidence(model, guide), right, rtol=1e-5)


@pytest.mark.parametrize("event", [False, True])
def test_elements_that_nothing_reads_are_in_no_factor(event):
    """`obs_mask=` draws a latent for every element, and reads it where the datum is missing only."""

    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        if event:
            # as numpyro.sample writes it, for an event of independent elements
            z = numpyro.sample("z", dist.Normal(mu, 1.0).expand([3]).mask(~SEEN).to_event(1))
            numpyro.sample(
                "seen", dist.Normal(mu, 1.0).expand([3]).mask(SEEN).to_event(1), obs=np.where(SEEN, X, np.nan)
            )
            z = jnp.where(SEEN, X, z)
        else:
            with numpyro.plate("rows", 3):
                z = numpyro.sample("z", dist.Normal(mu, 1.0), obs=np.where(SEEN, X, np.nan), obs_mask=SEEN)
        numpyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=X + 1)

    def guide(loc):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        fn = dist.Normal(loc, 1.0).expand([3])
        if event:
            numpyro.sample("z", fn.to_event(1))
        else:
            with numpyro.plate("rows", 3):
                numpyro.sample("z_unobserved", fn)

    # what is drawn for observed elements does not matter
    locs = np.array([5.0, 1.0, -7.0]), np.array([0.0, 1.0, 0.0])
    found = [evidence(model, partial(guide, loc), num_particles=20) for loc in locs]
    np.testing.assert_allclose(*found, rtol=1e-6)
    precision = np.array([[2.0 + 1.0, -1.0], [-1.0, 2.0]])  # of mu (prior, z, and two data below) and z
    precision[0, 0] = 1 + 3
    shift = np.array([X[SEEN].sum(), X[1] + 1])
    logs = norm.logpdf(np.r_[0, 0, X[SEEN], X[1] + 1, (X[SEEN] + 1) - X[SEEN]]).sum()
    right = (
        logs
        + 0.5 * shift @ np.linalg.solve(precision, shift)
        - 0.5 * np.linalg.slogdet(precision)[1]
        + np.log(2 * np.pi)
    )
    found = evidence(model, partial(guide, locs[1]), num_particles=1000, num_replicates=4)
    # an importance weight of bounded variance: the standard error is below 0.01, so 0.05 is far beyond 5 of them
    np.testing.assert_allclose(found, right, atol=0.05)


# -- masks that depend on latents


def absent_or_there(kind, present, where):
    if kind == "product":
        return present * where
    if kind == "where":
        return jnp.where(present > 0, where, 0.0)
    return jnp.dot(jnp.atleast_1d(present.astype(float)), jnp.atleast_1d(where.astype(float)))


@pytest.mark.parametrize("form", ["probs", "logits", "Bernoulli", "Vindex"])
def test_masked_rows_of_enumerated_latents_that_read_each_other(form):
    """A row whose latents and data are all masked leaves the evidence as it is,
    by whatever operations one reads the other."""
    table, prior = np.array([[0.2, 0.8], [0.4, 0.6]], np.float32), np.array([0.3, 0.7], np.float32)
    data = np.array([0.5, 1.5, 9.0], np.float32)
    options = {"infer": {"enumerate": "parallel"}}
    laws = {
        "probs": lambda a: dist.Categorical(jnp.asarray(table)[a]),
        "logits": lambda a: dist.Categorical(logits=jnp.log(jnp.asarray(table)[a])),
        "Bernoulli": lambda a: dist.Bernoulli(jnp.asarray(table)[a, 1]),
        "Vindex": lambda a: dist.Categorical(Vindex(jnp.stack([table, table]))[1, a]),
    }

    def model():
        with numpyro.plate("rows", 3), handlers.mask(mask=jnp.arange(3) < 2):
            a = numpyro.sample("a", dist.Categorical(prior), **options)
            b = numpyro.sample("b", laws[form](a), **options)
            numpyro.sample("x", dist.Normal(2.0 * b, 1.0), obs=data)

    right = np.log(norm.pdf(data[:2, None], [0.0, 2.0], 1) @ (prior @ table)).sum()
    np.testing.assert_allclose(evidence(model, lambda: None), right, rtol=1e-5)


@pytest.mark.parametrize("kind", ["product", "where", "dot"])
def test_enumerated_objects_that_may_be_absent(kind):
    """All latents are summed out, so that the number is exact."""
    values, probs = np.arange(3.0), np.array([0.2, 0.5, 0.3])

    def model():
        present = numpyro.sample("present", dist.Bernoulli(0.6), infer={"enumerate": "parallel"})
        with handlers.mask(mask=present.astype(bool)):
            where = numpyro.sample("where", dist.Categorical(probs), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(absent_or_there(kind, present, where), 0.5), obs=0.7)

    right = np.log(0.6 * probs @ norm.pdf(0.7, values, 0.5) + 0.4 * norm.pdf(0.7, 0, 0.5))
    np.testing.assert_allclose(evidence(model, lambda: None), right, rtol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "masked_guide", "plated", "enumerated"),
    [
        ("global", True, False, False),
        ("local", True, True, False),
        ("parallel", False, True, False),
        ("parallel", False, True, True),
    ],
)
def test_sampled_objects_that_may_be_absent(strategy, masked_guide, plated, enumerated):
    """The guide's place is the prior, so that weights are bounded by the likelihood: the standard error of four
    replicates is below 0.02, and the tolerance is 5 of them: 6e-7 a comparison."""
    data = np.array([0.7, -0.4], np.float32)

    def object_(guided):
        options = {} if guided or not enumerated else {"infer": {"enumerate": "parallel"}}
        present = None
        if not (guided and enumerated):
            present = numpyro.sample("present", dist.Bernoulli(0.6), **options)
        mask = True if present is None or (guided and not masked_guide) else present.astype(bool)
        with handlers.mask(mask=mask):
            return present, numpyro.sample("where", dist.Normal(0.0, 1.0))

    def model():
        if plated:
            with numpyro.plate("rows", 2):
                present, where = object_(False)
                numpyro.sample("x", dist.Normal(present * where, 0.5), obs=data)
        else:
            present, where = object_(False)
            numpyro.sample("x", dist.Normal(present * where, 0.5), obs=data[0])

    def guide():
        if plated:
            with numpyro.plate("rows", 2):
                object_(True)
        else:
            object_(True)

    right = np.log(0.6 * norm.pdf(data, 0, 1.25**0.5) + 0.4 * norm.pdf(data, 0, 0.5))
    count = 300 if strategy == "parallel" else 4000
    found = evidence(model, guide, num_particles=count, strategy=strategy, num_replicates=4)
    np.testing.assert_allclose(found, right.sum() if plated else right[0], atol=0.1)


def test_a_masked_latent_that_is_read_all_the_same_has_a_flat_prior_there():
    """x ~ Normal(z, 1) with no prior of z where the object is absent: the likelihood integrates to one in z."""

    def model():
        present = numpyro.sample("present", dist.Bernoulli(0.25), infer={"enumerate": "parallel"})
        with handlers.mask(mask=present.astype(bool)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=0.5)

    def guide():
        numpyro.sample("z", dist.Normal(0.4, 1.0))

    right = np.log(0.25 * norm.pdf(0.5, 0, 2**0.5) + 0.75)
    # weights are bounded; standard error 0.008 at this many particles
    np.testing.assert_allclose(evidence(model, guide, num_particles=4000), right, atol=0.05)


# -- NaN under masks


def _rows(form, y, keep, mu):
    if form == "mask, then event":
        numpyro.sample("y", dist.Normal(mu, 1.0).expand([4]).mask(keep).to_event(1), obs=y)
    elif form == "mask within a plate":
        with numpyro.plate("outer", 2, dim=-2):
            numpyro.sample("y", dist.Normal(mu, 1.0).expand([4]).mask(keep), obs=np.stack([y, y]))
    elif form == "handler within a plate":
        with numpyro.plate("outer", 2, dim=-2), numpyro.plate("rows", 4), handlers.mask(mask=keep):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=np.stack([y, y]))
    elif form == "handler around plates":
        with handlers.mask(mask=keep), numpyro.plate("outer", 2, dim=-2), numpyro.plate("rows", 4):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=np.stack([y, y]))
    elif form == "vectors":
        fn = dist.MultivariateNormal(jnp.stack([mu, -mu]), jnp.eye(2)).expand([4]).mask(keep).to_event(1)
        numpyro.sample("y", fn, obs=np.stack([y, y], -1))
    elif form == "two masks":
        once = dist.Gamma(2.0, jnp.exp(mu)).expand([4]).mask(keep).mask(np.array([True, True, True, False]))
        numpyro.sample("y", once.to_event(1), obs=np.abs(y))


@pytest.mark.parametrize(
    "form",
    [
        "mask, then event",
        "mask within a plate",
        "handler within a plate",
        "handler around plates",
        "vectors",
        "two masks",
    ],
)
def test_data_under_masks_may_be_anything(form):
    """Value and gradient are those with harmless numbers there, and no NaN arises on the way."""
    keep = np.array([True, False, True, False])

    def model(y):
        loc = numpyro.param("loc", 0.3)
        _rows(form, y, keep, numpyro.sample("mu", dist.Normal(loc, 1.0)))

    def guide(y):
        numpyro.sample("mu", dist.Normal(numpyro.param("q", 0.1), 1.0))

    def loss(params, y):
        return kayn.VI(3).loss(0, params, model, guide, y)

    params = {"loc": 0.3, "q": 0.1}
    right = jax.value_and_grad(loss)(params, np.array([0.5, 1.0, 2.0, 1.0], np.float32))
    with jax.debug_nans(True):
        found = jax.value_and_grad(loss)(params, np.array([0.5, np.nan, 2.0, np.inf], np.float32))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, right)


def test_unmasked_nan_is_refused_wherever_the_mask_stands():
    def model(y, keep):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        _rows("mask, then event", y, keep, mu)

    with pytest.raises(kayn.errors.DataError, match="1 NaN"):
        evidence(model, None, np.array([0.5, np.nan, np.nan, 1.0], np.float32), np.array([True, True, False, True]))


FIRST = jnp.array([True, False, False])
READS = {
    "place": lambda z: z[0],
    "slice": lambda z: z[:1].sum(),
    "split": lambda z: jnp.split(z, [1])[0][0],
    "known branch": lambda z: lax.cond(FIRST[0], lambda z: z[0], lambda z: z[1], z),
    "put elsewhere": lambda z: jnp.zeros(4).at[jnp.array([3, 1, 0])].set(z)[3],
    "covered": lambda z: z.at[1:].set(0.0).sum(),
    "slid": lambda z: lax.dynamic_update_slice(z, jnp.zeros(2), (1,)).sum(),
    "sorted rows": lambda z: jnp.sort(jnp.stack([z, z + 1]), 0)[0, 0],
    "any branch": lambda z: lax.cond(z[0] > 0.1, lambda z: z[:2][0], lambda z: z[0], z),
    "scan": lambda z: lax.scan(lambda c, x: (c + jnp.where(x[1], x[0], 0.0), c), 0.0, (z, FIRST))[0],
    "scan from the end": lambda z: lax.scan(lambda c, x: (x, c), 0.0, z, reverse=True)[0],
    "results of a scan": lambda z: lax.scan(lambda c, x: (c + x, c + x), 0.0, z)[1][0],
    "places in a loop": lambda z: lax.fori_loop(0, 1, lambda i, c: c + z[i], 0.0),
    "map": lambda z: lax.map(lambda x: 2 * x, z)[0] / 2,
    "print": lambda z: (jax.debug.callback(lambda x: None, z[0]), z[0])[1],
    "while": lambda z: lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1][::1], z[0]), (0, z, 0.0))[2],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_elements_that_are_left_out_are_absent(read):
    """Only the first element is in the model: the others are masked, and what is read leaves them out."""

    def model():
        with handlers.mask(mask=FIRST):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0))
        numpyro.sample("y", dist.Normal(read(z), 1.0), obs=0.3)

    def guide():
        numpyro.sample("z", dist.Normal(jnp.array([0.15, 0.0, 0.0]), jnp.array([0.5**0.5, 1.0, 1.0])))

    # the exact posterior as proposal: every weight is the evidence
    found = kayn.Importance(model, guide, 3, num_replicates=1).run(0, None).log_evidence
    np.testing.assert_allclose(found, norm(0, 2**0.5).logpdf(0.3), atol=1e-5)


def test_rows_that_a_mask_takes_out_of_a_vector_law_read_nothing():
    """Laws of vectors are solved for row by row, with all rows beside each other in one triangular system."""
    mask = np.array([False, True, True])

    def model():
        with numpyro.plate("rows", 3), handlers.mask(mask=mask):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            loc = jnp.stack([a, -a], -1)
            numpyro.sample("b", dist.MultivariateNormal(loc, scale_tril=jnp.array([[1.0, 0.0], [0.5, 0.8]])))

    program = kayn.Importance(model, None, 3).problem(None).model
    found = absences(program, [*program.consts, None, None])
    for name in ("a", "b"):
        np.testing.assert_array_equal(found[name], ~mask)


COUNTED = {
    "sorted": lambda z: jnp.sort(z)[0],
    "added at places": lambda z: jnp.zeros(2).at[jnp.array([0, 0, 0])].add(z)[0],
    "unknown branch": lambda z: lax.cond(z[0] > 0.1, lambda z: z[0] + z[1], lambda z: z[0] + z[2], z),
    "carried": lambda z: lax.scan(lambda c, x: (c + x, None), 0.0, z)[0],
    "ends a loop": lambda z: lax.while_loop(lambda s: s[0] < z[1] + z[2], lambda s: (s[0] + 1, s[1] / 2), (0, z[0]))[1],
    "carried on": lambda z: lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1][::-1]), (0, z))[1][0] + z[1],
}


@pytest.mark.parametrize("read", COUNTED.values(), ids=COUNTED)
def test_what_may_be_read_counts(read):
    def model():
        with handlers.mask(mask=FIRST):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0))
        numpyro.sample("y", dist.Normal(read(z), 1.0), obs=0.3)

    problem = kayn.Importance(model, None, 3).problem(None)
    program = problem.model
    assert not any(np.any(absent) for absent in absences(program, [*program.consts, None]).values())


@pytest.mark.parametrize(("read", "warns"), [(lambda z: z, True), (lambda z: jnp.where(FIRST, z, 0.0), False)])
def test_operations_without_a_rule_are_named(read, warns, recwarn):
    """A transform reads all elements; kayn says that it does not look into it, unless they are left out before."""

    def model():
        with handlers.mask(mask=FIRST):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0))
        numpyro.sample("y", dist.Normal(jnp.fft.rfft(read(z)).real[0], 1.0), obs=0.3)

    kayn.Importance(model, None, 3).problem(None)
    said = [str(w.message) for w in recwarn if "does not know which elements" in str(w.message)]
    assert len(said) == warns
    assert all("'z'" in text and "fft (test_masks.py line" in text for text in said)
