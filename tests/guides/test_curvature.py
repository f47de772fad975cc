"""Roots of curvature: of a band and its border as of the whole matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kayn.guides.curvature import Banded, Whole

SIZE = 90


def matrix(width, border, seed=0):
    """A positive matrix of a band and rows that are full, in a random order."""
    rng, inner = np.random.default_rng(seed), SIZE - border
    root = np.zeros((SIZE, SIZE))
    root[:inner, :inner] = sum(np.diag(rng.normal(size=inner - k), -k) for k in range(width + 1))
    root[inner:] = 0.3 * rng.normal(size=(border, SIZE))
    order = rng.permutation(SIZE)
    return (root @ root.T + np.eye(SIZE))[np.ix_(order, order)]


def energy(values):
    return lambda u: u @ jnp.asarray(values, u.dtype) @ u / 2


@pytest.mark.parametrize(("width", "border"), [(1, 0), (1, 3), (2, 0), (2, 1), (3, 0)])
def test_a_band_is_found_in_any_order(width, border):
    found = Banded.of(matrix(width, border) != 0)
    assert (found.width, found.border) == (width, border)
    assert found.derivatives(SIZE)[0] == 2 * width + 1 + border


@pytest.mark.parametrize(("width", "border"), [(1, 0), (1, 3), (2, 1)])
def test_its_root_is_that_of_the_matrix(width, border):
    """Against NumPy's factor and solutions, in double precision."""
    values = matrix(width, border)
    banded = Banded.of(values != 0)
    v = np.random.default_rng(1).normal(size=SIZE)
    with jax.enable_x64(True):
        root = banded.root(energy(values), jnp.zeros(SIZE))
        factor = np.linalg.cholesky(values[np.ix_(banded.order, banded.order)])
        half = banded.half(root, jnp.asarray(v))
        np.testing.assert_allclose(half, np.linalg.solve(factor, v[banded.order]), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(banded.back(root, half), np.linalg.solve(values, v), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(banded.log_volume(root), np.linalg.slogdet(values)[1] / 2, rtol=1e-10)


@pytest.mark.parametrize("border", [0, 2])
def test_what_is_not_positive_is_made_so_as_of_the_whole(border):
    """The same is added to the diagonal, so that solutions agree."""
    values = matrix(1, border) - 3 * np.eye(SIZE)
    assert np.linalg.eigvalsh(values)[0] < 0
    v = np.random.default_rng(1).normal(size=SIZE)
    with jax.enable_x64(True):
        solved = []
        for curvature in (Banded.of(values != 0), Whole()):
            root = curvature.root(energy(values), jnp.zeros(SIZE))
            solved.append(curvature.back(root, curvature.half(root, jnp.asarray(v))))
            assert np.isfinite(curvature.log_volume(root))
        np.testing.assert_allclose(*solved, rtol=1e-8)


@pytest.mark.parametrize("curvature", [Banded.of(matrix(1, 2) != 0), Whole()])
def test_the_roots_of_an_identity_change_nothing(curvature):
    v = jnp.asarray(np.random.default_rng(1).normal(size=SIZE))
    root = curvature.identity(v)
    np.testing.assert_allclose(curvature.back(root, curvature.half(root, v)), v, rtol=1e-6)
    assert curvature.log_volume(root) == 0


def test_what_has_to_do_with_much_has_no_band():
    rng = np.random.default_rng(0)
    assert Banded.of(rng.uniform(size=(SIZE, SIZE)) < 0.1) is None
    assert Banded.of(np.ones((SIZE, SIZE), bool)) is None


@pytest.mark.parametrize("curvature", [Banded.of(matrix(2, 1) != 0), Whole()])
def test_it_is_read_back_from_its_settings(curvature):
    again = Banded.read(curvature.settings)
    assert type(again) is type(curvature) and again.settings == curvature.settings
