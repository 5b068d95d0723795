"""The notebooks: their parameters, their execution, and what is stored of them.

papermill runs a notebook with the default where a parameter's name is misspelt; here that is an error, and so is a
value of the wrong type.
"""

import ast
import contextlib
import itertools
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ridge_utils import _jsonschema, cache, profiles  # noqa: F401
from ridge_utils.errors import InputError, StorageError

if TYPE_CHECKING:
    import nbformat

#: The folder of the notebooks, in a checkout of the project.
NOTEBOOKS = profiles.FOLDER.parent

_PAPERMILL: dict[str, Any] = {
    "cwd": str(NOTEBOOKS),
    "kernel_name": "python3",
    "progress_bar": False,  # the notebooks show their own
    "extra_arguments": ["--IPKernelApp.log_level=40"],  # the kernel's advice on encryption is not the reader's
}

#: For the C library of Linux: give freed memory back to the system seldom. A training step frees gigabytes, and asking
#: for them again takes a third of its time. Other systems ignore it.
_ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184"}

#: The id of a table as pandas styles it.
_TABLE_ID = r"T_[0-9a-f]{5}(?=[\s_\"])"

_PYTHON_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook, as its parameters cell declares it."""

    #: its name
    name: str
    #: its annotation, one of int, float, str, bool, list, list[int], list[str] or dict
    type: str
    #: its default, as the source has it
    default: str
    #: its help, the comment behind it
    help: str


def names() -> list[str]:
    """Names of the notebooks, without ``.ipynb``."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def title(notebook: str) -> str:
    """The heading of a notebook."""
    import nbformat

    for cell in nbformat.read(_path(notebook), as_version=4).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.partition("\n")[0].removeprefix("# ")
    return ""


def parameters(notebook: str) -> dict[str, Parameter]:
    """The parameters of a notebook.

    Raises:
        InputError: there is no such notebook.
    """
    import papermill

    found = papermill.inspect_notebook(str(_path(notebook)))
    return {
        name: Parameter(name, entry["inferred_type_name"].strip("\"'"), entry["default"], entry["help"])
        for name, entry in found.items()
    }


def declared(notebook: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a notebook's own parameters are set to, those left out that say how its table is used.

    Args:
        notebook: its name.
        values: where they are set, a notebook's ``globals()``.
    """
    from ridge_utils.study import NOT_MEASURED

    return {name: values[name] for name in parameters(notebook) if name not in NOT_MEASURED}


def defaults(notebook: str) -> dict[str, Any]:
    """The default of every parameter of a notebook, those left out that say how its table is used."""
    from ridge_utils.study import NOT_MEASURED

    found = parameters(notebook).values()
    return {p.name: ast.literal_eval(p.default) for p in found if p.name not in NOT_MEASURED}


def profile_values(notebook: str, profile: profiles.Profile) -> dict[str, Any]:
    """The parameters that a profile sets for a notebook, checked for name and type.

    Parameters that the profile gives to all of its notebooks are left out where the notebook does not declare them.

    Raises:
        InputError: the profile does not have this notebook, a parameter that none of its notebooks declares, or a value
            that is not of the parameter's type.
    """
    if notebook not in profile.notebooks:
        raise InputError(
            f"The profile {profile.name!r} does not run {notebook!r}; it runs {', '.join(profile.notebooks)}."
        )
    anywhere = {name for other in profile.notebooks for name in parameters(other)}
    if unknown := sorted(set(profile.parameters) - anywhere):
        raise InputError(f"The profile {profile.name!r} sets {unknown[0]!r}, which none of its notebooks declares.")
    valid = parameters(notebook)
    shared = {name: value for name, value in profile.parameters.items() if name in valid}
    own = profile.notebooks[notebook]
    if unknown := sorted(set(own) - set(valid)):
        raise InputError(f"The profile {profile.name!r} sets {unknown[0]!r}, which {notebook!r} does not declare.")
    typed = {name: _typed(valid[name], value, repr(value)) for name, value in {**shared, **own}.items()}
    return {
        name: _as_path(value) if isinstance(value, str) and "/" in value else value for name, value in typed.items()
    }


def parse(notebook: str, assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``name=value`` texts into parameters of a notebook, checked for name and type.

    A text that names an existing file or folder becomes its absolute path, because the notebook runs in its own folder.

    Raises:
        InputError: no ``=``, an unknown name (with the valid ones), or a value that is not of the parameter's type.
    """
    valid = parameters(notebook)
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"A parameter is given as name=value, not {assignment!r}.")
        if name not in valid:
            raise InputError(f"Notebook {notebook!r} has no parameter {name!r}; its parameters are {', '.join(valid)}.")
        values[name] = _convert(valid[name], text)
    return values


