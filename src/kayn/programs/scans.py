"""Time series: read `numpyro.contrib.control_flow.scan` as one factor over all steps instead of as a loop.

The carry of a Markov chain is a function of the last few steps' latents. Once that is verified on the body's jaxpr, the
body can be evaluated at all steps at once, by `jax.vmap`, if the program is also given the latents *of those earlier
steps*. They come in as inputs of their own (`Alias`), for which the particles of the chain stand a second time, moved
by so many steps. A transition is then an ordinary factor of a latent and of its alias, and the contraction knows that
the two are one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from numpyro import handlers
from numpyro.primitives import Messenger

from kayn.errors import ModelError
from kayn.programs.slices import slice_outputs
from kayn.support.arrays import Array, KeyArray, PyTree
from kayn.support.names import RESERVED
from kayn.support.numpyro_internals import align_steps, as_pytree, at_step, is_scan, value_at_step


@dataclass(frozen=True)
class Alias:
    """A chain latent at another step: `lag` steps before each (`end` false), or before the last one (`end` true).

    Attributes:
        dim: the dimension of the latent's shape that steps run along.
    """

    base: str
    lag: int
    end: bool
    dim: int = 0

    @property
    def name(self) -> str:
        """The name of the input: `kayn:level@t-1` one step earlier, `kayn:level@T` at the last step."""
        moment = "T" if self.end else "t"
        return f"{RESERVED}{self.base}@{moment}-{self.lag}" if self.lag else f"{RESERVED}{self.base}@{moment}"

    def move(self, value: Array, leading: int) -> Array:
        """The chain's values where this alias stands for them; steps before the first repeat the first,
        and are not used.

        Args:
            value: values of the latent, with some leading dimensions more than it has.
        """
        axis = leading + self.dim
        steps = value.shape[axis]
        if self.end:
            return jnp.take(value, max(steps - 1 - self.lag, 0), axis)
        return jnp.take(value, np.maximum(np.arange(steps) - self.lag, 0), axis)


def aliases(orders: Mapping[str, int], dims: Mapping[str, int] | None = None) -> tuple[Alias, ...]:
    """All aliases of chain latents, given how many steps back each is read, and where steps are not the first of its
    dimensions, which they are."""
    return tuple(
        Alias(name, lag, end, (dims or {}).get(name, 0))
        for name, order in orders.items()
        for end in (False, True)
        for lag in _lags(order, end)
    )


def _lags(order: int, end: bool) -> range:
    return range(order) if end else range(1, order + 1)


class Chains(Messenger):
    """Runs scan bodies at all steps at once where their carries are Markov; leaves the other loops alone.

    Args:
        values: the values of latents, by site and by alias name.
        lengths: the number of steps of every latent in a loop, by site.

    Attributes:
        orders: how many steps back the chain latents are read.
        broken: what keeps a loop from being Markov, as sentences.
    """

    def __init__(self, values: Mapping[str, Array], lengths: Mapping[str, int]):
        super().__init__()
        self.values, self.lengths = values, lengths
        self.orders: dict[str, int] = {}
        self.broken: list[str] = []

    def process_message(self, msg: dict[str, Any]) -> None:
        """Take over a `scan`, to be run at all steps at once where it is a Markov chain."""
        if is_scan(msg):
            msg["fn"] = partial(self._scan, msg["fn"])

    def _scan(
        self,
        original: Callable,
        f: Callable,
        init: PyTree,
        xs: PyTree,
        length: int | None,
        reverse: bool,
        rng_key: KeyArray | None = None,
        substitute_stack: Sequence[tuple[str, Any]] = (),
        **options: Any,
    ) -> PyTree:
        steps = length if length is not None else jax.tree.leaves(xs)[0].shape[0]
        given = {n: v for n, v in self.values.items() if self.lengths.get(n) == steps}
        body = _Body(f, init, xs, given, steps, rng_key, substitute_stack)
        inside = [n for n in given if n in body.latents]
        trouble = "it runs backwards (reverse=True)" if reverse else body.not_markov()
        known = inside and not trouble
        if known:
            self.orders.update(dict.fromkeys(inside, body.order()))
        elif inside:
            self.broken.append(
                f"the scan over {', '.join(map(repr, inside))} is not a Markov chain of fixed order: {trouble}"
            )
        # on a first look, which finds the order, the aliases are not there yet
        if not known or any(a.name not in self.values for a in aliases(dict.fromkeys(inside, body.order()))):
            stack = list(substitute_stack)
            return original(f, init, xs, length, reverse, rng_key=rng_key, substitute_stack=stack, **options)
        last, (trace, ys) = body.run(self.values)
        align_steps(trace.trace)
        return (steps, rng_key, last), (trace, ys)


def _refuse_inside(trace: Mapping[str, Any]) -> None:
    for site in trace.values():
        if site["type"] == "param":
            raise ModelError(
                f"numpyro.param {site['name']!r} is inside scan, where NumPyro takes its initial value at every "
                "step, whatever it has been trained to; move it in front of the loop"
            )
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            raise ModelError(
                f"plate {site['name']!r} is subsampled inside scan, where its elements would differ from step to "
                "step; use the whole plate there, or subsample the data before the loop"
            )


class _Body:
    """A loop body as a jaxpr of (carry, x, step, latents of the step), and what its carry depends on."""

    def __init__(
        self,
        f: Callable,
        init: PyTree,
        xs: PyTree,
        given: Mapping[str, Array],
        steps: int,
        rng_key: KeyArray | None,
        substitute_stack: Sequence[tuple[str, Any]],
    ):
        self.xs, self.given, self.steps = xs, dict(given), steps
        init = jax.tree.map(jnp.asarray, init)
        self.init, self.carry_tree = jax.tree.flatten(init)
        self.paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_flatten_with_path(init)[0]]
        self.seen: set[str] = set()
        tree = None

        def run(carry: PyTree, x: PyTree, step: Array, latents: Mapping[str, Array]) -> list[Array]:
            nonlocal tree
            fn = at_step(f, step)
            fn = handlers.seed(fn, rng_key) if rng_key is not None else fn
            with handlers.block():
                for kind, table in substitute_stack:
                    handler = handlers.condition if kind == "condition" else handlers.substitute
                    fn = handler(fn, **{f"{kind}_fn": partial(self._value, table, latents, step)})
                with handlers.trace() as trace:
                    carry, y = fn(carry, x)
            _refuse_inside(trace)
            flat, tree = jax.tree.flatten((as_pytree(trace), y))
            return [*map(jnp.asarray, jax.tree.leaves(carry)), *flat]

        first = jax.tree.map(lambda a: jnp.asarray(a)[0], (xs, jnp.arange(steps), self.given))
        self.closed: ClosedJaxpr = jax.make_jaxpr(run)(init, *first)
        self.tree = tree
        self.used = self._dependences()

    @property
    def latents(self) -> set[str]:
        return self.seen

    def _value(self, table: Array, latents: Mapping[str, Array], step: Array, site: dict[str, Any]) -> Array:
        if (
            site["type"] == "sample"
            and isinstance(table, Mapping)
            and site["name"] in latents
            and site["name"] in table
        ):
            self.seen.add(site["name"])
            return latents[site["name"]]
        return value_at_step(table, step, self.steps, site)

    def _dependences(self) -> list[set[tuple[str, int]]]:
        """For every leaf of the carry, the carry leaves and latents that its next value depends on."""
        jaxpr: Jaxpr = self.closed.jaxpr
        counts = [len(jaxpr.constvars), len(self.init), len(jax.tree.leaves(self.xs)), 1, len(self.given)]
        starts = np.cumsum([0, *counts])
        out = []
        for leaf in range(len(self.init)):
            used = slice_outputs(jaxpr, [leaf])[1]
            carry = {("carry", i - int(starts[1])) for i in used if starts[1] <= i < starts[2]}
            latent = {("latent", i - int(starts[4])) for i in used if starts[4] <= i}
            out.append(carry | latent)
        return out

    def _free(self) -> set[int]:
        """Carry leaves that no latent of the loop reaches: counters, keys, recursions in data or global latents."""
        tainted: set[int] = set()
        while True:
            new = {j for j, used in enumerate(self.used) if any(kind == "latent" or i in tainted for kind, i in used)}
            if new == tainted:
                return set(range(len(self.used))) - tainted
            tainted = new

    def _depths(self) -> dict[int, int]:
        """How many steps back every carry leaf reads latents; leaves on a cycle are missing."""
        free = self._free()
        depth: dict[int, int] = {}
        while True:
            ready = {
                j: 1 + max([depth[i] for kind, i in used if kind == "carry" and i not in free], default=0)
                for j, used in enumerate(self.used)
                if j not in free
                and j not in depth
                and all(i in depth for kind, i in used if kind == "carry" and i not in free)
            }
            if not ready:
                return depth
            depth |= ready

    def not_markov(self) -> str:
        """What breaks the Markov property; empty where nothing does."""
        free, depth = self._free(), self._depths()
        bad = [self.paths[j] or "the carry" for j in range(len(self.used)) if j not in free and j not in depth]
        return f"carry{bad[0] if bad[0] != 'the carry' else ''} depends on its own earlier values" if bad else ""

    def order(self) -> int:
        return max(self._depths().values(), default=0)

    def run(self, values: Mapping[str, Array]) -> PyTree:
        """The last carry, and the stacked outputs of all steps."""
        free, steps = self._free(), jnp.arange(self.steps)
        own = self._free_carries(sorted(free))
        call = jaxpr_as_fun(self.closed)

        def inputs(lag: int, latents: Sequence[Array]) -> list[Array]:
            past = np.maximum(np.arange(self.steps) - lag, 0)
            return [
                *(jnp.asarray(x)[past] if lag else jnp.asarray(x) for x in jax.tree.leaves(self.xs)),
                past,
                *latents,
            ]

        names = sorted(self.given)

        def carry_at(lag: int) -> list[Array]:
            """The carry that enters step t - lag, for every t."""
            depth = self._depths()
            entering = [own.get(j) for j in range(len(self.init))]
            for j in range(len(self.init)):
                if j in free and lag:
                    entering[j] = own[j][np.maximum(np.arange(self.steps) - lag, 0)]
            if lag < max(depth.values(), default=0):
                before = carry_at(lag + 1)
                given = [values[Alias(n, lag + 1, False).name] if n in self.seen else values[n] for n in names]
                after = jax.vmap(lambda *a: call(*a)[: len(self.init)])(*before, *inputs(lag + 1, given))
                beginning = steps == lag
            else:
                after, beginning = [None] * len(self.init), None
            for j in range(len(self.init)):
                if j not in free:
                    init = jnp.broadcast_to(self.init[j], (self.steps, *self.init[j].shape))
                    if after[j] is None:
                        entering[j] = init
                    else:
                        here = beginning.reshape((-1,) + (1,) * self.init[j].ndim)
                        entering[j] = jnp.where(here, init, after[j])
            return entering

        entering = carry_at(0)
        out = jax.vmap(call)(*entering, *inputs(0, [values[n] for n in names]))
        last = self._last(values, own, free, names)
        return jax.tree.unflatten(self.carry_tree, last), jax.tree.unflatten(self.tree, out[len(self.init) :])

    def _last(
        self, values: Mapping[str, Array], own: Mapping[int, Array], free: set[int], names: Sequence[str]
    ) -> list[Array]:
        """The carry that leaves the last step."""
        call = jaxpr_as_fun(self.closed)
        carry = [
            own[j][max(self.steps - self.order(), 0)] if j in free else self.init[j] for j in range(len(self.init))
        ]
        for lag in reversed(range(min(max(self.order(), 1), self.steps))):
            step = self.steps - 1 - lag
            carry = [own[j][step] if j in free else c for j, c in enumerate(carry)]
            xs = [jnp.asarray(x)[step] for x in jax.tree.leaves(self.xs)]
            given = [
                values[Alias(n, lag, True).name] if n in self.seen and self.order() else jnp.asarray(values[n])[step]
                for n in names
            ]
            carry = call(*carry, *xs, jnp.asarray(step), *given)[: len(self.init)]
        return carry

    def _free_carries(self, leaves: Sequence[int]) -> dict[int, Array]:
        """Carry leaves that do not depend on the loop's latents, as they enter every step: [T, ...]."""
        jaxpr = self.closed.jaxpr
        handed_on = [j for j in leaves if jaxpr.outvars[j] is jaxpr.invars[j]]
        constant = {j: jnp.broadcast_to(self.init[j], (self.steps, *self.init[j].shape)) for j in handed_on}
        leaves = [j for j in leaves if j not in constant]
        if not leaves:
            return constant
        run, used = slice_outputs(jaxpr, leaves)
        consts = len(jaxpr.constvars)
        xs = [jnp.asarray(x) for x in jax.tree.leaves(self.xs)]

        def step(carry: list[Array], item: tuple[Array, list[Array]]) -> tuple[list[Array], list[Array]]:
            at, x = item
            everything: dict[int, Array] = dict(enumerate(self.closed.consts))
            everything |= {consts + j: c for j, c in zip(leaves, carry, strict=True)}
            everything |= {consts + len(self.init) + i: v for i, v in enumerate([*x, at])}
            new = run(*(everything[i] for i in used))
            return [jnp.asarray(n, c.dtype) for n, c in zip(new, carry, strict=True)], carry

        start = [self.init[j] for j in leaves]
        _, kept = jax.lax.scan(step, start, (jnp.arange(self.steps), xs))
        return constant | dict(zip(leaves, kept, strict=True))
