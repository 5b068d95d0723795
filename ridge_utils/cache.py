"""The user's cache: folders that are written whole or not at all, and checked when they are read.

Every entry is a folder with a ``manifest.json`` that lists its files with size and SHA-256. An entry without a valid
manifest does not exist as far as any reader is concerned, so a half-written one is never read. Whatever writes here
raises a StorageError where it cannot (no permission, no space, not a folder).

A process notes which entries it uses, and what a living one uses nobody clears.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import platformdirs
from safetensors import SafetensorError

from ridge_utils.errors import StorageError, named, user_path

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
ENVIRONMENT_VARIABLE = "RIDGE_CACHE"
#: How the names of the notes begin that living processes keep in the cache.
_NOTES = ".used-"


def directory() -> Path:
    """Folder of the cache: ``$RIDGE_CACHE`` if set, else the platform's cache folder for ``ridge-utils``."""
    override = os.environ.get(ENVIRONMENT_VARIABLE)
    own = user_path(override or platformdirs.user_cache_dir("ridge-utils"), ENVIRONMENT_VARIABLE)
    return own.absolute() if override else own


def digest(content: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of ``content`` as canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old content or the new, never a part."""
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            temporary.chmod(0o644 & ~_umask())  # mkstemp makes the file private; a shared cache is read by others
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def seal(folder: Path, files: Iterable[str] | None = None, entry: Path | None = None, model: str = "") -> None:
    """Write the manifest of ``folder``, over all its files or over the named ones only.

    It says which entry this is, so that two cannot change places; ``entry`` is where the folder will be. The ``model``
    that it is of is for who looks through the cache.
    """
    names = sorted(files) if files is not None else sorted(p.name for p in folder.iterdir() if p.name != MANIFEST)
    listed = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}
    content = {"entry": _identity(entry or folder), "model": model, "files": listed}
    write_text(folder / MANIFEST, json.dumps(content, indent=1))


def _identity(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def listed(folder: Path) -> set[str]:
    """Names of the files in the manifest of an entry without :func:`damage`."""
    return set(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])


def damage(folder: Path, needed: Iterable[str] = ()) -> str | None:
    """What is wrong with an entry of the cache, in words, or None if every file is as its manifest says.

    ``needed`` are files that its reader cannot do without.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return "its manifest is no file" if path.exists() else "it has no manifest"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entry, files = (
            manifest["entry"],
            {name: (file["bytes"], file["sha256"]) for name, file in manifest["files"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    if entry != _identity(folder):
        return f"it is the entry {named(str(entry))}, which belongs elsewhere"
    if missing := sorted(set(needed) - set(files)) or [name for name in files if Path(name).name != name]:
        return f"its manifest does not list {named(missing[0])}"
    for name, (size, digest_of_file) in files.items():
        file = folder / name
        if not file.is_file():
            return f"{named(name)} is missing"
        if file.stat().st_size != size:
            return f"{named(name)} has {file.stat().st_size} bytes instead of {size}"
        if sha256(file) != digest_of_file:
            return f"the SHA-256 of {named(name)} is not the one in its manifest"
    return None if files else "its manifest lists nothing"


@contextlib.contextmanager
def writing(target: Path, model: str = "") -> Iterator[Path]:
    """Give a temporary folder that becomes ``target``, sealed, when the block ends without an error.

    The caller holds the :func:`lock` of ``target``, so what an earlier process left half-written is removed first.
    """
    with storage_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in target.parent.glob(f".{target.name}.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            yield temporary
            seal(temporary, entry=target, model=model)
            temporary.chmod(0o755 & ~_umask())  # nobody else may write into it
            remove(target)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, or whatever lies in its place; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def tensors(
    kind: str, shaped_by: Mapping[str, Any], build: "Callable[[], dict[str, Tensor]]", model: str = ""
) -> "dict[str, Tensor]":
    """Named tensors from the cache, computed by ``build`` and stored where they are missing or damaged.

    ``kind`` is the name of a folder in the cache, ``shaped_by`` all that they depend on, whose digest finds the entry;
    ``model`` is noted in it.
    """
    from safetensors.torch import load_file, save_file

    folder = directory() / kind / digest(shaped_by)
    with lock(folder):
        if _is_missing(kind, folder, ["tensors.safetensors"]):
            built = {name: value.contiguous() for name, value in build().items()}
            with writing(folder, model) as temporary:
                save_file(built, temporary / "tensors.safetensors")
            return built
    return load_file(folder / "tensors.safetensors")


def _is_missing(kind: str, folder: Path, needed: Iterable[str]) -> bool:
    """Whether an entry has to be computed; one that is there but damaged is announced."""
    problem = damage(folder, needed)
    if problem and folder.exists():
        log.warning("The cached %s in %s are damaged (%s); they are computed again.", kind, folder, problem)
    return bool(problem)


def mapped(
    kind: str,
    shaped_by: Mapping[str, Any],
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    fill: Callable[[dict[str, np.ndarray]], None],
    model: str = "",
) -> "dict[str, Tensor]":
    """As :func:`tensors`, for what is too large to be held in memory: files that are read as far as they are used.

    ``shapes`` holds the dtype, by numpy's name, and the shape of each tensor; ``fill`` writes the values into arrays
    that lie on the disk. Changing the tensors that are returned changes no file.
    """
    import torch

    folder = directory() / kind / digest(shaped_by)
    with lock(folder):
        if _is_missing(kind, folder, [f"{name}.npy" for name in shapes]):
            with writing(folder, model) as temporary:
                needed = sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in shapes.values())
                if needed > shutil.disk_usage(temporary).free:
                    # A file on the disk that is written to as memory has no way to say so later, but to kill.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                arrays = {
                    name: np.lib.format.open_memmap(temporary / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
                    for name, (dtype, shape) in shapes.items()
                }
                if hasattr(os, "posix_fallocate"):  # else what is written beside them could take their room
                    for path in temporary.iterdir():
                        with path.open("r+b") as file:
                            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
                fill(arrays)
                for array in arrays.values():
                    array.flush()
    # Copied when written to: torch has no tensors that are read-only.
    files = {name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in shapes}
    return {name: torch.from_numpy(file) for name, file in files.items()}


def discard(kind: str, shaped_by: Mapping[str, Any]) -> None:
    """Remove an entry that is needed no more, if it is there."""
    folder = directory() / kind / digest(shaped_by)
    if folder.exists():
        with lock(folder):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def lock(target: Path) -> Iterator[None]:
    """Let one process at a time build the entry ``target``; the others say that they wait, and then find it."""
    with storage_errors(target.parent):
        for folder in (directory(), target.parent):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)  # whatever the umask, nobody else writes into it
        _require_private(directory())
        held = filelock.FileLock(f"{target}.lock")
        try:
            held.acquire(blocking=False)
        except filelock.Timeout:
            log.warning("Another process is making %s; waiting for it.", target)
            held.acquire()
    try:
        with storage_errors(target.parent):
            os.utime(held.lock_file)  # says when an entry was last used
            _note(target)
        yield
    finally:
        held.release()


def _note(entry: Path) -> None:
    """Note that this process uses an entry, in a file that it holds locked for as long as it lives."""
    folder = directory()
    if _noted.get("folder") != folder:
        in_use()  # removes what dead processes left
        if "file" in _noted:
            os.close(_noted["file"])
        notes, file = folder / f"{_NOTES}{uuid.uuid4().hex[:12]}.lock", -1
        while file < 0 or not os.fstat(file).st_nlink:  # another process may remove it before it is locked
            file = os.open(notes, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            filelock.lock_descriptor(file)
        _noted.update(folder=folder, file=file, entries=set())
    if entry not in _noted["entries"]:
        os.write(_noted["file"], f"{entry}\n".encode())
        _noted["entries"].add(entry)


#: What this process has noted in the cache's ``folder``: the open ``file`` there, and the ``entries`` in it.
_noted: dict[str, Any] = {}


def in_use() -> set[Path]:
    """The entries that living processes have used, this one among them; the notes of dead ones are removed."""
    used: set[Path] = set()
    for notes in directory().glob(f"{_NOTES}*"):
        with contextlib.suppress(FileNotFoundError), notes.open("r+", encoding="utf-8") as file:
            if filelock.lock_descriptor(file.fileno(), blocking=False):
                notes.unlink()
            else:
                used |= {Path(line) for line in file.read().splitlines()}
    return used


def clear(entry: Path) -> bool:
    """Remove an entry that no process makes or has used; gives whether it is removed."""
    try:
        with storage_errors(entry.parent), filelock.FileLock(f"{entry}.lock", timeout=0):
            if entry in in_use():
                return False
            for path in [*entry.parent.glob(f".{entry.name}.*"), entry]:  # what a killed process left half-written
                remove(path)
            return True
    except filelock.Timeout:
        return False


def _require_private(folder: Path) -> None:
    """Refuse a cache that anybody can write into, and say where a group can: what is read back shapes every number."""
    found = folder.stat() if folder.is_dir() else None
    if found and os.name == "posix":
        if found.st_mode & stat.S_IWOTH:
            raise StorageError(
                f"Anybody can write into the cache {folder}: run `chmod o-w {folder}`, or name another folder with "
                f"{ENVIRONMENT_VARIABLE}."
            )
        if found.st_mode & stat.S_IWGRP and str(folder) not in _warned:
            _warned.add(str(folder))
            log.warning("Your group can write into the cache %s, and so change what you measure.", folder)


#: Caches of which it was said that a group can write into them.
_warned: set[str] = set()


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn the system's errors while writing under ``folder`` into one sentence with the remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in _STORAGE_ERRNOS and folder.is_dir():  # one that vanished is no longer written to
            raise
        # "File exists" is what making a folder says where a file stands in its place.
        reason = os.strerror(errno.ENOTDIR if error.errno == errno.EEXIST else error.errno or errno.ENOENT)
        raise StorageError(_storage_message(folder, reason)) from error
    except (SafetensorError, RuntimeError) as error:
        # safetensors reports a full disk with the system's words, torch with its own writer's position.
        for number in _STORAGE_ERRNOS:
            if os.strerror(number) in str(error) or f"os error {number})" in str(error):
                raise StorageError(_storage_message(folder, os.strerror(number))) from error
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
            reason = "a file could not be written whole, most likely for lack of space"
            raise StorageError(_storage_message(folder, reason)) from error
        raise


_STORAGE_ERRNOS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EFBIG,
)
_STORAGE_ERRNOS += (errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.EIO)


def _storage_message(folder: Path, reason: str) -> str:
    return (
        f"Cannot write to {named(str(folder))}: {reason}. Make room or give write permission there, or choose another "
        f"folder ({ENVIRONMENT_VARIABLE} sets the cache's)."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
