import collections
import math

import numpy as np
import pytest
import torch

from ridge_utils import tasks
from ridge_utils.audit.memorisation import depth_difference, depth_effect, randomise, recall_depth
from ridge_utils.errors import InputError
from ridge_utils.tasks import Example


@pytest.fixture(scope="module")
def examples():
    return tasks.load("synthetic_arithmetic", "train", 60)


def test_a_share_of_the_targets_is_replaced_by_others_of_the_set(llama, examples):
    made, is_random = randomise(llama, examples, 0.3)
    assert int(is_random.sum()) == 18
    assert randomise(llama, examples, 0.3)[0] == made
    assert randomise(llama, examples, 0.3, seed=1)[0] != made
    targets = {example.target for example in examples}
    for before, after, replaced in zip(examples, made, is_random.tolist(), strict=True):
        assert after.prompt == before.prompt
        assert after.target in targets
        assert (after.target[0] != before.target[0]) == replaced, "the first token, a byte here, decides"
        assert replaced or after == before


def test_random_targets_keep_their_frequencies(llama):
    rows = [Example(f"S{n} S", "1" if n % 4 else "2", "train", "own") for n in range(400)]
    rows += [Example(f"N{n} S", "3", "train", "own") for n in range(100)]
    made, is_random = randomise(llama, rows, 0.998)
    assert int(is_random.sum()) == 499
    # Of the 100 with target 3: three quarters of the others are 1.
    drawn = collections.Counter(example.target for example in made[400:])
    assert 60 <= drawn["1"] <= 90
    assert drawn["1"] + drawn["2"] >= 99


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 0.001, math.nan])
def test_a_share_that_leaves_nothing_to_compare_is_refused(llama, examples, share):
    with pytest.raises(InputError, match=r"share must lie between 0 and 1, replace some of 60 targets"):
        randomise(llama, examples, share)


def test_equal_targets_are_refused(llama):
    rows = [Example(f"S{n} S", f"1{n}", "train", "own") for n in range(4)]
    with pytest.raises(InputError, match="All 4 targets begin with the same token"):
        randomise(llama, rows, 0.5)


@pytest.mark.parametrize(
    ("curve", "depth"),
    [
        ([0, 0, 0, 1.0], 2.5),
        ([0, 0.5, 1.0], 1.0),
        ([0, 0.2, 0.8], 1 + 0.2 / 0.6),
        ([0.4, 0.3, 0.6], 0.0),
        ([0, 0.9, 0.1, 0.4], 0.2 / 0.9),  # the first time counts, though it falls again
        ([0, 0, 0.25], 1.5),
    ],
)
def test_the_depth_of_half_the_recall(curve, depth):
    assert recall_depth(torch.tensor(curve)).item() == pytest.approx(depth)


def test_nothing_recalled_has_no_depth():
    assert math.isnan(recall_depth(torch.tensor([0.0, 0.5, 0.0])))
    nothing, something = torch.zeros(5, 8, dtype=torch.bool), torch.ones(5, 8, dtype=torch.bool)
    assert depth_effect(nothing) is None
    assert depth_difference(nothing, something) is None
    assert depth_difference(something, nothing) is None


def planted(depths, layers=13):
    """Examples that are recalled from their own layer on."""
    return torch.arange(layers).unsqueeze(1) >= torch.tensor(depths)


def test_a_planted_difference_is_found():
    rng = np.random.default_rng(0)
    late, early = planted(rng.integers(8, 12, 40)), planted(rng.integers(3, 7, 40))
    apart = depth_difference(late, early)
    assert 4 < apart.low < apart.estimate < apart.high < 6
    assert apart.p < 0.001
    back = depth_difference(early, late)
    assert back.estimate == pytest.approx(-apart.estimate)
    own = depth_effect(late)
    assert own.low < own.estimate < own.high
    assert own.estimate == pytest.approx(recall_depth(late.double().mean(1)).item())
    assert math.isnan(own.p)


def test_no_difference_is_not_found_more_often_than_it_may():
    rng = np.random.default_rng(1)
    found = [depth_difference(planted(rng.integers(2, 12, 30)), planted(rng.integers(2, 12, 30))) for _ in range(20)]
    covered = np.mean([effect.low <= 0 <= effect.high for effect in found])
    assert covered >= 0.8
    assert np.mean([effect.p <= 0.05 for effect in found]) <= 0.2


def test_the_interval_is_that_of_a_plain_bootstrap():
    rng = np.random.default_rng(2)
    correct = planted(rng.integers(1, 13, 25))
    draws = []
    for _ in range(2000):
        drawn = correct[:, rng.integers(25, size=25)].double().mean(1)
        draws.append(recall_depth(drawn).item())
    low, high = np.nanquantile(draws, [0.025, 0.975])
    found = depth_effect(correct)
    assert found.low == pytest.approx(low, abs=0.4)
    assert found.high == pytest.approx(high, abs=0.4)


def test_resamples_without_recall_are_left_out():
    rare = torch.zeros(5, 12, dtype=torch.bool)
    rare[3:, 0] = True
    found = depth_effect(rare)
    assert (found.estimate, found.low, found.high) == (2.5, 2.5, 2.5)
