"""What reports and statistics say of small planted tables whose truth is known by hand."""

import itertools
import math

import pandas as pd
import pytest

from ridge_utils import inference, reports, results, statistics

CONTEXT = {
    "model": "m", "task": "t", "source": "own", "split": "all", "step": 0, "train_seed": None, "sample_seed": 0, "n": 9,
}  # fmt: skip
PI, GAIN = "predictive_information", "incremental_information"


def body(values, quantity=PI, **changes):
    """A profile over embedding and blocks, without the state after the final norm."""
    return results.measurements(values, results.sites(len(values) - 1, False), quantity, **(CONTEXT | changes))


def whole(values, quantity=PI, **changes):
    """A profile over embedding, blocks and final norm."""
    return results.measurements(values, results.sites(len(values) - 2), quantity, **(CONTEXT | changes))


def blocks(values, quantity=GAIN, **changes):
    """One value per block."""
    sites = results.sites(len(values), False)[1:]
    return results.measurements(values, sites, quantity, **(CONTEXT | changes))


def end(value, quantity, layer=2, **changes):
    """One value of the whole model."""
    return results.measurements([value], [(layer, "final_norm")], quantity, **(CONTEXT | changes))


def joined(*tables):
    return pd.concat(tables, ignore_index=True)


def shown(styler):
    """What a table for people shows, row by row."""
    return styler.data.astype(str).to_dict("records")


# ridge_summary and by_third.


def test_a_planted_peak_is_found_with_its_fall():
    tables = [
        whole([0, 0.1, 0.2, 0.5 + s, 0.4 + s, 0.3 + s, 0.05], sample_seed=i) for i, s in enumerate((0, 0.01, 0.02))
    ]
    (row,) = statistics.ridge_summary(joined(*tables)).to_dict("records")
    assert (row["ridge_layer"], row["blocks"], row["step"], row["split"]) == (3, 5, 0, "all")
    assert row["at_ridge"] == pytest.approx(0.51)
    assert row["at_last_block"] == pytest.approx(0.31)
    assert row["to_last_block"] == pytest.approx(0.2)
    assert row["to_last_block_half_width"] == pytest.approx(0, abs=1e-12)
    assert row["to_last_block_beyond_band"]
    assert row["to_final_norm"] == pytest.approx(0.46)
    assert row["to_final_norm_half_width"] == pytest.approx(0.02), "two standard deviations of 0.45, 0.46, 0.47"


def test_falls_are_taken_within_a_training_seed():
    """Levels that differ between training seeds cancel; what is left of the fall is its band."""
    falls = {(0, 0): 0.1, (0, 1): 0.2, (7, 0): 0.3, (7, 1): 0.4}
    tables = [
        body([0, 1 + 10 * train, 1 + 10 * train - fall], train_seed=train, sample_seed=sample, step=5)
        for (train, sample), fall in falls.items()
    ]
    (row,) = statistics.ridge_summary(joined(*tables)).to_dict("records")
    assert row["ridge_layer"] == 1
    assert row["to_last_block"] == pytest.approx(0.25)
    assert row["to_last_block_half_width"] == pytest.approx(2 * pd.Series(falls).std())
    assert not row["to_last_block_beyond_band"]


def test_the_untouched_model_stands_beside_several_training_seeds():
    untouched = body([0, 0.4, 0.3], train_seed=None)
    trained = [body([0, 0.1, 0.5], train_seed=seed, step=9) for seed in (0, 1, 2)]
    summary = statistics.ridge_summary(joined(untouched, *trained)).set_index("step")
    assert summary["ridge_layer"].to_dict() == {0: 1, 9: 2}
    assert summary.loc[0, "at_ridge"] == pytest.approx(0.4)
    assert summary.loc[0, "to_last_block_half_width"] == 0, "one seed has no band"


def test_a_quantity_without_a_final_norm_has_nothing_to_say_about_it():
    (row,) = statistics.ridge_summary(blocks([0.1, 0.7, 0.2]), GAIN).to_dict("records")
    assert (row["ridge_layer"], row["blocks"]) == (2, 3)
    assert row["to_last_block"] == pytest.approx(0.5)
    assert math.isnan(row["at_final_norm"])
    assert math.isnan(row["to_final_norm"])
    assert not row["to_final_norm_beyond_band"]


