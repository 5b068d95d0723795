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

#: Number of blocks of the model in Table 1.
TABLE_1_BLOCKS = 12
#: Number of blocks of the model in Table 2, Qwen-2.5 0.5B.
TABLE_2_BLOCKS = 24
#: Decoding steps of Section 5.
DECODING_STEPS = 50

#: What is known of the figures and tables whose values are not, by their name.
IN_WORDS = {
    "Figures 2 and 8 of version 5": "one curve per epoch for all models and data sets, with a peak before the last "
    "layers; for synthetic arithmetic with Llama, too simple a task for the model, the caption of Figure 8 reports an "
    "overfitting regime, in which the curve keeps rising",
    "Figure 4": "Llama-3.1 8B on ECQA, trained past its optimum: information rises in the final layers",
    "Figures 5 and 9": "the gain per block is largest in middle blocks and small or harmful at the end",
    "Figures 6 and 10": "residual scales fitted on OOD data fall in the final layer",
    "Figure 8 of version 6": "Laplacian and polynomial kernels change the size of the information, not its trend; the "
    "bandwidth is never varied (Appendix E)",
    "Figure 7": "ridge layers look at signal tokens, the last layers at positions (GPT-2 Small, synthetic arithmetic)",
    "Table 5": "OOD accuracy improves when the scales are fitted on OOD data; its values are not known here",
    "Section 5": "the level of information grows with the decoding step, and its shape over the layers stays "
    "(untouched Qwen-2.5 0.5B and Llama-3.1 8B, CNN/DailyMail)",
}


def models() -> pd.DataFrame:
    """Section 4: the models that the paper measures, fine-tuned on each task (untouched in Section 5).

    Returns:
        One row per model with ``model``, ``parameters`` (as the paper counts them) and ``blocks``.
    """
    return pd.DataFrame(
        [
            ("GPT-2 Small", 117_000_000, 12),
            ("GPT-2 Medium", 345_000_000, 24),
            ("Qwen-2.5 0.5B", 500_000_000, 24),
            ("Llama-3.1 8B", 8_000_000_000, 32),
        ],
        columns=["model", "parameters", "blocks"],
    )


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
        One row per layer that is known, the peak of attention to the signal and the last layer, with ``layer``,
        ``signal_attention`` and ``last_token_attention`` (to the last token itself); NaN where the value is not known.
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
    """The nine claims, with the evidence that the paper gives for each and what that evidence shows.

    Returns:
        One row per claim with ``id`` (C1 to C9), ``statement``, ``evidence`` (the figures and tables) and ``shown``
        (what they show, with the numbers that are known).
    """
    table = table_1().set_index("layer")
    information = table["predictive_information"]
    ridge, last = int(information.idxmax()), TABLE_1_BLOCKS
    ood = table["accuracy_ood"]
    small = "GPT-2 Small, synthetic arithmetic"
    attention = table_2().set_index("layer")
    peak = int(attention["signal_attention"].idxmax())
    end = attention.loc[TABLE_2_BLOCKS]
    cut = figure_3().set_index("has_peak")["blocks"]
    rows = [
        (
            "C1",
            "$I(Z_l; Y)$ peaks at an intermediate layer and falls at the end.",
            "Figures 2 and 8 of version 5, Table 1",
            f"{small}: {information[ridge]:.4f} nats at layer {ridge} of {last}, {information[last]:.4f} at the last "
            f"(Table 1); {IN_WORDS['Figures 2 and 8 of version 5']} (Figures 2 and 8 of version 5)",
        ),
        (
            "C2",
            "The peak is where features generalise best.",
            "Table 1 alone: one model, one synthetic task",
            f"{small}: of the layers that are known, OOD early-exit accuracy is highest at layer {ood.idxmax()}, "
            f"{_percent(ood.max())} %, where information peaks, and {_percent(ood[last])} % at the last (Table 1)",
        ),
        (
            "C3",
            "The last layers memorise.",
            "inferred from Table 1: ID accuracy rises while OOD accuracy and information fall",
            f"{small}: from layer {ridge} to layer {last}, ID early-exit accuracy rises from "
            f"{_percent(table.loc[ridge, 'accuracy_id'])} to {_percent(table.loc[last, 'accuracy_id'])} %, OOD "
            f"accuracy falls from {_percent(ood[ridge])} to {_percent(ood[last])} %, and information from "
            f"{information[ridge]:.4f} to {information[last]:.4f} nats (Table 1)",
        ),
        (
            "C4",
            "Middle blocks add the most information.",
            "Figures 5 and 9",
            f"{IN_WORDS['Figures 5 and 9']} (Figures 5 and 9)",
        ),
        (
            "C5",
            "Residual scaling shows that the ridge layers matter under shift.",
            "Figures 6 and 10, Table 5",
            f"{IN_WORDS['Figures 6 and 10']} (Figures 6 and 10); {IN_WORDS['Table 5']} (Table 5)",
        ),
        (
            "C6",
            "The profile persists over decoding steps.",
            "Section 5",
            f"over {DECODING_STEPS} steps, {IN_WORDS['Section 5']}",
        ),
        (
            "C7",
            "The ridge needs depth: it appears from a threshold number of blocks on.",
            "Figure 3",
            f"GPT-2 cut and fine-tuned: no peak at {cut[False]} blocks, from {cut[True]} on a peak begins (Figure 3)",
        ),
        (
            "C8",
            "Under overfitting, information rises in the final layers.",
            "Figure 4",
            f"{IN_WORDS['Figure 4']} (Figure 4)",
        ),
        (
            "C9",
            "Ridge layers attend to signal tokens, the final layers to positions.",
            "Figure 7, Table 2",
            f"Qwen-2.5 0.5B, ECQA: attention to the signal is {attention.loc[peak, 'signal_attention']:.4f} at layer "
            f"{peak} of {TABLE_2_BLOCKS} and {end['signal_attention']:.4f} at the last, where the last token itself "
            f"gets {end['last_token_attention']:.4f} (Table 2); {IN_WORDS['Figure 7']} (Figure 7)",
        ),
    ]
    return pd.DataFrame(rows, columns=["id", "statement", "evidence", "shown"])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
