"""GGUF files as models: they are read as they were written, and what is none is refused in a sentence."""

import os
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ridge_utils import cache, dequantised, models, names
from ridge_utils.errors import InputError, StorageError
from tests import gguf_files

IDS = torch.tensor([[2, 5, 77, 140, 33, 201, 9, 64, 118, 250, 7, 41, 99, 180, 13, 3]])


@pytest.mark.parametrize(
    ("architecture", "changed", "said"),
    [
        ("llama", {}, {}),
        ("llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {}),
        ("qwen2", {}, {}),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, "linear"),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "yarn"),
        ("gemma3", {}, {}),
        ("gemma3", {"local": 300.0, "pattern": 3}, {}),
        ("gemma3", {"global_factor": 8.0}, "linear"),
    ],
)
def test_a_gguf_file_gives_the_logits_of_the_model_it_was_written_from(tmp_path, architecture, changed, said):
    changed, keys = dict(changed), {}
    if said:
        keys = {"rope__scaling__type": said, "rope__scaling__factor": 8.0 if architecture == "gemma3" else 4.0}
    if said == "yarn":
        changed["rope_parameters"]["original_max_position_embeddings"] = 64
        keys["rope__scaling__original_context_length"] = 64
    if architecture == "gemma3":
        whole = {"rope_type": "default", "rope_theta": 1e6}
        if factor := changed.pop("global_factor", None):
            whole |= {"rope_type": "linear", "factor": factor}
        if pattern := changed.pop("pattern", None):
            kinds = ["full_attention" if i % pattern == 0 else "sliding_attention" for i in range(1, 8)]
            changed["layer_types"], keys["attention__sliding_window_pattern"] = kinds, pattern
        local = changed.pop("local", 1e4)
        if local != 1e4:
            keys["rope__freq_base_swa"] = local
        near = {"rope_type": "default", "rope_theta": local}
        changed["rope_parameters"] = {"full_attention": whole, "sliding_attention": near}
    written = gguf_files.model(architecture, **changed)
    path = gguf_files.write(tmp_path / "tiny.gguf", written, **keys)
    loaded = models.load(str(path), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(IDS).logits, written(IDS).logits, atol=1e-4, rtol=1e-4)
    told = models.describe(loaded)
    assert told["gguf_sha256"] == cache.sha256(path)
    assert told["name"] == names.display_name(f"{path}") == "tiny.gguf"


def test_the_frequencies_of_llama_3_are_read(tmp_path):
    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    written = gguf_files.model("llama", rope_parameters=scaled)
    bare = 5e5 ** -(torch.arange(0, 16, 2) / 16)
    written.rope_freqs = bare / ROPE_INIT_FUNCTIONS["llama3"](written.config, torch.device("cpu"))[0]
    path = gguf_files.write(tmp_path / "three.gguf", written)
    loaded = models.load(str(path), device="cpu")
    assert loaded.model.config.rope_parameters == scaled
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(IDS).logits, written(IDS).logits, atol=1e-4, rtol=1e-4)
    written.rope_freqs[3] *= 1.5
    with pytest.raises(InputError, match="rotary frequencies in a way that is not read"):
        models.load(str(gguf_files.write(tmp_path / "other.gguf", written)), device="cpu")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_its_tokenizer_begins_a_text_as_the_file_says(tmp_path, architecture):
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.model(architecture))
    tokenizer = models.load(str(path), device="cpu").tokenizer
    text = "an  old nephew 12"
    ids = tokenizer(text).input_ids
    assert (ids[0] == tokenizer.bos_token_id) == (architecture != "qwen2")
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    digits = tokenizer.convert_ids_to_tokens(ids)[-2:]
    assert digits == ["1", "2"]
    assert tokenizer.convert_tokens_to_ids("Ġn" if architecture != "gemma3" else "▁n") in ids