def test_other_quantities_do_not_disturb_a_summary():
    table = joined(body([0, 0.4, 0.3]), blocks([9.0, 8.0]), end(5.0, "loss"))
    assert statistics.ridge_summary(table)["at_ridge"].tolist() == [0.4]


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (3, (1, 1, 1)),
        (4, (1, 2, 1)),
        (5, (2, 1, 2)),
        (6, (2, 2, 2)),
        (7, (2, 3, 2)),
        (12, (4, 4, 4)),
        (30, (10, 10, 10)),
    ],
)
def test_thirds_hold_the_blocks_that_they_should(count, parts):
    values = [10.0] * parts[0] + [100.0] * parts[1] + [1000.0] * parts[2]
    thirds = statistics.by_third(blocks(values), GAIN).set_index("third")["mean"]
    assert thirds.to_dict() == {"first": 10, "middle": 100, "last": 1000}


def test_thirds_leave_out_what_is_no_block():
    thirds = statistics.by_third(whole([9, 1, 2, 3, 9]), PI).set_index("third")["mean"]
    assert thirds.to_dict() == {"first": 1, "middle": 2, "last": 3}


def test_the_band_of_a_third_is_over_all_seeds():
    means = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 4.0, (1, 1): 6.0}
    tables = [
        blocks([m - 0.5, m + 0.5, *[0.0] * 4], train_seed=t, sample_seed=s, step=3) for (t, s), m in means.items()
    ]
    table = joined(*tables, blocks([7.0] * 6))
    rows = statistics.by_third(table, GAIN).set_index(["step", "third"])
    first = rows.loc[(3, "first")]
    assert first["mean"] == pytest.approx(3.25)
    assert first["half_width"] == pytest.approx(2 * pd.Series(means).std())
    assert first["high"] - first["low"] == pytest.approx(2 * first["half_width"])
    assert rows.loc[(0, "last"), "mean"] == 7
    assert rows.loc[(0, "last"), "half_width"] == 0


# Reference runs.


def test_reference_ridges_name_each_run_and_step():
    ridged = joined(*(whole([0, 0.1, 0.5, 0.2 - 0.1 * s, 0.1], sample_seed=s) for s in (0, 1)))
    trained = whole([0, 0.1, 0.2, 0.3, 0.1], step=8, train_seed=0)
    aside = whole([0, 9, 1, 1, 1], split="id")
    rising = whole([0, 0.1, 0.2, 0.1])
    rows = shown(reports.reference_ridges({"one": joined(trained, ridged, aside), "two": rising}))
    assert [(row["run"], row["step"], row["ridge layer"]) for row in rows] == [
        ("one", "0", "2 of 3"),
        ("one", "8", "none: highest at 3"),
        ("two", "0", "none: highest at 2"),
    ]
    assert (rows[0]["I at the ridge"], rows[0]["at the last block"]) == ("0.500", "0.150")
    assert rows[0]["after the final norm"] == "0.100"
    # Falls of 0.3 and 0.4: two standard deviations are sqrt(2) / 10.
    assert rows[0]["fall to the last block"] == "0.350 ± 0.141"


# Incremental information.


@pytest.fixture
def gains():
    untouched = [blocks([0.01, 0.02, 0.30 + s, 0.20, 0.05, 0.04], sample_seed=i) for i, s in enumerate((0, 0.02))]
    trained = [blocks([0.01, 0.01, 0.02, 0.02, 0.10, 0.50], step=40, train_seed=t) for t in (0, 1)]
    aside = [blocks([9.0, *[0.0] * 5], split="id", step=step) for step in (0, 40)]
    profiles = [body([0, 0.1, 0.2, 0.3, 0.3, 0.2, 0.125]), body([0, 0, 0, 0, 0, 0, 0.75], step=40, train_seed=0)]
    return joined(*untouched, *trained, *aside, *profiles)


