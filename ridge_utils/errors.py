"""The two ways in which a call can fail that are not a defect: the input, and the machine's storage."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class InputError(ValueError):
    """The caller gave something that cannot be used; the message says what, its value or shape, and what to do."""


class TooFewExamplesError(InputError):
    """A task has fewer examples than were asked for."""


def at_least(least: int, **counts: int) -> None:
    """Refuse a number below ``least``; each is given by its name."""
    for name, count in counts.items():
        if count < least:
            raise InputError(f"{name} must be at least {least}, but is {count}.")


def finite_and_positive(**numbers: float) -> None:
    """Refuse a number that is not finite or not greater than 0; each is given by its name."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise InputError(f"{name} must be finite and greater than 0, but is {number}.")


class StorageError(RuntimeError):
    """The cache or a results folder could not be read or written; the message names the folder and the remedy."""


def explain(error: "ValidationError", given: Any, model: type["BaseModel"], where: str, kind: str = "field") -> str:
    """The first fault that pydantic found, in one sentence: what is wrong, its value, and what is valid.

    Args:
        model: the descriptions of its fields say what they must be.
        where: what was validated, as in "the profile mine.yaml".
        kind: what a field is called there.
    """
    first = error.errors(include_url=False)[0]
    start = where[0].upper() + where[1:]
    names = [str(name) for name in first["loc"]]
    # Into the models inside the model; what is wrong inside a list is shown with its list.
    while len(names) > 1 and hasattr(inner := model.model_fields[names[0]].annotation, "model_fields"):
        given, model, names = given[names[0]], inner, names[1:]
    fields = model.model_fields
    if not isinstance(given, Mapping) or not names:
        needed = [name for name, field in fields.items() if field.is_required()]
        return f"{start} must be a mapping with at least {' and '.join(needed)}, but is {given!r}."
    name = names[0]
    if first["type"] == "extra_forbidden":
        return f"{start} has no {kind} {name!r}; its {kind}s are {', '.join(fields)}."
    if name not in given:
        return f"{start} lacks the {kind} {name!r}, {fields[name].description}."
    return f"In {where}, the {kind} {name!r} must be {fields[name].description}, but is {given[name]!r}."
