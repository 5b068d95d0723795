"""Tasks by name: prompts with their targets, split into training, in-distribution and out-of-distribution examples.

A new task is a module here with ``NAME`` and ``load(split, n, seed, *, options)``, its entry in :data:`TASKS`, and a
row of the book's table of tasks. A test names what is missing.
"""

import functools
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ridge_utils.errors import InputError, explain, shown, user_path
from ridge_utils.tasks import clutrr, cnn_dailymail, ecqa, jsonl, synthetic_arithmetic
from ridge_utils.tasks.base import SPLITS, Example, Source, Split

__all__ = ["SPLITS", "TASKS", "Example", "Source", "Split", "check", "digest", "load", "names", "title"]

#: The tasks that come with this package.
TASKS = {task.NAME: task for task in (synthetic_arithmetic, clutrr, ecqa, cnn_dailymail)}


def names() -> list[str]:
    """Names of the tasks that come with this package."""
    return sorted(TASKS)


def title(name: str, options: Mapping[str, Any] | None = None) -> str:
    """How tables call a task: its name, or a file's name without the folders before it.

    Another form of its answers than the default is another task, ``ecqa:letter``.
    """
    short = Path(name).name if name.endswith(".jsonl") else name
    form = _options(name if name in TASKS else "").model_fields.get("answer")
    answer = (options or {}).get("answer", form and form.default)
    return f"{short}:{answer}" if form and answer != form.default else short


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 of the examples in their order: prompt, target, split, source and signal spans of each."""
    text = json.dumps([astuple(example) for example in examples], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load(
    name: str, split: Split, n: int | None, seed: int = 0, data_dir: str | Path | None = None, **options: Any
) -> list[Example]:
    """Draw ``n`` different examples of a task.

    A natural task (``clutrr``, ``ecqa``, ``cnn_dailymail``) comes from one of three places: a set that this project
    made itself (the default, which needs no network), a local folder in the sources' own formats (``data_dir``), or
    the Hub (the option ``source="hub"``).

    Args:
        name: one of :func:`names`, or the path of a JSON Lines file (ending ``.jsonl``) of your own.
        split: ``train``, ``id`` (in-distribution) or ``ood`` (out-of-distribution).
        n: number of examples; None for all that a natural task or a file has.
        seed: of the draw; the same seed gives the same examples on every machine.
        data_dir: folder of the real data, laid out as the task's module says.
        options: of the task, for example ``holdout=0.2`` of ``synthetic_arithmetic``.
    """
    check(name, data_dir, options)
    if split not in SPLITS:
        raise InputError(f"Task {title(name)!r} has no split {shown(split)}; choose one of {', '.join(SPLITS)}.")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise InputError(f"The number of examples must be an integer of at least 1, but is {shown(n)}.")
    if name.endswith(".jsonl"):
        return jsonl.load(user_path(name, "A task"), split, n, seed)
    if data_dir:
        options["data_dir"] = user_path(data_dir, "data_dir")
    return TASKS[name].load(split, n, seed, **options)


def check(name: str, data_dir: str | Path | None, options: Mapping[str, Any]) -> None:
    """Refuse a task or options of it that there are not; whether there are data shows when they are read."""
    if not name.endswith(".jsonl") and name not in TASKS:
        raise InputError(
            f"Unknown task {shown(name)}; choose one of {', '.join(names())}, or give the path of a .jsonl file of "
            "your own."
        )
    model, of = _options(name if name in TASKS else ""), f"task {title(name)!r}"
    if data_dir and "data_dir" not in model.model_fields:
        raise InputError(f"T{of[1:]} reads no data folder, but data_dir={shown(str(data_dir))} was given.")
    try:
        model.model_validate({**({"data_dir": data_dir} if data_dir else {}), **options})
    except ValidationError as error:
        raise InputError(explain(error, options, model, of, "option")) from None


@functools.cache
def _options(task: str) -> type[BaseModel]:
    """What the options of a task may be, as the keywords of its loader say; a file has none."""
    fields: dict[str, Any] = {}
    if task:
        keywords = inspect.signature(TASKS[task].load, eval_str=True).parameters.values()
        fields = {p.name: (p.annotation, p.default) for p in keywords if p.kind is p.KEYWORD_ONLY}
    return create_model(f"options of {task}", __config__=ConfigDict(extra="forbid", strict=True), **fields)
