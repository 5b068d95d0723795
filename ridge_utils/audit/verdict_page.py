"""The page of verdicts: its tables, paragraphs and figure, all from what :func:`ridge_utils.audit.verdicts.judge` gave."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from pandas.io.formats.style import Styler

from ridge_utils import formatting, paper
from ridge_utils.audit import verdicts
from ridge_utils.audit.verdicts import MIXED, NOT_JUDGED, NOT_MEASURED, VERDICTS

#: Safe for colour-blind readers, and every cell says its verdict in words.
_COLOURS = {
    "reproduced": "#56b4e9",
    "partly": "#f0e442",
    "not reproduced": "#e69f00",
    "artefact of the estimator": "#cc79a7",
    MIXED: "#d9d9d9",
    NOT_JUDGED: "#ffffff",
}
_SHORT = {
    "reproduced": "reproduced",
    "partly": "partly",
    "not reproduced": "not repr.",
    "artefact of the estimator": "artefact",
}
#: How this page calls the sources.
_DATA = {"synthetic": "made", "hub": "real", "local": "real", "own": "own"}
#: The figure that shows each claim's evidence: its page and its name there.
_FIGURES = {
    "C1": ("estimator_audit", "fig-estimator-audit-falls"),
    "C2": ("early_exit", "fig-early-exit-differences-reference"),
    "C3": ("interventions", "fig-interventions-recall"),
    "C4": ("incremental_information", "fig-incremental-information-reference"),
    "C5": ("residual_scaling", "fig-residual-scales-reference"),
    "C6": ("multi_token", "fig-multi-token-reference"),
    "C7": ("truncation", "fig-truncation-reference"),
    "C8": ("overfitting", "fig-overfitting-reference"),
    "C9": ("attention", "fig-attention-reference"),
}


def summary_figure(judged: pd.DataFrame) -> Figure:
    """Claims in rows, models and tasks in columns; every cell counts the states with each verdict.

    Args:
        judged: what :func:`ridge_utils.audit.verdicts.judge` gave.
    """
    asked = judged[judged["why"] != NOT_MEASURED]
    # A model that no claim was measured on has no column.
    cases = list(dict.fromkeys(zip(asked["model"], asked["task"], asked["source"], strict=True)))
    measured = set(zip(asked["claim"], asked["model"], asked["task"], asked["source"], strict=True))
    total = verdicts.overall(judged)
    claims = list(dict.fromkeys(total["claim"]))
    figure, ax = plt.subplots(figsize=(max(6.0, 2.0 + 1.5 * len(cases)), 2.2 + 0.5 * len(claims)))
    for row in total.itertuples(index=False):
        if (row.model, row.task, row.source) not in cases:
            continue
        x, y = cases.index((row.model, row.task, row.source)), claims.index(row.claim)
        # Their names have blanks, so the counts are read by place.
        counts = dict(zip(VERDICTS, row[4 : 4 + len(VERDICTS)], strict=True))
        nothing = NOT_JUDGED if (row.claim, row.model, row.task, row.source) in measured else "–"
        text = "\n".join(f"{count} {_SHORT[verdict]}" for verdict, count in counts.items() if count) or nothing
        colour = _COLOURS[row.verdict]
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
        ax.text(x, y, text, ha="center", va="center", size=7, color="black")
    ax.set_xlim(-0.5, len(cases) - 0.5)
    ax.set_ylim(len(claims) - 0.5, -0.5)
    ax.set_yticks(range(len(claims)), claims)
    ax.set_xticks(
        range(len(cases)),
        [f"{model}\n{task}, {_DATA[source]}" for model, task, source in cases],
        rotation=30,
        ha="right",
        size=8,
    )
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    shown = [verdict for verdict in (*VERDICTS, MIXED) if verdict in set(total["verdict"])]
    ax.legend(
        handles=[Patch(facecolor=_COLOURS[verdict], label=verdict) for verdict in shown],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(shown),
        fontsize=8,
        frameon=False,
    )
    return figure


def summary_table(judged: pd.DataFrame) -> Styler:
    """The verdict on each claim, model and task, with the effect of the last state judged.

    Args:
        judged: what :func:`ridge_utils.audit.verdicts.judge` gave.
    """
    rows = []
    for total in verdicts.overall(judged).to_dict("records"):
        own = judged[
            (
                judged[["claim", "model", "task", "source"]] == [total[k] for k in ("claim", "model", "task", "source")]
            ).all(axis=1)
        ]
        own = own[own["verdict"] != NOT_JUDGED]
        if own.empty:
            continue
        states = ", ".join(f"{total[verdict]} {verdict}" for verdict in VERDICTS if total[verdict])
        last = own.iloc[-1]
        rows.append(
            {
                "claim": total["claim"],
                "model, task": f"{total['model']}, {total['task']} ({_DATA[total['source']]})",
                "verdict": total["verdict"],
                "states": states,
                "effect, last state": last["effect"],
                "with its 95 % interval": _interval(last),
                "figure": _link(total["claim"]),
            }
        )
    caption = "Verdicts. Where the states of one model and task have different ones, they are mixed."
    return _styled(pd.DataFrame(rows), caption)


def claim_table(judged: pd.DataFrame, claim: str) -> Styler:
    """Every state in which a claim was judged, with its effect, interval, p-value and reason.

    Args:
        judged: what :func:`ridge_utils.audit.verdicts.judge` gave.
        claim: C1 to C9.
    """
    own = judged[(judged["claim"] == claim) & (judged["effect"] != "")]
    shown = pd.DataFrame(
        {
            "model, task": own["model"] + ", " + own["task"] + " (" + own["source"].map(_DATA) + ")",
            "state": own["when"],
            "verdict": own["verdict"],
            "effect": own["effect"],
            "with its 95 % interval": [_interval(row) for _, row in own.iterrows()],
            "p (Holm)": ["" if pd.isna(p) else f"{p:.2g}" for p in own["p"]],
            "why": own["why"],
        }
    )
    return _styled(shown, f"{claim}: every state that was judged")


def claim_text(judged: pd.DataFrame, claim: str) -> str:
    """A claim in the paper's sense, what becomes of it here, and where that can be followed up (Markdown).

    Args:
        judged: what :func:`ridge_utils.audit.verdicts.judge` gave.
        claim: C1 to C9.
    """
    stated = paper.claims().set_index("id").loc[claim]
    own = judged[(judged["claim"] == claim) & (judged["why"] != NOT_MEASURED)]
    parts = [f"**{stated['statement']}** The paper's evidence: {stated['evidence']}."]
    if own.empty:
        return f"{parts[0]} Nothing that is stored speaks to it."
    for (model, task, source), rows in own.groupby(["model", "task", "source"], sort=False):
        counts = rows["verdict"].value_counts()
        words = ", ".join(f"{verdict} in {counts[verdict]}" for verdict in (*VERDICTS, NOT_JUDGED) if verdict in counts)
        where = (
            f"*{model}, {task} ({_DATA[source]} data):* of {len(rows)} state{'s' if len(rows) > 1 else ''}, {words}."
        )
        reason = rows["why"].value_counts()
        if len(reason) and reason.index[0]:
            where += f" {reason.index[0]}"
            where += (
                ""
                if len(reason) == 1
                else " (in most of them)"
                if reason.iloc[0] > len(rows) / 2
                else " (among others)"
            )
        parts.append(where)
    page, _ = _FIGURES[claim]
    files = list(dict.fromkeys(file for cell in own["files"] for file in cell.split(", ") if file))
    commands = list(dict.fromkeys(filter(None, map(_command, files))))
    parts.append(
        f"The rule is in [](../book/protocol.md), the figure in [{page}]({page}.ipynb), the numbers are in "
        + ", ".join(f"`results/{file}`" for file in files)
        + (f"; made by {', '.join(f'`{command}`' for command in commands)}." if commands else ".")
    )
    return "\n\n".join(parts)


def headline(judged: pd.DataFrame) -> str:
    """How many of the claims hold, for the reader who reads one sentence (Markdown).

    Args:
        judged: what :func:`ridge_utils.audit.verdicts.judge` gave.
    """
    total = verdicts.overall(judged)
    total = total[total["verdict"] != NOT_JUDGED]
    counts = total["verdict"].value_counts()
    words = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in (*VERDICTS, MIXED))
    models = list(dict.fromkeys(total["model"]))
    tasks = list(dict.fromkeys(total["task"]))
    never = [
        claim
        for claim, rows in judged[judged["verdict"] != NOT_JUDGED].groupby("claim", sort=False)
        if not (rows["verdict"] == "reproduced").any()
    ]
    said = f"Of {len(total)} pairs of a claim and a model on a task ({', '.join(models)}; {', '.join(tasks)}): {words}."
    if never:
        said += f" In no state at all reproduced: {', '.join(never)}."
    return said


def counts_table(judged: pd.DataFrame) -> str:
    """How often each verdict was given, a row per claim (a Markdown table).

    Args:
        judged: what :func:`ridge_utils.audit.verdicts.judge` gave.
    """
    statements = paper.claims().set_index("id")["statement"]
    out = [" | ".join(["claim", "what it says", *VERDICTS]), " | ".join(["---", "---", *(["---:"] * len(VERDICTS))])]
    for claim, rows in judged.groupby("claim", sort=False):
        counts = [str(int((rows["verdict"] == verdict).sum())) for verdict in VERDICTS]
        out.append(" | ".join([claim, statements[claim], *counts]))
    return "\n".join(f"| {line} |" for line in out)


def lines(judged: pd.DataFrame) -> str:
    """How often each verdict was given, a line per claim.

    Args:
        judged: what :func:`ridge_utils.audit.verdicts.judge` gave.
    """
    out = []
    for claim, rows in judged.groupby("claim", sort=False):
        counts = rows["verdict"].value_counts()
        found = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts]
        out.append(f"{claim}: {', '.join(found) or NOT_JUDGED}")
    return "\n".join(out)


def _interval(row: Mapping[str, Any]) -> str:
    if not np.isfinite(row["estimate"]):
        return ""
    return f"{row['estimate'] + 0.0:.3f} [{row['low'] + 0.0:.3f}, {row['high'] + 0.0:.3f}] {row['unit']}"


def _link(claim: str) -> str:
    page, name = _FIGURES[claim]
    return f'<a href="{page}.html#{name}">figure</a>'


def _command(file: str) -> str:
    """The command that makes a reference run's file again."""
    folder, *rest = file.removesuffix(".csv").split("/")
    if not rest:
        return f"ridge run {folder}"
    return f"ridge run {rest[1]} --profile {rest[0]}" if folder == "reference" else ""


def _styled(shown: pd.DataFrame, caption: str) -> Styler:
    style = formatting.styled(shown, caption).set_table_attributes('class="sentences"')
    return style.map(lambda verdict: f"background-color: {_COLOURS[verdict]}; color: black", subset=["verdict"])
