"""Subsamples, the bands over them, and what a table of measurements says in a few numbers."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from ridge_utils.errors import at_least, check_sampling, within

#: Half-width of a band in standard deviations, as in the paper.
SIGMAS = 2.0
#: Names of the thirds of the blocks, see :func:`third_of`.
THIRDS = ("first", "middle", "last")


def subsample(pool: int, n: int, seed: int) -> Tensor:
    """Indices of ``n`` of ``pool`` examples, without replacement: a repeated row lowers a Gram matrix's entropy."""
    at_least(2, pool=pool)
    check_sampling(pool, n, [seed])
    return torch.randperm(pool, generator=torch.Generator().manual_seed(seed))[:n]


def band(table: pd.DataFrame, by: Sequence[str], sigmas: float = SIGMAS) -> pd.DataFrame:
    """Mean of ``value`` and a band of so many sample standard deviations, a row per group.

    ``half_width`` is 0 where there is one value only.
    """
    groups = table.groupby(list(by), sort=False, dropna=False)["value"]
    out = groups.agg(mean="mean", deviation="std").reset_index()
    out["half_width"] = sigmas * out.pop("deviation").fillna(0.0)
    out["low"], out["high"] = out["mean"] - out["half_width"], out["mean"] + out["half_width"]
    return out


def ridge_summary(table: pd.DataFrame, quantity: str = "predictive_information") -> pd.DataFrame:
    """Where a quantity is largest over depth, and how far it falls from there, for each split and checkpoint.

    The layer is the argmax of the mean profile over seeds, the state after the final norm left out. Each fall is taken
    within a sampling seed and a training seed, so what the seeds have in common cancels. The layer is chosen on the
    samples on which the fall is measured, so a fall that is not there comes out a little above 0.

    For each fall, ``to_last_block`` and ``to_final_norm``, there are its mean, its ``…_half_width`` and whether it is
    ``…_beyond_band``. What belongs to the final norm is NaN where the quantity was not measured there. ``has_ridge`` is
    True where the largest layer lies after the embedding and before the last block, and the fall to the last block is
    beyond its band: the book's one definition of a ridge.
    """
    rows = table[table["quantity"] == quantity]
    out = []
    for (split, step), group in rows.groupby(["split", "step"], sort=False):
        # An untouched model has no training seed, and pivoting would drop its rows.
        group = group.assign(train_seed=group["train_seed"].fillna(-1))
        wide = group.pivot_table(index=["train_seed", "sample_seed"], columns=["site", "layer"], values="value")
        has_norm = "final_norm" in wide.columns.get_level_values("site")
        norm = wide["final_norm"].iloc[:, 0] if has_norm else pd.Series(math.nan, index=wide.index)
        body = wide.drop(columns="final_norm", level="site", errors="ignore").droplevel("site", axis=1)
        body = body.sort_index(axis=1)
        ridge = int(body.mean().idxmax())
        blocks = int(body.columns.max())
        row = {
            "split": split,
            "step": int(step),
            "blocks": blocks,
            "ridge_layer": ridge,
            "at_ridge": body[ridge].mean(),
            "at_last_block": body[blocks].mean(),
            "at_final_norm": norm.mean(),
        }
        for name, end in (("to_last_block", body[blocks]), ("to_final_norm", norm)):
            fall = body[ridge] - end
            half_width = SIGMAS * (fall.std() if len(fall) > 1 else 0.0)
            row |= {
                name: fall.mean(),
                f"{name}_half_width": half_width,
                f"{name}_beyond_band": fall.mean() > half_width,
            }
        row["has_ridge"] = bool(0 < ridge < blocks and row["to_last_block_beyond_band"])
        out.append(row)
    return pd.DataFrame(out)


def third_of(layer: int, blocks: int) -> str:
    """The third of the blocks that a block is in: ``first``, ``middle`` or ``last``.

    Block l of L lies at (l - 1/2)/L, the middle of its part of the depth.
    """
    within(1, 10**9, blocks=blocks)
    within(1, blocks, layer=layer)
    return THIRDS[min(2, int(3 * (layer - 0.5) / blocks))]


def by_third(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Mean of a quantity over the first, the middle and the last ``third`` of the blocks, with its :func:`band`."""
    rows = table[(table["quantity"] == quantity) & (table["site"] == "block")].copy()
    blocks = rows["layer"].max()
    rows["third"] = [third_of(layer, blocks) for layer in rows["layer"]]
    rows["train_seed"] = rows["train_seed"].fillna(-1)
    keys = ["split", "step", "third"]
    means = rows.groupby([*keys, "train_seed", "sample_seed"], sort=False, dropna=False)["value"].mean().reset_index()
    return band(means, keys)


def depth_table(table: pd.DataFrame, step: int) -> pd.DataFrame:
    """The profile at one step, a row per layer, in the columns of :func:`ridge_utils.paper.table_1`.

    ``predictive_information`` is a mean over seeds, both splits together, its ``half_width`` 2 sigma; ``depth`` is the
    layer over the number of blocks.
    """
    rows = table[(table["step"] == step) & (table["site"] != "final_norm")]
    information = rows[(rows["quantity"] == "predictive_information") & (rows["split"] == "all")]
    out = band(information, ["layer"]).set_index("layer")[["mean", "half_width"]]
    out = out.rename(columns={"mean": "predictive_information"})
    accuracy = rows[rows["quantity"] == "early_exit_accuracy"]
    for split in ("all", "id", "ood"):
        out[f"accuracy_{split}"] = accuracy[accuracy["split"] == split].groupby("layer")["value"].mean()
    out = out.sort_index().reset_index()
    out["layer"] = out["layer"].astype(int)
    out.insert(1, "depth", out["layer"] / out["layer"].max())
    return out


def beside(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Our depth table with each row of another model's at our layer of the nearest depth, in columns ``paper_…``."""
    nearest = [int((ours["depth"] - depth).abs().idxmin()) for depth in theirs["depth"]]
    other = theirs.add_prefix("paper_").set_index(pd.Index(nearest))
    # Two of theirs can be nearest to one of ours where theirs is the deeper model: the deeper row stays.
    return ours.join(other[~other.index.duplicated(keep="last")])
