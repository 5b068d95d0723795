"""What a run may write over: nothing, or what an earlier run of ours wrote, never through a link or onto a device."""

import json
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ridge_utils import cache
from ridge_utils.errors import InputError

#: The key of a provenance that holds its own digest, by which a table of ours is known.
OWN_DIGEST = "sha256_of_this"


def claim(path: Path, what: str, ours: Callable[[Path], bool], force: bool = False) -> None:
    """Refuse a path that must not be written, before hours of measurement as well as when it is written.

    Args:
        path: what is to be written; its folder is made.
        what: what an error calls it.
        ours: whether a file that is there was written by us.
        force: move a file that is not ours to the same name with ``~`` at its end, in place of refusing it.
    """
    try:
        with cache.storage_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
            found = path.lstat()  # of a link itself
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{what} cannot be written to {path}, which is no plain file: name another.")
            if not found.st_size or ours(path):
                return
            if force:
                path.replace(path.with_name(f"{path.name}~"))
                return
    except FileNotFoundError:
        return
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise InputError(f"{what} cannot be written to {str(path)[:200]!r}: {error.args[-1]}.") from error
    raise InputError(f"{path} was not written by a run of this project: name another file, or give --force.")


def claim_table(path: Path, header: frozenset[str], force: bool = False) -> None:
    """:func:`claim` for a table, a CSV whose first line holds the names ``header``, and the provenance beside it."""
    if path.suffix != ".csv":
        raise InputError(f"A table's name must end in .csv, but is {path.name!r}.")

    def ours(_path: Path) -> bool:
        # One of the two may be damaged or gone.
        return OWN_DIGEST in _begin(path.with_suffix(".json"), -1) or header <= set(
            _begin(path).partition("\n")[0].strip().split(",")
        )

    for file in (path, path.with_suffix(".json")):
        claim(file, "A table", ours, force)


def claim_notebook(path: Path, force: bool = False) -> None:
    """:func:`claim` for an executed notebook, which papermill marks, or which only has its name yet."""
    claim(path, "An executed notebook", lambda path: "papermill" in _metadata(path), force)


def claim_page(path: Path, force: bool = False) -> None:
    """:func:`claim` for a notebook as an HTML page."""
    claim(path, "A page", lambda path: "jp-RenderedHTMLCommon" in _begin(path, -1), force)


def _metadata(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes())["metadata"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _begin(path: Path, size: int = 4096) -> str:
    """What a plain file begins with, or all of it; nothing of any other."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(size).decode(errors="replace")
