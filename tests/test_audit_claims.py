"""The effects of C6 to C9: planted truths, and the same by recomputation."""

import pytest
import torch

from ridge_utils import inference
from ridge_utils.attention import AttentionShares
from ridge_utils.audit import claims
from ridge_utils.representations import Representations
from ridge_utils.unbiased import in_halves

CONTEXT = {"model": "m", "task": "t", "source": "own", "step": 0, "train_seed": None}
WIDTH, CLASSES = 12, 5


def planted(signal, n=80, seed=0):
    """States that know the class by so much at each layer and after the final norm, as representations."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(CLASSES, (n,), generator=generator)
    codes = torch.eye(WIDTH, dtype=torch.float64)[:CLASSES]
    noise = torch.randn(len(signal), n, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    states = torch.tensor(signal, dtype=torch.float64)[:, None, None] * codes[ids] + noise
    return Representations(states[:-1], states[-1], codes[ids], ids)


def effect(table, quantity, **where):
    rows = inference.effects(table, quantity)
    for column, value in where.items():
        rows = rows[rows[column] == value]
    (row,) = rows.itertuples()
    return row


# C9.

RIDGE = [0.0, 0.5, 2.0, 1.0, 0.7, 0.7]
BLOCKS = len(RIDGE) - 2


def attention_shares(n, seed):
    generator = torch.Generator().manual_seed(seed)
    signal, last, first = torch.rand(3, BLOCKS, n, dtype=torch.float64, generator=generator)
    tokens, signal_tokens = torch.randint(8, 20, (n,), generator=generator), torch.arange(n) % 3 + 1
    return AttentionShares(signal, last, first, tokens, signal_tokens, torch.arange(n) % 2 == 0)


def test_attention_is_that_of_the_block_where_the_states_of_the_other_half_know_most():
    pools = {"id": planted(RIDGE, seed=0), "ood": planted(RIDGE, n=70, seed=1)}
    marked = {"id": [*range(0, 80, 2)], "ood": [*range(5, 70)]}
    shares = {split: attention_shares(len(marked[split]), seed) for seed, split in enumerate(pools)}
    # One half is made to know most at block 3 and to attend there by 3: the other half is then judged at block 3.
    both = Representations.join(list(pools.values()))
    _, second = in_halves(both.hidden, both.targets).indices
    strong = both.hidden.clone()
    strong[3, second] += 20 * both.targets[second]
    parts = {"id": strong[:, :80], "ood": strong[:, 80:]}
    pools = {s: Representations(parts[s], pool.final_norm, pool.targets, pool.target_ids) for s, pool in pools.items()}
    table = claims.attention(pools, shares, marked, CONTEXT)
    others = set(second.tolist())
    for split, offset in (("id", 0), ("ood", 80)):
        share, falls, excesses, leads = shares[split], [], [], []
        for column, example in enumerate(marked[split]):
            first = share.first[:, column] * float(share.first_is_signal[column])
            signal = (share.signal[:, column] - first).tolist()
            layer = 2 if offset + example in others else 3
            falls.append(signal[layer - 1] - signal[-1])
            excesses.append(signal[layer - 1] - float(share.chance_after_first[column]))
            leads.append(float(share.last[-1, column]) - signal[-1])
        for quantity, expected in (
            ("ridge_attention_fall", falls),
            ("ridge_attention_excess", excesses),
            ("last_token_lead", leads),
        ):
            found = effect(table, quantity, split=split)
            assert found.estimate == pytest.approx(sum(expected) / len(expected))
            assert found.n == len(expected) and (found.layer, found.site) == (BLOCKS, "block")


def test_one_block_has_no_ridge_layer_and_still_a_last_block():
    pool = planted(RIDGE[:3])
    share = attention_shares(80, 0)
    share = AttentionShares(share.signal[:1], share.last[:1], share.first[:1], *list(vars(share).values())[3:])
    table = claims.attention({"id": pool}, {"id": share}, {"id": range(80)}, CONTEXT)
    assert set(table["quantity"].str.removesuffix("_low")) >= {"last_token_lead"}
    assert not table["quantity"].str.startswith("ridge").any()


# C7.


def test_the_fall_is_planted_and_judged_on_the_half_that_did_not_choose_it():
    pool = planted(RIDGE, n=400)
    row = CONTEXT | {"split": "all"}
    found = effect(claims.fall(pool, row), "information_fall", variant="last_block")
    halves = in_halves(pool.states, pool.targets)
    assert halves.chosen(range(1, BLOCKS), lambda means: means.information) == [2, 2]
    exact = [1 - float(half.means.information[BLOCKS] / half.means.information[2]) for half in halves.halves]
    assert found.estimate == pytest.approx(sum(exact) / 2, abs=0.01)
    assert found.low < found.estimate < found.high and found.low > 0.1
    assert (found.layer, found.site, found.n) == (BLOCKS, "block", 400)


def test_a_fall_from_nothing_has_its_divisor_alone_and_one_block_has_no_row():
    row = CONTEXT | {"split": "all"}
    table = claims.fall(planted([0.0] * 6), row)
    assert table["quantity"].tolist() == ["ridge_z"] and abs(table["value"].item()) < 3
    assert claims.fall(planted([0.0, 1.0, 1.0]), row).empty
