"""A program whose innovations are read in their running sum (`kayn.programs.running`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import numpyro
from numpyro import handlers
from numpyro.primitives import Messenger

from kayn.errors import ModelError
from kayn.programs.running import EARLIER, Coordinates, Earlier, Running
from kayn.support.arrays import Array
from kayn.support.names import unbounded

Again = Callable[[tuple, Mapping[str, Any]], Mapping[str, Coordinates]]


class ReadRunning(Messenger):
    """A program whose innovations of some latents are read in their running sum.

    Args:
        coordinates: of the latents. Those that a handler within the program has set are left as they are.
        ahead: latents that are drawn before all others, as coordinates of earlier ones depend on them, in this order.
            Their laws depend on no latent.
        again: finds the coordinates under other arguments, where latents have other shapes.
    """

    def __init__(
        self,
        fn: Callable,
        coordinates: Mapping[str, Coordinates],
        ahead: Sequence[str] = (),
        again: Again | None = None,
    ):
        super().__init__(fn)
        self.again = again
        self.given: tuple[tuple, Mapping[str, Any]] = ((), {})
        self.ahead = tuple(ahead)
        self.coordinates = dict(coordinates)
        self.wanted = {n for c in coordinates.values() for n in c.latents}
        self.seen: dict[str, Array] = {}
        self.drawn: dict[str, Array] = {}
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)

    def __enter__(self) -> Any:
        """Forget the values of another run."""
        self.seen, self.drawn = {}, {}
        return super().__enter__()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        self.given = (args, kwargs)
        with self:
            if self.ahead:
                with handlers.block():
                    sites = handlers.trace(handlers.seed(self.fn, jax.random.key(0))).get_trace(*args, **kwargs)
                laws = {n: sites[n] for n in self.ahead if n in sites}
                for name, site in laws.items():
                    self.drawn[name] = _again(name, site)
            result = self.fn(*args, **kwargs)
        self.given = ((), {})
        return result

    def process_message(self, msg: dict[str, Any]) -> None:
        """Put the running sum, and the innovations that follow from it, in the place of these."""
        name = msg["name"]
        if name in self.drawn:
            msg["value"], msg["stop"] = self.drawn[name], True
        if msg["type"] == "sample" and EARLIER in msg["infer"]:
            _leave_plates(msg, msg["infer"][EARLIER])
        if msg["type"] != "sample" or name not in self.coordinates or msg["is_observed"] or msg["value"] is not None:
            return
        whole, shape = self.coordinates[name], msg["fn"].shape()
        if whole.shape not in (None, shape) and self.again is not None:
            with handlers.block():
                whole = self.again(*self.given).get(name, whole)
        if whole.shape not in (None, shape):
            raise ModelError(f"latent {name!r} has shape {shape}, but had {whole.shape} where {_known(whole)}")
        coordinates, earlier = whole.given(self.seen), Earlier(whole)
        law = Running(msg["fn"], coordinates)
        r = numpyro.sample(unbounded(name), law, infer={**msg["infer"], EARLIER: earlier})
        before = earlier.values or coordinates.earlier(r)
        msg["type"], msg["value"] = "deterministic", coordinates.innovations(r, before)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Keep values that decays are computed of."""
        if msg["name"] in self.wanted:
            self.seen[msg["name"]] = msg["value"]


def _again(name: str, site: Mapping[str, Any]) -> Array:
    """A latent drawn in another place, in the plates that it was in."""
    with ExitStack() as plates:
        for frame in site["cond_indep_stack"]:
            plates.enter_context(numpyro.plate(frame.name, frame.size, dim=frame.dim))
        return numpyro.sample(name, site["fn"], infer=dict(site["infer"]))


def _leave_plates(msg: dict[str, Any], earlier: Earlier) -> None:
    turned = [f for f in msg["cond_indep_stack"] if earlier.coordinates.backward and f.dim == earlier.coordinates.axis]
    earlier.plates.extend(f.name for f in turned)
    msg["cond_indep_stack"] = [f for f in msg["cond_indep_stack"] if f not in turned]


def _known(coordinates: Coordinates) -> str:
    if coordinates.stepping is None and coordinates.computed is None:
        return "the weights were found by which the model adds them up; keep its shape, or give all elements one weight"
    return (
        "what makes its states of them was read, with numbers for every step; keep its shape, or, to carry "
        "the series on, draw the states in a numpyro.contrib.control_flow.scan"
    )
