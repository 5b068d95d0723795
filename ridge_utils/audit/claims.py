"""The effects that C6 to C9 are judged by, from states to rows of a table, each named as the rules name it.

Information is that of :mod:`ridge_utils.unbiased`. A ridge layer is C1's: of the blocks before the last, the one with
the most of it on one half of all examples, judged on the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ridge_utils import inference, results
from ridge_utils.attention import AttentionShares
from ridge_utils.audit import anatomy
from ridge_utils.inference import Effect
from ridge_utils.representations import Representations
from ridge_utils.unbiased import Halves, Means, UnbiasedInformation, in_halves


def attention(
    pools: Mapping[str, Representations],
    shares: Mapping[str, AttentionShares],
    marked: Mapping[str, Sequence[int]],
    context: Mapping[str, Any],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """The effects of C9: what the last prompt token attends to at the ridge layer and in the last block, by split.

    Attention at layer l is that inside block l. As everywhere, the signal and its chance leave out the first token.

    Args:
        pools: the states of each split, whose examples together choose the ridge layer.
        shares: attention of the examples that have a signal, by split.
        marked: which of the split's examples these are.
        context: columns of the table, without ``split``.
        seed: of the halves.

    Returns:
        Effects within examples: ``ridge_attention_fall``, attention to the signal at the ridge layer less that in the
        last block; ``ridge_attention_excess``, at the ridge layer, less what uniform attention would give it; and
        ``last_token_lead``, in the last block, attention to the last token less that to the signal. A model of one
        block has the last of them alone.
    """
    both = Representations.join([pools[split] for split in shares])
    blocks = len(both.hidden) - 1
    layers = _ridge_layers(in_halves(both.hidden, both.targets, seed=seed), blocks) if blocks > 1 else None
    tables, before = [], 0
    for split, share in shares.items():
        signal = share.signal_after_first
        pairs = {"last_token_lead": (signal[-1], share.last[-1])}
        if layers is not None:
            own = layers[before + torch.tensor(marked[split])]
            at_ridge = signal[own - 1, torch.arange(len(share))]
            pairs["ridge_attention_fall"] = signal[-1], at_ridge
            pairs["ridge_attention_excess"] = share.chance_after_first, at_ridge
        row = {**context, "split": split, "sample_seed": None, "n": len(share)}
        for name, (less, more) in pairs.items():
            effect = inference.paired_effect(less.tolist(), more.tolist(), seed)
            tables.append(inference.effect_rows(effect, (blocks, "block"), name, **row))
        before += len(pools[split])
    return pd.concat(tables, ignore_index=True)


def fall(pool: Representations, context: Mapping[str, Any], *, seed: int = 0) -> pd.DataFrame:
    """The effect of C7 for one model: C1's relative fall of information to the last block, on all examples.

    Args:
        pool: the states of both splits together.
        context: columns of the table, with ``split``.
        seed: of the halves.

    Returns:
        Of :func:`ridge_utils.audit.anatomy.effects` the effect ``information_fall`` and ``ridge_z``, variant
        ``last_block``; nothing for a model of one block, which has none before the last.
    """
    table = anatomy.effects(pool.states, pool.targets, context, seed=seed)
    own = table["quantity"].str.match("information_fall|ridge_z") & (table["variant"] == "last_block")
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
        many standard errors :math:`R_b` lies above 0; below :data:`~ridge_utils.audit.anatomy.SURE` of them it stands
        alone. No contrast where the first trained checkpoint has the lowest loss; nothing where that is untouched or at
        the end.
    """
    lowest, end = min(losses, key=lambda step: losses[step]), max(losses)
    row = {**context, "step": end, "sample_seed": None}
    tables = [results.measurements([], [], "last_block_rise", **row, train_seed=None, n=0)]
    for seed, by_step in halves.items() if lowest not in (0, end) else ():
        last = by_step[end].halves[0].sums.shape[-1] - 1
        if last > 1:
            chosen = by_step[lowest].chosen(range(1, last), _information)
            ridge = by_step[lowest].estimate(chosen, lambda means, layer: means.at(layer).information)
            found = row | {"train_seed": seed, "n": ridge.n}
            tables.append(results.measurements([anatomy.z_of(ridge)], [(last, "block")], "ridge_z", **found))
            for name, effect in _rises(by_step, lowest, end, chosen).items() if anatomy.sure(ridge) else ():
                tables.append(inference.effect_rows(effect, (last, "block"), name, **found))
    return pd.concat(tables, ignore_index=True)


def _rises(by_step: Mapping[int, Halves], lowest: int, end: int, chosen: Sequence[int]) -> dict[str, Effect]:
    steps = [min(step for step in by_step if step), lowest, end]
    first, second = (_beside([by_step[step].halves[half] for step in steps]) for half in (0, 1))
    joined = Halves((first, second), by_step[lowest].indices)
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


def _ridge_layers(halves: Halves, last: int) -> Tensor:
    """The ridge layer before ``last`` that each example is judged at, shape (N,)."""
    layers = torch.empty(sum(map(len, halves.indices)), dtype=torch.long)
    for layer, index in zip(halves.chosen(range(1, last), _information), halves.indices, strict=True):
        layers[index] = layer
    return layers


def _information(means: Means) -> Tensor:
    return means.information
