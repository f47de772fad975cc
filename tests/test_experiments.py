"""The experiments run, on cuts of their problems, and the covid model agrees with enumeration."""

import importlib.util
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from kayn import evidence
from kayn.axes import make_request
from kayn.guides import FactorisedGuide
from oracle import BruteForce, everything
from test_exactness import close, estimates

ROOT = Path(__file__).parents[1]
needs_data = pytest.mark.skipif("KAYN_DATA" not in os.environ, reason="set KAYN_DATA to a directory with the data sets")

pytestmark = pytest.mark.slow


def load(path):
    name = path.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@needs_data
def test_a_cut_of_the_covid_model_matches_enumeration(x64):
    """Three regions and five days: 2^15 paths and the global latents."""
    module = load("hierarchical/run.py")
    data = module.datasets.load("covid")
    names = ("ActiveCMs_NPIs_daily_all", "ActiveCMs_wearing_daily_all", "ActiveCMs_mobility_daily_all", "obs_daily_all")
    args = tuple(np.moveaxis(data[n][:3, 40:45], 0, 1).astype(np.float64) for n in names)
    guide = FactorisedGuide.from_model(module.covid_model, args)
    request = make_request(2, groups=[(*module.GLOBALS, "log_r0")])
    problem = evidence.build_problem(module.covid_model, guide, args, {}, guide.start, request)
    oracle = BruteForce(problem, module.covid_model, guide, args)
    assert oracle.combinations == 2**16
    draws = evidence.draw_particles(problem, problem.numbers, jax.random.key(1), guide.start)
    log_weights, expected, _ = everything(oracle, draws, guide.start)
    value, _, weights, _ = estimates(problem, draws, guide.start)
    close(value, expected, 1e-9)
    marginals = oracle.marginals(np.asarray(jax.nn.softmax(log_weights)))
    for name, found in weights.items():
        close(found, marginals[name], 1e-9)


@pytest.mark.parametrize("method", ["ws", "delta-ww", "vimco", "relax", "concrete"])
def test_the_mixture_experiment_trains(method):
    module = load("gmm/run.py")
    result = module.run(method, 2, "near", 60, 2)
    history = result["history"]
    assert [h["step"] for h in history][-1] == 60
    assert all(np.isfinite(h[n]).all() for h in history for n in ("p", "q", "gradient_sd"))
    assert method in module.table([result])


def test_the_chain_experiment_knows_its_evidence(tmp_path, monkeypatch):
    module = load("hierarchical/run.py")
    monkeypatch.setattr(module, "OUT", tmp_path)
    result = CliRunner().invoke(module.main, ["chain", "--replicates", "50"], catch_exceptions=False)
    assert "exact log evidence -5.2655" in result.output
    assert (tmp_path / "chain.json").exists()


@needs_data
def test_the_prior_experiment_runs(tmp_path, monkeypatch):
    module = load("hierarchical/run.py")
    model, args = module.MODELS["bus"]()
    few = module._one_run(module.kayn.Importance(model, module.prior_of(model), num_particles=3), args, {})
    log_z, means = few(jax.random.key(0))
    assert np.isfinite(log_z)
    assert means["phi"].shape == args[0].shape[-1:]
