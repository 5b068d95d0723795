"""What the paper claims and reports, each number with its table or figure (arXiv 2507.05387, in our own words).

Everything is as in version 6, except where "version 5" is said: that was read from a public review page of version 5.
"""

import math

import pandas as pd

#: Number of blocks of the model in Table 1, GPT-2 Small.
TABLE_1_BLOCKS = 12

#: Each claim's name, statement and evidence.
_CLAIMS = (
    ("peak", "I(Z; Y) peaks at an intermediate layer and falls at the end", "Figures 2, 8 (version 5), Table 1"),
    ("generalisation", "The peak is where features generalise best", "Table 1"),
    ("memorisation", "The last layers memorise", "inferred from Table 1"),
    ("gain per block", "Middle blocks add the most information", "Figures 5 and 9"),
    ("residual scaling", "Residual scaling shows the ridge layers to matter under shift", "Figures 6, 10, Table 5"),
    ("decoding steps", "The profile persists over decoding steps", "Section 5"),
    ("depth", "The ridge needs depth: it appears from a threshold number of blocks on", "Figure 3"),
    ("overfitting", "Under overfitting, information rises in the final layers", "Figure 4"),
    ("attention", "Ridge layers attend to signal tokens, the final layers to positions", "Figure 7, Table 2"),
)


def table_1() -> pd.DataFrame:
    """Table 1: GPT-2 Small (12 blocks), fine-tuned on synthetic arithmetic, a row per layer that is known.

    ``predictive_information`` is in nats, the early-exit accuracies are fractions, NaN where they are not known. The
    paper says that layers 1 to 6 have accuracy 0.
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


def claims() -> pd.DataFrame:
    """The nine claims: ``id`` (C1 to C9), short ``name``, ``statement``, and ``evidence``, figures and tables."""
    rows = [(f"C{number}", *claim) for number, claim in enumerate(_CLAIMS, 1)]
    return pd.DataFrame(rows, columns=["id", "name", "statement", "evidence"])
