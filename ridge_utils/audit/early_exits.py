"""Early exit done properly: Table 1 of the paper with other exits, and whether the best exit lies at the ridge (C2)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ridge_utils import early_exit, inference, information, results, statistics, study
from ridge_utils.audit import lens
from ridge_utils.errors import InputError
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
    """The first ``n`` examples of the training split, those that the model was fine-tuned on if it was."""
    if not n:
        return []
    parameters = work.parameters
    if not work.training_examples:
        return study.draw(parameters, "train", n, "n_exit_training")
    if n > len(work.training_examples):
        raise InputError(
            f"Exits cannot be fitted on n_exit_training={n} examples, for there are "
            f"{len(work.training_examples)} training examples: ask for fewer, or raise n_train."
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

    Trained exits are fitted to the examples ``training`` at layers 0, every, 2 every, ... and at the last block;
    without any, only the model's own head is measured.

    Returns:
        Table of measurements. ``early_exit_accuracy`` with the variants of :data:`EXITS`, and ``constant_accuracy``,
        the share of the commonest target, which an exit reaches that knows nothing else; ``predictive_information`` of
        all examples of a split and, of ID and OOD, its standard error ``predictive_information_error``; per split and
        variant the effects :data:`COMPARED` (:func:`ridge_utils.inference.effect_rows`), both layers chosen among those
        that have the exit; and, with split ``train``, what training did on its held-out states: ``exit_divergence``
        and ``exit_loss``, in nats.
    """
    pools = {split: pools[split] for split in examples}
    together = Representations.join(list(pools.values()))
    pieces = dict(zip(pools, torch.arange(len(together)).split([len(pool) for pool in pools.values()]), strict=True))
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
        trained = _trained(
            loaded, examples, together, training, layers, translator, head, batch_size, f"step {context['step']}"
        )
        right |= {"tuned_lens": (layers, trained.translated), "trained_head": (layers, trained.headed)}
        tables.append(_training_rows(trained, layers, blocks, lens.held_out(len(training)), context))
    profiles = _profiles(loaded, examples, pools)
    whole = dict(zip([*pools, "all"], profiles.whole, strict=True))
    halves = dict(zip(pools, profiles.halves, strict=True))
    sites = results.sites(blocks, final_norm=False)
    for split, index in {**pieces, "all": torch.arange(len(together))}.items():
        row = {**context, "split": split, "n": len(index)}
        tables.append(results.measurements(whole[split].tolist(), sites, "predictive_information", **row))
        for variant, (layers, correct) in right.items():
            accuracy = correct[:, index].double().mean(1).tolist()
            where = [sites[layer] for layer in layers]
            tables.append(results.measurements(accuracy, where, "early_exit_accuracy", **row, variant=variant))
        constant = together.target_ids[index].unique(return_counts=True)[1].max().item() / len(index)
        tables.append(results.measurements([constant], sites[-1:], "constant_accuracy", **row))
        if split == "all":
            continue
        error = halves[split].std(0).tolist()
        tables.append(results.measurements(error, sites, "predictive_information_error", **row))
        for variant, (layers, correct) in right.items():
            correct_here = correct[:, index]
            over_halves = torch.stack([correct_here[:, half].double().mean(1) for half in _halves(len(index))])
            differences = layer_differences(halves[split][:, layers], over_halves, layers)
            at_ridge, at_last = (correct_here[i].double().tolist() for i in (whole[split][layers].argmax(), -1))
            effects = (inference.half_sample_effect(differences), inference.paired_effect(at_ridge, at_last))
            for quantity, effect in zip(COMPARED, effects, strict=True):
                tables.append(inference.effect_rows(effect, (blocks, "block"), quantity, **row, variant=variant))
    return pd.concat(tables, ignore_index=True)


def layer_differences(information: Tensor, accuracy: Tensor, layers: Sequence[int]) -> list[float]:
    """On each half, the layer with the best early exit less the ridge layer; both tensors have shape (halves, K)."""
    ridges = [layers[place] for place in information.argmax(1).tolist()]
    return [
        float(best_layer(dict(zip(layers, row, strict=True)), ridge) - ridge)
        for row, ridge in zip(accuracy.tolist(), ridges, strict=True)
    ]


def best_layer(accuracy: Mapping[int, float], ridge: int) -> int:
    """The layer with the best early exit; of several, the nearest to the ridge layer, the best case for the claim.

    Of two best layers as near to the ridge layer, the first one counts.
    """
    best = max(accuracy.values())
    return min((layer for layer, value in accuracy.items() if value == best), key=lambda layer: abs(layer - ridge))


def places(table: pd.DataFrame) -> pd.DataFrame:
    """Ridge layer and best exit of every checkpoint, split and variant, both among the layers that have the exit.

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
        accuracy = dict(zip(of_exit["layer"].astype(int), of_exit["value"], strict=True))
        ridge = int(profile.loc[key[:-1]].loc[list(accuracy)].idxmax())
        best, blocks = best_layer(accuracy, ridge), max(accuracy)
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


def _trained(
    loaded: LoadedModel,
    examples: Mapping[str, Sequence[Example]],
    together: Representations,
    training: Sequence[Example],
    layers: Sequence[int],
    translator: lens.Settings,
    head: lens.Settings,
    batch_size: int,
    label: str,
) -> TrainedExits:
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
