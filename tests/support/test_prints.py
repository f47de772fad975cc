"""Every object that users hold prints in a few lines, however much it holds."""

from dataclasses import dataclass, field

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import kayn
from kayn.support.prints import MOST, Outlined, Printed

N = 45
Y = np.linspace(-1, 1, N)


def many_latents(y=None):
    for i in range(N):
        numpyro.sample(f"z{i}", dist.Normal(0, 1))
    with numpyro.plate("rows", N):
        a = numpyro.sample("a", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(a, 1), obs=y)


@pytest.mark.filterwarnings("ignore::kayn.errors.KaynWarning")
def test_what_holds_many_latents_prints_in_a_few_lines():
    fit = kayn.fit(many_latents, (Y,), num_particles=2, num_steps=1, progress=False)
    posterior = fit.posterior(num_replicates=1, escalate=False)
    guide = kayn.FactorisedGuide.from_model(many_latents, (Y,))
    held = [fit, posterior, posterior.summary(), kayn.analyze(many_latents, Y), guide]
    held += [posterior.problem, posterior.draws, guide.sites[0], posterior.call, kayn.QEM(many_latents)]
    held += [kayn.RWS(3), kayn.Importance(many_latents), posterior.log_predictive(0, 2, Y)]
    for it in held:
        assert repr(it).count("\n") < MOST, type(it)
        assert max(map(len, repr(it).split("\n"))) < 250, type(it)
    assert "many_latents" in repr(fit)
    assert "16 more latents" in repr(posterior)
    assert "more lines; print() shows all" in repr(posterior.summary())


def test_lines_that_are_left_out_are_counted():
    class Long(Printed):
        def __str__(self):
            return "\n".join(f"<{i}>" for i in range(50))

    lines = repr(Long()).split("\n")
    assert len(lines) == MOST
    assert lines[:-1] == [f"<{i}>" for i in range(39)]
    assert lines[-1] == "(11 more lines; print() shows all)"
    assert Long()._repr_html_().startswith("<pre>&lt;0&gt;\n")


def test_an_outline_has_a_line_a_field():
    @dataclass(repr=False)
    class Held(Outlined):
        x: np.ndarray
        by_name: dict
        seen: list
        hidden: int = field(default=1, repr=False)

    held = Held(np.zeros((2, 3), np.float32), {"a": np.arange(4), "b": 1.5, "c": np.float32(0.25)}, [1, 2, 3, 4])
    assert repr(held).split("\n") == [
        "Held",
        "  x: float32[2, 3]",
        "  by_name:",
        "    a: int64[4]",
        "    b: 1.5",
        "    c: 0.25",
        "  seen: list of 4",
    ]
