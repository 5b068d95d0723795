"""The judge: what the stored tables say of each of the nine claims, by the rules of the book's protocol."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ridge_utils import results
from ridge_utils.audit import rules
from ridge_utils.audit.rules import RULES, Judgement, Verdict
from ridge_utils.errors import InputError

#: The verdicts on what was measured, the best for the paper first.
VERDICTS: tuple[Verdict, ...] = ("reproduced", "partly", "refuted here", "undecided", "artefact", "not asked")
NOT_MEASURED: Verdict = "not measured"
#: Of several checkpoints that have different verdicts.
MIXED = "mixed"

#: The environment variable by which ``make test`` and ``ridge refresh`` leave a user's audits out, which the
#: committed pages were executed without.
WITHOUT_AUDITS = "RIDGE_WITHOUT_AUDITS"

#: What tells one model on one task from another.
CASE = ("model", "task", "source")

#: The notebooks whose quantities an audit's table holds.
AUDITED = ("anatomy", "early_exit", "interventions", "residual_scaling", "attention")

#: A table of measurements and its provenance.
Stored = tuple[pd.DataFrame, Mapping[str, Any]]

#: What tells one verdict from another.
ONE = ("claim", *CASE, "part", "when")
_EFFECT = ("effect", "state", "estimate", "low", "high", "margin", "unit", "n", "seeds", "n_to_decide", "detectable")
_COLUMNS = (*ONE, "verdict", "why", "share", *_EFFECT, "page", "files")


def pages() -> list[str]:
    """The notebooks whose tables the claims are judged by, and ``audit``."""
    return [*dict.fromkeys(page for claim in RULES.values() for page in claim.pages), "audit"]


def chosen(claims: Sequence[str]) -> list[str]:
    """The claims to show: those named, or all of them where none is."""
    if unknown := [claim for claim in claims if claim not in RULES]:
        raise InputError(f"There is no claim {unknown[0]!r}; claims_shown may name {', '.join(RULES)}.")
    return [claim for claim in RULES if claim in claims or not claims]


def stored(audits: bool = True) -> dict[str, dict[str, Stored]]:
    """The tables that the verdicts are judged by, with their provenance, by notebook and by file under ``results/``.

    Of several tables on one model and task the first counts: that of a reference run, then (if ``audits``, and
    :data:`WITHOUT_AUDITS` is not set) of a user's audit, then of a default run.
    """
    tables: dict[str, dict[str, Stored]] = {}
    kinds = ("reference", "audit") if audits and not os.environ.get(WITHOUT_AUDITS) else ("reference",)
    for page in pages():
        paths = [path for kind in kinds for path in sorted((results.FOLDER / kind).glob(f"*/{page}.csv"))]
        paths.append(results.FOLDER / f"{page}.csv")
        tables[page] = {p.relative_to(results.FOLDER).as_posix(): results.read(p) for p in paths if p.exists()}
    return tables


def judge(tables: Mapping[str, Mapping[str, Stored]]) -> pd.DataFrame:
    """Judge every claim on every model and task that the tables speak of.

    The tables are those of :func:`stored`; those of ``audit`` hold the quantities of :data:`AUDITED` and stand in where
    one of these has no table for a model and task.

    Returns:
        A row for each statement of each claim at each checkpoint of a model on a task, the first statement first.
        ``part`` is the end (C1) or the split (C9) that is judged, ``when`` the checkpoint, ``verdict`` that of all
        statements, ``why`` what their states do not say, ``share`` how much of the fall is made where it is an
        artefact. Of the statement there is ``effect``, its ``state``, the ``estimate`` with the claim's side positive,
        its interval ``low`` to ``high``, which covers 95 % for all checkpoints together, ``margin``, ``unit``, ``n``
        examples and training ``seeds``; ``n_to_decide``, the examples that would leave out the margin, and
        ``detectable``, the effect that would hold with a chance of 80 %. ``page`` is the notebook and ``files`` the
        tables. A claim that was not measured has one row, without an effect.
    """
    rows: list[dict[str, Any]] = []
    cases = _cases(tables)
    for name, claim in RULES.items():
        for case, measured in cases.items():
            files = dict.fromkeys(measured[page]["file"].iloc[0] for page in claim.pages if page in measured)
            row = {"claim": name, **dict(zip(CASE, case, strict=True)), "files": ", ".join(files)}
            judged = rules.judge(claim, _of_all(measured)) if files else []
            last = max((judgement.step for judgement in judged), default=0)
            rows += [row | statement for judgement in judged for statement in _statements(judgement, last)]
            if not judged:
                nothing = dict.fromkeys(("part", "when", "why", "effect", "unit", "files"), "")
                rows.append(row | nothing | {"verdict": NOT_MEASURED, "state": NOT_MEASURED, "page": claim.page})
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _statements(judgement: Judgement, last: int) -> list[dict[str, Any]]:
    step = judgement.step
    when = f"step {step}, the last" if step == last > 0 else f"step {step}" if step else "untouched"
    of_all = {name: getattr(judgement, name) for name in ("part", "verdict", "why", "share")} | {"when": when}
    numbers = ("state", "estimate", "low", "high", "n", "seeds", "n_to_decide", "detectable")
    return [
        of_all
        | {name: getattr(reading, name) for name in numbers}
        | {name: getattr(reading.statement, name) for name in ("margin", "unit", "page")}
        | {"effect": reading.statement.says}
        for reading in judgement.readings
    ]


def cases(judged: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`judge` that hold the first statement: one for each verdict."""
    return judged.drop_duplicates(list(ONE), ignore_index=True)


