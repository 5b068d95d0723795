"""``ridge cache``: what the cache holds, and what of it can go."""

import contextlib
import datetime
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ridge_utils import cache, embedded
from ridge_utils.errors import InputError, shown
from ridge_utils.run.setup import confirm

_UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}
#: What is said of an entry that was made before entries said whose they are.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Entry:
    """What the cache holds under one digest."""

    #: the folder in the cache that it is in
    kind: str
    #: the model that it is of, as tables call it, or :data:`UNKNOWN`
    model: str
    bytes: int
    #: seconds since it was last used
    age: float
    folder: Path


def entries() -> list[Entry]:
    """All entries of the cache, the oldest first."""
    found = []
    for folder in cache.directory().glob("*/*"):
        if folder.is_dir() and not folder.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # it went while it was looked at
                lock = folder.with_name(f"{folder.name}.lock")
                used = (lock if lock.exists() else folder).stat().st_mtime
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                found.append(Entry(folder.parent.name, _model(folder), size, time.time() - used, folder))
    return sorted(found, key=lambda entry: -entry.age)


def _model(folder: Path) -> str:
    if folder.parent.name in ("models", "downloads"):
        return next((name for name in embedded.MODELS if folder.name.startswith(f"{name}-")), UNKNOWN)
    for manifest in folder.rglob(cache.MANIFEST):  # of a fine-tuning each checkpoint has one
        with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
            return str(json.loads(manifest.read_text(encoding="utf-8")).get("model") or UNKNOWN)
    return UNKNOWN


def seconds(text: str) -> float:
    """What ``12h``, ``30d`` or ``8w`` stand for."""
    if not (given := re.fullmatch(r"(\d{1,6})([hdw])", text)):
        raise InputError(f"An age must be hours, days or weeks, as 12h, 30d or 8w, but is {shown(text)}.")
    return int(given[1]) * _UNITS[given[2]]


def main(
    kind: Sequence[str],
    model: Sequence[str],
    older_than: float,
    larger_than: float,
    clear: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """List the entries of these kinds and models (all, if none is named), unused for ``older_than`` seconds and of more
    than ``larger_than`` bytes; or ``clear`` them but for those that another process uses, asked for unless ``yes``."""
    every = entries()
    for what, given, known in ("kind", kind, {e.kind for e in every}), ("model", model, {e.model for e in every}):
        if wrong := sorted(set(given) - known):
            raise InputError(
                f"The cache has no {what} {shown(wrong[0])}; it has {', '.join(sorted(known)) or 'nothing'}."
            )
    chosen = [
        entry
        for entry in every
        if (not kind or entry.kind in kind)
        and (not model or entry.model in model)
        and entry.age >= older_than
        and entry.bytes > larger_than
    ]
    question = f"Remove {_sum(chosen)} from {cache.directory()}?"
    if clear and chosen and not yes and not confirm(question, f"{question} Give --yes."):
        return 1
    removed = [entry for entry in chosen if cache.clear(entry.folder)] if clear else []
    if as_json:
        shown_entries = [asdict(entry) | {"folder": str(entry.folder), "removed": entry in removed} for entry in chosen]
        print(json.dumps(shown_entries, indent=1))
    elif clear:
        print(f"Removed {_sum(removed)}; {len(chosen) - len(removed)} are in use and stay.")
    else:
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in chosen:
            groups.setdefault((entry.kind, entry.model), []).append(entry)
        for (of_kind, of_model), some in sorted(groups.items()):
            unused = datetime.timedelta(days=round(some[-1].age / 86400, 2))
            print(f"{of_kind:24} {of_model:28} {_sum(some):>24}  unused for {unused}")
        print(f"{_sum(chosen)} in {cache.directory()}")
    return 0


def _sum(some: Sequence[Entry]) -> str:
    return f"{len(some)} entries, {sum(entry.bytes for entry in some) / 1e9:.2f} GB"
