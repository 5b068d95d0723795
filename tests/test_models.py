import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from ridge_utils import early_exit, models, names, tasks, training
from ridge_utils.errors import InputError
from ridge_utils.representations import collect
from ridge_utils.run import cli
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
    "Gemma3": transformers.Gemma3TextConfig(**SHAPE, num_key_value_heads=2, intermediate_size=64, head_dim=8),
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


class Response:
    status_code = 403
    headers: dict = {}  # noqa: RUF012
    request = None
    text = ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "'a/b' is gated"),
        ("RepositoryNotFoundError", "no model 'a/b' on the Hub"),
        ("LocalEntryNotFoundError", "the Hub cannot be reached"),
    ],
)
def test_the_hubs_refusals_are_told_apart(monkeypatch, error, words):
    from huggingface_hub import errors

    kind = getattr(errors, error)
    raised = kind("refused\nat length", response=Response()) if "Repo" in error else kind("no such entry")

    def refuse(*_arguments, **_options):
        raise raised

    monkeypatch.setattr(names.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(names.HfApi, "model_info", refuse)
    monkeypatch.setattr(models.weights.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(InputError, match=words):
        models.load("a/b")


# A model cut to its first blocks.


@pytest.fixture(scope="module")
def examples():
    return tasks.load("synthetic_arithmetic", "id", 5)


@pytest.mark.parametrize("depth", [1, 4, 6])
def test_the_first_blocks_of_a_truncated_model_are_the_whole_ones(loaded, examples, depth):
    before, whole = models.fingerprint(loaded.model), collect(loaded, examples, progress=False)
    short = models.truncate(loaded, depth)
    assert len(short.blocks) == short.model.config.num_hidden_layers == depth
    assert short.name == f"{loaded.name}[:{depth}]"
    states = collect(short, examples, progress=False)
    assert torch.equal(states.hidden, whole.hidden[: depth + 1])
    assert torch.equal(states.targets, whole.targets)
    # The norm and the head follow directly on block `depth`.
    ids = torch.tensor([loaded.tokenizer(examples[0].prompt).input_ids])
    with torch.no_grad():
        got = short.model(ids).logits[0, -1]
        expected = loaded.model.get_output_embeddings()(loaded.final_norm(whole.hidden[depth, 0]))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert models.fingerprint(loaded.model) == before
    assert (len(loaded.blocks), loaded.model.config.num_hidden_layers) == (6, 6)


def test_checkpoints_of_a_truncated_model_have_its_depth(loaded, examples, tmp_path):
    short = models.truncate(loaded, 3)
    short.model.save_pretrained(tmp_path)
    back = short.with_weights(tmp_path)
    assert back.name == short.name
    assert len(back.blocks) == 3
    assert models.fingerprint(back.model) == models.fingerprint(short.model)
    settings = training.Settings(steps=1, checkpoints=(0, 1), batch_size=2, precision="float32")
    run = training.finetune(short, tasks.load("synthetic_arithmetic", "train", 4), settings, progress=False)
    trained = run.load(1)
    assert len(trained.blocks) == 3
    assert collect(trained, examples, progress=False).hidden.shape[0] == 4
    assert models.fingerprint(trained.model) != models.fingerprint(short.model)


def test_a_name_can_say_how_many_blocks(tmp_path, llama):
    named = models.load("random:llama[:3]", device="cpu")
    assert named.name == "random:llama[:3]"
    assert models.fingerprint(named.model) == models.fingerprint(models.truncate(llama, 3).model)
    llama.model.save_pretrained(tmp_path / "mine")
    llama.tokenizer.save_pretrained(tmp_path / "mine")
    folder = models.load(f"{tmp_path / 'mine'}[:2]", device="cpu")
    assert len(folder.blocks) == 2
    assert models.title(folder.name) == models.describe(folder)["name"] == "mine[:2]"


# Random models of any shape.


@pytest.mark.parametrize(
    ("name", "blocks", "width", "heads"),
    [
        ("random:gpt2-12x64", 12, 64, 4),
        ("random:qwen2-1x16", 1, 16, 1),
        ("random:gpt2-1x192", 1, 192, 3),
        ("random:gpt2-3x64[:2]", 2, 64, 4),
    ],
)
def test_random_models_have_the_shape_asked_for(name, blocks, width, heads):
    loaded = models.load(name, device="cpu")
    assert (len(loaded.blocks), loaded.width) == (blocks, width)
    assert loaded.model.config.num_attention_heads == heads
    assert loaded.context == 1024
    states = collect(loaded, [Example("S1 N2 S", "3", "id", "own")], progress=False)
    assert states.hidden.shape == (blocks + 1, 1, width)


def test_the_name_of_a_random_model_says_its_shape():
    assert models.random_shape("random:llama-12x64[:3]") == ("llama", 12, 64)
    assert models.random_shape("random:gpt2-12") is models.random_shape("gpt2") is None


# A decoder without attention.


@pytest.fixture(scope="module")
def mamba():
    return models.load("random:mamba-3x32", device="cpu")


def weights_of(part):
    return sum(parameter.numel() for parameter in part.parameters())


@pytest.mark.parametrize("shape", ["4x64", "4x128", "12x64"])
def test_mamba_has_no_attention_and_the_size_of_gpt2(shape):
    mamba, gpt2 = (models.load(f"random:{kind}-{shape}", device="cpu") for kind in ("mamba", "gpt2"))
    assert (len(mamba.blocks), mamba.width) == (len(gpt2.blocks), gpt2.width)
    assert weights_of(mamba.blocks) == pytest.approx(weights_of(gpt2.blocks), rel=0.2)
    assert mamba.context is None
    assert not [name for name, _ in mamba.model.named_modules() if "attn" in name or "attention" in name]
    assert mamba.model.get_output_embeddings().weight is mamba.embedding.weight


def test_what_stands_behind_the_last_prompt_token_is_harmless_for_mamba(mamba):
    """Its convolution and its recurrence run over the padding too, but only after the prompt."""
    examples = [Example("S1 N2 " * count + "S", "3", "id", "own") for count in (1, 2, 5, 9)]
    alone = collect(mamba, examples, batch_size=1, progress=False)
    together = collect(mamba, examples, batch_size=4, progress=False)
    torch.testing.assert_close(together.hidden, alone.hidden, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.final_norm, alone.final_norm, atol=1e-5, rtol=0)
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    ids[1, :25] = ids[0, :25]
    for mask in (None, (torch.arange(40) < 25).long().expand(2, 40)):
        with torch.no_grad():
            states = mamba.model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        torch.testing.assert_close(states[0, :25], states[1, :25], atol=1e-5, rtol=0)
    # And what stands before it is not, however far.
    ids[1, 0] = 255 - ids[0, 0]
    with torch.no_grad():
        states = mamba.model.base_model(ids, use_cache=False).last_hidden_state
    assert (states[0, 24] - states[1, 24]).abs().max() > 1e-5


def test_a_truncated_mamba_is_its_first_blocks(mamba):
    examples = [Example("S1 N2 S", "3", "id", "own")]
    short = models.truncate(mamba, 2)
    assert len(short.model.config.layer_types) == len(short.blocks) == 2
    assert torch.equal(
        collect(short, examples, progress=False).hidden, collect(mamba, examples, progress=False).hidden[:3]
    )


@pytest.fixture(scope="module", params=["random:gpt2", "random:llama"])
def folder(request, tmp_path_factory):
    """A model in a folder, whose weights are read from there when a device map leaves them on the disk."""
    whole, path = models.load(request.param, device="cpu"), tmp_path_factory.mktemp("model")
    whole.model.save_pretrained(path)
    whole.tokenizer.save_pretrained(path)
    return str(path)


def half(folder):
    return (Path(folder) / "model.safetensors").stat().st_size // 2


@pytest.mark.parametrize("device_map", models.DEVICE_MAPS)
def test_a_model_that_does_not_fit_gives_the_states_of_the_whole_one(folder, device_map):
    examples = tasks.load("synthetic_arithmetic", "id", 5)
    whole = models.load(folder, device="cpu")
    spread = models.load(folder, device=device_map, max_memory={"cpu": half(folder)})
    kept_elsewhere = [name for name, weight in spread.model.named_parameters() if weight.is_meta]
    assert 0 < len(kept_elsewhere) < len(list(spread.model.parameters()))
    assert models.fingerprint(spread.model) == models.fingerprint(whole.model)
    expected, found = (collect(one, examples, 2, progress=False) for one in (whole, spread))
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), value, atol=1e-6, rtol=1e-6)
    assert torch.equal(early_exit.correct(spread, found), early_exit.correct(whole, expected))
    torch.testing.assert_close(early_exit.cross_entropy(spread, found), early_exit.cross_entropy(whole, expected))
    # The weights go back to where they were.
    assert [name for name, weight in spread.model.named_parameters() if weight.is_meta] == kept_elsewhere


