"""The audit of the estimator on made-up states where the truth is known."""

import pandas as pd
import pytest
import torch

from ridge_utils import inference, information, models, results, statistics
from ridge_utils.audit import controls, geometry
from ridge_utils.errors import InputError
from ridge_utils.representations import Representations

BLOCKS, N, D, CLASSES = 4, 72, 12, 6
SEEDS = [0, 1, 2, 3]
CONTEXT = {"model": "m", "task": "t", "source": "synthetic"}


def made(signal, spread, seed=0, n=N):
    """States that know the target by ``signal`` and vary otherwise by ``spread`` around one direction, per layer."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    rows = torch.eye(D)[:CLASSES]
    common = torch.eye(D)[-1]
    noise = torch.randn(BLOCKS + 1, n, D, generator=generator)
    hidden = torch.stack([common + s * rows[labels] + v * z for s, v, z in zip(signal, spread, noise, strict=True)])
    return Representations(hidden, 3 * hidden[-1], rows[labels], labels)


TRUE_RIDGE = made([0, 0, 0.5, 2.0, 0.5], [0.1, 0.1, 0.2, 0.1, 0.5])
FLAT = made([0.5] * 5, [0.1] * 5)
# No state knows anything of the target, but the states of the layer in the middle point in more directions.
ANISOTROPY = made([0] * 5, [0.02, 0.1, 0.3, 1.0, 0.1])


def pools(pool=TRUE_RIDGE):
    half = len(pool) // 2
    return {"id": pool.select(range(half)), "ood": pool.select(range(half, 2 * half)), "all": pool}


def rows(step=0, **more):
    return {**CONTEXT, "step": step, "train_seed": None if step == 0 else 0, **more}


def fall(pool, variant):
    table = controls.ridge_falls({"all": pool}, rows(), n_halves=20, splits=["all"], variants=[variant])
    (effect,) = inference.effects(table, "ridge_fall").itertuples()
    return effect


@pytest.mark.parametrize("variant", controls.FALLS)
def test_a_true_ridge_falls_under_every_control(variant):
    effect = fall(TRUE_RIDGE, variant)
    assert effect.low > 0
    assert effect.p < 0.01
    assert (effect.layer, effect.site, effect.n, effect.variant) == (BLOCKS, "block", N, variant)


@pytest.mark.parametrize("variant", controls.FALLS)
def test_a_flat_curve_does_not_fall(variant):
    effect = fall(FLAT, variant)
    assert effect.low < 0 < effect.high


@pytest.mark.slow
def test_a_ridge_of_anisotropy_falls_but_its_excess_does_not():
    assert fall(ANISOTROPY, "").low > 0.1
    for variant in ("excess", "centred", "whitened"):
        effect = fall(ANISOTROPY, variant)
        assert effect.low < 0 < effect.high, variant


def test_the_fall_is_measured_on_the_examples_that_did_not_choose():
    pool = TRUE_RIDGE
    states, targets = pool.hidden, pool.targets
    generator = torch.Generator().manual_seed(7)
    choosing = torch.randperm(N, generator=generator)[: N // 2]
    measuring = torch.tensor(sorted(set(range(N)) - set(choosing.tolist())))
    chosen = information.predictive_information(states[:, choosing], targets[choosing]).argmax()
    measured = information.predictive_information(states[:, measuring], targets[measuring])
    expected = (measured[chosen] - measured[-1]).item()
    assert controls.cross_fitted_falls(states, targets, "", [3, 7])[1] == pytest.approx(expected, abs=1e-12)


def test_where_the_last_block_is_largest_there_is_no_fall():
    rises = made([0, 0.2, 0.5, 1.0, 2.0], [0.1] * 5)
    effect = fall(rises, "")
    assert (effect.estimate, effect.low, effect.high, effect.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("control", controls.CONTROLS, ids=lambda control: control.variant)
def test_every_control_reads_the_target_and_not_a_layer_where_all_states_are_the_same(control):
    pool = TRUE_RIDGE
    hidden = pool.hidden.clone()
    hidden[0] = 100 * hidden[0, :1]
    every = [torch.arange(N)]
    found = control.profiles(hidden, pool.targets, every)[0]
    assert found[0].item() == pytest.approx(0, abs=1e-9)
    assert found[3] > 0
    assert len({c.variant for c in controls.CONTROLS}) == len(controls.CONTROLS)
    assert not torch.allclose(found, controls.PAPER.profiles(hidden, pool.targets, every)[0])
    if not control.variant.startswith("bandwidth_0.0"):  # narrower than the noise: every state is one of its own
        assert control.excesses(hidden, pool.targets, 5, [0], every)[0, 3] > 0


@pytest.mark.parametrize("control", (controls.PAPER, *controls.CONTROLS), ids=lambda control: control.variant)
def test_several_samples_are_those_of_one_at_a_time(control):
    pool = TRUE_RIDGE
    halves = [statistics.subsample(N, N // 2, seed) for seed in range(2)]
    found = control.profiles(pool.states, pool.targets, halves)
    excesses = control.excesses(pool.states, pool.targets, 3, [5, 6], halves)
    for number, half in enumerate(halves):
        z, y = geometry.unit_length(control.states(pool.states[:, half])), control.targets(pool.targets[half])
        z, y = z.double(), geometry.unit_length(y)
        alone = information.predictive_information(z, y, control.estimator)
        torch.testing.assert_close(found[number], alone, atol=1e-12, rtol=0)
        alone -= information.permutation_null(z, y, 3, 5 + number, control.estimator).mean(0)
        torch.testing.assert_close(excesses[number], alone, atol=1e-12, rtol=0)


FEW = [c for c in controls.CONTROLS if c.variant in ("centred", "bandwidth_0.5", "laplacian", "linear")]


@pytest.fixture(scope="module")
def table():
    """Two checkpoints with the measurements of the page; the second one is a ridge of anisotropy."""
    tables = []
    for step, pool in ((0, TRUE_RIDGE), (5, ANISOTROPY)):
        drawn = pools(pool)
        tables.append(controls.layers(drawn, rows(step), n_samples=18, sampling_seeds=SEEDS, n_shuffles=32))
        two = {split: drawn[split] for split in ("id", "ood")}
        tables.append(
            controls.sweep(two, rows(step), n_samples=18, sampling_seeds=SEEDS, sizes=[9, 18, 99], controls=FEW)
        )
        tables.append(controls.ridge_falls(drawn, rows(step), n_halves=20))
    return pd.concat(tables, ignore_index=True)


@pytest.mark.slow
def test_the_table_is_tidy_and_holds_each_measurement_once(table):
    assert list(table.columns) == list(results.COLUMNS)
    assert table["value"].notna().all()
    assert not table.duplicated(list(results.KEY)).any()
    assert table["sample_seed"].isna().all()


def values(table, quantity, variant=""):
    """Means over sampling seeds by split, step, layer and site."""
    rows = table[(table["quantity"] == quantity) & (table["variant"] == variant)]
    return rows.set_index(["split", "step", "layer", "site"])["value"].sort_index()


@pytest.mark.slow
def test_the_excess_is_information_less_its_null(table):
    found, null, excess = (values(table, f"{name}_information") for name in ("predictive", "null", "excess"))
    assert (found - null - excess).abs().max() < 1e-12
    assert (values(table, "null_information_high") >= null - 1e-12).all()


@pytest.mark.slow
def test_the_ceilings_are_never_crossed(table):
    found = values(table, "predictive_information")
    assert (found <= values(table, "state_entropy") + 1e-9).all()
    target = values(table, "target_entropy")
    assert set(target.index.get_level_values("site")) == {"embedding"}
    target = target.droplevel(["layer", "site"])
    assert all(value <= target[split, step] + 1e-9 for (split, step, *_), value in found.items())


@pytest.mark.slow
def test_profiles_are_means_over_sampling_seeds_with_their_deviation(table):
    pool = pools()["ood"]
    estimator = information.Estimator(bandwidth=0.5)
    drawn = []
    for seed in SEEDS:
        chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:18]
        part = pool.select(chosen)
        drawn.append(information.predictive_information(part.states, part.targets, estimator))
    sites = results.sites(BLOCKS)
    for name, expected in (("", torch.stack(drawn).mean(0)), ("_deviation", torch.stack(drawn).std(0))):
        found = values(table, f"predictive_information{name}", "bandwidth_0.5").loc["ood", 0].loc[sites]
        torch.testing.assert_close(torch.tensor(found.to_numpy()), expected)
    falls = torch.stack([v[3] - v[4] for v in drawn])
    effect = inference.effects(table, "control_fall").query("split == 'ood' and step == 0").set_index("variant")
    assert effect.loc["bandwidth_0.5", "estimate"] == pytest.approx(falls.mean().item())
    expected = inference.subsample_effect(falls.tolist(), 18 / len(pool))
    assert effect.loc["bandwidth_0.5", "low"] == pytest.approx(expected.low)


@pytest.mark.slow
def test_numbers_of_examples_above_the_pool_are_left_out_and_the_pool_is_added(table):
    found = table[(table["variant"] == "samples") & (table["quantity"] == "distinct_targets")]
    assert set(found["n"]) == {9, 18, N // 2}
    assert found.set_index(["split", "step", "n"]).loc[("id", 0, N // 2), "value"] == CLASSES


@pytest.mark.slow
def test_a_true_ridge_is_above_its_null_and_one_of_anisotropy_is_not(table):
    found = controls.ridges(table).set_index(["step", "split", "variant"]).sort_index()
    assert len(found) == 2 * (2 * (len(FEW) + 2) + 2)
    true, false = found.loc[(0, "ood")], found.loc[(5, "ood")]
    assert true.loc[["", "excess", "centred", "linear"], "above_null"].all()
    assert set(true.loc[["", "excess", "centred"], "ridge_layer"]) == {3}
    assert false.loc[["", "bandwidth_0.5", "laplacian"], "has_ridge"].all()
    assert not false.loc[["", "excess", "bandwidth_0.5", "laplacian"], "above_null"].any()


def test_output_targets_are_rows_of_the_head_where_it_is_not_the_embedding():
    untied, tied = models.load("random:llama", device="cpu"), models.load("random:qwen2", device="cpu")
    pool = pools()["id"]
    assert controls.output_targets(tied, {"id": pool}) is None
    found = controls.output_targets(untied, {"id": pool})
    assert torch.equal(found["id"], untied.model.get_output_embeddings().weight[pool.target_ids])
    assert not torch.equal(found["id"], untied.embedding.weight[pool.target_ids])


def test_the_first_examples_of_each_split_and_both_together():
    drawn = pools()
    found = controls.first(drawn, 10)
    assert {split: len(pool) for split, pool in found.items()} == {"id": 10, "ood": 10, "all": 20}
    assert torch.equal(found["all"].hidden[:, 10:], drawn["ood"].hidden[:, :10])
    assert len(controls.first(drawn, 0)["all"]) == N
    for n in (3, N):
        with pytest.raises(InputError, match=f"between 4 and .*{N // 2}, but is {n}"):
            controls.first(drawn, n)
