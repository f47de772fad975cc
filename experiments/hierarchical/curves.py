"""Error of posterior means against K and against time: fits with all combinations of few particles and with many joint
ones, importance sampling, NUTS.

Run: python -m experiments.hierarchical.curves [--models NAME ...] [--simulated] [--full]

Truth are the means of a long NUTS run; errors are in its standard deviations, root mean square over all coordinates of
all latents. With `--simulated` the data are drawn from the model, and truth are the latents that they were drawn with:
the exact posterior mean is then about one standard deviation off. Seconds are what a user waits, compilation included;
weighing the particles that give the means is not counted for fits. Writes `curves[_simulated].json` and `.png` into
`experiments/hierarchical/results`; the published comparisons are figures 2 to 4 of Bowyer, Heap & Aitchison (UAI 2024)
and 1 to 3 of Heap, Bowyer & Aitchison (QEM, 2025).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI

import kayn
from experiments._common import rows_of_others, save_json
from experiments.hierarchical.run import OUT, test_arguments
from kayn import QEM
from kayn.evidence.problem import build_problem
from kayn.guides.factorised import FactorisedGuide
from kayn.inference.importance import Weigher
from kayn.posterior.pool import Call
from models import MODELS

CHUNK = 8
LOOKS = (1, 3, 8, 16, 32)
"""Chunks of steps after which a fit is looked at; `--full` goes on to all of them, otherwise to 128 steps."""
SETS = 8
RATE = 0.03
NAMES = ("bus", "radon, 4 states", "chimpanzees")
Truth = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""What means are compared with, and the unit of the error."""


def error(means: Mapping[str, Any], truth: Truth) -> float:
    """Root mean square over all coordinates, in standard deviations of the posterior."""
    parts = [((np.asarray(means[n]) - centre) / sd).ravel() for n, (centre, sd) in truth.items()]
    return float(np.sqrt(np.mean(np.concatenate(parts) ** 2)))


def length(row: Mapping[str, Any]) -> int:
    """Steps of a fit, or draws of NUTS."""
    return row["steps"] if "steps" in row else row["draws"]


def simulated(model: Callable, args: tuple) -> tuple[tuple, dict[str, np.ndarray]]:
    """Arguments with data drawn from the model in the last place, and the latents they were drawn with."""
    trace = handlers.trace(handlers.seed(model, 3)).get_trace(*args[:-1], None)
    latents = {n: np.asarray(s["value"]) for n, s in trace.items() if s["type"] == "sample"}
    # the models of this collection have one observed site, the last
    return (*args[:-1], latents.pop(list(latents)[-1]).astype(np.float32)), latents


