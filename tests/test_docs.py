"""Code in the guides runs, and does what the guides say."""

import re
import tomllib
import warnings
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from numpyro.contrib.module import nnx_module
from numpyro.infer import SVI, RenyiELBO
from numpyro.infer.autoguide import AutoNormal

import kayn

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "guides"


def block(page, containing):
    """The one code block of a guide that holds a text."""
    blocks = re.findall(r"```python\n(.*?)```", (GUIDES / page).read_text(encoding="utf-8"), re.S)
    (found,) = [b for b in blocks if containing in b]
    return found


def run(code, **names):
    exec(code, names)  # noqa: S102 (our own documentation)
    return names


@pytest.mark.parametrize("alpha", [0.5, -1.0])
def test_the_estimator_of_the_guide_is_numpyros(alpha):
    """Mean of 2,000 losses of both, with K joint particles: within five standard errors."""
    renyi = run(block("estimators.md", "class Renyi"))["Renyi"]

    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(mu, 0.5), obs=x)

    guide = AutoNormal(model)
    x = np.array([0.7, 1.1])
    svi = SVI(model, guide, optax.adam(0.1), RenyiELBO(alpha, 4))
    params = svi.get_params(svi.init(jax.random.key(0), x))
    keys = jax.random.split(jax.random.key(1), 2000)
    means, errors = [], []
    for loss in (renyi(4, "global", alpha=alpha), RenyiELBO(alpha, 4)):
        values = np.asarray(jax.lax.map(lambda k, loss=loss: loss.loss(k, params, model, guide, x), keys), np.float64)
        means.append(values.mean())
        errors.append(values.std() / len(keys) ** 0.5)
    assert abs(means[0] - means[1]) < 5 * np.hypot(*errors)
    assert errors[0] < 0.1


def test_the_sampling_of_the_guide_runs(capsys):
    mcmc = run(block("sampling.md", "MPGibbs"))["mcmc"]
    assert "held: film" in capsys.readouterr().out
    found, stars = mcmc.get_samples(), np.asarray(run(block("sampling.md", "MPGibbs").split("kernel =")[0])["data"][2])
    # what rows say of their users' means, to half a standard deviation of these
    means = np.asarray(found["level"][:, None] + found["user"]).mean(0) + np.asarray(found["film"]).mean()
    assert np.abs(means - stars.reshape(12, 8).mean(1)).max() < 0.25


def test_the_training_of_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = block("training.md", "eqx_module").replace("20_000", "6").replace("batch_size=100", "batch_size=10")
    images = (np.random.default_rng(0).random((30, 784)) < 0.2).astype(np.int32)
    found = run(code, images=images, test_images=images[:5])["found"]
    assert np.isfinite(found.losses).all()
    assert len(found.losses) == 6
    assert (tmp_path / "model.npz").exists()


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    "loss",
    [kayn.RWS(4, "local"), kayn.RWS(3, "local", sleep_phi=1.0), kayn.VIMCO(3, "local")],
    ids=["ww", "wsw", "vimco"],
)
def test_networks_of_flax_are_trained(loss):
    x = np.repeat(np.array([[1, 1, 0, 0], [0, 0, 1, 1]], np.float32), 10, 0)

    def model(x):
        weights = numpyro.param("weights", np.zeros((2, 4), np.float32))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Bernoulli(0.5 * np.ones(2)).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=(2.0 * z - 1.0) @ weights).to_event(1), obs=x)

    def guide(x):
        encoder = nnx_module("encoder", Encoder(rngs=nnx.Rngs(0)))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))

    found = SVI(model, guide, optax.adam(0.05), loss).run(jax.random.key(0), 300, x, progress_bar=False)
    # each of two patterns half of the time: log 2 nats a row at best
    assert found.losses[-20:].mean() / 20 < np.log(2) + 0.3
    assert found.losses[:5].mean() / 20 > 2.5


def test_the_table_of_layers_is_the_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [{part.strip(" ()") for part in re.split(r"[|:]", layer)} for layer in contract["layers"]]
    table = (ROOT / "CONTRIBUTING.md").read_text().split("| layer | says |\n|---|---|\n")[1].split("\n\n")[0]
    told = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table.splitlines()]
    assert told == layers


def test_files_that_contributing_names_exist():
    named = re.findall(r"\| `([a-z_]+/[a-z_]+\.py)` \|", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) >= 10
    for name in named:
        assert (ROOT / "src/kayn" / name).is_file(), name


def test_what_others_ask_for_is_there(tmp_path, monkeypatch, capsys):
    """Every cell of the table runs, in a directory of its own."""
    pytest.importorskip("formulae")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    names = run(re.search(r"```python\n(.*?)```", text, re.S)[1])
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    cells = [re.findall(r"`([^`]*)`", row)[-1].replace(r"\|", "|") for row in rows]
    assert len(cells) == 40
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few steps and few draws
        for cell in cells:
            exec(cell, names)  # noqa: S102 (our own documentation)
    assert names["groups"].mean("1|school").shape == (4,)
    assert (tmp_path / "fit.npz").exists()
