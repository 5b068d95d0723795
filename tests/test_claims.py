"""The rules of agreement, each on planted tables where the truth is known, in both directions."""

import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from ridge_utils import paper, results
from ridge_utils.audit import claims
from ridge_utils.errors import InputError

SEEDS = range(5)
RIDGED = [0.0, 0.2, 0.4, 0.9, 0.5, 0.3, 0.2]
RISING = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
FALLING = RISING[::-1]
FLAT = [0.3] * 7


def rows(values, quantity="predictive_information", *, split="all", step=0, train_seed=None, seeds=SEEDS, noise=0.0,
         first=0, norm=None, model="m", decoding_step=None, n=200):  # fmt: skip
    """A value per layer from ``first`` on, for each sampling seed, with noise that is the same on every machine."""
    generator = np.random.default_rng(7)
    sites = [(layer, "block" if layer else "embedding") for layer in range(first, first + len(values))]
    if norm is not None:
        sites.append((sites[-1][0], "final_norm"))
    context = {"model": model, "task": "t", "source": "own", "split": split, "step": step, "train_seed": train_seed}
    every = [*values, *([] if norm is None else [norm])]
    return pd.concat(
        [
            results.measurements(
                list(np.array(every) + noise * generator.standard_normal(len(every))), sites, quantity,
                **context, sample_seed=seed, n=n, decoding_step=decoding_step,
            )
            for seed in seeds
        ],
        ignore_index=True,
    )  # fmt: skip


def accuracy(values, split, **more):
    return rows(values, "early_exit_accuracy", split=split, seeds=[None], **more)


def table(*parts):
    return pd.concat(parts, ignore_index=True)


def found(verdicts):
    return [verdict.agrees for verdict in verdicts]


# C1


def test_c1_a_ridge_is_found_with_its_numbers():
    (verdict,) = claims.peak(rows(RIDGED, noise=0.01))
    assert verdict.agrees == "yes"
    assert verdict.when == "untouched"
    assert verdict.why == ""
    place, top, end = re.fullmatch(
        r"largest at layer (\d) of 6: (\S+) nats; (\S+) at the last block \(fall .* ± .*\)", verdict.ours
    ).groups()
    assert place == "3"
    assert float(top) == pytest.approx(0.9, abs=0.02)
    assert float(end) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("values", [RISING, FALLING, FLAT])
def test_c1_other_shapes_are_none(values):
    assert found(claims.peak(rows(values))) == ["no"]
    assert found(claims.peak(rows(values, noise=0.01))) == ["no"]


def test_c1_a_fall_counts_only_beyond_the_band():
    small = [0.0, 0.1, 0.2, 0.31, 0.3, 0.3, 0.3]
    assert found(claims.peak(rows(small, noise=0.001))) == ["yes"]
    assert found(claims.peak(rows(small, noise=0.1))) == ["no"]


def test_c1_says_what_the_data_show_of_the_reason():
    untouched, tuned = rows(RIDGED, norm=0.1), rows(RISING, step=8, train_seed=0, norm=0.55)
    first, last = claims.peak(table(tuned, untouched))
    assert (first.agrees, first.why) == ("yes", "")
    assert last.when == "step 8, the last"
    assert last.why == "Earlier checkpoints have a peak (untouched)."
    (lower,) = claims.peak(rows(RISING, norm=0.1))
    assert "taken after the final norm (0.100 nats, a fall of 0.400 ± 0.000 from layer 5)" in lower.why
    assert lower.why.endswith("which of the two the paper takes is open.")
    assert claims.peak(rows(RISING, norm=0.7))[0].why == ""
    assert claims.peak(rows(FALLING))[0].why == "It is largest before the first block."


def test_c1_judges_id_and_ood_together_and_nothing_else():
    assert claims.peak(rows(RIDGED, split="id")) == []
    assert found(claims.peak(table(rows(RIDGED, split="id"), rows(RISING)))) == ["no"]


# C2


