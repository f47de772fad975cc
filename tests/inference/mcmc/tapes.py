"""A pass of a sweep with its random choices as inputs, so that all of them can be gone through."""

import contextlib
import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

from kayn.axes.types import proposal_name
from kayn.evidence.queries import take_latent

STEPS = (-1.0, 0.0, 1.0)
STEP_PROBABILITIES = (0.25, 0.5, 0.25)
"""What stands for a Normal: a symmetric law on three whole numbers."""
AT_ONCE = 4096


class Tape:
    """Choices that are read one after the other, and the probability of what has been read.

    Attributes:
        options: how many there were at each choice.
    """

    def __init__(self, choices=None):
        self.choices, self.options, self.log_probability = choices, [], 0.0

    def choose(self, logits):
        """One of the options along the last dimension of normalised logits, for every entry of the others."""
        logits = jnp.asarray(logits)
        flat = logits.reshape(-1, logits.shape[-1])
        first = len(self.options)
        self.options += [logits.shape[-1]] * len(flat)
        if self.choices is None:
            return jnp.zeros(logits.shape[:-1], int)
        chosen = self.choices[first : first + len(flat)]
        self.log_probability += jnp.take_along_axis(flat, chosen[:, None], 1).sum()
        return chosen.reshape(logits.shape[:-1])

    def normal(self, key, shape, dtype=float):
        """In the place of `jax.random.normal`: steps of one, as particles are placed with a scale of one."""
        chosen = self.choose(jnp.broadcast_to(jnp.log(jnp.array(STEP_PROBABILITIES)), (*shape, len(STEPS))))
        return jnp.sqrt(2.0) * jnp.array(STEPS)[chosen]

    def randint(self, key, shape, low, high):
        """In the place of `jax.random.randint`."""
        return low + self.choose(jnp.full((*shape, high - low), -jnp.log(high - low)))

    def categorical(self, key, logits):
        """In the place of `jax.random.categorical`."""
        return self.choose(jax.nn.log_softmax(logits, -1))

    def draw_sites(self, guide, args, count, values):
        """In the place of draws from a guide whose sites have the values `values`."""

        def draws(names):
            def draw(key, known):
                out = {}
                for name in names:

                    def logits(own, name=name):
                        traced = handlers.trace(handlers.seed(handlers.substitute(guide, data=own), 0))
                        fn = traced.get_trace(*args)[name]["fn"]
                        each = [fn.log_prob(jnp.full(fn.batch_shape, v)) for v in values]
                        return jnp.stack(each, -1)

                    chosen = self.choose(jax.vmap(logits, axis_size=count)({**known, **out}))
                    out[name] = jnp.array(values)[chosen]
                return out

            return draw

        return draws


def transitions(kernel, states, values, guide=None, args=()):
    """The transition matrix of the passes of a sweep, by enumeration.

    Args:
        states: all of them, by latent [S, *shape]; each element of a latent has one of `values`.
    """
    whole = np.eye(len(next(iter(states.values()))))
    for index, one in enumerate(kernel.passes):

        def weighed(tape, state, index=index):
            own = replace(kernel, draw_sites=tape.draw_sites(guide, args, kernel.count, values)) if guide else kernel
            places, _, found = own.weighed(index, state, kernel.first_tuning(state), jax.random.key(0))
            return places, found

        whole = whole @ _matrix(one, weighed, states, values)
    return whole


def along(kernel, lines, states, values):
    """The transition matrix of a step along each line, as `transitions`."""
    whole = np.eye(len(next(iter(states.values()))))
    ones = {n: jnp.ones(v.shape[1:]) for n, v in states.items()}
    for line in lines:

        def weighed(tape, state, line=line):
            return kernel.lines.weighed(line, state, ones, jax.random.key(0))

        whole = whole @ _matrix(kernel.lines.one, weighed, states, values)
    return whole


def _matrix(one, weighed, states, values):
    row = _row_of(one, weighed, {n: v[0] for n, v in states.items()}, values)
    size = len(next(iter(states.values())))
    return np.array([row({n: v[s] for n, v in states.items()}) for s in range(size)])


def _row_of(one, weighed, state, values):
    """A function of a state that gives the probabilities of all states after a pass.

    Args:
        weighed: particles and weights, of a tape and a state.
    """
    names = one.problem.graph.latent_names

    def run(tape, state):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("normal", "randint", "categorical"):
                patch.setattr(jax.random, name, getattr(tape, name))
            return weighed(tape, state)

    record = Tape()
    jax.eval_shape(lambda s: jnp.zeros(()) * 0.0 if run(record, s) else 0.0, state)
    layout = one.problem.layout
    shapes = {a.name: tuple(layout.plan.size[p] for p in sorted(a.scope)) for a in layout.axes}
    counts = [(a, range(a.size)) for a in layout.axes for _ in range(int(np.prod(shapes[a.name], dtype=int)))]
    combinations = np.array(list(itertools.product(*(c for _, c in counts))))
    terms = [t.name for t in layout.plan.terms]

    def one_tape(choices, state):
        tape = Tape(choices)
        places, found = run(tape, state)

        def one_combination(flat):
            own, after, first = {}, dict(state), 0
            for a in layout.axes:
                number = int(np.prod(shapes[a.name], dtype=int))
                chosen = flat[first : first + number].reshape(shapes[a.name])
                first += number
                slot = terms.index(proposal_name(a))
                aligned = jnp.transpose(chosen, [sorted(a.scope).index(p) for p in a.scope])
                mask = jnp.arange(a.size) == aligned[..., None]
                own[slot] = jnp.where(mask, found[slot], -jnp.inf)
                after |= {n: take_latent(one.problem, n, places[n], chosen) for n in a.latents if n in one.free}
            place = jnp.concatenate([jnp.ravel(after[n]) for n in names])
            digits = jnp.searchsorted(jnp.array(values), place)
            return found.log_evidence(own), digits @ len(values) ** jnp.arange(len(place))[::-1]

        logs, ends = jax.vmap(one_combination)(combinations)
        shares = jnp.exp(tape.log_probability) * jax.nn.softmax(logs)
        size = len(values) ** sum(jnp.size(state[n]) for n in names)
        return jnp.zeros(size).at[ends].add(jnp.where(jnp.isfinite(logs), shares, 0.0))

    grid = np.indices(record.options).reshape(len(record.options), -1).T if record.options else np.zeros((1, 0), int)
    many = jax.jit(lambda choices, state: jax.vmap(partial(one_tape, state=state))(choices).sum(0))
    parts = [jnp.asarray(part) for part in np.split(grid, range(AT_ONCE, len(grid), AT_ONCE))]
    return lambda state: np.sum([many(part, state) for part in parts], 0)


def all_states(shapes, values):
    """All states, by latent [S, *shape], in the order that `transitions` numbers them in."""
    sizes = [int(np.prod(s, dtype=int)) for s in shapes.values()]
    flat = np.array(list(itertools.product(values, repeat=sum(sizes))))
    parts = np.split(flat, np.cumsum(sizes)[:-1], 1)
    return {n: jnp.asarray(p.reshape(-1, *s)) for (n, s), p in zip(shapes.items(), parts, strict=True)}


def posterior_of(model, args, states):
    """The posterior's probabilities of all states."""
    logs = jax.vmap(lambda state: log_density(model, args, {}, state)[0])(states)
    return np.asarray(jax.nn.softmax(logs))


@contextlib.contextmanager
def precise():
    """Float64."""
    with jax.enable_x64(True):
        yield
