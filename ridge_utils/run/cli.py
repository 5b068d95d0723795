"""``ridge``: the command line."""

import argparse
import datetime
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ridge_utils import embedded, files, notebooks, profiles
from ridge_utils.errors import InputError, StorageError, named, shown, user_path
from ridge_utils.run import setup

if TYPE_CHECKING:
    from ridge_utils.run import sweep


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors are the command's own."""

    def error(self, message: str) -> NoReturn:
        said = message if len(message) < 500 and message.isprintable() else shown(message)
        raise InputError(f"{said} (`{self.prog} --help` says what there is).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 if a notebook failed, or 2 for bad input."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ridge_utils").setLevel(logging.INFO)
    try:
        options = _parser().parse_args(arguments)
        if options.checkout:
            profiles.require_checkout(options.checkout)
        status = options.call(options)
        if sys.stdout:
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # who read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint that was reached", file=sys.stderr)
        return 130
    except (InputError, StorageError) as error:
        print(f"error: {error}\n(book/failures.md says more of what can fail)", file=sys.stderr)
        return 2
    except OSError as error:
        about = f"{named(error.filename)}: " if isinstance(error.filename, str) else ""
        print(f"error: the system refuses: {about}{error.strerror or error}", file=sys.stderr)
        return 2
    except Exception as error:
        if os.environ.get("RIDGE_DEBUG"):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        said = f"{type(error).__name__}: {named(str(error))}"
        print(
            f"error: this is a defect of ridge, please report it: {said} ({place}; RIDGE_DEBUG=1 shows all)",
            file=sys.stderr,
        )
        return 1


def _whole(least: int) -> Callable[[str], int]:
    """What reads an option that is a whole number from ``least`` to 1024."""

    def number(text: str) -> int:
        if not re.fullmatch(r"\d{1,4}", text) or not least <= int(text) <= 1024:
            raise argparse.ArgumentTypeError(f"it must be a whole number from {least} to 1024, but is {shown(text)}")
        return int(text)

    return number


def _path(text: str) -> Path:
    """What reads an option that is a path."""
    try:
        return user_path(text, "An option")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _notebook(text: str) -> str:
    """What reads an option that names a notebook."""
    try:
        return notebooks.find(text).stem
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ridge", description="Run the notebooks of the book with your own parameters.")
    parser.set_defaults(call=lambda _: parser.print_help() or 0, checkout="")
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(
        name: str, call: Callable[[argparse.Namespace], int], does: str, checkout: bool = False
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=does)
        command.set_defaults(call=call, checkout=f"`ridge {name}`" if checkout else "")
        return command

    command = add("run", _run, "execute a notebook headless")
    command.add_argument("notebook", type=_notebook, help="its name, as `ridge list` shows it")
    command.add_argument(
        "-p", dest="assignments", metavar="NAME=VALUE", action="append", default=[], help="a parameter; may be repeated"
    )
    command.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        type=_path,
        help="the executed notebook (default: runs/NAME-DATE-TIME.ipynb)",
    )
    command.add_argument(
        "--profile",
        metavar="FILE",
        help="a named set of parameters: a YAML file, or the name of one in notebooks/profiles; -p overrides it",
    )
    command.add_argument("--html", action="store_true", help="write it as one HTML page beside the notebook as well")
    command.add_argument(
        "--force", action="store_true", help="what stands at the output's names and no run wrote is moved to NAME~"
    )
    _add_yes(command)
    command = add("reference", _reference, "run the reference profiles that are not in results/ yet", True)
    command.add_argument("names", nargs="*", metavar="PROFILE", help="default: all reference profiles")
    command.add_argument("--list", action="store_true", dest="only_list", help="show what is done and what is left")
    command.add_argument(
        "--data-dir", metavar="FOLDER", help="folder of the real data sets (default: the environment's RIDGE_DATA)"
    )
    _add_workers(command, 0)
    command = add("sweep", _sweep, "run every combination of a grid's notebooks, models, tasks and seeds")
    command.add_argument("grid", metavar="GRID", type=_path, help="a YAML file")
    command.add_argument(
        "-o", dest="folder", metavar="FOLDER", type=_path, help="folder of the results (default: runs/NAME of the grid)"
    )
    command.add_argument("--list", action="store_true", dest="only_list", help="show what is done and what is left")
    _add_workers(command, 1)
    build = add("book", _book, "execute the notebooks that have changed and build the book", True)
    check = add("check", _check, "compare the committed notebooks with what they give when executed", True)
    for command in (build, check):
        command.add_argument(
            "names", nargs="*", type=_notebook, metavar="NOTEBOOK", help="take these, whether they need it or not"
        )
        command.add_argument("--jobs", metavar="N", type=_whole(1), default=2, help="notebooks at a time (default: 2)")
    command = add("predict", _predict, "say where a model's ridge is expected, before anything of the targets is read")
    command.add_argument("model", metavar="MODEL", help="as a notebook's parameter model")
    command.add_argument("--task", metavar="TASK", action="append", required=True, help="may be repeated")
    command.add_argument("--task-options", metavar="YAML", default="", help="options of the tasks")
    command.add_argument("--data-dir", metavar="FOLDER", default="", help="folder of the real data sets")
    command.add_argument("-o", dest="output", metavar="FILE", type=_path, help="default: results/predictions.csv")
    _add_yes(command)
    add("list", _list, "name the notebooks")
    command = add("forget", _forget, "take an audit that was added with add=true out of results/audit/ again", True)
    command.add_argument("name", metavar="NAME", help="its folder there, as the audit's run says it")
    command = add("params", _params, "show a notebook's parameters with type, default and help")
    command.add_argument("notebook", type=_notebook)
    command = add("refresh", _refresh, "maintainers: measure the stored numbers anew, notebook by notebook", True)
    command.add_argument("names", nargs="*", type=_notebook, metavar="NOTEBOOK", help="default: all")
    command.add_argument("--pages", action="store_true", help="leave results/ alone and execute the notebooks only")
    command = add("setup", _setup, "put an embedded model into the cache")
    command.add_argument(
        "name",
        nargs="?",
        choices=[*embedded.MODELS],
        metavar="NAME",
        default=embedded.DEFAULT,
        help=f"one of {', '.join(embedded.MODELS)} (default: {embedded.DEFAULT})",
    )
    command.add_argument(
        "--accept-licence", action="store_true", help="accept the terms of the model, where it has some, unasked"
    )
    return parser


