"""The paper's quantities over depth, from representations to tidy tables.

Each function gives rows of the table of measurements of one checkpoint. ``context`` holds their model, task, source,
step and train_seed; ``pools`` are representations by split; information is in nats.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from ridge_utils import early_exit, inference, information, results, sequences, statistics, unbiased
from ridge_utils import residual_scaling as scaling
from ridge_utils.attention import AttentionShares
from ridge_utils.errors import InputError, at_least
from ridge_utils.generation import Continuations
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations
from ridge_utils.residual_scaling import FitSettings
from ridge_utils.store import remember
from ridge_utils.tasks import Example

Quantity = Literal["predictive_information", "incremental_information"]


def information_profile(
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    quantity: Quantity,
    n_samples: int,
    sampling_seeds: Sequence[int],
    estimator: information.Estimator = information.PAPER,
) -> pd.DataFrame:
    """Information about the target over the layers, one profile per split and sampling seed.

    ``predictive_information`` is that of every state, the one after the final norm included, and
    ``incremental_information`` that of every block's residual update. ``n_samples`` examples per estimate are drawn
    without replacement from a pool.
    """
    tables = []
    for split, pool in pools.items():
        vectors, where = _vectors(pool, quantity)
        samples = [statistics.subsample(len(pool), n_samples, seed) for seed in sampling_seeds]
        profiles = information.predictive_information(vectors, pool.targets, estimator, samples=samples)
        for seed, values in zip(sampling_seeds, profiles.tolist(), strict=True):
            row = {**context, "split": split, "sample_seed": seed, "n": n_samples}
            tables.append(results.measurements(values, where, quantity, **row))
    return pd.concat(tables, ignore_index=True)


def null_profile(
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    quantity: Quantity = "predictive_information",
    n_samples: int,
    sampling_seeds: Sequence[int],
    n_shuffles: int = 4,
    estimator: information.Estimator = information.PAPER,
) -> pd.DataFrame:
    """``null_information``: what the estimator gives on the samples of :func:`information_profile`, targets shuffled.

    The rows are means over ``n_shuffles`` of each sample.
    """
    tables = []
    for split, pool in pools.items():
        vectors, where = _vectors(pool, quantity)
        for seed in sampling_seeds:
            sample = statistics.subsample(len(pool), n_samples, seed)
            null = information.permutation_null(vectors[:, sample], pool.targets[sample], n_shuffles, seed, estimator)
            row = {**context, "split": split, "sample_seed": seed, "n": n_samples}
            tables.append(results.measurements(null.mean(0).tolist(), where, "null_information", **row))
    return pd.concat(tables, ignore_index=True)


def unbiased_profile(
    pools: Mapping[str, Representations], context: Mapping[str, Any], *, quantity: Quantity = "predictive_information"
) -> pd.DataFrame:
    """``unbiased_information`` of all of a pool, order 2, in nats, with the ends of its 95 % interval.

    The ends are rows ``unbiased_information_low`` and ``unbiased_information_high``.
    """
    tables = []
    for split, pool in pools.items():
        vectors, where = _vectors(pool, quantity)
        estimate = unbiased.unbiased_information(vectors, pool.targets).information
        low, high = estimate.interval().unbind(-1)
        row = {**context, "split": split, "sample_seed": None, "n": len(pool)}
        for end, values in (("", estimate.value), ("_low", low), ("_high", high)):
            tables.append(results.measurements(values.tolist(), where, f"unbiased_information{end}", **row))
    return pd.concat(tables, ignore_index=True)


def _vectors(pool: Representations, quantity: Quantity) -> tuple[Tensor, list[tuple[int, str]]]:
    """The states or the updates of a pool, shape (layers, N, d), and where they are."""
    sites = results.sites(len(pool.hidden) - 1)
    return (pool.updates, sites[1:-1]) if quantity == "incremental_information" else (pool.states, sites)


def early_exit_accuracy(
    loaded: LoadedModel,
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    exits: Mapping[str, Tensor] | None = None,
) -> pd.DataFrame:
    """Share of a pool whose first target token is the likeliest when the model stops after each block.

    ``exits`` are those of :func:`ridge_utils.early_exit.by_split`, where they are known already.
    """
    tables = []
    for split, correct in (early_exit.by_split(loaded, pools) if exits is None else exits).items():
        accuracy = correct.double().mean(1)
        sites = results.sites(len(loaded.blocks), final_norm=False)
        row = {**context, "split": split, "sample_seed": None, "n": correct.shape[1]}
        tables.append(results.measurements(accuracy.tolist(), sites, "early_exit_accuracy", **row))
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


def loss(loaded: LoadedModel, pools: Mapping[str, Representations], context: Mapping[str, Any]) -> pd.DataFrame:
    """Mean cross-entropy of the first target token under the model itself, in nats, one row per split."""
    tables = []
    for split, pool in pools.items():
        value = early_exit.cross_entropy(loaded, pool).mean().item()
        row = {**context, "split": split, "sample_seed": None, "n": len(pool)}
        tables.append(results.measurements([value], [(len(loaded.blocks), "final_norm")], "loss", **row))
    return pd.concat(tables, ignore_index=True)


def check_fits(fits: int, examples: int) -> None:
    """Refuse so many fits where a split's examples do not give each its own, before anything long begins."""
    at_least(2, n_fits=fits)
    if examples < 2 * fits:
        raise InputError(
            f"{fits} fits on examples of their own need {2 * fits} examples a split or more, but there are {examples}: "
            "lower n_fits or raise n_examples."
        )


