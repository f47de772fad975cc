"""What kayn relies on of NumPyro's private parts holds for the installed release, and stands in one file."""

import ast
import inspect
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.infer import SVI, Trace_ELBO
from numpyro.primitives import Messenger

import kayn
from kayn.support import numpyro_internals as internals

STEPS = 4


class Seen(Messenger):
    """Keeps a copy of every message."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            msg["kwargs"]["substitute_stack"] = list(internals.substitutions(msg))
        self.messages.append({**msg})


def loop(steps=STEPS):
    def step(carry, x):
        value = numpyro.sample("z", dist.Normal(carry, 1.0).expand([2]))
        return value[0], value

    return scan(step, 0.0, jnp.arange(steps))


def messages_of(program):
    seen = Seen()
    with seen, handlers.seed(rng_seed=0):
        program()
    return seen.messages


def test_loops_and_branches_are_told_apart():
    def program():
        loop()
        cond(True, lambda _: 0, lambda _: 1, None)

    told = [m for m in messages_of(program) if m["type"] == "control_flow"]
    assert [internals.is_scan(m) for m in told] == [True, False]


def test_a_loop_is_called_and_returns_as_known():
    names = list(inspect.signature(scan_wrapper).parameters)
    assert names[:7] == ["f", "init", "xs", "length", "reverse", "rng_key", "substitute_stack"]
    msg = next(m for m in messages_of(loop) if internals.is_scan(m))
    assert len(msg["args"]) == 5 and {"rng_key", "substitute_stack"} <= msg["kwargs"].keys()
    (length, _, carry), (trace, ys) = scan_wrapper(
        lambda c, x: (c + numpyro.sample("z", dist.Normal(x, 1.0)), c),
        0.0,
        jnp.arange(3.0),
        None,
        False,
        rng_key=jax.random.key(0),
    )
    assert (int(length), carry.shape, ys.shape) == (3, (), (3,)) and trace.trace["z"]["value"].shape == (3,)


def test_sites_of_loops_are_marked():
    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        loop()
        numpyro.sample("y", dist.Normal())
    assert {n: internals.is_in_scan(s) for n, s in trace.items() if s["type"] == "sample"} == {"z": True, "y": False}
    told = [m for m in messages_of(loop) if m["type"] == "sample"]
    assert [internals.is_told_afterwards(m) for m in told] == [True]
    told = messages_of(lambda: numpyro.sample("y", dist.Normal()))
    assert not any(map(internals.is_told_afterwards, told))


@pytest.mark.parametrize("kind", ["substitute", "condition"])
def test_substitutions_reach_the_sites_of_loops(kind):
    given = jnp.arange(2.0 * STEPS).reshape(STEPS, 2)

    class Gives(Messenger):
        def process_message(self, msg):
            if msg["type"] == "control_flow":
                internals.substitutions(msg).append((kind, {"z": given}))

    with handlers.seed(rng_seed=0), Gives():
        np.testing.assert_array_equal(loop()[1], given)


def test_values_at_steps():
    site = {"type": "sample", "name": "z", "fn": dist.Normal(), "kwargs": {"sample_shape": ()}}
    table = {"z": jnp.arange(3.0)}
    assert float(internals.value_at_step(table, jnp.array(2), 3, site)) == 2.0
    assert internals.value_at_step({}, jnp.array(2), 3, site) is None
    assert internals.value_at_step(table, jnp.array(2), 3, {**site, "type": "deterministic"}) is None
    assert float(internals.value_at_step(lambda s: 5.0, jnp.array(1), 3, {**site, "kwargs": {"sample_shape": ()}})) == 5


def test_all_steps_at_once_have_the_shapes_of_a_loop():
    def program(carry):
        return numpyro.sample("z", dist.Normal(carry, 1.0).expand([2]))

    def one(step):
        body = handlers.seed(internals.at_step(program, step), jax.random.key(0))
        return internals.as_pytree(handlers.trace(body).get_trace(0.0))

    at_once = jax.vmap(one)(jnp.arange(STEPS)).trace
    assert internals.is_in_scan(at_once["z"])
    internals.align_steps(at_once)
    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        loop()
    assert at_once["z"]["value"].shape == trace["z"]["value"].shape
    assert at_once["z"]["fn"].batch_shape == trace["z"]["fn"].batch_shape


def test_masks():
    mask = jnp.array([True, False])
    np.testing.assert_array_equal(internals.mask_of(dist.Normal().expand([2]).mask(mask)), mask)
    assert internals.mask_of(dist.Normal().mask(False)) is False


def test_checks_of_values():
    checked, unchecked = (dist.Gamma(2.0, validate_args=v) for v in (True, False))
    assert internals.checks_values(checked) and not internals.checks_values(unchecked)
    without = internals.without_checks(checked)
    assert not internals.checks_values(without) and internals.checks_values(checked)
    assert float(without.log_prob(3.0)) == float(checked.log_prob(3.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert list(internals.lies_within(checked, jnp.array([-1.0, 1.0]))) == [False, True]


MADE = {
    "expanded": dist.Normal().expand([2]),
    "independent": dist.Normal().expand([2]).to_event(1),
    "masked": dist.Normal().mask(jnp.array(True)),
    "transformed": dist.TransformedDistribution(dist.Normal(), dist.transforms.ExpTransform()),
    "one family": dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.zeros(2), 1.0)),
    "several families": dist.MixtureGeneral(dist.Categorical(jnp.ones(2) / 2), [dist.Normal(), dist.StudentT(3.0)]),
}


@pytest.mark.parametrize("name", MADE)
def test_parts_are_found_and_used(name):
    fn, seen = MADE[name], []

    class Shifted(dist.Distribution):
        def __init__(self, inner):
            self.inner = inner
            super().__init__(inner.batch_shape, inner.event_shape)

        support = dist.constraints.real

        def log_prob(self, value):
            return self.inner.log_prob(value) + 1.0

    def change(part):
        seen.append(part)
        return Shifted(part)

    value = jnp.full(fn.shape(), 0.7)
    moved, before = internals.changed_parts(fn, change).log_prob(value), fn.log_prob(value)
    assert len(seen) == (2 if name == "several families" else 1)
    # two independent elements carry one nat each, where the part is inside of them
    np.testing.assert_allclose(moved - before, 2.0 if name == "independent" else 1.0, rtol=1e-5)
    np.testing.assert_array_equal(fn.log_prob(value), before)
    if name != "several families":
        assert internals.changed_parts(fn, lambda part: part) is fn


class Users(dist.Normal):
    """A law of a user's."""


