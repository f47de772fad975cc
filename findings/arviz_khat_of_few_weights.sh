#!/usr/bin/env bash
# arviz-stats 0.8.0 and 1.3.3, numpy 2.4.6, scipy 1.17.1, xarray 2026.9.0, Python 3.13 (1.3.3 needs 3.12).
#
# Behaviour: with arviz-stats 1.3.3 Pareto k-hat of 25 to 29 log weights is NaN whatever they are: their tail is of
# five, whose lower quartile is taken to be the smallest of them, and a quartile that is no larger than the smallest now
# counts as no Pareto tail at all. With 0.8.0 it is a number, from 30 weights on with both.
#
# One would guess: that the number of weights from which there is a k-hat is the same in both, or that one is raised.
#
# Output seen:
# 0.8.0: finite k-hats of 25 weights 200 of 200, of 29 200 of 200, of 30 200 of 200
# 1.3.3: finite k-hats of 25 weights 0 of 200, of 29 0 of 200, of 30 200 of 200
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=python3
for minor in 13 12; do
    for candidate in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python3; do
        if "$candidate" --version >/dev/null 2>&1; then python=$candidate; fi
    done
done
"$python" -m venv "$work/venv"
pip() { "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
told() { "$work/venv/bin/python" - "$1" <<'PYTHON'
import sys

import arviz_stats
import numpy as np
from arviz_stats.base import array_stats

draws = np.random.default_rng(0)
found = {n: sum(np.isfinite(array_stats.psislw(draws.normal(size=n))[1]) for _ in range(200)) for n in (25, 29, 30)}
counts = ", ".join(f"of {n}{' weights' * (n == 25)} {finite} of 200" for n, finite in found.items())
print(f"{arviz_stats.__version__}: finite k-hats {counts}")
sys.exit(0 if [*found.values()] == ([200] * 3 if sys.argv[1] == "all" else [0, 0, 200]) else 1)
PYTHON
}
pip arviz-stats==0.8.0 numpy==2.4.6 scipy==1.17.1 xarray==2026.9.0
told all
pip arviz-stats==1.3.3
told some
