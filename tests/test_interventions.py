import contextlib

import pytest
import torch
from transformers import AutoModelForCausalLM

from ridge_utils import models, tasks
from ridge_utils.audit import interventions
from ridge_utils.audit.interventions import Pair, ablate, match, mean_updates, patch
from ridge_utils.errors import InputError
from ridge_utils.representations import encode
from ridge_utils.residual_scaling import evaluate, scaled
from ridge_utils.tasks import Example
from tests.test_models import ARCHITECTURES

BLOCKS = [1, 3, 6]


@pytest.fixture(scope="module")
def examples():
    return tasks.load("synthetic_arithmetic", "id", 6) + tasks.load("synthetic_arithmetic", "ood", 5)


@pytest.fixture(scope="module")
def pairs(examples):
    return match(models.load("random:gpt2", device="cpu"), examples, tasks.load("synthetic_arithmetic", "id", 80))


def states(loaded, text):
    """Z_0 to Z_L of one prompt at every position, each of shape (length, d), through hooks of the test's own."""
    kept = []
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids

    def keep_input(_block, args, kwargs):
        kept.append((args[0] if args else kwargs["hidden_states"])[0])

    handles = [loaded.blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)]
    handles += [
        block.register_forward_hook(lambda _b, _a, out: kept.append((out[0] if isinstance(out, tuple) else out)[0]))
        for block in loaded.blocks
    ]
    with torch.no_grad():
        loaded.model(ids)
    for handle in handles:
        handle.remove()
    return kept


@contextlib.contextmanager
def output(loaded, block, state):
    """Replace a block's output, everything before it being computed."""

    def hook(_block, _args, out):
        return (state[None], *out[1:]) if isinstance(out, tuple) else state[None]

    handle = loaded.blocks[block - 1].register_forward_hook(hook)
    yield
    handle.remove()


def log_probability(loaded, example):
    prompt, target = encode(loaded, example)
    with torch.no_grad():
        return loaded.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[target[0]].item()