def _add_yes(command: argparse.ArgumentParser, does: str = "fetch an embedded model that is not here yet") -> None:
    command.add_argument("-y", "--yes", action="store_true", help=f"{does}, unasked")


def _add_workers(command: argparse.ArgumentParser, default: int) -> None:
    command.add_argument(
        "--workers",
        metavar="N",
        type=_whole(0),
        default=default,
        help=f"Dask workers on this machine, each with a run; 0: none, one run after the other (default: {default})",
    )
    command.add_argument(
        "--scheduler", metavar="ADDRESS", default="", help="of a Dask scheduler whose workers are used instead"
    )
    _add_yes(command)


def _run(options: argparse.Namespace) -> int:
    values = notebooks.parse(options.notebook, options.assignments)
    if options.profile:
        profile = profiles.load(options.profile)
        values = notebooks.profile_values(options.notebook, profile) | values
        if profile.real_data and not values.get("data_dir"):
            values["data_dir"] = _data_dir(profile, os.environ.get("RIDGE_DATA", ""))
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    output = options.output or Path("runs") / f"{options.notebook}-{stamp}.ipynb"
    return _run_one(options.notebook, values, output, options.html, options.force, options.yes)


def _run_one(
    notebook: str, values: Mapping[str, Any], output: Path, html: bool = False, force: bool = False, yes: bool = False
) -> int:
    # Before what takes longer to start than the Hub has to answer.
    setup.ready(_models([(notebook, values)]), yes)
    import papermill
    from nbclient.exceptions import DeadKernelError

    from ridge_utils.run import plain

    print(f"{notebook}: running, into {output}", file=sys.stderr)
    if html:
        files.claim(output.with_suffix(".html"), ".html", force)
    try:
        seconds = notebooks.run(notebook, values, output, force=force, finish=plain.finish)
    except (DeadKernelError, papermill.PapermillExecutionError) as error:
        bad_input, said = notebooks.is_of_input(error), notebooks.failure(notebook, error)
        print(f"error: {said if bad_input else _see(said, output)}", file=sys.stderr)
        return 2 if bad_input else 1
    see = f"{output} and {plain.html(output)}" if html else output
    print(f"{notebook}: done in {seconds:.0f} s; see {see}", file=sys.stderr)
    return 0