def not_measured(judged: pd.DataFrame) -> list[str]:
    """The claims that were measured nowhere."""
    return [claim for claim, own in judged.groupby("claim") if (own["verdict"] == NOT_MEASURED).all()]


def stated(claim: str, tables: Mapping[str, pd.DataFrame]) -> str:
    """The verdicts on a claim by the tables of some pages, as a fact has them (``untouched: partly; ...``)."""
    rows = cases(judge({page: {page: (table, {})} for page, table in tables.items()}))
    rows = rows[rows["claim"] == claim]
    places = (rows["when"] + " " + rows["part"]).str.strip()
    return "; ".join(f"{place}: {name}".removeprefix(": ") for place, name in zip(places, rows["verdict"], strict=True))


def overall(judged: pd.DataFrame, by: Sequence[str] = ("claim", *CASE)) -> pd.DataFrame:
    """The verdicts on each claim, model and task together, or on what else the columns ``by`` tell apart.

    Returns:
        A row per group with the number of each of :data:`VERDICTS`, and ``verdict``: the one that all have in common,
        ``mixed`` where they differ, ``not measured`` where there are none.
    """
    rows = []
    for group, own in cases(judged).groupby(list(by), sort=False):
        counts = {verdict: int((own["verdict"] == verdict).sum()) for verdict in VERDICTS}
        given = [verdict for verdict, count in counts.items() if count]
        rows.append((*group, *counts.values(), given[0] if len(given) == 1 else MIXED if given else NOT_MEASURED))
    return pd.DataFrame(rows, columns=[*by, *VERDICTS, "verdict"])


def counted(judged: pd.DataFrame) -> dict[str, str]:
    """How often each verdict was given, by claim: ``13 refuted here, 2 artefact``."""
    return {total["claim"]: count_text(total) for total in overall(judged, ["claim"]).to_dict("records")}


def count_text(total: Mapping[str, Any]) -> str:
    """The numbers of verdicts in a row of :func:`overall`."""
    return ", ".join(f"{total[verdict]} {verdict}" for verdict in VERDICTS if total[verdict]) or NOT_MEASURED


def _cases(tables: Mapping[str, Mapping[str, Stored]]) -> dict[tuple[str, ...], dict[str, pd.DataFrame]]:
    """The tables of each model and task by notebook; cut models belong to the model that they were cut from."""
    cases: dict[tuple[str, ...], dict[str, pd.DataFrame]] = {}
    # Tables of one notebook come before the audit's, which stands in for those that are missing.
    for page in sorted(tables, key=lambda page: page == "audit"):
        for file, (table, _) in tables[page].items():
            table = table.assign(file=file)
            whole = table["model"].str.replace(rules.CUT, "", regex=True)
            for case, rows in table.groupby([whole, *(table[column] for column in CASE[1:])], sort=False):
                by_page = cases.setdefault(tuple(map(str, case)), {})
                for name in AUDITED if page == "audit" else [page]:
                    by_page.setdefault(name, rows)
    return cases


def _of_all(measured: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """A table for each of the notebooks, without rows where none was measured."""
    nothing = next(iter(measured.values()))[:0]
    return {page: measured.get(page, nothing) for page in pages()}
