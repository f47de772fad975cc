"""Radon in 12,573 houses of 386 counties, from 1 to 765 houses a county: `python -m examples.radon [--slopes]`."""

import click
import numpy as np
import numpyro
import numpyro.distributions as dist

from examples._compare import Settings, compare, options
from kayn import datasets


def varying_intercept(county, upstairs, num_counties, log_radon=None):
    """Each county has its own level; measuring above the basement has one effect everywhere."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("counties", num_counties):
        alpha = numpyro.sample("alpha", dist.Normal(mu, sd))
    with numpyro.plate("homes", county.shape[0]):
        numpyro.sample("log_radon", dist.Normal(alpha[county] + beta * upstairs, sigma), obs=log_radon)


def varying_slope(county, upstairs, num_counties, log_radon=None):
    """Each county has its own level and its own effect of measuring above the basement."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    sd = numpyro.sample("sd", dist.HalfNormal(1.0))
    mu_slope = numpyro.sample("mu_slope", dist.Normal(0.0, 2.0))
    sd_slope = numpyro.sample("sd_slope", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("counties", num_counties):
        alpha = numpyro.sample("alpha", dist.Normal(mu, sd))
        slope = numpyro.sample("slope", dist.Normal(mu_slope, sd_slope))
    with numpyro.plate("homes", county.shape[0]):
        location = alpha[county] + slope[county] * upstairs
        numpyro.sample("log_radon", dist.Normal(location, sigma), obs=log_radon)


def prepare(quick: bool) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """County, measured above the basement (a floor that was not recorded counts as above),
    number of counties, outcome."""
    data = datasets.load("radon_homes")
    keep = data["county"] < 30 if quick else slice(None)
    county = data["county"][keep].astype(np.int32)
    upstairs = (data["floor"][keep] > 0).astype(np.float32)
    return county, upstairs, int(county.max()) + 1, data["log_radon"][keep]


@click.command()
@click.option("--slopes", is_flag=True, help="Let the effect of the floor vary by county too.")
@options(particles=10)
def main(settings: Settings, slopes: bool) -> None:
    """Compare kayn with NUTS on the radon data."""
    args = prepare(settings.quick)
    if slopes:
        population = ("mu", "sd", "mu_slope", "sd_slope", "sigma")
        groups = ("alpha", "slope")
        compare("radon, varying slope", varying_slope, args, population, groups, settings, decentre=("slope",))
    else:
        compare(
            "radon, varying intercept", varying_intercept, args, ("mu", "sd", "beta", "sigma"), ("alpha",), settings
        )


if __name__ == "__main__":
    main()
