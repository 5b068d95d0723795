"""The paper's quantities over depth, from representations to tidy tables.

Each function takes the pools of one checkpoint (representations by split) and gives rows of the table of measurements.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from ridge_utils import early_exit, inference, information, results, sequences, statistics
from ridge_utils import residual_scaling as scaling
from ridge_utils.attention import AttentionShares
from ridge_utils.errors import InputError
from ridge_utils.generation import Continuations
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations
from ridge_utils.residual_scaling import FitSettings
from ridge_utils.store import remember
from ridge_utils.tasks import Example
from ridge_utils.training import resolve_precision

Quantity = Literal["predictive_information", "incremental_information"]


def information_profile(
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    quantity: Quantity,
    n_samples: int,
    sampling_seeds: Sequence[int],
    kernel: information.Kernel = "gaussian",
    bandwidth: float = 1.0,
    alpha: float = 1.0,
) -> pd.DataFrame:
    """Information about the target over the layers, one profile per split and sampling seed.

    Args:
        pools: representations by split.
        context: model, task, source, step and train_seed of the rows.
        quantity: ``predictive_information`` of every state, the one after the final norm included, or
            ``incremental_information`` of every block's residual update.
        n_samples: examples per estimate, drawn without replacement from a pool.
        sampling_seeds: one draw each.
        kernel, bandwidth, alpha: see :class:`ridge_utils.information.Estimator`.

    Returns:
        Table of measurements, in nats.

    Raises:
        InputError: as :func:`ridge_utils.statistics.check_sampling` and the estimator.
    """
    incremental = quantity == "incremental_information"
    tables = []
    for split, pool in pools.items():
        sites = results.sites(len(pool.hidden) - 1)
        profiles = information.predictive_information(
            pool.updates if incremental else pool.states,
            pool.targets,
            information.Estimator(kernel, bandwidth, alpha),
            samples=[statistics.subsample(len(pool), n_samples, seed) for seed in sampling_seeds],
        )
        where = sites[1:-1] if incremental else sites
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
    kernel: information.Kernel = "gaussian",
    bandwidth: float = 1.0,
    alpha: float = 1.0,
) -> pd.DataFrame:
    """What the estimator gives on the samples of :func:`information_profile` when their targets are shuffled.

    Args:
        pools, context, quantity, n_samples, sampling_seeds, kernel, bandwidth, alpha: as there.
        n_shuffles: of each sample; the rows are their means.

    Returns:
        Table of measurements of ``null_information``, in nats.
    """
    tables = []
    for split, pool in pools.items():
        sites = results.sites(len(pool.hidden) - 1)
        incremental = quantity == "incremental_information"
        vectors, where = (pool.updates, sites[1:-1]) if incremental else (pool.states, sites)
        for seed in sampling_seeds:
            sample = statistics.subsample(len(pool), n_samples, seed)
            estimator = information.Estimator(kernel, bandwidth, alpha)
            null = information.permutation_null(vectors[:, sample], pool.targets[sample], n_shuffles, seed, estimator)
            row = {**context, "split": split, "sample_seed": seed, "n": n_samples}
            tables.append(results.measurements(null.mean(0).tolist(), where, "null_information", **row))
    return pd.concat(tables, ignore_index=True)


def early_exit_accuracy(
    loaded: LoadedModel, pools: Mapping[str, Representations], context: Mapping[str, Any]
) -> pd.DataFrame:
    """Share of a pool whose first target token is the likeliest when the model stops after each block.

    Args:
        loaded: the model that gave the states.
        pools: representations by split.
        context: model, task, source, step and train_seed of the rows.
    """
    tables = []
    for split, pool in pools.items():
        accuracy = early_exit.correct(loaded, pool).double().mean(1)
        sites = results.sites(len(loaded.blocks), final_norm=False)
        row = {**context, "split": split, "sample_seed": None, "n": len(pool)}
        tables.append(results.measurements(accuracy.tolist(), sites, "early_exit_accuracy", **row))
    return pd.concat(tables, ignore_index=True)


def loss(loaded: LoadedModel, pools: Mapping[str, Representations], context: Mapping[str, Any]) -> pd.DataFrame:
    """Mean cross-entropy of the first target token under the model itself, in nats, one row per split.

    Args:
        loaded: the model that gave the states.
        pools: representations by split; a training sample may be one of them.
        context: model, task, source, step and train_seed of the rows.
    """
    tables = []
    for split, pool in pools.items():
        value = early_exit.cross_entropy(loaded, pool).mean().item()
        row = {**context, "split": split, "sample_seed": None, "n": len(pool)}
        tables.append(results.measurements([value], [(len(loaded.blocks), "final_norm")], "loss", **row))
    return pd.concat(tables, ignore_index=True)


def check_decoding(decoding_steps: int, measured_steps: Sequence[int], pairs: Sequence[str]) -> None:
    """Refuse numbers of steps or kernels that do not exist, before any text is generated.

    Raises:
        InputError: no or unknown ``pairs``, or ``measured_steps`` that are none, doubled, or not within the decoding.
    """
    known = get_args(sequences.Pairs)
    if not pairs or not set(pairs) <= set(known):
        raise InputError(f"pairs must be one or more of {', '.join(known)}, but is {list(pairs)}.")
    fits = all(1 <= step <= decoding_steps for step in measured_steps)
    if not measured_steps or not fits or len(set(measured_steps)) != len(measured_steps):
        raise InputError(
            f"measured_steps must be different numbers from 1 to decoding_steps={decoding_steps}, but are "
            f"{list(measured_steps)}."
        )


def check_estimator(kernel: information.Kernel, bandwidth: float, alpha: float) -> None:
    """Refuse a kernel, a bandwidth or an order that does not exist, before anything long begins.

    Raises:
        InputError: as :class:`ridge_utils.information.Estimator`.
    """
    information.Estimator(kernel, bandwidth, alpha)


@dataclass(frozen=True)
class Scaling:
    """Residual scales fitted on one split with one seed, and what they do to accuracy and loss."""

    #: fitted scales, shape (blocks,), float64
    scales: Tensor
    #: each fitting step's loss, nats a target token, shape (steps,), float64
    losses: Tensor
    #: mean accuracy on each evaluated split, in their order, float64
    accuracy: Tensor
    #: mean cross-entropy of the first target token on each evaluated split, nats, float64
    cross_entropy: Tensor


def residual_scaling(
    loaded: LoadedModel,
    fitted_on: Mapping[str, Sequence[Example]],
    evaluated_on: Mapping[str, Sequence[Example]],
    context: Mapping[str, Any],
    settings: Sequence[FitSettings],
    batch_size: int,
) -> pd.DataFrame:
    """Residual scales fitted on each split, once per seed, with accuracy and loss before and after.

    Args:
        loaded: the model; its weights stay as they are.
        fitted_on: examples to fit on, by split.
        evaluated_on: other examples, by split.
        context: model, task, source, step and train_seed of the rows.
        settings: one fit each; their seeds are the ``sample_seed`` of the rows.
        batch_size: prompts per forward pass of the evaluation.

    Returns:
        Table of measurements. ``residual_scale`` has one row per block, its split is the one fitted on. ``accuracy``
        and ``loss`` (nats) belong to the untouched scales, ``accuracy_scaled_on_id`` and the like to those fitted on
        that split; their split is the one evaluated on. Then the effects: ``scale_shift`` (split ``ood``), the last
        block's scale fitted on OOD less on ID examples, paired over fits; and ``scaled_accuracy_gain``, each example's
        accuracy with the scales fitted on its own split, a mean over fits, less with the untouched ones. One fit or one
        example has no effect.
    """
    blocks = len(loaded.blocks)
    end = [(blocks, "final_norm")]
    tables, effects = [], []
    last_scales: dict[str, list[float]] = {}
    for split, examples in evaluated_on.items():
        before = _evaluated(loaded, examples, None, batch_size, f"{split}, untouched scales")
        row = {**context, "split": split, "sample_seed": None, "n": len(examples)}
        tables.append(results.measurements([before.correct.double().mean().item()], end, "accuracy", **row))
        tables.append(results.measurements([before.cross_entropy.mean().item()], end, "loss", **row))
    for split, examples in fitted_on.items():
        fits = [_fitted(loaded, split, examples, evaluated_on, setting, batch_size) for setting in settings]
        last_scales[split] = [fit.scales[-1].item() for fit in fits]
        if len(others := evaluated_on.get(split, [])) > 1:
            gain = _gain(loaded, split, others, [fit.scales for fit in fits], settings, batch_size)
            row = {**context, "split": split, "sample_seed": None, "n": len(others)}
            effects.append(inference.effect_rows(gain, end[0], "scaled_accuracy_gain", **row))
        for setting, found in zip(settings, fits, strict=True):
            row = {**context, "sample_seed": setting.seed}
            tables.append(
                results.measurements(
                    found.scales.tolist(),
                    results.sites(blocks, final_norm=False)[1:],
                    "residual_scale",
                    **row,
                    split=split,
                    n=len(examples),
                )
            )
            for place, other in enumerate(evaluated_on):
                row |= {"split": other, "n": len(evaluated_on[other])}
                for name, values in (("accuracy", found.accuracy), ("loss", found.cross_entropy)):
                    quantity = f"{name}_scaled_on_{split}"
                    tables.append(results.measurements([values[place].item()], end, quantity, **row))
    if {"id", "ood"} <= set(last_scales) and len(settings) > 1:
        shift = inference.repeat_effect(last_scales["id"], last_scales["ood"])
        row = {**context, "split": "ood", "sample_seed": None, "n": len(settings)}
        effects.append(inference.effect_rows(shift, (blocks, "block"), "scale_shift", **row))
    return pd.concat([*tables, *effects], ignore_index=True)


def _fitted(
    loaded: LoadedModel,
    split: str,
    examples: Sequence[Example],
    evaluated_on: Mapping[str, Sequence[Example]],
    settings: FitSettings,
    batch_size: int,
) -> Scaling:
    def compute() -> Scaling:
        fit = scaling.fit(loaded, examples, settings, _label(split, settings))
        after = [
            _evaluated(loaded, others, fit.scales, batch_size, _label(split, settings, other))
            for other, others in evaluated_on.items()
        ]
        return Scaling(
            fit.scales,
            fit.losses,
            torch.stack([a.correct.double().mean() for a in after]),
            torch.stack([a.cross_entropy.mean() for a in after]),
        )

    every = [*examples, *(example for others in evaluated_on.values() for example in others)]
    precision = resolve_precision(settings.precision, loaded.device)
    return remember(
        Scaling,
        loaded,
        every,
        compute,
        settings={**asdict(settings), "precision": precision},
        split=[len(examples), *map(len, evaluated_on.values())],
        batch_size=batch_size,
    )


def _gain(
    loaded: LoadedModel,
    split: str,
    examples: Sequence[Example],
    scales: Sequence[Tensor],
    settings: Sequence[FitSettings],
    batch_size: int,
) -> inference.Effect:
    """What scales fitted on a split do to accuracy on other examples of it, within examples."""
    before = _evaluated(loaded, examples, None, batch_size, f"{split}, untouched scales")
    after = [
        _evaluated(loaded, examples, found, batch_size, _label(split, setting, split)).correct.double()
        for found, setting in zip(scales, settings, strict=True)
    ]
    return inference.paired_effect(before.correct.double().tolist(), torch.stack(after).mean(0).tolist())


def _evaluated(
    loaded: LoadedModel, examples: Sequence[Example], scales: Tensor | None, batch_size: int, label: str
) -> scaling.Evaluation:
    """:func:`ridge_utils.residual_scaling.evaluate`, remembered."""
    # The store knows a model by its weights, which scales do not touch.
    scaled_by = {} if scales is None else {"scales": scales.tolist()}
    compute = partial(scaling.evaluate, loaded, examples, scales, batch_size, label)
    return remember(scaling.Evaluation, loaded, examples, compute, batch_size=batch_size, **scaled_by)


def _label(split: str, settings: FitSettings, other: str = "") -> str:
    return f"{split}, seed {settings.seed}" + (f", on {other}" if other else "")


def attention_shares(
    shares: Mapping[str, AttentionShares],
    context: Mapping[str, Any],
    *,
    n_samples: int,
    sampling_seeds: Sequence[int],
) -> pd.DataFrame:
    """Attention of the last prompt token in every block: to the signal tokens, to itself, to the first token.

    Args:
        shares: what :func:`ridge_utils.attention.shares` gave, by split.
        context: model, task, source, step and train_seed of the rows.
        n_samples: examples per mean, drawn without replacement.
        sampling_seeds: one draw each.

    Returns:
        Table of measurements with the means over examples of ``signal_attention``, ``signal_after_first_attention``
        (the first token left out), ``last_token_attention``, ``first_token_attention`` and of ``chance_attention``, the
        share that uniform attention would give the signal, the first token left out; and with the effects of
        :func:`attention_effects` over all examples, which belong to the last block.
    """
    tables = []
    for split, share in shares.items():
        blocks = len(share.signal)
        sites = results.sites(blocks, final_norm=False)[1:]
        for seed in sampling_seeds:
            sample = share.select(statistics.subsample(len(share), n_samples, seed))
            row = {**context, "split": split, "sample_seed": seed, "n": n_samples}
            chance = _chance_after_first(sample)
            for quantity, values in (
                ("signal_attention", sample.signal),
                ("signal_after_first_attention", sample.signal_after_first),
                ("last_token_attention", sample.last),
                ("first_token_attention", sample.first),
                ("chance_attention", chance.expand(blocks, -1)),
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

    Args:
        share: the shares of N examples, at least 2.

    Returns:
        The effects by quantity. ``signal_attention_fall`` is attention to signal at that block less in the last block;
        ``signal_attention_excess`` at that block less its chance share; ``last_token_attention_excess``, in the last
        block, attention to the last token itself less to signal.

    Raises:
        InputError: fewer than 2 examples.
    """
    signal = share.signal_after_first
    order = statistics.subsample(len(share), len(share), 0)
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    at_peak = torch.empty(len(share), dtype=torch.float64)
    for chosen, used in (halves, halves[::-1]):
        at_peak[used] = signal[signal[:, chosen].mean(1).argmax(), used]
    pairs = {
        "signal_attention_fall": (signal[-1], at_peak),
        "signal_attention_excess": (_chance_after_first(share), at_peak),
        "last_token_attention_excess": (signal[-1], share.last[-1]),
    }
    return {name: inference.paired_effect(less.tolist(), more.tolist()) for name, (less, more) in pairs.items()}


