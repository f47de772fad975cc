"""Names of traced outputs: no two mean the same, and dictionaries of JAX come in their order."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from kayn.programs.outputs import OutputName, Part
from kayn.programs.sites import inspect_sites
from kayn.programs.trace import trace_program

SITES = ("a", "a:b", "b", "kaym", "value:a", "z", "ä")
NAMES = [
    *(part.of(site) for part, site in product(Part, SITES) if part is not Part.ARGUMENT),
    *(Part.ARGUMENT.of(site, argument) for argument, site in product(("loc", "scale"), SITES)),
]


def test_names_are_ordered_and_distinct():
    """Densities by site, whatever else is put out at one place among them; in either order of insertion."""
    assert len(set(NAMES)) == len(NAMES)
    assert all((a < b) != (b < a) for a in NAMES for b in NAMES if a != b)
    for names in (NAMES, NAMES[::-1]):
        paths, _ = jax.tree.flatten_with_path(dict.fromkeys(names, 0.0))
        found = [path[0].key for path, _ in paths]
        assert found == sorted(NAMES)
        assert [n.site for n in found if n.part is Part.DENSITY] == sorted(SITES)
        others = [i for i, n in enumerate(found) if n.part is not Part.DENSITY]
        assert others == list(range(others[0], others[0] + len(others)))
        assert found[others[0] - 1] == Part.DENSITY.of("kaym")
        assert found[others[-1] + 1] == Part.DENSITY.of("value:a")


def test_outputs_of_a_program_have_the_sites_that_a_user_wrote():
    """Colons in names are read as nothing else."""

    def model():
        z = numpyro.sample("argument:loc:y", dist.Normal(0.0, 1.0))
        numpyro.deterministic("mask:z", 3.0 * z)
        numpyro.sample("y:1", dist.Normal(z, 1.0), obs=jnp.float32(0.3))

    program = trace_program(model, (), {}, {}, inspect_sites(model, (), {}, {}))
    densities = {n.site for n in program.outputs if n.part is Part.DENSITY}
    assert densities == {"argument:loc:y", "y:1"}
    assert [n for n in program.outputs if n.part is Part.VALUE] == [OutputName(Part.VALUE, "mask:z")]
    assert {n.argument for n in program.outputs if n.site == "y:1" and n.part is Part.ARGUMENT} >= {"loc", "value"}
    assert list(program.outputs) == sorted(program.outputs)
