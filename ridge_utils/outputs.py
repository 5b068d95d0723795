"""What a committed notebook shows: sealed by ``ridge refresh``, and compared with what its code gives now.

The seal names a cell whose code or output was edited by hand. The comparison takes what two runs show, its text word by
word and its numbers within a tolerance.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ridge_utils.errors import StorageError

_NUMBER = re.compile(r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)")
#: Where myst_nb's glue puts a value among the outputs.
GLUED = "application/papermill.record/text/plain"
#: Glued numbers come with all their digits, of which the last ones are each machine's own.
_RELATIVE = Decimal("1e-6")


def seal(notebook: Any) -> None:
    """Write a digest of the code and the outputs of every code cell into a notebook's metadata."""
    notebook.metadata["ridge"] = {"sealed": [digest for _, digest in _digests(notebook)]}


def check_seal(path: Path) -> None:
    """A StorageError names the first cell whose code or output is not as :func:`seal` found it."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        sealed = notebook.metadata["ridge"]["sealed"]
        found = _digests(notebook)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        nbformat.ValidationError,
    ) as error:
        raise StorageError(f"{path.name} cannot be read ({error!r:.200}): restore it with git.") from error
    for (cell, digest), stored in itertools.zip_longest(found, sealed, fillvalue=("at its end", "")):
        if digest != stored:
            raise StorageError(
                f"{path.name}: the code or the stored output of the cell {cell} is not what `ridge refresh` stored: "
                f"run `ridge refresh {path.stem} --pages`, or restore the file with git."
            )


def _digests(notebook: Any) -> list[tuple[str, str]]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    contents = [json.dumps([cell.source, cell.outputs, cell.execution_count], sort_keys=True) for cell in cells]
    return [
        (cell.get("id", "?"), hashlib.sha256(content.encode()).hexdigest()[:16])
        for cell, content in zip(cells, contents, strict=True)
    ]


def stable(outputs: Sequence[Any]) -> list[Any]:
    """Outputs without what differs from run to run though the numbers do not."""
    kept = [output for output in outputs if output.get("name") != "stderr"]
    for output in kept:
        if "text/plain" in output.get("data", {}):
            output["data"]["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", output["data"]["text/plain"])
    return kept


def difference(stored: Sequence[Any], fresh: Sequence[Any], tolerance: float = 0.0) -> str:
    """Where what a cell gives now is not what it stores, in lines as of ``diff`` (``-`` now, ``+`` stored), or nothing.

    Whole numbers and the text between numbers are equal; other numbers differ by at most one unit of their last digit
    or the ``tolerance``, glued ones by at most a millionth. Of an image only that there is one is compared.
    """
    was, now = (_shown(outputs) for outputs in (stored, fresh))
    if [label for label, _ in was] != [label for label, _ in now]:
        return "\n".join(f"{sign} {', '.join(label for label, _ in shown)}" for sign, shown in (("-", now), ("+", was)))
    for (label, before), (_, after) in zip(was, now, strict=True):
        lines = itertools.zip_longest(before.splitlines(), after.splitlines(), fillvalue="")
        for old, new in lines:
            if not _alike(old, new, label.startswith("glued"), Decimal(tolerance)):
                return f"{label}\n- {_without_markup(new)}\n+ {_without_markup(old)}"
    return ""


def _shown(outputs: Sequence[Any]) -> list[tuple[str, str]]:
    """What outputs show, each with what it is; the parts of a stream together."""
    shown: list[tuple[str, str]] = []
    for output in stable(outputs):
        if output["output_type"] == "stream":
            if shown and shown[-1][0] == output["name"]:
                shown[-1] = (output["name"], shown[-1][1] + output["text"])
            else:
                shown.append((output["name"], output["text"]))
            continue
        for kind, content in sorted(output.get("data", {output["output_type"]: ""}).items()):
            label = f"glued {output['metadata']['scrapbook']['name']}" if kind == GLUED else kind
            # A table's id is a digest of its numbers.
            shown.append((label, "" if kind.startswith("image/") else re.sub(r"\bT_[0-9a-f]{8}", "T", str(content))))
    return shown


def _alike(old: str, new: str, glued: bool, tolerance: Decimal) -> bool:
    before, after = _NUMBER.split(old), _NUMBER.split(new)
    if before[::2] != after[::2]:
        return False
    bare = glued and not any(before[::2])
    for first, second in zip(before[1::2], after[1::2], strict=True):
        if first == second:
            continue
        broken = next((Decimal(text) for text in (first, second) if not text.lstrip("+-").isdigit()), None)
        if broken is None:
            return False
        unit = Decimal(0) if bare else Decimal((0, (1,), broken.as_tuple().exponent))
        if abs(Decimal(first) - Decimal(second)) > max(unit, tolerance, _RELATIVE * abs(Decimal(first))):
            return False
    return True


def _without_markup(line: str) -> str:
    return re.sub(r"<[^>]+>", "", line).strip() or line


def tolerance_of(cell: Mapping[str, Any]) -> float:
    """How far a cell says its numbers may move; 0 where it says nothing."""
    return float(cell["metadata"].get("ridge", {}).get("tolerance", 0.0))
