"""Tables of verdicts for people, from what :func:`ridge_utils.audit.verdicts.judge` gave."""

from urllib.parse import urlencode

import pandas as pd
from pandas.io.formats.style import Styler

from ridge_utils import formatting, models
from ridge_utils.audit import verdicts
from ridge_utils.audit.rules import RULES
from ridge_utils.audit.verdicts import CASE, NOT_MEASURED, ONE

#: Backgrounds of the verdicts, safe for colour-blind readers; every cell says its verdict in words as well.
COLOURS = {
    "reproduced": "#56b4e9",
    "partly": "#f0e442",
    "refuted here": "#e69f00",
    "undecided": "#d9d9d9",
    "artefact": "#cc79a7",
}
#: The verdicts in the grid.
LETTERS = dict(zip(verdicts.VERDICTS, "RPXUAN", strict=True))
#: How the pages call sources of data and tasks.
_DATA = {"synthetic": "made", "hub": "real", "local": "real", "own": "own"}
_TASKS = {"clutrr": "CLUTRR", "ecqa": "ECQA", "cnn_dailymail": "CNN/DailyMail"}


def grid(judged: pd.DataFrame, claims: list[str]) -> Styler:
    """Models and tasks in rows, those with most claims first, claims in columns; a cell counts checkpoints by verdict.

    The colour is the verdict that all of them share, the letters are :data:`LETTERS`. A name leads to its curves.
    """
    asked = judged[judged["verdict"] != NOT_MEASURED]
    total = verdicts.overall(asked, ("claim", "part", *CASE))
    counts = [
        " ".join(f"{row[verdict]}\N{NO-BREAK SPACE}{letter}" for verdict, letter in LETTERS.items() if row[verdict])
        for row in total.to_dict("records")
    ]
    names = [
        f'<a href="../book/explorer.html#{urlencode(dict(zip(CASE, case, strict=True)))}">{name}</a>'
        for name, *case in zip(_case(total), *(total[column] for column in CASE), strict=True)
    ]
    total = total.assign(case=names, cell=counts)
    columns = {(claim, part): f"{claim} {part}".strip() for claim in claims for part in RULES[claim].parts}
    cells, colours = (
        total.pivot_table(index="case", columns=["claim", "part"], values=name, aggfunc="first").reindex(
            columns=list(columns)
        )
        for name in ("cell", "verdict")
    )
    order = total.groupby("case", sort=False)["claim"].nunique().sort_values(ascending=False, kind="stable").index
    shown = cells.astype(object).reindex(order).fillna("–").set_axis(list(columns.values()), axis=1)
    fills = colours.reindex(order).map(_fill).set_axis(shown.columns, axis=1).reset_index(drop=True)
    shown = shown.rename_axis(columns=None).rename_axis("model and task").reset_index()
    legend = ", ".join(f"{letter} {verdict}" for verdict, letter in LETTERS.items())
    caption = f"How many checkpoints have each verdict: {legend}; –: not measured"
    fills = fills.reindex(columns=shown.columns, fill_value="")
    return _wrapped(shown, caption, "grid").apply(lambda _: fills, axis=None)


def summary(judged: pd.DataFrame) -> pd.DataFrame:
    """Each verdict on what was measured, with the first statement that was, as a table of texts."""
    rows = judged[judged["state"] != NOT_MEASURED].drop_duplicates(list(ONE))
    table = pd.DataFrame(
        {
            "model and task": _case(rows),
            "checkpoint": rows["when"],
            "claim": (rows["claim"] + " " + rows["part"]).str.strip(),
            "verdict": (rows["verdict"] + ": " + rows["why"]).str.removesuffix(": ").str.replace(": of ", " of "),
            "effect": rows["effect"],
            "estimate, interval": _intervals(rows),
            "N": [formatting.number(n, 0) for n in rows["n"]],
        }
    )
    return table.drop(columns=[name for name in ("model and task", "checkpoint") if table[name].nunique() < 2])


