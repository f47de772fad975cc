"""The contraction engine alone, from equation strings: `"a,abi,bcij->"` with plates `"ij"`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from kayn.axes.memory import cut_to_fit, step_bytes
from kayn.contraction import backward, execute, logmatmul
from kayn.contraction.build import plan_contraction
from kayn.contraction.cut import divisible, sliceable, sliced
from kayn.contraction.fuse import joined
from kayn.contraction.logmatmul import log_matmul
from kayn.contraction.plan import Entries, PlateLink, Step, Stuck, Term
from kayn.contraction.steps.combine import Combine
from kayn.contraction.steps.product import Product
from kayn.contraction.steps.sliced import Sliced
from kayn.contraction.ways import Way, sum_rule
from kayn.errors import StructureError
from tests.laws.estimates import FALSE_ALARM, chi_square
from tests.laws.oracle import QUICK


class Problem:
    """An equation with random log factors, its plan, and its value by enumeration.

    Args:
        equation: one letter an axis; a variable is indexed over those plates that all of its terms have.
        plates: letters that are plates.
        sizes: letter -> size; plates default to 2, variables to 3.
        links: term number -> {(row plate, group plate): index vector}; the term's variables are read through it.
        scopes: variable -> plates, where links make it something else than the plates common to its terms.
    """

    def __init__(
        self,
        equation,
        plates="",
        sizes=None,
        links=None,
        scopes=None,
        scales=None,
        exact="",
        nest=None,
        seed=0,
        spread=1.0,
    ):
        names = equation.removesuffix("->").split(",")
        axes = list(dict.fromkeys(a for t in names for a in t))
        self.plates = {a: (sizes or {}).get(a, 2) for a in dict.fromkeys((*axes, *plates)) if a in plates}
        self.variables = {a: (sizes or {}).get(a, 3) for a in axes if a not in plates}
        common = {v: set(plates).intersection(*(set(t) for t in names if v in t)) for v in self.variables}
        self.scopes = {v: frozenset((scopes or {}).get(v, common[v])) for v in self.variables}
        self.indices, self.terms = {}, []
        for number, name in enumerate(names):
            mine = (links or {}).get(number, {})
            found = []
            for (source, target), vector in mine.items():
                key = "".join((source, target, *map(str, vector)))
                self.indices[key] = jnp.asarray(vector)
                found.append(PlateLink(source, target, key))
            self.terms.append(Term(f"t{number}", tuple(name), tuple(found)))
        self.exact, self.scales = frozenset(exact), scales or {}
        rng = np.random.default_rng(seed)
        size = self.plates | self.variables
        self.arrays = [spread * rng.normal(size=[size[a] for a in t.axes]) for t in self.terms]
        options = {"nest": nest} if nest else {}
        self.plan = plan_contraction(
            self.terms, self.variables, self.scopes, self.plates, scales=self.scales, exact=self.exact, **options
        )

    def value(self, *arrays):
        """The contraction, compiled as a whole: operation by operation takes longer."""
        run = jax.jit(lambda *x: execute.log_contract(self.plan, dict(enumerate(x)), self.indices.__getitem__))
        return run(*arrays)

    def slices(self):
        """Every axis whose sum can be cut, with the slot that is left."""
        return [(out, v) for v, out in sliceable(self.plan).items()] + [*divisible(self.plan).items()]

    def combinations(self):
        """Every (variable, scope element) and the index arrays of all combinations."""
        cells = [
            (v, c) for v, scope in self.scopes.items() for c in np.ndindex(*(self.plates[p] for p in sorted(scope)))
        ]
        counts = [self.variables[v] for v, _ in cells]
        flat = np.unravel_index(np.arange(math.prod(counts)), counts) if counts else ()
        return dict(zip(cells, flat, strict=True)), counts

    def log_weights(self, arrays):
        """log weight of every combination, averaged variables normalised."""
        chosen, counts = self.combinations()
        total = np.zeros(math.prod(counts))
        for term, array in zip(self.terms, arrays, strict=True):
            dims = [a for a in term.axes if a in self.plates]
            through = {link.target: (link.source, np.asarray(self.indices[link.key])) for link in term.links}
            for cell in np.ndindex(*(self.plates[d] for d in dims)):
                where = dict(zip(dims, cell, strict=True))
                place = lambda p, w=where, t=through: w[p] if p in w else int(t[p][1][w[t[p][0]]])  # noqa: E731
                index = tuple(
                    where[a] if a in where else chosen[a, tuple(place(p) for p in sorted(self.scopes[a]))]
                    for a in term.axes
                )
                total = total + np.asarray(array, np.float64)[index]
        return total - sum(math.log(self.variables[v]) for v, _ in chosen if v not in self.exact)


EQUATIONS = [
    ("a->", ""),
    ("a,a->", ""),
    ("a,ab,b->", ""),
    ("ab,bc,ca->", ""),
    ("abc->", ""),
    ("a,,b->", ""),
    ("ai->", "i"),
    ("ia->", "i"),
    ("a,abi,bi->", "i"),
    ("a,abi,bcij,cij->", "ij"),
    ("a,abi,bcij->", "ij"),
    ("jicb,a,bia->", "ij"),
    ("a,abi,acj->", "ij"),
    ("a,aj,abi,bij->", "ij"),
    ("aij->", "ij"),
    ("ai,aij->", "ij"),
    ("a,ai,aij->", "ij"),
    ("aij,abij,b->", "ij"),
    ("a,b,c,abci->", "i"),
    ("ab,bci,cdij,adij->", "ij"),
    ("a,abi,bj,ckj->", "ijk"),
    ("ai,bi,abi,i->", "i"),
    ("j,a,aji->", "ij"),
    ("abi,bci,acdij,d->", "ij"),
]


@pytest.mark.parametrize(("equation", "plates"), EQUATIONS)
def test_every_order_and_scope(equation, plates, x64):
    problem = Problem(equation, plates)
    arrays = [jnp.asarray(a) for a in problem.arrays]
    log_weights = problem.log_weights(problem.arrays)
    np.testing.assert_allclose(problem.value(*arrays), logsumexp(log_weights), rtol=1e-12)
    assert len(log_weights) == pytest.approx(10**problem.plan.log10_combinations)


@pytest.mark.parametrize(
    ("equation", "plates"), [("a,abi,bcij,cij->", "ij"), ("ab,bc,ca->", ""), ("a,abi,acj->", "ij")]
)
def test_gradient_is_the_marginal(equation, plates, x64):
    problem = Problem(equation, plates)
    arrays = [jnp.asarray(a) for a in problem.arrays]
    gradients = jax.grad(problem.value, argnums=tuple(range(len(arrays))))(*arrays)
    step = 1e-6
    for number, gradient in enumerate(gradients):
        flat = np.asarray(gradient).ravel()
        for entry in np.random.default_rng(0).choice(flat.size, min(flat.size, 4), replace=False):
            moved = [np.array(a) for a in problem.arrays]
            moved[number].ravel()[entry] += step
            up = logsumexp(problem.log_weights(moved))
            moved[number].ravel()[entry] -= 2 * step
            np.testing.assert_allclose(
                flat[entry], (up - logsumexp(problem.log_weights(moved))) / (2 * step), atol=1e-8
            )


@st.composite
def _random_equations(draw):
    plates = "ij"
    scopes = {v: draw(st.sampled_from(["", "i", "j", "ij"])) for v in "abcd"[: draw(st.integers(1, 4))]}
    terms = []
    for _ in range(draw(st.integers(1, 5))):
        mine = draw(st.lists(st.sampled_from(sorted(scopes)), max_size=3, unique=True))
        dims = set("".join(scopes[v] for v in mine)) | set(draw(st.sampled_from(["", "", "i", "j"])))
        terms.append("".join(draw(st.permutations([*sorted(dims), *mine]))))
    used = {v: s for v, s in scopes.items() if any(v in t for t in terms)}
    return ",".join(terms), plates, used


@given(_random_equations(), st.integers(0, 100))
@settings(max_examples=60)
def test_random_equations(equation, seed):
    text, plates, scopes = equation
    with jax.enable_x64(True):
        try:
            problem = Problem(text, plates, sizes=dict.fromkeys("abcd", 2), scopes=scopes, seed=seed)
        except Stuck:
            assert _crossed(text, scopes)
            return
        expected = logsumexp(problem.log_weights(problem.arrays))
        np.testing.assert_allclose(problem.value(*map(jnp.asarray, problem.arrays)), expected, rtol=1e-11)
        for out, plate in divisible(problem.plan).items():
            problem.plan = sliced(problem.plan, out, plate, 2)
        for variable, out in [*sliceable(problem.plan).items()][-1:]:
            problem.plan = sliced(problem.plan, out, variable, 2)
        np.testing.assert_allclose(problem.value(*map(jnp.asarray, problem.arrays)), expected, rtol=1e-11)


def _crossed(equation, scopes) -> bool:
    """Variables of crossed scopes that are connected through variables on common plates: the sum does not factorise."""
    parent = {v: v for v in scopes}

    def root(v):
        return v if parent[v] == v else root(parent[v])

    for term in equation.split(","):
        mine = [v for v in scopes if v in term]
        for u, v in itertools.pairwise(mine):
            parent[root(u)] = root(v)
    return any(
        root(u) == root(v) and set(scopes[u]) - set(scopes[v]) and set(scopes[v]) - set(scopes[u])
        for u, v in itertools.combinations(scopes, 2)
    )


# -- ragged plates

COUNTY, STATE = np.array([0, 2, 2, 0, 1]), np.array([1, 0, 1])


def _nested(inner, outer, fine, coarse):
    """Rows h -> groups c -> groups s, with STATE[COUNTY] the index of the rows into s."""
    return "cs101" if inner.startswith("hc") and outer.startswith("hs") else None


def _ragged(equation, links, scopes, nest=None, sizes=None):
    sizes = {"h": 5, "c": 3, "s": 2, "a": 3, "g": 2} | (sizes or {})
    problem = Problem(equation, "hcs", sizes, links, scopes, nest=nest)
    problem.indices["cs101"] = jnp.asarray(STATE)
    return problem


ROWS, UP, THROUGH = {("h", "c"): COUNTY}, {("c", "s"): STATE}, {("h", "c"): COUNTY, ("h", "s"): STATE[COUNTY]}


@pytest.mark.parametrize(
    ("equation", "links", "scopes"),
    [
        ("ha->", {0: ROWS}, {"a": "c"}),
        ("ca,ha->", {1: ROWS}, {"a": "c"}),
        ("g,gca,ahg->", {2: ROWS}, {"a": "c", "g": ""}),
        ("gs,cag,ha->", {1: UP, 2: ROWS}, {"a": "c", "g": "s"}),
        ("gs,cag,hag->", {1: UP, 2: THROUGH}, {"a": "c", "g": "s"}),
        ("gs,ca,hag->", {2: THROUGH}, {"a": "c", "g": "s"}),
        ("gs,cag,hag,hg,ca->", {1: UP, 2: THROUGH, 3: {("h", "s"): STATE[COUNTY]}}, {"a": "c", "g": "s"}),
    ],
)
def test_ragged_links(equation, links, scopes, x64):
    problem = _ragged(equation, links, scopes, _nested)
    value = problem.value(*map(jnp.asarray, problem.arrays))
    np.testing.assert_allclose(value, logsumexp(problem.log_weights(problem.arrays)), rtol=1e-12)


def test_two_plates_reached_jointly(x64):
    """Rows that belong to an element (s, c) of a rectangular grid: `alpha[state, county]`."""
    links = {1: {("h", "s"): np.array([0, 1, 1, 0, 1]), ("h", "c"): COUNTY}}
    problem = _ragged("sca,ha->", links, {"a": "sc"}, sizes={"a": 2})
    value = problem.value(*map(jnp.asarray, problem.arrays))
    np.testing.assert_allclose(value, logsumexp(problem.log_weights(problem.arrays)), rtol=1e-12)
    problem = _ragged("sca,sg,hag->", {2: links[1]}, {"a": "sc", "g": "s"}, sizes={"a": 2})
    value = problem.value(*map(jnp.asarray, problem.arrays))
    np.testing.assert_allclose(value, logsumexp(problem.log_weights(problem.arrays)), rtol=1e-12)


def test_jointly_reached_plates_that_happen_to_nest(x64):
    """Each county was observed in one state only, but `alpha[state, county]` still has an element for every pair."""
    for equation, links, scopes in (
        ("sca,ha->", {1: THROUGH}, {"a": "sc"}),
        ("sca,gs,hag->", {2: THROUGH}, {"a": "sc", "g": "s"}),
        ("sca,gc,hag->", {2: THROUGH}, {"a": "sc", "g": "c"}),
    ):
        problem = _ragged(equation, links, scopes, _nested, sizes={"a": 2})
        value = problem.value(*map(jnp.asarray, problem.arrays))
        np.testing.assert_allclose(value, logsumexp(problem.log_weights(problem.arrays)), rtol=1e-12)


def test_groups_without_rows(x64):
    """A group that no row belongs to contributes the mean of its own factors, and 1 if it has none."""
    problem = Problem("ca,ha->", "hc", {"h": 3, "c": 4}, {1: {("h", "c"): np.array([2, 0, 2])}}, {"a": "c"})
    value = problem.value(*map(jnp.asarray, problem.arrays))
    np.testing.assert_allclose(value, logsumexp(problem.log_weights(problem.arrays)), rtol=1e-12)


@pytest.mark.parametrize(
    ("equation", "plates"), [("ai,bj,abij->", "ij"), ("abij,ai,bj,c->", "ij"), ("ai,bi,bj,abij->", "ij")]
)
def test_crossed_plates_are_stuck(equation, plates):
    scopes = {"a": "i", "b": "j", "c": ""}
    with pytest.raises(Stuck) as error:
        Problem(equation.replace("bi,", ""), plates, scopes=scopes)
    assert dict(error.value.blocked) == {"a": frozenset("i"), "b": frozenset("j")}


def test_crossed_groupings_are_stuck():
    crossed = {("h", "c"): COUNTY, ("h", "s"): np.array([0, 1, 0, 1, 1])}
    with pytest.raises(Stuck) as error:
        _ragged("hag->", {0: crossed}, {"a": "c", "g": "s"})
    assert dict(error.value.blocked) == {"a": frozenset("c"), "g": frozenset("s")}


def test_a_term_must_reach_the_plates_of_its_variables():
    with pytest.raises(StructureError, match="t1"):
        plan_contraction([Term("t0", ("i", "a")), Term("t1", ("a",))], {"a": 2}, {"a": frozenset("i")}, {"i": 2})


# -- scales, exact sums, plans


def test_subsampled_plate_scales_its_reduced_sum(x64):
    problem = Problem("a,abi->", "i", scales={"i": 2.5})
    prior, local = problem.arrays
    inner = logsumexp(local, 1) - np.log(3)
    expected = logsumexp(prior + 2.5 * inner.sum(-1)) - np.log(3)
    np.testing.assert_allclose(problem.value(*map(jnp.asarray, problem.arrays)), expected, rtol=1e-12)


def test_nested_subsampled_plates(x64):
    problem = Problem("a,abi,bcij->", "ij", scales={"i": 2.0, "j": 3.0})
    prior, middle, local = problem.arrays  # axes a; a, b, i; b, c, i, j
    rows = (logsumexp(local, 1) - np.log(3)).sum(-1) * 3.0
    groups = (logsumexp(middle + rows, 1) - np.log(3)).sum(-1) * 2.0
    expected = logsumexp(prior + groups) - np.log(3)
    np.testing.assert_allclose(problem.value(*map(jnp.asarray, problem.arrays)), expected, rtol=1e-12)


def test_enumerated_variables_are_summed_not_averaged(x64):
    summed, averaged = Problem("a,abi->", "i", exact="b"), Problem("a,abi->", "i")
    arrays = [jnp.asarray(a) for a in summed.arrays]
    np.testing.assert_allclose(summed.value(*arrays), averaged.value(*arrays) + 2 * np.log(3), rtol=1e-12)


def test_plan_prints_and_counts():
    plan = Problem("a,abi->", "i", {"a": 5, "b": 7, "i": 4}).plan
    text = str(plan)
    for word in ("flops", "sum b", "multiply i", "sum a"):
        assert word in text
    assert len(text.splitlines()) == 1 + len(plan.steps)
    assert plan.log10_combinations == pytest.approx(math.log10(5) + 4 * math.log10(7))
    assert plan.flops >= 5 * 7 * 4
    assert plan.peak_elements >= 5 * 4
    assert all(isinstance(s, Combine | Product) for s in plan.steps)
    assert hash(plan) == hash(Problem("a,abi->", "i", {"a": 5, "b": 7, "i": 4}).plan)


def test_cost_of_a_plated_chain_is_polynomial():
    """a -> b_i -> c_ij with 30 particles each and 1000 x 100 elements: no array over three particle axes."""
    plan = Problem("a,abi,bcij->", "ij", {"a": 30, "b": 30, "c": 30, "i": 10, "j": 10}).plan
    assert plan.peak_elements <= 30 * 30 * 10 * 10
    assert plan.flops <= 3 * 30 * 30 * 10 * 10


def test_chain_of_200_variables(x64):
    names = [chr(0x4E00 + i) for i in range(200)]
    problem = Problem(
        ",".join([names[0], *(a + b for a, b in itertools.pairwise(names))]), sizes=dict.fromkeys(names, 4)
    )
    assert problem.plan.peak_elements <= 4**3
    run = jax.jit(problem.value, compiler_options=QUICK)
    expected = problem.arrays[0]
    for array in problem.arrays[1:]:
        expected = logsumexp(expected[:, None] + array, 0)
    np.testing.assert_allclose(
        run(*map(jnp.asarray, problem.arrays)), logsumexp(expected) - 200 * np.log(4), rtol=1e-12
    )


def test_star_of_200_variables():
    names = [chr(0x4E00 + i) for i in range(200)]
    plan = Problem(",".join(["a", *("a" + n for n in names), *names]), sizes=dict.fromkeys(names, 4)).plan
    assert plan.peak_elements <= 4 * 3


@dataclass(frozen=True)
class Tempered(Step):
    """A kind of step that kayn does not have: a log factor counts `share` times."""

    source: int
    out: int
    share: float

    @property
    def read(self):
        return (self.source,)

    def renumbered(self, number):
        return replace(self, source=number[self.source], out=number[self.out])

    def flops(self, plan):
        return plan.elements(self.out)

    def entries(self, plan, inner):
        return Entries(plan.elements(self.out))

    def lines(self, plan):
        return [f"temper by {self.share}"]

    def forward(self, plan, slots, way):
        return self.share * slots[self.source]


def test_a_kind_of_step_is_one_class(x64):
    """It is run, differentiated, walked back, cut, counted and printed without being known anywhere else."""
    problem = Problem("a,abi->", "i", {"a": 4, "b": 3, "i": 2})
    plain, arrays = problem.plan, [jnp.asarray(a) for a in problem.arrays]
    slot = len(plain.axes)
    number = {i: slot if i == 1 else i for i in range(slot)}
    steps = (Tempered(1, slot, 0.5), *(s.renumbered(number) for s in plain.steps))
    tempered = replace(plain, steps=steps, axes=(*plain.axes, plain.axes[1]), links=(*plain.links, plain.links[1]))

    def value(plan, share, first, second):
        return execute.log_contract(plan, {0: first, 1: share * second}, problem.indices.__getitem__)

    plans = [tempered, sliced(tempered, sliceable(tempered)["a"], "a", 2)]
    expected = jax.value_and_grad(value, (2, 3))(plain, 0.5, *arrays)
    best = backward.best(plain, {0: arrays[0], 1: 0.5 * arrays[1]}, problem.indices.__getitem__)
    for plan in plans:
        found = jax.value_and_grad(value, (2, 3))(plan, 1.0, *arrays)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)
        found = backward.best(plan, dict(enumerate(arrays)), problem.indices.__getitem__)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, best)
        assert "temper by 0.5" in str(plan)
        assert plan.flops == plain.flops + 4 * 3 * 2
    assert step_bytes(tempered) > step_bytes(plain)


# -- draws and the best combination


@pytest.mark.parametrize(
    "problem",
    [
        lambda: Problem("a,abi,bcij->", "ij", {"a": 2, "b": 2, "c": 2}, spread=1.5),
        lambda: _ragged("gs,cag,hag->", {1: UP, 2: THROUGH}, {"a": "c", "g": "s"}, _nested, {"a": 2}),
        lambda: _ragged(
            "sca,sg,hag->",
            {2: {("h", "s"): np.array([0, 1, 1, 0, 1]), ("h", "c"): COUNTY}},
            {"a": "sc", "g": "s"},
            sizes={"a": 2},
        ),
        lambda: Problem("ab,bc,cd,da->", "", {"a": 3, "b": 4, "c": 2, "d": 3}, spread=2.0),
        lambda: _cut(Problem("ab,bc,cd,da->", "", {"a": 3, "b": 4, "c": 2, "d": 3}, spread=2.0), ("b", 2)),
        lambda: _cut(Problem("ab,bc,cd,da->", "", {"a": 3, "b": 4, "c": 2, "d": 3}, spread=2.0), ("a", 3)),
        lambda: _cut(Problem("a,abi,bcij->", "ij", {"a": 2, "b": 2, "c": 2}, spread=1.5), ("a", 2)),
        lambda: _cut(Problem("a,abi,bcij->", "ij", {"a": 2, "b": 2, "c": 2}, spread=1.5), ("i", 2)),
        lambda: _cut(Problem("a,abi,bcij->", "ij", {"a": 2, "b": 2, "c": 2}, spread=1.5), ("j", 2), ("i", 2), ("a", 2)),
        lambda: _fused(Problem("ab,bc,ca,ac,c->", "", {"a": 3, "b": 4, "c": 2}, spread=2.0)),
        lambda: _fused(Problem("abi,ai,bi,a,b->", "i", {"a": 3, "b": 3}, spread=1.5)),
        lambda: _cut(_fused(Problem("abi,ai,bi,a,b,c,cj->", "ij", {"a": 2, "b": 2, "c": 2}, spread=1.5)), ("b", 2)),
    ],
)
def test_draws_and_best(problem, x64):
    problem = problem()
    log_weights = problem.log_weights(problem.arrays)
    slots = {i: jnp.asarray(a) for i, a in enumerate(problem.arrays)}
    keys = jax.random.split(jax.random.key(1), 20_000)
    run = jax.jit(
        lambda keys: backward.draw(problem.plan, slots, problem.indices.__getitem__, keys), compiler_options=QUICK
    )
    shares = np.exp(log_weights - logsumexp(log_weights))
    assert chi_square(_numbers(problem, run(keys)), shares) > FALSE_ALARM
    # spread evenly, the counts vary less than by chance, along any order of the indices
    orders, evenly = _any_orders(problem.plan), jax.vmap(_evenly, (None, None, 0, None))
    found = jax.jit(lambda keys: evenly(problem, slots, keys, orders), compiler_options=QUICK)(keys[:1000])
    found = {v: np.asarray(k).reshape((-1, *k.shape[2:])) for v, k in found.items()}
    assert chi_square(_numbers(problem, found), shares) > FALSE_ALARM
    largest, best = backward.best(problem.plan, slots, problem.indices.__getitem__)
    number = _numbers(problem, {v: np.asarray(k)[None] for v, k in best.items()})[0]
    assert number == np.argmax(log_weights)
    np.testing.assert_allclose(largest, np.max(log_weights), rtol=1e-9)


def _any_orders(plan):
    rng = np.random.default_rng(2)
    shapes = {v: (*(plan.size[p] for p in plates), plan.size[v]) for v, plates in plan.scope.items()}
    return {v: jnp.asarray(rng.random(shape).argsort(-1)) for v, shape in shapes.items()}


def _evenly(problem, slots, key, orders):
    """20 of 25 possible draws."""
    drawn = backward.draw_evenly(problem.plan, slots, problem.indices.__getitem__, key, 25, 20, orders)
    return {v: index[:20] for v, index in drawn.items()}


def test_what_is_drawn_first_comes_as_often_as_its_share_says():
    """In n draws n p times, rounded up or down, where random draws differ by the square root of that."""
    problem = Problem("a,abi->", "i", {"a": 7, "b": 5}, spread=2.0)
    slots = {i: jnp.asarray(a) for i, a in enumerate(problem.arrays)}
    drawn = _evenly(problem, slots, jax.random.key(0), _any_orders(problem.plan))
    log_weights = problem.arrays[0] + logsumexp(problem.arrays[1], 1).sum(-1)
    counts = np.bincount(drawn["a"], minlength=7)
    assert (np.abs(counts - 20 * np.exp(log_weights - logsumexp(log_weights))) < 1 + 1e-4).all()


def test_a_pick_is_never_impossible():
    """Nor where a running sum in floating point falls, or the number is as large as any."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(
        np.where(rng.random((500, 3001)) < 0.5, -np.inf, 30 * rng.normal(size=(500, 3001))), jnp.float32
    )
    largest = 1 - jnp.finfo(jnp.float32).eps
    for number in (0.0, largest, *rng.random(5)):
        found = backward._by_share(logits, jnp.full(500, number, jnp.float32))
        assert np.isfinite(np.take_along_axis(logits, found[:, None], 1)).all()
    with jax.debug_nans(True):
        nothing = backward._by_share(jnp.full((2, 3), -jnp.inf), jnp.array([0.0, largest]))
    np.testing.assert_array_equal(nothing, 0)
    np.testing.assert_array_equal(
        backward._by_share(jnp.zeros((5, 4)), jnp.array([0.0, 0.24, 0.26, 0.74, largest])), [0, 0, 1, 2, 3]
    )


