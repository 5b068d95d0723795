"""Where the rows of a natural task come from: this project's own set, a local folder in their own format, or the Hub.

Files are read as their authors published them; whatever does not fit is named by file and line.
"""

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ridge_utils.errors import InputError
from ridge_utils.tasks.base import Example

if TYPE_CHECKING:
    import datasets

Origin = Literal["auto", "offline", "local", "hub"]


def resolve(task: str, source: str, data_dir: str | Path | None) -> Literal["offline", "local", "hub"]:
    """Which source is meant: a local folder where one is given, else the set that this project made itself.

    Raises:
        InputError: an unknown source, ``local`` without a folder, or a folder with another source.
    """
    if source not in get_args(Origin):
        raise InputError(f"Unknown source {source!r} of task {task!r}; choose one of {', '.join(get_args(Origin))}.")
    if source == "auto":
        return "local" if data_dir else "offline"
    if source == "local" and not data_dir:
        raise InputError(f"Task {task!r} from source 'local' needs the folder of the data: give data_dir=FOLDER.")
    if source != "local" and data_dir:
        raise InputError(
            f"Task {task!r} was given data_dir={str(data_dir)!r} and source={source!r}, which reads no folder: leave "
            "one out."
        )
    return source  # type: ignore[return-value]  # "auto" has returned above


def read_csv(path: Path, fields: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, each with the number of the line on which it ends.

    Raises:
        InputError: the file cannot be read, is empty, or a row or the header lacks one of ``fields``.
    """
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    if missing := [field for field in fields if field not in (reader.fieldnames or ())]:
        found = ", ".join(str(name) for name in reader.fieldnames or ()) or "nothing"
        raise InputError(f"{path}, line 1: the header lacks the column {missing[0]!r}; it has {found}.")
    rows = []
    try:
        for row in reader:
            for field in fields:
                if not row[field]:
                    raise InputError(f"{path}, line {reader.line_num}: the field {field!r} is missing or empty.")
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
    if not rows:
        raise InputError(f"{path} has a header and no rows.")
    return rows


def read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its line number.

    Raises:
        InputError: the file cannot be read or is empty, or a line holds no JSON object.
    """
    rows = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: a row must be a JSON object, but is {row!r}.")
        rows.append((number, row))
    return rows


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number.

    Raises:
        InputError: the file cannot be read or is empty.
    """
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    return [(number, line.strip()) for number, line in enumerate(_text(path).split("\n"), 1) if line.strip()]


def from_hub(
    task: str, repo: str, config: str | None, revision: str, split: str, folder: str | None = None
) -> "datasets.Dataset":
    """One split of a data set from the Hub, at a pinned revision, or from the Hub client's own cache.

    Args:
        task: name of the task, for the error.
        repo: the data set's id.
        config: its configuration; None for a set that has one only.
        revision: commit.
        split: the source's own name of the split.
        folder: read this folder of the repository alone, where configurations are folders without a name.

    Raises:
        InputError: the Hub cannot be reached or does not have it.
    """
    import datasets

    try:
        return datasets.load_dataset(repo, config, split=split, revision=revision, data_dir=folder)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"Task {task!r} cannot be loaded from the Hub ({repo}, revision {revision}, split {split}): {first} Check "
            "the network, give a local copy with data_dir=FOLDER, or leave source out to use this project's own set."
        ) from error


def draw(task: str, split: str, rows: Sequence[Example], n: int | None, seed: int) -> list[Example]:
    """Draw ``n`` different examples without replacement, or all of them in a seeded order where ``n`` is None.

    Raises:
        InputError: there are fewer than ``n``, or none.
    """
    # A repeated row would change a matrix entropy, so it counts once.
    different = list(dict.fromkeys(rows))
    if not different or (n is not None and n > len(different)):
        wanted = "All" if n is None else n
        raise InputError(
            f"{wanted} examples were asked for, but the {split} split of {task} has {len(different)} here: ask for "
            "fewer, or choose another source."
        )
    return random.Random(f"{task}/{split}/{seed}").sample(different, len(different) if n is None else n)


def _text(path: Path) -> str:
    try:
        # newline="" keeps the line breaks inside a CSV's quoted fields as they are.
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except OSError as error:
        raise InputError(f"The data file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The data file {path} is not UTF-8 text (byte {error.start}).") from error
    if not text.strip():
        raise InputError(f"The data file {path} is empty.")
    return text
