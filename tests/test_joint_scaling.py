import copy
import dataclasses

import pytest
import torch

from ridge_utils import models, tasks, training
from ridge_utils.audit import joint_scaling
from ridge_utils.audit.joint_scaling import fit
from ridge_utils.errors import InputError
from ridge_utils.representations import encode
from ridge_utils.residual_scaling import evaluate, scaled
from tests.test_training import SHORT

pytestmark = pytest.mark.slow

SETTINGS = dataclasses.replace(SHORT, steps=6, checkpoints=(6,))


@pytest.fixture(scope="module")
def examples():
    return tasks.load("synthetic_arithmetic", "train", 20)


@pytest.fixture(scope="module")
def held_out():
    return tasks.load("synthetic_arithmetic", "id", 6)


def test_without_moving_scales_it_is_the_fine_tuning(examples, held_out):
    """GPT-2 has dropout: the order of the examples and the dropout are those of training.finetune too."""
    loaded = models.load("random:gpt2", device="cpu")
    found = fit(loaded, examples, held_out, SETTINGS, 1e-30, progress=False)
    trained = training.finetune(loaded, examples, SETTINGS, progress=False)
    expected = evaluate(trained.load(6), held_out, progress=False)
    torch.testing.assert_close(found.cross_entropy, expected.cross_entropy, atol=1e-5, rtol=0)
    assert torch.equal(found.scales, torch.ones(6, dtype=torch.float64))
    assert found.losses.tolist() == pytest.approx(trained.log["loss"].tolist(), abs=1e-5)


def test_it_is_adamw_on_both_groups(llama, examples, held_out):
    """Against a loop of torch's own, with every example in every batch so that their order is without effect."""
    settings = dataclasses.replace(SETTINGS, steps=4, checkpoints=(4,), batch_size=20)
    found = fit(llama, examples, held_out, settings, 0.05, progress=False)
    mine = models.assemble("mine", copy.deepcopy(llama.model), llama.tokenizer)
    scales = torch.ones(6, requires_grad=True)
    optimiser = torch.optim.AdamW(
        [{"params": list(mine.model.parameters())}, {"params": [scales], "lr": 0.05}], lr=1e-3, weight_decay=0.0
    )
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (4 - step) / 4)
    batch = training._collate([encode(llama, example) for example in examples], llama)
    for _ in range(4):
        with scaled(mine, scales):
            mine.model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(mine.model.parameters(), 1.0)
        optimiser.step()
        falling.step()
        optimiser.zero_grad()
        scales.data.clamp_(min=0)
    torch.testing.assert_close(found.scales, scales.detach().double(), atol=2e-3, rtol=0)
    assert (found.scales - 1).abs().max() > 0.05
    expected = evaluate(mine, held_out, scales.detach(), progress=False)
    torch.testing.assert_close(found.cross_entropy, expected.cross_entropy, atol=2e-2, rtol=0)


def test_the_model_is_left_as_it_was(llama, examples, held_out):
    before = models.fingerprint(llama.model)
    # Counted, not required to be none: transformers leaves its own on a block once states have been asked for.
    hooks = [len(block._forward_hooks) for block in llama.blocks]
    first = fit(llama, examples, held_out, SETTINGS, progress=False)
    assert models.fingerprint(llama.model) == before
    assert [len(block._forward_hooks) for block in llama.blocks] == hooks
    assert not llama.model.training
    again = fit(llama, examples, held_out, SETTINGS, progress=False)
    assert torch.equal(first.scales, again.scales)
    assert torch.equal(first.cross_entropy, again.cross_entropy)
    assert not first.scales.requires_grad
    assert first.losses[-1] < first.losses[0]
    rough = fit(llama, examples, held_out, SETTINGS, 5.0, progress=False)
    assert rough.scales.min() == 0, "a factor is stopped at 0"


def test_what_is_evaluated_is_not_in_half_precision(llama, examples, held_out, monkeypatch):
    ids = torch.tensor([[1, 2, 3]])
    same = []

    def watched(loaded, *args, **kwargs):
        with torch.no_grad():
            same.append(torch.equal(loaded.model(ids).logits, type(loaded.model).forward(loaded.model, ids).logits))
        return evaluate(loaded, *args, **kwargs)

    monkeypatch.setattr(joint_scaling, "evaluate", watched)
    settings = dataclasses.replace(SETTINGS, steps=2, checkpoints=(2,))
    exact = fit(llama, examples, held_out, settings, progress=False)
    rough = fit(llama, examples, held_out, dataclasses.replace(settings, precision="bfloat16"), progress=False)
    assert same == [True] * 2
    assert not torch.equal(rough.losses, exact.losses)
    torch.testing.assert_close(rough.scales, exact.scales, atol=0.03, rtol=0)


def test_what_cannot_be_trained_is_refused(llama, examples, held_out):
    long = [dataclasses.replace(examples[0], prompt="S1 " * 400)]
    with pytest.raises(InputError, match=r"1\d\d\d tokens, but .* 1024"):
        fit(llama, long, held_out, SETTINGS)
    with pytest.raises(InputError, match="not finite after 6 steps"):
        fit(llama, examples, held_out, dataclasses.replace(SETTINGS, learning_rate=1e30), progress=False)
