"""Fits and posteriors in files: the same answers to the bit in another process, and other files refused by name."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn import KaynError, checkpoints
from kayn.support.packing import pack, unpack

GROUP = np.array([0, 0, 1, 2, 2, 2], np.int32)
Y = np.array([0.3, -0.4, 1.1, 0.8, -0.2, 0.5])
pytestmark = pytest.mark.filterwarnings("ignore::kayn.errors.KaynWarning")

MODEL = """
import numpyro
import numpyro.distributions as dist


def model(group, groups, y=None, prior=1.0, floor=0):
    mu = numpyro.sample("mu", dist.Normal(0, prior))
    with numpyro.plate("groups", groups):
        a = numpyro.sample("a", dist.Normal(mu, 1))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("y", dist.Normal(a[group] + floor, 1), obs=y)
"""
names = {}
exec(MODEL, names)  # noqa: S102
model = names["model"]


def guide(group, groups, y=None):
    loc = numpyro.param("loc", 0.1)
    numpyro.sample("mu", dist.Normal(loc, 1))
    with numpyro.plate("groups", groups):
        numpyro.sample("a", dist.Normal(numpyro.param("locs", jnp.zeros(groups)), 1))


def answers(posterior):
    return {
        "log_evidence": posterior.log_evidence,
        **posterior.mean(),
        "sd": posterior.std("a"),
        "draws": posterior["a"],
        "scores": posterior.log_likelihood(0, 20)["y"],
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def fit():
    return kayn.fit(model, (GROUP, 3), {"y": Y}, num_particles=4, num_steps=16, rng_key=3, progress=False)


@pytest.fixture(scope="module")
def files(fit, tmp_path_factory):
    where = tmp_path_factory.mktemp("saved")
    fit.save(where / "fit.npz")
    fit.posterior(num_replicates=3).save(where / "posterior.npz")
    return where


def test_another_process_gives_the_same_answers(fit, files):
    program = f"""{MODEL}