def test_its_first_blocks_are_a_model_and_a_file_that_lies_elsewhere_is_the_same(tmp_path, monkeypatch):
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.model("llama"))
    short = models.load(f"{path}[:2]", device="cpu")
    assert len(short.blocks) == 2 and models.describe(short)["gguf_sha256"] == cache.sha256(path)
    assert models.title(short.name) == "tiny.gguf[:2]"
    # Without an ending, behind a link, and beside what transformers would take for its tokenizer's.
    (tmp_path / "blobs").mkdir()
    path.rename(tmp_path / "blobs" / "sha256-1")
    (tmp_path / "blobs" / "tokenizer_config.json").write_text("{")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "blobs" / "sha256-1")
    monkeypatch.setattr(dequantised, "_convert", lambda *_: pytest.fail("converted twice"))
    for name in ("blobs/sha256-1", "link.gguf"):
        monkeypatch.chdir(tmp_path)
        assert len(models.load(f"./{name}", device="cpu").blocks) == 7


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"__general__type": "adapter"}, "is no model but of type 'adapter'"),
        ({"__split__count": 3}, "one of 3 parts: join them"),
        ({"rope__dimension_count": 8}, "rotates a part of each head only"),
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 2.0}, "not read .'longrope'"),
        ({"attention__causal": False}, "is an encoder"),
    ],
)
def test_what_is_said_and_cannot_be_read_is_refused(tmp_path, said, words):
    path = gguf_files.write(tmp_path / "odd.gguf", gguf_files.model("llama"), **said)
    with pytest.raises(InputError, match=words):
        models.load(str(path), device="cpu")


def test_what_is_no_gguf_file_is_refused(tmp_path, monkeypatch):
    whole = gguf_files.write(tmp_path / "whole.gguf", gguf_files.model("qwen2"))
    for share in (0.0002, 0.01, 0.5, 0.999):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
        with pytest.raises(InputError, match="no whole GGUF file of a model"):
            models.load(str(cut), device="cpu")
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere.gguf").symlink_to(tmp_path / "gone")
    (tmp_path / "round.gguf").symlink_to(tmp_path / "round.gguf")
    odd = {"text.gguf": "does not begin as one", "folder.gguf": "no file but", "pipe": "no file but"}
    odd |= {"pipe.gguf": "no file but", "nowhere.gguf": "No such file", "none.gguf": "No such file"}
    for name, words in (odd | {"round.gguf": "cannot be read", "x" * 300 + ".gguf": "cannot be read"}).items():
        for refuse in (models.load, lambda given: names.check([{"model": given}])):
            with pytest.raises(InputError, match=words):
                refuse(str(tmp_path / name))
    with pytest.raises(InputError, match="cannot be read"):
        models.load("a\0b.gguf")


def test_an_architecture_and_a_tokenizer_that_are_not_read_are_named(tmp_path):
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="architecture 'gpt2', and GGUF files are read of gemma3, llama, qwen2 only"):
        models.load(str(path))


def test_weights_that_are_missing_or_have_no_place_are_refused(tmp_path):
    path = gguf_files.write(tmp_path / "less.gguf", gguf_files.model("llama"), without=("blk.3.ffn_up",))
    with pytest.raises(InputError, match="lacks"):
        models.load(str(path), device="cpu")
    # Biases of a Llama's attention, which transformers would leave out without a word.
    path = gguf_files.write(tmp_path / "more.gguf", gguf_files.model("llama", attention_bias=True))
    with pytest.raises(InputError, match="weights, of which transformers takes"):
        models.load(str(path), device="cpu")
    path = gguf_files.write(tmp_path / "deep.gguf", gguf_files.model("llama"), block_count=10**9)
    with pytest.raises(InputError, match=r"blocks|no whole"):
        models.load(str(path), device="cpu")


def test_what_the_memory_or_the_disk_has_no_room_for_is_refused(tmp_path, monkeypatch):
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.model("llama"))
    monkeypatch.setattr(dequantised, "get_max_memory", lambda: {"cpu": 10**9})
    with pytest.raises(InputError, match="needs about 2 GB of memory to be dequantised, but 1 GB are free"):
        models.load(str(path))
    monkeypatch.undo()
    monkeypatch.setattr(dequantised.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(StorageError, match="make room"):
        models.load(str(path))
