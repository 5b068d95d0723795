"""Where the ridge comes from: untouched, fine-tuned and from-scratch models side by side.

The measurements of one checkpoint, then what tables of several models say: whether they have a ridge, whether the model
has learned its task at all, and whether the estimate's null or the geometry of the states goes with it over depth.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from scipy import stats

from ridge_utils import inference, information, results, statistics
from ridge_utils.audit import geometry
from ridge_utils.errors import InputError, at_least
from ridge_utils.models import random_shape
from ridge_utils.representations import Representations

#: What is set beside predictive information over the layers, and what the reader calls it.
COMPANIONS = {
    "null_information": "its null",
    "excess_information": "excess over the null",
    "state_entropy": "entropy H(Z)",
    "effective_rank": "effective rank",
    "mean_cosine": "mean cosine",
}
#: What a checkpoint can be.
KINDS = ("untouched", "fine-tuned", "random weights", "trained from scratch")

#: The notebooks whose reference tables are read; of several that have a quantity at a checkpoint, the first counts.
_SOURCES = ("origins", "predictive_information", "estimator_audit")
_READ = ("predictive_information", *COMPANIONS, "early_exit_accuracy", "majority_accuracy")


def check(models: Sequence[str], n_shuffles: int) -> None:
    """Refuse a list of models or a number of shuffles before anything long begins."""
    if not models or len(set(models)) != len(models):
        raise InputError(f"models must be one or more different names of models, but are {list(models)}.")
    at_least(1, n_shuffles=n_shuffles)


def depth_profile(
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    n_samples: int,
    sampling_seeds: Sequence[int],
    n_shuffles: int,
) -> pd.DataFrame:
    """Predictive information of every state with its permutation null, the states' entropy, and their geometry.

    Each sampling seed draws ``n_samples`` examples of a pool without replacement; the targets of each draw are shuffled
    ``n_shuffles`` times.

    Returns:
        Table of measurements. ``predictive_information``, ``null_information`` (the mean over shuffles) and
        ``state_entropy`` H(Z_l), in nats, have a row per sampling seed; ``effective_rank`` and ``mean_cosine`` are
        those of the whole pool.
    """
    tables = []
    for split, pool in pools.items():
        sites = results.sites(len(pool.hidden) - 1)
        measured = []
        for seed in sampling_seeds:
            sample = pool.select(statistics.subsample(len(pool), n_samples, seed))
            states, targets = sample.states, sample.targets
            row = {"sample_seed": seed, "n": n_samples}
            measured += [
                ("predictive_information", information.predictive_information(states, targets), row),
                ("null_information", information.permutation_null(states, targets, n_shuffles, seed).mean(0), row),
                ("state_entropy", torch.stack([information.entropy(information.gram_matrix(z)) for z in states]), row),
            ]
        row = {"sample_seed": None, "n": len(pool)}
        measured += [
            ("effective_rank", geometry.effective_rank(pool.states), row),
            ("mean_cosine", geometry.mean_cosine(pool.states), row),
        ]
        for quantity, values, row in measured:
            tables.append(results.measurements(values.tolist(), sites, quantity, **context, split=split, **row))
    return pd.concat(tables, ignore_index=True)


def majority_accuracy(pools: Mapping[str, Representations], context: Mapping[str, Any]) -> pd.DataFrame:
    """The accuracy of always answering with the commonest first target token of the split.

    A model that is no better has learned nothing of the rule behind the targets.
    """
    tables = []
    for split, pool in pools.items():
        share = pool.target_ids.unique(return_counts=True)[1].max().item() / len(pool)
        row = {**context, "split": split, "sample_seed": None, "n": len(pool)}
        end = [(len(pool.hidden) - 1, "final_norm")]
        tables.append(results.measurements([share], end, "majority_accuracy", **row))
    return pd.concat(tables, ignore_index=True)


def runs(tables: Mapping[str, Sequence[pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """One table per model and task, named ``model, task``, of the quantities that this page reads.

    Pretrained models come first, then others by architecture and size. Tables of one name belong together; of several
    that have a quantity at a checkpoint, the first counts. One table may hold several models.
    """
    by_name: dict[str, pd.DataFrame] = {}
    for name, parts in tables.items():
        rows = pd.concat([part.assign(rank=rank) for rank, part in enumerate(parts)], ignore_index=True)
        rows = rows[rows["quantity"].isin(_READ) & (rows["variant"] == "")]
        first = rows.groupby(["model", "task", "quantity", "split", "step"])["rank"].transform("min")
        rows = rows[rows["rank"] == first].drop(columns="rank")
        for (model, task), group in rows.groupby(["model", "task"]):
            label = f"{model}, {task}"
            by_name[label if label not in by_name else f"{label} ({name})"] = group.reset_index(drop=True)
    return dict(sorted(by_name.items(), key=lambda item: (random_shape(_model(item[1])) or ("", 0, 0), item[0])))


def reference_runs() -> dict[str, pd.DataFrame]:
    """The reference runs of the three notebooks that are read here, by model and task."""
    by_profile: dict[str, list[pd.DataFrame]] = {}
    for notebook in _SOURCES:
        for profile, (table, _) in results.references(notebook).items():
            by_profile.setdefault(profile, []).append(table)
    return runs(by_profile)


def summary(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Each checkpoint's ridge, the null's part in its fall, and whether the task is learned.

    Information is that of ID and OOD examples together, accuracy that of each split.

    Returns:
        :func:`ridge_utils.statistics.ridge_summary`, a row per run and step, with ``run``, ``model``, ``task``,
        ``kind`` (one of :data:`KINDS`), ``last`` (the run's last checkpoint), ``null_fall`` (from the ridge layer to
        the last block, nats), ``null_share`` (covariance of information and null over layers, in shares of the variance
        of information), and for the splits id and ood ``accuracy_…``, ``majority_…`` and ``learned_…``: 1 where the
        lower end of the accuracy's interval (Wilson's, over examples) is above that of the commonest target, else 0.
        What was not measured is NaN.
    """
    rows = []
    for run, table in runs.items():
        ridges = statistics.ridge_summary(table)
        ridges = ridges[ridges["split"] == "all"].sort_values("step")
        for ridge in ridges.to_dict("records"):
            step, blocks = ridge["step"], ridge["blocks"]
            mean = _profiles(table, "predictive_information", step).mean()
            null = _profiles(table, "null_information", step).mean().reindex(mean.index)
            measured = null.notna().all() and mean.var() > 0
            row = {
                "run": run,
                "model": _model(table),
                "task": table["task"].iloc[0],
                "kind": _kind(_model(table), step),
                "last": step == ridges["step"].max(),
                "null_fall": null[ridge["ridge_layer"]] - null[blocks],
                "null_share": mean.cov(null) / mean.var() if measured else math.nan,
            }
            rows.append(ridge | row | _learned(table, "id", step, blocks) | _learned(table, "ood", step, blocks))
    return pd.DataFrame(rows)


