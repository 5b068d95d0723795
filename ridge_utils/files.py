"""What a run may write over: nothing, or what an earlier run of ours wrote, never through a link or onto a device."""

import contextlib
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock

from ridge_utils import cache, profiles
from ridge_utils.errors import InputError, named

#: The key of a provenance that holds its own digest.
OWN_DIGEST = "sha256_of_this"
#: How the names of what a running process writes begin, and the bytes that must be free before it begins.
SCRATCH, ROOM = ".ridge-", 4 * 2**20
#: What a file of ours holds, by its ending: a table's columns, a provenance's digest, what papermill notes, our styles.
_MARKS = {".csv": "model,task,source,split,", ".json": OWN_DIGEST, ".ipynb": '"papermill"', ".html": ".jp-OutputPrompt"}
_MARKS[".png"] = "Matplotlib version"


def claim(path: Path, ending: str, force: bool = False, mark: str = "") -> None:
    """Refuse a path that must not be written, before hours of measurement as well as when it is written.

    Its folder is made. ``mark`` is a further text by which a file is known for ours. With ``force`` a file that is not
    ours is moved to the same name with ``~`` at its end.
    """
    if profiles.INSTALLED and path.resolve().is_relative_to(profiles.ROOT):
        raise InputError(f"{named(str(path))} lies in the installed package: name a file of your own.")
    if path.suffix != ending:
        raise InputError(f"The output's name must end in {ending}, but is {named(path.name)}.")
    # Of a table and its provenance one may be damaged or gone.
    pair = [path, path.with_suffix(".json")] if ending == ".csv" else [path]
    for file in pair:
        try:
            with cache.storage_errors(file.parent):
                file.parent.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=file.parent).close()
                found = file.lstat()  # of a link itself
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
            raise InputError(f"{named(str(path))} cannot be written: {error.args[-1]}.") from None
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{named(str(file))} is a link, a folder or a device: name another file.")
        if not found.st_size or any(text in _text(one) for one in pair for text in (_MARKS[one.suffix], mark) if text):
            continue
        if not force:
            raise InputError(f"{named(str(file))} was not written by a run: name another file, or give --force.")
        file.replace(file.with_name(f"{file.name}~"))


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.is_file() else ""


def name(text: str) -> str:
    """A text as a file's or folder's name: what is no letter or digit of ASCII, dot or underscore is a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A hidden folder in ``folder`` for what is moved to its place when it is whole; it goes with the block.

    Those of processes that were killed go first: no living one holds their locks.
    """
    with cache.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for lock in folder.glob(f"{SCRATCH}*.lock"):
            with contextlib.suppress(OSError), filelock.FileLock(lock, timeout=0):  # a Timeout is an OSError
                _remove(lock)
        made = folder / f"{SCRATCH}{uuid.uuid4().hex[:12]}"
        held = filelock.FileLock(f"{made}.lock")
        held.acquire()
        try:
            made.mkdir(mode=0o700)
            with tempfile.TemporaryFile(dir=made) as file:
                file.write(bytes(ROOM))  # a quota shows only so
                file.flush()
            yield made
        finally:
            _remove(Path(held.lock_file))
            held.release()


def replace(made: Path, *targets: Path) -> None:
    """Move files from a :func:`scratch` folder to their places, where they have the same names."""
    for target in targets:
        with cache.storage_errors(target.parent):
            (made / target.name).replace(target)


def _remove(lock: Path) -> None:
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    with contextlib.suppress(OSError):
        lock.unlink()
