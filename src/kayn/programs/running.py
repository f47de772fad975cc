"""Innovations that a model adds up, read in their running sum.

Drawn one by one and added up (`jnp.cumsum(z)`), all innovations up to a step are in what the step reads, so that they
would share a particle. Their running sum `r` is a Markov chain: in the place of `z` stands a latent `r`, under the same
name with a prefix, and `z_t = r_t - r_{t-1}` is a deterministic value. More generally `r_t = d_t r_{t-1} + w_t z_t`,
with numbers w, and d that other latents may decide.
`kayn.graph.running_sums` finds which latents are added up, and has what they are added up to read r.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions.transforms import AffineTransform
from numpyro.primitives import Messenger

from kayn.densities.log_prob import dependable
from kayn.errors import ModelError
from kayn.programs.unbounded import InPlaceOf
from kayn.programs.wrappers import innermost
from kayn.support.arrays import Array, KeyArray
from kayn.support.names import unbounded

EARLIER = "_kayn_earlier"
"""In `infer` of a running sum: an `Earlier`."""


@dataclass(frozen=True, eq=False)
class Computed:
    """Decays that are computed of other latents.

    Attributes:
        latents: names.
        run: their values to the decays, one or [T].
    """

    latents: tuple[str, ...]
    run: Callable[..., Array]


@partial(jax.tree_util.register_dataclass, data_fields=("decay", "weight"), meta_fields=("computed", "axis"))
@dataclass(frozen=True, eq=False)
class Coordinates:
    """What the innovations z of a latent are replaced by: `r_t = d_t r_{t-1} + w_t z_t`, with r_0 = w_0 z_0.

    Attributes:
        decay, weight: d and w, one for all elements or one each; None where they are one.
        computed: d, where it depends on latents.
        axis: the dimension that steps are, from the last, which is -1.
    """

    decay: Any = None
    weight: Any = None
    computed: Computed | None = None
    axis: int = -1

    def given(self, values: Mapping[str, Array]) -> Coordinates:
        """With decays that are computed of the values of latents."""
        if self.computed is None:
            return self
        return Coordinates(self.computed.run(*(values[n] for n in self.computed.latents)), self.weight, axis=self.axis)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the latents that these are coordinates of; None for any."""
        shapes = [np.shape(x) for x in (self.decay, self.weight) if x is not None]
        return next((shape for shape in shapes if shape), None)

    def sums(self, z: Array) -> Array:
        """r, in the shape of z."""
        added = z if self.weight is None else z * jnp.asarray(self.weight, z.dtype)
        if self.decay is None:
            return jnp.cumsum(added, self.axis)

        def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
            return a[0] * b[0], a[1] * b[0] + b[1]

        decay = jnp.broadcast_to(jnp.asarray(self.decay, z.dtype), z.shape)
        return jax.lax.associative_scan(join, (decay, added), axis=z.ndim + self.axis)[1]

    def moved(self, before: Array) -> Array:
        """What of the values one step earlier is in r; the first of them is not used."""
        moved = before if self.decay is None else jnp.asarray(self.decay, before.dtype) * before
        step = jnp.arange(before.shape[self.axis]).reshape((-1, *(1,) * (-self.axis - 1)))
        return jnp.where(step == 0, 0.0, moved)

    def innovations(self, r: Array, before: Array) -> Array:
        """z, given r and its values one step earlier."""
        z = r - self.moved(before)
        return z if self.weight is None else z / jnp.asarray(self.weight, r.dtype)

    def carried_on(self, r: Array, fresh: Array) -> Array:
        """r, with the innovations of a longer one in the steps behind it."""
        own, others = (self.innovations(x, self.earlier(x)) for x in (r, fresh))
        behind = jax.lax.slice_in_dim(others, r.shape[self.axis], None, axis=r.ndim + self.axis)
        return self.sums(jnp.concatenate([own, behind], self.axis))

    def earlier(self, r: Array) -> Array:
        """r one step earlier, of which the first step repeats the first."""
        steps, axis = r.shape[self.axis], r.ndim + self.axis
        return jnp.take(r, np.maximum(np.arange(steps) - 1, 0), axis)


