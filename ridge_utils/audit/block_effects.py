"""The page on interventions: what single blocks do to a prediction, and where memory sits.

Effects are those of the protocol. A *drop* is the fall of the log-probability of the first target token, in nats, when
a block is intervened on: positive where the block helps.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from ridge_utils import early_exit, inference, information, measures, results, study, training
from ridge_utils.audit import interventions, memorisation
from ridge_utils.audit.interventions import Outcomes, Patching
from ridge_utils.errors import InputError, at_least
from ridge_utils.inference import LEVEL, across_seeds
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations, encode
from ridge_utils.store import remember
from ridge_utils.tasks import Example
from ridge_utils.training import Settings

#: What can be done to a block, and what figures call it.
VARIANTS = {
    "skip": "skipped block",
    "mean": "mean in place of the update",
    "patch": "state put into another prompt",
}
#: Those that take a block out.
ABLATIONS = ("skip", "mean")

#: Blocks at the end of the model that the ridge's are compared with, and blocks of the ridge.
_BLOCKS = 3


def check(
    n_samples: int,
    n_examples: int,
    every: int,
    variants: Sequence[str],
    last_checkpoints: int = 1,
) -> None:
    """Refuse parameters of the page that do not fit, before anything long begins."""
    if not 2 <= n_samples <= n_examples:
        raise InputError(f"n_samples must be between 2 and n_examples={n_examples}, but is {n_samples}.")
    at_least(1, every=every, last_checkpoints=last_checkpoints)
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
    """Blocks ``depth``, ``depth - every``, ..., and the last three: the same wherever the ridge is."""
    return sorted({*range(depth, 0, -every), *last_blocks(depth)})


def block_effects(
    loaded: LoadedModel,
    examples: Mapping[str, Sequence[Example]],
    context: Mapping[str, Any],
    *,
    n_samples: int,
    every: int,
    variants: Sequence[str],
    batch_size: int,
) -> pd.DataFrame:
    """What an intervention on each of some blocks does, ID and OOD, with effect sizes, intervals and p-values.

    The first ``n_samples`` examples of the splits ``id`` and ``ood`` are intervened on; all of them can be the
    corrupted prompt of a pair. The blocks are those of :func:`shown_blocks`.

    Returns:
        Table of measurements. Per block, variant and split, ``log_probability_change`` (nats), with the intervention
        less without (for a patch: in the corrupted prompt, of the clean prompt's target). Per split ``accuracy`` as it
        is; per patch ``log_probability_gap``, the clean run less the corrupted one, absent with the patch's other rows
        where fewer than two pairs are found.
    """
    depth = len(loaded.blocks)
    blocks = shown_blocks(depth, every)
    chosen = {split: list(rows[:n_samples]) for split, rows in examples.items()}
    tables = []
    first_ablation = next(variant for variant in variants if variant in ABLATIONS)
    for variant in variants:
        for split, intervened in chosen.items():
            row = {**context, "split": split, "sample_seed": None, "variant": variant}
            if variant in ABLATIONS:
                outcomes = ablated(loaded, intervened, blocks, variant, batch_size, split)
            else:
                pairs = interventions.match(loaded, intervened, examples[split])
                if len(pairs) < 2:
                    continue
                outcomes = _patched(loaded, pairs, blocks, batch_size, split)
                gap = inference.paired_effect(outcomes.log_probability[0].tolist(), outcomes.clean.tolist())
                row["n"] = len(pairs)
                tables.append(inference.effect_rows(gap, (depth, "final_norm"), "log_probability_gap", **row))
            row["n"] = outcomes.correct.shape[1]
            tables += _changes(outcomes, blocks, row)
            if variant == first_ablation:
                right = [outcomes.correct[0].double().mean().item()]
                whole = {**row, "variant": ""}
                tables.append(results.measurements(right, [(depth, "final_norm")], "accuracy", **whole))
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

    Replaced is a ``share`` of the targets, drawn by the seed of the training. The examples ``held_out``, by split, give
    the ridge layer of the trained model.

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
    for kind, recalled in kinds.items():
        of_kind = {**row, "variant": kind, "n": recalled.shape[1]}
        tables.append(results.measurements(recalled.double().mean(1).tolist(), sites, "recall_accuracy", **of_kind))
        if depth := memorisation.depth_effect(recalled):
            tables.append(inference.effect_rows(depth, sites[-1], "recall_depth", **of_kind))
    if apart := memorisation.depth_difference(kinds["random"], kinds["intact"]):
        tables.append(inference.effect_rows(apart, sites[-1], "recall_depth_difference", **row, n=len(made)))
    pools = {
        split: study.read(loaded, rows, settings.batch_size, f"{label}, {split}") for split, rows in held_out.items()
    }
    tables.append(measures.early_exit_accuracy(loaded, pools, state).assign(variant="memorisation"))
    both = Representations.join(list(pools.values()))
    largest = int(information.predictive_information(both.hidden, both.targets).argmax())
    row = {**state, "split": "all", "sample_seed": None, "n": len(both)}
    tables.append(results.measurements([largest], sites[-1:], "memorisation_ridge_layer", **row))
    return pd.concat(tables, ignore_index=True)


def drops(table: pd.DataFrame) -> pd.DataFrame:
    """Drops of the log-probability by block, the training seeds of each checkpoint together.

    Returns:
        A row per checkpoint, ablation, split and block with ``estimate``, ``low``, ``high`` (nats), ``effect_size``
        (positive where the block helps), ``p`` after Holm's correction over the blocks, and whether the drop is
        ``firm``, beyond its error.
    """
    effects = across_seeds(inference.effects(table[table["variant"].isin(ABLATIONS)], "log_probability_change"))
    family = ["step", "variant", "split"]
    effects = effects.assign(
        estimate=-effects["estimate"], low=-effects["high"], high=-effects["low"], effect_size=-effects["effect_size"]
    ).sort_values([*family, "layer"], kind="stable", ignore_index=True)
    p = effects.groupby(family, sort=False)["p"].transform(lambda values: inference.holm(values.tolist()))
    return effects.assign(p=p, firm=p <= LEVEL)


def recovered(table: pd.DataFrame) -> pd.DataFrame:
    """Log-probability that patches bring back, the training seeds of each checkpoint together.

    Returns:
        A row per checkpoint, patch, split and block with ``n`` (pairs), ``estimate``, ``low`` and ``high`` (nats), and
        the whole difference between clean and corrupted run, ``gap``, with the lower end of its interval, ``gap_low``.
    """
    key = ["step", "variant", "split"]
    gaps = across_seeds(inference.effects(table, "log_probability_gap")).rename(
        columns={"estimate": "gap", "low": "gap_low"}
    )
    effects = across_seeds(inference.effects(table[~table["variant"].isin(ABLATIONS)], "log_probability_change"))
    effects = effects.merge(gaps[[*key, "gap", "gap_low"]], on=key).sort_values([*key, "layer"], kind="stable")
    return effects[[*key, "layer", "n", "estimate", "low", "high", "gap", "gap_low"]].reset_index(drop=True)


def ablated(
    loaded: LoadedModel, examples: Sequence[Example], blocks: Sequence[int], how: str, batch_size: int, label: str
) -> Outcomes:
    """:func:`ridge_utils.audit.interventions.ablate`, remembered."""
    compute = partial(interventions.ablate, loaded, examples, blocks, how, batch_size, label)
    return remember(Outcomes, loaded, examples, compute, blocks=list(blocks), how=how, batch_size=batch_size)


def _patched(
    loaded: LoadedModel,
    pairs: Sequence[interventions.Pair],
    blocks: Sequence[int],
    batch_size: int,
    label: str,
) -> Patching:
    compute = partial(interventions.patch, loaded, pairs, blocks, batch_size, label)
    both = [*(pair.clean for pair in pairs), *(pair.corrupted for pair in pairs)]
    return remember(Patching, loaded, both, compute, blocks=list(blocks), batch_size=batch_size)


def _changes(outcomes: Outcomes, blocks: Sequence[int], row: Mapping[str, Any]) -> list[pd.DataFrame]:
    """Changes of the log-probability by block, as effects."""
    before, *after = outcomes.log_probability.tolist()
    effects = [inference.paired_effect(before, values) for values in after]
    places = [(block, "block") for block in blocks]
    return [
        inference.effect_rows(effect, place, "log_probability_change", **row)
        for effect, place in zip(effects, places, strict=True)
    ]
