"""Pages of the gallery: every model can be fitted, and a page is what its run has found."""

import re
import warnings

import numpy as np
import pytest

import kayn
from examples.gallery.__main__ import CASES, index
from examples.gallery.case import write
from kayn.datasets import DatasetError

pytest.importorskip("matplotlib")


def arguments(case):
    try:
        return case.prepare()
    except DatasetError as error:
        pytest.skip(str(error))


def test_there_are_twelve_pages_and_more():
    assert len(CASES) >= 12
    assert index([*CASES.values()]).count(".md)") == len(CASES)


@pytest.mark.parametrize("name", CASES)
def test_models_are_understood_and_have_what_is_asked_of_them(name):
    case = CASES[name]
    args = arguments(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kayn.KaynWarning)
        found = str(kayn.analyze(case.model, *args))
    sites = set(re.findall(r"[\w.]+", found))
    assert {s for s in case.sites if s not in ("theta", "complete")} <= sites


@pytest.mark.parametrize("name", ["remission"])
def test_pages_tell_what_was_found_beside_what_is_known(name, tmp_path):
    """Exact posteriors are met to a twentieth of their sd."""
    case = CASES[name]
    assert write(case, tmp_path) < 0.05
    page = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    mean, sd = case.answer(case.prepare())[case.sites[0]]
    assert f"| {np.ravel(mean)[0]:.3f} | {np.ravel(sd)[0]:.3f} |" in page
    for words in ("def model(", f"]({name}.png)", "log evidence"):
        assert words in page
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
