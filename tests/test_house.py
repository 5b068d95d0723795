"""The house: no circle, no long file, and a notebook that is added is added everywhere."""

import ast
from pathlib import Path

import pytest

from ridge_utils import notebooks
from ridge_utils.run import book
from tests.test_notebooks import MEASURING, SMALL

ROOT = notebooks.NOTEBOOKS.parent
PACKAGE = ROOT / "ridge_utils"
TESTS = sorted((ROOT / "tests").glob("*.py"))
#: Notebooks that `ridge list` names and the book does not show.
NOT_IN_BOOK = {"audit"}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module):
    """The modules of the package that a module imports as it is loaded."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & set(MODULES) or {node.module}
    return (names & set(MODULES)) - {module, "ridge_utils"}


def test_there_is_no_circle():
    left = {module: imports(module) for module in MODULES}
    while free := {module for module, needed in left.items() if not needed & set(left)}:
        left = {module: needed for module, needed in left.items() if module not in free}
    assert not left, f"these modules import each other: {', '.join(left)}"


def test_no_file_is_long():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in [*MODULES.values(), *TESTS]}
    assert not {path.name: count for path, count in lines.items() if count > 500}


@pytest.mark.parametrize("name", notebooks.names())
def test_a_notebook_has_all_that_it_needs(name):
    missing = []
    if name not in book.in_book() and name not in NOT_IN_BOOK:
        missing.append("a line in _toc.yml")
    if name in MEASURING and not Path(ROOT / "results" / f"{name}.csv").is_file():
        missing.append(f"a stored table: ridge refresh {name}")
    if name in MEASURING and name not in SMALL:
        missing.append("parameters of a small run: SMALL in tests/test_notebooks.py")
    if not notebooks.title(name):
        missing.append("a heading")
    assert not missing, f"{name} lacks {'; '.join(missing)}"