@pytest.mark.parametrize(
    ("information", "accuracies", "agrees"),
    [
        (RIDGED, [0, 0, 0.2, 0.8, 0.5, 0.4, 0.3], "yes"),
        (RIDGED, [0, 0, 0.2, 0.5, 0.8, 0.4, 0.3], "yes"),
        (RIDGED, [0, 0, 0.1, 0.2, 0.3, 0.5, 0.8], "no"),
        (RIDGED, [0.8, 0, 0, 0, 0, 0, 0], "no"),
        (RIDGED, [0, 0, 0.1, 0.50, 0.5, 0.5, 0.51], "partly"),
        (RISING, [0, 0, 0.1, 0.2, 0.3, 0.5, 0.8], "partly"),
        (RISING, [0, 0, 0.8, 0.2, 0.2, 0.2, 0.2], "no"),
        (RIDGED, [0.4, 0, 0, 0.4, 0, 0, 0.4], "yes"),
        (RIDGED, [0] * 7, "not measured"),
    ],
)
def test_c2_compares_the_best_early_exit_with_the_ridge(information, accuracies, agrees):
    given = table(rows(information, split="ood"), accuracy(accuracies, "ood"))
    (verdict,) = claims.generalisation(given)
    assert verdict.agrees == agrees
    if agrees == "no":
        assert f"information is largest at layer {np.argmax(information)} of 6" in verdict.ours
        assert f"accuracy at layer {np.argmax(accuracies)} ({100 * max(accuracies):.1f} %" in verdict.ours


def test_c2_more_examples_tell_what_fewer_cannot():
    accuracies = [0, 0, 0.1, 0.50, 0.5, 0.5, 0.53]
    for n, agrees in ((200, "partly"), (20000, "no")):
        given = table(rows(RIDGED, split="ood"), accuracy(accuracies, "ood", n=n))
        assert found(claims.generalisation(given)) == [agrees]


def test_c2_needs_ood_examples():
    assert claims.generalisation(table(rows(RIDGED, split="id"), accuracy([0.5] * 7, "id"))) == []


# C3


def memorising(information, id_accuracy, ood_accuracy, step, **more):
    return table(
        rows(information, step=step, train_seed=0, **more),
        accuracy(id_accuracy, "id", step=step, train_seed=0),
        accuracy(ood_accuracy, "ood", step=step, train_seed=0),
    )


RISES, FALLS, STAYS = [0, 0, 0.1, 0.3, 0.6, 0.8, 0.9], [0, 0, 0.1, 0.6, 0.4, 0.3, 0.2], [0, 0, 0.1, 0.5, 0.5, 0.5, 0.51]


@pytest.mark.parametrize(
    ("information", "id_accuracy", "ood_accuracy", "agrees"),
    [
        (RIDGED, RISES, FALLS, "yes"),
        (RIDGED, RISES, STAYS, "partly"),
        (RIDGED, RISES, RISES, "partly"),
        (RIDGED, STAYS, FALLS, "no"),
        (RIDGED, FALLS, FALLS, "no"),
        (RISING, RISES, FALLS, "not measured"),
    ],
)
def test_c3_over_the_layers_of_the_last_checkpoint(information, id_accuracy, ood_accuracy, agrees):
    (verdict,) = claims.memorisation(memorising(information, id_accuracy, ood_accuracy, 9))
    assert verdict.agrees == agrees
    assert verdict.when.startswith("step 9, the last, from layer")
    if information is RISING:
        assert verdict.why.startswith("No layer comes after the one with the largest information")


def test_c3_over_the_late_checkpoints_at_the_last_block():
    early = memorising(RIDGED, [0.5] * 7, [0.5] * 7, 4)
    lower = [value * 0.5 for value in RIDGED]
    for information, id_end, ood_end, agrees in (
        (lower, 0.9, 0.2, "yes"),
        (RIDGED, 0.9, 0.2, "partly"),
        (lower, 0.9, 0.49, "partly"),
        (RISING, 0.9, 0.6, "no"),
        (lower, 0.5, 0.2, "no"),
    ):
        late = memorising(information, [id_end] * 7, [ood_end] * 7, 8)
        _, verdict = claims.memorisation(table(early, late))
        assert (verdict.agrees, verdict.when) == (agrees, "last block, from step 4 to 8")
    noisy = table(memorising(RIDGED, [0.5] * 7, [0.5] * 7, 4, noise=0.2), memorising(lower, [0.9] * 7, [0.2] * 7, 8))
    assert claims.memorisation(noisy)[1].why == "Information does not fall beyond the noise."


def test_c3_says_nothing_of_an_untouched_model():
    given = table(rows(RIDGED), accuracy(RISES, "id"), accuracy(FALLS, "ood"))
    assert claims.memorisation(given) == []


