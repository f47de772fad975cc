"""A mixture with 20 clusters whose encoder must branch: wake-sleep methods and their rivals (Le et al., Revisiting
reweighted wake-sleep, UAI 2019, section 5.1).

Run: python -m experiments.gmm.run [--full] [--particles K ...] [--init near|far ...] [--methods NAME ...]

Writes `results.json`, a table and a picture into `experiments/gmm/results`. The quick setting takes minutes; `--full`
is 100,000 iterations, K = 2, 5, 10, 20, ten seeds. The model: z ~ Categorical(softmax(theta / 2)), x | z ~ N(10 z,
5^2), data from p(z) proportional to z + 5. The guide is a network 1-16-16-20 with tanh, as in the authors' code (their
text has one hidden layer). `near` starts theta at equal logits, `far` at 2 (19 - z). Adam with rate 1e-3, 100 fresh
data a step.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI

import kayn
from experiments._common import keep, newest, train_seeds

CLUSTERS, SPREAD, SD, BATCH = 20, 10.0, 5.0, 100
CENTRES = SPREAD * jnp.arange(CLUSTERS)
TRUE = (jnp.arange(CLUSTERS) + 5.0) / jnp.sum(jnp.arange(CLUSTERS) + 5.0)
INIT = {"near": jnp.ones(CLUSTERS), "far": 2.0 * jnp.arange(CLUSTERS)[::-1]}
PUBLISHED = {
    ("ws", 2): (0.003, 0.06),
    ("ww", 2): (0.46, 0.63),
    ("delta-ww", 2): (0.15, 0.37),
    ("vimco", 2): (0.27, 0.56),
    ("reinforce", 2): (0.28, 0.63),
    ("relax", 2): (0.27, 0.55),
    ("ws", 20): (0.003, 0.03),
    ("ww", 20): (0.003, 0.03),
    ("delta-ww", 20): (0.0025, 0.05),
    ("vimco", 20): (0.0025, 0.22),
    ("reinforce", 20): (0.03, 0.70),
    ("relax", 20): (0.006, 0.60),
}
"""Errors of p and q of the authors' code after 20,000 iterations, near, one seed."""
REFERENCE_MS = {
    "ws": (1.7, 2.4),
    "ww": (1.2, 1.5),
    "delta-ww": (2.1, 2.5),
    "vimco": (1.1, 3.2),
    "reinforce": (1.1, 1.3),
    "concrete": (1.2, 2.1),
    "relax": (3.3, 14.9),
}
"""Milliseconds per step of that code on two quiet cores, at K = 2 and 20."""


def model(x: Any, init: Any) -> None:
    logits = numpyro.param("theta", init)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Categorical(logits=0.5 * logits))
        numpyro.sample("x", dist.Normal(kayn.lookup(CENTRES, z), SD), obs=x)


def layer(name: str, size_in: int, size_out: int) -> tuple[Any, Any]:
    """Weights and biases, uniform up to one over the root of the number of inputs."""
    bound = size_in**-0.5

    def start(shape: tuple[int, ...]) -> Any:
        return lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return numpyro.param(f"{name}_w", start((size_in, size_out))), numpyro.param(f"{name}_b", start((size_out,)))


SIZES = (1, 16, 16, CLUSTERS)
WEIGHTS = [f"q{i}_{part}" for i in (1, 2, 3) for part in "wb"]


def network(x: Any, get: Any) -> Any:
    """Logits of q(z | x): [N, 20]; `get` gives a layer's weights and biases by name and sizes."""
    hidden = x[:, None]
    for i, sizes in enumerate(pairwise(SIZES), 1):
        weights, bias = get(f"q{i}", *sizes)
        hidden = (jnp.tanh(hidden) if i > 1 else hidden) @ weights + bias
    return hidden


def guide(x: Any, init: Any) -> None:
    logits = network(x, layer)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Categorical(logits=logits))


CONTROL = [f"c{i}_{part}" for i in (1, 2, 3) for part in "wb"]


def guide_with_control(x: Any, init: Any) -> None:
    for name, size_in, size_out in (("c1", 1 + CLUSTERS, 16), ("c2", 16, 16), ("c3", 16, 1)):
        layer(name, size_in, size_out)
    guide(x, init)


def guide_with_rebar(x: Any, init: Any) -> None:
    numpyro.param("rebar_scale", 1.0)
    numpyro.param("rebar_temperature", 0.5, constraint=dist.constraints.positive)
    guide(x, init)


GUIDES = {"relax": guide_with_control, "rebar": guide_with_rebar}


