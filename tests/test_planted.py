"""From planted states to the verdict on the peak: a true ridge, a flat curve, anisotropy alone, and noise."""

import pandas as pd
import pytest
import torch

from ridge_utils.audit import controls, decodability, verdicts
from ridge_utils.representations import Representations

CONTEXT = {"model": "planted", "task": "made-up", "source": "synthetic", "step": 0, "train_seed": None}
CLASSES, EACH, WIDTH = 5, 20, 16


def pools(signal, mean):
    """States of ``signal`` times a direction of the class, noise, and a common mean of so many lengths, by layer."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    for split in ("id", "ood"):
        labels = torch.arange(CLASSES).repeat(EACH)
        noise = 0.3 * torch.randn(len(signal), len(labels), WIDTH, generator=generator)
        strength, size = (torch.tensor(values)[:, None, None] for values in (signal, mean))
        states = strength * directions[labels] + noise + size * directions[-1]
        found[split] = Representations(states, states[-1], directions[labels], labels)
    found["all"] = Representations.join(list(found.values()))
    return found


PLANTED = {
    "a true ridge": ([0.0, 0.3, 1.5, 0.3, 0.1], [0.0] * 5, "reproduced"),
    "a flat curve": ([1.0] * 5, [0.0] * 5, "not reproduced"),
    "anisotropy alone": ([1.0] * 5, [4.0, 1.0, 0.0, 2.0, 6.0], "artefact of the estimator"),
    "noise": ([0.0] * 5, [0.0] * 5, "not reproduced"),
}


@pytest.mark.slow
@pytest.mark.parametrize("truth", PLANTED)
def test_the_verdict_on_the_peak_knows_the_planted_truth(truth):
    signal, mean, expected = PLANTED[truth]
    planted = pools(signal, mean)
    tables = {
        "estimator_audit": controls.ridge_falls(planted, CONTEXT, n_halves=30),
        "decodability": decodability.measure(planted, CONTEXT, spacing=10, halves=20, jobs=1),
    }
    origin = {"data": {"id": CLASSES * EACH, "ood": CLASSES * EACH}}
    stored = {page: {f"{page}.csv": (pd.DataFrame(table), origin)} for page, table in tables.items()}
    judged = verdicts.judge(stored)
    (row,) = judged[judged["claim"] == "C1"].to_dict("records")
    assert row["verdict"] == expected, row["why"]
