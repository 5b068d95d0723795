"""The house: no long file, and a notebook that is added is added everywhere."""

from pathlib import Path

import execute
import pytest

from ridge_utils import notebooks
from tests.test_notebooks import MEASURING, SMALL

ROOT = notebooks.NOTEBOOKS.parent
#: Notebooks that `ridge list` names and the book does not show.
NOT_IN_BOOK = {"audit"}


def test_no_file_is_long():
    files = [
        path for folder in ("ridge_utils", "tests", "benchmarks", "book") for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    assert [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 500] == []


@pytest.mark.parametrize("name", notebooks.names())
def test_a_notebook_has_all_that_it_needs(name):
    missing = []
    if name not in execute.in_book() and name not in NOT_IN_BOOK:
        missing.append("a line in _toc.yml")
    if name in MEASURING and not Path(ROOT / "results" / f"{name}.csv").is_file():
        missing.append(f"a stored table: ridge refresh {name}")
    if name in MEASURING and name not in SMALL:
        missing.append("parameters of a small run: SMALL in tests/test_notebooks.py")
    if not notebooks.title(name):
        missing.append("a heading")
    assert not missing, f"{name} lacks {'; '.join(missing)}"
