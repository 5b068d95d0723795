"""What is remembered of a model: found again, made in parts, gone on with after an interruption."""

from dataclasses import replace

import pytest
import torch

from ridge_utils import cache, store, tasks
from ridge_utils.errors import InputError, StorageError
from ridge_utils.representations import collect

NAMES = ("hidden", "final_norm", "targets", "target_ids")


@pytest.fixture
def examples():
    return tasks.load("synthetic_arithmetic", "id", 11)


@pytest.fixture
def passes(llama, monkeypatch):
    """The numbers of prompts of every forward pass, and a way to interrupt one."""
    seen = []
    forward = llama.model.base_model.forward

    def count(*args, **kwargs):
        seen.append(len(kwargs["input_ids"]))
        if len(seen) == count.interrupted:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    count.interrupted = None
    monkeypatch.setattr(llama.model.base_model, "forward", count)
    return seen, count


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json"))


@pytest.mark.parametrize("part", [4, 5, 99])
def test_states_in_parts_are_those_of_one_collection(llama, examples, monkeypatch, own_cache, part):
    monkeypatch.setattr(store, "PART", part)
    whole = collect(llama, examples, 2, progress=False)
    for _ in range(2):
        found = store.read(llama, examples, 2, "all")
        for name in NAMES:
            torch.testing.assert_close(getattr(found, name), getattr(whole, name), atol=1e-6, rtol=1e-6)
    # Only the whole is left.
    expected = ["tensors.safetensors"] if part == 99 else ["final_norm.npy", "hidden.npy"]
    assert files(own_cache) == expected


def test_states_that_were_stored_whole_are_not_taken_for_those_on_the_disk(llama, examples, monkeypatch):
    # As by a version, or with a limit, that took so many examples at once.
    whole = store.read(llama, examples, 2, "all")
    monkeypatch.setattr(store, "PART", 4)
    found = store.read(llama, examples, 2, "all")
    assert torch.equal(found.target_ids, whole.target_ids)


@pytest.mark.parametrize("part", [4, 99])
def test_other_targets_need_no_other_pass(llama, examples, monkeypatch, passes, part):
    monkeypatch.setattr(store, "PART", part)
    store.read(llama, examples, 2, "all")
    seen, _ = passes
    seen.clear()
    others = [replace(example, target=" other", signal_spans=()) for example in examples]
    found, expected = store.read(llama, others, 2, "all"), collect(llama, others, 2, progress=False)
    assert sum(seen) == len(examples)  # those of ``collect``
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-6, rtol=1e-6)


def test_an_interrupted_collection_goes_on_after_the_last_whole_part(llama, examples, monkeypatch, passes):
    monkeypatch.setattr(store, "PART", 4)
    seen, control = passes
    control.interrupted = 4
    with pytest.raises(KeyboardInterrupt):
        store.read(llama, examples, 2, "all")
    assert seen == [2, 2, 2, 2]
    control.interrupted = None
    seen.clear()
    found = store.read(llama, examples, 2, "all")
    # The first part is there, the second is made again from its beginning.
    assert seen == [2, 2, 2, 1]
    seen.clear()
    again = store.read(llama, examples, 2, "all")
    assert seen == []
    assert all(torch.equal(getattr(again, name), getattr(found, name)) for name in NAMES)


def test_a_damaged_part_is_made_again(llama, examples, monkeypatch, passes, own_cache):
    monkeypatch.setattr(store, "PART", 4)
    seen, control = passes
    control.interrupted = 4
    with pytest.raises(KeyboardInterrupt):
        store.read(llama, examples, 2, "all")
    (part,) = own_cache.rglob("tensors.safetensors")
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    control.interrupted = None
    seen.clear()
    found = store.read(llama, examples, 2, "all")
    assert seen == [2, 2, 2, 2, 2, 1]
    assert torch.equal(found.target_ids, collect(llama, examples, 2, progress=False).target_ids)


def test_states_on_the_disk_are_checked_when_they_are_read(llama, examples, monkeypatch, passes, own_cache):
    monkeypatch.setattr(store, "PART", 4)
    seen, _ = passes
    store.read(llama, examples, 2, "all")
    (file,) = own_cache.rglob("hidden.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    seen.clear()
    store.read(llama, examples, 2, "all")
    assert sum(seen) == len(examples)


def test_changing_the_states_changes_no_file(llama, examples, monkeypatch):
    monkeypatch.setattr(store, "PART", 4)
    found = store.read(llama, examples, 2, "all")
    before = found.hidden.clone()
    found.hidden.zero_()
    assert torch.equal(store.read(llama, examples, 2, "all").hidden, before)


def test_no_room_on_the_disk_is_said_before_the_long_work(llama, examples, monkeypatch, passes):
    monkeypatch.setattr(store, "PART", 4)
    usage = cache.shutil.disk_usage(".")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match="No space left on device"):
        store.read(llama, examples, 2, "all")
    assert passes[0] == []


def test_a_bad_batch_size_is_one_sentence(llama, examples, monkeypatch):
    monkeypatch.setattr(store, "PART", 4)
    with pytest.raises(InputError, match="batch_size"):
        store.read(llama, examples, 0, "all")
