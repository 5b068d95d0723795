"""Many runs: notebooks x models x tasks x seeds, on the workers of Dask.

A grid is a YAML file::

    title: The paper's models on two tasks
    notebooks:                     # each with parameters of its own, or none
      predictive_information: {}
      attention: {n_samples: 100}
    models: [gpt2, gpt2-medium]
    tasks: [clutrr, ecqa]
    seeds: [0, 1, 2]               # training seeds, one run each
    parameters: {steps: 200}       # for every notebook that declares them
    overrides:                     # for the runs of one model or task
      gpt2-medium: {batch_size: 8}
    resources: {GPU: 1}            # what a run needs of a Dask worker that offers it
    expected: {hardware: one A100, time: 30 hours}

Every run has its folder, with the executed notebook, its table and its provenance; of one that failed the traceback is
kept. What is done is known by its table, so that a sweep that was killed goes on where it was, and several sweeps can
share a folder or a cache. The workers are processes of this machine, or those of any scheduler that Dask can reach:
Dask's own projects start them on Slurm, Kubernetes or over SSH. They need this package and the files that the grid
names; where a worker does not see the grid's folder, what its runs write comes back through Dask.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import platform
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import filelock
import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ridge_utils import cache, files, notebooks, profiles, results
from ridge_utils.errors import InputError, StorageError, read_text
from ridge_utils.run import plain

if TYPE_CHECKING:
    from distributed import Client

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
#: Which parameter each list of a grid sets.
_AXES = {"models": "model", "tasks": "task", "seeds": "training_seeds"}


@dataclass(frozen=True)
class Run:
    """One notebook with its parameters, and where its results go."""

    #: unique within a sweep; also the name of its folder
    name: str
    notebook: str
    parameters: Mapping[str, Any]
    #: CSV file of its table
    table: Path
    #: the executed notebook
    output: Path

    @property
    def error(self) -> Path:
        """The file with the traceback, if it failed."""
        return self.output.with_suffix(".error.txt")


@dataclass(frozen=True)
class Outcome:
    """What became of a run; ``reason`` says why one failed."""

    run: Run
    #: ``done`` just now, ``stored`` before, or ``failed``
    status: Literal["done", "stored", "failed"]
    seconds: float = 0.0
    reason: str = ""


def _different(values: list[Any]) -> list[Any]:
    if len({json.dumps(value) for value in values}) != len(values):
        raise ValueError("a value stands twice")
    return values


_Axis = Annotated[
    list[Any], AfterValidator(_different), Field(max_length=1000, description="a list of 1000 different values at most")
]


class _File(BaseModel):
    """What a grid's file may hold: parameters by notebook, values of the axes, parameters of all, by model or task."""

    model_config = ConfigDict(extra="forbid", strict=True)
    title: profiles.Text = ""
    notebooks: profiles.ByNotebook
    models: _Axis = []
    tasks: _Axis = []
    seeds: _Axis = []
    parameters: profiles.Values = {}
    overrides: Annotated[dict[str, dict[str, Any]], Field(description="parameters by model or task")] = {}
    resources: Annotated[
        dict[str, Annotated[float, Field(ge=0, le=1e6)]], Field(description="a mapping of resources to numbers")
    ] = {}
    expected: profiles.Values = {}


@dataclass(frozen=True)
class Grid:
    """Runs that belong together, and what each needs of a worker."""

    #: the file's name without its ending
    name: str
    title: str
    runs: list[Run]
    resources: dict[str, float] = field(default_factory=dict)


