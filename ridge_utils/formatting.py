"""Numbers and tables as every page writes them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from ridge_utils import inference


def when(step: int) -> str:
    """A checkpoint in a sentence: ``untouched``, ``after 50 fine-tuning steps``."""
    return f"after {int(step)} fine-tuning step{'s' if step > 1 else ''}" if step else "untouched"


def listed(items: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; the empty text of no items."""
    *first, last = list(items) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def number(value: float, digits: int, sign: str = "") -> str:
    """A number with so many decimals, – where there is none; ``sign="+"`` writes the plus as well."""
    # + 0.0, or a rounded -0.0001 would read -0.000.
    return "–" if pd.isna(value) else f"{round(float(value), digits) + 0.0:{sign}.{digits}f}"


def styled(shown: pd.DataFrame, caption: str) -> Styler:
    """A table for people, without its index; its id goes by its content, so that an executed page stays the same."""
    content = caption + shown.to_csv(index=False)
    table_id = hashlib.sha256(content.encode()).hexdigest()[:8]
    return shown.style.hide(axis="index").set_caption(caption).set_uuid(table_id)


def ridge_name(ridge: "pd.Series[Any]") -> str:
    """The ridge layer of a row of :func:`ridge_utils.statistics.ridge_summary`; where there is none, that says so."""
    if ridge["has_ridge"]:
        return f"{ridge['ridge_layer']} of {ridge['blocks']}"
    return f"none (largest at {ridge['ridge_layer']} of {ridge['blocks']})"


def ridge_table(summary: pd.DataFrame, columns: Sequence[str]) -> Styler:
    """Where the ridge is and how far the quantity falls from its largest layer, as a table for people.

    ``summary`` holds rows of :func:`ridge_utils.statistics.ridge_summary`, ``columns`` are those that tell them apart.
    """
    shown = {column: [_label(value, column) for value in summary[column]] for column in columns}
    shown["ridge layer"] = [ridge_name(row) for _, row in summary.iterrows()]
    places = {
        "at_ridge": "at the largest",
        "at_last_block": "at the last block",
        "at_final_norm": "after the final norm",
    }
    for column, heading in places.items():
        if summary[column].notna().any():
            shown[heading] = [number(value, 4) for value in summary[column]]
    shown["fall to the last block"] = [
        f"{number(fall, 4)} ± {half_width:.4f}"
        for fall, half_width in zip(summary["to_last_block"], summary["to_last_block_half_width"], strict=True)
    ]
    return styled(pd.DataFrame(shown), "In nats; ± is 2σ over all seeds, and a ridge has a fall beyond it")


def effect_table(effects: pd.DataFrame, columns: Mapping[str, str] | Sequence[str], caption: str) -> Styler:
    """Effects as a table for people, their p-values after Holm's correction over its rows.

    Args:
        effects: rows with ``estimate``, ``low``, ``high``, ``p`` and ``effect_size``, as
            :func:`ridge_utils.inference.effects` gives them; they are one family of tests.
        columns: which columns tell the rows apart, as headings by column or as a list of columns; a ``split`` reads
            ID, OOD or both, and what is missing reads –.
        caption: what the effects are; that intervals cover 95 % and p is corrected is added to it.
    """
    headings = dict(columns) if isinstance(columns, Mapping) else {name: name.replace("_", " ") for name in columns}
    shown = {heading: [_label(value, column) for value in effects[column]] for column, heading in headings.items()}
    shown["estimate"] = [number(value, 3, "+") for value in effects["estimate"]]
    shown["interval"] = [
        f"{number(low, 3)} to {number(high, 3)}" for low, high in zip(effects["low"], effects["high"], strict=True)
    ]
    shown["p"] = [p_text(p) for p in inference.holm(effects["p"].tolist())]
    if effects["effect_size"].notna().any():
        shown["effect size"] = [number(value, 2, "+") for value in effects["effect_size"]]
    rows = "row" if len(effects) == 1 else f"{len(effects)} rows"
    covers = f"{inference.CONFIDENCE:.0%}".replace("%", " %")
    says = f"{caption}; intervals cover {covers}, p is after Holm's correction over the {rows}"
    return styled(pd.DataFrame(shown), says)


def effect_text(effects: pd.DataFrame) -> str:
    """The one row of effects as a number in a sentence, ``0.12 [0.05, 0.19]``; where there is none, that says so."""
    if effects.empty:
        return "not measured yet"
    estimate, low, high = (number(value, 2) for value in effects[["estimate", "low", "high"]].iloc[0])
    return f"{estimate} [{low}, {high}]"


def p_text(p: float) -> str:
    """A p-value with three decimals; ``< 0.001`` where it is smaller, – where there is none."""
    if pd.isna(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _label(value: object, column: str) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return "–"
    if column == "split":
        return {"all": "both"}.get(str(value), str(value).upper())
    return str(value)
