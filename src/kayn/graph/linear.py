"""Values of a program that are linear in one vector of its, followed as numbers: what a linear map gives for probes.

A value is `c M v + b`: c a product of numbers of the program, one for all entries or one for all along some of their
dimensions, M a matrix of constants, which is only ever applied to the probes, and b what does not depend on the
vector v.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from kayn.graph.recursions import decays_of, is_recursion
from kayn.programs.slices import equation_as_function, equations_of
from kayn.support.arrays import Array
from kayn.xla.compilation import is_traced

MOVING = {"broadcast_in_dim", "concatenate", "copy", "copy_p", "pad", "reshape", "rev", "slice", "squeeze", "transpose"}
JOINING = MOVING | {"add", "add_any", "convert_element_type", "cumsum", "neg", "reduce_sum", "sub"}
"""Linear in all operands together."""
CHOOSING = {"select_n": (0,), "gather": (1,), "dynamic_slice": None}
"""Linear in operands for given ones, of which these are the places; None for all but the first."""
ENTRIES = {"add", "add_any", "convert_element_type", "copy", "copy_p", "div", "mul", "neg", "select_n", "sub"}
"""Entry by entry."""
PRODUCTS = {"mul": (1, 1), "div": (1, -1), "neg": (1,)} | dict.fromkeys(MOVING - {"concatenate", "pad"}, (1,))
"""What may be made of a product such that it stays one, and the power that each operand has in it."""


@dataclass(frozen=True)
class Factor:
    """An array that multiplies a value entry by entry.

    Attributes:
        variable: whose dimensions of one element do not count.
        dims: of the value, those that the others are; none for a single number.
    """

    variable: Any
    dims: tuple[int, ...] = ()

    @staticmethod
    def of(operand: Any, eqn: JaxprEqn, dims: Sequence[int]) -> Factor | None:
        """An operand whose dimensions are these of an equation's result; None where it is not the smaller one."""
        shape = operand.aval.shape
        smaller = operand.aval.size < eqn.outvars[0].aval.size and not isinstance(operand, Literal)
        return Factor(operand, tuple(d for d, n in zip(dims, shape, strict=True) if n > 1)) if smaller else None

    def spread(self, numbers: Array, ndim: int) -> Array:
        """Its numbers, such that they broadcast with a value of this many dimensions."""
        own = numbers.reshape([n for n in numbers.shape if n > 1])
        sizes = dict(zip(self.dims, own.shape, strict=True))
        return own.transpose(np.argsort(self.dims)).reshape([sizes.get(d, 1) for d in range(ndim)] if sizes else ())


Factors = Mapping[Factor, int]


@dataclass(frozen=True, eq=False)
class Linear:
    """A value that is linear in the vector.

    Attributes:
        factors: those whose product is c, with their powers.
        numbers: M applied to every probe, in the value's shape.
    """

    factors: Factors
    numbers: tuple[np.ndarray, ...]


def values_of(jaxpr: Jaxpr, known: Sequence[Any]) -> dict[Any, Any]:
    """Constants and inputs of a program by variable, those that are not None and not being traced."""
    given = zip((*jaxpr.constvars, *jaxpr.invars), known, strict=True)
    return {v: x for v, x in given if x is not None and not is_traced(x)}


