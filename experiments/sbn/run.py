"""Sigmoid belief networks on bars and on binarised MNIST: wake-sleep methods, layer types, particles (Bornschein &
Bengio, Reweighted wake-sleep, ICLR 2015).

Run: python -m experiments.sbn.run [--data bars|mnist] [--methods NAME ...] [--particles K ...] [--layers KIND ...]
[--full]

Bars are 4 x 4 images in which each of eight bars is on with probability 1/4; their entropy is known, so that a perfect
model's log evidence is too. MNIST is binarised afresh at every step (training) or once (test); 8,000 images train and
2,000 test. Writes `results.json`, tables and a picture into `experiments/sbn/results`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpyro
import optax

import kayn
from experiments._common import binarise, by_case, digits, evidence_by_datum, keep, plot_looks, save_json
from experiments.sbn.layers import LAYERS, top
from kayn.inference.training import HELD_OUT, Phase, train

BARS = 4


@dataclass(frozen=True)
class Case:
    """One network and the way it is trained."""

    data: str
    sizes: tuple[int, ...]
    method: str
    particles: int
    strategy: str
    p: str = "sbn"
    q: str = "sbn"


def network(case: Case) -> tuple[Callable, Callable]:
    """Model and guide over images [N, D]; layer 1 is next to the image."""
    depth = len(case.sizes)
    names = [f"h{i + 1}" for i in range(depth)]

    def model(x: Any) -> None:
        with numpyro.plate("data", x.shape[0]):
            h = numpyro.sample(names[-1], top(f"p{depth}", case.sizes[-1], case.p))
            for i in reversed(range(depth - 1)):
                h = numpyro.sample(names[i], LAYERS[case.p](f"p{i + 1}", case.sizes[i], h.astype(float)))
            numpyro.sample("x", LAYERS[case.p]("p0", x.shape[-1], h.astype(float)), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("data", x.shape[0]):
            h = x
            for i, name in enumerate(names):
                h = numpyro.sample(name, LAYERS[case.q](f"q{i + 1}", case.sizes[i], h.astype(float)))

    return model, guide


def phases(method: str, particles: int, strategy: str, rate: float) -> list[Phase]:
    def adam() -> Any:
        return optax.adam(rate)

    wake = {
        "ww": kayn.RWS(particles, strategy),
        "ww+s": kayn.RWS(particles, strategy),
        "ws": kayn.RWS(particles, strategy, wake_phi=0.0, sleep_phi=1.0, sleep_particles=2),
        "vimco": kayn.VIMCO(particles, strategy),
        "classical": kayn.RWS(1, strategy, wake_phi=0.0, sleep_phi=1.0, sleep_particles=2),
    }[method]
    asleep = [Phase(kayn.Sleep(2), adam(), every=2)] if method == "ww+s" else []
    return [Phase(wake, adam()), *asleep]


# -- data


def bars(count: int, seed: int) -> Any:
    """[count, 16] images of rows and columns that are on with probability 1/4 each."""
    on = np.random.default_rng(seed).random((count, 2 * BARS)) < 0.25
    return _painted(on).astype(np.int32)


def _painted(on: Any) -> Any:
    rows, columns = on[:, :BARS], on[:, BARS:]
    return (rows[:, :, None] | columns[:, None, :]).reshape(len(on), -1)


def entropy_of_bars() -> float:
    """Nats: minus the expected log probability of an image under the generator."""
    on = np.array(list(itertools.product((False, True), repeat=2 * BARS)))
    weight = np.prod(np.where(on, 0.25, 0.75), 1)
    _, which = np.unique(_painted(on), axis=0, return_inverse=True)
    p = np.bincount(which.ravel(), weight)
    return float(-(p * np.log(p)).sum())


# -- runs


def run(case: Case, steps: int, seed: int, test_particles: int, rate: float = 1e-3, looks: int = 20) -> dict[str, Any]:
    model, guide = network(case)
    if case.data == "bars":
        train_data, held_out, test, augment = bars(10_000, 1), bars(1000, 3), bars(1000, 2), None
    else:
        (train_data, held_out, test), augment = digits(), binarise
    result = train(
        model,
        guide,
        phases(case.method, case.particles, case.strategy, rate),
        train_data,
        batch_size=100,
        num_steps=steps,
        rng_key=seed,
        augment=augment,
        held_out=held_out,
        held_out_particles=50,
        look_every=max(steps // looks, 1),
        progress=False,
    )
    per_image, curve = evidence_by_datum(model, guide, result.params, test, test_particles)
    return {
        **asdict(case),
        "seed": seed,
        "steps": steps,
        "test": per_image.mean(),
        "test_error": per_image.std() / len(test) ** 0.5,
        "curve": curve,
        "held_out": result.looks[HELD_OUT],
        "images_per_second": images_per_second(case, train_data, augment),
    }


def images_per_second(case: Case, data: Any, augment: Any, batch: int = 100, steps: int = 40) -> float:
    """Of compiled training steps, the fastest of three runs."""
    model, guide = network(case)
    seconds = []

    def tick(_: Any) -> dict[str, Any]:
        seconds.append(time.perf_counter())
        return {}

    train(
        model,
        guide,
        phases(case.method, case.particles, case.strategy, 1e-3),
        data,
        batch_size=batch,
        num_steps=4 * steps,
        augment=augment,
        look=tick,
        look_every=steps,
        progress=False,
    )
    return batch * steps / float(np.diff(seconds)[1:].min())


SAME = ("data", "sizes", "p", "q", "method", "particles", "strategy", "steps")
"""What runs of several seeds have in common."""


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'data':<7}{'layers':<16}{'p':<6}{'q':<6}{'method':<11}{'K':>4} "
        f"{'particles':<10}{'steps':>7}{'seeds':>6}{'test log evidence':>20}{'error':>7}{'images / s':>12}"
    ]
    for rows in by_case(results, SAME):
        data, sizes, p, q, method, particles, strategy, steps = (rows[0][what] for what in SAME)
        layers, kind = "-".join(map(str, sizes)), {"local": "joint", "parallel": "per layer"}[strategy]
        values = np.asarray([r["test"] for r in rows])
        # over seeds, or over test images where there is one seed
        spread = values.std(ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else rows[0]["test_error"]
        # runs that shared their device with others have no rate
        rates = [r["images_per_second"] for r in rows if r["images_per_second"]]
        speed = f"{max(rates):,.0f}" if rates else "-"
        lines.append(
            f"{data:<7}{layers:<16}{p:<6}{q:<6}{method:<11}{particles:>4} "
            f"{kind:<10}{steps:>7}{len(rows):>6}{values.mean():>20.3f}{spread:>7.3f}{speed:>12}"
        )
    if any(r["data"] == "bars" for r in results):
        lines.append(f"A perfect model of the bars has a test log evidence of {-entropy_of_bars():.3f} on average.")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], out: Path) -> None:
    import matplotlib.pyplot as plt

    sets = list(dict.fromkeys(r["data"] for r in results))
    figure, panels = plt.subplots(2, len(sets), figsize=(5.2 * len(sets), 8), squeeze=False)
    for column, name in enumerate(sets):
        for rows in by_case([r for r in results if r["data"] == name], SAME):
            first, layered = rows[0], rows[0]["strategy"] == "parallel"
            label = (
                f"{first['method']}, K = {first['particles']}{' per layer' if layered else ''}, "
                f"{first['p']}/{first['q']}, {first['steps']:,} steps"
            )
            style = {"linestyle": "--" if layered else "-", "label": label}
            style["color"] = plot_looks(panels[0, column], rows, "held_out", **style)
            counts = sorted(map(int, first["curve"]))
            curve = np.asarray([[{int(k): v for k, v in r["curve"].items()}[c] for c in counts] for r in rows]).mean(0)
            panels[1, column].semilogx(counts, curve, marker="o", **style)
        panels[0, column].set(title=name, xlabel="iteration", ylabel="held-out log evidence, 50 particles")
        panels[1, column].set(xlabel="particles of the test", ylabel="test log evidence")
    panels[0, 0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(out / "sbn.png", dpi=110)
    plt.close(figure)


SIZES = {"bars": (16, 8), "mnist": (200, 200, 10)}


@click.command()
@click.option("--data", "sets", multiple=True, type=click.Choice(list(SIZES)), help="Bars by default.")
@click.option("--sizes", help="Units by layer, the lowest first, e.g. 200-200-10.")
@click.option("--methods", multiple=True, type=click.Choice(["ww", "ww+s", "ws", "vimco", "classical"]))
@click.option("--particles", multiple=True, type=int)
@click.option("--strategies", multiple=True, type=click.Choice(["local", "parallel"]))
@click.option("--layers", multiple=True, help="Layer types of p and q, e.g. sbn/nade.")
@click.option("--steps", type=int, help="2,000 by default, 100,000 with --full.")
@click.option("--seeds", type=int, default=1)
@click.option("--test-particles", type=int, help="1,000 by default, 100,000 with --full.")
@click.option("--full", is_flag=True, help="All methods, particles, strategies and layer types.")
@click.option("--out", default=str(Path(__file__).parent / "results"), type=click.Path(file_okay=False, path_type=Path))
def main(
    sets: tuple[str, ...],
    sizes: str | None,
    methods: tuple[str, ...],
    particles: tuple[int, ...],
    strategies: tuple[str, ...],
    layers: tuple[str, ...],
    steps: int | None,
    seeds: int,
    test_particles: int | None,
    full: bool,
    out: Path,
) -> None:
    """Train and test networks."""
    steps = steps or (100_000 if full else 2_000)
    test_particles = test_particles or (100_000 if full else 1_000)
    sets = sets or (tuple(SIZES) if full else ("bars",))
    methods = methods or (("ww", "ww+s", "ws", "vimco", "classical") if full else ("ww", "ws"))
    particles = particles or ((2, 5, 10) if full else (2, 10))
    strategies = strategies or ("local", "parallel")
    layers = layers or (("sbn/sbn", "dsbn/dsbn", "sbn/nade", "darn/darn", "nade/nade") if full else ("sbn/sbn",))
    results: list[dict[str, Any]] = []
    cases = itertools.product(sets, layers, methods, strategies, particles)
    for data, kind, method, strategy, count in cases:
        if method == "vimco" and strategy == "parallel":
            continue  # its baselines need layers that the guide draws independently
        units = tuple(int(n) for n in sizes.split("-")) if sizes else SIZES[data]
        p, q = kind.split("/")
        for seed in range(seeds):
            results.append(run(Case(data, units, method, count, strategy, p, q), steps, seed, test_particles))
        click.echo(
            table(results[-seeds:]).splitlines()[1] if len(results) > seeds else table(results).split("\nA perfect")[0]
        )
        save_json(out / "results.json", {"results": results})
    keep(out, results, table, draw)


if __name__ == "__main__":
    main()
