"""What the experiments share: files for results, images, and a loop of SVI steps inside `lax.scan` for several seeds at
once."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from numpyro import handlers

from kayn.datasets import load
from kayn.meters import evidence_meter


def save_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, default=_plain)
    # lists of numbers on one line
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    path.write_text(text + "\n", encoding="utf-8")


Table = Callable[[list[dict[str, Any]]], str]
Draw = Callable[[list[dict[str, Any]], Path], None]


def newest(results: list[dict[str, Any]], table: Table) -> str:
    """The table's line on the newest result, under its heading where that is the first one."""
    text = table(results[-1:])
    return text if len(results) == 1 else text.splitlines()[-1]


def present(out: Path, results: list[dict[str, Any]], table: Table, draw: Draw | None) -> None:
    """Write the table of all results, and draw them."""
    (out / "table.txt").write_text(table(results) + "\n", encoding="utf-8")
    if draw:
        draw(results, out)


def keep(out: Path, results: list[dict[str, Any]], table: Table, draw: Draw | None = None, **about: Any) -> None:
    """Write results, with what they have in common, their table and pictures into a directory."""
    save_json(out / "results.json", {**about, "results": results})
    present(out, results, table, draw)
    click.echo(f"written to {out}")


def by_case(results: list[dict[str, Any]], same: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Runs that have some figures in common: those that differ by their seed only."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        groups.setdefault(str([r[what] for what in same]), []).append(r)
    return list(groups.values())


def plot_looks(panel: Any, rows: list[dict[str, Any]], what: str, **style: Any) -> Any:
    """Draw what was looked at in training, after the first steps: the mean over runs and the band between them.

    Returns:
        The colour of the line.
    """
    steps = [step for step, _ in rows[0][what]][1:]
    values = np.asarray([[value for _, value in r[what]][1:] for r in rows])
    (line,) = panel.plot(steps, values.mean(0), **style)
    panel.fill_between(steps, values.min(0), values.max(0), alpha=0.2, color=line.get_color())
    return line.get_color()


def rows_of_others(path: Path, redone: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that a file of results has of other models than those that are run again."""
    stored = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [r for r in stored if r["model"] not in redone]


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()


def train_seeds(
    step: Callable[[Any, Any], Any], states: Any, keys: Any, steps: int, chunk: int, look: Callable[[Any], Any]
) -> tuple[Any, list[dict[str, Any]], float]:
    """Run `steps` steps of every seed, compiled as one program a chunk, and look at the states after each chunk.

    Args:
        step: (state, key) to state, of one seed.
        states, keys: with a leading dimension of seeds.
        look: states to figures, after each chunk.

    Returns:
        The last states, the figures with their step numbers, and seconds per step and seed in the fastest chunk.
    """

    def one(state: Any, key: Any, first: Any) -> Any:
        def body(state: Any, number: Any) -> tuple[Any, None]:
            return step(state, jax.random.fold_in(key, number)), None

        return jax.lax.scan(body, state, first + jax.numpy.arange(chunk))[0]

    advance = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))
    history = [{"step": 0, **look(states)}]
    seconds = []
    for first in range(0, steps, chunk):
        start = time.perf_counter()
        states = jax.block_until_ready(advance(states, keys, first))
        seconds.append((time.perf_counter() - start) / chunk / keys.shape[0])
        history.append({"step": first + chunk, **look(states)})
    return states, history, min(seconds)


def digits() -> tuple[Any, Any, Any]:
    """Images [N, 784] of MNIST's published test set: 8,000 to train, as intensities in [0, 1], and binary ones, 500 to
    choose parameters by and 1,500 to test."""
    images = load("mnist_10k")["images"].reshape(-1, 784).astype(np.float32) / 255
    others = (np.random.default_rng(0).random((2000, 784)) < images[8000:]).astype(np.int32)
    return images[:8000], others[:500], others[500:]


def binarise(key: Any, batch: tuple) -> tuple:
    """Images drawn with the pixels' intensities as probabilities."""
    return tuple(jax.random.bernoulli(key, x).astype(jax.numpy.int32) for x in batch)


def reconstruct(model: Callable, guide: Callable, params: Any, x: Any, digits: int = 2) -> np.ndarray:
    """Probabilities of the pixels [N, pixels] given one draw of the guide, rounded."""
    drawn = handlers.trace(handlers.seed(handlers.substitute(guide, data=params), 0)).get_trace(x)
    followed = handlers.replay(handlers.substitute(model, data=params), drawn)
    shown = handlers.trace(handlers.seed(followed, 1)).get_trace(x)
    return np.round(np.asarray(jax.nn.sigmoid(shown["x"]["fn"].base_dist.logits)), digits)


def draw_rows(rows: Sequence[tuple[str, Any, Sequence[str]]], side: int, path: Path) -> None:
    """Rows of square pictures [N, side^2], each with a label and a title for every picture."""
    import matplotlib.pyplot as plt

    columns = len(rows[0][1])
    figure, panels = plt.subplots(len(rows), columns, figsize=(0.9 * columns, 1.1 * len(rows)), squeeze=False)
    for line, (label, pictures, titles) in zip(panels, rows, strict=True):
        for panel, picture, title in zip(line, np.asarray(pictures), titles, strict=True):
            panel.imshow(picture.reshape(side, side), cmap="gray_r", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            panel.set_title(title, fontsize=7, pad=2)
        line[0].set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def evidence_by_datum(
    model: Callable, guide: Callable, params: Any, test: Any, particles: int, chunk: int = 50, piece: int = 500
) -> tuple[np.ndarray, dict[int, float]]:
    """Log evidence of each test datum, and the mean by number of particles; some data at a time."""
    meter = evidence_meter(
        model, guide, params, test[:piece], num_particles=particles, chunk=min(chunk, particles), strategy="local"
    )
    found = [meter(params, i, test[i : i + piece]) for i in range(0, len(test), piece)]
    per_datum = np.concatenate([np.asarray(f.by_element) for f in found])
    return per_datum, {k: sum(f.curve[k] for f in found) / len(test) for k in found[0].curve}
