"""Early exit (logit lens): what the model's own head reads from the state after each block (paper, Table 1)."""

import torch
from torch import Tensor

from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations


def correct(loaded: LoadedModel, representations: Representations, batch_size: int = 128) -> Tensor:
    """Whether the first target token is the likeliest one when the model stops after each block.

    Every state goes through the model's final norm and its head. The paper does not say whether it applies the norm;
    without it the head would read states of a scale that it never saw. The last entry is the model's own prediction.

    Args:
        loaded: the model that gave the states.
        representations: N examples.
        batch_size: states per product with the head.

    Returns:
        Shape (blocks + 1, N), bool; entry 0 is the exit right after the embedding.
    """
    head = loaded.model.get_output_embeddings()
    weight = head.weight
    rows = []
    with torch.inference_mode():
        # The last block's state is kept after the norm too: that one is exactly what the head received.
        for states in representations.hidden[:-1]:
            rows.append(
                torch.cat(
                    [
                        head(loaded.final_norm(chunk.to(weight.device, weight.dtype))).argmax(-1).cpu()
                        for chunk in states.split(batch_size)
                    ]
                )
            )
        last = representations.final_norm.to(weight.device, weight.dtype)
        rows.append(torch.cat([head(chunk).argmax(-1).cpu() for chunk in last.split(batch_size)]))
    return torch.stack(rows) == representations.target_ids


def cross_entropy(loaded: LoadedModel, representations: Representations, batch_size: int = 128) -> Tensor:
    """Cross-entropy of the first target token under the whole model, from the state that its head received.

    Args:
        loaded: the model that gave the states.
        representations: N examples.
        batch_size: states per product with the head.

    Returns:
        Shape (N,), float64, in nats.
    """
    head = loaded.model.get_output_embeddings()
    weight = head.weight
    with torch.inference_mode():
        chunks = zip(
            representations.final_norm.split(batch_size), representations.target_ids.split(batch_size), strict=True
        )
        return torch.cat(
            [
                torch.nn.functional.cross_entropy(
                    head(states.to(weight.device, weight.dtype)).double(), ids.to(weight.device), reduction="none"
                ).cpu()
                for states, ids in chunks
            ]
        )
