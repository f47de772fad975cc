"""What the models of this experiment share: how a case is written, exact integrals, and how its figures are judged."""

from __future__ import annotations

import itertools
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS, SVI
from numpyro.optim import Adam
from scipy.special import logsumexp

import kayn

ERRORS = 5.0
"""Standard errors within which a mean over draws has to be: 6e-7 a number."""


@dataclass(frozen=True)
class Figure:
    """A number, or an array of them, beside the right one.

    Attributes:
        found, right, tolerance: of the entry that is furthest off, by its tolerance.
    """

    what: str
    found: float
    right: float
    tolerance: float

    @property
    def good(self) -> bool:
        return bool(abs(self.found - self.right) <= self.tolerance)


def figure(what: str, found: Any, right: Any, tolerance: Any) -> Figure:
    """The worst entry of two arrays of one shape."""
    found, right = np.asarray(found, np.float64), np.asarray(right, np.float64)
    if found.shape != right.shape:
        raise AssertionError(f"{what}: shape {found.shape} instead of {right.shape}")
    tolerance = np.broadcast_to(np.asarray(tolerance, np.float64), right.shape)
    off = np.where(np.isfinite(found), np.abs(found - right) / tolerance, np.inf).ravel()
    worst = int(np.argmax(off))
    return Figure(what, float(found.ravel()[worst]), float(right.ravel()[worst]), float(tolerance.ravel()[worst]))


@dataclass(frozen=True)
class Case:
    """A model, written anew after one of NumPyro's.

    Attributes:
        follows: NumPyro's example or test.
        run: gives the figures.
        quick: takes a few seconds, so that the tests run it.
    """

    name: str
    follows: str
    run: Callable[[], Iterable[Figure]] = field(repr=False)
    quick: bool = False


CASES: dict[str, Case] = {}


def case(follows: str, *, quick: bool = False) -> Callable[[Callable], Callable]:
    """Register a function that gives figures under its name."""

    def register(run: Callable[[], Iterable[Figure]]) -> Callable:
        name = run.__name__.replace("_", " ")
        assert name not in CASES, name
        CASES[name] = Case(name, follows, run, quick)
        return run

    return register


