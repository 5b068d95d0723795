"""The two ways in which a call can fail that are not a defect, the input and the machine's storage; checks of input."""

import math
import reprlib
import stat
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class InputError(ValueError):
    """The caller gave something that cannot be used; the message says what, its value or shape, and what to do."""


class TooFewExamplesError(InputError):
    """A task has fewer examples than were asked for."""


class StorageError(RuntimeError):
    """The cache or a results folder could not be read or written; the message names the folder and the remedy."""


def at_least(least: int, most: int = 10**9, **counts: int) -> None:
    """Refuse what is no whole number from ``least`` to ``most``; each is given by its name."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or isinstance(count, bool) or not least <= count <= most:
            raise InputError(
                f"{name} must be a whole number, at least {least} and at most {most}, but is {shown(count)}."
            )


def valid_seed(**seeds: int) -> None:
    """Refuse a seed that one of the generators in use (torch's, numpy's, scikit-learn's) does not take."""
    at_least(0, 2**32 - 1, **seeds)


def within(low: float, high: float, **numbers: float) -> None:
    """Refuse what is no number from ``low`` to ``high``; each is given by its name."""
    for name, number in numbers.items():
        if not isinstance(number, Real) or isinstance(number, bool) or not low <= number <= high:
            raise InputError(f"{name} must lie between {low} and {high}, but is {shown(number)}.")


def finite_and_positive(**numbers: float) -> None:
    """Refuse what is no finite number greater than 0; each is given by its name."""
    for name, number in numbers.items():
        is_number = isinstance(number, Real) and not isinstance(number, bool)
        if not is_number or not 0 < number < math.inf or (isinstance(number, Integral) and number > 2**53):
            raise InputError(f"{name} must be finite and greater than 0, but is {shown(number)}.")


def of_type(kind: type, **values: Any) -> None:
    """Refuse what is of another type; each is given by its name."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise InputError(f"{name} must be of type {kind.__name__}, but is {shown(value)}.")


def check_sampling(pool: int, n: int, seeds: Sequence[int]) -> None:
    """Refuse a size or a list of sampling seeds from which no estimate can be made."""
    if not isinstance(n, Integral) or isinstance(n, bool) or not 2 <= n <= pool:
        raise InputError(f"n_samples must be between 2 and the number of examples, {pool}, but is {shown(n)}.")
    check_seeds(sampling_seeds=seeds)


def check_seeds(**seeds: Sequence[int]) -> None:
    """Refuse a list that is empty, repeats a seed or holds what is none; each is given by its name."""
    for name, values in seeds.items():
        for value in values:
            valid_seed(**{f"each of {name}": value})
        if not values or len(set(values)) != len(values):
            raise InputError(f"{name} must be one or more different integers, but are {shown(list(values))}.")


def check_checkpoints(steps: int, checkpoints: Sequence[int]) -> None:
    """Refuse checkpoints that a fine-tuning of so many steps does not reach."""
    if not checkpoints or any(not 0 <= step <= steps for step in checkpoints):
        raise InputError(
            f"checkpoints must be steps between 0 and steps={steps}, but are {shown(list(checkpoints))}; name others, "
            "or none ([]) for 0, a quarter, a half and all of steps."
        )


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict, _REPR.maxset = 3, 8, 8, 6, 6
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 100


def shown(value: Any) -> str:
    """A value as an error shows it: on one line, and what is long is left out of its middle."""
    try:
        text = _REPR.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of too many digits"
    if " at 0x" in text:  # where an object lies in the memory tells nobody anything
        return f"of type {type(value).__name__}"
    return text if len(text) <= 160 else f"{text[:120]} … {text[-30:]}"


def named(text: str) -> str:
    """A text as it is, for the sentence that it stands in; where it is long or has odd characters, :func:`shown`."""
    return text if len(text) <= 160 and text.isprintable() else shown(text)


def see(said: str, path: Path) -> str:
    """A sentence with the file that says more, where it could be written."""
    return f"{said.removesuffix('.')}; see {path}" if path.exists() else said


def user_path(given: str | Path, what: str) -> Path:
    """A path that the user gave, ``~`` expanded; ``what`` it is the path of is said where the system knows no such."""
    try:
        path = Path(given).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, a NUL in it, or the home of an unknown user
        raise InputError(f"{what} cannot have the path {shown(str(given))}.") from None
    return path


def read_text(path: Path, what: str, most: int = 2**31) -> str:
    """What a text file of the user's holds, read as UTF-8 with its line breaks; ``what`` it is, as in "the profile".

    Nothing but a regular file of at most ``most`` bytes is read: a pipe or a device would have no end.
    """
    where = f"{what} {named(str(path))}"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{where} is no file but a folder, a pipe or a device: give a regular file.")
        if found.st_size > most:
            raise InputError(f"{where} has {found.st_size:,} bytes, more than the {most:,} that are read: shorten it.")
        with path.open("rb") as file:
            return file.read(found.st_size).decode("utf-8-sig")
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it is too large for the memory"
        raise InputError(f"{where} cannot be read: {reason}.") from None


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
        least = f" with at least {' and '.join(needed)}" if needed else ""
        return f"{start} must be a mapping{least}, but is {shown(given)}."
    name = names[0]
    if first["type"] == "extra_forbidden":
        return f"{start} has no {kind} {shown(name)}; its {kind}s are {', '.join(fields) or 'none'}."
    if name not in given:
        return f"{start} lacks the {kind} {name!r}, {fields[name].description}."
    return f"In {where}, the {kind} {name!r} must be {fields[name].description}, but is {shown(given[name])}."
