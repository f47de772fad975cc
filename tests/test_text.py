"""Text that people read: no long lines, functions and files, and pages that name what exists."""

import ast
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WIDTH = 120
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 350, 60
READ = {".md", ".toml", ".yml", ".yaml", ".sh", ""}
WRITTEN_BY_PROGRAMS = {"results", ".git", ".venv", "__pycache__", "site", "build", "dist"}


def long_lines(text, markdown):
    """Numbers of lines that are too long. Rows of Markdown tables, and words that cannot be broken,
    are as long as they are."""
    for number, line in enumerate(text.splitlines(), 1):
        table = markdown and line.lstrip().startswith("|")
        if len(line) > WIDTH and not table and len(line.split()) > 1:
            yield number


def pages():
    """Text files of the repository, but for Python, which ruff looks at, and for what programs wrote."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(p.startswith(".") and p != ".ci" for p in parts[:-1])
        if path.is_file() and path.suffix in READ and not hidden and not WRITTEN_BY_PROGRAMS & {*parts}:
            yield path


def test_no_line_is_over_120_columns():
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in pages()
        if path.name != "LICENSE"
        for number in long_lines(path.read_text(encoding="utf-8"), path.suffix == ".md")
    ]
    assert not long, long


def test_long_lines_are_seen():
    line = " ".join(["word"] * 30)
    assert list(long_lines(f"short\n{line}\n| {line} |\nhttps://{'x' * WIDTH}", True)) == [2]
    assert list(long_lines(f"| {line} |", False)) == [1]


def long_functions(text):
    """Names of functions that are too long, methods and inner ones too; docstrings count."""
    for node in ast.walk(ast.parse(text)):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if function and node.end_lineno - node.lineno >= LINES_OF_A_FUNCTION:
            yield node.name


SOURCES = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in sorted((ROOT / "src").rglob("*.py"))}


def test_no_file_of_the_library_is_over_350_lines():
    assert len(SOURCES) > 100
    long = {path: lines for path, text in SOURCES.items() if (lines := len(text.splitlines())) > LINES_OF_A_FILE}
    assert not long, long


def test_no_function_of_the_library_is_over_60_lines():
    """Nor has one many branches, which ruff sees to."""
    long = [f"{path}: {name}" for path, text in SOURCES.items() for name in long_functions(text)]
    assert not long, long


def test_long_functions_are_seen():
    def function(name, lines):
        return [f"def {name}():", *["    pass"] * (lines - 1)]

    method = ["class C:", *(f"    {line}" for line in function("method", LINES_OF_A_FUNCTION + 1))]
    text = "\n".join([*function("short", LINES_OF_A_FUNCTION), *function("long", LINES_OF_A_FUNCTION + 1), *method])
    assert list(long_functions(text)) == ["long", "method"]


def test_programs_import_each_other_by_their_packages():
    """Experiments, examples and benchmarks are modules of the repository's root, and what tests share is no test."""
    folders = ("benchmarks", "examples", "experiments", "models", "tests")
    programs = {p: p.read_text(encoding="utf-8") for folder in folders for p in (ROOT / folder).rglob("*.py")}
    assert len(programs) > 100
    imported = re.compile(r"^\s*(?:from (\S+) )?import (.*)", re.M)
    wrong = [
        str(path.relative_to(ROOT))
        for path, text in programs.items()
        if "sys.path" + ".insert" in text
        or any(re.search(r"\btest_", module or name) for module, name in imported.findall(text))
    ]
    assert not wrong, wrong


DECISIONS = {p.name: p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs" / "decisions").glob("*.md"))}
LABELS = ("Decision", "Because", "Tried and dropped", "Measured", "Code", "Test")


def entries():
    """Every entry of the pages: page, title, text."""
    for page, text in DECISIONS.items():
        if page != "index.md":
            for entry in re.split(r"^## ", text, flags=re.M)[1:]:
                title, body = entry.split("\n", 1)
                yield pytest.param(body, id=f"{page}: {title}")


@pytest.mark.parametrize("entry", [*entries()])
def test_decisions_name_what_exists(entry):
    """Labels in their order, code that can be imported, tests that can be found, links that lead somewhere."""
    labels = re.findall(r"^\*\*(.+?)\.\*\*", entry, re.M)
    assert labels[0] == "Decision"
    assert labels == [label for label in LABELS if label in labels]
    for name in re.findall(r"`(kayn\.[\w.]+)`", entry):
        assert pkgutil.resolve_name(name) is not None
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)`", entry):
        assert f"def {name}(" in tests


def test_names_in_text_exist():
    """Whatever docstrings, comments and pages call by its full name can be imported under it."""
    text = "\n".join(p.read_text(encoding="utf-8") for top in ("src", "docs") for p in (ROOT / top).rglob("*.[pm][yd]"))
    missing = []
    for name in sorted(set(re.findall(r"`(kayn(?:\.\w+)+)", text))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing, missing


@pytest.mark.parametrize("page", DECISIONS)
def test_links_lead_to_pages_and_headings(page):
    for target, anchor in re.findall(r"\]\(([\w./-]*?\.md)?(?:#([\w-]+))?\)", DECISIONS[page]):
        path = ROOT / "docs" / "decisions" / (target or page)
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]


def test_every_page_of_decisions_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [p for p in DECISIONS if f"decisions/{p}" not in navigation] == []
