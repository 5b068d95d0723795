"""Effects of single blocks: measured on a tiny model, and taken together from planted tables."""

import dataclasses

import pandas as pd
import pytest
import torch

from ridge_utils import inference, models, results, tasks, training
from ridge_utils.audit import block_effects as page
from ridge_utils.errors import InputError
from ridge_utils.inference import Effect
from ridge_utils.residual_scaling import evaluate, scaled
from ridge_utils.tasks import Example
from tests import tables

CONTEXT = {"model": "m", "task": "t", "source": "own", "step": 4, "train_seed": 0}
ROW = {**CONTEXT, "sample_seed": None, "n": 9}


@pytest.fixture(scope="module")
def examples():
    return {split: tasks.load("synthetic_arithmetic", split, 40) for split in ("id", "ood")}


@pytest.fixture(scope="module")
def measured(examples, tmp_path_factory):
    """One measurement with every variant, of 6 blocks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RIDGE_CACHE", str(tmp_path_factory.mktemp("own")))
        return page.block_effects(
            models.load("random:gpt2", device="cpu"), examples, CONTEXT,
            n_samples=10, every=3, variants=list(page.VARIANTS), batch_size=8,
        )  # fmt: skip


def value(table, quantity, **where):
    (only,) = tables.rows(table, quantity, **where)["value"]
    return only


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
        (28, 30, [27, 28, 29]),
        (0, 30, [1, 2, 3]),
        (1, 1, [1]),
    ],
)
def test_the_blocks_of_the_ridge(ridge, depth, expected):
    assert page.ridge_blocks(ridge, depth) == expected


def test_the_blocks_shown():
    assert page.shown_blocks(30, 6) == [6, 12, 18, 24, 28, 29, 30]
    assert page.shown_blocks(30, 30) == page.last_blocks(30) == [28, 29, 30]
    assert page.shown_blocks(2, 5) == [1, 2]


def test_changes_are_those_of_runs_with_scales(examples, measured):
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


def test_the_table_has_every_block_variant_and_split_once(measured):
    assert not measured.duplicated(list(results.KEY)).any()
    counts = inference.effects(measured, "log_probability_change").groupby(["variant", "split"])["layer"].nunique()
    assert set(counts) == {4}
    assert set(counts.index) == {(variant, split) for variant in page.VARIANTS for split in ("id", "ood")}
    back = page.recovered(measured)
    at_end = back[back["layer"] == 6]
    assert len(at_end) == 2
    assert at_end["estimate"].tolist() == pytest.approx(at_end["gap"].tolist(), abs=1e-5), "the clean run"


def test_without_pairs_there_is_no_patch(llama, examples):
    same = {split: [dataclasses.replace(example, target="1") for example in rows] for split, rows in examples.items()}
    settings = {"n_samples": 4, "every": 6, "variants": ["skip", "patch"], "batch_size": 8}
    table = page.block_effects(llama, same, CONTEXT, **settings)
    assert set(table["variant"]) == {"", "skip"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_samples": 10}, "n_samples"),
        ({"every": 0}, "every"),
        ({"variants": ["skip", "zero"]}, "zero"),
        ({"variants": ["patch"]}, "skip or mean"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes, message):
    good = {"n_samples": 3, "n_examples": 9, "every": 2, "variants": ["skip"]}
    page.check(**good)
    with pytest.raises(InputError, match=message):
        page.check(**good | changes)


# Memorisation on a tiny model.

SETTINGS = training.Settings(steps=8, checkpoints=(8,), learning_rate=3e-3, batch_size=8, precision="float32")


@pytest.mark.slow
def test_recall_of_random_and_intact_targets(llama, examples):
    few = [Example(f"{letter}=", str(n % 5), "train", "own") for n, letter in enumerate("abcdefghijkl")]
    held_out = {split: own[:8] for split, own in examples.items()}
    context = {key: CONTEXT[key] for key in ("model", "task", "source")}
    settings = dataclasses.replace(SETTINGS, steps=40, checkpoints=(40,), learning_rate=1e-2, batch_size=12)
    table = page.recall(llama, few, held_out, context, settings, 0.5)
    recall = table[table["quantity"] == "recall_accuracy"]
    assert len(recall) == 14
    assert set(recall["n"]) == {6}
    end = recall[recall["layer"] == 6].set_index("variant")["value"]
    assert end["random"] > 0.5, "twelve examples are learned by heart"
    depths = inference.effects(table, "recall_depth").set_index("variant")["estimate"]
    apart = inference.effects(table, "recall_depth_difference")
    assert apart["estimate"].tolist() == pytest.approx([depths["random"] - depths["intact"]])
    assert apart["split"].tolist() == ["train"]
    assert 0 <= value(table, "memorisation_ridge_layer") <= 6
    assert not table.duplicated(list(results.KEY)).any()
    spelt = [dataclasses.replace(example, target=f"1{n}") for n, example in enumerate(few)]
    assert page.recall(llama, spelt, held_out, context, settings, 0.5) is None


# Planted effects.


def effect(quantity, estimate, layer, split, variant, p=0.0002, half=0.1, size=1.0, **changes):
    made = Effect(estimate, estimate - half, estimate + half, p, size)
    row = {**ROW, "split": split, "variant": variant, **changes}
    return inference.effect_rows(made, (layer, "block"), quantity, **row)


def planted(**changes):
    """Block 2 hurts most; on OOD block 3 hurts twice as much as on ID; block 4 is below its error."""
    rows = []
    for split, drops in (("id", (0.5, 2.0, 0.4, 0.05)), ("ood", (0.5, 1.5, 0.8, 0.05))):
        for layer, drop in enumerate(drops, 1):
            p = 0.5 if layer == 4 else 0.0002
            rows.append(effect("log_probability_change", -drop, layer, split, "skip", p, size=-1, **changes))
    return pd.concat(rows, ignore_index=True)


def test_drops_turn_the_sign_and_correct_within_a_checkpoint():
    both = page.drops(pd.concat([planted(), planted(step=9)]))
    assert len(both) == 16
    found = both[both["step"] == 9]
    own = found[found["split"] == "id"].set_index("layer")
    assert own["estimate"].tolist() == [0.5, 2.0, 0.4, 0.05]
    assert own.loc[2, ["low", "high"]].tolist() == pytest.approx([1.9, 2.1])
    assert own.loc[2, "effect_size"] == 1
    assert own["p"].tolist() == pytest.approx(inference.holm([0.0002] * 3 + [0.5]))
    assert own["firm"].tolist() == [True, True, True, False]


def test_what_patches_bring_back():
    rows = []
    for split in ("id", "ood"):
        rows.append(effect("log_probability_gap", 4.0, 4, split, "patch"))
        rows += [effect("log_probability_change", 4 * s, n, split, "patch") for n, s in enumerate((0, 0.2, 0.7, 1), 1)]
    table = pd.concat(rows, ignore_index=True)
    own = page.recovered(table).query("split == 'id' and variant == 'patch'").set_index("layer")
    assert own["estimate"].tolist() == pytest.approx([0, 0.8, 2.8, 4])
    assert own.loc[3, ["low", "high", "gap", "gap_low"]].tolist() == pytest.approx([2.7, 2.9, 4, 3.9])
