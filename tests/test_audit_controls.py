"""The audit of the estimator on made-up states where the truth is known."""

import pandas as pd
import pytest
import torch

from ridge_utils import inference, information, models, results
from ridge_utils.audit import controls
from ridge_utils.representations import Representations

BLOCKS, N, D, CLASSES = 4, 72, 12, 6
SEEDS = [0, 1, 2, 3]
#: The paper's own estimator, which the others are compared with.
PAPER = controls.Control("", "the paper's")
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
# No state knows anything of the target, but the states of the layer in the middle point in more directions.
ANISOTROPY = made([0] * 5, [0.02, 0.1, 0.3, 1.0, 0.1])


def pools(pool=TRUE_RIDGE):
    half = len(pool) // 2
    return {"id": pool.select(range(half)), "ood": pool.select(range(half, 2 * half))}


def rows(step=0, **more):
    return {**CONTEXT, "step": step, "train_seed": None if step == 0 else 0, **more}


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
    assert not torch.allclose(found, PAPER.profiles(hidden, pool.targets, every)[0])
    if not control.variant.startswith("bandwidth_0.0"):  # narrower than the noise: every state is one of its own
        assert found[3] > control.nulls(hidden, pool.targets, 5, [0], every)[0, 3]


FEW = [c for c in controls.CONTROLS if c.variant in ("centred", "bandwidth_0.5", "laplacian", "linear")]


@pytest.fixture(scope="module")
def table():
    """Two checkpoints with the measurements of the page; the second one is a ridge of anisotropy."""
    settings = {"n_samples": 18, "sampling_seeds": SEEDS, "controls": FEW}
    checkpoints = ((0, TRUE_RIDGE), (5, ANISOTROPY))
    return pd.concat(
        [controls.sweep(pools(pool), rows(step), **settings) for step, pool in checkpoints], ignore_index=True
    )


@pytest.mark.slow
def test_the_table_is_tidy_and_holds_each_measurement_once(table):
    assert list(table.columns) == list(results.COLUMNS)
    assert table["value"].notna().all()
    assert not table.duplicated(list(results.KEY)).any()
    assert table["sample_seed"].isna().all()


def values(table, quantity, variant):
    """Means over sampling seeds by split, step, layer and site."""
    rows = table[(table["quantity"] == quantity) & (table["variant"] == variant)]
    return rows.set_index(["split", "step", "layer", "site"])["value"].sort_index()


@pytest.mark.slow
def test_profiles_are_means_over_sampling_seeds(table):
    pool = pools()["ood"]
    estimator = information.Estimator(bandwidth=0.5)
    drawn = []
    for seed in SEEDS:
        chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:18]
        part = pool.select(chosen)
        drawn.append(information.predictive_information(part.states, part.targets, estimator))
    sites = results.sites(BLOCKS)
    found = values(table, "predictive_information", "bandwidth_0.5").loc["ood", 0].loc[sites]
    torch.testing.assert_close(torch.tensor(found.to_numpy()), torch.stack(drawn).mean(0))
    falls = torch.stack([v[3] - v[4] for v in drawn])
    effect = inference.effects(table, "control_fall").query("split == 'ood' and step == 0").set_index("variant")
    assert effect.loc["bandwidth_0.5", "estimate"] == pytest.approx(falls.mean().item())
    expected = inference.subsample_effect(falls.tolist(), 18 / len(pool))
    assert effect.loc["bandwidth_0.5", "low"] == pytest.approx(expected.low)


@pytest.mark.slow
def test_a_true_ridge_is_above_its_null_and_one_of_anisotropy_is_not(table):
    found = controls.ridges(table).set_index(["step", "split", "variant"]).sort_index()
    assert len(found) == 2 * 2 * len(FEW)
    true, false = found.loc[(0, "ood")], found.loc[(5, "ood")]
    assert true.loc[["centred", "linear"], "above_null"].all()
    assert true.loc["centred", "ridge_layer"] == 3
    assert false.loc[["bandwidth_0.5", "laplacian"], "has_ridge"].all()
    assert not false.loc[["bandwidth_0.5", "laplacian"], "above_null"].any()


def test_output_targets_are_rows_of_the_head_where_it_is_not_the_embedding():
    untied, tied = models.load("random:llama", device="cpu"), models.load("random:qwen2", device="cpu")
    pool = pools()["id"]
    assert controls.output_targets(tied, {"id": pool}) is None
    found = controls.output_targets(untied, {"id": pool})
    assert torch.equal(found["id"], untied.model.get_output_embeddings().weight[pool.target_ids])
    assert not torch.equal(found["id"], untied.embedding.weight[pool.target_ids])
