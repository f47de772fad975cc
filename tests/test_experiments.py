"""The experiments run, on cuts of their problems, and the covid model agrees with enumeration."""

import importlib
import itertools
import json
import os

import jax
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from numpyro.infer import SVI
from scipy import stats

from experiments import workarounds
from experiments.air import run as air
from experiments.gmm import run as gmm
from experiments.gradients import run as gradients
from experiments.hierarchical import run as hierarchical
from experiments.pcfg import run as pcfg
from experiments.sbn import layers
from experiments.sbn import run as sbn
from experiments.vae import run as vae
from kayn.axes.request import make_request
from kayn.evidence.draws import draw_particles
from kayn.evidence.problem import build_problem
from kayn.guides.factorised import FactorisedGuide
from kayn.meters import log_evidence
from tests.laws.estimates import close, estimates
from tests.laws.oracle import BruteForce, everything

needs_data = pytest.mark.skipif("KAYN_DATA" not in os.environ, reason="set KAYN_DATA to a directory with the data sets")


@pytest.mark.parametrize("name", workarounds.WORK_AROUNDS)
def test_work_arounds_stand_where_they_are_said_to(name):
    module, what = workarounds.WORK_AROUNDS[name].place.split(":")
    assert hasattr(importlib.import_module(module), what)


def test_verdicts_on_work_arounds():
    assert [workarounds.verdict(*x) for x in ((1.0, 2.0), (1.0, 1.0), (0.0, np.inf), (0.0, 0.0), (np.inf, 0.0))] == [
        "keep",
        "no gain",
        "keep",
        "no gain",
        "does not help",
    ]


@needs_data
def test_a_cut_of_the_covid_model_matches_enumeration(x64):
    """Three regions and five days: 2^15 paths and the global latents."""
    data = hierarchical.datasets.load("covid")
    names = ("ActiveCMs_NPIs_daily_all", "ActiveCMs_wearing_daily_all", "ActiveCMs_mobility_daily_all", "obs_daily_all")
    args = tuple(np.moveaxis(data[n][:3, 40:45], 0, 1).astype(np.float64) for n in names)
    guide = FactorisedGuide.from_model(hierarchical.covid_model, args)
    request = make_request(2, groups=[(*hierarchical.GLOBALS, "log_r0")])
    problem = build_problem(hierarchical.covid_model, guide, args, {}, guide.start, request)
    oracle = BruteForce(problem, hierarchical.covid_model, guide, args)
    assert oracle.combinations == 2**16
    draws = draw_particles(problem, problem.numbers, jax.random.key(1), guide.start)
    log_weights, expected, _ = everything(oracle, draws, guide.start)
    value, _, weights, _ = estimates(problem, draws, guide.start)
    close(value, expected, 1e-9)
    marginals = oracle.marginals(np.asarray(jax.nn.softmax(log_weights)))
    for name, found in weights.items():
        close(found, marginals[name], 1e-9)


@pytest.mark.parametrize("method", ["ws", "delta-ww", "vimco", "relax", "concrete"])
def test_the_mixture_experiment_trains(method):
    result = gmm.run(method, 2, "near", 60, 2)
    history = result["history"]
    assert [h["step"] for h in history][-1] == 60
    assert all(np.isfinite(h[n]).all() for h in history for n in ("p", "q", "gradient_sd"))
    assert method in gmm.table([result])


def test_the_gradient_experiment_tells_bias_from_chance(tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "ESTIMATORS", {n: gradients.ESTIMATORS[n] for n in ("ww", "ws", "vimco", "relax")})
    command = ["--particles", "2", "--draws", "3000", "--out", str(tmp_path)]
    result = CliRunner().invoke(gradients.main, command, catch_exceptions=False)
    rows = {r["estimator"]: r for r in json.loads((tmp_path / "results.json").read_text())["results"]}
    assert set(rows) == {"ww", "ws", "vimco", "relax"}
    for name in ("ws", "vimco", "relax"):
        # false alarms below 0.003 even if one direction had all of the noise, and of twenty directions far below
        assert rows[name]["bias"] < 3 * rows[name]["by_chance"], result.output
    assert rows["ww"]["bias"] > 10 * rows["ww"]["by_chance"]
    assert rows["vimco"]["noise"] < rows["relax"]["noise"]


def test_the_chain_experiment_knows_its_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr(hierarchical, "OUT", tmp_path)
    result = CliRunner().invoke(hierarchical.main, ["chain", "--replicates", "50"], catch_exceptions=False)
    assert "exact log evidence -5.2655" in result.output
    assert (tmp_path / "chain.json").exists()


@needs_data
def test_the_prior_experiment_runs(tmp_path, monkeypatch):
    model, args = hierarchical.MODELS["bus"]()
    few = hierarchical._one_run(
        hierarchical.kayn.Importance(model, hierarchical.prior_of(model), num_particles=3), args, {}
    )
    log_z, means = few(jax.random.key(0))
    assert np.isfinite(log_z)
    assert means["phi"].shape == args[0].shape[-1:]


