"""Tables of measurements against the functions that they come from, on tiny random models and planted states."""

import dataclasses
from typing import get_args

import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn.functional import cross_entropy

from ridge_utils import (
    early_exit,
    inference,
    information,
    measures,
    models,
    residual_scaling,
    results,
    sequences,
)
from ridge_utils.attention import AttentionShares
from ridge_utils.errors import InputError
from ridge_utils.generation import Continuations
from ridge_utils.representations import Representations, collect, encode
from ridge_utils.residual_scaling import FitSettings
from tests import tables

CONTEXT = {"model": "m", "task": "t", "source": "own", "step": 0, "train_seed": None}


@pytest.fixture(scope="module")
def pools(model, examples):
    return {split: collect(model, some, progress=False) for split, some in examples.items()}


def subsample(pool, n, seed):
    return torch.randperm(pool, generator=torch.Generator().manual_seed(seed))[:n]


def values(table, quantity, **where):
    """The values of a quantity in the order of the table, as a tensor."""
    return torch.tensor(tables.rows(table, quantity, **where)["value"].tolist(), dtype=torch.float64)


def test_information_rows_are_those_of_the_estimator(pools):
    both = pools | {"all": Representations.join(list(pools.values()))}
    estimator = information.Estimator("laplacian", 0.7, 2.0)
    for quantity in get_args(measures.Quantity):
        table = measures.information_profile(
            both, CONTEXT, quantity=quantity, n_samples=5, sampling_seeds=[3, 1], estimator=estimator
        )
        sites = [(1, "block"), (2, "block")]
        if quantity == "predictive_information":
            sites = [(0, "embedding"), *sites, (2, "final_norm")]
        assert len(table) == 3 * 2 * len(sites)
        assert set(table["n"]) == {5}
        assert table["train_seed"].isna().all()
        for split, pool in both.items():
            for seed in (3, 1):
                index = subsample(len(pool), 5, seed)
                if quantity == "predictive_information":
                    states = torch.cat([pool.hidden[:, index], pool.final_norm[index].unsqueeze(0)])
                else:
                    states = pool.hidden[1:, index] - pool.hidden[:-1, index]
                expected = information.predictive_information(states, pool.targets[index], estimator)
                rows = table[(table["split"] == split) & (table["sample_seed"] == seed)]
                assert list(zip(rows["layer"], rows["site"], strict=True)) == sites
                torch.testing.assert_close(values(rows, quantity), expected, atol=1e-9, rtol=0)


def test_null_rows_are_means_over_shuffles_of_the_same_samples(pools):
    sampling = {"n_samples": 5, "sampling_seeds": [3], "estimator": information.Estimator("laplacian", 0.7, 2.0)}
    for quantity in get_args(measures.Quantity):
        table = measures.null_profile({"id": pools["id"]}, CONTEXT, quantity=quantity, n_shuffles=3, **sampling)
        sample = pools["id"].select(subsample(len(pools["id"]), 5, 3))
        vectors = sample.updates if quantity == "incremental_information" else sample.states
        shuffled = information.permutation_null(vectors, sample.targets, 3, 3, sampling["estimator"])
        torch.testing.assert_close(values(table, "null_information"), shuffled.mean(0))
        measured = measures.information_profile({"id": pools["id"]}, CONTEXT, quantity=quantity, **sampling)
        columns = ["split", "sample_seed", "n", "layer", "site"]
        assert table[columns].equals(measured[columns])


def test_unbiased_rows_are_those_of_the_states_or_the_updates_with_their_interval(pools):
    pool = pools["id"]
    for quantity, vectors in (("predictive_information", pool.states), ("incremental_information", pool.updates)):
        table = measures.unbiased_profile({"id": pool}, CONTEXT, quantity=quantity)
        for index, x in enumerate(vectors):
            one = information.unbiased_information(x, pool.targets).information
            half_width = stats.t.ppf(0.975, len(pool) - 1) * one.standard_error.item()
            value, low, high = (
                values(table, f"unbiased_information{end}")[index].item() for end in ("", "_low", "_high")
            )
            assert value == pytest.approx(one.value.item(), abs=1e-12)
            assert (high - value, value - low) == pytest.approx((half_width, half_width), rel=1e-9)


def logits(loaded, example):
    """The whole model's logits after one prompt, without padding."""
    with torch.no_grad():
        return loaded.model(torch.tensor([encode(loaded, example)[0]])).logits[0, -1].double()


def test_loss_is_the_cross_entropy_of_the_models_own_logits(model, pools, examples):
    table = measures.loss(model, pools, CONTEXT)
    assert list(table["split"]) == ["id", "ood"]
    assert set(table["site"]) == {"final_norm"}
    assert set(table["n"]) == {7}
    for split, some in examples.items():
        each = [cross_entropy(logits(model, e), torch.tensor(encode(model, e)[1][0])).item() for e in some]
        assert values(table, "loss", split=split).item() == pytest.approx(sum(each) / 7, abs=1e-5)


