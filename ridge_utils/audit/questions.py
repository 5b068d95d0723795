"""The referees' questions, each with the sentences that the audit's tables answer it by.

The questions are those of the paper's reviewers and readers; the page asks them in its own words, and all that is
said of numbers comes from here.
"""

from collections.abc import Callable, Mapping

import pandas as pd

from ridge_utils import reports, study
from ridge_utils.audit import block_effects, controls_page, decodability, early_exits, origins, sample_size
from ridge_utils.audit.verdicts import NOT_JUDGED, NOT_MEASURED, VERDICTS, Stored


def answers(judged: pd.DataFrame, tables: Mapping[str, Mapping[str, Stored]]) -> dict[str, str]:
    """What is found, for every question that is answered by measurements (Markdown).

    Args:
        judged: what :func:`ridge_utils.audit.verdicts.judge` gave.
        tables: the tables that it was given.

    Returns:
        Answers by ``question_1`` to ``question_11``; the twelfth, on captions, needs no number.
    """
    runs = {page: _first(own) for page, own in tables.items()}
    summary = origins.summary(origins.reference_runs())
    attention, _ = reports.attention_tests(runs["attention"])
    scaling, _ = reports.scaling_tests(runs["residual_scaling"])
    sizes = sample_size.stored()
    found = [
        [tally(judged, "C1"), each(runs["estimator_audit"], controls_page.null_headline)],
        [each(runs["decodability"], decodability.norm_headline)],
        [each(runs["decodability"], decodability.agreement_headline)],
        [each(runs["early_exit"], early_exits.variants_headline)],
        [each(runs["estimator_audit"], controls_page.control_headline)],
        [origins.sides_sentence(summary), origins.learned_sentence(summary)],
        [origins.size_sentence(summary), tally(judged, "C7")],
        [f"**Attention.** {attention}", f"**Residual scaling.** {scaling}"],
        [tally(judged, "C5"), each(runs["interventions"], block_effects.joint_headline)],
        [
            each(runs["estimator_audit"], controls_page.sample_headline),
            each(sizes, sample_size.sentence),
            each(sizes, sample_size.agreement_sentence),
        ],
        [tally(judged, "C2"), each(runs["early_exit"], early_exits.headline)],
    ]
    return {f"question_{number}": "\n\n".join(filter(None, parts)) for number, parts in enumerate(found, 1)}


def each(runs: Mapping[str, pd.DataFrame], say: Callable[[pd.DataFrame], str]) -> str:
    """The same sentence on several runs, a paragraph each (Markdown).

    Args:
        runs: tables of measurements, by what the reader calls them.
        say: makes the sentence.
    """
    parts = []
    for name, table in runs.items():
        text = say(table)
        # A list has to begin on a line of its own.
        parts.append("\n\n".join([f"**{name}.**", text]) if text.startswith("-") else f"**{name}.** {text}")
    return "\n\n".join(parts)


def tally(judged: pd.DataFrame, claim: str) -> str:
    """How often a claim got which verdict, for each model and task (Markdown).

    Args:
        judged: what :func:`ridge_utils.audit.verdicts.judge` gave.
        claim: C1 to C9.
    """
    own = judged[(judged["claim"] == claim) & (judged["why"] != NOT_MEASURED)]
    parts = []
    for (model, task), rows in own.groupby(["model", "task"], sort=False):
        said = [
            f"{verdict} in {len(found)}" + (f" ({found['why'].iloc[0].rstrip('.')})" if verdict == NOT_JUDGED else "")
            for verdict in (*VERDICTS, NOT_JUDGED)
            if len(found := rows[rows["verdict"] == verdict])
        ]
        parts.append(f"{model} on {task}, of {len(rows)} state{'s' if len(rows) > 1 else ''}: {', '.join(said)}")
    return f"Claim {claim}: {'; '.join(parts)}." if parts else ""


def _first(tables: Mapping[str, Stored]) -> dict[str, pd.DataFrame]:
    """Of several tables on one model and task the first, by a title; reference runs come first."""
    found: dict[tuple[str, ...], tuple[str, pd.DataFrame]] = {}
    for file, (table, origin) in tables.items():
        kind, _, rest = file.partition("/")
        case = tuple(table[["model", "task", "source"]].iloc[0])
        own = f"{case[0]}, {case[1]}, {'audit' if kind == 'audit' else 'default'} run"
        title = study.heading(rest.partition("/")[0], origin) if kind == "reference" else own
        found.setdefault(case, (title, table))
    return dict(found.values())
