"""Importance weighted autoencoder against wake-wake on binarised MNIST: does a tighter bound teach the guide less? (Le
et al., UAI 2019; Burda, Grosse & Salakhutdinov, 2016.)

Run: python -m experiments.vae.run [--particles K ...] [--losses NAME ...] [--steps N] [--full]

One stochastic layer of 50 units, two tanh layers of 200 each way. 8,000 images train, binarised afresh at every step,
2,000 test. Writes `results.json`, a table, a picture of the curves and one of reconstructions into
`experiments/vae/results`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro import handlers

import kayn
from experiments._common import (
    binarise,
    digits,
    draw_rows,
    evidence_by_datum,
    keep,
    newest,
    plot_looks,
    reconstruct,
    save_json,
)
from kayn import meters
from kayn.inference.training import HELD_OUT, Phase, train

LATENT, HIDDEN, PIXELS = 50, 200, 784
PUBLISHED = {
    ("iwae", 8): 23.0,
    ("iwae", 16): 23.75,
    ("iwae", 32): 24.5,
    ("iwae", 64): 25.0,
    ("ww", 8): 23.75,
    ("ww", 16): 25.0,
    ("ww", 32): 25.0,
    ("ww", 64): 26.5,
}
"""Active units after ten million iterations on the whole training set (Le et al., preprint, table 1)."""

LOSSES = {
    "iwae": lambda k: kayn.VI(k, "local"),
    "dreg": lambda k: kayn.DReG(k, "local"),
    "ww": lambda k: kayn.RWS(k, "local"),
}


def dense(name: str, x: Any, size: int) -> Any:
    inputs = x.shape[-1]
    scale = (2.0 / (inputs + size)) ** 0.5
    weights = numpyro.param(f"{name}_w", lambda key: scale * jax.random.normal(key, (inputs, size)))
    return x @ weights + numpyro.param(f"{name}_b", jnp.zeros(size))


def mlp(name: str, x: Any) -> Any:
    return jnp.tanh(dense(f"{name}2", jnp.tanh(dense(f"{name}1", x, HIDDEN)), HIDDEN))


def model(x: Any) -> None:
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([LATENT]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=dense("p_out", mlp("p", z), PIXELS)).to_event(1), obs=x)


def guide(x: Any) -> None:
    hidden = mlp("q", 1.0 * x)
    with numpyro.plate("data", x.shape[0]):
        loc, scale = dense("q_loc", hidden, LATENT), jnp.exp(dense("q_scale", hidden, LATENT))
        numpyro.sample("z", dist.Normal(loc, scale).to_event(1))


def run(name: str, particles: int, steps: int, batch: int, rate: float, test_particles: int) -> dict[str, Any]:
    images, held_out, test = digits()
    rates = optax.cosine_decay_schedule(rate, steps, 0.1)
    result = train(
        model,
        guide,
        Phase(LOSSES[name](particles), optax.adam(rates)),
        images,
        batch_size=batch,
        num_steps=steps,
        augment=binarise,
        held_out=held_out,
        held_out_particles=64,
        look_every=max(steps // 20, 1),
        progress=False,
    )
    params = result.params
    per_image, curve = evidence_by_datum(model, guide, params, test, test_particles)
    spent = meters.layers(model, guide, params, test, num_draws=20)
    means = (
        handlers.trace(handlers.seed(handlers.substitute(guide, data=params), 0))
        .get_trace(test)["z"]["fn"]
        .base_dist.loc
    )
    return {
        "loss": name,
        "particles": particles,
        "steps": steps,
        "test": per_image.mean(),
        "test_error": per_image.std() / len(test) ** 0.5,
        "curve": curve,
        "gap": per_image.mean() - spent.elbo / len(test),
        "rate": spent.divergence["z"] / len(test),
        "active": meters.active_units(means),
        "held_out": result.looks[HELD_OUT],
        "reconstructions": reconstruct(model, guide, params, test[:10]),
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'loss':<6}{'K':>4}{'test log evidence':>20}{'error':>7}{'KL(q, p)':>10}{'KL(q, prior)':>14}"
        f"{'active units':>14}{'published':>11}"
    ]
    for r in results:
        known = PUBLISHED.get((r["loss"], r["particles"]), "")
        lines.append(
            f"{r['loss']:<6}{r['particles']:>4}{r['test']:>20.2f}{r['test_error']:>7.2f}{r['gap']:>10.2f}"
            f"{r['rate']:>14.2f}{r['active']:>14}{known:>11}"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for r in results:
        style = "-" if r["loss"] == "ww" else "--"
        plot_looks(left, [r], "held_out", linestyle=style, label=f"{r['loss']}, K = {r['particles']}")
    left.set(xlabel="iteration", ylabel="held-out log evidence, 64 particles")
    left.legend(fontsize=7)
    for name in dict.fromkeys(r["loss"] for r in results):
        rows = [r for r in results if r["loss"] == name]
        right.plot([r["particles"] for r in rows], [r["gap"] for r in rows], "o-", label=name)
    right.set(xscale="log", xlabel="K", ylabel="KL(q, p), nats")
    right.legend()
    figure.tight_layout()
    figure.savefig(out / "vae.png", dpi=110)
    plt.close(figure)
    rows = [
        ("data", digits()[2][:10]),
        *((f"{r['loss']}\nK = {r['particles']}", r["reconstructions"]) for r in results),
    ]
    draw_rows([(label, pictures, [""] * 10) for label, pictures in rows], 28, out / "reconstructions.png")


@click.command()
@click.option("--losses", multiple=True, type=click.Choice(list(LOSSES)), help="IWAE and WW by default.")
@click.option("--particles", multiple=True, type=int)
@click.option("--steps", type=int, help="200 by default, 1,000,000 with --full.")
@click.option("--batch", default=32)
@click.option("--rate", default=1e-3, help="Of Adam, falling to a tenth of it.")
@click.option("--test-particles", type=int, help="200 by default, 5,000 with --full.")
@click.option("--full", is_flag=True, help="K = 8, 16, 32, 64 and a million steps.")
@click.option("--out", default=str(Path(__file__).parent / "results"), type=click.Path(file_okay=False, path_type=Path))
def main(
    losses: tuple[str, ...],
    particles: tuple[int, ...],
    steps: int | None,
    batch: int,
    rate: float,
    test_particles: int | None,
    full: bool,
    out: Path,
) -> None:
    """Compare losses by number of particles."""
    steps, test_particles = steps or (1_000_000 if full else 200), test_particles or (5000 if full else 200)
    results = []
    for count in particles or ((8, 16, 32, 64) if full else (8,)):
        for name in losses or ("iwae", "ww"):
            results.append(run(name, count, steps, batch, rate, test_particles))
            save_json(out / "results.json", {"results": results})
            click.echo(newest(results, table))
    keep(out, results, table, draw)


if __name__ == "__main__":
    main()