def _models(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The models of runs of notebooks with parameters."""
    every = [(notebooks.defaults(notebook) | values).get("model") for notebook, values in runs]
    return [model for model in every if model]


def _see(said: str, path: Path) -> str:
    """A sentence with the file that says more, where it could be written."""
    return f"{said.removesuffix('.')}; see {path}" if path.exists() else said


def _data_dir(profile: profiles.Profile, folder: str) -> str:
    """The absolute path of the folder of the real data, which a profile needs."""
    if not folder:
        raise InputError(
            f"The profile {profile.name!r} reads the real data: give their folder with --data-dir (ridge reference), "
            "-p data_dir=FOLDER (ridge run) or RIDGE_DATA, laid out as the page on re-running says."
        )
    return str(user_path(folder, "The folder of the real data").resolve())


def _reference(options: argparse.Namespace) -> int:
    from ridge_utils import results
    from ridge_utils.run import sweep

    chosen = [profiles.load(name) for name in options.names] or profiles.references()
    for profile in chosen:
        if not profile.reference or profile.folder != profiles.FOLDER.resolve():
            raise InputError(
                f"The profile {profile.name!r} is not a reference profile, so its tables do not belong in results/: "
                f"run it with `ridge run NOTEBOOK --profile {profile.name}`."
            )
    data_dir = options.data_dir or os.environ.get("RIDGE_DATA", "")
    runs = []
    for profile in chosen:
        for notebook in profile.notebooks:
            values = notebooks.profile_values(notebook, profile)
            table = results.FOLDER / "reference" / profile.name / f"{notebook}.csv"
            output = Path("runs").absolute() / "reference" / profile.name / f"{notebook}.ipynb"
            if profile.real_data:
                values["data_dir"] = "given"
            run = sweep.Run(f"{profile.name}/{notebook}", notebook, values, table, output)
            if profile.real_data and not options.only_list and not sweep.is_done(run):
                # Refused before the first of many hours.
                run = replace(run, parameters={**values, "data_dir": _data_dir(profile, data_dir)})
            runs.append(run)
    return _work(runs, "reference runs", options)


def _sweep(options: argparse.Namespace) -> int:
    from ridge_utils.run import sweep

    folder = options.folder or Path("runs") / options.grid.stem
    grid = sweep.load(options.grid, folder)
    if not options.only_list:
        files.claim(folder / "table.csv", ".csv")  # before the first of many hours
    status = _work(grid.runs, "runs", options, grid.resources)
    table = sweep.combine(grid.runs, folder / "table.csv", grid=grid.title)
    if len(table):
        print(f"All measurements of the runs that are done: {folder / 'table.csv'}.")
        summary = sweep.compare(table, folder)
        if len(summary):
            shown = summary[
                ["run", "step", "blocks", "ridge_layer", "has_ridge", "at_ridge", "at_last_block", "at_final_norm"]
            ]
            print(shown.to_string(index=False, float_format="{:.3f}".format))
            print(f"The runs side by side: {folder / 'comparison.csv'}, drawn in {folder / 'comparison.png'}.")
    return status


def _work(
    runs: Sequence["sweep.Run"], what: str, options: argparse.Namespace, resources: Mapping[str, float] | None = None
) -> int:
    """Execute runs and print a line for each."""
    from ridge_utils.run import sweep

    done = [sweep.is_done(run) for run in runs]
    for run, stored in zip(runs, done, strict=True):
        print(f"{'done' if stored else 'left':5} {run.name}")
    print(f"{sum(done)} of {len(runs)} {what} are done.", flush=True)
    if options.only_list or all(done):
        return 0
    left = [run for run, stored in zip(runs, done, strict=True) if not stored]
    if not options.scheduler:  # its workers may have what cannot be reached from here
        setup.ready(_models((run.notebook, run.parameters) for run in left), options.yes)
    outcomes: list[sweep.Outcome] = []
    for outcome in sweep.work(left, workers=options.workers, scheduler=options.scheduler, resources=resources):
        outcomes.append(outcome)
        seconds = sweep.time_left(outcomes, len(left) - len(outcomes), options.workers)
        remaining = f"; about {datetime.timedelta(seconds=round(seconds))} left" if seconds else ""
        count = f"[{len(outcomes)}/{len(left)}]"
        print(f"{count} {outcome.status:6} {outcome.seconds:6.0f} s  {outcome.run.name}{remaining}", flush=True)
        if outcome.status == "failed":
            print(f"    {_see(outcome.reason, outcome.run.error)}", file=sys.stderr)
    failed = [outcome.run.name for outcome in outcomes if outcome.status == "failed"]
    if failed:
        print(f"error: {len(failed)} of {len(left)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _book(options: argparse.Namespace) -> int:
    from ridge_utils.run import book

    return book.main(options.names, options.jobs)


def _check(options: argparse.Namespace) -> int:
    from ridge_utils.run import check

    return check.main(options.names, options.jobs)


def _list(_options: argparse.Namespace) -> int:
    for name in notebooks.names():
        print(f"{name:28} {notebooks.title(name)}")
    return 0


def _forget(options: argparse.Namespace) -> int:
    from ridge_utils.audit import verdicts

    verdicts.forget(options.name)
    return 0


def _predict(options: argparse.Namespace) -> int:
    given = profiles.parse_yaml(options.task_options, "--task-options") if options.task_options else {}
    if not isinstance(given, dict):
        raise InputError(f"--task-options must be a mapping, but is {shown(given)}.")
    setup.ready([options.model], options.yes)
    from ridge_utils.audit import predictions

    files.claim(path := options.output or predictions.FILE, ".csv")
    data = str(user_path(options.data_dir, "The folder of the real data").resolve()) if options.data_dir else ""
    table = predictions.run(options.model, options.task, options=given, data_dir=data, path=path)
    said = ["model", "task", "source", "blocks", "ridge_layer", "ridge_depth", "ridge_layer_to_last", "falls"]
    print(table[said].to_string(index=False, float_format="{:.2f}".format))
    print(f"Stored in {path}: commit it before anything is measured.")
    return 0


def _params(options: argparse.Namespace) -> int:
    for parameter in notebooks.parameters(options.notebook).values():
        print(f"{parameter.name}: {parameter.type} = {parameter.default}\n    {parameter.help}")
    return 0


def _refresh(options: argparse.Namespace) -> int:
    for name in options.names or notebooks.names():
        print(f"{name}: measuring and executing", file=sys.stderr)
        notebooks.refresh(name, measure=not options.pages)
    return 0


def _setup(options: argparse.Namespace) -> int:
    setup.set_up(options.name, options.accept_licence)
    return 0
