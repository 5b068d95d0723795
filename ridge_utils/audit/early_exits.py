"""Table 1 of the paper with an interval: whether the best early exit lies at the ridge (C2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ridge_utils import early_exit, inference, information, results, statistics
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations
from ridge_utils.store import remember
from ridge_utils.tasks import Example

#: How a layer's state is read, by the name of the variant in the tables; the first is the paper's, as we take it.
EXITS = {"": "final norm and head", "no_norm": "head without the norm"}

#: Random halves of the examples that an interval of layers comes from.
HALVES = 100

#: What the reader calls each comparison, by its quantity.
COMPARED = {
    "exit_layer_difference": "layer of the best exit less the ridge layer",
    "exit_accuracy_gain": "accuracy at the last block less that at the ridge layer",
}

_KEY = ["step", "train_seed", "split"]


@dataclass(frozen=True)
class Profiles:
    """Predictive information over the layers of S splits, of all their examples and of random halves of them."""

    #: of all examples, nats, shape (S, blocks + 1), float64
    whole: Tensor
    #: of each half, nats, shape (S, halves, blocks + 1), float64
    halves: Tensor


def measure(
    loaded: LoadedModel,
    examples: Mapping[str, Sequence[Example]],
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
) -> pd.DataFrame:
    """Early exits of one checkpoint, and how their best layer compares with the ridge layer.

    Returns:
        Table of measurements. ``early_exit_accuracy`` with the variants of :data:`EXITS`, and ``constant_accuracy``,
        the share of the commonest target, which an exit reaches that knows nothing else; ``predictive_information`` of
        all examples of a split; and per split and variant the effects :data:`COMPARED`
        (:func:`ridge_utils.inference.effect_rows`).
    """
    pools = {split: pools[split] for split in examples}
    together = Representations.join(list(pools.values()))
    pieces = dict(zip(pools, torch.arange(len(together)).split([len(pool) for pool in pools.values()]), strict=True))
    blocks = len(loaded.blocks)
    right = {"": early_exit.correct(loaded, together), "no_norm": early_exit.correct(loaded, together, norm=False)}
    context = {**context, "sample_seed": None}
    tables = []
    profiles = _profiles(loaded, examples, pools)
    whole = dict(zip([*pools, "all"], profiles.whole, strict=True))
    halves = dict(zip(pools, profiles.halves, strict=True))
    sites = results.sites(blocks, final_norm=False)
    for split, index in {**pieces, "all": torch.arange(len(together))}.items():
        row = {**context, "split": split, "n": len(index)}
        tables.append(results.measurements(whole[split].tolist(), sites, "predictive_information", **row))
        for variant, correct in right.items():
            accuracy = correct[:, index].double().mean(1).tolist()
            tables.append(results.measurements(accuracy, sites, "early_exit_accuracy", **row, variant=variant))
        constant = together.target_ids[index].unique(return_counts=True)[1].max().item() / len(index)
        tables.append(results.measurements([constant], sites[-1:], "constant_accuracy", **row))
        if split == "all":
            continue
        for variant, correct in right.items():
            correct_here = correct[:, index]
            over_halves = torch.stack([correct_here[:, half].double().mean(1) for half in _halves(len(index))])
            differences = layer_differences(halves[split], over_halves)
            at_ridge, at_last = (correct_here[i].double().tolist() for i in (whole[split].argmax(), -1))
            effects = (inference.half_sample_effect(differences), inference.paired_effect(at_ridge, at_last))
            for quantity, effect in zip(COMPARED, effects, strict=True):
                tables.append(inference.effect_rows(effect, (blocks, "block"), quantity, **row, variant=variant))
    return pd.concat(tables, ignore_index=True)


def layer_differences(information: Tensor, accuracy: Tensor) -> list[float]:
    """On each half, the layer with the best early exit less the ridge layer; both have shape (halves, blocks + 1)."""
    return [
        float(best_layer(row, ridge) - ridge)
        for row, ridge in zip(accuracy.tolist(), information.argmax(1).tolist(), strict=True)
    ]


def best_layer(accuracy: Sequence[float], ridge: int) -> int:
    """The layer with the best early exit; of several, the nearest to the ridge layer, the best case for the claim.

    Of two best layers as near to the ridge layer, the first one counts.
    """
    best = max(accuracy)
    return min((layer for layer, value in enumerate(accuracy) if value == best), key=lambda layer: abs(layer - ridge))


def places(table: pd.DataFrame) -> pd.DataFrame:
    """Ridge layer and best exit of every checkpoint, split and variant.

    Returns:
        One row per step, train_seed, split and variant of a table as :func:`measure` gives it, with ``blocks``,
        ``ridge_layer`` (of the largest information, whether it falls from there or not), ``best_layer``, the accuracies
        ``at_ridge``, ``at_best`` and ``at_last``, and ``constant``, that of the commonest target.
    """
    rows = table.assign(train_seed=table["train_seed"].fillna(-1))
    profile = rows[rows["quantity"] == "predictive_information"].set_index([*_KEY, "layer"])["value"].sort_index()
    constant = rows[rows["quantity"] == "constant_accuracy"].set_index(_KEY)["value"]
    out = []
    exits = rows[rows["quantity"] == "early_exit_accuracy"]
    for key, of_exit in exits.groupby([*_KEY, "variant"], sort=False):
        accuracy = of_exit.sort_values("layer")["value"].tolist()
        ridge = int(profile.loc[key[:-1]].idxmax())
        best, blocks = best_layer(accuracy, ridge), len(accuracy) - 1
        accuracies = [accuracy[layer] for layer in (ridge, best, blocks)]
        out.append([*key, blocks, ridge, best, *accuracies, constant[key[:-1]]])
    names = ["blocks", "ridge_layer", "best_layer", "at_ridge", "at_best", "at_last", "constant"]
    return pd.DataFrame(out, columns=[*_KEY, "variant", *names])


def summary(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Where the best exit lies beside the ridge layer, the training seeds of each run together.

    Returns:
        One row per ``run``, step, split and variant: means over training seeds of the columns of :func:`places`, the
        smallest and largest ``ridge_layer_min``, ``…_max``, ``best_layer_min`` and ``…_max``, and of each quantity of
        :data:`COMPARED` the ``estimate``, ``low`` and ``high`` under its name and an underscore.
    """
    key = ["step", "split", "variant"]
    parts = []
    for run, table in tables.items():
        by_seed = places(table)
        layers = by_seed.groupby(key)[["ridge_layer", "best_layer"]].agg(["min", "max"])
        layers.columns = ["_".join(pair) for pair in layers.columns]
        row = by_seed.groupby(key).mean().drop(columns="train_seed").join(layers)
        for quantity in COMPARED:
            effects = inference.across_seeds(inference.effects(table, quantity)).set_index(key)
            row = row.join(effects[["estimate", "low", "high"]].add_prefix(f"{quantity}_"))
        parts.append(row.reset_index().assign(run=run))
    return pd.concat(parts, ignore_index=True)


def _profiles(
    loaded: LoadedModel, examples: Mapping[str, Sequence[Example]], pools: Mapping[str, Representations]
) -> Profiles:
    def compute() -> Profiles:
        every = [*pools.values(), Representations.join(list(pools.values()))]
        whole = torch.stack([information.predictive_information(pool.hidden, pool.targets) for pool in every])
        halves = [
            information.predictive_information(pool.hidden, pool.targets, samples=_halves(len(pool)))
            for pool in pools.values()
        ]
        return Profiles(whole, torch.stack(halves))

    rows = [example for some in examples.values() for example in some]
    return remember(Profiles, loaded, rows, compute, halves=HALVES, split=[len(some) for some in examples.values()])


def _halves(count: int) -> list[Tensor]:
    return [statistics.subsample(count, count // 2, seed) for seed in range(HALVES)]
