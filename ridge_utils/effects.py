"""Tables and sentences of effects: estimate, interval, p-value after Holm's correction, effect size.

What the pages of the audit share. The effects are those of :mod:`ridge_utils.inference`, a row each.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from ridge_utils import formatting, inference

#: Up to this corrected p-value an effect counts as beyond its error.
LEVEL = 0.05

#: What :func:`ridge_utils.inference.effects` says of each effect.
_NUMBERS = ("estimate", "low", "high", "p", "effect_size")


def gathered(tables: Mapping[str, pd.DataFrame], names: Mapping[str, str]) -> pd.DataFrame:
    """The effects of several quantities in several tables of measurements, one row each.

    Args:
        tables: tables of measurements, by what the reader calls them; one without these quantities adds no row.
        names: what the reader calls each quantity, by its name in the tables.

    Returns:
        The rows of :func:`ridge_utils.inference.effects` with ``run`` (whose table), ``quantity`` and ``effect`` (what
        the reader calls it), in the order of the arguments.
    """
    parts = [
        inference.effects(table, quantity).assign(run=run, quantity=quantity, effect=effect)
        for run, table in tables.items()
        for quantity, effect in names.items()
    ]
    return pd.concat(parts, ignore_index=True)


def across_seeds(effects: pd.DataFrame) -> pd.DataFrame:
    """The effects of each fine-tuned model over its training seeds, by the protocol.

    Args:
        effects: what :func:`gathered` or :func:`ridge_utils.inference.effects` gave.

    Returns:
        One row for all training seeds together, with the mean of their estimates and of their effect sizes, the
        interval that spans all of theirs, and the largest p-value, 1 where their signs differ, so that each seed has to
        show the effect by itself.
    """
    keys = [column for column in effects if column not in (*_NUMBERS, "train_seed")]
    groups = effects.assign(sign=np.sign(effects["estimate"])).groupby(keys, sort=False, dropna=False)
    rules = {"estimate": "mean", "low": "min", "high": "max", "p": "max", "effect_size": "mean", "sign": "nunique"}
    out = groups.agg(rules).reset_index()
    return out.assign(p=out["p"].where(out["sign"] == 1, 1.0)).drop(columns="sign")


def effect_table(
    effects: pd.DataFrame, columns: Mapping[str, str] | Sequence[str], caption: str, digits: int = 3
) -> Styler:
    """Effects as a table for people, their p-values after Holm's correction over its rows.

    Args:
        effects: rows with ``estimate``, ``low``, ``high``, ``p`` and ``effect_size``, as
            :func:`ridge_utils.inference.effects` gives them; they are one family of tests.
        columns: which columns tell the rows apart, as headings by column or as a list of columns; a ``split`` reads
            ID, OOD or both, and what is missing reads –.
        caption: what the effects are; that intervals cover 95 % and p is corrected is added to it.
        digits: decimals of estimates and intervals.
    """
    headings = dict(columns) if isinstance(columns, Mapping) else {name: name.replace("_", " ") for name in columns}
    shown = {heading: [_label(value, column) for value in effects[column]] for column, heading in headings.items()}
    shown["estimate"] = [formatting.number(value, digits, "+") for value in effects["estimate"]]
    shown["interval"] = [_interval(*ends, digits) for ends in zip(effects["low"], effects["high"], strict=True)]
    shown["p"] = [p_text(p) for p in inference.holm(effects["p"].tolist())]
    if effects["effect_size"].notna().any():
        shown["effect size"] = [
            "–" if pd.isna(value) else formatting.number(value, 2, "+") for value in effects["effect_size"]
        ]
    rows = "row" if len(effects) == 1 else f"{len(effects)} rows"
    covers = f"{inference.CONFIDENCE:.0%}".replace("%", " %")
    says = f"{caption}; intervals cover {covers}, p is after Holm's correction over the {rows}"
    return formatting.styled(pd.DataFrame(shown), says)


def effect_text(effect: "pd.Series[float]", digits: int = 3) -> str:
    """One effect inside a sentence: ``+0.120 (0.080 to 0.160; p < 0.001; effect size +0.61)``.

    Args:
        effect: a row of effects; its ``p`` is shown as it stands, so correct it first.
        digits: decimals of the estimate and the interval.
    """
    size = "" if pd.isna(effect["effect_size"]) else f"; effect size {formatting.number(effect['effect_size'], 2, '+')}"
    p = p_text(effect["p"])
    interval = _interval(effect["low"], effect["high"], digits)
    return f"{formatting.number(effect['estimate'], digits, '+')} ({interval}; p {p if p.startswith('<') else f'= {p}'}{size})"


def sides(effects: pd.DataFrame, claimed: Mapping[str, int]) -> str:
    """How many effects are beyond their error, and on which side (Markdown).

    Args:
        effects: what :func:`gathered` gave; its rows are one family of tests.
        claimed: the sign that the paper's claim gives each ``quantity``, 1 or -1.
    """
    firm = pd.Series(inference.holm(effects["p"].tolist()), index=effects.index) <= LEVEL
    side = effects["estimate"] * effects["quantity"].map(claimed).astype(float) > 0
    counts = [int(which.sum()) for which in (firm & side, firm & ~side, ~firm)]
    return (
        f"Of {len(effects)} effects, {counts[0]} are beyond their error on the side of the paper's claim, {counts[1]} "
        f"on the other side, and {counts[2]} are not told from zero (p up to {LEVEL:g} after Holm's correction over "
        "all of them)."
    )


def p_text(p: float) -> str:
    """A p-value with three decimals; ``< 0.001`` where it is smaller, – where there is none."""
    if pd.isna(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _interval(low: float, high: float, digits: int) -> str:
    return f"{formatting.number(low, digits)} to {formatting.number(high, digits)}"


def _label(value: object, column: str) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return "–"
    if column == "split":
        return {"all": "both"}.get(str(value), str(value).upper())
    return str(value)
