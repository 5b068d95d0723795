"""``make book``: the book from the stored outputs at once, then every notebook that needs it, then the book anew.

A page is executed where its code, what that code calls, the stored tables that it reads or the pinned packages have
changed since: by a digest of their contents. Words and captions are taken from the committed notebook each time the
book is built, so a change in them executes nothing, and neither does one in the modules that only draw.
"""

import argparse
import ast
import functools
import hashlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ridge_utils import files, notebooks
from ridge_utils.errors import InputError, StorageError

ROOT = notebooks.NOTEBOOKS.parent
#: The executed notebooks, and those that are being executed or failed.
EXECUTED, RUNNING = ROOT / "_build" / "executed", ROOT / "_build" / "running"
#: The row of the first build among the notebooks.
STORED = "the book as stored"
#: It makes the fine-tuning that others share.
TRAINS = "predictive_information"
#: The parameters that make two notebooks share a fine-tuning.
TRAINING = ("model", "task", "n_train", "steps", "checkpoints", "learning_rate", "batch_size", "training_seeds")
#: Modules that draw, write or execute and measure nothing; a change in them executes no notebook by itself.
DISPLAY = {
    "ridge_utils." + name for name in ("figures", "files", "formatting", "notebooks", "outputs", "page", "profiles")
}
#: Seconds a notebook takes on one quiet core; it gives only the order, and the time left before one was executed here.
SECONDS = {"truncation": 160, "overfitting": 160, "residual_scaling": 160, "multi_token": 80, "attention": 70}
USUAL_SECONDS = 40


def arguments(does: str) -> argparse.Namespace:
    """The notebooks that a command names, and how many it may work on at a time."""
    parser = argparse.ArgumentParser(description=does)
    parser.add_argument("names", nargs="*", type=_name, metavar="NOTEBOOK", help="default: those that need it")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="notebooks at a time (default: 2)")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs must be 1 or more, but is {given.jobs}")
    return given


