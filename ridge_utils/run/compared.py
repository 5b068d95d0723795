"""A plugin of pytest for ``ridge check``: nbval compares every number that a page shows, not only what is tagged."""

import functools
from typing import Any

import pytest
from nbval.plugin import IPyNbCell

from ridge_utils import notebooks, outputs


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have the outputs of a notebook's cell compared, unless the book leaves them out."""
    if isinstance(item, IPyNbCell) and not notebooks.has_tag(item.cell, notebooks.OWN_RUN):
        item.options["check"] = True
        item.compare_outputs = functools.partial(_compare, item)


def _compare(item: IPyNbCell, fresh: list[Any], stored: list[Any], *_: Any) -> bool:
    wrong = outputs.difference(stored, fresh, outputs.tolerance_of(item.cell))
    item.comparison_traceback = [wrong]
    return not wrong
