"""What the elements of a posterior's sites are called: the dimensions of a site, and the labels along them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kayn.errors import QueryError
from kayn.evidence.problem import model_inputs
from kayn.graph.types import Link
from kayn.posterior.pool import Pool
from kayn.programs.data import arguments
from kayn.xla.compilation import is_traced


def dims_of(posterior: Pool, site: str, shape: tuple[int, ...], rank: int) -> list[str]:
    """The names of a site's dimensions: its plates, and `<site>_dim_<i>` for others.

    Args:
        shape: of one value of the site.
        rank: how many dimensions of it are those of rows.
    """
    graph, found = posterior.problem.graph, posterior.problem.model.sites[site]
    if posterior.problem.model.sites[site].kind == "deterministic":
        plates = dict(enumerate(graph.output(site).dims))
    else:
        sites = posterior.problem.model.sites
        whole = {name: sites[name].batch_shape[0] for name, _, _ in found.frames if name in sites}
        plates = {rank + dim: name for name, dim, size in found.frames if shape[rank + dim] in (size, whole.get(name))}
    dims: list[str] = []
    for d in range(len(shape)):
        # a matrix over pairs of a plate's elements has the plate once
        own = plates.get(d) or f"{site}_dim_{d}"
        dims.append(own if own not in dims else f"{site}_dim_{d}")
    return dims


def labels_of(posterior: Pool) -> dict[str, np.ndarray]:
    """Labels by plate: those that the user gave, or as far as the model's arguments have told. A column of categories
    labels the plate that it is an index into; a dimension of an array labels a plate of its name and size.

    Raises:
        QueryError: the user gave labels for no plate, or not as many as it has elements.
    """
    if "labels" not in posterior._found:
        sizes, labels = {p.name: p.size for p in posterior.problem.graph.plates}, posterior.call.labels
        for dim, own in labels.given.items():
            if dim not in sizes and "_dim_" not in dim:
                raise QueryError(f"coords= names dimension {dim!r}, which is no plate; plates: {sorted(sizes)}")
            if own.shape != (sizes.get(dim, own.size),):
                raise QueryError(
                    f"coords= has labels of shape {own.shape} for {dim!r}, which has {sizes[dim]} elements"
                )
        dims = {d: v for d, v in labels.dims.items() if v.shape == (sizes.get(d),)}
        posterior._found["labels"] = {**dict(_of_columns(posterior)), **dims, **labels.given}
    return posterior._found["labels"]


def _of_columns(posterior: Pool) -> Iterator[tuple[str, np.ndarray]]:
    categories, call, problem = posterior.call.labels.categories, posterior.call, posterior.problem
    if not categories or is_traced(posterior.draws.subsample):
        return
    columns = {n: np.asarray(v) for n, v in arguments(call.model, call.args, call.kwargs) if n in categories}
    through = (h for o in problem.graph.factors for r in o.reads for _, h in r.through)
    sizes = {p.name: p.size for p in problem.graph.plates}
    memo: dict[int, np.ndarray] = {}
    inputs = model_inputs(problem, posterior.numbers, posterior.params, {})
    for link in dict.fromkeys(h for h in through if isinstance(h, Link)):
        try:
            index = np.asarray(problem.structure.index(link.key, inputs, memo))
        except (TypeError, KeyError):  # of rows that are drawn
            continue
        for name, column in columns.items():
            if np.array_equal(index, column) and len(categories[name]) == sizes[link.target]:
                yield link.target, categories[name]
