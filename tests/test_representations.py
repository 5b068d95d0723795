import math

import pytest
import torch

from ridge_utils import early_exit, information, models, tasks
from ridge_utils.errors import InputError
from ridge_utils.representations import collect, encode
from ridge_utils.tasks import Example
from ridge_utils.unbiased import unbiased_information
from tests import gguf_files


@pytest.fixture(scope="module")
def examples():
    return tasks.load("synthetic_arithmetic", "id", 6) + tasks.load("synthetic_arithmetic", "ood", 5)


def test_states_are_those_of_transformers_one_prompt_at_a_time(loaded, examples):
    states = collect(loaded, examples, batch_size=4, progress=False)
    blocks = len(loaded.blocks)
    assert states.hidden.shape == (blocks + 1, len(examples), loaded.width)
    for i, example in enumerate(examples):
        ids = loaded.tokenizer(example.prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            out = loaded.model(ids, output_hidden_states=True)
        for layer in range(blocks):
            torch.testing.assert_close(states.hidden[layer, i], out.hidden_states[layer][0, -1], atol=1e-4, rtol=0)
        # transformers' last entry is after the final norm; the last block's own output it does not give.
        torch.testing.assert_close(states.final_norm[i], out.hidden_states[-1][0, -1], atol=1e-4, rtol=0)
        normed = loaded.final_norm(states.hidden[-1, i])
        torch.testing.assert_close(normed.detach(), states.final_norm[i], atol=1e-4, rtol=0)


def test_updates_add_up_to_the_last_state(llama, examples):
    states = collect(llama, examples, progress=False)
    assert states.updates.shape == states.hidden[1:].shape
    torch.testing.assert_close(states.hidden[0] + states.updates.sum(0), states.hidden[-1], atol=1e-5, rtol=0)


def test_targets_are_the_embedding_output_of_the_papers_second_pass(loaded, examples):
    states = collect(loaded, examples, progress=False)
    for i, example in enumerate(examples):
        prompt, target = encode(loaded, example)
        seen = []
        handle = loaded.embedding.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output))
        with torch.no_grad():
            loaded.model(torch.tensor([[*prompt, target[0]]]))
        handle.remove()
        torch.testing.assert_close(states.targets[i], seen[0][0, -1], atol=0, rtol=0)
        assert states.target_ids[i] == target[0]


def test_prompt_and_target_are_encoded_as_the_model_would_read_them(llama):
    prompt, target = encode(llama, Example("S1 N2 S", "12", "id", "own"))
    assert llama.tokenizer.decode(prompt) == "S1 N2 S"
    assert llama.tokenizer.decode(target) == "12"
    assert llama.tokenizer.decode(target[:1]) == "1", "one token a byte: the target token is the first digit"


def test_no_logits_are_made(llama, examples):
    calls = []
    handle = llama.model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    collect(llama, examples, progress=False)
    handle.remove()
    assert not calls


def test_select_and_join_keep_order(llama, examples):
    states = collect(llama, examples, progress=False)
    part = states.select([3, 1])
    assert torch.equal(part.hidden, states.hidden[:, [3, 1]])
    assert torch.equal(part.target_ids, states.target_ids[[3, 1]])
    both = part.join([part, states])
    assert len(both) == 2 + len(states)
    assert torch.equal(both.final_norm[2:], states.final_norm)
    assert states.states.shape[0] == len(llama.blocks) + 2
    assert torch.equal(states.states[-1], states.final_norm)


def test_the_last_early_exit_is_the_models_own_prediction(loaded, examples):
    states = collect(loaded, examples, progress=False)
    # Take the model's own predictions as targets: then the last exit is always right, and it alone need be.
    with torch.no_grad():
        own = [loaded.model(torch.tensor([encode(loaded, e)[0]])).logits[0, -1].argmax().item() for e in examples]
    own_targets = type(states)(states.hidden, states.final_norm, states.targets, torch.tensor(own))
    correct = early_exit.correct(loaded, own_targets, batch_size=4)
    assert correct.shape == (len(loaded.blocks) + 1, len(examples))
    assert correct[-1].all()


def test_bfloat16_models_give_float32_states(examples):
    loaded = models.load("random:llama", dtype="bfloat16", device="cpu")
    states = collect(loaded, examples, progress=False)
    assert states.hidden.dtype == torch.float32


def test_a_nan_state_is_named_with_its_layer(examples):
    loaded = models.load("random:llama", device="cpu")
    with torch.no_grad():
        loaded.blocks[2].mlp.down_proj.weight.fill_(math.nan)
    with pytest.raises(InputError, match="NaN or infinite state at layer 3 for example 0"):
        collect(loaded, examples, progress=False)


@pytest.mark.parametrize(
    ("given", "batch", "words"),
    [
        ([], 4, "no examples"),
        ([Example("a", "b", "id", "own")], 0, "batch_size"),
        ([Example("a" * 1025, "b", "id", "own")], 4, "1025 tokens, .* 1024"),
        ([Example("", "b", "id", "own")], 4, "has no tokens"),
    ],
)
def test_bad_input(llama, given, batch, words):
    with pytest.raises(InputError, match=words):
        collect(llama, given, batch, progress=False)


def test_of_a_model_that_scales_its_embedding_the_target_is_the_row_and_estimates_do_not_depend_on_it(examples):
    """Gemma multiplies each row by the root of the width before its first block."""
    loaded = models.assemble("gemma", gguf_files.model("gemma3"), models.byte_tokenizer())
    scale = loaded.width**0.5
    states = collect(loaded, examples, progress=False)
    rows = loaded.embedding.weight.detach()
    last = [loaded.tokenizer(example.prompt).input_ids[-1] for example in examples]
    torch.testing.assert_close(states.hidden[0], scale * rows[last])
    assert torch.equal(states.targets, rows[states.target_ids])
    for estimate in (information.predictive_information, lambda z, y: unbiased_information(z, y).information.value):
        found = estimate(states.hidden, states.targets)
        torch.testing.assert_close(estimate(states.hidden, scale * states.targets), found, atol=1e-6, rtol=0)
        torch.testing.assert_close(estimate(states.hidden / scale, states.targets), found, atol=1e-6, rtol=0)
