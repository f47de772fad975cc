"""What a training run keeps in its checkpoint, and how a later run knows that the checkpoint is its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro

from kayn import checkpoints
from kayn.checkpoints import REMEDY, fingerprint
from kayn.errors import DataError, DataWarning, KaynError, warn
from kayn.inference.course import Looks
from kayn.support.arrays import PyTree

PROGRAM = "model, guide, losses or optimisers"


@dataclass(frozen=True)
class Record:
    """A checkpoint's file, and what the run that uses it rests on.

    Attributes:
        data: arrays by what they are; a checkpoint of others is refused.
        settings: what JSON can hold, by name; a checkpoint of others is taken up with a warning.
    """

    path: Path
    data: Mapping[str, Any]
    settings: Mapping[str, Any]

    @cached_property
    def _data(self) -> dict[str, str]:
        return {name: fingerprint(arrays) for name, arrays in self.data.items()}

    def keep(self, state: PyTree, best: PyTree, losses: list[float], looks: Looks) -> None:
        """Write the checkpoint.

        Raises:
            KaynError: it cannot be written.
        """
        plain = {n: [(step, np.asarray(value).tolist()) for step, value in found] for n, found in looks.items()}
        run = {"data": self._data, "settings": dict(self.settings), "releases": releases()}
        checkpoints.save(self.path, {"state": state, "best": best}, {"losses": losses, "looks": plain, "run": run})

    def resume(self, state: PyTree, best: PyTree) -> tuple[PyTree, PyTree, list[float], Looks]:
        """Read the checkpoint; trees of arrays are given for their form.

        Raises:
            DataError: it was written by a run on other data.
            KaynError: it cannot be read, or holds arrays of another form or no run.
        """
        tree, notes = checkpoints.load(self.path, {"state": state, "best": best})
        if not (isinstance(notes, Mapping) and {"losses", "looks"} <= notes.keys()):
            raise KaynError(f"checkpoint {self.path} is none of a training run. {REMEDY}")
        if "run" in notes:  # earlier releases did not say
            self._compare(notes["run"])
        looks = {n: [(step, value) for step, value in found] for n, found in notes["looks"].items()}
        return tree["state"], tree["best"], notes["losses"], looks

    def _compare(self, run: Mapping[str, Any]) -> None:
        other = [n for n, mark in self._data.items() if run["data"].get(n) != mark]
        if other:
            raise DataError(
                f"checkpoint {self.path} was written by a run with other {' and '.join(other)}. {REMEDY}; to start "
                "from its parameters, pass them as params="
            )
        changed = [n for n, value in self.settings.items() if run["settings"].get(n) != value]
        if changed != [PROGRAM]:  # whatever else changes also shows in the equations
            changed = [n for n in changed if n != PROGRAM]
        elif run["releases"] != releases():
            changed = []  # the same programs may be written as other equations
        if changed:
            warn(
                f"checkpoint {self.path} was written by a run with other {', '.join(changed)}: training goes on from "
                f"its state, and not to the same bits. If it is another run's, stop. {REMEDY}",
                DataWarning,
            )


def releases() -> dict[str, str]:
    """Versions of the packages whose programs a checkpoint's run depends on, by name."""
    return {"jax": jax.__version__, "numpyro": numpyro.__version__}


def equations(closed: Any) -> str:
    """A fingerprint of a traced function's equations and constants."""
    # addresses of functions in the text differ between runs
    text = re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr))
    return fingerprint([np.frombuffer(text.encode(), np.uint8), list(closed.consts)])
