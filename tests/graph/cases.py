"""Functions of every primitive, and which entries of their results move when one of an operand changes.

Programs run without being compiled, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core.primitives import (
    add_jaxvals_p,
    and_p,
    copy_p,
    lu_p,
    not_p,
    or_p,
    regularized_incomplete_beta_p,
    xor_p,
)
from jax.lax import linalg

from kayn.graph.types import Latent

UNIT, LARGE, WIDE, WHOLE, BITS, HALVES, COMPLEX = "unit", "large", "wide", "whole", "bits", "halves", "complex"
"""Entries in (0, 1), above 1, of either sign, whole numbers, booleans, some of them infinite, and complex."""


def entries(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    match kind:
        case "unit":
            return rng.uniform(0.1, 0.9, shape)
        case "large":
            return rng.uniform(1.5, 9.0, shape)
        case "wide":
            return 3.0 * rng.normal(size=shape)
        case "whole":
            return rng.integers(0, 4, shape).astype(np.int32)
        case "bits":
            return rng.random(shape) < 0.5
        case "halves":
            return np.where(rng.random(shape) < 0.5, np.inf, 1.0)
        case _:
            return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@dataclass(frozen=True)
class Case:
    """A function of latents, each with a plate for every dimension.

    Attributes:
        shapes: of its operands.
        kinds: of their entries; one for all, or one each.
    """

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...] = (WIDE,)

    @property
    def operands(self) -> list[tuple[str, tuple[int, ...]]]:
        kinds = self.kinds * len(self.shapes) if len(self.kinds) == 1 else self.kinds
        return list(zip(kinds, self.shapes, strict=True))


def case(function: Callable[..., Any], *shapes: tuple[int, ...], kind: str | tuple[str, ...] = WIDE) -> Case:
    return Case(function, shapes, (kind,) if isinstance(kind, str) else kind)


def elementwise(function: Callable[..., Any], kind: str = UNIT, count: int = 1) -> list[Case]:
    """Of several operands also the first beside numbers, and one latent as both."""
    found = [case(function, *[shape] * count, kind=kind) for shape in ((4,), (2, 3))]
    others = [lambda x: function(x, *[jnp.full_like(x, 2)] * (count - 1)), lambda x: function(*[x + x] * count)]
    return found + [case(f, (2, 1, 3), kind=kind) for f in others[: 2 * (count > 1)]]


def of(name: str, **options: Any) -> Callable[..., Any]:
    return partial(getattr(lax, name), **options)


UNARY = {
    UNIT: "abs acos asin atan atanh asinh bessel_i0e bessel_i1e cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 "
    "lgamma log log1p logistic neg rsqrt sin sinh sqrt square tan tanh",
    LARGE: "acosh",
    WIDE: "ceil floor round sign",
    HALVES: "is_finite",
    COMPLEX: "conj imag real",
    WHOLE: "clz population_count",
}
BINARY = {
    UNIT: "add atan2 complex div igamma igamma_grad_a igammac max min mul nextafter pow sub",
    LARGE: "rem zeta",
    WHOLE: "eq ge gt le lt ne shift_left shift_right_arithmetic shift_right_logical",
}
CASES: dict[str, list[Case]] = {
    **{n: elementwise(of(n), kind) for kind, names in UNARY.items() for n in names.split()},
    **{n: elementwise(of(n), kind, 2) for kind, names in BINARY.items() for n in names.split()},
    "abs": [*elementwise(lax.abs), case(lax.abs, (2, 3), kind=COMPLEX)],
    "add_any": elementwise(add_jaxvals_p.bind, UNIT, 2),
    "and": elementwise(and_p.bind, WHOLE, 2),
    "or": elementwise(or_p.bind, WHOLE, 2),
    "xor": elementwise(xor_p.bind, WHOLE, 2),
    "not": elementwise(not_p.bind, BITS),
    "mulhi": elementwise(lambda x, y: lax.mulhi((x + 1) << 20, (y + 1) << 20), WHOLE, 2),
    "eq_to": elementwise(lax.eq_to_p.bind, WHOLE, 2),
    "le_to": elementwise(lax.le_to_p.bind, UNIT, 2),
    "lt_to": elementwise(lax.lt_to_p.bind, UNIT, 2),
    "name": elementwise(lambda x: checkpoint_name(x, "x")),
    "device_put": [case(lambda x, y: jax.device_put((x, y)), (2, 3), (3,))],
    "polygamma": elementwise(lambda x: lax.polygamma(jnp.full_like(x, 2), x), LARGE),
    "copy": elementwise(copy_p.bind),
    "convert_element_type": elementwise(lambda x: lax.convert_element_type(x, jnp.int32), WIDE),
    "integer_pow": elementwise(lambda x: lax.integer_pow(x, 3)),
    "reduce_precision": elementwise(lambda x: lax.reduce_precision(x, 8, 10)),
    "stop_gradient": elementwise(lax.stop_gradient),
    "clamp": [*elementwise(lax.clamp, WIDE, 3), case(lambda x: lax.clamp(-1.0, x, 1.0), (2, 3))],
    "regularized_incomplete_beta": elementwise(regularized_incomplete_beta_p.bind, UNIT, 3),
    "select_n": [
        case(lax.select_n, (2, 3), (2, 3), (2, 3), kind=(BITS, WIDE, WIDE)),
        case(lambda x, y: lax.select_n(x.sum() > 0, x, y), (2, 3), (2, 3)),
    ],
}


def along(name: str, module: Any = jnp, axes: Any = (0, 1), kind: str = WIDE) -> list[Case]:
    """An operation along one dimension of [3, 4] and [2, 3, 2]."""
    return [
        case(lambda x, a=axis: getattr(module, name)(x, axis=a), shape, kind=kind)
        for axis, shape in zip(axes, ((3, 4), (2, 3, 2)), strict=True)
    ]


CASES |= {f"reduce_{n}": along(n, axes=(1, (0, 2))) for n in ("sum", "max", "min", "prod")}
CASES |= {"reduce_and": along("all", kind=BITS), "reduce_or": along("any", kind=BITS)}
CASES |= {"reduce_xor": [case(lambda x: lax.reduce_xor(x, (1,)), shape, kind=WHOLE) for shape in ((3, 4), (2, 3, 2))]}
CASES |= {n: along(n) for n in ("argmax", "argmin")}
CASES |= {n: along(n, lax) for n in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")}


def positive(x: Any) -> Any:
    """A positive definite matrix for every batch element."""
    return jnp.einsum("...ij,...kj->...ik", x, x) + 3 * jnp.eye(x.shape[-2])


INDEX, PAIRS = np.array([2, 0, 0, 1, 2], np.int32), np.array([[2, 0], [0, 3], [1, 1]], np.int32)
CASES |= {
    "sort": [
        case(lambda x: lax.sort(x, dimension=0), (3, 4)),
        case(lambda x, y: lax.sort((x, y), dimension=1, num_keys=1), (2, 3, 2), (2, 3, 2)),
    ],
    "top_k": [case(lambda x: lax.top_k(x, 2), (2, 4)), case(lambda x: lax.top_k(x, 2, axis=0), (3, 2))],
    "cholesky": [case(lambda x: linalg.cholesky(positive(x)), (2, 3, 3))],
    "lu": [case(lu_p.bind, (2, 3, 3))],
    "eigh": [case(lambda x: linalg.eigh(positive(x)), (3, 2, 2))],
    "qr": [case(lambda x: linalg.qr(x, full_matrices=False), (2, 3, 2))],
    "svd": [case(lambda x: linalg.svd(x, full_matrices=False), (2, 3, 2))],
    "householder_product": [case(lambda x, t: linalg.householder_product(x, t), (2, 3, 2), (2, 2))],
    "symmetric_product": [case(lambda x, c: linalg.symmetric_product(x, c), (2, 3, 2), (2, 3, 3))],
    "triangular_solve": [
        case(lambda a, b: linalg.triangular_solve(positive(a), b, left_side=True, lower=True), (2, 3, 3), (2, 3, 2)),
        case(lambda a, b: linalg.triangular_solve(a, b, left_side=False), (3, 3), (2, 3)),
        case(lambda b: linalg.triangular_solve(np.tril(np.ones((3, 3))), b, left_side=True, lower=True), (3, 4)),
    ],
    "stack": [case(lambda x, y, a=axis: jnp.stack([x, y, x], a), (2, 3), (2, 3)) for axis in (0, 1, -1)],
    "unstack": [case(lambda x, a=axis: jnp.unstack(x, axis=a), (2, 3, 2)) for axis in (0, 1, 2)],
    "optimization_barrier": [case(lambda x, y: lax.optimization_barrier((x, y)), (2, 3), (3,))],
    "broadcast_in_dim": [
        case(lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (0, 2)), (2, 4)),
        case(lambda x: lax.broadcast_in_dim(x, (5, 3, 4), (0, 2)), (1, 4)),
        case(lambda x: jnp.broadcast_to(x[:, None], (3, 3)), (3,)),
    ],
    "transpose": [case(lambda x: lax.transpose(x, (2, 0, 1)), (2, 3, 4)), case(jnp.transpose, (3, 3))],
    "squeeze": [case(lambda x: lax.squeeze(x, (1,)), (2, 1, 3)), case(lambda x: lax.squeeze(x, (0, 2)), (1, 3, 1))],
    "rev": [case(lambda x: lax.rev(x, (0,)), (3, 4)), case(lambda x: lax.rev(lax.rev(x, (1,)), (0, 1)), (3, 4))],
    "slice": [
        case(lambda x: x[1:3, ::2], (4, 5)),
        case(lambda x: lax.slice(lax.rev(x, (0,)), (1, 0), (4, 3), (2, 1)), (5, 3)),
    ],
    "tile": [case(lambda x: jnp.tile(x, (2, 3)), (3, 2)), case(lambda x: jnp.tile(x[::-1], (2, 1)), (3, 2))],
    "dynamic_slice": [
        case(lambda x: lax.dynamic_slice(x, (1, 0), (2, 4)), (3, 4)),
        case(lambda x, i: lax.dynamic_slice(x, (i, np.int32(0)), (2, 4)), (3, 4), (), kind=(WIDE, WHOLE)),
        case(lambda i: lax.dynamic_slice(jnp.arange(12.0).reshape(4, 3), (i, np.int32(0)), (1, 3)), (), kind=WHOLE),
    ],
    "pad": [
        case(lambda x: lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), (1, 2, 0))), (3, 2)),
        case(lambda x: lax.pad(x, np.zeros((), x.dtype), ((0, 0, 0), (-1, 1, 0))), (2, 3)),
        case(lambda x, v: lax.pad(x, v, ((0, 0, 1), (0, 0, 0))), (2, 3), ()),
    ],
    "concatenate": [
        case(lambda x, y: lax.concatenate([x, y], 0), (2, 3), (1, 3)),
        case(lambda x, y: lax.concatenate([x, y, x], 1), (2, 3), (2, 2)),
    ],
    "split": [case(lambda x: lax.split(x, (1, 2), axis=1), (2, 3)), case(lambda x: jnp.split(x, 2), (4, 2))],
    "reshape": [
        case(lambda x, s=shape: x.reshape(s), before)
        for before, shape in (
            ((2, 3), (6,)), ((2, 3, 2), (2, 6)), ((4, 3), (2, 2, 3)), ((6,), (2, 1, 3)), ((2, 6), (4, 3)),
            ((1, 3), (3,)),
        )
    ]
    + [
        case(lambda x: x.reshape(2, 2, 3).transpose(1, 0, 2).reshape(4, 3), (4, 3)),
        case(lambda x: x.T.reshape(-1)[::2].reshape(3, 2), (3, 4)),
        case(lambda x: lax.reshape(x, (6,), dimensions=(1, 0)), (2, 3)),
        case(lambda x: jnp.stack([x, x], -1).reshape(6, 2)[1::2], (3, 2)),
    ],
    "dot_general": [
        case(lambda x, y, s=spec: jnp.einsum(s, x, y), *shapes)
        for spec, *shapes in (
            ("ij,jk->ik", (2, 3), (3, 2)),
            ("bij,bkj->bik", (2, 2, 3), (2, 3, 3)),
            ("ibj,jkb->bik", (2, 3, 2), (2, 2, 3)),
            ("i,j->ij", (2,), (3,)),
        )
    ]
    + [case(lambda x: lax.dot_general(x, x, (((1,), (1,)), ((0,), (0,)))), (3, 4))],
    "gather": [
        case(lambda x: x[INDEX], (3, 2)),
        case(lambda x: x[:, INDEX], (2, 3)),
        case(lambda x: x[PAIRS[:, 0], PAIRS[:, 1]], (3, 4)),
        case(lambda x: x[PAIRS[:, :1], PAIRS[:, 1][None]], (3, 4)),
        case(lambda x: x[PAIRS], (4, 2)),
        case(lambda x: x[INDEX][::-1][np.array([4, 1])], (3, 2)),
        case(lambda x: jnp.take_along_axis(x, INDEX[None, :3], 1), (2, 3)),
        case(lambda x: jnp.take_along_axis(x, PAIRS, 1), (3, 4)),
        case(lambda x: jnp.take(x, np.array([0, 2]), axis=0, mode="fill"), (3, 2)),
        case(lambda z: jnp.array([0.1, 0.5, -1.0, 2.0])[z], (2, 3), kind=WHOLE),
        case(lambda x, z: x[z], (4,), (3,), kind=(WIDE, WHOLE)),
        case(lambda x, z: jax.vmap(lambda r, i: r[i])(x, z), (3, 4), (3,), kind=(WIDE, WHOLE)),
    ],
    # loops follow by the same annotations
    "scan": [
        case(lambda x: lax.scan(lambda c, r: (c + r, c * r), jnp.zeros(3), x), (2, 3)),
        case(lambda x, y: lax.scan(lambda c, r: (c * r[:, None], c + y), y, x), (3, 2), (2, 2)),
    ],
    "while": [
        case(lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, x))[1], (2, 3)),
        case(lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x + c[1][::-1]), (0, x)), (4,)),
        case(lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1 + abs(x), x), (2, 3)),
    ],
    "cond": [
        case(lambda x: lax.cond(x[0] > 0, lambda y: y, lambda y: -y, x), (4,)),
        case(lambda x, y: lax.cond(y.sum() > 0, jnp.sin, lambda v: jnp.cos(v)[::-1], x), (3, 2), (2,)),
    ],
}  # fmt: skip


def program(case: Case) -> tuple[Any, list[Latent]]:
    """What is traced, and its inputs."""
    args = [jax.ShapeDtypeStruct(s, entries(k, np.random.default_rng(0), s).dtype) for k, s in case.operands]
    closed = jax.make_jaxpr(lambda *a: jax.tree.leaves(case.function(*a)))(*args)
    names = tuple(f"z{i}" for i in range(len(args)))
    outputs = tuple(f"out{i}" for i in range(len(closed.jaxpr.outvars)))
    latents = [
        Latent(n, a.shape, str(a.dtype), a.ndim, tuple((f"{n} along {d}", d) for d in range(a.ndim)), False)
        for n, a in zip(names, args, strict=True)
    ]
    return SimpleNamespace(jaxpr=closed.jaxpr, consts=closed.consts, inputs=names, outputs=outputs), latents


def moves(case: Case) -> Iterator[tuple[int, tuple[int, ...], list[np.ndarray]]]:
    """Operand, place of one of its entries, and which entries of every result move when that one changes."""
    rng = np.random.default_rng(7)
    for _ in range(2):
        args = [entries(k, rng, s) for k, s in case.operands]

        def results(values: list[np.ndarray]) -> list[np.ndarray]:
            return [np.asarray(v) for v in jax.tree.leaves(case.function(*map(jnp.asarray, values)))]

        before = results(args)
        for operand, (kind, shape) in enumerate(case.operands):
            for place in np.ndindex(*shape):
                changed = [np.array(a) for a in args]
                changed[operand][place] = entries(kind, rng, ())
                after = results(changed)
                # iterations of special functions go on until all entries are settled, which rounds others differently
                same = [
                    np.isclose(a, b, rtol=1e-12, atol=0, equal_nan=True) for a, b in zip(after, before, strict=True)
                ]
                yield operand, place, [~s for s in same]


@cache
def cases_with_moves(name: str) -> list[tuple[Case, list]]:
    with jax.enable_x64(True):
        return [(c, list(moves(c))) for c in CASES[name]]
