"""Roots of the curvature of an energy about a point: of the whole matrix, or of a band and its border where each
coordinate has to do with few others, as the steps of a series have, but for a few that have to do with all.

A root is R with R R' the matrix of second derivatives, made positive where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.scipy.linalg import solve_triangular
from scipy.sparse.csgraph import reverse_cuthill_mckee

from kayn.support.arrays import Array

FLATTEST = 1e-4
"""Curvature of a direction at least, in units of the largest along a coordinate."""
NARROW = 8
"""How many times as many coordinates there are as derivatives along directions that a band takes."""
Energy = Callable[[Array], Array]
Root = Any
"""Arrays, of a form that each kind of curvature has."""


class Curvature(Protocol):
    """How the curvature of an energy of N coordinates is read, and its root kept."""

    @property
    def settings(self) -> Any:
        """What `Banded.read` makes it of."""

    def derivatives(self, size: int) -> tuple[int, int]:
        """Directions along which the gradient is differentiated, and multiply-adds of a root."""

    def root(self, energy: Energy, u: Array) -> Root:
        """The root at a point [N]."""

    def identity(self, like: Array) -> Root:
        """The root of the identity, of the size and type of a point [N]."""

    def half(self, root: Root, v: Array) -> Array:
        """R^-1 v: [N]."""

    def back(self, root: Root, v: Array) -> Array:
        """R'^-1 v, what noise v becomes: [N]."""

    def log_volume(self, root: Root) -> Array:
        """log |R|, a scalar."""


@dataclass(frozen=True)
class Whole:
    """All N^2 second derivatives; roots are upper triangular, [N, N]."""

    settings: ClassVar[Any] = True

    def derivatives(self, size: int) -> tuple[int, int]:
        """See `Curvature`."""
        return size, size**3 // 3

    def root(self, energy: Energy, u: Array) -> Array:
        """See `Curvature`."""
        return upper_root(jax.hessian(energy)(u))

    def identity(self, like: Array) -> Array:
        """See `Curvature`."""
        return jnp.eye(len(like), dtype=like.dtype)

    def half(self, root: Array, v: Array) -> Array:
        """See `Curvature`."""
        # one right side at a time: those of 32 and more are given to threads of OpenBLAS, which wait for each other
        return solve_triangular(root, v, lower=False)

    def back(self, root: Array, v: Array) -> Array:
        """See `Curvature`."""
        return solve_triangular(root, v, lower=False, trans=1)

    def log_volume(self, root: Array) -> Array:
        """See `Curvature`."""
        return jnp.sum(jnp.log(jnp.diagonal(root)))


WHOLE = Whole()


class BandRoot(NamedTuple):
    """A root by columns: of those in the band the diagonal and what is below it, [n, width + 1], and what they have in
    the rows of the border, [n, D]; of the border a lower triangle, [D, D]."""

    band: Array
    below: Array
    border: Array


