"""``ridge reference`` and ``ridge sweep``: many runs, and a line for each."""

import argparse
import datetime
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ridge_utils import files, notebooks, profiles, results
from ridge_utils.errors import InputError, see
from ridge_utils.run import setup, sweep


def reference(options: argparse.Namespace) -> int:
    """Run the reference profiles of which ``results/`` lacks tables; the exit status, 1 if a run failed."""
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
            if profile.real_data and not (options.only_list or options.json or sweep.is_done(run)):
                # Refused before the first of many hours.
                run = replace(run, parameters={**values, "data_dir": profiles.data_dir(profile, data_dir)})
            runs.append(run)
    if options.json:
        print(json.dumps({run.name: sweep.is_done(run) for run in runs}, indent=1))
        return 0
    return _work(runs, "reference runs", options)


def sweep_grid(options: argparse.Namespace) -> int:
    """Run a grid and compare its runs; the exit status, 1 if a run failed."""
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
    runs: Sequence[sweep.Run], what: str, options: argparse.Namespace, resources: Mapping[str, float] | None = None
) -> int:
    """Execute runs and print a line for each."""
    done = [sweep.is_done(run) for run in runs]
    for run, stored in zip(runs, done, strict=True):
        print(f"{'done' if stored else 'left':5} {run.name}")
    print(f"{sum(done)} of {len(runs)} {what} are done.", flush=True)
    if options.only_list or all(done):
        return 0
    left = [run for run, stored in zip(runs, done, strict=True) if not stored]
    if not options.scheduler:  # its workers may have what cannot be reached from here
        setup.ready(setup.models_of((run.notebook, run.parameters) for run in left), options.yes)
    outcomes: list[sweep.Outcome] = []
    for outcome in sweep.work(left, workers=options.workers, scheduler=options.scheduler, resources=resources):
        outcomes.append(outcome)
        seconds = sweep.time_left(outcomes, len(left) - len(outcomes), options.workers)
        remaining = f"; about {datetime.timedelta(seconds=round(seconds))} left" if seconds else ""
        count = f"[{len(outcomes)}/{len(left)}]"
        print(f"{count} {outcome.status:6} {outcome.seconds:6.0f} s  {outcome.run.name}{remaining}", flush=True)
        if outcome.status == "failed":
            print(f"    {see(outcome.reason, outcome.run.error)}", file=sys.stderr)
    failed = [outcome.run.name for outcome in outcomes if outcome.status == "failed"]
    if failed:
        print(f"error: {len(failed)} of {len(left)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
