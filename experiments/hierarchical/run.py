"""Hierarchical models and chains of the literature, in their published shapes:
`python -m experiments.hierarchical.run COMMAND [--help]`.

Every command prints a table and writes JSON and a picture into `experiments/hierarchical/results`. Quick settings take
minutes; `--full`, where there is one, is the published protocol. Sources: Heap, Leech & Aitchison (UAI 2023), Bowyer,
Heap & Aitchison (UAI 2024), Heap, Bowyer & Aitchison (QEM, 2025).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI
from numpyro.infer.reparam import Reparam

import kayn
from experiments._common import rows_of_others, save_json
from kayn import QEM, datasets
from kayn.guides.factorised import FactorisedGuide
from models import MODELS
from models.published import movielens, ratings_of, tastes

OUT = Path(__file__).parent / "results"
PUBLIC = {
    "bus": (-413.0, -390.7),
    "radon, 4 states": (-827.9, -826.6),
    "chimpanzees": (-246.7, -41.0),
    "occupancy": (-49101.0, None),
}
"""Log evidence (and joint predictive log density of the test half) of the authors' code after 250 iterations with K =
10, its best method (occupancy: published, K = 30)."""
LAST = 8
"""Iterations over which the noisy log evidence is averaged."""


@click.group()
def main() -> None:
    """Reproductions of published comparisons."""
    warnings.simplefilter("ignore", kayn.PoorFitWarning)


def test_arguments(name: str, args: tuple) -> tuple | None:
    """The arguments with the held-out half in the place of the training data."""
    if name == "bus":
        data = datasets.load("bus_breakdown")
        return tuple(data[f"{k}_test_0"].astype(np.float32) for k in ("bus_company_name", "run_type", "delay"))
    if name == "radon, 4 states":
        data = datasets.load("radon")
        return tuple(np.asarray(data[k][:, 150:300], np.float32) for k in ("basement", "log_u", "log_radon"))
    if name == "chimpanzees":
        data = datasets.load("chimpanzees")
        return tuple(data[f"{k}_test"].astype(np.float32) for k in ("condition", "prosoc_left", "pulled_left"))
    if name == "movielens, 300 x 5":
        return ratings_of(300, slice(5, 10))
    return None


def run_qem(
    model: Callable, args: tuple, particles: int, steps: int, seed: int, **options: Any
) -> tuple[Any, dict, Any]:
    qem = QEM(model, num_particles=particles, **options)
    state = qem.init(seed, *args)
    state, log_z = qem.advance(state, steps)
    return np.asarray(log_z), qem.get_params(state), qem.guide


def run_svi(
    loss: type, rate: float, model: Callable, args: tuple, particles: int, steps: int, seed: int, **options: Any
) -> tuple[Any, dict, Any]:
    guide = FactorisedGuide.from_model(model, args)
    svi = SVI(model, guide, numpyro.optim.Adam(rate), loss(particles, **options))
    state = jax.jit(lambda key: svi.init(key, *args))(jax.random.key(seed))
    state, losses = jax.jit(lambda s: jax.lax.scan(lambda s, _: svi.update(s, *args), s, None, length=steps))(state)
    return -np.asarray(losses), svi.get_params(state), guide


RATES = (0.01, 0.03, 0.1)


def best_rate(loss: type, model: Callable, args: tuple, particles: int, steps: int) -> float:
    """The learning rate with the highest log evidence half way, as in the published protocol."""

    def score(rate: float) -> float:
        found = run_svi(loss, rate, model, args, particles, max(steps // 2, 1), 0)[0]
        value = float(np.mean(found[-LAST:]))
        return value if np.isfinite(value) else -np.inf

    return max(RATES, key=score)


@main.command()
@click.option("--full", is_flag=True, help="K = 3, 10, 30, five seeds, occupancy too.")
@click.option("--models", multiple=True, type=click.Choice(list(MODELS)))
@click.option("--particles", multiple=True, type=int)
@click.option("--steps", default=250, show_default=True)
@click.option("--methods", "chosen", multiple=True, default=("qem", "rws", "vi"), show_default=True)
@click.option("--name", "file", default="methods", help="Of the file written.")
def methods(
    full: bool, models: tuple[str, ...], particles: tuple[int, ...], steps: int, chosen: tuple[str, ...], file: str
) -> None:
    """QEM, RWS and VI on the published arrays: log evidence after 250 iterations, and of the test half."""
    names = models or (
        "bus",
        "radon, 4 states",
        "chimpanzees",
        "movielens, 300 x 5",
        *(("occupancy",) if full else ()),
    )
    rows = []
    click.echo(
        f"{'model':<20}{'K':>4} "
        f"{'method':<8}{'log evidence':>22}{'public':>10}{'test half':>18}{'public':>9}{'s a step':>10}"
    )
    for name in names:
        model, args = MODELS[name]()
        held_out = test_arguments(name, args)
        for count in particles or ((3, 10, 30) if full else (10,)):
            for method in chosen:
                if method == "vi" and name == "occupancy":
                    continue  # its enumerated latent is fine, its 250 gradient steps take long
                if method == "qem":
                    run: Callable[..., Any] = run_qem
                else:
                    loss = kayn.RWS if method == "rws" else kayn.VI
                    run = partial(run_svi, loss, best_rate(loss, model, args, count, steps))
                ends, predictive = [], []
                for seed in range(5 if full else 2):
                    start = time.perf_counter()
                    history, params, guide = run(model, args, count, steps, seed)
                    seconds = (time.perf_counter() - start) / steps
                    ends.append(float(np.mean(history[-LAST:])))
                    if held_out is not None:
                        posterior = kayn.Importance(model, guide, num_particles=count).run(seed, params, *args)
                        predictive.append(float(posterior.log_predictive(1, 1000, *held_out).joint))
                known = PUBLIC.get(name, (None, None))
                rows.append(
                    {
                        "model": name,
                        "particles": count,
                        "method": method,
                        "log_evidence": ends,
                        "test": predictive,
                        "public": known,
                        "step_seconds": seconds,
                    }
                )
                test = f"{np.mean(predictive):.1f} ±{np.std(predictive):.1f}" if predictive else ""
                click.echo(
                    f"{name:<20}{count:>4} {method:<8}{np.mean(ends):>14.1f} "
                    f"±{np.std(ends):<6.2f}{known[0] or '':>10}{test:>18}{known[1] or '':>9}{seconds:>10.3f}"
                )
                jax.clear_caches()
    save_json(OUT / f"{file}.json", {"steps": steps, "rows": rows})


@main.command()
@click.option("--full", is_flag=True, help="K = 3, 10, 30 and up to 30,000 joint particles, five seeds.")
@click.option("--models", multiple=True, default=("movielens, 300 x 5", "bus"), show_default=True)
@click.option("--many", multiple=True, type=int, default=(1000,), show_default=True, help="Numbers of joint particles.")
@click.option("--methods", "chosen", multiple=True, default=("qem", "rws"), show_default=True)
@click.option("--steps", default=250, show_default=True)
@click.option("--seeds", type=int, help="1 by default.")
@click.option("--name", "file", default="held_out", help="Of the file written.")
def held_out(
    full: bool,
    models: tuple[str, ...],
    many: tuple[int, ...],
    chosen: tuple[str, ...],
    steps: int,
    seeds: int | None,
    file: str,
) -> None:
    """All combinations of few particles against many joint particles, fitted and tested alike:
    log density of the test half."""
    few = (3, 10, 30) if full else (30,)
    many = (100, 1000, 10_000, 30_000) if full else many
    rows: list[dict[str, Any]] = []
    click.echo(
        f"{'model':<20}{'strategy':<10}{'K':>7} "
        f"{'fitted by':<22}{'log evidence':>20}{'test, joint':>20}{'test, pointwise':>20}{'s a step':>10}"
    )

    def report(
        name: str, strategy: str, count: int, method: str, found: dict[str, list[float]], seconds: float
    ) -> None:
        row = {"model": name, "strategy": strategy, "particles": count, "method": method}
        row |= {"steps": steps, "step_seconds": seconds}
        rows.append(row | found)
        shown = "".join(f"{np.mean(v):>12.1f} ±{np.std(v):<6.1f}" for v in found.values())
        click.echo(f"{name:<20}{strategy:<10}{count:>7} {method:<22}{shown}{seconds:>10.3f}")
        save_json(OUT / f"{file}.json", {"rows": rows})
        jax.clear_caches()

    def score(name: str, strategy: str, count: int, seed: int, guide: Any, params: Any) -> dict[str, float]:
        model, args = MODELS[name]()
        # eight sets of few particles are still far fewer than those of one joint set
        sets = 8 if strategy == "parallel" else 1
        importance = kayn.Importance(model, guide, num_particles=count, strategy=strategy, num_replicates=sets)
        posterior = importance.run(seed, params, *args)
        scores = posterior.log_predictive(1, 1000, *(test_arguments(name, args) or ()))
        return {
            "log_evidence": float(posterior.log_evidence),
            "joint": float(scores.joint),
            "pointwise": float(scores.total),
        }

    for name in models:
        model, args = MODELS[name]()
        for strategy, counts in (("parallel", few), ("global", many)):
            for count, method in ((c, m) for c in counts for m in chosen):
                # the rate that is best for all combinations of ten particles serves both
                run = run_qem if method == "qem" else partial(run_svi, kayn.RWS, 0.03)
                fits = []
                start = time.perf_counter()
                for seed in range(seeds or (5 if full else 1)):
                    fits.append(run(model, args, count, steps, seed, strategy=strategy)[1:])
                seconds = (time.perf_counter() - start) / steps / len(fits)
                found = [score(name, strategy, count, i, guide, params) for i, (params, guide) in enumerate(fits)]
                report(name, strategy, count, method, {k: [f[k] for f in found] for k in found[0]}, seconds)
                if strategy == "parallel" and count == few[-1]:
                    # the same fitted guides, weighed as joint draws
                    for other in many:
                        found = [
                            score(name, "global", other, i, guide, params) for i, (params, guide) in enumerate(fits)
                        ]
                        report(
                            name,
                            "global",
                            other,
                            f"{method}, all combinations",
                            {k: [f[k] for f in found] for k in found[0]},
                            0.0,
                        )


class Rescaled(Reparam):
    """A latent in units of its own: the model sees `scale` times what is inferred."""

    def __init__(self, scale: float):
        self.scale = scale

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Any]:
        inner = dist.TransformedDistribution(fn, dist.transforms.AffineTransform(0.0, 1.0 / self.scale))
        return None, self.scale * numpyro.sample(f"{name}_rescaled", inner)


def _end(model: Callable, args: tuple, particles: int, params: dict, guide: Any) -> float:
    """Mean log evidence of 200 sets of particles from a fitted guide; NaN where the fit diverged."""
    if not all(np.isfinite(p).all() for p in params.values()):
        return float("nan")
    importance = kayn.Importance(model, guide, num_particles=particles, num_replicates=200)
    return float(np.mean(np.asarray(importance.run(0, params, *args).log_evidences)))


RESCALED = {
    "bus": {"psi": 10.0, "phi": 1000.0, "alpha": 100.0},
    "radon, 4 states": {"beta_u": 100.0, "beta_basement": 0.01},
    "movielens, 300 x 5": {"mu": 1000.0, "psi": 10_000.0},
}


@main.command()
@click.option("--full", is_flag=True, help="All models; otherwise bus and radon.")
@click.option("--steps", default=250, show_default=True)
@click.option("--particles", default=10, show_default=True)
def rescaled(full: bool, steps: int, particles: int) -> None:
    """QEM does not depend on how latents are scaled; gradient methods do."""
    rows = []
    click.echo(f"{'model':<20}{'method':<8}{'as it is':>14}{'rescaled':>14}")
    for name, scales in RESCALED.items():
        if not full and name.startswith("movielens"):
            continue
        model, args = MODELS[name]()
        other = numpyro.handlers.reparam(model, config={n: Rescaled(s) for n, s in scales.items()})
        for method in ("qem", "rws", "vi"):
            if method == "qem":
                run: Callable[..., Any] = run_qem
            else:
                loss = kayn.RWS if method == "rws" else kayn.VI
                run = partial(run_svi, loss, best_rate(loss, model, args, particles, steps))
            ends = [_end(m, args, particles, *run(m, args, particles, steps, 0)[1:]) for m in (model, other)]
            rows.append({"model": name, "method": method, "plain": ends[0], "rescaled": ends[1]})
            click.echo(f"{name:<20}{method:<8}{ends[0]:>14.2f}{ends[1]:>14.2f}")
            jax.clear_caches()
    save_json(OUT / "rescaled.json", rows)


def prior_of(model: Callable) -> Callable:
    """The model's latents as a guide."""
    return numpyro.handlers.block(model, hide_fn=lambda site: site.get("is_observed", False))


