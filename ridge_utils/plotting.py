"""One function per kind of figure: a table in, axes out. Nothing is computed here but the band's edges."""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from ridge_utils.statistics import band

#: Colour-blind-safe hues of the three samples, used in every figure.
COLOURS = {"id": "#0072b2", "ood": "#d55e00", "all": "#444444"}
NAMES = {"id": "in-distribution (ID)", "ood": "out-of-distribution (OOD)", "all": "ID and OOD together"}


def style() -> None:
    """Set matplotlib up for the book: an opaque white background, readable in the dark theme, and plain axes."""
    mpl.rcParams.update(
        {
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "axes.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
            "figure.dpi": 120,
            "font.size": 10,
            "legend.frameon": False,
        }
    )


def information_figure(table: pd.DataFrame, title: str) -> Figure:
    """The paper's Figure 2 for one model and task: ID, OOD and both together, side by side.

    Args:
        table: table of measurements with the quantity ``predictive_information``.
        title: what to write above.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
    for ax, split in zip(axes, NAMES, strict=True):
        information_profile(ax, table, split)
    axes[0].set_ylabel("I(Z; Y) in nats")
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    return figure


def information_profile(ax: Axes, table: pd.DataFrame, split: str, sigmas: float = 2.0) -> None:
    """Draw predictive information over layers, one curve per checkpoint, lighter = later, with bands over seeds.

    The state after the final norm stands apart, as a diamond one place to the right of the last block.

    Args:
        ax: where to draw.
        table: table of measurements with the quantity ``predictive_information``.
        split: ``id``, ``ood`` or ``all``.
        sigmas: half-width of the bands in standard deviations over sampling seeds.
    """
    rows = table[(table["quantity"] == "predictive_information") & (table["split"] == split)]
    steps = sorted(rows["step"].unique())
    shades = checkpoint_shades(split, len(steps))
    for step, shade in zip(steps, shades, strict=True):
        summary = band(rows[rows["step"] == step], ["site", "layer"], sigmas)
        body = summary[summary["site"] != "final_norm"]
        layers = body["layer"].astype(int)
        ax.fill_between(layers, body["low"], body["high"], color=shade, alpha=0.25, linewidth=0)
        ax.plot(layers, body["mean"], color=shade, label=f"step {step}" if step else "untouched")
        norm = summary[summary["site"] == "final_norm"]
        ax.errorbar(
            norm["layer"].astype(int) + 1, norm["mean"], yerr=norm["half_width"], color=shade, marker="D", markersize=4
        )
    ax.set_xlabel("layer (0: embedding; ◆: after the final norm)")
    ax.set_title(NAMES[split], fontsize=10)
    ax.set_ylim(bottom=0)


def checkpoint_shades(split: str, count: int) -> list[tuple[float, float, float]]:
    """Shades of a sample's colour for so many checkpoints, from full to light: lighter is later, as in the paper."""
    red, green, blue = mpl.colors.to_rgb(COLOURS[split])
    lightness = [0.65 * i / max(1, count - 1) for i in range(count)]
    return [(red + (1 - red) * t, green + (1 - green) * t, blue + (1 - blue) * t) for t in lightness]


def differences(ax: Axes, table: pd.DataFrame, tolerance: pd.DataFrame, step: int) -> None:
    """Draw, layer by layer, how far each condition moves predictive information at one checkpoint, and the tolerance.

    Differences below 1e-6 nats are drawn there: they stand for none.

    Args:
        ax: where to draw; its vertical axis becomes logarithmic.
        table: what :func:`ridge_utils.reproducibility.repeat` gave.
        tolerance: ``layer`` and ``tolerance`` of the same checkpoint.
        step: the checkpoint.
    """
    rows = table[(table["step"] == step) & (table["site"] == "block") & (table["quantity"] == "predictive_information")]
    for (changes, condition), group in rows.groupby(["changes", "condition"], sort=False):
        largest = group.groupby("layer")["largest_difference"].max().clip(lower=1e-6)
        style = {"ls": "-"} if changes == "arithmetic" else {"ls": "--", "alpha": 0.7}
        ax.plot(largest.index.astype(int), largest, label=condition, **style)
    allowed = tolerance.sort_values("layer")
    ax.plot(allowed["layer"].astype(int), allowed["tolerance"], color="black", lw=2, label="tolerance")
    ax.set_yscale("log")
    ax.set_xlabel("layer")
    ax.set_title("untouched" if step == 0 else f"step {step}", fontsize=10)


