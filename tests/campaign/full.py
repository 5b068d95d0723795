"""A full disk, a quota, a folder that is read-only, a file or gone: in the output, the table's folder and the cache.

One sentence says so, earlier files stay as they were, and with room the same command ends well. A disk of its own is a
tmpfs where one can be mounted; elsewhere, and for quotas, the size of a process's files is limited.
"""

import contextlib
import os
import random
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ridge_utils import results
from ridge_utils.errors import StorageError
from tests.campaign import commands
from tests.campaign.cases import Case, sentence
from tests.campaign.commands import PAGE, RUN, SETUP, SWEEP, Job, Place

_WHERE = ((RUN, "out"), (RUN, "cache"), (SWEEP, "out"), (SETUP, "cache"), (PAGE, "out"))
_EARLIER = {
    "x.ipynb": '{"papermill": 1}',
    "x.csv": "model,task,source,split,\n",
    "x.json": "{}",
    "table.csv": "model,task,source,split,\n",
}


def cases(rng: random.Random, count: int) -> Iterator[Case]:
    """Faults in every folder of every job, each at a random moment."""
    everything = [(job, name, fault) for fault in FAULTS for job, name in _WHERE]
    rng.shuffle(everything)
    for number in range(count):
        job, name, fault = everything[number % len(everything)]
        moment = rng.choice([0.0, rng.random()])
        what = f"{fault} at {moment:.0%} of a {job.name}, in {name}/"
        yield Case("full", what, lambda job=job, name=name, fault=fault, at=moment: meet(job, name, fault, at))


def meet(job: Job, name: str, fault: str, moment: float) -> str:
    """Run a job into a fault, look at what it says and leaves, take the fault away, and run it again."""
    seconds = commands.undisturbed(job)[1]
    with commands.place() as here, contextlib.ExitStack() as stack:
        folder = here.folder / name
        mounted = fault in ("full", "read-only") and _mount(folder, stack)
        earlier = {folder / path: text for path, text in _EARLIER.items() if name == "out"}
        for path, text in earlier.items():
            path.write_text(text)
        limited = fault == "quota" or (fault == "full" and not mounted)
        if limited:
            process = here.start(job, _limited)
            undo: Callable[[], None] = lambda: None  # noqa: E731
        else:
            process = here.start(job) if moment else None
            time.sleep(seconds * moment)
            undo = FAULTS[fault](here, folder)
            process = process or here.start(job)
        said = process.communicate()[0]
        status, kept = process.returncode, {path: text for path, text in earlier.items() if path.exists()}
        undo()
        # A quota holds for all folders of a process.
        names = ("out", "cache", "runtime") if limited else (name,)
        wrong = _judge(status, said, names, {p: _stands(p, text) for p, text in kept.items()})
        return wrong or here.whole(job)


def _stands(path: Path, text: str) -> bool:
    """Whether a file is as it was, or a whole table in the place of one: that of the runs that a sweep ended."""
    if path.read_text() == text:
        return True
    try:
        return path.suffix == ".csv" and len(results.read(path)[0]) > 0
    except StorageError:
        return False


def _judge(status: int, said: str, names: Sequence[str], same: dict[Path, bool]) -> str:
    if problem := commands.noise(said):
        return problem
    if status == 0:
        return ""
    if status not in (1, 2):
        return f"it ends with {status}: {said[-300:]}"
    told = commands.error(said)
    if not told or (problem := sentence(told)):
        return f"no sentence: {said[-400:]}"
    # A sweep tells why each of its runs failed, and then how many did.
    reasons = "".join(line for line in said.splitlines() if line.startswith("    ") or line == told)
    if not set(names) & set(re.split(r"[/\s:,']", reasons)):
        return f"it does not name the folder {' or '.join(names)}: {told}"
    lost = [path.name for path, is_same in same.items() if not is_same]
    return f"it destroyed {lost}" if lost else ""


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def _mount(folder: Path, stack: contextlib.ExitStack) -> bool:
    size = "700m" if folder.name == "cache" else "16m"
    # By default anybody may write into the root of one, and such a cache is refused.
    options = f"size={size},mode=0755"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "ridge", folder], capture_output=True)
    if done.returncode == 0:
        stack.callback(subprocess.run, ["umount", "-l", folder], check=False)
    return done.returncode == 0


def _fill(_here: Place, folder: Path) -> Callable[[], None]:
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(2**16)):
            pass
    return filler.unlink


def _read_only(_here: Place, folder: Path) -> Callable[[], None]:
    if not os.path.ismount(folder):
        folder.chmod(0o500)
        return lambda: folder.chmod(0o700)
    # A mount with a file open for writing stays as it is.
    subprocess.run(["mount", "-o", "remount,ro", folder], capture_output=True, check=False)
    return lambda: subprocess.run(["mount", "-o", "remount,rw", folder], check=True) and None


def _gone(_here: Place, folder: Path) -> Callable[[], None]:
    shutil.rmtree(folder, ignore_errors=True)
    return lambda: folder.mkdir(exist_ok=True)


def _file(_here: Place, folder: Path) -> Callable[[], None]:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.write_text("a file")

    def undo() -> None:
        if folder.is_file():
            folder.unlink()
        folder.mkdir(exist_ok=True)

    return undo


#: What makes each fault, and gives what takes it away again.
FAULTS: dict[str, Callable[[Place, Path], Callable[[], None]]] = {
    "full": _fill,
    "quota": _fill,
    "read-only": _read_only,
    "gone": _gone,
    "a file": _file,
}
