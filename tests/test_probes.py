"""Probes on planted states whose information is known."""

import math

import pytest
import torch

from ridge_utils.audit import estimators, probes
from ridge_utils.errors import InputError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def balanced(n, classes):
    return torch.arange(n) % classes


@pytest.mark.parametrize("family", ["linear", "mlp"])
def test_states_that_show_their_class_are_read_almost_wholly(family):
    labels = balanced(100, 4)
    probe = probes.classify(5 * torch.eye(4, 12)[labels] + 0.3 * normal(100, 12), labels, family)
    assert probe.correct.all()
    assert 0.9 * math.log(4) < probe.v_information < math.log(4)
    # 20 held-out examples of 5 each leave a training fold that is balanced too.
    assert probe.null_entropy == pytest.approx(math.log(4))
    assert probe.surprise.numpy() == pytest.approx(math.log(4))


@pytest.mark.parametrize("family", ["linear", "mlp"])
def test_noise_holds_nothing_and_what_is_read_is_never_more_than_there_is(family):
    nothing = probes.classify(normal(240, 40), balanced(240, 3), family)
    assert -0.1 < nothing.v_information < 0.05
    known = estimators.clusters(300, 4, 6, 1.5)
    found = probes.classify(known.x, known.labels, family).v_information
    assert 0.7 * known.information < found < known.information + 0.05


def test_only_the_mlp_reads_what_no_straight_line_parts():
    corners = torch.randint(2, (240, 2), generator=torch.Generator().manual_seed(0))
    states = (2.0 * corners - 1) + 0.2 * normal(240, 2)
    labels = corners[:, 0] ^ corners[:, 1]
    assert abs(probes.classify(states, labels).v_information) < 0.05
    assert probes.classify(states, labels, "mlp").v_information > 0.4


def test_the_null_predictor_is_the_prior_of_the_other_folds():
    labels = torch.tensor([0] * 60 + [1] * 20)
    probe = probes.classify(torch.zeros(80, 3), labels, "mlp")
    assert probe.surprise[labels == 0].numpy() == pytest.approx(-math.log(0.75))
    assert probe.surprise[labels == 1].numpy() == pytest.approx(-math.log(0.25))
    assert probe.v_information == pytest.approx(0, abs=1e-3), "equal states give the prior back"
    assert probe.correct.double().mean().item() == 0.75


def test_which_probes_the_targets_allow():
    labels = torch.tensor([7] * 10 + [3] * 12 + [1] * 9 + [5])
    assert probes.frequent(labels).tolist() == [True] * 22 + [False] * 10
    assert probes.vocabulary(labels) == "closed"
    assert probes.vocabulary(torch.arange(100)) == "open"
    assert probes.vocabulary(torch.cat([balanced(20, 2), torch.arange(10, 40)])) == "open"
    assert probes.vocabulary(torch.zeros(100, dtype=torch.int64)) == "poor", "one class tells nothing"
    assert probes.vocabulary(balanced(27, 9)) == "poor"


def test_an_embedding_is_read_for_targets_that_were_never_seen():
    states = normal(200, 6)
    targets = states @ normal(6, 10, seed=1) + 0.1 * normal(200, 10, seed=2)
    labels = torch.arange(200)
    probe = probes.embedding(states, targets, labels)
    assert 2 < probe.v_information < math.log(40)
    assert probe.null_entropy == pytest.approx(math.log(40)), "40 targets are held out at a time"
    assert probe.correct.double().mean() > 0.5
    apart = probes.embedding(states, targets.flip(0), labels)
    assert -0.1 < apart.v_information < 0.05


def test_what_only_tells_seen_targets_apart_is_not_read_from_embeddings():
    """Five copies of each target: a probe that met some of them would read the others with ease."""
    labels = torch.arange(150) // 5
    states = normal(30, 8)[labels] + 0.01 * normal(150, 8, seed=1)
    probe = probes.embedding(states, normal(30, 8, seed=2)[labels], labels)
    assert abs(probe.v_information) < 0.15
    assert probe.null_entropy == pytest.approx(math.log(6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probes.classify(normal(20, 2), torch.arange(20)), "2 or more classes of 10 or more"),
        (lambda: probes.classify(normal(20, 2), torch.zeros(20, dtype=torch.int64)), "2 or more classes"),
        (lambda: probes.embedding(normal(9, 2), normal(9, 2), torch.zeros(9, dtype=torch.int64)), "5 folds need"),
    ],
)
def test_input_that_cannot_be_used_is_refused_with_a_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()
