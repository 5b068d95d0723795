"""Tables of measurements for tests, a value per layer."""

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
