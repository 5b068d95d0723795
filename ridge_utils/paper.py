"""The numbers that the paper reports, each with the table or figure that it stands in (arXiv 2507.05387, version 6)."""

import math

import pandas as pd

TITLE = "The Generalization Ridge: Information Flow in Natural Language Generation"
ARXIV = "2507.05387"


def table_1() -> pd.DataFrame:
    """Table 1: GPT-2 Small (12 blocks), fine-tuned on synthetic arithmetic.

    Returns:
        One row per layer that is known, with ``layer``, ``predictive_information`` (nats) and the early-exit accuracies
        ``accuracy_all``, ``accuracy_id``, ``accuracy_ood`` (fractions); NaN where the value is not known. The paper
        says that layers 1 to 6 have accuracy 0.
    """
    unknown = math.nan
    return pd.DataFrame(
        [
            (1, 0.0002, 0.0, 0.0, 0.0),
            (6, 0.0185, 0.0, 0.0, 0.0),
            (7, 0.0416, unknown, unknown, unknown),
            (8, 0.1883, unknown, unknown, unknown),
            (9, 0.2301, unknown, unknown, unknown),
            (10, 0.2721, 0.5515, 0.5340, 0.5690),
            (11, 0.2475, 0.6592, 0.7917, 0.5267),
            (12, 0.0188, 0.7158, 0.9317, 0.5000),
        ],
        columns=["layer", "predictive_information", "accuracy_all", "accuracy_id", "accuracy_ood"],
    )


#: Number of blocks of the model in Table 1.
TABLE_1_BLOCKS = 12
