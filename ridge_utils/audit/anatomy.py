r"""What the ridge is made of: sampling bias, the spread of the states, and what can be read from them.

The effects that the book's protocol judges C1 and C4 by, and the profiles that the page shows. Both rest on
:mod:`ridge_utils.unbiased`; a layer is chosen on one half of the examples and judged on the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ridge_utils import early_exit, inference, information, measures, results, statistics
from ridge_utils.audit import geometry, probes
from ridge_utils.errors import at_least
from ridge_utils.inference import Effect
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations
from ridge_utils.statistics import THIRDS, third_of
from ridge_utils.unbiased import ORDER_TWO, Estimate, Halves, Means, in_halves, unbiased_information

#: Where the fall of C1 ends, by the variant of its effects, counted from the last of the states.
ENDS = {"last_block": -2, "block_before": -3, "final_norm": -1}
#: Examples of the paper's estimate.
PAPER_N = 200
#: For states that were scaled to length 1 already, among them those that are zero.
SCALED = replace(ORDER_TWO, normalize=False)
#: Information below this is rounding, nats.
NOTHING = 1e-9
#: How many standard errors above 0 what an effect is divided by has to be.
SURE = 3.0


def check(n_examples: int) -> None:
    """Refuse a number of examples per split of which a half is too small to judge on, before anything long begins."""
    at_least(8, n_examples=n_examples)


def measure(
    loaded: LoadedModel,
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    sampling_seeds: Sequence[int],
    n_shuffles: int,
    exact_up_to: int,
) -> pd.DataFrame:
    """All of one checkpoint: :func:`profile` and :func:`gains` of both splits together, :func:`effects` of these and of
    the OOD examples, and the accuracy of each split's early exits beside that of the commonest answer.
    """
    both = context | {"split": "all"}
    settings = {"sampling_seeds": sampling_seeds, "n_shuffles": n_shuffles, "exact_up_to": exact_up_to}
    exits = early_exit.by_split(loaded, pools)
    tables = [
        profile(pools["all"], both, **settings),
        gains(pools["all"].updates, pools["all"].targets, both),
        measures.early_exit_accuracy(loaded, pools, context, exits),
        measures.majority_accuracy(pools, context),
    ]
    for split in ("all", "ood"):
        pool, row = pools[split], context | {"split": split}
        tables.append(effects(pool.states, pool.targets, row, target_ids=pool.target_ids, exits=exits[split]))
    return pd.concat(tables, ignore_index=True)


def effects(
    states: Tensor,
    targets: Tensor,
    context: Mapping[str, Any],
    *,
    target_ids: Tensor | None = None,
    exits: Tensor | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """The effects of C1 and C2 with their intervals, at each of :data:`ENDS` that has a block before it.

    Args:
        states: those of all layers and after the final norm, shape (blocks + 2, N, d).
        targets: shape (N, e).
        context: columns of the table, with ``split``.
        target_ids: shape (N,), for the probe; without them it is left out.
        exits: whether the early exit after each block is right, shape (blocks + 1, N).
        seed: of the halves and of the probe's folds.

    Returns:
        Effects ``information_fall`` and ``probe_fall``, from the ridge layer to the end, ``information_rise``, from the
        embedding to it, and, each from its own largest layer, ``correlation_fall``, of Mantel's r of the centred
        states, and ``plug_in_fall``, of the plug-in estimate at :data:`PAPER_N` examples; all as shares of the value
        at the layer; ``bias_share``, the share of that last fall which its null has as well; ``ridge_information``, in
        nats, and ``ridge_z``, over its standard error; ``exit_gain``, accuracy at the ridge layer less that at the last
        block; and ``ridge_layer``, for each half. What is divided by a value that is not above 0 by :data:`SURE`
        standard errors is left out.
    """
    halves = in_halves(states, targets, seed=seed)
    centred = in_halves(geometry.unit_length(geometry.centred(states)), targets, SCALED, seed=seed)
    sites = results.sites(len(states) - 2)
    row = {"sample_seed": None, "n": len(targets), **context}
    tables, read = [results.measurements([], [], "information_fall", **row)], {}
    for variant, end in ENDS.items():
        last = len(states) + end
        layers = range(1, last)
        if not layers:
            continue
        chosen = halves.chosen(layers, lambda means: means.information)
        ridge = halves.estimate(chosen, lambda means, layer: means.at(layer).information)
        found = {"ridge_information": effect_of(ridge)}
        if sure(ridge):
            found["information_fall"] = effect_of(
                halves.estimate(chosen, lambda m, layer, end=last: 1 - m.at(end).information / m.at(layer).information)
            )
            found["information_rise"] = effect_of(
                halves.estimate(chosen, lambda m, layer: 1 - m.at(0).information / m.at(layer).information)
            )
        found |= _correlation_fall(centred, layers, last) | _plug_in_fall(halves, layers, last)
        if target_ids is not None and sure(ridge):
            for layer in {*chosen, last} - set(read):
                read[layer] = probe_gain(states[layer], targets, target_ids, seed)
            fall = _probe_fall(halves, chosen, last, read)
            found |= {"probe_fall": fall} if fall else {}
        if exits is not None and variant == "last_block":
            at_ridge = torch.cat([exits[layer][index] for layer, index in zip(chosen, halves.indices, strict=True)])
            at_end = exits[last][torch.cat(halves.indices)]
            found["exit_gain"] = inference.paired_effect(at_end.double(), at_ridge.double(), seed)
        for name, effect in found.items():
            tables.append(inference.effect_rows(effect, sites[last], name, **row, variant=variant))
        tables.append(results.measurements([z_of(ridge)], [sites[last]], "ridge_z", **row, variant=variant))
        for half, layer in enumerate(chosen):
            site = [sites[layer]]
            tables.append(results.measurements([layer], site, "ridge_layer", **row, variant=f"{variant}_{half}"))
    return pd.concat(tables, ignore_index=True)


def judged_at(pool: Representations) -> Tensor:
    """The ridge layer that each example is judged at, shape (N,).

    Of the blocks before the last (of one block, that one) it has most information on the half of the examples, 8 or
    more, that the example is not in.
    """
    halves = in_halves(pool.hidden, pool.targets)
    chosen = halves.chosen(range(1, max(2, len(pool.hidden) - 1)), lambda means: means.information)
    layers = torch.empty(len(pool), dtype=torch.long)
    for layer, index in zip(chosen, halves.indices, strict=True):
        layers[index] = layer
    return layers


def _correlation_fall(centred: Halves, layers: Sequence[int], last: int) -> dict[str, Effect]:
    """From the layer whose centred states have the largest Mantel's r."""
    best = centred.chosen(layers, lambda means: means.correlation)
    if sure(centred.estimate(best, lambda means, layer: means.at(layer).correlation)):
        fall = centred.estimate(best, lambda m, layer: 1 - m.at(last).correlation / m.at(layer).correlation)
        return {"correlation_fall": effect_of(fall)}
    return {}


