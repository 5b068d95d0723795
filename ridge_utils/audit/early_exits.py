"""Early exit done properly: Table 1 of the paper with other exits, and whether the best exit lies at the ridge (C2)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from scipy import stats
from torch import Tensor

from ridge_utils import early_exit, formatting, inference, information, results, statistics, study, tasks
from ridge_utils.audit import lens
from ridge_utils.errors import InputError
from ridge_utils.figures import COLOURS, NAMES, checkpoint_shades
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations
from ridge_utils.store import remember
from ridge_utils.tasks import Example

#: How a layer's state is read, by the name of the variant in the tables; the first is the paper's, as we take it.
EXITS = {
    "": "final norm and head",
    "no_norm": "head without the norm",
    "tuned_lens": "trained translator",
    "trained_head": "trained head",
}
_HUES = {"": "#222222", "no_norm": "#cc79a7", "tuned_lens": "#009e73", "trained_head": "#e69f00"}

#: Random halves of the examples that an interval of layers comes from.
HALVES = 100

#: Each comparison's heading, by its quantity.
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


@dataclass(frozen=True)
class TrainedExits:
    """What the trained exits of K layers read from N examples, and what their training did."""

    #: whether the translator's exit is right, shape (K, N), bool
    translated: Tensor
    #: whether the layer's own head is right, shape (K, N), bool
    headed: Tensor
    #: divergence from the model's prediction on held-out training states before and after, nats, shape (2, K), float64
    divergence: Tensor
    #: cross-entropy of the target on held-out training states before and after, nats, shape (2, K), float64
    cross_entropy: Tensor


def training_examples(work: study.Study, n: int) -> list[Example]:
    """Examples of the training split to fit exits on: the first of those that the model was fine-tuned on.

    Args:
        work: the study; one that trains nothing has its examples drawn here.
        n: how many.

    Raises:
        InputError: more than there are.
    """
    parameters = work.parameters
    if not work.training_examples:
        data_dir = parameters.get("data_dir") or None
        return tasks.load(parameters["task"], "train", n, data_dir=data_dir, **parameters["task_options"])
    if n > len(work.training_examples):
        raise InputError(
            f"Exits cannot be fitted on {n} examples, for there are {len(work.training_examples)} training examples: "
            "ask for fewer, or raise n_train."
        )
    return work.training_examples[:n]


def measure(
    loaded: LoadedModel,
    examples: Mapping[str, Sequence[Example]],
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    training: Sequence[Example] = (),
    every: int = 1,
    translator: lens.Settings = lens.TRANSLATOR,
    head: lens.Settings = lens.HEAD,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Early exits of one checkpoint, and how their best layer compares with the ridge layer.

    Args:
        loaded: the model that gave the states.
        examples: by split.
        pools: their states by split; ``all`` is made of them and may be left out.
        context: model, task, source, step and train_seed of the rows.
        training: examples to fit trained exits on; without any, only the model's own head is measured.
        every: trained exits are fitted at every so many layers and at the last block.
        translator, head: how they are trained.
        batch_size: training prompts per forward pass.

    Returns:
        Table of measurements. ``early_exit_accuracy`` with the variants of :data:`EXITS`, and ``constant_accuracy``,
        the share of the commonest target, which an exit reaches that knows nothing else; ``predictive_information`` of
        all examples of a split and, of ID and OOD, its standard error ``predictive_information_error``; per split and
        variant the effects :data:`COMPARED` (:func:`ridge_utils.inference.effect_rows`), both layers chosen among those
        that have the exit; and, with split ``train``, what training did on its held-out states: ``exit_divergence``
        and ``exit_loss``, in nats.

    Raises:
        InputError: ``every`` below 1, or as :func:`ridge_utils.audit.lens.fit_translators`.
    """
    if every < 1:
        raise InputError(f"Trained exits are fitted at every so many layers, at least every 1, not {every}.")
    own = {split: pools[split] for split in examples}
    together = Representations.join(list(own.values()))
    pieces = dict(zip(own, torch.arange(len(together)).split([len(pool) for pool in own.values()]), strict=True))
    blocks = len(loaded.blocks)
    every_layer = list(range(blocks + 1))
    right = {
        "": (every_layer, early_exit.correct(loaded, together)),
        "no_norm": (every_layer, early_exit.correct(loaded, together, norm=False)),
    }
    context = {**context, "sample_seed": None}
    tables = []
    if training:
        layers = sorted({*range(0, blocks, every), blocks})
        trained = _trained(loaded, examples, together, training, layers, translator, head, batch_size, context)
        right |= {"tuned_lens": (layers, trained.translated), "trained_head": (layers, trained.headed)}
        tables.append(_training_rows(trained, layers, blocks, lens.held_out(len(training)), context))
    profiles = _profiles(loaded, examples, own)
    whole = dict(zip([*own, "all"], profiles.whole, strict=True))
    halves = dict(zip(own, profiles.halves, strict=True))
    sites = results.sites(blocks, final_norm=False)
    for split, places in {**pieces, "all": torch.arange(len(together))}.items():
        row = {**context, "split": split, "n": len(places)}
        tables.append(results.measurements(whole[split].tolist(), sites, "predictive_information", **row))
        for variant, (layers, correct) in right.items():
            accuracy = correct[:, places].double().mean(1).tolist()
            where = [sites[layer] for layer in layers]
            tables.append(results.measurements(accuracy, where, "early_exit_accuracy", **row, variant=variant))
        constant = together.target_ids[places].unique(return_counts=True)[1].max().item() / len(places)
        tables.append(results.measurements([constant], sites[-1:], "constant_accuracy", **row))
        if split == "all":
            continue
        error = halves[split].std(0).tolist()
        tables.append(results.measurements(error, sites, "predictive_information_error", **row))
        for variant, (layers, correct) in right.items():
            some, read = halves[split][:, layers], correct[:, places]
            gain = _gain(whole[split][layers], read)
            apart = inference.half_sample_effect(layer_differences(some, _over_halves(read), layers))
            for quantity, effect in zip(COMPARED, (apart, gain), strict=True):
                tables.append(inference.effect_rows(effect, (blocks, "block"), quantity, **row, variant=variant))
    return pd.concat(tables, ignore_index=True)


