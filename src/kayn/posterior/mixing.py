"""How far draws of chains can be trusted: R-hat, effective sample sizes and Monte Carlo errors, element by element.

Source: Vehtari, Gelman, Simpson, Carpenter & Buerkner, Rank-normalization, folding, and localization (2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from scipy.special import ndtri

from kayn.support.names import in_model

MIXED = 1.02
"""R-hat up to which chains agree."""
ENOUGH, TAIL_ENOUGH = 400, 100
"""Effective draws, in the bulk and in each tail, from which on R-hat says much and means are known to a twentieth of
their sd."""
TAIL = 0.05
"""Of the draws, in each tail."""


def diagnosed(draws: np.ndarray) -> dict[str, np.ndarray]:
    """Diagnostics of draws [chains, draws, elements], by name: [elements] each; NaN where nothing moves."""
    split = _split(np.asarray(draws, np.float64))
    moves = (split.max((0, 1)) > split.min((0, 1))) & np.isfinite(split).all((0, 1))
    out = {n: np.full(split.shape[2], np.nan) for n in ("MC error", "bulk ESS", "tail ESS", "R-hat")}
    if not moves.any():
        return out
    # far from zero, rounding would be all that is left of a narrow spread's squares
    own = split[..., moves] - split[..., moves].mean((0, 1))
    scores = _normal_scores(own)
    folded = _normal_scores(np.abs(own - np.median(own, (0, 1))))
    with np.errstate(divide="ignore", invalid="ignore"):
        out["bulk ESS"][moves] = _ess(scores)
        tails = [own <= np.quantile(own, level, (0, 1)) for level in (TAIL, 1 - TAIL)]
        # NumPyro 0.21 has no number where a chain is in a tail all the time or never
        least = np.fmin(*(_ess(t.astype(np.float64)) for t in tails))
        out["tail ESS"][moves] = np.nan_to_num(least, nan=1.0)
        out["R-hat"][moves] = np.fmax(gelman_rubin(scores), gelman_rubin(folded))
        out["MC error"][moves] = own.std((0, 1), ddof=1) / np.sqrt(_ess(own))
    return out


def worst(draws: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
    """By latent the largest R-hat and the least bulk and tail effective sample size of elements that move.

    Args:
        draws: [chains, draws, *shape].
    """
    out = {}
    for name, values in draws.items():
        found = diagnosed(values.reshape((*values.shape[:2], -1)))
        rhat, bulk, tail = found["R-hat"], found["bulk ESS"], found["tail ESS"]
        if np.isfinite(bulk).any():
            least_tail = float(np.nanmin(tail)) if np.isfinite(tail).any() else np.inf
            out[in_model(name)] = float(np.nanmax(rhat)), float(np.nanmin(bulk)), least_tail
    return out


def missed(found: Mapping[str, tuple[float, float, float]]) -> dict[str, tuple[float, float, float]]:
    """Those latents of `worst` that do not meet the targets."""
    return {n: v for n, v in found.items() if not (v[0] <= MIXED and v[1] >= ENOUGH and v[2] >= TAIL_ENOUGH)}


def complaints(found: Mapping[str, tuple[float, float, float]]) -> Iterator[str]:
    """What there is to say against chains, a sentence for each latent of `worst` that misses the targets."""
    for name, (rhat, bulk, tail) in missed(found).items():
        yield (
            f"latent {name!r}: chains have not mixed: R-hat up to {rhat:.3f} (at most {MIXED}), effective draws from "
            f"{bulk:.0f} (at least {ENOUGH}), in the tails from {tail:.0f} (at least {TAIL_ENOUGH}). Sample longer "
            "(max_seconds=, num_samples=), or use more particles"
        )


def _split(draws: np.ndarray) -> np.ndarray:
    """Halves of chains as chains of their own."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]]) if half else draws


def _normal_scores(draws: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata  # takes as long to import as the rest of kayn

    ranks = rankdata(draws.reshape((-1, draws.shape[2])), axis=0)
    return ndtri((ranks - 0.375) / (len(ranks) + 0.25)).reshape(draws.shape)


def _ess(draws: np.ndarray) -> np.ndarray:
    """As many independent draws tell as much of the mean; not more than what log10 of their number allows for."""
    count = draws.shape[0] * draws.shape[1]
    return np.minimum(effective_sample_size(draws), count * np.log10(count))
