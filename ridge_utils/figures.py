"""One function per kind of figure: a tidy table in, a figure out. Nothing is computed here but the bands' edges.

A figure is 6.8 inches wide, with at most two panels side by side, so that it can be read on a phone.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ridge_utils.statistics import band

#: Colour-blind-safe hues of the samples, used in every figure.
COLOURS = {"id": "#0072b2", "ood": "#d55e00", "all": "#444444", "train": "#009e73"}
#: What figures call the samples.
NAMES = {"id": "in-distribution (ID)", "ood": "out-of-distribution (OOD)", "all": "ID and OOD together"}
#: Hues of curves that are neither samples nor checkpoints (Okabe and Ito).
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
#: What the vertical axis of a quantity says.
LABELS = {"predictive_information": "I(Z; Y) in nats", "incremental_information": "I(ΔZ; Y) in nats"}

WIDTH = 6.8


def style() -> None:
    """Set matplotlib up for the book: an opaque white background, readable in the dark theme, and plain axes."""
    mpl.rcParams.update(
        {
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "axes.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "figure.constrained_layout.use": True,
            "figure.dpi": 120,
            "font.size": 10,
            "legend.fontsize": 9,
            "legend.frameon": False,
        }
    )


def checkpoint_shades(split: str, count: int) -> list[tuple[float, float, float]]:
    """Shades of a sample's colour for so many checkpoints, from full to light: lighter is later, as in the paper."""
    red, green, blue = mpl.colors.to_rgb(COLOURS[split])
    lightness = [0.6 * i / max(1, count - 1) for i in range(count)]
    return [(red + (1 - red) * t, green + (1 - green) * t, blue + (1 - blue) * t) for t in lightness]


def checkpoint_name(step: int) -> str:
    """How legends, titles and tables call a checkpoint."""
    return f"step {int(step)}" if step else "untouched"


def profiles(
    table: pd.DataFrame,
    quantity: str = "predictive_information",
    *,
    panels: str = "split",
    curves: str = "step",
    null: str = "",
    sigmas: float = 2.0,
    label: str = "",
    title: str = "",
    sharey: bool = True,
) -> Figure:
    """A quantity over layers: a panel per value of one column, a curve with its band per value of another.

    Checkpoints are shades of their sample's colour, lighter is later. The state after the final norm stands apart as
    a diamond, one place to the right of the last block.

    Args:
        table: table of measurements, a value per layer and seed.
        panels, curves: the columns that tell them apart.
        null: another quantity of the table, drawn dotted in the colours of the curves that it belongs to.
        sigmas: half-width of the bands in standard deviations over all seeds.
        label: of the vertical axis; by default what :data:`LABELS` has.
    """
    rows = table[table["quantity"].isin([quantity, null])]
    figure, axes = panel_grid(_order(rows[panels], panels), panels, sharey=sharey)
    keys = _order(rows[curves], curves)
    for value, ax in axes.items():
        here = rows[rows[panels] == value]
        hue = str(value) if panels == "split" else str(here["split"].iloc[0])
        shades = checkpoint_shades(hue, len(keys)) if curves == "step" else [*HUES, *HUES][: len(keys)]
        for key, shade in zip(keys, shades, strict=True):
            of_key = here[here[curves] == key]
            measured = of_key["quantity"] == quantity
            if measured.any():
                curve(ax, of_key[measured], shade, _heading(curves, key), sigmas)
            if (~measured).any():
                curve(ax, of_key[~measured], shade, f"{_heading(curves, key)}, null", sigmas, line=":")
        layer_axis(ax, here)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(label or LABELS.get(quantity, quantity.replace("_", " ")))
    legend(figure, axes.values())
    figure.suptitle(title, fontsize=11)
    return figure


