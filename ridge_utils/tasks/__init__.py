"""Tasks by name: prompts with their targets, split into training, in-distribution and out-of-distribution examples."""

import inspect
from pathlib import Path
from typing import Any

from ridge_utils.errors import InputError
from ridge_utils.tasks import clutrr, cnn_dailymail, ecqa, jsonl, synthetic_arithmetic
from ridge_utils.tasks.base import SPLITS, Example, Source, Split

__all__ = ["SPLITS", "Example", "Source", "Split", "load", "names", "title"]

_LOADERS = {task.NAME: task.load for task in (synthetic_arithmetic, clutrr, ecqa, cnn_dailymail)}


def names() -> list[str]:
    """Names of the tasks that come with this package."""
    return sorted(_LOADERS)


def title(name: str) -> str:
    """How tables and figures call a task: its name, or a file's name without the folders before it."""
    return Path(name).name if name.endswith(".jsonl") else name


def load(
    name: str, split: Split, n: int | None, seed: int = 0, data_dir: str | Path | None = None, **options: Any
) -> list[Example]:
    """Draw ``n`` examples of a task.

    A natural task (``clutrr``, ``ecqa``, ``cnn_dailymail``) comes from one of three places: a set that this project
    made itself (the default, which needs no network), a local folder in the sources' own formats (``data_dir``), or
    the Hub (the option ``source="hub"``).

    Args:
        name: one of :func:`names`, or the path of a JSON Lines file (ending ``.jsonl``) of your own.
        split: ``train``, ``id`` (in-distribution) or ``ood`` (out-of-distribution).
        n: number of examples; None for all that a natural task or a file has.
        seed: seed of the draw; the same seed gives the same examples on every machine.
        data_dir: folder of the real data; see the task's own page.
        options: options of the task, for example ``holdout=0.2`` of ``synthetic_arithmetic``.

    Returns:
        Different examples.

    Raises:
        InputError: unknown task, split or option, a row or file that does not fit, or more examples asked for than the
            task has.
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
    if data_dir:
        if "data_dir" not in valid:
            raise InputError(f"Task {title(name)!r} reads no data folder, but data_dir={str(data_dir)!r} was given.")
        options["data_dir"] = Path(data_dir).expanduser()
    if unknown := sorted(set(options) - valid):
        raise InputError(
            f"Task {title(name)!r} has no option {unknown[0]!r}; "
            + (f"its options are {', '.join(sorted(valid))}." if valid else "it takes none.")
        )
    return loader(*first, split, n, seed, **options)
