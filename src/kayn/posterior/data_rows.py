"""What a posterior was conditioned on, datum by datum, scored under draws of it: what scores and exports count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from kayn.posterior.joint import JointDraws
from kayn.posterior.pool import Pool
from kayn.posterior.replay import scored_data
from kayn.programs.sites import Site
from kayn.support.arrays import KeyArray


@dataclass(frozen=True, eq=False)
class DataRows:
    """The data of one observed site.

    Attributes:
        scores: log likelihood [S, *rows], nats.
        values: [*rows, *event].
        kept: which rows are data: bool [*rows]. What a mask hides, and values among the data that are latents
            (imputation), are none.
    """

    name: str
    scores: np.ndarray
    values: np.ndarray
    kept: np.ndarray


def data_rows(posterior: Pool, key: KeyArray, draws: JointDraws) -> Iterator[DataRows]:
    """The data of every observed site that has any."""
    scores, seen, data, known = jax.tree.map(np.asarray, scored_data(posterior, key, draws))
    for name, score in scores.items():
        rows = score.shape[1:]
        event = _event_dim(data[name].shape, _whole_batch(posterior.problem.model.sites[name], rows), rows)
        values = np.broadcast_to(data[name], (*rows, *data[name].shape[data[name].ndim - event :]))
        fixed = known[name].reshape((*known[name].shape[: known[name].ndim - event], -1)).all(-1)
        kept = seen[name].any(0) & fixed
        if kept.any():
            yield DataRows(name, score, values, kept)


def _whole_batch(site: Site, rows: tuple[int, ...]) -> tuple[int, ...]:
    """A site's batch shape where subsampled plates are taken whole, as `rows` are."""
    batch = list(site.batch_shape)
    for _, dim, size in site.frames:
        if batch[dim] == size:
            batch[dim] = rows[dim]
    return tuple(batch)


def _event_dim(shape: tuple[int, ...], batch_shape: tuple[int, ...], rows: tuple[int, ...]) -> int:
    """How many of the last dimensions of data are events, given their distribution's batch shape and the shape of their
    log densities."""

    def gives_rows(event: int) -> bool:
        try:
            return np.broadcast_shapes(shape[: len(shape) - event], batch_shape) == rows
        except ValueError:
            return False

    return next(e for e in range(len(shape) + 1) if gives_rows(e))
