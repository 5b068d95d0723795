"""How predictive information and its permutation null depend on the number of samples, and how exact it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from ridge_utils import information, results, statistics
from ridge_utils.audit import quadrature
from ridge_utils.errors import InputError, at_least
from ridge_utils.representations import Representations

#: The variant of what the quadrature gave.
QUADRATURE = "quadrature"


def check(sizes: Sequence[int], pool: int, every: int) -> None:
    """Refuse sizes of samples before anything long begins."""
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 2 or sizes[-1] > pool:
        raise InputError(
            f"sizes must increase and lie between 2 and the number of examples of both splits, {pool}, but are "
            f"{list(sizes)}."
        )
    at_least(1, every=every)


def measure(
    pool: Representations,
    context: Mapping[str, Any],
    *,
    sizes: Sequence[int],
    sampling_seeds: Sequence[int],
    every: int,
    exact_up_to: int,
    quadrature_from: int,
    settings: quadrature.Settings,
    label: str | None = None,
) -> pd.DataFrame:
    """Predictive information and its null from samples of several sizes.

    Every sampling seed gives one estimate, from samples without replacement; sizes of half of the pool and more have
    the first one only, for the others would share most of its examples. Measured are the layers 0, ``every``, 2
    ``every``, ..., the last block and the state after the final norm. The eigenvalues are computed at sizes up to
    ``exact_up_to``, the quadrature, with the first seed, from ``quadrature_from`` on.

    Returns:
        Table of measurements. In nats there are ``predictive_information`` and ``null_information`` (of one shuffle of
        the targets) by the eigenvalues, and with :data:`QUADRATURE` as their variant by the quadrature, with its
        ``quadrature_error``; the null by the quadrature only where there are no eigenvalues.
    """
    if not any(n <= exact_up_to or n >= quadrature_from for n in sizes):
        raise InputError(
            f"None of the sizes {list(sizes)} is at most exact_up_to={exact_up_to} or at least "
            f"quadrature_from={quadrature_from}, so nothing would be measured: change one of the three."
        )
    depth = len(pool.hidden) - 1
    chosen = sorted({*range(0, depth, every), depth, depth + 1})
    sites = [results.sites(depth)[index] for index in chosen]
    draws = [(n, seed) for n in sizes for seed in (sampling_seeds if 2 * n < len(pool) else sampling_seeds[:1])]
    tables = []
    for n, seed in tqdm(draws, desc=label, unit="sample", disable=label is None):
        sample = pool.select(statistics.subsample(len(pool), n, seed))
        shuffled = sample.targets[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
        hidden = torch.stack([sample.final_norm if index > depth else sample.hidden[index] for index in chosen])
        row = {**context, "sample_seed": seed, "n": n}
        if n <= exact_up_to:
            for name, targets in (("predictive_information", sample.targets), ("null_information", shuffled)):
                values = information.predictive_information(hidden, targets).tolist()
                tables.append(results.measurements(values, sites, name, **row))
        if n >= quadrature_from and seed == sampling_seeds[0]:
            row |= {"variant": QUADRATURE}
            estimate = quadrature.predictive_information(hidden, sample.targets, settings=settings)
            values_by_name = {"predictive_information": estimate.value, "quadrature_error": estimate.error}
            if n > exact_up_to:
                null = quadrature.predictive_information(hidden, shuffled, settings=settings)
                values_by_name["null_information"] = null.value
            for name, value in values_by_name.items():
                tables.append(results.measurements(value.tolist(), sites, name, **row))
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Where information is largest at each size, and how far it and its null fall from there to the last block.

    The values are those of the eigenvalues at the sizes that have them, else of the quadrature.

    Returns:
        One row per step and size with ``ridge_layer``, and, of the information and of its null there, the values
        ``at_ridge`` and ``null_at_ridge`` and the falls ``fall`` and ``null_fall``; means over seeds, in nats.
    """
    body = table[table["site"] != "final_norm"].assign(rank=table["variant"] == QUADRATURE)
    body = body[body["rank"] == body.groupby(["step", "n"])["rank"].transform("min")]
    mean = body.pivot_table(index=["step", "n", "layer"], columns="quantity", values="value")
    rows = []
    for (step, n), profile in mean.groupby(["step", "n"]):
        profile = profile.droplevel(["step", "n"]).sort_index()
        profile = profile[["predictive_information", "null_information"]]
        ridge = profile["predictive_information"].idxmax()
        top, fall = profile.loc[ridge], profile.loc[ridge] - profile.iloc[-1]
        rows.append((step, n, ridge, top.iloc[0], fall.iloc[0], top.iloc[1], fall.iloc[1]))
    names = ["step", "n", "ridge_layer", "at_ridge", "fall", "null_at_ridge", "null_fall"]
    return pd.DataFrame(rows, columns=names)


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How far the quadrature lies from the eigenvalues, at the sizes that have both.

    Returns:
        One row per size with ``states`` (how many layers and checkpoints), ``largest_difference`` and
        ``largest_error`` (the quadrature's own) in nats, and ``inside`` (how many differences are within the error).
        Empty where no size has both.
    """
    key = ["step", "train_seed", "n", "sample_seed", "layer", "site"]
    rows = table[table["quantity"].isin(["predictive_information", "quadrature_error"])]
    rows = rows.assign(train_seed=rows["train_seed"].fillna(-1), quantity=rows["quantity"] + rows["variant"])
    names = ["predictive_information", "predictive_informationquadrature", "quadrature_errorquadrature"]
    wide = rows.pivot_table(index=key, columns="quantity", values="value").reindex(columns=names).dropna()
    exact, by_quadrature, error = (wide[name] for name in names)
    off = (by_quadrature - exact).abs()
    # What the quadrature has exactly, for repeated samples, still differs by the rounding of the other.
    pairs = pd.DataFrame(
        {"states": 1, "largest_difference": off, "largest_error": error, "inside": off <= error + 1e-9}
    )
    how = {"states": "sum", "largest_difference": "max", "largest_error": "max", "inside": "sum"}
    return pairs.groupby("n").agg(how)