def test_early_exit_accuracy_is_a_share_of_the_pool(model, pools, examples):
    # With the model's own predictions as targets the last exit is right but for one example that is made wrong.
    own = torch.tensor([logits(model, e).argmax().item() for e in examples["id"]])
    own[2] = (own[2] + 1) % 256
    planted = dataclasses.replace(pools["id"], target_ids=own)
    table = measures.early_exit_accuracy(model, {"id": planted, "ood": pools["ood"]}, CONTEXT)
    shares = values(table, "early_exit_accuracy", split="id")
    assert list(table[table["split"] == "id"]["site"]) == ["embedding", "block", "block"]
    assert shares[-1] == pytest.approx(6 / 7)
    with torch.no_grad():
        read = model.model.get_output_embeddings()(model.final_norm(planted.hidden[1])).argmax(-1)
    assert shares[1] == pytest.approx((read == own).sum().item() / 7)
    assert table["sample_seed"].isna().all()


@pytest.mark.parametrize("splits", [["id", "ood"], ["ood"], []])
def test_exits_by_split_are_those_of_each_pool(model, pools, splits):
    some = {split: pools[split] for split in splits} | {"all": Representations.join([pools["id"], pools["ood"]])}
    found = early_exit.by_split(model, some)
    assert list(found) == list(some)
    for split, pool in some.items():
        assert torch.equal(found[split], early_exit.correct(model, pool))


def test_attention_rows_are_means_over_the_sample():
    torch.manual_seed(0)
    signal, last, first = torch.rand(3, 2, 6, dtype=torch.float64)
    tokens, signal_tokens = torch.tensor([10, 12, 9, 20, 8, 11]), torch.tensor([3, 4, 1, 5, 2, 2])
    is_first = torch.tensor([True, False, True, True, False, False])
    shares = AttentionShares(signal, last, first, tokens, signal_tokens, is_first)
    table = measures.attention_shares({"id": shares}, CONTEXT, n_samples=4, sampling_seeds=[0, 7])
    assert len(table[table["sample_seed"].notna()]) == 5 * 2 * 2
    assert len(table) == 5 * 2 * 2 + 3 * 5, "and three effects"
    for seed in (0, 7):
        index = subsample(6, 4, seed).tolist()
        for block in (0, 1):
            after = [signal[block, i] - (first[block, i] if is_first[i] else 0) for i in index]
            expected = {
                "signal_attention": sum(signal[block, i] for i in index) / 4,
                "signal_after_first_attention": sum(after) / 4,
                "last_token_attention": sum(last[block, i] for i in index) / 4,
                "first_token_attention": sum(first[block, i] for i in index) / 4,
                "chance_attention": sum((signal_tokens[i] - int(is_first[i])) / tokens[i] for i in index) / 4,
            }
            for quantity, value in expected.items():
                got = values(table, quantity, sample_seed=seed, layer=block + 1)
                assert got.item() == pytest.approx(float(value), abs=1e-6), quantity
    assert set(table["site"]) == {"block"}


def test_attention_effects_use_every_example_once_and_let_none_choose_its_block():
    torch.manual_seed(0)
    # The halves disagree: block 1 is the largest on one of them, block 2 on the other.
    order = subsample(9, 9, 0).tolist()
    first_half, second_half = order[:4], order[4:]
    signal = 2 + torch.rand(3, 9, dtype=torch.float64) / 10
    signal[0, first_half] += 3
    signal[1, second_half] += 3
    shares = dataclasses.replace(tables.attention_shares(3, 9), signal=signal)
    found = measures.attention_effects(shares)
    falls, excesses, lasts = [], [], []
    for i in range(9):
        after = [float(signal[b, i]) - (float(shares.first[b, i]) if i % 2 == 0 else 0) for b in range(3)]
        peak = 0 if i in second_half else 1
        falls.append(after[peak] - after[2])
        excesses.append(after[peak] - (int(shares.signal_tokens[i]) - (i % 2 == 0)) / int(shares.tokens[i]))
        lasts.append(float(shares.last[2, i]) - after[2])
    for name, expected in (
        ("signal_attention_fall", falls),
        ("signal_attention_excess", excesses),
        ("last_token_attention_excess", lasts),
    ):
        assert found[name].estimate == pytest.approx(sum(expected) / 9)
        assert found[name].size == pytest.approx(pd.Series(expected).mean() / pd.Series(expected).std())
    table = measures.attention_shares({"ood": shares}, CONTEXT, n_samples=4, sampling_seeds=[0])
    stored = inference.effects(table, "signal_attention_fall").iloc[0]
    effect = found["signal_attention_fall"]
    assert (stored["estimate"], stored["low"], stored["p"]) == pytest.approx((effect.estimate, effect.low, effect.p))
    assert (stored["split"], stored["n"], stored["layer"], stored["site"]) == ("ood", 9, 3, "block")


