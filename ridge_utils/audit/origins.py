"""Where the ridge comes from: untouched, fine-tuned and from-scratch models, and what changes with depth.

The measurements of one checkpoint, then what tables of several models say: where predictive information is largest,
how far it falls, whether the model has learned its task at all, and whether the estimate's null or the geometry of the
states changes with it.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas.io.formats.style import Styler
from scipy import stats

from ridge_utils import formatting, inference, information, results, statistics
from ridge_utils.audit import geometry
from ridge_utils.errors import InputError
from ridge_utils.figures import checkpoint_shades, curve, ridge_names
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
#: The states of a model that stand side by side.
KINDS = ("untouched", "fine-tuned", "random weights", "trained from scratch")

#: The architectures of random models that have no attention.
WITHOUT_ATTENTION = ("mamba",)

#: The notebooks whose reference tables are read; of several that have a quantity at a checkpoint, the first counts.
_SOURCES = ("origins", "predictive_information", "estimator_audit")
_READ = ("predictive_information", *COMPANIONS, "early_exit_accuracy", "majority_accuracy")


# Measurements of one checkpoint.


def check(models: Sequence[str], n_shuffles: int) -> None:
    """Refuse a list of models or a number of shuffles before anything long begins.

    Raises:
        InputError: no model or one twice, or fewer than one shuffle.
    """
    if not models or len(set(models)) != len(models):
        raise InputError(f"models must be one or more different names of models, but are {list(models)}.")
    if n_shuffles < 1:
        raise InputError(f"n_shuffles must be at least 1, but is {n_shuffles}.")


def depth_profile(
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    n_samples: int,
    sampling_seeds: Sequence[int],
    n_shuffles: int,
) -> pd.DataFrame:
    """Predictive information of every state with its permutation null, the states' entropy, and their geometry.

    Args:
        pools: representations by split.
        context: model, task, source, step and train_seed of the rows.
        n_samples: examples per estimate, drawn without replacement from a pool.
        sampling_seeds: one draw each.
        n_shuffles: shuffles of the targets, of every draw.

    Returns:
        Table of measurements. ``predictive_information``, ``null_information`` (the mean over shuffles) and
        ``state_entropy`` H(Z_l), in nats, have a row per sampling seed; ``effective_rank`` and ``mean_cosine`` are
        those of the whole pool.

    Raises:
        InputError: as :func:`ridge_utils.statistics.check_sampling` and the estimator.
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

    Args:
        pools: representations by split.
        context: model, task, source, step and train_seed of the rows.
    """
    tables = []
    for split, pool in pools.items():
        share = pool.target_ids.unique(return_counts=True)[1].max().item() / len(pool)
        row = {**context, "split": split, "sample_seed": None, "n": len(pool)}
        end = [(len(pool.hidden) - 1, "final_norm")]
        tables.append(results.measurements([share], end, "majority_accuracy", **row))
    return pd.concat(tables, ignore_index=True)


# Tables of several models.


def runs(tables: Mapping[str, Sequence[pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Tables of measurements by model and task, pretrained models first.

    Args:
        tables: by any name, tables that belong together; of several that have a quantity at a checkpoint, the first
            counts. One table may hold several models.

    Returns:
        One table per model and task, named ``model, task``, of the quantities that this page reads.
    """
    found: dict[str, pd.DataFrame] = {}
    for name, parts in tables.items():
        rows = pd.concat([part.assign(rank=rank) for rank, part in enumerate(parts)], ignore_index=True)
        rows = rows[rows["quantity"].isin(_READ) & (rows["variant"] == "")]
        first = rows.groupby(["model", "task", "quantity", "split", "step"])["rank"].transform("min")
        rows = rows[rows["rank"] == first].drop(columns="rank")
        for (model, task), group in rows.groupby(["model", "task"]):
            label = f"{model}, {task}"
            found[label if label not in found else f"{label} ({name})"] = group.reset_index(drop=True)
    return dict(sorted(found.items(), key=lambda item: _order(item[1])))


def reference_runs() -> dict[str, pd.DataFrame]:
    """The reference runs of this page, of the audit of the estimator, and of predictive information, by model and task.

    Raises:
        StorageError: one of them does not match its provenance.
    """
    by_profile: dict[str, list[pd.DataFrame]] = {}
    for notebook in _SOURCES:
        for profile, (table, _) in results.references(notebook).items():
            by_profile.setdefault(profile, []).append(table)
    return runs(by_profile)


