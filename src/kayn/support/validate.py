"""Arguments of public functions are checked in one place, from their annotations, before anything is traced.

`checked` reads the annotations of a function's parameters: plain types, unions, literals, mappings and sequences mean
what they say, and `Annotated` adds a `Rule`, a range in words, or a function that converts the value. What does not fit
ends in a `KaynError` that names the argument. An argument annotated `Any`, such as the model's own, is left as it is.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from functools import cache, wraps
from numbers import Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from kayn.errors import KaynError
from kayn.support.arrays import PyTree

P = ParamSpec("P")
R = TypeVar("R")
MOST = 2**31
"""Counts stay below: JAX numbers steps, rows and particles with 32 bits."""


@dataclass(frozen=True)
class Rule:
    """In `Annotated`: what the value of an argument must be, in words, and a test of what its type leaves open.

    Attributes:
        error: the class of the refusal, None for that of the function.
    """

    words: str
    test: Callable[[Any], bool] = lambda value: True
    error: type[KaynError] | None = None


@dataclass
class Unfit(Exception):
    """A value, or a part of it, that does not fit an annotation."""

    value: Any
    words: str
    where: str = ""
    error: type[KaynError] | None = None


Count = Annotated[int, Rule("a whole number, at least 1 and below 2**31", lambda n: 1 <= n < MOST)]
Natural = Annotated[int, Rule("a whole number, at least 0 and below 2**31", lambda n: 0 <= n < MOST)]
Positive = Annotated[float, Rule("a positive, finite number", lambda x: 0 < x < math.inf)]
NonNegative = Annotated[float, Rule("a finite number, 0 or more", lambda x: 0 <= x < math.inf)]
Finite = Annotated[float, Rule("a finite number", math.isfinite)]
Text = Annotated[str, Rule("a text that is not empty", lambda s: len(s) > 0)]


def checked(error: type[KaynError] = KaynError) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function's arguments checked against its annotations at every call.

    Args:
        error: the class of refusals, where a rule names no other.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @cache
        def hints() -> dict[str, Any]:  # at the first call, when all names that annotations use are known
            return hints_of(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # which says in Python's own words what is missing or unknown
            for name, value in bound.arguments.items():
                if name in hints():
                    hint = hints()[name]
                    if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                        bound.arguments[name] = tuple(fitted(name, v, hint, error) for v in value)
                    else:
                        bound.arguments[name] = fitted(name, value, hint, error)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def check_fields(instance: Any, error: type[KaynError] = KaynError) -> None:
    """Check the fields of a dataclass against their annotations, for its `__post_init__`."""
    hints = get_type_hints(type(instance), include_extras=True)
    for field in fields(instance):
        value = fitted(field.name, getattr(instance, field.name), hints[field.name], error)
        object.__setattr__(instance, field.name, value)


def hints_of(function: Callable) -> dict[str, Any]:
    """Annotations of a function's parameters, but those that say nothing."""
    function = inspect.unwrap(function)
    own = {n: a for n, a in function.__annotations__.items() if n != "return"}
    found = get_type_hints(SimpleNamespace(__annotations__=own), vars(inspect.getmodule(function)), include_extras=True)
    return {n: hint for n, hint in found.items() if hint is not Any}


def fitted(name: str, value: Any, hint: Any, error: type[KaynError] = KaynError) -> Any:
    """The value of an argument, converted to its annotation where that is a matter of form
    (counts to int, lists to tuples).

    Raises:
        KaynError: it does not fit; of the class that the annotation or else the caller names.
    """
    try:
        return fit(value, hint)
    except Unfit as unfit:
        words = unfit.words if isinstance(hint, type) or not (own := _rule(hint)) else own.words
        whose = name if unfit.where else "it"
        raise (unfit.error or error)(f"{name}{unfit.where} is {shown(unfit.value)}; {whose} must be {words}") from None


def fit(value: Any, hint: Any) -> Any:
    """A value as an annotation wants it.

    Raises:
        Unfit: it is something else.
    """
    origin = get_origin(hint)
    kind = PLAIN.get(hint, _instance) if origin is None else COMPOSED.get(origin, _instance)
    return kind(value, hint)


def _need(holds: bool, value: Any, hint: Any) -> None:
    if not holds:
        raise Unfit(value, describe(hint))


def _instance(value: Any, hint: Any) -> Any:
    _need(isinstance(value, get_origin(hint) or hint), value, hint)
    return value


def _nothing(value: Any, hint: Any) -> None:
    _need(value is None, value, hint)


def _literal(value: Any, hint: Any) -> Any:
    _need(isinstance(value, str) and value in get_args(hint), value, hint)
    return value


def _scalar(value: Any, hint: Any) -> Any:
    try:
        return SCALARS[hint](value)
    except (TypeError, ValueError, OverflowError):
        raise Unfit(value, describe(hint)) from None


def _mapping(value: Any, hint: Any) -> dict:
    _need(isinstance(value, Mapping), value, hint)
    key, item = get_args(hint) or (Any, Any)
    return {_inside(k, key, f" key {k!r}"): _inside(v, item, f"[{k!r}]") for k, v in value.items()}


def _list(value: Any, hint: Any) -> tuple:
    listed = isinstance(value, Sequence | Set | Iterator | Generator) and not isinstance(value, str | bytes)
    _need(listed, value, hint)
    item, *_ = get_args(hint) or (Any,)
    return tuple(_inside(v, item, f"[{i}]") for i, v in enumerate(value))


