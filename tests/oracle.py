"""Brute force: enumerate every combination of particles and weigh it with NumPyro's own densities.

Takes the particle axes (which latents share an index, over which plates) and the particles from kayn, and nothing else: the
model's density comes from `numpyro.infer.util.log_density`, the guide's from a NumPyro trace. Cost is exponential.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.util import log_density

from kayn.axes import Axis
from kayn.compilation import quick_options
from kayn.evidence import Draws, Problem


class BruteForce:
    """All combinations of one problem's particles.

    Args:
        masks: masks of latent sites that the model masks; masked elements have density one in model and guide.
    """

    def __init__(
        self,
        problem: Problem,
        model: Callable,
        guide: Callable,
        args: tuple = (),
        kwargs: Mapping | None = None,
        masks: Mapping[str, np.ndarray] | None = None,
    ):
        self.problem, self.model, self.guide = problem, model, guide
        self.args, self.kwargs, self.masks = args, dict(kwargs or {}), dict(masks or {})
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
        """Combination numbers of draws, each int [S, *scope plates sorted by name] for every axis (as `execute.draw` returns)."""
        columns = []
        for axis in self.axes:
            order = sorted(axis.scope)
            picked = np.asarray(chosen[axis.name])
            picked = np.transpose(picked, (0, *(1 + order.index(p) for p in axis.scope)))
            columns.append(picked.reshape(len(picked), -1))
        return np.ravel_multi_index(tuple(np.concatenate(columns, 1).T), self.counts)

    def values(self, draws: Draws) -> dict[str, jnp.ndarray]:
        """The latents of every combination: [combinations, *shape]."""
        out, indices = {}, self.indices()
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
                out[name] = draws.values[name][(index, *grid)]
        return out

    def log_joint(self, draws: Draws, params: Mapping) -> jnp.ndarray:
        """NumPyro's log density of model and data for every combination: [combinations]."""

        def one(values: Mapping) -> jnp.ndarray:
            return log_density(self.model, self.args, self.kwargs, {**params, **values})[0]

        return jax.vmap(one)(self.values(draws))

    def log_proposal(self, axis: Axis, draws: Draws, params: Mapping) -> jnp.ndarray:
        """log of the mixture over the guide parents' particles, one index for all parents: [*scope, K]."""

        def densities(own: Mapping, others: Mapping) -> jnp.ndarray:
            program = handlers.substitute(self.guide, data={**params, **others, **own})
            trace = handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace(*self.args, **self.kwargs)
            return sum(
                self._on_scope(axis, name, trace[name]["fn"].log_prob(trace[name]["value"])) for name in axis.latents
            )

        runs = {n: v[: axis.size] for n, v in draws.runs.items()}
        own = {n: v for n, v in runs.items() if n in axis.latents}
        others = {n: v for n, v in runs.items() if n not in axis.latents}
        if self.problem.denominator == "paired" or not others:
            return jax.vmap(densities, out_axes=-1)(own, others)
        mixed = jax.vmap(jax.vmap(densities, (None, 0), -1), (0, None), -2)(own, others)
        return jax.nn.logsumexp(mixed, -1) - math.log(axis.size)

    def _on_scope(self, axis: Axis, name: str, log_q: jnp.ndarray) -> jnp.ndarray:
        latent = self.problem.graph.latent(name)
        assert log_q.ndim >= latent.batch_ndim or not axis.scope, "the guide is not elementwise"
        log_q = log_q.sum(tuple(range(latent.batch_ndim, log_q.ndim)))
        if name in self.masks:
            log_q = jnp.where(self.masks[name], log_q, 0.0)
        dims = dict(latent.plates)
        kept = [dims[p] for p in axis.scope]
        log_q = log_q.sum(tuple(d for d in range(log_q.ndim) if d not in kept))
        return jnp.transpose(log_q, np.argsort(np.argsort(kept)))

    def log_weights(self, draws: Draws, params: Mapping) -> jnp.ndarray:
        """log of each combination's share of Z: [combinations]."""
        total = self.log_joint(draws, params)
        indices = self.indices()
        for axis in self.axes:
            if axis.enumerated:
                continue
            log_q = self.log_proposal(axis, draws, params)
            shape = self.scope_shape(axis)
            grid = [
                np.arange(s).reshape([-1 if i == d else 1 for i in range(1 + len(shape))])
                for d, s in enumerate(shape, 1)
            ]
            picked = log_q[(*grid, indices[axis.name])]
            total = total - picked.reshape(len(picked), -1).sum(-1) - math.prod(shape) * math.log(axis.size)
        return total

    def log_evidence(self, draws: Draws, params: Mapping) -> jnp.ndarray:
        return jax.nn.logsumexp(self.log_weights(draws, params))

    def probabilities(self, draws: Draws, params: Mapping) -> np.ndarray:
        return np.asarray(jax.nn.softmax(self.log_weights(draws, params)))

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


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def everything(oracle: BruteForce, draws: Draws, params: Mapping) -> tuple:
    """log weights of all combinations, log evidence and its gradient in the parameters."""

    def log_z(params: Mapping) -> tuple:
        log_weights = oracle.log_weights(draws, params)
        return jax.nn.logsumexp(log_weights), log_weights

    (value, log_weights), gradient = jax.value_and_grad(log_z, has_aux=True)(params)
    return log_weights, value, gradient
