"""Shared by the examples: fit a model with kayn, sample it with NUTS, and compare the two posteriors.

Differences of means are given in units of the NUTS posterior standard deviation, so 0.1 means a tenth of the
uncertainty that is there anyway. NUTS has Monte Carlo error of its own, printed as ``se``: differences of that size
mean nothing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from numpyro.diagnostics import summary
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam

SMALL = 20  # sites with at most this many elements are printed element by element


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    quick: bool
    nuts: bool
    kayn: bool
    particles: int
    chains: int
    warmup: int
    samples: int
    seed: int
    reference: Path | None


@dataclass(frozen=True)
class Moments:
    """Posterior means and standard deviations by site, and what it took to get them."""

    mean: dict[str, np.ndarray]
    std: dict[str, np.ndarray]
    seconds: float


@dataclass(frozen=True)
class Reference(Moments):
    """A NUTS run: moments, their Monte Carlo standard errors, and the signs of trouble."""

    standard_error: dict[str, np.ndarray]
    r_hat: float
    divergences: int

    def save(self, path: Path) -> None:
        """Write to ``.npz`` with keys ``mean/<site>``, ``std/<site>``, ``se/<site>`` and three scalars."""
        arrays = {f"mean/{name}": value for name, value in self.mean.items()}
        arrays |= {f"std/{name}": value for name, value in self.std.items()}
        arrays |= {f"se/{name}": value for name, value in self.standard_error.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, seconds=self.seconds, r_hat=self.r_hat, divergences=self.divergences, **arrays)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as archive:

            def by_site(prefix: str) -> dict[str, np.ndarray]:
                return {key[len(prefix) :]: archive[key] for key in archive.files if key.startswith(prefix)}

            return cls(
                mean=by_site("mean/"),
                std=by_site("std/"),
                seconds=float(archive["seconds"]),
                standard_error=by_site("se/"),
                r_hat=float(archive["r_hat"]),
                divergences=int(archive["divergences"]),
            )


def options(particles: int, chains: int = 4, warmup: int = 1000, samples: int = 1000):
    """Click options of every example; the arguments are the defaults for this one."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--quick", is_flag=True, help="Little data, few particles, short chains: does it run?")
        @click.option("--nuts/--no-nuts", default=True, help="Run NUTS to compare with.")
        @click.option("--kayn/--no-kayn", "use_kayn", default=True, help="Run kayn.")
        @click.option("--particles", default=particles, show_default=True, help="Particles per latent while fitting.")
        @click.option("--chains", default=chains, show_default=True)
        @click.option("--warmup", default=warmup, show_default=True)
        @click.option("--samples", default=samples, show_default=True)
        @click.option("--seed", default=0, show_default=True)
        @click.option(
            "--reference",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Keep the NUTS result in this .npz file; read it instead of running NUTS when it exists.",
        )
        @functools.wraps(command)
        def run(
            quick: bool,
            nuts: bool,
            use_kayn: bool,
            particles: int,
            chains: int,
            warmup: int,
            samples: int,
            seed: int,
            reference: Path | None,
            **extra: Any,
        ) -> None:
            if quick:
                particles = min(particles, 5)
                chains, warmup, samples = 2, 50, 50
            settings = Settings(quick, nuts, use_kayn, particles, chains, warmup, samples, seed, reference)
            command(settings, **extra)

        return run

    return decorate


