"""Moves of all latents together along directions that are learnt in warm-up.

Elements that move one by one are slow where all of them hang on one number: a shift of all groups and their mean leaves
the likelihood nearly alone. Such directions are leading eigenvectors of the chain's own correlations, found by block
power iteration (Mitliagkas, Caramanis & Jain, Memory limited, streaming PCA, 2013), each block as long as all before.
Frozen after warm-up, a step along one is a local proposal of one coordinate.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kayn.inference.mcmc.adaptation import adapted, target_rate
from kayn.support.arrays import Array

MOST = 3
"""Directions that are moved along in a sweep."""
FIRST = 25
"""Sweeps of the first block."""


class Directions(NamedTuple):
    """Directions in standardised coordinates.

    Attributes:
        vectors: of length one, [R, n].
        sums: what this block's states make of them so far, [R, n].
        log_step: of a step along each, [R].
    """

    vectors: Array
    sums: Array
    log_step: Array

    @staticmethod
    def first(coordinates: int) -> Directions:
        """All coordinates together, and others across that."""
        count = min(MOST, coordinates)
        others = jax.random.normal(jax.random.key(0), (count, coordinates), float).at[0].set(1.0)
        return Directions(_orthogonal(others), jnp.zeros((count, coordinates)), jnp.zeros(count))

    def learnt(self, standardised: Array, sweep: Array) -> Directions:
        """After one more state of the chain, [n]."""
        sums = self.sums + jnp.outer(self.vectors @ standardised, standardised)
        # blocks end after 25, 50, 100, 200, ... sweeps
        times = (sweep + 1) / FIRST
        ends = (times >= 1) & (jnp.exp2(jnp.round(jnp.log2(jnp.maximum(times, 1.0)))) == times)
        usable = jnp.isfinite(sums).all() & (jnp.abs(sums).max(1).min() > 0)
        vectors = jnp.where(ends & usable, _orthogonal(jnp.where(usable, sums, self.vectors)), self.vectors)
        return Directions(vectors, jnp.where(ends, 0.0, sums), self.log_step)

    def stepped(self, moved: Array, count: int, sweep: Array) -> Directions:
        """With other steps, after those of a sweep.

        Args:
            moved: whether the chain did, along each [R].
            count: particles.
        """
        return self._replace(log_step=adapted(self.log_step, moved, target_rate(count, 1), sweep))


def _orthogonal(vectors: Array) -> Array:
    return jnp.linalg.qr(vectors.T)[0].T
