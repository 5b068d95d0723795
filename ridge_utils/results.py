"""Tidy tables of measurements, their files with provenance, and the comparison of a new table with a stored one.

Every measurement is a row of the same frame, in memory, in a notebook's check and in ``results/``. A results file is a
CSV with a JSON beside it that says what made it and holds the CSV's SHA-256, and a digest of all else that it holds.
"""

import datetime
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ridge_utils import cache, files, profiles
from ridge_utils.errors import InputError, StorageError

#: Columns of every table of measurements. ``train_seed`` is empty for an untouched model, ``sample_seed`` where all
#: examples were used, and ``decoding_step`` where the last prompt token was measured. ``variant`` names a control or
#: another reading of the quantity and is the empty text for the paper's own; files of tables without one leave it out.
COLUMNS = (
    "model",
    "task",
    "source",
    "split",
    "step",
    "train_seed",
    "sample_seed",
    "n",
    "decoding_step",
    "layer",
    "site",
    "quantity",
    "variant",
    "value",
)
#: The columns that say which measurement a row is.
KEY = tuple(column for column in COLUMNS if column != "value")

#: The folder of the stored results.
FOLDER = profiles.ROOT / "results"

_INTEGERS = ("step", "train_seed", "sample_seed", "n", "decoding_step", "layer")
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pandas", "safetensors", "accelerate")


def measurements(
    values: Sequence[float], sites: Sequence[tuple[int, str]], quantity: str, **context: Any
) -> pd.DataFrame:
    """A tidy table of one quantity, with a value for each (layer, site) of a model.

    ``context`` holds the remaining columns, model, task, source, split, step, train_seed, sample_seed, n, and
    decoding_step and variant where there is one.
    """
    context = {"decoding_step": None, "variant": "", **context}
    if wrong := set(context) ^ (set(COLUMNS) - {"layer", "site", "quantity", "value"}):
        raise InputError(f"A table of measurements lacks or does not know the column {sorted(wrong)[0]!r}.")
    layers, names = zip(*sites, strict=True) if sites else ((), ())
    frame = pd.DataFrame({**context, "layer": layers, "site": names, "quantity": quantity, "value": values})
    return _typed(frame[list(COLUMNS)])


def sites(blocks: int, final_norm: bool = True) -> list[tuple[int, str]]:
    """(layer, site) of the embedding output, of every block, and of the state after the final norm."""
    after = [(blocks, "final_norm")] if final_norm else []
    return [(0, "embedding"), *((layer, "block") for layer in range(1, blocks + 1)), *after]


