"""Where the ridge comes from: tables with a planted shape, null and geometry."""

import numpy as np
import pandas as pd
import pytest
import torch

from ridge_utils import information, results, statistics
from ridge_utils.audit import geometry, origins
from ridge_utils.errors import InputError
from ridge_utils.representations import Representations

GPT2, MAMBA = "random:gpt2-4x64", "random:mamba-4x64"
PEAK, RISE, FLAT = [0.1, 0.3, 0.5, 0.4, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5], [0.3, 0.3, 0.3, 0.3, 0.3]


def table(model, profiles, *, noise=0.002, task="t", null=None, accuracy=(0.9, 0.2), n=100, pool=250, **companions):
    """A table of one model: ``profiles`` by step, and by name what stands beside them at every step."""
    rng = np.random.default_rng(0)
    parts = []
    for step, profile in profiles.items():
        blocks = len(profile) - 1
        row = {"model": model, "task": task, "source": "synthetic", "step": step, "train_seed": 0 if step else None}
        whole = row | {"sample_seed": None, "n": pool}
        for seed in (0, 1, 2, 3, 42):
            drawn = row | {"split": "all", "sample_seed": seed, "n": n}
            values = [*(np.array(profile) + noise * rng.standard_normal(blocks + 1)), 9.0]
            parts.append(results.measurements(values, results.sites(blocks), "predictive_information", **drawn))
            if null is not None:
                parts.append(results.measurements([*null, 9.0], results.sites(blocks), "null_information", **drawn))
        for quantity, values in companions.items():
            parts.append(results.measurements([*values, 9.0], results.sites(blocks), quantity, **whole, split="all"))
        for split, last in zip(("id", "ood", "all"), (*accuracy, 0.5), strict=True):
            own = whole | {"split": split}
            exits = [0.0] * blocks + [last]
            sites = results.sites(blocks, final_norm=False)
            parts.append(results.measurements(exits, sites, "early_exit_accuracy", **own))
            end = [(blocks, "final_norm")]
            parts.append(results.measurements([0.3], end, "majority_accuracy", **own))
    return pd.concat(parts, ignore_index=True)


def run(*tables):
    return origins.runs({f"profile-{number}": [each] for number, each in enumerate(tables)})


# Measurements of one checkpoint.


@pytest.fixture(scope="module")
def pool():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4, (30,), generator=generator)
    embedding = torch.randn(4, 6, generator=generator)
    hidden = torch.randn(3, 30, 6, generator=generator) + torch.stack([k * embedding[ids] for k in (0, 1, 2)])
    return Representations(hidden, hidden[-1] / 2 + 1, embedding[ids], ids)


CONTEXT = {"model": "m", "task": "t", "source": "own", "step": 0, "train_seed": None}


def test_a_profile_is_that_of_the_functions_that_it_names(pool):
    settings = {"n_samples": 20, "sampling_seeds": [0, 7], "n_shuffles": 3}
    found = origins.depth_profile({"all": pool, "id": pool}, CONTEXT, **settings)
    found = found[found["split"] == "all"]
    sample = pool.select(statistics.subsample(30, 20, 7))
    entropy = [information.entropy(information.gram_matrix(z)) for z in sample.states]
    expected = {
        "predictive_information": information.predictive_information(sample.states, sample.targets),
        "null_information": information.permutation_null(sample.states, sample.targets, 3, 7).mean(0),
        "state_entropy": torch.stack(entropy),
    }
    for quantity, values in expected.items():
        rows = found[(found["quantity"] == quantity) & (found["sample_seed"] == 7)]
        assert list(zip(rows["layer"], rows["site"], strict=True)) == results.sites(2)
        torch.testing.assert_close(torch.tensor(rows["value"].to_numpy()), values)
        assert set(rows["n"]) == {20}
    for quantity, function in {
        "effective_rank": geometry.effective_rank,
        "mean_cosine": geometry.mean_cosine,
    }.items():
        rows = found[found["quantity"] == quantity]
        torch.testing.assert_close(torch.tensor(rows["value"].to_numpy()), function(pool.states))
        assert rows["sample_seed"].isna().all()
        assert set(rows["n"]) == {30}
    assert not found.duplicated(list(results.KEY)).any()


def test_the_commonest_target_is_what_knowing_nothing_else_reaches(pool):
    found = origins.majority_accuracy({"id": pool}, CONTEXT)
    answers = pool.target_ids.tolist()
    best = max(sum(target == answer for target in answers) for answer in set(answers))
    assert found["value"].tolist() == [best / 30]
    assert (found["layer"].item(), found["site"].item()) == (2, "final_norm")


@pytest.mark.parametrize(
    ("models", "shuffles", "words"),
    [
        ([], 2, "models"),
        (["a", "a"], 2, "models"),
        (["a"], 0, "n_shuffles"),
    ],
)
def test_what_cannot_be_measured_is_refused(models, shuffles, words):
    with pytest.raises(InputError, match=words):
        origins.check(models, shuffles)


