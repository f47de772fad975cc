"""Values of a program that are linear in one vector of its, followed as numbers: what a linear map gives for probes.

A value is `c M v + b`: c a product of single numbers of the program, M a matrix of constants, which is only ever
applied to the probes, and b what does not depend on the vector v.
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

from kayn.graph.recursions import is_recursion
from kayn.programs.slices import equation_as_function
from kayn.xla.compilation import is_traced

MOVING = {"broadcast_in_dim", "concatenate", "copy", "copy_p", "pad", "reshape", "rev", "slice", "squeeze", "transpose"}
JOINING = MOVING | {"add", "add_any", "convert_element_type", "cumsum", "neg", "reduce_sum", "sub"}
"""Linear in all operands together."""
CHOOSING = {"select_n": (0,), "gather": (1,), "dynamic_slice": None}
"""Linear in operands for given ones, of which these are the places; None for all but the first."""
PRODUCTS = {"mul": (1, 1), "div": (1, -1), "neg": (1,)} | dict.fromkeys(MOVING - {"concatenate", "pad"}, (1,))
"""What may be made of a product such that it stays one, and the power that each operand has in it."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A value that is linear in the vector.

    Attributes:
        factors: the single numbers whose product is c, as variables with their powers.
        numbers: M applied to every probe, in the value's shape.
    """

    factors: Mapping[Any, int]
    numbers: tuple[np.ndarray, ...]


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
        decay: that of the only such recursion.
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
        self.states, self.decay = tuple(states), None
        self.jaxpr = jaxpr
        self.made = {v: e for e in jaxpr.eqns for v in e.outvars}
        self.values = {
            v: x
            for v, x in zip((*jaxpr.constvars, *jaxpr.invars), known, strict=True)
            if x is not None and not is_traced(x)
        }
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
        rules = {"mul": self._times, "div": self._times, "dot_general": self._product, "scan": self._recursion}
        rule = rules.get(eqn.primitive.name, self._joined)
        found = rule(eqn, self.reads(eqn))
        if found is not None:
            self.found[eqn.outvars[-1]] = found
        return found is not None

    def _recursion(self, eqn: JaxprEqn, mine: Sequence[int]) -> Linear | None:
        if not is_recursion(eqn) or mine != [2]:
            return None
        own, decay = self.found[eqn.invars[2]], self.decay_of(eqn)
        known = self.known(decay)
        if known is not None:
            return Linear(own.factors, tuple(_states(known, x) for x in own.numbers))
        if not self.states or self.decay not in (None, decay):
            return None
        weight = self.weight_of(own.numbers[len(self.states) :])
        if weight is None:
            return None
        self.decay = decay
        mixed = (_states(np.full(1, 0.5), x) for x in own.numbers[len(self.states) :])
        return Linear(own.factors, (*(weight * x for x in self.states), *mixed))

    def decay_of(self, eqn: JaxprEqn) -> Any:
        """The variable that is all decays of a recursion, or has them."""
        return self._single(eqn.invars[1]) or eqn.invars[1]

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
        floats = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)
        if not floats or any(i in places or self.found[operands[i]].factors != factors for i in mine):
            return None
        others = {i: self.known(operands[i]) for i in places}
        if any(x is None for x in others.values()):
            return None
        zeros = {i: np.zeros(v.aval.shape, v.aval.dtype) for i, v in enumerate(operands) if i not in places}
        return Linear(factors, self._apply(eqn, mine, {**zeros, **others}))

    def _times(self, eqn: JaxprEqn, mine: Sequence[int]) -> Linear | None:
        if len(mine) > 1 or (eqn.primitive.name == "div" and mine != [0]):
            return None
        own, place = self.found[eqn.invars[mine[0]]], 1 - mine[0]
        other = self._apart(eqn.invars[place])
        if other is None:
            return None
        factors, power = Counter(own.factors), -1 if eqn.primitive.name == "div" else 1
        for v, n in other[0].items():
            factors[v] += power * n
        return Linear({v: n for v, n in factors.items() if n}, self._apply(eqn, mine, {place: other[1]}))

    def _product(self, eqn: JaxprEqn, mine: Sequence[int]) -> Linear | None:
        if len(mine) > 1:
            return None
        other = self.known(eqn.invars[1 - mine[0]])
        own = self.found[eqn.invars[mine[0]]].factors
        return None if other is None else Linear(own, self._apply(eqn, mine, {1 - mine[0]: other}))

    def _apply(self, eqn: JaxprEqn, mine: Sequence[int], others: Mapping[int, Any]) -> tuple[np.ndarray, ...]:
        numbers = (self.found[eqn.invars[i]].numbers for i in mine)
        return tuple(
            _run(eqn, {**others, **dict(zip(mine, probe, strict=True))}) for probe in zip(*numbers, strict=True)
        )

    def _apart(self, atom: Any) -> tuple[Mapping[Any, int], np.ndarray] | None:
        """A value as single numbers, with their powers, times known ones in its shape; None where it is no product."""
        number = self.known(atom)
        if number is not None:
            return {}, number
        single = self._single(atom)
        if single is not None:
            return {single: 1}, np.ones(atom.aval.shape, atom.aval.dtype)
        eqn = self.made.get(atom)
        if eqn is None or eqn.primitive.name not in PRODUCTS:
            return None
        parts = [part for v in eqn.invars if (part := self._apart(v)) is not None]
        if len(parts) < len(eqn.invars):
            return None
        factors: Counter[Any] = Counter()
        for power, (own, _) in zip(PRODUCTS[eqn.primitive.name], parts, strict=False):
            for v, n in own.items():
                factors[v] += power * n
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
        needed, wanted = [], {atom}
        for eqn in reversed([] if atom in self.values else self.jaxpr.eqns):
            if any(v in wanted and v not in self.values for v in eqn.outvars):
                needed.append(eqn)
                wanted.update(v for v in eqn.invars if not isinstance(v, Literal))
        for eqn in reversed(needed):
            given = [v.val if isinstance(v, Literal) else self.values[v] for v in eqn.invars]
            with jax.ensure_compile_time_eval():
                self.values.update(zip(eqn.outvars, equation_as_function(eqn, self.jaxpr)(*given), strict=True))
        return np.asarray(self.values[atom])


def _states(decay: np.ndarray, added: np.ndarray) -> np.ndarray:
    found, decay = np.array(added), np.broadcast_to(decay, added.shape)
    for t in range(1, len(found)):
        found[t] += decay[t] * found[t - 1]
    return found


def _run(eqn: JaxprEqn, operands: Mapping[int, Any]) -> np.ndarray:
    """The result of one equation, as numbers, whatever its literals are."""
    with jax.ensure_compile_time_eval():
        given = [jnp.asarray(operands[i], v.aval.dtype) for i, v in enumerate(eqn.invars)]
        return np.asarray(eqn.primitive.bind(*given, **eqn.params))
