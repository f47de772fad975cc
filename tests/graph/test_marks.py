"""Every rule of `kayn.graph.marks` against finite dependence: entries of the operands are changed one at a time, and no
entry of a result may move with another element than its marks allow. Where data alone say what is read, the marks say
no more than that either."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse
from jax.experimental.ode import odeint
from jax.lax import linalg

from kayn.graph.expressions import Nodes
from kayn.graph.marks import resolve
from kayn.graph.marks.algebra import own
from kayn.graph.marks.bodies import BODIES
from kayn.graph.marks.values import Values
from kayn.graph.marks.walk import Reading, Walk
from kayn.programs.primitives import ELEMENTWISE
from tests.graph import cases
from tests.graph.cases import INDEX, PAIRS, UNIT, WHOLE, WIDE, Case, case, entries, moves, program

ZEROS = np.array([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
"""A matrix with rows of two, one and no entries."""
BLOCKS = ZEROS.reshape(1, 3, 4) * np.array([1.0, 0.0]).reshape(2, 1, 1)
ENTRIES, PADDED = np.array([1.0, 2.0, 3.0], np.float32), np.array([1.0, 2.0, 3.0, 0.0, 0.0], np.float32)
SPARSE = sparse.BCOO((PADDED, np.array([[0, 1], [0, 3], [1, 2], [3, 4], [3, 4]])), shape=ZEROS.shape)
COMPRESSED = sparse.BCSR((ENTRIES, np.array([1, 3, 2]), np.array([0, 2, 3, 3])), shape=ZEROS.shape)
BATCHED = sparse.BCOO((np.ones((2, 3), np.float32), np.tile(np.arange(3)[:, None], (2, 1, 1))), shape=(2, 3))
"""Written down, since `fromdense` compiles some forty programs."""
SPREAD = np.array([3, 0, 0, 2])


def windows(x: Any, kernel: Any, **options: Any) -> Any:
    return lax.conv_general_dilated(x, jnp.asarray(kernel), **{"window_strides": (1,), "padding": "VALID", **options})


def counted(steps: Any) -> Any:
    return lambda x: lax.while_loop(lambda s: s[0] < steps, lambda s: (s[0] + 1, s[1] * 0.5 + x), (0, x))[1]


def until(x: Any) -> Any:
    """Each for itself."""
    return jax.vmap(lambda v: lax.while_loop(lambda y: y < 3, lambda y: y + jnp.exp(0.1 * v), 0 * v))(x)


def root(x: Any) -> Any:
    """Until none moves any more."""

    def step(state: Any) -> Any:
        y, _ = state
        return y - (y**3 + y - x) / (3 * y**2 + 1), y

    return lax.while_loop(lambda s: jnp.abs(s[0] - s[1]).max() > 1e-13, step, (x * 0, x * 0 + 1))[0]


def decay(x: Any) -> Any:
    def solve(v: Any) -> Any:
        return odeint(lambda y, t: -jnp.exp(v) * y, jnp.ones(1), jnp.array([0.0, 0.5]))[1, 0]

    return jax.vmap(solve)(x)


def at_steps(x: Any) -> Any:
    return lax.scan(lambda c, i: (x[i], c + x[i]), jnp.zeros(()), jnp.asarray(INDEX))


def solved(x: Any, lower: bool, **options: Any) -> Any:
    """By a matrix of two blocks, of which the first and the last entry are one."""
    matrix = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.5, 1.0, 0.0], [0.7, 0.0, 0.0, 1.0]])
    return linalg.triangular_solve(matrix if lower else matrix.T, x, lower=lower, **options)


EXACT: dict[str, list[Case]] = {
    "gather": [
        *cases.CASES["gather"][:9],
        case(lambda x: x.at[jnp.array([0, 5, 2])].get(mode="fill", fill_value=0.0), (3, 2)),
        case(lambda x: x.at[jnp.array([0, 5, -9])].get(mode="clip"), (3, 2)),
        case(lambda x: jax.vmap(lambda i: x[i])(jnp.asarray(INDEX)), (3, 2)),
    ],
    "select_n": [case(lambda x, y: jnp.where(np.array([True, False, True]), x, y), (2, 3), (2, 3))],
    "mul": [case(lambda x: (ZEROS * x).sum(-1), (4,)), case(lambda x: ZEROS[0] * x, (3, 4))],
    "dot_general": [
        case(lambda x: ZEROS @ x, (4,)),
        case(lambda x: ZEROS @ x, (4, 2)),
        case(lambda x: x @ ZEROS, (2, 3)),
        case(lambda x: jnp.einsum("bij,bj->bi", BLOCKS, x), (2, 4)),
        case(lambda x: jnp.einsum("bj,ij->bi", x, ZEROS), (2, 4)),
        case(lambda x: jnp.einsum("bij,bjk->ibk", BLOCKS, x), (2, 4, 2)),
        case(lambda x: jax.nn.one_hot(INDEX, 3) @ x, (3, 2)),
        case(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), (2, 2, 2), (2, 2, 3)),
    ],
    "triangular_solve": [
        case(partial(solved, left_side=left, lower=lower, transpose_a=turned), (4, 2) if left else (2, 4))
        for left in (True, False)
        for lower in (True, False)
        for turned in (True, False)
    ],
    "bcoo_dot_general": [
        case(lambda x: SPARSE @ x, (4,)),
        case(lambda x: SPARSE @ x, (4, 2)),
        case(lambda x: sparse.BCOO((x, SPARSE.indices), shape=ZEROS.shape) @ np.arange(1.0, 5.0), (5,)),
    ],
    "bcsr_dot_general": [case(lambda x: COMPRESSED @ x, (4, 2))],
    "conv_general_dilated": [
        case(lambda x: jnp.convolve(x, jnp.array([0.0, 1.0, 0.0])), (4,)),
        case(lambda x: jax.vmap(lambda v: jnp.convolve(v, jnp.array([1.0, 0.5])))(x), (2, 4)),
        case(lambda x, y: jax.vmap(partial(jnp.convolve, mode="valid"))(x, y), (2, 4), (2, 3)),
        case(lambda x: windows(x, ZEROS.reshape(3, 2, 2), padding=((1, 0),), lhs_dilation=(2,)), (1, 2, 3)),
        case(lambda x: windows(x, np.ones((2, 1, 2)), window_strides=(2,), rhs_dilation=(2,), feature_group_count=2),
             (1, 2, 5)),
    ],
    "reduce_window_sum": [
        case(lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), ((0, 0), (1, 0))), (2, 4)),
    ],
    "concatenate": cases.CASES["concatenate"],
    "pad": [
        *cases.CASES["pad"],
        case(lambda x: lax.pad(x, np.zeros((), x.dtype), ((-1, 2, 1), (0, 0, 2))), (3, 2)),
        case(lambda x: lax.pad(x, np.zeros((), x.dtype), ((-2, -1, 1), (1, -1, 0))), (4, 2)),
    ],
    "split": cases.CASES["split"],
    "stack": cases.CASES["stack"],
    "unstack": cases.CASES["unstack"],
    "tile": cases.CASES["tile"],
    "reshape": cases.CASES["reshape"],
    "transpose": cases.CASES["transpose"],
    "rev": cases.CASES["rev"],
    "slice": cases.CASES["slice"],
    "squeeze": cases.CASES["squeeze"],
    "broadcast_in_dim": cases.CASES["broadcast_in_dim"],
    "cumsum": [*cases.CASES["cumsum"], case(lambda x: lax.cumsum(x, reverse=True), (4,))],
    "reduce_sum": cases.CASES["reduce_sum"],
    "dynamic_slice": [
        cases.CASES["dynamic_slice"][0],
        case(lambda x: lax.dynamic_slice(x, (9, -3), (2, 2)), (3, 4)),
    ],
    "dynamic_update_slice": [case(lambda x, y: lax.dynamic_update_slice(x, y, (1, 9)), (3, 4), (2, 2))],
    "scatter": [
        case(lambda x, y: x.at[SPREAD[:2]].set(y), (4, 3), (2, 3)),
        case(lambda x, y: x.at[PAIRS[:, 0], PAIRS[:, 1]].set(y), (3, 4), (3,)),
        case(lambda x: jnp.zeros(5).at[jnp.array([7, 1, 3])].set(x), (3,)),
        case(lambda x, y: jax.vmap(lambda a, b, i: a.at[i].set(b))(x, y, SPREAD[:2]), (2, 4), (2,)),
    ],
    "scatter-add": [
        case(lambda x, y: x.at[SPREAD].add(y), (4, 2), (4, 2)),
        case(lambda x: jax.ops.segment_sum(x, jnp.asarray(SPREAD), 5), (4, 2)),
        case(lambda x: jnp.zeros((2, 5)).at[:, SPREAD].add(x), (2, 4)),
    ],
    "scan": [
        case(at_steps, (3,)),
        case(lambda x: lax.scan(lambda c, r: (r, c), x[0], x), (4, 2)),
        case(lambda x: lax.scan(lambda c, r: (r, c), x[0], x, reverse=True), (4, 2)),
        case(lambda x: lax.scan(lambda c, r: (c + r * x, c), 0 * x, jnp.arange(1.0, 4.0)), (3,)),
        case(lambda x: lax.fori_loop(0, 5, lambda i, out: out.at[i].set(x[jnp.asarray(INDEX)[i]]), jnp.zeros(5)), (3,)),
        case(lambda x: lax.map(lambda i: x[i], jnp.asarray(INDEX)), (3, 2)),
        case(lambda x: lax.scan(lambda c, r: ((c[0], jnp.roll(c[1], 1)), c[1] + r), (x, x), x)[1], (3, 3)),
    ],
    "while": [case(counted(3), (4,)), case(until, (4,)), case(root, (4,))],
    "cond": [
        case(lambda x: lax.cond(INDEX[0] > 0, lambda y: y, lambda y: y[::-1], x), (4,)),
        case(lambda x: jax.vmap(lambda i: lax.cond(i > 0, lambda: x[i], lambda: -x[i]))(jnp.asarray(INDEX)), (3,)),
    ],
    "custom_linear_solve": [
        case(lambda x: jax.vmap(lambda v: jnp.linalg.solve(v * jnp.eye(2) + 1, jnp.ones(2)))(x), (3,), kind=UNIT),
        case(lambda x: jnp.linalg.inv(x[:, None, None] * jnp.eye(2) + 1), (3,), kind=UNIT),
    ],
    "while in a scan": [case(decay, (3,))],
}  # fmt: skip
"""Cases whose marks are as narrow as what is read, by the primitive that they are about."""

LOOSE: dict[str, list[Case]] = {
    **{n: c for n, c in cases.CASES.items() if n not in {*EXACT, *ELEMENTWISE} - {"add", "clamp"}},
    **{f"{n}, any": cases.CASES[n] for n in ("gather", "select_n", "dynamic_slice", "dot_general")},
    **{f"{n}, any": cases.CASES[n] for n in ("scan", "while", "cond", "mul")},
    "scatter, any": [
        case(lambda x, i: x.at[i].add(1.0), (4,), (2,), kind=(WIDE, WHOLE)),
        case(lambda x, y, i: lax.dynamic_update_slice(x, y, (i,)), (4,), (2,), (), kind=(WIDE, WIDE, WHOLE)),
    ],
    "reduce": [case(lambda x: lax.reduce(x, 1.0, lambda a, b: a * b + 0.0, (0,)), (3, 2))],
    "fft": [case(lambda x: jnp.abs(jnp.fft.fft(x)), (2, 4))],
    "expm": [case(lambda x: jax.vmap(lambda v: jax.scipy.linalg.expm(v * jnp.ones((2, 2))))(x), (3,))],
    "tridiagonal_solve": [case(lambda x: lax.linalg.tridiagonal_solve(x, x + 3, x, x[:, None]), (3,), kind=UNIT)],
    "while, any": [
        case(lambda x: lax.while_loop(lambda y: (y < 3).any(), lambda y: y + jnp.exp(0.1 * x), 0 * x), (3,)),
    ],
    "bcoo_dot_general, any": [case(lambda x: BATCHED @ x, (3,))],
    "switch": [
        case(lambda x, i: lax.switch(i, [jnp.sin, lambda v: v[::-1], jnp.cos], x), (3,), (), kind=(WIDE, WHOLE))
    ],
}
CASES = {**EXACT, **LOOSE}


def marks_of(one: Case) -> list[Mapping[Any, np.ndarray]]:
    """Marks of every result, by operand and dimension."""
    traced, latents = program(one)
    nodes = Nodes([*traced.consts, *(None for _ in latents)])
    rng = np.random.default_rng(3)
    values = Values(nodes, [*traced.consts, *(entries(k, rng, s) for k, s in one.operands)])
    consts = [Reading(nodes.leaf(i), {}) for i in range(len(traced.consts))]
    inputs = [
        Reading(nodes.leaf(len(consts) + i), {(i, d): own(z.shape, d) for d in range(len(z.shape))})
        for i, z in enumerate(latents)
    ]
    out = Walk(values, resolve.RULES, BODIES).run(traced.jaxpr, [*consts, *inputs])
    return [r.marks for r in out]


@cache
def seen(name: str) -> list[tuple[Case, list]]:
    with jax.enable_x64(True):
        return [(c, list(moves(c))) for c in CASES[name]]


def wrong(one: Case, moved: list, marks: list, exact: bool) -> list[str]:
    """What moves though marks exclude it, and if they are to be exact what they say to be read of several elements
    though nothing but one moves it."""
    found = []
    shapes = [s for _, s in one.operands]
    for output, own_marks in enumerate(marks):
        reached: dict[Any, Any] = {}
        for operand, place, entries_moved in moved:
            for dim, element in enumerate(place):
                mark = own_marks.get((operand, dim))
                now = entries_moved[output]
                allowed = np.zeros_like(now) if mark is None else (-mark[0] <= element) & (element <= mark[1])
                if (now & ~allowed).any():
                    found.append(f"result {output} moves with {place} of operand {operand}")
                reached.setdefault((operand, dim), np.zeros((shapes[operand][dim], *now.shape), bool))[element] |= now
        for key, by_element in reached.items():
            mark = own_marks.get(key)
            if exact and mark is not None and ((mark.sum(0) > 0) & (by_element.sum(0) < 2)).any():
                found.append(f"result {output} is said to read several of {key}")
    return found


@pytest.mark.parametrize("name", CASES)
def test_nothing_moves_that_marks_exclude(name, x64):
    """And in exact cases nothing that reads one element is said to read several."""
    for one, moved in seen(name):
        found = wrong(one, moved, marks_of(one), name in EXACT)
        assert not found, found


@pytest.mark.parametrize("name", EXACT)
def test_a_wrong_rule_is_noticed(name, x64):
    """The same marks with every element one further on."""
    shifted = [[{k: m + np.array([-1, 1]).reshape(2, *(1,) * (m.ndim - 1)) * (abs(m) < 100) for k, m in r.items()}
                for r in marks_of(c)] for c in CASES[name]]  # fmt: skip
    assert any(wrong(c, moved, marks, True) for (c, moved), marks in zip(seen(name), shifted, strict=True))
