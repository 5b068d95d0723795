"""Tables of verdicts for people, from what :func:`ridge_utils.audit.verdicts.judge` gave."""

import pandas as pd
from pandas.io.formats.style import Styler

from ridge_utils import formatting, models, paper
from ridge_utils.audit import verdicts
from ridge_utils.audit.rules import NOT_JUDGED
from ridge_utils.audit.verdicts import MIXED, NOT_MEASURED, VERDICTS

#: Backgrounds of the verdicts, safe for colour-blind readers; every cell says its verdict in words as well.
COLOURS = {
    "reproduced": "#56b4e9",
    "partly": "#f0e442",
    "not reproduced": "#e69f00",
    "artefact of the estimator": "#cc79a7",
    MIXED: "#d9d9d9",
}
#: How the pages call sources of data and tasks.
_DATA = {"synthetic": "made", "hub": "real", "local": "real", "own": "own"}
_TASKS = {"clutrr": "CLUTRR", "ecqa": "ECQA", "cnn_dailymail": "CNN/DailyMail"}


def grid(judged: pd.DataFrame, claims: list[str]) -> Styler:
    """Claims in rows, models and tasks in columns; a cell says how many checkpoints have each verdict.

    The colour is the verdict that all judged checkpoints share, grey where they differ.
    """
    asked = judged[judged["why"] != NOT_MEASURED]
    measured = set(zip(asked["claim"], _case(asked), strict=True))
    # A model and task that no claim was measured on has no column.
    total = verdicts.overall(judged[judged["claim"].isin(claims)]).merge(asked[[*verdicts.CASE]].drop_duplicates())
    total = total.assign(case=_case)
    total["cell"] = [
        ", ".join(f"{row[verdict]} {verdict}" for verdict in VERDICTS if row[verdict])
        or (NOT_JUDGED if (row["claim"], row["case"]) in measured else "–")
        for row in total.to_dict("records")
    ]
    cases = list(dict.fromkeys(total["case"]))
    by_claim = total.set_index(["claim", "case"])
    cells, colours = (by_claim[name].unstack()[cases] for name in ("cell", "verdict"))  # noqa: PD010
    names = paper.claims().set_index("id")["name"]
    shown = pd.DataFrame({"claim": [f"{claim} {names[claim]}" for claim in cells.index]})
    shown = shown.join(cells.reset_index(drop=True))
    fills = colours.map(_fill).reset_index(drop=True).reindex(columns=shown.columns, fill_value="")
    caption = f"{_models(asked)}: how many checkpoints (C6: texts) have each verdict; –: not measured"
    return _wrapped(shown, caption).apply(lambda _: fills, axis=None)


def case_table(judged: pd.DataFrame, claims: list[str]) -> Styler:
    """Every checkpoint at which a claim was judged, with its first effect, interval, p-value and reason."""
    rows = judged[judged["claim"].isin(claims) & (judged["effect"] != "")]
    shown = pd.DataFrame(
        {
            "claim": rows["claim"],
            "model and task": _case(rows),
            "checkpoint": rows["when"],
            "verdict": rows["verdict"],
            "effect": rows["effect"],
            "estimate, 95 % interval": [
                f"{row.estimate + 0.0:.3f} [{row.low + 0.0:.3f}, {row.high + 0.0:.3f}] {row.unit}"
                for row in rows.itertuples()
            ],
            "p (Holm)": rows["p"].map(formatting.p_text),
            "why": rows["why"],
        }
    )
    caption = f"{_models(rows)}: every case that was judged; estimates have the claim's side positive"
    return _wrapped(shown, caption).map(_fill, subset=["verdict"])


def sources(judged: pd.DataFrame, claim: str) -> str:
    """The page that has a claim's figures, and the files that its verdicts are read from (Markdown)."""
    rows = judged[(judged["claim"] == claim) & (judged["files"] != "")]
    if rows.empty:
        return "Nothing that is stored speaks to this claim."
    page = rows["page"].iloc[0]
    files = dict.fromkeys(file for cell in rows["files"] for file in cell.split(", "))
    return f"Figures: [{page}]({page}.ipynb). Files: {', '.join(f'`results/{file}`' for file in files)}."


def _wrapped(shown: pd.DataFrame, caption: str) -> Styler:
    return formatting.styled(shown, caption).set_table_attributes('class="sentences"')


def _models(rows: pd.DataFrame) -> str:
    return formatting.listed(dict.fromkeys(map(models.display_name, rows["model"])))


def _case(rows: pd.DataFrame) -> list[str]:
    """Task and kind of data of each row, and its model where there are several."""
    several = len(set(rows["model"])) > 1
    return [
        (f"{models.display_name(row.model)}, " if several else "")
        + f"{_TASKS.get(row.task, row.task.replace('_', ' '))} ({_DATA.get(row.source, row.source)} data)"
        for row in rows.itertuples()
    ]


def _fill(verdict: str) -> str:
    # Black, because the dark theme's text is white.
    return f"background-color: {COLOURS[verdict]}; color: black; padding-left: 0.5rem" if verdict in COLOURS else ""
