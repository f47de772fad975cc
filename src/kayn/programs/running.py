"""Innovations that a model adds up, read in their running sum.

Drawn one by one and added up (`jnp.cumsum(z)`), all innovations up to a step are in what the step reads, so that they
would share a particle. Their running sum `r` is a Markov chain: in the place of `z` stands a latent `r`, under the same
name with a prefix, and `z_t = r_t - r_{t-1}` is a deterministic value. More generally
`r_t = d_t r_{t-1} + e_t r_{t-2} + ... + w_t z_t`, with numbers w, and decays that other latents may decide. What is
added up from the last step on is the same, with the elements of z in the other order.
`kayn.graph.running_sums` finds which latents are added up; `kayn.graph.written_in_sums` has the sums read r.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.transforms import AffineTransform

from kayn.densities.log_prob import dependable
from kayn.programs.dependent_supports import InPlaceOf
from kayn.programs.stepping import Stepping
from kayn.programs.wrappers import innermost, unexpanded
from kayn.support.arrays import Array, KeyArray

EARLIER = "_kayn_earlier"
"""In `infer` of a running sum: an `Earlier`."""


@dataclass(frozen=True, eq=False)
class Computed:
    """Decays that are computed of other latents.

    Attributes:
        latents: names.
        run: their values to the decays of each lag, one or [T].
        found_in: the shape of the innovations of all steps of which `run` gives decays of one lag and the weight
            (`kayn.graph.linear_states`); None where it gives decays alone, of however many steps.
    """

    latents: tuple[str, ...]
    run: Callable[..., tuple[Array, ...]]
    found_in: tuple[int, ...] | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("decays", "weight", "parts"),
    meta_fields=("computed", "axis", "backward", "span", "stepping"),
)
@dataclass(frozen=True, eq=False)
class Coordinates:
    """What the innovations z of a latent are replaced by: `r_t = sum_j d_tj r_{t-j} + w_t z_t`, with r_0 = w_0 z_0.

    Attributes:
        decays: d of each lag, one for all elements or one each; None where they are one.
        weight: w likewise.
        computed: d, where they depend on latents, and w, where these do.
        axis: the dimension that steps are, from the last, which is -1.
        backward: whether the steps of r are those of z from the last to the first.
        span: how many steps before its own something reads r.
        stepping: how r follows from earlier values where it is no such sum.
        parts: what that is given, see `Stepping.parts`.
    """

    decays: tuple[Any, ...] = (None,)
    weight: Any = None
    computed: Computed | None = None
    axis: int = -1
    backward: bool = False
    span: int = 1
    stepping: Stepping | None = None
    parts: tuple[Array, ...] = ()

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of those that the coordinates depend on."""
        return next((x.latents for x in (self.computed, self.stepping) if x is not None), ())

    def given(self, values: Mapping[str, Array]) -> Coordinates:
        """With what is computed of the values of latents."""
        if self.stepping is not None:
            return replace(self, parts=self.stepping.parts([values[n] for n in self.latents]))
        if self.computed is None:
            return self
        found = self.computed.run(*(values[n] for n in self.computed.latents))
        if self.computed.found_in is None:
            return replace(self, decays=found, computed=None)
        return replace(self, decays=found[:-1], weight=found[-1], computed=None)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the latents that these are coordinates of; None for any."""
        if self.stepping is not None:
            return self.stepping.shape
        if self.computed is not None and self.computed.found_in is not None:
            return self.computed.found_in
        shapes = [np.shape(x) for x in (*self.decays, self.weight) if x is not None]
        return next((shape for shape in shapes if shape), None)

    @property
    def order(self) -> int:
        """How many earlier steps of r there have to be."""
        return max(len(self.decays), self.span)

    def sums(self, z: Array) -> Array:
        """r, in the shape of z."""
        if self.stepping is not None:
            return self.stepping.sums(self.parts, z)
        z = self.turned(z)
        added = z if self.weight is None else z * jnp.asarray(self.weight, z.dtype)
        if not self.decays:
            return added
        if len(self.decays) == 1 and self.decays[0] is None:
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

    def apart(self, before: Sequence[Array]) -> tuple[Array, Any]:
        """What of the values one step earlier, two, and so on is in r, and the weight of what is added to it."""
        if self.stepping is not None:
            return self.stepping.apart(self.parts, before)
        return self.moved(before), self.weight

    def innovations(self, r: Array, before: Sequence[Array]) -> Array:
        """z, given r and its values one step earlier, two, and so on."""
        shift, weight = self.apart(before)
        z = r - shift
        return self.turned(z if weight is None else z / jnp.asarray(weight, r.dtype))

    def carried_on(self, r: Array, fresh: Array) -> Array:
        """r, with the innovations of a longer one in the steps behind it."""
        axis, steps = r.ndim + self.axis, r.shape[self.axis]
        longer = jnp.concatenate([r, jax.lax.slice_in_dim(fresh, steps, None, axis=axis)], axis)
        own, others = (self.innovations(x, self.earlier(x)) for x in (longer, fresh))
        own, behind = (
            jax.lax.slice_in_dim(x, *ends, axis=axis) for x, ends in ((own, (0, steps)), (others, (steps, None)))
        )
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
        before = self.coordinates.earlier(value)
        z = self.coordinates.innovations(value, before)
        density, weight = dependable(self.law, z).log_prob(z), self.coordinates.apart(before)[1]
        if weight is None:
            return density
        volume = self.coordinates.turned(jnp.broadcast_to(_log_size(weight), self.shape()))
        return density - (volume.sum(tuple(range(-self.event_dim, 0))) if self.event_dim else volume)

    def steps(self, before: Sequence[Array]) -> dist.Distribution:
        """The law of every step given those before, which the first steps do not use: a batch of steps."""
        base, turned = unexpanded(self.law), self.coordinates.turned
        shift, weight = self.coordinates.apart(before)
        scale = np.float32(1.0) if weight is None else weight if isinstance(weight, jax.Array) else np.asarray(weight)
        kept = min(self.event_dim, -self.coordinates.axis - 1)  # events behind the dimension of steps
        if isinstance(base, dist.Normal):
            own = (base.loc, base.scale)
            if self.coordinates.backward:
                own = tuple(turned(jnp.broadcast_to(x, self.shape())) for x in own)
            return _event(dist.Normal(shift + scale * own[0], abs(scale) * own[1]), kept)
        base = base.expand(self.shape())
        if self.coordinates.backward:
            base = Turned(base, self.coordinates)
        return _event(dist.TransformedDistribution(base, AffineTransform(shift, scale)), kept)


def _event(law: dist.Distribution, dims: int) -> dist.Distribution:
    return law.to_event(dims) if dims else law


def _log_size(weight: Any) -> Any:
    return jnp.log(jnp.abs(weight)) if isinstance(weight, jax.Array) else np.log(np.abs(weight))


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


def running(fn: dist.Distribution) -> Running | None:
    """The law of a running sum without wrappers, if it is one."""
    base = innermost(fn)
    return base if isinstance(base, Running) else None
