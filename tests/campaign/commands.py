"""Commands in folders of their own, for the kinds that disturb them: what runs, what it leaves, what it must give."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat

from ridge_utils import notebooks

#: Seconds after which no process of a command that was killed may run.
GONE = 6
#: The parameters of the smallest run that fine-tunes.
SMALL = {"steps": 4, "checkpoints": [2], "n_train": 16, "n_samples": 8, "sampling_seeds": [0], "batch_size": 8}
_PAGE = """
from pathlib import Path
from ridge_utils import notebooks
import sys
sys.path.insert(0, str(notebooks.NOTEBOOKS.parent / "book"))
import execute as book
book.RUNNING, book.EXECUTED = Path("out/running").absolute(), Path("out").absolute()
reason = book._execute("verdicts", "")[1]
raise SystemExit(f"error: {reason}" if reason else 0)
"""
_TINY = """
import time
from pathlib import Path
for ending in ("csv", "json"):
    Path(save_table).with_suffix(f".{ending}").write_text("1.5")
time.sleep(0.5)
"""


@dataclass(frozen=True)
class Job:
    """A command of the project, and the file in its folder that says what it found."""

    name: str
    arguments: tuple[str, ...]
    found: str

    def digest(self, folder: Path) -> str:
        """Of what was found; of a page, of what its cells give."""
        path = folder / self.found
        if path.suffix != ".ipynb":
            return hashlib.sha256(path.read_bytes()).hexdigest()
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return hashlib.sha256(json.dumps([cell.get("outputs") for cell in cells]).encode()).hexdigest()


_GIVEN = [word for name, value in SMALL.items() for word in ("-p", f"{name}={json.dumps(value)}")]
RUN = Job(
    "run",
    ("-m", "ridge_utils", "run", "predictive_information", "-p", "model=random:gpt2", *_GIVEN, "-o", "out/x.ipynb"),
    "out/x.csv",
)
SWEEP = Job("sweep", ("-m", "ridge_utils", "sweep", "grid.yaml", "-o", "out", "--workers", "2"), "out/table.csv")
SETUP = Job("setup", ("-m", "ridge_utils", "setup"), "cache/models/smollm2-135m-b179c9523d0e6a0f-v1/model.safetensors")
#: A page that measures nothing. That of trust would change with the figures of this campaign.
PAGE = Job("page", ("-c", _PAGE), "out/verdicts.ipynb")
#: A notebook that measures nothing, for what must not take long.
TINY = Job(
    "notebook",
    (
        "-c",
        """
from pathlib import Path
from ridge_utils import notebooks
output = Path("out/x.ipynb").absolute()
try:
    notebooks.execute(Path("tiny.ipynb"), output, {"save_table": str(output.with_suffix(".csv"))})
except Exception as error:
    raise SystemExit(f"error: {notebooks.failure('tiny', error)}")
""",
    ),
    "out/x.csv",
)


@dataclass
class Place:
    """A folder with output, cache and connection files of its own, and the processes that work there."""

    folder: Path

    def __post_init__(self) -> None:
        self.mark = f"RIDGE_CAMPAIGN={uuid.uuid4().hex}"
        for name in ("out", "cache", "runtime"):
            (self.folder / name).mkdir(exist_ok=True)
        grid = {"notebooks": {"predictive_information": SMALL}, "models": ["random:gpt2", "random:llama"]}
        (self.folder / "grid.yaml").write_text(json.dumps(grid))
        cells = [nbformat.v4.new_code_cell('save_table = ""', metadata={"tags": ["parameters"]})]
        cells += [nbformat.v4.new_code_cell(_TINY)]
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}),
            self.folder / "tiny.ipynb",
        )

    def start(self, job: Job, before: Callable[[], None] | None = None) -> subprocess.Popen:
        """Begin a job; ``before`` is called in its process."""
        here = {"RIDGE_CACHE": "cache", "JUPYTER_RUNTIME_DIR": "runtime", "TMPDIR": "runtime"}
        environment = os.environ | {name: str(self.folder / path) for name, path in here.items()}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        # The kernels import what the command imports.
        environment["PYTHONPATH"] = str(notebooks.NOTEBOOKS.parent)
        environment |= dict([self.mark.split("=")])
        return subprocess.Popen(
            [sys.executable, *job.arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=before,
        )

    def processes(self) -> dict[int, str]:
        """The command lines of what was started here and still runs, by process."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes():
                    found[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        return found

    def left(self) -> str:
        """What runs or lies here that should not; empty if nothing does."""
        until = time.monotonic() + GONE
        while (running := self.processes()) and time.monotonic() < until:
            time.sleep(0.2)
        if running:
            return f"still runs: {next(iter(running.values()))[:100]}"
        hidden = [path for path in self.folder.rglob(".*") if path.is_dir() or path.suffix != ".lock"]
        # Dask and torch keep folders of their own there for good.
        hidden += [path for path in (self.folder / "runtime").iterdir() if path.name.startswith(("tmp", "kernel"))]
        return f"left over: {hidden[0].relative_to(self.folder)}" if hidden else ""

    def whole(self, job: Job) -> str:
        """Run a job to its end; what is wrong with that, or with what it leaves or found."""
        process = self.start(job)
        said = process.communicate()[0]
        if process.returncode:
            return f"the same command ends with {process.returncode}: {said[-300:]}"
        if problem := noise(said) or self.left():
            return problem
        return "" if job.digest(self.folder) == undisturbed(job)[0] else "it finds something else"


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """A place that goes with the block, and with it what still runs there."""
    folder = Path(tempfile.mkdtemp(prefix="ridge-campaign-")).resolve()
    made = Place(folder)
    try:
        yield made
    finally:
        for number in made.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def undisturbed(job: Job) -> tuple[str, float]:
    """What a job finds when nothing disturbs it, and the seconds that it takes."""
    with place() as here:
        started, process = time.monotonic(), here.start(job)
        said = process.communicate()[0]
        seconds = time.monotonic() - started
        assert process.returncode == 0, said[-500:]
        assert not (problem := noise(said) or here.left()), problem
        return job.digest(here.folder), seconds


def noise(said: str) -> str:
    """What a reader should not have to read: a traceback, or what Dask or a kernel says of itself."""
    found = re.search(r"Traceback|KeyboardInterrupt|distributed\.|CommClosed|Stream is closed|Task .*exception", said)
    return f"it says {said[max(0, found.start() - 60) : found.end() + 200]!r}" if found else ""


def error(said: str) -> str:
    """The one sentence with which a command ends; empty if there is none."""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    return lines[0] if len(lines) == 1 else ""
