"""Brute force: enumerate every combination of particles and weigh it with NumPyro's own densities.

Takes the particle axes (which latents share an index, over which plates) and the particles from kayn, and nothing else:
the model's density comes from `numpyro.infer.util.log_density`, the guide's from a NumPyro trace. Cost is exponential.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.util import log_density

from kayn.axes.types import Axis
from kayn.evidence.draws import Draws
from kayn.evidence.problem import Problem
from kayn.xla.compilation import quick_options


class BruteForce:
    """All combinations of one problem's particles.

    Args:
        masks: which elements of masked latents are in the model; the others have density one in model and guide.
        subsample: indices of the subsampled plate, by its name; what latents it has are read row by row.
    """

    def __init__(
        self,
        problem: Problem,
        model: Callable,
        guide: Callable,
        args: tuple = (),
        kwargs: Mapping | None = None,
        masks: Mapping[str, np.ndarray] | None = None,
        subsample: Mapping[str, np.ndarray] | None = None,
    ):
        self.problem, self.model, self.guide = problem, model, guide
        self.args, self.kwargs, self.masks = args, dict(kwargs or {}), dict(masks or {})
        self.subsample = dict(subsample or {})
        self.axes = problem.layout.axes
        self.plate_size = {p.name: p.size for p in problem.graph.plates}

    def scope_shape(self, axis: Axis) -> tuple[int, ...]:
        return tuple(self.plate_size[p] for p in axis.scope)

    @property
    def counts(self) -> list[int]:
        """Number of particles of every independent index: one for every element of every axis, in order."""
        return [a.size for a in self.axes for _ in range(math.prod(self.scope_shape(a)))]

    @property
    def combinations(self) -> int:
        return math.prod(self.counts)

    @property
    def rows(self) -> str | None:
        """The subsampled plate."""
        return next(iter(self.subsample), None)

    @property
    def power(self) -> float:
        """How many elements a row of the subsampled plate stands for."""
        return self.problem.graph.plate(self.rows).scale

    def indices(self) -> dict[str, np.ndarray]:
        """For every axis int [combinations, *scope]."""
        flat = (
            np.stack(np.unravel_index(np.arange(self.combinations), self.counts), -1)
            if self.counts
            else np.zeros((1, 0), int)
        )
        out, start = {}, 0
        for axis in self.axes:
            shape = self.scope_shape(axis)
            stop = start + math.prod(shape)
            out[axis.name] = flat[:, start:stop].reshape((-1, *shape))
            start = stop
        return out

    def position(self, chosen: Mapping[str, np.ndarray]) -> np.ndarray:
        """Combination numbers of draws, for every axis int [S, *scope plates sorted by name]
        (as `execute.draw` returns)."""
        columns = []
        for axis in self.axes:
            order = sorted(axis.scope)
            picked = np.asarray(chosen[axis.name])
            picked = np.transpose(picked, (0, *(1 + order.index(p) for p in axis.scope)))
            columns.append(picked.reshape(len(picked), -1))
        return np.ravel_multi_index(tuple(np.concatenate(columns, 1).T), self.counts)

    def row_indices(self) -> tuple[dict[str, np.ndarray], int]:
        """As `indices`, but all rows of the subsampled plate have the same particles.

        Returns:
            the indices, and how many combinations the rows' own particles have, which vary fastest.
        """
        ordered = sorted(self.axes, key=lambda a: self.rows in a.scope)
        shapes = [tuple(self.plate_size[p] for p in a.scope if p != self.rows) for a in ordered]
        counts = [a.size for a, shape in zip(ordered, shapes, strict=True) for _ in range(math.prod(shape))]
        own = [a.size ** math.prod(shape) for a, shape in zip(ordered, shapes, strict=True) if self.rows in a.scope]
        total = math.prod(counts)
        flat = np.stack(np.unravel_index(np.arange(total), counts), -1) if counts else np.zeros((1, 0), int)
        out, start = {}, 0
        for axis, shape in zip(ordered, shapes, strict=True):
            stop = start + math.prod(shape)
            index = flat[:, start:stop].reshape((-1, *shape))
            if self.rows in axis.scope:
                index = np.expand_dims(index, 1 + axis.scope.index(self.rows))
            out[axis.name] = np.broadcast_to(index, (total, *self.scope_shape(axis)))
            start = stop
        return out, math.prod(own)

    def values(self, draws: Draws, indices: Mapping[str, np.ndarray] | None = None) -> dict[str, jnp.ndarray]:
        """The latents of every combination: [combinations, *shape]."""
        out = {}
        indices = self.indices() if indices is None else indices
        for axis in self.axes:
            for name in axis.latents:
                latent = self.problem.graph.latent(name)
                dims = dict(latent.plates)
                order = sorted(axis.scope, key=dims.__getitem__)
                index = np.transpose(indices[axis.name], (0, *(1 + axis.scope.index(p) for p in order)))
                shape = [latent.shape[d] if any(dims[p] == d for p in order) else 1 for d in range(len(latent.shape))]
                index = index.reshape((-1, *shape))
                grid = [
                    np.arange(s).reshape([-1 if i == d else 1 for i in range(1 + len(latent.shape))])
                    for d, s in enumerate(latent.shape, 1)
                ]
                out[name] = jnp.asarray(draws.values[name])[(index, *grid)]
        return out

    def log_joint(self, draws: Draws, params: Mapping) -> jnp.ndarray:
        """NumPyro's log density of model and data for every combination: [combinations]."""

        def one(values: Mapping) -> jnp.ndarray:
            return log_density(self.model, self.args, self.kwargs, {**params, **values, **self.subsample})[0]

        return jax.vmap(one)(self.values(draws))

    def log_joint_by_row(
        self, draws: Draws, params: Mapping, indices: Mapping[str, np.ndarray]
    ) -> tuple[jnp.ndarray, jnp.ndarray]:
        """What no row of a subsample owns, [combinations], and what each does, counted once, [combinations, rows]."""
        size = self.plate_size[self.rows]

        def one(values: Mapping) -> tuple:
            program = handlers.substitute(self.model, data={**params, **values, **self.subsample})
            trace = handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace(*self.args, **self.kwargs)
            rest, by_row = jnp.zeros(()), jnp.zeros(size)
            for site in trace.values():
                if site["type"] != "sample":
                    continue
                scale = 1.0 if site["scale"] is None else site["scale"]
                log_p = scale * site["fn"].log_prob(site["value"])
                dim = next((f.dim for f in site["cond_indep_stack"] if f.name == self.rows), None)
                if dim is None:
                    rest = rest + log_p.sum()
                else:
                    own = jnp.moveaxis(log_p, dim, -1) / self.power
                    by_row = by_row + own.sum(tuple(range(own.ndim - 1)))
            return rest, by_row

        return jax.vmap(one)(self.values(draws, indices))

    def log_proposal(self, axis: Axis, draws: Draws, params: Mapping, denominator: str | None = None) -> jnp.ndarray:
        """log of the mixture over the guide parents' particles, one index for all parents: [*scope, K]."""
        denominator = denominator or self.problem.denominator

        def densities(own: Mapping, others: Mapping) -> jnp.ndarray:
            program = handlers.substitute(self.guide, data={**params, **others, **own, **self.subsample})
            trace = handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace(*self.args, **self.kwargs)
            return sum(
                self._on_scope(axis, name, trace[name]["fn"].log_prob(trace[name]["value"])) for name in axis.latents
            )

        runs = {n: v[: axis.size] for n, v in draws.runs.items()}
        own = {n: v for n, v in runs.items() if n in axis.latents}
        others = {n: v for n, v in runs.items() if n not in axis.latents}
        if denominator == "paired" or not others:
            return jax.vmap(densities, out_axes=-1)(own, others)
        mixed = jax.vmap(jax.vmap(densities, (None, 0), -1), (0, None), -2)(own, others)
        return jax.nn.logsumexp(mixed, -1) - math.log(axis.size)

    def _on_scope(self, axis: Axis, name: str, log_q: jnp.ndarray) -> jnp.ndarray:
        latent = self.problem.graph.latent(name)
        dims = dict(latent.plates)
        assert log_q.ndim >= latent.batch_ndim or not axis.scope, "the guide is not elementwise"
        log_q = log_q.sum(tuple(range(latent.batch_ndim, log_q.ndim)))
        if name in self.masks:
            log_q = jnp.where(self.masks[name], log_q, 0.0)
        if self.rows in dims and self.rows not in axis.scope:
            # its particles are all the rows', each of which stands for several elements
            log_q = self.power * log_q
        return self._over(axis, name, log_q)

    def _over(self, axis: Axis, name: str, array: jnp.ndarray) -> jnp.ndarray:
        """Sums of a latent's elements over the plates of an axis's scope, in their order."""
        dims = dict(self.problem.graph.latent(name).plates)
        kept = [dims[p] for p in axis.scope]
        summed = array.sum(tuple(d for d in range(array.ndim) if d not in kept))
        return jnp.transpose(summed, np.argsort(np.argsort(kept)))

    def log_weights(self, draws: Draws, params: Mapping) -> jnp.ndarray:
        """log of each combination's share of Z: [combinations].
        Latents have no index of their own over a subsampled plate."""
        return self.log_joint(draws, params) + self.log_proposals(draws, params)

    def log_proposals(self, draws: Draws, params: Mapping, shared: Mapping | None = None) -> jnp.ndarray:
        """Minus what combinations are divided by: [combinations]."""
        indices = self.indices()
        total = jnp.zeros(())
        for axis in self.axes:
            terms = self._divided(axis, draws, params if shared is None else shared, indices[axis.name])
            total = total + terms.reshape(len(terms), -1).sum(-1)
        return total

    def _divided(self, axis: Axis, draws: Draws, params: Mapping, index: np.ndarray) -> jnp.ndarray:
        """Minus log (K q) of the particles that are chosen: [combinations, *scope]."""
        if axis.enumerated:
            # values of an element that is nowhere in the model are averaged
            gone = [self._over(axis, n, ~self.masks[n]) for n in axis.latents if n in self.masks]
            return -np.log(axis.size) * jnp.broadcast_to(sum(gone, jnp.zeros(())), index.shape)
        log_q = self.log_proposal(axis, draws, params) + math.log(axis.size)
        shape = self.scope_shape(axis)
        grid = [
            np.arange(s).reshape([-1 if i == d else 1 for i in range(1 + len(shape))]) for d, s in enumerate(shape, 1)
        ]
        return -jnp.asarray(log_q)[(*grid, index)]

    def log_evidence(self, draws: Draws, params: Mapping, shared: Mapping | None = None) -> jnp.ndarray:
        """log Z.

        Args:
            shared: parameters of the guide's densities, if they are others.
        """
        if self.rows is not None:
            return self._log_evidence_by_row(draws, params, params if shared is None else shared)
        return jax.nn.logsumexp(self.log_joint(draws, params) + self.log_proposals(draws, params, shared))

    def _log_evidence_by_row(self, draws: Draws, params: Mapping, shared: Mapping) -> jnp.ndarray:
        """Every row's own evidence to the power of the elements it stands for, within the sum over what is shared."""
        indices, own = self.row_indices()
        rest, by_row = self.log_joint_by_row(draws, params, indices)
        for axis in self.axes:
            terms = self._divided(axis, draws, shared, indices[axis.name])
            if self.rows in axis.scope:
                terms = jnp.moveaxis(terms, 1 + axis.scope.index(self.rows), -1)
                by_row = by_row + terms.sum(tuple(range(1, terms.ndim - 1)))
            else:
                rest = rest + terms.reshape(len(terms), -1).sum(-1)
        by_row = by_row.reshape((-1, own, by_row.shape[-1]))
        within = self.power * jax.nn.logsumexp(by_row, 1).sum(-1)
        return jax.nn.logsumexp(rest.reshape(-1, own)[:, 0] + within)

    def probabilities_of(self, draws: Draws, params: Mapping) -> jnp.ndarray:
        """The share of every combination in Z: [combinations]."""
        return jax.nn.softmax(self.log_weights(draws, params))

    def probabilities(self, draws: Draws, params: Mapping) -> np.ndarray:
        return np.asarray(self.probabilities_of(draws, params))

    def marginals(self, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """For every axis [*scope, K]."""
        return {
            a.name: np.moveaxis(
                np.stack([np.tensordot(probabilities, self.indices()[a.name] == k, 1) for k in range(a.size)]), 0, -1
            )
            for a in self.axes
        }

    def expectation(self, probabilities: np.ndarray, draws: Draws, function: Callable, *names: str) -> np.ndarray:
        values = self.values(draws)
        found = np.asarray(jax.vmap(function)(*(values[n] for n in names)))
        return np.tensordot(probabilities, found, 1)


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} | (quick_options() or {})
"""Compiler options for tests: programs that run once are better compiled fast than made fast."""