def _plug_in_fall(halves: Halves, layers: Sequence[int], last: int) -> dict[str, Effect]:
    """From the layer where the plug-in estimate is largest, and how much of it the null makes."""
    chosen = halves.chosen(layers, lambda means: means.plug_in(PAPER_N))

    def fall(means: Means, layer: int) -> Tensor:
        return means.at(layer).plug_in(PAPER_N) - means.at(last).plug_in(PAPER_N)

    def null(means: Means, layer: int) -> Tensor:
        return means.at(layer).plug_in_null(PAPER_N) - means.at(last).plug_in_null(PAPER_N)

    if not halves.estimate(chosen, lambda means, layer: means.at(layer).plug_in(PAPER_N)).value > NOTHING:
        return {}
    relative = halves.estimate(chosen, lambda m, layer: fall(m, layer) / m.at(layer).plug_in(PAPER_N))
    found = {"plug_in_fall": effect_of(relative)}
    if sure(halves.estimate(chosen, fall)):
        found["bias_share"] = effect_of(halves.estimate(chosen, lambda m, layer: null(m, layer) / fall(m, layer)))
    return found


def gains(updates: Tensor, targets: Tensor, context: Mapping[str, Any]) -> pd.DataFrame:
    """The effects of C4, from residual updates of shape (blocks, N, d), three blocks or more.

    Returns:
        ``gain_over_last`` and ``gain_over_first``: unbiased information of the middle third of the blocks less that of
        another third, over the mean of all blocks; left out where that is not above 0 by :data:`SURE` standard errors.
    """
    blocks = len(updates)
    row = {"sample_seed": None, "n": len(targets), **context}
    nothing = results.measurements([], [], "gain_over_last", **row)
    if blocks < len(THIRDS):
        return nothing
    pairs = unbiased_information(updates, targets)
    thirds = [third_of(block, blocks) for block in range(1, blocks + 1)]
    by_third = {third: [i for i, name in enumerate(thirds) if name == third] for third in THIRDS}

    def lead(means: Means, other: str) -> Tensor:
        gain = means.information
        return (gain[..., by_third["middle"]].mean(-1) - gain[..., by_third[other]].mean(-1)) / gain.mean(-1)

    if not sure(pairs.estimate(lambda means: means.information.mean(-1))):
        return nothing
    tables = []
    for other in ("last", "first"):
        effect = effect_of(pairs.estimate(lambda means, other=other: lead(means, other)))
        tables.append(inference.effect_rows(effect, (blocks, "block"), f"gain_over_{other}", **row))
    return pd.concat(tables, ignore_index=True)