def layer_differences(information: Tensor, accuracy: Tensor, layers: Sequence[int]) -> list[float]:
    """On each half, the layer with the best early exit less the ridge layer.

    Args:
        information: of each half, shape (halves, K).
        accuracy: of each half, shape (halves, K).
        layers: the K layers.
    """
    ridges = [layers[place] for place in information.argmax(1).tolist()]
    return [
        float(best_layer(dict(zip(layers, row, strict=True)), ridge) - ridge)
        for row, ridge in zip(accuracy.tolist(), ridges, strict=True)
    ]


def best_layer(accuracy: Mapping[int, float], ridge: int) -> int:
    """The layer with the best early exit; of several, the nearest to the ridge layer, the best case for the claim.

    Args:
        accuracy: by layer; of two best layers as near to the ridge layer, the first one counts.
        ridge: the ridge layer.
    """
    best = max(accuracy.values())
    return min((layer for layer, value in accuracy.items() if value == best), key=lambda layer: abs(layer - ridge))


def places(table: pd.DataFrame) -> pd.DataFrame:
    """Ridge layer and best exit of every checkpoint, split and variant, both among the layers that have the exit.

    Args:
        table: table of measurements, as :func:`measure` gives it.

    Returns:
        One row per step, train_seed, split and variant with ``blocks``, ``ridge_layer``, ``best_layer``, and the
        accuracies ``at_ridge``, ``at_best`` and ``at_last``.
    """
    rows = table.assign(train_seed=table["train_seed"].fillna(-1))
    profile = rows[rows["quantity"] == "predictive_information"].set_index([*_KEY, "layer"])["value"].sort_index()
    out = []
    exits = rows[rows["quantity"] == "early_exit_accuracy"]
    for key, own in exits.groupby([*_KEY, "variant"], sort=False):
        accuracy = dict(zip(own["layer"].astype(int), own["value"], strict=True))
        ridge = int(profile.loc[key[:-1]].loc[list(accuracy)].idxmax())
        best, blocks = best_layer(accuracy, ridge), max(accuracy)
        found = [accuracy[layer] for layer in (ridge, best, blocks)]
        out.append([*key, blocks, ridge, best, *found])
    names = ["blocks", "ridge_layer", "best_layer", "at_ridge", "at_best", "at_last"]
    return pd.DataFrame(out, columns=[*_KEY, "variant", *names])