@pytest.mark.parametrize("kind", ["darn", "nade"])
def test_autoregressive_layers_are_distributions(kind):
    """Probabilities of all states sum to one, and 20,000 draws have them
    (chi-square of 16 states, false-alarm rate 1e-4)."""
    rng = np.random.default_rng(0)
    size, hidden = 4, 3
    if kind == "darn":
        fn = layers.Darn(rng.normal(size=size), rng.normal(size=(size, size)))
    else:
        start, offset = rng.normal(size=hidden), rng.normal(size=size)
        fn = layers.Nade(start, offset, 2 * rng.normal(size=(size, hidden)), 2 * rng.normal(size=(size, hidden)))
    states = np.array(list(itertools.product((0, 1), repeat=size)))
    p = np.exp(np.asarray(fn.log_prob(states), np.float64))
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-5)
    draws = np.asarray(fn.sample(jax.random.key(1), (20_000,)))
    counts = np.bincount(draws @ (2 ** np.arange(size)[::-1]), minlength=len(states))
    assert stats.chisquare(counts, p / p.sum() * len(draws)).pvalue > 1e-4


def test_the_entropy_of_bars_is_that_of_its_images():
    """Plug-in entropy of 200,000 images: bias and noise below 0.02 nats."""
    _, counts = np.unique(sbn.bars(200_000, 3), axis=0, return_counts=True)
    p = counts / counts.sum()
    np.testing.assert_allclose(sbn.entropy_of_bars(), -(p * np.log(p)).sum(), atol=0.02)


@pytest.mark.parametrize(
    ("method", "strategy", "p", "q"),
    [("ww+s", "parallel", "sbn", "sbn"), ("ww", "local", "dsbn", "nade"), ("ws", "local", "darn", "sbn")],
)
def test_belief_networks_learn_bars(method, strategy, p, q):
    result = sbn.run(sbn.Case("bars", (4, 2), method, 4, strategy, p, q), 150, 0, 40, rate=1e-2)
    held_out = [value for _, value in result["held_out"]]
    assert held_out[-1] > held_out[0] + 0.3
    assert sorted(result["curve"]) == [40]
    assert method in sbn.table([result])


def test_the_grammar_experiment_agrees_with_the_inside_algorithm(monkeypatch):
    """Log evidence of short sentences by 40,000 particles of an untrained guide, whose derivations are few."""
    monkeypatch.setattr(pcfg, "STEPS", 7)  # three words take five, and every further rule another word
    data, counts = pcfg.sentences(60, 0)
    assert counts[0] == 60
    words = data[(data < pcfg.END).sum(1) == 3][:4]
    svi = SVI(pcfg.model, pcfg.guide, optax.adam(1e-3), pcfg.METHODS["ww"](5))
    params = svi.get_params(svi.init(jax.random.key(0), words))
    params["weights"] = np.log(pcfg.TRUE).astype(np.float32)
    found = log_evidence(pcfg.model, pcfg.guide, params, words, num_particles=40_000, chunk=4000)
    exact = [pcfg.inside(w, pcfg.TRUE) for w in words]
    np.testing.assert_allclose(found.by_element, exact, atol=0.15)
    np.testing.assert_allclose(pcfg.probabilities(params["weights"]), pcfg.TRUE, rtol=1e-5)


def test_pictures_are_pasted_where_they_are_cut():
    where = np.array([np.log(0.5), 0.2, -0.3], np.float32)
    x, y = np.meshgrid(np.linspace(-1, 1, air.GLIMPSE), np.linspace(-1, 1, air.GLIMPSE))
    smooth = np.exp(-2 * ((x - 0.3) ** 2 + (y + 0.2) ** 2)).ravel().astype(np.float32)
    canvas = air.paste(smooth, where)
    np.testing.assert_allclose(air.cut(canvas.reshape(-1), where), smooth, atol=0.06)
    # the brightest pixel is at where + scale * (0.3, -0.2)
    row, column = np.unravel_index(np.argmax(canvas), canvas.shape)
    grid = np.linspace(-1, 1, air.CANVAS)
    np.testing.assert_allclose([grid[column], grid[row]], [0.35, -0.4], atol=0.05)


@pytest.mark.parametrize("name", ["ww", "wsw", "vimco"])
def test_gradients_of_the_scene_model_are_finite(name, monkeypatch):
    # two objects have all that three have, the dependence of the second on the first included, and compile faster
    for constant, value in (("OBJECTS", 2), ("CODE", 5), ("HIDDEN", 20)):
        monkeypatch.setattr(air, constant, value)
    x = (np.random.default_rng(0).random((3, air.CANVAS**2)) < 0.1).astype(np.int32)
    svi = SVI(air.model, air.guide, optax.adam(1e-4), air.LOSSES[name](3))
    state = svi.init(jax.random.key(0), x)
    before = svi.get_params(state)
    after, loss = jax.jit(svi.update)(state, x)
    assert np.isfinite(loss)
    for n, value in svi.get_params(after).items():
        assert np.isfinite(value).all(), n
    # every part is trained: the digits' decoder, the bits, the places and the codes
    assert all(
        (np.asarray(svi.get_params(after)[n]) != np.asarray(before[n])).any()
        for n in ("p_what_w", "p_another", "q_present_w", "q_place_w", "q_code_w")
    )


@needs_data
def test_the_autoencoder_experiment_trains():
    result = vae.run("ww", 3, 20, 20, 1e-3, 10)
    assert result["held_out"][-1][1] > result["held_out"][0][1]
    assert np.asarray(result["reconstructions"]).shape == (10, 784)
    assert "ww" in vae.table([result])
