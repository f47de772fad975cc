"""The examples and the demonstration run from the command line, on little data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from kayn import datasets

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def needs_data() -> None:
    if not os.environ.get("KAYN_DATA"):
        pytest.skip("KAYN_DATA is not set: the real data sets are not here")


def eight_schools_log_evidence():
    """Quadrature over tau; y given tau is Normal."""
    data = datasets.eight_schools()
    y, sigma = data["y"], data["sigma"]
    tau = stats.halfcauchy(scale=5).ppf((np.arange(4000) + 0.5) / 4000)
    marginal = [stats.multivariate_normal(np.zeros(8), np.diag(sigma**2 + t**2) + 25).logpdf(y) for t in tau]
    return special.logsumexp(marginal) - np.log(len(tau))


def test_eight_schools_agrees_with_nuts():
    """Posterior means, in standard deviations: the standard errors of 2,000 draws of NUTS are about 0.03 each."""
    out = run("-m", "examples.eight_schools", "--warmup", "300", "--samples", "500")
    found = {what: float(re.search(rf"{what}: (\S+)", out)[1]) for what in ("worst deviation", "log evidence")}
    assert found["worst deviation"] < 0.15
    assert abs(found["log evidence"] - eight_schools_log_evidence()) < 0.05
    # the last three columns of the table are the smallest, median and largest ratio of standard deviations
    ratios = re.findall(r"^(?:mu|tau|theta) +\d+ .* (\S+) +(\S+) +(\S+)$", out, re.M)
    assert len(ratios) == 3
    np.testing.assert_allclose(np.array(ratios, float), 1.0, atol=0.15)


@pytest.mark.parametrize("script", ["radon", "chimpanzees", "movielens"])
def test_real_data_examples_run(script):
    needs_data()
    out = run("-m", f"examples.{script}", "--quick", "--no-nuts")
    assert "log evidence" in out and "nan" not in out


def test_demo_prints_structure_and_saves_a_picture(tmp_path):
    picture = tmp_path / "demo.png"
    out = run("-c", "from kayn.cli import main; main()", "demo", "--out", str(picture), cwd=tmp_path)
    assert "counties" in out and "log evidence" in out
    assert picture.read_bytes()[:4] == b"\x89PNG"
