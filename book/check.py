"""Part three of ``make test``: nbval on the committed notebooks, each executed and compared with its stored outputs.

A notebook that passed is not executed again on this machine while it, the package, the stored tables and the pinned
packages are as they were; a fresh checkout executes all of them. This module is also the plugin of pytest that has
nbval compare all that a page shows, not only the cells that carry its tag.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import execute
import pytest
from nbval.plugin import IPyNbCell

from ridge_utils import cache, notebooks, outputs
from ridge_utils.audit import verdicts

#: What passed, a digest by the notebook's name.
PASSED = execute.ROOT / "_build" / "passed.json"
#: Whether all cells of a notebook passed, by its name.
_whole: dict[str, bool] = {}


def main() -> int:
    """Run nbval on the named notebooks, or on those that have not passed yet; pytest's status."""
    given = execute.arguments("execute the committed notebooks and compare them with their stored outputs")
    shared = _digest([execute.ROOT / "requirements.txt", execute.ROOT / "constraints.txt", *_sources()])
    names = given.names or execute.in_book()
    digests = {name: f"{shared}-{_digest([notebooks.NOTEBOOKS / f'{name}.ipynb'])}" for name in names}
    passed: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there, or damaged
        passed = dict(json.loads(PASSED.read_bytes()))
    left = [name for name in digests if given.names or passed.get(name) != digests[name]]
    print(f"{len(digests) - len(left)} of {len(digests)} notebooks have passed as they are.", flush=True)
    if not left:
        return 0
    for name in left:
        outputs.check_seal(notebooks.NOTEBOOKS / f"{name}.ipynb")
    # The one that makes the shared fine-tuning first, then those that do not wait for it, the longest first.
    left.sort(key=lambda name: (name != execute.TRAINS, execute.shares_training(name), -execute.expected(name)))
    options = ["-v", "--assert=plain", "-n", str(given.jobs), "--dist", "loadfile", "-p", "no:cacheprovider"]
    options += ["-p", "check", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=5400"]
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // given.jobs))  # of pytest's workers
    os.environ[verdicts.WITHOUT_AUDITS] = "1"
    status = pytest.main([*options, *(str(notebooks.NOTEBOOKS / f"{name}.ipynb") for name in left)])
    if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):  # not one that was interrupted
        good = {name: digests[name] for name in left if _whole.get(name)}
        cache.write_text(PASSED, json.dumps(passed | good, indent=1))
    return int(status)


def pytest_runtest_logreport(report: Any) -> None:
    """Note a notebook in which a cell failed."""
    name = Path(report.nodeid.partition("::")[0]).stem
    _whole[name] = _whole.get(name, True) and not report.failed


def pytest_itemcollected(item: Any) -> None:
    """Have the outputs of a notebook's cell compared, unless the book leaves them out."""
    if isinstance(item, IPyNbCell) and not notebooks.has_tag(item.cell, notebooks.OWN_RUN):
        item.options["check"] = True
        item.compare_outputs = functools.partial(_compare, item)


def _compare(item: Any, fresh: list[Any], stored: list[Any]) -> bool:
    wrong = outputs.difference(stored, fresh, item.cell.metadata.get("ridge", {}).get("tolerance", 0.0))
    item.comparison_traceback = [wrong]
    return not wrong


def _sources() -> list[Path]:
    """All that the notebooks' numbers and checks are made by and compared with."""
    files = [path for folder in ("ridge_utils", "results") for path in (execute.ROOT / folder).rglob("*.*")]
    audits = execute.ROOT / "results" / "audit"  # a user's, which a check does not read
    return sorted(
        path for path in files if path.is_file() and path.suffix != ".pyc" and not path.is_relative_to(audits)
    )


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    raise SystemExit(execute.told(main))