def test_the_gain_headline_names_block_and_third(gains):
    text = reports.gain_headline(gains, "a model")
    assert text.startswith("In a model, ")
    assert "untouched, block 3 of 6 gains most (0.310 nats), the last block 0.040" in text
    assert "after 40 fine-tuning steps, block 6 of 6 gains most (0.500 nats), the last block 0.500" in text
    first, second = text.split(";")
    assert "the middle third of the blocks has the largest mean" in first
    assert "the last third of the blocks has the largest mean" in second


def test_the_table_of_thirds(gains):
    summary = statistics.ridge_summary(gains, GAIN)
    rows = shown(reports.thirds_table(statistics.by_third(gains, GAIN), summary))
    assert [(row["split"], row["step"]) for row in rows] == [("both", "0"), ("both", "40"), ("ID", "0"), ("ID", "40")]
    # Means of the middle third are 0.25 and 0.26.
    assert rows[0]["middle third"] == f"0.2550 ± {2 * 0.01 / math.sqrt(2):.4f}"
    assert rows[0]["first third"] == "0.0150 ± 0.0000"
    assert (rows[0]["largest block"], rows[0]["its gain"], rows[0]["last block's gain"]) == (
        "3 of 6",
        "0.3100",
        "0.0400",
    )
    assert rows[1]["last third"] == "0.3000 ± 0.0000"
    assert rows[2]["largest block"] == "1 of 6"


def test_the_sum_of_gains_is_set_against_the_last_state(gains):
    text = reports.additivity(gains)
    # 0.01 + 0.02 + 0.31 + 0.20 + 0.05 + 0.04, and 0.01 + 0.01 + 0.02 + 0.02 + 0.10 + 0.50
    assert "ntouched, the gains add up to 0.63 nats where the last block's state has 0.125" in text
    assert "after 40 fine-tuning steps, the gains add up to 0.66 nats where the last block's state has 0.750" in text


# Truncation.


@pytest.fixture
def depths():
    def both(values, model, **changes):
        return [whole([v + 0.01 * s for v in values], model=model, sample_seed=s, **changes) for s in (0, 1)]

    noisy = [whole([0, 0.2 + f, 0.1, 0.1], model="m[:2]", sample_seed=i, step=6) for i, f in enumerate((0.2, -0.2))]
    return joined(
        *both([0, 0.1, 0.3, 0.4, 0.2, 0.1], "m[:4]", step=3, train_seed=0),
        *both([0, 0.1, 0.3, 0.4, 0.2, 0.1], "m[:4]", step=6, train_seed=0),
        *both([0, 0.1, 0.2, 0.3, 0.4, 0.1], "m[:4]"),
        *both([0, 0.1, 0.2, 0.1], "m[:2]"),
        *noisy,
    )


def test_a_peak_lies_before_the_last_block_and_beyond_the_band(depths):
    summary = reports.depth_summary(depths).set_index(["model", "step"])
    assert summary["blocks"].to_dict() == {("m[:4]", s): 4 for s in (0, 3, 6)} | {("m[:2]", s): 2 for s in (0, 6)}
    assert summary["has_peak"].to_dict() == {
        ("m[:4]", 0): False,  # highest at the last block
        ("m[:4]", 3): True,
        ("m[:4]", 6): True,
        ("m[:2]", 0): False,
        ("m[:2]", 6): False,  # the fall of 0.1 is within its band
    }
    assert summary.loc[("m[:2]", 6), "ridge_layer"] == 1
    assert summary.loc[("m[:4]", 6), "to_last_block"] == pytest.approx(0.2)


def test_the_depth_headline_speaks_of_the_cut_and_of_the_last_checkpoint(depths):
    text = reports.depth_headline(reports.depth_summary(depths))
    assert text == (
        "As cut, without fine-tuning, there is no peak at any depth; after fine-tuning, there is a peak before the "
        "last block at 4 blocks, none at 2."
    )
    untouched = reports.depth_summary(depths[depths["step"] == 0])
    assert reports.depth_headline(untouched) == "As cut, without fine-tuning, there is no peak at any depth."