def _annotated(value: Any, hint: Any) -> Any:
    inner, *rules = get_args(hint)
    for rule in rules:
        if not isinstance(rule, Rule):
            return rule(value)
        try:
            value = fit(value, inner)
            _need(rule.test(value), value, hint)
        except Unfit as unfit:
            words = unfit.words if unfit.where else rule.words
            raise Unfit(unfit.value, words, unfit.where, unfit.error or rule.error) from None
    return value


def _one_of(value: Any, hint: Any) -> Any:
    if value is None and NoneType in get_args(hint):
        return None  # before anything tries to convert it
    found: list[Unfit] = []
    for choice in get_args(hint):
        try:
            return fit(value, choice)
        except Unfit as unfit:
            found.append(unfit)
    # the kind that it nearly is tells most
    deepest = max(found, key=lambda unfit: len(unfit.where))
    error = next((u.error for u in found if u.error), None)
    raise Unfit(deepest.value, deepest.words if deepest.where else describe(hint), deepest.where, error)


def _inside(value: Any, hint: Any, where: str) -> Any:
    try:
        return fit(value, hint)
    except Unfit as unfit:
        raise Unfit(unfit.value, unfit.words, where + unfit.where, unfit.error) from None


def _rule(hint: Any) -> Rule | None:
    return next((r for r in getattr(hint, "__metadata__", ()) if isinstance(r, Rule)), None)


def _whole(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    scalar = isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0
    if isinstance(value, bool | np.bool_ | jax.core.Tracer) or not (isinstance(value, Real) or scalar):
        raise TypeError
    if (scalar and value.dtype.kind not in "iufV") or (number := float(value)) != number:
        raise ValueError
    return number


def _truth(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return bool(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


SCALARS: Mapping[Any, Callable[[Any], Any]] = {int: _whole, float: _number, bool: _truth, str: _text}
Kind = Callable[[Any, Any], Any]
"""A function of a value and an annotation: the value as the annotation wants it; it raises `Unfit`."""
PLAIN: Mapping[Any, Kind] = {
    Any: lambda value, hint: value,
    None: _nothing,
    NoneType: _nothing,
    Mapping: _mapping,
    **dict.fromkeys(SCALARS, _scalar),
}
"""Annotations that stand alone; a value of any other one is an instance of it."""
COMPOSED: Mapping[Any, Kind] = {
    Annotated: _annotated,
    Literal: _literal,
    **dict.fromkeys((Union, UnionType), _one_of),
    **dict.fromkeys((Mapping, dict), _mapping),
    **dict.fromkeys((Sequence, tuple, list), _list),
}
"""Annotations with others in brackets, by what stands in front of these."""
WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    None: "None",
    NoneType: "None",
}


def describe(hint: Any) -> str:
    """An annotation in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        rule = _rule(hint)
        return rule.words if rule else describe(args[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(describe(a) for a in args))
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in (Mapping, dict) or hint is Mapping:
        return "a mapping" + (
            f" from {describe(args[0])} to {describe(args[1])}" if args and args[1] is not Any else ""
        )
    if origin in (Sequence, tuple, list):
        return "a list" + (f" with {describe(args[0])} in each place" if args and args[0] is not Any else "")
    if origin is Callable or hint is Callable:
        return "a function"
    return WORDS.get(hint) or f"a {getattr(hint, '__module__', '').split('.')[0]}.{getattr(hint, '__name__', hint)}"


def shown(value: Any) -> str:
    """A value in a message: short, with its kind where that helps."""
    if isinstance(value, jax.core.Tracer):
        return "a number that JAX is tracing, not known yet"
    kind = type(value).__name__.removesuffix("Impl")
    if getattr(value, "shape", ()):
        return f"{kind} of shape {tuple(value.shape)}"
    if callable(value):
        return f"{kind} {getattr(value, '__name__', '')}".strip()
    text = repr(value)
    short = text if len(text) <= 60 else text[:57] + "..."
    return f"{kind} {short}" if isinstance(value, list | tuple | Mapping | Set) else short


def parameter_values(params: Any) -> dict[str, PyTree]:
    """Values of `numpyro.param` sites as arrays.

    Raises:
        KaynError: they are no mapping from names to arrays of numbers, or hold NaN.
    """
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise KaynError(
            f"params is {shown(params)}; pass a mapping from numpyro.param names to values, as SVI.get_params gives "
            "them, or None for initial values; the model's arguments come after it"
        )
    for name in params:
        if not isinstance(name, str):
            raise KaynError(f"params has the key {shown(name)}; keys are the names of numpyro.param sites")
    return {name: _values_of(name, value) for name, value in params.items()}


def _values_of(name: str, value: Any) -> PyTree:
    try:
        # unlike jnp.asarray, device_put has nothing to compile; a whole number is a real one written short
        value = float(value) if type(value) is int else value
        out = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), value)
        leaves = [x for x in jax.tree.leaves(out) if not isinstance(x, jax.core.Tracer)]
        missing = any(jnp.issubdtype(x.dtype, jnp.inexact) and np.isnan(np.asarray(x)).any() for x in leaves)
    except (TypeError, ValueError, OverflowError) as error:
        raise KaynError(
            f"params[{name!r}] is {shown(value)}; it must be a number or an array of numbers, as SVI.get_params "
            "gives them"
        ) from error
    if missing:
        raise KaynError(f"params[{name!r}] holds NaN; fit again with a smaller step, or start from finite values")
    if value is None:
        raise KaynError(f"params[{name!r}] is None; leave it out to start from the value in numpyro.param")
    return out
