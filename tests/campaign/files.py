"""Damaged, swapped and strange files, of whatever kind a small run leaves in the cache and in its results.

The readers must give the same numbers, found sound or made anew, or say in a sentence what is wrong.
"""

import json
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ridge_utils import cache, models, results, store, tasks, training
from ridge_utils.errors import StorageError
from tests.campaign.cases import Case, sentence

SETTINGS = training.Settings(steps=4, checkpoints=(2, 4), batch_size=2)
WAYS = (
    *("a bit", "a byte", "cut", "longer", "gone", "empty", "noise", "null", "an empty object", "deep"),
    *("a number changed", "a folder", "a pipe", "a link", "another file's content", "exchanged with another"),
    *("its folder exchanged", "its folder gone"),
)  # fmt: skip

#: Where in a JSON file a value is: names and numbers, from the outermost in.
Keys = tuple[str | int, ...]


def measure(place: Path) -> list[torch.Tensor]:
    """All that can be read back: hidden states, those of many examples, both checkpoints, and a table."""
    os.environ[cache.ENVIRONMENT_VARIABLE] = str(place / "cache")
    loaded = models.load("random:gpt2-2x16", device="cpu")
    examples = tasks.load("synthetic_arithmetic", "id", 6, 0)
    run = training.finetune(loaded, examples, SETTINGS, progress=False)
    numbers = [*table(place), torch.tensor(run.log[["step", "loss"]].to_numpy())]
    for step in run.steps:
        checkpoint = run.load(step)
        states = store.read(checkpoint, examples, 2, "")
        numbers += [getattr(states, field.name) for field in fields(states)]
    part, store.PART = store.PART, 4  # so that six examples are read part by part
    try:
        numbers.append(store.read(loaded, examples, 2, "").hidden.clone())
    finally:
        store.PART = part
    return numbers


def table(place: Path) -> list[torch.Tensor]:
    """The values of the table, and how long it took to make."""
    rows, origin = results.read(place / "results" / "table.csv")
    return [torch.tensor(rows["value"].tolist(), dtype=torch.float64), torch.tensor(origin["seconds"])]


def _make(place: Path) -> list[torch.Tensor]:
    sites = results.sites(2)
    context = {"model": "m", "task": "t", "source": "own", "split": "all", "step": 0, "train_seed": None, "n": 5}
    rows = results.measurements([0.1, 0.2, 0.3, 0.4], sites, "predictive_information", sample_seed=0, **context)
    (place / "results").mkdir(parents=True)
    results.write(rows, place / "results" / "table.csv", results.provenance({"n": 5}, seconds=1.5))
    return measure(place)


def cases(rng: random.Random, count: int) -> Iterator[Case]:
    """Every damage of every file once, in random order, then again with other values; each on a fresh copy."""
    before = os.environ.get(cache.ENVIRONMENT_VARIABLE)
    logging.getLogger("ridge_utils").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        expected = _make(whole)
        files = sorted(
            path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.suffix != ".lock"
        )
        kinds = [(file, way) for file in files for way in (*WAYS, *_values(whole / file))]
        rng.shuffle(kinds)
        for number in range(count):
            (file, way), seed = kinds[number % len(kinds)], rng.randrange(2**32)
            shown = f"{file.parent.parent.name}/{file.name}: {_shown(way)} (seed {seed})"
            yield Case("files", shown, lambda f=file, w=way, s=seed: _run(whole, f, w, s, expected))
    logging.getLogger("ridge_utils").setLevel(logging.NOTSET)
    if before is None:
        os.environ.pop(cache.ENVIRONMENT_VARIABLE, None)
    else:
        os.environ[cache.ENVIRONMENT_VARIABLE] = before


def _values(path: Path) -> list[Keys]:
    """Where a JSON file holds its values, by keys; of what is not this project's the SHA-256 is enough."""
    if path.suffix != ".json" or path.name == "config.json":
        return []
    found: list[Keys] = []
    left: list[tuple[Keys, Any]] = [((), json.loads(path.read_bytes()))]
    while left:
        keys, value = left.pop()
        if isinstance(value, dict | list):
            left += [((*keys, key), value[key]) for key in (value if isinstance(value, dict) else range(len(value)))]
        else:
            found.append(keys)
    return found


def _shown(way: str | Keys) -> str:
    return way if isinstance(way, str) else f"the value {'.'.join(map(str, way))}"


def _run(whole: Path, file: Path, way: str | Keys, seed: int, expected: list[torch.Tensor]) -> str:
    place = whole.parent / "copy"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    damage(place / file, way, random.Random(seed))
    for again in ("", "again: "):
        try:
            numbers = table(place) if file.parts[0] == "results" else measure(place)
        except StorageError as error:
            return again + wrong if (wrong := sentence(str(error))) else ""
        if not all(map(torch.equal, numbers, expected)):
            return f"{again}other numbers"
    return ""


def damage(path: Path, way: str | Keys, rng: random.Random) -> None:
    """Damage a file in one of the :data:`WAYS`, or change the value that a JSON file has under some keys."""
    content = path.read_bytes()
    if not isinstance(way, str):
        path.write_text(json.dumps(_changed(json.loads(content), way, rng)), encoding="utf-8")
        return
    others = sorted(other for other in path.parent.parent.rglob(path.name) if other != path and other.is_file())
    other = rng.choice(others) if others else path
    place = rng.randrange(max(1, len(content)))
    if way in ("a bit", "a byte", "a number changed"):
        digits = [i for i, byte in enumerate(content[:100_000]) if 48 <= byte < 58]
        if way == "a number changed" and digits:
            place = rng.choice(digits)
            new = rng.choice([digit for digit in range(48, 58) if digit != content[place]])
        else:
            new = (
                content[place] ^ (1 << rng.randrange(8))
                if way == "a bit"
                else (content[place] + rng.randint(1, 255)) % 256
            )
        path.write_bytes(content[:place] + bytes([new]) + content[place + 1 :])
    elif way == "exchanged with another":
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif way == "another file's content":
        path.write_bytes(other.read_bytes())
    elif way == "its folder exchanged":
        siblings = sorted(p for p in path.parent.parent.iterdir() if p.is_dir() and p != path.parent)
        if siblings and path.parent.parent.name != "copy":
            sibling, aside = rng.choice(siblings), path.parent.parent / "aside"
            path.parent.rename(aside)
            sibling.rename(path.parent)
            aside.rename(sibling)
    elif way == "its folder gone":
        if path.parent.name != "results":
            shutil.rmtree(path.parent)
    else:
        path.unlink()
        strange = {
            "cut": content[:place], "longer": content + b"\n", "empty": b"", "noise": rng.randbytes(len(content) or 9),
            "null": b"null", "an empty object": b"{}", "deep": b"[" * 3000 + b"]" * 3000,
        }  # fmt: skip
        if way in strange:
            path.write_bytes(strange[way])
        elif way == "a folder":
            path.mkdir()
        elif way == "a pipe":
            os.mkfifo(path)
        elif way == "a link":
            path.symlink_to(rng.choice(["/dev/zero", str(path), "/etc/hostname"]))


def _changed(content: Any, keys: Keys, rng: random.Random) -> Any:
    """A JSON file's content with another value under the keys: one like it, one of another type, or none."""
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    value, kind = inner[keys[-1]], rng.randrange(4)
    if kind == 0:
        del inner[keys[-1]]
    elif kind == 1:
        inner[keys[-1]] = rng.choice([None, [], {}, [value], {"a": value}, "x", 10**30])
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        inner[keys[-1]] = value + rng.choice([-1, 1]) if number else f"{value}"[::-1] + "x"
    return content
