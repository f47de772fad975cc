"""Which events of independent elements are read element by element, so that each can have particles of its own."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

from kayn.evidence.read import read_model
from kayn.graph.types import MIXED, Kind
from kayn.guides.choice import LONGEST_VECTOR
from kayn.programs.events import freed, with_free_elements
from kayn.programs.sites import Inspected


def with_freed_events(inspected: Inspected) -> Inspected:
    """The model with the elements of such events as dimensions of a batch; of other models nothing changes.

    kayn's own guide then draws these elements one by one, where it would draw them together. A short vector stays one
    where a deterministic value reads several of its elements, or one by its number, too: its covariance loses little.
    """
    names = {*with_free_elements(inspected.sites)}
    while names:
        own = replace(inspected, sites=freed(inspected.sites, names))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say is said when the problem is built
            graph = read_model(own).structure.graph
        mixed = {
            r.latent
            for o in graph.outputs
            for r in o.reads
            if any(how == MIXED for _, how in r.through)
            and (o.kind is not Kind.VALUE or math.prod(graph.latent(r.latent).shape) <= LONGEST_VECTOR)
        }
        if not names & mixed:
            return own
        names -= mixed
    return inspected
