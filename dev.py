#!/usr/bin/env python3
"""Development commands. Needs only Python 3.11 or later; the rest is installed into `.venv` next to this file.

    python3 dev.py demo [arguments]        fit the demonstration model and draw kayn_demo.png
    python3 dev.py test                    run the tests that every change has to pass
    python3 dev.py test --all              run all tests, as for a release
    python3 dev.py test arguments          run pytest with these arguments; --quick: a selection, two minutes
    python3 dev.py lint                    run ruff, mypy and the import checker
    python3 dev.py lane oldest [arguments] run the quick tests with the oldest releases that kayn supports
    python3 dev.py lane newest [arguments] the same with the newest releases, on the newest Python of this machine
    python3 dev.py lane float64 [arguments]
                                           ask ordinary models everything in double precision; lane leaks: looking
                                           for leaked tracers; lane nans: up to the first NaN; lane devices: with two
                                           devices
    python3 dev.py docs [--quick]          build the site into site/: the gallery's pages are made by running them,
                                           with --quick only those that are not there yet

The virtual environments are made on first use and brought up to date only when pyproject.toml has changed, so that
later runs need no network. Set KAYN_VENV to keep them elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
MINIMUM = (3, 11)
NEWEST = (3, 12)
"""The newest releases of JAX need at least this Python."""
SETTINGS = {
    "float64": ("JAX_ENABLE_X64", "1"),
    "leaks": ("JAX_CHECK_TRACER_LEAKS", "1"),
    "nans": ("JAX_DEBUG_NANS", "1"),
    "devices": ("XLA_FLAGS", "--xla_force_host_platform_device_count=2"),
}
"""What a lane sets in the environment."""
OLDEST_RELEASES = ("jax==0.10.0", "jaxlib==0.10.0", "numpyro==0.21.0", "arviz==0.23.*")


def venv_directory(lane: str = "") -> Path:
    """Where the virtual environment lives; every lane has one of its own."""
    base = Path(os.environ.get("KAYN_VENV") or ROOT / ".venv").absolute()
    return base.with_name(f"{base.name}-{lane}") if lane else base


def program(name: str, lane: str = "") -> str:
    """Path of a program inside the virtual environment."""
    windows = os.name == "nt"
    return str(venv_directory(lane) / ("Scripts" if windows else "bin") / (f"{name}.exe" if windows else name))


def run(*command: str) -> int:
    """Run a command in the repository root and return its exit status."""
    print("+ " + " ".join([Path(command[0]).name, *command[1:]]), flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def run_tests(*arguments: str, lane: str = "") -> int:
    """Run pytest on two processes, each of which starts with a half of the tests:
    neighbours share compiled programs."""
    return run(program("python", lane), "-m", "pytest", "-n", "2", "--dist", "worksteal", "-q", *arguments)


def require(status: int, what: str) -> None:
    """Stop with a message when a step failed."""
    if status != 0:
        sys.exit(f"dev.py: {what} failed (exit status {status}); see the messages above.")


def stamp(extra: str, lane: str, releases: tuple[str, ...]) -> tuple[Path, str]:
    """The file that records an installation, and what it should contain now."""
    content = (ROOT / "pyproject.toml").read_bytes() + " ".join([str(ROOT), *releases]).encode()
    return venv_directory(lane) / f"kayn-{extra}.stamp", hashlib.sha256(content).hexdigest()


def install(extra: str, lane: str = "", python: str = sys.executable, releases: tuple[str, ...] = ()) -> None:
    """Make the virtual environment when there is none, and install the project with an extra unless that is done."""
    own = program("python", lane)
    if not Path(own).exists():
        print(f"dev.py: making a virtual environment in {venv_directory(lane)}", flush=True)
        require(run(python, "-m", "venv", str(venv_directory(lane))), "making the virtual environment")
    path, wanted = stamp(extra, lane, releases)
    if path.exists() and path.read_text(encoding="utf-8") == wanted:
        return
    # most of what comes along is never imported; what is, Python compiles then
    pip = (own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
    status = run(*pip, "-e", f".[{extra}]", *releases)
    require(status, f"installing kayn[{extra}] (this step needs a network or a package mirror)")
    path.write_text(wanted, encoding="utf-8")


def newest_python() -> str | None:
    """The newest Python to be found, in PATH or among pyenv's;
    None where none is new enough for the newest releases."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    names = [f"python3.{minor}" for minor in range(20, NEWEST[1] - 1, -1)]
    found = [sys.executable, *filter(None, map(shutil.which, names)), *map(str, pyenv.glob("versions/3.*/bin/python3"))]
    tell = "import sys; print(*sys.version_info[:2])"
    versions = {}
    for candidate in found:
        told = subprocess.run([candidate, "-c", tell], capture_output=True, text=True, check=False)
        if told.returncode == 0:
            versions.setdefault(tuple(int(number) for number in told.stdout.split()), candidate)
    newest = max(versions, default=(0, 0))
    return versions[newest] if newest >= NEWEST else None


def demo(arguments: list[str]) -> int:
    """Run `kayn demo`."""
    install("plots")
    return run(program("kayn"), "demo", *arguments)


def test(arguments: list[str]) -> int:
    """Run the tests on two processes: without arguments those that every change has to pass."""
    install("dev")
    return run_tests(*(["--everyday"] if not arguments else [a for a in arguments if a != "--all"]))


def lane(arguments: list[str]) -> int:
    """Run the quick tests with the oldest or the newest releases,
    or those of ordinary models under some setting of JAX."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in SETTINGS:
        install("dev")
        variable, value = SETTINGS[name]
        print(f"+ export {variable}={value}")
        os.environ[variable] = value
        return run_tests("tests/test_settings.py", *rest)
    if name not in ("oldest", "newest"):
        sys.exit(f"dev.py: lane takes one of oldest, newest, {', '.join(SETTINGS)}, and then arguments for pytest.")
    python = sys.executable if name == "oldest" else newest_python()
    if python is None:
        print(
            f"dev.py: lane {name} SKIPPED: it needs Python {'.'.join(map(str, NEWEST))} or later, and none was found."
        )
        return 0
    install("dev", name, python, OLDEST_RELEASES if name == "oldest" else ())
    releases = "import sys, jax, numpyro, numpy, arviz as a; "
    releases += (
        "print('lane', *sys.version_info[:2], jax.__version__, numpyro.__version__, numpy.__version__, a.__version__)"
    )
    run(program("python", name), "-c", releases)
    return run_tests("--quick", *rest, lane=name)


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


def docs(arguments: list[str]) -> int:
    """Run the pages of the gallery, and build the site."""
    if arguments not in ([], ["--quick"]):
        sys.exit("dev.py: docs takes --quick alone.")
    install("docs")
    require(run(program("python"), "-m", "examples.gallery", *(["--missing"] if arguments else [])), "the gallery")
    return run(program("python"), "-m", "mkdocs", "build", "--strict")


COMMANDS = {"demo": demo, "test": test, "lint": lint, "lane": lane, "docs": docs}


def main() -> int:
    """Read the command line and run one command."""
    # packages come without compiled files: each of the many processes would compile all that it imports again
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
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
