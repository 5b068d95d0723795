"""The effects that C6 to C9 are judged by, from states to rows of a table, each named as the rules name it.

Information is that of :mod:`ridge_utils.unbiased`. A ridge layer is C1's: of the blocks before the last, the one with
the most of it on one half of all examples, judged on the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ridge_utils import inference
from ridge_utils.attention import AttentionShares
from ridge_utils.audit import anatomy
from ridge_utils.representations import Representations
from ridge_utils.unbiased import Halves, Means, in_halves


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


def _ridge_layers(halves: Halves, last: int) -> Tensor:
    """The ridge layer before ``last`` that each example is judged at, shape (N,)."""
    layers = torch.empty(sum(map(len, halves.indices)), dtype=torch.long)
    for layer, index in zip(halves.chosen(range(1, last), _information), halves.indices, strict=True):
        layers[index] = layer
    return layers


def _information(means: Means) -> Tensor:
    return means.information
