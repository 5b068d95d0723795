"""Where the ridge comes from: tables with a planted shape, null and geometry, and what is said of them."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from ridge_utils import information, results, statistics
from ridge_utils.audit import geometry, origins
from ridge_utils.errors import InputError
from ridge_utils.representations import Representations

mpl.use("Agg")

GPT2, MAMBA = "random:gpt2-4x64", "random:mamba-4x64"
PEAK, RISE, FLAT = [0.1, 0.3, 0.5, 0.4, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5], [0.3, 0.3, 0.3, 0.3, 0.3]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


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
        ([], 2, r"models must be one or more different names of models, but are \[\]"),
        (["a", "a"], 2, r"but are \['a', 'a'\]"),
        (["a"], 0, "n_shuffles must be at least 1, but is 0"),
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
    variant = small.assign(variant="centred")
    assert origins.runs({"one": [variant, later]}).keys() == origins.runs({"one": [later]}).keys()
    twice = origins.runs({"one": [small], "two": [small]})
    assert list(twice) == [f"{GPT2}, t", f"{GPT2}, t (two)"]


def test_the_largest_of_an_architecture_stands_for_it():
    names = ["random:gpt2-12x64", "own", GPT2, "random:gpt2-4x128", MAMBA]
    chosen = origins.largest(run(*(table(name, {0: RISE}) for name in names)))
    assert list(chosen) == ["own, t", "random:gpt2-12x64, t", f"{MAMBA}, t"]


def test_reference_runs_join_the_tables_of_a_profile(monkeypatch):
    plain, own = table(GPT2, {0: PEAK}), table(GPT2, {0: PEAK}, null=FLAT)
    stored = {"predictive_information": {"p": (plain, {})}, "origins": {"p": (own, {})}, "estimator_audit": {}}
    monkeypatch.setattr(results, "references", stored.__getitem__)
    (found,) = origins.reference_runs().values()
    assert len(found) == len(own)
    monkeypatch.setattr(results, "references", lambda _notebook: {})
    assert origins.reference_runs() == {}


def test_a_planted_ridge_is_found_and_a_flat_curve_has_none():
    runs = run(
        table(GPT2, {0: FLAT, 10: PEAK}),
        table("random:gpt2-4x128", {0: FLAT, 10: RISE}),
    )
    found = origins.summary(runs).set_index(["model", "step"])
    assert found.loc[(GPT2, 10), "ridge_layer"] == 2
    assert found.loc[(GPT2, 10), "has_ridge"]
    assert found.loc[(GPT2, 10), "fall"] == pytest.approx(0.3, abs=0.01)
    assert found.loc[(GPT2, 10), "fall_low"] < 0.3 < found.loc[(GPT2, 10), "fall_high"] + 0.01
    assert found.loc[("random:gpt2-4x128", 10), "ridge_layer"] == 4
    assert not found.loc[("random:gpt2-4x128", 10), "has_ridge"]
    assert not found.xs(0, level="step")["has_ridge"].any()
    assert found["last"].tolist() == [False, True, False, True]
    assert found["kind"].tolist() == ["random weights", "trained from scratch"] * 2


def test_the_interval_of_a_fall_counts_shared_examples_and_spans_training_seeds():
    one = table(GPT2, {10: PEAK}, noise=0.02)
    (row,) = origins.summary(run(one)).itertuples()
    values = one[(one["quantity"] == "predictive_information") & (one["site"] == "block")]
    wide = values.pivot_table(index="sample_seed", columns="layer", values="value")
    fall = wide[2] - wide[4]
    # 100 of 500 examples: early exits are counted on 250, both splits together on 500 in a real table.
    reach = 2.776 * fall.std() / np.sqrt(1 - 100 / 250)
    assert row.fall == pytest.approx(fall.mean())
    assert row.fall_high == pytest.approx(fall.mean() + reach, rel=1e-3)
    lower = one.assign(train_seed=1, value=np.where(one["layer"] == 2, one["value"] - 0.1, one["value"]))
    (both,) = origins.summary(run(pd.concat([one, lower]))).itertuples()
    assert both.fall == pytest.approx(row.fall - 0.05)
    assert both.fall_low == pytest.approx(row.fall_low - 0.1)
    assert both.fall_high == pytest.approx(row.fall_high)
    whole = table(GPT2, {10: PEAK}, n=250)
    (row,) = origins.summary(run(whole)).itertuples()
    assert np.isnan(row.fall_low)
    assert not row.has_ridge, "a sample that is the pool says nothing of its error"


def test_the_null_carries_the_shape_that_was_planted_in_it():
    by_null = table(GPT2, {10: PEAK}, noise=0.0, null=np.array(PEAK) - 0.05)
    by_excess = table("random:gpt2-4x128", {10: PEAK}, noise=0.0, null=FLAT)
    rows = origins.summary(run(by_null, by_excess)).set_index("model")
    assert rows.loc[GPT2, "null_share"] == pytest.approx(1)
    assert rows.loc[GPT2, "null_fall"] == pytest.approx(rows.loc[GPT2, "fall"])
    assert rows.loc["random:gpt2-4x128", ["null_share", "null_fall"]].tolist() == pytest.approx([0, 0])
    assert origins.summary(run(table(GPT2, {10: PEAK})))["null_share"].isna().all()


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        ((0.9, 0.6), "ID and OOD"),
        ((0.9, 0.3), "ID alone"),
        ((0.34, 0.2), "neither ID nor OOD"),  # 0.34 of 250 is not above 0.3 beyond its error
        ((0.2, 0.9), "OOD alone"),
    ],
)
def test_learned_is_better_than_the_commonest_target_beyond_the_error(accuracy, words):
    found = origins.summary(run(table(GPT2, {0: FLAT, 10: PEAK}, accuracy=accuracy)))
    said = origins.learned_sentence(found)
    assert f"`{GPT2}`: {words} (ID {100 * accuracy[0]:.0f} % (30 %), OOD {100 * accuracy[1]:.0f} % (30 %))" in said
    assert words in origins.summary_table(found, "caption").to_html()


def test_correlations_over_layers_are_those_that_were_planted():
    null = [0.2, 0.3, 0.4, 0.5, 0.1]
    planted = table(
        GPT2, {10: PEAK}, null=null, effective_rank=PEAK, mean_cosine=1 - np.array(PEAK), state_entropy=FLAT
    )
    found = origins.correlations(run(planted)).set_index("companion")
    assert found.loc["effective_rank", "correlation"] == pytest.approx(1)
    assert found.loc["mean_cosine", ["low", "high"]].tolist() == pytest.approx([-1, -1])
    assert "state_entropy" not in found.index, "what is the same at all layers has no ranks"
    excess = pd.Series(PEAK) - pd.Series(null)
    assert found.loc["excess_information", "correlation"] == pytest.approx(
        pd.Series(PEAK).corr(excess, method="spearman")
    )
    assert set(found["layers"]) == {5}, "the state after the final norm, which is planted at 9, is left out"
    assert origins.correlations(run(table(GPT2, {0: PEAK}))).empty
    stored = pd.concat([planted, planted[planted["quantity"] == "null_information"].assign(
        quantity="excess_information", value=lambda t: -t["value"]
    )])  # fmt: skip
    found = origins.correlations(run(stored)).set_index("companion")
    assert found.loc["excess_information", "correlation"] == pytest.approx(
        -found.loc["null_information", "correlation"]
    )


def test_contrasts_differ_in_one_thing():
    names = ["random:gpt2-4x64", "random:gpt2-4x128", "random:gpt2-8x64", MAMBA, "random:mamba-8x128", "own"]
    found = origins.summary(run(*(table(name, {0: FLAT, 10: PEAK}) for name in names)))
    pairs = origins.contrasts(found)
    named = {(p.differs, found.loc[p.first, "model"], found.loc[p.second, "model"]) for p in pairs.itertuples()}
    assert named == {
        ("width", GPT2, "random:gpt2-4x128"),
        ("depth", GPT2, "random:gpt2-8x64"),
        ("attention", GPT2, MAMBA),
    }


# What is said of them.


def test_sentences_of_the_sides_and_the_sizes():
    runs = run(
        table("own", {0: PEAK, 10: RISE}),
        table(GPT2, {0: FLAT, 10: PEAK}),
        table("random:gpt2-4x128", {0: FLAT, 10: RISE}),
    )
    found = origins.summary(runs)
    sides = origins.sides_sentence(found)
    assert "untouched, 1 of 1 (own, t: layer 2 of 4); fine-tuned, 0 of 1; random weights, 0 of 2" in sides
    assert f"trained from scratch, 1 of 2 ({GPT2}, t: layer 2 of 4)." in sides
    falling = origins.summary(run(table(GPT2, {10: RISE[::-1]}, accuracy=(0.3, 0.4))))
    assert f"1 of 1 ({GPT2}, t: the embedding, without having learned the task)." in origins.sides_sentence(falling)
    size = origins.size_sentence(found)
    assert size.startswith(f"- Width, `{GPT2}` → `random:gpt2-4x128`: the largest layer goes from layer 2 of 4 to")
    assert "a fall of " in size
    assert "becomes a rise to the last block" in size
    alike = run(table(GPT2, {10: RISE}), table("random:gpt2-8x64", {10: RISE}))
    assert "nats; both have a rise to the last block." in origins.size_sentence(origins.summary(alike))
    assert origins.attention_sentence(alike, origins.summary(alike)).startswith("There is no pair of models")
    flat = run(table(GPT2, {10: FLAT}, noise=0), table(MAMBA, {10: FLAT}, noise=0))
    assert "nan" not in origins.attention_sentence(flat, origins.summary(flat))
    training = origins.training_sentence(found)
    assert f"- `{GPT2}`: layer" in training
    assert "layer 2 of 4 at step 10 *" in training
    assert "own" not in training


@pytest.mark.parametrize(
    ("mamba", "accuracy", "words"),
    [
        (PEAK, (0.9, 0.2), "+1.00. Here the shape does not need attention."),
        (RISE, (0.9, 0.2), "Here the two shapes differ."),
        (PEAK, (0.3, 0.2), f"But `{MAMBA}` has not learned the task"),
    ],
)
def test_whether_the_shape_needs_attention(mamba, accuracy, words):
    runs = run(table(GPT2, {0: FLAT, 10: PEAK}), table(MAMBA, {0: FLAT, 10: mamba}, accuracy=accuracy))
    said = origins.attention_sentence(runs, origins.summary(runs))
    assert said.startswith(f"- `{GPT2}` has a fall of ")
    assert words in said


def test_what_changes_with_depth_is_said_by_kind():
    runs = run(
        table("own", {0: PEAK}, null=FLAT),
        table(GPT2, {10: PEAK}, noise=0.001, null=np.array(PEAK) * 0.9, mean_cosine=1 - np.array(PEAK)),
    )
    said = origins.change_sentence(origins.summary(runs), origins.correlations(runs))
    assert "- **Untouched** (1 checkpoint): excess over the null +1.00." in said
    assert "the null carries 0 %" in said
    assert "the null makes more than half of the fall at 0 of 1 checkpoint." in said
    assert "- **Trained from scratch** (1 checkpoint): its null +1.00, excess over the null" in said
    assert "mean cosine -1.00. Of the variance of I over the layers the null carries 90 %." in said
    assert "at 1 of 1 checkpoint." in said
    bare = run(table(GPT2, {0: PEAK}))
    assert "No run at hand" in origins.change_sentence(origins.summary(bare), origins.correlations(bare))


# Figures.


def test_figures_show_every_model():
    geometry = {"effective_rank": PEAK, "mean_cosine": PEAK, "state_entropy": PEAK}
    runs = run(
        table("own", {0: PEAK, 10: RISE}),
        *(table(name, {0: FLAT, 10: PEAK}, null=RISE, **geometry) for name in (GPT2, MAMBA, "random:gpt2-8x64")),
    )
    found = origins.summary(runs)
    sides = origins.sides_figure(runs)
    assert [ax.get_title() for ax in sides.axes] == list(origins.KINDS)
    assert len(sides.axes[3].lines) == 6, "solid and dashed"
    assert len(sides.axes[0].lines) == 1, "no null, no dashed line"
    assert len([ax for ax in origins.shapes_figure(runs).axes if ax.get_title()]) == 3
    training = origins.training_figure(found)
    assert [line.get_label() for line in training.axes[0].lines] == [GPT2, "random:gpt2-8x64", MAMBA]
    assert training.axes[0].lines[2].get_linestyle() == ":"
    layers = origins.layers_figure(runs)
    assert len(layers.axes) == 3 * 6
    np.testing.assert_allclose(layers.axes[2].lines[1].get_ydata(), np.array(PEAK) - RISE, atol=0.01)
    correlations = origins.correlations(runs)
    figure = origins.correlation_figure(correlations)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert f"{GPT2}, t, trained from scratch, step 10" in labels
    assert len(labels) == 6


def test_figures_of_runs_without_a_null():
    runs = run(table("own", {0: PEAK}))
    assert [ax.get_title() for ax in origins.sides_figure(runs).axes] == ["untouched"]
    runs = run(table(GPT2, {0: PEAK, 10: PEAK}))
    assert origins.training_figure(origins.summary(runs))
