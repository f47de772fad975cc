"""Models after NumPyro's examples and tests, against exact answers: those that take seconds,
of the table that `experiments/peers` makes."""

import pytest

from experiments.peers import annotators, cases, hierarchies, losses, potentials, scores  # noqa: F401

NAMES = (
    "baseball pooled",
    "annotators as one",
    "discrete answers of a chain",
    "loss of scaled enumerated latents",
    "loss of masked enumerated latents",
    "leave one out gradient with two particles",
    "relaxed control variate without parameters",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_model_is_wrong(name):
    """Right within the tolerances of the table (averages over draws within five standard errors),
    or refused with a remedy."""
    found = cases.judge(cases.CASES[name])
    assert found["verdict"].startswith(("right", "refused")), found
    assert found["figures"] or found["verdict"].startswith("refused")


def test_a_wrong_figure_is_noticed():
    """What the table calls right would not be so if the oracle said something else, and an exception is no refusal."""
    near = cases.figure("a", [1.0, 2.0], [1.0, 2.3], 0.2)
    assert (near.found, near.right, near.good) == (2.0, 2.3, False)
    assert not cases.figure("a", [1.0, float("nan")], [1.0, 2.0], 0.2).good
    for run, verdict in ((lambda: [near], "wrong: a"), (lambda: [1 / 0], "wrong: ZeroDivisionError")):
        assert cases.judge(cases.Case("", "", run))["verdict"].startswith(verdict)
