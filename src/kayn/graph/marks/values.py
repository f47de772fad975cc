"""Numbers of a program's variables, computed when a rule asks for them: those that data alone give, and those at trial
values of the latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kayn.graph.expressions import Node, Nodes, is_known, number
from kayn.support.arrays import Array

NEAR = 8
"""Operations that are few: each is compiled for itself."""


@dataclass
class Table:
    """What is known of a program's inputs, and what has been computed of it."""

    inputs: Sequence[Array]
    known: dict[int, bool] = field(default_factory=dict)
    values: dict[int, Array] = field(default_factory=dict)

    def value(self, node: Node) -> np.ndarray | None:
        """An expression's value, or None when it depends on what is not known."""
        try:
            if not is_known(node, self.inputs, self.known):
                return None
            return number(node, self.inputs, self.values)
        except RecursionError:
            return None


@dataclass
class Values:
    """The values of expressions of one program.

    Attributes:
        nodes: the table that expressions are entered in.
        trial: values for all inputs of the program, latents' among them.
    """

    nodes: Nodes
    trial: Sequence[Any]

    def __post_init__(self) -> None:
        """Two tables: of what is known, and at the trial values."""
        self._known, self._tried = Table(self.nodes.known), Table(self.trial)

    def known(self, node: Node) -> np.ndarray | None:
        """The value, if data alone decide it."""
        return self._known.value(node)

    def is_near(self, node: Node) -> bool:
        """Whether a few operations give the value."""
        seen, ahead = set[int](), [node]
        while ahead and len(seen) <= NEAR:
            node = ahead.pop()
            if id(node) not in seen and node.compute is not None:
                seen.add(id(node))
                ahead.extend(node.inputs)
        return len(seen) <= NEAR

    def tried(self, node: Node) -> np.ndarray | None:
        """The value at the trial values, outside of what changes from step to step."""
        return self._tried.value(node)
