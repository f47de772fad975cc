"""A row that reads one group's latent keeps its index in whatever form the model is written, with the same evidence."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn.axes.request import make_request
from kayn.evidence.draws import draws_from_runs
from kayn.evidence.problem import Problem, build_problem
from kayn.evidence.weights import weigh
from kayn.graph.types import Link, Read
from tests.laws.oracle import QUICK
from tests.laws.written import GROUP, GROUPS, INDEX, MATRIX, ROWS, SAME

K = 3


def plainly(z: Any) -> Any:
    return z[INDEX]


def model(forms: dict[str, Callable]) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", GROUPS):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
    for number, (name, form) in enumerate(forms.items()):
        with numpyro.plate(f"rows of {name}", ROWS):
            data = np.random.default_rng(number).normal(size=ROWS)
            numpyro.sample(name, dist.Normal(form(z), 3.0), obs=data)


def guide() -> None:
    numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", GROUPS):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


@cache
def problem(plain: bool) -> Problem:
    """One model with a likelihood in every form, or with as many plain ones."""
    forms = dict.fromkeys(SAME, plainly) if plain else SAME
    return build_problem(partial(model, forms), guide, (), {}, {}, make_request(K, "parallel", (), None))


def read_of(plain: bool, name: str) -> tuple[Read, Any]:
    own = problem(plain)
    (read,) = own.graph.output(name).reads
    link = read.of("groups")
    assert isinstance(link, Link), link
    return read, own.structure.nodes.concrete(own.structure.links[link.key])


@pytest.mark.parametrize("name", SAME)
def test_every_form_is_read_as_the_plain_one(name):
    read, index = read_of(False, name)
    assert read == read_of(True, name)[0]
    np.testing.assert_array_equal(index, GROUP)


def log_evidence(own: Problem) -> Any:
    rng = np.random.default_rng(1)
    runs = {z.name: jnp.asarray(rng.normal(size=(K, *z.shape))) for z in own.graph.latents}

    @partial(jax.jit, compiler_options=QUICK)
    def run(runs: Any) -> Any:
        return weigh(own, own.numbers, draws_from_runs(own, own.numbers, {}, runs, {}), {}).log_evidence()

    return jax.device_get(run(runs))


def test_evidence_is_that_of_plain_forms():
    np.testing.assert_allclose(log_evidence(problem(False)), log_evidence(problem(True)), rtol=1e-5)


STATE, ITEM = np.arange(GROUPS) // 2, np.arange(ROWS) % 3
REFERENCE = np.arange(ROWS) >= ROWS - 2
"""Rows that read no group."""


def latents() -> dict[str, Any]:
    unit, out = dist.Normal(0.0, 1.0), {"b": numpyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))}
    with numpyro.plate("states", 3):
        out["s"] = numpyro.sample("s", unit)
    with numpyro.plate("groups", GROUPS, dim=-1):
        out |= {n: numpyro.sample(n, unit) for n in ("z", "w")}
        with numpyro.plate("items", 3, dim=-2):
            out["x"] = numpyro.sample("x", unit)
    return out


def together(plain: bool) -> None:
    """Latents of nested plates, of two plates and of none in the same rows, some of which read none of one."""
    v, data = latents(), np.random.default_rng(5).normal(size=(3, ROWS))
    covariates = data[2].repeat(2).reshape(ROWS, 2).astype(np.float32) * np.array([1.0, -0.5], np.float32)
    if plain:
        first = jnp.where(REFERENCE, 0.0, v["z"][INDEX]) + v["s"][STATE[GROUP]]
        second, third = v["x"][ITEM, INDEX], covariates @ v["b"] + v["z"][INDEX]
    else:
        first = jnp.concatenate([jnp.zeros(1), v["z"]])[np.where(REFERENCE, 0, GROUP + 1)]
        first = first + jax.nn.one_hot(STATE[GROUP], 3) @ v["s"]
        second = ((jax.nn.one_hot(ITEM, 3) @ v["x"]) * MATRIX).sum(-1)
        third = jnp.concatenate([covariates, MATRIX], 1) @ jnp.concatenate([v["b"], v["z"]])
    with numpyro.plate("rows", ROWS):
        for number, eta in enumerate((first, second, third)):
            numpyro.sample(f"y{number}", dist.Normal(eta, jnp.exp(v["w"][INDEX])), obs=data[number])


def test_several_latents_and_plates_in_the_same_rows():
    """Rows that read no group join the one that other latents of the row do, so that groups stay nested in states."""
    request = make_request(K, "parallel", (), None)
    found, right = (build_problem(partial(together, p), latents, (), {}, {}, request) for p in (False, True))
    assert not found.layout.couplings
    assert [(x.latents, x.scope) for x in found.layout.axes] == [(x.latents, x.scope) for x in right.layout.axes]
    np.testing.assert_allclose(log_evidence(found), log_evidence(right), rtol=1e-5)


def lossy(y: Any) -> None:
    with numpyro.plate("groups", GROUPS):
        z, steps, effects = (numpyro.sample(n, dist.Normal(0.0, 1.0)) for n in ("z", "steps", "effects"))
    walk = jnp.cumsum(jnp.cumsum(jnp.cumsum(steps)))
    with numpyro.plate("rows", ROWS):
        centred = effects - effects.mean()
        numpyro.sample("y", dist.Normal(SAME["concatenate"](z) + walk[INDEX] + centred[INDEX], 1.0), obs=y)


def test_analysis_tells_how_elements_are_read_and_what_would_keep_an_index():
    told = str(kayn.analyze(lossy, np.zeros(ROWS)))
    lines = [line.split() for line in told.splitlines()]
    assert ["z", "groups", "z", "y", "-"] in lines
    assert ["steps", "groups", "steps", "-", "y"] in lines
    assert "walk = jnp.cumsum(jnp.cumsum(jnp.cumsum(steps)))" in told and "centred = effects - effects.mean()" in told
    assert "Vectors" not in told
    assert "to keep it: steps: a running sum" in told and "to keep it: effects: a sum or mean" in told


def test_analysis_tells_why_a_long_vector_stays_one():
    """An autoregression of three lags, and one that is read element by element."""

    def model(y: Any) -> None:
        z, alone = (numpyro.sample(n, dist.Normal(0.0, 1.0).expand([70]).to_event(1)) for n in ("z", "alone"))

        def step(carry: Any, now: Any) -> Any:
            new = 0.5 * carry[0] + 0.2 * carry[1] + 0.1 * carry[2] + now
            return (new, *carry[:2]), new

        states = jax.lax.scan(step, (0.0, 0.0, 0.0), z)[1]
        numpyro.sample("y", dist.Normal(states + alone, 1.0), obs=y)

    told = str(kayn.analyze(model, np.zeros(70))).split("Vectors")[1]
    assert "z: by test_written.py line" in told and "new = 0.5 * carry[0]" in told
    assert "to keep its elements apart: z: an entry reads several steps" in told and "alone" not in told
