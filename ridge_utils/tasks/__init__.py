"""Tasks by name: prompts with their targets, split into training, in-distribution and out-of-distribution examples."""

import inspect
from pathlib import Path
from typing import Any

from ridge_utils.errors import InputError
from ridge_utils.tasks import jsonl, synthetic_arithmetic
from ridge_utils.tasks.base import SPLITS, Example, Source, Split

__all__ = ["SPLITS", "Example", "Source", "Split", "load", "names", "title"]

_LOADERS = {synthetic_arithmetic.NAME: synthetic_arithmetic.load}


def names() -> list[str]:
    """Names of the tasks that come with this package."""
    return sorted(_LOADERS)


def title(name: str) -> str:
    """How tables and figures call a task: its name, or a file's name without the folders before it."""
    return Path(name).name if name.endswith(".jsonl") else name


def load(name: str, split: Split, n: int, seed: int = 0, **options: Any) -> list[Example]:
    """Draw ``n`` examples of a task.

    Args:
        name: one of :func:`names`, or the path of a JSON Lines file (ending ``.jsonl``) of your own.
        split: ``train``, ``id`` (in-distribution) or ``ood`` (out-of-distribution).
        n: number of examples.
        seed: seed of the draw; the same seed gives the same examples on every machine.
        options: options of the task, for example ``holdout=0.2`` of ``synthetic_arithmetic``.

    Returns:
        ``n`` different examples.

    Raises:
        InputError: unknown task, split or option, or more examples asked for than the task has.
    """
    if name.endswith(".jsonl"):
        loader, valid = jsonl.load, set()
        first: tuple[Any, ...] = (Path(name).expanduser(),)
    elif name in _LOADERS:
        loader = _LOADERS[name]
        first = ()
        valid = {p.name for p in inspect.signature(loader).parameters.values() if p.kind is p.KEYWORD_ONLY}
    else:
        raise InputError(
            f"Unknown task {name!r}; choose one of {', '.join(names())}, or give the path of a .jsonl file of your own."
        )
    if unknown := sorted(set(options) - valid):
        raise InputError(
            f"Task {title(name)!r} has no option {unknown[0]!r}; "
            + (f"its options are {', '.join(sorted(valid))}." if valid else "it takes none.")
        )
    return loader(*first, split, n, seed, **options)
