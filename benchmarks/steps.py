"""Time and memory of one step of every task: compile time, time of a compiled step, temporary memory,
share of the limit.

Run: python -m benchmarks.steps [--tasks NAME ...] [--particles K ...] [--models NAME ...] [--json FILE] [--plot FILE]

Tasks: `qem`, `vi` and `rws` are one step of a fit (draws, weights, contraction and what follows from them); `moments`
weighs one set of particles and gives the means of all latents; `draws` draws 1,000 combinations from one set. Beside a
QEM step stands the time of one iteration of a published PyTorch implementation at K = 10, where it is known (median on
two quiet CPU cores of the same kind). The limit is the time that the operations and bytes of the compiled program,
counted by XLA, would take at the rates of a large matrix product and a large copy on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import click
import jax
import numpyro
from numpyro.infer import SVI

import kayn
from benchmarks._machine import counted, described, limit_seconds, save, seconds
from kayn import QEM
from kayn.analysis import Analysis
from kayn.evidence.draws import draw_particles
from kayn.evidence.problem import build_problem
from kayn.evidence.queries import draw_indices, latent_weights, weighted_draws
from kayn.evidence.weights import weigh
from kayn.guides.factorised import FactorisedGuide
from kayn.inference.qem_state import QEMState
from kayn.xla.jit import QuickJit
from models import HELD_BACK, MODELS

STEPS = 8
WARM = 64
"""Steps before any is timed: the first ones, far from the posterior, need exact sums more often."""
DRAWS = 1000
TOO_LARGE, TOO_LONG = 8e9, 2e10
"""Bytes and operations of a step above which a case is left out."""
REFERENCE = {
    "bus": 0.018,
    "radon, 4 states": 0.320,
    "chimpanzees": 0.029,
    "movielens, 300 x 5": 0.104,
    "occupancy": 3.1,
}


def after(qem: QEM, state: QEMState) -> QEMState:
    """The state `WARM` steps later."""
    for _ in range(WARM // STEPS):
        state, _ = qem.advance(state, STEPS)
    return state


def qem_step(model: Callable, args: tuple, particles: int) -> tuple[Any, Callable, int]:
    qem = QEM(model, num_particles=particles)
    state = qem.init(0, *args)
    compiled = qem._advance.lower(qem._problem().numbers, state, 1.0, STEPS).compile()

    return compiled, lambda: partial(qem._advance, qem._problem().numbers, after(qem, state), 1.0, STEPS), STEPS


def svi_step(loss: type, model: Callable, args: tuple, particles: int) -> tuple[Any, Callable, int]:
    guide = FactorisedGuide.from_model(model, args)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-2), loss(particles))
    state = jax.jit(lambda key: svi.init(key, *args))(jax.random.key(0))

    def steps(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: svi.update(s, *args), state, None, length=STEPS)

    run = QuickJit(steps)
    compiled = run.lower(state).compile()

    def warmed() -> Callable:
        now = state
        for _ in range(WARM // STEPS):
            now, _ = run(now)
        return partial(run, now)

    return compiled, warmed, STEPS


def posterior_step(what: str, model: Callable, args: tuple, particles: int) -> tuple[Any, Callable, int]:
    qem = QEM(model, num_particles=particles)
    state = qem.init(0, *args)
    guide = qem.guide
    assert guide is not None
    problem = build_problem(model, guide, args, {}, guide.start, replace(qem.asked, draws="independent"))

    def moments(numbers: Any, params: Any, key: Any) -> Any:
        _, weights, draws = weighted_draws(problem, numbers, params, key)
        out = {}
        for z in problem.graph.latents:
            own = latent_weights(problem, weights, z.name)
            out[z.name] = (
                own.reshape((*own.shape, *(1,) * (draws.values[z.name].ndim - own.ndim))) * draws.values[z.name]
            ).sum(0)
        return out

    def sample(numbers: Any, params: Any, key: Any) -> Any:
        draws = draw_particles(problem, numbers, key, params)
        weighed = weigh(problem, numbers, draws, params)
        return draw_indices(weighed, jax.random.split(key, DRAWS))

    key = jax.random.key(1)
    run = QuickJit(moments if what == "moments" else sample)
    compiled = run.lower(problem.numbers, guide.start, key).compile()
    return compiled, lambda: partial(run, problem.numbers, qem.get_params(after(qem, state)), key), 1


TASKS: dict[str, Callable[..., tuple[Any, Callable, int]]] = {
    "qem": qem_step,
    "vi": partial(svi_step, kayn.VI),
    "rws": partial(svi_step, kayn.RWS),
    "moments": partial(posterior_step, "moments"),
    "draws": partial(posterior_step, "draws"),
}


def operations(analysis: Analysis) -> float:
    """The planner's count: the contraction, and every entry of every factor before rows are multiplied out."""
    plan = analysis.plan
    return analysis.flops + sum(plan.elements(slot) for slot in range(len(plan.terms)))