def test_the_depth_headline_lists_depths_in_order():
    models = [body([*range(depth), depth / 2], model=f"m[:{depth}]") for depth in (12, 3, 8)]
    text = reports.depth_headline(reports.depth_summary(joined(*models)))
    assert "a peak before the last block at 3, 8 and 12 blocks." in text
    assert "none" not in text


def test_the_depth_table(depths):
    rows = shown(reports.depth_summary_table(reports.depth_summary(depths)))
    found = [(r["blocks"], r["step"], r["ridge layer"], r["peak"]) for r in rows]
    assert found == [
        ("2", "0", "none: highest at 2", "no"),
        ("4", "0", "none: highest at 4", "no"),
        ("4", "3", "3 of 4", "yes"),
        ("2", "6", "1 of 2", "no"),
        ("4", "6", "3 of 4", "yes"),
    ]
    assert float(rows[2]["I at the ridge"]) == pytest.approx(0.405)
    assert float(rows[2]["fall to the last block"].partition(" ± ")[0]) == pytest.approx(0.2)


# Overfitting.


def overfitted(losses, ends):
    """Losses (train, id, ood) and information at the last of two blocks (id, ood), by step."""
    tables = []
    for (step, (train, inside, outside)), (at_id, at_ood) in zip(losses.items(), ends, strict=True):
        seed = {"step": step, "train_seed": 0 if step else None}
        for split, value in (("train", train), ("id", inside), ("ood", outside)):
            tables.append(end(value, "loss", split=split, sample_seed=None, **seed))
        for split, value in (("id", at_id), ("ood", at_ood)):
            tables.append(whole([0, 0.5, value, 0.1], split=split, **seed))
    return joined(*tables)


@pytest.fixture
def passed():
    """The ID loss is lowest at step 10; then the last block's ID information rises, and its OOD information falls."""
    losses = {0: (4.0, 4.0, 4.5), 10: (1.5, 2.0, 3.0), 20: (0.2, 2.25, 2.9), 30: (0.01, 2.5, 3.5)}
    return overfitted(losses, [(0.1, 0.1), (0.3, 0.4), (0.4, 0.3), (0.6, 0.2)])


def test_the_optimum_is_where_the_id_loss_is_lowest(passed):
    rows = reports.overfitting_summary(passed).set_index("step")
    assert rows["is_optimum"].to_dict() == {0: False, 10: True, 20: False, 30: False}
    assert rows.loc[20, ["loss_train", "loss_id", "loss_ood"]].tolist() == [0.2, 2.25, 2.9]
    assert rows["ridge_layer_id"].tolist() == [1, 1, 1, 2]
    assert rows["ridge_layer_ood"].tolist() == [1, 1, 1, 1]
    assert rows["at_last_block_ood"].tolist() == [0.1, 0.4, 0.3, 0.2]
    assert rows["at_ridge_id"].tolist() == [0.5, 0.5, 0.5, 0.6]
    assert set(rows["blocks"]) == {2}


def test_losses_are_means_over_training_seeds(passed):
    other = passed[passed["step"] > 0].assign(train_seed=1)
    other.loc[other["quantity"] == "loss", "value"] += 1.0
    rows = reports.overfitting_summary(joined(passed, other)).set_index("step")
    assert rows["loss_id"].tolist() == pytest.approx([4.0, 2.5, 2.75, 3.0])


def test_the_overfitting_headline_compares_the_optimum_with_the_end(passed):
    text = reports.overfitting_headline(passed)
    assert "The ID loss is lowest after 10 fine-tuning steps (2.00 nats; training 1.50)" in text
    assert "and 2.50 after 30 fine-tuning steps (training 0.010)" in text
    assert "ID information at the last block rises from 0.300 to 0.600 nats" in text
    assert "OOD information at the last block falls from 0.400 to 0.200 nats" in text
    assert "(at the largest layer from 0.500 to 0.600)" in text


