"""A probabilistic context-free grammar: a model whose control flow is drawn at random (as in Le et al., UAI 2019,
section 5; grammar of Manning & Schuetze, 1999).

Run: python -m experiments.pcfg.run [--methods NAME ...] [--particles K ...] [--steps N]

A sentence is derived from the left: a stack holds what is still to be expanded, and every step draws a rule for the
symbol on top, which pushes symbols or emits a word. Which latents exist, and what they mean, depends on those drawn
before. Learnt are the rules' probabilities and a recurrent network that proposes a rule from the sentence, the position
in it and the stack's top. The probability of a sentence is also computed by the inside algorithm, so the error of
everything is known. Words are heard wrongly with probability 0.05, so that every derivation of the right length has
some weight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import kayn
from experiments._common import evidence_by_datum, keep, newest, save_json
from kayn.inference.training import HELD_OUT, Phase, train

SYMBOLS = ("S", "NP", "VP", "PP", "P", "V")
WORDS = ("astronomers", "ears", "saw", "stars", "telescopes", "with")
RULES: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("S", ("NP", "VP"), 1.0),
    ("PP", ("P", "NP"), 1.0),
    ("VP", ("V", "NP"), 0.7),
    ("VP", ("VP", "PP"), 0.3),
    ("P", ("with",), 1.0),
    ("V", ("saw",), 1.0),
    ("NP", ("NP", "PP"), 0.4),
    ("NP", ("astronomers",), 0.1),
    ("NP", ("ears",), 0.18),
    ("NP", ("saw",), 0.04),
    ("NP", ("stars",), 0.18),
    ("NP", ("telescopes",), 0.1),
)
LONGEST, STEPS, DEPTH = 9, 17, 9
"""Words of a sentence (3, 5, 7 or 9), rules of a derivation (a word takes one, and so does every branching),
symbols on the stack."""
END, NOISE, HIDDEN = len(WORDS), 0.05, 32

LEFT = np.array([SYMBOLS.index(left) for left, _, _ in RULES])
BRANCHES = np.array([len(right) == 2 for _, right, _ in RULES])
WORD = np.array([WORDS.index(right[0]) if len(right) == 1 else END for _, right, _ in RULES])
FIRST = np.array([SYMBOLS.index(right[0]) if len(right) == 2 else 0 for _, right, _ in RULES])
SECOND = np.array([SYMBOLS.index(right[1]) if len(right) == 2 else 0 for _, right, _ in RULES])
TRUE = np.array([p for _, _, p in RULES])
ALLOWED = LEFT[None, :] == np.arange(len(SYMBOLS))[:, None]
NEVER = -100.0
NOTHING = len(SYMBOLS)
"""On top of an empty stack."""
SURE = 30.0
HEARD = np.log(np.exp(-SURE) + np.pad((1 - NOISE) * np.eye(END) + NOISE / END, (0, 1)) + np.diag([0.0] * END + [1.0]))
"""Log probability [meant, heard] of words; that there is none is heard for sure, up to exp(-30)."""


def initial(batch: int) -> tuple[Any, Any, Any]:
    """Stack [N, DEPTH] with S on it, its height [N], words emitted so far [N]."""
    return jnp.zeros((batch, DEPTH), int), jnp.ones(batch, int), jnp.zeros(batch, int)


def top_of(state: tuple[Any, Any, Any]) -> Any:
    stack, height, _ = state
    top = jnp.take_along_axis(stack, jnp.maximum(height - 1, 0)[..., None], -1)[..., 0]
    return jnp.where(height > 0, top, NOTHING)


def advance(state: tuple[Any, Any, Any], rule: Any) -> tuple[tuple[Any, Any, Any], Any]:
    """The state after a rule, and the word it emits (END for none)."""
    stack, height, position = state
    alive = height > 0
    branches = jnp.asarray(BRANCHES)[rule] & alive
    places = jnp.arange(DEPTH)
    lower = (places == (height - 1)[..., None]) & branches[..., None]
    upper = (places == height[..., None]) & branches[..., None]
    stack = jnp.where(lower, jnp.asarray(SECOND)[rule][..., None], stack)
    stack = jnp.where(upper, jnp.asarray(FIRST)[rule][..., None], stack)
    emits = alive & ~branches
    word = jnp.where(emits, jnp.asarray(WORD)[rule], END)
    return (stack, height + jnp.where(branches, 1, jnp.where(emits, -1, 0)), position + emits), word


def rule_logits(weights: Any, state: tuple[Any, Any, Any]) -> Any:
    """Logits over rules [N, R] that fit the symbol on top; a done derivation takes rule 0 for ever."""
    top = top_of(state)
    done = jnp.where(jnp.arange(len(RULES)) == 0, 0.0, NEVER)
    allowed = jnp.asarray(np.vstack([ALLOWED, ALLOWED[:1]]))[top]
    return jnp.where((top == NOTHING)[..., None], done, jnp.where(allowed, weights, NEVER))


def model(words: Any) -> None:
    """Sentences [N, LONGEST + 1] of word numbers, END where they are over."""
    weights = numpyro.param("weights", jnp.zeros(len(RULES)))
    state = initial(words.shape[0])
    meant = jnp.full(words.shape, END)
    with numpyro.plate("sentences", words.shape[0]):
        for step in range(STEPS):
            rule = numpyro.sample(f"rule{step}", dist.Categorical(logits=rule_logits(weights, state)))
            here = jnp.arange(LONGEST + 1) == state[2][..., None]
            state, word = advance(state, rule)
            meant = jnp.where(here & (word != END)[..., None], word[..., None], meant)
        # a derivation that is not over is heard as a sentence that is too long
        unfinished = (jnp.arange(LONGEST + 1) == LONGEST) & (state[1] > 0)[..., None]
        logits = jnp.asarray(HEARD)[jnp.where(unfinished, 0, meant)]
        numpyro.sample("words", dist.Categorical(logits=logits).to_event(1), obs=words)


def guide(words: Any) -> None:
    def dense(name: str, x: Any, size: int) -> Any:
        inputs = x.shape[-1]
        start = lambda key: jax.random.normal(key, (inputs, size)) * (2.0 / (inputs + size)) ** 0.5  # noqa: E731
        return x @ numpyro.param(f"{name}_w", start) + numpyro.param(f"{name}_b", jnp.zeros(size))

    shown = jax.nn.one_hot(words, END + 1)
    ahead = jnp.concatenate([shown, jnp.zeros_like(shown)], 1)
    state = initial(words.shape[0])
    with numpyro.plate("sentences", words.shape[0]):
        for step in range(STEPS):
            # the next words, the words left, and the three symbols on top of the stack
            offsets = jnp.minimum(state[2], LONGEST)[..., None] + jnp.arange(LONGEST)
            coming = jnp.take_along_axis(ahead, offsets[..., None], 1)
            stack, height, _ = state
            places = height[..., None] - 1 - jnp.arange(3)
            tops = jnp.where(places >= 0, jnp.take_along_axis(stack, jnp.maximum(places, 0), -1), NOTHING)
            seen = [
                coming.reshape(*coming.shape[:-2], -1),
                jax.nn.one_hot(tops, NOTHING + 1).reshape(*tops.shape[:-1], -1),
            ]
            hidden = jnp.tanh(dense("q2", jnp.tanh(dense("q1", jnp.concatenate(seen, -1), HIDDEN)), HIDDEN))
            scores = dense("q3", hidden, len(RULES))
            rule = numpyro.sample(f"rule{step}", dist.Categorical(logits=rule_logits(scores, state)))
            state, _ = advance(state, rule)


# -- truth


def sentences(count: int, seed: int) -> tuple[Any, Any]:
    """Sentences of at most LONGEST words, drawn from the grammar and heard with noise,
    and how often every rule made them: [R]."""
    rng = np.random.default_rng(seed)
    by_symbol = {s: [i for i, (left, _, _) in enumerate(RULES) if left == s] for s in SYMBOLS}
    rows: list[list[int]] = []
    counts = np.zeros(len(RULES))
    while len(rows) < count:
        stack, words, used = ["S"], [], np.zeros(len(RULES))
        while stack and len(words) + len(stack) <= LONGEST:
            choices = by_symbol[stack.pop()]
            rule = rng.choice(choices, p=TRUE[choices])
            used[rule] += 1
            right = RULES[rule][1]
            if len(right) == 1:
                words.append(WORDS.index(right[0]))
            else:
                stack += right[::-1]
        if not stack:
            heard = [int(rng.integers(END)) if rng.random() < NOISE else w for w in words]
            rows.append(heard + [END] * (LONGEST + 1 - len(heard)))
            counts += used
    return np.asarray(rows), counts


def inside(words: Any, probability: Any) -> float:
    """Log probability of one sentence, summed over all derivations (the inside algorithm)."""
    words = [w for w in words if w < END]
    n = len(words)
    table = np.zeros((n, n + 1, len(SYMBOLS)))
    for i, w in enumerate(words):
        for rule in np.flatnonzero(~BRANCHES):
            table[i, i + 1, LEFT[rule]] += probability[rule] * np.exp(HEARD[WORD[rule], w])
    for width in range(2, n + 1):
        for i in range(n - width + 1):
            for rule in np.flatnonzero(BRANCHES):
                split = sum(
                    table[i, m, FIRST[rule]] * table[m, i + width, SECOND[rule]] for m in range(i + 1, i + width)
                )
                table[i, i + width, LEFT[rule]] += probability[rule] * split
    return float(np.log(table[0, n, 0]))


def probabilities(weights: Any) -> np.ndarray:
    """Of the rules, given the symbol that they expand."""
    raised = np.exp(np.asarray(weights, np.float64))
    return raised / np.array([raised[left == LEFT].sum() for left in LEFT])


METHODS = {
    "ws": lambda k: kayn.RWS(k, "local", wake_phi=0.0, sleep_phi=1.0, sleep_particles=2),
    "ww": lambda k: kayn.RWS(k, "local"),
    "vimco": lambda k: kayn.VIMCO(k, "local"),
    "reinforce": lambda k: kayn.Reinforce(k, "local"),
}


def run(method: str, particles: int, steps: int, seed: int) -> dict[str, Any]:
    (data, counts), (test, _) = sentences(5000, 1), sentences(300, 2)
    # long sentences are left out, so that rules that branch are rarer among the data than in the grammar
    frequent = probabilities(np.log(counts))
    result = train(
        model,
        guide,
        Phase(METHODS[method](particles), optax.adam(2e-3)),
        data,
        batch_size=50,
        num_steps=steps,
        rng_key=seed,
        held_out=test,
        held_out_particles=100,
        look_every=max(steps // 10, 1),
        progress=False,
    )
    learnt = probabilities(result.last["weights"])
    exact = np.array([inside(x, learnt) for x in test])
    estimated, _ = evidence_by_datum(model, guide, result.last, test, particles, particles)
    return {
        "method": method,
        "particles": particles,
        "seed": seed,
        "steps": steps,
        "rules": learnt,
        "p_error": np.abs(learnt - frequent).max(),
        "exact": exact.mean(),
        "best": np.mean([inside(x, frequent) for x in test]),
        "gap": (exact - estimated).mean(),
        "held_out": result.looks[HELD_OUT],
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'method':<11}{'K':>4}{'seed':>6}{'worst error of a rule':>24}{'log p of a test sentence':>26}"
        f"{'by frequencies':>16}{'loss by K particles':>21}"
    ]
    for r in results:
        lines.append(
            f"{r['method']:<11}{r['particles']:>4}{r['seed']:>6}{r['p_error']:>24.3f}{r['exact']:>26.3f}"
            f"{r['best']:>16.3f}{r['gap']:>21.3f}"
        )
    return "\n".join(lines)


@click.command()
@click.option("--methods", multiple=True, type=click.Choice(list(METHODS)))
@click.option("--particles", multiple=True, type=int, help="20 by default.")
@click.option("--steps", default=2000)
@click.option("--seeds", default=1)
@click.option("--out", default=str(Path(__file__).parent / "results"), type=click.Path(file_okay=False, path_type=Path))
def main(methods: tuple[str, ...], particles: tuple[int, ...], steps: int, seeds: int, out: Path) -> None:
    """Learn the grammar from sentences."""
    results = []
    for count in particles or (20,):
        for method in methods or METHODS:
            for seed in range(seeds):
                results.append(run(method, count, steps, seed))
                click.echo(newest(results, table))
                save_json(out / "results.json", {"results": results})
    keep(out, results, table)


if __name__ == "__main__":
    main()
