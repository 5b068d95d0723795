"""How predictive information and its permutation null depend on the number of samples, and how exact its estimate is.

The estimates of one checkpoint from samples of many sizes, then what tables of them say: where the ridge is and how far
the information falls behind it at each size, and how far the quadrature of :mod:`ridge_utils.audit.quadrature` lies from the
eigenvalues, layer by layer.
"""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from tqdm import tqdm

from ridge_utils import formatting, results, statistics, study
from ridge_utils.audit import quadrature
from ridge_utils.audit.quadrature import Settings
from ridge_utils.errors import InputError
from ridge_utils.figures import checkpoint_shades
from ridge_utils.representations import Representations

#: Below so many nats, a difference is not given as a share of the information.
SMALL = 0.01

#: The variant of what the quadrature gave.
QUADRATURE = "quadrature"

_COLOURS = {"ridge": "#d55e00", "last": "#0072b2"}


# Measurements of one checkpoint.


def check(sizes: Sequence[int], pool: int, every: int) -> None:
    """Refuse sizes of samples before anything long begins.

    Raises:
        InputError: sizes that do not increase, or are not from 2 to the size of the pool; ``every`` below 1.
    """
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 2 or sizes[-1] > pool:
        raise InputError(
            f"sizes must increase and lie between 2 and the number of examples of both splits, {pool}, but are "
            f"{list(sizes)}."
        )
    if every < 1:
        raise InputError(f"every must be at least 1, but is {every}.")


