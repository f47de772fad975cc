"""The command line: `kayn fit` fits a formula to a table, `kayn demo` a demonstration, `kayn data` finds data sets."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kayn.support.arrays import Array

if TYPE_CHECKING:
    import numpy as np

    from kayn.datasets import SimulatedRadon

# JAX, NumPyro and matplotlib are imported inside the commands, so that `kayn --help` answers at once.


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kayn")
def main() -> None:
    """Massively parallel Bayesian inference in NumPyro models."""


# ---------------------------------------------------------------------------------------------------------------------
# kayn fit
# ---------------------------------------------------------------------------------------------------------------------


class Refused(click.ClickException):
    """What was asked cannot be done; told in a line."""

    exit_code = 2


@main.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.argument("formula")
@click.option("--family", default="gaussian", show_default=True, help="What the outcome follows.")
@click.option("--prior", "priors", multiple=True, metavar="SITE=PRIOR", help="E.g. 'hours=Normal(0, 1)'.")
@click.option(
    "--missing",
    type=click.Choice(["drop", "impute", "error"]),
    default="drop",
    show_default=True,
    help="Leave rows with gaps out, draw outcomes that are missing, or refuse gaps.",
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write a page of HTML here.")
@click.option("--seed", default=0, show_default=True, help="Seed of the inference.")
def fit(
    table: Path, formula: str, family: str, priors: tuple[str, ...], missing: str, report: Path | None, seed: int
) -> None:
    """Fit FORMULA to TABLE (CSV, Parquet or Feather), e.g. kayn fit pupils.csv "score ~ hours + (1 | school)"."""
    from kayn.errors import KaynError

    options = {"family": family, "priors": dict(_prior(p) for p in priors), "missing": missing}
    try:
        _fit(table, formula, options, report, seed)
    except KaynError as error:
        raise Refused(" ".join(str(error).split())) from error


def _prior(text: str) -> tuple[str, str]:
    site, equals, prior = text.partition("=")
    if not equals:
        raise Refused(f"--prior {text!r} must read SITE=PRIOR, e.g. 'hours=Normal(0, 1)'")
    return site.strip(), prior.strip()


def _fit(table: Path, text: str, options: Mapping[str, Any], path: Path | None, seed: int) -> None:
    import kayn
    from kayn import report
    from kayn.formulas.frames import read_frame
    from kayn.support.drawing import needs_matplotlib

    if path is not None:
        needs_matplotlib()
        if not path.parent.is_dir():
            raise Refused(f"--report: there is no directory {str(path.parent)!r}")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = kayn.formula(text, read_frame(table), **options)
        notes = [str(w.message) for w in told if issubclass(w.category, kayn.DataWarning)]
        for note in notes:
            click.echo(f"note: {note}", err=True)
        found = kayn.fit(model, rng_key=seed)
        posterior = found.posterior()
        findings = report.Findings.of(model, found, posterior, notes)
    click.echo(f"{model}\n{findings.summary}\n\nChecked:")
    for sentence in findings.checks():
        click.echo(f"  {sentence}")
    click.echo("To doubt:")
    for sentence in findings.doubts():
        click.echo(f"  {sentence}")
    if path is not None:
        report.write(findings, path)
        click.echo(f"Report: {path}")


# ---------------------------------------------------------------------------------------------------------------------
# kayn demo
# ---------------------------------------------------------------------------------------------------------------------


def radon_model(county: Array, floor: Array, num_counties: int, log_radon: Array | None = None) -> None:
    """Radon by county, written as for NUTS: levels ``alpha`` vary around ``mu``, one effect ``beta`` of the floor."""
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("counties", num_counties):
        alpha = numpyro.sample("alpha", dist.Normal(mu, sd))
    with numpyro.plate("homes", county.shape[0]):
        numpyro.sample("log_radon", dist.Normal(alpha[county] + beta * floor, sigma), obs=log_radon)


@main.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("kayn_demo.png"),
    show_default=True,
    help="Where to save the picture.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the data and of the inference.")
def demo(out: Path, seed: int) -> None:
    """Fit a hierarchical model to simulated radon data and draw the county effects."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise click.ClickException("The picture needs matplotlib: pip install 'kayn[plots]'") from None
    import numpy as np

    import kayn
    from kayn.datasets import simulate_radon

    data = simulate_radon(seed)
    args = (data.county, data.floor, data.num_counties, data.log_radon)
    click.echo(
        f"{data.county.size} houses in {data.num_counties} counties, 1 to {data.county_sizes.max()} houses each\n"
    )
    click.echo(str(kayn.analyze(radon_model, *args)))

    start = time.perf_counter()
    fit = kayn.fit(radon_model, args=args, num_particles=10, rng_key=seed)
    posterior = fit.posterior(num_particles=10)
    mean, std = np.asarray(posterior.mean("alpha")), np.asarray(posterior.std("alpha"))
    seconds = time.perf_counter() - start

    click.echo(f"\nlog evidence {float(posterior.log_evidence):.2f}   ({seconds:.1f} s with compilation)\n")
    click.echo(str(posterior.summary()))
    click.echo(f"\nThe data were simulated with {_truth(data)}.")
    draw(data, mean, std, float(posterior.mean("mu")), float(posterior.mean("beta")), out)
    click.echo(f"Picture: {out}")


