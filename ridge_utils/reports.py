"""What tables of measurements say: sentences and small tables for the reader, all of them computed."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from ridge_utils import formatting
from ridge_utils.formatting import effect_table, sides
from ridge_utils.inference import across_seeds, gathered
from ridge_utils.statistics import third_of

#: What the reader calls the effects on residual scales, and the sign that the claim gives them.
SCALING_EFFECTS = {
    "scale_shift": ("the last block's factor, fitted on OOD less on ID", -1),
    "scaled_accuracy_gain": ("accuracy with the factors fitted on the split, less untouched", 1),
}


def scaling_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Residual scales by the place of their blocks, per split that they were fitted on.

    Args:
        table: table of measurements with ``residual_scale``.

    Returns:
        One row per split with the mean over fits and its standard deviation (``…_deviation``) of ``last_block``,
        ``last_third``, ``middle_third`` and ``first_third``.
    """
    rows = table[table["quantity"] == "residual_scale"]
    blocks = rows["layer"].max()
    thirds = pd.Series([third_of(layer, blocks) for layer in rows["layer"]], index=rows.index, dtype=object)
    chosen = {"last_block": rows["layer"] == blocks}
    chosen |= {f"{third}_third": thirds == third for third in ("last", "middle", "first")}
    out: dict[str, Any] = {}
    for name, which in chosen.items():
        fits = rows[which].groupby(["split", "train_seed", "sample_seed"], dropna=False)["value"].mean()
        out[name] = fits.groupby("split").mean()
        out[f"{name}_deviation"] = fits.groupby("split").std()
    return pd.DataFrame(out)


def scaling_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and loss before and after scaling, per split that they were evaluated on.

    Args:
        table: table of measurements with ``accuracy``, ``loss`` and those ``…_scaled_on_id`` and ``…_scaled_on_ood``.

    Returns:
        One row per split with ``accuracy``, ``accuracy_scaled_on_id``, …, ``loss``, …: means over fits; and their
        standard deviations over fits (``…_deviation``).
    """
    rows = table[table["quantity"] != "residual_scale"]
    shape = {"index": "split", "columns": "quantity", "values": "value"}
    deviation = rows.pivot_table(**shape, aggfunc="std", dropna=False).add_suffix("_deviation")
    return rows.pivot_table(**shape).join(deviation)


def scaling_headline(table: pd.DataFrame) -> str:
    """How the factors of the last blocks differ between the two fits, and what they do to OOD accuracy (Markdown).

    Args:
        table: table of measurements of residual scaling.
    """
    summary, effects = scaling_summary(table), scaling_effects(table)
    rows = table[table["quantity"] == "residual_scale"]
    keys = ["train_seed", "sample_seed"]
    last = rows[rows["layer"] == rows["layer"].max()].assign(train_seed=lambda t: t["train_seed"].fillna(-1))
    wide = last.pivot_table(index=keys, columns="split", values="value")
    difference = wide["ood"] - wide["id"]
    spread = difference.std() if len(difference) > 1 else 0.0
    ood = effects.loc["ood"]
    return (
        f"The last block's factor is {summary.loc['id', 'last_block']:.3f} when fitted on ID and "
        f"{summary.loc['ood', 'last_block']:.3f} when fitted on OOD data (difference {difference.mean():+.3f} ± "
        f"{spread:.3f}, 1σ over {len(difference)} pairs of fits); the last third of the blocks has a mean of "
        f"{summary.loc['id', 'last_third']:.3f} and {summary.loc['ood', 'last_third']:.3f}, the middle third of "
        f"{summary.loc['id', 'middle_third']:.3f} and {summary.loc['ood', 'middle_third']:.3f}. OOD accuracy is "
        f"{100 * ood['accuracy']:.1f} % untouched, {100 * ood['accuracy_scaled_on_ood']:.1f} % with the factors fitted "
        f"on OOD and {100 * ood['accuracy_scaled_on_id']:.1f} % with those fitted on ID data."
    )


def scaling_firmness(differences: pd.DataFrame) -> str:
    """How far a factor moves when the fine-tuning before it and the fit are repeated with other arithmetic (Markdown).

    Args:
        differences: what :func:`ridge_utils.tolerances.differences_of` gave for ``residual_scaling``.
    """
    moved = differences[(differences["quantity"] == "residual_scale") & (differences["changes"] == "arithmetic")]
    largest = moved["largest_difference"]
    return (
        f"**How firm is a single factor?** Repeated with other arithmetic in the fine-tuning and in the fit, the "
        f"factors of the default run move by {largest.median():.2f} (median over blocks of the largest difference over "
        f"seeds) and by up to {largest.max():.2f}. Differences between two factors of that size mean nothing."
    )


def scaling_table(table: pd.DataFrame) -> Styler:
    """Accuracy and loss on ID and OOD examples, before and after scaling.

    Args:
        table: table of measurements of residual scaling.
    """
    effects = scaling_effects(table)
    names = {"": "all factors 1", "_scaled_on_id": "fitted on ID", "_scaled_on_ood": "fitted on OOD"}
    lines = []
    for suffix, name in names.items():
        line = {"factors": name}
        for split in ("id", "ood"):
            for quantity, scale, digits in (("accuracy", 100, 1), ("loss", 1, 3)):
                mean = scale * effects.loc[split, quantity + suffix]
                deviation = scale * effects.loc[split, f"{quantity}{suffix}_deviation"]
                unit = " %" if quantity == "accuracy" else ""
                # One fit has no deviation.
                spread = f" ± {deviation:.{digits}f}" if suffix and pd.notna(deviation) else ""
                line[f"{split.upper()} {quantity}{unit}"] = f"{mean:.{digits}f}{spread}"
        lines.append(line)
    caption = "Accuracy and loss (nats) of the first target token on examples not fitted on; ± is 1σ over fits"
    return formatting.styled(pd.DataFrame(lines), caption)


def scaling_tests(tables: Mapping[str, pd.DataFrame]) -> tuple[str, Styler]:
    """Effect sizes and tests of residual scaling, and how many of them are on the claim's side.

    Args:
        tables: tables of measurements of residual scaling, by what the reader calls them.

    Returns:
        A sentence (Markdown) and a table, a row per run, checkpoint, split and effect, training seeds together.
    """
    caption = (
        "Effects of residual scaling: factors paired over fits (Student's t), accuracy paired within examples "
        "(sign-flip test)"
    )
    return _tests(tables, SCALING_EFFECTS, caption)


def _tests(
    tables: Mapping[str, pd.DataFrame], quantities: Mapping[str, tuple[str, int]], caption: str
) -> tuple[str, Styler]:
    found = across_seeds(gathered(tables, {quantity: name for quantity, (name, _) in quantities.items()}))
    place = list(tables).index
    found = found.sort_values(["run", "step", "split"], key=lambda c: c.map(place) if c.name == "run" else c)
    columns = {"run": "run", "step": "model", "split": "split", "effect": "effect"}
    if len(tables) == 1:
        del columns["run"]
    said = sides(found, {quantity: sign for quantity, (_, sign) in quantities.items()})
    return said, effect_table(found.assign(step=found["step"].map(formatting.when)), columns, caption)


def _together(summary: pd.DataFrame) -> pd.DataFrame:
    return summary[summary["split"] == "all"].sort_values("step")
