"""States over decoding steps, against a plain loop: one prompt at a time, no cache, no padding."""

import math

import pytest
import torch

from ridge_utils import models, tasks
from ridge_utils.errors import InputError
from ridge_utils.generation import greedy, reference
from ridge_utils.representations import encode
from ridge_utils.tasks import Example

STEPS = 6
END = 256  # of the random models


@pytest.fixture(scope="module")
def examples():
    short = [Example("S1 N2 S", " and then some", "id", "own"), Example("z", "yx wvu tsr", "id", "own")]
    zeros = Example("!!! S1!", "! and more", "id", "own")  # "!" is token 0, which stands in the padding too
    return [*tasks.load("synthetic_arithmetic", "id", 3), *short, zeros]


@pytest.fixture(scope="module")
def prompt_examples(examples):
    """The same prompts with targets long enough for teacher forcing."""
    return [Example(e.prompt, f" {i}: a long target", "id", "own") for i, e in enumerate(examples)]


def states_along(loaded, prompt, tokens):
    """States (blocks + 1, steps, d) with transformers' own outputs: its last entry is after the final norm."""
    with torch.no_grad():
        out = loaded.model(torch.tensor([prompt + tokens]), output_hidden_states=True, use_cache=False)
    first = len(prompt) - 1
    return torch.stack(out.hidden_states)[:, 0, first : first + len(tokens)]


def decode_by_hand(loaded, prompt, steps, end=(END,)):
    tokens = []
    for _ in range(steps):
        with torch.no_grad():
            logits = loaded.model(torch.tensor([prompt + tokens]), use_cache=False).logits[0, -1]
        logits[list(end)] = -math.inf
        tokens.append(logits.argmax().item())
    return tokens


def assert_states(loaded, got, prompts, tokens):
    blocks = len(loaded.blocks)
    steps = len(tokens[0])
    assert got.states.shape == (blocks + 2, len(prompts), steps, loaded.width)
    assert got.token_ids.tolist() == tokens
    for i, (prompt, ids) in enumerate(zip(prompts, tokens, strict=True)):
        expected = states_along(loaded, prompt, ids)
        torch.testing.assert_close(got.hidden[:-1, i], expected[:-1], atol=1e-4, rtol=0)
        torch.testing.assert_close(got.final_norm[i], expected[-1], atol=1e-4, rtol=0)
        # transformers does not give the last block's own output: its norm must be what it gives.
        normed = loaded.final_norm(got.hidden[-1, i]).detach()
        torch.testing.assert_close(normed, expected[-1], atol=1e-4, rtol=0)
        assert torch.equal(got.targets[i], loaded.embedding.weight.detach()[torch.tensor(ids)])


def test_greedy_is_a_plain_loop_without_cache_one_prompt_at_a_time(loaded, examples):
    prompts = [encode(loaded, example)[0] for example in examples]
    tokens = [decode_by_hand(loaded, prompt, STEPS) for prompt in prompts]
    assert len({tuple(ids) for ids in tokens}) > 1, "a test of order needs different continuations"
    assert_states(loaded, greedy(loaded, examples, STEPS, batch_size=3, progress=False), prompts, tokens)


def test_reference_is_one_plain_pass_over_prompt_and_target(loaded, prompt_examples):
    encoded = [encode(loaded, example) for example in prompt_examples]
    got = reference(loaded, prompt_examples, STEPS, batch_size=3, progress=False)
    assert_states(loaded, got, [p for p, _ in encoded], [target[:STEPS] for _, target in encoded])


def test_the_checkpoints_settings_are_put_aside_and_come_back(examples):
    loaded = models.load("random:llama", device="cpu")
    plain = greedy(loaded, examples, STEPS, progress=False)
    own = loaded.model.generation_config
    own.update(do_sample=True, temperature=3.0, top_k=2, repetition_penalty=50.0, no_repeat_ngram_size=1, num_beams=3)
    own.suppress_tokens = plain.token_ids.flatten().tolist()
    before = own.to_dict()
    assert torch.equal(greedy(loaded, examples, STEPS, progress=False).token_ids, plain.token_ids)
    assert loaded.model.generation_config is own
    assert own.to_dict() == before


def test_end_tokens_are_suppressed_and_cut_nothing(examples):
    loaded = models.load("random:llama", device="cpu")
    ends = greedy(loaded, examples[:1], 2, progress=False).token_ids[0].tolist()
    loaded.model.generation_config.eos_token_id = ends
    prompt, _ = encode(loaded, examples[0])
    got = greedy(loaded, examples[:1], STEPS, progress=False).token_ids[0].tolist()
    assert got == decode_by_hand(loaded, prompt, STEPS, ends)
    assert not set(got) & set(ends)


def test_bfloat16_models_give_float32_states_and_float64_models_float64(prompt_examples):
    for dtype, expected in (("bfloat16", torch.float32), ("float64", torch.float64)):
        loaded = models.load("random:llama", dtype=dtype, device="cpu")
        for function in (greedy, reference):
            got = function(loaded, prompt_examples, 2, progress=False)
            assert got.states.dtype == got.targets.dtype == expected


@pytest.mark.parametrize("function", [greedy, reference])
def test_a_nan_state_is_named_with_layer_example_and_step(function):
    loaded = models.load("random:llama", device="cpu")
    given = [Example("abc", "def", "id", "own"), Example("q", "rst", "id", "own")]  # the shorter one is run first
    with torch.no_grad():
        loaded.embedding.weight[encode(loaded, given[1])[0]] = math.nan
    with pytest.raises(InputError, match=r"NaN .* at layer 0 for example 1 at step 1"):
        function(loaded, given, 2, progress=False)


@pytest.mark.parametrize("function", [greedy, reference])
@pytest.mark.parametrize(
    ("given", "arguments", "words"),
    [
        ([], {}, "no examples"),
        ([Example("a", "bc", "id", "own")], {"steps": 0}, "steps"),
        ([Example("", "bc", "id", "own")], {}, "has no tokens"),
    ],
)
def test_bad_input(llama, function, given, arguments, words):
    with pytest.raises(InputError, match=words):
        function(llama, given, **{"steps": 2, "progress": False} | arguments)


@pytest.mark.parametrize("function", [greedy, reference])
def test_prompt_and_steps_fill_the_context_at_most(loaded, function):
    fits = Example("a" * (loaded.context - 2), "bc", "id", "own")
    assert len(function(loaded, [fits], 2, progress=False)) == 1
    too_long = Example("a" + fits.prompt, "bc", "id", "own")
    with pytest.raises(InputError, match=f"Example 1 has a prompt of {loaded.context - 1} tokens"):
        function(loaded, [fits, too_long], 2, progress=False)


def test_a_short_target_is_named(llama):
    given = [Example("a", "bcd", "id", "own"), Example("the prompt", "bc", "id", "own")]
    with pytest.raises(InputError, match="target of example 1 has 2 tokens, but 3 steps"):
        reference(llama, given, 3, progress=False)
