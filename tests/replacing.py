"""Replace a function of kayn's for one test."""

import sys


def replace_everywhere(monkeypatch, old, new):
    """Put a function in the place of another in every module of kayn that has imported it."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "kayn":
            for attribute in [a for a, value in vars(module).items() if value is old]:
                monkeypatch.setattr(module, attribute, new)