def measure(task: str, name: str, particles: int) -> dict[str, Any]:
    """Seconds of the first step, best and median seconds of a compiled one, bytes of temporaries,
    share of the limit."""
    model, args = (MODELS | HELD_BACK)[name]()
    row: dict[str, Any] = {"task": task, "model": name, "particles": particles}
    analysis = kayn.analyze(model, *args, num_particles=particles)
    if analysis.peak_bytes > TOO_LARGE:
        return {**row, "left_out": f"a step would take {analysis.peak_bytes / 1e9:.1f} GB"}
    if operations(analysis) > TOO_LONG:
        return {**row, "left_out": f"a step would take {operations(analysis):.2g} operations"}
    start = time.perf_counter()
    compiled, warmed, steps = TASKS[task](model, args, particles)
    first = time.perf_counter() - start
    best, median = seconds(warmed())
    memory = compiled.memory_analysis()
    flops, moved = counted(compiled)
    return {
        **row,
        "first_step_seconds": first,
        "step_seconds": median / steps,
        "best_step_seconds": best / steps,
        "temporary_bytes": int(memory.temp_size_in_bytes) if memory is not None else None,
        # XLA counts the body of the loop over steps once
        "share_of_limit": limit_seconds(flops, moved) / (best / steps),
        "reference_seconds": REFERENCE.get(name) if particles == 10 and task == "qem" else None,
    }


@click.command()
@click.option("--tasks", multiple=True, type=click.Choice(list(TASKS)), default=("qem",), show_default=True)
@click.option("--particles", multiple=True, default=(3, 10, 30), show_default=True)
@click.option("--models", multiple=True, type=click.Choice([*MODELS, *HELD_BACK]), help="All by default.")
@click.option("--json", "path", type=click.Path(dir_okay=False), help="Write the figures there too.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Draw step times against K there.")
def main(
    tasks: tuple[str, ...], particles: tuple[int, ...], models: tuple[str, ...], path: str | None, plot: str | None
) -> None:
    """Print one line for every task, model and K."""
    click.echo(described())
    click.echo(
        f"{'task':<9}{'model':<22}{'K':>5}{'first step s':>14}{'step ms':>10}{'best ms':>10}{'temp MB':>10}"
        f"{'of limit':>10}{'ratio':>8}"
    )
    rows = []
    for name in models or (*MODELS, *HELD_BACK):
        for task in tasks:
            for count in particles:
                row = measure(task, name, count)
                rows.append(row)
                if "left_out" in row:
                    click.echo(f"{task:<9}{name:<22}{count:>5}  left out: {row['left_out']}")
                    continue
                known = row["reference_seconds"]
                ratio = f"{known / row['step_seconds']:.0f}x" if known else ""
                click.echo(
                    f"{task:<9}{name:<22}{count:>5}{row['first_step_seconds']:>14.1f}{1e3 * row['step_seconds']:>10.2f}"
                    f"{1e3 * row['best_step_seconds']:>10.2f}{row['temporary_bytes'] / 1e6:>10.1f}"
                    f"{row['share_of_limit']:>9.0%} {ratio:>8}"
                )
                jax.clear_caches()
    if path:
        save(path, rows=rows)
    if plot:
        draw([r for r in rows if "left_out" not in r], plot)


def draw(rows: list[dict[str, Any]], path: str) -> None:
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(r["task"] for r in rows))
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.5 * len(tasks), 4), squeeze=False, sharey=True)
    for panel, task in zip(panels[0], tasks, strict=True):
        for name in dict.fromkeys(r["model"] for r in rows):
            mine = [r for r in rows if r["task"] == task and r["model"] == name]
            panel.loglog([r["particles"] for r in mine], [1e3 * r["step_seconds"] for r in mine], "o-", label=name)
        panel.set(title=task, xlabel="particles K")
    panels[0][0].set_ylabel("milliseconds per step")
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