def correlations(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Rank correlation over the layers between predictive information and each of :data:`COMPANIONS`.

    The layers are Z_0 to Z_L, before the final norm. Layers of one network are no independent sample, so there is no
    p-value.

    Returns:
        One row per run, step and companion that was measured and is not the same at all layers, with ``run``,
        ``kind``, ``step``, ``companion`` and ``correlation`` (Spearman's, the mean over seeds of the information).
    """
    rows = []
    for run, table in runs.items():
        for step in sorted(table.loc[table["quantity"] == "predictive_information", "step"].unique()):
            profiles = _profiles(table, "predictive_information", step)
            for companion in COMPANIONS:
                other = _profiles(table, companion, step).mean().reindex(profiles.columns)
                if other.notna().all() and other.max() > other.min():
                    value = profiles.T.corrwith(other, method="spearman").mean()
                    rows.append((run, _kind(_model(table), step), int(step), companion, value))
    return pd.DataFrame(rows, columns=["run", "kind", "step", "companion", "correlation"])


def _profiles(table: pd.DataFrame, quantity: str, step: int) -> pd.DataFrame:
    """Values of both splits together by layer (columns) and seeds (rows), the state after the final norm left out."""
    if quantity == "excess_information" and quantity not in set(table["quantity"]):
        # Where it is not stored, the null was measured on the same samples.
        whole, null = (_profiles(table, f"{name}_information", step) for name in ("predictive", "null"))
        return whole - null
    which = (table["quantity"] == quantity) & (table["split"] == "all") & (table["step"] == step)
    rows = table[which & (table["site"] != "final_norm")]
    # Pivoting would drop the rows of what has no seed.
    rows = rows.assign(train_seed=rows["train_seed"].fillna(-1), sample_seed=rows["sample_seed"].fillna(-1))
    return rows.pivot_table(index=["train_seed", "sample_seed"], columns="layer", values="value").sort_index(axis=1)


def _learned(table: pd.DataFrame, split: str, step: int, blocks: int) -> dict[str, float]:
    rows = table[(table["split"] == split) & (table["step"] == step)]
    end = rows[(rows["quantity"] == "early_exit_accuracy") & (rows["layer"] == blocks)]
    majority = rows[rows["quantity"] == "majority_accuracy"]["value"].mean()
    accuracy, learned = end["value"].mean(), math.nan
    if len(end) and not math.isnan(majority):
        n = int(end["n"].iloc[0])
        test = stats.binomtest(round(accuracy * n), n)
        learned = float(test.proportion_ci(inference.CONFIDENCE, method="wilson").low > majority)
    return {f"accuracy_{split}": accuracy, f"majority_{split}": majority, f"learned_{split}": learned}


def _model(table: pd.DataFrame) -> str:
    return str(table["model"].iloc[0])


def _kind(model: str, step: int) -> str:
    return KINDS[2 * (random_shape(model) is not None) + (step > 0)]
