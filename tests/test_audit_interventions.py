"""The page on interventions: its measurements on a tiny model, its sentences and figures on planted tables."""

import dataclasses
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from ridge_utils import inference, information, models, results, tasks, training
from ridge_utils.audit import block_effects as page
from ridge_utils.audit import interventions
from ridge_utils.errors import InputError
from ridge_utils.inference import Effect
from ridge_utils.representations import Representations, collect
from ridge_utils.residual_scaling import evaluate, scaled
from ridge_utils.tasks import Example

CONTEXT = {"model": "m", "task": "t", "source": "own", "step": 4, "train_seed": 0}
ROW = {**CONTEXT, "sample_seed": None, "n": 9}


@pytest.fixture(scope="module")
def examples():
    return {split: tasks.load("synthetic_arithmetic", split, 40) for split in ("id", "ood")}


@pytest.fixture(scope="module")
def measured(examples, tmp_path_factory):
    """One measurement with every variant: 6 blocks, the ridge put at layer 2."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RIDGE_CACHE", str(tmp_path_factory.mktemp("own")))
        return page.block_effects(
            models.load("random:gpt2", device="cpu"), examples, 2, CONTEXT,
            n_samples=10, every=3, variants=list(page.VARIANTS), batch_size=8,
        )  # fmt: skip


def value(table, quantity, **where):
    rows = table[table["quantity"] == quantity]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, (quantity, where)
    return rows["value"].iloc[0]


def skipped(loaded, examples, block):
    scales = torch.ones(6)
    if block:
        scales[block - 1] = 0
    with scaled(loaded, scales):
        return -evaluate(loaded, examples, progress=False).cross_entropy


@pytest.mark.parametrize(
    ("ridge", "depth", "expected"),
    [
        (15, 30, [14, 15, 16]),
        (30, 30, [28, 29, 30]),
        (29, 30, [28, 29, 30]),
        (28, 30, [27, 28, 29]),
        (0, 30, [1, 2, 3]),
        (1, 2, [1, 2]),
        (1, 1, [1]),
    ],
)
def test_the_blocks_of_the_ridge(ridge, depth, expected):
    assert page.ridge_blocks(ridge, depth) == expected


def test_the_blocks_shown():
    assert page.shown_blocks(30, 6) == [6, 12, 18, 24, 28, 29, 30]
    assert page.shown_blocks(30, 30) == page.last_blocks(30) == [28, 29, 30]
    assert page.shown_blocks(2, 5) == [1, 2]


def test_the_ridge_is_the_argmax_over_the_whole_pool(llama, examples):
    pool = Representations.join([collect(llama, own, progress=False) for own in examples.values()])
    table = page.ridge_profile(pool, CONTEXT)
    expected = information.predictive_information(pool.hidden, pool.targets)
    profile = table[table["quantity"] == "predictive_information"]
    assert profile["value"].tolist() == pytest.approx(expected.tolist())
    assert profile["layer"].tolist() == list(range(7))
    assert value(table, "ridge_layer") == int(expected.argmax())
    assert set(table["n"]) == {80}


def test_changes_and_contrasts_are_those_of_runs_with_scales(examples, measured):
    loaded = models.load("random:gpt2", device="cpu")
    change = {}
    for split, own in examples.items():
        runs = {block: skipped(loaded, own[:10], block) for block in range(7)}
        change[split] = {block: (runs[block] - runs[0]).numpy() for block in range(1, 7)}
        where = {"split": split, "variant": "skip"}
        for block in (3, 4, 5, 6):
            found = value(measured, "log_probability_change", layer=block, **where)
            assert found == pytest.approx(change[split][block].mean(), abs=1e-6)
        size = value(measured, "log_probability_change_effect_size", layer=3, **where)
        assert size == pytest.approx(change[split][3].mean() / change[split][3].std(ddof=1), rel=1e-3)
        contrast = sum(change[split][b] for b in (4, 5, 6)) / 3 - sum(change[split][b] for b in (1, 2, 3)) / 3
        assert value(measured, "ablation_contrast", **where) == pytest.approx(contrast.mean(), abs=1e-6)
        assert value(measured, "ablation_contrast_effect_size", **where) == pytest.approx(
            contrast.mean() / contrast.std(ddof=1), rel=1e-3
        )
        assert value(measured, "log_probability", split=split) == pytest.approx(runs[0].mean().item(), abs=1e-6)
    shift = value(measured, "ablation_shift", layer=6, variant="skip", split="all")
    assert shift == pytest.approx(change["id"][6].mean() - change["ood"][6].mean(), abs=1e-6)


def test_the_table_has_every_block_variant_and_split_once(measured):
    assert not measured.duplicated(list(results.KEY)).any()
    counts = inference.effects(measured, "log_probability_change").groupby(["variant", "split"])["layer"].nunique()
    assert set(counts) == {4}, "blocks 1 and 2 are the ridge's, and only in the contrast"
    assert set(counts.index) == {(variant, split) for variant in page.VARIANTS for split in ("id", "ood")}
    assert (inference.effects(measured, "ablation_shift")["split"] == "all").all()
    back = page.recovered(measured)
    at_end = back[(back["layer"] == 6) & (back["variant"] != "patch_update")]
    assert len(at_end) == 4
    assert at_end["estimate"].tolist() == pytest.approx(at_end["gap"].tolist(), abs=1e-5), "the clean run"


def test_a_second_measurement_runs_no_model(examples, monkeypatch):
    loaded = models.load("random:llama", device="cpu")
    settings = {"n_samples": 4, "every": 6, "variants": ["mean", "patch"], "batch_size": 8}
    first = page.block_effects(loaded, examples, 3, CONTEXT, **settings)
    monkeypatch.setattr(interventions, "evaluate", None)  # calling it would raise
    pd.testing.assert_frame_equal(page.block_effects(loaded, examples, 3, CONTEXT, **settings), first)


def test_what_was_remembered_of_one_variant_is_not_given_for_another(llama, examples):
    own = examples["id"][:4]
    runs = [
        page._ablated(llama, own, blocks, how, 8, "") for blocks, how in (([2], "skip"), ([2], "mean"), ([3], "skip"))
    ]
    assert len({tuple(run.log_probability[1].tolist()) for run in runs}) == 3
    pairs = interventions.match(llama, own, examples["id"])
    other = [page._patched(llama, pairs, [2], variant, 8, "") for variant in ("patch", "patch_update")]
    assert not torch.equal(other[0].log_probability, other[1].log_probability)


def test_where_the_ridge_is_at_the_end_there_is_no_contrast(llama, examples):
    settings = {"n_samples": 4, "every": 6, "variants": ["skip"], "batch_size": 8}
    table = page.block_effects(llama, examples, 6, CONTEXT, **settings)
    assert "ablation_contrast" not in set(table["quantity"])
    table = pd.concat([table, ridge(6, 6)])
    assert "nothing to compare them with" in page.contrast_headline(page.by_step({"run": table}))


def test_without_pairs_nothing_is_patched(llama, examples):
    same = {split: [dataclasses.replace(example, target="1") for example in own] for split, own in examples.items()}
    settings = {"n_samples": 4, "every": 6, "variants": ["skip", "patch"], "batch_size": 8}
    table = page.block_effects(llama, same, 2, CONTEXT, **settings)
    assert set(table["variant"]) == {"", "skip"}
    assert page.patch_headline(table).startswith("No two prompts")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_samples": 1}, "n_samples must be between 2 and n_examples=9, but is 1"),
        ({"n_samples": 10}, "n_samples must be between 2 and n_examples=9, but is 10"),
        ({"every": 0}, "every must be at least 1, but is 0"),
        ({"mapped_checkpoints": 0}, "mapped_checkpoints must be at least 1, but is 0"),
        (
            {"variants": ["skip", "zero"]},
            r"variants must be different ones of skip, mean, .*, but are \['skip', 'zero'\]",
        ),
        ({"variants": ["skip", "skip"]}, "variants must be different ones"),
        ({"variants": ["patch"]}, r"skip or mean among them, but are \['patch'\]"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes, message):
    good = {"n_samples": 3, "n_examples": 9, "every": 2, "variants": ["skip"]}
    page.check(**good)
    with pytest.raises(InputError, match=message):
        page.check(**good | changes)


# Memorisation and joint factors on a tiny model.

SETTINGS = training.Settings(steps=8, checkpoints=(8,), learning_rate=3e-3, batch_size=8, precision="float32")


def test_recall_of_random_and_intact_targets(llama, examples):
    few = [Example(f"{letter}=", str(n % 5), "train", "own") for n, letter in enumerate("abcdefghijkl")]
    held_out = {split: own[:8] for split, own in examples.items()}
    context = {key: CONTEXT[key] for key in ("model", "task", "source")}
    settings = dataclasses.replace(SETTINGS, steps=40, checkpoints=(40,), learning_rate=1e-2, batch_size=12)
    table = page.recall(llama, few, held_out, context, settings, 0.5)
    recall = table[table["quantity"] == "recall_accuracy"]
    assert recall.groupby("variant")["layer"].apply(list).to_dict() == {
        "intact": list(range(7)), "random": list(range(7)),
    }  # fmt: skip
    assert set(recall["n"]) == {6}
    assert set(table["step"]) == {40}
    end = recall[recall["layer"] == 6].set_index("variant")["value"]
    assert end["random"] > 0.5, "twelve examples are learned by heart"
    depths = inference.effects(table, "recall_depth").set_index("variant")["estimate"]
    apart = inference.effects(table, "recall_depth_difference")
    assert apart["estimate"].tolist() == pytest.approx([depths["random"] - depths["intact"]])
    assert apart["split"].tolist() == ["train"]
    assert 0 <= value(table, "memorisation_ridge_layer") <= 6
    exits = table[table["quantity"] == "early_exit_accuracy"]
    assert set(exits["variant"]) == {"memorisation"}
    assert not table.duplicated(list(results.KEY)).any()
    assert "of the random and" in page.recall_headline(table)
    spelt = [dataclasses.replace(example, target=f"1{n}") for n, example in enumerate(few)]
    assert page.recall(llama, spelt, held_out, context, settings, 0.5) is None


def test_joint_factors_beside_the_fine_tuning_without(llama, examples):
    train = tasks.load("synthetic_arithmetic", "train", 16)
    held_out = {split: own[:8] for split, own in examples.items()}
    context = {key: CONTEXT[key] for key in ("model", "task", "source")}
    plain = training.finetune(llama, train, SETTINGS, progress=False).load(8)
    pools = {split: collect(plain, own, progress=False) for split, own in held_out.items()}
    table = page.joint_scales(llama, train, held_out, context, SETTINGS, 0.02, (plain, pools))
    scales = table[table["quantity"] == "joint_scale"]
    assert scales["layer"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (scales["value"] != 1).all()
    for split, own in held_out.items():
        before = evaluate(plain, own, progress=False).correct.double().mean().item()
        gain = value(table, "joint_accuracy_gain", split=split)
        assert gain == pytest.approx(value(table, "joint_accuracy", split=split) - before)
    alone = page.joint_scales(llama, train, held_out, context, SETTINGS, 0.02)
    assert "joint_accuracy_gain" not in set(alone["quantity"])
    assert "without factors" in page.joint_headline(table)
    assert "without factors" not in page.joint_headline(alone)


# Sentences, tables and figures of planted effects.


def ridge(layer, depth=4, **changes):
    return results.measurements([layer], [(depth, "block")], "ridge_layer", **{**ROW, "split": "all", **changes})


def effect(quantity, estimate, layer, split, variant, p=0.0002, half=0.1, size=1.0, **changes):
    made = Effect(estimate, estimate - half, estimate + half, p, size)
    row = {**ROW, "split": split, "variant": variant, **changes}
    return inference.effect_rows(made, (layer, "block"), quantity, **row)


def planted(**changes):
    """Block 2 hurts most; on OOD block 3 hurts twice as much as on ID; block 4 is below its error."""
    rows = [ridge(2, **changes)]
    for split, drops in (("id", (0.5, 2.0, 0.4, 0.05)), ("ood", (0.5, 1.5, 0.8, 0.05))):
        for layer, drop in enumerate(drops, 1):
            p = 0.5 if layer == 4 else 0.0002
            rows.append(effect("log_probability_change", -drop, layer, split, "skip", p, size=-1, **changes))
            rows.append(effect("accuracy_change", -0.25, layer, split, "skip", p, size=-1, **changes))
        row = {**ROW, "split": split, **changes}
        accuracy = {"id": 0.9, "ood": 0.4}[split]
        rows.append(results.measurements([accuracy], [(4, "final_norm")], "accuracy", **row))
        rows.append(effect("ablation_contrast", 0.3, 4, split, "skip", 0.01, **changes))
    for layer, shift in enumerate((0.0, -0.5, 0.4, 0.0), 1):
        p = 0.0002 if shift else 0.9
        rows.append(effect("ablation_shift", shift, layer, "all", "skip", p, **changes))
    return pd.concat(rows, ignore_index=True)


def test_drops_turn_the_sign_and_correct_within_a_panel():
    found = page.drops(planted())
    own = found[found["split"] == "id"].set_index("layer")
    assert own["estimate"].tolist() == [0.5, 2.0, 0.4, 0.05]
    assert own.loc[2, ["low", "high"]].tolist() == pytest.approx([1.9, 2.1])
    assert own.loc[2, "effect_size"] == 1
    assert own["p"].tolist() == pytest.approx(inference.holm([0.0002] * 3 + [0.5]))
    assert own["firm"].tolist() == [True, True, True, False]


def test_sentences_say_what_was_planted():
    text = page.blocks_headline(planted())
    assert text.startswith("As it is, accuracy is 90 % (ID) and 40 % (OOD). Skipped block: on ID examples the")
    assert (
        "falls beyond the error at 3 of 4 blocks and rises at 0, and the largest drop is block 2's, 2.00 nats" in text
    )
    assert "the largest drop is block 2's, 1.50 nats" in text
    assert "drops are larger under the shift at 3 and smaller under the shift at 2" in text
    helped = planted()
    helped.loc[helped["quantity"].str.fullmatch("log_probability_change(_low|_high)?"), "value"] *= -1
    assert "falls beyond the error at 0 of 4 blocks and rises at 3" in page.blocks_headline(helped)
    tables = page.by_step({"run": pd.concat([planted(), planted(step=9)])})
    assert list(tables) == ["run, step 4", "run, step 9"]
    assert list(page.by_step({"run": pd.concat([planted(), planted(step=9)])}, last=1)) == ["run, step 9"]
    lines = page.contrast_headline(tables).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("- **run, step 4:** predictive information is largest at layer 2 of 4")
    assert "blocks 1 to 3" in lines[0]
    assert "+0.300 (0.200 to 0.400; p = 0.040" in lines[0], "Holm over the four contrasts shown"
    shown = page.contrast_table(tables).data
    assert shown["p"].tolist() == ["0.040"] * 4
    assert shown["intervention"].tolist() == ["skipped block"] * 4


def test_training_seeds_are_taken_together():
    table = pd.concat([planted(), planted(train_seed=1)])
    found = page.drops(table)
    assert len(found) == 8
    assert found.loc[found["layer"] == 2, "estimate"].tolist() == [2.0, 1.5]
    other = planted(train_seed=1)
    flipped = other["quantity"].isin(["log_probability_change"]) & (other["layer"] == 1)
    other.loc[flipped, "value"] *= -1
    found = page.drops(pd.concat([planted(), other]))
    assert not found.loc[found["layer"] == 1, "firm"].any(), "seeds of different signs show nothing"


def test_what_patches_bring_back():
    rows = [ridge(2)]
    for split in ("id", "ood"):
        rows.append(effect("log_probability_gap", 4.0, 4, split, "patch"))
        rows += [effect("log_probability_change", 4 * s, n, split, "patch") for n, s in enumerate((0, 0.2, 0.7, 1), 1)]
        rows.append(effect("log_probability_gap", 0.05, 4, split, "patch_across"))  # not told from none
        rows.append(effect("log_probability_change", 0.05, 4, split, "patch_across"))
    table = pd.concat(rows, ignore_index=True)
    own = page.recovered(table).query("split == 'id' and variant == 'patch'").set_index("layer")
    assert own["estimate"].tolist() == pytest.approx([0, 0.8, 2.8, 4])
    assert own.loc[3, ["low", "high", "gap", "gap_low"]].tolist() == pytest.approx([2.7, 2.9, 4, 3.9])
    text = page.patch_headline(table)
    assert (
        "ID, state put into a prompt of the same split (4.00 nats, 9 pairs): half of it is back behind block 3" in text
    )
    assert "other split (0.05 nats, 9 pairs): clean and corrupted prompts do not differ beyond the error" in text


def memory(step=7):
    row = {**ROW, "split": "train", "step": step}
    rows = []
    for kind, curve in (("random", (0, 0, 0.1, 0.2, 0.8)), ("intact", (0, 0.1, 0.9, 0.9, 1.0))):
        sites = results.sites(4, final_norm=False)
        rows.append(results.measurements(curve, sites, "recall_accuracy", **row, variant=kind))
        depth = Effect({"random": 3.3, "intact": 1.5}[kind], 1.0, 3.9, math.nan, math.nan)
        rows.append(inference.effect_rows(depth, (4, "block"), "recall_depth", **row, variant=kind))
    apart = Effect(1.8, 1.0, 2.5, 0.002, math.nan)
    rows.append(inference.effect_rows(apart, (4, "block"), "recall_depth_difference", **row))
    rows.append(ridge(3, step=step).assign(quantity="memorisation_ridge_layer"))
    exits = results.measurements((0, 0, 0, 0.1, 0.2), results.sites(4, False), "early_exit_accuracy", **row)
    rows.append(exits.assign(split="id", variant="memorisation"))
    return pd.concat(rows, ignore_index=True)


def test_sentences_of_recall():
    text = page.recall_headline(memory())
    assert "After 7 steps 80 % of the random and 100 % of the intact targets are recalled" in text
    assert "of the random ones at layer 3.3 (1.0 to 3.9) and of the intact ones at layer 1.5" in text
    assert "the random less the intact depth is +1.8 (1.0 to 2.5; p = 0.002) layers" in text
    assert text.endswith("largest at layer 3.")
    nothing = memory()
    nothing = nothing[~nothing["quantity"].str.startswith("recall_depth")]
    assert page.recall_headline(nothing).endswith("so no depth of recall can be told.")
    assert page.recall_headline(planted()).startswith("Nothing was trained")


def joint():
    sites = results.sites(6, final_norm=False)[1:]
    row = {**ROW, "split": "train"}
    scales = results.measurements((1, 1, 1.2, 1, 0.9, 0.7), sites, "joint_scale", **row)
    ends = [
        results.measurements([v], [(6, "final_norm")], "joint_accuracy", **{**row, "split": split})
        for split, v in (("id", 0.9), ("ood", 0.5))
    ]
    return pd.concat([scales, *ends], ignore_index=True)


def test_sentences_of_joint_factors():
    text = page.joint_headline(joint())
    assert "between 0.700 (block 6) and 1.200 (block 3); the last block's is 0.700" in text
    assert "last third of the blocks has a mean of 0.800, the middle third of 1.100" in text
    assert text.endswith("90.0 % (ID) and 50.0 % (OOD).")
    assert page.joint_headline(planted()).startswith("No factors")


def test_figures_show_the_numbers(measured):
    figure = page.ablation_figure({"a": planted(), "b": planted(step=9)})
    panels = [ax for part in figure.subfigs for ax in part.axes]
    assert len(panels) == 2
    full = [line for line in panels[0].lines if line.get_marker() == "o" and line.get_markerfacecolor() != "white"]
    assert sorted(np.concatenate([line.get_ydata() for line in full])) == [0.4, 0.5, 0.5, 0.8, 1.5, 2.0]
    both = page.ablation_figure({"a": pd.concat([measured, ridge(2, 6)])})
    assert len([ax for part in both.subfigs for ax in part.axes]) == 2, "skipped and mean"
    page.patch_figure({"a": pd.concat([measured, ridge(2, 6)])})
    recall = page.recall_figure({"a": memory(), "without": planted()})
    (ax,) = recall.axes
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [3.3, 1.5]
    figure = page.joint_figure({"a": joint(), "without": planted()})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [1, 1, 1.2, 1, 0.9, 0.7]
    for made in (both, recall, figure):
        made.canvas.draw()
    plt.close("all")


def test_tables_for_people():
    shown = page.block_table(planted()).data
    assert shown["block"].tolist() == ["1", "2", "3", "4"]
    assert shown["ID, drop"].iloc[1] == "+2.000 (1.900 to 2.100)"
    assert shown["OOD less ID, drop"].iloc[2] == "+0.400 (0.300 to 0.500)"
    assert shown["OOD, accuracy"].iloc[0] == "-25 (-35 to -15) %"
    assert page.has({"a": planted()}, "ablation_shift")
    assert not page.has({"a": planted()}, "joint_scale")
