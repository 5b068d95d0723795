"""Tables of verdicts for people, from what :func:`ridge_utils.audit.verdicts.judge` gave."""

import pandas as pd
from pandas.io.formats.style import Styler

from ridge_utils import formatting, models, paper
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
#: How the pages call sources of data and tasks.
_DATA = {"synthetic": "made", "hub": "real", "local": "real", "own": "own"}
_TASKS = {"clutrr": "CLUTRR", "ecqa": "ECQA", "cnn_dailymail": "CNN/DailyMail"}


def grid(judged: pd.DataFrame, claims: list[str]) -> Styler:
    """Claims in rows, models and tasks in columns, those with most claims first; a cell counts checkpoints by verdict.

    The colour is the verdict that all of them share.
    """
    asked = judged[judged["verdict"] != NOT_MEASURED]
    total = verdicts.overall(asked, ("claim", "part", *CASE))
    total = total.assign(case=_case(total), cell=[verdicts.count_text(row) for row in total.to_dict("records")])
    names = paper.claims().set_index("id")["name"]
    rows = {(claim, part): f"{claim} {names[claim]}" for claim in claims for part in RULES[claim].parts}
    by_claim = total.set_index(["claim", "part", "case"])
    cases = total.groupby("case", sort=False)["claim"].nunique().sort_values(ascending=False, kind="stable").index
    cells, colours = (
        by_claim[name].unstack().reindex(index=list(rows), columns=cases)  # noqa: PD010
        for name in ("cell", "verdict")
    )
    shown = pd.DataFrame({"claim": [f"{name}, {part}" if part else name for (_, part), name in rows.items()]})
    shown = shown.join(cells.fillna("–").reset_index(drop=True))
    fills = colours.map(_fill).reset_index(drop=True).reindex(columns=shown.columns, fill_value="")
    caption = f"{_models(asked)}: how many checkpoints have each verdict; –: not measured"
    return _wrapped(shown, caption).apply(lambda _: fills, axis=None)


def case_table(judged: pd.DataFrame, claims: list[str]) -> Styler:
    """Every checkpoint at which a claim was judged, with each of its statements and what would decide it."""
    rows = judged[judged["claim"].isin(claims) & (judged["verdict"] != NOT_MEASURED)]
    once = {
        "claim": rows["claim"],
        "model and task": _case(rows),
        "checkpoint": rows["when"] + rows["part"].where(rows["part"] == "", ", " + rows["part"]),
        "verdict": rows["verdict"],
        "why": rows["why"],
    }
    intervals = [
        f"{row.estimate + 0.0:.3f} [{row.low + 0.0:.3f}, {row.high + 0.0:.3f}] {row.unit}" for row in rows.itertuples()
    ]
    each = {
        "statement": rows["effect"],
        "state": rows["state"],
        "estimate, interval": pd.Series(intervals, rows.index).where(rows["estimate"].notna(), "–"),
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
    return f"Figures: [{page}]({page}.ipynb). Files: {', '.join(f'`results/{file}`' for file in files)}."


def _wrapped(shown: pd.DataFrame, caption: str) -> Styler:
    return formatting.styled(shown, caption).set_table_attributes('class="sentences"')


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
