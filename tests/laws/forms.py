"""Models of several kinds that can be written in many ways, and what kayn says of them for given particles.

A kind is a program of a `Form`: its names, the order of its statements, how its rows are put in plates, how data and
masks come in. The guide is the same program, which draws every latent from a proposal that depends on nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from kayn.axes.request import make_request
from kayn.evidence.draws import draws_from_runs
from kayn.evidence.problem import build_problem
from kayn.evidence.queries import marginals
from kayn.evidence.weights import weigh
from kayn.posterior import joint
from kayn.posterior.call import Call
from kayn.posterior.posterior import Posterior
from tests.laws.oracle import QUICK

K = 3
N, GROUPS, STEPS = 6, 3, 2
SEEN = np.array([True, False, True, True, False, True])
CHOSEN = np.array([4, 1, 3, 0])
"""The rows of a minibatch, of N; two lie in either half."""


@dataclass(frozen=True)
class Form:
    """A way to write a model.

    Attributes:
        names: of sites and plates, where they are not their own.
        backwards: statements that do not depend on each other come in the opposite order.
        split: rows are in two plates, the first of half the elements; sites in the second end in "_b".
        masked: rows that are not `SEEN` are masked.
        told: data come from a handler, not as arguments.
        constant: a log factor for the whole, and one for every row.
        guide: draws latents from their proposals and leaves everything else out.
    """

    names: tuple[tuple[str, str], ...] = ()
    backwards: bool = False
    split: bool = False
    masked: bool = False
    told: bool = False
    constant: tuple[float, float] = (0.0, 0.0)
    guide: bool = False

    def name(self, own: str) -> str:
        return dict(self.names).get(own, own)

    def sample(self, name: str, fn: Any, proposal: Any, enumerate: bool = False) -> Any:
        if not self.guide:
            infer = {"enumerate": "parallel"} if enumerate else {}
            return numpyro.sample(self.name(name), fn, infer=infer)
        # values of latents that are not drawn are only looked at
        return jnp.zeros(fn.batch_shape, int) if enumerate else numpyro.sample(self.name(name), proposal)

    def observe(self, name: str, fn: Any, value: Any) -> None:
        if not self.guide:
            numpyro.sample(self.name(name), fn, obs=None if self.told else value)

    def plate(self, name: str, *sizes: int | None, dim: int = -1) -> Any:
        return numpyro.plate(self.name(name), *sizes, dim=dim)

    def in_any_order(self, *statements: Callable) -> None:
        for statement in statements[::-1] if self.backwards else statements:
            statement()

    def over_rows(self, data: Mapping[str, Any], write: Callable) -> None:
        """`write(part, end, rows)` for rows in one plate or two: a slice of those at hand, how names end,
        the plate's context.

        A subsampled plate stands for all `N` rows, those of a split one for half of them each.
        """
        at_hand = len(data["row"])
        chosen = "chosen" in data
        if not self.split:
            parts = [(slice(0, at_hand), "", N if chosen else at_hand)]
        else:
            half = at_hand // 2
            parts = [(slice(0, half), "", N // 2 if chosen else half)]
            parts.append((slice(half, at_hand), "_b", N // 2 if chosen else at_hand - half))

        def one(part: slice, end: str, elements: int) -> None:
            here = part.stop - part.start
            plate = self.plate(f"rows{end}", elements, here if elements > here else None)

            def rows() -> ExitStack:
                stack = ExitStack()
                stack.enter_context(plate)
                if self.masked and not self.guide:
                    stack.enter_context(handlers.mask(mask=jnp.asarray(SEEN[data["row"][part]])))
                return stack

            write(part, end, rows)
            if self.constant[1] and not self.guide:
                with plate:
                    numpyro.factor(self.name(f"beside{end}"), jnp.full(here, self.constant[1]))

        self.in_any_order(*(partial(one, *p) for p in parts))
        if self.constant[0] and not self.guide:
            numpyro.factor(self.name("constant"), self.constant[0])


REAL, POSITIVE = dist.Normal(0.2, 1.3), dist.LogNormal(0.1, 0.5)


def hierarchy(form: Form, data: Mapping[str, Any]) -> None:
    v: dict[str, Any] = {}

    def mu() -> None:
        v["mu"] = form.sample("mu", dist.Normal(0.0, 1.0), REAL)

    def tau() -> None:
        v["tau"] = form.sample("tau", dist.LogNormal(0.0, 0.3), POSITIVE)

    form.in_any_order(mu, tau)
    groups = form.plate("groups", GROUPS, dim=-2)
    with groups:
        alpha = form.sample("alpha", dist.Normal(v["mu"], 1.0).expand((GROUPS, 1)), REAL)

    def each(part: slice, end: str, rows: Callable) -> None:
        with groups, rows():
            form.observe(f"y{end}", dist.Normal(alpha, v["tau"]), data["table"][:, part])

    form.in_any_order(
        lambda: form.over_rows(data, each), lambda: form.observe("x", dist.Normal(v["mu"], 1.0), data["x"])
    )


def ragged(form: Form, data: Mapping[str, Any]) -> None:
    tau = form.sample("tau", dist.LogNormal(0.0, 0.3), POSITIVE)
    with form.plate("groups", GROUPS):
        alpha = form.sample("alpha", dist.Normal(0.0, 1.0), REAL)

    def each(part: slice, end: str, rows: Callable) -> None:
        with rows():
            form.observe(f"y{end}", dist.Normal(alpha[data["group"][part]], tau), data["y"][part])

    form.over_rows(data, each)


def crossed(form: Form, data: Mapping[str, Any]) -> None:
    v: dict[str, Any] = {}

    def groups() -> None:
        with form.plate("groups", GROUPS):
            v["alpha"] = form.sample("alpha", dist.Normal(0.0, 1.0), REAL)

    def items() -> None:
        with form.plate("items", 2):
            v["item"] = form.sample("item", dist.Normal(0.3, 0.8), REAL)

    form.in_any_order(groups, items)

    def each(part: slice, end: str, rows: Callable) -> None:
        logits = v["alpha"][data["group"][part]] - v["item"][data["which"][part]]
        with rows():
            form.observe(f"y{end}", dist.Bernoulli(logits=logits), data["bits"][part])

    form.over_rows(data, each)


def series(form: Form, data: Mapping[str, Any]) -> None:
    """A Markov chain a row."""
    rate = form.sample("rate", dist.Normal(0.5, 0.3), REAL)

    def each(part: slice, end: str, rows: Callable) -> None:
        def step(z: Any, now: Any) -> Any:
            with rows():
                z = form.sample(f"z{end}", dist.Normal(rate * z, 1.0), REAL)
                form.observe(f"y{end}", dist.Normal(z, 0.7), now)
            return z, None

        scan(step, jnp.zeros(part.stop - part.start), jnp.asarray(data["series"][:, part]))

    form.over_rows(data, each)


def mixture(form: Form, data: Mapping[str, Any]) -> None:
    """Components of rows that are summed out."""
    with form.plate("groups", GROUPS):
        centre = form.sample("alpha", dist.Normal(jnp.array([-1.0, 0.5, 1.0]), 0.5), REAL)

    def each(part: slice, end: str, rows: Callable) -> None:
        with rows():
            kind = form.sample(f"kind{end}", dist.Categorical(jnp.array([0.2, 0.5, 0.3])), None, enumerate=True)
            form.observe(f"y{end}", dist.Normal(centre[kind], 0.7), data["y"][part])

    form.over_rows(data, each)


def local(form: Form, data: Mapping[str, Any]) -> None:
    """A latent a row below a global one."""
    mu = form.sample("mu", dist.Normal(0.0, 1.0), REAL)

    def each(part: slice, end: str, rows: Callable) -> None:
        with rows():
            z = form.sample(f"z{end}", dist.Normal(mu, 0.8), REAL)
            form.observe(f"y{end}", dist.StudentT(4.0, z, 0.6), data["y"][part])

    form.over_rows(data, each)


KINDS = {f.__name__: f for f in (hierarchy, ragged, crossed, series, mixture, local)}


@dataclass(frozen=True)
class Case:
    """A kind with data and particles.

    Attributes:
        data: arrays by name; those in `ROWWISE` have a dimension of rows.
        runs: [K, *shape] by latent.
    """

    kind: str
    data: Mapping[str, Any]
    runs: Mapping[str, Any]

    def rows(self, index: np.ndarray) -> Case:
        """The same with some of the rows, in any order."""
        data = {n: np.take(v, index, ROWWISE[n]) if n in ROWWISE else v for n, v in self.data.items()}
        runs = {n: np.take(v, index, LOCAL[n]) if n in LOCAL else v for n, v in self.runs.items()}
        return Case(self.kind, data, runs)

    def groups(self, order: np.ndarray) -> Case:
        """The same with the groups in another order."""
        data = dict(self.data) | {"group": np.argsort(order)[self.data["group"]], "table": self.data["table"][order]}
        return Case(self.kind, data, dict(self.runs) | {"alpha": self.runs["alpha"][:, order]})


ROWWISE = {"row": 0, "y": 0, "bits": 0, "group": 0, "which": 0, "series": 1, "table": 1, "chosen": 0}
LOCAL = {"z": -1, "kind": -1}


def case(kind: str, minibatch: bool = False) -> Case:
    rng = np.random.default_rng(3)
    data = {
        "row": np.arange(N),
        "x": np.array(0.4),
        "y": rng.normal(size=N),
        "bits": rng.integers(0, 2, N),
        "group": np.array([0, 2, 1, 2, 0, 1]),
        "which": np.array([1, 0, 0, 1, 1, 0]),
        "series": rng.normal(size=(STEPS, N)),
        "table": rng.normal(size=(GROUPS, N)),
    }
    shapes = {
        "hierarchy": {"mu": (), "tau": (), "alpha": (GROUPS, 1)},
        "ragged": {"tau": (), "alpha": (GROUPS,)},
        "crossed": {"alpha": (GROUPS,), "item": (2,)},
        "series": {"rate": (), "z": (STEPS, N)},
        "mixture": {"alpha": (GROUPS,)},
        "local": {"mu": (), "z": (N,)},
    }
    runs = {n: rng.normal(size=(K, *shape)) for n, shape in shapes[kind].items()}
    runs = {n: np.exp(0.4 * v) if n == "tau" else v for n, v in runs.items()}
    whole = Case(kind, data, runs)
    if not minibatch:
        return whole
    part = whole.rows(CHOSEN)
    return Case(kind, {**part.data, "chosen": part.data["row"]}, part.runs)


# -- what kayn says


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _weighed(problem: Any, draws: Any) -> Any:
    """Everything that has to be compiled, at once: log Z, weights, draws and the mode, for one replicate."""
    weighed = weigh(problem, problem.numbers, draws, {})
    log_z, weights = marginals(weighed)
    draws, log_z, weights = jax.tree.map(lambda x: x[None], (draws, log_z, weights))
    drawn = joint.sample(problem, 5, problem.numbers, {}, draws, log_z, jax.random.key(1)).values
    return draws, log_z, weights, drawn, joint.mode(problem, problem.numbers, {}, draws)


def answers(case: Case, form: Form, strategy: str = "parallel") -> dict[str, Any]:
    """Log evidence, moments, the mode and draws of every latent, under the case's own names, all rows in one array."""
    write = KINDS[case.kind]

    def model() -> None:
        write(form, case.data)

    def guide() -> None:
        write(Form(form.names, split=form.split, guide=True), case.data)

    told = handlers.condition(model, observed(case, form)) if form.told else model
    request = make_request(K, strategy, (), None)
    problem = build_problem(told, guide, (), {}, {}, request)
    runs = {form.name(n): v for n, v in parted(case, form).items()}
    runs = {n: jnp.asarray(runs[n], problem.guide.density.sites[n].dtype) for n in problem.guide.names}
    draws = draws_from_runs(problem, problem.numbers, {}, runs, subsample(case, form))
    *replicates, drawn, mode = jax.device_get(_weighed(problem, draws))
    posterior = Posterior(problem, Call(told, (), {}), problem.numbers, {}, *replicates)
    names = [*case.runs, *(["kind"] if case.kind == "mixture" else [])]

    def joined(look: Callable) -> dict[str, Any]:
        out = {}
        for name in names:
            parts = [form.name(f"{name}{end}") for end in (("", "_b") if form.split and name in LOCAL else ("",))]
            out[name] = np.concatenate([look(p) for p in parts], -1) if len(parts) > 1 else np.asarray(look(parts[0]))
        return out

    return {
        "log evidence": np.asarray(posterior.log_evidence),
        "mean": joined(posterior.mean),
        "sd": joined(posterior.std),
        "mode": joined(mode.__getitem__),
        "draws": joined(drawn.__getitem__),
    }


