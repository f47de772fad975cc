"""How objects print: whatever they hold, in a few lines, in a terminal and in a notebook."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Mapping
from typing import Any

import jax

MOST = 40
"""Lines of any object's `repr`."""
WIDEST = 120
"""Characters of a line of an outline."""


class Printed:
    """Its `repr` is its text, `str`, but at most 40 lines of it."""

    def __repr__(self) -> str:
        """The first lines of `str`."""
        lines = str(self).split("\n")
        if len(lines) <= MOST:
            return "\n".join(lines)
        return "\n".join([*lines[: MOST - 1], f"({len(lines) - MOST + 1} more lines; print() shows all)"])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


class Outlined(Printed):
    """A dataclass whose text has a line a field, arrays by type and shape."""

    def __str__(self) -> str:
        """The class and its fields."""
        fields = [f.name for f in dataclasses.fields(self) if f.repr]  # type: ignore[arg-type]
        return "\n".join([type(self).__name__, *(line for n in fields for line in _lines(n, getattr(self, n)))])


def _lines(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield f"  {name}:"
        yield from (f"    {key}: {brief(item)}" for key, item in value.items())
    else:
        yield f"  {name}: {brief(value)}"


def brief(value: Any) -> str:
    """A value within one line: an array as `float32[8, 3]`."""
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if hasattr(value, "dtype") and hasattr(value, "item") and not isinstance(value, jax.core.Tracer):
        return f"{value.item():.6g}" if getattr(value.dtype, "kind", "?") in "iuf" else str(value.dtype)
    if isinstance(value, list | tuple | Mapping) and len(value) > 3:
        return f"{type(value).__name__} of {len(value)}"
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    text = " ".join(repr(value).split())
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
