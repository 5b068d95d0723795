"""What the ridge is made of: against plain calculation, a closed form, and what a shift of all states must leave."""

import functools
import math

import pytest
import torch

from ridge_utils import inference, information
from ridge_utils.audit import anatomy, geometry
from ridge_utils.kernels import Estimator
from ridge_utils.representations import Representations
from tests import tables

CONTEXT = {"model": "m", "task": "t", "source": "own", "split": "all", "step": 0, "train_seed": None}
N = 300


def planted(signal, shared=0.0, seed=0):
    states, targets, ids = tables.planted(signal, N, seed)
    return states + shared, targets, ids


effect = functools.partial(tables.effect, variant="last_block")
RIDGE = [0.0, 0.5, 1.5, 2.0, 1.0, 0.7, 0.7]


def test_a_vector_that_all_states_share_moves_the_information_and_not_what_is_centred_or_read():
    states, targets, ids = planted(RIDGE)
    moved = states.clone()
    moved[-2] += 5.0  # the last block
    plain, shifted = (anatomy.effects(x, targets, CONTEXT, target_ids=ids) for x in (states, moved))
    for quantity in ("correlation_fall", "probe_fall"):
        assert effect(shifted, quantity).estimate == pytest.approx(effect(plain, quantity).estimate, abs=2e-3)
    assert effect(shifted, "information_fall").estimate > effect(plain, "information_fall").estimate + 0.1


def test_the_null_makes_all_of_the_fall_where_states_know_nothing():
    states, targets, _ = planted([0.0] * 7)
    states = states + torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 2.0])[:, None, None]
    table = anatomy.effects(states, targets, CONTEXT)
    share = effect(table, "bias_share")
    assert share.low < 1 < share.high and share.high - share.low < 1
    assert inference.effects(table, "information_fall").empty, "nothing to divide by"


def test_targets_that_are_all_the_same_give_no_share_of_anything():
    states, targets, _ = planted(RIDGE)
    table = anatomy.effects(states, targets[:1].expand(N, -1), CONTEXT)
    falls = "information_fall|information_rise|correlation_fall|plug_in_fall|bias_share|probe_fall"
    assert not table["quantity"].str.contains(falls).any()


def test_exits_are_those_of_the_ridge_layer_and_the_last_block():
    states, targets, _ = planted(RIDGE)
    exits = torch.zeros(6, N, dtype=torch.bool)
    exits[3, : N // 2] = True
    exits[5, : N // 4] = True
    table = anatomy.effects(states, targets, CONTEXT, exits=exits)
    layers = table[(table["quantity"] == "ridge_layer") & table["variant"].str.startswith("last_block")]["value"]
    assert set(layers) == {3}
    assert effect(table, "exit_gain").estimate == pytest.approx(0.25)


def test_gains_are_those_of_thirds_of_single_blocks():
    updates, targets, _ = planted([0.5, 0.6, 1.5, 1.2, 0.8, 0.4])
    table = anatomy.gains(updates, targets, CONTEXT)
    gain = torch.stack([information.unbiased_information(block, targets).means.information[0] for block in updates])
    first, middle, last = gain.view(3, 2).mean(1)
    for quantity, other in (("gain_over_last", last), ("gain_over_first", first)):
        (row,) = inference.effects(table, quantity).itertuples()
        assert row.estimate == pytest.approx(float((middle - other) / gain.mean()), abs=0.05)
        assert row.low < row.estimate < row.high


@pytest.mark.parametrize("layers", [2, 3])
def test_without_a_block_before_the_end_there_is_no_fall(layers):
    states, targets, _ = planted(RIDGE[:layers])
    table = anatomy.effects(states, targets, CONTEXT)
    assert "last_block" not in set(table["variant"])


def test_states_that_are_all_the_same_have_no_correlation():
    states, targets, ids = planted(RIDGE)
    states[0] = states[0, 0]
    pool = Representations(states[:-1], states[-1], targets, ids)
    table = anatomy.profile(pool, CONTEXT, sampling_seeds=[0], n_shuffles=2)
    assert table["value"].abs().max() < math.inf
    rows = table[table["quantity"].isin(["correlation", "alignment"]) & (table["layer"] == 0)]
    assert (rows["value"] == 0).all() and len(rows) == 2


def test_the_plug_in_of_the_profile_is_what_samples_of_that_size_give():
    states, targets, ids = planted(RIDGE)
    pool = Representations(states[:-1], states[-1], targets, ids)
    table = anatomy.profile(pool, CONTEXT, sampling_seeds=[0], n_shuffles=2)
    foretold = table[table["quantity"] == "plug_in"]["value"].to_numpy()
    n = int(table.loc[table["quantity"] == "plug_in", "n"].iloc[0])
    samples = [torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:n] for seed in range(40)]
    drawn = information.predictive_information(pool.states, targets, Estimator(alpha=2.0), samples=samples)
    assert abs(drawn.mean(0).numpy() - foretold).max() < 4 * (drawn.std(0).max().item() / math.sqrt(40))


def test_the_entropy_foretold_from_the_spread_is_that_of_one_shared_and_k_equal_directions():
    """States in a few equal groups around a shared direction: their Gram matrix has two kinds of eigenvalue."""
    groups = torch.eye(6, dtype=torch.float64).repeat_interleave(50, 0) * math.sqrt(0.1)
    states = torch.cat([torch.full((len(groups), 1), math.sqrt(0.9), dtype=torch.float64), groups], 1)
    exact = information.entropy(information.gram_matrix(states)).item()
    cosine, rank = geometry.mean_cosine(states), geometry.effective_rank(states)
    assert rank.item() == pytest.approx(5)
    assert anatomy.spread_entropy(cosine, rank).item() == pytest.approx(exact, rel=0.02)
    assert anatomy.spread_entropy(torch.tensor(1.0), rank).item() == 0.0