def test_skipping_is_a_scale_of_zero(loaded, examples):
    found = ablate(loaded, examples, BLOCKS, batch_size=4, progress=False)
    assert found.log_probability.shape == found.correct.shape == (4, 11)
    assert found.log_probability.dtype == torch.float64
    for row, block in enumerate([None, *BLOCKS]):
        scales = torch.ones(6)
        if block:
            scales[block - 1] = 0
        expected = evaluate(loaded, examples, scales, progress=False)
        torch.testing.assert_close(found.log_probability[row], -expected.cross_entropy, atol=1e-5, rtol=0)
        assert torch.equal(found.correct[row], expected.correct)
    assert (found.log_probability[1:] - found.log_probability[0]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_any_decoder_can_be_intervened_on(config):
    torch.manual_seed(0)
    loaded = models.assemble("some", AutoModelForCausalLM.from_config(config), models.byte_tokenizer())
    rows = [
        Example("S1 N2 S", "3", "id", "own"),
        Example("S7 N9 S", "4", "id", "own"),
        Example("S1 S", "34", "id", "o"),
    ]
    found = ablate(loaded, rows, [1, 2, 3], progress=False)
    for row, block in enumerate([1, 2, 3], 1):
        with scaled(loaded, torch.tensor([float(other != block) for other in (1, 2, 3)])):
            expected = [log_probability(loaded, example) for example in rows]
        assert found.log_probability[row].tolist() == pytest.approx(expected, abs=1e-5)
    (pair, _) = match(loaded, rows, rows)
    patched = patch(loaded, [pair], [1, 3], progress=False)
    assert patched.log_probability[2].item() == pytest.approx(patched.clean.item(), abs=1e-5)
    assert patched.clean.item() == pytest.approx(log_probability(loaded, rows[0]), abs=1e-5)


def test_mean_updates_are_means_over_positions_and_prompts(loaded, examples):
    rows = [*examples, Example("S", "1", "id", "own")]  # one token: a last position and no other
    kinds = [[], [], []]
    for example in rows:
        z = torch.stack(states(loaded, example.prompt)).double()
        updates = z[1:] - z[:-1]
        if updates.shape[1] > 1:
            kinds[0].append(updates[:, :1])
            kinds[1].append(updates[:, 1:-1])
        kinds[2].append(updates[:, -1:])
    expected = torch.stack([torch.cat(kind, 1).mean(1) for kind in kinds], 1)
    found = mean_updates(loaded, rows, batch_size=5)
    assert found.shape == (6, 3, 64)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_mean_ablation_by_hand(loaded, examples):
    """Prompt by prompt with a hook on the block, against batches that begin behind it."""
    means = mean_updates(loaded, examples)
    found = ablate(loaded, examples, BLOCKS, "mean", batch_size=4, progress=False)
    for row, block in enumerate(BLOCKS, 1):
        expected = []
        for example in examples:
            before = states(loaded, example.prompt)[block - 1]
            update = means[block - 1, 1].expand(len(before), -1).clone()
            update[0], update[-1] = means[block - 1, 0], means[block - 1, 2]
            with output(loaded, block, before + update.float()):
                expected.append(log_probability(loaded, example))
        assert found.log_probability[row].tolist() == pytest.approx(expected, abs=1e-5)
    skipped = ablate(loaded, examples, BLOCKS, "skip", progress=False)
    assert not torch.allclose(found.log_probability[1:], skipped.log_probability[1:], atol=1e-3)


def test_patching_by_hand(loaded, pairs):
    found = patch(loaded, pairs, BLOCKS, batch_size=4, progress=False)
    for column, pair in enumerate(pairs):
        clean, corrupted = states(loaded, pair.clean.prompt), states(loaded, pair.corrupted.prompt)
        assert found.clean[column].item() == pytest.approx(log_probability(loaded, pair.clean), abs=1e-5)
        for row, block in enumerate([None, *BLOCKS]):
            if block is None:
                expected = log_probability(loaded, pair.corrupted)
            else:
                state = torch.cat([corrupted[block][:-1], clean[block][-1:]])
                with output(loaded, block, state):
                    expected = log_probability(loaded, pair.corrupted)
            assert found.log_probability[row, column].item() == pytest.approx(expected, abs=1e-5)


def test_pairs_match_in_length_and_differ_in_target(llama, examples):
    candidates = tasks.load("synthetic_arithmetic", "ood", 60)
    found = match(llama, examples, candidates)
    assert 2 < len(found) <= len(examples)
    assert [pair.clean for pair in found] == [e for e in examples if e in [pair.clean for pair in found]]
    assert len({pair.corrupted.prompt for pair in found}) == len(found), "each candidate is used once"
    original = {candidate.prompt: candidate for candidate in candidates}
    for pair in found:
        assert len(pair.clean.prompt) == len(pair.corrupted.prompt)  # one token a byte
        assert pair.corrupted.target == pair.clean.target
        assert original[pair.corrupted.prompt].target[0] != pair.clean.target[0]
    assert match(llama, examples[:1], examples[:1]) == []
    same = [Example(f"S{n} S", "1", "id", "own") for n in range(4)]
    assert match(llama, same, same) == []


def test_neither_batches_nor_company_change_a_result(llama, examples, pairs):
    for run in (
        lambda size: ablate(llama, examples, BLOCKS, "mean", batch_size=size, progress=False),
        lambda size: patch(llama, pairs, BLOCKS, batch_size=size, progress=False),
    ):
        one, all_at_once = run(1), run(64)
        torch.testing.assert_close(one.log_probability, all_at_once.log_probability, atol=1e-5, rtol=0)
        assert torch.equal(one.correct, all_at_once.correct)


def test_blocks_before_the_one_intervened_on_are_not_run(llama, examples):
    runs = [0] * 6
    handles = []
    for place, block in enumerate(llama.blocks):

        def count(_module, _args, place=place):
            runs[place] += 1

        handles.append(block.mlp.register_forward_pre_hook(count))
    ablate(llama, examples, [2, 5], batch_size=64, progress=False)
    for handle in handles:
        handle.remove()
    assert runs == [1, 1, 2, 2, 2, 3]


def hooks(loaded):
    # Counted, not required to be none: transformers leaves its own on a block once states have been asked for.
    return [len(block._forward_hooks) + len(block._forward_pre_hooks) for block in loaded.blocks]


def test_the_model_is_left_as_it_was(llama, examples, monkeypatch):
    """Even where a run fails in between."""
    own = llama.blocks[0].forward
    monkeypatch.setattr(llama.blocks[0], "forward", own)
    before, names = models.fingerprint(llama.model), [set(vars(block)) for block in llama.blocks]
    hooked = hooks(llama)
    untouched = ablate(llama, examples, [1], progress=False)
    patch(llama, [Pair(examples[0], examples[0])], [2], progress=False)
    calls = []

    def fails(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise InputError("in between")
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(interventions, "evaluate", fails)
        with pytest.raises(InputError, match="in between"):
            ablate(llama, examples, [2, 3], progress=False)
    assert models.fingerprint(llama.model) == before
    assert [set(vars(block)) for block in llama.blocks] == names
    assert vars(llama.blocks[0])["forward"] == own
    assert hooks(llama) == hooked
    assert torch.equal(ablate(llama, examples, [1], progress=False).log_probability, untouched.log_probability)
