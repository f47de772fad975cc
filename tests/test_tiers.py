"""The list of tests that are left to a release names tests that exist, and is made as `tests.tiers` says."""

import re

from tests.tiers import HERE, LONG, PROOFS, SHORT, slow_of, slow_tests


def test_what_is_listed_exists():
    texts = {path: (HERE / path).read_text(encoding="utf-8") for path in {t.partition("::")[0] for t in slow_tests()}}
    for test in slow_tests():
        path, _, rest = test.partition("::")
        function = rest.partition("[")[0]
        assert re.search(rf"def {function}\(", texts[path]), f"{test}: run dev.py test --all --find-slow"


def test_every_function_and_file_keeps_its_shortest():
    short, long = SHORT / 2, 2 * LONG
    seconds = {"a.py::one": short, "a.py::two": long, "a.py::two[x]": long + 1, "b.py::one[1]": LONG}
    seconds |= {"b.py::one[2]": LONG - 1, "c.py::one": long, "c.py::two[a::b]": long + 1}
    seconds |= {f"{PROOFS[0]}d.py::{name}": long for name in ("one", "two[1]")} | {f"{PROOFS[0]}d.py::two[2]": long + 1}
    left = ["a.py::two", "a.py::two[x]", "b.py::one[1]", "c.py::two[a::b]", f"{PROOFS[0]}d.py::two[2]"]
    assert slow_of(seconds) == left
