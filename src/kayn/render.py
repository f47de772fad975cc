"""Draw a factor graph with graphviz."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kayn.axes import Layout
from kayn.errors import KaynError
from kayn.graph.types import Graph, Kind


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
    boxes: dict[tuple[str, ...], list[tuple[str, dict[str, str]]]] = {}
    for output in graph.factors:
        observed = output.kind is Kind.LIKELIHOOD
        style = {"style": "filled", "fillcolor": "lightgrey"} if observed else {}
        label = output.name if observed else f"{output.name}\nK={layout.axis_of(output.name).size}"
        boxes.setdefault(tuple(d for d in output.dims if d), []).append((output.name, {"label": label, **style}))
    for plates, nodes in boxes.items():
        if not plates:
            for name, attributes in nodes:
                dot.node(name, **attributes)
            continue
        with dot.subgraph(name="cluster_" + "_".join(plates)) as box:
            box.attr(label=", ".join(f"{p} ({graph.plate(p).size})" for p in plates), labeljust="r")
            for name, attributes in nodes:
                box.node(name, **attributes)
    for output in graph.factors:
        for latent in output.latents:
            if latent != output.name:
                dot.edge(latent, output.name)
    if filename is not None:
        path = Path(filename)
        dot.render(outfile=str(path), cleanup=True)
    return dot
