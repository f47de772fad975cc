"""The NumPyro programs that descriptions of random models stand for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.reparam import LocScaleReparam

from tests.laws.structures import PREFIX, ROWS, Read, SiteSpec, Structure


@dataclass(frozen=True)
class Spec(Structure):
    """A description that runs."""

    def model(self) -> None:
        self._handled(self.missing)()

    def clean_model(self) -> None:
        """The same with numbers wherever data are missing, for derivatives of NumPyro's densities."""
        self._handled(broken=False)()

    def guide(self) -> None:
        run = handlers.scope(self._guide, PREFIX) if "scope" in self.handlers else self._guide
        run()

    def _handled(self, broken: bool) -> Callable:
        given = {self.written(s.name): jnp.asarray(self.constant(s)) for s in self.sites if s.fixed == "condition"}
        if "condition" in self.handlers:
            given |= {self.written(s.name): self.data(s, broken) for s in self.sites if self._told(s)}
        held = {self.written(s.name): jnp.asarray(self.constant(s)) for s in self.sites if s.fixed == "substitute"}
        if "substitute" in self.handlers:
            held[self.written("theta")] = 0.1
        model = handlers.condition(lambda: self._model(broken), given) if given else lambda: self._model(broken)
        model = handlers.substitute(model, data=held) if held else model
        for name in self.handlers:
            match name:
                case "scale":
                    model = handlers.scale(model, 0.8)
                case "seed":
                    model = handlers.seed(model, 3)
                case "block":
                    model = handlers.block(model, hide=[self.written("det")])
                case "reparam":
                    moved = {self.written(s.name): LocScaleReparam(0.0) for s in self.sites if self.moved(s)}
                    model = handlers.reparam(model, config=moved)
        return handlers.scope(model, PREFIX) if "scope" in self.handlers else model

    def _told(self, site: SiteSpec) -> bool:
        """Whether data come by a handler: of the sites without rows that are left out."""
        return site.observed and site.family == "normal" and not (self.rows and ROWS in site.home)

    def _model(self, broken: bool) -> None:
        run = _Run(self)
        theta = numpyro.param(self.written("theta"), 0.3)
        values: dict[str, Any] = {}
        for position, site in enumerate(self.sites):
            signal = run.signal(values, site, site.reads, 0.1 * position) + (theta if site.observed else 0.0)
            if site.steps:
                values[site.name] = self._chain(run, site, signal)
                continue
            with run.context(site):
                if site.family == "factor":
                    # broadcast by the plates, as a potential of every row
                    numpyro.factor(self.written(site.name), jnp.broadcast_to(-0.2 * signal**2, run.shape(site.home)))
                    continue
                fn = run.distribution(site, signal)
                obs = None
                if site.observed and not ("condition" in self.handlers and self._told(site)):
                    obs = run.seen(self.data(site, broken), site)
                infer = {"enumerate": "parallel"} if site.enumerate else {}
                values[site.name] = numpyro.sample(self.written(site.name), fn, obs=obs, infer=infer)
            if position == 0 and "block" in self.handlers:
                values[site.name] = numpyro.deterministic(self.written("det"), 1.0 * values[site.name])

    def _chain(self, run: _Run, site: SiteSpec, signal: Any) -> Any:
        def step(state: Any, now: Any) -> Any:
            with run.context(site):
                infer = {"enumerate": "parallel"} if site.enumerate else {}
                fn = run.distribution(site, 0.7 * state + signal)
                state = jnp.asarray(numpyro.sample(self.written(site.name), fn, infer=infer), state.dtype)
                numpyro.sample(self.written(f"{site.name}_y"), dist.Normal(0.8 * state - 0.2, 0.9), obs=now)
            return state, state

        data = jnp.asarray(self.chain_data(site), jnp.result_type(float))
        return scan(step, jnp.zeros(data.shape[1:], data.dtype), data)[1]

    def _guide(self) -> None:
        run = _Run(self)
        values: dict[str, Any] = {}
        reads = dict(self.guide_reads)
        hidden = 0.0
        if self.auxiliary:
            hidden = numpyro.sample(self.written("hidden"), dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        for site in self.sites:
            if not site.drawn:
                continue
            shape = self.chain_shape(site) if site.steps else self.shape(site.home)
            start = run.seen(numpyro.param(self.written(f"{site.name}_q"), jnp.zeros(shape)), site)
            signal = start + run.signal(values, site, reads.get(site.name, ()), 0.0, select=False)
            signal = signal + (0.5 * hidden if site.name in self.auxiliary else 0.0)
            name = self.written(site.name) + ("_decentered" if self.moved(site) else "")
            if site.steps:
                self._guide_chain(run, site, signal)
                continue
            with run.context(site, wrapped=False):
                values[site.name] = numpyro.sample(name, run.distribution(site, signal))

    def _guide_chain(self, run: _Run, site: SiteSpec, signal: Any) -> None:
        name = self.written(site.name)
        if site.guided_by_loop:

            def step(carry: Any, now: Any) -> Any:
                with run.context(site, wrapped=False):
                    numpyro.sample(name, run.distribution(site, now))
                return carry, None

            scan(step, 0.0, signal)
            return
        with (
            numpyro.plate(self.written("steps"), site.steps, dim=-1 - len(signal.shape[1:])),
            run.context(site, wrapped=False),
        ):
            numpyro.sample(name, run.distribution(site, signal))


class _Run:
    """One run of a program: its plates, entered as often as sites need them, and how sites read each other."""

    def __init__(self, spec: Spec):
        self.spec, self.plates = spec, {}
        rows = spec.rows
        self.chosen: Any = None
        if rows is not None:
            self._plate(rows.name)
            with self.plates[rows.name] as self.chosen:
                pass

    def _plate(self, name: str) -> Any:
        if name not in self.plates:
            p = self.spec.plate(name)
            part = p.size if p.whole > p.size else None
            self.plates[name] = numpyro.plate(self.spec.written(name), p.elements, part, dim=p.dim)
        return self.plates[name]

    def context(self, site: SiteSpec, wrapped: bool = True) -> ExitStack:
        stack = ExitStack()
        for name in site.home:
            if self.spec.plate(name).declared:
                stack.enter_context(self._plate(name))
        if wrapped and site.wrap == "mask":
            stack.enter_context(handlers.mask(mask=self.seen(self.spec.mask(site), site)))
        if wrapped and site.wrap == "scale":
            stack.enter_context(handlers.scale(scale=0.7))
        return stack

    def shape(self, home: tuple[str, ...]) -> tuple[int, ...]:
        dims = {self.spec.plate(p).dim: self.spec.plate(p).size for p in home}
        return tuple(dims.get(d, 1) for d in range(min(dims, default=0), 0))

    def seen(self, values: Any, site: SiteSpec) -> Any:
        """The elements of a site's numbers that the subsample has."""
        if self.chosen is None or ROWS not in site.home:
            return values
        axis = len(self.spec.shape(site.home)) + self.spec.plate(ROWS).dim
        return jnp.take(jnp.asarray(values), self.chosen, axis)

    def signal(
        self, values: Mapping[str, Any], site: SiteSpec, reads: tuple[Read, ...], start: Any, select: bool = True
    ) -> Any:
        total = sum((0.5 * self.read(values, r, site.home) for r in reads), start)
        if select and site.select is not None:
            which, table = site.select
            array = jnp.asarray(values[table], jnp.result_type(float))
            position = jnp.asarray(values[which], int).reshape(())
            total = total + 0.5 * array[jnp.clip(position, 0, array.shape[0] - 1)]
        return total

    def distribution(self, site: SiteSpec, signal: Any) -> dist.Distribution:
        signal = jnp.asarray(signal, jnp.result_type(float))
        if any(not self.spec.plate(p).declared for p in site.home):
            signal = jnp.broadcast_to(signal, jnp.broadcast_shapes(jnp.shape(signal), self.shape(site.home)))
        match site.family:
            case "normal":
                return dist.Normal(signal, jnp.exp(0.3 * jnp.tanh(signal)))
            case "student":
                return dist.StudentT(5.0, signal, 0.8)
            case "gamma":
                return dist.Gamma(2.0, jnp.exp(0.3 * jnp.tanh(signal)))
            case "mvn":
                scale = jnp.asarray(np.array([[1.0, 0.0], [0.5, 0.8]]), signal.dtype)
                return dist.MultivariateNormal(jnp.stack([signal, -signal], -1), scale_tril=scale)
            case "event":
                fn = dist.Normal(signal[..., None] * jnp.asarray([1.0, -0.5]), 1.0)
                if site.wrap == "part":
                    mask = self.seen(self.spec.mask(site), site)
                    fn = fn.expand(jnp.broadcast_shapes(fn.batch_shape, mask.shape)).mask(mask)
                return fn.to_event(1)
            case "bernoulli":
                return dist.Bernoulli(logits=signal)
            case "categorical":
                return dist.Categorical(logits=jnp.stack([signal, jnp.zeros_like(signal), -0.5 * signal], -1))
            case "poisson":
                return dist.Poisson(jnp.exp(1.5 * jnp.tanh(signal / 1.5)))
        raise AssertionError(site.family)

    def read(self, values: Mapping[str, Any], read: Read, home: tuple[str, ...]) -> Any:
        """The value of `read.source`, broadcastable over the plates of `home`."""
        spec, source = self.spec, self.spec.site(read.source)
        value = jnp.asarray(values[read.source], jnp.result_type(float))
        if source.family in ("mvn", "event"):
            value = value[..., 0] - 0.3 * value[..., 1] if source.family == "mvn" else value.sum(-1)
        how = dict(read.how)
        rank = -min((spec.plate(p).dim for p in home), default=0)
        by_dim = {spec.plate(p).dim: p for p in source.home}
        for dim, plate in by_dim.items():
            if how[plate] == "sum":
                value = value.sum(dim, keepdims=True)
        if not read.gather and all(h in ("aligned", "sum") for h in how.values()):
            return value.reshape(value.shape[max(value.ndim - rank, 0) :])

        def along(vector: Any, plate: str) -> Any:
            dim = spec.plate(plate).dim
            return vector.reshape([-1 if d == dim else 1 for d in range(-rank, 0)])

        index: list[Any] = []
        for dim in range(-value.ndim, 0):
            plate = by_dim.get(dim)
            mode = "sum" if plate is None else how[plate]
            if mode in ("sum", "first"):
                index.append(0)
            elif mode in ("aligned", "flip"):
                vector = np.arange(spec.plate(plate).size)
                index.append(along(vector if mode == "aligned" else vector[::-1], plate))
            else:
                subsampled = mode[0] == ROWS and self.chosen is not None
                vector = self.chosen if subsampled else np.arange(spec.plate(mode[0]).size)
                for a, b in itertools.pairwise(mode):
                    table = spec.index(a, b)
                    vector = jnp.asarray(table)[vector] if subsampled else table[vector]
                index.append(along(vector, mode[0]))
        return value[tuple(index)]
