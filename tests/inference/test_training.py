"""Training in minibatches: gradients of the whole data, epochs, phases, early stopping,
checkpoints that resume bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import kayn
from kayn import checkpoints, meters
from kayn.errors import DataError, KaynError
from kayn.inference.training import HELD_OUT, Phase, by_parameter, train

DATA = np.random.default_rng(0).normal(1.0, 1.5, size=60).astype(np.float32)


def model(x):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    slope, offset = numpyro.param("slope", 0.1), numpyro.param("offset", 0.0)
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal(slope * x + offset, scale))


def run(num_steps=40, loss=None, **options):
    phases = options.pop("phases", None) or Phase(loss or kayn.VI(5, "local"), optax.adam(0.05))
    settings = {"batch_size": 20, "progress": False, **options}
    return train(model, guide, phases, DATA, num_steps=num_steps, **settings)


def test_it_finds_the_posterior():
    """x ~ N(mu, 2), z | x ~ N((x + mu) / 2, 1/2): mu = mean of x."""
    falling = optax.adam(optax.exponential_decay(0.05, 500, 0.3))
    found = run(2000, phases=Phase(kayn.VI(5, "local"), falling)).params
    mu = DATA.mean()
    np.testing.assert_allclose(found["mu"], mu, atol=0.05)
    np.testing.assert_allclose([found["slope"], found["scale"]], [0.5, 0.5**0.5], atol=0.05)
    np.testing.assert_allclose(found["offset"], mu / 2, atol=0.05)


def test_every_row_comes_once_an_epoch():
    seen = run(6, loss=_Echo(), batch_size=20).losses * 20
    # three minibatches make an epoch; the loss is the sum of their rows
    np.testing.assert_allclose(seen.reshape(2, 3).sum(1), DATA.sum(), rtol=1e-5)
    assert abs(seen[0] - seen[3]) > 1e-3


class _Echo(kayn.VI):
    def objective(self, call, rng_key, params):
        return jnp.sum(call.args[0]) + 0.0 * params["mu"]


def test_minibatches_of_a_model_with_a_global_latent_are_scaled():
    """The mean loss over the minibatches of an epoch is that of all rows, with a guide of next to no spread.

    What is left of it is the density of its own draws, sd 0.012 a step and datum: 1e-3 of the loss is 4 or more
    standard errors of 1,800 steps' difference, 6e-5.
    """

    def whole(x, total):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", total, subsample_size=x.shape[0]):
            numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def point(x, total):
        loc = numpyro.param("loc", 0.3)
        numpyro.sample("mu", dist.Normal(loc, 1e-4))

    still = Phase(kayn.VI(1), optax.set_to_zero())
    steps = train(whole, point, still, DATA, 60, batch_size=10, num_steps=1800, progress=False).losses
    once = train(whole, point, still, DATA, 60, batch_size=60, num_steps=1800, progress=False).losses
    np.testing.assert_allclose(steps.mean(), once.mean(), rtol=1e-3)


def test_phases_have_their_own_optimisers_and_rhythm():
    sleepy = [Phase(kayn.RWS(3, "local"), optax.set_to_zero()), Phase(kayn.Sleep(2), optax.sgd(1e-3), every=2)]
    looks = run(4, phases=sleepy, look=lambda p: p, look_every=1).looks
    slope = np.array([v for _, v in looks["slope"]], np.float64)
    moved = np.diff(slope) != 0
    assert moved.tolist() == [True, False, True, False]  # sleep in steps 0 and 2
    assert np.ptp([v for _, v in looks["mu"]]) == 0  # it leaves the model alone


def test_rates_by_parameter():
    rules = by_parameter({"mu": optax.set_to_zero(), "s*": optax.sgd(1e-3), "*": optax.sgd(1e-2)})
    looks = run(1, phases=Phase(kayn.VI(5, "local"), rules), look=lambda p: p, look_every=1).looks
    plain = run(1, phases=Phase(kayn.VI(5, "local"), optax.sgd(1e-2)), look=lambda p: p, look_every=1).looks

    def moved(looks, name):
        return float(looks[name][1][1]) - float(looks[name][0][1])

    assert moved(looks, "mu") == 0
    np.testing.assert_allclose(moved(looks, "slope"), moved(plain, "slope") / 10, rtol=1e-3)
    np.testing.assert_allclose(moved(looks, "offset"), moved(plain, "offset"), rtol=1e-3)


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(KaynError, match="'scale' matches none of the patterns mu, o\\*, slope"):
        run(1, phases=Phase(kayn.VI(5, "local"), by_parameter({n: optax.sgd(0.1) for n in ("mu", "o*", "slope")})))


def test_it_stops_when_held_out_data_say_so_and_returns_the_best():
    wild = Phase(kayn.VI(5, "local"), optax.sgd(optax.join_schedules([lambda _: 0.01, lambda _: -0.02], [12])))
    found = run(600, phases=wild, held_out=DATA, patience=3, look_every=3)
    scores = [v for _, v in found.looks[HELD_OUT]]
    assert found.stopped_early
    assert len(found.losses) < 600
    assert int(np.argmax(scores)) == len(scores) - 4
    again = meters.log_evidence(model, guide, found.params, DATA, num_particles=2000).total / 60
    worse = meters.log_evidence(model, guide, found.last, DATA, num_particles=2000).total / 60
    assert abs(again - max(scores)) < 0.05
    assert worse < again


def test_a_broken_run_resumes_to_the_same_bits(tmp_path):
    def go(steps, path):
        phases = [Phase(kayn.RWS(3, "local"), optax.adam(0.05)), Phase(kayn.Sleep(), optax.adam(0.01), every=2)]
        return run(steps, phases=phases, held_out=DATA, look=lambda p: {"mu": p["mu"]}, checkpoint=path, rng_key=3)

    whole = go(12, tmp_path / "whole.npz")
    go(6, tmp_path / "broken.npz")
    resumed = go(12, tmp_path / "broken.npz")
    for name, value in whole.last.items():
        assert np.array_equal(value, resumed.last[name]), name
        assert np.array_equal(whole.params[name], resumed.params[name]), name
    assert np.array_equal(whole.losses, resumed.losses)
    for name, found in whole.looks.items():
        assert [(s, float(v)) for s, v in found] == [(s, float(v)) for s, v in resumed.looks[name]]


def test_a_finished_run_is_only_read(tmp_path):
    first = run(6, checkpoint=tmp_path / "c.npz")
    assert np.array_equal(first.losses, run(6, checkpoint=tmp_path / "c.npz").losses)


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    wild = Phase(kayn.VI(5, "local"), optax.sgd(-0.02))
    settings = {"phases": wild, "held_out": DATA, "patience": 2, "look_every": 3, "checkpoint": tmp_path / "c.npz"}
    first = run(60, **settings)
    assert first.stopped_early
    again = run(60, **settings)
    assert again.stopped_early
    assert len(again.losses) == len(first.losses) < 60


def test_checkpoints_of_something_else_are_refused(tmp_path):
    path = tmp_path / "c.npz"
    run(3, checkpoint=path)
    with pytest.raises(KaynError, match=r"is only in (the file|this run); it belongs to another model"):
        run(3, phases=Phase(kayn.VI(5, "local"), optax.sgd(0.1)), checkpoint=path)
    checkpoints.save(path, {"a": jnp.zeros(3)})
    with pytest.raises(KaynError, match=r"\['a'\] has shape \(3,\) and type float32, but this run has \(2,\)"):
        checkpoints.load(path, {"a": jnp.zeros(2)})


def test_checkpoints_keep_keys_and_notes(tmp_path):
    tree = {"key": jax.random.key(5), "n": (jnp.arange(3), 1.5)}
    checkpoints.save(tmp_path / "c.npz", tree, {"why": [1.25]})
    found, notes = checkpoints.load(tmp_path / "c.npz", tree)
    assert jax.random.bits(found["key"]) == jax.random.bits(tree["key"])
    assert np.array_equal(found["n"][0], [0, 1, 2])
    assert notes == {"why": [1.25]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phases": []}, r"phases is tuple \(\); it must be a kayn.Phase"),
        ({"phases": Phase(kayn.VI(5, "local"), optax.sgd(0.1), every=2)}, "the first phase has every=2"),
        ({"batch_size": 61}, "batch_size is 61, but data has 60 rows"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"patience": 2}, "no held_out data"),
        ({"held_out": (DATA, DATA[:3])}, r"held_out has shapes \(60,\), \(3,\)"),
    ],
)
def test_bad_arguments_are_named(options, message):
    settings = {
        "batch_size": 20,
        "num_steps": 1,
        "progress": False,
        "phases": Phase(kayn.VI(5, "local"), optax.sgd(0.1)),
    }
    settings |= options
    with pytest.raises((KaynError, DataError), match=message):
        train(model, guide, settings.pop("phases"), DATA, **settings)


def test_a_phase_is_due_in_whole_steps():
    with pytest.raises(KaynError, match="every is 0"):
        Phase(kayn.VI(5, "local"), optax.sgd(0.1), every=0)


def test_a_loss_that_is_not_finite_is_reported():
    with pytest.raises(KaynError, match=r"the loss is (nan|inf) at step \d+; lower the learning rate"):
        run(30, phases=Phase(kayn.VI(5, "local"), optax.sgd(1e6)))


def test_layers_tell_where_the_nats_go():
    """Closed forms: q = N(x/2, 1/2) against p = N(0, 1), x | z ~ N(z, 1)."""
    params = {"mu": 0.0, "slope": 0.5, "offset": 0.0, "scale": 0.5**0.5}
    found = meters.layers(model, guide, params, DATA, num_draws=4000)
    entropy = 60 * 0.5 * np.log(2 * np.pi * np.e * 0.5)
    np.testing.assert_allclose(found.entropy["z"], entropy, rtol=0.01)
    kl = np.sum(0.5 * (0.5 + (DATA / 2) ** 2 - 1 - np.log(0.5)))
    np.testing.assert_allclose(found.divergence["z"], kl, rtol=0.02)
    log_z = float(np.sum(-0.5 * np.log(2 * np.pi * 2) - DATA**2 / 4))
    # the guide is the posterior, so that the bound is tight:
    # 4,000 draws of a total with standard deviation below 8 nats
    np.testing.assert_allclose(found.elbo, log_z, atol=0.5)
    assert abs(found.gap(log_z)) < 0.5
