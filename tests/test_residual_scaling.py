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

SHORT = FitSettings(steps=3, batch_size=4)
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


def test_a_fit_is_a_constrained_optimum_of_the_loss_of_training(examples):
    """By transformers' own loss: its slopes there are 0, or point below 0 where a scale is 0 (Karush, Kuhn, Tucker)."""
    loaded = models.load("random:gpt2", dtype="float64", device="cpu")
    given = [*examples, Example("S1 N2 S", "345 and more", "id", "own")]
    batch = training._collate([encode(loaded, example) for example in given], loaded)

    def loss(scales):
        with scaled(loaded, scales), torch.no_grad():
            return loaded.model(**batch).loss.item()

    found = fit(loaded, given, FitSettings(tolerance=1e-12, steps=500), progress=False)
    assert found.converged
    assert found.scales.dtype == found.losses.dtype == torch.float64
    assert found.losses[0].item() == pytest.approx(loss(torch.ones(6)), abs=1e-6)
    assert found.losses[-1].item() == pytest.approx(loss(found.scales), abs=1e-6)
    assert (found.losses.diff() <= 0).all()
    units = 1e-4 * torch.eye(6, dtype=torch.float64)
    slopes = torch.tensor([(loss(found.scales + unit) - loss(found.scales - unit)) / 2e-4 for unit in units])
    at_zero = found.scales == 0
    assert slopes[~at_zero].abs().max() < 1e-4
    assert (slopes[at_zero] > -1e-4).all()
    before = torch.tensor([(loss(1 + unit) - loss(1 - unit)) / 2e-4 for unit in units.float()])
    assert before.abs().max() > 1e-2, "at the start it was no optimum"


def test_a_block_that_only_harms_is_skipped_and_no_scale_is_negative(examples):
    """The last block adds the same vector to every state, one that lifts a token that no target begins with."""
    loaded = models.load("random:llama", dtype="float64", device="cpu")
    wrong = encode(loaded, Example("S1 N2 S", "z", "id", "own"))[1][0]
    with torch.no_grad():
        row = loaded.model.get_output_embeddings().weight.mul_(20)[wrong]  # at random, logits hardly differ
    hook = loaded.blocks[-1].register_forward_hook(lambda _block, args, _output: args[0] + 5 * row / row.norm())
    found = fit(loaded, examples, FitSettings(steps=50), progress=False)
    hook.remove()
    assert (found.scales >= 0).all()
    assert found.scales[-1] == 0


def test_batches_change_nothing_and_too_few_steps_are_said(loaded, examples):
    at_once, in_parts = (fit(loaded, examples, FitSettings(batch_size=size), progress=False) for size in (99, 3))
    torch.testing.assert_close(at_once.losses[:3], in_parts.losses[:3], atol=1e-5, rtol=0)
    assert at_once.converged
    cut = fit(loaded, examples, FitSettings(steps=1), progress=False)
    assert not cut.converged
    assert len(cut.losses) == 2


def test_the_model_is_left_as_it_was(examples, monkeypatch):
    loaded = models.load("random:gpt2", device="cpu")
    loaded.model.train()  # has dropout
    loaded.embedding.weight.requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in loaded.model.named_parameters()}
    before, hooks = models.fingerprint(loaded.model), hooks_of(loaded)
    first = fit(loaded, examples, SHORT, progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(residual_scaling, "cross_entropy", lambda logits, *_, **__: logits.sum() * torch.nan)
        with pytest.raises(InputError, match="not finite"):
            fit(loaded, examples, SHORT, progress=False)
    assert models.fingerprint(loaded.model) == before
    assert hooks_of(loaded) == hooks
    assert loaded.model.training
    assert {name: parameter.requires_grad for name, parameter in loaded.model.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert not first.scales.requires_grad
    loaded.model.eval()
    assert torch.equal(fit(loaded, examples, SHORT, progress=False).scales, first.scales), "there was no dropout"


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
    [{"steps": 0}, {"tolerance": 0.0}, {"tolerance": float("nan")}, {"batch_size": 0}],
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