PLAIN = Coordinates()


@dataclass(frozen=True, eq=False)
class Earlier:
    """What is known where a running sum is drawn.

    Attributes:
        coordinates: of the innovations, whatever the values of other latents.
        values: the sum one step earlier, once it is an input of its own.
    """

    coordinates: Coordinates
    values: list[Array] = field(default_factory=list)


class Running(InPlaceOf):
    """The law of the running sum of innovations, which are independent.

    Args:
        law: of the innovations, which are a batch, or an event in no batch.
    """

    pytree_data_fields = ("law", "coordinates")
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, law: dist.Distribution, coordinates: Coordinates, *, validate_args: bool | None = None):
        self.law, self.coordinates = law, coordinates
        super().__init__(law.batch_shape, law.event_shape, validate_args=validate_args)

    def sample(self, key: KeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, [*sample_shape, *shape]."""
        return self.coordinates.sums(self.law.sample(key, sample_shape))

    def log_prob(self, value: Array) -> Array:
        """Log density of r, nats: that of the innovations, and of the volume that they have there."""
        z = self.coordinates.innovations(value, self.coordinates.earlier(value))
        density, weight = dependable(self.law, z).log_prob(z), self.coordinates.weight
        if weight is None:
            return density
        volume = np.broadcast_to(np.log(np.abs(weight)), self.shape())
        return density - (volume.sum() if self.event_dim else volume)

    def steps(self, before: Array) -> dist.Distribution:
        """The law of every step given the one before, which the first step does not use: a batch."""
        base = self.law
        while isinstance(base, dist.Independent | dist.ExpandedDistribution):
            base = base.base_dist
        weight = self.coordinates.weight
        shift, scale = self.coordinates.moved(before), np.float32(1.0) if weight is None else np.asarray(weight)
        if isinstance(base, dist.Normal):
            return dist.Normal(shift + scale * base.loc, np.abs(scale) * base.scale)
        return dist.TransformedDistribution(base.expand(self.shape()), AffineTransform(shift, scale))


class ReadRunning(Messenger):
    """A program whose innovations of some latents are read in their running sum.

    Args:
        coordinates: of the latents. Those that a handler within the program has set are left as they are.
    """

    def __init__(self, fn: Callable, coordinates: Mapping[str, Coordinates]):
        super().__init__(fn)
        self.coordinates = dict(coordinates)
        self.wanted = {n for c in coordinates.values() if c.computed for n in c.computed.latents}
        self.seen: dict[str, Array] = {}
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)

    def __enter__(self) -> Any:
        """Forget the values of another run."""
        self.seen = {}
        return super().__enter__()

    def process_message(self, msg: dict[str, Any]) -> None:
        """Put the running sum, and the innovations that follow from it, in the place of these."""
        name = msg["name"]
        if msg["type"] != "sample" or name not in self.coordinates or msg["is_observed"] or msg["value"] is not None:
            return
        whole, shape = self.coordinates[name], msg["fn"].shape()
        if whole.shape not in (None, shape):
            raise ModelError(
                f"latent {name!r} has shape {shape}, but had {whole.shape} where the weights were found by which "
                "the model adds them up; keep its shape, or give all elements one weight"
            )
        coordinates, earlier = whole.given(self.seen), Earlier(whole)
        law = Running(msg["fn"], coordinates)
        r = numpyro.sample(unbounded(name), law, infer={**msg["infer"], EARLIER: earlier})
        before = earlier.values[0] if earlier.values else coordinates.earlier(r)
        msg["type"], msg["value"] = "deterministic", coordinates.innovations(r, before)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Keep values that decays are computed of."""
        if msg["name"] in self.wanted:
            self.seen[msg["name"]] = msg["value"]


def running(fn: dist.Distribution) -> Running | None:
    """The law of a running sum without wrappers, if it is one."""
    base = innermost(fn)
    return base if isinstance(base, Running) else None
