"""What the tables of the audit of the estimator say: sentences, small tables and figures, all of them computed."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas.io.formats.style import Styler

from ridge_utils import formatting, inference
from ridge_utils.audit.controls import CONTROLS, FALLS, FAMILIES, LABELS, OUTPUT
from ridge_utils.figures import COLOURS, NAMES, checkpoint_shades

#: The variants that are no controls: the paper's own estimate, and that less its null.
_OWN = ("", "excess")

_GEOMETRY = {"mean_cosine": "mean cosine", "effective_rank": "effective rank", "state_norm": "mean norm"}


def profiles(table: pd.DataFrame, quantity: str, variant: str = "") -> pd.DataFrame:
    """Profiles of one quantity with their bands.

    Args:
        table: table of measurements.
        quantity: its name.
        variant: a control; ``excess`` for the excess over the null in place of predictive information.

    Returns:
        One row per split, step, n, layer and site with ``mean`` and ``deviation`` (0 where there is one draw).
    """
    if variant == "excess":
        quantity, variant = "excess_information", ""
    rows = table[table["variant"] == variant]
    keys = ["split", "step", "n", "layer", "site"]
    mean = rows[rows["quantity"] == quantity].groupby(keys)["value"].mean().rename("mean")
    spread = rows[rows["quantity"] == f"{quantity}_deviation"].groupby(keys)["value"].mean().rename("deviation")
    return pd.concat([mean, spread], axis=1).fillna({"deviation": 0.0}).reset_index()


def ridges(table: pd.DataFrame) -> pd.DataFrame:
    """Where information is largest under every control, and whether it falls from there.

    Args:
        table: table of measurements.

    Returns:
        One row per split, step and variant, in the order of the page, with ``control`` (what the reader calls it),
        ``ridge_layer``, ``blocks``, ``fall`` to the last block with ``low`` and ``high``, ``survives`` (the ridge lies
        before the last block and the fall's interval above 0) and ``survives_null`` (so do the intervals of the excess
        over the control's own null at the ridge and of the excess's fall).
    """
    keys = ["split", "step", "variant"]
    falls = inference.effects(table, "control_fall").set_index(keys)
    excess = [
        inference.effects(table, quantity).set_index(keys)["low"]
        for quantity in ("control_excess", "control_excess_fall")
    ]
    # The excess has no null of its own: what is not there is left to the fall.
    above = pd.concat(excess, axis=1).min(axis=1).reindex(falls.index).fillna(falls["low"])
    bodies = _bodies(table)
    rows = []
    for (split, step, variant), fall in falls.iterrows():
        body = bodies[split, step, variant]
        ridge, blocks = int(body.idxmax()), int(body.index.max())
        survives = ridge < blocks and fall["low"] > 0
        rows.append(
            {
                "split": split,
                "step": int(step),
                "variant": variant,
                "control": LABELS[variant],
                "ridge_layer": ridge,
                "blocks": blocks,
                "fall": fall["estimate"],
                "low": fall["low"],
                "high": fall["high"],
                "survives": survives,
                "survives_null": survives and above[split, step, variant] > 0,
            }
        )
    found = pd.DataFrame(rows)
    place = found["variant"].map({variant: place for place, variant in enumerate(LABELS)})
    found = found.assign(place=place).sort_values(["split", "step", "place"], kind="stable")
    return found.drop(columns="place").reset_index(drop=True)


def null_headline(table: pd.DataFrame, split: str = "all") -> str:
    """How much of the information is left above its permutation null (Markdown).

    Args:
        table: table of measurements.
        split: the examples.
    """
    names = ("predictive_information", "null_information", "null_information_high", "excess_information")
    parts = []
    for step, rows in _wide(table, split, *names):
        found, excess = rows["predictive_information"], rows["excess_information"]
        ridge, last = int(found.idxmax()), int(found.index.max())
        above = int((found > rows["null_information_high"]).sum())
        parts.append(
            f"- {formatting.when(step)}: at layer {ridge}, its largest, I is {found[ridge]:.3f} nats and its null "
            f"{rows.loc[ridge, 'null_information']:.3f}, so **{_share(excess[ridge], found[ridge])} of it is left**; "
            f"at the last block {_share(excess[last], found[last])} of {found[last]:.3f} nats; summed over the layers "
            f"{_share(excess.sum(), found.sum())}. The excess is largest at layer {int(excess.idxmax())} "
            f"({excess.max():.3f} nats) and {excess[last]:.3f} at the last block. I is above the 95 % quantile of its "
            f"null at {above} of {len(found)} layers."
        )
    return f"Of predictive information, {_examples(split)}:\n\n" + "\n".join(parts)


def ceilings_headline(table: pd.DataFrame, split: str = "all") -> str:
    """How far information is below its ceilings, and how much of its curve the entropy of the states gives (Markdown).

    Args:
        table: table of measurements.
        split: the examples.
    """
    names = ("predictive_information", "excess_information", "null_information", "state_entropy")
    target = profiles(table, "target_entropy").query("split == @split").set_index("step")["mean"]
    parts = []
    for step, rows in _wide(table, split, *names):
        entropy, found = rows["state_entropy"], rows["predictive_information"]
        of_found, of_excess, of_null = (_determination(rows[name], entropy) for name in names[:3])
        last = int(entropy.index.max())
        parts.append(
            f"- {formatting.when(step)}: H(Y) is {target[step]:.3f} nats, and I at most {_share(found.max(), target[step])} "
            f"of it. H(Z) lies between {abs(entropy.min()):.3f} and {entropy.max():.3f} nats, is largest at layer "
            f"{int(entropy.idxmax())} and {entropy[last]:.3f} at the last block. **Over the layers H(Z) alone gives "
            f"{of_found} of the variance of I** (squared correlation; rank correlation {_rank(found, entropy)}), "
            f"{of_null} of that of the null and {of_excess} of that of the excess."
        )
    return f"Beside its two ceilings, {_examples(split)}:\n\n" + "\n".join(parts)


def geometry_headline(table: pd.DataFrame, split: str = "ood") -> str:
    """How the geometry of the states goes with information over the layers (Markdown).

    Args:
        table: table of measurements.
        split: the examples.
    """
    parts = []
    for step, rows in _wide(table, split, "predictive_information", *_GEOMETRY):
        found = rows["predictive_information"]
        ridge, last = int(found.idxmax()), int(found.index.max())
        said = [
            f"{name} {rows.loc[ridge, column]:.3g} and {rows.loc[last, column]:.3g} (rank correlation with I "
            f"{_rank(rows[column], found)})"
            for column, name in _GEOMETRY.items()
        ]
        parts.append(
            f"- {formatting.when(step)}, at layer {ridge} (the largest I) and at the last block: {'; '.join(said)}."
        )
    return f"Geometry over the layers, {_examples(split)}:\n\n" + "\n".join(parts)


def control_headline(table: pd.DataFrame) -> str:
    """Under how many controls there is a ridge before the last block (Markdown).

    Args:
        table: table of measurements.
    """
    parts = []
    for (split, step), own in ridges(table).groupby(["split", "step"]):
        paper, others = own[own["variant"] == ""].iloc[0], own[~own["variant"].isin(_OWN)]
        if others.empty:
            continue
        place = f"at layer {paper['ridge_layer']} of {paper['blocks']}"
        has = f"a ridge {place}" if paper["survives"] else "no ridge beyond its error"
        null = others[others["survives_null"]]
        said = (
            f"- {formatting.when(step)}, {split.upper()}: the paper's estimator has {has}. {int(others['survives'].sum())} "
            f"of {len(others)} controls have one, and **{len(null)} also above their own null**"
        )
        if len(null):
            low, high = null["ridge_layer"].min(), null["ridge_layer"].max()
            said += f", at layer {low}" if low == high else f", between layers {low} and {high}"
            said += _which(others["control"], others["survives_null"])
        parts.append(f"{said}.")
    return (
        "A ridge counts where the interval of its fall to the last block lies above 0; above its null, where those of "
        "the excess at the ridge and of its fall do too:\n\n" + "\n".join(parts)
    )


def saturation_headline(table: pd.DataFrame) -> str:
    """Under which controls nothing is left above the null at the largest layer (Markdown).

    Args:
        table: table of measurements.
    """
    found = inference.effects(table, "control_excess")
    parts = []
    for (split, step), own in found[~found["variant"].isin(_OWN)].groupby(["split", "step"]):
        none = ~(own["low"] > 0)
        named = _which(own["variant"].map(LABELS), none)
        parts.append(f"- {formatting.when(step)}, {split.upper()}: {int(none.sum())} of {len(own)} controls{named}.")
    return (
        "Where a kernel tells all examples apart, or none, I is large or small whatever the pairs are. At the largest "
        "layer nothing is left above the null beyond its error under:\n\n" + "\n".join(parts)
    )


def sample_headline(table: pd.DataFrame, split: str = "ood") -> str:
    """How information and its null depend on the number of examples (Markdown).

    Args:
        table: table of measurements.
        split: the examples.
    """
    keys = ["step", "n", "layer"]
    chosen = "split == @split and site != 'final_norm'"
    found = profiles(table, "predictive_information", "samples").query(chosen)
    null = profiles(table, "null_information", "samples").query(chosen).set_index(keys)["mean"]
    distinct = profiles(table, "distinct_targets", "samples").query("split == @split").set_index(["step", "n"])["mean"]
    parts = []
    for step, rows in found.groupby("step"):
        said = []
        for n, body in rows.groupby("n"):
            mean = body.set_index("layer")["mean"]
            ridge = int(mean.idxmax())
            said.append(
                f"with {n} examples ({distinct[step, n]:.0f} distinct targets) {mean[ridge]:.3f} nats at layer "
                f"{ridge}, its null {null[step, n, ridge]:.3f}"
            )
        parts.append(f"- {formatting.when(step)}: {'; '.join(said)}.")
    return f"By the number of examples N, {_examples(split)}, the largest I is\n\n" + "\n".join(parts)


def norm_headline(table: pd.DataFrame) -> str:
    """Whether information is lower after the final norm than before it, under every control (Markdown).

    Args:
        table: table of measurements.
    """
    found = inference.effects(table, "final_norm_fall")
    parts = []
    for (split, step), own in found[found["split"] != "all"].groupby(["split", "step"]):
        paper, others = own[own["variant"] == ""].iloc[0], own[~own["variant"].isin(_OWN)]
        said = (
            f"- {formatting.when(step)}, {split.upper()}: {paper['estimate']:+.3f} nats ({paper['low']:.3f} to "
            f"{paper['high']:.3f})"
        )
        if len(others):
            lower, higher = int((others["low"] > 0).sum()), int((others["high"] < 0).sum())
            said += (
                f"; of {len(others)} controls {lower} have less and {higher} more information after the norm, beyond "
                "the error"
            )
        parts.append(f"{said}.")
    return "I at the last block less I after the final norm:\n\n" + "\n".join(parts)


def embedding_sentence(table: pd.DataFrame) -> str:
    """What becomes of the profile when Y is the output embedding (Markdown).

    Args:
        table: table of measurements.
    """
    found = ridges(table).set_index(["split", "step"])
    output, paper = found[found["variant"] == OUTPUT.variant], found[found["variant"] == ""]
    if output.empty:
        return (
            "The model ties its output embedding to its input embedding, so Y is the same vector in both and there is "
            "nothing to compare."
        )
    parts = [
        f"- {formatting.when(where[1])}, {where[0].upper()}: I is largest at layer {row['ridge_layer']} and falls by "
        f"{row['fall']:+.3f} nats ({row['low']:.3f} to {row['high']:.3f}) to the last block; with the input embedding "
        f"at layer {paper.loc[where, 'ridge_layer']}, by {paper.loc[where, 'fall']:+.3f}."
        for where, row in output.iterrows()
    ]
    return "With Y from the output embedding:\n\n" + "\n".join(parts)


def fall_effects(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The cross-fitted falls of several tables, training seeds together by the protocol.

    Args:
        tables: tables of measurements, by what the reader calls them.

    Returns:
        What :func:`ridge_utils.inference.across_seeds` gives, with ``control`` (what the reader calls the variant),
        the rows of each run, split and step in the order of :data:`ridge_utils.audit.controls.FALLS`.
    """
    found = inference.across_seeds(inference.gathered(tables, {"ridge_fall": "fall"}))
    runs = {run: place for place, run in enumerate(tables)}
    order = {variant: place for place, variant in enumerate(FALLS)}
    found = found.assign(
        control=found["variant"].map(LABELS), run_order=found["run"].map(runs), order=found["variant"].map(order)
    )
    found = found.sort_values(["run_order", "split", "step", "order"], kind="stable")
    return found.drop(columns=["run_order", "order"]).reset_index(drop=True)


