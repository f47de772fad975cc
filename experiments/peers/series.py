"""Hidden Markov models, captures and recaptures, and other time series, after NumPyro's examples."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask
from numpyro.ops.indexing import Vindex
from scipy import stats

from experiments.peers.annotators import by_classes, dirichlet, tables
from experiments.peers.cases import case, compare, fitted, states

LENGTHS = np.array([3, 2])
TONES = np.array([[[1, 0], [1, 1], [0, 1]], [[0, 0], [0, 1], [0, 0]]])
"""Two sequences of two tones, the second one step shorter: [sequences, steps, tones]."""
ROWS = [(s, t) for s in range(2) for t in range(LENGTHS[s])]
STICKY = np.array([[2.0, 1.0], [1.0, 2.0]])


def paths(values: np.ndarray) -> dict[tuple[int, int], int]:
    return dict(zip(ROWS, values, strict=True))


def steps_of(x: dict, s: int) -> list[tuple[int, int]]:
    """(before, now) of one sequence, which starts in state 0."""
    before = [0] + [x[s, t] for t in range(LENGTHS[s] - 1)]
    return list(zip(before, [x[s, t] for t in range(LENGTHS[s])], strict=True))


def moves(x: dict) -> float:
    """Log probability of the moves of all sequences, their probabilities integrated away."""
    pairs = [pair for s in range(2) for pair in steps_of(x, s)]
    return float(dirichlet(tables([n for _, n in pairs], [b for b, _ in pairs], (2, 2)), STICKY).sum())


def notes(cell: Any, cells: int) -> float:
    """Log probability of the tones, Beta(1, 2) in every cell and tone."""
    where = np.array([cell(s, t, d) for s, t in ROWS for d in range(2)])
    heard = np.array([TONES[s, t, d] for s, t in ROWS for d in range(2)])
    return float(dirichlet(tables(heard, where, (cells, 2)), [2, 1]).sum())


def hmm(kind: str, lengths: Any, tones: Any) -> None:
    """States x (and w), tones y; "pair" where y reads y a step before,
    "factorial" and "dynamic" with a second chain."""
    probs_x = numpyro.sample("probs_x", dist.Dirichlet(jnp.asarray(STICKY)).to_event(1))
    if kind != "plain":
        shape = {"pair": (2, 2, 2), "second": (2, 2), "factorial": (2, 2, 2), "tones": (2, 2)}[kind]
    else:
        shape = (2, 2)
    probs_y = numpyro.sample("probs_y", dist.Beta(1.0, 2.0).expand(shape).to_event(len(shape)))
    if kind == "factorial":
        probs_w = numpyro.sample("probs_w", dist.Dirichlet(jnp.asarray(STICKY)).to_event(1))
    marked = {"enumerate": "parallel"}

    def step(carry: Any, y: Any) -> Any:
        w, x, before, t = carry
        with numpyro.plate("sequences", 2, dim=-2), mask(mask=(t < lengths)[:, None]):
            x = numpyro.sample("x", dist.Categorical(probs_x[x]), infer=marked)
            if kind == "factorial":
                w = numpyro.sample("w", dist.Categorical(probs_w[w]), infer=marked)
            with numpyro.plate("tones", 2, dim=-1):
                tone = jnp.arange(2)
                if kind == "pair":
                    probs = Vindex(probs_y)[x, before, tone]
                elif kind == "factorial":
                    probs = Vindex(probs_y)[w, x, tone]
                else:
                    probs = Vindex(probs_y)[x, tone]
                numpyro.sample("y", dist.Bernoulli(probs), obs=y)
        return (w, x, y, t + 1), None

    start = jnp.zeros((2, 1), jnp.int32)
    scan(step, (start, start, jnp.zeros((2, 2), jnp.int32), 0), jnp.swapaxes(tones, 0, 1))


@case("examples/hmm_enum.py (model 1)", quick=True)
def hidden_states_of_masked_sequences() -> Any:
    def log_joint(values: Any) -> float:
        x = paths(values)
        return moves(x) + notes(lambda s, t, d: 2 * x[s, t] + d, 4)

    log_z, _ = by_classes(log_joint, states(*[2] * 5))
    return compare(fitted(lambda n, y: hmm("plain", n, y), LENGTHS, TONES), log_z)


@case("examples/hmm_enum.py (model 2)")
def hidden_states_and_tones_that_follow_tones() -> Any:
    def log_joint(values: Any) -> float:
        x = paths(values)
        return moves(x) + notes(lambda s, t, d: 4 * x[s, t] + 2 * (TONES[s, t - 1, d] if t else 0) + d, 8)

    log_z, _ = by_classes(log_joint, states(*[2] * 5))
    return compare(fitted(lambda n, y: hmm("pair", n, y), LENGTHS, TONES), log_z)


@case("examples/hmm_enum.py (model 3)")
def two_hidden_chains() -> Any:
    def log_joint(values: Any) -> float:
        x, w = paths(values[:5]), paths(values[5:])
        return moves(x) + moves(w) + notes(lambda s, t, d: 4 * w[s, t] + 2 * x[s, t] + d, 8)

    log_z, _ = by_classes(log_joint, states(*[2] * 10))
    return compare(fitted(lambda n, y: hmm("factorial", n, y), LENGTHS, TONES), log_z)


@case("examples/hmm_enum.py (model 4)")
def a_hidden_chain_that_reads_another() -> Any:
    def model(lengths: Any, tones: Any) -> None:
        probs_w = numpyro.sample("probs_w", dist.Dirichlet(jnp.asarray(STICKY)).to_event(1))
        probs_x = numpyro.sample("probs_x", dist.Dirichlet(jnp.asarray(STICKY)).expand([2, 2]).to_event(2))
        probs_y = numpyro.sample("probs_y", dist.Beta(1.0, 2.0).expand([2, 2, 2]).to_event(3))

        def step(carry: Any, y: Any) -> Any:
            w, x, t = carry
            with numpyro.plate("sequences", 2, dim=-2), mask(mask=(t < lengths)[:, None]):
                w = numpyro.sample("w", dist.Categorical(probs_w[w]), infer={"enumerate": "parallel"})
                x = numpyro.sample("x", dist.Categorical(Vindex(probs_x)[w, x]), infer={"enumerate": "parallel"})
                with numpyro.plate("tones", 2, dim=-1):
                    numpyro.sample("y", dist.Bernoulli(Vindex(probs_y)[w, x, jnp.arange(2)]), obs=y)
            return (w, x, t + 1), None

        start = jnp.zeros((2, 1), jnp.int32)
        scan(step, (start, start, 0), jnp.swapaxes(tones, 0, 1))

    def log_joint(values: Any) -> float:
        x, w = paths(values[:5]), paths(values[5:])
        found = moves(w) + notes(lambda s, t, d: 4 * w[s, t] + 2 * x[s, t] + d, 8)
        counts = np.zeros((2, 2, 2))
        for s in range(2):
            for t, (before, now) in enumerate(steps_of(x, s)):
                counts[w[s, t], before, now] += 1
        # STICKY's rows go with the state before
        return float(found + dirichlet(counts, STICKY).sum())

    log_z, _ = by_classes(log_joint, states(*[2] * 10))
    return compare(fitted(model, LENGTHS, TONES), log_z)


@case("examples/hmm_enum.py (model 6)")
def hidden_states_of_second_order() -> Any:
    def model(lengths: Any, tones: Any) -> None:
        probs_x = numpyro.sample("probs_x", dist.Dirichlet(jnp.asarray(STICKY)).expand([2, 2]).to_event(2))
        probs_y = numpyro.sample("probs_y", dist.Beta(1.0, 2.0).expand([2, 2]).to_event(2))

        def step(carry: Any, y: Any) -> Any:
            before, last, t = carry
            with numpyro.plate("sequences", 2, dim=-2), mask(mask=(t < lengths)[:, None]):
                probs = Vindex(probs_x)[before, last]
                x = numpyro.sample("x", dist.Categorical(probs), infer={"enumerate": "parallel"})
                with numpyro.plate("tones", 2, dim=-1):
                    numpyro.sample("y", dist.Bernoulli(Vindex(probs_y)[x, jnp.arange(2)]), obs=y)
            return (last, x, t + 1), None

        start = jnp.zeros((2, 1), jnp.int32)
        scan(step, (start, start, 0), jnp.swapaxes(tones, 0, 1))

    def log_joint(values: Any) -> float:
        x = paths(values)
        counts = np.zeros((2, 2, 2))
        for s in range(2):
            before = 0
            for last, now in steps_of(x, s):
                counts[before, last, now] += 1
                before = last
        return float(dirichlet(counts, STICKY).sum() + notes(lambda s, t, d: 2 * x[s, t] + d, 4))

    log_z, _ = by_classes(log_joint, states(*[2] * 5))
    return compare(fitted(model, LENGTHS, TONES), log_z)


@case("examples/hmm_enum.py (model 7)")
def hidden_states_unrolled() -> Any:
    """The loop of Python in place of `markov`, sequences one after the other."""

    def model(tones: Any) -> None:
        probs_x = numpyro.sample("probs_x", dist.Dirichlet(jnp.asarray(STICKY)).to_event(1))
        probs_y = numpyro.sample("probs_y", dist.Beta(1.0, 2.0).expand([2, 2]).to_event(2))
        for s in range(2):
            x = 0
            for t in range(LENGTHS[s]):
                x = numpyro.sample(f"x_{s}_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
                numpyro.sample(f"y_{s}_{t}", dist.Bernoulli(probs_y[x]).to_event(1), obs=tones[s, t])

    def log_joint(values: Any) -> float:
        x = paths(values)
        return moves(x) + notes(lambda s, t, d: 2 * x[s, t] + d, 4)

    log_z, means = by_classes(log_joint, states(*[2] * 5))
    right = {f"x_{s}_{t}": (m, None) for (s, t), m in zip(ROWS, means, strict=True)}
    return compare(fitted(model, TONES), log_z, **right)


@case("examples/hmm.py (supervised and unsupervised words)", quick=True)
def words_with_some_categories_known() -> Any:
    words, known = np.array([0, 1, 1, 2]), np.array([0, 1])

    def model(words: Any, known: Any) -> None:
        move = numpyro.sample("move", dist.Dirichlet(jnp.asarray(STICKY)).to_event(1))
        emit = numpyro.sample("emit", dist.Dirichlet(jnp.ones(3)).expand([2]).to_event(1))

        def seen(x: Any, now: Any) -> Any:
            state, word = now
            numpyro.sample("known", dist.Categorical(move[x]), obs=state)
            numpyro.sample("first", dist.Categorical(emit[state]), obs=word)
            return state, None

        def hidden(x: Any, word: Any) -> Any:
            x = numpyro.sample("x", dist.Categorical(move[x]), infer={"enumerate": "parallel"})
            numpyro.sample("second", dist.Categorical(emit[x]), obs=word)
            return x, None

        last, _ = scan(seen, jnp.array(0), (known, words[:2]))
        scan(hidden, last, words[2:])

    def log_joint(x: Any) -> float:
        path = np.array([0, *known, *x])
        moved = dirichlet(tables(path[1:], path[:-1], (2, 2)), STICKY).sum()
        return float(moved + dirichlet(tables(words, path[1:], (2, 3)), 1).sum())

    log_z, means = by_classes(log_joint, states(2, 2))
    return compare(fitted(model, words, known), log_z, x=(means, None))


LEVELS = np.array([0.3, 0.8, 0.5, 1.4, 1.9, 1.2])


@case("examples/ar2.py", quick=True)
def autoregression_of_second_order() -> Any:
    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(0, 1).expand([2]).to_event(1))
        const = numpyro.sample("const", dist.Normal(0, 1))

        def step(carry: Any, now: Any) -> Any:
            before, last = carry
            mean = const + a[0] * last + a[1] * before
            y = numpyro.sample("y", dist.Normal(mean, 0.5), obs=now)
            return (last, y), mean

        _, mean = scan(step, (y[0], y[1]), y[2:])
        numpyro.deterministic("mean", mean)

    x = np.stack([LEVELS[1:-1], LEVELS[:-2], np.ones(4)], 1)
    law = stats.multivariate_normal(np.zeros(4), x @ x.T + 0.25 * np.eye(4))
    cov = np.linalg.inv(np.eye(3) + 4 * x.T @ x)
    mean = cov @ (4 * x.T @ LEVELS[2:])
    sd = np.sqrt(np.diag(cov))
    right = {"a": (mean[:2], sd[:2]), "const": (mean[2], sd[2])}
    right["mean"] = (x @ mean, np.sqrt(np.einsum("ij,jk,ik->i", x, cov, x)))
    return compare(fitted(model, LEVELS), law.logpdf(LEVELS[2:]), **right)
