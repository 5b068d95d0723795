import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from ridge_utils import early_exit, models
from ridge_utils.audit import lens
from ridge_utils.audit.lens import Settings, fit_heads, fit_translators
from ridge_utils.errors import InputError
from ridge_utils.representations import Representations, collect
from ridge_utils.tasks import load

WIDTH, LAYERS = 64, (0, 2, 6)
SHORT = Settings(epochs=3, learning_rate=0.05, batch_size=32, seed=3)


def sharpened(name):
    """A random model with a head that is sure of something, and a norm that weighs its dimensions."""
    loaded = models.load(name, device="cpu")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.mul_(12)
        loaded.final_norm.weight.mul_(torch.rand(WIDTH, generator=draw) + 0.5)
    return loaded


@pytest.fixture(scope="module", params=["random:gpt2", "random:qwen2"])
def model(request):
    return sharpened(request.param)


@pytest.fixture(scope="module")
def states(model):
    return collect(model, load("synthetic_arithmetic", "train", 60), progress=False)


def made(model, hidden, target_ids):
    """States of which layer by layer is given; those after the final norm follow from the last."""
    with torch.no_grad():
        final = model.final_norm(hidden[-1])
    return Representations(hidden, final, model.embedding.weight.detach()[target_ids], target_ids)


def aside(count, seed):
    """The held-out states, drawn as documented: the first fifth of a seeded permutation."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: lens.held_out(count)]


def logits_of(model, states):
    with torch.no_grad():
        return model.model.get_output_embeddings()(model.final_norm(states))


def divergence(model, final, states):
    """By torch's own function, from the logits of the model's own head."""
    p, q = (logits.log_softmax(-1) for logits in (logits_of(model, final), logits_of(model, states)))
    return kl_div(q, p, log_target=True, reduction="batchmean").item()


# Translators.


def test_divergences_are_those_of_torch(model, states):
    found = fit_translators(model, states, LAYERS, SHORT, progress=False)
    index = aside(60, SHORT.seed)
    final = states.hidden[-1][index]
    for place, layer in enumerate(LAYERS):
        z = states.hidden[layer][index]
        moved = z + z @ found.weight[place].T + found.bias[place]
        assert found.before[place].item() == pytest.approx(divergence(model, final, z), rel=1e-3, abs=1e-5)
        assert found.after[place].item() == pytest.approx(divergence(model, final, moved), rel=1e-3, abs=1e-5)
        planted = dataclasses.replace(states, target_ids=logits_of(model, states.hidden[layer]).argmax(-1))
        mapped = states.hidden[layer] + states.hidden[layer] @ found.weight[place].T + found.bias[place]
        read = logits_of(model, mapped).argmax(-1) == planted.target_ids
        assert torch.equal(found.correct(model, planted)[place], read)
    assert (found.after[:2] < 0.9 * found.before[:2]).all(), "training helps where there is something to learn"


def test_a_planted_affine_map_is_undone(model):
    """Layer 1 is an affine picture of the last one, with one dimension a thousand times the others."""
    draw = torch.Generator().manual_seed(1)
    codes, basis = torch.randn(1000, 5, generator=draw), torch.randn(5, WIDTH, generator=draw)
    last = codes @ basis
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw)).Q
    spread = torch.ones(WIDTH)
    spread[7] = 1000
    hidden = torch.stack([torch.zeros_like(last), (last @ turn + 3) * spread, *[last] * 5])
    ids = logits_of(model, last).argmax(-1)
    training, fresh = made(model, hidden[:, :600], ids[:600]), made(model, hidden[:, 600:], ids[600:])
    found = fit_translators(model, training, [0, 1], Settings(epochs=20), progress=False)
    before = early_exit.correct(model, fresh)[1].float().mean()
    after = found.correct(model, fresh).float().mean(1)
    assert found.after[1] < 0.1 * found.before[1]
    assert before < 0.2
    assert after[1] > 0.8
    assert after[0] < 0.3, "a state that says nothing can be translated to the mean prediction alone"


# Heads.


def test_cross_entropies_are_those_of_torch(model, states):
    found = fit_heads(model, states, LAYERS, SHORT, progress=False)
    index = aside(60, SHORT.seed)
    ids = states.target_ids
    assert found.token_ids.tolist() == sorted(set(ids.tolist()))
    for place, layer in enumerate(LAYERS):
        z = states.hidden[layer]
        logits = logits_of(model, z)
        assert found.before[place].item() == pytest.approx(cross_entropy(logits[index], ids[index]).item(), rel=1e-3)
        with torch.no_grad():
            added = model.final_norm(z) @ found.weight[place].T + found.bias[place]
        logits[:, found.token_ids] += added
        assert found.after[place].item() == pytest.approx(cross_entropy(logits[index], ids[index]).item(), rel=1e-3)
        assert torch.equal(found.correct(model, states)[place], logits.argmax(-1) == ids)
    assert (found.after < found.before).all()


def test_planted_classes_are_read_from_fresh_states(model):
    """Three clusters whose targets the model's own head never finds, far from the origin as real states are."""
    draw = torch.Generator().manual_seed(2)
    centres, tokens = torch.randn(3, WIDTH, generator=draw), torch.tensor([9, 40, 200])
    kind = (torch.randint(5, (400,), generator=draw) - 2).clamp(min=0)
    cloud = 4 + centres[kind] + 0.3 * torch.randn(400, WIDTH, generator=draw)
    hidden = torch.stack([torch.full_like(cloud, 0.7), cloud, cloud])
    training, fresh = made(model, hidden[:, :200], tokens[kind[:200]]), made(model, hidden[:, 200:], tokens[kind[200:]])
    found = fit_heads(model, training, [0, 1], progress=False)
    assert early_exit.correct(model, fresh)[1].float().mean() < 0.5
    accuracy = found.correct(model, fresh).float().mean(1)
    assert accuracy[1] > 0.97
    commonest = (kind[200:] == 0).float().mean().item()
    assert accuracy[0] == pytest.approx(commonest), "a state that says nothing is read as the commonest target"
    assert torch.isfinite(found.weight).all()


def test_noise_is_not_learnt(model):
    """Random targets: no head is kept that does worse on the held-out states than the model's own."""
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(3, 100, WIDTH, generator=draw)
    ids = torch.randint(260, (100,), generator=draw)
    found = fit_heads(model, made(model, hidden, ids), [0, 1, 2], Settings(100, 0.5), progress=False)
    assert (found.after <= found.before).all()


# Both.


@pytest.mark.parametrize("fit", [fit_translators, fit_heads])
def test_a_fit_repeats_and_leaves_the_model_alone(model, states, fit):
    before = models.fingerprint(model.model)
    wanted = [parameter.requires_grad for parameter in model.model.parameters()]
    first, again = (fit(model, states, LAYERS, SHORT, progress=False) for _ in range(2))
    assert all(torch.equal(getattr(first, f.name), getattr(again, f.name)) for f in dataclasses.fields(first))
    other = fit(model, states, LAYERS, dataclasses.replace(SHORT, seed=4), progress=False)
    assert not torch.equal(other.weight, first.weight)
    assert models.fingerprint(model.model) == before
    assert [parameter.requires_grad for parameter in model.model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert first.weight.dtype == torch.float32
    assert not first.weight.requires_grad


@pytest.mark.parametrize("fit", [fit_translators, fit_heads])
def test_too_few_states_are_refused(model, states, fit):
    with pytest.raises(InputError, match=r"At least 2 training states .* not 1"):
        fit(model, states.select([0]), [0], SHORT, progress=False)