def fall_headline(table: pd.DataFrame) -> str:
    """At which checkpoints information falls to the last block beyond its error, and under which controls (Markdown).

    Args:
        table: table of measurements.
    """
    found = fall_effects({"": table})
    found = found.assign(p=inference.holm(found["p"].tolist()))
    parts = []
    for (split, step), own in found.groupby(["split", "step"], sort=False):
        own = own.set_index("variant")
        firm = own[(own["p"] <= inference.LEVEL) & (own["estimate"] > 0)]
        falls = "falls" if "" in firm.index else "does not fall beyond its error"
        others = firm.drop(index="", errors="ignore")["control"]
        named = f": {formatting.listed(others)}" if len(others) else ""
        parts.append(
            f"- {formatting.when(step)}, {_examples(split)}: I {falls}, {formatting.effect_text(own.loc[''])}; it falls under "
            f"**{len(others)} of {len(own) - 1} controls**{named}."
        )
    return (
        "From the largest layer to the last block, the layer chosen on other examples than those of the fall (nats; p "
        "after Holm's correction over this table):\n\n" + "\n".join(parts)
    )


def fall_table(tables: Mapping[str, pd.DataFrame]) -> Styler:
    """The cross-fitted falls, a row per checkpoint, split and control.

    Args:
        tables: tables of measurements, by what the reader calls them; with one, its name is left out.
    """
    columns = {"run": "run", "split": "split", "step": "step", "control": "estimator"}
    if len(tables) == 1:
        del columns["run"]
    caption = "Cross-fitted fall from the largest layer to the last block, in nats; positive means that it falls"
    return formatting.effect_table(fall_effects(tables), columns, caption)


