import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from ridge_utils import models, residual_scaling, tasks, training
from ridge_utils.errors import InputError
from ridge_utils.representations import collect, encode
from ridge_utils.residual_scaling import FitSettings, evaluate, fit, scaled
from ridge_utils.tasks import Example
from tests.test_models import ARCHITECTURES

SHORT = FitSettings(steps=5, learning_rate=0.05, batch_size=4, precision="float32")
SCALES = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.3, 0.7])


@pytest.fixture(scope="module")
def examples():
    return tasks.load("synthetic_arithmetic", "id", 6) + tasks.load("synthetic_arithmetic", "ood", 5)


def logits_of(loaded, text):
    with torch.no_grad():
        return loaded.model(loaded.tokenizer(text, return_tensors="pt").input_ids).logits[0]


def hooks_of(loaded):
    return [len(block._forward_hooks) + len(block._forward_pre_hooks) for block in loaded.blocks]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_scales_of_one_are_the_untouched_model(dtype):
    loaded = models.load("random:llama", dtype=dtype, device="cpu")
    untouched = logits_of(loaded, "S1 N2 S")
    with scaled(loaded, torch.ones(6)):
        assert torch.equal(logits_of(loaded, "S1 N2 S"), untouched)
    with scaled(loaded, torch.full((6,), 1.1)):
        assert not torch.equal(logits_of(loaded, "S1 N2 S"), untouched)
    assert torch.equal(logits_of(loaded, "S1 N2 S"), untouched), "the hooks are gone"


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_any_decoder_can_be_scaled(config):
    torch.manual_seed(0)
    loaded = models.assemble("some", AutoModelForCausalLM.from_config(config), models.byte_tokenizer())
    rows = [Example("S1 N2 S", "3", "id", "own"), Example("S1 S", "34", "id", "own")]
    untouched = logits_of(loaded, "S1 N2 S")
    with scaled(loaded, torch.ones(3)):
        assert torch.equal(logits_of(loaded, "S1 N2 S"), untouched)
    with scaled(loaded, torch.zeros(3)):
        skipped = collect(loaded, rows, progress=False)
    assert torch.equal(skipped.hidden, skipped.hidden[:1].expand_as(skipped.hidden))
    assert evaluate(loaded, rows, progress=False).cross_entropy[0].item() == pytest.approx(
        -untouched[-1].log_softmax(-1)[loaded.tokenizer("3").input_ids[0]].item(), abs=1e-5
    )
    assert (fit(loaded, rows, SHORT, progress=False).scales != 1).all()


def test_scaling_every_block_equals_scaling_its_output_weights():
    """GPT-NeoX adds attention and feed-forward part in parallel, so the factor can go into their last weights."""
    torch.manual_seed(0)
    config = ARCHITECTURES["GPTNeoX"]
    assert config.use_parallel_residual
    tokenizer = models.byte_tokenizer()
    loaded = models.assemble("some", AutoModelForCausalLM.from_config(config).double(), tokenizer)
    for parameter in loaded.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # no bias may be zero, nor an update too small to be seen
    scales = torch.tensor([0.4, 1.6, 0.9], dtype=torch.float64)
    untouched = logits_of(loaded, "S1 N2 S")
    with scaled(loaded, scales):
        through_hooks = logits_of(loaded, "S1 N2 S")
    with torch.no_grad():
        for scale, block in zip(scales, loaded.blocks, strict=True):
            for layer in (block.attention.dense, block.mlp.dense_4h_to_h):
                layer.weight *= scale
                layer.bias *= scale
    torch.testing.assert_close(through_hooks, logits_of(loaded, "S1 N2 S"), atol=1e-12, rtol=1e-12)
    assert (through_hooks - untouched).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "step", "within"),
    # The norms of the other two compute in float32 whatever the model's dtype: a wider step against that rounding.
    [("random:gpt2", 1e-5, 1e-8), ("random:qwen2", 1e-2, 2e-5), ("random:llama", 1e-2, 2e-5)],
)
def test_gradients_against_finite_differences(name, step, within, examples):
    loaded = models.load(name, dtype="float64", device="cpu")
    prompt, target = encode(loaded, examples[0])

    def loss(scales):
        with scaled(loaded, scales):
            return cross_entropy(loaded.model(torch.tensor([prompt])).logits[0, -1], torch.tensor(target[0]))

    at = torch.tensor([0.5, 1.0, 2.0, 0.4, 1.3, 0.7], dtype=torch.float64, requires_grad=True)
    loss(at).backward()
    with torch.no_grad():
        units = step * torch.eye(6, dtype=torch.float64)
        slopes = torch.stack([(loss(at + unit) - loss(at - unit)) / (2 * step) for unit in units])
    torch.testing.assert_close(slopes, at.grad, atol=within, rtol=1e-3)
    assert at.grad.abs().median() > 100 * within


