"""Draws of several chains, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpyro.infer import MCMC

from kayn.errors import QueryError
from kayn.inference.mcmc.kernel import MPGibbs
from kayn.support.arrays import KeyArray
from kayn.support.prints import Printed
from kayn.support.table import format_table

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("mean", "sd", "5%", "50%", "95%", "MC error", "bulk ESS", "tail ESS", "R-hat")
TAIL = (0.05, 0.95)
"""Quantiles of which the tail's effective sample size is the lesser of the two."""
MIXED, ENOUGH = 1.01, 100
"""R-hat up to which chains agree, and effective draws a chain from which on that says much (Vehtari, Gelman, Simpson,
Carpenter & Buerkner, Rank-normalization, folding, and localization, 2021)."""
ROWS = 10


@dataclass(frozen=True, eq=False, repr=False)
class ChainsSummary(Printed):
    """A row for each number: moments, quantiles, Monte Carlo error of the mean, effective sample sizes and R-hat.

    Attributes:
        rows: by name, as `COLUMNS` names them.
        hidden: how many more elements a site has.
        complaints: what is wrong with the chains, of all elements.
    """

    rows: dict[str, tuple[float, ...]]
    hidden: dict[str, int]
    complaints: tuple[str, ...]

    def to_dataframe(self) -> DataFrame:
        """The rows as a `pandas.DataFrame`, by name."""
        from pandas import DataFrame  # takes long to import

        return DataFrame([*self.rows.values()], [*self.rows], list(COLUMNS))

    def __str__(self) -> str:
        """A table, and warnings."""
        rows = [
            (name, *(f"{x:.3g}" for x in row[:6]), *(f"{x:.0f}" for x in row[6:8]), f"{row[8]:.3f}")
            for name, row in self.rows.items()
        ]
        lines = [format_table(("", *COLUMNS), rows)]
        lines += [f"  ({count} more elements of {name})" for name, count in self.hidden.items()]
        return "\n".join([*lines, *(f"  warning: {c}" for c in self.complaints)])


@dataclass(frozen=True, eq=False, repr=False)
class Chains(Printed):
    """Draws of a model's latents and deterministic sites.

    Attributes:
        draws: by site, [chains, draws, *shape].
        mcmc: NumPyro's, for `arviz.from_numpyro` and everything else that reads it.
    """

    draws: dict[str, np.ndarray]
    mcmc: MCMC

    def __str__(self) -> str:
        """How many draws there are, and their summary."""
        chains, count = next(iter(self.draws.values())).shape[:2]
        return f"{chains} chains of {count} draws\n{self.summary()}"

    def summary(self, names: Sequence[str] | None = None, max_rows: int = ROWS) -> ChainsSummary:
        """Moments and diagnostics of sites, at most `max_rows` elements of each; all sites where no names are given.

        Raises:
            QueryError: a name is unknown.
        """
        rows, hidden, poor = {}, {}, []
        for name in self.draws if names is None else names:
            if name not in self.draws:
                raise QueryError(f"there are no draws of {name!r}; there are some of {sorted(self.draws)}")
            values = self.draws[name]
            flat = values.reshape((*values.shape[:2], -1)).astype(float)
            found = _numbers(flat)
            moves = flat.std((0, 1)) > 0
            if (bad := moves & ((found[:, 8] > MIXED) | (found[:, 6:8].min(1) < ENOUGH * len(flat)))).any():
                worst = found[bad]
                poor.append(
                    f"{name}: R-hat up to {worst[:, 8].max():.3f}, effective draws from {worst[:, 6:8].min():.0f}; "
                    "sample longer, or use more particles"
                )
            for i in range(min(max_rows, flat.shape[2])):
                at = ",".join(map(str, np.unravel_index(i, values.shape[2:]))) if values.ndim > 2 else ""
                rows[f"{name}[{at}]" if at else name] = tuple(map(float, found[i]))
            if flat.shape[2] > max_rows:
                hidden[name] = flat.shape[2] - max_rows
        return ChainsSummary(rows, hidden, tuple(poor))


def _numbers(flat: np.ndarray) -> np.ndarray:
    """[elements, numbers] of draws [chains, draws, elements]."""
    from arviz_stats.base import array_stats  # takes long to import

    over = {"chain_axis": 0, "draw_axis": 1}
    return np.stack(
        [
            flat.mean((0, 1)),
            flat.std((0, 1)),
            *np.quantile(flat, (0.05, 0.5, 0.95), (0, 1)),
            array_stats.mcse(flat, **over),
            array_stats.ess(flat, method="bulk", **over),
            array_stats.ess(flat, method="tail", prob=TAIL, **over),
            array_stats.rhat(flat, **over),
        ],
        -1,
    )


def run_chains(
    kernel: MPGibbs,
    args: tuple,
    kwargs: dict[str, Any],
    num_samples: int,
    num_chains: int,
    num_warmup: int,
    rng_key: KeyArray,
) -> Chains:
    """Sample with several chains at once on one device."""
    options = {"num_warmup": num_warmup, "num_samples": num_samples, "num_chains": num_chains}
    mcmc = MCMC(kernel, chain_method="vectorized", progress_bar=False, **options)
    mcmc.run(rng_key, *args, **kwargs)
    jax.effects_barrier()  # all warnings have been given
    draws = {n: np.asarray(v) for n, v in mcmc.get_samples(group_by_chain=True).items()}
    return Chains(draws, mcmc)
