#!/usr/bin/env bash
# arviz-plots 0.8.0, arviz-base 0.8.2, matplotlib 3.11.2, Python 3.11.
#
# Behaviour: pip installs these together, and `import arviz_plots` raises an AttributeError: it reads
# `matplotlib.style.core`, a submodule that `import matplotlib.style` has loaded up to matplotlib 3.10 and no longer
# does. With matplotlib 3.10 it can be imported.
#
# One would guess: that releases which pip takes to be compatible can be imported.
#
# Output seen:
# matplotlib 3.11.2: AttributeError: module 'matplotlib.style' has no attribute 'core'
# matplotlib 3.10.8: imported
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
told() { "$work/venv/bin/python" - "$1" <<'PYTHON'
import sys

import matplotlib

try:
    import arviz_plots  # noqa: F401

    found = "imported"
except AttributeError as error:
    found = f"AttributeError: {error}"
print(f"matplotlib {matplotlib.__version__}: {found}")
sys.exit(0 if found.startswith(sys.argv[1]) else 1)
PYTHON
}
pip arviz-plots==0.8.0 arviz-base==0.8.2 matplotlib==3.11.2 numpy==2.4.6
told AttributeError
pip matplotlib==3.10.8
told imported
