"""From planted states to the verdict on the peak: a true ridge, a flat curve, a fall of spread alone, and noise."""

from dataclasses import replace

import pytest
import torch

from ridge_utils.audit import anatomy, rules

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
