"""What a run may write over: nothing, or what an earlier run of ours wrote, never through a link or onto a device."""

import stat
import tempfile
from pathlib import Path

from ridge_utils import cache
from ridge_utils.errors import InputError, named

#: The key of a provenance that holds its own digest.
OWN_DIGEST = "sha256_of_this"
#: What a file of ours holds, by its ending: a table's columns, a provenance's digest, what papermill notes, our styles.
_MARKS = {".csv": "model,task,source,split,", ".json": OWN_DIGEST, ".ipynb": '"papermill"', ".html": ".jp-OutputPrompt"}


def claim(path: Path, ending: str, force: bool = False) -> None:
    """Refuse a path that must not be written, before hours of measurement as well as when it is written.

    Its folder is made. With ``force`` a file that is not ours is moved to the same name with ``~`` at its end.
    """
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
        if not found.st_size or any(_MARKS[one.suffix] in _text(one) for one in pair):
            continue
        if not force:
            raise InputError(f"{named(str(file))} was not written by a run: name another file, or give --force.")
        file.replace(file.with_name(f"{file.name}~"))


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.is_file() else ""
