"""What ``make bench`` measured, for the book: seconds and memory beside those of a reference on the same machine."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from ridge_utils import formatting, results

_OURS, _THEIRS = "#d55e00", "#444444"


def stored() -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of the last ``make bench`` with ``--full``, and its provenance.

    Raises:
        StorageError: it is missing or does not match its provenance.
    """
    return results.read(results.FOLDER / "benchmarks.csv")


def check(rows: pd.DataFrame) -> str:
    """Whether every ratio is that of its two times, in words.

    Args:
        rows: what :func:`stored` gave.

    Raises:
        AssertionError: one is not.
    """
    wrong = rows[(rows["ratio"] - rows["seconds"] / rows["reference_seconds"]).abs() > 1e-6 * rows["ratio"]]
    if len(wrong):
        one = wrong.iloc[0]
        raise AssertionError(
            f"The ratio of {one['what']!r} at N = {one['n']} is {one['ratio']:.4g}, but its times give "
            f"{one['seconds'] / one['reference_seconds']:.4g}."
        )
    with_reference = int(rows["ratio"].notna().sum())
    return f"results/benchmarks.csv: {len(rows)} measurements, {with_reference} with a reference"


def machine(origin: dict[str, Any]) -> str:
    """The machine of the measurements in one sentence."""
    on, versions = origin["machine"], origin["versions"]
    where = (
        f"{on['cores']} cores ({on['processor'] or on['system']}, {on['instructions']}) with {on['threads']} threads"
    )
    card = f"and with {on['accelerator']}" if on["accelerator"] else "without a GPU"
    return f"Measured on {origin['date']} on {where}, {card}; torch {versions['torch']}."


def table(rows: pd.DataFrame) -> Styler:
    """Every measurement beside its reference, as a ratio of times; below 1 is faster than the reference."""
    shown = pd.DataFrame(
        {
            "measured": rows["what"],
            "N": rows["n"].map("{:,}".format),
            "d": rows["d"].map("{:,}".format),
            "ratio": rows["ratio"].map(lambda value: "" if pd.isna(value) else f"{value:.2f}"),
            "to": rows["reference"],
            "seconds": rows["seconds"].map("{:.3g}".format),
            "its seconds": rows["reference_seconds"].map(lambda value: "" if pd.isna(value) else f"{value:.3g}"),
            "MiB": rows["memory"].map(lambda value: "" if pd.isna(value) else f"{value / 2**20:,.0f}"),
        }
    )
    caption = "make bench with --full: medians of alternating runs; MiB: memory beyond the input, where it was measured"
    return formatting.styled(shown, caption).set_properties(subset=["measured", "to"], **{"white-space": "normal"})


def size_figure(rows: pd.DataFrame) -> Figure:
    """Seconds and memory against the number of samples, ours and the references'.

    Args:
        rows: what :func:`stored` gave.
    """
    figure, (profile, quadrature, memory) = plt.subplots(1, 3, figsize=(11, 4.2))
    whole = rows[rows["what"].str.startswith("profile of 31") & ~rows["reference"].str.startswith("the forward")]
    _times(profile, whole, "profile of 31 layers")
    _times(quadrature, rows[rows["what"].str.startswith("quadrature")], "one layer by quadrature")
    for what, label in (("profile of 31", "eigenvalues, 31 layers"), ("quadrature", "quadrature, one layer")):
        part = rows[rows["what"].str.startswith(what) & rows["memory"].notna()].sort_values("n")
        memory.loglog(part["n"], part["memory"] / 2**20, "o-", label=label)
        exact = part["n"].astype(float) ** 2 * 8 / 2**20
        if what == "quadrature":
            memory.loglog(part["n"], exact, ":", color=_THEIRS, label="one N x N matrix in float64")
    memory.set_title("memory beyond the input", fontsize=10)
    memory.set_ylabel("MiB")
    for ax in (profile, quadrature, memory):
        ax.set_xlabel("N")
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    profile.set_ylabel("seconds")
    return figure


def width_figure(rows: pd.DataFrame) -> Figure:
    """Seconds and memory of a profile of 8 layers against the dimension of the states.

    Args:
        rows: what :func:`stored` gave.
    """
    part = rows[rows["what"] == "profile of 8 layers"].sort_values("d")
    figure, (time, memory) = plt.subplots(1, 2, figsize=(8, 3.2))
    time.loglog(part["d"], part["seconds"], "o-", color=_OURS, label="profile of 8 layers, N = 500")
    time.loglog(part["d"], part["reference_seconds"], "s--", color=_THEIRS, label="its eigenvalues alone")
    time.set_ylabel("seconds")
    time.legend(fontsize=7)
    memory.loglog(part["d"], part["memory"] / 2**20, "o-", color=_OURS)
    memory.set_ylabel("MiB beyond the input")
    for ax in (time, memory):
        ax.set_xlabel("d")
    return figure


def _times(ax: Axes, rows: pd.DataFrame, title: str) -> None:
    ours = rows.groupby("n")["seconds"].median()
    ax.loglog(ours.index, ours, "o-", color=_OURS, label="ours")
    for place, (reference, part) in enumerate(rows.dropna(subset=["reference_seconds"]).groupby("reference")):
        part = part.sort_values("n")
        ax.loglog(part["n"], part["reference_seconds"], "s^D"[place % 3] + "--", color=_THEIRS, lw=0.8, label=reference)
    ax.set_title(title, fontsize=10)