def load(path: Path, folder: Path) -> Grid:
    """Read a grid and make its runs, each with a folder in ``folder``; every parameter is checked for name and type."""
    content = profiles.read(path, "grid", _File)
    axes = {key: getattr(content, key) for key in _AXES if getattr(content, key)}
    if twice := sorted(set(content.parameters) & {_AXES[key] for key in axes}):
        raise InputError(f"In the grid {path}, {twice[0]!r} is set by a list and among the parameters: keep one.")
    known_names = {*map(str, content.models), *map(str, content.tasks)}
    if unknown := sorted(set(content.overrides) - known_names):
        raise InputError(f"In the grid {path}, 'overrides' names {unknown[0]!r}, which is none of its models or tasks.")
    anywhere = {name for notebook in content.notebooks for name in notebooks.parameters(notebook)}
    if unknown := sorted({name for values in content.overrides.values() for name in values} - anywhere):
        raise InputError(f"The overrides of the grid {path} set {unknown[0]!r}, which none of its notebooks declares.")
    runs: dict[str, Run] = {}
    for notebook in content.notebooks:
        # A notebook that trains nothing has no seeds: it is run once.
        declared = notebooks.parameters(notebook)
        varied = {key: values for key, values in axes.items() if _AXES[key] in declared}
        if (count := math.prod(map(len, varied.values()))) > 10_000:
            raise InputError(f"The grid {path} makes {count:,} runs of {notebook}, more than 10,000: shorten a list.")
        for combination in itertools.product(*varied.values()):
            point = dict(zip(varied, combination, strict=True))
            chosen = {_AXES[key]: [value] if key == "seeds" else value for key, value in point.items()}
            profile = profiles.Profile(path.stem, "", content.notebooks, {**content.parameters, **chosen})
            values = notebooks.profile_values(notebook, profile)
            for value in point.values():
                overrides = content.overrides.get(str(value), {})
                values |= notebooks.from_file(notebook, {k: v for k, v in overrides.items() if k in declared})
            notebooks.consistent(notebook, values)
            name = _name(notebook, point)
            place = folder.absolute() / name
            if name in runs:
                raise InputError(
                    f"Two runs of the grid {path} would share the folder {name!r}: rename a model or task."
                )
            runs[name] = Run(name, notebook, values, place / "table.csv", place / "notebook.ipynb")
    return Grid(path.stem, content.title or path.stem, list(runs.values()), content.resources)


def is_done(run: Run) -> bool:
    """Whether a run's table is there, whole, and made with its parameters."""
    if not run.table.exists():
        return False
    try:
        return results.same_parameters(
            {**notebooks.defaults(run.notebook), **run.parameters}, results.read(run.table)[1]
        )
    except StorageError:
        return False


def execute(run: Run, quiet: bool = True) -> Outcome:
    """Execute a run, unless it is done; what goes wrong is written beside it and told, not raised.

    Two processes never execute the same run at once: the second waits, and finds it done.
    """
    started = time.monotonic()
    try:
        with cache.storage_errors(run.output.parent):
            run.output.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(run.output.with_suffix(".lock")):
            if is_done(run):
                return Outcome(run, "stored")
            extra = {"save_table": str(run.table), "compare": False}
            known = notebooks.parameters(run.notebook)
            values = {**run.parameters, **{name: value for name, value in extra.items() if name in known}}
            notebooks.run(run.notebook, values, run.output, quiet, finish=plain.finish)
            run.error.unlink(missing_ok=True)
    except Exception as error:  # whatever it is, the other runs go on
        _note(run, error)
        return Outcome(run, "failed", time.monotonic() - started, notebooks.failure(run.notebook, error))
    return Outcome(run, "done", time.monotonic() - started)


def away(
    call: Callable[[Run, bool], Outcome], run: Run, quiet: bool, mark: Path, needed: Sequence[str] = ()
) -> tuple[Outcome, dict[str, bytes]]:
    """Call on a worker, which may not see the client's disk: then what the run wrote is given as well.

    ``mark`` is a folder that lies where the runs write, and ``needed`` are the files that the run reads; without one of
    them it fails at once.
    """
    if missing := _missing(needed):
        where = f"the worker on {platform.node()} does not see {missing[0]}"
        return Outcome(run, "failed", 0.0, f"{where}: put it into a shared folder, or there under the same path"), {}
    if os.access(mark, os.W_OK):
        return call(run, quiet), {}
    with tempfile.TemporaryDirectory() as folder:
        here = replace(run, table=Path(folder, run.table.name), output=Path(folder, run.output.name))
        outcome = replace(call(here, quiet), run=run)
        paths = [here.error, here.output, here.table.with_suffix(".json"), here.table]
        there = str(run.output.parent).encode()
        written = {path.name: path.read_bytes().replace(folder.encode(), there) for path in paths if path.exists()}
        return outcome, written


def _missing(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]  # noqa: PTH110  # of a text that is too long as well


