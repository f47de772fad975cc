"""Random models and guides for Hypothesis: see `structures.Structure` for what a `Spec` says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from tests.laws.programs import Spec
from tests.laws.structures import DISCRETE, INTEGERS, ROWS, PlateSpec, Read, SiteSpec

CONTINUOUS = ("normal", "student", "gamma", "mvn", "event")
EVENTS = ("mvn", "event")
MAX_ELEMENTS = 12
"""Independent indices of a model, at most: 2 particles each give 4096 combinations."""
MAX_COMBINATIONS = 20_000
HANDLERS = ("scale", "seed", "block", "scope", "condition", "substitute", "reparam")
HOSTILE = [
    "mu_loc",
    "mu_scale",
    "mu",
    "value:z0",
    "data:y0",
    "x",
    "time",
    "scan_time",
    "proposal:z0",
    "proposal:K[z0]",
    "K[z0]",
    "K[z1]",
    "z0_dim_0",
    "z0@t-1",
    "K[z0@t-1]",
    "z0+z1",
    "a+b",
    "a",
    "a/b",
    "a.b",
    "guide:z0",
    "support:z0",
    "mask:z0",
    "argument:loc:z0",
    "log_z",
    "notes",
    "chain",
    "draw",
    "\\",
    "+",
    "z0_2",
    "x'",
    "rng_key",
    "log_likelihood",
    "z0_loc",
    "z0_scale_tril",
    "theta_loc",
]


def examples(count: float) -> int:
    """How many examples a test takes: `count`, times the environment's `KAYN_EXAMPLES`."""
    return max(1, round(count * float(os.environ.get("KAYN_EXAMPLES", "1"))))


@dataclass
class _Budget:
    """Independent indices that are left, and the combinations of enumerated ones."""

    elements: int = MAX_ELEMENTS
    log_combinations: float = float(np.log(MAX_COMBINATIONS))
    sampled: int = 0

    def affords(self, family: str, elements: int, enumerated: bool) -> bool:
        cost = elements * np.log(INTEGERS.get(family, 1)) if enumerated else 0.7 * elements
        return elements <= self.elements - 1 and cost + 0.7 * self.sampled <= self.log_combinations - 0.7

    def take(self, family: str, elements: int, enumerated: bool) -> None:
        self.elements -= elements
        if enumerated:
            self.log_combinations -= elements * np.log(INTEGERS[family])
        else:
            self.sampled += elements

    @property
    def particles(self) -> int:
        return int(np.clip(np.exp(self.log_combinations / max(self.sampled, 1)) + 1e-6, 1, 4))