def run_nuts(model: Callable[..., None], args: tuple, settings: Settings, target_accept_prob: float = 0.8) -> Reference:
    """Sample with NUTS, chains vectorised; the time includes compilation."""
    start = time.perf_counter()
    sampler = MCMC(
        NUTS(model, target_accept_prob=target_accept_prob),
        num_warmup=settings.warmup,
        num_samples=settings.samples,
        num_chains=settings.chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    sampler.run(jax.random.PRNGKey(settings.seed), *args, extra_fields=("diverging",))
    draws = jax.block_until_ready(sampler.get_samples(group_by_chain=True))
    seconds = time.perf_counter() - start
    report = summary({name: np.asarray(value) for name, value in draws.items()})
    return Reference(
        mean={name: np.asarray(report[name]["mean"]) for name in draws},
        std={name: np.asarray(report[name]["std"]) for name in draws},
        seconds=seconds,
        standard_error={name: report[name]["std"] / np.sqrt(report[name]["n_eff"]) for name in draws},
        r_hat=float(max(np.nanmax(report[name]["r_hat"]) for name in draws)),
        divergences=int(np.sum(sampler.get_extra_fields()["diverging"])),
    )


def run_kayn(
    model: Callable[..., None], args: tuple, sites: Sequence[str], settings: Settings, extra: Mapping[str, Any]
) -> Moments:
    """Fit with QEM and take the moments; the time includes compilation."""
    import kayn

    start = time.perf_counter()
    options = {"num_particles": settings.particles, **extra}
    fit = kayn.fit(model, args=args, method="qem", rng_key=settings.seed, progress=False, **options)
    posterior = fit.posterior(escalate=not settings.quick)  # few particles on little data weigh poorly
    mean = {site: np.asarray(posterior.mean(site)) for site in sites}
    std = {site: np.asarray(posterior.std(site)) for site in sites}
    seconds = time.perf_counter() - start
    click.echo(f"log evidence: {float(posterior.log_evidence):.2f}")
    return Moments(mean, std, seconds)


def compare(
    title: str,
    model: Callable[..., None],
    args: tuple,
    population: Sequence[str],
    groups: Sequence[str],
    settings: Settings,
    target_accept_prob: float = 0.8,
    decentre: Sequence[str] = (),
    **extra: Any,
) -> None:
    """Run both methods as asked and print how they agree.

    Args:
        title: heading.
        model: an ordinary NumPyro model.
        args: its arguments.
        population: sites printed element by element (when small).
        groups: sites with one element per group, printed as one line each.
        settings: from the command line.
        target_accept_prob: of NUTS.
        decentre: sites that NUTS samples in non-centred form, for its sake; kayn gets the model as it is.
        extra: more options of `kayn.fit`.
    """
    click.echo(f"== {title} ==")
    nuts_model = reparam(model, {site: LocScaleReparam(0.0) for site in decentre})
    reference = _reference(nuts_model, args, settings, target_accept_prob) if settings.nuts else None
    if reference is not None:
        click.echo(
            f"NUTS: {reference.seconds:.1f} s with compilation, worst r_hat {reference.r_hat:.3f}, "
            f"{reference.divergences} divergences"
        )
        if reference.r_hat > 1.05 and not settings.quick:
            click.echo("NUTS has not converged (r_hat > 1.05): do not read the comparison as accuracy of kayn.")
    sites = (*population, *groups)
    estimate = run_kayn(model, args, sites, settings, extra) if settings.kayn else None
    if estimate is not None:
        click.echo(f"kayn: {estimate.seconds:.1f} s with compilation, {settings.particles} particles")
    if reference is not None and estimate is not None:
        click.echo(f"time ratio NUTS / kayn: {reference.seconds / estimate.seconds:.1f}")
    moments = estimate or reference
    if moments is not None:
        _print_population(population, moments, reference if estimate is not None else None)
    if reference is not None and estimate is not None:
        _print_agreement(sites, estimate, reference)


def _reference(model: Callable[..., None], args: tuple, settings: Settings, target_accept_prob: float) -> Reference:
    if settings.reference is not None and settings.reference.exists():
        return Reference.load(settings.reference)
    result = run_nuts(model, args, settings, target_accept_prob)
    if settings.reference is not None:
        result.save(settings.reference)
    return result


def _print_population(sites: Sequence[str], moments: Moments, reference: Reference | None) -> None:
    click.echo(
        f"{'site':<16}{'mean':>10}{'std':>10}" + (f"{'NUTS mean':>12}{'NUTS std':>10}{'se':>9}" if reference else "")
    )
    for site in sites:
        shape = np.shape(moments.mean[site])
        if int(np.prod(shape)) > SMALL:
            continue
        for index in np.ndindex(*shape):
            label = site + (f"[{','.join(map(str, index))}]" if index else "")
            line = f"{label:<16}{moments.mean[site][index]:>10.4f}{moments.std[site][index]:>10.4f}"
            if reference is not None:
                line += f"{reference.mean[site][index]:>12.4f}{reference.std[site][index]:>10.4f}"
                line += f"{reference.standard_error[site][index]:>9.4f}"
            click.echo(line)


def _print_agreement(sites: Sequence[str], estimate: Moments, reference: Reference) -> None:
    click.echo("difference of means in NUTS posterior sd; ratio of sd kayn / NUTS")
    click.echo(f"{'site':<16}{'size':>8}{'rms':>8}{'worst':>8}{'NUTS se':>9}{'ratio min':>11}{'median':>8}{'max':>8}")
    worst_site, worst = "", 0.0
    for site in sites:
        scale = reference.std[site]
        difference = (estimate.mean[site] - reference.mean[site]) / scale
        ratio = estimate.std[site] / scale
        noise = np.sqrt(np.mean((reference.standard_error[site] / scale) ** 2))
        largest = float(np.max(np.abs(difference)))
        click.echo(
            f"{site:<16}{np.size(scale):>8}{np.sqrt(np.mean(difference**2)):>8.3f}{largest:>8.3f}{noise:>9.3f}"
            f"{np.min(ratio):>11.3f}{np.median(ratio):>8.3f}{np.max(ratio):>8.3f}"
        )
        if not largest <= worst:  # also catches NaN
            worst_site, worst = site, largest
    click.echo(f"worst deviation: {worst:.3f} sd ({worst_site})")
