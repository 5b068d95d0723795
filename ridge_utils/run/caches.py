"""``ridge cache``: what the cache holds, and what of it can go."""

import contextlib
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
    #: whether a living process has used it
    in_use: bool


def entries() -> list[Entry]:
    """All entries of the cache, the longest unused first."""
    found, in_use = [], cache.in_use()
    for folder in cache.directory().glob("*/*"):
        if folder.is_dir() and not folder.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # it went while it was looked at
                lock = folder.with_name(f"{folder.name}.lock")
                used = (lock if lock.exists() else folder).stat().st_mtime
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                age = time.time() - used
                found.append(Entry(folder.parent.name, _model(folder), size, age, folder, folder in in_use))
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


def choose(
    kinds: Sequence[str] = (), models: Sequence[str] = (), older_than: float = 0, larger_than: int = -1
) -> list[Entry]:
    """The entries of some kinds and models (of all, where none is named) that were unused for ``older_than`` seconds
    and have more than ``larger_than`` bytes."""
    every = entries()
    for what, given, known in ("kind", kinds, {e.kind for e in every}), ("model", models, {e.model for e in every}):
        if wrong := sorted(set(given) - known):
            there = ", ".join(sorted(known)) or "nothing"
            raise InputError(f"The cache has no {what} {shown(wrong[0])}; it has {there}.")
    return [
        entry
        for entry in every
        if (not kinds or entry.kind in kinds)
        and (not models or entry.model in models)
        and entry.age >= older_than
        and entry.bytes > larger_than
    ]


def show(chosen: Sequence[Entry], as_json: bool = False) -> int:
    """Print entries, each as JSON or those of one kind and model together."""
    if as_json:
        print(json.dumps([asdict(entry) | {"folder": str(entry.folder)} for entry in chosen], indent=1))
        return 0
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in chosen:
        groups.setdefault((entry.kind, entry.model), []).append(entry)
    for (kind, model), some in sorted(groups.items()):
        print(f"{kind:24} {model:28} {_sum(some):>24}, unused for {some[-1].age / 86400:.1f} days")
    print(f"{_sum(chosen)} in {cache.directory()}, {sum(entry.in_use for entry in chosen)} of them in use")
    return 0


def clear(chosen: Sequence[Entry], yes: bool, as_json: bool = False) -> int:
    """Remove entries but for those in use, asked for unless ``yes``; print what is removed as :func:`show` does."""
    what = f"{_sum(chosen)} from {cache.directory()}"
    if not chosen or yes or confirm(f"Remove {what}?", f"There is no terminal to ask on: give --yes to remove {what}."):
        return show([entry for entry in chosen if cache.clear(entry.folder)], as_json)
    return 1


def _sum(some: Sequence[Entry]) -> str:
    entries_of = "entry" if len(some) == 1 else "entries"
    return f"{len(some)} {entries_of}, {sum(entry.bytes for entry in some) / 1e9:.2f} GB"