def _name(text: str) -> str:
    try:
        return notebooks.find(text).stem
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def told(command: Callable[[], int]) -> int:
    """Run a command; what it refuses is told in a sentence, without a traceback."""
    try:
        return command()
    except (InputError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def main() -> int:
    """Execute the named notebooks, or those that have changed, and build the book; 1 if a notebook failed."""
    given = arguments("execute the notebooks that have changed and build the book")
    keys = {name: key(name) for name in given.names or in_book()}
    left = [name for name in keys if given.names or _stored(name).get("key") != keys[name]]
    if not left:
        print(f"Each of {len(keys)} notebooks is as it was executed.")
    outcomes = _Jobs(left, keys, given.jobs).work() if left else {}
    failed = [name for name, seconds in outcomes.items() if seconds is None]
    status, _ = build()
    if left:
        print("Time to execute each notebook:")
        for name in sorted(keys):
            seconds = outcomes.get(name, _stored(name).get("seconds"))
            shown = "failed" if seconds is None else f"{seconds:6.0f} s"
            print(f"  {name:28} {shown}{'' if name in outcomes else '  (before)'}")
    if failed:
        print(f"error: {len(failed)} of {len(left)} notebooks failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else status


def build(quiet: bool = False) -> tuple[int, str]:
    """Build the book's pages, executed outputs in place of the committed ones; its exit status, and its output."""
    command = [sys.executable, str(ROOT / "book" / "build.py"), "--executed", str(EXECUTED)]
    done = subprocess.run(command, check=False, capture_output=quiet, text=True)
    return done.returncode, done.stdout or ""


def in_book() -> list[str]:
    """The notebooks that the table of contents has."""
    return re.findall(r"file: notebooks/(\w+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))


# What a page depends on.


def key(notebook: str) -> str:
    """A digest of all that the outputs of a notebook depend on."""
    code = "\n".join(cell["source"] for cell in notebooks.cells(notebook) if cell["cell_type"] == "code")
    modules = imported(code)
    # The stored tables that the page or a module of its names; all of them where none is named.
    texts = _texts(code).union(*(_texts(path.read_text(encoding="utf-8")) for path in modules.values()))
    tables = sorted((ROOT / "results").rglob("*.csv"))
    data = [path for path in tables if texts & {path.stem, path.name}] or tables
    if "ridge_utils.tasks" in modules:
        data += sorted(path for path in (ROOT / "ridge_utils" / "tasks").iterdir() if path.suffix in {".jsonl", ".csv"})
    data += [ROOT / "requirements.txt", ROOT / "constraints.txt"]
    parts = [sys.version, _without_words(code)]
    parts += [_without_words(path.read_text(encoding="utf-8")) for _, path in sorted(modules.items())]
    parts += [_digest(path) for path in data]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def imported(code: str) -> dict[str, Path]:
    """The modules of the package that code imports, and those that they import, those that only draw left out."""
    modules: dict[str, Path] = {}
    waiting = [*_imports(code)]
    while waiting:
        name = waiting.pop()
        path = ROOT.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in modules and name not in DISPLAY and path.is_file():
            modules[name] = path
            waiting += _imports(path.read_text(encoding="utf-8"))
    return modules


@functools.cache
def _imports(code: str) -> frozenset[str]:
    """What code imports of the package; the names that it takes from a module may be modules as well."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in names if name.partition(".")[0] == "ridge_utils")


@functools.cache
def _texts(code: str) -> frozenset[str]:
    """The texts among the constants of code."""
    return frozenset(node.value for node in ast.walk(ast.parse(code)) if _is_text(node))


@functools.cache
def _without_words(code: str) -> str:
    """Code without comments, layout and docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not (isinstance(part, ast.Expr) and _is_text(part.value))]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stored(notebook: str) -> dict[str, Any]:
    """What is noted in an executed notebook: its ``key``, and the ``seconds`` that it took."""
    path = EXECUTED / f"{notebook}.ipynb"
    return json.loads(path.read_text(encoding="utf-8"))["metadata"].get("ridge", {}) if path.is_file() else {}


# The processes, each with one notebook at a time.


def _start(messages: Any, threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    _start.messages = messages  # type: ignore[attr-defined]


class _Progress:
    """Sends the phase and the time left that the notebook's bars show on stderr."""

    _BAR = re.compile(r"([^\r\n|]+?):\s+(\d+)%\|[^\r\n]*?<([\d:]+)")

    def __init__(self, notebook: str) -> None:
        self.notebook, self.sent = notebook, 0.0

    def write(self, text: str) -> None:
        bars = self._BAR.findall(text)
        if bars and time.monotonic() > self.sent + 0.3:
            phase, percent, left = bars[-1]
            _start.messages.put((self.notebook, f"{phase.strip()}, {percent} %, {left} left"))  # type: ignore[attr-defined]
            self.sent = time.monotonic()

    def flush(self) -> None:
        pass


def _execute(notebook: str, digest: str) -> tuple[float, str]:
    """Execute a committed notebook; how long it took, and what went wrong, if anything did."""
    import nbformat

    started = time.monotonic()
    output = RUNNING / f"{notebook}.ipynb"
    EXECUTED.mkdir(parents=True, exist_ok=True)

    def finish(path: Path) -> None:
        executed = notebooks.stable(nbformat.read(path, as_version=4))
        executed.metadata["ridge"] = {"key": digest, "seconds": round(time.monotonic() - started, 1)}
        nbformat.write(executed, path)

    try:
        notebooks.execute(notebooks.NOTEBOOKS / output.name, output, {}, _Progress(notebook), finish)
        files.replace(RUNNING, EXECUTED / output.name)
    except Exception as error:  # whatever it is, the others go on
        reason = " ".join(notebooks.failure(notebook, error).split())
        return time.monotonic() - started, f"{reason[:300]}; see {RUNNING}"
    return time.monotonic() - started, ""


def _build_stored(_name: str, _digest: str) -> tuple[float, str]:
    started = time.monotonic()
    status, output = build(quiet=True)
    return time.monotonic() - started, " ".join(output.split())[-300:] if status else ""


class _Jobs:
    """Notebooks in processes, and a line for each on the terminal or in the log."""

    def __init__(self, left: list[str], keys: dict[str, str], jobs: int) -> None:
        self.keys, self.jobs = keys, jobs
        self.waiting = [STORED, *left]
        self.states = dict.fromkeys(self.waiting, "waiting")
        self.started: dict[str, float] = {}
        self.done: dict[str, float | None] = {}
        self.console = Console(highlight=False, soft_wrap=True)

    def work(self) -> dict[str, float | None]:
        """Execute all; the seconds that each notebook took, None of those that failed."""
        context = multiprocessing.get_context("spawn")
        messages = context.SimpleQueue()
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        pool = ProcessPoolExecutor(self.jobs, context, _start, (messages, threads))
        live = Live(self, console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        futures: dict[Future, str] = {}
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            if live:
                live.start()
            while self.waiting or futures:
                # No more than are worked on: what waits in the pool would be begun after an interruption.
                while self.waiting and len(futures) < self.jobs:
                    name = self._next(set(futures.values()))
                    self._tell(name, "running")
                    self.started[name] = time.monotonic()
                    call = _build_stored if name == STORED else _execute
                    futures[pool.submit(call, name, self.keys.get(name, ""))] = name
                ended, _ = wait(futures, 0.25, FIRST_COMPLETED)
                while not messages.empty():
                    name, phase = messages.get()
                    self.states[name] = phase
                for future in ended:
                    name = futures.pop(future)
                    seconds, reason = future.result()
                    self.done[name] = None if reason else seconds
                    self._tell(name, f"failed: {reason}" if reason else f"done in {_clock(seconds)}")
                    if name == STORED and not reason:
                        self.console.print(f"The book can be read: {(ROOT / '_build/html/index.html').as_uri()}")
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()  # its kernel ends with it
            raise
        finally:
            if live:
                live.stop()
            pool.shutdown(wait=True, cancel_futures=True)
        return {name: seconds for name, seconds in self.done.items() if name != STORED}

    def _next(self, running: set[str]) -> str:
        """What comes next: the longest first; those that need the shared fine-tuning not while it is being made."""

        def order(name: str) -> tuple[bool, bool, bool, float]:
            return name == STORED, name == TRAINS, not (TRAINS in running and shares_training(name)), expected(name)

        name = max(self.waiting, key=order)
        self.waiting.remove(name)
        return name

    def _tell(self, name: str, state: str) -> None:
        self.states[name] = state
        if not self.console.is_terminal:
            count = f"[{len(self.done)}/{len(self.states)}]"
            left = "" if state == "running" else self._left()
            print(f"{count} {name}: {state}{left and f'; {left}'}", flush=True)

    def _left(self) -> str:
        """About how long the rest takes, if it is as much slower or faster than expected as what is done."""
        took = {name: seconds for name, seconds in self.done.items() if seconds is not None}
        pace = sum(took.values()) / sum(map(expected, took)) if took else 1.0
        running = [name for name in self.started if name not in self.done]
        left = sum(expected(name) * pace for name in self.waiting)
        left += sum(max(0.0, expected(name) * pace - (time.monotonic() - self.started[name])) for name in running)
        return f"about {_clock(left / self.jobs)} left" if left else ""

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, state in self.states.items():
            passed = f"{_clock(time.monotonic() - self.started[name])}  " if name in self.started else ""
            shown = state if name in self.done else f"{passed}{state}"
            colour = {"waiting": "dim", "done": "green", "failed:": "red"}.get(state.split()[0], "bold")
            table.add_row(Text(name, colour), Text(shown, overflow="ellipsis", no_wrap=True))
        table.add_row(Text(f"{len(self.done)} of {len(self.states)}"), Text(self._left()))
        return table


@functools.cache
def shares_training(notebook: str) -> bool:
    """Whether a notebook uses the fine-tuning that :data:`TRAINS` makes."""
    if notebook == STORED:
        return False
    defaults, shared = notebooks.defaults(notebook), notebooks.defaults(TRAINS)
    return all(defaults.get(name) == shared[name] for name in TRAINING)


@functools.cache
def expected(notebook: str) -> float:
    """Seconds that a notebook takes, as it did here or elsewhere."""
    return (_stored(notebook).get("seconds") if notebook != STORED else 60) or SECONDS.get(notebook, USUAL_SECONDS)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


if __name__ == "__main__":
    raise SystemExit(told(main))