class Following:
    """Follows a vector through a program without calls.

    Args:
        known: values of the program's constants and inputs, None where unknown.
        start: the variable that is the vector.
        probes: values of it.
        opaque: variables whose values are not known although they are computed of what is.
        states: what a recursion of unknown decays gives for the first of the probes, which are then its innovations
            divided by their weight.

    Attributes:
        decays: those of the only such recursion, by lag.
    """

    def __init__(
        self,
        jaxpr: Jaxpr,
        known: Sequence[Any],
        start: Any,
        probes: Sequence[np.ndarray],
        opaque: Sequence[Any] = (),
        states: Sequence[np.ndarray] = (),
    ):
        self.states = tuple(states)
        self.decays: list[Any] = []
        self.jaxpr = jaxpr
        self.made = {v: e for e in jaxpr.eqns for v in e.outvars}
        self.values = values_of(jaxpr, known)
        self.unknown = {v for v in (*jaxpr.constvars, *jaxpr.invars) if v not in self.values} | {start, *opaque}
        for eqn in jaxpr.eqns:
            if any(v in self.unknown for v in eqn.invars if not isinstance(v, Literal)):
                self.unknown.update(eqn.outvars)
        self.vector = tuple(np.asarray(p, start.aval.dtype) for p in probes)
        self.found: dict[Any, Linear] = {start: Linear({}, self.vector)}

    def of(self, atom: Any) -> Linear | None:
        """What is known of a variable."""
        return None if isinstance(atom, Literal) else self.found.get(atom)

    def reads(self, eqn: JaxprEqn) -> list[int]:
        """Which operands depend on the vector linearly."""
        return [i for i, v in enumerate(eqn.invars) if self.of(v) is not None]

    def follow(self, eqn: JaxprEqn) -> bool:
        """Find what an equation's last result is, and say whether it is linear."""
        rule = {
            "mul": self._times,
            "div": self._times,
            "dot_general": self._product,
            "conv_general_dilated": self._product,
            "scan": self._recursion,
        }.get(eqn.primitive.name, self._joined)
        found = rule(eqn, self.reads(eqn))
        if found is not None:
            self.found[eqn.outvars[-1]] = found
        return found is not None

    def _recursion(self, eqn: JaxprEqn, mine: Sequence[int]) -> Linear | None:
        if not is_recursion(eqn) or mine != [len(eqn.invars) - 1]:
            return None
        own, decays = self.found[eqn.invars[-1]], self.decays_of(eqn)
        if any(0 in f.dims for f in own.factors):
            return None
        known = [x for decay in decays if (x := self.known(decay)) is not None]
        if len(known) == len(decays):
            return Linear(own.factors, tuple(_states(known, x) for x in own.numbers))
        if not self.states or self.decays not in ([], decays):
            return None
        weight = self.weight_of(own.numbers[len(self.states) :])
        if weight is None:
            return None
        self.decays = decays
        mixed = (_states([np.full(1, 0.5)] * len(decays), x) for x in own.numbers[len(self.states) :])
        return Linear(own.factors, (*(weight * x for x in self.states), *mixed))

    def decays_of(self, eqn: JaxprEqn) -> list[Any]:
        """The variables that are all decays of a recursion, or have them, by lag."""
        return [self._single(v) or v for v in decays_of(eqn)]

    def weight_of(self, numbers: Sequence[np.ndarray]) -> float | None:
        """How often a value is the vector itself, of whose probes, the last, it gives these numbers; None where it is
        something else."""
        probes = self.vector[len(self.vector) - len(numbers) :]
        weight = float(numbers[0].ravel()[0] / probes[0].ravel()[0])
        same = all(
            n.shape == p.shape and np.allclose(n, weight * p, rtol=1e-5) for n, p in zip(numbers, probes, strict=True)
        )
        return weight if same else None

    def _joined(self, eqn: JaxprEqn, mine: Sequence[int]) -> Linear | None:
        name, operands = eqn.primitive.name, eqn.invars
        if name not in JOINING and name not in CHOOSING:
            return None
        places = () if name in JOINING else CHOOSING[name] or tuple(range(1, len(operands)))
        factors = self.found[operands[mine[0]]].factors
        moved = _moved(eqn, factors)
        floats = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)
        if moved is None or not floats or any(i in places or self.found[operands[i]].factors != factors for i in mine):
            return None
        others = {i: self.known(operands[i]) for i in places}
        if any(x is None for x in others.values()):
            return None
        zeros = {i: np.zeros(v.aval.shape, v.aval.dtype) for i, v in enumerate(operands) if i not in places}
        return Linear(moved, self._apply(eqn, mine, {**zeros, **others}))

    def _times(self, eqn: JaxprEqn, mine: Sequence[int]) -> Linear | None:
        if len(mine) > 1 or (eqn.primitive.name == "div" and mine != [0]):
            return None
        own, place = self.found[eqn.invars[mine[0]]], 1 - mine[0]
        other = self._factors(eqn.invars[place], eqn)
        if other is None:
            return None
        factors, power = Counter(own.factors), -1 if eqn.primitive.name == "div" else 1
        for f, n in other[0].items():
            factors[f] += power * n
        return Linear({f: n for f, n in factors.items() if n}, self._apply(eqn, mine, {place: other[1]}))

    def _product(self, eqn: JaxprEqn, mine: Sequence[int]) -> Linear | None:
        if len(mine) > 1:
            return None
        other = self.known(eqn.invars[1 - mine[0]])
        own = self.found[eqn.invars[mine[0]]].factors
        if other is None or any(f.dims for f in own):
            return None
        return Linear(own, self._apply(eqn, mine, {1 - mine[0]: other}))

    def _apply(self, eqn: JaxprEqn, mine: Sequence[int], others: Mapping[int, Any]) -> tuple[np.ndarray, ...]:
        numbers = (self.found[eqn.invars[i]].numbers for i in mine)
        return tuple(
            _run(eqn, {**others, **dict(zip(mine, probe, strict=True))}) for probe in zip(*numbers, strict=True)
        )

    def _factors(self, atom: Any, eqn: JaxprEqn) -> tuple[Factors, np.ndarray] | None:
        """An operand as `_apart` has it, or as one factor of the result."""
        found, shape = self._apart(atom), atom.aval.shape
        factor = Factor.of(atom, eqn, range(len(shape))) if found is None else None
        return found if factor is None else ({factor: 1}, np.ones(shape, atom.aval.dtype))

    def _apart(self, atom: Any) -> tuple[Factors, np.ndarray] | None:
        """A value as factors times known numbers in its shape; None where it is no such product."""
        number = self.known(atom)
        if number is not None:
            return {}, number
        single = self._single(atom)
        if single is not None:
            return {Factor(single): 1}, np.ones(atom.aval.shape, atom.aval.dtype)
        eqn = self.made.get(atom)
        if eqn is None or eqn.primitive.name not in PRODUCTS:
            return None
        if eqn.primitive.name == "broadcast_in_dim" and self._apart(eqn.invars[0]) is None:
            factor = Factor.of(eqn.invars[0], eqn, eqn.params["broadcast_dimensions"])
            return None if factor is None else ({factor: 1}, np.ones(atom.aval.shape, atom.aval.dtype))
        parts = [part for v in eqn.invars if (part := self._factors(v, eqn)) is not None]
        if len(parts) < len(eqn.invars):
            return None
        factors: Counter[Factor] = Counter()
        for power, (own, _) in zip(PRODUCTS[eqn.primitive.name], parts, strict=False):
            moved = _moved(eqn, own)
            if moved is None:
                return None
            for f, n in moved.items():
                factors[f] += power * n
        return factors, _run(eqn, {i: numbers for i, (_, numbers) in enumerate(parts)})

    def _single(self, atom: Any) -> Any:
        """The variable that all entries of an array are, None where they may differ."""
        while not isinstance(atom, Literal):
            if atom.aval.size == 1:
                return atom
            eqn = self.made.get(atom)
            if eqn is None or eqn.primitive.name not in ("broadcast_in_dim", "reshape", "copy"):
                return None
            atom = eqn.invars[0]
        return None

    def known(self, atom: Any) -> np.ndarray | None:
        """A value that is computed of known ones alone."""
        if isinstance(atom, Literal):
            return np.asarray(atom.val)
        if atom in self.unknown:
            return None
        for eqn in [] if atom in self.values else equations_of(self.jaxpr.eqns, [atom], self.values)[0]:
            given = [v.val if isinstance(v, Literal) else self.values[v] for v in eqn.invars]
            with jax.ensure_compile_time_eval():
                self.values.update(zip(eqn.outvars, equation_as_function(eqn, self.jaxpr)(*given), strict=True))
        return np.asarray(self.values[atom])