# Tables of several models.


def test_runs_are_named_ordered_and_read_what_comes_first():
    small, large = table(GPT2, {0: RISE}), table("random:gpt2-12x64", {0: RISE})
    both = pd.concat([table(MAMBA, {0: RISE}), table("own", {0: RISE}), large], ignore_index=True)
    assert list(run(both, small)) == ["own, t", f"{GPT2}, t", "random:gpt2-12x64, t", f"{MAMBA}, t"]
    later = table(GPT2, {0: PEAK, 5: PEAK}, null=FLAT)
    (merged,) = origins.runs({"one": [small, later]}).values()
    mean = merged[(merged["quantity"] == "predictive_information") & (merged["layer"] == 4)]
    mean = mean[mean["site"] == "block"].groupby("step")["value"].mean()
    assert mean[0] == pytest.approx(0.5, abs=0.01), "step 0 is the first table's, which has it"
    assert mean[5] == pytest.approx(0.2, abs=0.01)
    assert "null_information" in set(merged["quantity"])
    assert len(origins.runs({"one": [small], "two": [small]})) == 2


def test_a_planted_ridge_is_found_and_other_shapes_have_none():
    """A largest value at the last block, or at the embedding, is no ridge; nor is a fall within its band."""
    runs = run(
        table(GPT2, {0: FLAT, 10: PEAK}),
        table("random:gpt2-4x128", {0: RISE[::-1], 10: RISE}),
    )
    found = origins.summary(runs).set_index(["model", "step"])
    assert found["has_ridge"].tolist() == [False, True, False, False]
    assert found.loc[(GPT2, 10), "ridge_layer"] == 2
    assert found.loc[(GPT2, 10), "to_last_block"] == pytest.approx(0.3, abs=0.01)
    assert found.loc["random:gpt2-4x128", "ridge_layer"].tolist() == [0, 4]
    assert found["last"].tolist() == [False, True, False, True]
    assert found["kind"].tolist() == ["random weights", "trained from scratch"] * 2


@pytest.mark.parametrize(
    ("accuracy", "learned"),
    [
        ((0.9, 0.6), [1, 1]),
        ((0.34, 0.2), [0, 0]),  # 0.34 of 250 is not above 0.3 beyond its error
        ((0.2, 0.9), [0, 1]),
    ],
)
def test_learned_is_better_than_the_commonest_target_beyond_the_error(accuracy, learned):
    found = origins.summary(run(table(GPT2, {10: PEAK}, accuracy=accuracy))).iloc[0]
    assert found[["learned_id", "learned_ood"]].tolist() == learned
    assert found[["accuracy_id", "majority_ood"]].tolist() == [accuracy[0], 0.3]


def test_the_null_carries_the_shape_that_was_planted_in_it():
    by_null = table(GPT2, {10: PEAK}, noise=0.0, null=np.array(PEAK) - 0.05)
    by_excess = table("random:gpt2-4x128", {10: PEAK}, noise=0.0, null=FLAT)
    rows = origins.summary(run(by_null, by_excess)).set_index("model")
    assert rows.loc[GPT2, "null_share"] == pytest.approx(1)
    assert rows.loc[GPT2, "null_fall"] == pytest.approx(rows.loc[GPT2, "to_last_block"])
    assert rows.loc["random:gpt2-4x128", ["null_share", "null_fall"]].tolist() == pytest.approx([0, 0])
    assert origins.summary(run(table(GPT2, {10: PEAK})))["null_share"].isna().all()


def test_correlations_over_layers_are_those_that_were_planted():
    null = [0.2, 0.3, 0.4, 0.5, 0.1]
    planted = table(
        GPT2, {10: PEAK}, null=null, effective_rank=PEAK, mean_cosine=1 - np.array(PEAK), state_entropy=FLAT
    )
    found = origins.correlations(run(planted)).set_index("companion")
    assert found.loc["effective_rank", "correlation"] == pytest.approx(1)
    assert found.loc["mean_cosine", "correlation"] == pytest.approx(-1)
    assert "state_entropy" not in found.index, "what is the same at all layers has no ranks"
    excess = pd.Series(PEAK) - pd.Series(null)
    assert found.loc["excess_information", "correlation"] == pytest.approx(
        pd.Series(PEAK).corr(excess, method="spearman")
    )
    assert origins.correlations(run(table(GPT2, {0: PEAK}))).empty
    stored = pd.concat([planted, planted[planted["quantity"] == "null_information"].assign(
        quantity="excess_information", value=lambda t: -t["value"]
    )])  # fmt: skip
    found = origins.correlations(run(stored)).set_index("companion")
    assert found.loc["excess_information", "correlation"] == pytest.approx(
        -found.loc["null_information", "correlation"]
    )
