"""Compiled programs that equal ones share: another fit of the same model, another question of the same form.

What a program closes over is an argument of what is compiled,
so that other data of the same shapes are no other program.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import RLock
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from kayn.support.arrays import Array
from kayn.xla.fingerprint import fingerprint

MOST = 64
"""Programs that are kept; those that have not been asked for longest go first."""


class Kept:
    """A dictionary of bounded size."""

    def __init__(self, most: int = MOST):
        self._most, self._found, self._lock = most, OrderedDict[Any, tuple[Any, Any]](), RLock()

    def get(self, key: Any, make: Callable[[], Any], alive: Any = None) -> Any:
        """What is kept under a key, made if there is nothing; with it is kept `alive`,
        which the key needs (`Fingerprint`)."""
        with self._lock:
            if key not in self._found:
                self._found[key] = (make(), alive)
            self._found.move_to_end(key)
            while len(self._found) > self._most:
                self._found.popitem(last=False)
            return self._found[key][0]

    def forget(self, key: Any) -> None:
        """Keep nothing under a key."""
        with self._lock:
            self._found.pop(key, None)


_kept = Kept()


def shared(closed: ClosedJaxpr, options: dict[str, Any] | None, open_consts: bool) -> Callable[..., list[Array]]:
    """A compiled function from the leaves of a program's arguments to those of its results:
    that of an equal program if there is one.

    Args:
        closed: the program; its constants are known numbers.
        options: for the compiler.
        open_consts: whether programs are equal that have other constants of the same types. These are then arguments of
            what is compiled; as a part of it they would be folded into its other numbers.
    """
    open_consts = open_consts and not any(map(is_placed, closed.consts))  # which need not meet the arguments
    known = fingerprint(closed, not open_consts)
    key = (known.digest, options and tuple(sorted(options.items())))
    if not open_consts:
        return _kept.get(key, lambda: jax.jit(_plainly(closed), compiler_options=options), known)
    run = _kept.get(key, lambda: jax.jit(_opened(closed.jaxpr), compiler_options=options), known)
    return partial(run, _arrays(closed))


def shared_ahead(
    closed: ClosedJaxpr, options: dict[str, bool] | None, leaves: Sequence[Array]
) -> Callable[[], list[Array]]:
    """As `shared`, compiled in the background: waits for the program and runs it on `leaves`."""
    consts, known = _arrays(closed), fingerprint(closed)

    def compile_ahead() -> Any:
        lowered = jax.jit(_opened(closed.jaxpr)).lower(consts, *leaves)
        # NumPyro's handlers are not safe to use from two threads, but only the compiler runs in this one
        background = ThreadPoolExecutor(1, "kayn-compile")
        compiled = background.submit(lowered.compile, options)
        background.shutdown(wait=False)
        return compiled

    key = (known.digest, options is None, "ahead", str(jax.config.jax_default_device))
    # a compiled program serves its own devices only
    placed = any(map(is_placed, (*consts, *leaves)))
    compiled = compile_ahead() if placed else _kept.get(key, compile_ahead, known)

    def run() -> list[Array]:
        if compiled.exception() is not None:
            _kept.forget(key)  # what failed once, for want of memory say, is tried again
        return compiled.result()(consts, *leaves)

    return run


def is_placed(value: Any) -> bool:
    """Whether an array has been put on certain devices."""
    return isinstance(value, jax.Array) and value.committed


def _plainly(closed: ClosedJaxpr) -> Callable[..., list[Array]]:
    return lambda *leaves: jaxpr_as_fun(closed)(*leaves)


def _opened(jaxpr: Jaxpr) -> Callable[..., list[Array]]:
    return lambda consts, *leaves: jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*leaves)


def _arrays(closed: ClosedJaxpr) -> list[Array]:
    """The constants, put on the device once."""
    return [c if isinstance(c, jax.Array) else jax.device_put(c) for c in closed.consts]