def _moved(eqn: JaxprEqn, factors: Factors) -> Factors | None:
    """The factors of what an equation makes of a product; None where they would not stay factors."""
    name, dims = eqn.primitive.name, {d for f in factors for d in f.dims}
    if name in ("transpose", "broadcast_in_dim"):
        where = eqn.params["broadcast_dimensions"] if name != "transpose" else np.argsort(eqn.params["permutation"])
        place = dict(enumerate(map(int, where)))
        return {Factor(f.variable, tuple(place[d] for d in f.dims)): n for f, n in factors.items()}
    return factors if not dims or name in ENTRIES or (name == "cumsum" and eqn.params["axis"] not in dims) else None


def _states(decays: Sequence[np.ndarray], added: np.ndarray) -> np.ndarray:
    found, decays = np.array(added), [np.broadcast_to(decay, added.shape) for decay in decays]
    for t in range(1, len(found)):
        for lag, decay in enumerate(decays[:t], 1):
            found[t] += decay[t] * found[t - lag]
    return found


def _run(eqn: JaxprEqn, operands: Mapping[int, Any]) -> np.ndarray:
    """The result of one equation, as numbers, whatever its literals are."""
    with jax.ensure_compile_time_eval():
        given = [jnp.asarray(operands[i], v.aval.dtype) for i, v in enumerate(eqn.invars)]
        return np.asarray(eqn.primitive.bind(*given, **eqn.params))