def _needed(run: Run) -> list[str]:
    """The files and folders that a run's parameters name: those that are here are absolute paths."""
    texts = {value.partition("[:")[0] for value in run.parameters.values() if isinstance(value, str)}
    absolute = {text for text in texts if text.startswith(os.sep)}
    return sorted(absolute - {*_missing(absolute)})


def _take(run: Run, written: Mapping[str, bytes]) -> None:
    """Put what a run has written elsewhere where it would be had it been written here."""
    with files.scratch(run.output.parent) as made:
        for name, content in written.items():
            (made / name).write_bytes(content)
        files.replace(made, *(path for path in (run.error, run.output) if path.name in written))
        if run.table.name in written:
            table, origin = results.read(made / run.table.name)
            results.write(table, run.table, origin)  # of which its place is a part


def _note(run: Run, error: BaseException) -> None:
    """Write what went wrong beside a run, where there is room: the outcome tells it in a sentence anyway."""
    with contextlib.suppress(StorageError):
        cache.write_text(run.error, _ANSI.sub("", "".join(traceback.format_exception(error))))


def work(
    runs: Sequence[Run],
    *,
    workers: int = 0,
    scheduler: str = "",
    resources: Mapping[str, float] | None = None,
    call: Callable[[Run, bool], Outcome] = execute,
) -> Iterator[Outcome]:
    """Execute runs on Dask's workers and tell of each when it ends.

    A worker that is killed takes its run with it; the run is begun again on another, three times before it counts as
    failed.

    Runs that are done are told of first and not executed. The cores are shared among ``workers`` processes of this
    machine; with 0 the runs are executed in this process one after the other, and show their progress. ``scheduler`` is
    the address of a Dask scheduler to use in place of this machine, ``resources`` what each run needs of a worker.
    """
    left = []
    for run in runs:
        if is_done(run):
            yield Outcome(run, "stored")
        else:
            left.append(run)
    if workers == 0 and not scheduler:
        yield from (call(run, False) for run in left)
        return
    if not left:
        return
    # All runs of a sweep lie in one folder.
    shared = Path(os.path.commonpath([run.output.parent for run in left]))
    with _client(workers, scheduler, resources) as client, files.scratch(shared) as mark:
        from distributed import KilledWorker, as_completed

        quiet = bool(scheduler) or workers > 1
        # A key of its own each time: a scheduler that others use as well would give back what it has under the same.
        stamp, waiting = time.time_ns(), list(left)
        flying: dict[Any, Run] = {}
        ended = as_completed()

        def submit() -> None:
            # No more than there is room for: what waits at a worker that is killed would be blamed for it as well.
            while waiting and len(flying) < max(1, sum(client.nthreads().values())):
                run = waiting.pop(0)
                key = f"{run.name}-{stamp}"
                given = call, run, quiet, mark, _needed(run)
                future = client.submit(away, *given, key=key, pure=False, resources=resources or None)
                flying[future] = run
                ended.add(future)

        submit()
        for future in ended:
            run = flying.pop(future)
            if future.cancelled():
                raise InputError(
                    f"The Dask scheduler {scheduler!r} is gone; once there is one again, the same command goes on from "
                    "what is done."
                )
            error = future.exception()
            if error is None:
                outcome, written = future.result()
                if written:
                    _take(run, written)
            else:
                _note(run, error)
                lost = isinstance(error, KilledWorker)
                outcome = Outcome(
                    run, "failed", 0.0, "its worker was lost" if lost else notebooks.failure(run.notebook, error)
                )
            future.release()
            submit()
            yield outcome


def combine(runs: Sequence[Run], path: Path, **more: Any) -> pd.DataFrame:
    """One tidy table of the runs that are done, with their names in the columns ``run`` and ``notebook``.

    It is written to the CSV file ``path``; its provenance, which says ``more`` too, holds that of every run. Where no
    run is done it is empty.
    """
    tables, origins = [], {}
    for run in filter(is_done, runs):
        table, origins[run.name] = results.read(run.table)
        tables.append(table.assign(run=run.name, notebook=run.notebook))
    if not tables:
        return pd.DataFrame()
    joined = pd.concat(tables, ignore_index=True)
    names = ["run", "notebook"]
    joined = joined[[*names, *(column for column in joined if column not in names)]]
    results.write(joined, path, {**more, "runs": origins})
    return joined