import warnings
warnings.simplefilter("ignore")
import numpy as np
import kayn
found = kayn.load("{files}/fit.npz", model).posterior(num_replicates=3)
np.savez("{files}/found.npz", **found.mean(), log_evidences=found.log_evidences, draws=found["a"])
"""
    settings = {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(jax.config.read("jax_disable_most_optimizations")))}
    run = [sys.executable, "-c", program]
    subprocess.run(run, check=True, timeout=300, env={**os.environ, **settings})
    here, there = fit.posterior(num_replicates=3), np.load(files / "found.npz")
    assert_same(dict(there), {**here.mean(), "log_evidences": here.log_evidences, "draws": here["a"]})


def test_a_fit_comes_back(fit, files):
    found = kayn.load(files / "fit.npz", model)
    assert repr(found) == repr(fit)
    np.testing.assert_array_equal(found.log_evidence, fit.log_evidence)
    assert_same(found.params, fit.params)
    assert_same(answers(found.posterior(num_replicates=2)), answers(fit.posterior(num_replicates=2)))
    assert_same(answers(found.posterior(5, 2)), answers(fit.posterior(5, 2)))


def test_a_posterior_comes_back(fit, files, tmp_path):
    for posterior in (fit.posterior(num_replicates=3), fit.posterior(5, 2)):
        posterior.save(tmp_path / "p.npz")
        assert_same(answers(kayn.load(tmp_path / "p.npz", model)), answers(posterior))


@pytest.mark.parametrize("own", [True, False])
def test_importance_weighting_comes_back(tmp_path, own):
    given = None if own else guide
    posterior = kayn.Importance(model, given, {"mu": 4, "": 3}, num_replicates=2).run(1, None, GROUP, 3, y=Y)
    posterior.save(tmp_path / "p")
    assert_same(answers(kayn.load(tmp_path / "p", model, given)), answers(posterior))
    if not own:
        with pytest.raises(KaynError, match="made with a guide"):
            kayn.load(tmp_path / "p", model)


def test_a_fit_of_a_users_guide_by_gradients_comes_back(tmp_path):
    fit = kayn.fit(model, (GROUP, 3, Y), method="vi", guide=guide, num_particles=3, num_steps=8, progress=False)
    fit.save(tmp_path / "f")
    found = kayn.load(tmp_path / "f", model, guide)
    assert_same(answers(found.posterior(num_replicates=2)), answers(fit.posterior(num_replicates=2)))


def shifted(group, groups, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1.5))
    with numpyro.plate("groups", groups):
        a = numpyro.sample("a", dist.Normal(mu, 1))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("y", dist.Normal(a[group], 1), obs=y)


def cauchy(group, groups, y=None):
    numpyro.sample("mu", dist.Cauchy(0, 1))


def test_other_models_are_refused_by_what_is_different(files):
    for other, why in (
        (cauchy, "site 'mu' was sample Normal .*, but is sample Cauchy"),
        (lambda x: None, "called with the arguments in the file, it fails"),
        (shifted, "computes something else"),
    ):
        for name in ("fit", "posterior"):
            with pytest.raises(KaynError, match=f"{name}.npz does not hold a {name} of this model: .*{why}"):
                kayn.load(files / f"{name}.npz", other)
    with pytest.raises(KaynError, match="made without a guide"):
        kayn.load(files / "fit.npz", model, guide)


def changed(source, target, name, array):
    arrays, notes = checkpoints.arrays_of(source)
    checkpoints.save(target, {**arrays, name: array}, notes)


def test_files_that_are_something_else_are_refused(files, tmp_path):
    whole = (files / "posterior.npz").read_bytes()
    (tmp_path / "short").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    np.savez(tmp_path / "objects.npz", notes=np.array([{}], object))
    checkpoints.save(tmp_path / "checkpoint", {"w": np.ones(2)}, {"losses": []})
    for name, why in (
        ("short", "cannot be read"),
        ("pickle", "cannot be read: it is no .npz file"),
        ("objects.npz", "cannot be read"),
        ("missing", "cannot be read"),
        ("checkpoint", "holds no fit and no posterior"),
    ):
        with pytest.raises(KaynError, match=f"{name}.*{why}"):
            kayn.load(tmp_path / name, model)


def test_arrays_of_other_shapes_are_refused_by_name(files, tmp_path):
    for kind, name, array in (
        ("posterior", "found['draws']['values']['a']", np.zeros((3, 4, 2), np.float32)),
        ("posterior", "found['axis_weights']['kayn:K[a]']", np.zeros((3, 3, 4), np.float64)),
        ("fit", "found['state']['step']", np.zeros((2,), np.int32)),
    ):
        arrays, _ = checkpoints.arrays_of(files / f"{kind}.npz")
        assert name in arrays
        changed(files / f"{kind}.npz", tmp_path / "p", name, array)
        with pytest.raises(KaynError, match="under this model"):
            kayn.load(tmp_path / "p", model)


def test_arrays_that_are_missing_are_damage(files, tmp_path):
    with zipfile.ZipFile(files / "fit.npz") as whole, zipfile.ZipFile(tmp_path / "f", "w") as part:
        for name in whole.namelist():
            if "converged" not in name and "log_evidence" not in name:
                part.writestr(name, whole.read(name))
    with pytest.raises(KaynError, match="is damaged"):
        kayn.load(tmp_path / "f", model)


def test_arguments_that_no_file_holds_are_named():
    def calling(f, y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(f(mu), 1), obs=y)

    posterior = kayn.Importance(calling, None, 3).run(0, None, jnp.tanh, Y[0])
    with pytest.raises(KaynError, match=r"args\[0\] is .*functools.partial"):
        posterior.save("nowhere.npz")


def test_values_come_back_as_they_were():
    value = {
        "a": (1, 2.5, None, True, "x", [np.float32(3), jnp.arange(3), np.arange(2)]),
        2: {"texts": np.array([["b", "cc"]]), "nan": float("inf"), "half": jnp.ones(2, jnp.bfloat16)},
    }
    arrays = {}
    found = unpack(json.loads(json.dumps(pack("value", value, arrays))), arrays)
    assert repr(found) == repr(value)
    assert type(found["a"][5][2]) is np.ndarray
    with pytest.raises(KaynError, match=r"value\['f'\] is function "):
        pack("value", {"f": test_values_come_back_as_they_were}, {})


@pytest.mark.parametrize("part", ["double", "entry", "guide", "model", "args", "settings", "found", "labels", "kwargs"])
def test_parts_that_are_something_else_are_damage(files, tmp_path, part):
    arrays, notes = checkpoints.arrays_of(files / "fit.npz")
    for other in ({**notes, part: 17}, {n: v for n, v in notes.items() if n != part}):
        checkpoints.save(tmp_path / "f", arrays, other)
        with pytest.raises(KaynError, match=f"is damaged: '{part}'"):
            kayn.load(tmp_path / "f", model)
