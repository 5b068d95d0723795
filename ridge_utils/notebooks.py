"""The notebooks: their parameters, their execution, and what is stored of them.

papermill runs a notebook with the default where a parameter's name is misspelt; here that is an error, and so is a
value of the wrong type.
"""

import ast
import contextlib
import functools
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from jupyter_core.paths import jupyter_runtime_dir

from ridge_utils import cache, files, outputs, profiles, tasks
from ridge_utils.errors import (
    InputError,
    StorageError,
    at_least,
    check_checkpoints,
    check_sampling,
    check_seeds,
    explain,
    named,
    shown,
    user_path,
)

if TYPE_CHECKING:
    import nbformat

logger = logging.getLogger(__name__)

#: The folder of the notebooks.
NOTEBOOKS = profiles.FOLDER.parent
#: The parameters that say how a table is used, not what is in it.
NOT_MEASURED = ("compare", "save_table")
#: With other values of these, and of no others, a run still finds what the default run found.
SAME_FINDINGS = {*NOT_MEASURED, "device", "folder"}
#: Tag of the cells that speak of the default run, and of those that speak of the run that was just made.
DEFAULT_RUN, OWN_RUN = "default-run", "own-run"

#: Parameters that are paths whatever they look like.
_FOLDERS = {"data_dir", "folder"}
_PATH_ENDINGS = (".jsonl", ".csv", ".yaml", ".json", ".gguf")

_PAPERMILL: dict[str, Any] = {
    "cwd": str(NOTEBOOKS),
    "kernel_name": "python3",
    "progress_bar": False,  # the notebooks show their own
    # Its advice on encryption and its end by an interrupt are not the reader's.
    "extra_arguments": ["--IPKernelApp.log_level=50"],
}

#: For the C library of Linux: give freed memory back to the system seldom. A training step frees gigabytes, and asking
#: for them again takes a third of its time. Other systems ignore it.
_ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


#: Annotations of parameters, with an example for those that are not plain.
_TYPES = {
    "int": (int, ""),
    "float": (float, ""),
    "str": (str, ""),
    "bool": (bool, "true or false"),
    "list[int]": (int, "[0, 1, 2]"),
    "list[str]": (str, "[a, b]"),
    "dict": (dict[str, Any], "'{name: value}'"),
}
#: From where to where numbers go, by the names of the parameters that hold them; the first pattern that fits counts.
_RANGES: dict[str, tuple[float, float]] = {
    r".*seeds?": (0, 2**32 - 1),  # what numpy's generator takes
    r"n_samples": (2, 20_000),  # a matrix of N x N numbers
    r"halves": (20, 10_000),
    r"n_known": (8, 20_000),
    r"exact_up_to": (2, 20_000),
    r"n_shuffles|.*_epochs": (1, 10_000),
    r"decoding_steps|measured_steps|depths|shown": (1, 10_000),
    r"(.*_)?batch_size|(.*_)?every|spacing|(last|mapped)_checkpoints|n_intervened|n_memorise": (1, 100_000),
    r"memorise_share": (0, 1),
    r".*learning_rate|fit_tolerance|bandwidth|alpha": (1e-12, 1000),
    r".*": (0, 1_000_000),
}
#: Lists that need an entry, whatever the other parameters.
_NOT_EMPTY = {"sampling_seeds", "splits", "pairs", "measured_steps", "depths", "variants"}
#: What texts may be, by the names of the parameters that hold them.
_CHOICES = {
    "kernel": ("gaussian", "laplacian", "polynomial", "linear"),
    "precision": ("auto", "float32", "bfloat16"),
    "splits": tasks.SPLITS,
    "variants": ("skip", "mean", "patch"),
    "pairs": ("all", "aligned"),
    "notebook": tuple(sorted(path.stem for path in (NOTEBOOKS.parent / "results" / "differences").glob("*.csv"))),
}