def largest(runs: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The pretrained models, and of each architecture of random models the one with the most blocks.

    Args:
        runs: what :func:`runs` gave.
    """
    chosen = {}
    for run, table in runs.items():
        # They are ordered by size, so the last of an architecture is its largest.
        shape = random_shape(table["model"].iloc[0])
        chosen[run if shape is None else shape[0]] = run
    return {run: runs[run] for run in chosen.values()}


def summary(runs: Mapping[str, pd.DataFrame], split: str = "all") -> pd.DataFrame:
    """Each checkpoint's ridge, its fall and the null's part in it, and whether the task is learned.

    The ridge is the layer with the largest mean predictive information, the state after the final norm left out. Its
    fall to the last block is taken within a sampling seed; the interval is that of
    :func:`ridge_utils.inference.subsample_effect`, over several training seeds the one that spans all of theirs. The
    layer is chosen on the samples that its fall is measured on, so a fall that is not there comes out a little above 0.

    Args:
        runs: what :func:`runs` gave.
        split: of the information; accuracy is always of both splits.

    Returns:
        One row per run and step with ``run``, ``model``, ``task``, ``kind`` (one of :data:`KINDS`), ``step``, ``last``
        (the run's last checkpoint), ``blocks``, ``ridge_layer``, ``at_embedding``, ``at_ridge``, ``at_last_block``,
        ``fall`` with ``fall_low`` and ``fall_high``, ``null_fall``, ``has_ridge`` (before the last block, and the whole
        interval of the fall above 0), ``null_share`` (covariance of information and null over layers, in shares of the
        variance of information), and for the splits id and ood ``accuracy_…``, ``majority_…`` and ``learned_…``: 1
        where the lower end of the accuracy's interval (Wilson's, over examples) is above that of the commonest target,
        else 0. What was not measured is NaN.
    """
    rows = []
    for run, table in runs.items():
        model, task = table["model"].iloc[0], table["task"].iloc[0]
        steps = _steps(table, split)
        for step in steps:
            found = _profiles(table, "predictive_information", split, step)
            mean = found.mean()
            ridge, blocks = int(mean.idxmax()), int(mean.index.max())
            fall, low, high = _over_seeds(found[ridge] - found[blocks], _fraction(table, split))
            null = _profiles(table, "null_information", split, step).mean().reindex(mean.index)
            row = {
                "run": run,
                "model": model,
                "task": task,
                "kind": _kind(model, step),
                "step": step,
                "last": step == steps[-1],
                "blocks": blocks,
                "ridge_layer": ridge,
                "at_embedding": mean[0],
                "at_ridge": mean[ridge],
                "at_last_block": mean[blocks],
                "fall": fall,
                "fall_low": low,
                "fall_high": high,
                "null_fall": null[ridge] - null[blocks],
                "has_ridge": ridge < blocks and low > 0,
                "null_share": mean.cov(null) / mean.var() if null.notna().all() and mean.var() else math.nan,
            }
            for which in ("id", "ood"):
                row |= _learned(table, which, step, blocks)
            rows.append(row)
    return pd.DataFrame(rows)


def correlations(runs: Mapping[str, pd.DataFrame], split: str = "all") -> pd.DataFrame:
    """Rank correlation over the layers between predictive information and its null, its excess, and the geometry.

    The layers are Z_0 to Z_L, before the final norm. Layers of one network are no independent sample, so there is no
    p-value; the range is that over sampling and training seeds of the information.

    Args:
        runs: what :func:`runs` gave.
        split: ``id``, ``ood`` or ``all``.

    Returns:
        One row per run, step and companion (a key of :data:`COMPANIONS`) that was measured, with ``run``, ``kind``,
        ``step``, ``companion``, ``layers`` (how many), ``correlation`` (Spearman's, the mean over seeds), ``low`` and
        ``high`` (the range over seeds). Where a companion is the same at all layers there is no row.
    """
    rows = []
    for run, table in runs.items():
        for step in _steps(table, split):
            found = _profiles(table, "predictive_information", split, step)
            for companion in COMPANIONS:
                other = _profiles(table, companion, split, step).mean().reindex(found.columns)
                if other.isna().any() or other.nunique() < 2:
                    continue
                per_seed = found.T.corrwith(other, method="spearman")
                row = {"run": run, "kind": _kind(table["model"].iloc[0], step), "step": step, "companion": companion}
                row |= {"layers": found.shape[1], "correlation": per_seed.mean()}
                rows.append(row | {"low": per_seed.min(), "high": per_seed.max()})
    columns = ["run", "kind", "step", "companion", "layers", "correlation", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def contrasts(summary: pd.DataFrame) -> pd.DataFrame:
    """Pairs of from-scratch models that differ in one thing: width, depth, or architecture; at their last checkpoints.

    Args:
        summary: what :func:`summary` gave.

    Returns:
        One row per pair with ``differs`` (``width``, ``depth`` or ``attention``) and ``first`` and ``second``, the row
        of each in the summary.
    """
    rows = summary[summary["last"] & (summary["kind"] == "trained from scratch")]
    shapes = {index: random_shape(model) for index, model in rows["model"].items()}
    pairs = []
    for (i, (kind, blocks, width)), (j, (other, deeper, wider)) in itertools.permutations(shapes.items(), 2):
        if rows.loc[i, "task"] != rows.loc[j, "task"]:
            continue
        if (kind, blocks) == (other, deeper) and width < wider:
            pairs.append(("width", i, j))
        if (kind, width) == (other, wider) and blocks < deeper:
            pairs.append(("depth", i, j))
        if (blocks, width) == (deeper, wider) and other in WITHOUT_ATTENTION and kind not in WITHOUT_ATTENTION:
            pairs.append(("attention", i, j))
    return pd.DataFrame(pairs, columns=["differs", "first", "second"])


# Tables and sentences for the reader.


def summary_table(summary: pd.DataFrame, caption: str) -> Styler:
    """Where each model's predictive information is largest, how far it falls, and what the model has learned.

    Args:
        summary: rows of what :func:`summary` gave.
        caption: what the rows are.
    """
    shown = pd.DataFrame(
        {
            "model and task": summary["run"],
            "state": [_state(row.kind, row.step) for row in summary.itertuples()],
            "ridge layer": ridge_names(summary),
            "I at the ridge": summary["at_ridge"].map(lambda value: formatting.number(value, 3)),
            "at the last block": summary["at_last_block"].map(lambda value: formatting.number(value, 3)),
            "fall (interval)": [_fall_text(row) for row in summary.itertuples()],
            "the null's fall": [formatting.number(value, 3) for value in summary["null_fall"]],
            "ID accuracy (commonest target)": [_percents(r.accuracy_id, r.majority_id) for r in summary.itertuples()],
            "OOD accuracy": [_percents(r.accuracy_ood, r.majority_ood) for r in summary.itertuples()],
            "learned": [_learned_text(row) for row in summary.itertuples()],
        }
    )
    return formatting.styled(shown, caption)


def learned_sentence(summary: pd.DataFrame) -> str:
    """Which from-scratch models have learned the task at their last checkpoint (Markdown).

    Args:
        summary: what :func:`summary` gave.
    """
    rows = summary[summary["last"] & (summary["kind"] == "trained from scratch")]
    known = rows[rows["learned_id"].notna()]
    parts = []
    for row in known.itertuples():
        accuracy = [_percents(row.accuracy_id, row.majority_id), _percents(row.accuracy_ood, row.majority_ood)]
        parts.append(f"- `{row.model}`: {_learned_text(row)} (ID {accuracy[0]}, OOD {accuracy[1]})")
    if not parts:
        return ""
    lead = (
        "**What have the from-scratch models learned?** Accuracy of the first target token, beside that of always "
        "answering with the commonest one. A ridge of a model that has not learned is no ridge of generalisation."
    )
    return "\n".join([lead, "", *parts])


def sides_sentence(summary: pd.DataFrame) -> str:
    """In which states of which models predictive information peaks before the last block (Markdown).

    Args:
        summary: what :func:`summary` gave.
    """
    shown = _sides(summary)
    parts = []
    for kind in KINDS:
        rows = shown[shown["kind"] == kind]
        if len(rows):
            has = rows[rows["has_ridge"]]
            where = "; ".join(f"{row['run']}: {_place(row)}{_untaught(row)}" for _, row in has.iterrows())
            parts.append(f"{kind}, {len(has)} of {len(rows)}{f' ({where})' if len(has) else ''}")
    return (
        "Predictive information of ID and OOD examples together is largest before the last block, and falls from there "
        f"by more than its error: {'; '.join(parts)}."
    )


def size_sentence(summary: pd.DataFrame) -> str:
    """What a wider or a deeper model changes, at the last checkpoint (Markdown).

    Args:
        summary: what :func:`summary` gave.
    """
    lines = []
    for pair in contrasts(summary).itertuples():
        if pair.differs != "attention":
            first, second = summary.loc[pair.first], summary.loc[pair.second]
            shapes = [_shape(first), _shape(second)]
            change = f"both have {shapes[0]}" if shapes[0] == shapes[1] else f"{shapes[0]} becomes {shapes[1]}"
            lines.append(
                f"- {pair.differs.capitalize()}, `{first['model']}` → `{second['model']}`: the largest layer goes from "
                f"{_place(first)} to {_place(second)}, its information from {first['at_ridge']:.3f} to "
                f"{second['at_ridge']:.3f} nats; {change}."
            )
    return "\n".join(lines)


def training_sentence(summary: pd.DataFrame) -> str:
    """How the largest layer moves over the training of each from-scratch model (Markdown).

    Args:
        summary: what :func:`summary` gave.
    """
    lines = []
    for model, rows in _from_scratch(summary).groupby("model", sort=False):
        steps = [f"{_place(row)} at step {row['step']}{_mark(row)}" for _, row in rows.sort_values("step").iterrows()]
        lines.append(f"- `{model}`: {', '.join(steps)}.")
    if not lines:
        return ""
    lead = "The layer with the largest predictive information (* falls from there by more than its error):"
    return "\n".join([lead, "", *lines])


def attention_sentence(runs: Mapping[str, pd.DataFrame], summary: pd.DataFrame, split: str = "all") -> str:
    """Whether models with and without attention of the same size have the same shape (Markdown).

    Args:
        runs: what :func:`runs` gave.
        summary: what :func:`summary` gave for them.
        split: of the information.
    """
    lines = []
    for pair in contrasts(summary).itertuples():
        if pair.differs != "attention":
            continue
        first, second = summary.loc[pair.first], summary.loc[pair.second]
        profiles = [
            _profiles(runs[row["run"]], "predictive_information", split, row["step"]).mean() for row in (first, second)
        ]
        alike = first["has_ridge"] == second["has_ridge"]
        untaught = [row["model"] for row in (first, second) if row["learned_id"] == 0]
        line = (
            f"- `{first['model']}` has {_shape(first)} ({_place(first)}), `{second['model']}` {_shape(second)} "
            f"({_place(second)})"
        )
        if all(profile.max() > profile.min() for profile in profiles):
            correlation = profiles[0].corr(profiles[1], method="spearman")
            line += f"; the rank correlation of the two profiles over the layers is {correlation:+.2f}"
        line += ". "
        if untaught:
            named = " and ".join(f"`{model}`" for model in untaught)
            has = "have" if len(untaught) > 1 else "has"
            line += f"But {named} {has} not learned the task, so this pair does not say what learning does."
        elif alike:
            line += "Here the shape does not need attention."
        else:
            line += "Here the two shapes differ."
        lines.append(line)
    return "\n".join(lines) or "There is no pair of models of the same size, one with and one without attention."


def change_sentence(summary: pd.DataFrame, correlations: pd.DataFrame) -> str:
    """What goes with predictive information over the layers, by the state of the models (Markdown).

    Args:
        summary: what :func:`summary` gave.
        correlations: what :func:`correlations` gave for the same runs.
    """
    if correlations.empty:
        return "No run at hand has the null and the geometry measured."
    lines = []
    for kind in KINDS:
        rows = correlations[correlations["kind"] == kind]
        own = summary[(summary["kind"] == kind) & summary["null_share"].notna()]
        if rows.empty:
            continue
        count = len(rows[["run", "step"]].drop_duplicates())
        parts = []
        for companion, group in rows.groupby("companion", sort=False):
            found = group["correlation"]
            spread = f" ({found.min():+.2f} to {found.max():+.2f})" if found.max() - found.min() > 0.005 else ""
            parts.append(f"{COMPANIONS[companion]} {found.median():+.2f}{spread}")
        line = f"- **{kind.capitalize()}** ({count} checkpoint{'s' if count > 1 else ''}): {', '.join(parts)}."
        if len(own):
            line += f" Of the variance of I over the layers the null carries {own['null_share'].median():.0%}."
            falls = own[own["has_ridge"]]
            if len(falls):
                mostly = int((falls["null_fall"] > falls["fall"] / 2).sum())
                line += (
                    f" Where I falls from its largest layer by more than its error, the null makes more than half of "
                    f"the fall at {mostly} of {len(falls)} checkpoint{'s' if len(falls) > 1 else ''}."
                )
        lines.append(line.replace("%", " %"))
    lead = "Median rank correlation over the layers between predictive information and each companion (range):"
    return "\n".join([lead, "", *lines])


# Figures.


def sides_figure(runs: Mapping[str, pd.DataFrame], split: str = "all") -> Figure:
    """Predictive information over relative depth, a panel for each state of the models; dashed is the null.

    Args:
        runs: what :func:`runs` gave.
        split: ``id``, ``ood`` or ``all``.
    """
    shown = _sides(summary(runs, split))
    kinds = [kind for kind in KINDS if kind in set(shown["kind"])]
    columns = min(2, len(kinds))
    grid = (math.ceil(len(kinds) / columns), columns)
    figure, axes = plt.subplots(*grid, figsize=(11, 3.6 * grid[0]), squeeze=False)
    for ax in axes.flat[len(kinds) :]:
        ax.set_axis_off()
    for ax, kind in zip(axes.flat, kinds, strict=False):
        rows = shown[shown["kind"] == kind]
        for row, colour in zip(rows.itertuples(), _colours(len(rows)), strict=True):
            for quantity, line in (("predictive_information", "-"), ("null_information", "--")):
                mean = _profiles(runs[row.run], quantity, split, row.step).mean()
                label = row.run if quantity == "predictive_information" else None
                if len(mean):
                    ax.plot(mean.index.astype(float) / row.blocks, mean, color=colour, ls=line, label=label)
        ax.set_title(kind, fontsize=10)
        ax.set_xlabel("relative depth (layer / blocks)")
        ax.set_ylabel("I(Z; Y) in nats")
        ax.set_ylim(bottom=0, auto=True)
        ax.legend(fontsize=7)
    return figure


def shapes_figure(runs: Mapping[str, pd.DataFrame], split: str = "all") -> Figure:
    """Predictive information over layers of every model trained from scratch, a panel each, lighter is later.

    Args:
        runs: what :func:`runs` gave.
        split: ``id``, ``ood`` or ``all``.
    """
    own = {run: table for run, table in runs.items() if random_shape(table["model"].iloc[0])}
    rows = math.ceil(len(own) / 3)
    figure, axes = plt.subplots(rows, 3, figsize=(11, 3.3 * rows), squeeze=False)
    for ax in axes.flat[len(own) :]:
        ax.set_axis_off()
    for ax, (run, table) in zip(axes.flat, own.items(), strict=False):
        chosen = table[(table["quantity"] == "predictive_information") & (table["split"] == split)]
        steps = _steps(table, split)
        for step, shade in zip(steps, checkpoint_shades(split, len(steps)), strict=True):
            label = f"step {step}" if step else "random weights"
            curve(ax, chosen[chosen["step"] == step], shade, label)
        ax.set_title(run, fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("layer (0: embedding; ◆: after the final norm)", fontsize=8)
        ax.set_ylim(bottom=0, auto=True)
    for row in axes:
        row[0].set_ylabel("I(Z; Y) in nats")
    axes[0][0].legend(fontsize=7)
    return figure


def training_figure(summary: pd.DataFrame) -> Figure:
    """Place of the largest layer, its fall, and accuracy over the training of the from-scratch models.

    Args:
        summary: what :func:`summary` gave.
    """
    own = _from_scratch(summary)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8))
    models = list(dict.fromkeys(own["model"]))
    for model, colour in zip(models, _colours(len(models)), strict=True):
        rows = own[own["model"] == model].sort_values("step")
        line = ":" if random_shape(model)[0] in WITHOUT_ATTENTION else "-"
        style: dict[str, Any] = {"color": colour, "ls": line, "marker": "o", "markersize": 3}
        axes[0].plot(rows["step"], rows["ridge_layer"] / rows["blocks"], label=model, **style)
        # The mean over samples of the fall lies inside its interval, but for rounding.
        reach = [(rows["fall"] - rows["fall_low"]).clip(lower=0), (rows["fall_high"] - rows["fall"]).clip(lower=0)]
        axes[1].errorbar(rows["step"], rows["fall"], yerr=np.nan_to_num(reach), **style)
        for which, filled in (("id", colour), ("ood", "white")):
            above = rows[f"accuracy_{which}"] - rows[f"majority_{which}"].fillna(0.0)
            axes[2].plot(rows["step"], above, mfc=filled, **style)
    axes[0].set_ylabel("relative depth of the largest layer")
    axes[0].set_ylim(-0.03, 1.03)
    axes[0].legend(fontsize=7)
    axes[1].set_ylabel("fall of I to the last block (nats)")
    axes[2].set_ylabel("accuracy (open: OOD)" if own["majority_id"].isna().all() else _ABOVE)
    for ax in axes[1:]:
        ax.axhline(0, color="#999999", lw=0.8)
    for ax in axes:
        ax.set_xlabel("training steps")
    return figure


def layers_figure(runs: Mapping[str, pd.DataFrame], split: str = "all") -> Figure:
    """What changes with depth: information with its null and its excess, entropy, effective rank, mean cosine.

    Args:
        runs: what :func:`runs` gave, at least one of them with a null; those without are left out. A row of panels
            each, lighter is later.
        split: ``id``, ``ood`` or ``all``.
    """
    own = {run: table for run, table in runs.items() if "null_information" in set(table["quantity"])}
    columns = {"predictive_information": "I(Z; Y), nats", **COMPANIONS}
    units = {"null_information": ", nats", "excess_information": ", nats", "state_entropy": ", nats"}
    figure = plt.figure(figsize=(13, 2.9 * len(own)))
    for part, (run, table) in zip(np.atleast_1d(figure.subfigures(len(own), 1)), own.items(), strict=True):
        axes = part.subplots(1, len(columns))
        steps = _steps(table, split)
        for ax, (quantity, name) in zip(axes, columns.items(), strict=True):
            for step, shade in zip(steps, checkpoint_shades(split, len(steps)), strict=True):
                mean = _profiles(table, quantity, split, step).mean()
                ax.plot(mean.index.astype(int), mean, color=shade, label=f"step {step}" if step else "step 0")
            ax.set_title(name + units.get(quantity, ""), fontsize=9)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_xlabel("layer")
            ax.axhline(0, color="#999999", lw=0.6)
        top = max(ax.get_ylim()[1] for ax in axes[:3])
        for ax in axes[:3]:
            ax.set_ylim(min(ax.get_ylim()[0], 0), top)
        axes[0].legend(fontsize=6)
        part.suptitle(run, fontsize=10)
    return figure


def correlation_figure(correlations: pd.DataFrame) -> Figure:
    """Rank correlation over layers of predictive information with each companion, a row per model and checkpoint.

    Args:
        correlations: what :func:`correlations` gave.
    """
    keys = ["run", "step"]
    names = [companion for companion in COMPANIONS if companion in set(correlations["companion"])]
    order = correlations[[*keys, "kind"]].drop_duplicates(keys)
    wide = correlations.set_index([*keys, "companion"])["correlation"].unstack("companion")  # noqa: PD010
    wide = wide.reindex(index=pd.MultiIndex.from_frame(order[keys]), columns=names)
    figure, ax = plt.subplots(figsize=(8.5, 1.2 + 0.27 * len(wide)))
    image = ax.imshow(wide.to_numpy(dtype=float), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(wide.to_numpy(dtype=float)):
        text = "–" if np.isnan(value) else f"{value + 0.0:+.2f}"
        ax.text(column, row, text, ha="center", va="center", size=7, color="white" if abs(value) > 0.6 else "black")
    ax.set_xticks(range(len(names)), [COMPANIONS[name] for name in names], fontsize=8)
    ax.xaxis.tick_top()
    labels = [f"{row.run}, {_state(row.kind, row.step)}" for row in order.itertuples()]
    ax.set_yticks(range(len(labels)), labels, fontsize=7)
    ax.tick_params(length=0)
    figure.colorbar(image, ax=ax, label="Spearman's ρ over layers", shrink=0.6)
    return figure


_ABOVE = "accuracy above the commonest target's (open: OOD)"


def _profiles(table: pd.DataFrame, quantity: str, split: str, step: int) -> pd.DataFrame:
    """Values by layer (columns) and training and sampling seed (rows), the state after the final norm left out."""
    if quantity == "excess_information" and quantity not in set(table["quantity"]):
        # Where it is not stored, the null was measured on the same samples.
        return _profiles(table, "predictive_information", split, step) - _profiles(
            table, "null_information", split, step
        )
    which = (table["quantity"] == quantity) & (table["split"] == split) & (table["step"] == step)
    rows = table[which & (table["site"] != "final_norm")]
    # Pivoting would drop the rows of what has no seed.
    rows = rows.assign(train_seed=rows["train_seed"].fillna(-1), sample_seed=rows["sample_seed"].fillna(-1))
    return rows.pivot_table(index=["train_seed", "sample_seed"], columns="layer", values="value").sort_index(axis=1)


def _steps(table: pd.DataFrame, split: str) -> list[int]:
    rows = table[(table["quantity"] == "predictive_information") & (table["split"] == split)]
    return sorted(int(step) for step in rows["step"].unique())


def _fraction(table: pd.DataFrame, split: str) -> float:
    """Share of the pool that an estimate of information uses, NaN where the pool's size is not in the table."""
    sizes = table[table["split"] == split].groupby("quantity")["n"].max()
    if "early_exit_accuracy" not in sizes:
        return math.nan
    return float(sizes["predictive_information"] / sizes["early_exit_accuracy"])


def _over_seeds(values: "pd.Series[float]", fraction: float) -> tuple[float, float, float]:
    """Mean over all seeds, and the interval that spans those of the training seeds; NaN where none can be given."""
    per_seed = [group.tolist() for _, group in values.groupby(level="train_seed")]
    low = high = math.nan
    if 0 < fraction < 1 and all(len(group) > 1 for group in per_seed):
        effects = [inference.subsample_effect(group, fraction) for group in per_seed]
        low, high = min(effect.low for effect in effects), max(effect.high for effect in effects)
    return float(values.mean()), low, high


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


def _kind(model: str, step: int) -> str:
    return KINDS[2 * (random_shape(model) is not None) + (step > 0)]


def _order(table: pd.DataFrame) -> tuple[Any, ...]:
    """Pretrained models first, then by architecture and size."""
    model = table["model"].iloc[0]
    return (random_shape(model) or ("", 0, 0), model, table["task"].iloc[0])


def _sides(summary: pd.DataFrame) -> pd.DataFrame:
    """Every model before any training and at its last checkpoint."""
    return summary[summary["last"] | (summary["step"] == 0)]


def _from_scratch(summary: pd.DataFrame) -> pd.DataFrame:
    return summary[summary["kind"].isin(("random weights", "trained from scratch"))]


def _state(kind: str, step: int) -> str:
    return f"{kind}, step {step}" if step else kind


def _place(row: "pd.Series[Any]") -> str:
    return f"layer {row['ridge_layer']} of {row['blocks']}" if row["ridge_layer"] else "the embedding"


def _mark(row: "pd.Series[Any]") -> str:
    return " *" if row["has_ridge"] else ""


def _untaught(row: "pd.Series[Any]") -> str:
    return ", without having learned the task" if row["learned_id"] == 0 and row["step"] > 0 else ""


def _shape(row: "pd.Series[Any]") -> str:
    if row["has_ridge"]:
        return f"a fall of {row['fall']:.3f} nats to the last block"
    return "a rise to the last block" if row["ridge_layer"] == row["blocks"] else "a fall within its error"


def _fall_text(row: Any) -> str:
    if row.ridge_layer == row.blocks:
        return "none"
    interval = (
        ""
        if math.isnan(row.fall_low)
        else f" ({formatting.number(row.fall_low, 3)} to {formatting.number(row.fall_high, 3)})"
    )
    return f"{formatting.number(row.fall, 3)}{interval}"


def _percents(accuracy: float, majority: float) -> str:
    if math.isnan(accuracy):
        return "–"
    return f"{100 * accuracy:.0f} %" + ("" if math.isnan(majority) else f" ({100 * majority:.0f} %)")


def _learned_text(row: Any) -> str:
    if math.isnan(row.learned_id):
        return "–"
    return {(1, 1): "ID and OOD", (1, 0): "ID alone", (0, 1): "OOD alone"}.get(
        (int(row.learned_id), int(row.learned_ood)), "neither ID nor OOD"
    )


def _colours(count: int) -> Iterator[Any]:
    return iter(mpl.colormaps["viridis"](np.linspace(0, 0.9, count)))
