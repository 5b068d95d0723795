"""What a committed notebook shows: sealed by ``ridge refresh``, and compared with what its code gives now.

The seal names a cell whose code or output was edited by hand. The comparison takes words as they are and numbers within
a tolerance.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
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
        cells = list(itertools.zip_longest(_digests(notebook), notebook.metadata["ridge"]["sealed"]))
    except Exception as error:  # of all the shapes that JSON can have
        raise StorageError(f"{path.name} cannot be read ({error!r:.200}): restore it with git.") from error
    for found, sealed in cells:
        if not found or found[1] != sealed:
            raise StorageError(
                f"{path.name}: the code or stored output of the cell {found[0] if found else 'that was last'} is not "
                f"what `ridge refresh` wrote: run `ridge refresh {path.stem} --pages`, or restore the file with git."
            )


def _digests(notebook: Any) -> list[tuple[str, str]]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    contents = [json.dumps([cell.source, cell.outputs, cell.execution_count], sort_keys=True) for cell in cells]
    return [(c.id, hashlib.sha256(text.encode()).hexdigest()[:16]) for c, text in zip(cells, contents, strict=True)]


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
    was, now = ([shown for output in stable(outputs) for shown in _shown(output)] for outputs in (stored, fresh))
    if [label for label, _ in was] != [label for label, _ in now]:
        return "\n".join(f"{sign} {', '.join(label for label, _ in shown)}" for sign, shown in (("-", now), ("+", was)))
    for (label, before), (_, after) in zip(was, now, strict=True):
        for old, new in itertools.zip_longest(before.splitlines(), after.splitlines(), fillvalue=""):
            if not _alike(old, new, label.startswith("glued"), Decimal(tolerance)):
                old, new = (re.sub(r"<[^>]+>", "", line).strip() or line for line in (old, new))
                return f"{label}\n- {new}\n+ {old}"
    return ""


def _shown(output: Any) -> list[tuple[str, str]]:
    """What an output shows, each part with what it is."""
    if output["output_type"] == "stream":
        return [(output["name"], output["text"])]
    parts = sorted(output.get("data", {output["output_type"]: ""}).items())
    return [
        (
            f"glued {output['metadata']['scrapbook']['name']}" if kind == GLUED else kind,
            # A table's id is a digest of its numbers.
            "" if kind.startswith("image/") else re.sub(r"\bT_[0-9a-f]{8}", "T", str(content)),
        )
        for kind, content in parts
    ]


def _alike(old: str, new: str, glued: bool, tolerance: Decimal) -> bool:
    before, after = _NUMBER.split(old), _NUMBER.split(new)
    for first, second in zip(before[1::2], after[1::2], strict=False):
        # Of a number with a point or an exponent, and all its digits where nothing but it is glued.
        broken = [Decimal(text) for text in (first, second) if not text.lstrip("+-").isdigit()]
        unit = Decimal((0, (1,), broken[0].as_tuple().exponent)) if broken and (not glued or any(before[::2])) else 0
        allowed = max(unit, tolerance, _RELATIVE * abs(Decimal(first))) if broken else 0
        if abs(Decimal(first) - Decimal(second)) > allowed:
            return False
    return before[::2] == after[::2]