def control_map(tables: Mapping[str, pd.DataFrame], splits: Sequence[str] = ("id", "ood")) -> Figure:
    """Information over the layers under every control, each row over its own maximum, and where its ridge is.

    A filled circle is a ridge before the last block that falls beyond its error, also above its control's null; a half
    filled one falls, but not above its null; an open one is a largest layer without such a fall.

    Args:
        tables: tables of measurements, by the title of their row of panels.
        splits: those with controls.
    """
    present = [v for v in LABELS if any((table["variant"] == v).any() for table in tables.values()) or v == "excess"]
    figure = plt.figure(figsize=(11, (1.3 + 0.2 * len(present)) * len(tables)))
    for part, (title, table) in zip(np.atleast_1d(figure.subfigures(len(tables), 1)), tables.items(), strict=True):
        found = ridges(table).set_index(["step", "split", "variant"]).sort_index()
        bodies = _bodies(table)
        names = [v for v in present if v in found.index.get_level_values("variant")]
        steps = sorted({step for step, _, variant in found.index if variant not in _OWN})
        panels = [(step, split) for step in steps for split in splits]
        axes = part.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (step, split) in zip(axes, panels, strict=True):
            values = np.stack([bodies[split, step, variant].to_numpy() for variant in names])
            highest = values.max(1, keepdims=True)
            shares = np.divide(values, highest, out=np.zeros_like(values), where=highest > 0)
            image = ax.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            for place, variant in enumerate(names):
                row = found.loc[(step, split, variant)]
                ax.plot(row["ridge_layer"], place, **_mark(row["survives"], row["survives_null"]))
            ax.set_title(f"{formatting.when(step)}, {split.upper()}", fontsize=9)
            ax.set_xlabel("layer")
        axes[0].set_yticks(range(len(names)), [LABELS[variant] for variant in names], fontsize=8)
        part.colorbar(image, ax=axes.tolist(), label="I over its maximum", shrink=0.7)
        meanings = {
            "a ridge, also above its null": (True, True),
            "a ridge, but not above its null": (True, False),
            "largest layer, no ridge": (False, False),
        }
        marks = [Line2D([], [], ls="", label=name, **_mark(*which)) for name, which in meanings.items()]
        part.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=8)
        part.suptitle(title)
    return figure