def bus_minutes() -> tuple[Callable, tuple]:
    """The older form of the bus model: minutes of delay of 3 years x 3 boroughs x 30 incidents,
    weights for every incident, discrete scales."""
    data = datasets.load("bus_breakdown")
    company, kind, minutes = (
        data[f"{k}_train_minutes_a"].astype(np.float32) for k in ("bus_company_name", "run_type", "delay")
    )
    weight = np.array([0.1, 0.5, 0.4, 0.05, 0.05]) / 1.1

    def model(company: Any, kind: Any, minutes: Any) -> None:
        s_beta = numpyro.sample("s_beta", dist.Categorical(weight))
        mu = numpyro.sample("mu", dist.Normal(0.0, 1e-4))
        with numpyro.plate("years", 3, dim=-3):
            beta = numpyro.sample("beta", dist.Normal(mu, jnp.exp(s_beta.astype(float))))
            with numpyro.plate("boroughs", 3, dim=-2):
                s_alpha = numpyro.sample("s_alpha", dist.Categorical(weight))
                alpha = numpyro.sample("alpha", dist.Normal(beta, jnp.exp(s_alpha.astype(float))))
                with numpyro.plate("incidents", 30, dim=-1):
                    scale = jnp.exp(numpyro.sample("s", dist.Categorical(weight)).astype(float))[..., None]
                    psi = numpyro.sample("psi", dist.Normal(jnp.zeros(6), scale).to_event(1))
                    phi = numpyro.sample("phi", dist.Normal(jnp.zeros(57), scale).to_event(1))
                    logits = alpha + (phi * company).sum(-1) + (psi * kind).sum(-1)
                    numpyro.sample("minutes", dist.NegativeBinomialLogits(130.0, logits), obs=minutes)

    return model, (company, kind, minutes)


