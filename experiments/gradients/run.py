"""Bias and noise of every estimator's gradient, on a model small enough to know the gradient that each one stands for.

Run: python -m experiments.gradients.run [--particles K ...] [--draws N] [--full]

A categorical latent and a categorical observation for every datum, four and five values: sums over all sets of K
particles are sums over how often each value was drawn. Every estimator's mean over many draws, at the same parameters
of a guide that is not the posterior, is compared with the gradient of its stated objective. Writes `results.json`, a
table and a picture into `experiments/gradients/results`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI

import kayn
from experiments._common import keep, newest
from kayn import meters
from kayn.inference.training import by_parameter

VALUES, SYMBOLS = 4, 5
X = np.arange(SYMBOLS)
"""One datum of each kind."""
rng = np.random.default_rng(0)
PRIOR, EMISSION, GUIDE = (
    rng.normal(size=VALUES),
    1.5 * rng.normal(size=(VALUES, SYMBOLS)),
    rng.normal(size=(SYMBOLS, VALUES)),
)


def model(x: Any) -> None:
    prior, emission = numpyro.param("prior", PRIOR), numpyro.param("emission", EMISSION)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Categorical(logits=prior))
        numpyro.sample("x", dist.Categorical(logits=kayn.lookup(emission, z)), obs=x)


def guide(x: Any) -> None:
    logits = numpyro.param("guide", GUIDE)
    numpyro.param("control", jnp.zeros((SYMBOLS, VALUES)))
    numpyro.param("rebar_scale", 1.0)
    numpyro.param("rebar_temperature", 0.5, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Categorical(logits=logits[x]))


def control(params: Any, z: Any, x: Any) -> Any:
    """A control variate: linear in the softmax of one particle's noisy logits, averaged over particles."""
    return jnp.mean(jnp.sum(jax.nn.softmax(z["z"], -1) * params["control"][x], -1), 0)


def tables(params: Any) -> tuple[Any, Any]:
    """log p(z, x) and log q(z | x): [data, VALUES]"""
    log_p = jax.nn.log_softmax(params["prior"]) + jax.nn.log_softmax(params["emission"], -1)[:, X].T
    return log_p, jax.nn.log_softmax(params["guide"][X], -1)


def bound(params: Any, particles: int) -> Any:
    """E log Z over K draws for every datum, by how often each value may be drawn."""
    log_p, log_q = tables(params)
    bars = np.array(list(itertools.combinations(range(particles + VALUES - 1), VALUES - 1)))
    edges = np.column_stack([np.full(len(bars), -1), bars, np.full(len(bars), particles + VALUES - 1)])
    counts = np.diff(edges, axis=1) - 1
    ways = jax.scipy.special.gammaln(particles + 1.0) - jax.scipy.special.gammaln(counts + 1.0).sum(1)
    probability = jnp.exp(ways + log_q @ counts.T)
    return jnp.sum(probability * jnp.log(jnp.exp(log_p - log_q) @ counts.T / particles))


def inclusive(params: Any) -> Any:
    """E log q(z | x) under the posterior, which is held fixed."""
    log_p, log_q = tables(params)
    return jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(log_p, -1)) * log_q)


def evidence(params: Any) -> Any:
    """log p(x)."""
    return jnp.sum(jax.nn.logsumexp(tables(params)[0], -1))


def dreamt(params: Any) -> Any:
    """E log q(z | x) under the model, which is held fixed, as often as there are data."""
    log_p, log_q = tables(params)
    return SYMBOLS * jnp.sum(jax.lax.stop_gradient(jnp.exp(log_p)) * log_q)


OBJECTIVES: dict[str, tuple[str, tuple[str, ...], Callable[[Any, int], Any]]] = {
    "wake": ("KL(p, q)", ("guide",), lambda params, _: inclusive(params)),
    "sleep": ("KL(p, q), dreams", ("guide",), lambda params, _: dreamt(params)),
    "bound": ("the bound", ("guide",), bound),
    "model": ("log p(x)", ("prior", "emission"), lambda params, _: evidence(params)),
}
"""What a gradient stands for: in words, in which parameters, and minus what."""
ESTIMATORS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "ww": ("wake", lambda k: kayn.RWS(k, "local")),
    "delta-ww": ("wake", lambda k: kayn.RWS(k, "local", defensive=0.2)),
    "ws": ("sleep", lambda k: kayn.RWS(k, "local", wake_phi=0.0, sleep_phi=1.0, sleep_particles=k)),
    "reinforce": ("bound", lambda k: kayn.Reinforce(k, "local")),
    "vimco": ("bound", lambda k: kayn.VIMCO(k, "local")),
    "rebar": ("bound", lambda k: kayn.REBAR(k, "local")),
    "relax": ("bound", lambda k: kayn.RELAX(k, "local", control=control, control_params=["control"])),
    "all others": ("model", lambda k: kayn.RWS(k, "local")),
    "concrete": ("model", lambda k: kayn.Concrete(k, "local")),
}
CONTROLLED = ("rebar", "relax")
"""Those with control variates to train."""
TEMPERATURES = (2.0, 1.0, 0.5, 0.25, 0.1)