def test_a_run_that_never_passes_its_optimum_cannot_speak():
    still = overfitted({0: (4.0, 4.0, 4.5), 10: (1.5, 2.0, 3.0)}, [(0.1, 0.1), (0.3, 0.4)])
    text = reports.overfitting_headline(still)
    assert text.endswith("the run never passes its optimum, so it cannot speak to the claim.")
    assert "rises" not in text


def test_a_run_that_only_gets_worse_has_its_optimum_untouched():
    worse = overfitted({0: (4.0, 1.0, 4.5), 10: (1.5, 2.0, 3.0)}, [(0.1, 0.1), (0.3, 0.4)])
    assert "The ID loss is lowest untouched (1.00 nats; training 4.00)" in reports.overfitting_headline(worse)


def test_the_overfitting_table_marks_the_optimum(passed):
    rows = shown(reports.overfitting_table(passed))
    assert [row["step"] for row in rows] == ["0", "10 (lowest ID loss)", "20", "30"]
    assert rows[3]["loss, training"] == "0.010"
    assert rows[3]["ridge layer, ID"] == "none: highest at 2"
    assert rows[3]["ridge layer, OOD"] == "1 of 2"
    assert rows[1]["I at the last block, OOD"] == "0.400"


# Residual scaling.


def scaled(fits, untouched=((0.5, 2.0), (0.25, 3.0)), seeds=(0, 1)):
    """Scales by split (one list of six a fit), with accuracy and loss of ID and OOD examples before and after."""
    tables = []
    for split, (accuracy, loss) in zip(("id", "ood"), untouched, strict=True):
        for quantity, value in (("accuracy", accuracy), ("loss", loss)):
            tables.append(end(value, quantity, 6, split=split, sample_seed=None))
    for split, lists in fits.items():
        for seed, scales in zip(seeds, lists, strict=True):
            tables.append(blocks(scales, "residual_scale", split=split, sample_seed=seed))
            for place, other in enumerate(("id", "ood")):
                # Fitted on a split, its own accuracy rises by 0.1; with the second seed, both by 0.02 more.
                accuracy = untouched[place][0] + (0.1 if split == other else 0) + 0.02 * seed
                tables.append(end(accuracy, f"accuracy_scaled_on_{split}", 6, split=other, sample_seed=seed))
                loss = untouched[place][1] - 0.5
                tables.append(end(loss, f"loss_scaled_on_{split}", 6, split=other, sample_seed=seed))
    return joined(*tables)


ID_FITS = [[1.0, 1.0, 1.2, 1.4, 1.0, 0.9], [1.0, 1.0, 1.2, 1.4, 1.0, 1.1]]
OOD_FITS = [[0.9, 1.1, 1.0, 1.0, 0.8, 0.5], [0.9, 1.1, 1.0, 1.0, 0.8, 0.9]]


def test_scales_are_grouped_by_the_place_of_their_blocks():
    rows = reports.scaling_summary(scaled({"id": ID_FITS, "ood": OOD_FITS}))
    assert rows.loc["id", ["last_block", "last_third", "middle_third", "first_third"]].tolist() == pytest.approx(
        [1.0, 1.0, 1.3, 1.0]
    )
    assert rows.loc["ood", ["last_block", "last_third", "middle_third", "first_third"]].tolist() == pytest.approx(
        [0.7, 0.75, 1.0, 1.0]
    )
    assert rows.loc["ood", "last_block_deviation"] == pytest.approx(0.4 / math.sqrt(2))
    assert rows.loc["ood", "last_third_deviation"] == pytest.approx(0.2 / math.sqrt(2))
    assert rows.loc["ood", "middle_third_deviation"] == pytest.approx(0)


def test_the_spread_of_scales_is_over_training_seeds_too():
    one, two = (
        scaled({"id": ID_FITS[:1], "ood": OOD_FITS[:1]}, seeds=(0,)).assign(train_seed=seed, step=5) for seed in (0, 1)
    )
    two.loc[two["quantity"] == "residual_scale", "value"] += 0.2
    rows = reports.scaling_summary(joined(one, two))
    assert rows.loc["id", "last_block"] == pytest.approx(1.0)
    assert rows.loc["id", "last_block_deviation"] == pytest.approx(0.2 / math.sqrt(2))


