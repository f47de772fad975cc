"""A model that brings its data: what a call of kayn takes from it where no arguments are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class Prepared:
    """A NumPyro program that can be called with its own arguments.

    Attributes:
        args: its arguments.
        labels: what the elements of its plates are called, by plate.
        names: the sites that tell what was asked, in the order in which a summary shows them.
        missing: what is to be done about missing outcomes, see `kayn.fit`.
    """

    args: tuple[Any, ...]
    labels: Mapping[str, np.ndarray]
    names: tuple[str, ...]
    missing: str = "error"