def falls_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Cross-fitted falls with their intervals, a row of panels per table, one panel per split.

    Args:
        tables: tables of measurements with ``ridge_fall``, by the title of their row.
    """
    found = fall_effects(tables)
    splits = [split for split in ("all", "ood") if split in set(found["split"])]
    figure = plt.figure(figsize=(11, 3.4 * len(tables)))
    for part, run in zip(np.atleast_1d(figure.subfigures(len(tables), 1)), tables, strict=True):
        axes = part.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
        for ax, split in zip(axes, splits, strict=True):
            own = found[(found["run"] == run) & (found["split"] == split)]
            steps = sorted(own["step"].unique())
            for place, (step, shade) in enumerate(zip(steps, checkpoint_shades(split, len(steps)), strict=True)):
                rows = own[own["step"] == step]
                heights = [FALLS.index(v) + 0.7 * ((place + 0.5) / len(steps) - 0.5) for v in rows["variant"]]
                reach = [rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]
                ax.errorbar(
                    rows["estimate"], heights, xerr=reach, fmt="o", color=shade, ms=4, label=formatting.when(step)
                )
            ax.axvline(0, color="#999999", lw=0.8)
            ax.set_yticks(range(len(FALLS)), [LABELS[v] for v in FALLS])
            ax.set_ylim(len(FALLS) - 0.5, -0.5)
            ax.set_xlabel("fall to the last block (nats)")
            ax.set_title(NAMES[split], fontsize=10)
            ax.legend(fontsize=7)
        part.suptitle(run)
    return figure


def null_figure(table: pd.DataFrame, title: str) -> Figure:
    """Information, its permutation null and what is left above it, a row per checkpoint, a column per split.

    Args:
        table: table of measurements.
        title: what to write above.
    """
    found = profiles(table, "predictive_information")
    steps = sorted(found["step"].unique())
    high = profiles(table, "null_information_high")
    figure, axes = plt.subplots(
        len(steps), len(NAMES), figsize=(11, 0.6 + 2.8 * len(steps)), sharex=True, sharey="row", squeeze=False
    )
    for row, step in zip(axes, steps, strict=True):
        for ax, split in zip(row, NAMES, strict=True):
            _curve(ax, found, split, step, COLOURS[split], "I(Z; Y)")
            _curve(ax, profiles(table, "null_information"), split, step, "#999999", "its null, mean")
            upper = _body(high, split, step)["mean"]
            ax.plot(upper.index.astype(int), upper, color="#999999", ls=":", label="its null, 95 % quantile")
            _curve(ax, profiles(table, "excess_information"), split, step, "#009e73", "excess: I less its null", "--")
            ax.set_title(f"{formatting.when(step)}, {NAMES[split]}", fontsize=9)
        row[0].set_ylabel("nats")
        row[0].legend(fontsize=7)
    for ax in axes[-1]:
        ax.set_xlabel("layer (◆: after the final norm)")
    figure.suptitle(title)
    return figure


def ceilings_figure(table: pd.DataFrame, title: str, split: str = "all") -> Figure:
    """Information between its ceilings over the layers, and against the entropy of the states, a point a layer.

    Args:
        table: table of measurements.
        title: what to write above.
        split: the examples.
    """
    entropies, found = profiles(table, "state_entropy"), profiles(table, "predictive_information")
    steps = sorted(found["step"].unique())
    figure, axes = plt.subplots(2, len(steps), figsize=(11, 6.4), sharey="row", squeeze=False)
    target = profiles(table, "target_entropy").query("split == @split").set_index("step")["mean"]
    for step, above, below in zip(steps, axes[0], axes[1], strict=True):
        _curve(above, entropies, split, step, "#0072b2", "H(Z)")
        above.axhline(target[step], color="#d55e00", ls="--", label="H(Y)")
        _curve(above, found, split, step, COLOURS["all"], "I(Z; Y)")
        _curve(above, profiles(table, "null_information"), split, step, "#999999", "null of I")
        above.set_yscale("symlog", linthresh=0.01)
        above.set_ylim(bottom=0, auto=True)
        above.set_title(formatting.when(step), fontsize=10)
        above.set_xlabel("layer (◆: after the final norm)")
        entropy, values = _body(entropies, split, step)["mean"], _body(found, split, step)["mean"]
        points = below.scatter(entropy, values, c=entropy.index.astype(int), cmap="viridis", s=14)
        below.plot(entropy, values, color="#cccccc", lw=0.8, zorder=0)
        below.set_xlabel("H(Z) (nats)")
    axes[0][0].set_ylabel("nats (linear below 0.01)")
    axes[1][0].set_ylabel("I(Z; Y) (nats)")
    axes[0][0].legend(fontsize=7)
    figure.colorbar(points, ax=axes[1].tolist(), label="layer")
    figure.suptitle(title)
    return figure


def geometry_figure(table: pd.DataFrame, title: str) -> Figure:
    """Mean cosine, effective rank and mean norm of the states over layers, ID above OOD, one curve per checkpoint.

    Args:
        table: table of measurements.
        title: what to write above.
    """
    steps = sorted(profiles(table, "mean_cosine")["step"].unique())
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex=True, sharey="col")
    for row, split in zip(axes, ("id", "ood"), strict=True):
        for ax, (quantity, name) in zip(row, _GEOMETRY.items(), strict=True):
            for step, shade in zip(steps, checkpoint_shades(split, len(steps)), strict=True):
                _curve(ax, profiles(table, quantity), split, step, shade, formatting.when(step))
            ax.set_title(f"{name}, {split.upper()}", fontsize=10)
            if quantity == "state_norm":
                ax.set_yscale("log")
        row[0].legend(fontsize=7)
    for ax in axes[-1]:
        ax.set_xlabel("layer (◆: after the final norm)")
    figure.suptitle(title)
    return figure


def families_figure(table: pd.DataFrame, title: str, step: int, split: str = "ood") -> Figure:
    """Information over layers under every control with its band, a panel per family of controls.

    Args:
        table: table of measurements.
        title: what to write above.
        step: a checkpoint with controls.
        split: a split with controls.
    """
    figure, axes = plt.subplots(2, 3, figsize=(11, 8), sharex=True)
    present = set(table["variant"])
    for ax, (family, name) in zip(axes.flat, FAMILIES.items(), strict=False):
        members = [c.variant for c in (*CONTROLS, OUTPUT) if c.family == family and c.variant in present]
        _curve(ax, profiles(table, "predictive_information"), split, step, "black", LABELS[""], "--")
        for variant, shade in zip(members, _shades(len(members)), strict=True):
            _curve(ax, profiles(table, "predictive_information", variant), split, step, shade, LABELS[variant])
        ax.set_title(name, fontsize=10)
    found = profiles(table, "predictive_information", "samples").query("split == @split")
    sizes = sorted(found["n"].unique())
    for n, shade in zip(sizes, _shades(len(sizes)), strict=True):
        _curve(axes.flat[-1], found[found["n"] == n], split, step, shade, f"N = {n}")
    axes.flat[-1].set_title("number of examples", fontsize=10)
    for ax in axes.flat:
        # Below its panel: the curves leave no room inside.
        ax.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    for ax in axes[:, 0]:
        ax.set_ylabel("I(Z; Y) (nats)")
    for ax in axes[-1]:
        ax.set_xlabel("layer (◆: after the final norm)")
    figure.suptitle(title)
    return figure


def samples_figure(table: pd.DataFrame, title: str) -> Figure:
    """Largest information and its null against the number of examples N, and the number of distinct targets.

    Args:
        table: table of measurements.
        title: what to write above.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    found = profiles(table, "predictive_information", "samples").query("site != 'final_norm'")
    null = profiles(table, "null_information", "samples").rename(columns={"mean": "null"}).drop(columns="deviation")
    distinct = profiles(table, "distinct_targets", "samples")
    steps = sorted(found["step"].unique())
    for split in ("id", "ood"):
        for step, shade in zip(steps, checkpoint_shades(split, len(steps)), strict=True):
            own = found[(found["split"] == split) & (found["step"] == step)]
            top = own.loc[own.groupby("n")["mean"].idxmax()].merge(null, on=["split", "step", "n", "layer", "site"])
            sizes, reach = top["n"].astype(int), 2 * top["deviation"]
            label = f"{split.upper()}, {formatting.when(step)}"
            left.errorbar(sizes, top["mean"], yerr=reach, color=shade, marker="o", ms=4, label=label)
            left.plot(sizes, top["null"], color=shade, ls=":")
        # The targets are the same at every checkpoint.
        own = distinct[(distinct["split"] == split) & (distinct["step"] == steps[0])]
        right.plot(own["n"].astype(int), own["mean"], marker="o", ms=4, color=COLOURS[split], label=split.upper())
    left.set_ylabel("largest I over the layers (nats)")
    right.set_ylabel("distinct targets")
    for ax in (left, right):
        ax.set_ylim(bottom=0, auto=True)
        ax.set_xlabel("number of examples N")
        ax.legend(fontsize=7)
    figure.suptitle(title)
    return figure


