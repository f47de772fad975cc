"""Replace a function of kayn's for one test."""

import sys


def replace_everywhere(monkeypatch, old, new):
    """Put a function in the place of another, or of what has already replaced it, in every module of kayn."""
    new.replaced = old
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "kayn":
            for attribute, value in list(vars(module).items()):
                if value is old or getattr(value, "replaced", None) is old:
                    monkeypatch.setattr(module, attribute, new)
