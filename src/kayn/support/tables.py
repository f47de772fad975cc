"""A table of columns as a model's argument: a dictionary that also knows how many rows it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from kayn.errors import DataError


class Table(dict):
    """Columns by name, as arrays. `len` is the number of rows, as tables have it; `t["x"]` and `t.x` are a column.

    Args:
        rows: how many there are.
        refused: why columns that cannot be converted are not there; said when one is asked for.
    """

    def __init__(self, columns: Mapping[str, Any], rows: int, refused: Mapping[str, str] | None = None):
        super().__init__(columns)
        self.rows, self.refused = rows, dict(refused or {})

    def __len__(self) -> int:
        """The number of rows."""
        return self.rows

    def __bool__(self) -> bool:
        """Whether there are rows."""
        return self.rows > 0

    def __missing__(self, name: str) -> Any:
        """Say why there is no such column."""
        if name in self.refused:
            raise DataError(self.refused[name])
        raise DataError(f"the table has no column {name!r}; it has {', '.join(map(repr, [*self, *self.refused]))}")

    def __getattr__(self, name: str) -> Any:
        """A column."""
        if name.startswith("__") or name in ("rows", "refused"):
            raise AttributeError(name)
        try:
            return self[name]
        except DataError as error:
            if name in self.refused:
                raise
            raise AttributeError(str(error)) from error

    @property
    def columns(self) -> list[str]:
        """Names of the columns that can be used."""
        return [*self]


def _flatten(table: Table) -> tuple[list[tuple[Any, Any]], Any]:
    leaves = [(jax.tree_util.DictKey(n), v) for n, v in table.items()]
    return leaves, (tuple(table), table.rows, tuple(table.refused.items()))


def _unflatten(form: Any, leaves: Iterable[Any]) -> Table:
    names, rows, refused = form
    return Table(dict(zip(names, leaves, strict=True)), rows, dict(refused))


jax.tree_util.register_pytree_with_keys(Table, _flatten, _unflatten)
