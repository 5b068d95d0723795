import dataclasses

import pytest
import torch

from ridge_utils import early_exit, models
from ridge_utils.early_exit import correct, likeliest
from ridge_utils.representations import collect
from ridge_utils.tasks import load


@pytest.fixture(params=[5, 4096])
def tokens(request, monkeypatch):
    """Tokens at a time: an uneven part, more than there are."""
    monkeypatch.setattr(early_exit, "_TOKENS", request.param)


@pytest.fixture
def normed():
    """A model whose final norm weighs dimensions differently, as trained ones do and fresh ones do not."""
    loaded = models.load("random:llama", device="cpu")
    torch.nn.init.normal_(loaded.final_norm.weight, generator=torch.Generator().manual_seed(0))
    return loaded


@pytest.fixture(scope="module")
def examples():
    return load("synthetic_arithmetic", "id", 12)


@pytest.mark.parametrize("bias", [False, True])
def test_the_likeliest_token_is_the_argmax(tokens, bias):
    draw = torch.Generator().manual_seed(0)
    states, weight = torch.randn(300, 6, generator=draw), torch.randn(150, 6, generator=draw)
    offset = 2 * torch.randn(150, generator=draw) if bias else None
    best = torch.nn.functional.linear(states, weight, offset).argmax(-1)
    assert likeliest(states, best, weight, offset, batch_size=7).all()
    other = torch.randint(150, (300,), generator=draw)
    mixed = torch.where(torch.arange(300) % 3 == 0, best, other)
    assert torch.equal(likeliest(states, mixed, weight, offset, batch_size=70), mixed == best)


def test_of_equal_logits_the_first_counts(tokens):
    """Small integers have exact products, so ties are ties."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randint(-2, 3, (200, 3), generator=draw).float()
    weight = torch.randint(-1, 2, (40, 3), generator=draw).float()
    ids = torch.randint(40, (200,), generator=draw)
    logits = states @ weight.T
    tied = (logits == logits.max(-1, keepdim=True).values).sum(-1) > 1
    first = (logits == logits.max(-1, keepdim=True).values).int().argmax(-1)
    assert tied.sum() > 50
    assert torch.equal(likeliest(states, ids, weight), ids == first)
    assert likeliest(states, first, weight).all()


@pytest.mark.parametrize("norm", [True, False])
def test_exits_by_hand(normed, examples, norm, tokens):
    states = collect(normed, examples, progress=False)
    head = normed.model.get_output_embeddings()
    with torch.no_grad():
        read = [head(normed.final_norm(z) if norm else z).argmax(-1) for z in states.hidden]
    for layer in (0, 3, 6):
        planted = dataclasses.replace(states, target_ids=read[layer])
        expected = torch.stack([row == read[layer] for row in read])
        assert torch.equal(correct(normed, planted, batch_size=5, norm=norm), expected)
        assert correct(normed, planted, norm=norm)[layer].all()
        assert not torch.equal(correct(normed, planted, norm=not norm), expected), "the norm makes a difference"


def test_a_narrow_model_is_read_in_float32(examples):
    """In bfloat16 several of a vocabulary's logits are the largest; in float32 one is."""
    loaded = models.load("random:llama", dtype="bfloat16", device="cpu")
    states = collect(loaded, examples, progress=False)
    weight = loaded.model.get_output_embeddings().weight
    with torch.no_grad():
        read = torch.stack([(z @ weight.float().T).argmax(-1) for z in states.hidden[1:].bfloat16().float()])
    for layer in range(6):
        planted = dataclasses.replace(states, target_ids=read[layer])
        assert correct(loaded, planted, norm=False)[layer + 1].all()
