"""Repeat a notebook's default run under other conditions, for its tolerances (hours).

``python benchmarks/repeat.py NOTEBOOK [CONDITION ...]`` stores the differences in ``results/differences/``.
"""

import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ridge_utils import cache, results, tolerances
from ridge_utils.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Condition:
    """One way to repeat a run."""

    #: how tables and figures call it
    name: str
    #: ``arithmetic``, if only rounding differs, or ``seed``, if the training itself does
    changes: str
    #: parameters of the notebook that differ from its defaults
    parameters: dict[str, object] = field(default_factory=dict)
    #: environment variables
    environment: dict[str, str] = field(default_factory=dict)


_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}

#: Three ways to change the arithmetic alone, and two other trainings beside which to see them.
CONDITIONS = (
    Condition("1 thread", "arithmetic", environment={"OMP_NUM_THREADS": "1"}),
    Condition("float32", "arithmetic", {"precision": "float32"}),
    Condition("float32, AVX2 only", "arithmetic", {"precision": "float32"}, _AVX2),
    Condition("seed 1", "seed", {"training_seeds": [1]}),
    Condition("seed 2", "seed", {"training_seeds": [2]}),
)


def repeat(notebook: str, folder: Path, names: Sequence[str] = ()) -> Path:
    """Run a notebook's default run once per condition, compare it with the stored one, and store the differences.

    The executed notebooks, their tables and a cache for each condition go to ``folder``; a run whose table is there
    already is not repeated. Without names, all of :data:`CONDITIONS` are run. The stored differences, whose path is
    returned, have one row per condition and measurement, those of different sampling seeds taken together: ``value`` is
    their mean, ``largest_difference`` the largest absolute difference of one of them from the stored run, both in the
    quantity's unit.
    """
    known = {condition.name: condition for condition in CONDITIONS}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"There is no condition {unknown[0]!r}; choose from {', '.join(known)}.")
    conditions = [known[name] for name in names or known]
    reference, origin = results.read(results.FOLDER / f"{notebook}.csv")
    tables, runs = [], {}
    for condition in conditions:
        path = _run(condition, notebook, origin["parameters"], folder)
        table, run = results.read(path)
        runs[condition.name] = {
            key: run.get(key) for key in ("commit", "date", "seconds", "training", "machine", "versions", "sha256")
        }
        # The seed is what such a condition changes, not what tells its measurements apart from the reference's.
        seed = reference["train_seed"].dropna().unique()
        table["train_seed"] = table["train_seed"].where(table["train_seed"].isna(), seed[0] if len(seed) else None)
        groups = results.compare(table, reference, 0.0).rows.groupby([*tolerances.KEY, "split"], sort=False)
        summary = groups.agg(value=("value", "mean"), largest_difference=("difference", "max")).reset_index()
        tables.append(summary.assign(condition=condition.name, changes=condition.changes))
    differences = pd.concat(tables, ignore_index=True)
    path = results.FOLDER / tolerances.DIFFERENCES / f"{notebook}.csv"
    compared_with = {"table": f"{notebook}.csv", "sha256": origin["sha256"]}
    described = [dataclasses.asdict(condition) for condition in conditions]
    provenance = results.provenance({"notebook": notebook}, conditions=described, reference=compared_with, runs=runs)
    columns = ["condition", "changes", "split", *tolerances.KEY, "value", "largest_difference"]
    results.write(differences[columns], path, provenance)
    return path


def _run(condition: Condition, notebook: str, parameters: Mapping[str, Any], folder: Path) -> Path:
    """Run the notebook under a condition where that was not done before, and say where its table is."""
    name = condition.name.replace(",", "").replace(" ", "-")
    output = folder / notebook / f"{name}.ipynb"
    table = output.with_suffix(".csv")
    if table.exists():
        done = results.read(table)[1]["parameters"]
        if {**done, "device": None} == {**parameters, **condition.parameters, "device": None}:
            return table
        log.warning("%s was made with other parameters; it is measured again.", table)
    log.info("%s under the condition %r, into %s", notebook, condition.name, output)
    command = [sys.executable, "-m", "ridge_utils", "run", notebook, "-o", str(output), "-p", "compare=false"]
    for key, value in condition.parameters.items():
        command += ["-p", f"{key}={value}"]
    environment = condition.environment | {cache.ENVIRONMENT_VARIABLE: str(folder / f"cache-{name}")}
    subprocess.run(command, env=os.environ | environment, check=True)
    return table


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(repeat(sys.argv[1], Path("runs/differences"), sys.argv[2:]))