def halves(case: Case) -> list[tuple[slice, str]]:
    half = len(case.data["row"]) // 2
    return [(slice(0, half), ""), (slice(half, None), "_b")]


def parted(case: Case, form: Form) -> dict[str, Any]:
    """Particles by the program's sites."""
    if not form.split:
        return dict(case.runs)
    shared = {n: v for n, v in case.runs.items() if n not in LOCAL}
    own = {n: v for n, v in case.runs.items() if n in LOCAL}
    return shared | {f"{n}{end}": v[..., part] for n, v in own.items() for part, end in halves(case)}


def observed(case: Case, form: Form) -> dict[str, Any]:
    """Data by observed site."""
    own = {"hierarchy": "table", "crossed": "bits", "series": "series"}.get(case.kind, "y")
    values = jnp.asarray(case.data[own])
    parts = halves(case) if form.split else [(slice(None), "")]
    found = {form.name(f"y{end}"): values[..., part] for part, end in parts}
    return found | ({form.name("x"): jnp.asarray(case.data["x"])} if case.kind == "hierarchy" else {})


def subsample(case: Case, form: Form) -> dict[str, Any]:
    """Indices of the rows that a minibatch has: in a split plate, of the half that they lie in."""
    if "chosen" not in case.data:
        return {}
    chosen = jnp.asarray(case.data["chosen"], jnp.int32)
    parts = halves(case) if form.split else [(slice(None), "")]
    return {form.name(f"rows{end}"): chosen[part] % (N // 2 if form.split else N) for part, end in parts}
