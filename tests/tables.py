"""What tests plant: tables of measurements with a value per layer, and states that know their targets."""

import torch

from ridge_utils import inference, information, results
from ridge_utils.attention import AttentionShares

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


def mutual_information(x, y, estimator=information.PAPER):
    """Matrix-based information between two sets of samples, shape ()."""
    return information.predictive_information(x[None], y, estimator)[0]


def rows(table, quantity, **where):
    """The rows of a quantity in which columns have these values."""
    found = table[table["quantity"] == quantity]
    for column, value in where.items():
        found = found[found[column] == value]
    return found


def effect(table, quantity, **where):
    """The one effect of a quantity whose columns have these values."""
    (row,) = rows(inference.effects(table, quantity).assign(quantity=quantity), quantity, **where).itertuples()
    return row


def attention_shares(blocks, count, seed=0):
    """Random shares of examples whose first token is signal for every other one."""
    generator = torch.Generator().manual_seed(seed)
    signal, last, first = torch.rand(3, blocks, count, dtype=torch.float64, generator=generator)
    tokens, signal_tokens = torch.randint(8, 20, (count,), generator=generator), torch.arange(count) % 3 + 1
    return AttentionShares(signal, last, first, tokens, signal_tokens, torch.arange(count) % 2 == 0)