def _different(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("an entry stands twice")
    return values


def _plain(value: Any) -> Any:
    """A number written as a text, such as 1e-4 in quotes, and nothing else that pydantic would make a number of."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+.\d]+([eE][-+]?\d+)?", value) else value


def _annotation(parameter: "Parameter") -> tuple[Any, str]:
    """What a parameter may be, for pydantic and in words, by its type and its name."""
    kind, example = _TYPES[parameter.type]
    words = f"of type {parameter.type}"
    rules: list[Any] = []
    if kind in (int, float):
        low, high = next(ends for names, ends in _RANGES.items() if re.fullmatch(names, parameter.name))
        rules = [pydantic.Field(ge=low, le=high)]
        words += f" from {low:.12g} to {high:.12g}"
    elif parameter.name in _CHOICES:
        kind = Literal[_CHOICES[parameter.name]]
        words += f", of {', '.join(_CHOICES[parameter.name])}"
    elif kind is str:
        # No control characters, which no name and no path has.
        ending = r"\.csv|^" if parameter.name == "save_table" else ""
        rules = [pydantic.Field(max_length=4096, pattern=rf"^[^\x00-\x1f\x7f]*({ending})$")]
        words += ", ending .csv or empty" if ending else ""
    if kind is float:
        rules.append(pydantic.BeforeValidator(_plain))
    kind = Annotated[kind, *rules] if rules else kind
    if parameter.type.startswith("list"):
        least = int(parameter.name in _NOT_EMPTY)
        kind = Annotated[list[kind], pydantic.Field(min_length=least, max_length=1000)]
        kind = Annotated[kind, pydantic.AfterValidator(_different)]
        words += f", {'one or more' if least else 'all'} different"
    return kind, words + (f", such as {example}" if example else "") + f" (its default is {parameter.default})"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook, as the source of its parameters cell has it; ``help`` is the comment behind it."""

    name: str
    type: str
    default: str
    help: str


def names() -> list[str]:
    """Names of the notebooks, without ``.ipynb``."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def title(notebook: str) -> str:
    """The heading of a notebook."""
    for cell in cells(notebook):
        if cell["cell_type"] == "markdown" and cell["source"].startswith("# "):
            return cell["source"].partition("\n")[0].removeprefix("# ")
    return ""


def cells(notebook: str) -> list[dict[str, Any]]:
    """The cells of a committed notebook, their sources as one text each."""
    read = json.loads(find(notebook).read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in read]


def has_tag(cell: Mapping[str, Any], tag: str) -> bool:
    """Whether a cell carries a tag."""
    return tag in cell["metadata"].get("tags", [])


@functools.cache
def parameters(notebook: str) -> dict[str, Parameter]:
    """The parameters of a notebook, as its parameters cell declares them: ``name: type = value  # help``."""
    source = next((cell["source"] for cell in cells(notebook) if has_tag(cell, "parameters")), "")
    lines = source.encode().splitlines()  # ast counts in bytes
    declared = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            comment = lines[node.end_lineno - 1][node.end_col_offset :].decode().partition("#")[2]
            default = str(ast.get_source_segment(source, node.value))
            name, annotation = node.target.id, ast.unparse(node.annotation)
            declared[name] = Parameter(name, annotation, default, comment.strip())
    return declared


@functools.cache
def model(notebook: str) -> type[pydantic.BaseModel]:
    """What the parameters of a notebook may be: a pydantic model with a field for each."""
    fields: dict[str, Any] = {}
    for name, parameter in parameters(notebook).items():
        annotation, words = _annotation(parameter)
        fields[name] = annotation, pydantic.Field(ast.literal_eval(parameter.default), description=words)
    config = pydantic.ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    return pydantic.create_model(f"parameters of {notebook}", __config__=config, **fields)


def checked(notebook: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the types that the notebook declares; names and types that it does not have are refused."""
    try:
        valid = model(notebook).model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(explain(error, values, model(notebook), f"notebook {notebook!r}", "parameter")) from None
    return {name: _located(name, getattr(valid, name)) for name in values}


def consistent(notebook: str, values: Mapping[str, Any]) -> None:
    """Refuse checked parameters that do not fit each other or the task, as far as that shows without a model."""
    values = {**{name: ast.literal_eval(p.default) for name, p in parameters(notebook).items()}, **values}
    if "task" in values:
        tasks.check(values["task"], values["data_dir"], values["task_options"])
    for steps in {"steps", "memorise_steps"} & set(values):
        seeds = f"{steps.removesuffix('steps') or 'training_'}seeds"
        if values[steps]:
            check_seeds(**{seeds: values[seeds]})
    if values.get("steps") and values["checkpoints"]:
        check_checkpoints(values["steps"], values["checkpoints"])
    if "n_samples" in values and values.get("n_examples"):
        check_sampling(values["n_examples"], values["n_samples"], values.get("sampling_seeds", [0]))
    elif "n_examples" in values and not {"n_samples", "sampling_seeds"} <= set(values):
        at_least(1, n_examples=values["n_examples"])


def declared(notebook: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook's own parameters, from its ``globals()``, those left out that say how its table is used."""
    return {name: values[name] for name in parameters(notebook) if name not in NOT_MEASURED}


def defaults(notebook: str) -> dict[str, Any]:
    """The default of every parameter of a notebook, those left out that say how its table is used."""
    every = parameters(notebook).values()
    return {p.name: ast.literal_eval(p.default) for p in every if p.name not in NOT_MEASURED}


def profile_values(notebook: str, profile: profiles.Profile) -> dict[str, Any]:
    """The parameters that a profile sets for a notebook, checked for name and type.

    Parameters that the profile gives to all of its notebooks are left out where the notebook does not declare them.
    """
    if notebook not in profile.notebooks:
        raise InputError(
            f"The profile {profile.name!r} does not run {notebook!r}; it runs {', '.join(profile.notebooks)}."
        )
    anywhere = {name for other in profile.notebooks for name in parameters(other)}
    if unknown := sorted(set(profile.parameters) - anywhere):
        raise InputError(f"The profile {profile.name!r} sets {unknown[0]!r}, which none of its notebooks declares.")
    shared = {name: value for name, value in profile.parameters.items() if name in parameters(notebook)}
    return from_file(notebook, shared | profile.notebooks[notebook])


def from_file(notebook: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`checked`, for a profile or grid: it may come from anywhere, and may not say where anything is written."""
    if values.get("save_table"):
        raise InputError("A profile or grid may not set 'save_table': give it yourself, as -p save_table=VALUE.")
    return checked(notebook, values)


def parse(notebook: str, assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``name=value`` texts into parameters of a notebook, checked for name and type.

    A text that looks like a path and exists becomes absolute, because the notebook runs in its own folder.
    """
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"A parameter is given as name=value, not {shown(assignment)}.")
        known = parameters(notebook).get(name)
        values[name] = text
        if known is None or known.type != "str":
            # What is no YAML stays the text itself, which is then of the wrong type.
            with contextlib.suppress(InputError):
                values[name] = profiles.parse_yaml(text, name)
    return checked(notebook, values)


def is_default_run(notebook: str, values: Mapping[str, Any]) -> bool:
    """Whether a run with these parameters finds what the pages say of the default run."""
    default = defaults(notebook)
    return all(value == default.get(name) for name, value in values.items() if name not in SAME_FINDINGS)


def run(
    notebook: str,
    values: Mapping[str, Any],
    output: Path,
    quiet: bool = False,
    *,
    force: bool = False,
    finish: Callable[[Path, bool], None] | None = None,
) -> float:
    """Execute a notebook headless and save it, with its table as CSV beside it.

    What is there already is replaced if a run wrote it; with ``force`` anything else is moved aside, else refused.

    Cells that speak of the default run are left out of a run with other parameters. What ran before a failing cell,
    which raises a ``papermill.PapermillExecutionError``, is saved as well. ``finish`` rewrites the executed notebook,
    told whether it was the default run. Gives the seconds that it took.
    """
    source = find(notebook)
    consistent(notebook, values)
    output = user_path(output, "The output").absolute()
    if output.parent.resolve() == NOTEBOOKS:
        raise InputError(f"{output} would overwrite a committed notebook: write to another folder, such as runs/.")
    files.claim(output, ".ipynb", force)
    given = dict(values)
    if "save_table" in parameters(notebook):
        table = given.get("save_table", str(output.with_suffix(".csv")))
        # Absolute, because the notebook runs in its own folder.
        given["save_table"] = str(Path(table).absolute()) if table else ""
    if given.get("save_table"):
        files.claim(table := Path(given["save_table"]), ".csv", force)
        if table.parent.resolve() == NOTEBOOKS.parent / "results":
            raise InputError(f"{table} would overwrite a stored table: write to another folder, such as runs/.")
    started, default = time.monotonic(), is_default_run(notebook, given)
    with files.scratch(Path(jupyter_runtime_dir())) as folder:
        if not default:
            content = json.loads(source.read_text(encoding="utf-8"))
            content["cells"] = [cell for cell in content["cells"] if not has_tag(cell, DEFAULT_RUN)]
            source = folder / source.name
            source.write_text(json.dumps(content), encoding="utf-8")
        execute(source, output, given, None if quiet else sys.stderr, finish and (lambda path: finish(path, default)))
    return time.monotonic() - started


def execute(
    source: Path,
    output: Path,
    values: Mapping[str, Any],
    progress: Any = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Execute a notebook's file with papermill; ``progress``, a text file, gets what the notebook writes to stderr.

    Notebook and table come to their places when all is done, the table last: where it is, the run was whole. Of a
    notebook that fails in a cell what ran is kept. ``finish`` rewrites the executed notebook before.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    for name, value in _ALLOCATION.items():
        os.environ.setdefault(name, value)
    table = Path(values.get("save_table") or output)
    with (
        files.scratch(output.parent) as made,
        files.scratch(table.parent) as measured,
        files.scratch(Path(jupyter_runtime_dir())) as connections,
    ):
        executed, given = made / output.name, dict(values)
        if table != output:
            given["save_table"] = str(measured / table.name)

        def keep() -> None:
            with cache.storage_errors(output.parent):
                text = executed.read_text(encoding="utf-8")
                for folder in (made, measured):
                    text = text.replace(f"/{folder.name}", "")
                executed.write_text(text, encoding="utf-8")
                if finish:
                    finish(executed)
            files.replace(made, output)

        try:
            with cache.storage_errors(output.parent):
                # papermill takes braces in a path for parameters.
                paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, executed)]
                # Else a kernel that is killed leaves its connection file among the system's temporary ones.
                config = Config(KernelManager={"connection_file": str(connections / "kernel.json")})
                papermill.execute_notebook(*paths, given, stderr_file=progress, config=config, **_PAPERMILL)
        except papermill.PapermillExecutionError as error:
            error.evalue = re.sub(rf"/({made.name}|{measured.name})\b", "", error.evalue)
            keep()
            raise
        except DeadKernelError:
            keep()
            raise
        keep()
        if table != output and (measured / table.name).exists():
            files.replace(measured, table, table.with_suffix(".json"))


def is_of_input(error: BaseException) -> bool:
    """Whether a notebook ended because of what the user gave, or for lack of storage."""
    kinds = (InputError, *InputError.__subclasses__(), StorageError)
    return isinstance(error, kinds) or getattr(error, "ename", "") in {kind.__name__ for kind in kinds}


def failure(notebook: str, error: BaseException) -> str:
    """What ended the execution of a notebook, in one sentence; ``error`` is what :func:`run` raised."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    if isinstance(error, DeadKernelError):
        return (
            f"The process that ran {notebook} was ended by the system, most likely for lack of memory: choose a "
            "smaller model, dtype=bfloat16 or a smaller batch_size."
        )
    if isinstance(error, papermill.PapermillExecutionError):
        if is_of_input(error):
            return error.evalue
        return f"{notebook} failed in cell {error.cell_index + 1}: {error.ename}: {named(str(error.evalue))}"
    return str(error) if is_of_input(error) else f"{type(error).__name__}: {named(str(error))}"


def refresh(notebook: str, measure: bool = True) -> None:
    """Measure a notebook's stored numbers anew and execute the committed notebook with them.

    First the table goes to ``results/``, where the notebook has one, then the notebook is executed with its defaults
    and written back, sealed and without what differs from run to run: times, progress bars, papermill's own notes.
    Without ``measure`` only the page is made again, and compared with the stored table.
    """
    import nbformat

    source, table = find(notebook), NOTEBOOKS.parent / "results" / f"{notebook}.csv"
    pair = (table, table.with_suffix(".json"))
    before = {path: path.read_bytes() for path in pair if path.is_file()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            executed = Path(folder) / source.name
            if measure and "compare" in parameters(notebook):
                execute(source, executed, {"compare": False, "save_table": str(table)}, sys.stderr)
            execute(source, executed, {}, sys.stderr)
            page = stable(nbformat.read(executed, as_version=4))
        outputs.seal(page)
        cache.write_text(source, nbformat.writes(page).rstrip("\n") + "\n")
    except BaseException:  # a table and a page that say the same, or both as they were
        for path in pair:
            path.write_bytes(before[path]) if path in before else path.unlink(missing_ok=True)
        raise


def stable(notebook: "nbformat.NotebookNode") -> "nbformat.NotebookNode":
    """An executed notebook without what differs from run to run though its numbers do not."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = outputs.stable(cell.outputs)
    return notebook


def find(notebook: str) -> Path:
    """The file of a notebook, by its name or its path in the checkout."""
    name = notebook.removesuffix(".ipynb").removeprefix("notebooks/")
    if name not in names():
        raise InputError(f"There is no notebook {shown(notebook)}; choose one of {', '.join(names())}.")
    return NOTEBOOKS / f"{name}.ipynb"


def _located(name: str, value: Any) -> Any:
    """The absolute path of what looks like one and exists, since the notebook runs in its own folder; else the value.

    A bare name is never a path, so that a folder called ``gpt2`` does not take the place of the Hub's model.
    """
    if isinstance(value, list):
        return [_located(name, item) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if value.endswith("]") and (cut := re.search(r"\[:[0-9]+\]\Z", value)):  # a model's first blocks
        return _located(name, value[: cut.start()]) + cut[0]
    looks_like_path = os.sep in value or "/" in value or value.startswith((".", "~")) or value.endswith(_PATH_ENDINGS)
    with contextlib.suppress(InputError):
        path = user_path(value, name)
        if looks_like_path or name in _FOLDERS:
            return str(path.resolve()) if path.exists() else value
        if user_path(path / "config.json", name).is_file():
            logger.warning(f"{value} is taken for a model of the Hub; ./{value} names the folder of that name here.")
    return value