def beside_paper(axes: Sequence[Axes], ours: pd.DataFrame, paper: pd.DataFrame, labels: tuple[str, str]) -> None:
    """Draw predictive information and early-exit accuracy over relative depth, ours and the paper's.

    Args:
        axes: two axes, for the information and for the accuracy.
        ours: one row per layer with ``depth`` (layer over blocks), ``predictive_information``, ``half_width``,
            ``accuracy_id`` and ``accuracy_ood``.
        paper: the same columns, without ``half_width``, as far as they are known.
        labels: what to call the two in the legend.
    """
    information, accuracy = axes
    information.fill_between(
        ours["depth"],
        ours["predictive_information"] - ours["half_width"],
        ours["predictive_information"] + ours["half_width"],
        color=COLOURS["all"],
        alpha=0.25,
        linewidth=0,
    )
    information.plot(ours["depth"], ours["predictive_information"], color=COLOURS["all"], label=labels[0])
    information.plot(
        paper["depth"], paper["predictive_information"], color=COLOURS["all"], ls=":", marker="s", mfc="white",
        label=labels[1],
    )  # fmt: skip
    information.set_ylabel("I(Z; Y) in nats")
    for split in ("id", "ood"):
        column = f"accuracy_{split}"
        known = paper.dropna(subset=[column])
        accuracy.plot(ours["depth"], ours[column], color=COLOURS[split], label=f"{labels[0]}, {split.upper()}")
        accuracy.plot(
            known["depth"], known[column], color=COLOURS[split], ls=":", marker="s", mfc="white",
            label=f"{labels[1]}, {split.upper()}",
        )  # fmt: skip
    accuracy.set_ylabel("early-exit accuracy")
    accuracy.set_ylim(-0.02, 1.02)
    for ax in axes:
        ax.set_xlabel("relative depth (layer / blocks)")
        ax.legend(fontsize=8, loc="upper left")


def ridge_names(summary: pd.DataFrame) -> list[str]:
    """The ridge layers of a summary as people read them: ``24 of 30``, or ``none``, where the last block is highest."""
    return [
        f"{row.ridge_layer} of {row.blocks}" if row.ridge_layer < row.blocks else f"none: highest at {row.blocks}"
        for row in summary.itertuples()
    ]


def with_band(mean: pd.Series, half_width: pd.Series) -> list[str]:
    """``mean ± half-width`` with three decimals, for a table that people read."""
    # + 0.0, or a rounded -0.0001 would read -0.000.
    return [f"{m + 0.0:.3f} ± {h:.3f}" for m, h in zip(mean.round(3), half_width, strict=True)]


def ridge_table(summary: pd.DataFrame) -> Styler:
    """Where the ridge is and how far information falls from it, as a table for people.

    Args:
        summary: what :func:`ridge_utils.statistics.ridge_summary` gave.
    """
    shown = pd.DataFrame(
        {
            "split": summary["split"].str.upper().replace("ALL", "both"),
            "step": summary["step"],
            "ridge layer": ridge_names(summary),
            "I at the ridge": summary["at_ridge"].map("{:.3f}".format),
            "at the last block": summary["at_last_block"].map("{:.3f}".format),
            "after the final norm": summary["at_final_norm"].map("{:.3f}".format),
            "fall to the last block": with_band(summary["to_last_block"], summary["to_last_block_half_width"]),
            "fall to the final norm": with_band(summary["to_final_norm"], summary["to_final_norm_half_width"]),
        }
    )
    return shown.style.hide(axis="index").set_caption("Ridge layer and falls, in nats; ± is 2σ over sampling seeds")


def table_1(beside: pd.DataFrame, model: str, step: int) -> Styler:
    """The paper's Table 1 for our model with the paper's rows beside it, as a table for people.

    Args:
        beside: what :func:`ridge_utils.statistics.beside` gave.
        model: our model's name.
        step: our checkpoint.
    """
    percent = {"accuracy_all": "all", "accuracy_id": "ID", "accuracy_ood": "OOD"}
    columns: dict[tuple[str, str], Sequence[str]] = {}
    for prefix, name in (("", f"{model}, step {step}"), ("paper_", "paper: GPT-2 Small")):
        layers = beside[f"{prefix}layer"]
        columns[name, "layer"] = ["" if pd.isna(layer) else f"{layer:.0f}" for layer in layers]
        values = beside[f"{prefix}predictive_information"]
        columns[name, "I(Z; Y)"] = ["" if pd.isna(value) else f"{round(value, 4) + 0.0:.4f}" for value in values]
        for column, label in percent.items():
            values = beside[prefix + column]
            columns[name, f"{label} %"] = ["" if pd.isna(value) else f"{100 * value:.1f}" for value in values]
    caption = "I(Z; Y) in nats, ID and OOD together; early-exit accuracy in percent; empty: not known"
    return pd.DataFrame(columns).style.hide(axis="index").set_caption(caption)
