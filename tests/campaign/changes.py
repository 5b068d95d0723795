"""What is done to a model folder: changes that break it, contradict it, or lay a stranger's code in it."""

import copy
import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

_INDEX = "model.safetensors.index.json"
_ODD = [
    *[None, True, False, 0, 1, 2, 3, 4, -1, 1.5, 10**6, 10**9, 10**30, 1e308, float("nan"), float("inf"), "", "x", "3"],
    *["../..", "/dev/zero", "a\0b", [], {}, [None], {"a": 1}, ["x"] * 5, {"": []}, "x" * 10**5, "evil.Evil", [[1]]],
]
Folder = Path
#: Must be refused; must load as if nothing had been done; may do either.
REFUSED, SAME, EITHER = "refused", "same", "either"
Change = Callable[[Folder, random.Random], tuple[str, str]]


class Hostile:
    """What a pickle or a module of a stranger does: it leaves a mark."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.mark,))


def mark(folder: Folder) -> Path:
    """The folder that is made when a stranger's code runs."""
    return folder.with_name(f"{folder.name}-ran")


def _weights(change: Callable[[dict[str, torch.Tensor], random.Random], str]) -> Change:
    """A change of the tensors in one file of weights."""

    def changed(folder: Folder, rng: random.Random) -> tuple[str, str]:
        file = rng.choice(sorted(folder.glob("*.safetensors")))
        tensors = load_file(file)
        expected = change(tensors, rng)
        save_file(tensors, file, metadata={"format": "pt"})
        return file.name, expected

    return changed


def _drop(tensors: dict[str, torch.Tensor], rng: random.Random) -> str:
    for name in rng.sample(sorted(tensors), rng.randint(1, len(tensors))):
        del tensors[name]
    return REFUSED


