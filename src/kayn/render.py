"""Draw a factor graph with graphviz."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kayn.axes.types import Layout
from kayn.errors import KaynError
from kayn.graph.types import Graph, Kind
from kayn.support.names import shown


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