# C4


@pytest.mark.parametrize(
    ("values", "noise", "agrees", "why"),
    [
        ([0.1, 0.1, 0.9, 0.9, 0.2, 0.2], 0.01, "yes", ""),
        ([0.9, 0.9, 0.5, 0.5, 0.2, 0.2], 0.01, "no", "The first third gains most."),
        ([0.1, 0.1, 0.5, 0.5, 0.9, 0.9], 0.01, "no", "The last third gains most."),
        ([0.0, 0.0, 0.6, 0.6, 0.5, 0.5], 0.1, "no", "The bands of the middle and the last third overlap."),
        ([0.0, 0.0, 0.6, 0.6, 0.5, 0.5], 0.001, "yes", ""),
    ],
)
def test_c4_compares_thirds_of_the_blocks(values, noise, agrees, why):
    (verdict,) = claims.middle_gain(rows(values, "incremental_information", first=1, noise=noise))
    assert (verdict.agrees, verdict.why) == (agrees, why)


# C5


def scaled(id_scale, ood_scale, before, after, spread=0.0):
    """Fits whose OOD scale and accuracy move by ``spread`` from one seed to the next."""
    parts = [rows([before], "accuracy", split="ood", seeds=[None], first=6, step=5, train_seed=0)]
    for seed in SEEDS:
        moved = spread * (seed - 2)
        for split, last in (("id", id_scale), ("ood", ood_scale + moved)):
            values = [1.0, 1.0, 1.0, 1.0, 1.0, last]
            parts.append(
                rows(values, "residual_scale", split=split, seeds=[seed], first=1, step=5, train_seed=0),
            )
        quantity = "accuracy_scaled_on_ood"
        parts.append(rows([after + moved], quantity, split="ood", seeds=[seed], first=6, step=5, train_seed=0))
    return table(*parts)


@pytest.mark.parametrize(
    ("given", "agrees"),
    [
        (scaled(1.0, 0.6, 0.4, 0.6), "yes"),
        (scaled(1.0, 0.6, 0.4, 0.4), "partly"),
        (scaled(0.6, 1.0, 0.4, 0.6), "partly"),
        (scaled(0.6, 1.0, 0.6, 0.4), "no"),
        (scaled(1.0, 0.9, 0.4, 0.5, spread=0.01), "yes"),
        (scaled(1.0, 0.9, 0.4, 0.5, spread=0.1), "no"),
    ],
)
def test_c5_asks_for_a_lower_last_scale_and_a_better_accuracy(given, agrees):
    (verdict,) = claims.scaling(given)
    assert verdict.agrees == agrees
    assert verdict.when == "step 5, the last"
    assert "over 5 pairs of fits" in verdict.ours
    assert bool(verdict.why) == (agrees != "yes")


# C6


def over_steps(profiles, kernel="all", text="generated"):
    quantity = f"sequence_information_{kernel}_{text}"
    return table(*(rows(values, quantity, decoding_step=t, first=1) for t, values in profiles.items()))


def times(values, factor):
    return [value * factor for value in values]


SHAPE = [0.1, 0.2, 0.4, 0.3, 0.25]


@pytest.mark.parametrize(
    ("profiles", "agrees"),
    [
        ({1: SHAPE, 5: times(SHAPE, 2), 9: times(SHAPE, 3)}, "yes"),
        ({1: times(SHAPE, 3), 5: times(SHAPE, 2), 9: SHAPE}, "partly"),
        ({1: SHAPE, 5: times(SHAPE, 3), 9: times(SHAPE, 2)}, "partly"),
        ({1: SHAPE[::-1], 9: times([0.1, 0.2, 0.3, 0.4, 0.5], 3)}, "partly"),
        ({1: times([0.1, 0.2, 0.3, 0.4, 0.5], 3), 9: [0.05, 0.04, 0.03, 0.02, 0.01]}, "no"),
        ({1: [0.1] * 5, 9: times(SHAPE, 3)}, "partly"),
    ],
)
def test_c6_asks_for_a_growing_level_and_the_same_shape(profiles, agrees):
    (verdict,) = claims.decoding(over_steps(profiles))
    assert verdict.agrees == agrees
    assert verdict.when == "untouched, generated text, kernel over all pairs of steps"


