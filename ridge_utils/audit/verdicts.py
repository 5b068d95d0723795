"""The judge: what the stored tables say of each of the nine claims, by the rules of the book's protocol."""

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ridge_utils import cache, files, inference, results
from ridge_utils.audit.rules import NOT_JUDGED, RULES, Verdict
from ridge_utils.errors import InputError, shown
from ridge_utils.inference import LEVEL, Effect

#: The verdicts on what was measured, the best for the paper first.
VERDICTS: tuple[Verdict, ...] = ("reproduced", "partly", "not reproduced", "artefact of the estimator")
#: Why a claim is not judged on a model and task that has no table for it; any other reason is one of its rule.
NOT_MEASURED = "Not measured."
#: Of several checkpoints that have different verdicts.
MIXED = "mixed"

#: What tells one model on one task from another.
CASE = ("model", "task", "source")

#: A table of measurements and its provenance.
Stored = tuple[pd.DataFrame, Mapping[str, Any]]

_NOTHING = Effect(math.nan, math.nan, math.nan, math.nan, math.nan)
_COLUMNS = ("claim", *CASE, "when", "verdict", "effect", "estimate", "low", "high", "p", "unit", "why", "page", "files")


def pages() -> list[str]:
    """The notebooks whose tables the claims are judged by, and ``audit``."""
    return [*dict.fromkeys(page for rule in RULES.values() for page in rule.pages), "audit"]


def chosen(claims: Sequence[str]) -> list[str]:
    """The claims to show: those named, or all of them where none is."""
    if unknown := [claim for claim in claims if claim not in RULES]:
        raise InputError(f"There is no claim {unknown[0]!r}; claims_shown may name {', '.join(RULES)}.")
    return [claim for claim in RULES if claim in claims or not claims]


def stored(audits: bool = True) -> dict[str, dict[str, Stored]]:
    """The tables that the verdicts are judged by, with their provenance, by notebook and by file under ``results/``.

    Of several tables on one model and task the first counts: that of a reference run, then (if ``audits``) of a user's
    audit, then of a default run.
    """
    tables: dict[str, dict[str, Stored]] = {}
    kinds = ("reference", "audit") if audits else ("reference",)
    for page in pages():
        paths = [path for kind in kinds for path in sorted((results.FOLDER / kind).glob(f"*/{page}.csv"))]
        paths.append(results.FOLDER / f"{page}.csv")
        tables[page] = {p.relative_to(results.FOLDER).as_posix(): results.read(p) for p in paths if p.exists()}
    return tables


def audit_file(table: pd.DataFrame) -> Path:
    """Where a user's audit of one model on one task goes, so that :func:`stored` finds it."""
    name = "-".join(str(table[column].iloc[0]) for column in ("model", "task"))
    return results.FOLDER / "audit" / re.sub(r"[^A-Za-z0-9._-]+", "-", name) / "audit.csv"


