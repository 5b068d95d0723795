"""The effects of C6 to C9: planted truths, and the same by recomputation."""

import pandas as pd
import pytest
import torch
from scipy import stats

from ridge_utils import inference, models, results, tasks
from ridge_utils.attention import AttentionShares
from ridge_utils.audit import claims, rules, verdicts
from ridge_utils.generation import Continuations
from ridge_utils.representations import Representations, collect
from ridge_utils.residual_scaling import evaluate, scaled
from ridge_utils.unbiased import in_halves, unbiased_information
from tests import tables
from tests.tables import effect

CONTEXT = {"model": "m", "task": "t", "source": "own", "step": 0, "train_seed": None}
NO_SAMPLE = {"sample_seed": None, "n": 40}


def planted(signal, n=80, seed=0):
    """States that know the class by so much at each layer and after the final norm, as representations."""
    states, targets, ids = tables.planted(signal, n, seed)
    return Representations(states[:-1], states[-1], targets, ids)


# C9.

RIDGE = [0.0, 0.5, 2.0, 1.0, 0.7, 0.7]
BLOCKS = len(RIDGE) - 2


def test_attention_is_that_of_the_block_where_the_states_of_the_other_half_know_most():
    pools = {"id": planted(RIDGE, seed=0), "ood": planted(RIDGE, n=70, seed=1)}
    marked = {"id": [*range(0, 80, 2)], "ood": [*range(5, 70)]}
    shares = {split: tables.attention_shares(BLOCKS, len(marked[split]), seed) for seed, split in enumerate(pools)}
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
    share = tables.attention_shares(BLOCKS, 80)
    share = AttentionShares(share.signal[:1], share.last[:1], share.first[:1], *list(vars(share).values())[3:])
    table = claims.attention({"id": pool}, {"id": share}, {"id": range(80)}, CONTEXT)
    assert set(table["quantity"].str.removesuffix("_low")) >= {"last_token_lead"}
    assert not table["quantity"].str.startswith("ridge").any()


# C5.


def test_a_skipped_block_costs_what_a_scale_of_0_does_and_the_ridge_is_the_other_half_s():
    """One half is made to know most at block 2 and the other at block 5: each is judged at the other's."""
    loaded = models.load("random:gpt2", device="cpu")
    examples = {split: tasks.load("synthetic_arithmetic", split, 12) for split in ("id", "ood")}
    pools = {split: collect(loaded, own, progress=False) for split, own in examples.items()}
    both = Representations.join(list(pools.values()))
    hidden = both.hidden.clone()
    first, second = in_halves(both.hidden, both.targets).indices
    hidden[2, first] += 1000 * both.targets[first]
    hidden[5, second] += 1000 * both.targets[second]
    parts = dict(zip(pools, hidden.split(12, 1), strict=True))
    pools = {s: Representations(parts[s], pool.final_norm, pool.targets, pool.target_ids) for s, pool in pools.items()}
    table = claims.ablation(loaded, {split: own[:7] for split, own in examples.items()}, pools, CONTEXT, 4)
    for offset, (split, own) in zip((0, 12), examples.items(), strict=True):
        loss = {}
        for block in range(7):
            scales = torch.ones(6)
            scales[max(block - 1, 0)] = float(block == 0)
            with scaled(loaded, scales):
                loss[block] = evaluate(loaded, own[:7], progress=False).cross_entropy
        end = sum(loss[block] for block in (4, 5, 6)) / 3
        at_two, at_five = (sum(loss[block] for block in three) / 3 for three in ((1, 2, 3), (4, 5, 6)))
        in_first = torch.tensor([offset + example in first.tolist() for example in range(7)])
        expected = torch.where(in_first, at_five, at_two) - end
        found = effect(table, "ablation_contrast", split=split, variant="skip")
        assert found.estimate == pytest.approx(expected.mean().item(), abs=1e-6)
        assert found.n == 7
        assert 0 < in_first.sum() < 7