def test_c6_names_the_other_reading_of_the_kernel_where_that_one_agrees():
    grows, shrinks = {1: SHAPE, 9: times(SHAPE, 2)}, {1: times(SHAPE, 2), 9: SHAPE}
    given = table(over_steps(shrinks), over_steps(grows, "aligned"), over_steps(shrinks, "aligned", "reference"))
    verdicts = {verdict.when: verdict for verdict in claims.decoding(given)}
    assert len(verdicts) == 3
    other = "It agrees with the kernel over the same steps only: the paper's words fit both."
    assert verdicts["untouched, generated text, kernel over all pairs of steps"].why.endswith(other)
    assert other not in verdicts["untouched, reference text, kernel over the same steps only"].why


def test_c6_needs_two_numbers_of_steps():
    assert claims.decoding(over_steps({1: SHAPE})) == []


# C7


def cut(peaks, step):
    """Models of several depths, with a peak or without."""
    parts = []
    for blocks, has_peak in peaks.items():
        values = [0.1 * layer for layer in range(blocks + 1)]
        if has_peak:
            values[-1] = 0.0
        parts.append(rows(values, step=step, train_seed=0 if step else None, model=f"m[:{blocks}]", noise=0.001))
    return table(*parts)


@pytest.mark.parametrize(
    ("peaks", "agrees"),
    [
        ({4: False, 6: False, 9: True, 12: True}, "yes"),
        ({12: True, 4: False}, "yes"),
        ({4: False, 6: True, 9: False, 12: True}, "partly"),
        ({4: True, 6: True, 9: True}, "no"),
        ({4: False, 6: False}, "no"),
        ({4: True, 6: False}, "no"),
        ({4: True, 6: False, 9: True}, "no"),
    ],
)
def test_c7_asks_for_a_threshold_of_depth(peaks, agrees):
    (verdict,) = claims.depth(cut(peaks, step=3))
    assert (verdict.agrees, verdict.when) == (agrees, "fine-tuned")
    assert bool(verdict.why) == (agrees != "yes")
    for blocks, has_peak in peaks.items():
        assert f"{'' if has_peak else 'no '}peak at {blocks}" in verdict.ours


def test_c7_judges_fine_tuned_models_alone():
    given = table(cut({4: False, 9: True}, 0), cut({4: True, 9: True}, 3), cut({4: False, 9: True}, 1))
    (tuned,) = claims.depth(given)
    assert (tuned.when, tuned.agrees) == ("fine-tuned", "no"), "the last checkpoint counts"
    assert claims.depth(cut({4: False}, 3)) == []
    assert claims.depth(cut({4: False, 9: True}, 0)) == []


# C8


def trained(losses, ends, noise=0.0):
    """Checkpoints with an ID loss, and information at the last block on ID and OOD examples."""
    parts = []
    for step, loss in losses.items():
        seed = 0 if step else None
        for split in ("train", "id", "ood"):
            parts.append(rows([loss], "loss", split=split, seeds=[None], first=6, step=step, train_seed=seed))
        for split, end in zip(("id", "ood"), ends[step], strict=True):
            values = [*RIDGED[:-1], end]
            parts.append(rows(values, split=split, step=step, train_seed=seed, noise=noise * (step + 1)))
    return table(*parts)


LOSSES = {0: 3.0, 5: 1.0, 10: 2.0}


@pytest.mark.parametrize(
    ("losses", "ends", "noise", "agrees"),
    [
        (LOSSES, {0: (0, 0), 5: (0.2, 0.2), 10: (0.4, 0.5)}, 0, "yes"),
        (LOSSES, {0: (0, 0), 5: (0.2, 0.5), 10: (0.4, 0.2)}, 0, "partly"),
        (LOSSES, {0: (0, 0), 5: (0.4, 0.5), 10: (0.2, 0.2)}, 0, "no"),
        (LOSSES, {0: (0, 0), 5: (0.2, 0.2), 10: (0.5, 0.5)}, 0.05, "no"),
        ({0: 1.0, 5: 2.0, 10: 3.0}, {0: (0.1, 0.1), 5: (0.9, 0.9), 10: (0.5, 0.5)}, 0, "not measured"),
        ({0: 3.0, 5: 2.0, 10: 1.0}, {0: (0, 0), 5: (0.2, 0.2), 10: (0.4, 0.5)}, 0, "not measured"),
    ],
)
def test_c8_asks_for_a_rise_after_the_optimum(losses, ends, noise, agrees):
    (verdict,) = claims.overfitting(trained(losses, ends, noise))
    assert verdict.agrees == agrees
    assert verdict.when == f"from step {min(losses, key=losses.get)} to 10"


