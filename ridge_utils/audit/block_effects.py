"""The page on interventions: what single blocks do to a prediction, where memory sits, scales trained from the start.

Effects are those of the protocol. A *drop* is the fall of the log-probability of the first target token, in nats, when
a block is intervened on: positive where the block helps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from ridge_utils import early_exit, formatting, inference, information, measures, results, study, training
from ridge_utils.audit import interventions, joint_scaling, memorisation
from ridge_utils.audit.interventions import Outcomes, Patching
from ridge_utils.audit.joint_scaling import JointFit
from ridge_utils.errors import InputError
from ridge_utils.figures import COLOURS, NAMES
from ridge_utils.formatting import effect_table, effect_text, p_text
from ridge_utils.inference import LEVEL, across_seeds
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations, encode
from ridge_utils.statistics import THIRDS, third_of
from ridge_utils.store import remember
from ridge_utils.tasks import Example
from ridge_utils.training import Settings

#: What can be done to a block, and how figures call it.
VARIANTS = {
    "skip": "skipped block",
    "mean": "mean in place of the update",
    "patch": "state put into a prompt of the same split",
    "patch_across": "state put into a prompt of the other split",
    "patch_update": "update put into a prompt of the same split",
}
#: Those that take a block out.
ABLATIONS = ("skip", "mean")

#: Blocks at the end of the model that the ridge's are compared with, and blocks of the ridge.
_BLOCKS = 3
_GREEN = "#009e73"


def check(
    n_samples: int,
    n_examples: int,
    every: int,
    variants: Sequence[str],
    last_checkpoints: int = 1,
    mapped_checkpoints: int = 1,
) -> None:
    """Refuse parameters of the page that do not fit, before anything long begins.

    Raises:
        InputError: names the parameter, its value and what it must be.
    """
    if not 2 <= n_samples <= n_examples:
        raise InputError(f"n_samples must be between 2 and n_examples={n_examples}, but is {n_samples}.")
    counts = {"every": every, "last_checkpoints": last_checkpoints, "mapped_checkpoints": mapped_checkpoints}
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} must be at least 1, but is {count}.")
    known = set(variants) <= set(VARIANTS) and len(set(variants)) == len(variants)
    if not known or not set(variants) & set(ABLATIONS):
        raise InputError(
            f"variants must be different ones of {', '.join(VARIANTS)}, skip or mean among them, but are "
            f"{list(variants)}."
        )


def ridge_blocks(ridge: int, depth: int) -> list[int]:
    """The blocks of the ridge: the one that writes its layer and the two beside it, moved inwards at either end."""
    size = min(_BLOCKS, depth)
    first = min(max(ridge - 1, 1), depth - size + 1)
    return list(range(first, first + size))


def last_blocks(depth: int) -> list[int]:
    """The last three blocks."""
    return list(range(max(1, depth - _BLOCKS + 1), depth + 1))


def shown_blocks(depth: int, every: int) -> list[int]:
    """Every so-manieth block, counted from the last, and the last three: the same wherever the ridge is."""
    return sorted({*range(depth, 0, -every), *last_blocks(depth)})


def ridge_profile(pool: Representations, context: Mapping[str, Any]) -> pd.DataFrame:
    """Predictive information of a whole pool, and the layer where it is largest.

    Args:
        pool: representations of ID and OOD examples together.
        context: model, task, source, step and train_seed of the rows.

    Returns:
        Table of measurements with ``predictive_information`` (nats) of the layers 0 to L, the final norm left out, and
        ``ridge_layer``, one row.
    """
    values = information.predictive_information(pool.hidden, pool.targets)
    depth = len(values) - 1
    row = {**context, "split": "all", "sample_seed": None, "n": len(pool)}
    return pd.concat(
        [
            results.measurements(
                values.tolist(), results.sites(depth, final_norm=False), "predictive_information", **row
            ),
            results.measurements([int(values.argmax())], [(depth, "block")], "ridge_layer", **row),
        ],
        ignore_index=True,
    )


def block_effects(
    loaded: LoadedModel,
    examples: Mapping[str, Sequence[Example]],
    ridge: int,
    context: Mapping[str, Any],
    *,
    n_samples: int,
    every: int,
    variants: Sequence[str],
    batch_size: int,
) -> pd.DataFrame:
    """What an intervention on each of some blocks does, ID and OOD, with effect sizes, intervals and p-values.

    Args:
        loaded: the model.
        examples: all examples of the splits ``id`` and ``ood``; the first ``n_samples`` of each are intervened on, all
            of them can be the corrupted prompt of a pair.
        ridge: the ridge layer.
        context: model, task, source, step and train_seed of the rows.
        n_samples: examples per split.
        every: every so-manieth block has rows of its own, see :func:`shown_blocks`; those of the ridge are ablated as
            well, for the contrast.
        variants: of :data:`VARIANTS`.
        batch_size: prompts per forward pass.

    Returns:
        Table of measurements. Per block, variant and split, ``log_probability_change`` (nats) and ``accuracy_change``,
        with the intervention less without (for a patch: in the corrupted prompt, of the clean prompt's target). Per
        block and ablation: ``ablation_shift``, the OOD drop less the ID drop. Per ablation and split:
        ``ablation_contrast``, the mean drop over the ridge's blocks less that over the last three, absent where these
        are the same. Per split ``accuracy`` and ``log_probability`` as they are; per patch ``log_probability_gap``, the
        clean run less the corrupted one, absent with the patch's other rows where fewer than two pairs are found.
    """
    depth = len(loaded.blocks)
    shown = shown_blocks(depth, every)
    blocks = sorted({*shown, *ridge_blocks(ridge, depth)})
    chosen = {split: list(own[:n_samples]) for split, own in examples.items()}
    others = {"id": "ood", "ood": "id"}
    tables = []
    drops: dict[str, dict[str, np.ndarray]] = {}
    for variant in variants:
        for split, own in chosen.items():
            row = {**context, "split": split, "sample_seed": None, "variant": variant}
            if variant in ABLATIONS:
                found = _ablated(loaded, own, blocks, variant, batch_size, split)
                drops.setdefault(variant, {})[split] = (found.log_probability[0] - found.log_probability[1:]).numpy()
            else:
                corrupted = examples[others[split]] if variant == "patch_across" else examples[split]
                pairs = interventions.match(loaded, own, corrupted)
                if len(pairs) < 2:
                    continue
                found = _patched(loaded, pairs, shown, variant, batch_size, split)
                gap = inference.paired_effect(found.log_probability[0].tolist(), found.clean.tolist())
                row["n"] = len(pairs)
                tables.append(inference.effect_rows(gap, (depth, "final_norm"), "log_probability_gap", **row))
            row["n"] = found.correct.shape[1]
            tables += _changes(found, blocks if variant in ABLATIONS else shown, shown, row)
            if list(drops) == [variant]:
                untouched = {"accuracy": found.correct[0].double(), "log_probability": found.log_probability[0]}
                for quantity, values in untouched.items():
                    value = values.mean().item()
                    own_row = {**row, "variant": ""}
                    tables.append(results.measurements([value], [(depth, "final_norm")], quantity, **own_row))
    for variant, by_split in drops.items():
        row = {**context, "sample_seed": None, "variant": variant}
        tables += _contrasts(by_split, blocks, shown, ridge, row)
    return pd.concat(tables, ignore_index=True)


def recall(
    base: LoadedModel,
    examples: Sequence[Example],
    held_out: Mapping[str, Sequence[Example]],
    context: Mapping[str, Any],
    settings: Settings,
    share: float,
) -> pd.DataFrame | None:
    """Train with random targets among the right ones, and find the depth at which each kind is recalled.

    Args:
        base: the model to start from.
        examples: training examples.
        held_out: examples of the splits ``id`` and ``ood``, for the ridge layer of the trained model.
        context: model, task and source of the rows.
        settings: of the training; their seed also draws the random targets.
        share: of the targets that are replaced.

    Returns:
        Table of measurements at the last step. On the training examples (split ``train``), ``recall_accuracy`` by
        layer, variants ``random`` and ``intact``; ``recall_depth`` of each, and ``recall_depth_difference``, in layers,
        absent where nothing is recalled. On the held-out ones: ``early_exit_accuracy`` by layer, variant
        ``memorisation``, and ``memorisation_ridge_layer``. None where all targets begin with the same token, as they do
        where a tokenizer spells: then there is nothing to remember.
    """
    if len({encode(base, example)[1][0] for example in examples}) == 1:
        return None
    made, is_random = memorisation.randomise(base, examples, share, settings.seed)
    loaded = training.finetune(base, made, settings).load(settings.steps)
    label = f"memorisation, seed {settings.seed}"
    states = study.read(loaded, made, settings.batch_size, f"{label}, train")
    correct = early_exit.correct(loaded, states)
    kinds = {"random": correct[:, is_random], "intact": correct[:, ~is_random]}
    sites = results.sites(len(loaded.blocks), final_norm=False)
    state = {**context, "step": settings.steps, "train_seed": settings.seed}
    row = {**state, "split": "train", "sample_seed": None}
    tables = []
    for kind, own in kinds.items():
        mine = {**row, "variant": kind, "n": own.shape[1]}
        tables.append(results.measurements(own.double().mean(1).tolist(), sites, "recall_accuracy", **mine))
        if depth := memorisation.depth_effect(own):
            tables.append(inference.effect_rows(depth, sites[-1], "recall_depth", **mine))
    if apart := memorisation.depth_difference(kinds["random"], kinds["intact"]):
        tables.append(inference.effect_rows(apart, sites[-1], "recall_depth_difference", **row, n=len(made)))
    pools = {
        split: study.read(loaded, own, settings.batch_size, f"{label}, {split}") for split, own in held_out.items()
    }
    tables.append(measures.early_exit_accuracy(loaded, pools, state).assign(variant="memorisation"))
    profile = ridge_profile(Representations.join(list(pools.values())), state)
    ridge = profile[profile["quantity"] == "ridge_layer"]
    tables.append(ridge.assign(quantity="memorisation_ridge_layer"))
    return pd.concat(tables, ignore_index=True)


def joint_scales(
    base: LoadedModel,
    examples: Sequence[Example],
    held_out: Mapping[str, Sequence[Example]],
    context: Mapping[str, Any],
    settings: Settings,
    scale_learning_rate: float,
    without: tuple[LoadedModel, Mapping[str, Representations]] | None = None,
) -> pd.DataFrame:
    """Fine-tune with one factor a block trained beside the weights, and evaluate the result.

    Args:
        base: the model to start from.
        examples: training examples.
        held_out: examples of the splits ``id`` and ``ood``.
        context: model, task and source of the rows.
        settings: of the training.
        scale_learning_rate: peak learning rate of the factors.
        without: the model of the same fine-tuning without factors, and its states of ``held_out``, to compare with.

    Returns:
        Table of measurements at the last step, with ``joint_scale`` of every block (split ``train``),
        ``joint_accuracy`` per split, and ``joint_accuracy_gain``, the accuracy with factors less that without, within
        examples.
    """
    evaluated = [example for own in held_out.values() for example in own]
    precision = training.resolve_precision(settings.precision, base.device)
    label = f"seed {settings.seed}"
    found = remember(
        JointFit,
        base,
        [*examples, *evaluated],
        partial(joint_scaling.fit, base, examples, evaluated, settings, scale_learning_rate, label),
        settings={**asdict(settings), "precision": precision},
        scale_learning_rate=scale_learning_rate,
        evaluated=len(evaluated),
    )
    depth = len(base.blocks)
    row = {**context, "step": settings.steps, "train_seed": settings.seed, "sample_seed": None}
    sites = results.sites(depth, final_norm=False)[1:]
    of_train = {**row, "split": "train", "n": len(examples)}
    tables = [results.measurements(found.scales.tolist(), sites, "joint_scale", **of_train)]
    end = (depth, "final_norm")
    parts = found.correct.double().split([len(own) for own in held_out.values()])
    for split, correct in zip(held_out, parts, strict=True):
        mine = {**row, "split": split, "n": len(correct)}
        tables.append(results.measurements([correct.mean().item()], [end], "joint_accuracy", **mine))
        if without is not None:
            model, pools = without
            last = replace(pools[split], hidden=pools[split].hidden[-1:])
            before = early_exit.correct(model, last)[-1].double()
            gain = inference.paired_effect(before.tolist(), correct.tolist())
            tables.append(inference.effect_rows(gain, end, "joint_accuracy_gain", **mine))
    return pd.concat(tables, ignore_index=True)


def by_step(tables: Mapping[str, pd.DataFrame], last: int | None = None) -> dict[str, pd.DataFrame]:
    """The checkpoints that were intervened on, apart.

    Args:
        tables: tables of measurements of this page, by title.
        last: leave out all but so many of the last of each table.

    Returns:
        The rows of one checkpoint, all training seeds together, by the title with the step added.
    """
    out = {}
    for title, table in tables.items():
        for step in sorted(_rows(table, "ridge_layer")["step"].unique())[-last if last else None :]:
            out[f"{title}, {f'step {step}' if step else 'untouched'}"] = table[table["step"] == step]
    return out


def contrast_headline(tables: Mapping[str, pd.DataFrame]) -> str:
    """Whether the ridge's blocks matter more than the last three, under shift and without it (Markdown).

    Args:
        tables: the rows of one checkpoint each, by title, as :func:`by_step` gives them.

    Returns:
        A list, one line per checkpoint.
    """
    found = {
        title: across_seeds(inference.effects(_rows(table, "ablation_contrast"), "ablation_contrast"))
        for title, table in tables.items()
    }
    # One family of tests, that of contrast_table.
    corrected = iter(inference.holm([p for rows in found.values() for p in rows["p"]]))
    lines = []
    for title, rows in found.items():
        ridges = _rows(tables[title], "ridge_layer")
        depth, layers = int(ridges["layer"].iloc[0]), sorted(set(ridges["value"].astype(int)))
        said = f"- **{title}:** predictive information is largest at layer {', '.join(map(str, layers))} of {depth}"
        if rows.empty:
            lines.append(f"{said}; the ridge's blocks are the last three, so there is nothing to compare them with.")
            continue
        rows = rows.assign(p=[next(corrected) for _ in range(len(rows))])
        parts = [
            f"{row.split.upper()}, {VARIANTS[row.variant]}, {effect_text(pd.Series(row._asdict()))}"
            for row in rows.sort_values(["variant", "split"], ascending=False).itertuples()
        ]
        blocks = f"blocks {_span(ridge_blocks(layers[0], depth))}" if len(layers) == 1 else "blocks"
        lines.append(
            f"{said}. The drop when one of the ridge's {blocks} is taken out, less that when one of the last three is, "
            f"in nats: {'; '.join(parts)}."
        )
    return "\n".join(lines)


def blocks_headline(table: pd.DataFrame) -> str:
    """Which blocks matter one by one, and where the shift makes a difference (Markdown).

    Args:
        table: the rows of one checkpoint, as :func:`by_step` gives them.
    """
    accuracy = table[table["quantity"] == "accuracy"].groupby("split")["value"].mean()
    parts = [f"As it is, accuracy is {100 * accuracy['id']:.0f} % (ID) and {100 * accuracy['ood']:.0f} % (OOD)."]
    every = drops(table)
    for variant in ABLATIONS:
        rows = every[every["variant"] == variant]
        if rows.empty:
            continue
        said = []
        for split, own in rows.groupby("split", sort=False):
            largest = own.loc[own["estimate"].idxmax()]
            lowers, raises = (int((own["firm"] & (own["estimate"] * side > 0)).sum()) for side in (1, -1))
            said.append(
                f"on {split.upper()} examples the log-probability falls beyond the error at {lowers} of {len(own)} "
                f"blocks and rises at {raises}, and the largest drop is block {largest['layer']}'s, "
                f"{largest['estimate'] + 0.0:.2f} nats"
            )
        shifts = _shifts(table, variant)
        firm = shifts[shifts["firm"]]
        more = [str(layer) for layer in firm.loc[firm["estimate"] > 0, "layer"]]
        less = [str(layer) for layer in firm.loc[firm["estimate"] < 0, "layer"]]
        apart = [f"larger under the shift at {', '.join(more)}"] if more else []
        apart += [f"smaller under the shift at {', '.join(less)}"] if less else []
        said.append(f"drops are {' and '.join(apart)}" if apart else "no block's drop differs between OOD and ID")
        parts.append(f"{VARIANTS[variant].capitalize()}: {'; '.join(said)}.")
    return " ".join(parts)


def patch_headline(table: pd.DataFrame) -> str:
    """Behind which block the last position knows the answer (Markdown).

    Args:
        table: the rows of one checkpoint, as :func:`by_step` gives them.
    """
    every = recovered(table)
    parts = []
    for (variant, split), own in every.groupby(["variant", "split"], sort=False):
        gap = own["gap"].iloc[0]
        share = own["estimate"] / gap
        if not own["gap_low"].iloc[0] > 0:  # a share of a difference that may be none says nothing
            said = "clean and corrupted prompts do not differ beyond the error"
        elif variant == "patch_update":
            said = f"block {own.loc[share.idxmax(), 'layer']} alone brings back most ({100 * share.max():.0f} %)"
        else:
            said = f"half of it is back behind block {own.loc[share >= 0.5, 'layer'].min()}"
        parts.append(f"{split.upper()}, {VARIANTS[variant]} ({gap:.2f} nats, {own['n'].iloc[0]} pairs): {said}")
    if not parts:
        return "No two prompts have as many tokens and different targets."
    return f"Of the difference in log-probability between the clean and the corrupted run, {'; '.join(parts)}."


def recall_headline(table: pd.DataFrame) -> str:
    """How much is recalled at the end, and at which depth half of it is there (Markdown).

    Args:
        table: table of measurements of this page.
    """
    rows = table[table["quantity"] == "recall_accuracy"]
    if rows.empty:
        return "Nothing was trained with random targets here, or all targets begin with the same token."
    end = rows[rows["layer"] == rows["layer"].max()].groupby("variant")["value"].mean()
    step, depth = int(rows["step"].iloc[0]), int(rows["layer"].max())
    said = (
        f"After {step} steps {100 * end['random']:.0f} % of the random and {100 * end['intact']:.0f} % of the intact "
        "targets are recalled"
    )
    apart = across_seeds(inference.effects(table, "recall_depth_difference"))
    if apart.empty:
        return f"{said}, so no depth of recall can be told."
    depths = across_seeds(inference.effects(table, "recall_depth")).set_index("variant")
    where = [
        f"of the {kind} ones at layer {depths.loc[kind, 'estimate']:.1f} ({depths.loc[kind, 'low']:.1f} to "
        f"{depths.loc[kind, 'high']:.1f})"
        for kind in ("random", "intact")
    ]
    ridge = table.loc[table["quantity"] == "memorisation_ridge_layer", "value"].mean()
    return (
        f"{said}. Half of that recall is reached, of {depth} layers, {' and '.join(where)}; the random less the intact "
        f"depth is {effect_text(apart.iloc[0], 1)} layers. Predictive information of the same model is largest at "
        f"layer {ridge:g}."
    )


def joint_headline(table: pd.DataFrame) -> str:
    """Where factors trained with the weights end, and what they do to accuracy (Markdown).

    Args:
        table: table of measurements of this page.
    """
    rows = table[table["quantity"] == "joint_scale"]
    if rows.empty:
        return "No factors were trained with the weights in this run."
    means = rows.groupby("layer")["value"].mean()
    depth = int(means.index.max())
    thirds = means.groupby([third_of(layer, depth) for layer in means.index]).mean().reindex(THIRDS)
    lowest, highest = means.idxmin(), means.idxmax()
    accuracy = table[table["quantity"] == "joint_accuracy"].groupby("split")["value"].mean()
    said = (
        f"After {rows['step'].iloc[0]} steps the factors lie between {means.min():.3f} (block {lowest}) and "
        f"{means.max():.3f} (block {highest}); the last block's is {means[depth]:.3f}, the last third of the blocks "
        f"has a mean of {thirds['last']:.3f}, the middle third of "
        f"{thirds['middle']:.3f}. Accuracy with them is "
        f"{100 * accuracy['id']:.1f} % (ID) and {100 * accuracy['ood']:.1f} % (OOD)"
    )
    gains = across_seeds(inference.effects(table, "joint_accuracy_gain"))
    if gains.empty:
        return f"{said}."
    gains["p"] = inference.holm(gains["p"].tolist())
    more = [f"{row.split.upper()} {effect_text(pd.Series(row._asdict()))}" for row in gains.itertuples()]
    return f"{said}; less that of the same fine-tuning without factors: {', '.join(more)}."


def drops(table: pd.DataFrame) -> pd.DataFrame:
    """Drops of the log-probability by block, all training seeds together.

    Args:
        table: the rows of one checkpoint, as :func:`by_step` gives them.

    Returns:
        A row per ablation, split and block with ``estimate``, ``low``, ``high`` (nats), ``effect_size`` (positive where
        the block helps), ``p`` after Holm's correction over the blocks, and whether it is ``firm``, beyond its error.
    """
    rows = _rows(table, "log_probability_change")
    rows = rows[rows["variant"].isin(ABLATIONS)]
    found = across_seeds(inference.effects(rows, "log_probability_change"))
    low, high = -found["high"], -found["low"]
    found = found.assign(estimate=-found["estimate"], low=low, high=high, effect_size=-found["effect_size"])
    return _corrected(found, ["variant", "split"])


def recovered(table: pd.DataFrame) -> pd.DataFrame:
    """Log-probability that patches bring back, all training seeds together.

    Args:
        table: the rows of one checkpoint, as :func:`by_step` gives them.

    Returns:
        A row per patch, split and block with ``n`` (pairs), ``estimate``, ``low`` and ``high`` (nats), and the whole
        difference between clean and corrupted run, ``gap``, with the lower end of its interval, ``gap_low``.
    """
    rows = _rows(table, "log_probability_change")
    found = across_seeds(inference.effects(rows[~rows["variant"].isin(ABLATIONS)], "log_probability_change"))
    gaps = across_seeds(inference.effects(_rows(table, "log_probability_gap"), "log_probability_gap"))
    gaps = gaps.rename(columns={"estimate": "gap", "low": "gap_low"})[["variant", "split", "gap", "gap_low"]]
    found = found.merge(gaps, on=["variant", "split"]).sort_values(["variant", "split", "layer"], kind="stable")
    return found[["variant", "split", "layer", "n", "estimate", "low", "high", "gap", "gap_low"]]


def contrast_table(tables: Mapping[str, pd.DataFrame]) -> Styler:
    """The ridge's blocks against the last three, every checkpoint, split and ablation.

    Args:
        tables: the rows of one checkpoint each, by title, as :func:`by_step` gives them.
    """
    parts = [
        across_seeds(inference.effects(table, "ablation_contrast")).assign(run=run) for run, table in tables.items()
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows["variant"] = rows["variant"].map(VARIANTS)
    columns = {"run": "run", "split": "split", "variant": "intervention"}
    caption = "Drop when one of the ridge's blocks is taken out, less that when one of the last three is, in nats"
    return effect_table(rows, columns, caption)


def block_table(table: pd.DataFrame, variant: str = "skip") -> Styler:
    """What one ablation of each block does: drops on ID and OOD examples, and their difference.

    Args:
        table: the rows of one checkpoint, as :func:`by_step` gives them.
        variant: ``skip`` or ``mean``.
    """
    every = drops(table)
    every = every[every["variant"] == variant]
    shown: dict[str, list[str]] = {}
    parts = [(split.upper(), every[every["split"] == split]) for split in ("id", "ood")]
    for name, rows in [*parts, ("OOD less ID", _shifts(table, variant))]:
        shown.setdefault("block", [str(layer) for layer in rows["layer"]])
        shown[f"{name}, drop"] = [
            f"{row.estimate + 0.0:+.3f} ({row.low + 0.0:.3f} to {row.high + 0.0:.3f})" for row in rows.itertuples()
        ]
        shown[f"{name}, effect size"] = ["–" if pd.isna(size) else f"{size + 0.0:+.2f}" for size in rows["effect_size"]]
        shown[f"{name}, p"] = [p_text(p) for p in rows["p"]]
    accuracy = across_seeds(inference.effects(table[table["variant"] == variant], "accuracy_change"))
    for split, name in (("id", "ID"), ("ood", "OOD")):
        rows = accuracy[accuracy["split"] == split].sort_values("layer")
        shown[f"{name}, accuracy"] = [
            f"{100 * row.estimate:+.0f} ({100 * row.low:.0f} to {100 * row.high:.0f}) %" for row in rows.itertuples()
        ]
    caption = (
        f"{VARIANTS[variant].capitalize()}: drop of the log-probability, in nats, and change of accuracy; intervals "
        "cover 95 %, p is after Holm's correction over the blocks, effect sizes are Cohen's d_z (paired) and d (OOD "
        "less ID)"
    )
    return formatting.styled(pd.DataFrame(shown), caption)


def ablation_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Drops by block, a row per table and a panel per ablation; full markers are beyond their error after Holm.

    Args:
        tables: the rows of one checkpoint each, by the title of their row, as :func:`by_step` gives them.
    """
    every = {title: drops(table) for title, table in tables.items()}
    variants = [variant for variant in ABLATIONS if any((rows["variant"] == variant).any() for rows in every.values())]
    figure = plt.figure(figsize=(11, 3.8 * len(tables)))
    for part, (title, rows) in zip(np.atleast_1d(figure.subfigures(len(tables), 1)), every.items(), strict=True):
        axes = part.subplots(1, len(variants), sharey=True, squeeze=False)[0]
        for ax, variant in zip(axes, variants, strict=True):
            _mark_blocks(ax, tables[title])
            for split in ("id", "ood"):
                own = rows[(rows["variant"] == variant) & (rows["split"] == split)]
                _bars(ax, own, COLOURS[split], NAMES[split])
            ax.axhline(0, color="#999999", lw=0.8)
            ax.set_yscale("symlog", linthresh=1)
            ax.set_xlabel("block")
            ax.set_title(VARIANTS[variant], fontsize=10)
        axes[0].set_ylabel("drop of the log-probability\n(nats, linear below 1)")
        part.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
        part.suptitle(title)
    return figure


def patch_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Log-probability that patches bring back, by block, a row per table; a thin line is all there is to bring back.

    Args:
        tables: the rows of one checkpoint each, by the title of their row, as :func:`by_step` gives them.
    """
    lines = {"patch": "-", "patch_across": "--", "patch_update": ":"}
    figure = plt.figure(figsize=(11, 3.8 * len(tables)))
    for part, (title, table) in zip(np.atleast_1d(figure.subfigures(len(tables), 1)), tables.items(), strict=True):
        axes = part.subplots(1, 2, sharex=True, sharey=True)
        every = recovered(table)
        for ax, split in zip(axes, ("id", "ood"), strict=True):
            _mark_blocks(ax, table)
            for variant, own in every[every["split"] == split].groupby("variant", sort=False):
                layers, colour = own["layer"].astype(int), COLOURS[split]
                ax.fill_between(layers, own["low"], own["high"], color=colour, alpha=0.15, linewidth=0)
                ax.plot(layers, own["estimate"], color=colour, ls=lines[variant], marker=".", label=VARIANTS[variant])
                ax.axhline(own["gap"].iloc[0], color=colour, ls=lines[variant], lw=0.6)
                ax.legend(fontsize=8)
            ax.axhline(0, color="#999999", lw=0.8)
            ax.set_xlabel("block")
            ax.set_title(f"clean prompt {NAMES[split]}", fontsize=10)
        axes[0].set_ylabel("log-probability brought back (nats)")
        part.suptitle(title)
    return figure


def recall_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Recall of random and of intact targets by layer, a panel per table, with the depth of half of it.

    Args:
        tables: tables of measurements of this page, by the title of their panel; those without recall are left out.
    """
    tables = {title: table for title, table in tables.items() if (table["quantity"] == "recall_accuracy").any()}
    kinds = {"random": ("#cc79a7", "random targets"), "intact": ("#0072b2", "intact targets")}
    figure, axes = plt.subplots(len(tables), 1, figsize=(9, 3.6 * len(tables)), squeeze=False)
    for ax, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        rows = table[table["quantity"] == "recall_accuracy"]
        depths = across_seeds(inference.effects(table, "recall_depth"))
        for kind, (colour, name) in kinds.items():
            mean = rows[rows["variant"] == kind].groupby("layer")["value"].mean()
            ax.plot(mean.index.astype(int), mean, color=colour, label=name)
            for depth in depths[depths["variant"] == kind].itertuples():
                ax.axvspan(depth.low, depth.high, color=colour, alpha=0.12, linewidth=0)
                ax.axvline(depth.estimate, color=colour, ls=":")
        exits = table[(table["quantity"] == "early_exit_accuracy") & (table["variant"] == "memorisation")]
        unseen = exits[exits["split"] == "id"].groupby("layer")["value"].mean()
        ax.plot(unseen.index.astype(int), unseen, color=_GREEN, label="ID examples, not trained on")
        for ridge in table.loc[table["quantity"] == "memorisation_ridge_layer", "value"].unique():
            ax.axvline(ridge, color=COLOURS["all"], ls="--", lw=0.8, label="ridge layer")
        ax.set_ylim(-0.02, 1.02)
        ax.set_xlabel("layer (0: embedding)")
        ax.set_ylabel("share right by early exit")
        ax.set_title(title, fontsize=10)
        ax.legend(fontsize=8, loc="upper left")
    return figure


def joint_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Factors trained with the weights, by block, a panel per table and a line per training seed.

    Args:
        tables: tables of measurements of this page, by the title of their panel; those without factors are left out.
    """
    tables = {title: table for title, table in tables.items() if (table["quantity"] == "joint_scale").any()}
    figure, axes = plt.subplots(len(tables), 1, figsize=(9, 3.2 * len(tables)), squeeze=False)
    for ax, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        for seed, rows in table[table["quantity"] == "joint_scale"].groupby("train_seed"):
            rows = rows.sort_values("layer")
            ax.plot(rows["layer"].astype(int), rows["value"], color=COLOURS["all"], marker=".", label=f"seed {seed}")
        ax.axhline(1, color="#999999", lw=0.8)
        ax.set_ylabel("residual scale β")
        ax.set_xlabel("block")
        ax.set_title(title, fontsize=10)
        ax.legend(fontsize=8)
    return figure


def has(tables: Mapping[str, pd.DataFrame], quantity: str) -> bool:
    """Whether one of the tables holds a quantity."""
    return any(bool((table["quantity"] == quantity).any()) for table in tables.values())


def _ablated(
    loaded: LoadedModel, examples: Sequence[Example], blocks: Sequence[int], how: str, batch_size: int, label: str
) -> Outcomes:
    compute = partial(interventions.ablate, loaded, examples, blocks, how, batch_size, label)
    return remember(Outcomes, loaded, examples, compute, blocks=list(blocks), how=how, batch_size=batch_size)


def _patched(
    loaded: LoadedModel,
    pairs: Sequence[interventions.Pair],
    blocks: Sequence[int],
    variant: str,
    batch_size: int,
    label: str,
) -> Patching:
    what = "update" if variant == "patch_update" else "state"
    compute = partial(interventions.patch, loaded, pairs, blocks, what, batch_size, f"{variant}, {label}")
    both = [*(pair.clean for pair in pairs), *(pair.corrupted for pair in pairs)]
    return remember(Patching, loaded, both, compute, blocks=list(blocks), what=what, batch_size=batch_size)


def _changes(
    found: Outcomes, blocks: Sequence[int], shown: Sequence[int], row: Mapping[str, Any]
) -> list[pd.DataFrame]:
    """Changes of log-probability and accuracy by block, as effects."""
    tables = []
    for quantity, values in (
        ("log_probability_change", found.log_probability),
        ("accuracy_change", found.correct.double()),
    ):
        for block in shown:
            effect = inference.paired_effect(values[0].tolist(), values[1 + blocks.index(block)].tolist())
            tables.append(inference.effect_rows(effect, (block, "block"), quantity, **row))
    return tables


def _contrasts(
    by_split: Mapping[str, np.ndarray], blocks: Sequence[int], shown: Sequence[int], ridge: int, row: Mapping[str, Any]
) -> list[pd.DataFrame]:
    """The ridge's blocks against the last ones, and OOD against ID block by block; drops have shape (blocks, N)."""
    tables = []
    depth = shown[-1]
    of_ridge, of_end = ([blocks.index(b) for b in own] for own in (ridge_blocks(ridge, depth), last_blocks(depth)))
    if of_ridge != of_end:
        for split, drop in by_split.items():
            effect = inference.paired_effect(drop[of_end].mean(0).tolist(), drop[of_ridge].mean(0).tolist())
            mine = {**row, "split": split, "n": drop.shape[1]}
            tables.append(inference.effect_rows(effect, (depth, "block"), "ablation_contrast", **mine))
    mine = {**row, "split": "all", "n": sum(drop.shape[1] for drop in by_split.values())}
    for block in shown:
        place = blocks.index(block)
        effect = inference.unpaired_effect(by_split["id"][place].tolist(), by_split["ood"][place].tolist())
        tables.append(inference.effect_rows(effect, (block, "block"), "ablation_shift", **mine))
    return tables


def _shifts(table: pd.DataFrame, variant: str) -> pd.DataFrame:
    rows = _rows(table, "ablation_shift")
    return _corrected(across_seeds(inference.effects(rows[rows["variant"] == variant], "ablation_shift")), ["variant"])


def _corrected(effects: pd.DataFrame, family: list[str]) -> pd.DataFrame:
    """Effects with their p-values after Holm's correction within each family, and whether they are beyond it."""
    effects = effects.sort_values([*family, "layer"], kind="stable", ignore_index=True)
    p = effects.groupby(family, sort=False)["p"].transform(lambda own: inference.holm(own.tolist()))
    return effects.assign(p=p, firm=p <= LEVEL)


def _rows(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """The rows of a quantity, its effects' suffixes included."""
    return table[table["quantity"].isin([quantity, *(quantity + suffix for suffix in inference.SUFFIXES)])]


def _mark_blocks(ax: Axes, table: pd.DataFrame) -> None:
    """Shade the ridge's blocks and the last three."""
    ridges = _rows(table, "ridge_layer")
    for depth, ridge in dict.fromkeys(zip(ridges["layer"].astype(int), ridges["value"].astype(int), strict=True)):
        for blocks, colour in ((ridge_blocks(ridge, depth), "#f0e442"), (last_blocks(depth), "#bbbbbb")):
            ax.axvspan(blocks[0] - 0.5, blocks[-1] + 0.5, color=colour, alpha=0.35, linewidth=0)


def _bars(ax: Axes, rows: pd.DataFrame, colour: str, label: str) -> None:
    """A line with intervals; markers are full where an effect is beyond its error."""
    layers = rows["layer"].astype(int)
    reach = np.clip([rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]], 0, None)
    ax.errorbar(layers, rows["estimate"], yerr=reach, color=colour, lw=1, label=label)
    for firm, face in ((True, colour), (False, "white")):
        own = rows[rows["firm"] == firm]
        ax.plot(own["layer"].astype(int), own["estimate"], "o", ms=5, mfc=face, mec=colour, zorder=3)


def _span(blocks: Sequence[int]) -> str:
    return f"{blocks[0]} to {blocks[-1]}" if len(blocks) > 1 else str(blocks[0])
