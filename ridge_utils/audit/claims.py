"""The effects that C2 and C5 to C9 are judged by, from states to rows of a table, each named as the rules name it.

Information is that of :mod:`ridge_utils.unbiased`. A ridge layer is C1's: of the blocks before the last, the one with
the most of it on one half of all examples, judged on the other.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from ridge_utils import inference, results, statistics
from ridge_utils.attention import AttentionShares
from ridge_utils.audit import anatomy, block_effects, geometry
from ridge_utils.generation import Continuations
from ridge_utils.kernels import inner_products, kernel_matrix
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations
from ridge_utils.tasks import Example
from ridge_utils.unbiased import ORDER_TWO, Halves, Means, UnbiasedInformation, unbiased_information

#: Decoding steps whose mean is a profile, of C6.
WINDOW = 10


def attention(
    pools: Mapping[str, Representations],
    shares: Mapping[str, AttentionShares],
    marked: Mapping[str, Sequence[int]],
    context: Mapping[str, Any],
) -> pd.DataFrame:
    """The effects of C9: what the last prompt token attends to at the ridge layer and in the last block, by split.

    Attention at layer l is that inside block l. As everywhere, the signal and its chance leave out the first token.

    Args:
        pools: the states of each split, whose examples together choose the ridge layer.
        shares: attention of the examples that have a signal, by split.
        marked: which of the split's examples these are.

    Returns:
        The effects within examples ``ridge_attention_fall``, attention to the signal at the ridge layer less that in
        the last block; ``ridge_attention_excess``, at the ridge layer, less what uniform attention would give it; and
        ``last_token_lead``, in the last block, attention to the last token less that to the signal. A model of one
        block has the last of them alone.
    """
    both = Representations.join([pools[split] for split in shares])
    blocks, tables = len(both.hidden) - 1, []
    by_split = anatomy.judged_at(both).split([len(pools[split]) for split in shares])
    for (split, share), layers in zip(shares.items(), by_split, strict=True):
        signal = share.signal_after_first
        pairs = {"last_token_lead": (signal[-1], share.last[-1])}
        if blocks > 1:
            at_ridge = signal[layers[list(marked[split])] - 1, torch.arange(len(share))]
            pairs["ridge_attention_fall"] = signal[-1], at_ridge
            pairs["ridge_attention_excess"] = share.chance_after_first, at_ridge
        row = {**context, "split": split, "sample_seed": None, "n": len(share)}
        for name, (less, more) in pairs.items():
            effect = inference.paired_effect(less.tolist(), more.tolist())
            tables.append(inference.effect_rows(effect, (blocks, "block"), name, **row))
    return pd.concat(tables, ignore_index=True)


def ablation(
    loaded: LoadedModel,
    examples: Mapping[str, Sequence[Example]],
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    batch_size: int,
) -> pd.DataFrame:
    """The third effect of C5: what skipping a block of the ridge costs, less what skipping one of the last three does.

    The ridge's blocks are the one that writes the layer that an example is judged at and the two beside it.

    Args:
        examples: those that blocks are skipped on, by split, the first of its pool.
        pools: states by split, which all together choose the ridge layer.

    Returns:
        The effect within examples ``ablation_contrast``, of the loss of log-probability of the first target token, in
        nats, by split; nothing where both are the same blocks.
    """
    depth = len(loaded.blocks)
    layers = anatomy.judged_at(Representations.join([pools[split] for split in examples]))
    end = block_effects.last_blocks(depth)
    ridge = {layer: block_effects.ridge_blocks(layer, depth) for layer in sorted(set(layers.tolist()))}
    skipped = sorted({*end, *(block for blocks in ridge.values() for block in blocks)})
    row = {**context, "sample_seed": None, "variant": "skip"}
    tables = [results.measurements([], [], "ablation_contrast", **row, split="", n=0)]
    by_split = layers.split([len(pools[split]) for split in examples])
    for (split, rows), own in zip(examples.items(), by_split, strict=True) if skipped != end else ():
        outcomes = block_effects.ablated(loaded, rows, skipped, "skip", batch_size, split)
        loss = outcomes.log_probability[0] - outcomes.log_probability[1:]
        mean = {layer: loss[[skipped.index(block) for block in blocks]].mean(0) for layer, blocks in ridge.items()}
        at_ridge = [mean[layer][example].item() for example, layer in enumerate(own[: len(rows)].tolist())]
        at_end = loss[[skipped.index(block) for block in end]].mean(0).tolist()
        effect = inference.paired_effect(at_end, at_ridge)
        tables.append(
            inference.effect_rows(effect, (depth, "block"), "ablation_contrast", **row, split=split, n=len(rows))
        )
    return pd.concat(tables, ignore_index=True)


def fall(pool: Representations, context: Mapping[str, Any]) -> pd.DataFrame:
    """The effect of C7 for one model: C1's relative fall of information to the last block.

    ``information_fall`` and ``ridge_z`` of :func:`ridge_utils.audit.anatomy.effects`, variant ``last_block``, from the
    states of both splits together; no row of a model of one block, which has none before the last.
    """
    table = anatomy.effects(pool.states, pool.targets, context)
    own = table[table["quantity"].str.match("information_fall|ridge_z")]
    return own[own["variant"] == "last_block"].reset_index(drop=True)


def exit_gain(
    pools: Mapping[str, Representations], exits: Mapping[str, Tensor], context: Mapping[str, Any]
) -> pd.DataFrame:
    """The effect of C2 by split: accuracy of the early exit at C1's ridge layer less that at the last block.

    ``exit_gain`` and ``ridge_layer``, of each half, of :func:`ridge_utils.audit.anatomy.effects` at the last block;
    ``exits`` are those of :func:`ridge_utils.early_exit.by_split`. No row of a model of one block.
    """
    tables = [
        anatomy.effects(pool.states, pool.targets, context | {"split": split}, exits=exits[split])
        for split, pool in pools.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    own = table["quantity"].str.match("exit_gain|ridge_layer") & table["variant"].str.startswith("last_block")
    return table[own].reset_index(drop=True)


def rises(
    halves: Mapping[int, Mapping[int, Halves]], losses: Mapping[int, float], context: Mapping[str, Any]
) -> pd.DataFrame:
    r"""The effects of C8: how information at the last block rises after the lowest ID loss, less how it did before.

    With :math:`I_s` the information at the last block after s steps, :math:`R_s` that at the ridge layer, f the first
    trained checkpoint, b that of the lowest loss and e the last, they are, per doubling of the step,

    .. math::

       \frac{I_e - I_b}{R_b \log_2 (e / b)} \qquad \text{and} \qquad
       \frac{I_e - I_b}{R_b \log_2 (e / b)} - \frac{I_b - I_f}{R_b \log_2 (b / f)}.

    Their errors are the jackknife's of the whole expression: an example is left out of the three checkpoints at once,
    each with its own embedding of the target.

    Args:
        halves: of the states of the same examples, before the final norm, by training seed and step.
        losses: mean ID loss of the training seeds, by step.
        context: columns of the table, with ``split`` and without ``step`` and ``train_seed``.

    Returns:
        ``last_block_rise`` and ``last_block_contrast`` of each training seed, at the last step, with ``ridge_z``, how
        many standard errors :math:`R_b` lies above 0; below :data:`~ridge_utils.audit.anatomy.SURE` it stands alone.
        No contrast where the lowest loss is the first trained checkpoint's, nothing where it is untouched or last.
    """
    lowest, end = min(losses, key=lambda step: losses[step]), max(losses)
    row = {**context, "step": end, "sample_seed": None}
    tables = [results.measurements([], [], "last_block_rise", **row, train_seed=None, n=0)]
    for seed, by_step in halves.items() if lowest not in (0, end) else ():
        last = by_step[end].halves[0].sums.shape[-1] - 1
        if last > 1:
            chosen = by_step[lowest].chosen(range(1, last), lambda means: means.information)
            ridge = by_step[lowest].estimate(chosen, lambda means, layer: means.at(layer).information)
            found = row | {"train_seed": seed, "n": ridge.n}
            tables.append(results.measurements([anatomy.z_of(ridge)], [(last, "block")], "ridge_z", **found))
            for name, effect in _rises(by_step, lowest, end, chosen).items() if anatomy.sure(ridge) else ():
                tables.append(inference.effect_rows(effect, (last, "block"), name, **found))
    return pd.concat(tables, ignore_index=True)


def readings(
    last: Mapping[int, Mapping[int, Representations]],
    losses: Mapping[int, float],
    blocks: int,
    context: Mapping[str, Any],
) -> pd.DataFrame:
    r"""Beside C8: whether what can be read at the last block rises as well, past the lowest ID loss.

    Of two things that the spread of the states does not move, Mantel's r of the centred states and what a linear probe
    reads, the relative rise per doubling of the step, :math:`(x_e / x_b - 1) / \log_2 (e / b)`; e, b and the context
    are those of :func:`rises`.

    Args:
        last: states that end with those behind the last of the model's ``blocks``, by training seed and step.

    Returns:
        ``last_block_correlation_rise`` and ``last_block_probe_rise`` of each training seed, at the last step; nothing
        of what is not above 0 at the lowest loss by :data:`~ridge_utils.audit.anatomy.SURE` standard errors.
    """
    lowest, end = min(losses, key=lambda step: losses[step]), max(losses)
    row = {**context, "step": end, "sample_seed": None}
    tables = [results.measurements([], [], "last_block_probe_rise", **row, train_seed=None, n=0)]
    for seed, by_step in last.items() if lowest not in (0, end) else ():
        pools, doublings = (by_step[lowest], by_step[end]), math.log2(end / lowest)
        scaled = [geometry.unit_length(geometry.centred(pool.hidden[-1:])) for pool in pools]
        joined = _beside(
            [unbiased_information(z, p.targets, anatomy.SCALED) for z, p in zip(scaled, pools, strict=True)]
        )
        found = {}
        if anatomy.sure(joined.estimate(lambda means: means.correlation[..., 0])):
            rise = joined.estimate(lambda m, d=doublings: (m.correlation[..., 1] / m.correlation[..., 0] - 1) / d)
            found["last_block_correlation_rise"] = anatomy.effect_of(rise)
        fall = anatomy.relative_fall(*(anatomy.probe_gain(p.hidden[-1], p.targets, p.target_ids) for p in pools))
        if fall:
            rise = (-fall.estimate / doublings, -fall.high / doublings, -fall.low / doublings)
            found["last_block_probe_rise"] = inference.Effect(*rise, math.nan, math.nan)
        for name, effect in found.items():
            of_seed = row | {"train_seed": seed, "n": len(pools[1])}
            tables.append(inference.effect_rows(effect, (blocks, "block"), name, **of_seed))
    return pd.concat(tables, ignore_index=True)


def _rises(by_step: Mapping[int, Halves], lowest: int, end: int, chosen: Sequence[int]) -> dict[str, inference.Effect]:
    steps = [min(step for step in by_step if step), lowest, end]
    first, second = (_beside([by_step[step].halves[half] for step in steps]) for half in (0, 1))
    joined = Halves((first, second), by_step[end].indices)
    rise = joined.estimate(chosen, lambda means, ridge: _per_doubling(means, ridge, steps)[..., 1])
    contrast = joined.estimate(chosen, lambda means, ridge: _per_doubling(means, ridge, steps).diff()[..., 0])
    found = {"last_block_rise": anatomy.effect_of(rise)}
    return found | ({"last_block_contrast": anatomy.effect_of(contrast)} if steps[0] < lowest else {})


def _per_doubling(means: Means, ridge: int, steps: Sequence[int]) -> Tensor:
    """Rises at the last block from each of three checkpoints to the next, over the second's ridge, shape (..., 2)."""
    information = means.information.unflatten(-1, (len(steps), -1))
    doublings = torch.tensor(steps, dtype=torch.float64).log2().diff()
    return information[..., -1].diff() / (doublings * information[..., 1, ridge, None])


