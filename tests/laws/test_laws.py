"""Laws: a model that is written in another way has the same evidence, moments, mode and draws for the same particles.

Nothing here is statistical: particles are given, and answers are equal to rounding.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import numpy as np
import pytest

from tests.laws.forms import KINDS, LOCAL, SEEN, Case, Form, N, answers, case

CASES = [*((kind, False) for kind in KINDS), *((kind, True) for kind in ("hierarchy", "series", "local"))]
"""Kinds, each with all rows or with a minibatch."""
EXACT = 1e-9


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{'minibatch' if c[1] else 'all'}")
def written(request, x64) -> Case:
    return case(*request.param)


@lru_cache
def right(kind: str, minibatch: bool) -> dict[str, Any]:
    with jax.enable_x64(True):
        return answers(case(kind, minibatch), Form())


def plainly(written: Case) -> dict[str, Any]:
    return right(written.kind, "chosen" in written.data)


def same(found: dict[str, Any], expected: dict[str, Any], *what: str) -> None:
    for name in what:
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT, err_msg=name),
            found[name],
            expected[name],
        )


EVERYTHING = ("log evidence", "mean", "sd", "mode", "draws")
ALL_BUT_DRAWS = EVERYTHING[:-1]


HOSTILE = {
    "mu": "mu_loc",
    "tau": "alpha",
    "alpha": "rows",
    "rows": "time",
    "y": "value:z",
    "z": "K[z]",
    "groups": "z_dim_0",
}
"""Among them names that other sites had before."""


def test_names_do_not_matter(written):
    """Draws are of other keys where names sort otherwise."""
    same(answers(written, Form(names=tuple(HOSTILE.items()))), plainly(written), *ALL_BUT_DRAWS)


def test_the_order_of_statements_does_not_matter(written):
    same(answers(written, Form(backwards=True)), plainly(written), *EVERYTHING)


def test_the_order_of_rows_does_not_matter(written):
    order = np.random.default_rng(5).permutation(len(written.data["row"]))
    found, expected = answers(written.rows(order), Form()), plainly(written)
    back = np.argsort(order)
    for name in ("mean", "sd", "mode"):
        own = {n: np.take(v, back, -1) if n in LOCAL else v for n, v in found[name].items()}
        same({name: own}, expected, name)
    same(found, expected, "log evidence")


@pytest.mark.parametrize(("kind", "minibatch"), [("hierarchy", False), ("ragged", False), ("crossed", True)])
def test_the_order_of_groups_does_not_matter(kind, minibatch, x64):
    written, order = case(kind, minibatch), np.array([2, 0, 1])
    found, expected = answers(written.groups(order), Form()), plainly(written)
    for name in ("mean", "sd", "mode"):
        own = dict(found[name])
        own["alpha"] = own["alpha"][np.argsort(order)]
        same({name: own}, expected, name)
    same(found, expected, "log evidence")


def test_a_plate_may_be_split(written):
    """A minibatch's halves are minibatches of half of the rows: its rows are put in their order first."""
    if "chosen" in written.data:
        order = np.argsort(written.data["row"], kind="stable")
        written = written.rows(order)
        expected = answers(written, Form())
        same(expected, plainly(written), "log evidence")
    else:
        expected = plainly(written)
    same(answers(written, Form(split=True)), expected, *ALL_BUT_DRAWS)


def test_a_constant_factor_is_a_constant(written):
    """Once for the whole, and for every row: in a minibatch, for those it stands for. Draws are of other keys."""
    once, each = 1.3, -0.4
    found, expected = answers(written, Form(constant=(once, each))), plainly(written)
    same(found, expected, "mean", "sd", "mode")
    np.testing.assert_allclose(found["log evidence"], expected["log evidence"] + once + N * each, rtol=EXACT)


# the rows that are left of the crossed kind nest its groups in items, which gives up fewer indices: another estimate
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "crossed"])
def test_masked_rows_are_rows_that_are_not_there(kind, x64):
    """A law of whole plates: fewer rows of a minibatch would stand for more elements each."""
    written = case(kind)
    found, fewer = answers(written, Form(masked=True)), answers(written.rows(np.flatnonzero(SEEN)), Form())
    for name in ("mean", "sd", "mode"):
        own = {n: v[..., SEEN] if n in LOCAL else v for n, v in found[name].items()}
        same({name: own}, fewer, name)
    same(found, fewer, "log evidence")


def test_data_by_argument_or_by_handler(written):
    same(answers(written, Form(told=True)), plainly(written), *EVERYTHING)


def test_the_laws_look_at_something(x64):
    """Other data have another evidence, and answers are numbers."""
    values = [float(plainly(case(*c))["log evidence"]) for c in CASES]
    assert np.all(np.isfinite(values))
    assert len(np.unique(np.round(values, 3))) == len(CASES)