def measure(
    pool: Representations,
    context: Mapping[str, Any],
    *,
    sizes: Sequence[int],
    sampling_seeds: Sequence[int],
    every: int,
    exact_up_to: int,
    quadrature_from: int,
    settings: Settings,
    label: str | None = None,
) -> pd.DataFrame:
    """Predictive information and its null from samples of several sizes.

    Args:
        pool: representations of all examples.
        context: model, task, source, split, step and train_seed of the rows.
        sizes: numbers of samples.
        sampling_seeds: one estimate each, from samples without replacement; sizes of half of the pool and more have the
            first one only, for the others would share most of its examples.
        every: distance of the layers that are measured; the last block and the state after the final norm are always.
        exact_up_to: largest size at which the eigenvalues are computed.
        quadrature_from: smallest size at which the quadrature is computed, with the first seed.
        settings: of the quadrature.
        label: of the progress bar; without one there is none.

    Returns:
        Table of measurements. In nats there are ``predictive_information`` and ``null_information`` (of one shuffle of
        the targets) by the eigenvalues, and with :data:`QUADRATURE` as their variant by the quadrature, with its
        ``quadrature_error``; the null by the quadrature only where there are no eigenvalues.
    """
    everywhere = results.sites(len(pool.hidden) - 1)
    depth = len(pool.hidden) - 1
    chosen = sorted({*range(0, depth, every), depth, depth + 1})
    sites = [everywhere[index] for index in chosen]
    draws = [(n, seed) for n in sizes for seed in (sampling_seeds if 2 * n < len(pool) else sampling_seeds[:1])]
    tables = []
    for n, seed in tqdm(draws, desc=label, unit="sample", disable=label is None):
        sample = pool.select(statistics.subsample(len(pool), n, seed))
        shuffled = sample.targets[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
        states = [sample.final_norm if index > depth else sample.hidden[index] for index in chosen]
        hidden = torch.stack(states)
        for method, variant in (("exact", ""), ("lanczos", QUADRATURE)):
            if n > exact_up_to if method == "exact" else n < quadrature_from or seed != sampling_seeds[0]:
                continue
            estimate = partial(quadrature.predictive_information, hidden, method=method, settings=settings)
            found = estimate(sample.targets)
            values = {"predictive_information": found.value}
            if variant:
                values["quadrature_error"] = found.error
            if not variant or n > exact_up_to:
                values["null_information"] = estimate(shuffled).value
            row = {**context, "sample_seed": seed, "n": n, "variant": variant}
            tables += [results.measurements(each.tolist(), sites, name, **row) for name, each in values.items()]
    return pd.concat(tables, ignore_index=True)


# What the tables say.


def stored() -> dict[str, pd.DataFrame]:
    """The tables of the reference runs by their titles, or that of the default run where there are none.

    Raises:
        StorageError: one of them does not match its provenance.
    """
    default = results.read(results.FOLDER / "sample_size.csv")[0]
    return study.references("sample_size") or {f"{default['model'].iloc[0]}, default run": default}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Where information is largest at each size, and how far it and its null fall from there to the last block.

    Args:
        table: what :func:`measure` gave, of any number of checkpoints.

    Returns:
        One row per step and size with ``ridge_layer``, and, of the information and of its null there, the values
        ``at_ridge`` and ``null_at_ridge`` and the falls ``fall`` and ``null_fall``; means over seeds, in nats.
    """
    mean = _best(table).pivot_table(index=["step", "n", "layer"], columns="quantity", values="value")
    rows = []
    for (step, n), group in mean.groupby(["step", "n"]):
        group = group.droplevel(["step", "n"]).sort_index()
        ridge, end = group["predictive_information"].idxmax(), group.iloc[-1]
        at = group.loc[ridge]
        rows.append(
            {
                "step": step,
                "n": n,
                "ridge_layer": ridge,
                "at_ridge": at["predictive_information"],
                "fall": at["predictive_information"] - end["predictive_information"],
                "null_at_ridge": at["null_information"],
                "null_fall": at["null_information"] - end["null_information"],
            }
        )
    return pd.DataFrame(rows)


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How far the quadrature lies from the eigenvalues, at the sizes that have both.

    Args:
        table: what :func:`measure` gave.

    Returns:
        One row per size with ``states`` (how many layers and checkpoints), ``largest_difference`` and
        ``largest_error`` (the quadrature's own) in nats, ``largest_share`` (of the information, where that is at least
        :data:`SMALL`) and ``inside`` (how many differences are within the error). Empty where no size has both.
    """
    pairs = _pairs(table)
    off = (pairs["quadrature"] - pairs["exact"]).abs()
    rows = pd.DataFrame(
        {
            "n": pairs["n"],
            "states": 1,
            "largest_difference": off,
            "largest_error": pairs["error"],
            "largest_share": (off / pairs["exact"]).where(pairs["exact"] >= SMALL),
            # What the quadrature has exactly, for repeated samples, still differs by the rounding of the other.
            "inside": (off <= pairs["error"] + 1e-9).astype(int),
        }
    )
    return rows.groupby("n").agg(
        {"states": "sum", "largest_difference": "max", "largest_error": "max", "largest_share": "max", "inside": "sum"}
    )


def _best(table: pd.DataFrame) -> pd.DataFrame:
    """The rows before the final norm, by the eigenvalues at the sizes that have them, else by the quadrature."""
    exact = table["variant"] == ""
    sizes = table.loc[exact, ["step", "n"]].drop_duplicates()
    has = pd.MultiIndex.from_frame(table[["step", "n"]]).isin(pd.MultiIndex.from_frame(sizes))
    return table[(exact | ~has) & (table["site"] != "final_norm")]


def _pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Information by the eigenvalues and by the quadrature, and the quadrature's error, where a sample has all."""
    key = ["step", "train_seed", "n", "sample_seed", "layer", "site"]
    information = table[table["quantity"] == "predictive_information"]
    parts = {
        "exact": information[information["variant"] == ""],
        "quadrature": information[information["variant"] == QUADRATURE],
        "error": table[table["quantity"] == "quadrature_error"],
    }
    first, *others = (part[[*key, "value"]].rename(columns={"value": name}) for name, part in parts.items())
    for other in others:
        first = first.merge(other, on=key)
    return first


def sentence(table: pd.DataFrame) -> str:
    """What becomes of the ridge, its fall and the null from the smallest to the largest size, a clause a checkpoint."""
    parts = []
    for step, rows in summary(table).groupby("step"):
        first, last = rows.iloc[0], rows.iloc[-1]
        parts.append(
            f"{formatting.capital(formatting.when(int(step)))}, from N = {first['n']:,.0f} to N = {last['n']:,.0f} the largest "
            f"information goes from {formatting.number(first['at_ridge'], 3)} nats (layer {first['ridge_layer']:.0f}) to "
            f"{formatting.number(last['at_ridge'], 3)} (layer {last['ridge_layer']:.0f}) and its null there from "
            f"{formatting.number(first['null_at_ridge'], 3)} to {formatting.number(last['null_at_ridge'], 3)}; the fall to the "
            f"last block goes from {formatting.number(first['fall'], 3)} to {formatting.number(last['fall'], 3)} nats, that of "
            f"the null from {formatting.number(first['null_fall'], 3)} to {formatting.number(last['null_fall'], 3)}. At "
            f"N = {last['n']:,.0f}, {formatting.number(last['at_ridge'] - last['null_at_ridge'], 4)} nats are left above "
            f"the null at layer {last['ridge_layer']:.0f}; {formatting.number(last['fall'] - last['null_fall'], 4)} of them "
            "are gone at the last block."
        )
    return " ".join(parts)


def agreement_sentence(table: pd.DataFrame) -> str:
    """How near the quadrature comes to the eigenvalues, over all sizes that have both."""
    rows = agreement(table)
    if rows.empty:
        return "No size has both the eigenvalues and the quadrature."
    states, inside = int(rows["states"].sum()), int(rows["inside"].sum())
    share = rows["largest_share"].max()
    relative = (
        "" if np.isnan(share) else f", {100 * share:.2g} % of the information where that is at least {SMALL} nats"
    )
    return (
        f"At N = {formatting.listed(f'{n:,}' for n in rows.index)} the quadrature was compared with the eigenvalues on "
        f"{states} states: it is off by at most {rows['largest_difference'].max():.2g} nats{relative}, and {inside} of "
        f"the {states} are within its own error."
    )


def summary_table(table: pd.DataFrame, caption: str) -> Styler:
    """:func:`summary` for the reader."""
    rows = summary(table)
    shown = pd.DataFrame(
        {
            "step": rows["step"].map(lambda step: formatting.when(int(step))),
            "N": rows["n"].map("{:,.0f}".format),
            "largest at layer": rows["ridge_layer"].astype(int),
            "I": rows["at_ridge"].map(lambda v: formatting.number(v, 4)),
            "null": rows["null_at_ridge"].map(lambda v: formatting.number(v, 4)),
            "its fall": rows["fall"].map(lambda v: formatting.number(v, 4)),
            "the null's": rows["null_fall"].map(lambda v: formatting.number(v, 4)),
            "that of I less null": (rows["fall"] - rows["null_fall"]).map(lambda v: formatting.number(v, 4)),
        }
    )
    return formatting.styled(shown, caption)


def sizes_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Information, its null and their difference over layers, one curve per size, a row for each run and checkpoint.

    Args:
        tables: what :func:`measure` gave, by title.
    """
    rows = [(name, step, part) for name, table in tables.items() for step, part in table.groupby("step")]
    figure, axes = plt.subplots(len(rows), 3, figsize=(11, 3.1 * len(rows)), squeeze=False, sharex="row")
    for line, (name, step, part) in zip(axes, rows, strict=True):
        mean = _best(part).pivot_table(index=["n", "layer"], columns="quantity", values="value")
        sizes = mean.index.unique("n")
        shades = checkpoint_shades("all", len(sizes))[::-1]
        panels = {
            "I(Z; Y)": mean["predictive_information"],
            "its null": mean["null_information"],
            "difference": mean["predictive_information"] - mean["null_information"],
        }
        for ax, (title, values) in zip(line, panels.items(), strict=True):
            for n, shade in zip(sizes, shades, strict=True):
                curve = values.loc[n]
                ax.plot(curve.index.astype(int), curve, color=shade, label=f"N = {n:,}")
            ax.set_ylabel(f"{title} (nats)")
            ax.set_xlabel("layer")
        line[0].set_title(textwrap.fill(f"{name}, {formatting.when(int(step))}", 44), fontsize=8)
        line[0].legend(fontsize=7)
    return figure


def growth_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Information and its null against N, at the ridge layer of the largest N and at the last block.

    Args:
        tables: what :func:`measure` gave, by title.
    """
    panels = [(name, step, part) for name, table in tables.items() for step, part in table.groupby("step")]
    figure, axes = plt.subplots(1, len(panels), figsize=(min(11, 4.6 * len(panels)), 3.6), squeeze=False)
    for ax, (name, step, part) in zip(axes[0], panels, strict=True):
        body = _best(part)
        ridge, last = int(summary(part)["ridge_layer"].iloc[-1]), int(body["layer"].max())
        places = {
            ridge: ("ridge", f"layer {ridge}, the largest at the largest N"),
            last: ("last", f"layer {last}, the last block"),
        }
        for layer, (kind, label) in places.items():
            for quantity, style in (("predictive_information", "-"), ("null_information", "--")):
                values = body[(body["layer"] == layer) & (body["quantity"] == quantity)].groupby("n")["value"]
                mean, spread = values.mean(), values.std().fillna(0.0)
                text = label if style == "-" else None
                ax.plot(mean.index, mean, style, marker="o", markersize=3, color=_COLOURS[kind], label=text)
                ax.fill_between(
                    mean.index, mean - 2 * spread, mean + 2 * spread, color=_COLOURS[kind], alpha=0.2, linewidth=0
                )
        ax.set_xscale("log")
        ax.set_xlabel("N")
        ax.set_title(textwrap.fill(f"{name}, {formatting.when(int(step))}", 40), fontsize=8)
        ax.legend(fontsize=7)
    axes[0, 0].set_ylabel("nats")
    return figure


def agreement_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Quadrature less eigenvalues, layer by layer, with the quadrature's own error; a panel for each size.

    Args:
        tables: what :func:`measure` gave, by title; those without a size that has both are left out.
    """
    panels = [(name, n, rows) for name, table in tables.items() for n, rows in _pairs(table).groupby("n")]
    columns = min(4, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    figure, axes = plt.subplots(lines, columns, figsize=(11, 2.7 * lines), squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (name, n, rows) in zip(axes.flat, panels, strict=False):
        off = (rows["quadrature"] - rows["exact"]).to_numpy()
        ax.errorbar(np.arange(len(rows)), off, yerr=rows["error"], fmt="o", markersize=2.5, color="#444444", lw=0.8)
        ax.axhline(0, color="#999999", lw=0.8)
        ax.set_title(f"{textwrap.fill(name, 34)}\nN = {n:,}", fontsize=7)
        ax.set_xlabel("state, first to last", fontsize=8)
    for line in axes:
        line[0].set_ylabel("difference in nats", fontsize=8)
    return figure