def residual_scaling(
    loaded: LoadedModel,
    examples: Mapping[str, Sequence[Example]],
    context: Mapping[str, Any],
    fits: int,
    settings: FitSettings,
) -> pd.DataFrame:
    """Residual scales fitted on each split, several times on examples of its own, with what they do to all others.

    Each split is dealt out to the ``fits`` in equal parts, which no two share; ``sample_seed`` numbers them. A fit is
    evaluated on the examples that it has not seen, of its own split and of the other.

    ``residual_scale`` has one row per block, its split is the one fitted on; ``fit_steps`` says after how many steps
    the fit ended, ``fit_converged`` whether it had converged. ``accuracy`` and ``loss`` (nats) belong to the untouched
    scales, ``accuracy_scaled_on_id`` and the like to those fitted on that split; their split is the one evaluated on.
    Then the effects: ``scale_shift`` (split ``ood``), the last block's scale fitted on OOD less on ID examples, over
    fits; and ``scaled_accuracy_gain``, accuracy with the scales fitted on the same split less with the untouched ones,
    within examples, the fits combined as training seeds are.
    """
    check_fits(fits, min(map(len, examples.values())))
    blocks = len(loaded.blocks)
    end, sites = [(blocks, "final_norm")], results.sites(blocks, final_norm=False)[1:]
    tables, last_scales = [], {}
    untouched = {
        split: _evaluated(loaded, rows, None, settings, f"{split}, untouched") for split, rows in examples.items()
    }
    for split, evaluation in untouched.items():
        tables += _means(evaluation, "", end, {**context, "split": split, "sample_seed": None})
    for split, rows in examples.items():
        gains, last_scales[split] = [], []
        for number in range(fits):
            own = set(range(number, len(rows), fits))
            label = f"fit {number + 1} of {fits} on {split}"
            fit = _fitted(loaded, [rows[i] for i in sorted(own)], settings, label)
            last_scales[split].append(fit.scales[-1].item())
            row = {**context, "split": split, "sample_seed": number, "n": len(own)}
            tables.append(results.measurements(fit.scales.tolist(), sites, "residual_scale", **row))
            tables.append(results.measurements([len(fit.losses) - 1], end, "fit_steps", **row))
            tables.append(results.measurements([float(fit.converged)], end, "fit_converged", **row))
            for other, others in examples.items():
                unseen = [i for i in range(len(others)) if other != split or i not in own]
                chosen, tried = [others[i] for i in unseen], f"{label}, tried on {other}"
                after = _evaluated(loaded, chosen, fit.scales, settings, tried)
                tables += _means(after, f"_scaled_on_{split}", end, row | {"split": other})
                if other == split:
                    before = untouched[split].correct[unseen]
                    gains.append(inference.paired_effect(before.double().tolist(), after.correct.double().tolist()))
        row = {**context, "split": split, "sample_seed": None, "n": len(rows)}
        tables.append(inference.effect_rows(inference.together(gains), end[0], "scaled_accuracy_gain", **row))
    if {"id", "ood"} <= set(last_scales):
        shift = inference.repeat_effect(last_scales["id"], last_scales["ood"])
        row = {**context, "split": "ood", "sample_seed": None, "n": fits}
        tables.append(inference.effect_rows(shift, sites[-1], "scale_shift", **row))
    return pd.concat(tables, ignore_index=True)


