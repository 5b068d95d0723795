"""A user's own task: a JSON Lines file, one example a line.

    {"prompt": "2 + 2 =", "target": " 4", "split": "id", "signal_spans": [[0, 1], [4, 5]]}

``split`` is ``train``, ``id`` or ``ood``. ``signal_spans``, optional, are half-open character ranges of the prompt.
The target continues the prompt as written: a space between the two belongs to one of them.
"""

import json
import random
from pathlib import Path

from ridge_utils.errors import InputError
from ridge_utils.tasks.base import SPLITS, Example, Split, check_request

_FIELDS = ("prompt", "target", "split", "signal_spans")


def load(path: Path, split: Split, n: int | None, seed: int = 0) -> list[Example]:
    """Draw ``n`` different examples of a split, without replacement.

    Args:
        path: the file, UTF-8.
        split: ``train``, ``id`` or ``ood``.
        n: number of examples; None for all.
        seed: seed of the draw and of the order.

    Returns:
        The examples; the same for the same file, n and seed.

    Raises:
        InputError: no such file, a line that is no example (named by file and line), or fewer examples than asked for.
    """
    check_request(path.name, split, n)
    # A repeated row would change a matrix entropy, so it counts once.
    rows = list(dict.fromkeys(example for example in _read(path) if example.split == split))
    n = len(rows) if n is None else n
    if len(rows) < n or not rows:
        raise InputError(
            f"{n} examples were asked for, but {path} has {len(rows)} different ones in the {split} split: ask for "
            "fewer, or add rows."
        )
    return random.Random(f"{split}/{seed}").sample(rows, n)


def _read(path: Path) -> list[Example]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"The task file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The task file {path} is not UTF-8 text (byte {error.start}).") from error
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    rows = [_example(line, f"{path}, line {number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise InputError(f"The task file {path} is empty; it needs one JSON object a line.")
    return rows


def _example(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row must be a JSON object with prompt, target and split, but is {row!r}.")
    if unknown := sorted(set(row) - set(_FIELDS)):
        raise InputError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}.")
    for field in ("prompt", "target"):
        if not isinstance(row.get(field), str) or not row[field]:
            raise InputError(f"{where}: {field!r} must be a text that is not empty, but is {row.get(field)!r}.")
    if row.get("split") not in SPLITS:
        raise InputError(f"{where}: 'split' must be one of {', '.join(SPLITS)}, but is {row.get('split')!r}.")
    spans = row.get("signal_spans", [])
    if not isinstance(spans, list) or not all(_is_span(span, len(row["prompt"])) for span in spans):
        raise InputError(
            f"{where}: 'signal_spans' must be a list of [start, end] with 0 <= start < end <= {len(row['prompt'])} "
            f"(the prompt's length), but is {spans!r}."
        )
    return Example(row["prompt"], row["target"], row["split"], "own", tuple((a, b) for a, b in spans))


def _is_span(span: object, length: int) -> bool:
    return (
        isinstance(span, list)
        and len(span) == 2
        and all(isinstance(end, int) and not isinstance(end, bool) for end in span)
        and 0 <= span[0] < span[1] <= length
    )
