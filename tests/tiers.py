"""Which tests every change has to pass, and which ones only a release: what takes longest is in `slow.txt`.

Most of a test is compiling, so that no test can be made cheap without asking less. What is left out is chosen by time
alone: of the tests of a function, and of a file, the shortest stay.
"""

from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
LIST = HERE / "slow.txt"
SHORT, LONG = 1.5, 12.0
"""Seconds of a test that always runs; seconds of one that runs if it is the shortest of its function."""
PROOFS = ("laws/", "test_docs.py", "test_report.py")
"""Where the shortest of each function runs however long it takes: comparisons with enumeration, and what users are
told that there is."""


def slow_of(seconds: dict[str, float]) -> list[str]:
    """Names of the tests left to a release, from the seconds that each took: all but the short ones, the shortest of
    each function, unless that is long and proves nothing, and the shortest of each file."""
    kept = {name for name, taken in seconds.items() if taken <= SHORT}
    for last, most in (("[", LONG), ("::", float("inf"))):
        together = defaultdict(list)
        for name in seconds:
            together[name.split(last)[0]].append(name)
        for names in together.values():
            shortest = min(names, key=lambda name: seconds[name])
            if not kept.intersection(names) and (seconds[shortest] <= most or shortest.startswith(PROOFS)):
                kept.add(shortest)
    return sorted(set(seconds) - kept)


def slow_tests() -> frozenset[str]:
    """Names of the tests that are left to a release, from this folder on."""
    return frozenset(LIST.read_text(encoding="utf-8").splitlines())


def name_of(item) -> str:
    """A test's name from this folder on, whatever folder pytest was started in."""
    return f"{item.path.relative_to(HERE)}::{item.nodeid.partition('::')[2]}"


class Stopwatch:
    """Writes the list anew from the seconds of a run of all tests."""

    def __init__(self):
        self.seconds = defaultdict(float)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid.removeprefix(f"{HERE.name}/")] += report.duration

    def pytest_sessionfinish(self, session):
        if not hasattr(session.config, "workerinput"):  # workers know of their own tests alone
            LIST.write_text("".join(f"{name}\n" for name in slow_of(self.seconds)), encoding="utf-8")
