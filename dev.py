#!/usr/bin/env python3
"""Development commands. Needs only Python 3.11 or later; the rest is installed into `.venv` next to this file.

    python3 dev.py demo [arguments]     fit the demonstration model and draw kayn_demo.png
    python3 dev.py test [arguments]     run the tests (arguments go to pytest)
    python3 dev.py lint                 run ruff, mypy and the import checker

The virtual environment is made on first use and brought up to date only when pyproject.toml has changed, so that later
runs need no network. Set KAYN_VENV to keep it elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
MINIMUM = (3, 11)


def venv_directory() -> Path:
    """Where the virtual environment lives."""
    return Path(os.environ.get("KAYN_VENV") or ROOT / ".venv").absolute()


def program(name: str) -> str:
    """Path of a program inside the virtual environment."""
    windows = os.name == "nt"
    return str(venv_directory() / ("Scripts" if windows else "bin") / (f"{name}.exe" if windows else name))


def run(*command: str) -> int:
    """Run a command in the repository root and return its exit status."""
    print("+ " + " ".join([Path(command[0]).name, *command[1:]]), flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def require(status: int, what: str) -> None:
    """Stop with a message when a step failed."""
    if status != 0:
        sys.exit(f"dev.py: {what} failed (exit status {status}); see the messages above.")


def stamp(extra: str) -> tuple[Path, str]:
    """The file that records an installation, and what it should contain now."""
    content = (ROOT / "pyproject.toml").read_bytes()
    return venv_directory() / f"kayn-{extra}.stamp", hashlib.sha256(content + str(ROOT).encode()).hexdigest()


def install(extra: str) -> None:
    """Make the virtual environment when there is none, and install the project with an extra unless that is done."""
    python = program("python")
    if not Path(python).exists():
        print(f"dev.py: making a virtual environment in {venv_directory()}", flush=True)
        require(run(sys.executable, "-m", "venv", str(venv_directory())), "making the virtual environment")
    path, wanted = stamp(extra)
    if path.exists() and path.read_text(encoding="utf-8") == wanted:
        return
    status = run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", f".[{extra}]")
    require(status, f"installing kayn[{extra}] (this step needs a network or a package mirror)")
    path.write_text(wanted, encoding="utf-8")


def demo(arguments: list[str]) -> int:
    """Run `kayn demo`."""
    install("plots")
    return run(program("kayn"), "demo", *arguments)


def test(arguments: list[str]) -> int:
    """Run the tests on two processes."""
    install("dev")
    return run(program("python"), "-m", "pytest", "-n", "2", "-q", *arguments)


def lint(arguments: list[str]) -> int:
    """Run every checker, also after one has complained."""
    if arguments:
        sys.exit("dev.py: lint takes no arguments.")
    install("dev")
    statuses = [
        run(program("ruff"), "check", "."),
        run(program("ruff"), "format", "--check", "."),
        run(program("mypy")),
        run(program("lint-imports")),
    ]
    return max(statuses, key=abs)


COMMANDS = {"demo": demo, "test": test, "lint": lint}


def main() -> int:
    """Read the command line and run one command."""
    if sys.version_info < MINIMUM:
        version = ".".join(str(number) for number in sys.version_info[:3])
        sys.exit(
            f"dev.py: kayn needs Python 3.11 or later, and this is {version} ({sys.executable}). Try python3.11 dev.py."
        )
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(__doc__)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    return COMMANDS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