def movielens_published() -> tuple[Callable, tuple]:
    """The arrays of the published figures: no rating is a like,
    and of 9,000 films nine in ten belong to no genre and the rest to all."""
    data = datasets.load("movielens")
    return tastes(0.25), tuple(data[f"{k}_train_20_450"].astype(np.float32) for k in ("x", "obs"))


PRIOR_CASES = {
    "movielens, published arrays": (movielens_published, ("conditional",), 2_500, 10_000),
    "movielens, 450 x 20": (partial(movielens, 450, 20, 0.25), ("conditional",), 2_500, 10_000),
    "bus, 3 x 3 x 30 in minutes": (bus_minutes, ("conditional",), 2_500, 100_000),
    "movielens, 300 x 5": (MODELS["movielens, 300 x 5"], ("marginals", "conditional"), 10_000, 10_000),
    "bus": (MODELS["bus"], ("marginals", "conditional"), 100_000, 100_000),
}
"""Model, proposals, and joint particles in one set and in all."""


@main.command()
@click.option("--models", multiple=True, type=click.Choice(list(PRIOR_CASES)))
@click.option("--runs", default=20, show_default=True, help="100 to 1,000 are published.")
def prior(models: tuple[str, ...], runs: int) -> None:
    """Importance sampling with the prior as proposal: all combinations of 30 particles against many joint draws.

    "conditional" draws every latent given its parents' particles; "marginals" draws it from (a Normal with the
    quartiles of) its prior marginal, independently of the others. The first three cases have the published sizes, and
    the first two the paper's narrow priors.
    """
    path, chosen = OUT / "prior.json", models or tuple(PRIOR_CASES)
    rows = rows_of_others(path, chosen)
    click.echo(
        f"{'model':<29}{'guide':<12}{'particles':>10} {'strategy':<10}{'log evidence':>20}{'s a run':>9}  "
        "variance of posterior means over runs"
    )
    for name in chosen:
        make, guides, at_a_time, many = PRIOR_CASES[name]
        model, args = make()
        for which in guides:
            marginals = FactorisedGuide.from_model(model, args) if which == "marginals" else None
            guide, params = (marginals, marginals.start) if marginals else (prior_of(model), {})
            for strategy, count, sets in (("parallel", 30, 1), ("global", at_a_time, many // at_a_time)):
                importance = kayn.Importance(model, guide, num_particles=count, strategy=strategy)
                weigh = _one_run(importance, args, params, sets)
                jax.block_until_ready(weigh(jax.random.key(0)))
                start = time.perf_counter()
                found = [jax.block_until_ready(weigh(jax.random.key(1 + seed))) for seed in range(runs)]
                seconds = (time.perf_counter() - start) / runs
                log_z = np.array([float(f[0]) for f in found])
                means = {n: np.stack([np.asarray(f[1][n]) for f in found]) for n in found[0][1]}
                spread = {n: float(np.mean(np.var(m, 0))) for n, m in means.items()}
                row = {"model": name, "guide": which, "strategy": strategy, "particles": count * sets}
                rows.append(row | {"seconds": seconds, "log_evidence": log_z, "variance": spread})
                click.echo(
                    f"{name:<29}{which:<12}{count * sets:>10} {strategy:<10}{log_z.mean():>12.1f} "
                    f"±{log_z.std():<6.1f}{seconds:>9.3f}" + "".join(f"  {n} {v:.2g}" for n, v in spread.items())
                )
                save_json(path, {"rows": rows})
                jax.clear_caches()


def _one_run(importance: kayn.Importance, args: tuple, params: Any, sets: int = 1) -> Callable[[Any], Any]:
    """key to (log Z, posterior means of all latents), compiled.

    Args:
        sets: of particles, drawn and weighed one after the other. Those of joint particles are one set of so many more.
    """
    from kayn.evidence.queries import latent_weights, weighted_draws

    problem = importance.problem(params, *args)

    def one(numbers: Any, key: Any) -> Any:
        log_z, weights, draws = weighted_draws(problem, numbers, params, key)
        means = {}
        for z in problem.graph.latents:
            own = latent_weights(problem, weights, z.name)
            values = draws.values[z.name]
            means[z.name] = (own.reshape((*own.shape, *(1,) * (values.ndim - own.ndim))) * values).sum(0)
        return log_z, means

    def run(numbers: Any, key: Any) -> Any:
        log_z, means = jax.lax.map(lambda key: one(numbers, key), jax.random.split(key, sets))
        share = jax.nn.softmax(log_z)
        return jax.nn.logsumexp(log_z) - np.log(sets), {n: jnp.tensordot(share, m, 1) for n, m in means.items()}

    compiled = jax.jit(run)
    return lambda key: compiled(problem.numbers, key)


@main.command()
@click.option("--replicates", default=4000, show_default=True)
def chain(replicates: int) -> None:
    """The random walk of the MP-RWS paper, whose evidence is known: log p = -5.2655, with the prior as guide."""

    def model(x: Any) -> None:
        def step(z: Any, _: Any) -> tuple[Any, None]:
            z = numpyro.sample("z", dist.Normal(z, (1 / 30) ** 0.5))
            return z, None

        last, _ = scan(step, jnp.zeros(()), None, length=30)
        numpyro.sample("x", dist.Normal(last, 1.0), obs=x)

    rows = []
    exact = float(jax.scipy.stats.norm.logpdf(4.0, 0.0, 2**0.5))
    click.echo(f"exact log evidence {exact:.4f}\n{'K':>4} {'guide':<10}{'mean of Z / p':>20}{'mean log Z':>12}")
    for count in (2, 10, 30):
        fit = kayn.fit(model, args=(4.0,), num_particles=count, progress=False)
        # weighed against the mixture of the prior's transitions every path counts the same up to its end,
        # so this is the estimate of joint draws
        for name, guide, params in (("prior", prior_of(model), None), ("fitted", fit.guide, fit.params)):
            importance = kayn.Importance(model, guide, num_particles=count, num_replicates=replicates)
            log_z = np.asarray(importance.run(0, params, 4.0).log_evidences)
            ratio = np.exp(log_z - exact)
            error = ratio.std() / replicates**0.5
            rows.append(
                {"particles": count, "guide": name, "ratio": ratio.mean(), "error": error, "log_z": log_z.mean()}
            )
            click.echo(f"{count:>4} {name:<10}{ratio.mean():>12.4f} ±{error:<7.4f}{log_z.mean():>12.3f}")
    save_json(OUT / "chain.json", {"exact": exact, "rows": rows})


TRAIN_DAYS = 109
SERIAL_DAYS = 5.0
"""Mean time from one infection to those it causes."""


def covid_model(npis: Any, wearing: Any, mobility: Any, cases: Any = None) -> None:
    """Cases in 92 regions: log infections walk with a drift that measures and behaviour explain;
    counts are negative binomial.

    Args:
        npis: [T, R, 9]; wearing, mobility: [T, R]; cases: [<= T, R].
    """
    steps, regions = wearing.shape
    effects = numpyro.sample("npi_effect", dist.Normal(jnp.zeros(9), 1.0).to_event(1))
    worn = numpyro.sample("wearing_effect", dist.Normal(0.0, 0.4))
    moved = numpyro.sample("mobility_effect", dist.Normal(1.704, 0.44))
    noise = numpyro.sample("noise", dist.HalfNormal(0.3))
    dispersion = numpyro.sample("log_dispersion", dist.Normal(2.0, 1.0))
    with numpyro.plate("regions", regions):
        basic = numpyro.sample("log_r0", dist.Normal(1.07, 0.6))

    def step(previous: Any, now: Any) -> tuple[Any, None]:
        npi, wears, moves, count, first = now
        growth = (basic - npi @ effects - worn * wears - moved * moves) / SERIAL_DAYS
        with numpyro.plate("regions", regions):
            mean, sd = jnp.where(first, 4.0, previous + growth), jnp.where(first, 3.0, noise)
            infected = numpyro.sample("log_infected", dist.Normal(mean, sd))
            numpyro.sample("cases", dist.NegativeBinomial2(jnp.exp(infected), jnp.exp(dispersion)), obs=count)
        return infected, None

    scan(step, jnp.zeros(regions), (npis, wearing, mobility, cases, jnp.arange(steps) == 0), length=steps)


GLOBALS = ("npi_effect", "wearing_effect", "mobility_effect", "noise", "log_dispersion")


@main.command()
@click.option("--particles", default=10, show_default=True)
@click.option("--steps", default=120, show_default=True)
@click.option("--regions", default=92, show_default=True)
def covid(particles: int, steps: int, regions: int) -> None:
    """Covid cases of 92 regions and 109 days, and forecasts of the next 28."""
    data = datasets.load("covid")
    whole = tuple(
        np.ascontiguousarray(np.moveaxis(data[k][:regions], 0, 1)).astype(np.float32)
        for k in (
            "ActiveCMs_NPIs_daily_all",
            "ActiveCMs_wearing_daily_all",
            "ActiveCMs_mobility_daily_all",
            "obs_daily_all",
        )
    )
    args = tuple(a[:TRAIN_DAYS] for a in whole)
    qem = QEM(covid_model, num_particles=particles, groups=[(*GLOBALS, "log_r0")])
    state = qem.init(0, *args)
    state, _ = qem.advance(state, 8)
    start = time.perf_counter()
    history = []
    for _ in range(steps // 8):
        state, log_z = qem.advance(state, 8)
        history += np.asarray(log_z).tolist()
    seconds = (time.perf_counter() - start) / len(history)
    click.echo(
        f"{seconds:.2f} s a step; log evidence {np.mean(history[:8]):.0f} after 16 steps, "
        f"{np.mean(history[-8:]):.0f} at the end"
    )
    importance = kayn.Importance(covid_model, qem.guide, num_particles=particles, groups=[(*GLOBALS, "log_r0")])
    posterior = importance.run(1, qem.get_params(state), *args)
    later = np.asarray(posterior.predictive(2, 200, *whole[:3])["cases"])
    truth = whole[3]
    low, middle, high = np.quantile(later, [0.05, 0.5, 0.95], axis=0)
    inside = float(np.mean((truth >= low) & (truth <= high)))
    ahead = float(np.mean(((truth >= low) & (truth <= high))[TRAIN_DAYS:]))
    ratio = float(np.median(np.abs(np.log1p(middle[TRAIN_DAYS:]) - np.log1p(truth[TRAIN_DAYS:]))))
    click.echo(
        f"90 % intervals hold {inside:.0%} of all counts and {ahead:.0%} of the forecast ones; forecasts are "
        f"off by a factor of {np.exp(ratio):.2f} (median)"
    )
    for name in GLOBALS:
        click.echo(
            f"{name}: mean {np.round(np.asarray(posterior.mean(name)), 3)} sd "
            f"{np.round(np.asarray(posterior.std(name)), 3)}"
        )
    save_json(
        OUT / "covid.json",
        {
            "step_seconds": seconds,
            "history": history,
            "coverage": inside,
            "forecast_coverage": ahead,
            "factor": np.exp(ratio),
        },
    )
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(11, 5), sharex=True)
    for panel, region in zip(panels.ravel(), np.argsort(-truth.sum(0))[:: max(regions // 6, 1)], strict=False):
        panel.fill_between(np.arange(len(truth)), low[:, region], high[:, region], alpha=0.3)
        panel.plot(middle[:, region])
        panel.plot(truth[:, region], "k.", markersize=2)
        panel.axvline(TRAIN_DAYS, color="grey", linewidth=0.8)
        panel.set(title=f"region {region}", ylim=(0, 1.5 * truth[:, region].max()))
    figure.tight_layout()
    figure.savefig(OUT / "covid.png", dpi=110)


if __name__ == "__main__":
    main()
