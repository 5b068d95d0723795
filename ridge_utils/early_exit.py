"""Early exit (logit lens): what the model's own head reads from the state after each block (paper, Table 1)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations

#: Tokens per product with the head in :func:`likeliest`.
_TOKENS = 1024
#: States that are taken through the head's matrix together: few are left after its first rows, and then reading the
#: matrix is what takes time.
_STATES = 4096


def correct(
    loaded: LoadedModel, representations: Representations, batch_size: int = _STATES, *, norm: bool = True
) -> Tensor:
    """Whether the first target token is the likeliest one when the model stops after each block.

    The paper does not say whether a state goes through the model's final norm before its head. Without it the head
    reads states of a scale that it never saw, and dimensions that the norm would weigh. With it, the last entry is the
    model's own prediction. Shape (blocks + 1, N), bool; entry 0 is the exit right after the embedding.
    """
    *states, last = representations.hidden
    rows = []
    with torch.inference_mode(), loaded.head() as head:
        for layer in states if norm else [*states, last]:
            layer = layer.to(head.weight.device, head.weight.dtype)
            rows.append(loaded.final_norm(layer) if norm else layer)
        if norm:
            # The last block's state is kept after the norm too: that one is exactly what the head received.
            rows.append(representations.final_norm)
        return torch.stack(
            [likeliest(row, representations.target_ids, head.weight, head.bias, batch_size) for row in rows]
        )


def by_split(loaded: LoadedModel, pools: Mapping[str, Representations]) -> dict[str, Tensor]:
    """:func:`correct` of each split; ``all``, where it is the others joined, is put together from theirs."""
    exits = {split: correct(loaded, pool) for split, pool in pools.items() if split != "all"}
    if "all" in pools:
        joined = sum(len(pools[split]) for split in exits) == len(pools["all"])
        exits["all"] = torch.cat(list(exits.values()), 1) if joined else correct(loaded, pools["all"])
    return {split: exits[split] for split in pools}


def likeliest(
    states: Tensor, token_ids: Tensor, weight: Tensor, bias: Tensor | None = None, batch_size: int = _STATES
) -> Tensor:
    """Whether one token of each state is the one that a linear head gives the largest logit.

    The logits are those of the head in float32 at least, and of tokens with the same logit the first one counts. They
    are taken a thousand tokens at a time, and a state that one of them settles takes no part in the rest: early
    exits are mostly wrong, and soon known to be.

    Shapes: ``states`` (N, d), ``token_ids`` (N,), the head's ``weight`` (vocabulary, d) and ``bias`` (vocabulary,); the
    result is (N,), bool, on the CPU.
    """
    batches = zip(states.split(batch_size), token_ids.split(batch_size), strict=True)
    return torch.cat([_likeliest(some, ids, weight, bias) for some, ids in batches])


def _likeliest(states: Tensor, token_ids: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    states = states.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    token_ids = token_ids.to(weight.device)
    token_logits = (states * weight[token_ids].to(states.dtype)).sum(-1)
    token_logits = token_logits if bias is None else token_logits + bias[token_ids]
    standing = torch.arange(len(states), device=weight.device)
    for start in range(0, len(weight), _TOKENS):
        rows = weight[start : start + _TOKENS].to(states.dtype)
        tokens = torch.arange(start, start + len(rows), device=weight.device)
        logits = functional.linear(states[standing], rows, None if bias is None else bias[tokens].to(states.dtype))
        token, token_logit = token_ids[standing, None], token_logits[standing, None]
        # The token's own logit comes from another product, which may round differently.
        beaten = (logits > token_logit) & (tokens != token) | (logits == token_logit) & (tokens < token)
        standing = standing[~beaten.any(-1)]
        if not len(standing):
            break
    right = torch.zeros(len(states), dtype=torch.bool)
    right[standing.cpu()] = True
    return right


def cross_entropy(loaded: LoadedModel, representations: Representations, batch_size: int = 128) -> Tensor:
    """Cross-entropy of the first target token under the whole model, from the state that its head received.

    Shape (N,), float64, in nats.
    """
    batches = zip(
        representations.final_norm.split(batch_size), representations.target_ids.split(batch_size), strict=True
    )
    nats = []
    with torch.inference_mode(), loaded.head() as head:
        weight = head.weight
        for states, ids in batches:
            logits = head(states.to(weight.device, weight.dtype)).double()
            nats.append(functional.cross_entropy(logits, ids.to(weight.device), reduction="none").cpu())
    return torch.cat(nats)
