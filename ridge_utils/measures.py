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

from ridge_utils import early_exit, information, results, sequences, statistics
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
        kernel, bandwidth, alpha: of the estimator, see :func:`ridge_utils.information.predictive_information`.

    Returns:
        Table of measurements, in nats.

    Raises:
        InputError: as :func:`ridge_utils.statistics.check_sampling` and the estimator.
    """
    incremental = quantity == "incremental_information"
    tables = []
    for split, pool in pools.items():
        sites = results.sites(len(pool.hidden) - 1)
        for seed in sampling_seeds:
            sample = pool.select(statistics.subsample(len(pool), n_samples, seed))
            values = information.predictive_information(
                sample.updates if incremental else sample.states,
                sample.targets,
                kernel=kernel,
                bandwidth=bandwidth,
                alpha=alpha,
            )
            where = sites[1:-1] if incremental else sites
            row = {**context, "split": split, "sample_seed": seed, "n": n_samples}
            tables.append(results.measurements(values.tolist(), where, quantity, **row))
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
        InputError: as :func:`ridge_utils.information.mutual_information`.
    """
    information.mutual_information(torch.eye(2), torch.eye(2), kernel=kernel, bandwidth=bandwidth, alpha=alpha)


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
        that split; their split is the one evaluated on.
    """
    blocks = len(loaded.blocks)
    end = [(blocks, "final_norm")]
    tables = []
    for split, examples in evaluated_on.items():
        before = remember(
            scaling.Evaluation,
            loaded,
            examples,
            partial(scaling.evaluate, loaded, examples, None, batch_size, f"{split}, untouched scales"),
            batch_size=batch_size,
        )
        row = {**context, "split": split, "sample_seed": None, "n": len(examples)}
        tables.append(results.measurements([before.correct.double().mean().item()], end, "accuracy", **row))
        tables.append(results.measurements([before.cross_entropy.mean().item()], end, "loss", **row))
    for split, examples in fitted_on.items():
        for setting in settings:
            found = _fitted(loaded, split, examples, evaluated_on, setting, batch_size)
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
    return pd.concat(tables, ignore_index=True)


def _fitted(
    loaded: LoadedModel,
    split: str,
    examples: Sequence[Example],
    evaluated_on: Mapping[str, Sequence[Example]],
    settings: FitSettings,
    batch_size: int,
) -> Scaling:
    def compute() -> Scaling:
        label = f"{split}, seed {settings.seed}"
        fit = scaling.fit(loaded, examples, settings, label)
        after = [
            scaling.evaluate(loaded, others, fit.scales, batch_size, f"{label}, on {other}")
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
        share that uniform attention would give the signal, the first token left out.
    """
    tables = []
    for split, share in shares.items():
        blocks = len(share.signal)
        sites = results.sites(blocks, final_norm=False)[1:]
        for seed in sampling_seeds:
            sample = share.select(statistics.subsample(len(share), n_samples, seed))
            row = {**context, "split": split, "sample_seed": seed, "n": n_samples}
            chance = (sample.signal_tokens - sample.first_is_signal.long()).double() / sample.tokens
            for quantity, values in (
                ("signal_attention", sample.signal),
                ("signal_after_first_attention", sample.signal_after_first),
                ("last_token_attention", sample.last),
                ("first_token_attention", sample.first),
                ("chance_attention", chance.expand(blocks, -1)),
            ):
                tables.append(results.measurements(values.mean(1).tolist(), sites, quantity, **row))
    return pd.concat(tables, ignore_index=True)


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
        for seed in sampling_seeds:
            sample = statistics.subsample(len(texts), n_samples, seed)
            values = sequences.sequence_information(
                texts.states[:, sample], texts.targets[sample], steps, bandwidth=bandwidth, pairs=which
            )
            for column, step in enumerate(steps):
                row = {**context, "sample_seed": seed, "n": n_samples, "decoding_step": step}
                tables.append(results.measurements(values[:, column].tolist(), sites, quantity, **row))
    return pd.concat(tables, ignore_index=True)