def judge(one: Case) -> dict[str, Any]:
    """Run a case: its figures and the verdict, "right", "refused: why", "warned: why" or "wrong: why"."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            figures, verdict = list(one.run()), "right"
        except kayn.KaynError as error:
            figures, verdict = [], f"refused: {' '.join(str(error).split())}"
        except Exception as error:  # whatever it is, it is a fault and ends in the table
            figures, verdict = [], f"wrong: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    said = list(dict.fromkeys(" ".join(str(w.message).split()) for w in caught if _doubts(w)))
    if not all(f.good for f in figures):
        verdict = f"warned: {said[0]}" if said else "wrong: " + ", ".join(f.what for f in figures if not f.good)
    rows = [{**vars(f), "good": f.good} for f in figures]
    seconds = round(time.perf_counter() - start, 1)
    return {"model": one.name, "follows": one.follows, "verdict": verdict, "said": said, "figures": rows, "s": seconds}


def _doubts(warning: warnings.WarningMessage) -> bool:
    """Whether it says that the numbers are poor, and not only something about the data."""
    return issubclass(warning.category, kayn.PoorFitWarning | kayn.StructureWarning | kayn.NumericsWarning)


# kayn's side


def fitted(
    model: Callable, *args: Any, count: int = 30, replicates: int = 200, steps: int = 500, **options: Any
) -> Any:
    """The posterior after a fit with defaults."""
    guide = options.pop("guide", None)
    fit = kayn.fit(model, args, num_particles=count, num_steps=steps, progress=False, guide=guide, **options)
    return fit.posterior(num_replicates=replicates)


def weighed(model: Callable, *args: Any, count: int = 2, replicates: int = 2, **options: Any) -> Any:
    """The posterior of importance sampling from a guide that is not fitted: exact where every latent is enumerated."""
    return kayn.Importance(model, num_particles=count, num_replicates=replicates, **options).run(0, {}, *args)


def compare(posterior: Any, log_z: float | None = None, **moments: tuple[Any, Any]) -> list[Figure]:
    """Log evidence within 0.05 nats and four of its own standard errors; means within 0.15 sd, sds within 15 %.

    Args:
        moments: the right mean and sd of a latent or deterministic site,
            the latter None where it is not to be compared.
    """
    found = []
    if log_z is not None:
        error = float(np.nan_to_num(posterior.log_evidence_error))
        found.append(figure("log evidence", posterior.log_evidence, log_z, 0.05 + 4 * min(error, 0.1)))
    for name, (mean, sd) in moments.items():
        scale = np.asarray(np.sqrt(mean * (1 - mean)) if sd is None else sd)
        found.append(figure(f"mean of {name}", posterior.mean(name), mean, 0.15 * scale + 1e-6))
        if sd is not None:
            found.append(figure(f"sd of {name}", posterior.std(name), sd, 0.15 * scale + 1e-6))
    return found


def gradient(
    loss: Any, model: Callable, guide: Callable, args: tuple, exact: Callable, draws: int = 4000, **start: Any
) -> list[Figure]:
    """Loss and gradient, averaged over draws, beside those of a function of the parameters.

    Args:
        exact: parameters to the loss, in float64 and by the rules of plain NumPy; differentiated by differences.
    """
    svi = SVI(model, guide, Adam(1.0), kayn.RWS(2))
    params = {**svi.get_params(svi.init(jax.random.key(0), *args)), **start}

    def one(key: Any) -> Any:
        return jax.value_and_grad(lambda p: loss.loss(key, p, model, guide, *args))(params)

    run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=500))
    values = jax.tree.map(lambda v: np.asarray(v, np.float64), run(jax.random.split(jax.random.key(1), draws)))
    at = {n: np.asarray(v, np.float64) for n, v in params.items()}
    found = [_averaged("loss", values[0], exact(at))]
    for name in params:
        found.append(_averaged(f"gradient of {name}", values[1][name], differences(exact, at, name)))
    return found


def _averaged(what: str, values: np.ndarray, right: Any) -> Figure:
    return figure(what, values.mean(0), right, ERRORS * values.std(0) / len(values) ** 0.5 + 2e-4)


def differences(function: Callable, at: Mapping[str, np.ndarray], name: str, step: float = 1e-4) -> np.ndarray:
    """The gradient in one parameter by central differences."""
    slopes = np.zeros_like(at[name])
    for where in np.ndindex(slopes.shape):
        change = np.zeros_like(slopes)
        change[where] = step
        up, down = ({**at, name: at[name] + sign * change} for sign in (1, -1))
        slopes[where] = (function(up) - function(down)) / (2 * step)
    return slopes


# exact sides


def nodes(low: float, high: float, count: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss and Legendre on an interval."""
    x, w = np.polynomial.legendre.leggauss(count)
    return low + (high - low) * (x + 1) / 2, w * (high - low) / 2


def hermite(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and log weights of the standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(count)
    return x, np.log(w / w.sum())


class Exact:
    """An integral over a grid of up to a few dimensions.

    Args:
        log_joint: a function of one array per axis, which broadcast.
        axes: nodes and weights of each.
    """

    def __init__(self, log_joint: Callable, *axes: tuple[np.ndarray, np.ndarray]):
        self.at = np.meshgrid(*(x for x, _ in axes), indexing="ij", sparse=True)
        widths = np.meshgrid(*(w for _, w in axes), indexing="ij", sparse=True)
        shape = tuple(len(x) for x, _ in axes)
        log_terms = np.broadcast_to(log_joint(*self.at), shape) + sum(np.log(w) for w in widths)
        self.log_z = float(logsumexp(log_terms))
        self.weights = np.exp(log_terms - self.log_z)

    def mean(self, value: Any) -> float:
        """The posterior mean of an array on the grid."""
        return float(np.sum(self.weights * value))

    def moments(self, value: Any, variance: Any = 0.0) -> tuple[float, float]:
        """Mean and sd of what has this mean and variance at every point of the grid."""
        mean = self.mean(value)
        return mean, (self.mean(variance + np.asarray(value) ** 2) - mean**2) ** 0.5


def stack(moments: Iterable[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    means, sds = zip(*moments, strict=True)
    return np.array(means), np.array(sds)


def states(*sizes: int) -> np.ndarray:
    """All combinations of discrete values: [combinations, latents]."""
    return np.array(list(itertools.product(*(range(s) for s in sizes))))


def nuts(model: Callable, *args: Any, names: Iterable[str], samples: int = 1500) -> dict[str, tuple[Any, Any]]:
    """Means and sds by a short run of NumPyro's sampler, where nothing is exact."""
    run = MCMC(NUTS(model, target_accept_prob=0.95), num_warmup=500, num_samples=samples, progress_bar=False)
    run.run(jax.random.key(3), *args)
    found = run.get_samples()
    return {n: (np.asarray(found[n]).mean(0), np.asarray(found[n]).std(0)) for n in names}


def plain(text: str) -> str:
    """A text that fits a cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