def _cut(problem, *cuts):
    for axis, parts in cuts:
        slots = {a: out for out, a in problem.slices()}
        problem.plan = sliced(problem.plan, slots[axis], axis, parts)
    return problem


def _fused(problem):
    """Steps that can be done as one are, of which there are some."""
    before, problem.plan = problem.plan, joined(problem.plan)
    assert len(problem.plan.steps) < len(before.steps)
    return problem


def _numbers(problem, drawn):
    cells, counts = problem.combinations()
    return np.ravel_multi_index(tuple(np.asarray(drawn[v])[(slice(None), *c)] for v, c in cells), counts)


# -- sums cut into parts


CUTS = [(e, p) for e, p in EQUATIONS if Problem(e, p).slices()]


@pytest.mark.parametrize(("equation", "plates"), CUTS)
def test_parts_of_every_variable(equation, plates, x64):
    problem = Problem(equation, plates, sizes=dict.fromkeys("abcd", 4))
    arrays = [jnp.asarray(a) for a in problem.arrays]
    every = tuple(range(len(arrays)))
    value, gradients = jax.value_and_grad(problem.value, every)(*arrays)
    whole = problem.plan
    for out, axis in problem.slices():
        problem.plan = sliced(whole, out, axis, 2)
        assert problem.plan.flops == whole.flops
        assert problem.plan.log10_combinations == whole.log10_combinations
        found, cut = jax.value_and_grad(problem.value, every)(*arrays)
        np.testing.assert_allclose(found, value, rtol=1e-12)
        for a, b in zip(cut, gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)