@st.composite
def specs(draw: Any, discrete: bool = True, continuous: bool = True, plain: bool = False) -> Spec:
    """Random models of 2 to 8 latents with at most `MAX_ELEMENTS` independent particle indices.

    Args:
        discrete, continuous: which latents there may be.
        plain: without handlers, hostile names, loops and subsamples.
    """
    plates = {p.name: p for p in draw(_plates(plain))}
    families = (*((*CONTINUOUS, "normal") if continuous else ()), *(DISCRETE if discrete else ()))
    budget, latents = _Budget(), []
    for i in range(draw(st.integers(2, 6))):
        latents.append(draw(_latent(f"z{i}", plates, latents, budget, families, plain)))
        if budget.elements <= 1:
            break
    shared = list(latents)
    if not plain:
        latents += draw(_rest(plates, latents, budget, families))
    assume(not all(z.fixed for z in latents))  # kayn refuses a model without latents
    observed = draw(_observed(plates, shared, latents))
    drawn = [z for z in latents if z.drawn]
    guide_reads = []
    if draw(st.booleans()):
        for i, site in enumerate(drawn):
            earlier = [z for z in drawn[:i] if not z.steps and (ROWS not in z.home or ROWS in site.home)]
            guide_reads.append((site.name, draw(_reads(plates, earlier, site.home, most=2))))
    auxiliary = ()
    if not plain and drawn and draw(st.integers(0, 3)) == 0:
        auxiliary = tuple(draw(st.lists(st.sampled_from([z.name for z in drawn]), min_size=1, max_size=2, unique=True)))
    strategy = draw(st.sampled_from(["parallel", "parallel", "parallel", "global", "local"]))
    groups: tuple[tuple[str, ...], ...] = ()
    if len(drawn) > 1 and draw(st.integers(0, 3)) == 0:
        groups = (tuple(draw(st.permutations([z.name for z in drawn]))[: draw(st.integers(2, 3))]),)
    counts = st.integers(1, budget.particles)
    if strategy == "parallel" and not groups:
        num_particles = tuple((z.name, draw(counts)) for z in drawn)
    else:
        num_particles = (("", draw(counts)),)
    around = () if plain else draw(st.lists(st.sampled_from(HANDLERS), max_size=3, unique=True))
    if any(z.steps for z in latents):
        # NumPyro's own `substitute`, which the oracle uses, does not reach sites of a loop under a scope
        around = [h for h in around if h != "scope"]
    seed = draw(st.integers(0, 1000))
    sites = (*latents, *observed)
    return Spec(
        plates=tuple(plates.values()),
        sites=sites,
        guide_reads=tuple(guide_reads),
        seed=seed,
        strategy=strategy,
        groups=groups,
        num_particles=num_particles or (("", 2),),
        denominator=draw(st.sampled_from(["mixture", "mixture", "paired"])),
        auxiliary=auxiliary,
        handlers=tuple(around),
        names=() if plain or draw(st.booleans()) else _hostile([*plates, *(s.name for s in sites)], seed),
        missing=not plain and draw(st.integers(0, 3)) == 0,
    )


def _hostile(names: list[str], seed: int) -> tuple[tuple[str, str], ...]:
    """Other names for some sites, plates and parameters."""
    rng = np.random.default_rng([seed, 70])
    names = [*names, "theta", "det", "hidden", "steps", "z0_q", "z1_q"]
    return tuple(zip(rng.permutation(names).tolist(), rng.permutation(HOSTILE).tolist(), strict=False))


@st.composite
def _plates(draw: Any, plain: bool) -> list[PlateSpec]:
    sizes = st.sampled_from([2, 2, 3, 1])
    rows = PlateSpec(ROWS, draw(st.integers(1, 6)), -1)
    if not plain and draw(st.booleans()):
        size = draw(st.integers(1, 3))
        rows = PlateSpec(ROWS, size, -1, whole=size + draw(st.integers(1, 3)))
    return [
        PlateSpec("outer", draw(sizes), -2),
        PlateSpec("inner", draw(sizes), -1),
        PlateSpec("group", draw(sizes), -1),
        PlateSpec("batch", draw(sizes), draw(st.sampled_from([-1, -2])), declared=False),
        rows,
    ]


@st.composite
def _latent(
    draw: Any,
    name: str,
    plates: dict[str, PlateSpec],
    latents: list[SiteSpec],
    budget: _Budget,
    families: tuple[str, ...],
    plain: bool,
) -> SiteSpec:
    homes = [(), (), ("outer",), ("inner",), ("group",), ("batch",), ("outer", "inner"), ("outer", "group")]
    home, family = draw(st.sampled_from(homes)), draw(st.sampled_from(families))
    elements = int(np.prod([plates[p].size for p in home]))
    enumerated = family in DISCRETE and draw(st.booleans())
    if not budget.affords(family, elements, enumerated):
        home, elements = (), 1
    enumerated = enumerated and budget.affords(family, elements, True)
    wrap = draw(st.sampled_from(["", "", "", "scale"] if plain else ["", "", "", "scale", "mask"]))
    fixed = "" if plain or enumerated else draw(st.sampled_from([""] * 16 + ["condition", "substitute"]))
    if not fixed:
        budget.take(family, elements, enumerated)
    reads = draw(_reads(plates, latents, home, most=2))
    return SiteSpec(name, home, family, reads, wrap=wrap, enumerate=enumerated, fixed=fixed)


