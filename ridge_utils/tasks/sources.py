"""Where the rows of a task come from: this project's own set, a file or folder, or the Hub.

Files are read as their authors published them; whatever does not fit is named by file and line. ``datasets`` reads CSV
and JSON too, but does not tell the line of a row, and guesses the types of the columns.
"""

import csv
import io
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ridge_utils.errors import InputError, TooFewExamplesError, explain, named, read_text, shown
from ridge_utils.tasks.base import Example

if TYPE_CHECKING:
    import datasets

Origin = Annotated[Literal["auto", "offline", "local", "hub"], Field(description="one of auto, offline, local and hub")]

#: A field of a row that holds more than white space.
Text = Annotated[
    str, Field(pattern=r"\S", max_length=10**6, description="a text that is not empty, of 1,000,000 characters at most")
]

Row = TypeVar("Row", bound=BaseModel)


def resolve(task: str, source: str, data_dir: str | Path | None) -> Literal["offline", "local", "hub"]:
    """Which source ``auto`` means: a local folder where one is given, else the set that this project made itself."""
    if source == "auto":
        return "local" if data_dir else "offline"
    if source == "local" and not data_dir:
        raise InputError(f"Task {task!r} from source 'local' needs the folder of the data: give data_dir=FOLDER.")
    if source != "local" and data_dir:
        raise InputError(
            f"Task {task!r} was given data_dir={shown(str(data_dir))} and source={source!r}, which reads no folder: "
            "leave one out."
        )
    return source  # type: ignore[return-value]  # "auto" has returned above


def parse(kind: type[Row], row: Any, where: str) -> Row:
    """A row as a pydantic model, whose fields say in their description what they must be; ``where`` it stands."""
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        raise InputError(explain(error, row, kind, where)) from error


def read_csv(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its place: the line on which it ends, and the file."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    file, empty = named(str(path)), True
    try:
        header = reader.fieldnames or ()
        if wrong := [column for column in columns if header.count(column) != 1]:
            raise InputError(
                f"Line 1 of {file}, the header, must have the column {wrong[0]!r} once, but has {shown(list(header))}."
            )
        for row in reader:
            if None in row:
                raise InputError(f"Line {reader.line_num} of {file} has more values than the header has columns.")
            yield f"line {reader.line_num} of {file}", row
            empty = False
    except csv.Error as error:
        raise InputError(f"There is no CSV in line {reader.line_num} of {file} ({error}).") from error
    if empty:
        raise InputError(f"{file} has a header and no rows.")


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """What the lines of a JSON Lines file hold, each with its place, line and file."""
    for where, line in read_lines(path):
        try:
            row = json.loads(line, object_pairs_hook=_once, parse_constant=_once)
        except (ValueError, RecursionError) as error:
            raise InputError(f"There is no JSON in {where} ({named(str(error))}).") from None
        yield where, row


def _once(pairs: Any) -> dict[str, Any]:
    """A mapping whose keys stand there once each; what is none, NaN or Infinity, is no JSON."""
    if isinstance(pairs, str) or len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice" if not isinstance(pairs, str) else f"{pairs} is no number")
    return found


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, each with its place, line and file."""
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield f"line {number} of {named(str(path))}", line.strip()


def from_hub(
    task: str, repo: str, config: str | None, revision: str, split: str, folder: str | None = None
) -> "datasets.Dataset":
    """One split of a data set from the Hub, at a pinned revision, or from the Hub client's own cache.

    ``config`` is None for a set that has one only; with ``folder`` that folder of the repository alone is read, where
    configurations are folders without a name.
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


def draw(whole: str, rows: Sequence[Example], n: int | None, seed: str) -> list[Example]:
    """``n`` different examples without replacement, or all of them in a seeded order where ``n`` is None.

    ``whole`` says what they are drawn from, for the TooFewExamplesError.
    """
    # A repeated row would change a matrix entropy, so it counts once.
    different = list(dict.fromkeys(rows))
    if not different or (n is not None and n > len(different)):
        raise TooFewExamplesError(
            f"{'All' if n is None else shown(n)} examples were asked for, but {whole} has {len(different)} different "
            "ones: ask for fewer, or choose another source."
        )
    return random.Random(seed).sample(different, len(different) if n is None else n)


def _text(path: Path) -> str:
    text = read_text(path, "The data file")
    if not text.strip():
        raise InputError(f"The data file {named(str(path))} is empty.")
    return text