def test_parts_hold_less():
    plan = Problem("ab,bci,cdi,dai,cei,aei->", "i", sizes=dict.fromkeys("abcde", 12) | {"i": 5}).plan
    for variable, parts in (("a", 4), ("b", 12)):
        cut = sliced(plan, sliceable(plan)[variable], variable, parts)
        inside = next(s for s in cut.steps if isinstance(s, Sliced))
        assert f"sum {variable} in {parts} parts of {12 // parts}" in str(cut)
        assert inside.body.peak_elements < plan.peak_elements
        assert step_bytes(cut) < step_bytes(plan)
        assert cut_to_fit(plan, step_bytes(cut)).flops == plan.flops
        assert step_bytes(cut_to_fit(plan, step_bytes(cut))) <= step_bytes(cut)
    assert cut_to_fit(plan, step_bytes(plan)) is plan
    assert step_bytes(cut_to_fit(plan, 10)) > 10  # as good as it gets
    with pytest.raises(ValueError, match="do not divide"):
        sliced(plan, sliceable(plan)["a"], "a", 5)


# -- numerics, in float32


def _value_and_gradients(problem, arrays):
    return jax.value_and_grad(problem.value, argnums=tuple(range(len(arrays))))(
        *(jnp.asarray(a, jnp.float32) for a in arrays)
    )