def case_table(judged: pd.DataFrame, claims: list[str]) -> Styler:
    """Every checkpoint at which a claim was judged, with each of its statements and what would decide it.

    The name of a user's audit leads to its own page.
    """
    rows = judged[judged["claim"].isin(claims) & (judged["verdict"] != NOT_MEASURED)]
    once = {
        "claim": rows["claim"],
        "model and task": _linked(rows),
        "checkpoint": rows["when"] + rows["part"].where(rows["part"] == "", ", " + rows["part"]),
        "verdict": rows["verdict"],
        "why": rows["why"],
    }
    each = {
        "statement": rows["effect"],
        "state": rows["state"],
        "estimate, interval": _intervals(rows),
        "margin": [formatting.number(margin, 2) for margin in rows["margin"]],
        "N, training seeds": [f"{row.n:.0f}, {row.seeds:.0f}" if row.n == row.n else "–" for row in rows.itertuples()],
        "N to decide": [formatting.number(n, 0) for n in rows["n_to_decide"]],
        "detectable": [formatting.number(effect, 2) for effect in rows["detectable"]],
    }
    shown = pd.DataFrame(once).mask(rows.duplicated(list(ONE)), "").assign(**each)
    caption = (
        f"{_models(rows)}: estimates have the claim's side positive; intervals cover 95 % for all checkpoints of a "
        "claim together; detectable: what would hold with a chance of 80 %"
    )
    return _wrapped(shown, caption).map(_fill, subset=["verdict"])


def sources(judged: pd.DataFrame, claim: str) -> str:
    """The page that has a claim's figures, and the files that its verdicts are read from (Markdown)."""
    rows = judged[(judged["claim"] == claim) & (judged["files"] != "")]
    if rows.empty:
        return "Nothing that is stored speaks to this claim."
    page = rows["page"].iloc[0]
    files = dict.fromkeys(file for cell in rows["files"] for file in cell.split(", "))
    figures = f"Figures: [{page}]({page}.ipynb)" + ", of an audit where its name leads" * any(map(_audits, files))
    return f"{figures}. Files: {', '.join(f'`results/{file}`' for file in files)}."


def _wrapped(shown: pd.DataFrame, caption: str, kind: str = "sentences") -> Styler:
    return formatting.styled(shown, caption).set_table_attributes(f'class="{kind}"')


def _intervals(rows: pd.DataFrame) -> list[str]:
    return [
        f"{row.estimate + 0.0:.3f} [{row.low + 0.0:.3f}, {row.high + 0.0:.3f}] {row.unit}" if row.n == row.n else "–"
        for row in rows.itertuples()
    ]


def _audits(file: str) -> bool:
    return file.startswith("audit/")


def _linked(rows: pd.DataFrame) -> list[str]:
    """:func:`_case`, of an audit as a link from a notebook to its page, which lies beside its table."""
    pages = [next(filter(_audits, cell.split(", ")), "").rpartition("/")[0] for cell in rows["files"]]
    return [
        f'<a href="../results/{page}/audit.html">{name}</a>' if page else name
        for name, page in zip(_case(rows), pages, strict=True)
    ]


def _models(rows: pd.DataFrame) -> str:
    return formatting.listed(dict.fromkeys(map(models.display_name, rows["model"])))


def _case(rows: pd.DataFrame) -> list[str]:
    """Task and kind of data of each row, and its model where there are several."""
    several = len(set(rows["model"])) > 1
    return [
        (f"{models.display_name(row.model)}, " if several else "") + task_name(row.task, row.source)
        for row in rows.itertuples()
    ]


def task_name(title: str, source: str) -> str:
    """How pages call a task and its data."""
    name, *answer = title.split(":")
    task = ", ".join([_TASKS.get(name, name.replace("_", " ")), *answer])
    return f"{task} ({_DATA.get(source, source)} data)"


def _fill(verdict: str) -> str:
    # Black, because the dark theme's text is white.
    return f"background-color: {COLOURS[verdict]}; color: black; padding-left: 0.5rem" if verdict in COLOURS else ""
