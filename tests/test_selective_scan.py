import copy
import importlib.util

import pytest
import torch
import transformers
from transformers.models.mamba import modeling_mamba

from ridge_utils import models, selective_scan

#: What transformers itself computes, whatever was installed before.
ORIGINAL = vars(modeling_mamba)["mamba_selective_scan"]


@pytest.fixture
def original(monkeypatch):
    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", ORIGINAL)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return {
        "hidden_states": draw(2, 3, 7),
        "dt": draw(2, 3, 7),
        "A": (-draw(3, 4).detach().abs()).requires_grad_(),
        "B": draw(2, 4, 7),
        "C": draw(2, 4, 7),
        "D": draw(3),
        "z": draw(2, 3, 7),
        "delta_bias": draw(3),
        "delta_softplus": True,
        "return_last_state": True,
    }


def test_the_scan_is_the_recurrence_written_out(inputs):
    found, last = selective_scan.selective_scan(**inputs)
    x, b, c = (inputs[name].detach() for name in ("hidden_states", "B", "C"))
    step = torch.nn.functional.softplus(inputs["dt"] + inputs["delta_bias"][:, None]).detach()
    for example in range(2):
        for channel in range(3):
            state = torch.zeros(4, dtype=torch.float64)
            for t in range(7):
                size = step[example, channel, t]
                state = (
                    torch.exp(size * inputs["A"][channel]) * state + size * b[example, :, t] * x[example, channel, t]
                )
                y = state @ c[example, :, t] + inputs["D"][channel] * x[example, channel, t]
                y = y * torch.nn.functional.silu(inputs["z"][example, channel, t])
                torch.testing.assert_close(found[example, channel, t], y)
            torch.testing.assert_close(last[example, channel], state)


def test_its_gradients_are_right(inputs):
    names = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]
    fixed = {name: value for name, value in inputs.items() if name not in names}

    def scan(*tensors):
        return selective_scan.selective_scan(**dict(zip(names, tensors, strict=True)), **fixed)

    assert torch.autograd.gradcheck(scan, [inputs[name] for name in names])


def test_a_model_is_the_one_of_transformers(original):
    torch.manual_seed(0)
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50, state_size=4)
    theirs = transformers.MambaForCausalLM(config)
    ours = copy.deepcopy(theirs)
    ids = torch.randint(0, 50, (3, 11))
    expected = theirs(ids, labels=ids)
    expected.loss.backward()
    text = theirs.eval().generate(ids[:1], do_sample=False, max_new_tokens=5, pad_token_id=0)
    selective_scan.install()
    assert modeling_mamba.mamba_selective_scan is selective_scan.selective_scan
    found = ours(ids, labels=ids)
    found.loss.backward()
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-3, msg=name)
    assert torch.equal(ours.eval().generate(ids[:1], do_sample=False, max_new_tokens=5, pad_token_id=0), text)


def test_random_mambas_use_it_and_cuda_kernels_come_first(original, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: name)
        selective_scan.install()
        assert modeling_mamba.mamba_selective_scan is ORIGINAL
    calls = []
    monkeypatch.setattr(selective_scan, "selective_scan", lambda *a, **k: calls.append(a) or ORIGINAL(*a, **k))
    loaded = models.load("random:mamba-2x16", device="cpu")
    loaded.model(torch.tensor([[1, 2, 3]]))
    assert len(calls) == 2, "transformers calls it under this name, once a block"