@pytest.mark.parametrize("shift", [1e4, -1e4])
@pytest.mark.parametrize(("equation", "plates"), [("a,ab,b->", ""), ("ab,bc,ca->", ""), ("a,abi,bci->", "i")])
def test_shifted_log_weights(equation, plates, shift):
    problem = Problem(equation, plates)
    value, gradients = _value_and_gradients(problem, problem.arrays)
    # quarters are exact in float32 next to 1e4, so that the shift loses nothing
    arrays = [np.round(a * 4) / 4 for a in problem.arrays]
    value, gradients = _value_and_gradients(problem, arrays)
    for number in range(len(arrays)):
        moved = [a + shift * (i == number) for i, a in enumerate(arrays)]
        count = math.prod(problem.plates[p] for p in problem.terms[number].axes if p in problem.plates)
        shifted, moved_gradients = _value_and_gradients(problem, moved)
        np.testing.assert_allclose(shifted, value + shift * count, rtol=3e-7)
        for a, b in zip(gradients, moved_gradients, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("equation", "plates"), [("a,ab,b->", ""), ("ab,bc,ca->", ""), ("a,abi,bci->", "i")])
def test_weights_that_span_thousands_of_nats(equation, plates, seed):
    problem = Problem(equation, plates, dict.fromkeys("abc", 6), seed=seed, spread=2000.0)
    arrays = [a.astype(np.float32) for a in problem.arrays]
    log_weights = problem.log_weights(arrays)
    value, gradients = _value_and_gradients(problem, arrays)
    np.testing.assert_allclose(value, logsumexp(log_weights), rtol=1e-5)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient) >= 0).all()
    np.testing.assert_allclose(np.sum(gradients[0]), 1.0, rtol=1e-5)


