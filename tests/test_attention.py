import copy
import dataclasses
import math

import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from ridge_utils import attention, models, tasks
from ridge_utils.errors import InputError
from ridge_utils.tasks import Example


@pytest.fixture(scope="module")
def examples():
    return [
        *tasks.load("synthetic_arithmetic", "id", 5),
        Example("short S1", "2", "id", "own", ((6, 8),)),  # the last token is signal
        Example("S1 N1 " * 30 + "S", "1", "id", "own", ((0, 2), (6, 8))),
    ]


def merging(llama, *, begin=False):
    """The tiny llama with a tokenizer that merges a space into the letter S or N after it, and may add a BOS token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, "ĠS", "ĠN", "<s>"])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[("Ġ", "S"), ("Ġ", "N")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    return dataclasses.replace(llama, tokenizer=fast)


def uniform(name):
    """A model whose attention is uniform: with queries of zero all scores are equal."""
    loaded = models.load(name, device="cpu")
    with torch.no_grad():
        for block in loaded.blocks:
            if name == "random:gpt2":
                block.attn.c_attn.weight[:, : loaded.width] = 0
                block.attn.c_attn.bias[: loaded.width] = 0
            else:
                block.self_attn.q_proj.weight.zero_()
                if block.self_attn.q_proj.bias is not None:
                    block.self_attn.q_proj.bias.zero_()
    return loaded


def small(config_class, **sizes):
    """A tiny model of another architecture."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 260, **sizes}
    model = transformers.AutoModelForCausalLM.from_config(config_class(bos_token_id=256, eos_token_id=256, **sizes))
    return models.assemble("tiny", model, models.byte_tokenizer())


def test_shares_are_those_of_transformers_one_prompt_at_a_time(loaded, examples):
    shares = attention.shares(loaded, examples, batch_size=3, progress=False)
    assert shares.signal.shape == shares.last.shape == shares.first.shape == (len(loaded.blocks), len(examples))
    assert shares.signal.dtype == torch.float64
    model = copy.deepcopy(loaded.model)
    model.set_attn_implementation("eager")
    for i, example in enumerate(examples):
        with torch.no_grad():
            out = model(loaded.tokenizer(example.prompt, return_tensors="pt").input_ids, output_attentions=True)
        # One token a byte: a character's index is its token's.
        signal = sorted({c for a, b in example.signal_spans for c in range(a, b)})
        for layer, weights in enumerate(out.attentions):
            last_row = weights[0].double().mean(0)[-1]
            torch.testing.assert_close(shares.signal[layer, i], last_row[signal].sum(), atol=1e-5, rtol=0)
            torch.testing.assert_close(shares.last[layer, i], last_row[-1], atol=1e-5, rtol=0)
            torch.testing.assert_close(shares.first[layer, i], last_row[0], atol=1e-5, rtol=0)
        assert shares.tokens[i] == len(example.prompt)
        assert shares.signal_tokens[i] == len(signal)
        assert shares.first_is_signal[i] == (0 in signal)


def test_maps_are_causal_and_their_rows_sum_to_one(loaded, examples):
    layers = [len(loaded.blocks), 1]
    maps = attention.maps(loaded, examples[0], layers)
    length = len(examples[0].prompt)
    assert maps.shape == (2, length, length) and maps.dtype == torch.float64
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, length, dtype=torch.float64), atol=1e-5, rtol=0)
    assert (maps >= 0).all() and maps.triu(1).abs().max() == 0
    # Layers are numbered from 1: the last row is what shares() sums.
    shares = attention.shares(loaded, examples[:1], progress=False)
    for row, layer in zip(maps, layers, strict=True):
        on_signal = row[-1, attention.signal_mask(loaded, examples[0])].sum()
        torch.testing.assert_close(on_signal, shares.signal[layer - 1, 0], atol=1e-5, rtol=0)