@st.composite
def _rest(
    draw: Any, plates: dict[str, PlateSpec], latents: list[SiteSpec], budget: _Budget, families: tuple[str, ...]
) -> list[SiteSpec]:
    """Latents that have something of their own: one for every row of the data, and a Markov chain."""
    out: list[SiteSpec] = []
    rows = plates[ROWS]
    if draw(st.booleans()) and rows.size <= 3:
        family = draw(st.sampled_from(families))
        enumerated = family in DISCRETE and draw(st.booleans())
        if budget.affords(family, rows.size, enumerated):
            budget.take(family, rows.size, enumerated)
            wrap = draw(st.sampled_from(["", "", "scale", "mask"]))
            reads = draw(_reads(plates, latents, (ROWS,), most=2))
            out.append(SiteSpec("local", (ROWS,), family, reads, wrap=wrap, enumerate=enumerated))
    if draw(st.integers(0, 2)) == 0:
        home = draw(st.sampled_from([(), (), ("inner",), ("group",)]))
        scalars = [f for f in families if f in ("normal", *DISCRETE)]
        family, steps = draw(st.sampled_from(scalars)), draw(st.integers(2, 3))
        elements = steps * int(np.prod([plates[p].size for p in home]))
        enumerated = family in DISCRETE and draw(st.booleans())
        if budget.affords(family, elements, enumerated):
            budget.take(family, elements, enumerated)
            reads = draw(_reads(plates, latents, home, most=2))
            out.append(
                SiteSpec(
                    "chain",
                    home,
                    family,
                    reads,
                    enumerate=enumerated,
                    steps=steps,
                    guided_by_loop=draw(st.booleans()),
                )
            )
    return out


@st.composite
def _observed(
    draw: Any, plates: dict[str, PlateSpec], shared: list[SiteSpec], latents: list[SiteSpec]
) -> list[SiteSpec]:
    local = [z for z in latents if z.home == (ROWS,)]
    out = []
    for i in range(draw(st.integers(1, 3))):
        homes = [(ROWS,), (ROWS,), ("outer", ROWS), ("outer", "inner"), ("group",), ("batch",), ()]
        home = (ROWS,) if local and i == 0 else draw(st.sampled_from(homes))
        family = draw(st.sampled_from(["normal", "normal", "event", "bernoulli", "poisson", "factor"]))
        wrap = draw(st.sampled_from(["", "", "mask", "scale"]))
        if family == "event" and draw(st.booleans()):
            wrap = "part"
        reads = draw(_reads(plates, shared, home, most=3, least=1))
        if local and ROWS in home:
            reads = (*reads, Read("local", ((ROWS, "aligned"),)))
        whiches = [z.name for z in shared if z.family in DISCRETE and not z.home]
        tables = [z.name for z in shared if z.family not in (*EVENTS, *DISCRETE) and z.home in (("group",), ("inner",))]
        select = None
        if whiches and tables and draw(st.booleans()):
            select = (draw(st.sampled_from(whiches)), draw(st.sampled_from(tables)))
        out.append(SiteSpec(f"y{i}", home, family, reads, observed=True, wrap=wrap, select=select))
    return out


@st.composite
def _reads(
    draw: Any, plates: dict[str, PlateSpec], latents: list[SiteSpec], home: tuple[str, ...], most: int, least: int = 0
) -> tuple:
    if not latents:
        return ()
    names = draw(st.lists(st.sampled_from([z.name for z in latents]), min_size=least, max_size=most, unique=True))
    out = []
    for name in names:
        source = next(z for z in latents if z.name == name)
        how = []
        for plate in source.home:
            options: list[Any] = ["sum", "first"]
            if plate == ROWS:
                options = ["aligned"]
            elif plate in home:
                options = ["aligned"] * 8 + ["sum", "flip"]
            elif home:
                paths = [(h, plate) for h in home] * 4
                paths += [
                    (h, via, plate)
                    for h in home
                    for via in ("group", "inner")
                    if via not in (h, plate) and plate != ROWS
                ]
                options = paths * 2 + ["sum", "first"]
            how.append((plate, draw(st.sampled_from(options))))
        out.append(Read(name, tuple(how), draw(st.booleans())))
    return tuple(out)