def _mark(survives: bool, survives_null: bool) -> dict[str, Any]:
    fill = "full" if survives_null else "left" if survives else "none"
    return {"marker": "o", "mec": "#d55e00", "mfc": "#d55e00", "mfcalt": "none", "fillstyle": fill, "ms": 6}


def _curve(ax: Axes, found: pd.DataFrame, split: str, step: int, colour: Any, label: str, line: str = "-") -> None:
    """Draw a profile with a band of 2σ over sampling seeds, and a diamond for the state after the final norm."""
    own = found[(found["split"] == split) & (found["step"] == step)]
    body, norm = own[own["site"] != "final_norm"], own[own["site"] == "final_norm"]
    layers, half_width = body["layer"].astype(int), 2 * body["deviation"]
    ax.fill_between(layers, body["mean"] - half_width, body["mean"] + half_width, color=colour, alpha=0.2, linewidth=0)
    ax.plot(layers, body["mean"], color=colour, label=label, ls=line)
    where = {"color": colour, "marker": "D", "markersize": 3, "ls": ""}
    ax.errorbar(norm["layer"].astype(int) + 1, norm["mean"], yerr=2 * norm["deviation"], **where)


def _body(found: pd.DataFrame, split: str, step: int) -> pd.DataFrame:
    """A profile by layer, the state after the final norm left out."""
    rows = found[(found["split"] == split) & (found["step"] == step) & (found["site"] != "final_norm")]
    return rows.set_index("layer").sort_index()