def test_effects_of_scaling():
    effects = reports.scaling_effects(scaled({"id": ID_FITS, "ood": OOD_FITS}))
    assert effects.loc["ood", "accuracy"] == 0.25
    assert effects.loc["ood", "accuracy_scaled_on_ood"] == pytest.approx(0.36)
    assert effects.loc["ood", "accuracy_scaled_on_id"] == pytest.approx(0.26)
    assert effects.loc["ood", "accuracy_scaled_on_ood_deviation"] == pytest.approx(0.02 / math.sqrt(2))
    assert effects.loc["id", "loss_scaled_on_ood"] == pytest.approx(1.5)


def test_the_scaling_headline_pairs_the_fits():
    text = reports.scaling_headline(scaled({"id": ID_FITS, "ood": OOD_FITS}))
    # The last block's factor differs by -0.4 with the first seed and -0.2 with the second.
    assert "factor is 1.000 when fitted on ID and 0.700 when fitted on OOD data" in text
    assert f"(difference -0.300 ± {0.2 / math.sqrt(2):.3f}, 1σ over 2 pairs of fits)" in text
    assert "the last third of the blocks has a mean of 1.000 and 0.750, the middle third of 1.300 and 1.000" in text
    assert (
        "OOD accuracy is 25.0 % untouched, 36.0 % with the factors fitted on OOD and 26.0 % with those fitted" in text
    )


def test_the_scaling_table():
    rows = shown(reports.scaling_table(scaled({"id": ID_FITS, "ood": OOD_FITS})))
    assert [row["factors"] for row in rows] == ["all factors 1", "fitted on ID", "fitted on OOD"]
    assert (rows[0]["ID accuracy %"], rows[0]["ID loss"]) == ("50.0", "2.000")
    assert rows[1]["ID accuracy %"] == f"61.0 ± {2 / math.sqrt(2):.1f}"
    assert rows[2]["ID accuracy %"] == f"51.0 ± {2 / math.sqrt(2):.1f}"
    assert rows[2]["OOD loss"] == "2.500 ± 0.000"


def test_one_fit_has_no_spread():
    table = scaled({"id": ID_FITS[:1], "ood": OOD_FITS[:1]}, seeds=(0,))
    assert "nan" not in reports.scaling_headline(table)
    rows = shown(reports.scaling_table(table))
    assert rows[2]["OOD accuracy %"] == "35.0"
    assert "nan" not in str(rows)


# Attention.


@pytest.fixture
def attention():
    """Attention to the signal peaks at block 2 of 4; with the first token it would be block 3."""
    tables = []
    for step in (0, 12):
        for seed, more in ((0, 0.0), (1, 0.02)):
            for split, scale in (("id", 1.0), ("ood", 0.5)):
                own = {"step": step, "sample_seed": seed, "split": split, "train_seed": 0 if step else None}
                peak = 0.6 if step else 0.4
                tables += [
                    blocks([0.1, peak * scale + more, 0.2, 0.05], reports.SIGNAL, **own),
                    blocks([0.2, 0.6, 0.9, 0.3], "signal_attention", **own),
                    blocks([0.1, 0.1, 0.1, 0.7 * scale], "last_token_attention", **own),
                    blocks([0.5, 0.5, 0.5, 0.2], "first_token_attention", **own),
                    blocks([0.25] * 4, "chance_attention", **own),
                ]
    return joined(*tables)


def test_the_attention_headline_speaks_of_the_last_checkpoint(attention):
    text = reports.attention_headline(attention)
    assert text.startswith("After 12 fine-tuning steps, on ID examples attention to the signal")
    assert "peaks at block 2 of 4 (0.610) and is 0.050 in the last block" in text
    assert "peaks at block 2 of 4 (0.310) and is 0.050" in text
    assert "where the last token itself gets 0.700 and the first token 0.200" in text
    assert "where the last token itself gets 0.350" in text
    assert "uniform attention would give the signal 0.250" in text