def _matmul_reference(left, right):
    return logsumexp(
        np.asarray(left, np.float64)[..., :, :, None] + np.asarray(right, np.float64)[..., None, :, :], axis=-2
    )


MATRICES = {
    "mild": lambda rng, K: (rng.normal(size=(2, K, K)), rng.normal(size=(2, K, K))),
    "one k": lambda rng, K: (rng.normal(size=(2, K, 1)), rng.normal(size=(2, 1, K))),
    "two k": lambda rng, K: (rng.normal(size=(2, K, 2)), rng.normal(size=(2, 2, K))),
    "two k, impossible and far apart": lambda rng, K: tuple(
        np.where(rng.random(shape) < 0.4, -np.inf, 300 * rng.normal(size=shape)) for shape in ((2, K, 2), (2, 2, K))
    ),
    "large": lambda rng, K: (1000 * rng.normal(size=(2, K, K)), 1000 * rng.normal(size=(2, K, K))),
    "rows far apart": lambda rng, K: (
        rng.normal(size=(2, K, K)) + 500 * rng.normal(size=(2, K, 1)),
        rng.normal(size=(2, K, K)),
    ),
    "opposed on k": lambda rng, K: (
        rng.normal(size=(2, K, K)) + 20 * np.arange(K),
        rng.normal(size=(2, K, K)) - 20 * np.arange(K)[:, None],
    ),
    "peaks on different k": lambda rng, K: (
        -50.0 * (np.arange(K) - 2.0) ** 2 + np.zeros((2, K, 1)),
        -50.0 * (np.arange(K)[:, None] - K + 2.0) ** 2 + np.zeros((2, 1, K)),
    ),
    "eighty nats apart": lambda rng, K: (
        np.where(np.eye(K) > 0, 0.0, -80.0 + rng.normal(size=(2, K, K))),
        np.where(np.roll(np.eye(K), 1, 0) > 0, 0.0, -80.0 + rng.normal(size=(2, K, K))),
    ),
    "sharp kernel": lambda rng, K: tuple(
        -0.5 * ((rng.normal(size=(2, K, 1)) - rng.normal(size=(2, 1, K))) / 0.01) ** 2 for _ in range(2)
    ),
    "impossible entries": lambda rng, K: tuple(
        np.where(rng.random((2, K, K)) < 0.5, -np.inf, rng.normal(size=(2, K, K))) for _ in range(2)
    ),
    "impossible and sharp": lambda rng, K: tuple(
        np.where(rng.random((2, K, K)) < 0.7, -np.inf, 300 * rng.normal(size=(2, K, K))) for _ in range(2)
    ),
    "impossible rows": lambda rng, K: (
        np.where(np.arange(K)[:, None] % 2, -np.inf, rng.normal(size=(2, K, K))),
        np.where(np.arange(K) % 3, -np.inf, rng.normal(size=(2, K, K))),
    ),
    "no k in common": lambda rng, K: (
        np.where(np.arange(K) % 2, -np.inf, np.zeros((2, K, K))),
        np.where(np.arange(K)[:, None] % 2, np.zeros((2, K, K)), -np.inf),
    ),
    "nothing possible": lambda rng, K: (np.full((2, K, K), -np.inf), np.zeros((2, K, K))),
}