def _bodies(table: pd.DataFrame) -> dict[tuple[str, int, str], "pd.Series[float]"]:
    """Mean profiles by layer under every variant, the final norm left out, by split, step and variant."""
    rows = table[(table["site"] != "final_norm") & (table["variant"] != "samples")]
    own = rows[rows["quantity"] == "predictive_information"]
    excess = rows[(rows["quantity"] == "excess_information") & (rows["variant"] == "")].assign(variant="excess")
    mean = pd.concat([own, excess]).groupby(["split", "step", "variant", "layer"])["value"].mean()
    return {key: part.droplevel([0, 1, 2]) for key, part in mean.groupby(level=[0, 1, 2])}


def _wide(table: pd.DataFrame, split: str, *quantities: str) -> list[tuple[int, pd.DataFrame]]:
    """Mean profiles of several quantities by layer at each step, the state after the final norm left out."""
    found = {quantity: profiles(table, quantity) for quantity in quantities}
    steps = sorted(found[quantities[0]]["step"].unique())
    return [(step, pd.DataFrame({q: _body(found[q], split, step)["mean"] for q in quantities})) for step in steps]


def _shades(count: int) -> Any:
    return mpl.colormaps["viridis"](np.linspace(0, 0.9, count))


def _determination(values: "pd.Series[float]", by: "pd.Series[float]") -> str:
    """The squared correlation as a percentage; – where one of the two does not vary."""
    return f"{100 * values.corr(by) ** 2:.0f} %" if min(values.nunique(), by.nunique()) > 1 else "–"


def _rank(values: "pd.Series[float]", by: "pd.Series[float]") -> str:
    """Spearman's rank correlation; – where one of the two does not vary."""
    return f"{values.corr(by, method='spearman'):+.2f}" if min(values.nunique(), by.nunique()) > 1 else "–"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole > 0 else "nothing"


def _examples(split: str) -> str:
    return {"all": "ID and OOD examples together", "id": "ID examples", "ood": "OOD examples"}[split]


def _which(names: "pd.Series[str]", chosen: "pd.Series[bool]") -> str:
    """The chosen names, or the others where those are fewer; nothing where all or none are chosen."""
    if chosen.all() or not chosen.any():
        return ""
    fewer = chosen.sum() <= len(chosen) / 2
    return f" ({'' if fewer else 'all but '}{formatting.listed(names[chosen if fewer else ~chosen])})"
