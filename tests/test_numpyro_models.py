"""Models after NumPyro's examples and tests, against exact answers: those that take seconds,
of the table that `experiments/peers` makes."""

import importlib
import sys
from pathlib import Path

import pytest

PEERS = Path(__file__).parents[1] / "experiments" / "peers"
NAMES = (
    "baseball pooled",
    "annotators as one",
    "discrete answers of a chain",
    "loss of scaled enumerated latents",
    "loss of masked enumerated latents",
    "leave one out gradient with two particles",
    "relaxed control variate without parameters",
)


@pytest.fixture(scope="module")
def cases():
    before = set(sys.modules)
    sys.path.insert(0, str(PEERS))
    for name in ("annotators", "hierarchies", "losses", "potentials", "scores"):
        importlib.import_module(name)
    yield importlib.import_module("cases")
    sys.path.remove(str(PEERS))
    # their names are plain words
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == PEERS:
            del sys.modules[name]


@pytest.mark.parametrize("name", NAMES)
def test_no_model_is_wrong(cases, name):
    """Right within the tolerances of the table (averages over draws within five standard errors),
    or refused with a remedy."""
    found = cases.judge(cases.CASES[name])
    assert found["verdict"].startswith(("right", "refused")), found
    assert found["figures"] or found["verdict"].startswith("refused")


def test_a_wrong_figure_is_noticed(cases):
    """What the table calls right would not be so if the oracle said something else, and an exception is no refusal."""
    near = cases.figure("a", [1.0, 2.0], [1.0, 2.3], 0.2)
    assert (near.found, near.right, near.good) == (2.0, 2.3, False)
    assert not cases.figure("a", [1.0, float("nan")], [1.0, 2.0], 0.2).good
    for run, verdict in ((lambda: [near], "wrong: a"), (lambda: [1 / 0], "wrong: ZeroDivisionError")):
        assert cases.judge(cases.Case("", "", run))["verdict"].startswith(verdict)