def test_where_the_ridge_is_the_last_three_blocks_there_is_no_contrast():
    loaded = models.load("random:llama-3x16", device="cpu")
    examples = {"id": tasks.load("synthetic_arithmetic", "id", 8)}
    pools = {"id": collect(loaded, examples["id"], progress=False)}
    assert claims.ablation(loaded, examples, pools, CONTEXT, 4).empty


# C7.


def test_exits_are_judged_at_the_layer_that_the_other_half_chose():
    pools = {"id": planted(RIDGE, n=400), "ood": planted(RIDGE, n=300, seed=1)}
    generator = torch.Generator().manual_seed(0)
    exits = {split: torch.rand(BLOCKS + 1, len(pool), generator=generator) < 0.5 for split, pool in pools.items()}
    table = claims.exit_gain(pools, exits, CONTEXT)
    assert set(table["split"]) == {"id", "ood"} and set(table["quantity"].str.partition("_")[0]) == {"exit", "ridge"}
    for split, right in exits.items():
        at = table[(table["split"] == split) & (table["quantity"] == "ridge_layer")]["value"]
        assert at.tolist() == [2, 2]
        found = effect(table, "exit_gain", variant="last_block", split=split)
        changed = right[2].double() - right[BLOCKS].double()
        assert found.estimate == pytest.approx(float(changed.mean()))
        assert found.high - found.low == pytest.approx(2 * 1.96 * float(changed.std()) / len(changed) ** 0.5, rel=0.1)
        assert (found.layer, found.site, found.n) == (BLOCKS, "block", len(changed))
    assert claims.exit_gain({"ood": planted([0.0, 1.0, 1.0])}, {"ood": torch.ones(2, 80) > 0}, CONTEXT).empty


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


# C8.

LOSSES = {0: 3.0, 4: 2.0, 16: 1.0, 64: 1.5}


def checkpoints(last_block, n=40):
    """Checkpoints that differ in what their last block knows, by step; each has its own embedding of the targets."""
    made = {}
    for step, signal in last_block.items():
        pool = planted([0.0, 0.5, 2.0, 1.0, signal, signal], n, seed=7)
        random = torch.randn(
            tables.WIDTH, tables.WIDTH, generator=torch.Generator().manual_seed(step), dtype=torch.float64
        )
        made[step] = pool.hidden, pool.targets @ random
    return made


def rises(made, losses=LOSSES, seeds=(0,)):
    halves = {seed: {step: in_halves(hidden, targets) for step, (hidden, targets) in made.items()} for seed in seeds}
    context = {name: value for name, value in CONTEXT.items() if name not in ("step", "train_seed")}
    return claims.rises(halves, losses, context | {"split": "all"})


def test_rises_and_their_errors_are_those_of_leaving_each_example_out_of_all_checkpoints():
    made = checkpoints({4: 0.6, 16: 1.0, 64: 1.8})
    table = rises(made)

    def both(kept):
        known = [
            unbiased_information(hidden[:, kept], targets[kept]).means.information for hidden, targets in made.values()
        ]
        before, at, after = (float(layers[4]) for layers in known)
        rise = (after - at) / float(known[1][2]) / 2
        return torch.tensor([rise, rise - (at - before) / float(known[1][2]) / 2], dtype=torch.float64)

    values, errors = [], []
    for index in in_halves(*made[16]).indices:
        n, kept = len(index), index.tolist()
        left_out = torch.stack([both([j for j in kept if j != i]) for i in kept])
        values.append(n * both(kept) - (n - 1) * left_out.mean(0))
        errors.append(((n - 1) / n * (left_out - left_out.mean(0)).square().sum(0)).sqrt())
    expected, error = sum(values) / 2, (errors[0] ** 2 + errors[1] ** 2).sqrt() / 2
    for place, quantity in enumerate(("last_block_rise", "last_block_contrast")):
        found, value = effect(table, quantity), float(expected[place])
        reach = stats.t.ppf(0.975, 39) * float(error[place])
        assert (found.estimate, found.low, found.high) == pytest.approx((value, value - reach, value + reach))
        assert (found.step, found.train_seed, found.n, found.layer) == (64, 0, 40, 4)


