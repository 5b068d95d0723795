"""``ridge check``: nbval on the committed notebooks, each executed and compared with its stored outputs.

A notebook that passed is not executed again on this machine while it, the package, the stored tables and the pinned
packages are as they were; a fresh checkout executes all of them.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ridge_utils import cache, notebooks, outputs
from ridge_utils.run import book

#: What passed, a digest by the notebook's name; and pytest's own report.
PASSED, REPORT = book.ROOT / "_build" / "passed.json", book.ROOT / "_build" / "nbval.xml"


def main(names: Sequence[str] = (), jobs: int = 2) -> int:
    """Run nbval on the named notebooks, or on those that have not passed yet, ``jobs`` at a time; pytest's status."""
    shared = _digest([book.ROOT / "requirements.txt", book.ROOT / "constraints.txt", *_sources()])
    digests = {name: f"{shared}-{_digest([notebooks.NOTEBOOKS / f'{name}.ipynb'])}" for name in names or book.in_book()}
    passed = json.loads(PASSED.read_text(encoding="utf-8")) if PASSED.is_file() else {}
    left = [name for name in digests if names or passed.get(name) != digests[name]]
    print(f"{len(digests) - len(left)} of {len(digests)} notebooks have passed as they are.", flush=True)
    if not left:
        return 0
    for name in left:
        outputs.check_seal(notebooks.NOTEBOOKS / f"{name}.ipynb")
    # The one that makes the shared fine-tuning first, then those that do not wait for it, the longest first.
    left.sort(key=lambda name: (name != book.TRAINS, book.shares_training(name), -book.expected(name)))
    command = [sys.executable, "-m", "pytest", "-v", "-n", str(jobs), "--dist", "loadfile", "-p", "no:cacheprovider"]
    command += ["-p", "ridge_utils.run.compared"]
    command += ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=5400", f"--junitxml={REPORT}"]
    command += [str(notebooks.NOTEBOOKS / f"{name}.ipynb") for name in left]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.unlink(missing_ok=True)
    status = subprocess.run(command, cwd=book.ROOT, env=environment, check=False).returncode
    good = {name: digests[name] for name in _passed(left)}
    cache.write_text(PASSED, json.dumps(passed | good, indent=1))
    return status


def _passed(names: Sequence[str]) -> list[str]:
    """The notebooks of which pytest's report has cells, and none that failed."""
    if not REPORT.is_file():
        return []
    whole: dict[str, bool] = {}
    for case in ElementTree.parse(REPORT).getroot().iter("testcase"):
        name = case.get("classname", "").removesuffix(".ipynb").rpartition(".")[2]
        whole[name] = whole.get(name, True) and case.find("failure") is None and case.find("error") is None
    return [name for name in names if whole.get(name)]


def _sources() -> list[Path]:
    """All that the notebooks' numbers and checks are made by and compared with."""
    files = [path for folder in ("ridge_utils", "results") for path in (book.ROOT / folder).rglob("*.*")]
    return sorted(path for path in files if path.is_file() and path.suffix != ".pyc")


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
