"""Eight schools (Rubin, 1981), non-centred as NUTS needs it: `python -m examples.eight_schools`."""

import click
import numpyro
import numpyro.distributions as dist

from examples._compare import Settings, compare, options
from kayn import datasets


def model(sigma, y=None):
    """Effects of coaching: theta[s] ~ Normal(mu, tau), y[s] ~ Normal(theta[s], sigma[s])."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", sigma.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


@click.command()
@options(particles=30)
def main(settings: Settings) -> None:
    """Compare kayn with NUTS on the eight schools."""
    data = datasets.eight_schools()
    args = (data["sigma"], data["y"])
    compare("eight schools", model, args, ("mu", "tau"), ("theta",), settings, target_accept_prob=0.95)


if __name__ == "__main__":
    main()
