"""The published models in their right form on the right data: ragged MovieLens with its labels,
houses in counties, actors crossed with blocks.

Run: python -m experiments.hierarchical.right [--models NAME ...] [--particles K ...] [--nuts]

Every method gets the same training rows and is tested on the same held-out rows: MovieLens on the published `ua` split,
radon on every tenth house, chimpanzees on every tenth trial. With `--nuts` also the distance of posterior means from
those of a long NUTS run, in its standard deviations, and score, distance and seconds of a NUTS run as users have it
(MovieLens takes very long). Writes `right.json` into `experiments/hierarchical/results`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS, log_likelihood
from numpyro.infer.reparam import LocScaleReparam

import kayn
from examples import chimpanzees, movielens, radon
from experiments._common import rows_of_others, save_json
from experiments.hierarchical.run import LAST, OUT

Case = tuple[Callable, tuple, tuple, tuple[str, ...]]
"""Model, training arguments, arguments with the held-out rows, and population-level latents."""


def split(args: tuple, rows: int) -> tuple[tuple, tuple]:
    """Arguments without and with only every tenth row; those that are no rows stay."""
    test = np.arange(rows) % 10 == 9

    def of(chosen: Any) -> tuple:
        return tuple(a[chosen] if np.ndim(a) and len(a) == rows else a for a in args)

    return of(~test), of(test)


def movielens_case() -> Case:
    train = movielens.prepare(False)
    data = kayn.datasets.load("movielens_100k")
    rows = np.flatnonzero(data["test"] == 1)
    test = (
        data["user"][rows].astype(np.int32),
        data["item"][rows].astype(np.int32),
        train[2],
        train[3],
        (data["rating"][rows] >= 4).astype(np.float32),
    )
    return movielens.model, train, test, ("mu", "psi")


def radon_case() -> Case:
    args = radon.prepare(False)
    return radon.varying_intercept, *split(args, len(args[0])), ("mu", "sd", "beta", "sigma")


def chimpanzees_case() -> Case:
    args = chimpanzees.prepare()
    return chimpanzees.model, *split(args, len(args[0])), ("intercept", "coefficients", "sd_actor", "sd_block")


DECENTRED = ("block_effect",)
"""Sites that the reference samples apart from their scale; the model as it is goes to all methods."""
CASES = {
    "movielens": movielens_case,
    "radon": radon_case,
    "chimpanzees": chimpanzees_case,
    "chimpanzees, actors coupled": chimpanzees_case,
}
OPTIONS: dict[str, dict[str, Any]] = {"chimpanzees, actors coupled": {"couple": {"actor_effect": "actors"}}}
"""Actors cross blocks, so one of them has to give up its own particle index; by itself kayn has the fewer do it,
the blocks."""


def score_of(posterior: kayn.Posterior, test: tuple) -> tuple[float, float]:
    """Pointwise log predictive density per held-out row and the joint one of all."""
    found = posterior.log_predictive(1, 1000, *test)
    (pointwise,) = found.pointwise.values()
    return float(jnp.mean(pointwise)), float(found.joint)


def run_nuts(model: Callable, train: tuple, seed: int, num_samples: int, **options: Any) -> Mapping[str, Any]:
    mcmc = MCMC(NUTS(model, **options), num_warmup=500, num_samples=num_samples, progress_bar=False)
    mcmc.run(jax.random.key(seed), *train)
    return jax.block_until_ready(mcmc.get_samples())


def nuts_score(model: Callable, draws: Mapping[str, Any], test: tuple) -> float:
    """Log predictive density per held-out row."""
    (pointwise,) = log_likelihood(model, draws, *test).values()
    return float(np.mean(jax.nn.logsumexp(pointwise, 0) - np.log(len(pointwise))))


def distance_of(means: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """The worst of some means, in standard deviations of the reference from its means."""
    return max(float(np.max(np.abs(m - reference[n].mean(0)) / reference[n].std(0))) for n, m in means.items())


@click.command()
@click.option("--models", multiple=True, type=click.Choice(list(CASES)))
@click.option("--particles", multiple=True, type=int, default=(10, 30), show_default=True)
@click.option("--steps", default=500, show_default=True, help="At most; fits stop once they are flat.")
@click.option("--nuts", is_flag=True, help="Compare with NUTS.")
def main(models: tuple[str, ...], particles: tuple[int, ...], steps: int, nuts: bool) -> None:
    """Evidence, held-out density and distance from NUTS."""
    warnings.simplefilter("ignore", kayn.PoorFitWarning)
    path, chosen = OUT / "right.json", models or tuple(CASES)
    rows = rows_of_others(path, chosen)
    click.echo(
        f"{'model':<28}{'method':<7}{'K':>4}{'log evidence':>14}{'test, per row':>15}{'joint':>10}{'seconds':>9}"
        f"{'worst mean, sd of NUTS':>24}"
    )
    for name in chosen:
        model, train, test, population = CASES[name]()
        reference = None
        if nuts and name != "movielens":
            # scales near zero want short steps, and effects apart from their scale
            apart = reparam(model, config={n: LocScaleReparam(0) for n in DECENTRED})
            reference = run_nuts(apart, train, 1, 8000, target_accept_prob=0.95)
            start = time.perf_counter()
            draws = run_nuts(model, train, 0, 1000)
            seconds = time.perf_counter() - start
            score = nuts_score(model, draws, test)
            distance = distance_of({n: draws[n].mean(0) for n in population}, reference)
            rows.append({"model": name, "method": "nuts", "test": score, "seconds": seconds, "distance": distance})
            click.echo(f"{name:<28}{'nuts':<7}{'':>18}{score:>15.4f}{'':>10}{seconds:>9.1f}{distance:>24.2f}")
        for count in particles:
            for method in ("qem", "rws", "vi"):
                start = time.perf_counter()
                fitted = kayn.fit(model, train, None, method, count, 0, False, num_steps=steps, **OPTIONS.get(name, {}))
                posterior = fitted.posterior()
                seconds = time.perf_counter() - start
                pointwise, joint = score_of(posterior, test)
                distance = distance_of({n: posterior.mean(n) for n in population}, reference) if reference else None
                rows.append(
                    {
                        "model": name,
                        "method": method,
                        "particles": count,
                        "steps": len(fitted.log_evidence),
                        "log_evidence": float(np.mean(fitted.log_evidence[-LAST:])),
                        "test": pointwise,
                        "joint": joint,
                        "seconds": seconds,
                        "distance": distance,
                    }
                )
                click.echo(
                    f"{name:<28}{method:<7}{count:>4}{rows[-1]['log_evidence']:>14.1f}{pointwise:>15.4f}"
                    f"{joint:>10.1f}{seconds:>9.1f}"
                    f"{'' if distance is None else f'{distance:.3f}':>24}"
                )
                save_json(path, {"rows": rows})
                jax.clear_caches()


if __name__ == "__main__":
    main()