def comparisons(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The effects :data:`COMPARED` of several runs, the training seeds of each together, for people.

    Args:
        tables: tables of measurements, by what the reader calls them.

    Returns:
        What :func:`ridge_utils.inference.across_seeds` gives, with ``exit`` (how the layer is read) and, as texts,
        ``ridge`` and ``best``, the layers of the whole pool, a range where training seeds differ, and ``at_best``, the
        accuracy of the best exit.
    """
    found = inference.across_seeds(inference.gathered(tables, COMPARED))
    # pandas has put the variants in alphabetical order.
    found = found.sort_values("variant", key=lambda column: column.map(list(EXITS).index), kind="stable")
    found = found.sort_values(["step", "split"], kind="stable")
    found = pd.concat(
        [found[(found["run"] == run) & (found["quantity"] == name)] for run in tables for name in COMPARED],
        ignore_index=True,
    )
    of = {
        (run, row.step, row.split, row.variant): (row.ridge_layer, row.best_layer, _percent(row.at_best))
        for run, table in tables.items()
        for row in _spans(places(table)).itertuples()
    }
    keys = zip(found["run"], found["step"], found["split"], found["variant"], strict=True)
    texts = pd.DataFrame([of[key] for key in keys], columns=["ridge", "best", "at_best"])
    return found.assign(exit=found["variant"].map(EXITS)).join(texts)


def headline(table: pd.DataFrame) -> str:
    """Whether the best early exit of OOD examples lies at the ridge, with final norm and head (Markdown).

    Args:
        table: table of measurements of one run.
    """
    found = comparisons({"": table})
    found = found[(found["split"] == "ood") & (found["variant"] == "")].set_index(["step", "quantity"])
    spans = _spans(places(table)).set_index(["split", "variant", "step"])
    lines = []
    for step in sorted(found.index.unique("step")):
        place = spans.loc["ood", "", step]
        if not place["at_best"] > 0:
            lines.append(
                f"- {formatting.capital(formatting.when(step))}, no early exit is ever right on OOD examples: nothing to compare."
            )
            continue
        apart, gain = (found.loc[(step, quantity)] for quantity in COMPARED)
        inside = apart["low"] <= 0 <= apart["high"]
        lines.append(
            f"- {formatting.capital(formatting.when(step))}, the best exit is at layer {place['best_layer']} of "
            f"{place['blocks']} ({_percent(place['at_best'])}), the ridge at layer {place['ridge_layer']} "
            f"({_percent(place['at_ridge'])} there): {formatting.number(apart['estimate'], 1, '+')} layers apart on average "
            f"over halves, {_ends(apart, 1)}, which {'holds' if inside else 'leaves out'} 0. Accuracy at "
            f"the last block is {_percent(place['at_last'])}, "
            f"{formatting.number(100 * gain['estimate'], 1, '+')} points from that at the ridge, {_ends(gain, 1, 100)}."
            + (" The ridge layer is the last block: there is no ridge before it." if place["no_ridge"] else "")
        )
    return "\n".join(lines)


def variants_headline(table: pd.DataFrame) -> str:
    """What the other exits change on OOD examples, at the last checkpoint that has them (Markdown).

    Args:
        table: table of measurements of one run.
    """
    rows = table[(table["quantity"] == "early_exit_accuracy") & (table["split"] == "ood")]
    trained = rows[rows["variant"].isin(["tuned_lens", "trained_head"])]
    step = (trained if len(trained) else rows)["step"].max()
    spans = _spans(places(table[table["step"] == step])).set_index(["split", "variant"]).loc["ood"]
    found = comparisons({"": table[table["step"] == step]})
    found = found[(found["split"] == "ood") & (found["quantity"] == "exit_layer_difference")].set_index("variant")
    constant = _constant(table[(table["split"] == "ood") & (table["step"] == step)])
    lines = []
    for variant in (name for name in EXITS if name in spans.index):
        own = rows[(rows["variant"] == variant) & (rows["step"] == step)].groupby("layer")["value"].mean()
        place, apart = spans.loc[variant], found.loc[variant]
        if not own.max() > 0:
            lines.append(f"- **{EXITS[variant]}:** never right.")
            continue
        lines.append(
            f"- **{EXITS[variant]}:** best at layer {place['best_layer']} of {place['blocks']} "
            f"({_percent(place['at_best'])}), {_beats(own, constant)}; from the ridge layer to the best one "
            f"{formatting.number(apart['estimate'], 1, '+')} layers, {_ends(apart, 1)}."
        )
    says = f"a constant answer is right on {_percent(constant)} of them at best"
    return f"{formatting.capital(formatting.when(step))}, on OOD examples ({says}):\n\n" + "\n".join(lines)


def training_headline(table: pd.DataFrame) -> str:
    """What training did for the exits, on the training states that were held out of it (Markdown).

    Args:
        table: table of measurements of one run with trained exits.
    """
    parts = []
    for step, rows in table[table["split"] == "train"].groupby("step"):
        wide = rows.pivot_table(index="layer", columns=["quantity", "variant"], values="value")
        lens_, head = wide["exit_divergence"], wide["exit_loss"]
        parts.append(
            f"{formatting.when(step)}, a translator brings the divergence from the model's own "
            f"prediction from {lens_[''].median():.2f} to {lens_['tuned_lens'].median():.2f} nats, and a head the "
            f"cross-entropy of the target from {head[''].median():.2f} to {head['trained_head'].median():.2f} nats"
        )
    return f"On held-out training prompts, in the median over layers: {'; '.join(parts)}."


def table_1(table: pd.DataFrame, step: int) -> Styler:
    """The paper's Table 1 with every exit, as a table for people.

    Args:
        table: table of measurements.
        step: the checkpoint; its training seeds are averaged.
    """
    rows = table[(table["step"] == step) & (table["site"] != "final_norm")]
    information = rows[(rows["quantity"] == "predictive_information") & (rows["split"] == "all")]
    out = {("", "I(Z; Y)"): information.groupby("layer")["value"].mean().map(lambda v: f"{round(v, 4) + 0.0:.4f}")}
    accuracy = rows[rows["quantity"] == "early_exit_accuracy"]
    for variant, name in EXITS.items():
        for split, label in (("all", "all %"), ("id", "ID %"), ("ood", "OOD %")):
            own = accuracy[(accuracy["variant"] == variant) & (accuracy["split"] == split)]
            if len(own):
                out[name, label] = own.groupby("layer")["value"].mean().map(lambda v: f"{100 * v:.1f}")
    shown = pd.DataFrame(out).fillna("")
    shown.insert(0, ("", "layer"), shown.index.astype(str))
    caption = formatting.capital(
        f"{formatting.when(step)}: I(Z; Y) in nats, ID and OOD together; early-exit accuracy in percent; empty: not measured"
    )
    return formatting.styled(shown, caption)


def comparison_table(found: pd.DataFrame, quantity: str) -> Styler:
    """One of the effects :data:`COMPARED` of several runs, as a table for people.

    Args:
        found: what :func:`comparisons` gave.
        quantity: which of them.
    """
    rows = found[found["quantity"] == quantity]
    columns = {"run": "run", "step": "step", "split": "split", "exit": "exit", "ridge": "ridge layer"}
    layers = quantity == "exit_layer_difference"
    if layers:
        columns |= {"best": "best exit", "at_best": "right there"}
    if not rows["run"].any():
        del columns["run"]
    unit = f"in layers, over {HALVES} random halves" if layers else "paired over examples"
    caption = f"{COMPARED[quantity].capitalize()}, {unit}"
    return formatting.effect_table(rows, columns, caption, digits=1 if layers else 3)


def at_the_end(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The last checkpoint of each run.

    Args:
        tables: tables of measurements, by what the reader calls them.
    """
    return {name: table[table["step"] == table["step"].max()] for name, table in tables.items()}


def exits_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Early-exit accuracy over layers by every exit, a row per run and checkpoint, ID and OOD side by side.

    Args:
        tables: tables of measurements, by the title of their rows; training seeds are averaged.
    """
    rows = [
        (f"{title}, {formatting.when(step)}", own)
        for title, table in tables.items()
        for step, own in table.groupby("step", sort=True)
    ]
    figure = plt.figure(figsize=(11, 3.8 * len(rows)))
    for part, (title, table) in zip(np.atleast_1d(figure.subfigures(len(rows), 1)), rows, strict=True):
        axes = part.subplots(1, 2, sharey=True)
        for ax, split in zip(axes, ("id", "ood"), strict=True):
            exits(ax, table[table["split"] == split])
            ax.set_title(NAMES[split], fontsize=10)
        axes[0].set_ylabel("early-exit accuracy")
        axes[0].legend(fontsize=8, loc="upper left")
        part.suptitle(title)
    return figure


def exits(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw early-exit accuracy over layers, a curve per exit with Wilson's intervals over examples as its band.

    Lines are drawn at the ridge layer of each training seed and at the accuracy of a constant answer.

    Args:
        ax: where to draw.
        rows: measurements of one checkpoint and split.
    """
    for variant, name in EXITS.items():
        own = rows[(rows["quantity"] == "early_exit_accuracy") & (rows["variant"] == variant)]
        if not len(own):
            continue
        mean = own.groupby("layer")["value"].mean()
        count = int(own["n"].iloc[0])
        ends = [stats.binomtest(round(value * count), count).proportion_ci(method="wilson") for value in mean]
        layers = mean.index.astype(int)
        low, high = [end.low for end in ends], [end.high for end in ends]
        ax.fill_between(layers, low, high, color=_HUES[variant], alpha=0.15, linewidth=0)
        marker = "o" if len(layers) < rows["layer"].nunique() else ""
        ax.plot(layers, mean, color=_HUES[variant], label=name, marker=marker, markersize=3)
    ridges = places(rows[rows["variant"] == ""])["ridge_layer"]
    for place, ridge in enumerate(sorted(ridges.unique())):
        ax.axvline(ridge, color="#999999", ls=":", label="" if place else "ridge layer")
    ax.axhline(_constant(rows), color="#999999", ls="--", lw=0.8, label="always the commonest target")
    ax.set_xlabel("layer (0: embedding)")
    ax.set_ylim(-0.02, 1.02)


def comparison_figure(found: pd.DataFrame) -> Figure:
    """The effects :data:`COMPARED` with their intervals, one under another, ID and OOD in their colours, runs apart.

    Args:
        found: what :func:`comparisons` gave.
    """
    runs = {run: own for run, own in found.groupby("run", sort=False)}
    labels = {run: list(dict.fromkeys(zip(own["step"], own["exit"], strict=True))) for run, own in runs.items()}
    heights = [1.2 + 0.34 * len(keys) for keys in labels.values()]
    figure = plt.figure(figsize=(11, sum(heights)))
    parts = figure.subfigures(len(runs), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (run, every) in zip(parts, runs.items(), strict=True):
        axes = part.subplots(1, 2, sharey=True)
        for ax, (quantity, heading) in zip(axes, COMPARED.items(), strict=True):
            for split, shift in (("id", -0.13), ("ood", 0.13)):
                own = every[(every["quantity"] == quantity) & (every["split"] == split)]
                height = [labels[run].index(key) + shift for key in zip(own["step"], own["exit"], strict=True)]
                reach = np.array([own["estimate"] - own["low"], own["high"] - own["estimate"]]).clip(min=0)
                ax.errorbar(
                    own["estimate"], height, xerr=reach, fmt="o", markersize=4, color=COLOURS[split], label=NAMES[split]
                )
            ax.axvline(0, color="#999999", lw=0.8)
            ax.set_xlabel(heading, fontsize=9)
        texts = [", ".join(filter(None, [formatting.when(step), name])) for step, name in labels[run]]
        axes[0].set_yticks(range(len(texts)), texts, fontsize=8)
        axes[0].invert_yaxis()
        if run:
            part.suptitle(run, fontsize=10)
    axes[1].legend(fontsize=8, loc="best")
    return figure


def training_figure(table: pd.DataFrame) -> Figure:
    """What training did for the exits of each layer, on the training states that were held out of it.

    Args:
        table: table of measurements with trained exits; training seeds are averaged.
    """
    rows = table[table["split"] == "train"]
    steps = sorted(rows["step"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    shown = {
        "exit_divergence": ("tuned_lens", "divergence from the model's prediction (nats)"),
        "exit_loss": ("trained_head", "cross-entropy of the target (nats)"),
    }
    for ax, (quantity, (variant, label)) in zip(axes, shown.items(), strict=True):
        for step, shade in zip(steps, checkpoint_shades("all", len(steps)), strict=True):
            for name, line in (("", "--"), (variant, "-")):
                own = rows[(rows["quantity"] == quantity) & (rows["step"] == step) & (rows["variant"] == name)]
                mean = own.groupby("layer")["value"].mean()
                ax.plot(
                    mean.index.astype(int), mean, color=shade, ls=line, label=f"{formatting.when(step)}: {EXITS[name]}"
                )
        ax.set_xlabel("layer (0: embedding)")
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=8)
    return figure


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


def _trained(
    loaded: LoadedModel,
    examples: Mapping[str, Sequence[Example]],
    together: Representations,
    training: Sequence[Example],
    layers: Sequence[int],
    translator: lens.Settings,
    head: lens.Settings,
    batch_size: int,
    context: Mapping[str, Any],
) -> TrainedExits:
    label = f"step {context['step']}"

    def compute() -> TrainedExits:
        states = study.read(loaded, training, batch_size, f"{label}, training prompts")
        translators = lens.fit_translators(loaded, states, layers, translator, label)
        heads = lens.fit_heads(loaded, states, layers, head, label)
        return TrainedExits(
            translators.correct(loaded, together),
            heads.correct(loaded, together),
            torch.stack([translators.before, translators.after]),
            torch.stack([heads.before, heads.after]),
        )

    rows = [*training, *(example for some in examples.values() for example in some)]
    shaped_by = {"layers": list(layers), "translator": asdict(translator), "head": asdict(head)}
    return remember(TrainedExits, loaded, rows, compute, **shaped_by, n_training=len(training), batch_size=batch_size)


def _training_rows(
    trained: TrainedExits, layers: Sequence[int], blocks: int, n: int, context: Mapping[str, Any]
) -> pd.DataFrame:
    where = [results.sites(blocks, final_norm=False)[layer] for layer in layers]
    row = {**context, "split": "train", "n": n}
    parts = (
        ("exit_divergence", "tuned_lens", trained.divergence),
        ("exit_loss", "trained_head", trained.cross_entropy),
    )
    return pd.concat(
        [
            results.measurements(values.tolist(), where, quantity, **row, variant=variant)
            for quantity, name, both in parts
            for variant, values in zip(("", name), both, strict=True)
        ]
    )


def _halves(count: int) -> list[Tensor]:
    return [statistics.subsample(count, count // 2, seed) for seed in range(HALVES)]


def _over_halves(correct: Tensor) -> Tensor:
    """Accuracy of each layer on each half, shape (halves, K)."""
    return torch.stack([correct[:, half].double().mean(1) for half in _halves(correct.shape[1])])


def _gain(profile: Tensor, correct: Tensor) -> inference.Effect:
    """Accuracy at the last block less that at the ridge layer, within examples."""
    return inference.paired_effect(correct[profile.argmax()].double().tolist(), correct[-1].double().tolist())


def _spans(found: pd.DataFrame) -> pd.DataFrame:
    """Places with the training seeds of a checkpoint together: mean accuracies, and layers as texts."""
    out = []
    for key, own in found.groupby(["step", "split", "variant"], sort=False):
        means = own[["at_ridge", "at_best", "at_last"]].mean()
        last = bool((own["ridge_layer"] == own["blocks"]).all())
        layers = [_span(own[name]) for name in ("ridge_layer", "best_layer")]
        out.append([*key, int(own["blocks"].iloc[0]), *layers, *means, last])
    names = ["blocks", "ridge_layer", "best_layer", "at_ridge", "at_best", "at_last", "no_ridge"]
    return pd.DataFrame(out, columns=["step", "split", "variant", *names])


def _constant(rows: pd.DataFrame) -> float:
    """Accuracy of the best constant answer to the examples of one split."""
    return float(rows[rows["quantity"] == "constant_accuracy"]["value"].iloc[0])


def _beats(accuracy: "pd.Series[float]", constant: float) -> str:
    """From which layer on every exit is right more often than a constant answer, as part of a sentence."""
    above = [int(layer) for layer in accuracy.index if (accuracy.loc[layer:] > constant).all()]
    return f"above that from layer {above[0]} on" if above else "not above that at the last block"


def _span(layers: "pd.Series[int]") -> str:
    low, high = int(layers.min()), int(layers.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _ends(effect: "pd.Series[float]", digits: int, scale: float = 1) -> str:
    low, high = (formatting.number(scale * effect[end], digits, "+") for end in ("low", "high"))
    return f"{100 * inference.CONFIDENCE:.0f} % interval {low} to {high}"
