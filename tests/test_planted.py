"""From planted states to the verdict on the peak: a true ridge, a flat curve, a fall of spread alone, and noise."""

import functools
from dataclasses import replace

import pytest
import torch

from ridge_utils import results
from ridge_utils.audit import anatomy, rules
from ridge_utils.unbiased import unbiased_information
from tests import planted as sources

CONTEXT = {"model": "planted", "task": "made-up", "source": "synthetic", "split": "all", "step": 0, "train_seed": None}
N, BLOCKS, WIDTH, CLASSES = 400, 8, 32, 8

#: Signal of the class, and length of a vector that all states share: embedding, blocks, and after the final norm.
FLAT, NONE, LATE = [1.0] * 10, [0.0] * 10, [0.0] * 6 + [0.5, 1.0, 2.0, 2.0]
PLANTED = {
    "a true ridge": ([0.0, 0.2, 0.4, 0.7, 1.0, 1.2, 1.2, 0.5, 0.2, 0.2], NONE, ("reproduced", "")),
    "a flat curve": (FLAT, NONE, ("refuted here", "")),
    "a fall of spread alone": (FLAT, LATE, ("artefact", "of spread")),
    "noise whose spread falls": (NONE, LATE, ("artefact", "of bias")),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def planted(signal, shared, seed):
    """States, targets and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (N,), generator=generator)
    targets = torch.randn(CLASSES, 16, generator=generator)
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    noise = torch.randn(BLOCKS + 2, N, WIDTH, generator=generator) / WIDTH**0.5
    signal, shared = (torch.tensor(values)[:, None, None] for values in (signal, shared))
    return signal * directions[labels] + noise + shared * directions[-1], targets[labels], labels


def at_last_block(table, quantities=()):
    statements = [of for of in rules.RULES["C1"].parts["last block"] if of.quantity not in quantities]
    (judgement,) = rules.judge(replace(rules.RULES["C1"], parts={"": statements}), {"anatomy": table})
    return judgement.verdict, judgement.why


@pytest.mark.slow
@pytest.mark.parametrize("truth", PLANTED)
def test_the_verdict_on_the_peak_knows_the_planted_truth(truth):
    signal, shared, expected = PLANTED[truth]
    states, targets, labels = planted(signal, shared, seed=0)
    assert at_last_block(anatomy.effects(states, targets, CONTEXT, target_ids=labels)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("truth", PLANTED)
def test_the_verdict_is_seldom_wrong(truth):
    """Without the probe, which takes most of the time."""
    signal, shared, expected = PLANTED[truth]
    found = [
        at_last_block(anatomy.effects(*planted(signal, shared, seed)[:2], CONTEXT, seed=seed), ["probe_fall"])
        for seed in range(10)
    ]
    assert found.count(expected) >= 9
    assert truth == "a true ridge" or ("reproduced", "") not in found


@pytest.mark.slow
@pytest.mark.parametrize("source", [("lost", 0.2), ("spread", 0.2), ("nothing", 0.0)])
def test_the_planted_falls_are_those_of_many_examples(source):
    """The closed forms against an estimate that knows none of them, N = 20,000."""
    states, targets, _ = sources.draw(planted_sources()[source], 20_000, 1)
    pairs = unbiased_information(states[[0, 2, 4]], targets, products=torch.float32)
    true = sources.truths(planted_sources()[source])
    start, ridge, end = pairs.information.value
    if source == ("nothing", 0.0):
        assert pairs.information.value.abs().max() < 5 * pairs.information.standard_error.max()
    else:
        assert (1 - end / ridge).item() == pytest.approx(true["information_fall"], abs=0.02)
        assert (1 - start / ridge).item() == pytest.approx(true["information_rise"], abs=0.02)
        centred = unbiased_information(states[[2, 4]] - states[[2, 4]].mean(1, keepdim=True), targets)
        ridge, end = centred.correlation.value
        assert (1 - end / ridge).item() == pytest.approx(true["correlation_fall"], abs=0.03)
    plug_in, null = pairs.plug_in(200).value, pairs.means.plug_in_null(200)
    fall = plug_in[1] - plug_in[2]
    assert (fall / plug_in[1]).item() == pytest.approx(true["plug_in_fall"], abs=0.02)
    assert ((null[1] - null[2]) / fall).item() == pytest.approx(true["bias_share"], abs=0.05)


@functools.cache
def planted_sources():
    return sources.sources()


@pytest.mark.slow
def test_the_stored_rates_are_those_of_the_simulation():
    """The first draws again: what they gave is counted in the table, whose rates are of all draws."""
    table, origin = results.read(results.FOLDER / "planted.csv")
    counts = table.groupby(["planted", "fall", "n", "of"])
    assert (counts["count"].sum() == counts["draws"].first()).all()
    assert set(counts["draws"].first()) == set(origin["parameters"].values())
    again = sources.outcomes(planted_sources()["spread", 0.5], 200, 3, 1)
    stored = table[(table["planted"] == "spread") & (table["fall"] == 0.5) & (table["n"] == 200)]
    both = again.merge(stored, on=["of", "outcome"], suffixes=("_again", ""))
    assert len(both) == len(again)
    assert (both["count"] >= both["count_again"]).all()
    assert both["truth"].to_numpy() == pytest.approx(both["truth_again"].to_numpy(), abs=2e-4, nan_ok=True)
    assert (both["expected"] == both["expected_again"]).all()
