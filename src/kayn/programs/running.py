"""Innovations that a model adds up, read in their running sum.

Drawn one by one and added up (`jnp.cumsum(z)`), all innovations up to a step are in what the step reads, so that they
would share a particle. Their running sum `r` is a Markov chain: in the place of `z` stands a latent `r`, under the same
name with a prefix, and `z_t = r_t - r_{t-1}` is a deterministic value. More generally
`r_t = d_t r_{t-1} + e_t r_{t-2} + ... + w_t z_t`, with numbers w, and decays that other latents may decide. What is
added up from the last step on is the same, with the elements of z in the other order.
`kayn.graph.running_sums` finds which latents are added up, and has what they are added up to read r.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
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
        run: their values to the decays of each lag, one or [T].
    """

    latents: tuple[str, ...]
    run: Callable[..., tuple[Array, ...]]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("decays", "weight"),
    meta_fields=("computed", "axis", "backward", "span"),
)
@dataclass(frozen=True, eq=False)
class Coordinates:
    """What the innovations z of a latent are replaced by: `r_t = sum_j d_tj r_{t-j} + w_t z_t`, with r_0 = w_0 z_0.

    Attributes:
        decays: d of each lag, one for all elements or one each; None where they are one.
        weight: w likewise.
        computed: d, where they depend on latents.
        axis: the dimension that steps are, from the last, which is -1.
        backward: whether the steps of r are those of z from the last to the first.
        span: how many steps before its own something reads r.
    """

    decays: tuple[Any, ...] = (None,)
    weight: Any = None
    computed: Computed | None = None
    axis: int = -1
    backward: bool = False
    span: int = 1

    def given(self, values: Mapping[str, Array]) -> Coordinates:
        """With decays that are computed of the values of latents."""
        if self.computed is None:
            return self
        return replace(self, decays=self.computed.run(*(values[n] for n in self.computed.latents)), computed=None)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the latents that these are coordinates of; None for any."""
        shapes = [np.shape(x) for x in (*self.decays, self.weight) if x is not None]
        return next((shape for shape in shapes if shape), None)

    @property
    def order(self) -> int:
        """How many earlier steps of r there have to be."""
        return max(len(self.decays), self.span)

    def sums(self, z: Array) -> Array:
        """r, in the shape of z."""
        z = self.turned(z)
        added = z if self.weight is None else z * jnp.asarray(self.weight, z.dtype)
        if not self.decays:
            return added
        if self.decays == (None,):
            return jnp.cumsum(added, self.axis)
        # an array each, steps first
        decays = [
            jnp.moveaxis(jnp.broadcast_to(jnp.asarray(1.0 if d is None else d, z.dtype), z.shape), self.axis, 0)
            for d in self.decays
        ]
        return jnp.moveaxis(_recursion(decays, jnp.moveaxis(added, self.axis, 0)), 0, self.axis)

    def turned(self, x: Array) -> Array:
        """Elements of z in the order of r, or the other way round."""
        return jnp.flip(x, self.axis) if self.backward else x

    def moved(self, before: Sequence[Array]) -> Array:
        """What of the values one step earlier, two, and so on is in r; what is before the first step is not used."""
        step = jnp.arange(before[0].shape[self.axis]).reshape((-1, *(1,) * (-self.axis - 1)))
        parts = (
            jnp.where(step < lag, 0.0, x if d is None else jnp.asarray(d, x.dtype) * x)
            for lag, (d, x) in enumerate(zip(self.decays, before, strict=False), 1)
        )
        return next(parts) if len(self.decays) == 1 else reduce(jnp.add, parts, jnp.zeros_like(before[0]))

    def innovations(self, r: Array, before: Sequence[Array]) -> Array:
        """z, given r and its values one step earlier, two, and so on."""
        z = r - self.moved(before)
        return self.turned(z if self.weight is None else z / jnp.asarray(self.weight, r.dtype))

    def carried_on(self, r: Array, fresh: Array) -> Array:
        """r, with the innovations of a longer one in the steps behind it."""
        own, others = (self.innovations(x, self.earlier(x)) for x in (r, fresh))
        behind = jax.lax.slice_in_dim(others, r.shape[self.axis], None, axis=r.ndim + self.axis)
        return self.sums(jnp.concatenate([own, behind], self.axis))

    def earlier(self, r: Array) -> list[Array]:
        """r one step earlier, two, and so on, of which the first steps repeat the first."""
        steps, axis = r.shape[self.axis], r.ndim + self.axis
        return [jnp.take(r, np.maximum(np.arange(steps) - lag, 0), axis) for lag in range(1, self.order + 1)]


def states_of(starts: Sequence[Array], decays: Sequence[Array], added: Array) -> Array:
    """`s_t = sum_j a_tj s_{t-j} + u_t`: [T, *S].

    Args:
        starts: the state before the first, the one before that, and so on.
        decays: [T, *S] of each.
    """

    def step(states: tuple[Array, ...], now: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        moved = [decay * state for decay, state in zip(now[:-1], states, strict=True)]
        new = sum((*moved[1:], now[-1]), moved[0])
        return (new, *states[:-1]), new

    # without weak types, of which the loop would have conversions
    own = [jax.lax.convert_element_type(x, added.dtype) for x in (*starts, *decays)]
    return jax.lax.scan(step, tuple(own[: len(starts)]), (*own[len(starts) :], added))[1]


def _recursion(decays: Sequence[Array], added: Array) -> Array:
    """`states_of` from zero; of one lag in parallel."""
    if len(decays) > 1:
        return states_of([jnp.zeros_like(added[0])] * len(decays), decays, added)

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] * b[0], a[1] * b[0] + b[1]

    return jax.lax.associative_scan(join, (decays[0], added))[1]


PLAIN = Coordinates()


@dataclass(frozen=True, eq=False)
class Earlier:
    """What is known where a running sum is drawn.

    Attributes:
        coordinates: of the innovations, whatever the values of other latents.
        values: the sum one step earlier, two, and so on, once they are inputs of their own.
        plates: that the innovations are in and the sum is not, since it has their elements in the other order.
    """

    coordinates: Coordinates
    values: list[Array] = field(default_factory=list)
    plates: list[str] = field(default_factory=list)


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
        volume = self.coordinates.turned(np.broadcast_to(np.log(np.abs(weight)), self.shape()))
        return density - (volume.sum() if self.event_dim else volume)

    def steps(self, before: Sequence[Array]) -> dist.Distribution:
        """The law of every step given those before, which the first steps do not use: a batch."""
        base, turned = self.law, self.coordinates.turned
        while isinstance(base, dist.Independent | dist.ExpandedDistribution):
            base = base.base_dist
        weight = self.coordinates.weight
        shift, scale = self.coordinates.moved(before), np.float32(1.0) if weight is None else np.asarray(weight)
        if isinstance(base, dist.Normal):
            own = (base.loc, base.scale)
            if self.coordinates.backward:
                own = tuple(turned(jnp.broadcast_to(x, self.shape())) for x in own)
            return dist.Normal(shift + scale * own[0], np.abs(scale) * own[1])
        base = base.expand(self.shape())
        if self.coordinates.backward:
            base = Turned(base, self.coordinates)
        return dist.TransformedDistribution(base, AffineTransform(shift, scale))


class Turned(dist.Distribution):
    """A batch of laws in the other order.

    Args:
        coordinates: which say along which dimension.
    """

    pytree_data_fields = ("law", "coordinates")
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, law: dist.Distribution, coordinates: Coordinates, *, validate_args: bool | None = None):
        self.law, self.coordinates = law, coordinates
        super().__init__(law.batch_shape, law.event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """That of the laws."""
        return self.law.support

    def sample(self, key: KeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, [*sample_shape, *shape]."""
        return self.coordinates.turned(self.law.sample(key, sample_shape))

    def log_prob(self, value: Array) -> Array:
        """Log densities, nats, in the shape of the values."""
        return self.coordinates.turned(dependable(self.law, value).log_prob(self.coordinates.turned(value)))


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
        if msg["type"] == "sample" and EARLIER in msg["infer"]:
            _leave_plates(msg, msg["infer"][EARLIER])
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
        before = earlier.values or coordinates.earlier(r)
        msg["type"], msg["value"] = "deterministic", coordinates.innovations(r, before)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Keep values that decays are computed of."""
        if msg["name"] in self.wanted:
            self.seen[msg["name"]] = msg["value"]


def _leave_plates(msg: dict[str, Any], earlier: Earlier) -> None:
    turned = [f for f in msg["cond_indep_stack"] if earlier.coordinates.backward and f.dim == earlier.coordinates.axis]
    earlier.plates.extend(f.name for f in turned)
    msg["cond_indep_stack"] = [f for f in msg["cond_indep_stack"] if f not in turned]


def running(fn: dist.Distribution) -> Running | None:
    """The law of a running sum without wrappers, if it is one."""
    base = innermost(fn)
    return base if isinstance(base, Running) else None