@dataclass(frozen=True, eq=False)
class Banded:
    """Second derivatives of coordinates that are near each other in some order, and of a few that have to do with all;
    roots are lower triangular in that order.

    Coordinates further apart than twice the width share a direction of differentiation (Curtis, Powell & Reid, On the
    estimation of sparse Jacobian matrices, 1974).

    Attributes:
        order: of the N coordinates, those of the border last: int [N].
        width: how far apart coordinates are at most that have to do with each other.
        border: how many the border has, D.
    """

    order: np.ndarray
    width: int
    border: int

    @staticmethod
    def of(pattern: np.ndarray) -> Banded | None:
        """The narrowest band found of a matrix by where it is not zero, bool [N, N]; None if it is not narrow."""
        pattern = pattern | pattern.T
        size, full = len(pattern), pattern.sum(0) > len(pattern) / NARROW
        inner, border = np.nonzero(~full)[0], np.nonzero(full)[0]
        sparse = scipy.sparse.csr_matrix(pattern[np.ix_(inner, inner)])
        inner = inner[reverse_cuthill_mckee(sparse, symmetric_mode=True)] if inner.size else inner
        rows, columns = np.nonzero(pattern[np.ix_(inner, inner)])
        found = Banded(np.append(inner, border), int(np.max(np.abs(rows - columns), initial=1)), len(border))
        return found if NARROW * found.derivatives(size)[0] <= size else None

    def derivatives(self, size: int) -> tuple[int, int]:
        """See `Curvature`."""
        directions = 2 * self.width + 1 + self.border
        return directions, size * ((self.width + 1) ** 2 + self.border * directions)

    @staticmethod
    def read(settings: Any) -> Curvature:
        """What `settings` tells; of all second derivatives where that is nothing."""
        return Banded(np.array(settings[0], int), *settings[1:]) if isinstance(settings, Sequence) else WHOLE

    @property
    def settings(self) -> Any:
        """All there is to know of it, as JSON has it."""
        return [self.order.tolist(), self.width, self.border]

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Directions [C, N], those of the border last; and of every entry of the band the row [n, width + 1], and
        whether there is one."""
        size, apart = len(self.order) - self.border, 2 * self.width + 1
        rows = np.arange(size)[:, None] + np.arange(self.width + 1)
        directions = np.zeros((apart + self.border, len(self.order)))
        directions[np.append(np.arange(size) % apart, apart + np.arange(self.border)), self.order] = 1
        return directions, np.minimum(rows, size - 1), rows < size

    def root(self, energy: Energy, u: Array) -> BandRoot:
        """See `Curvature`."""
        directions, rows, there = self._places
        size, apart = len(rows), 2 * self.width + 1
        moved = jax.vmap(lambda d: jax.jvp(jax.grad(energy), (u,), (d,))[1])(jnp.asarray(directions, u.dtype))
        moved = moved[:, self.order]
        band = jnp.where(there, moved[(np.arange(size) % apart)[:, None], rows], 0)
        beside, corner = moved[apart:, :size].T, moved[apart:, size:]
        more = self._lifted(band, beside, corner)
        known, lifted = (_root(band.at[:, 0].add(m), beside, corner + m * jnp.eye(self.border)) for m in (0, more))
        sound = jnp.array([jnp.isfinite(x).all() for x in known]).all()
        return jax.tree.map(lambda a, b: jnp.where(sound, a, b), known, lifted)

    def _lifted(self, band: Array, beside: Array, corner: Array) -> Array:
        _, rows, there = self._places
        below = jnp.where(there, jnp.abs(band), 0)[:, 1:]
        inner = jnp.sum(below, 1) + jnp.sum(jnp.abs(beside), 1)
        inner = inner.at[rows[:, 1:]].add(below)  # which stands also beside the diagonal of other rows
        border, diagonal = jnp.sum(jnp.abs(beside), 0) + jnp.sum(jnp.abs(corner), 1), jnp.diagonal(corner)
        return _lift(jnp.append(band[:, 0], diagonal), jnp.append(inner, border - jnp.abs(diagonal)))

    def identity(self, like: Array) -> BandRoot:
        """See `Curvature`."""
        size = len(like) - self.border
        band = jnp.zeros((size, self.width + 1), like.dtype).at[:, 0].set(1)
        return BandRoot(band, jnp.zeros((size, self.border), like.dtype), jnp.eye(self.border, dtype=like.dtype))

    def half(self, root: BandRoot, v: Array) -> Array:
        """See `Curvature`."""
        inner, border = jnp.split(v[self.order], [len(root.band)])
        inner = _down(root.band, inner)
        return jnp.append(inner, solve_triangular(root.border, border - inner @ root.below, lower=True))

    def back(self, root: BandRoot, v: Array) -> Array:
        """See `Curvature`."""
        inner, border = jnp.split(v, [len(root.band)])
        border = solve_triangular(root.border, border, lower=True, trans=1)
        found = jnp.append(_up(root.band, inner - root.below @ border), border)
        return jnp.zeros_like(found).at[self.order].set(found)

    def log_volume(self, root: BandRoot) -> Array:
        """See `Curvature`."""
        return jnp.sum(jnp.log(root.band[:, 0])) + jnp.sum(jnp.log(jnp.diagonal(root.border)))


def _root(band: Array, beside: Array, corner: Array) -> BandRoot:
    """The Cholesky factor of a matrix of a band [n, width + 1], columns [n, D] beside it and their corner [D, D]; NaN
    where it is not positive."""
    root = _band_root(band)
    below = jax.vmap(lambda column: _down(root, column), 1, 1)(beside)
    return BandRoot(root, below, jnp.linalg.cholesky(corner - below.T @ below))


def _down(band: Array, v: Array) -> Array:
    """L^-1 v of a lower triangular band [n, width + 1]."""

    def step(taken: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        column, value = item
        found = (value - taken[0]) / column[0]
        return jnp.append(taken[1:], 0) + column[1:] * found, found

    return jax.lax.scan(step, jnp.zeros(band.shape[1] - 1, v.dtype), (band, v))[1]


def _up(band: Array, v: Array) -> Array:
    """L'^-1 v, likewise."""

    def step(later: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
        column, value = item
        found = (value - column[1:] @ later) / column[0]
        return jnp.append(found, later[:-1]), found

    return jax.lax.scan(step, jnp.zeros(band.shape[1] - 1, v.dtype), (band, v), reverse=True)[1]


def _lift(diagonal: Array, beside: Array) -> Array:
    """What to add to a diagonal, so that no eigenvalue is below a share of its largest entry: none is below what the
    others of a row leave of it (Gershgorin)."""
    largest = jnp.max(jnp.abs(diagonal))
    return jnp.maximum(FLATTEST * jnp.where(largest > 0, largest, 1.0) - jnp.min(diagonal - beside), 0.0)


def _band_root(band: Array) -> Array:
    """The Cholesky factor of a band matrix, both by columns [N, width + 1]; NaN from where it is not positive on."""
    width = band.shape[1] - 1

    def step(taken: Array, column: Array) -> tuple[Array, Array]:
        # what earlier columns take from this one and from those that follow, each from its own diagonal on
        own = column - taken[0]
        found = own / jnp.sqrt(own[0])
        takes = jnp.stack([found[k] * jnp.pad(found[k:], (0, k)) for k in range(1, width + 1)])
        return jnp.pad(taken[1:], ((0, 1), (0, 0))) + takes, found

    return jax.lax.scan(step, jnp.zeros((width, width + 1), band.dtype), band)[1]


def upper_root(curvature: Array) -> Array:
    """Upper triangular U with U U' a symmetric matrix [N, N], which is made positive where it is not."""
    curvature = (curvature + curvature.T) / 2
    diagonal, eye = jnp.diagonal(curvature), jnp.eye(len(curvature), dtype=curvature.dtype)
    beside = jnp.sum(jnp.abs(curvature), -1) - jnp.abs(diagonal)
    more = _lift(diagonal, beside)
    # a lower factor of the matrix in reverse is, reversed, an upper one of the matrix
    known, moved = (jnp.linalg.cholesky(c[::-1, ::-1])[::-1, ::-1] for c in (curvature, curvature + more * eye))
    return jnp.where(jnp.isfinite(known).all(), known, moved)