def control(params: Any, z: Any, x: Any, init: Any) -> Any:
    """A network on the data and one particle's noisy logits, averaged over particles."""
    noisy = z["z"]
    hidden = jnp.concatenate([jnp.broadcast_to(x[:, None], (*noisy.shape[:-1], 1)), noisy], -1)
    for i in (1, 2):
        hidden = jnp.tanh(hidden @ params[f"c{i}_w"] + params[f"c{i}_b"])
    return jnp.mean((hidden @ params["c3_w"] + params["c3_b"])[..., 0], 0)


METHODS = {
    "ws": lambda k, t: kayn.RWS(k, "local", wake_phi=0.0, sleep_phi=1.0),
    "ww": lambda k, t: kayn.RWS(k, "local"),
    "delta-ww": lambda k, t: kayn.RWS(k, "local", defensive=0.2),
    "vimco": lambda k, t: kayn.VIMCO(k, "local", baseline="geometric"),
    "reinforce": lambda k, t: kayn.Reinforce(k, "local"),
    "concrete": lambda k, t: kayn.Concrete(k, "local", temperature=t),
    "rebar": lambda k, t: kayn.REBAR(k, "local"),
    "relax": lambda k, t: kayn.RELAX(k, "local", control=control, control_params=CONTROL),
}


def true_posterior(x: Any) -> Any:
    logits = jnp.log(TRUE) + jax.scipy.stats.norm.logpdf(x[:, None], CENTRES, SD)
    return jax.nn.softmax(logits, -1)


def data(key: Any, count: int) -> Any:
    first, second = jax.random.split(key)
    z = jnp.searchsorted(jnp.cumsum(TRUE), jax.random.uniform(first, (count,)))
    return CENTRES[z] + SD * jax.random.normal(second, (count,))


def posterior(params: Any) -> Any:
    """q(z | x) with data at the clusters' centres: [20, 20]."""
    return jax.nn.softmax(network(CENTRES, lambda name, *_: (params[f"{name}_w"], params[f"{name}_b"])), -1)


def errors(params: Any) -> dict[str, Any]:
    """L2 distance of p(z), and the mean one of q(z | x) from the posterior under the true p."""
    x = data(jax.random.key(123), 100)
    q = jax.nn.softmax(network(x, lambda name, *_: (params[f"{name}_w"], params[f"{name}_b"])), -1)
    return {
        "p": jnp.linalg.norm(jax.nn.softmax(0.5 * params["theta"]) - TRUE),
        "q": jnp.mean(jnp.linalg.norm(q - true_posterior(x), axis=-1)),
    }