def test_noise_alone_has_no_peak():
    """Chosen on the examples that it is measured on, the largest of 30 equal blocks would seem to fall every time."""
    falls, naive = [], []
    for seed in range(60):
        signal = torch.rand(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        shares = tables.attention_shares(30, 20, seed)
        shares = dataclasses.replace(shares, signal=signal, first_is_signal=torch.zeros(20, dtype=torch.bool))
        falls.append(measures.attention_effects(shares)["signal_attention_fall"].estimate)
        naive.append((signal.mean(1).max() - signal[-1].mean()).item())
    error = pd.Series(falls).std() / 60**0.5
    assert abs(pd.Series(falls).mean()) < 3 * error
    assert pd.Series(naive).mean() > 10 * error


def test_residual_scaling_rows(model, examples, monkeypatch):
    fits, settings = 2, FitSettings(steps=3, batch_size=2)
    n = len(examples["id"])

    def measure(loaded=model, settings=settings):
        return measures.residual_scaling(loaded, examples, CONTEXT, fits, settings)

    table = measure()
    effects = table["quantity"].str.contains("scale_shift|scaled_accuracy_gain")
    # Untouched; of each fit two scales, how it ended, accuracy and loss on both splits.
    assert len(table[~effects]) == 2 * 2 + 2 * fits * (2 + 2 + 2 * 2)
    assert not table.duplicated(list(results.KEY)).any()
    for split, some in examples.items():
        predicted = [logits(model, e) for e in some]
        wanted = [encode(model, e)[1][0] for e in some]
        right = [p.argmax().item() == w for p, w in zip(predicted, wanted, strict=True)]
        nats = [cross_entropy(p, torch.tensor(w)).item() for p, w in zip(predicted, wanted, strict=True)]
        assert values(table, "accuracy", split=split).item() == pytest.approx(sum(right) / n)
        assert values(table, "loss", split=split).item() == pytest.approx(sum(nats) / n, abs=1e-5)
        for number in range(fits):
            rows = table[table["sample_seed"] == number]
            fit = residual_scaling.fit(model, some[number::fits], settings, progress=False)
            assert torch.equal(values(rows, "residual_scale", split=split), fit.scales)
            assert not torch.equal(fit.scales, torch.ones(2, dtype=torch.float64))
            assert values(rows, "fit_steps", split=split).item() == len(fit.losses) - 1
            assert values(rows, "fit_converged", split=split).item() == float(fit.converged)
            for other, others in examples.items():
                unseen = [e for i, e in enumerate(others) if other != split or i % fits != number]
                after = residual_scaling.evaluate(model, unseen, fit.scales, 2, progress=False)
                accuracy = values(rows, f"accuracy_scaled_on_{split}", split=other).item()
                assert accuracy == pytest.approx(after.correct.double().mean().item())
                loss = values(rows, f"loss_scaled_on_{split}", split=other).item()
                assert loss == pytest.approx(after.cross_entropy.mean().item(), abs=1e-6)
    (shift,) = inference.effects(table, "scale_shift").to_dict("records")
    on_id, on_ood = (values(table, "residual_scale", split=split, layer=2) for split in ("id", "ood"))
    assert (shift["split"], shift["n"], shift["layer"], shift["site"]) == ("ood", fits, 2, "block")
    assert shift["estimate"] == pytest.approx((on_ood - on_id).mean().item())
    assert shift["p"] == pytest.approx(stats.ttest_rel(on_ood, on_id).pvalue)
    ends = table[~table["quantity"].str.startswith(("residual_scale", "scale_shift"))]
    assert set(zip(ends["layer"], ends["site"], strict=True)) == {(2, "final_norm")}

    def refuse(*_arguments, **_options):
        raise AssertionError("computed again")

    for name in ("fit", "evaluate"):
        monkeypatch.setattr(residual_scaling, name, refuse)
    pd.testing.assert_frame_equal(measure(), table)
    with pytest.raises(AssertionError, match="computed again"):
        measure(settings=dataclasses.replace(settings, steps=2))
    with pytest.raises(AssertionError, match="computed again"):
        measure(loaded=models.truncate(model, 1))
    with pytest.raises(InputError, match=f"5 fits on examples of their own need 10 examples a split or more.*are {n}"):
        measures.residual_scaling(model, examples, CONTEXT, 5, settings)


def test_the_gain_is_within_examples_that_the_fit_has_not_seen(model, examples, monkeypatch):
    """Planted answers: untouched, the model is right on examples 0 and 1; fit 0 sees 0, 2, fit 1 sees 1, 3."""
    some = {split: every[:4] for split, every in examples.items()}
    place = {example: index for every in some.values() for index, example in enumerate(every)}
    right = {None: {0, 1}, 0: {0, 3}, 1: {0, 2, 3}}

    def fit(_loaded, fitted_on, _settings, _label):
        number = place[fitted_on[0]]
        return residual_scaling.Fit(torch.full((2,), 1.0 + number).double(), torch.zeros(1), torch.tensor(True))

    def evaluate(_loaded, evaluated_on, scales, _batch_size, _label):
        known = right[None if scales is None else int(scales[0]) - 1]
        correct = torch.tensor([place[example] in known for example in evaluated_on])
        return residual_scaling.Evaluation(correct, torch.ones(len(correct), dtype=torch.float64))

    monkeypatch.setattr(residual_scaling, "fit", fit)
    monkeypatch.setattr(residual_scaling, "evaluate", evaluate)
    table = measures.residual_scaling(model, some, CONTEXT, 2, FitSettings())
    gain = inference.effects(table, "scaled_accuracy_gain").set_index("split").loc["ood"]
    of_fits = [inference.paired_effect([1, 0], [0, 1]), inference.paired_effect([1, 0], [1, 1])]  # examples 1, 3; 0, 2
    expected = inference.together(of_fits)
    assert gain["estimate"] == pytest.approx(0.25)
    assert (gain["low"], gain["high"]) == pytest.approx((expected.low, expected.high))
    assert values(table, "accuracy_scaled_on_ood", split="ood").tolist() == [0.5, 1.0]


def test_sequence_information_rows():
    torch.manual_seed(1)
    texts = {
        name: Continuations(torch.randn(4, 9, 3, 5), torch.zeros(9, 3, dtype=torch.long), torch.randn(9, 3, 5))
        for name in ("generated", "reference")
    }
    context = CONTEXT | {"split": "all"}
    table = measures.sequence_information(texts, context, steps=[3, 1], n_samples=6, sampling_seeds=[2, 0])
    assert len(table) == 2 * 2 * 2 * 2 * 4
    assert not table.duplicated(list(results.KEY)).any()
    for name, text in texts.items():
        for seed in (2, 0):
            index = subsample(9, 6, seed)
            for pairs in ("all", "aligned"):
                direct = sequences.sequence_information(text.states[:, index], text.targets[index], [1, 3], pairs=pairs)
                for column, step in enumerate((1, 3)):
                    rows = table[(table["decoding_step"] == step) & (table["sample_seed"] == seed)]
                    got = values(rows, f"sequence_information_{pairs}_{name}")
                    torch.testing.assert_close(got, direct[:, column], atol=1e-9, rtol=0)
    sites = list(zip(table["layer"], table["site"], strict=True))[:4]
    assert sites == [(0, "embedding"), (1, "block"), (2, "block"), (2, "final_norm")]
    fewer = measures.sequence_information(
        texts, context, steps=[2], n_samples=6, sampling_seeds=[0], pairs=["aligned"], bandwidth=0.5
    )
    assert set(fewer["quantity"]) == {f"sequence_information_aligned_{name}" for name in texts}
    index = subsample(9, 6, 0)
    part = texts["generated"].states[:, index], texts["generated"].targets[index]
    direct = sequences.sequence_information(*part, [2], bandwidth=0.5, pairs="aligned")[:, 0]
    torch.testing.assert_close(values(fewer, "sequence_information_aligned_generated"), direct)


def test_the_decoding_summary_of_planted_profiles():
    """Over three blocks the profile turns round from t = 1 to t = 4 and doubles; twice the embedding is highest."""
    planted = {1: [9.0, 1.0, 2.0, 3.0], 2: [0.0, 1.0, 4.0, 3.0], 4: [9.0, 6.0, 4.0, 2.0]}
    quantity = "sequence_information_aligned_generated"
    sites = results.sites(3, final_norm=False)
    table = pd.concat(
        [
            results.measurements(
                profile, sites, quantity, **CONTEXT, split="all", sample_seed=seed, n=5, decoding_step=step
            )
            for step, profile in planted.items()
            for seed in (0, 1)
        ],
        ignore_index=True,
    )
    summary = measures.decoding_summary(table)
    assert summary["decoding_step"].tolist() == [1, 2, 4]
    assert set(summary["continuation"]) == {"generated"} and set(summary["pairs"]) == {"aligned"}
    assert summary["level"].tolist() == pytest.approx([2, 8 / 3, 4])
    assert summary["rank_correlation"].tolist() == pytest.approx([-1, -0.5, 1])
    assert summary["ridge_layer"].tolist() == [0, 2, 0], "the embedding counts as a layer"
    assert summary["has_ridge"].tolist() == [False, True, False], "and a largest value there is no ridge"
