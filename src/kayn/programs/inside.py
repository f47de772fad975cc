"""Handlers that change sample sites wherever these are, inside of loops too.

NumPyro hides loop bodies from handlers around the loop: these see a site when all steps are over,
too late to change what it is drawn from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from numpyro.primitives import Messenger

from kayn.support.numpyro_internals import is_in_scan


class Inside(Messenger):
    """Calls `change` once for every sample site without data: in loops, when a step is taken."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Call `change` for sites that will be drawn, and wrap the bodies of loops so that theirs are seen too."""
        if msg["type"] == "control_flow":
            msg["args"] = tuple(self._around(a) if callable(a) else a for a in msg["args"])
        elif msg["type"] == "sample" and not msg["is_observed"] and not is_in_scan(msg):
            self.change(msg)

    def change(self, msg: dict[str, Any]) -> None:
        """Change a site's message, e.g. its distribution, before it is drawn; for subclasses."""
        raise NotImplementedError

    def _around(self, body: Callable) -> Callable:
        inner = copy.copy(self)
        inner.fn = body
        return inner