def two_estimates(
    table: pd.DataFrame, null: pd.DataFrame, unbiased: pd.DataFrame, quantity: str, *, title: str = ""
) -> Figure:
    """The paper's estimate with its null beside the unbiased one, over layers, a curve per checkpoint.

    Args:
        table: measurements of ``quantity`` on both splits together.
        null: rows ``null_information`` of the same.
        unbiased: what :func:`ridge_utils.measures.unbiased_profile` gave; training seeds are averaged.
    """
    names = ("the paper's estimate; dotted: its null", "without bias (order 2)")
    right = unbiased[unbiased["quantity"] == "unbiased_information"].assign(quantity=quantity, estimate=names[1])
    left = pd.concat([table[table["split"] == "all"], null]).assign(estimate=names[0])
    # Information of order 2 is smaller than of order 1, whatever the bias.
    shown = pd.concat([left, right])
    figure = profiles(shown, quantity, panels="estimate", null="null_information", title=title, sharey=False)
    ax = figure.axes[1]
    ends = unbiased[unbiased["site"] != "final_norm"].pivot_table(
        index=["step", "layer"], columns="quantity", values="value"
    )
    steps = ends.index.unique("step")
    for step, shade in zip(steps, checkpoint_shades("all", len(steps)), strict=True):
        low, high = (ends.loc[step, f"unbiased_information_{end}"] for end in ("low", "high"))
        ax.fill_between(low.index.astype(int), low, high, color=shade, alpha=0.25, linewidth=0)
    return figure


def curve(ax: Axes, rows: pd.DataFrame, colour: Any, label: str, sigmas: float = 2.0, line: str = "-") -> None:
    """Draw one mean over layers with its band, and a diamond for the state after the final norm if it is there.

    ``rows`` are measurements of one quantity at one checkpoint and split.
    """
    summary = band(rows, ["site", "layer"], sigmas)
    body = summary[summary["site"] != "final_norm"].sort_values("layer")
    layers = body["layer"].astype(int)
    ax.fill_between(layers, body["low"], body["high"], color=colour, alpha=0.25, linewidth=0)
    ax.plot(layers, body["mean"], color=colour, label=label, ls=line)
    norm = summary[summary["site"] == "final_norm"]
    if len(norm):
        ax.errorbar(
            norm["layer"].astype(int) + 1, norm["mean"], yerr=norm["half_width"], color=colour, marker="D",
            markersize=4, mfc=colour if line == "-" else "white",
        )  # fmt: skip


def effects(table: pd.DataFrame, rows: str, *, groups: str, panels: str, label: str) -> Figure:
    """Estimates with their intervals, a line each, around 0.

    Args:
        table: ``estimate``, ``low`` and ``high`` (NaN: no interval), and the columns named here.
        rows: column with the name of each line, in the table's order, the first on top.
        groups, panels: columns that are told by colour, side by side within a line, and by panel.
        label: of the horizontal axis.
    """
    figure, axes, names, colours = _named_lines(table, rows, groups, panels, label)
    offsets = np.linspace(-0.25, 0.25, len(colours)) if len(colours) > 1 else [0.0]
    for ax, here in axes:
        ax.axvline(0, color="#999999", lw=0.8)
        for (key, hue), offset in zip(colours.items(), offsets, strict=True):
            of_key = here[here[groups] == key]
            places = [names.index(name) + offset for name in of_key[rows]]
            ax.hlines(places, of_key["low"], of_key["high"], color=hue, lw=1.6)
            ax.plot(of_key["estimate"], places, "o", color=hue, ms=4.5, label=_heading(groups, key))
    legend(figure, [ax for ax, _ in axes])
    return figure


def heat_map(table: pd.DataFrame, x: str, y: str, value: str, *, label: str) -> Figure:
    """The mean of a value over two columns, as colours; cells without a value stay white.

    Args:
        x, y: columns of the two axes; numbers are drawn where they are, with integer ticks, texts in the table's order.
        label: of the colour bar.
    """
    grid = table.pivot_table(index=y, columns=x, values=value, sort=False)
    grid = grid.reindex(index=_order(table[y], y), columns=_order(table[x], x)).astype(float)
    figure, axes = panel_grid([""], height=max(2.2, 0.6 + 0.16 * len(grid)))
    ax = axes[""]
    image = ax.imshow(grid, aspect="auto", interpolation="nearest", cmap="viridis")
    for axis, names in ((ax.xaxis, list(grid.columns)), (ax.yaxis, list(grid.index))):
        step = max(1, -(-len(names) // 12)) if all(isinstance(name, int | np.integer) for name in names) else 1
        axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]])
    ax.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))
    figure.colorbar(image, ax=[ax], label=label, shrink=0.9)
    return figure