def _truth(data: SimulatedRadon) -> str:
    return f"mu {data.true_mu}, sd {data.true_sd}, beta {data.true_beta}, sigma {data.true_sigma}"


def draw(data: SimulatedRadon, mean: np.ndarray, std: np.ndarray, mu: float, beta: float, out: Path) -> None:
    """Draw each county's raw mean and its posterior mean against its number of houses, and raw against posterior means.

    Args:
        data: the data.
        mean, std: [G] posterior moments of the county effects.
        mu, beta: posterior means of the population level and of the floor effect.
        out: file to write.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raw_colour, fit_colour, line_colour = "#9a9a9a", "#1f5fa8", "#c2571a"
    sizes = data.county_sizes
    raw = np.bincount(data.county, data.log_radon - beta * data.floor, data.num_counties) / sizes

    figure = Figure(figsize=(11.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    shrinkage, agreement = figure.subplots(1, 2, width_ratios=(1.5, 1.0))

    spread = np.exp(np.random.default_rng(0).uniform(-0.06, 0.06, sizes.size))  # keeps counties of one size apart
    x = sizes * spread
    shrinkage.vlines(x, raw, mean, color=raw_colour, linewidth=0.7, alpha=0.6, zorder=1)
    shrinkage.scatter(x, raw, s=14, facecolor="white", edgecolor=raw_colour, linewidth=0.9, label="raw mean", zorder=2)
    shrinkage.errorbar(x, mean, std, fmt="none", ecolor=fit_colour, elinewidth=0.8, alpha=0.5, zorder=3)
    shrinkage.scatter(x, mean, s=14, color=fit_colour, label="posterior mean, one sd", zorder=4)
    shrinkage.axhline(mu, color=line_colour, linewidth=1.2, label="population mean", zorder=1)
    shrinkage.set_xscale("log")
    ticks = [size for size in (1, 2, 5, 10, 20, 50, 100) if size <= 1.2 * sizes.max()]
    shrinkage.set_xticks(ticks, [str(size) for size in ticks])
    shrinkage.minorticks_off()
    shrinkage.set(xlabel="houses in the county", ylabel="log radon, basement level")
    shrinkage.set_title("Small counties are drawn toward the population mean", loc="left", fontsize=11)
    shrinkage.legend(frameon=False, fontsize=9, loc="lower right")

    limits = np.array([min(raw.min(), mean.min()) - 0.1, max(raw.max(), mean.max()) + 0.1])
    agreement.plot(limits, limits, color=raw_colour, linewidth=0.8, linestyle="--")
    agreement.axhline(mu, color=line_colour, linewidth=1.2)
    agreement.scatter(raw, mean, s=6 + 3 * sizes, color=fit_colour, alpha=0.45, edgecolor="white", linewidth=0.5)
    agreement.annotate(
        "no pooling", limits[[1, 1]], (-26, -14), textcoords="offset points", ha="right", color=raw_colour
    )
    agreement.set(xlim=limits, ylim=limits, xlabel="raw mean", ylabel="posterior mean", aspect="equal")
    agreement.set_title("Area: number of houses", loc="left", fontsize=11)

    for axes in (shrinkage, agreement):
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


# ---------------------------------------------------------------------------------------------------------------------
# kayn data
# ---------------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("name", required=False)
def data(name: str | None) -> None:
    """Say where data set NAME is kept, fetching it if need be; without NAME, list the data sets."""
    from kayn import datasets

    if name is None:
        for known, dataset in datasets.DATASETS.items():
            path = datasets.locate(known)
            state = str(path) if path else ("can be fetched" if dataset.source else f"needs {datasets.DATA_VARIABLE}")
            click.echo(f"{known:<16}{dataset.summary}\n{'':<16}{dataset.origin}\n{'':<16}{state}")
        return
    try:
        path = datasets.fetch(name)
        arrays = datasets.load(name)
    except datasets.DatasetError as error:
        raise click.ClickException(str(error)) from error
    click.echo(str(path))
    click.echo(datasets.DATASETS[name].origin)
    for key, array in arrays.items():
        click.echo(f"  {key:<28}{array.shape!s:<22}{array.dtype}")


if __name__ == "__main__":
    main(prog_name="kayn")