def _rename(tensors: dict[str, torch.Tensor], rng: random.Random) -> str:
    name = rng.choice(sorted(tensors))
    new = rng.choice([f"{name}x", f"x{name}", name.upper(), name.replace(".0.", ".9."), "", name[: len(name) // 2]])
    tensors[new] = tensors.pop(name)
    return REFUSED if new != name else SAME


def _reshape(tensors: dict[str, torch.Tensor], rng: random.Random) -> str:
    name = rng.choice(sorted(tensors))
    x = tensors[name]
    tensors[name] = rng.choice([x[None], x[:-1], x[:0], torch.cat([x, x]), x.flatten()[0], x[:1]]).contiguous()
    return REFUSED if tensors[name].shape != x.shape else SAME


def _more(tensors: dict[str, torch.Tensor], rng: random.Random) -> str:
    new = rng.choice(["score.weight", "classifier.weight", "transformer.h.9.ln_1.weight", "v_head.bias", "more"])
    tensors[new] = torch.zeros(2, 16)
    return REFUSED


def _other_dtype(tensors: dict[str, torch.Tensor], rng: random.Random) -> str:
    dtypes = [torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
    dtype = rng.choice([*dtypes, torch.float16, torch.bfloat16, torch.float64])
    for name in rng.sample(sorted(tensors), rng.randint(1, len(tensors))):
        tensors[name] = tensors[name].to(dtype)
    return REFUSED if dtype in dtypes else EITHER


def _not_finite(tensors: dict[str, torch.Tensor], rng: random.Random) -> str:
    x = tensors[rng.choice(sorted(tensors))].view(-1)
    x[rng.randrange(len(x))] = rng.choice([float("nan"), float("inf"), -float("inf")])
    return REFUSED


def _bytes(change: Callable[[bytes, random.Random], bytes], expected: str = EITHER, kinds: str = "*") -> Change:
    """A change of the bytes of any file."""

    def changed(folder: Folder, rng: random.Random) -> tuple[str, str]:
        file = rng.choice(sorted(folder.glob(kinds)))
        file.write_bytes(change(file.read_bytes(), rng))
        return file.name, expected

    return changed


def _header(content: bytes, rng: random.Random) -> bytes:
    """A header of safetensors that says what is not so."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    kind = rng.randrange(6)
    if kind == 0:
        return struct.pack("<Q", rng.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1])) + content[8:]
    if kind == 1:
        header[name]["shape"] = rng.choice([[2**62], [2**32, 2**32], [-1], [1e9], "x", [], [0]])
    elif kind == 2:
        header[name]["data_offsets"] = rng.choice([[0, 2**63], [5, 1], [0, 0], [-1, 4], [], None, [0, 10**15]])
    elif kind == 3:
        header[name]["dtype"] = rng.choice(["I8", "F128", "", None, "F4", "BOOL", "U64"])
    elif kind == 4:
        header["__metadata__"] = rng.choice([None, {"format": "tf"}, {"format": "evil"}, {"a": 1}, []])
    new = b"[" * 10**5 if kind == 5 else json.dumps(header).encode()
    return struct.pack("<Q", len(new)) + new + content[8 + size :]


_TEXTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda *_: b"",
    "blank": lambda *_: b" \n",
    "cut": lambda content, rng: content[: rng.randrange(len(content))],
    "random bytes": lambda content, rng: rng.randbytes(len(content)),
    "UTF-16": lambda content, _: content.decode("latin-1").encode("utf-16"),
    "nested deep": lambda _, rng: rng.choice([b"[", b'{"a":']) * rng.choice([3000, 10**5]),
    "nested in balance": lambda *_: b"[" * 3000 + b"]" * 3000,
    "a huge number": lambda *_: b'{"vocab_size": ' + b"9" * 5000 + b"}",
    "another JSON": lambda _, rng: rng.choice([b"null", b"[]", b"{}", b"3", b'"x"', b"NaN", b'{"a": 1, "a": 2}']),
    "a surrogate": lambda content, _: content.replace(b'": "', b'": "\\ud800', 1),
}


def _becomes(folder: Folder, rng: random.Random) -> tuple[str, str]:
    """A file is something else: gone, a folder, a pipe, a device, a link."""
    file = rng.choice(sorted(folder.iterdir()))
    kind = rng.choice(["gone", "folder", "pipe", "dangling", "loop", "/dev/zero", "/dev/null", "link"])
    kept = file.read_bytes()
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link":  # the Hub's cache is made of these
        beside = folder.with_name(f"{folder.name}-blob")
        beside.write_bytes(kept)
        file.symlink_to(beside)
        return f"{file.name}: {kind}", SAME
    elif kind != "gone":
        file.symlink_to({"dangling": "nowhere", "loop": file.name}.get(kind, kind))
    needed = file.name.endswith(".safetensors") or file.name in ("config.json", _INDEX, "tokenizer.json")
    return f"{file.name}: {kind}", REFUSED if needed else EITHER


def _json(folder: Folder, rng: random.Random) -> tuple[str, str]:
    """One value anywhere in one of the JSON files."""
    file = rng.choice(
        [file for file in sorted(folder.glob("*.json")) if file.name != "tokenizer.json" or rng.random() < 0.3]
    )
    content = json.loads(file.read_bytes())
    inner, way = content, []
    while isinstance(inner, dict | list) and inner and (not way or rng.random() < 0.6):
        parent, key = inner, rng.choice(list(inner if isinstance(inner, dict) else range(len(inner))))
        inner, way = parent[key], [*way, key]
    if rng.random() < 0.15:
        del parent[key]
        what = "gone"
    else:
        parent[key] = what = copy.deepcopy(rng.choice(_ODD))
    file.write_text(json.dumps(content), encoding="utf-8")
    return f"{file.name} {way}: {what!r:.60}", EITHER


def _one_of(*values: Any) -> Callable[[random.Random], Any]:
    return lambda rng: rng.choice(values)


def _config(**values: Any) -> Change:
    """Keys of the configuration that contradict the weights."""

    def changed(folder: Folder, rng: random.Random) -> tuple[str, str]:
        config = json.loads((folder / "config.json").read_bytes())
        own = {"n_layer", "num_hidden_layers", "n_embd", "hidden_size"} - set(config)
        new = {key: value(rng) if callable(value) else value for key, value in values.items() if key not in own}
        (folder / "config.json").write_text(json.dumps(config | new), encoding="utf-8")
        return f"{new}", REFUSED

    return changed


def _model_type(folder: Folder, rng: random.Random) -> tuple[str, str]:
    config = json.loads((folder / "config.json").read_bytes())
    own, other = config["model_type"], rng.choice(sorted(CONFIG_MAPPING_NAMES))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": other}), encoding="utf-8")
    return other, SAME if own == other else EITHER


_CODE = "import os\nos.mkdir({mark!r})\n\nclass Evil: pass\n"


def _code(folder: Folder, rng: random.Random) -> tuple[str, str]:
    """Modules that leave a mark when they are imported, and files that name them."""
    for name in ("evil.py", "modeling_gpt2.py", "tokenization.py", "__init__.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(_CODE.format(mark=str(mark(folder))), encoding="utf-8")
    named = ["AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer"]
    of_strangers = {"auto_map": dict.fromkeys(named, "evil.Evil")}
    for file in rng.sample(["config.json", "tokenizer_config.json", "generation_config.json"], rng.randint(1, 3)):
        content = json.loads((folder / file).read_bytes()) if (folder / file).exists() else {}
        content |= of_strangers | ({"model_type": "evil"} if rng.random() < 0.5 and file == "config.json" else {})
        content |= {"tokenizer_class": "Evil"} if rng.random() < 0.5 and file.startswith("tok") else {}
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return "", EITHER


def _pickle(folder: Folder, rng: random.Random) -> tuple[str, str]:
    """Pickles under all names that weights have had, with or without weights beside them."""
    content = pickle.dumps(Hostile(str(mark(folder))))
    names = [
        "pytorch_model.bin",
        "adapter_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "model.pt",
        "model.ckpt.index",
    ]
    for name in (*names, "tokenizer.model", "vocab.pkl"):
        (folder / name).write_bytes(content)
    if only := rng.random() < 0.5:
        for file in folder.glob("*.safetensors*"):
            file.unlink()
    return "alone" if only else "beside the weights", REFUSED if only else EITHER


def _adapter(folder: Folder, rng: random.Random) -> tuple[str, str]:
    base = rng.choice(["evil/model", str(folder), "", None])
    content = {"peft_type": "LORA", "base_model_name_or_path": base, "target_modules": ["c_attn"], "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")
    return f"{base}", REFUSED


def _generation(folder: Folder, rng: random.Random) -> tuple[str, str]:
    odd = {"max_length": rng.choice(_ODD), "custom_generate": "evil/repo", "stop_strings": rng.choice(_ODD)}
    (folder / "generation_config.json").write_text(json.dumps(odd), encoding="utf-8")
    return f"{odd!r:.60}", EITHER


def _template(folder: Folder, rng: random.Random) -> tuple[str, str]:
    text = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**9) %}{% endfor %}"
    (folder / rng.choice(["chat_template.jinja", "chat_template.json"])).write_text(text, encoding="utf-8")
    return "", EITHER


def _more_tokens(folder: Folder, rng: random.Random) -> tuple[str, str]:
    """A tokenizer that gives tokens beyond the embedding."""
    file, new = folder / "tokenizer.json", rng.choice([260, 261, 10**6])
    content = json.loads(file.read_bytes())
    if rng.random() < 0.5:
        content["model"]["vocab"]["S"] = new
    else:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"] += [{"id": i, "content": f"<{i}>", "special": True} | flags for i in range(258, 262)]
    file.write_text(json.dumps(content), encoding="utf-8")
    return f"{new}", REFUSED


def _fewer_tokens(folder: Folder, rng: random.Random) -> tuple[str, str]:
    """An embedding that is smaller than the tokenizer's vocabulary."""
    rows = rng.choice([1, 100, 257])
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({k: x[:rows].clone() if len(x) == 260 else x for k, x in tensors.items()}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes()) | {"vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"{rows}", REFUSED


def _index(folder: Folder, rng: random.Random) -> tuple[str, str]:
    """An index of shards that names what is not there, or is no index."""
    if not (folder / _INDEX).exists():
        return _drop_file(folder, rng)
    content = json.loads((folder / _INDEX).read_bytes())
    files = content["weight_map"]
    name = rng.choice(sorted(files))
    kind = rng.randrange(4)
    if kind == 0:
        files[name] = rng.choice(["../x.safetensors", "/dev/zero", "evil.bin", "config.json", None, 3, [], "", "a\0b"])
    elif kind == 1:
        files["more"] = files[name]
    elif kind == 2:
        content["weight_map"] = rng.choice([None, [], "x", {}, 3])
    else:
        return _drop_file(folder, rng)
    (folder / _INDEX).write_text(json.dumps(content), encoding="utf-8")
    return f"{kind}: {files.get(name)!r}", REFUSED if kind != 1 else EITHER


def _drop_file(folder: Folder, rng: random.Random) -> tuple[str, str]:
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    file.unlink()
    return f"without {file.name}", REFUSED


def _unreadable(folder: Folder, rng: random.Random) -> tuple[str, str]:
    place = rng.choice([folder, *sorted(folder.iterdir())])
    place.chmod(0)
    needed = place == folder or place.name in ("config.json", "tokenizer.json") or ".safetensors" in place.name
    return f"{place.name}", REFUSED if needed else EITHER


CHANGES: dict[str, Change] = {
    "weights gone": _weights(_drop),
    "a weight renamed": _weights(_rename),
    "a weight of another shape": _weights(_reshape),
    "weights more": _weights(_more),
    "weights of another dtype": _weights(_other_dtype),
    "weights that are not finite": _weights(_not_finite),
    "weights cut": _bytes(_TEXTS["cut"], REFUSED, "*.safetensors"),
    "a false header": _bytes(_header, EITHER, "*.safetensors"),
    "index": _index,
    "a file is something else": _becomes,
    "JSON": _json,
    "fewer layers": _config(n_layer=1, num_hidden_layers=1),
    "more layers": _config(n_layer=_one_of(4, 9, 10**9), num_hidden_layers=_one_of(4, 10**9)),
    "another width": _config(n_embd=_one_of(32, 10**7), hidden_size=_one_of(32, 10**7)),
    "another vocabulary": _config(vocab_size=_one_of(1, 259, 261, 10**9)),
    "fewer tokens": _fewer_tokens,
    "another head": _config(architectures=_one_of(["GPT2ForSequenceClassification"], ["BertForMaskedLM"], ["XForX"])),
    "model_type": _model_type,
    "code": _code,
    "pickles": _pickle,
    "an adapter": _adapter,
    "generation_config.json": _generation,
    "chat template": _template,
    "more tokens": _more_tokens,
    "unreadable": _unreadable,
    **{f"a file {name}": _bytes(change) for name, change in _TEXTS.items()},
}  # fmt: skip