@contextmanager
def as_users_compile() -> Iterator[None]:
    """Optimised as users have it, whatever the suite asks for (`tests/conftest.py`)."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def everything(oracle: BruteForce, draws: Draws, params: Mapping) -> tuple:
    """log weights of all combinations, log evidence and its gradient in the parameters."""

    def log_z(params: Mapping) -> tuple:
        log_weights = oracle.log_weights(draws, params)
        return jax.nn.logsumexp(log_weights), log_weights

    (value, log_weights), gradient = jax.value_and_grad(log_z, has_aux=True)(params)
    return log_weights, value, gradient


def elements_read(
    model: Callable, given: Mapping, counted: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Which elements whose own density does not count change NumPyro's density of a model all the same: bool by latent.

    (Of those whose own density counts nothing is known: one that is uniform never changes it.)

    Args:
        given: parameters and subsamples.
        counted: which elements of some latents count themselves.
        values: [points, *shape] of every latent; every element is tried at all of them.
    """

    @partial(jax.jit, compiler_options=QUICK)
    def density(values: Mapping) -> jnp.ndarray:
        return jax.vmap(lambda v: log_density(model, (), {}, {**given, **v})[0])(values)

    here, out = density(dict(values)), {}
    for name, mask in counted.items():
        found = np.zeros(mask.shape, bool)
        for element in np.argwhere(~mask):
            other, at = np.array(values[name]), (slice(None), *element)
            # another value of the element: of integers 0 and 1, or of whatever is positive or real
            other[at] = 1 - np.minimum(other[at], 1) if other.dtype.kind == "i" else 0.5 * other[at] + 0.1
            found[tuple(element)] = not np.array_equal(here, density({**values, name: other}))
        out[name] = found
    return out
