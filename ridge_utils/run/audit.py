"""``ridge audit``: everything that can be asked of a model without training it, in one command.

The notebook of the same name is run once a task. What it measured may be added to ``results/audit/``, where the pages
that judge and compare the stored runs find it, and taken out again.
"""

import argparse
import contextlib
import csv
import inspect
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ridge_utils import cache, files, names, notebooks, profiles, tasks
from ridge_utils.errors import InputError, TooFewExamplesError, named, shown, user_path
from ridge_utils.run import plain, setup

NOTEBOOK = "audit"
TASK = "synthetic_arithmetic"


def declare(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    command.add_argument("model", metavar="MODEL", help="as a notebook's parameter model")
    command.add_argument("--task", metavar="TASK", action="append", help=f"may be repeated (default: {TASK})")
    command.add_argument("--task-options", metavar="YAML", help="options of the tasks")
    command.add_argument("--data-dir", metavar="FOLDER", help="folder of the real data sets")
    command.add_argument("--n", metavar="N", help="examples per split (default: 500, or as many as there are)")
    command.add_argument("--device", help="cpu (the default), auto, cuda or mps")
    command.add_argument(
        "-p", dest="assignments", metavar="NAME=VALUE", action="append", default=[], help="another parameter of `audit`"
    )
    command.add_argument("-o", dest="output", metavar="FOLDER", default="runs/audit", help="default: runs/audit")
    command.add_argument("--add", action="store_true", help="put it beside the stored runs, into results/audit/")
    command.add_argument("--remove", action="store_true", help="take the model's audits out of results/audit/ again")


def main(options: argparse.Namespace) -> int:
    """Audit the model on each of the tasks, or take its audits out; the exit status, 1 if a run failed."""
    if options.add or options.remove:
        profiles.require_checkout(f"`ridge audit --{'remove' if options.remove else 'add'}`")
    if options.remove:
        return _remove(options.model, options.task)
    given = [_parameters(options, task) for task in dict.fromkeys(options.task or [TASK])]
    setup.ready([values["model"] for values in given], options.yes)
    # What takes long to import comes after what is soon refused.
    import pandas as pd

    from ridge_utils import results
    from ridge_utils.audit import verdict_page, verdicts
    from ridge_utils.run import sweep

    folder = user_path(options.output, "The output")
    runs = [sweep.Run(name, NOTEBOOK, values, *_files(folder, name)) for name, values in map(_with_examples, given)]
    pages, judged, failed = [], [], []
    for run in runs:
        files.claim(run.output.with_suffix(".html"), ".html")
        if _has_changed(run.parameters, run.table):
            run.table.unlink()
        print(f"{run.name}: {run.parameters['n_examples']} examples a split, into {run.output.parent}", file=sys.stderr)
        outcome = sweep.execute(run, quiet=False)
        if outcome.status == "failed":
            failed.append(run.name)
            print(f"error: {outcome.reason}", file=sys.stderr)
            continue
        took = f"done in {outcome.seconds:.0f} s" if outcome.status == "done" else "done before"
        print(f"{run.name}: {took}", file=sys.stderr)
        pages.append(plain.html(run.output))
        table, origin = results.read(run.table)
        judged.append(verdicts.judge({NOTEBOOK: {run.name: (table, origin)}}))
        if options.add:
            _add(run.name, table, origin, pages[-1])
    if judged:
        found = pd.concat(judged, ignore_index=True)
        _show(verdict_page.summary(found))
        print(f"Not measured: {', '.join(verdicts.not_measured(found)) or 'nothing'}.")
        print("Open:", *pages, sep="\n  ")
    if judged and options.add:
        print(
            "`ridge run verdicts --html` judges it beside the stored runs; the same command with --remove takes it out."
        )
    if failed:
        print(f"error: {len(failed)} of {len(runs)} audits failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _show(texts: Any) -> None:
    """Print a table of texts as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*texts.columns, box=None, pad_edge=False)
    for row in texts.itertuples(index=False):
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def _parameters(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """The notebook's parameters, checked; those of ``-p`` come last. A data folder goes to the tasks that read one."""
    flags = {
        "model": options.model,
        "task": task,
        "task_options": options.task_options,
        "n_examples": options.n,
        "device": options.device,
    }
    if len(options.task or []) < 2 or "data_dir" in _options(task):
        flags["data_dir"] = options.data_dir
    assignments = [f"{name}={value}" for name, value in flags.items() if value]
    values = notebooks.parse(NOTEBOOK, [*assignments, *options.assignments])
    if "save_table" in values:
        raise InputError("The table of an audit goes beside its notebook: give the folder of both with -o.")
    notebooks.consistent(NOTEBOOK, values)
    return values


def _options(task: str) -> Mapping[str, Any]:
    return inspect.signature(tasks.TASKS[task].load).parameters if task in tasks.TASKS else {}


def _with_examples(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A run's name, and its parameters with a number of examples that the task has, where none was asked for."""
    from ridge_utils import study
    from ridge_utils.audit import anatomy

    every = {**notebooks.defaults(NOTEBOOK), **values}
    n = every["n_examples"]
    anatomy.check(n)
    try:
        drawn = [study.draw(every, split, n, "n_examples") for split in ("id", "ood")]
    except TooFewExamplesError:
        if "n_examples" in values:
            raise
        drawn = [study.draw(every, split, None, "task") for split in ("id", "ood")]
        n = min(map(len, drawn))
        anatomy.check(n)
    source = drawn[0][0].source
    parts = [names.title(every["model"]), tasks.title(every["task"], every["task_options"])]
    parts += [source] if source in ("hub", "local") else []
    return files.name("-".join(parts)), values | {"n_examples": n}


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    """Table and notebook of a run."""
    return folder.absolute() / name / f"{NOTEBOOK}.csv", folder.absolute() / name / f"{NOTEBOOK}.ipynb"


def _has_changed(values: Mapping[str, Any], table: Path) -> bool:
    """Whether a file of the model or of the task was written after the table was."""
    given = [Path(path) for path in (names.split(values["model"])[0], values["task"]) if Path(path).is_absolute()]
    parts = [part for path in given for part in ([path, *path.rglob("*")] if path.is_dir() else [path])]
    return table.exists() and any(part.stat().st_mtime > table.stat().st_mtime for part in parts if part.exists())


def _add(name: str, table: Any, origin: Mapping[str, Any], page: Path) -> None:
    """Put an audit into ``results/audit/``, with its page beside it and without the folders that its files lie in."""
    from ridge_utils import results

    folder = results.FOLDER / NOTEBOOK / name
    target = folder / f"{NOTEBOOK}.html"
    files.claim(target, ".html")
    with files.scratch(folder) as made:
        shutil.copyfile(page, made / target.name)
        files.replace(made, target)
    parameters = dict(origin["parameters"])
    parameters |= {"model": names.title(parameters["model"]), "task": tasks.title(parameters["task"])}
    results.write(table, folder / f"{NOTEBOOK}.csv", {**origin, "parameters": parameters})
    print(f"Added to {folder}.")


def _remove(model: str, chosen: Sequence[str] | None) -> int:
    """Take a model's audits out of ``results/audit/``, all or those on some tasks, and what was saved beside them."""
    added = _added()
    title, titles = names.title(model), [tasks.title(task) for task in chosen or []]
    found = [
        folder
        for folder, (of_model, task) in added.items()
        if of_model == title and (not titles or {task, task.partition(":")[0]} & set(titles))
    ]
    if not found:
        where = f" on {' or '.join(map(named, titles))}" if titles else ""
        there = ", ".join(f"{named(of_model)} on {named(task)}" for of_model, task in added.values())
        raise InputError(f"No audit of {shown(title)}{where} is in results/audit: there is {there or 'none'}.")
    for folder in found:
        with cache.storage_errors(folder):
            for table in _tables(folder):
                for path in (table.with_suffix(".html"), table, table.with_suffix(".json")):
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in it
                folder.rmdir()
        print(f"Removed {folder.name} from results/audit.")
    return 0


def _added() -> dict[Path, tuple[str, str]]:
    """The folders in ``results/audit/`` that hold tables of ours, with the model and the task of their first row."""
    from ridge_utils import results

    added = {}
    for folder in sorted((results.FOLDER / NOTEBOOK).glob("*")):
        for table in _tables(folder)[:1] if folder.is_dir() and not folder.is_symlink() else ():
            with table.open(encoding="utf-8", newline="") as file:
                row = next(csv.DictReader(file), {})
            added[folder] = row.get("model", ""), row.get("task", "")
    return added


def _tables(folder: Path) -> list[Path]:
    """The tables in a folder that a run wrote."""
    tables = []
    for table in sorted(folder.glob("*.csv")):
        with contextlib.suppress(InputError):
            files.claim(table, ".csv")
            tables.append(table)
    return tables