def _means(
    evaluation: scaling.Evaluation, suffix: str, end: list[tuple[int, str]], row: Mapping[str, Any]
) -> list[pd.DataFrame]:
    """Rows of ``accuracy`` and ``loss``, their names ending in ``suffix``."""
    values = {"accuracy": evaluation.correct.double(), "loss": evaluation.cross_entropy}
    return [
        results.measurements([each.mean().item()], end, name + suffix, **{**row, "n": len(each)})
        for name, each in values.items()
    ]


def _fitted(loaded: LoadedModel, examples: Sequence[Example], settings: FitSettings, label: str) -> scaling.Fit:
    """:func:`ridge_utils.residual_scaling.fit`, remembered."""
    compute = partial(scaling.fit, loaded, examples, settings, label)
    return remember(scaling.Fit, loaded, examples, compute, **asdict(settings))


def _evaluated(
    loaded: LoadedModel, examples: Sequence[Example], scales: Tensor | None, settings: FitSettings, label: str
) -> scaling.Evaluation:
    """:func:`ridge_utils.residual_scaling.evaluate`, remembered."""
    # The store knows a model by its weights, which scales do not touch.
    scaled_by = {} if scales is None else {"scales": scales.tolist()}
    compute = partial(scaling.evaluate, loaded, examples, scales, settings.batch_size, label)
    return remember(scaling.Evaluation, loaded, examples, compute, batch_size=settings.batch_size, **scaled_by)


def attention_shares(
    shares: Mapping[str, AttentionShares], context: Mapping[str, Any], *, n_samples: int, sampling_seeds: Sequence[int]
) -> pd.DataFrame:
    """Attention of the last prompt token in every block: to the signal tokens, to itself, to the first token.

    Means over ``n_samples`` examples, drawn without replacement, of ``signal_attention``,
    ``signal_after_first_attention`` (the first token left out), ``last_token_attention``, ``first_token_attention`` and
    of ``chance_attention``, the share that uniform attention would give the signal, the first token left out; and the
    effects of :func:`attention_effects` over all examples, which belong to the last block. ``shares`` is what
    :func:`ridge_utils.attention.shares` gave, by split.
    """
    tables = []
    for split, share in shares.items():
        blocks = len(share.signal)
        sites = results.sites(blocks, final_norm=False)[1:]
        for seed in sampling_seeds:
            sample = share.select(statistics.subsample(len(share), n_samples, seed))
            row = {**context, "split": split, "sample_seed": seed, "n": n_samples}
            for quantity, values in (
                ("signal_attention", sample.signal),
                ("signal_after_first_attention", sample.signal_after_first),
                ("last_token_attention", sample.last),
                ("first_token_attention", sample.first),
                ("chance_attention", sample.chance_after_first.expand(blocks, -1)),
            ):
                tables.append(results.measurements(values.mean(1).tolist(), sites, quantity, **row))
        row = {**context, "split": split, "sample_seed": None, "n": len(share)}
        for quantity, effect in attention_effects(share).items():
            tables.append(inference.effect_rows(effect, sites[-1], quantity, **row))
    return pd.concat(tables, ignore_index=True)