def provenance(parameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What made a table: parameters, versions, machine, date and commit, and whatever else is given."""
    import torch

    return {
        "parameters": _recorded(parameters),
        **more,
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
    }


def write(table: pd.DataFrame, path: Path, origin: Mapping[str, Any]) -> None:
    """Write a table as CSV to ``path`` and its :func:`provenance` as JSON beside it, both whole or none, the CSV first.

    What stands there is replaced if it is a table of ours, else an InputError says so.
    """
    files.claim(path, ".csv")
    if "variant" in table and not table["variant"].any():
        table = table.drop(columns="variant")
    text = table.to_csv(index=False, lineterminator="\n", float_format="%.10g")
    content = dict(origin) | {"rows": len(table), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    if place := _place(path):
        content["file"] = place
    content = json.loads(json.dumps(content))  # as it will be read: its digest goes by that
    content[files.OWN_DIGEST] = _own_digest(content)
    with files.scratch(path.parent) as made:
        cache.write_text(made / path.name, text)
        cache.write_text(made / f"{path.stem}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        files.replace(made, path, path.with_suffix(".json"))


def read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a table and its provenance; a StorageError says where one is missing, damaged, or not the other's."""
    try:
        # Read once: what is checked is what is parsed. Of a pipe there is no end.
        data, beside = (file.read_bytes() if file.is_file() else None for file in (path, path.with_suffix(".json")))
        if data is None or beside is None:
            raise ValueError("there is no such file")
        origin = json.loads(beside.decode(), object_pairs_hook=_once)
        if not isinstance(origin, dict) or origin.get(files.OWN_DIGEST) != _own_digest(origin):
            raise ValueError(f"{path.stem}.json is not as it was written")
        if (sha256 := hashlib.sha256(data).hexdigest()) != origin.get("sha256"):
            raise ValueError(f"it does not match its provenance: its SHA-256 is {sha256}, not {origin.get('sha256')}")
        if (place := _place(path)) and place != origin.get("file"):
            raise ValueError(f"it is another's, {origin.get('file')}")
        table = pd.read_csv(io.BytesIO(data))
        if len(table) != origin["rows"]:
            raise ValueError(f"it has {len(table)} rows, and its provenance says {origin['rows']}")
        return (_typed(table) if set(COLUMNS) - {"variant"} <= set(table) else table), origin
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise StorageError(
            f"The results file {path.name} or its provenance cannot be read ({' '.join(str(error).split())[:200]}): "
            "restore both with git, or make the table again."
        ) from error


def _place(path: Path) -> str:
    """Where in :data:`FOLDER` a table lies, which its provenance says lest two be swapped; empty where it does not."""
    path = Path(*(part for part in path.resolve().parts if not part.startswith(files.SCRATCH)))
    return path.relative_to(FOLDER).as_posix() if path.is_relative_to(FOLDER) else ""


def _own_digest(origin: Mapping[str, Any]) -> str:
    """The digest of a provenance without its own digest."""
    return cache.digest({key: value for key, value in origin.items() if key != files.OWN_DIGEST})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def references(notebook: str) -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """The reference runs of a notebook, table and provenance by the name of their profile."""
    return {path.parent.name: read(path) for path in sorted((FOLDER / "reference").glob(f"*/{notebook}.csv"))}


@dataclass(frozen=True)
class Comparison:
    """How a new table compares with a stored one."""

    #: one row per measurement, with the key, ``value``, ``stored``, ``difference``, ``tolerance``
    rows: pd.DataFrame

    @property
    def outside(self) -> pd.DataFrame:
        """The rows whose difference is greater than their tolerance, or is not a number; the worst first."""
        bad = self.rows[~(self.rows["difference"] <= self.rows["tolerance"])]
        return bad.sort_values("difference", ascending=False, na_position="first")

    def require(self) -> None:
        """Raise an AssertionError with the worst rows, both values and the tolerance, if a row is outside it."""
        outside = self.outside
        if len(outside):
            columns = ["split", "step", "sample_seed", "layer", "site", "quantity", "variant"]
            columns += ["value", "stored", "tolerance"]
            raise AssertionError(
                f"{len(outside)} of {len(self.rows)} measurements differ from the stored ones by more than their "
                f"tolerance; the worst:\n{outside[columns].head(10).to_string(index=False)}"
            )


def compare(table: pd.DataFrame, stored: pd.DataFrame, tolerance: "pd.Series[float] | float") -> Comparison:
    """Compare a new table with a stored one, measurement by measurement.

    ``tolerance`` is the greatest absolute difference allowed, one number or one per row of ``stored``. An InputError
    says where the two do not hold the same measurements.
    """
    key = list(KEY)
    if len(table[key].drop_duplicates()) != len(table):
        raise InputError("The table holds a measurement twice.")
    merged = stored.assign(tolerance=tolerance).merge(
        table, on=key, how="outer", suffixes=("_stored", ""), indicator=True
    )
    apart = merged[merged["_merge"] != "both"]
    if len(apart):
        missing = int((apart["_merge"] == "left_only").sum())
        raise InputError(
            f"The tables do not hold the same measurements: {missing} stored ones are missing and "
            f"{len(apart) - missing} are new; the first is {apart[key].iloc[0].to_dict()}."
        )
    rows = merged.drop(columns="_merge").rename(columns={"value_stored": "stored"})
    rows["difference"] = (rows["value"] - rows["stored"]).abs()
    return Comparison(rows)


def same_parameters(parameters: Mapping[str, Any], origin: Mapping[str, Any]) -> bool:
    """Whether a run has the parameters that a stored table was made with, and so should give its numbers."""
    return json.loads(json.dumps(_recorded(parameters))) == origin.get("parameters")


def _recorded(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as provenance keeps them: where somebody's data folder lies is nobody else's business."""
    return {name: "given" if name == "data_dir" and value else value for name, value in parameters.items()}


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    table = table.assign(variant=table["variant"].fillna("") if "variant" in table else "")
    integers = {column: "Int64" for column in _INTEGERS}
    texts = {column: "str" for column in ("model", "task", "source", "split", "site", "quantity", "variant")}
    return table.astype({**integers, **texts, "value": np.float64})[
        # A table of several runs says in columns of its own which row is whose.
        [*(column for column in table if column not in COLUMNS), *COLUMNS]
    ]


def _commit() -> str | None:
    """The commit of the project's checkout, with a mark if the code differs from it; the version of a wheel."""
    if profiles.INSTALLED:  # which may lie in a checkout of something else
        return f"version {importlib.metadata.version('ridge-utils')}"
    run = {"cwd": FOLDER.parent, "capture_output": True, "text": True, "check": True}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--", "ridge_utils", "notebooks"], **run).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} with local changes" if changed.strip() else commit
