"""Attend, infer, repeat: how many digits are in the picture, where and what? (Eslami et al., 2016; WW against VIMCO as
in Le et al., UAI 2019, section 5.3.)

Run: python -m experiments.air.run [--losses NAME ...] [--particles K ...] [--steps N] [--seeds N] [--full]

Pictures of 50 x 50 with none, one or two digits; up to three steps, each with a bit for whether there is another
object, its place and its code, decoded to 20 x 20 and pasted. Discrete and continuous latents in one model, whose
number depends on the discrete ones. Writes `results.json`, a table, curves and reconstructions into
`experiments/air/results`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro import handlers

import kayn
from experiments._common import (
    binarise,
    by_case,
    draw_rows,
    evidence_by_datum,
    keep,
    newest,
    plot_looks,
    reconstruct,
    save_json,
)
from kayn import meters
from kayn.datasets import load
from kayn.inference.training import HELD_OUT, Phase, train

CANVAS, GLIMPSE, OBJECTS, CODE, HIDDEN = 50, 20, 3, 50, 200
WHERE = jnp.array([-0.7, 0.0, 0.0]), jnp.array([0.1, 0.6, 0.6])
"""Prior mean and standard deviation of the log of a glimpse's share of the canvas, and of its place (x,
y) in [-1, 1]."""


def pictures(count: int, seed: int, first: int, last: int) -> tuple[Any, Any]:
    """Intensities [count, 2500] with digits from images first to last, and how many digits there are."""
    rng = np.random.default_rng(seed)
    images = load("mnist_10k")["images"][first:last].astype(np.float32) / 255
    numbers = rng.integers(0, 3, count)
    canvases = np.zeros((count, CANVAS, CANVAS), np.float32)
    for canvas, number in zip(canvases, numbers, strict=True):
        corners = rng.integers(0, CANVAS - 28 + 1, (2, 2))
        # digits hardly overlap: most of a 28 x 28 image is margin
        while np.abs(corners[0] - corners[1]).max() < 18:
            corners = rng.integers(0, CANVAS - 28 + 1, (2, 2))
        for y, x in corners[:number]:
            window = canvas[y : y + 28, x : x + 28]
            np.maximum(window, images[rng.integers(len(images))], out=window)
    return canvases.reshape(count, -1), numbers


def attention(where: Any) -> tuple[Any, Any]:
    """Bilinear weights [..., CANVAS, GLIMPSE] of canvas rows and columns on those of the glimpse."""
    scale, centre = jnp.exp(where[..., :1]), where[..., 1:]
    grid = jnp.linspace(-1.0, 1.0, CANVAS)

    def axis(shift: Any) -> Any:
        place = ((grid - shift) / scale + 1.0) * (GLIMPSE - 1) / 2
        return jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None] - jnp.arange(GLIMPSE)))

    return axis(centre[..., 1:]), axis(centre[..., :1])


def paste(glimpse: Any, where: Any) -> Any:
    rows, columns = attention(where)
    return rows @ glimpse.reshape(*glimpse.shape[:-1], GLIMPSE, GLIMPSE) @ jnp.swapaxes(columns, -1, -2)


def cut(canvas: Any, where: Any) -> Any:
    """What a glimpse sees, [..., GLIMPSE^2]: averages over the canvas pixels that belong to each of its own."""
    rows, columns = (w / (jnp.sum(w, -2, keepdims=True) + 1e-6) for w in attention(where))
    seen = jnp.swapaxes(rows, -1, -2) @ canvas.reshape(*canvas.shape[:-1], CANVAS, CANVAS) @ columns
    return seen.reshape(*seen.shape[:-2], GLIMPSE**2)


def dense(name: str, x: Any, size: int, bias: float = 0.0, gain: float = 1.0) -> Any:
    inputs = x.shape[-1]
    scale = gain * (2.0 / (inputs + size)) ** 0.5
    weights = numpyro.param(f"{name}_w", lambda key: scale * jax.random.normal(key, (inputs, size)))
    return x @ weights + numpyro.param(f"{name}_b", jnp.full(size, bias))


def decode(what: Any) -> Any:
    hidden = jax.nn.relu(dense("p_what", what, HIDDEN))
    return jax.nn.sigmoid(dense("p_pixel", hidden, GLIMPSE**2, bias=-2.0))


def model(x: Any) -> None:
    another = numpyro.param("p_another", jnp.zeros(OBJECTS))
    with numpyro.plate("data", x.shape[0]):
        present = jnp.ones(x.shape[0])
        canvas = jnp.zeros((CANVAS, CANVAS))
        for step in range(OBJECTS):
            logit = jnp.where(present > 0, another[step], -15.0)
            present = present * numpyro.sample(f"present{step}", dist.Bernoulli(logits=logit))
            where = numpyro.sample(f"where{step}", dist.Normal(*WHERE).to_event(1))
            what = numpyro.sample(f"what{step}", dist.Normal(0.0, 1.0).expand([CODE]).to_event(1))
            canvas = canvas + present[..., None, None] * paste(decode(what), where)
        probability = jnp.clip(canvas, 1e-3, 1 - 1e-3).reshape(*canvas.shape[:-2], -1)
        logits = jnp.log(probability) - jnp.log1p(-probability)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x: Any) -> None:
    x = 1.0 * x
    image = dense("q_image", x, HIDDEN)
    with numpyro.plate("data", x.shape[0]):
        present, memory, left = jnp.ones(x.shape[0]), jnp.zeros(HIDDEN), x
        for step in range(OBJECTS):
            # what has been explained before is told by where it was
            memory = jnp.tanh(image + dense("q_memory", memory, HIDDEN) + dense("q_left", left, HIDDEN))
            logit = jnp.where(present > 0, dense("q_present", memory, 1, bias=2.0)[..., 0], -15.0)
            present = present * numpyro.sample(f"present{step}", dist.Bernoulli(logits=logit))
            there = present[..., None] > 0
            # latents of an object that is not there are drawn from the prior, so that they cancel
            place = WHERE[0] + dense("q_place", memory, 3, gain=0.3)
            spread = jnp.exp(dense("q_spread", memory, 3, gain=0.1)) * WHERE[1]
            where = dist.Normal(jnp.where(there, place, WHERE[0]), jnp.where(there, spread, WHERE[1]))
            where = numpyro.sample(f"where{step}", where.to_event(1))
            hidden = jax.nn.relu(dense("q_glimpse", cut(x, where), HIDDEN))
            code, width = dense("q_code", hidden, CODE), jnp.exp(dense("q_width", hidden, CODE, bias=-1.0, gain=0.3))
            what = dist.Normal(jnp.where(there, code, 0.0), jnp.where(there, width, 1.0))
            numpyro.sample(f"what{step}", what.to_event(1))
            window = paste(jnp.ones((*where.shape[:-1], GLIMPSE**2)), where).reshape(*where.shape[:-1], -1)
            left = left * (1.0 - present[..., None] * jnp.minimum(window, 1.0))


LOSSES = {
    "ww": lambda k: kayn.RWS(k, "local"),
    "wsw": lambda k: kayn.RWS(k, "local", wake_phi=0.5, sleep_phi=0.5, sleep_particles=2),
    "delta-ww": lambda k: kayn.RWS(k, "local", defensive=0.2),
    "vimco": lambda k: kayn.VIMCO(k, "local"),
}


def counts(params: Any, x: Any, seed: int = 0) -> Any:
    """How many objects the guide sees in each picture, in one draw."""
    drawn = handlers.trace(handlers.seed(handlers.substitute(guide, data=params), seed)).get_trace(x)
    present = jnp.stack([drawn[f"present{i}"]["value"] for i in range(OBJECTS)])
    return jnp.sum(jnp.cumprod(present, 0), 0)


def run(
    name: str, particles: int, steps: int, batch: int, rate: float, test_particles: int, seed: int
) -> dict[str, Any]:
    images, _ = pictures(20_000, 1, 0, 8000)
    grey, numbers = pictures(1000, 2, 8000, 10_000)
    test = (np.random.default_rng(3).random(grey.shape) < grey).astype(np.int32)
    seen = jax.jit(lambda params: jnp.mean(counts(params, test) == numbers))
    rates = optax.cosine_decay_schedule(rate, steps, 0.1)
    result = train(
        model,
        guide,
        Phase(LOSSES[name](particles), optax.chain(optax.clip_by_global_norm(1e3), optax.adam(rates))),
        images,
        batch_size=batch,
        num_steps=steps,
        rng_key=seed,
        augment=binarise,
        held_out=test[:200],
        held_out_particles=20,
        look=lambda params: {"accuracy": float(seen(params))},
        look_every=max(steps // 20, 1),
        progress=False,
    )
    params = result.last
    per_image, curve = evidence_by_datum(model, guide, params, test, test_particles, chunk=20, piece=100)
    spent = meters.layers(model, guide, params, test, num_draws=5)
    return {
        "loss": name,
        "particles": particles,
        "seed": seed,
        "steps": steps,
        "accuracy": seen(params),
        "test": per_image.mean(),
        "test_error": per_image.std() / len(test) ** 0.5,
        "curve": curve,
        "gap": per_image.mean() - spent.elbo / len(test),
        "held_out": result.looks[HELD_OUT],
        "accuracies": result.looks["accuracy"],
        "numbers": numbers[:12],
        "found": counts(params, test[:12]),
        "reconstructions": reconstruct(model, guide, params, test[:12]),
    }


SAME = ("loss", "particles", "steps")
"""What runs of several seeds have in common."""


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'loss':<10}{'K':>3}{'steps':>8}{'seeds':>7}{'right counts':>14}{'lowest':>8}{'highest':>9}"
        f"{'test log evidence':>19}{'lowest':>9}{'highest':>9}{'KL(q, p)':>10}"
    ]
    for rows in by_case(results, SAME):
        right, test = (np.asarray([float(r[what]) for r in rows]) for what in ("accuracy", "test"))
        gap = np.mean([r["gap"] for r in rows])
        lines.append(
            f"{rows[0]['loss']:<10}{rows[0]['particles']:>3}{rows[0]['steps']:>8}{len(rows):>7}"
            f"{right.mean():>14.3f}{right.min():>8.3f}{right.max():>9.3f}"
            f"{test.mean():>19.2f}{test.min():>9.2f}{test.max():>9.2f}{gap:>10.2f}"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 4))
    colours, styles = (
        {x: i for i, x in enumerate(dict.fromkeys(r[what] for r in results))} for what in ("loss", "particles")
    )
    for rows in by_case(results, SAME):
        style = {
            "label": f"{rows[0]['loss']}, K = {rows[0]['particles']}, {rows[0]['steps']:,} steps",
            "color": f"C{colours[rows[0]['loss']]}",
            "linestyle": ("-", "--", ":", "-.")[styles[rows[0]["particles"]] % 4],
        }
        for panel, what in zip(panels, ("held_out", "accuracies"), strict=True):
            plot_looks(panel, rows, what, **style)
    panels[0].set(xlabel="iteration", ylabel="held-out log evidence, 20 particles")
    panels[1].set(xlabel="iteration", ylabel="share of right counts")
    panels[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(out / "air.png", dpi=110)
    plt.close(figure)
    grey, _ = pictures(1000, 2, 8000, 10_000)
    shown = [("data", grey[:12], results[0]["numbers"])]
    for first in (rows[0] for rows in by_case(results, SAME) if "reconstructions" in rows[0]):
        label = f"{first['loss']}\nK = {first['particles']}"
        shown.append((label, np.asarray(first["reconstructions"]), first["found"]))
    labelled = [(label, images, [str(int(n)) for n in np.asarray(numbers)]) for label, images, numbers in shown]
    draw_rows(labelled, CANVAS, out / "reconstructions.png")


@click.command()
@click.option("--losses", multiple=True, type=click.Choice(list(LOSSES)))
@click.option("--particles", multiple=True, type=int)
@click.option("--steps", type=int, help="100 by default, 300,000 with --full.")
@click.option("--seeds", default=1)
@click.option("--batch", default=32)
@click.option("--rate", default=3e-4)
@click.option("--test-particles", type=int, help="40 by default, 5,000 with --full.")
@click.option("--full", is_flag=True, help="K = 5, 10, 20.")
@click.option("--out", default=str(Path(__file__).parent / "results"), type=click.Path(file_okay=False, path_type=Path))
def main(
    losses: tuple[str, ...],
    particles: tuple[int, ...],
    steps: int | None,
    seeds: int,
    batch: int,
    rate: float,
    test_particles: int | None,
    full: bool,
    out: Path,
) -> None:
    """Train and count."""
    steps, test_particles = steps or (300_000 if full else 100), test_particles or (5000 if full else 40)
    results = []
    for count in particles or ((5, 10, 20) if full else (5,)):
        for name in losses or LOSSES:
            for seed in range(seeds):
                results.append(run(name, count, steps, batch, rate, test_particles, seed))
                save_json(out / "results.json", {"results": results})
                click.echo(newest(results, table))
    keep(out, results, table, draw)


if __name__ == "__main__":
    main()