def test_a_checkpoint_that_changes_nothing_rises_by_nothing_for_sure():
    """A sum of the variances of both would leave it in doubt."""
    same = checkpoints({16: 1.0})[16]
    found = effect(rises(dict.fromkeys((4, 16, 64), same)), "last_block_rise")
    assert (found.estimate, found.low, found.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_readings_rise_with_what_is_known_and_not_with_the_spread():
    """Between two checkpoints the states spread, in one seed alone they know more as well; two doublings apart."""

    def pool(signal, shift):
        states, targets, ids = tables.planted([signal], 600, seed=7)
        return Representations(states + shift, states[0], targets, ids)

    context = {name: value for name, value in CONTEXT.items() if name not in ("step", "train_seed")} | {"split": "all"}
    last = {0: {4: pool(1.0, 9.0), 16: pool(1.0, 9.0), 64: pool(1.0, 0.0)}}
    last[1] = {16: pool(0.6, 9.0), 64: pool(2.0, 0.0)}
    table = claims.readings(last, LOSSES, BLOCKS, context)
    for quantity in ("last_block_correlation_rise", "last_block_probe_rise"):
        same, more = (effect(table, quantity, train_seed=seed) for seed in (0, 1))
        assert same.estimate == pytest.approx(0.0, abs=1e-3) and more.low > 0.1
        assert (more.step, more.layer, more.site, more.n) == (64, BLOCKS, "block", 600)
    before, after = (
        unbiased_information((z := pool(signal, 0.0).hidden) - z.mean(1, keepdim=True), pool(signal, 0.0).targets)
        for signal in (0.6, 2.0)
    )
    exact = float(after.correlation.value[0] / before.correlation.value[0] - 1) / 2
    assert effect(table, "last_block_correlation_rise", train_seed=1).estimate == pytest.approx(exact, rel=0.02)
    assert claims.readings(last, LOSSES | {64: 0.5}, BLOCKS, context).empty


def test_what_is_not_asked_is_not_written():
    made = checkpoints({4: 0.6, 16: 1.0, 64: 1.8})
    assert rises(made, LOSSES | {0: 0.5}).empty
    assert rises(made, LOSSES | {64: 0.5}).empty
    assert inference.effects(rises(made, LOSSES | {4: 0.5}), "last_block_contrast").empty
    blind = {step: (hidden.flip(1), targets) for step, (hidden, targets) in made.items()}
    assert set(rises(blind)["quantity"]) == {"ridge_z"}, "nothing to divide by"
    assert set(rises(made, seeds=(3, 5))["train_seed"]) == {3, 5}


# C6.

STEPS = [*range(1, 11), 13, *range(16, 26)]


def texts(first, last, n=200, seed=0):
    """Texts whose states know their tokens by so much at each layer, until step 12 and after it."""
    made = [planted(first if step < 12 else last, n, seed=seed + step) for step in range(25)]
    return Continuations(
        torch.stack([pool.states for pool in made], 2),
        torch.stack([pool.target_ids for pool in made], 1),
        torch.stack([pool.targets for pool in made], 1),
    )


PROFILE = [0.0, 0.4, 0.7, 1.1, 1.5, 2.0, 1.3, 1.3]


def test_a_profile_that_stays_has_a_correlation_of_one_and_one_that_turns_about_of_minus_one():
    row = CONTEXT | {"split": "all"}
    turned = [0.0, *[2.4 - value for value in PROFILE[1:]]]
    for last, truth in ((PROFILE, 1.0), (turned, -1.0)):
        found = effect(claims.windows(texts(PROFILE, last), STEPS, row), "window_correlation")
        assert found.estimate == pytest.approx(truth, abs=0.02)
        assert (found.n, found.layer, found.site) == (200, 6, "block")


def test_growth_is_that_of_the_means_over_blocks_and_steps():
    row = CONTEXT | {"split": "all"}
    made = texts(PROFILE, [value * 1.3 for value in PROFILE])
    found = effect(claims.windows(made, STEPS, row), "level_growth")
    levels = [
        torch.stack(
            [unbiased_information(made.hidden[1:, :, s], made.targets[:, s]).information.value for s in steps]
        ).mean()
        for steps in (range(10), range(15, 25))
    ]
    assert found.estimate == pytest.approx(float(levels[1] / levels[0] - 1), abs=0.01)
    assert found.low < found.estimate < found.high and found.low > 0.1
    same = effect(claims.windows(texts(PROFILE, PROFILE), STEPS, row), "level_growth")
    assert same.low < 0 < same.high


def test_shuffled_texts_have_no_level_to_grow():
    made = texts(PROFILE, PROFILE)
    shuffled = Continuations(made.states, made.token_ids, made.targets[torch.randperm(200)])
    assert inference.effects(claims.windows(shuffled, STEPS, CONTEXT | {"split": "all"}), "level_growth").empty


def test_windows_that_share_a_step_are_not_compared():
    row = CONTEXT | {"split": "all"}
    assert claims.windows(texts(PROFILE, PROFILE), STEPS[:19], row).empty
    assert claims.windows(texts(PROFILE, PROFILE, n=7), STEPS, row).empty


def test_texts_that_are_all_the_same_have_no_profile():
    made = texts(PROFILE, PROFILE)
    same = Continuations(made.states, made.token_ids, made.targets[:1].expand(200, -1, -1))
    assert claims.windows(same, STEPS, CONTEXT | {"split": "all"}).empty


def test_information_on_subsets_is_that_of_the_subsets():
    pool = planted(RIDGE, n=30)
    subsets = torch.stack([torch.randperm(30)[:11] for _ in range(3)])
    found = claims._information_on(subsets, pool.hidden, pool.targets)
    for row, subset in zip(found, subsets, strict=True):
        own = unbiased_information(pool.hidden[:, subset], pool.targets[subset]).means.information
        assert torch.allclose(row, own, atol=1e-12)


# To the verdict.


def verdicts_on(claim, page, table):
    tables = {other: table[:0] for other in verdicts.pages()} | {page: table}
    return [judgement.verdict for judgement in rules.judge(rules.RULES[claim], tables)]


def test_the_judge_finds_each_effect():
    row = CONTEXT | {"split": "all"}
    grown = claims.windows(texts(PROFILE, [value * 1.5 for value in PROFILE]), STEPS, row)
    assert verdicts_on("C6", "multi_token", grown) == ["reproduced"]
    losses = [
        results.measurements([loss], [(4, "final_norm")], "loss", **CONTEXT | {"step": step, "split": "id"} | NO_SAMPLE)
        for step, loss in LOSSES.items()
    ]
    risen = [*losses, rises(checkpoints({4: 0.9, 16: 1.0, 64: 2.0}, n=200))]
    assert verdicts_on("C8", "overfitting", pd.concat(risen, ignore_index=True)) == ["reproduced"]
    blind = {
        step: (hidden.flip(1), targets) for step, (hidden, targets) in checkpoints({4: 1.0, 16: 1.0, 64: 1.0}).items()
    }
    assert verdicts_on("C8", "overfitting", pd.concat([*losses, rises(blind)], ignore_index=True)) == ["undecided"]
    over = pd.concat([*losses, losses[-1].assign(value=0.1, step=128)], ignore_index=True)
    assert verdicts_on("C8", "overfitting", over) == ["not asked"], "the lowest loss is the last"
    cut = [claims.fall(planted(RIDGE, n=400), row | {"model": f"m[:{depth}]", "step": 5}) for depth in (2, 4)]
    assert verdicts_on("C7", "truncation", pd.concat(cut, ignore_index=True)) == ["undecided"], "the whole is not there"
    pool, share = planted(RIDGE), tables.attention_shares(BLOCKS, 80)
    share.signal[-1] = share.first[-1] * share.first_is_signal
    share.signal[1] += 1
    attended = claims.attention(
        {"id": pool, "ood": pool}, {"id": share, "ood": share}, dict.fromkeys(("id", "ood"), range(80)), CONTEXT
    )
    assert verdicts_on("C9", "attention", attended) == ["reproduced"] * 2