def target(kind: str, params: Any, particles: int) -> np.ndarray:
    """The gradient, of a loss, that an estimator stands for."""
    _, names, objective = OBJECTIVES[kind]
    with jax.enable_x64(True):
        exact = {n: jnp.asarray(np.asarray(v), float) for n, v in params.items()}
        return -flat(jax.grad(lambda p: objective(p, particles))(exact), names)


def flat(tree: Any, names: tuple[str, ...]) -> np.ndarray:
    return np.concatenate([np.ravel(tree[n]) for n in names])


def parameters(loss: Any, steps: int) -> dict[str, Any]:
    """The parameters, with control variates that have been trained for them if there are steps;
    the others stay as they are."""
    rules = {"control": optax.adam(1e-2), "rebar*": optax.adam(1e-2), "*": optax.set_to_zero()}
    svi = SVI(model, guide, by_parameter(rules), loss)
    state = svi.init(jax.random.key(1), X)
    if steps:
        state, _ = jax.lax.scan(lambda s, _: svi.update(s, X), state, None, length=steps)
    return svi.get_params(state)


def measure(kind: str, loss: Any, particles: int, draws: int, steps: int) -> dict[str, Any]:
    """Relative to the length of the exact gradient: how far the mean over draws is from it, how far it would be by
    chance, and the noise of one draw."""
    params = parameters(loss, steps)
    found = meters.gradient_noise(loss, model, guide, params, X, num_draws=draws)
    stands_for, names, _ = OBJECTIVES[kind]
    exact = target(kind, params, particles)
    length, noise = np.linalg.norm(exact), np.linalg.norm(flat(found.sd, names))
    return {
        "particles": particles,
        "target": stands_for,
        "bias": np.linalg.norm(flat(found.mean, names) - exact) / length,
        "by_chance": noise / draws**0.5 / length,
        "noise": noise / length,
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'estimator':<18}{'temperature':>12}{'K':>4}  {'gradient of':<18}{'off by':>9}{'by chance':>11}{'noise':>9}"
    ]
    for r in results:
        lines.append(
            f"{r['estimator']:<18}{r['temperature'] or '':>12}{r['particles']:>4}  "
            f"{r['target']:<18}{r['bias']:>9.4f}{r['by_chance']:>11.4f}{r['noise']:>9.3f}"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4))
    models = [r for r in results if r["target"] == OBJECTIVES["model"][0]]
    guides = [r for r in results if r not in models]
    for name in dict.fromkeys(r["estimator"] for r in guides):
        rows = [r for r in guides if r["estimator"] == name]
        for panel, what in zip(panels, ("bias", "noise"), strict=False):
            panel.loglog([r["particles"] for r in rows], [r[what] for r in rows], "o-", label=name)
    for temperature in dict.fromkeys(r["temperature"] for r in models):
        rows = [r for r in models if r["temperature"] == temperature]
        label = f"Concrete, temperature {temperature}" if temperature else "discrete particles"
        panels[2].loglog([r["particles"] for r in rows], [r["bias"] for r in rows], "o-", label=label)
    panels[0].set(ylabel="distance of the mean from the exact gradient", title="guide")
    panels[1].set(ylabel="noise of one gradient", title="guide")
    panels[2].set(ylabel="distance of the mean from the exact gradient", title="model")
    for panel in panels:
        panel.set_xlabel("K")
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / "gradients.png", dpi=110)
    plt.close(figure)


@click.command()
@click.option("--particles", multiple=True, type=int, help="2 and 5 by default, 2, 5, 10, 20 and 100 with --full.")
@click.option("--draws", type=int, help="2,000 by default, 30,000 with --full.")
@click.option("--full", is_flag=True)
@click.option("--out", default=str(Path(__file__).parent / "results"), type=click.Path(file_okay=False, path_type=Path))
def main(particles: tuple[int, ...], draws: int | None, full: bool, out: Path) -> None:
    """Compare all estimators."""
    draws, training = draws or (30_000 if full else 2_000), 2_000 if full else 100
    results = []
    for count in particles or ((2, 5, 10, 20, 100) if full else (2, 5)):
        for name, (kind, make) in ESTIMATORS.items():
            for temperature in TEMPERATURES if name == "concrete" else (None,):
                loss = make(count) if temperature is None else kayn.Concrete(count, "local", temperature=temperature)
                row = measure(kind, loss, count, draws, training if name in CONTROLLED else 0)
                results.append({"estimator": name, "temperature": temperature, **row})
                click.echo(newest(results, table))
    keep(out, results, table, draw, draws=draws)


if __name__ == "__main__":
    main()
