"""What tests plant: tables of measurements with a value per layer, and states that know their targets."""

import torch

from ridge_utils import results

CONTEXT = {
    "model": "m", "task": "t", "source": "own", "split": "id", "step": 0, "train_seed": 0, "sample_seed": 0, "n": 10,
}  # fmt: skip


def profile(values, **changes):
    """A value per layer; of predictive information the last one is that after the final norm."""
    quantity = changes.pop("quantity", "predictive_information")
    final_norm = quantity == "predictive_information"
    blocks = len(values) - 1 - final_norm
    return results.measurements(values, results.sites(blocks, final_norm), quantity, **(CONTEXT | changes))


#: Dimension of planted states, and number of classes of their targets.
WIDTH, CLASSES = 12, 5


def planted(signal, n, seed=0):
    """States that know the class by so much at each layer, beside noise; their targets, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(CLASSES, (n,), generator=generator)
    codes = torch.eye(WIDTH, dtype=torch.float64)[:CLASSES]
    noise = torch.randn(len(signal), n, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    return torch.tensor(signal, dtype=torch.float64)[:, None, None] * codes[ids] + noise, codes[ids], ids