# C9


def attending(signal, itself, noise=0.0, split="ood"):
    return table(
        rows(signal, "signal_after_first_attention", split=split, first=1, noise=noise),
        rows([0.1] * (len(signal) - 1) + [itself], "last_token_attention", split=split, first=1),
        rows([0.6] * len(signal), "first_token_attention", split=split, first=1),
    )


@pytest.mark.parametrize(
    ("signal", "itself", "noise", "agrees"),
    [
        ([0.1, 0.3, 0.2, 0.05], 0.2, 0, "yes"),
        ([0.1, 0.3, 0.2, 0.05], 0.01, 0, "partly"),
        ([0.1, 0.2, 0.3, 0.4], 0.5, 0, "partly"),
        ([0.1, 0.2, 0.3, 0.4], 0.1, 0, "no"),
        ([0.1, 0.30, 0.29, 0.29], 0.9, 0.1, "partly"),
        ([0.1, 0.3, 0.2, 0.1], 0.11, 0.1, "no"),
    ],
)
def test_c9_asks_for_a_fall_and_for_more_attention_to_the_last_token(signal, itself, noise, agrees):
    (verdict,) = claims.attention(attending(signal, itself, noise))
    assert (verdict.agrees, verdict.when) == (agrees, "untouched, OOD")
    assert ("The first token, another position, gets 0.600 there." in verdict.why) == (itself in (0.01, 0.1, 0.11))


@pytest.mark.parametrize(
    ("signal", "chance", "why"),
    [
        ([0.5, 0.3, 0.2, 0.05], 0.1, "largest in the first third"),
        ([0.1, 0.3, 0.2, 0.05], 0.4, "Uniform attention would give the signal 0.400"),
    ],
)
def test_c9_asks_for_a_late_peak_above_chance(signal, chance, why):
    uniform = rows([chance] * 4, "chance_attention", split="ood", first=1)
    (verdict,) = claims.attention(table(attending(signal, 0.2), uniform))
    assert verdict.agrees == "partly"
    assert why in verdict.why


# All of them


def planted():
    """A ridge for one model and none for another, and only some notebooks."""
    ridged = table(rows(RIDGED), rows(RIDGED, split="ood"), accuracy([0, 0, 0.2, 0.8, 0.5, 0.4, 0.3], "ood"))
    rising = rows(RISING, model="other")
    truncated = cut({4: False, 9: True}, 2)
    return {
        "predictive_information": {"a": ridged, "b": rising},
        "truncation": {"a": truncated},
        "reproducibility": {"a": rising.assign(model="a stranger")},
    }


def test_every_claim_has_a_row_for_every_model_and_task():
    frame = claims.compare(planted())
    assert tuple(frame.columns) == claims.COLUMNS
    pairs = {(claim, model) for claim in claims.RULES for model in ("m", "other")}
    assert set(zip(frame["claim"], frame["model"], strict=True)) == pairs
    agrees = frame.set_index(["claim", "model"])["agrees"].to_dict()
    measured = {key: verdict for key, verdict in agrees.items() if verdict != "not measured"}
    assert measured == {("C1", "m"): "yes", ("C1", "other"): "no", ("C2", "m"): "yes", ("C7", "m"): "yes"}
    shown = paper.claims().set_index("id")["shown"]
    assert all(row.paper == shown[row.claim] for row in frame.itertuples())
    assert frame["page"].tolist() == [claims.RULES[claim][0] for claim in frame["claim"]]


def test_no_tables_at_all_leave_nine_claims_unmeasured():
    frame = claims.compare({})
    assert frame["claim"].tolist() == list(claims.RULES) == paper.claims()["id"].tolist()
    assert set(frame["agrees"]) == {"not measured"}
    assert claims.verdict_lines(frame).splitlines()[0] == "C1: not measured"
    assert claims.summary(frame).to_numpy().sum() == 0
    assert "not measured" in claims.claim_text(frame, "C1").lower()
    assert claims.scope(frame).endswith("none of which is measured here. No reference run is stored yet.")