def attention_effects(share: AttentionShares) -> dict[str, inference.Effect]:
    """What the claim says of attention, tested within examples; attention to signal leaves the first token out.

    The block with the largest attention to signal is chosen on one half of the examples and used on the other, and the
    other way round, so that every example is used once and none chooses its own block: the largest of many noisy means
    lies above the last one by chance.

    ``signal_attention_fall`` is attention to signal at that block less in the last block; ``signal_attention_excess``
    at that block less its chance share; ``last_token_attention_excess``, in the last block, attention to the last token
    itself less to signal.
    """
    signal = share.signal_after_first
    order = statistics.subsample(len(share), len(share), 0)
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    at_peak = torch.empty(len(share), dtype=torch.float64)
    for chosen, used in (halves, halves[::-1]):
        at_peak[used] = signal[signal[:, chosen].mean(1).argmax(), used]
    pairs = {
        "signal_attention_fall": (signal[-1], at_peak),
        "signal_attention_excess": (share.chance_after_first, at_peak),
        "last_token_attention_excess": (signal[-1], share.last[-1]),
    }
    return {name: inference.paired_effect(less.tolist(), more.tolist()) for name, (less, more) in pairs.items()}


def check_decoding(decoding_steps: int, measured_steps: Iterable[int], pairs: Iterable[str]) -> None:
    """Refuse numbers of steps or kernels that do not exist, before any text is generated."""
    steps, kernels, known = list(measured_steps), list(pairs), get_args(sequences.Pairs)
    if not kernels or not set(kernels) <= set(known):
        raise InputError(f"pairs must be one or more of {', '.join(known)}, but is {kernels}.")
    if not steps or len(set(steps)) != len(steps) or not all(1 <= step <= decoding_steps for step in steps):
        raise InputError(
            f"measured_steps must be different numbers from 1 to decoding_steps={decoding_steps}, but are {steps}."
        )


def sequence_information(
    continuations: Mapping[str, Continuations],
    context: Mapping[str, Any],
    *,
    steps: Sequence[int],
    n_samples: int,
    sampling_seeds: Sequence[int],
    pairs: Sequence[sequences.Pairs] = ("all", "aligned"),
    bandwidth: float = 1.0,
) -> pd.DataFrame:
    """Information between the states and the tokens of the first t decoding steps, over layers and the t of ``steps``.

    ``continuations`` are by name, ``generated`` or ``reference``, and ``n_samples`` sequences per estimate are drawn
    without replacement. The quantities are ``sequence_information_all_generated``, ``…_all_reference``,
    ``…_aligned_generated`` and ``…_aligned_reference``, in nats.
    """
    tables = []
    for (name, texts), which in itertools.product(continuations.items(), pairs):
        quantity, sites = f"sequence_information_{which}_{name}", results.sites(len(texts.states) - 2)
        samples = [statistics.subsample(len(texts), n_samples, seed) for seed in sampling_seeds]
        profiles = sequences.sequence_information(
            texts.states, texts.targets, steps, bandwidth=bandwidth, pairs=which, samples=samples
        )
        for seed, values in zip(sampling_seeds, profiles, strict=True):
            for column, step in enumerate(steps):
                row = {**context, "sample_seed": seed, "n": n_samples, "decoding_step": step}
                tables.append(results.measurements(values[:, column].tolist(), sites, quantity, **row))
    return pd.concat(tables, ignore_index=True)


def decoding_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Level and shape of one model's sequence information on one task after each number of decoding steps.

    The columns of :func:`ridge_utils.statistics.ridge_summary`, a row per ``continuation``, ``pairs`` (of the kernel)
    and ``decoding_step``, with ``level`` (mean over the blocks' states, nats) and ``rank_correlation``, Spearman's over
    the blocks between this profile and the one after the most steps.
    """
    parts = []
    for quantity, rows in table[table["quantity"].str.startswith("sequence_information_")].groupby("quantity"):
        blocks = rows[rows["site"] == "block"].pivot_table(index="layer", columns="decoding_step", values="value")
        pairs, _, continuation = quantity.removeprefix("sequence_information_").partition("_")
        shape = {
            "continuation": continuation,
            "pairs": pairs,
            "decoding_step": blocks.columns.astype(int),
            "level": blocks.mean().to_numpy(),
            "rank_correlation": blocks.corr(method="spearman")[blocks.columns.max()].to_numpy(),
        }
        ridges = [statistics.ridge_summary(rows[rows["decoding_step"] == step], quantity) for step in blocks.columns]
        parts.append(pd.concat(ridges, ignore_index=True).assign(**shape))
    return pd.concat(parts, ignore_index=True)
