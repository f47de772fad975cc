"""`kayn fit`: what it prints, the page it writes, and what it refuses in one line."""

import re
import runpy
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from kayn.cli import main

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {
        "score": RNG.normal(50, 10, 24).round(3),
        "a $b$ <i>": RNG.normal(0, 1, 24).round(3),
        "hours": RNG.uniform(2, 8, 24).round(3),
        "school": np.repeat(["S<1>", "S$2$", "S3", "S4"], [10, 6, 6, 2]),
    }
)


def kayn_fit(*arguments):
    return CliRunner().invoke(main, ["fit", *map(str, arguments)])


@pytest.mark.parametrize("ending", ["csv", "parquet", "feather"])
def test_tables_are_read_from_files(tmp_path, ending):
    from kayn.formulas.frames import read_frame

    pytest.importorskip("pyarrow")
    path = tmp_path / f"table.{ending}"
    getattr(TABLE, f"to_{ending}")(path, **({"index": False} if ending == "csv" else {}))
    pd.testing.assert_frame_equal(read_frame(path), TABLE, check_dtype=False)


def test_a_report_says_what_was_found_checked_and_to_be_doubted(tmp_path):
    table = TABLE.assign(hours=TABLE.hours.where(TABLE.index != 4))
    table.to_csv(tmp_path / "pupils.csv", index=False)
    page = tmp_path / "report.html"
    found = kayn_fit(tmp_path / "pupils.csv", "score ~ hours + (1 | school)", "--report", page)
    assert found.exit_code == 0, found.output
    assert "note: 1 of 24 rows are left out, at 4" in found.stderr
    doubts = "1 of 4 groups of school have fewer than 5 rows"
    for words in ("numpyro.sample(", "sd(1|school)", "log evidence", "Checked:", "effective sample size", doubts):
        assert words in found.stdout
    text = page.read_text(encoding="utf-8")
    assert text.count("<img ") == text.count("src='data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=['\"]?http|<script|@import", text)  # one file, which loads nothing
    for words in ("1|school[S&lt;1&gt;]", "numpyro.sample(", doubts, "middle 90%", "1 of 24 rows are left out"):
        assert words in text
    assert "S<1>" not in text


@pytest.mark.parametrize(
    ("name", "content", "formula", "options", "message"),
    [
        ("none.csv", None, "score ~ hours", (), "No such file"),
        ("table.xlsx", b"", "score ~ hours", (), "must end in .csv, .parquet"),
        ("empty.csv", b"", "score ~ hours", (), "cannot be read: No columns"),
        ("rows.csv", b"score,hours\n", "score ~ hours", (), "no rows"),
        ("torn.parquet", b"PAR1 and no more", "score ~ hours", (), "cannot be read"),
        ("torn.feather", b"ARROW1", "score ~ hours", (), "cannot be read"),
        ("bytes.csv", b"\xff\xfe\x00\x81,", "score ~ hours", (), "cannot be read"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3,4\n", "a ~ b", (), "cannot be read"),
        ("ok.csv", TABLE, "score ~ hoours", (), "no column 'hoours'"),
        ("ok.csv", TABLE, "score ~ hours + (1 |", (), "without its other half"),
        ("ok.csv", TABLE, "score ~ hours", ("--family", "normall"), "family 'normall'"),
        ("ok.csv", TABLE, "score ~ hours", ("--family", "poisson"), "counts"),
        ("ok.csv", TABLE, "score ~ hours", ("--prior", "hours"), "SITE=PRIOR"),
        ("ok.csv", TABLE, "score ~ hours", ("--prior", "hours=Nromal(0, 1)"), "must be a distribution"),
        ("ok.csv", TABLE, "score ~ hours", ("--report", "nowhere/else/report.html"), "no directory"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(tmp_path, name, content, formula, options, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content.to_csv(path, index=False)
    found = kayn_fit(path, formula, *options)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert message in found.stderr


@pytest.mark.parametrize("module", ["kayn", "kayn.cli"])
def test_the_command_is_a_module_too(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kayn", "--version"])
    monkeypatch.delitem(sys.modules, "kayn.cli", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("kayn, version ")