def test_summary_and_lines_count_the_verdicts():
    frame = claims.compare(planted())
    counts = claims.summary(frame)
    assert counts.loc["C1", ("m", "t", "yes")] == 1
    assert counts.loc["C1", ("other", "t", "no")] == 1
    assert counts.loc["C4"].sum() == 0
    assert counts.to_numpy().sum() == (frame["agrees"] != "not measured").sum()
    assert claims.verdict_lines(frame).splitlines()[:4] == [
        "C1: 1 yes, 0 partly, 1 no",
        "C2: 1 yes, 0 partly, 0 no",
        "C3: not measured",
        "C4: not measured",
    ]


def test_the_page_names_what_was_not_measured_and_the_rule_with_its_thresholds():
    frame = claims.compare(planted())
    text = claims.claim_text(frame, "C2")
    assert "**Not measured:** other, t." in text
    assert f"at most {claims.LAYERS_APART}." in text
    assert "Table 1 alone" in text
    assert "(predictive_information.ipynb)" in text
    assert all(":data:" not in claims.rule(claim) for claim in claims.RULES)
    assert f"at least {claims.SAME_SHAPE}" in claims.rule("C6")
    assert "Not measured" not in claims.claim_text(frame, "C1").replace("Not measured where", "")
    html = claims.claim_table(frame, "C1").to_html()
    assert html.count("<tr>") == 3, "a heading and the two models"


def test_the_papers_models_are_named_as_measured_only_if_they_are():
    text = claims.scope(claims.compare(planted()))
    assert text.endswith("none of which is measured here. The models measured here: m, other.")
    own = {"predictive_information": {"x": rows(RIDGED, model="gpt2")}}
    text = claims.scope(claims.compare(own))
    assert "GPT-2 Small (12 blocks, measured here)" in text
    assert "none of which" not in text
    assert text.count("measured here)") == 1


def test_the_figure_has_a_word_in_every_cell():
    mpl.use("agg")
    figure = claims.claims_figure(claims.compare(planted()))
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == list(claims.RULES)
    texts = [text.get_text() for text in ax.texts]
    assert len(texts) == 2 * len(claims.RULES)
    assert texts[:2] == ["1 yes", "1 no"]
    assert len({patch.get_facecolor() for patch in ax.patches}) == 3, "yes, no, and not measured"
    assert claims.claims_figure(claims.compare({})).axes


def test_claims_to_show_are_checked():
    assert claims.chosen([]) == list(claims.RULES)
    assert claims.chosen(["C3", "C1"]) == ["C1", "C3"]
    with pytest.raises(InputError, match="no claim 'C10'; claims_shown may name C1, C2"):
        claims.chosen(["C10"])


# The paper's numbers


def test_the_papers_other_numbers_are_the_papers():
    assert paper.models().set_index("model")["blocks"].to_dict() == {
        "GPT-2 Small": 12, "GPT-2 Medium": 24, "Qwen-2.5 0.5B": 24, "Llama-3.1 8B": 32,
    }  # fmt: skip
    attention = paper.table_2().set_index("layer")
    assert attention["signal_attention"].to_dict() == {17: 0.2307, 24: 0.0104}
    assert attention.loc[24, "last_token_attention"] == 0.2169
    assert paper.figure_3().set_index("blocks")["has_peak"].to_dict() == {8: False, 9: True}
    assert (paper.DECODING_STEPS, paper.SAMPLING_SEEDS) == (50, (0, 1, 2, 3, 42))
    assert (paper.INFORMATION_SIGMAS, paper.SCALE_SIGMAS) == (2, 1)
    assert paper.EXAMPLES_PER_ESTIMATE == (50, 200)


def test_what_the_claims_show_is_computed_from_the_papers_tables():
    shown = paper.claims().set_index("id")["shown"]
    assert "0.2721 nats at layer 10 of 12, 0.0188 at the last (Table 1)" in shown["C1"]
    assert "layer 10, 56.90 %, where information peaks, and 50.00 % at the last" in shown["C2"]
    assert "from 53.40 to 93.17 %, OOD accuracy falls from 56.90 to 50.00 %" in shown["C3"]
    assert "over 50 steps" in shown["C6"]
    assert "no peak at 8 blocks, from 9 on" in shown["C7"]
    assert "0.2307 at layer 17 of 24 and 0.0104 at the last, where the last token itself gets 0.2169" in shown["C9"]