def test_the_attention_table(attention):
    rows = shown(reports.attention_table(attention, statistics.ridge_summary(attention, reports.SIGNAL)))
    assert [(row["split"], row["step"]) for row in rows] == [("ID", "0"), ("ID", "12"), ("OOD", "0"), ("OOD", "12")]
    assert {row["peak at block"] for row in rows} == {"2 of 4"}
    assert rows[1]["signal at the peak"] == "0.610"
    assert rows[2]["signal at the peak"] == "0.210"
    assert rows[3]["itself in the last block"] == "0.350"
    assert rows[0]["with the first token"] == "0.300"


# Effects.


def test_the_tests_of_attention():
    claimed, against = inference.Effect(0.3, 0.2, 0.4, 0.001, 1.5), inference.Effect(-0.1, -0.2, -0.05, 0.002, -0.5)
    none = inference.Effect(0.01, -0.2, 0.2, 0.9, 0.1)
    tables = []
    for step, seeds in ((0, [None]), (12, [0, 1])):
        for split, seed in itertools.product(("ood", "id"), seeds):
            own = {"split": split, "step": step, "train_seed": seed, "sample_seed": None}
            for quantity, effect in zip(reports.ATTENTION_EFFECTS, (claimed, none, against), strict=True):
                tables.append(inference.effect_rows(effect, (4, "block"), quantity, **(CONTEXT | own)))
    table = joined(*tables)
    said, styled = reports.attention_tests({"a run": table})
    assert said.startswith(
        "Of 12 effects, 4 are beyond their error on the side of the paper's claim, 4 on the other side, and 4 are not"
    )
    rows = shown(styled)
    assert [(row["model"], row["split"]) for row in rows[::3]] == [
        ("untouched", "ID"),
        ("untouched", "OOD"),
        ("after 12 fine-tuning steps", "ID"),
        ("after 12 fine-tuning steps", "OOD"),
    ]
    assert [row["effect"] for row in rows[:3]] == [name for name, _ in reports.ATTENTION_EFFECTS.values()]
    assert (rows[0]["estimate"], rows[0]["interval"], rows[0]["p"]) == ("+0.300", "0.200 to 0.400", "0.012")
    _, both = reports.attention_tests({"b": table, "a": table, "without": body([0, 1])})
    assert [row["run"] for row in shown(both)] == ["b"] * 12 + ["a"] * 12
    assert shown(both)[0]["p"] == "0.024", "one family over all runs"


def test_the_tests_of_scaling_know_which_side_the_claim_is_on():
    shift = inference.Effect(-0.2, -0.3, -0.1, 0.001, -2.0)
    tables = [inference.effect_rows(shift, (6, "block"), "scale_shift", **(CONTEXT | {"split": "ood"}))]
    for split, estimate in (("id", 0.02), ("ood", -0.3)):
        gain = inference.Effect(estimate, estimate - 0.1, estimate + 0.1, 0.001 if split == "ood" else 0.7, 0.1)
        own = CONTEXT | {"split": split}
        tables.append(inference.effect_rows(gain, (6, "final_norm"), "scaled_accuracy_gain", **own))
    said, styled = reports.scaling_tests({"a run": joined(*tables)})
    assert "1 are beyond their error on the side of the paper's claim, 1 on the other side, and 1 are not" in said
    assert [(row["split"], row["estimate"]) for row in shown(styled)] == [
        ("ID", "+0.020"),
        ("OOD", "-0.200"),
        ("OOD", "-0.300"),
    ]


# Decoding.


def decoded(levels, shape=(0.0, 0.1, 0.3, 0.2), quantity="sequence_information_all_generated"):
    """A profile of one shape, its level over the blocks planted per decoding step; embedding and norm are far off."""
    tables = []
    for step, level in levels.items():
        for seed, more in ((0, -0.01), (1, 0.01)):
            values = [9.0, *(level + value - sum(shape) / len(shape) + more for value in shape), 7.0]
            tables.append(whole(values, quantity, decoding_step=step, sample_seed=seed))
    return joined(*tables)


