"""What the paper claims and reports, each number with its table or figure (arXiv 2507.05387, in our own words).

Everything is as in version 6, except where "version 5" is said: that was read from a public review page of version 5.
"""

import math

import pandas as pd

TITLE = "The Generalization Ridge: Information Flow in Natural Language Generation"
ARXIV = "2507.05387"

#: Seeds of the subsamples that the bands are over (version 5 and version 6).
SAMPLING_SEEDS = (0, 1, 2, 3, 42)
#: Half-width of the bands of information curves, in standard deviations (version 5 and version 6).
INFORMATION_SIGMAS = 2.0
#: Half-width of the bands of residual scales, in standard deviations (version 5 and version 6).
SCALE_SIGMAS = 1.0
#: Fewest and most examples per estimate (reviews, Appendix C).
EXAMPLES_PER_ESTIMATE = (50, 200)

#: Number of blocks of the model in Table 1, GPT-2 Small.
TABLE_1_BLOCKS = 12
#: Number of blocks of the model in Table 2, Qwen-2.5 0.5B.
TABLE_2_BLOCKS = 24
#: Decoding steps of Section 5.
DECODING_STEPS = 50


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


def table_2() -> pd.DataFrame:
    """Table 2: attention of the last token in Qwen-2.5 0.5B (24 blocks), fine-tuned on ECQA.

    Returns:
        One row per layer that is known, with ``layer``, ``signal_attention`` and ``last_token_attention`` (shares of
        attention); NaN where the value is not known.
    """
    return pd.DataFrame(
        [(17, 0.2307, math.nan), (24, 0.0104, 0.2169)],
        columns=["layer", "signal_attention", "last_token_attention"],
    )


def figure_3() -> pd.DataFrame:
    """Figure 3: GPT-2 cut to its first blocks and fine-tuned; whether a peak is seen at the two depths named.

    Returns:
        Two rows with ``blocks`` and ``has_peak``; a peak begins at the second depth and is there at greater ones.
    """
    return pd.DataFrame([(8, False), (9, True)], columns=["blocks", "has_peak"])


def claims() -> pd.DataFrame:
    """The nine claims: ``id`` (C1 to C9), short ``name``, ``statement``, and ``evidence``, figures and tables."""
    return pd.DataFrame(
        [
            (
                "C1",
                "peak",
                "I(Z; Y) peaks at an intermediate layer and falls at the end",
                "Figures 2, 8 (version 5), Table 1",
            ),
            ("C2", "generalisation", "The peak is where features generalise best", "Table 1"),
            ("C3", "memorisation", "The last layers memorise", "inferred from Table 1"),
            ("C4", "gain per block", "Middle blocks add the most information", "Figures 5 and 9"),
            (
                "C5",
                "residual scaling",
                "Residual scaling shows that the ridge layers matter under shift",
                "Figures 6 and 10, Table 5",
            ),
            ("C6", "decoding steps", "The profile persists over decoding steps", "Section 5"),
            ("C7", "depth", "The ridge needs depth: it appears from a threshold number of blocks on", "Figure 3"),
            ("C8", "overfitting", "Under overfitting, information rises in the final layers", "Figure 4"),
            (
                "C9",
                "attention",
                "Ridge layers attend to signal tokens, the final layers to positions",
                "Figure 7, Table 2",
            ),
        ],
        columns=["id", "name", "statement", "evidence"],
    )
