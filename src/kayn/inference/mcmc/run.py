"""Chains of sweeps, run at once on one device: for as long as was asked, or until they meet the targets."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from kayn.inference.mcmc.kernel import MPGibbs
from kayn.inference.mcmc.prepare import Prepared
from kayn.inference.mcmc.state import GibbsState
from kayn.posterior import mixing
from kayn.posterior.call import Call
from kayn.posterior.chains import Chains
from kayn.support.arrays import Array, KeyArray
from kayn.xla.jit import QuickJit

CHUNK = 50
"""Sweeps that are done at a time."""
WARMUP, FIRST = 500, 500
"""Sweeps of warm-up and draws, at first, where targets say when to end."""
LEAST = 100
"""Sweeps of warm-up that there are however long they take."""
APART = 1.1
"""R-hat above which warm-up was too short: what was drawn becomes part of it, as long as half of the time is left."""
KEPT = 2000
"""Draws of each chain from which on every other one is kept."""


@dataclass(eq=False)
class Run:
    """Chains on their way.

    Attributes:
        begun: when, in seconds.
        draws: values of latents of each chunk: [chains, draws, *shape].
        thinning: sweeps for each draw that is kept.
    """

    kernel: MPGibbs
    call: Call
    state: GibbsState
    begun: float
    draws: list[dict[str, np.ndarray]] = field(default_factory=list)
    thinning: int = 1

    @staticmethod
    def begin(kernel: MPGibbs, call: Call, num_chains: int, num_warmup: int, key: KeyArray) -> Run:
        """Chains at their starts.

        Raises:
            KaynError: no kernel supports the model, or no start has any weight.
        """
        begun = time.perf_counter()
        state = kernel.init(jax.random.split(key, num_chains), num_warmup, None, call.args, call.kwargs)
        return Run(kernel, call, state, begun)

    def __post_init__(self) -> None:
        """Make what does a number of sweeps, compiled when it is first called."""

        def sweeps(state: GibbsState) -> tuple[GibbsState, dict[str, Array]]:
            def one(state: GibbsState, _: None) -> tuple[GibbsState, dict[str, Array]]:
                state = self.kernel.sample(state, self.call.args, self.call.kwargs)
                return state, state.z

            state, z = jax.lax.scan(one, state, None, length=CHUNK)
            return state, {n: jnp.moveaxis(v, 0, 1) for n, v in self.ready.kernel.values(z).items()}

        self._advance = QuickJit(sweeps)

    @property
    def ready(self) -> Prepared:
        """The model, ready to be sampled."""
        return self.kernel.prepared(self.call.args, self.call.kwargs)

    @property
    def seconds(self) -> float:
        """Since the beginning; where targets say when to end, since the first sweeps, which compile."""
        return time.perf_counter() - self.begun

    def advance(self, count: int, until: float | None = None) -> bool:
        """Do so many sweeps, rounded up; whether there was time for all of them."""
        for done in range(0, count, CHUNK):
            if done and until is not None and self.seconds > until:
                return False
            self.state, values = self._advance(self.state)
            self.draws.append({n: np.asarray(v)[:, :: self.thinning] for n, v in values.items()})
        return True

    def drawn(self) -> dict[str, np.ndarray]:
        """All draws so far."""
        return {n: np.concatenate([d[n] for d in self.draws], 1) for n in self.draws[0]}

    @property
    def count(self) -> int:
        """Draws of each chain that are kept."""
        return sum(next(iter(d.values())).shape[1] for d in self.draws)

    def forget(self, more: int = 0) -> None:
        """Nothing is drawn yet; steps are learnt for so many sweeps more."""
        self.draws, self.thinning = [], 1
        self.state = self.state._replace(num_warmup=self.state.i + more)

    def thin(self) -> None:
        """Keep every other draw, where they are many."""
        while self.count > KEPT and self.thinning < CHUNK // 2:
            self.thinning *= 2
            self.draws = [{n: v[:, ::2] for n, v in d.items()} for d in self.draws]

    def posterior(self, draws: dict[str, np.ndarray], course: str) -> Chains:
        """A posterior of draws, and how they came about in words."""
        jax.effects_barrier()  # all warnings have been given
        ready = self.ready
        return Chains.of(ready.held, self.call, dict(ready.kernel.params), draws, course=course)


def run_chains(
    kernel: MPGibbs, call: Call, num_samples: int, num_chains: int, num_warmup: int, key: KeyArray
) -> Chains:
    """Sample for so long with several chains."""
    run = Run.begin(kernel, call, num_chains, num_warmup, key)
    run.advance(num_warmup + num_samples)
    draws = {n: v[:, num_warmup : num_warmup + num_samples] for n, v in run.drawn().items()}
    return run.posterior(draws, f" after {num_warmup} sweeps of warm-up")


def run_until_mixed(
    kernel: MPGibbs,
    call: Call,
    max_seconds: float,
    key: KeyArray,
    num_chains: int = 4,
) -> Chains:
    """Sample until chains meet the targets of `kayn.posterior.mixing`, or the time is over."""
    run = Run.begin(kernel, call, num_chains, WARMUP, key)
    run.advance(CHUNK)
    # what was compiled for the first sweeps is no sign of how long others take
    run.begun = time.perf_counter()
    run.advance(LEAST - CHUNK)
    run.advance(WARMUP - LEAST, max_seconds / 3)
    run.forget()
    count = FIRST
    while True:
        in_time = run.advance(count, max_seconds)
        found = mixing.worst(run.drawn())
        if not in_time or run.seconds > max_seconds or not mixing.missed(found):
            break
        if max(v[0] for v in found.values()) > APART and run.seconds < max_seconds / 2:
            run.forget(count)
            run.advance(count, max_seconds / 2)
            run.forget()
        else:
            # twice as many as there are
            count = max(FIRST, run.count * run.thinning)
            run.thin()
    sweeps = int(np.max(np.asarray(run.state.i)))
    course = f" from {sweeps} sweeps in {run.seconds:.0f} s after compiling"
    return run.posterior(run.drawn(), course)
