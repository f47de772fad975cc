"""Graphs written down by hand, by letters of their latents and plates."""

from kayn.axes.request import make_request
from kayn.axes.state import Case
from kayn.axes.strategies import proposed
from kayn.graph.discover import Structure
from kayn.graph.expressions import Nodes
from kayn.graph.types import Graph, Kind, Latent, Output, Plate, Read


def structure(plates, latents, factors, *, events=None, steps="", enumerated="", full=None):
    """Letters are plates and latents.

    Args:
        plates: sizes.
        latents: name -> its plates.
        factors: name -> (plates, {latent: {plate: how it is read, if not aligned}}).
        events: name -> number of coordinates, if several.
        steps: plates that are the steps of a loop.
        enumerated: latents that have a support of three.
        full: plate -> how many elements it stands for.
    """

    def latent(name, own):
        event = (events or {}).get(name)
        shape = (*(plates[p] for p in own), *(() if event is None else (event,)))
        dims = tuple((p, d) for d, p in enumerate(own))
        return Latent(name, shape, "float32", len(own), dims, name in enumerated, 3 if name in enumerated else None)

    def output(name, dims, reads):
        ways = tuple(Read(z, tuple((p, how.get(p, p)) for p in latents[z])) for z, how in reads.items())
        return Output(name, Kind.LIKELIHOOD, tuple(dims), ways)

    graph = Graph(
        tuple(Plate(p, n, (full or {}).get(p, n), steps=p in steps) for p, n in plates.items()),
        tuple(latent(name, own) for name, own in latents.items()),
        tuple(output(name, *factor) for name, factor in factors.items()),
    )
    return Structure(graph, Nodes([]), [])


def state(found, axes=None, parents=None, parameters=0, **request):
    """What is proposed for a structure, where the letters of each of `axes` share one."""
    groups = [tuple(names) for names in axes or ()]
    return proposed(Case(found, make_request(groups=groups, **request), parents or {}, parameters))


def told(change):
    """The axes of a changed state by latents, with their plates, and the last coupling."""
    return {"".join(a.latents): "".join(a.scope) for a in change.axes}, str(change.couplings[-1])


def apply(rule, before, *factor):
    """What a rule makes of a state, which it leaves as it is."""
    axes, couplings = before.axes, before.couplings
    outputs = [before.case.graph.output(n) for n in factor]
    found = rule(before, *outputs)
    assert before.axes == axes
    assert before.couplings == couplings
    return found


PLATES = {"i": 4, "j": 5}