def bars(table: pd.DataFrame, rows: str, value: str, *, groups: str, panels: str, label: str) -> Figure:
    """Horizontal bars, a line per name, with error bars from ``low`` to ``high``; see :func:`effects`."""
    figure, axes, names, colours = _named_lines(table, rows, groups, panels, label)
    thick = 0.8 / len(colours)
    for ax, here in axes:
        for place, (key, hue) in enumerate(colours.items()):
            of_key = here[here[groups] == key]
            places = [names.index(name) - 0.4 + thick * (place + 0.5) for name in of_key[rows]]
            ax.barh(places, of_key[value], thick, color=hue, label=_heading(groups, key))
            ax.hlines(places, of_key["low"], of_key["high"], color="black", lw=1)
    legend(figure, [ax for ax, _ in axes])
    return figure


def _named_lines(
    table: pd.DataFrame, rows: str, groups: str, panels: str, label: str
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]], list[Any], dict[Any, Any]]:
    """Panels with a line per name, the first on top: each with its rows, the names, and a colour for each group."""
    names = list(dict.fromkeys(table[rows]))
    keys = _order(table[groups], groups)
    colours = [COLOURS[key] for key in keys] if groups == "split" else HUES
    height = 0.55 + (0.12 + 0.16 * len(keys)) * max(2, len(names))
    figure, axes = panel_grid(_order(table[panels], panels), panels, height, sharex=True)
    for ax in axes.values():
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
    # The lowest panel of each column.
    for ax in {ax.get_subplotspec().colspan.start: ax for ax in axes.values()}.values():
        ax.set_xlabel(label)
    here = [(ax, table[table[panels] == value]) for value, ax in axes.items()]
    return figure, here, names, dict(zip(keys, colours, strict=False))


def panel_grid(
    values: Sequence[Any], column: str = "", height: float = 2.9, sharex: bool = False, sharey: bool = True
) -> tuple[Figure, dict[Any, Axes]]:
    """Axes for the panels, at most two side by side and titled by what they show; one alone is as wide as the figure.

    A panel for each of the values of ``column`` is ``height`` inches high.
    """
    across = min(2, len(values))
    down = -(-len(values) // across)
    size = (WIDTH, height * down + 0.5)
    figure, grid = plt.subplots(down, across, figsize=size, squeeze=False, sharex=sharex, sharey=sharey)
    for ax in grid.flat[len(values) :]:
        ax.set_axis_off()
    axes = dict(zip(values, grid.flat, strict=False))
    for value, ax in axes.items():
        ax.set_title(_heading(column, value))
        ax.tick_params(labelbottom=True)
    return figure, axes


def layer_axis(ax: Axes, rows: pd.DataFrame, floor: bool = True) -> None:
    """Integer ticks and the name of the axis over layers; the vertical one starts at zero if nothing lies below it."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    has_norm, has_embedding = (rows["site"] == "final_norm").any(), (rows["site"] == "embedding").any()
    ax.set_xlabel("layer (◆ after the final norm)" if has_norm else "layer" if has_embedding else "block")
    if floor and ax.get_ylim()[0] > -0.1 * ax.get_ylim()[1]:
        ax.set_ylim(bottom=0, auto=True)


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all panels, below them, where it covers no data."""
    # A name once.
    entries = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(4, 72 // (max(map(len, entries), default=1) + 6)))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def _order(values: "pd.Series[Any]", column: str) -> list[Any]:
    """The values of a column as figures order them: samples as in NAMES, numbers by size, others as they come."""
    present = list(dict.fromkeys(values.dropna()))
    if column == "split":
        return [split for split in COLOURS if split in present]
    return sorted(present) if pd.api.types.is_numeric_dtype(values) else present


def _heading(column: str, value: Any) -> str:
    """What a title or a legend calls a value of a column."""
    if column == "step":
        return checkpoint_name(value)
    return NAMES.get(str(value), str(value)) if column == "split" else str(value)
