"""Early exits beside the ridge layer: what is measured on a small model, and what planted tables show."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from ridge_utils import early_exit, inference, information, models, results, statistics, tasks
from ridge_utils.audit import early_exits
from ridge_utils.inference import Effect
from ridge_utils.representations import Representations, collect

CONTEXT = {"model": "m", "task": "t", "source": "synthetic", "step": 0, "train_seed": None}


@pytest.fixture(scope="module")
def model():
    return models.load("random:gpt2-3x32", device="cpu")


@pytest.fixture(scope="module")
def examples():
    return {split: tasks.load("synthetic_arithmetic", split, 16) for split in ("id", "ood")}


@pytest.fixture(scope="module")
def pools(model, examples):
    return {split: collect(model, some, progress=False) for split, some in examples.items()}


def measured(model, examples, pools):
    return early_exits.measure(model, examples, pools, CONTEXT)


# Which layer.


@pytest.mark.parametrize(
    ("accuracy", "ridge", "best"),
    [
        ([0, 0.2, 0.5, 0.4], 0, 2),
        ([0, 0.5, 0.2, 0.5], 3, 3),
        ([0, 0.5, 0.2, 0.5], 0, 1),
        ([0, 0.5, 0.2, 0.5], 2, 1),
        ([0, 0, 0, 0], 2, 2),
    ],
)
def test_of_several_best_layers_the_nearest_to_the_ridge_counts(accuracy, ridge, best):
    assert early_exits.best_layer(accuracy, ridge) == best


def test_layers_are_compared_half_by_half():
    profiles = torch.tensor([[0.0, 3, 1], [0, 1, 3], [9, 1, 3]])
    accuracy = torch.tensor([[0, 0.1, 0.9], [0.5, 0.2, 0.1], [0.2, 0.2, 0.2]])
    assert early_exits.layer_differences(profiles, accuracy) == [1, -2, 0]


# What is measured.


def test_what_is_measured_is_what_others_measure(model, examples, pools):
    table = measured(model, examples, pools)
    own = table.set_index(["quantity", "variant", "split", "layer"])["value"].sort_index()
    both = Representations.join(list(pools.values()))
    for split, pool in {**pools, "all": both}.items():
        for variant, norm in (("", True), ("no_norm", False)):
            share = early_exit.correct(model, pool, norm=norm).double().mean(1)
            assert own["early_exit_accuracy", variant, split].tolist() == pytest.approx(share.tolist())
        expected = information.predictive_information(pool.hidden, pool.targets)
        assert own["predictive_information", "", split].tolist() == pytest.approx(expected.tolist())
        commonest = max(pool.target_ids.tolist().count(token) for token in pool.target_ids.tolist())
        assert own["constant_accuracy", "", split].tolist() == [commonest / len(pool)]
    assert set(table["variant"]) == {"", "no_norm"}
    assert set(table["split"]) == {"id", "ood", "all"}
    assert table["sample_seed"].isna().all()


def test_effects_are_those_of_the_protocol(model, examples, pools):
    """By hand, from the public functions, on OOD examples that are made to be right where it is planted."""
    pool = pools["ood"]
    read = model.model.get_output_embeddings()(model.final_norm(pool.hidden[1])).argmax(-1).detach()
    planted = {**pools, "ood": dataclasses.replace(pool, target_ids=read)}
    table = measured(model, examples, planted)
    right = early_exit.correct(model, planted["ood"]).double()
    differences = []
    for seed in range(100):
        half = statistics.subsample(16, 8, seed)
        profile = information.predictive_information(pool.hidden[:, half], pool.targets[half])
        accuracy = right[:, half].mean(1).tolist()
        ridge = int(profile.argmax())
        differences.append(early_exits.best_layer(accuracy, ridge) - ridge)
    apart = inference.effects(table, "exit_layer_difference").set_index(["split", "variant"]).loc[("ood", "")]
    expected = inference.half_sample_effect(differences)
    assert (apart["estimate"], apart["low"], apart["high"], apart["p"]) == pytest.approx(
        (expected.estimate, expected.low, expected.high, expected.p)
    )
    ridge = int(information.predictive_information(pool.hidden, pool.targets).argmax())
    gain = inference.effects(table, "exit_accuracy_gain").set_index(["split", "variant"]).loc[("ood", "")]
    assert gain["estimate"] == pytest.approx((right[3] - right[ridge]).mean().item())
    assert (gain["layer"], gain["site"], gain["n"]) == (3, "block", 16)


def test_a_second_run_estimates_nothing(model, examples, pools, monkeypatch):
    first = measured(model, examples, pools)

    def fail(*_args, **_more):
        raise AssertionError("this was to be remembered")

    monkeypatch.setattr(information, "predictive_information", fail)
    pd.testing.assert_frame_equal(measured(model, examples, pools), first)


def test_a_model_that_is_never_right_has_its_rows(model, examples, pools):
    never = {split: dataclasses.replace(p, target_ids=torch.full_like(p.target_ids, 250)) for split, p in pools.items()}
    table = measured(model, examples, never)
    apart = inference.effects(table, "exit_layer_difference")
    assert (apart["estimate"] == 0).all()
    assert (early_exits.summary({"": table})["at_best"] == 0).all()


# What planted tables show.


def planted(ood, profile, *, step=0, train_seed=None, variant="", apart=(0.0, -1.0, 1.0), gain=0.1):
    """One checkpoint: accuracies of OOD examples (ID ones are all right), information, and the two effects."""
    blocks = len(ood) - 1
    sites = results.sites(blocks, final_norm=False)
    row = {**CONTEXT, "step": step, "train_seed": train_seed, "sample_seed": None, "n": 100}
    tables = []
    for split, accuracy in (("id", [1.0] * len(ood)), ("ood", ood), ("all", ood)):
        own = {**row, "split": split}
        tables.append(results.measurements(accuracy, sites, "early_exit_accuracy", **own, variant=variant))
        if not variant:
            tables.append(results.measurements([0.45], sites[-1:], "constant_accuracy", **own))
            tables.append(results.measurements(profile, sites, "predictive_information", **own))
        if split != "all":
            for name, effect in (
                ("exit_layer_difference", Effect(*apart, 0.5, math.nan)),
                ("exit_accuracy_gain", Effect(gain, gain - 0.05, gain + 0.05, 0.01, 0.3)),
            ):
                tables.append(inference.effect_rows(effect, (blocks, "block"), name, **own, variant=variant))
    return pd.concat(tables, ignore_index=True)


RIDGED = planted([0, 0.2, 0.6, 0.4], [0, 0.5, 0.3, 0.2], apart=(1.2, 0.4, 2.0), gain=0.2)


def test_places_are_those_of_the_largest():
    (row,) = early_exits.places(RIDGED).query("split == 'ood'").to_dict("records")
    assert (row["blocks"], row["ridge_layer"], row["best_layer"]) == (3, 1, 2)
    assert (row["at_ridge"], row["at_best"], row["at_last"], row["constant"]) == (0.2, 0.6, 0.4, 0.45)


def test_training_seeds_are_taken_together():
    seeds = [
        planted([0, 0.2, 0.6, 0.4], [0, 0.5, 0.3, 0.2], step=7, train_seed=0, apart=(1.0, 0.4, 2.0)),
        planted([0, 0.2, 0.3, 0.5], [0, 0.1, 0.3, 0.2], step=7, train_seed=1, apart=(2.0, -0.6, 3.0)),
    ]
    (row,) = early_exits.summary({"run": pd.concat(seeds)}).query("split == 'ood'").to_dict("records")
    assert (row["run"], row["step"], row["best_layer_min"], row["best_layer_max"]) == ("run", 7, 2, 3)
    assert (row["ridge_layer_min"], row["ridge_layer_max"], row["at_best"]) == (1, 2, pytest.approx(0.55))
    assert row["exit_layer_difference_estimate"] == 1.5
    # Both seeds have the same gain, on the same examples.
    assert row["exit_accuracy_gain_low"] == pytest.approx(0.05)
