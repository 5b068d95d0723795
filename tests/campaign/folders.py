"""Broken and hostile model folders, made from tiny saved models: what is loaded from one is what lies in it.

Every case ends in one sentence, or gives the weights that the folder's files hold. Nothing in a folder is run, and
nothing is written there. Each is loaded in a process of its own, which a pipe without a writer may hang.
"""

import atexit
import contextlib
import functools
import itertools
import json
import os
import random
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from ridge_utils import models
from ridge_utils.errors import InputError, StorageError
from ridge_utils.representations import collect
from ridge_utils.tasks import Example
from tests.campaign.cases import Case, sentence
from tests.campaign.changes import CHANGES, REFUSED, SAME, Folder, mark

#: Seconds that a folder may take, and GiB of addresses beyond what the process has already.
SECONDS, ROOM = 25, 8
_BASES = ("random:gpt2-3x16", "random:llama-3x16", "random:mamba-3x16", "random:qwen2-3x16")


@functools.cache
def _bases() -> Path:
    """The untouched folders, each in one file and in shards, and what is measured of them."""
    place = Path(tempfile.mkdtemp(prefix="ridge-folders-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for name in _BASES:
        for shards in (False, True):
            whole, folder = models.load(name, device="cpu"), place / f"{name[7:]}-{'many' if shards else 'one'}"
            with models.quiet():
                whole.model.save_pretrained(folder, max_shard_size="15KB" if shards else "1GB")
                whole.tokenizer.save_pretrained(folder)
            # Once here, so that nothing is left to import where it may not be read.
            models.load(str(folder), device="cpu")
            (place / f"{folder.name}.json").write_text(json.dumps(apart(_measured, str(folder))), encoding="utf-8")
    return place


def _measured(name: str) -> dict[str, Any]:
    """What is measured of a folder: how many weights are not those of its files, and states."""
    loaded = models.load(name, device="cpu")
    files = {key: value for file in Path(name).glob("*.safetensors") for key, value in load_file(file).items()}
    kept = {value.data_ptr(): value for key, value in loaded.model.state_dict().items() if key in files}
    wrong = [key for key, value in loaded.model.state_dict().items() if value.data_ptr() not in kept]
    wrong += [
        key
        for key, value in loaded.model.state_dict().items()
        if key in files and not torch.equal(files[key].to(value.dtype), value)
    ]
    states = collect(loaded, [Example("S1 N2 S", "3", "id", "own")], progress=False)
    return {
        "wrong": wrong,
        "states": states.final_norm.flatten().tolist(),
        "finite": bool(states.hidden.isfinite().all()),
    }


def apart(work: Callable[[str], Any], given: str, user: int | None = None, seconds: float = SECONDS) -> dict[str, Any]:
    """What ``work`` gives, or the sentence of its refusal, from a copy of this process that has so many seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            _in_the_copy(lambda: work(given), writing, user)
        os._exit(0)
    os.close(writing)
    said, end = b"", time.monotonic() + seconds
    try:
        while (left := end - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
            if not (part := os.read(reading, 2**16)):
                return json.loads(said or '{"fault": "the process died"}')
            said += part
        return {"fault": f"hangs: not done after {seconds:.0f} s"}
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _in_the_copy(work: Callable[[], Any], writing: int, user: int | None) -> None:
    import resource

    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM * 2**30,) * 2)
    if user is not None and os.geteuid() == 0:
        os.seteuid(user)
    try:
        given = work()
    except (InputError, StorageError) as error:
        given = {"said": str(error)}
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        given = {"fault": f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"}
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(json.dumps(given).encode())


def _state(folder: Folder) -> list[tuple[Any, ...]]:
    """What lies in a folder, to see whether something was written there."""
    return sorted((str(f), f.lstat().st_mode, f.lstat().st_size, f.lstat().st_mtime_ns) for f in folder.rglob("*"))


def _case(base: str, what: str, seed: float) -> tuple[str, Callable[[], str]]:
    def run() -> str:
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as place, mock.patch.dict(os.environ, {"RIDGE_CACHE": f"{place}/cache"}):
            folder = Path(place, "model")
            shutil.copytree(_bases() / base, folder)
            Path(place).chmod(0o755)
            detail, expected = CHANGES[what](folder, rng)
            unreadable = what == "unreadable"
            before = _state(folder)
            given = apart(_measured, str(folder), user=65534 if unreadable else None)
            said = _wrong(given, expected, json.loads((_bases() / f"{base}.json").read_bytes()))
            if mark(folder).exists():
                said = "code of the folder was run"
            elif not said and _state(folder) != before:
                said = "something was written into the folder"
            folder.chmod(0o755)
            return f"{said} [{detail}]" if said else ""

    return f"{base}: {what} ({seed})", run


def _wrong(given: dict[str, Any], expected: str, good: dict[str, Any]) -> str:
    if "fault" in given:
        return str(given["fault"])
    if "said" in given:
        return f"refused: {given['said']}" if expected == SAME else sentence(given["said"])
    if expected == REFUSED:
        return "accepted"
    if given["wrong"] or not given["finite"]:
        return (
            f"not the weights of the folder: {given['wrong'][:3]}" if given["wrong"] else "states that are not finite"
        )
    return "other states than the untouched folder's" if expected == SAME and given["states"] != good["states"] else ""


#: Names of models that are none, or none that can be made.
_NAMES = [
    *("", " ", "\t", "a\0b", "a\nb", "x" * 5000, "a/" * 3000, "/", ".", "..", "./", "~", "~nobody/x", "/dev/null", "é"),
    *("/dev/zero", "/dev/stdin", "/dev/fd/0", "https://huggingface.co/gpt2", "file:///etc/passwd", "hf://gpt2", "-"),
    *("<fifo>", "<text>", "<empty>", "<text>/x", "gpt2[:0]", "random:", "random:gpt2-0x0", "random:gpt2-1x0", "[:3]"),
    *("random:gpt2-0x16", "random:gpt2-1000000x16000000", "random:gpt2-1x10000000000", "random:llama-1000000x64"),
    *("random:mamba-99999999999999999999x64", "random:qwen2-1x160000", "random:gpt2-" + "9" * 5000 + "x16"),
    *("random:llama-100000x16", "random:gpt2-2x16[:" + "9" * 5000 + "]", "random:gpt2-2x16[:1", "random:gpt2-²x16"),
    *(
        f"random:gpt2-2x16{end}"
        for end in ("[:0]", "[:3]", "[:-1]", "[:]", "[:1][:2]", "[:1]x", "\n", "[:1]\n", "[:²]")
    ),
    *("random:GPT2", "random:bert", "../" * 50, "a/b/c", "smollm2-135m[:0]x", "smollm2-135M", "a" * 97 + "/b"),
]


def _name(name: str) -> tuple[str, Callable[[], str]]:
    def run() -> str:
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            os.mkfifo("fifo")
            Path("text").write_text("x", encoding="utf-8")
            Path("empty").mkdir()
            given = apart(_measured, name.replace("<", f"{place}/").replace(">", ""))
            return _wrong(given, REFUSED, {})

    return f"the name {ascii(name)[:100]}", run


def cases(rng: random.Random, count: int) -> Iterator[Case]:
    """Every kind of change, then every odd name, again and again on other folders and with other values."""
    kinds, names = list(CHANGES), itertools.cycle(rng.sample(_NAMES, len(_NAMES)))
    for number in range(count):
        if number % 4 == 3:
            name, run = _name(next(names))
        else:
            base = f"{rng.choice(_BASES)[7:]}-{rng.choice(['one', 'many'])}"
            name, run = _case(base, kinds[(number - number // 4) % len(kinds)], rng.random())
        yield Case("folders", name, run)