def test_a_level_that_grows_and_a_shape_that_stays():
    summary = reports.decoding_summary(decoded({5: 0.6, 1: 0.2, 20: 1.0}))
    assert summary["decoding_step"].tolist() == [1, 5, 20]
    assert summary["level"].tolist() == pytest.approx([0.2, 0.6, 1.0])
    assert summary["ridge_layer"].tolist() == [3, 3, 3]
    assert set(summary["blocks"]) == {4}
    assert summary["at_ridge"].tolist() == pytest.approx([0.35, 0.75, 1.15])
    assert summary["at_last_block"].tolist() == pytest.approx([0.25, 0.65, 1.05])
    assert summary["rank_correlation"].tolist() == pytest.approx([1, 1, 1])
    assert set(summary["continuation"]) == {"generated"}
    assert set(summary["pairs"]) == {"all"}


def test_rank_correlation_is_with_the_profile_of_the_most_steps():
    reversed_shape = decoded({1: 0.5}, (0.2, 0.3, 0.1, 0.0))
    table = joined(reversed_shape, decoded({10: 0.5}))
    summary = reports.decoding_summary(table)
    # Ranks 3 4 2 1 against 1 2 4 3: squared differences 4 + 4 + 4 + 4.
    assert summary["rank_correlation"].tolist() == pytest.approx([1 - 6 * 16 / (4 * 15), 1])
    assert summary["ridge_layer"].tolist() == [2, 3]


def test_the_firmness_of_factors_counts_changed_arithmetic_alone():
    moved = pd.DataFrame(
        {
            "quantity": ["residual_scale"] * 4 + ["loss"],
            "changes": ["arithmetic"] * 3 + ["seed", "arithmetic"],
            "largest_difference": [0.1, 0.2, 0.6, 9.0, 8.0],
        }
    )
    text = reports.scaling_firmness(moved)
    assert "move by 0.20 (median" in text
    assert "up to 0.60" in text


def test_the_decoding_headline_says_what_grows():
    table = joined(
        decoded({1: 0.2, 5: 0.6}),
        decoded({1: 0.6, 5: 0.2}, quantity="sequence_information_aligned_reference"),
    )
    text = reports.decoding_headline(table)
    assert (
        "the generated text, the level grows at every step measured, from 0.200 nats at t = 1 to 0.600 at t = 5" in text
    )
    assert "the reference text, the level does not grow at every step measured, from 0.600 nats" in text
    assert "all pairs of steps along the generated" in text
    assert "the same steps only along the reference" in text
    assert text.count("lies at layer 3 of 4") == 2
    assert text.count("with the last profile is 1.00") == 2
    for still in (decoded({5: 0.6}), decoded({1: 0.6, 5: 0.6})):
        assert "does not grow" in reports.decoding_headline(still)
    moving = joined(decoded({1: 0.1}, (0.2, 0.3, 0.1, 0.0)), decoded({9: 0.5}))
    assert "lies between layers 2 and 3 of 4" in reports.decoding_headline(moving)


def test_the_decoding_table():
    rows = shown(reports.decoding_table(reports.decoding_summary(decoded({1: 0.2, 5: 0.6}))))
    assert [(row["steps"], row["mean over layers"]) for row in rows] == [("1", "0.200"), ("5", "0.600")]
    assert rows[0]["kernel over"] == "all pairs"
    assert rows[1]["ridge layer"] == "3 of 4"
    assert rows[0]["rank correlation with the final profile"] == "1.00"


def test_ridges_are_counted_over_checkpoints_and_named():
    peaked, rising = [0, 0.1, 0.5, 0.2, 0.1], [0, 0.1, 0.2, 0.5, 0.1]
    text = reports.ridge_counts(
        {"one": joined(whole(rising), whole(peaked, step=5, train_seed=0)), "other": joined(whole(rising))}
    )
    assert text == "- one: a ridge at 1 of 2 checkpoints, at layer 2 (after 5 fine-tuning steps).\n" + (
        "- other: no ridge at any of 1 checkpoints."
    )