@pytest.mark.parametrize("case", MATRICES)
def test_log_matmul_is_safe(case):
    left, right = (a.astype(np.float32) for a in MATRICES[case](np.random.default_rng(3), 12))
    expected = _matmul_reference(left, right)
    cotangent = np.random.default_rng(4).normal(size=expected.shape).astype(np.float32)
    with jax.debug_nans(True):
        value, pull = jax.vjp(log_matmul, jnp.asarray(left), jnp.asarray(right))
        on_left, on_right = pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-5)
    # derivative: shares of every k, in float64
    safe = np.where(np.isfinite(expected), expected, 0.0)
    total = left[..., :, :, None].astype(float) + right[..., None, :, :]
    share = np.exp(total - safe[..., :, None, :]) * np.where(np.isfinite(expected), cotangent, 0.0)[..., :, None, :]
    scale = 1e-3 if case in ("large", "rows far apart", "sharp kernel", "impossible and sharp") else 1e-4
    np.testing.assert_allclose(on_left, share.sum(-1), atol=scale)
    np.testing.assert_allclose(on_right, share.sum(-3), atol=scale)


@pytest.mark.parametrize("by", ["row", "element"])
@pytest.mark.parametrize("untrusted", [0.0, 0.04, 0.1, 1.0])
def test_rows_that_underflow_are_summed_again(untrusted, by, monkeypatch):
    """Of products too large to be formed at once, 3 of 23 rows or 2 of 5 elements at a time,
    so that the last ones are filled up."""
    monkeypatch.setattr(logmatmul, "MAX_JOINED", (3 if by == "row" else 2 * 23) * 17 * 6)
    monkeypatch.setattr(logmatmul, "SMALL_ELEMENT", 0 if by == "row" else 23 * 17 * 6)
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(5, 23, 6)), rng.normal(size=(5, 6, 17))
    # the first matrix has a row that likes one particle and a column that likes another, hundreds of nats apart
    left[rng.random((5, 23)) < untrusted] += [0, -700, -700, -700, -700, -700]
    right[:, :, 5] += np.array([-700, 0, 0, 0, 0, 0])
    left[0, 3], left[1, 5, 2], right[1, :, 4] = -np.inf, -np.inf, -np.inf
    left, right = left.astype(np.float32), right.astype(np.float32)
    cotangent = rng.normal(size=(5, 23, 17)).astype(np.float32)
    terms = left[..., :, None].astype(float) + right[..., None, :, :]
    expected = logsumexp(terms, -2)
    possible = np.isfinite(expected)
    shares = np.exp(terms - np.where(possible, expected, 0.0)[..., None, :]) * (cotangent * possible)[..., None, :]

    trusted = logmatmul._forward(jnp.asarray(left), jnp.asarray(right))[1][-1]
    assert trusted.all() == (untrusted == 0)
    if by == "row":
        assert (trusted.sum() > 1) == (untrusted < 1)  # the row that is impossible is trusted anyway
    else:
        assert trusted.any() == (untrusted < 0.1)  # every element has its share of a tenth of the rows
    with jax.debug_nans(True):
        value, pull = jax.vjp(jax.jit(log_matmul), left, right)
        on_left, on_right = pull(jnp.asarray(cotangent))
        together = jax.vmap(log_matmul)(np.stack([left, left[::-1]]), np.stack([right, right[::-1]]))
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(together[1], expected[::-1], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(on_left, shares.sum(-1), atol=1e-4)
    np.testing.assert_allclose(on_right, shares.sum(-3), atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("far", [0.0, 700.0], ids=["trusted", "summed again"])
@pytest.mark.parametrize("way", [jax.jacrev, jax.jacfwd], ids=["backwards", "forwards"])
def test_second_derivatives_of_products(count, far, way, x64):
    rng = np.random.default_rng(count)
    left, right = rng.normal(size=(2, 3, count)), rng.normal(size=(2, count, 4))
    left[0, 1], right[0, :, 2] = far * rng.normal(size=count), far * rng.normal(size=count)

    def curved(product):
        return lambda pair: jnp.sum(jnp.sin(product(*pair)))

    def plain(left, right):
        return jax.nn.logsumexp(left[..., :, None] + right[..., None, :, :], -2)

    found, expected = (jax.jit(way(jax.grad(curved(f))))((left, right)) for f in (log_matmul, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected)


@pytest.mark.parametrize(("equation", "plates"), EQUATIONS)
def test_impossible_particles(equation, plates):
    """-inf factors: the value is that of enumeration; gradients are finite, and zero where a particle is impossible."""
    problem = Problem(equation, plates)
    rng = np.random.default_rng(5)
    arrays = [
        np.where(rng.random(a.shape) < 0.3, -np.inf, a).astype(np.float32) if a.ndim else a.astype(np.float32)
        for a in problem.arrays
    ]
    with jax.debug_nans(True):
        value, gradients = _value_and_gradients(problem, arrays)
    np.testing.assert_allclose(value, logsumexp(problem.log_weights(arrays)), rtol=1e-5)
    for term, array, gradient in zip(problem.terms, arrays, gradients, strict=True):
        assert np.isfinite(gradient).all()
        if np.isfinite(value) or any(a in problem.variables for a in term.axes):
            assert (np.asarray(gradient)[np.isneginf(array)] == 0).all()


@pytest.mark.parametrize(("equation", "plates"), EQUATIONS)
def test_nothing_possible(equation, plates):
    problem = Problem(equation, plates)
    arrays = [np.full(a.shape, -np.inf, np.float32) if a.ndim else a for a in problem.arrays]
    with jax.debug_nans(True):
        value, gradients = _value_and_gradients(problem, arrays)
    assert np.isneginf(value)
    for term, gradient in zip(problem.terms, gradients, strict=True):
        if any(a in problem.variables for a in term.axes):
            assert (np.asarray(gradient) == 0).all()


def test_impossible_combinations_are_never_drawn():
    problem = Problem("a,abi,bci->", "i")
    rng = np.random.default_rng(0)
    arrays = [np.where(rng.random(a.shape) < 0.5, -np.inf, a).astype(np.float32) for a in problem.arrays]
    log_weights = problem.log_weights(arrays)
    assert np.isfinite(log_weights).any()
    slots = {i: jnp.asarray(a) for i, a in enumerate(arrays)}
    drawn = backward.draw(problem.plan, slots, problem.indices.__getitem__, jax.random.split(jax.random.key(0), 1000))
    assert np.isfinite(log_weights[_numbers(problem, drawn)]).all()
    _, best = backward.best(problem.plan, slots, problem.indices.__getitem__)
    assert _numbers(problem, {v: np.asarray(k)[None] for v, k in best.items()})[0] == np.argmax(log_weights)


@pytest.mark.parametrize(
    ("equation", "plates", "sums"),
    [
        ("abcd,a,b,b,c,d->", "", 1),  # the last factors of a model: scalars without plates
        ("iab,ia,ib,iabcd,a,b,c,d->", "i", 1),
        ("ab,bc,cd,da->", "", 3),  # matrix products are left alone
        ("iz,iza,a,ab,b->", "i", 2),  # a plate is multiplied out between two sums
    ],
)
def test_sums_are_joined(equation, plates, sums, x64):
    """One sum in the place of several has their value and their gradient; -inf in some factors."""
    problem = Problem(equation, plates, spread=3.0)
    problem.arrays[-1][..., 1] = -np.inf
    plan = joined(problem.plan)
    assert sum(isinstance(s, Combine) and bool(s.eliminated) for s in plan.steps) == sums

    def one_by_one(*arrays):
        slots = execute.forward(problem.plan, dict(enumerate(arrays)), Way(problem.indices.__getitem__, sum_rule))
        return sum(slots[s] for s in problem.plan.results)

    every = tuple(range(len(problem.arrays)))
    arrays = [jnp.asarray(a) for a in problem.arrays]
    np.testing.assert_allclose(problem.value(*arrays), logsumexp(problem.log_weights(problem.arrays)), rtol=1e-12)
    both = (jax.grad(f, every)(*arrays) for f in (problem.value, one_by_one))
    for mine, other in zip(*both, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12)


def test_large_sums_are_not_joined():
    """A factor that joins costs a pass over the whole sum on the way back."""
    problem = Problem("abc,a,b,c->", sizes={"a": 128, "b": 128, "c": 128})
    assert joined(problem.plan).steps == problem.plan.steps
    small = Problem("abc,a,b,c->")
    assert len(joined(small.plan).steps) < len(small.plan.steps)