def profile(
    pool: Representations,
    context: Mapping[str, Any],
    *,
    sampling_seeds: Sequence[int],
    n_shuffles: int,
    exact_up_to: int = 2000,
) -> pd.DataFrame:
    r"""The lines of the page over all layers and after the final norm.

    Returns:
        In nats ``unbiased_information`` with its 95 % interval (``…_low``, ``…_high``); ``predictive_information``,
        ``null_information`` and ``state_entropy``, the paper's, means over samples of :data:`PAPER_N` examples (or of
        half of the pool) and over ``n_shuffles`` shuffles of each; the same of order 2 in closed form, ``plug_in`` and
        ``plug_in_null``; ``predicted_entropy`` (:func:`spread_entropy`); ``collision_entropy``, H(Z) of order 2 without
        bias; and of the whole pool, or of ``exact_up_to`` of a larger one, variant ``whole``, the paper's estimate and
        its null under one shuffle. Without a unit ``correlation`` and ``alignment``, the scale-free forms, and
        ``mean_cosine`` and ``effective_rank``.
    """
    states, targets = pool.states, pool.targets
    sites = results.sites(len(states) - 2)
    n = min(PAPER_N, len(pool) // 2)
    pairs = unbiased_information(states, targets)
    low, high = pairs.information.interval().unbind(-1)
    samples = [statistics.subsample(len(pool), n, seed) for seed in sampling_seeds]
    null, entropy = [], []
    for seed, sample in zip(sampling_seeds, samples, strict=True):
        null.append(information.permutation_null(states[:, sample], targets[sample], n_shuffles, seed).mean(0))
        entropy.append(torch.stack([information.entropy(information.gram_matrix(z[sample])) for z in states]))
    cosine, rank = geometry.mean_cosine(states), geometry.effective_rank(states)
    whole = {
        "unbiased_information": pairs.information.value,
        "unbiased_information_low": low,
        "unbiased_information_high": high,
        "collision_entropy": -pairs.means.a.log(),
        "correlation": pairs.correlation.value,
        "alignment": pairs.alignment,
        "mean_cosine": cosine,
        "effective_rank": rank,
    }
    # The rank of few samples is bounded by their number, so the prediction takes what the entropy was measured on.
    drawn = torch.stack([geometry.effective_rank(states[:, sample]) for sample in samples]).mean(0)
    of_paper = {
        "predictive_information": information.predictive_information(states, targets, samples=samples).mean(0),
        "null_information": torch.stack(null).mean(0),
        "state_entropy": torch.stack(entropy).mean(0),
        "plug_in": pairs.plug_in(n).value,
        "plug_in_null": pairs.means.plug_in_null(n),
        "predicted_entropy": spread_entropy(cosine, drawn),
    }
    tables = []
    for values_by_name, size in ((whole, len(pool)), (of_paper, n)):
        row = {"sample_seed": None, "n": size, **context}
        for name, values in values_by_name.items():
            tables.append(results.measurements(values.tolist(), sites, name, **row))
    drawn = torch.arange(len(pool))
    if len(pool) > exact_up_to:
        drawn = statistics.subsample(len(pool), exact_up_to, sampling_seeds[0])
    shuffled = drawn[torch.randperm(len(drawn), generator=torch.Generator().manual_seed(sampling_seeds[0]))]
    for name, paired in (("predictive_information", drawn), ("null_information", shuffled)):
        row = {"sample_seed": None, "n": len(drawn), **context, "variant": "whole"}
        estimate = information.predictive_information(states[:, drawn], targets[paired])
        tables.append(results.measurements(estimate.tolist(), sites, name, **row))
    return pd.concat(tables, ignore_index=True)


def spread_entropy(mean_cosine: Tensor, effective_rank: Tensor) -> Tensor:
    r"""Entropy H(Z) of the states of a layer, order 1, bandwidth 1, foretold from their spread alone, in nats.

    With m the mean cosine between different states, :math:`d = 1 - e^{-(1-m)}` the share of the Gram matrix that lies
    outside of their common direction, r the effective rank of the centred states and h the binary entropy, it is
    about :math:`h(d) + d \ln r`. The targets do not enter. An approximation: the states' common direction is taken as
    one eigenvector, the others as r equal ones.
    """
    d = 1 - torch.exp(-(1 - mean_cosine).clamp(min=0))
    binary = -(torch.xlogy(d, d) + torch.xlogy(1 - d, 1 - d))
    return binary + d * effective_rank.clamp(min=1).log()


def effect_of(estimate: Estimate) -> Effect:
    """An estimate, shape (), with its interval; it was not tested, so there is neither a p-value nor a size."""
    low, high = estimate.interval(inference.CONFIDENCE).tolist()
    return Effect(estimate.value.item(), low, high, math.nan, math.nan)


def z_of(estimate: Estimate) -> float:
    """How many of its standard errors an estimate, shape (), lies above 0; 0 where it has none."""
    return (estimate.value / estimate.standard_error).item() if estimate.standard_error else 0.0


def sure(estimate: Estimate) -> bool:
    """Whether an estimate lies so far above 0 (:data:`SURE`) that something may be divided by it."""
    return bool(estimate.value > SURE * estimate.standard_error) and bool(estimate.value > NOTHING)


def probe_gain(states: Tensor, targets: Tensor, target_ids: Tensor, seed: int = 0) -> Tensor:
    """What a linear probe reads of each example's target, nats, shape (N,); NaN where it was not asked."""
    gain = torch.full((len(target_ids),), math.nan, dtype=torch.float64)
    kind = probes.vocabulary(target_ids)
    if kind == "closed":
        kept = probes.frequent(target_ids)
        gain[kept] = probes.classify(states[kept], target_ids[kept], seed=seed).gain
    elif kind == "open":
        gain[:] = probes.embedding(states, targets, target_ids, seed=seed).gain
    return gain


def _probe_fall(halves: Halves, chosen: Sequence[int], last: int, read: Mapping[int, Tensor]) -> Effect | None:
    """Relative fall of V-information, each example's ridge layer being the one that its half is judged at."""
    ridge = torch.cat([read[layer][index] for layer, index in zip(chosen, halves.indices, strict=True)])
    end = read[last][torch.cat(halves.indices)]
    return relative_fall(ridge, end)


def relative_fall(before: Tensor, after: Tensor) -> Effect | None:
    """Relative fall of a mean over N examples, with the jackknife's error; examples that are NaN are left out.

    None where the mean before is not above 0 by :data:`SURE` standard errors.
    """
    kept = before.isfinite()
    before, after = before[kept], after[kept]
    n = len(before)
    if n < 2 or not before.mean() > SURE * before.std() / math.sqrt(n):
        return None
    value = 1 - after.sum() / before.sum()
    others = 1 - (after.sum() - after) / (before.sum() - before)
    error = ((n - 1) / n * (others - others.mean()).square().sum()).sqrt()
    return effect_of(Estimate(n * value - (n - 1) * others.mean(), error, n))