def run(notebook: str, values: Mapping[str, Any], output: Path, quiet: bool = False) -> float:
    """Execute a notebook headless and save it, with its table as CSV beside it.

    Args:
        notebook: its name.
        values: parameters, as :func:`parse` gives them.
        output: where the executed notebook goes; what ran before a failing cell is saved as well.
        quiet: do not show the notebook's progress.

    Returns:
        Seconds that it took.

    Raises:
        InputError: no such notebook, or an output that would overwrite a committed one.
        papermill.PapermillExecutionError: a cell failed.
    """
    import papermill

    source = _path(notebook)
    output = output.absolute()
    if output.suffix != ".ipynb":
        raise InputError(f"The output must be a notebook's name, ending .ipynb, but is {output.name!r}.")
    if output.parent.resolve() == NOTEBOOKS:
        raise InputError(f"{output} would overwrite a committed notebook: write to another folder, such as runs/.")
    given = dict(values)
    if "save_table" in parameters(notebook):
        table = given.get("save_table", str(output.with_suffix(".csv")))
        # Absolute, because the notebook runs in its own folder.
        given["save_table"] = str(Path(table).absolute()) if table else ""
    with cache.storage_errors(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()
    for name, value in _ALLOCATION.items():
        os.environ.setdefault(name, value)
    started = time.monotonic()
    papermill.execute_notebook(
        str(source),
        str(output),
        given,
        stderr_file=None if quiet else sys.stderr,
        **_PAPERMILL,
    )
    return time.monotonic() - started


def failure(notebook: str, error: Exception) -> str:
    """What ended the execution of a notebook, in one sentence.

    Args:
        notebook: its name.
        error: what :func:`run` raised.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    if isinstance(error, DeadKernelError):
        return (
            f"The process that ran {notebook} was ended by the system, most likely for lack of memory: choose a "
            "smaller model, dtype=bfloat16 or a smaller batch_size."
        )
    if isinstance(error, papermill.PapermillExecutionError):
        if error.ename in ("InputError", "StorageError"):
            return error.evalue
        return f"{notebook} failed in cell {error.cell_index + 1}: {error.ename}: {error.evalue}"
    if isinstance(error, (InputError, StorageError)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def refresh(notebook: str, measure: bool = True) -> None:
    """Measure a notebook's stored numbers anew and execute the committed notebook with them.

    First the table goes to ``results/``, where the notebook has one, then the notebook is executed with its defaults
    and written back without what differs from run to run: times, progress bars and papermill's own notes.

    Args:
        notebook: its name.
        measure: measure the stored table anew; otherwise only the page is made again, and compared with it.
    """
    import nbformat
    import papermill

    source = _path(notebook)
    options = {"stderr_file": sys.stderr, **_PAPERMILL}
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder) / source.name
        if measure and "compare" in parameters(notebook):
            table = NOTEBOOKS.parent / "results" / f"{notebook}.csv"
            papermill.execute_notebook(
                str(source), str(executed), {"compare": False, "save_table": str(table)}, **options
            )
        papermill.execute_notebook(str(source), str(executed), **options)
        text = nbformat.writes(stable(nbformat.read(executed, as_version=4)))
    cache.write_text(source, text.rstrip("\n") + "\n")
    if notebook == "predictive_information":
        _draw_main_figure(NOTEBOOKS.parent)


def _draw_main_figure(root: Path) -> None:
    """The picture of the README and of the book's first page, with the table that it was drawn from in its metadata."""
    from ridge_utils import figures, results

    name = "predictive_information.csv"
    table, origin = results.read(root / "results" / name)
    figures.style()
    figure = figures.information_figure(table, "")
    source = {"Source": f"{name} {origin['sha256']}"}
    figure.savefig(root / "book" / "images" / "predictive_information.png", dpi=150, metadata=source)


def stable(notebook: "nbformat.NotebookNode") -> "nbformat.NotebookNode":
    """An executed notebook without what differs from run to run though its numbers do not."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata["language_info"] = {"name": "python"}
    tables = itertools.count()
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            # pandas draws a table's id at random. Each table keeps one of its own: its colours go by it.
            for out in cell.outputs:
                html = out.get("data", {}).get("text/html", "")
                ids = {found: next(tables) for found in dict.fromkeys(re.findall(_TABLE_ID, html))}
                if ids:
                    named = re.sub(_TABLE_ID, lambda found, ids=ids: f"T_{ids[found.group()]:05d}", html)
                    out["data"]["text/html"] = named
                if "text/plain" in out.get("data", {}):
                    plain = re.sub(r" at 0x[0-9a-f]+", "", out["data"]["text/plain"])
                    out["data"]["text/plain"] = plain
    return notebook


def _path(notebook: str) -> Path:
    name = notebook.removesuffix(".ipynb").removeprefix("notebooks/")
    if name not in names():
        raise InputError(f"There is no notebook {notebook!r}; choose one of {', '.join(names())}.")
    return NOTEBOOKS / f"{name}.ipynb"


def _convert(parameter: Parameter, text: str) -> Any:
    expected = _PYTHON_TYPES[parameter.type.partition("[")[0]]
    if expected is str:
        return _as_path(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return _typed(parameter, value, repr(text))


def _as_path(text: str) -> str:
    """The absolute path of what exists under this name: the notebook runs in its own folder. Else the text itself."""
    try:
        path = Path(text).expanduser()
        return str(path.resolve()) if text and path.exists() else text
    except (OSError, RuntimeError):  # too long for a path, or the home of an unknown user
        return text


def _typed(parameter: Parameter, value: Any, shown: str) -> Any:
    """The value, if it is of the parameter's type."""
    outer, _, inner = parameter.type.rstrip("]").partition("[")
    expected = _PYTHON_TYPES[outer]
    if expected is float and isinstance(value, int | str) and not isinstance(value, bool):
        # YAML reads 1e-4 as a text; Python's reading is meant.
        with contextlib.suppress(ValueError):
            value = float(value)
    fits = isinstance(value, expected) and not (expected is int and isinstance(value, bool))
    if fits and expected is list and inner:
        element = _PYTHON_TYPES[inner]
        fits = all(isinstance(item, element) and not (element is int and isinstance(item, bool)) for item in value)
    if not fits:
        example = {
            "list": "[a, b]" if inner == "str" else "[0, 1, 2]",
            "dict": "'{name: value}'",
            "bool": "true or false",
        }.get(outer)
        raise InputError(
            f"Parameter {parameter.name!r} must be of type {parameter.type}"
            f"{f', such as {example}' if example else ''}, but is {shown}; its default is {parameter.default}."
        )
    return value