def test_uniform_attention_gives_the_chance_level(loaded, examples):
    shares = attention.shares(uniform(loaded.name), examples, batch_size=3, progress=False)
    chance = shares.signal_tokens / shares.tokens.double()
    torch.testing.assert_close(shares.signal, chance.expand_as(shares.signal), atol=1e-6, rtol=0)
    expected = (1 / shares.tokens.double()).expand_as(shares.last)
    torch.testing.assert_close(shares.last, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(shares.first, expected, atol=1e-6, rtol=0)
    without_first = shares.chance_after_first
    torch.testing.assert_close(shares.signal_after_first, without_first.expand_as(expected), atol=1e-6, rtol=0)


def test_the_first_tokens_part_is_taken_out_only_where_it_is_signal(llama, examples):
    shares = attention.shares(llama, examples, progress=False)
    # The example "short S1" is the only one whose first token is no signal.
    assert shares.first_is_signal.tolist() == [True] * 5 + [False, True]
    torch.testing.assert_close(shares.signal_after_first[:, 5], shares.signal[:, 5], atol=0, rtol=0)
    torch.testing.assert_close(shares.signal_after_first[:, :5], (shares.signal - shares.first)[:, :5], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("prompt", "spans", "signal"),
    [
        ("S4 N3 S7 N", ((0, 2), (6, 8)), ["S", "4", " S", "7"]),
        ("S4 N3 S7 N", ((3, 5),), [" N", "3"]),
        ("S4 N3 S7 N", ((1, 3),), ["4"]),  # of " N" only the space is in the span
        ("S4 N3 S7 N", ((2, 8),), [" N", "3", " S", "7"]),
        ("S4 N3 S7 N", ((9, 10),), [" N"]),  # the last token counts where a span says so
        ("a 7", ((1, 3),), ["7"]),  # a token that is only a space is no signal
        ("a 7", (), []),
        ("é7", ((0, 1),), ["é", "é"]),  # two bytes, two tokens, one character
    ],
)
def test_signal_tokens_of_a_tokenizer_that_merges_the_space_before(llama, prompt, spans, signal):
    example = Example(prompt, "1", "id", "own", spans)
    for loaded in (merging(llama), merging(llama, begin=True)):
        texts, mask = attention.tokens(loaded, example), attention.signal_mask(loaded, example)
        assert [text for text, is_signal in zip(texts, mask.tolist(), strict=True) if is_signal] == signal
    assert texts[0] == "<s>", "a special token has its name, and is no signal"


def test_the_implementation_of_before_is_restored(examples):
    loaded = models.load("random:llama", device="cpu")
    for before in ("sdpa", "eager"):
        loaded.model.set_attn_implementation(before)
        attention.shares(loaded, examples[:1], progress=False)
        assert loaded.model.config._attn_implementation == before
        attention.maps(loaded, examples[0], [1])
        assert loaded.model.config._attn_implementation == before
        with pytest.raises(KeyError), attention.eager(loaded):
            raise KeyError
        assert loaded.model.config._attn_implementation == before


def test_nan_weights_are_named_with_their_layer_and_the_implementation_is_restored(examples):
    loaded = models.load("random:llama", device="cpu")
    with torch.no_grad():
        loaded.blocks[2].self_attn.q_proj.weight.fill_(math.nan)
    with pytest.raises(InputError, match="attention weights at layer 3"):
        attention.shares(loaded, examples, progress=False)
    assert loaded.model.config._attn_implementation == "sdpa"


def test_bfloat16_and_float64_models(llama, examples):
    expected = attention.shares(llama, examples, progress=False)
    for dtype, tolerance in (("bfloat16", 2e-2), ("float64", 1e-5)):
        model = copy.deepcopy(llama.model).to(getattr(torch, dtype))
        shares = attention.shares(models.assemble("llama", model, llama.tokenizer), examples, progress=False)
        assert shares.signal.dtype == torch.float64
        torch.testing.assert_close(shares.signal, expected.signal, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("config_class", "sizes", "words"),
    [
        (transformers.MambaConfig, {"state_size": 4}, "attention weights in each of its 2 blocks"),
        (
            transformers.RecurrentGemmaConfig,
            {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "lru_width": 32},
            "attention weights in each of its 3 blocks",
        ),
        (transformers.FalconConfig, {"num_attention_heads": 4}, "'sdpa'"),
    ],
)
def test_architectures_without_attention_weights(examples, config_class, sizes, words):
    loaded = small(config_class, **sizes)
    before = loaded.model.config._attn_implementation
    with pytest.raises(InputError, match=words):
        attention.shares(loaded, examples[:2], progress=False)
    with pytest.raises(InputError, match=words):
        attention.maps(loaded, examples[0], [1])
    assert loaded.model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "no examples"),
        ([Example("a" * 9999, "b", "id", "own", ((0, 1),))], "9999 tokens"),
        ([Example("a", "b", "id", "own", ((0, 1),)), Example("a", "b", "id", "own")], "Example 1 has no signal token"),
        ([Example("a b", "b", "id", "own", ((1, 2),))], "Example 0 has no signal token"),
    ],
)
def test_bad_input(llama, given, words):
    with pytest.raises(InputError, match=words):
        attention.shares(llama, given, progress=False)