def _beside(parts: Sequence[UnbiasedInformation]) -> UnbiasedInformation:
    """Information of the same examples as one, the layers of each part after those of the part before."""
    return UnbiasedInformation(torch.cat([part.sums for part in parts], -1))


def windows(texts: Continuations, steps: Sequence[int], context: Mapping[str, Any]) -> pd.DataFrame:
    r"""The effects of C6: whether the profile over the blocks of the last decoding steps is that of the first.

    A profile is the mean of the unbiased information between a step's states and its token, over the :data:`WINDOW`
    first or last steps. With the texts shuffled the level of both is 0: over all pairings of states with tokens the
    mean of c is exactly :math:`a\,b`, and the jackknife takes out what the logarithm leaves. So nothing is taken off.

    Args:
        steps: the steps that were measured, from 1.

    Returns:
        ``window_correlation``, Spearman's of the two profiles, from 100 halves of the texts, as ranks are not smooth;
        and ``level_growth``, by the jackknife, that of the mean over the blocks, over the first window's, where this is
        above 0 by :data:`~ridge_utils.audit.anatomy.SURE` standard errors. Nothing where the windows would share a
        step, of fewer than 8 texts, or of one block; no correlation of a profile without any rise or fall.
    """
    blocks, n = len(texts.hidden) - 1, len(texts)
    row = {"sample_seed": None, "n": n, **context}
    nothing, effects = results.measurements([], [], "window_correlation", **row), {}
    if len(steps) < 2 * WINDOW or n < 8 or blocks < 2:
        return nothing
    places = [step - 1 for step in (*sorted(steps)[:WINDOW], *sorted(steps)[-WINDOW:])]
    of_steps = [(texts.hidden[1:, :, place], texts.targets[:, place]) for place in places]

    def levels(means: Means) -> Tensor:
        return means.information.unflatten(-1, (2, -1)).mean(-1)

    joined = _beside([unbiased_information(states, targets) for states, targets in of_steps])
    halves = torch.stack([statistics.subsample(n, n // 2, seed) for seed in range(100)])
    on_halves = torch.stack([_information_on(halves, states, targets) for states, targets in of_steps])
    first, last = profiles = on_halves.unflatten(0, (2, WINDOW)).mean(1)
    if bool((profiles.amax(-1) - profiles.amin(-1) > anatomy.NOTHING).all()):
        correlations = [stats.spearmanr(*pair).statistic for pair in zip(first, last, strict=True)]
        effects["window_correlation"] = inference.half_sample_effect(correlations)
    if anatomy.sure(joined.estimate(lambda means: levels(means)[..., 0])):
        growth = joined.estimate(lambda means: levels(means)[..., 1] / levels(means)[..., 0] - 1)
        effects["level_growth"] = anatomy.effect_of(growth)
    tables = [inference.effect_rows(effect, (blocks, "block"), name, **row) for name, effect in effects.items()]
    return pd.concat([nothing, *tables], ignore_index=True)


def _information_on(subsets: Tensor, states: Tensor, targets: Tensor) -> Tensor:
    """:attr:`Means.information` of subsets of N samples, from kernels that are computed once, shape (S, L).

    Shapes are (S, n), indices, (L, N, d) and (N, e); three N x N matrices a layer are held.
    """
    n = subsets.shape[1]
    member = torch.zeros(len(subsets), len(targets), dtype=torch.float64).scatter_(1, subsets, 1.0)
    gram = (kernel_matrix(inner_products(x, ORDER_TWO.normalize), ORDER_TWO) for x in (targets, *states))
    b, *layers = (matrix.square().fill_diagonal_(0) for matrix in gram)
    products = torch.stack([torch.stack([a, b, a * b]) for a in layers])
    a, b, c = (((member @ products) * member).sum(-1) / (n * (n - 1))).unbind(1)
    return (c / (a * b)).log().mT