def test_a_spread_model_is_not_fine_tuned(folder):
    spread = models.load(folder, device="sequential", max_memory={"cpu": half(folder)})
    examples = tasks.load("synthetic_arithmetic", "train", 4)
    with pytest.raises(InputError, match="spread over several devices and cannot be fine-tuned"):
        training.finetune(spread, examples, training.Settings(steps=1, checkpoints=(1,)))


def test_weights_are_hashed_once_and_again_when_one_was_written_to(monkeypatch):
    loaded, calls, honest = models.load("random:gpt2-2x16", device="cpu"), [], models.fingerprint
    monkeypatch.setattr(models, "fingerprint", lambda model: calls.append(model) or honest(model))
    first = loaded.weights_sha256
    assert loaded.weights_sha256 == first == honest(loaded.model) and len(calls) == 1
    with torch.no_grad():
        loaded.embedding.weight[0, 0] += 1
    changed = loaded.weights_sha256
    assert changed == honest(loaded.model) != first
    loaded.blocks[0].ln_1.weight = torch.nn.Parameter(torch.zeros(16))
    assert loaded.weights_sha256 == honest(loaded.model) != changed
    assert len(calls) == 3


def test_a_folder_here_does_not_capture_the_name_of_a_hub_model(tmp_path, monkeypatch, llama, caplog):
    for place in ("gpt2", "snapshot"):
        (llama if place == "gpt2" else models.load("random:qwen2", device="cpu")).model.save_pretrained(
            tmp_path / place
        )
        llama.tokenizer.save_pretrained(tmp_path / place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(names, "hub_answers", lambda name: False)
    monkeypatch.setattr(models, "snapshot_download", lambda name, **_: str(tmp_path / "snapshot"))
    assert models.load("gpt2", device="cpu").model.config.model_type == "qwen2"
    assert "The model gpt2 is the Hub's; the folder of that name here would be ./gpt2." in caplog.text
    assert models.load("./gpt2", device="cpu").model.config.model_type == "llama"


@pytest.fixture(params=["accepts and says nothing", "is not there", "dribbles"])
def endpoint(request, monkeypatch):
    """A Hub that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"

        def dribble():
            with contextlib.suppress(OSError):
                client, _ = server.accept()
                with client:
                    for letter in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100:
                        client.send(bytes([letter]))
                        time.sleep(0.1)

        if request.param == "dribbles":
            threading.Thread(target=dribble, daemon=True).start()
        if request.param == "is not there":
            server.close()
        monkeypatch.setattr(names.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(names, "HfApi", lambda: HfApi(endpoint=address))
        yield address


@pytest.mark.parametrize("name", ["Qwen/Qwem", "gtp2", "gtp2[:2]"])
def test_a_hub_out_of_reach_is_said_soon(endpoint, monkeypatch, capsys, tmp_path, name):
    monkeypatch.setattr(names, "_WAIT", 0.3)
    started = time.monotonic()
    with pytest.raises(InputError, match="is not in the local Hub cache and the Hub cannot be reached"):
        models.load(name)
    # The command asks before it starts a kernel.
    assert cli.main(["run", "attention", "-p", f"model={name}", "-o", str(tmp_path / "out.ipynb")]) == 2
    assert "the Hub cannot be reached" in capsys.readouterr().err
    assert time.monotonic() - started < 2


# What can be computed with.


def test_only_devices_and_dtypes_that_compute_are_taken():
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        try:
            assert models.load("random:gpt2-1x16", dtype=dtype, device="cpu").model.dtype == dtype
        except InputError:
            assert dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    every = ["meta", "xla", "vulkan", "mkldnn", "hpu", "xpu", "mtia", "ipu", "fpga", "privateuseone", "lazy", "maia"]
    for device in [*every, "cpu:7", "cuda:99", "", "0", "cpu:x", "a\0b"]:
        with pytest.raises(InputError):
            models.load("random:gpt2-1x16", device=device)


# Weights that old checkpoints hold or lack, to no harm.


@pytest.mark.parametrize("name", ["random:gpt2-2x16", "random:llama-2x16", "random:qwen2-2x16"])
def test_what_old_checkpoints_hold_besides_their_weights_is_no_fault(name, tmp_path):
    whole = models.load(name, device="cpu")
    with models.quiet():
        whole.model.save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    if "gpt2" in name:  # as the Hub's gpt2 has them, without their prefix
        held = {key.removeprefix("transformer."): value for key, value in held.items()}
        held |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}
        held |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    else:
        held |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    assert models.fingerprint(models.load(str(tmp_path), device="cpu").model) == models.fingerprint(whole.model)


def test_an_encoder_is_refused_whatever_it_calls_itself(tmp_path):
    torch.manual_seed(0)
    for kind, config in {
        "bert": transformers.BertConfig(**SHAPE, intermediate_size=64, is_decoder=False),
        "neox": ARCHITECTURES["GPTNeoX"],
    }.items():
        folder = tmp_path / kind
        with models.quiet():
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        models.byte_tokenizer().save_pretrained(folder)
        if kind == "neox":
            assert models.load(str(folder), device="cpu").width == 32
        else:
            with pytest.raises(InputError, match="is an encoder"):
                models.load(str(folder), device="cpu")