def compare(table: pd.DataFrame, folder: Path, quantity: str = "predictive_information") -> pd.DataFrame:
    """The ridges of a sweep's runs side by side, as ``comparison.csv`` and, with the profiles, ``comparison.png``.

    ``table`` is what :func:`combine` gives. The quantity is compared over both samples together, a row per run and
    checkpoint, as :func:`ridge_utils.statistics.ridge_summary` has it; runs that did not measure it are left out.
    """
    from ridge_utils import figures, statistics

    rows = table[(table["quantity"] == quantity) & (table["split"] == "all")]
    if rows.empty:
        return pd.DataFrame()
    by_run = rows.groupby("run", sort=False)
    summaries = [statistics.ridge_summary(of_run, quantity).assign(run=run) for run, of_run in by_run]
    summary = pd.concat(summaries, ignore_index=True)
    summary = summary[["run", *summary.columns.drop(["run", "split"])]]
    text, names = summary.to_csv(index=False), [folder / "comparison.csv", folder / "comparison.png"]
    for path in names:
        files.claim(path, path.suffix, mark=text.partition("\n")[0])
    with files.scratch(folder) as made:
        (made / "comparison.csv").write_text(text, encoding="utf-8", newline="")
        last = rows["step"] == rows.groupby("run")["step"].transform("max")
        shown = rows[last | (rows["step"] == 0)]
        shown = shown.assign(
            run=shown["run"].str.partition("--")[2].where(shown["run"].str.contains("--"), shown["run"]),
            checkpoint=shown["step"].map(lambda step: "last checkpoint" if step else "untouched"),
        )
        # No more curves than can be told apart.
        shown = shown[shown["run"].isin(shown["run"].unique()[: len(figures.HUES)])]
        figures.style()
        figure = figures.profiles(shown, quantity, panels="checkpoint", curves="run")
        figure.savefig(made / "comparison.png", dpi=150)
        files.replace(made, *names)
    return summary


def time_left(outcomes: Sequence[Outcome], left: int, workers: int) -> float | None:
    """Seconds until the last of ``left`` runs, if they take as long as those that were done; None if none was."""
    took = [outcome.seconds for outcome in outcomes if outcome.status == "done"]
    return sum(took) / len(took) * left / max(1, workers) if took else None


@contextlib.contextmanager
def _client(workers: int, scheduler: str, resources: Mapping[str, float] | None) -> "Iterator[Client]":
    try:
        import dask
        import distributed
    except ImportError:
        raise InputError("A sweep needs Dask: pip install 'ridge-utils[sweep]', or make setup.") from None
    # What Dask has to say, with times and tracebacks, an outcome or an error here says in a sentence.
    for own in ("distributed", "distributed.client", "distributed.gc"):  # those with a level of their own
        logging.getLogger(own).setLevel(logging.CRITICAL)
    if scheduler:
        try:
            address = scheduler
            if scheduler.endswith(".json"):
                address = json.loads(read_text(Path(scheduler), "The scheduler's file"))["address"]
            client = distributed.Client(address, timeout=10)
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = " ".join(str(error).split())
            raise InputError(f"The Dask scheduler {scheduler!r} does not answer: {message}.") from error
        with client:
            yield client
        return
    if workers < 0:
        raise InputError(f"workers must be 0 or more, but is {workers}.")
    threads = max(1, (os.cpu_count() or 1) // workers)
    with (
        # Its nanny replaces a worker that is killed. Where that takes longer than this, as on a busy machine it does by
        # default, Dask takes the nanny away too, and the sweep would wait for ever.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"}),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # any port, for the usual one may be another sweep's
            memory_limit=0,  # the memory is the notebook's, in a process of its own that Dask does not see
            resources=dict(resources or {}),
            silence_logs=logging.CRITICAL,
            env={
                "OMP_NUM_THREADS": str(threads),
                "TOKENIZERS_PARALLELISM": "false",
                "DASK_LOGGING__DISTRIBUTED": "error",  # of the workers, which would note each step of their lives
            },
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _name(notebook: str, point: Mapping[str, Any]) -> str:
    """A folder's name that says which run it is."""
    parts = [notebook, *(f"seed-{value}" if key == "seeds" else Path(str(value)).name for key, value in point.items())]
    return files.name("--".join(parts))