def _chance_after_first(share: AttentionShares) -> Tensor:
    """What uniform attention would give the signal, the first token left out, shape (N,)."""
    return (share.signal_tokens - share.first_is_signal.long()).double() / share.tokens


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
    """Information between the states and the tokens of the first t decoding steps, over layers and t.

    Args:
        continuations: by name, ``generated`` or ``reference``.
        context: model, task, source, split, step and train_seed of the rows.
        steps: the numbers of decoding steps t.
        n_samples: sequences per estimate, drawn without replacement.
        sampling_seeds: one draw each.
        pairs: over which pairs of steps the sequence kernel averages, see :mod:`ridge_utils.sequences`.
        bandwidth: of the token kernel.

    Returns:
        Table of measurements with ``sequence_information_all_generated``, ``…_all_reference``,
        ``…_aligned_generated`` and ``…_aligned_reference``, in nats.
    """
    tables = []
    for (name, texts), which in itertools.product(continuations.items(), pairs):
        quantity = f"sequence_information_{which}_{name}"
        sites = results.sites(len(texts.states) - 2)
        samples = [statistics.subsample(len(texts), n_samples, seed) for seed in sampling_seeds]
        profiles = sequences.sequence_information(
            texts.states, texts.targets, steps, bandwidth=bandwidth, pairs=which, samples=samples
        )
        for seed, values in zip(sampling_seeds, profiles, strict=True):
            for column, step in enumerate(steps):
                row = {**context, "sample_seed": seed, "n": n_samples, "decoding_step": step}
                tables.append(results.measurements(values[:, column].tolist(), sites, quantity, **row))
    return pd.concat(tables, ignore_index=True)