def forget(name: str) -> None:
    """Remove an audit's tables from its folder under ``results/audit/``, and the folder if it holds nothing else."""
    paths = (results.FOLDER / "audit").glob("*")
    folders = {path.name: path for path in paths if path.is_dir() and not path.is_symlink()}
    if name not in folders:
        kept = f"there are {', '.join(sorted(folders))}" if folders else "there is none"
        raise InputError(f"No audit {shown(name)} is in results/audit: {kept}.")
    with cache.storage_errors(folders[name]):
        for table in sorted(folders[name].glob("*.csv")):
            with contextlib.suppress(InputError):  # not ours
                files.claim(table, ".csv")
                table.unlink()
                table.with_suffix(".json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folders[name].rmdir()


def judge(tables: Mapping[str, Mapping[str, Stored]]) -> pd.DataFrame:
    """Judge every claim on every model and task that the tables speak of.

    Holm's correction runs over all tests of a claim before its rule decides. The tables are those of :func:`stored`;
    those of ``audit`` hold the quantities of several notebooks and stand in where a notebook has no table for a model
    and task.

    Returns:
        A table with a row per claim, model, task and checkpoint (or text). It has ``verdict`` and ``why``; ``effect``,
        ``estimate``, ``low``, ``high`` and ``unit`` of the rule's first effect, ``p`` after correction; ``page``, the
        notebook that holds the figure; and ``files``. What a claim has no evidence for has one row ``not judged``.
    """
    cases = _cases(tables)
    rows: list[tuple[Any, ...]] = []
    for claim, rule in RULES.items():
        evidence = {case: rule.gather(_of_all(rule.pages, measured)) for case, measured in cases.items()}
        tests = [
            (case, place, name, effect)
            for case, pieces in evidence.items()
            for place, piece in enumerate(pieces)
            for name, effect in piece.effects.items()
        ]
        corrected = inference.holm([effect.p for *_, effect in tests])
        p_values = {test[:3]: p for test, p in zip(tests, corrected, strict=True)}
        for case, pieces in evidence.items():
            measured = [cases[case][page]["file"].iloc[0] for page in rule.pages if page in cases[case]]
            files = ", ".join(dict.fromkeys(measured))
            for place, piece in enumerate(pieces):
                firm = [name for name in piece.effects if p_values[case, place, name] <= LEVEL]
                holds = {name for name in firm if piece.effects[name].estimate > 0}
                verdict, why = rule.decide(piece, holds, set(firm) - holds)
                name, effect = next(iter(piece.effects.items()), ("", _NOTHING))
                p = p_values.get((case, place, name), math.nan)
                numbers = (name, effect.estimate, effect.low, effect.high, p, piece.unit)
                rows.append((claim, *case, piece.when, verdict, *numbers, why, rule.pages[0], files))
            if not pieces:
                nothing = ("", math.nan, math.nan, math.nan, math.nan, "")
                rows.append((claim, *case, "", NOT_JUDGED, *nothing, NOT_MEASURED, rule.pages[0], ""))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def overall(verdicts: pd.DataFrame, by: Sequence[str] = ("claim", *CASE)) -> pd.DataFrame:
    """The checkpoints of each claim, model and task together, or of what else the columns ``by`` tell apart.

    Returns:
        A row per group with the number of checkpoints of each of :data:`VERDICTS`, and ``verdict``: the one that all
        judged checkpoints share, ``mixed`` where they differ, ``not judged`` where there are none.
    """
    rows = []
    for group, cases in verdicts.groupby(list(by), sort=False):
        counts = {verdict: int((cases["verdict"] == verdict).sum()) for verdict in VERDICTS}
        given = [verdict for verdict, count in counts.items() if count]
        rows.append((*group, *counts.values(), given[0] if len(given) == 1 else MIXED if given else NOT_JUDGED))
    return pd.DataFrame(rows, columns=[*by, *VERDICTS, "verdict"])


def counted(verdicts: pd.DataFrame) -> dict[str, str]:
    """How often each verdict was given, by claim: ``13 not reproduced, 2 artefact of the estimator``."""
    counts = overall(verdicts, ["claim"]).set_index("claim")[list(VERDICTS)]
    return {
        str(claim): ", ".join(f"{count} {verdict}" for verdict, count in row.items() if count) or NOT_JUDGED
        for claim, row in counts.iterrows()
    }


def _cases(tables: Mapping[str, Mapping[str, Stored]]) -> dict[tuple[str, ...], dict[str, pd.DataFrame]]:
    """The tables of each model and task by notebook; cut models belong to the model that they were cut from."""
    cases: dict[tuple[str, ...], dict[str, pd.DataFrame]] = {}
    # Tables of one notebook come before the audit's, which stands in for those that are missing.
    for page in sorted(tables, key=lambda page: page == "audit"):
        for file, (table, origin) in tables[page].items():
            table = table.assign(fraction=table["n"] / _pool(table, origin), file=file)
            whole = table["model"].str.replace(r"\[:\d+\]$", "", regex=True)
            for case, rows in table.groupby([whole, *(table[column] for column in CASE[1:])], sort=False):
                by_page = cases.setdefault(tuple(map(str, case)), {})
                for name in pages()[:-1] if page == "audit" else [page]:
                    by_page.setdefault(name, rows)
    return cases


def _of_all(pages: Sequence[str], measured: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """A table for each of the notebooks, without rows where none was measured."""
    nothing = next(iter(measured.values()))[:0]
    return {page: measured.get(page, nothing) for page in pages}


def _pool(table: pd.DataFrame, origin: Mapping[str, Any]) -> pd.Series:
    """How many examples there were to draw from, for each row."""
    if "texts" in origin:
        texts = origin["texts"]
        if isinstance(texts, Mapping):
            return table["quantity"].str.rpartition("_")[2].map(texts).astype(float)
        return pd.Series(float(texts), index=table.index)
    counts = {split: origin.get("data", {}).get(split, math.nan) for split in ("id", "ood")}
    return table["split"].map({**counts, "all": sum(counts.values())}).astype(float)