def test_the_fit_is_projected_adam_on_the_loss_of_training(loaded, examples):
    """Against a loop with transformers' own loss, every example in every batch."""
    given = [*examples, Example("S1 N2 S", "345 and more", "id", "own")]
    settings = dataclasses.replace(SHORT, steps=4, learning_rate=0.4, batch_size=99)
    found = fit(loaded, given, settings, progress=False)
    batch = training._collate([encode(loaded, example) for example in given], loaded)
    scales = torch.ones(6, requires_grad=True)
    optimiser = torch.optim.Adam([scales], lr=0.4)
    losses = []
    for _ in range(4):
        with scaled(loaded, scales):
            losses.append(loaded.model(**batch).loss)
        (scales.grad,) = torch.autograd.grad(losses[-1], scales)
        optimiser.step()
        scales.data = scales.data.relu()
    assert found.scales.dtype == found.losses.dtype == torch.float64
    torch.testing.assert_close(found.losses, torch.stack(losses).detach().double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.scales, scales.detach().double(), atol=5e-3, rtol=0)


def test_the_model_is_left_as_it_was(examples):
    loaded = models.load("random:gpt2", device="cpu")
    loaded.model.train()  # has dropout
    loaded.embedding.weight.requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in loaded.model.named_parameters()}
    before, hooks = models.fingerprint(loaded.model), hooks_of(loaded)
    first = fit(loaded, examples, SHORT, progress=False)
    with pytest.raises(InputError, match="not finite"):
        fit(loaded, examples, dataclasses.replace(SHORT, learning_rate=1e38), progress=False)
    assert models.fingerprint(loaded.model) == before
    assert hooks_of(loaded) == hooks
    assert loaded.model.training
    assert {name: parameter.requires_grad for name, parameter in loaded.model.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert not first.scales.requires_grad
    loaded.model.eval()
    assert torch.equal(fit(loaded, examples, SHORT, progress=False).scales, first.scales), "there was no dropout"


@pytest.mark.parametrize("rate", [0.5, 30.0])
def test_scales_are_never_negative(loaded, examples, rate):
    settings = [dataclasses.replace(SHORT, learning_rate=rate, steps=steps) for steps in range(1, 6)]
    scales = torch.stack([fit(loaded, examples, given, progress=False).scales for given in settings])
    assert (scales >= 0).all()
    assert (scales == 0).any(), "one of them should have been stopped at 0"


@pytest.mark.parametrize("scales", [None, SCALES])
def test_evaluation_is_that_of_transformers_prompt_by_prompt(loaded, examples, scales, monkeypatch):
    context = scaled(loaded, torch.ones(6) if scales is None else scales)
    with context:
        last = [logits_of(loaded, example.prompt)[-1] for example in examples]
    # Every other example asks for the model's own prediction, which need not be a token with a text.
    likeliest = {example.prompt: int(logits.argmax()) for example, logits in zip(examples[::2], last[::2], strict=True)}

    def asked(model, example):
        prompt, target = encode(model, example)
        return prompt, [likeliest.get(example.prompt, target[0]), *target[1:]]

    monkeypatch.setattr(residual_scaling, "encode", asked)
    found = evaluate(loaded, examples, scales, batch_size=4, progress=False)
    tokens = [asked(loaded, example)[1][0] for example in examples]
    assert found.correct.tolist() == [int(logits.argmax()) == token for logits, token in zip(last, tokens, strict=True)]
    assert found.correct[::2].all()
    assert not found.correct.all()
    nats = cross_entropy(torch.stack(last), torch.tensor(tokens), reduction="none").double()
    torch.testing.assert_close(found.cross_entropy, nats, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"batch_size": 0}, {"precision": "half"}],
)
def test_settings_out_of_range(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        dataclasses.replace(SHORT, **changes)


def test_data_that_do_not_fit(llama, examples):
    with pytest.raises(InputError, match="no examples to fit"):
        fit(llama, [], SHORT)
    long = Example("a" * (llama.context - 6), "b" * 50, "train", "own")
    with pytest.raises(InputError, match=f"have {llama.context + 44} tokens"):
        fit(llama, [long], SHORT)
    with pytest.raises(InputError, match="no examples to evaluate"):
        evaluate(llama, [])


def test_a_nan_cross_entropy_is_refused(examples):
    loaded = models.load("random:llama", device="cpu")
    with torch.no_grad():
        loaded.blocks[2].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="'random:llama' gives a NaN or infinite cross-entropy for example 0"):
        evaluate(loaded, examples, progress=False)
