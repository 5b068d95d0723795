"""``ridge``: the command line."""

import argparse
import ast
import datetime
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ridge_utils import embedded, files, notebooks, profiles
from ridge_utils.errors import InputError, StorageError, named, see, shown, user_path
from ridge_utils.run import audit, setup


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
        more = "" if profiles.INSTALLED else "\n(book/failures.md says more of what can fail)"
        print(f"error: {error}{more}", file=sys.stderr)
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
    command = add("audit", audit.main, "measure and judge what needs no training of a model, in minutes")
    audit.declare(command)
    _add_yes(command)
    command = add("reference", _reference, "run the reference profiles that are not in results/ yet", True)
    command.add_argument("names", nargs="*", metavar="PROFILE", help="default: all reference profiles")
    command.add_argument("--list", action="store_true", dest="only_list", help="show what is done and what is left")
    command.add_argument(
        "--data-dir", metavar="FOLDER", help="folder of the real data sets (default: the environment's RIDGE_DATA)"
    )
    _add_json(command, "list as JSON")
    _add_workers(command, 0)
    command = add("sweep", _sweep, "run every combination of a grid's notebooks, models, tasks and seeds")
    command.add_argument("grid", metavar="GRID", type=_path, help="a YAML file")
    command.add_argument(
        "-o", dest="folder", metavar="FOLDER", type=_path, help="folder of the results (default: runs/NAME of the grid)"
    )
    command.add_argument(
        "--add", action="store_true", help="put its audits beside the stored runs, into results/audit/"
    )
    command.add_argument("--list", action="store_true", dest="only_list", help="show what is done and what is left")
    _add_workers(command, 1)
    command = add("predict", _predict, "say where a model's ridge is expected, before anything of the targets is read")
    command.add_argument("model", metavar="MODEL", help="as a notebook's parameter model")
    command.add_argument("--task", metavar="TASK", action="append", required=True, help="may be repeated")
    command.add_argument("--task-options", metavar="YAML", default="", help="options of the tasks")
    command.add_argument("--data-dir", metavar="FOLDER", default="", help="folder of the real data sets")
    command.add_argument("-o", dest="output", metavar="FILE", type=_path, help="default: results/predictions.csv")
    _add_yes(command)
    command = add("lab", _lab, "open copies of the notebooks in JupyterLab")
    command.add_argument("folder", nargs="?", type=_path, default=Path("ridge-notebooks"), metavar="FOLDER")
    command.add_argument("--copy-only", action="store_true", help="do not open them")
    _add_json(add("list", _list, "name the notebooks"))
    _add_json(add("doctor", _doctor, "say what is here: versions, machine, cache, models, network"))
    command = add("cache", _cache, "list what the cache holds, or clear it")
    command.add_argument("--clear", action="store_true", help="remove it, but for what a running process uses")
    command.add_argument("--kind", action="append", default=[], metavar="KIND", help="only these; may be repeated")
    command.add_argument("--model", action="append", default=[], metavar="MODEL", help="only of these; may be repeated")
    command.add_argument("--older-than", default="0h", metavar="AGE", help="only what was not used for 12h, 30d or 8w")
    command.add_argument("--larger-than", type=int, default=-1, metavar="MB", help="only entries of more megabytes")
    _add_yes(command, "clear it")
    _add_json(command)
    command = add("completion", _completion, "print a shell's completion: source it in ~/.bashrc or ~/.zshrc")
    command.add_argument("shell", choices=["bash", "zsh"])
    command = add("params", _params, "show a notebook's parameters with type, default and help")
    command.add_argument("notebook", type=_notebook)
    _add_json(command)
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


def _add_json(command: argparse.ArgumentParser, does: str = "as JSON") -> None:
    command.add_argument("--json", action="store_true", help=does)


def _add_workers(command: argparse.ArgumentParser, default: int) -> None:
    command.add_argument(
        "--workers",
        metavar="N",
        type=_whole(0),
        default=default,
        help=f"Dask workers on this machine, each with a run; 0: none, one run after the other (default: {default})",
    )
    command.add_argument(
        "--scheduler", metavar="ADDRESS", default="", help="of a Dask scheduler, or its file, whose workers are used"
    )
    _add_yes(command)


def _run(options: argparse.Namespace) -> int:
    values = notebooks.parse(options.notebook, options.assignments)
    if options.profile:
        profile = profiles.load(options.profile)
        values = notebooks.profile_values(options.notebook, profile) | values
        if profile.real_data and not values.get("data_dir"):
            values["data_dir"] = profiles.data_dir(profile, os.environ.get("RIDGE_DATA", ""))
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    output = options.output or Path("runs") / f"{options.notebook}-{stamp}.ipynb"
    return _run_one(options.notebook, values, output, options.html, options.force, options.yes)


def _run_one(
    notebook: str, values: Mapping[str, Any], output: Path, html: bool = False, force: bool = False, yes: bool = False
) -> int:
    # Before what takes longer to start than the Hub has to answer.
    setup.ready(setup.models_of([(notebook, values)]), yes)
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
        print(f"error: {said if bad_input else see(said, output)}", file=sys.stderr)
        return 2 if bad_input else 1
    written = f"{output} and {plain.html(output)}" if html else output
    print(f"{notebook}: done in {seconds:.0f} s; see {written}", file=sys.stderr)
    return 0


def _reference(options: argparse.Namespace) -> int:
    from ridge_utils.run import many

    return many.reference(options)


def _sweep(options: argparse.Namespace) -> int:
    from ridge_utils.run import many

    return many.sweep_grid(options)


def _list(options: argparse.Namespace) -> int:
    titles = {name: notebooks.title(name) for name in notebooks.names()}
    if options.json:
        print(json.dumps(titles, indent=1))
        return 0
    for name, title in titles.items():
        print(f"{name:28} {title}")
    return 0


def _lab(options: argparse.Namespace) -> int:
    from ridge_utils.run import lab

    return lab.main(options.folder, options.copy_only)


def _doctor(options: argparse.Namespace) -> int:
    from ridge_utils.run import doctor

    return doctor.main(options.json)


def _cache(options: argparse.Namespace) -> int:
    from ridge_utils.run import caches

    older, larger = caches.seconds(options.older_than), options.larger_than * 10**6
    chosen = caches.choose(options.kind, options.model, older, larger)
    return caches.clear(chosen, options.yes, options.json) if options.clear else caches.show(chosen, options.json)


def _completion(options: argparse.Namespace) -> int:
    import shtab

    parser = _parser()
    for command in parser._subparsers._group_actions[0].choices.values():
        for action in command._actions:
            if action.type is _notebook:
                action.choices = notebooks.names()
            elif action.type is _path:
                action.complete = shtab.FILE
    print(shtab.complete(parser, options.shell))
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
    every = notebooks.parameters(options.notebook)
    if options.json:
        print(json.dumps([vars(p) | {"default": ast.literal_eval(p.default)} for p in every.values()], indent=1))
        return 0
    for parameter in every.values():
        print(f"{parameter.name}: {parameter.type} = {parameter.default}\n    {parameter.help}")
    return 0


def _refresh(options: argparse.Namespace) -> int:
    from ridge_utils.audit import verdicts  # imports pandas

    os.environ[verdicts.WITHOUT_AUDITS] = "1"
    for name in options.names or notebooks.names():
        print(f"{name}: measuring and executing", file=sys.stderr)
        notebooks.refresh(name, measure=not options.pages)
    return 0


def _setup(options: argparse.Namespace) -> int:
    setup.set_up(options.name, options.accept_licence)
    return 0