@pytest.mark.parametrize(
    "make",
    [
        lambda d: d,
        lambda d: d.expand([3]).to_event(1).mask(False),
        lambda d: dist.TransformedDistribution(d, dist.transforms.ExpTransform()),
        lambda d: dist.MixtureSameFamily(dist.Categorical(jnp.full(2, 0.5)), d.expand([2])),
        lambda d: dist.MixtureGeneral(dist.Categorical(jnp.full(2, 0.5)), [dist.Normal(), d]),
    ],
)
def test_laws_of_a_user_are_told_from_those_of_the_library(make):
    assert internals.is_of_numpyro(make(dist.Normal(0.0, 1.0)))
    assert not internals.is_of_numpyro(make(Users(0.0, 1.0)))


def test_asymmetric_laplace_by_quantile():
    fn = dist.AsymmetricLaplaceQuantile(0.3, 1.2, 0.7)
    other = internals.as_asymmetric_laplace(fn)
    assert isinstance(other, dist.AsymmetricLaplace)
    q = fn.quantile
    np.testing.assert_allclose(other.asymmetry, jnp.sqrt(q / (1 - q)), rtol=1e-6)
    np.testing.assert_allclose(other.log_prob(1.0), fn.log_prob(1.0), rtol=1e-6)


def test_whose_a_distribution_is():
    class Mine(dist.Normal):
        pass

    assert internals.is_numpyros_own(dist.Normal()) and internals.is_numpyros_own(dist.Bernoulli(0.5))
    assert not internals.is_numpyros_own(Mine())


def test_errors_are_told_apart():
    def twice():
        numpyro.sample("a", dist.Normal())
        numpyro.sample("a", dist.Normal())

    with pytest.raises(AssertionError) as error:
        handlers.trace(handlers.seed(twice, 0)).get_trace()
    assert internals.is_duplicate_name(error.value)
    assert not internals.is_duplicate_name(AssertionError("other"))

    with pytest.raises(NotImplementedError) as error, handlers.seed(rng_seed=0), numpyro.plate("rows", 2):
        loop()
    assert internals.is_loop_in_plate(error.value)


def test_mispaired_sites_are_named():
    def model():
        with numpyro.plate("rows", 3, subsample_size=2):
            numpyro.sample("z", dist.Normal())

    def takes_the_plate():
        numpyro.sample("rows", dist.Normal())

    def takes_the_latent():
        numpyro.param("z", jnp.zeros(3))

    for guide, found in ((takes_the_plate, ("rows", "plate")), (takes_the_latent, ("z", "latent"))):
        with pytest.raises(RuntimeError) as error:
            SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO()).init(jax.random.key(0))
        assert internals.mispaired(error.value) == found
    assert internals.mispaired(RuntimeError("other")) is None


def modules():
    root = Path(kayn.__file__).parent
    own = Path(internals.__file__)
    return {p.relative_to(root): ast.parse(p.read_text()) for p in root.rglob("*.py") if p != own}


def defined(tree):
    """Names that a module gives to something: functions, attributes and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_no_other_file_knows_what_is_private():
    trees = modules()
    own = {name for tree in trees.values() for name in defined(tree)} | {"_replace"}  # Python's, of named tuples
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("numpyro", "jax")):
                private = [a.name for a in node.names if a.name.startswith("_")]
                assert not private and "._" not in node.module, (path, node.lineno)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                assert node.attr in own, (path, node.lineno, node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith(("_scan_", "_control_flow_")), (path, node.lineno)
