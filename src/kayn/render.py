"""Draw a factor graph: with matplotlib alone, or with graphviz, which places nodes more cleverly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kayn.axes.types import Layout
from kayn.errors import KaynError
from kayn.graph.types import Graph, Kind, Output
from kayn.support.drawing import GREY, RED, literal, new_figure
from kayn.support.names import shown

COLOURS = ("#9ecae1", "#fdd0a2", "#c7e9c0", "#dadaeb", "#fcbba1", "#fde68a", "#b2dfdb", "#f8bbd0")
"""Of particle axes, in turn."""
ABREAST = 5
"""Nodes of a plate side by side, at most."""
WIDTH = 11.0
"""Of a picture, in inches, unless a single plate needs more."""
MOST = 100
"""Nodes of a picture."""


def render(graph: Graph, layout: Layout, filename: str | os.PathLike | None = None) -> Any:
    """Latents as ellipses, observed sites shaded, factors' dependences as arrows, plates as boxes of their latents.

    Raises:
        KaynError: the `graphviz` package is missing.
    """
    try:
        import graphviz
    except ImportError as error:
        raise KaynError("Analysis.render() needs the graphviz package: pip install 'kayn[graph]'") from error
    dot = graphviz.Digraph()
    # names of sites may hold what graphviz reads as ports or as its escapes
    ids = {o.name: f"site{i}" for i, o in enumerate(graph.factors)}
    boxes: dict[tuple[str, ...], list[tuple[str, dict[str, str]]]] = {}
    for output in graph.factors:
        observed = output.kind is Kind.LIKELIHOOD
        style = {"style": "filled", "fillcolor": "lightgrey"} if observed else {}
        label = graphviz.escape(shown(output.name))
        if not observed:
            label += f"\nK={layout.axis_of(output.name).size}"
        boxes.setdefault(tuple(d for d in output.dims if d), []).append((ids[output.name], {"label": label, **style}))
    for number, (plates, nodes) in enumerate(boxes.items()):
        if not plates:
            for name, attributes in nodes:
                dot.node(name, **attributes)
            continue
        with dot.subgraph(name=f"cluster{number}") as box:
            words = ", ".join(f"{p} ({graph.plate(p).size})" for p in plates)
            box.attr(label=graphviz.escape(words), labeljust="r")
            for name, attributes in nodes:
                box.node(name, **attributes)
    for output in graph.factors:
        for latent in output.latents:
            if latent != output.name:
                dot.edge(ids[latent], ids[output.name])
    if filename is not None:
        path = Path(filename)
        dot.render(outfile=str(path), cleanup=True)
    return dot


def picture(graph: Graph, layout: Layout) -> Any:
    """A `matplotlib.figure.Figure`: latents in the colour of their particle axis, data grey, plates as boxes.

    Raises:
        KaynError: matplotlib is missing.
    """
    outputs = graph.factors[:MOST]
    labels = {o.name: _label(o, layout) for o in outputs}
    unit = max((len(line) for text in labels.values() for line in text.split("\n")), default=4) * 0.085 + 0.45
    boxes = _placed(outputs, graph, unit)
    width = max((b.left + b.columns * unit for b in boxes), default=4.0) + 0.2
    height = max((b.top + b.height for b in boxes), default=1.0) + 0.2
    figure, axes = new_figure(width, height + 0.6)
    own = axes[0, 0]
    own.set_axis_off()
    own.set(xlim=(-0.1, width), ylim=(height, -0.1), aspect="equal")
    combinations = f"10^{layout.plan.log10_combinations:.1f} combinations of particles"
    more = f"; {len(graph.factors) - MOST} more sites" if len(graph.factors) > MOST else ""
    own.set_title(f"{combinations}; one colour, one particle index{more}", loc="left", fontsize=9)
    colours = {a.name: COLOURS[i % len(COLOURS)] for i, a in enumerate(layout.axes)}
    at = {o.name: place for b in boxes for o, place in zip(b.nodes, b.places(unit), strict=True)}
    for output in outputs:
        for parent in (n for n in output.latents if n != output.name and n in at):
            arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 0.8, "shrinkA": 13, "shrinkB": 15}
            own.annotate("", at[output.name], at[parent], arrowprops=arrow, zorder=2)
    for box in boxes:
        if box.plates:
            words = ", ".join(f"{p} ({graph.plate(p).size})" for p in box.plates)
            corner = (box.left, box.top)
            own.add_patch(_rectangle(corner, box.columns * unit - 0.1, box.height - 0.1))
            own.text(box.left + 0.08, box.top + box.height - 0.18, literal(shown(words)), fontsize=7.5, color=RED)
    for output in outputs:
        seen = output.kind is Kind.LIKELIHOOD
        colour = "#d9d9d9" if seen else colours.get(layout.axis_of(output.name).name, "white")
        shape = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "#555555", "linewidth": 0.8}
        x, y = at[output.name]
        own.text(x, y, literal(labels[output.name]), ha="center", va="center", fontsize=8, bbox=shape, zorder=3)
    return figure


def _label(output: Output, layout: Layout) -> str:
    if output.kind is Kind.LIKELIHOOD:
        return shown(output.name)
    axis = layout.axis_of(output.name)
    return f"{shown(output.name)}\n{'summed over' if axis.enumerated else 'K ='} {axis.size}"


def _rectangle(corner: tuple[float, float], width: float, height: float) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch(
        corner, width, height, boxstyle="round,pad=0,rounding_size=0.1", fill=False, edgecolor=RED, linewidth=0.9
    )


@dataclass(frozen=True)
class _Box:
    """Sites over the same plates; places in inches, from the upper left."""

    plates: tuple[str, ...]
    nodes: tuple[Output, ...]
    left: float
    top: float

    @property
    def columns(self) -> int:
        return max(1, min(len(self.nodes), ABREAST))

    @property
    def height(self) -> float:
        return 0.85 * -(-len(self.nodes) // ABREAST) + 0.35

    def places(self, unit: float) -> list[tuple[float, float]]:
        """The middle of every node."""
        rows = [divmod(i, ABREAST) for i in range(len(self.nodes))]
        return [(self.left + (column + 0.5) * unit - 0.05, self.top + 0.4 + 0.85 * row) for row, column in rows]


def _placed(outputs: Sequence[Output], graph: Graph, unit: float) -> list[_Box]:
    """Boxes in rows from what depends on nothing to what depends on it."""
    depth: dict[str, int] = {}
    for output in outputs:
        depth[output.name] = 1 + max((depth.get(n, 0) for n in output.latents if n != output.name), default=-1)
    groups: dict[tuple[str, ...], list[Output]] = {}
    for output in sorted(outputs, key=lambda o: depth[o.name]):
        groups.setdefault(tuple(d for d in output.dims if d), []).append(output)
    found: list[_Box] = []
    left = top = bottom = 0.0
    level = 0
    for plates, nodes in sorted(groups.items(), key=lambda item: max(depth[o.name] for o in item[1])):
        box = _Box(plates, tuple(nodes), left, top)
        own = max(depth[o.name] for o in nodes)
        if found and (own != level or left + box.columns * unit > WIDTH):
            left, top = 0.0, bottom + 0.35
            box = _Box(plates, tuple(nodes), left, top)
        found.append(box)
        level, left, bottom = own, left + box.columns * unit + 0.2, max(bottom, top + box.height)
    return _centred(found, unit)


def _centred(boxes: Sequence[_Box], unit: float) -> list[_Box]:
    """Boxes with every row in the middle."""
    ends = {b.top: b.left + b.columns * unit for b in boxes}  # the last of a row is the rightmost
    widest = max(ends.values(), default=0.0)
    return [replace(b, left=b.left + (widest - ends[b.top]) / 2) for b in boxes]
