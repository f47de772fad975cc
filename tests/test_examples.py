"""The examples and the demonstration run from the command line, on little data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def needs_data() -> None:
    if not os.environ.get("KAYN_DATA"):
        pytest.skip("KAYN_DATA is not set: the real data sets are not here")


def test_eight_schools_agrees_with_nuts():
    out = run("-m", "examples.eight_schools", "--quick")
    assert "worst deviation" in out and "log evidence" in out


@pytest.mark.slow
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