def nuts(model: Callable, args: tuple, samples: int, seed: int) -> tuple[dict[str, np.ndarray], float, float]:
    """Draws, seconds until the first of them and seconds for each."""
    mcmc = MCMC(NUTS(model), num_warmup=samples // 2, num_samples=samples, progress_bar=False)
    start = time.perf_counter()
    mcmc.warmup(jax.random.key(seed), *args)
    warm = time.perf_counter() - start
    mcmc.run(mcmc.post_warmup_state.rng_key, *args)
    draws = {n: np.asarray(v) for n, v in mcmc.get_samples().items()}
    return draws, warm, (time.perf_counter() - start - warm) / samples


def run_nuts(model: Callable, args: tuple, samples: int, truth: Truth) -> Iterator[dict[str, Any]]:
    """The error of the running mean against seconds."""
    draws, warm, each = nuts(model, args, samples, 0)
    for count in (30, 100, 300, 1000, 3000, 10_000):
        if count <= samples:
            means = {n: v[:count].mean(0) for n, v in draws.items()}
            yield {"draws": count, "seconds": warm + each * count, "error": error(means, truth)}


def fits(method: str, model: Callable, args: tuple, options: Mapping[str, Any], seeds: int, last: int) -> Iterator[Any]:
    """For every seed, chunk after chunk: the seed, steps and seconds so far, the guide,
    its proposal and the log evidence of the last chunk."""
    begun = time.perf_counter()
    if method == "qem":
        qem = QEM(model, **options)
        first = qem.init(0, *args)
        guide, advance, proposal = qem.guide, partial(qem.advance, count=CHUNK), qem.get_proposal
    else:
        guide = FactorisedGuide.from_model(model, args)
        svi = SVI(model, guide, numpyro.optim.Adam(RATE), {"rws": kayn.RWS, "vi": kayn.VI}[method](**options))
        first = jax.jit(lambda key: svi.init(key, *args))(jax.random.key(0))

        @jax.jit
        def advance(state: Any) -> Any:
            state, losses = jax.lax.scan(lambda s, _: svi.update(s, *args), state, None, length=CHUNK)
            return state, -losses

        proposal = svi.get_params
    # every user compiles once
    jax.block_until_ready(advance(first))
    compiled = time.perf_counter() - begun
    for seed in range(seeds):
        state, seconds = replaced(first, jax.random.key(seed)), compiled
        for number in range(1, last + 1):
            start = time.perf_counter()
            state, log_z = jax.block_until_ready(advance(state))
            seconds += time.perf_counter() - start
            yield seed, number, seconds, guide, proposal(state), np.asarray(log_z)


def replaced(state: Any, key: Any) -> Any:
    return state._replace(rng_key=key) if hasattr(state, "_replace") else replace(state, rng_key=key)


def run_fits(
    method: str, model: Callable, args: tuple, test: tuple | None, truth: Truth, options: Mapping, seeds: int, last: int
) -> Iterator[dict[str, Any]]:
    weigher = None
    for seed, number, seconds, guide, params, log_z in fits(method, model, args, options, seeds, last):
        if number not in LOOKS:
            continue
        if weigher is None:
            request = kayn.Importance(model, guide, **options).request
            weigher = Weigher(build_problem(model, guide, args, {}, params, request), Call(model, args, {}))
        posterior = weigher.run(jax.random.key(1000 + seed), params, SETS)
        row = {"seed": seed, "steps": number * CHUNK, "seconds": seconds, "log_evidence": float(log_z.mean())}
        row["error"] = error({n: posterior.mean(n) for n in truth}, truth)
        if number == last and test is not None:
            scores = posterior.log_predictive(1, 1000, *test)
            row |= {"joint": float(scores.joint), "pointwise": float(scores.total)}
        yield row


def run_importance(
    model: Callable, args: tuple, truth: Truth, options: Mapping[str, Any], seeds: int
) -> Iterator[dict[str, Any]]:
    """One set of particles from the guide that fits start from."""
    begun = time.perf_counter()
    guide = FactorisedGuide.from_model(model, args)
    request = kayn.Importance(model, guide, **options).request
    weigher = Weigher(build_problem(model, guide, args, {}, guide.start, request), Call(model, args, {}))
    # every user compiles once
    float(weigher.run(jax.random.key(0), guide.start, 1).log_evidence)
    compiled = time.perf_counter() - begun
    for seed in range(seeds):
        start = time.perf_counter()
        posterior = weigher.run(jax.random.key(seed), guide.start, 1)
        log_z = float(posterior.log_evidence)
        seconds = compiled + time.perf_counter() - start
        means = {n: posterior.mean(n) for n in truth}
        yield {"seed": seed, "steps": 0, "seconds": seconds, "log_evidence": log_z, "error": error(means, truth)}


@click.command()
@click.option("--models", multiple=True, type=click.Choice(list(MODELS)), default=NAMES, show_default=True)
@click.option("--simulated", "known", is_flag=True, help="Data drawn from the model, error against its latents.")
@click.option(
    "--full", is_flag=True, help="Five seeds, 250 steps, K = 1, 3, 10, 30, 100 and up to 30,000 joint particles."
)
@click.option("--few", multiple=True, type=int, help="K of all combinations; 3, 10, 30 by default.")
@click.option("--many", multiple=True, type=int, help="Joint particles; 1,000 by default.")
@click.option("--samples", default=4000, show_default=True, help="Draws of the NUTS run that means are compared with.")
@click.option("--seeds", default=3, show_default=True)
def main(
    models: tuple[str, ...],
    known: bool,
    full: bool,
    few: tuple[int, ...],
    many: tuple[int, ...],
    samples: int,
    seeds: int,
) -> None:
    """Fit and weigh in all ways, and follow the error of the posterior means."""
    warnings.simplefilter("ignore", kayn.PoorFitWarning)
    few = few or ((1, 3, 10, 30, 100) if full else (3, 10, 30))
    many = many or ((100, 1000, 10_000, 30_000) if full else (1000,))
    seeds, last = (5, LOOKS[-1]) if full else (seeds, LOOKS[-2])
    path = OUT / f"curves{'_simulated' if known else ''}.json"
    rows = rows_of_others(path, models)
    click.echo(
        f"{'model':<17}{'method':<12}{'strategy':<10}{'K':>6}{'length':>7}{'seconds':>9}{'log evidence':>14}"
        f"{'error of means, sd':>20}{'test joint':>12}{'by row':>9}"
    )

    def report(found: dict[str, Any], **labels: Any) -> None:
        rows.append(labels | found)
        save_json(path, {"rows": rows})

    def show(labels: Mapping[str, Any]) -> None:
        mine = [r for r in rows if all(r.get(k) == v for k, v in labels.items())]
        last = max(map(length, mine))
        ends = [r for r in mine if length(r) == last]

        def mean(what: str, form: str, width: int) -> str:
            values = [r[what] for r in ends if what in r]
            return f"{np.mean(values):>{width}{form}}" if values else " " * width

        click.echo(
            f"{labels['model']:<17}{labels['method']:<12}{labels.get('strategy', ''):<10}"
            f"{labels.get('particles', ''):>6}{last:>7}"
            + mean("seconds", ".1f", 9)
            + mean("log_evidence", ".1f", 14)
            + mean("error", ".3f", 20)
            + mean("joint", ".1f", 12)
            + mean("pointwise", ".1f", 9)
        )

    for name in models:
        model, args = MODELS[name]()
        latents: dict[str, np.ndarray] = {}
        if known:
            args, latents = simulated(model, args)
        draws, *_ = nuts(model, args, samples, 1)
        truth = {n: (latents.get(n, v.mean(0)), v.std(0)) for n, v in draws.items()}
        labels: dict[str, Any] = {"model": name, "method": "nuts"}
        for row in run_nuts(model, args, samples // 4, truth):
            report(row, **labels)
        show(labels)
        for strategy, counts in (("parallel", few), ("global", many)):
            for count in counts:
                options = {"num_particles": count, "strategy": strategy}
                labels = {"model": name, "method": "importance", "strategy": strategy, "particles": count}
                for row in run_importance(model, args, truth, options, seeds):
                    report(row, **labels)
                show(labels)
                for method in ("qem", "rws", "vi"):
                    labels = labels | {"method": method}
                    test = None if known else test_arguments(name, args)
                    for row in run_fits(method, model, args, test, truth, options, seeds, last):
                        report(row, **labels)
                    show(labels)
                    jax.clear_caches()
    draw(rows, path.with_suffix(".png"))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against seconds, one panel a model; medians over seeds."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(r["model"] for r in rows))
    figure, panels = plt.subplots(1, len(names), figsize=(5 * len(names), 4.5), squeeze=False)
    colours = {"qem": "tab:blue", "rws": "tab:orange", "vi": "tab:green", "importance": "tab:grey", "nuts": "black"}
    for panel, name in zip(panels[0], names, strict=True):
        mine = [r for r in rows if r["model"] == name]
        for which in dict.fromkeys((r["method"], r.get("strategy"), r.get("particles")) for r in mine):
            line = [r for r in mine if (r["method"], r.get("strategy"), r.get("particles")) == which]
            at = [[r for r in line if length(r) == n] for n in sorted(set(map(length, line)))]
            panel.loglog(
                [np.median([r["seconds"] for r in a]) for a in at],
                [np.median([r["error"] for r in a]) for a in at],
                {"parallel": "o-", "global": "x:"}.get(str(which[1]), "s-"),
                color=colours[which[0]],
                alpha=min(1.0, 0.4 + 0.2 * np.log10(which[2] or 1000)),
                label=" ".join(str(w) for w in which if w is not None),
                markersize=4,
            )
        panel.set(title=name, xlabel="seconds, with compilation")
    panels[0][0].set_ylabel("error of posterior means (sd)")
    panels[0][-1].legend(fontsize=6, ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