def run(method: str, particles: int, init: str, steps: int, seeds: int) -> dict[str, Any]:
    mine = GUIDES.get(method, guide)
    start = INIT[init]

    base = SVI(model, mine, numpyro.optim.Adam(1e-3), METHODS[method](particles, 1.0))

    def svi(temperature: Any) -> SVI:
        """The same with another temperature."""
        own = SVI(model, mine, base.optim, METHODS[method](particles, temperature))
        own.constrain_fn = base.constrain_fn
        return own

    keys = jax.random.split(jax.random.key(0), seeds)
    first = data(jax.random.key(9), BATCH)
    states = jax.vmap(lambda key: base.init(key, first, start))(keys)

    def step(state: Any, key: Any) -> Any:
        # the temperature of the relaxation falls from 3 to 0.5
        count = state.optim_state[0] / steps
        return svi(3.0 - 2.5 * count).update(state, data(key, BATCH), start)[0]

    def spread(params: Any) -> Any:
        """Standard deviation of a guide parameter's gradient over ten draws, averaged over parameters."""
        loss = METHODS[method](particles, 1.0)

        def gradient(key: Any) -> Any:
            found = jax.grad(lambda p: loss.loss_with_mutable_state(key, p, model, mine, first, start)["loss"])(params)
            return jnp.concatenate([found[n].ravel() for n in WEIGHTS])

        return jnp.mean(jnp.std(jax.vmap(gradient)(jax.random.split(jax.random.key(5), 10)), 0)) / BATCH

    @jax.jit
    def look(states: Any) -> dict[str, Any]:
        params = jax.vmap(base.get_params)(states)
        return {**jax.vmap(errors)(params), "gradient_sd": jax.vmap(spread)(params)}

    states, history, seconds = train_seeds(step, states, keys, steps, max(steps // 20, 1), look)
    learnt = jax.vmap(lambda state: posterior(base.get_params(state)))(states)[0]
    return {
        "method": method,
        "particles": particles,
        "init": init,
        "history": history,
        "step_seconds": seconds,
        "posterior": np.round(np.asarray(learnt), 4),
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'init':<6}{'K':>4} "
        f"{'method':<11}{'p error':>18}{'q error':>18}{'published p / q':>20}{'gradient sd':>13}"
        f"{'ms a step':>11}{'PyTorch ms':>12}"
    ]
    for r in results:
        last = r["history"][-1]
        p, q, sd = (np.asarray(last[n]) for n in ("p", "q", "gradient_sd"))
        known = PUBLISHED.get((r["method"], r["particles"])) if r["init"] == "near" else None
        speed = (
            REFERENCE_MS.get(r["method"], ("", ""))[{2: 0, 20: 1}[r["particles"]]]
            if r["particles"] in (2, 20)
            else None
        )
        lines.append(
            f"{r['init']:<6}{r['particles']:>4} {r['method']:<11}{p.mean():>10.4f} "
            f"±{p.std():<6.4f}{q.mean():>10.3f} ±{q.std():<6.3f}"
            f"{f'{known[0]} / {known[1]}' if known else '':>20}{sd.mean():>13.4f}"
            f"{1e3 * r['step_seconds']:>11.3f}{speed or '':>12}"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """Errors and gradient noise over the iterations, and posteriors at the end."""
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys((r["init"], r["particles"]) for r in results))
    colour = {name: f"C{i}" for i, name in enumerate(METHODS)}
    figure, panels = plt.subplots(
        3, len(cases), figsize=(3.6 * len(cases), 8), squeeze=False, sharex=True, sharey="row"
    )
    for column, case in enumerate(cases):
        for r in (r for r in results if (r["init"], r["particles"]) == case):
            steps = [h["step"] for h in r["history"]]
            for row, what in enumerate(("p", "q", "gradient_sd")):
                values = np.asarray([np.asarray(h[what]) for h in r["history"]])
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
                panels[row, column].semilogy(steps, middle, label=r["method"], color=colour[r["method"]])
                panels[row, column].fill_between(steps, low, high, alpha=0.2, color=colour[r["method"]])
        panels[0, column].set_title(f"{case[0]}, K = {case[1]}")
        panels[2, column].set_xlabel("iteration")
    for row, label in enumerate(("L2 error of p(z)", "L2 error of q(z | x)", "sd of the guide's gradient")):
        panels[row, 0].set_ylabel(label)
    panels[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / "gmm.png", dpi=110)
    plt.close(figure)
    if known := [r for r in results if "posterior" in r]:
        draw_posteriors(known, out / "posteriors.png")


def draw_posteriors(results: list[dict[str, Any]], path: Path) -> None:
    """Hinton diagrams of q(z | x), a column for every datum at a cluster's centre, beside the true posterior."""
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys((r["init"], r["particles"]) for r in results))
    methods = list(dict.fromkeys(r["method"] for r in results))
    figure, panels = plt.subplots(
        len(cases), len(methods) + 1, figsize=(2.1 * (len(methods) + 1), 2.3 * len(cases)), squeeze=False
    )
    for line, case in zip(panels, cases, strict=True):
        found = {r["method"]: r["posterior"] for r in results if (r["init"], r["particles"]) == case}
        for panel, name in zip(line, ("true", *methods), strict=True):
            panel.set(xticks=[], yticks=[], aspect="equal", xlim=(-1, CLUSTERS), ylim=(-1, CLUSTERS), title=name)
            shares = np.asarray(true_posterior(CENTRES) if name == "true" else found.get(name, np.zeros((20, 20))))
            for (datum, cluster), share in np.ndenumerate(shares):
                side = share**0.5
                if side > 0.05:
                    corner = (datum - side / 2, cluster - side / 2)
                    panel.add_patch(plt.Rectangle(corner, side, side, color="black"))
        line[0].set_ylabel(f"{case[0]}, K = {case[1]}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


@click.command()
@click.option("--full", is_flag=True, help="100,000 iterations, K = 2, 5, 10, 20, ten seeds, both starts.")
@click.option("--steps", type=int, help="Iterations; 2,000 by default.")
@click.option("--seeds", type=int, help="3 by default.")
@click.option("--particles", multiple=True, type=int)
@click.option("--init", "inits", multiple=True, type=click.Choice(list(INIT)))
@click.option("--methods", multiple=True, type=click.Choice(list(METHODS)))
@click.option("--out", default=str(Path(__file__).parent / "results"), type=click.Path(file_okay=False, path_type=Path))
def main(
    full: bool,
    steps: int | None,
    seeds: int | None,
    particles: tuple[int, ...],
    inits: tuple[str, ...],
    methods: tuple[str, ...],
    out: Path,
) -> None:
    """Compare all estimators."""
    steps = steps or (100_000 if full else 2_000)
    seeds = seeds or (10 if full else 3)
    results = []
    for init in inits or (("near", "far") if full else ("near",)):
        for count in particles or ((2, 5, 10, 20) if full else (2, 20)):
            for method in methods or METHODS:
                results.append(run(method, count, init, steps, seeds))
                click.echo(newest(results, table))
    keep(out, results, table, draw, steps=steps, seeds=seeds)


if __name__ == "__main__":
    main()
